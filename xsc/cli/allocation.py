"""xsc allocation: what slots grant to needs ahead of use, to whom, and why."""

from __future__ import annotations

from typing import Final

import click

from xsc import api
from xsc.base.units import format_credits, format_level, format_share
from xsc.cli.options import Group, asks
from xsc.cli.output import (
    Columns,
    by_name,
    level_of,
    moment,
    named,
    short,
    show,
    show_pairs,
    show_rows,
    show_table,
    yes_or_no,
)
from xsc.client.core import Document


def _time(window: list[int]) -> str:
    end = moment(window[1])
    return "always" if end == "never" else f"{moment(window[0])} to {end}"


@click.group(cls=Group)
def allocation() -> None:
    """Show what slots grant to needs ahead of use, to whom, and why."""


@asks(allocation, api.market.SHOW, name="show")
def show_all(answer: Document) -> None:
    """Show what was cleared, here and by the nodes that this one follows."""
    show_table(
        [
            *("slot", "node", "kind", "window", "<capacity", "customer", "tier", "<granted"),
            *("<leased", "<price", "lapses"),
        ],
        [
            [
                short(slot["slot"]),
                named(slot, slot["node"]),
                slot["kind"],
                _time(slot["window"]),
                format_level(slot["kind"], slot["capacity"]),
                *cells,
            ]
            for slot in answer["slots"]
            for cells in _granted(slot)
        ],
        "nothing was cleared: no known need matches what is offered",
    )
    if answer["slots"]:
        show()
        show_rows(answer["slots"], _BARS, "")
        show()
    show(f"converged: {'yes' if answer['converged'] else 'no'}")
    show(f"network, as far as known: {'yes' if answer['network_converged'] else 'no'}")
    if answer["program_fault"]:
        show(f"nothing new is granted: the allocation program fails: {answer['program_fault']}")


def _granted(slot: Document) -> list[list[str]]:
    """Return who has what of a slot, at the price that is charged."""
    kind = slot["kind"]
    rows = [
        [
            named(line, line["node"]),
            line["tier"],
            format_level(kind, line["quantity"]),
            format_level(kind, line["drawn"]),
            format_credits(line["price"]),
            _lapses(line),
        ]
        for line in slot["allocations"]
    ]
    rows += [
        [named(line, line["node"]), "pinned", "", format_level(kind, line["quantity"]), "", ""]
        for line in slot["pinned"]
    ]
    return rows or [["nobody", *[""] * 5]]


def _lapses(line: Document) -> str:
    """Return when an offer that is not leased lapses; nothing where none is made."""
    if line.get("granted_ms") == 0 or line["drawn"] >= line["quantity"]:
        return ""
    return moment(line["until_ms"])


def _bar(slot: Document) -> str:
    """Return what the tiers have of a slot's capacity as a bar, a letter each at least."""
    of_tier = {tier["tier"]: tier["given"] for tier in slot["tiers"]}
    of_tier["pinned"] = sum(line["quantity"] for line in slot["pinned"])
    whole = max(1, slot["capacity"] + of_tier["pinned"])
    bar, taken = "", 0
    for tier, quantity in of_tier.items():
        taken += quantity
        cells = max(len(bar) + (quantity > 0), _BAR_CELLS * taken // whole)
        bar = bar.ljust(min(cells, _BAR_CELLS), _LETTERS[tier])
    return bar.ljust(_BAR_CELLS, ".")


_BAR_CELLS: Final = 40
_LETTERS: Final = {"mutual": "m", "one_way": "w", "open": "o", "pinned": "p"}
"""What stands in a bar for each tier."""
_BARS: Final[Columns] = {
    "slot": ("slot", short),
    "node": by_name("node"),
    "kind": "kind",
    "mutual (m), one way (w), open (o), pinned (p)": _bar,
}


@asks(allocation, api.market.GROUPS)
def groups(answer: Document) -> None:
    """Show who recognises whom, who offers, who needs and who is there."""
    names = answer["names"]
    show_pairs(
        [
            (
                _GROUPS.get(group, group),
                ", ".join(names.get(node, short(node)) for node in nodes) or "nobody",
            )
            for group, nodes in answer["groups"].items()
        ]
    )


_GROUPS: Final = {
    "my_mutual_recognition": "recognise this node, and are recognised",
    "my_mutual_beneficiaries": "served here as mutual",
    "my_non_mutual_beneficiaries": "served here as recognised one way",
    "mutual_providers_for_me": "offer something, mutual",
    "non_mutual_providers_for_me": "offer something, and recognise this node",
    "mutual_beneficiaries_with_needs": "need something, mutual",
    "non_mutual_beneficiaries_with_needs": "need something, recognised one way",
    "all_mutual_partners": "mutual, also who offers and needs nothing",
    "active_participants": "offer or need something, and answer",
    "oscillating_participants": "damped, because their needs swing",
    "has_system_converged": "say that their allocation has converged",
}
"""The groups in words, by the names of the API."""


@asks(allocation, api.market.CONSISTENT)
def consistent(answer: Document) -> None:
    """Show which commitments are of one cut.

    A commitment is not where its author had heard something of another node
    that has not come here yet.
    """
    names = {row["node"]: named(row, row["node"]) for row in answer["commitments"]}

    def unheard(row: Document) -> str:
        return ", ".join(names.get(node, short(node)) for node in row["unheard"])

    columns: Columns = {
        "node": by_name("node"),
        "written": ("written_ms", moment),
        "<offers": ("offers", str),
        "<needs": ("needs", str),
        "of the cut": ("consistent", yes_or_no),
        "heard more of": unheard,
    }
    show_rows(answer["commitments"], columns, "no commitment is known here")


_ENTITLEMENTS: Final[Columns] = {
    "need": ("need", short),
    "node": by_name("node"),
    "kind": "kind",
    "tier": lambda row: row["tier"] or "pinned",
    "<granted": level_of("quantity"),
    "<leased": level_of("drawn"),
    "<price": ("price", format_credits),
    "window": ("window", _time),
    "lapses": _lapses,
}


@asks(allocation, api.market.EXPECTED)
def expected(answer: Document) -> None:
    """Show what the needs of this node are granted by others."""
    empty = "nobody grants anything to needs of this node"
    show_rows(answer["allocations"], _ENTITLEMENTS, empty)


@asks(allocation, api.market.RECEIVED)
def received(answer: Document) -> None:
    """Show what the cleared leases of this node have."""
    show_rows(answer["allocations"], _ENTITLEMENTS, "no lease was taken on an offer yet")


@asks(allocation, api.market.WHY, click.argument("id", metavar="NODE|SLOT"))
def why(answer: Document) -> None:
    """Explain what needs were granted, and what would have changed that.

    SLOT is the id of a slot, need or clearing, or the beginning of one. NODE is
    a peer: what it was granted here, and what it grants to this node.
    """
    for row in answer["passed_over"]:
        show(f"passed over: {row['reason']}")
    if not answer["why"] and not answer["passed_over"]:
        show("nobody that is known here offers or needs anything that this could be about")
    for number, row in enumerate(answer["why"]):
        if number:
            show("")
        show_pairs(_reasons(row))
    if answer["more"]:
        click.echo("there is more than one answer holds: name one need, slot or clearing")


def _reasons(row: Document) -> list[tuple[str, str]]:
    kind = row["kind"]
    pairs = [
        ("customer", named(row, row["node"])),
        ("need", short(row["need"])),
        ("provider", row["provider_name"]),
        ("slot", short(row["slot"])),
    ]
    if row["clearing"] is not None:
        pairs += [("clearing", short(row["clearing"])), ("window", _time(row["window"]))]
    if row["granted"] is not None:
        share = "" if row["tier"] == "open" else f", {format_share(row['weight'])}"
        granted, eligible = (format_level(kind, row[of]) for of in ("granted", "eligible"))
        pairs += [("tier", f"{row['tier']}{share}"), ("granted", f"{granted} of {eligible}")]
    pairs += [("stage", _stage(kind, stage)) for stage in row["stages"]]
    pairs += [("because", row["because"])]
    return pairs + [("change", change) for change in row["changes"]]


def _stage(kind: str, stage: Document) -> str:
    quantity, price = format_level(kind, stage["quantity"]), format_credits(stage["price"])
    return f"{quantity} as {stage['tier']}, at {price}"
