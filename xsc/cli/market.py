"""xsc market and xsc allocation: what nodes offer, need, ask and agree, who is granted what."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import click

from xsc import api
from xsc.api.endpoint import Id
from xsc.base.errors import ArgumentInvalid, NotFound
from xsc.base.limits import EPOCH_MS, MEMORY_BYTES_DEFAULT, MFUEL
from xsc.base.units import (
    format_credits,
    format_duration,
    format_level,
    format_share,
    format_size,
    parse_duration_ms,
    parse_size,
)
from xsc.cli.options import (
    CODE,
    CREDITS,
    DURATION,
    FUEL,
    LEASE,
    PAIR,
    PEER,
    SIZE,
    Group,
    Parsed,
    Settings,
    asks,
    output_option,
    table_of,
    together,
)
from xsc.cli.output import (
    Columns,
    by_name,
    level_of,
    moment,
    named,
    say,
    short,
    show,
    show_pairs,
    show_rows,
    show_table,
    warn,
    yes_or_no,
)
from xsc.client.calls import Calls
from xsc.client.core import Document

KINDS = ("storage", "compute")


def _own_slots(calls: Calls) -> Iterable[str]:
    return [row["id"] for row in calls.ask(api.market.SLOTS)["slots"]]


_slot = click.argument("id", metavar="ID", type=Parsed("ID", str, _own_slots))


def _amount(kind: str, quantity: int) -> str:
    """Return a quantity of what is traded: bytes, or fuel times 64 MiB steps in millions."""
    return format_size(quantity) if kind == "storage" else f"{quantity // MFUEL} M"


@click.group(cls=Group)
def market() -> None:
    """Offer capacity and state needs; show prices and leases."""


_RATE = re.compile(r"([0-9]{1,30})(|k|M|G|T)fuel/s")
_WORKERS = re.compile(r"([0-9]{1,12})workers?")
_TIMES: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_EXAMPLES: Final = "write for example 100GiB, 2workers or 500Mfuel/s"


def _quantity(text: str) -> Document:
    """Return a level: bytes of a size such as 100GiB, a rate such as 500Mfuel/s, or workers."""
    if found := _WORKERS.fullmatch(text):
        return {"workers": int(found[1])}
    if found := _RATE.fullmatch(text):
        return {"quantity": int(found[1]) * _TIMES[found[2]], "unit": "fuel_per_s"}
    if not re.search("[A-Za-z]", text):
        raise ArgumentInvalid(f"QUANTITY: '{text}' has no unit", hint=_EXAMPLES)
    try:
        return {"quantity": parse_size(text), "unit": "bytes"}
    except ArgumentInvalid:
        raise ArgumentInvalid(f"QUANTITY: '{text}' is no quantity", hint=_EXAMPLES) from None


def _moment(text: str) -> int:
    """Return a moment in milliseconds.

    Raises:
        ArgumentInvalid: it is none.
    """
    now_ms = time.time_ns() // 1_000_000
    if text == "now":
        return now_ms
    if text.startswith("+"):
        return now_ms + parse_duration_ms(text[1:])
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
        moment_ms = (found - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        moment_ms = -1
    if moment_ms < 0:
        raise ArgumentInvalid(
            f"'{text}' is no time",
            hint="write for example now, +2h, 2027-03-01 or 2027-03-01T20:00+01:00",
        )
    return moment_ms


MOMENT = Parsed("TIME", _moment)
_stated: Final = together(
    click.option("--from", "from_ms", type=MOMENT, help="When it begins; now by default."),
    click.option("--to", "to_ms", type=MOMENT, help="When it ends."),
    click.option("--every", metavar="RULE", help='When it recurs: "Mon-Fri 20:00-08:00 ZONE".'),
    click.option(
        "--price",
        "price_micro",
        type=CREDITS,
        help="Credits a GiB and hour, or a Gfuel: the reserve, or the most paid.",
    ),
    click.option(
        "--filter",
        "filters",
        type=PAIR,
        multiple=True,
        help="What the other side must be: node=PEER, owner=LABEL, location=SITE, tier=mutual or"
        " tier=one_way; may be given again.",
    ),
    click.option("--location", metavar="SITE", help="Where it is, or must be."),
)
_RULE: Final = click.option(
    "--rule",
    type=click.Choice(("weighted-uniform", "proportional")),
    help="How an offer is divided within a tier.",
)

_SPREAD: Final = click.option(
    "--spread",
    type=click.IntRange(1),
    metavar="N",
    help="Over how many providers a need goes, none with more than its share of it; of storage 6"
    " by default, as an object needs.",
)


def _estimate(settings: Settings, kind: str | None, asked: dict[str, Any]) -> None:
    """Print what a size, fuel, or both would cost."""
    ours = {"storage": "size_bytes", "compute": "fuel"}
    priced = asked.keys() & set(ours.values())
    if not priced:
        raise ArgumentInvalid("nothing is to be priced", hint="say --size or --fuel")
    if kind is not None and priced != {ours[kind]}:
        raise ArgumentInvalid(f"that is no {kind}", hint="leave the kind out to price both")
    if (code := asked.pop("code", None)) is not None:
        asked["code"] = f"{code[0]},{code[1]}"
    found = settings.ask(api.market.ESTIMATE, api.market.Estimate(**asked))
    settings.view(found, partial(_show_cost, asked))


def _show_cost(asked: Document, found: Document) -> None:
    from xsc.terms.quote import UNITS

    pairs = []
    if size := asked.get("size_bytes"):
        coded = f"{format_size(found['coded_bytes'])} coded {found['code']}"
        price = f"{format_credits(found['storage_price_micro'])} credits a {UNITS['storage']}"
        pairs += [
            ("stored", f"{format_size(size)}, which is {coded}"),
            ("for", format_duration(found["hours"] * EPOCH_MS)),
            ("price", f"{price} at most"),
            ("storage", f"{format_credits(found['storage_micro'])} credits"),
        ]
    if fuel := asked.get("fuel"):
        memory = format_size(asked.get("memory_bytes", MEMORY_BYTES_DEFAULT))
        price = f"{format_credits(found['compute_price_micro'])} credits a {UNITS['compute']}"
        pairs += [
            ("run", f"{fuel} fuel under a memory limit of {memory}"),
            ("price", price),
            ("compute", f"{format_credits(found['compute_micro'])} credits"),
        ]
    show_pairs([*pairs, ("total", f"{format_credits(found['total_micro'])} credits")])


def _document(quantity: str | None, options: dict[str, Any]) -> Document:
    """Return what the options state, as the node takes it."""
    filters = table_of(options["filters"], "filter") or None
    return {**options, "filters": filters, **({} if quantity is None else _quantity(quantity))}


def _declare(settings: Settings, role: api.market.Role, quantity: str, stated: Document) -> None:
    is_all = role == "offer" and quantity == "all"
    said = _document(None if is_all else quantity, stated) | {"standing": is_all}
    answer = settings.ask(api.market.DECLARE, api.market.Declare(role=role, **said))
    settings.view(answer, answer["id"])
    if settings.json:
        return
    day, month = format_credits(answer["day_micro"]), format_credits(answer["month_micro"])
    comes = "all of it comes to" if role == "offer" else "it comes to at most"
    say(f"{comes} {day} credits a day, {month} in 30 days")
    if (size := answer["object_bytes"]) is not None:
        spread = answer["spread"]
        say(f"it goes over {spread} providers: objects of {format_size(size)} in all fit in it")
    _warn(answer)


def _warn(answer: Document) -> None:
    for sentence in answer["warnings"]:
        warn(sentence)


_level = together(
    click.argument("kind", metavar="KIND", type=click.Choice(KINDS)),
    click.argument("quantity", metavar="QUANTITY"),
)


@market.command()
@_level
@_stated
@_RULE
def offer(settings: Settings, /, quantity: str, **stated: Any) -> None:  # noqa: ANN401
    """Offer capacity ahead of use, and print the id of the slot.

    KIND is storage or compute. QUANTITY is what is held at any moment: a size
    such as 100GiB, a rate such as 500Mfuel/s, or 2workers. Without --price
    the node asks what it asks now. QUANTITY `all` brings back the offer of
    everything that a node makes by default, after it was edited or withdrawn.
    """
    _declare(settings, "offer", quantity, stated)


@market.command()
@_level
@_stated
@_SPREAD
def need(settings: Settings, /, quantity: str, **stated: Any) -> None:  # noqa: ANN401
    """State a need ahead of use, and print its id.

    KIND and QUANTITY are those of `xsc market offer`. Without times it is there
    until it is withdrawn; with --from alone it ends in 90 days. Without --price
    it pays at most what the node pays at most. Storage is counted as it is kept
    at providers: six of them keep an object with half as much again.
    """
    _declare(settings, "need", quantity, stated)


@market.command()
@_slot
@click.option("--quantity", metavar="QUANTITY", help="How much it is.")
@_stated
@_RULE
@_SPREAD
def edit(settings: Settings, /, quantity: str | None, **stated: Any) -> None:  # noqa: ANN401
    """Change an offer or a need; what is not given stays as it is.

    A need whose quantity, price or times change is a new one to its providers.
    """
    asked = api.market.Edit(**_document(quantity, stated))
    settings.view(settings.ask(api.market.EDIT, asked), _warn)


@asks(market, api.market.WITHDRAW)
@_slot
def withdraw(_: Document) -> None:
    """Withdraw an offer or a need. What is used of leases under it stays."""


def _next_window(windows: list[list[int]]) -> tuple[str, str]:
    """Return when the next window begins and ends."""
    end = moment(windows[0][1]) if windows else "never"
    return ("always", "") if end == "never" else (moment(windows[0][0]), end)


_SLOTS: Final[Columns] = {
    "id": ("id", short),
    "role": "role",
    "origin": "origin",
    "node": by_name("node"),
    "kind": "kind",
    "<quantity": level_of("quantity"),
    "<granted": level_of("granted"),
    "<used": level_of("used"),
    "<price": ("price_micro", format_credits),
    "next window": lambda row: _next_window(row["windows"])[0],
    "until": lambda row: _next_window(row["windows"])[1],
    "<windows": lambda row: str(len(row["windows"])),
}


@asks(market, api.market.SLOTS)
def slots(answer: Document) -> None:
    """List offers and needs: those of this node, and those of peers that it follows."""
    empty = "nobody offers or needs anything; this node offers what it has once it has a peer"
    show_rows(answer["slots"], _SLOTS, empty)


@market.command()
@click.argument("kind", metavar="[KIND]", required=False, type=click.Choice(KINDS))
@click.option("--size", "size_bytes", type=SIZE, help="Say what it costs to store so much.")
@click.option("--for", "duration_ms", type=DURATION, help="For how long.  [30d]")
@click.option("--code", type=CODE, help="K data shards and M parity shards.  [4,2]")
@click.option("--fuel", type=FUEL, help="Say what so much fuel costs, as 1e12.")
@click.option("--memory", "memory_bytes", type=SIZE, help="Under that memory limit.  [64MiB]")
def quote(settings: Settings, /, kind: str | None, **asked: Any) -> None:  # noqa: ANN401
    """Show what all peers ask now, without an order; KIND is storage or compute.

    With --size or --fuel, say what that would cost at these prices.
    """
    from xsc.terms.quote import UNITS

    given = {name: value for name, value in asked.items() if value is not None}
    if given:
        _estimate(settings, kind, given)
        return
    answer = settings.ask(api.market.QUOTES)
    if kind is not None:
        answer["quotes"] = [row for row in answer["quotes"] if row["kind"] == kind]
    columns: Columns = {
        "node": by_name("node"),
        "kind": "kind",
        "<available": level_of("available"),
        "<price": ("price_micro", format_credits),
        "<reserve": ("reserve_micro", format_credits),
        "for a": ("kind", UNITS.__getitem__),
        "tier": "tier",
        "slot": ("slot", short),
    }
    settings.view(answer, lambda _: show_rows(answer["quotes"], columns, "nobody offers anything"))


def _lease_level(row: Document) -> str:
    """Return what a lease is over."""
    return "-" if row["origin"] == "now" else format_level(row["kind"], row["quantity"])


def _lease_use(row: Document) -> str:
    return _amount(row["kind"], row["held" if row["kind"] == "storage" else "used"])


_LEASES: Final[Columns] = {
    "lease": ("lease_id", short),
    "role": "role",
    "peer": by_name("peer"),
    "kind": "kind",
    "origin": "origin",
    "<used": _lease_use,
    "<of": _lease_level,
    "<price": ("price_micro", format_credits),
    "<owed": ("billed_micro", format_credits),
    "<settled": ("settled_micro", format_credits),
    "state": "state",
    "until": ("end_ms", moment),
}


@asks(market, api.market.LEASES)
def leases(answer: Document) -> None:
    """List the leases that this node has given and taken."""
    show_rows(answer["leases"], _LEASES, "this node has no leases")


@asks(market, api.market.LEASE)
@click.argument("id", metavar="LEASE", type=LEASE)
@output_option
@click.option("--denial", is_flag=True, help="The host's signed count without it.")
def lease(_: Document) -> None:
    """Write a signed lease to a file, for `xsc verify --lease`.

    LEASE is its id, or the beginning of it.
    """


@asks(market, api.market.ACCOUNT)
@click.argument("id", metavar="PEER", type=PEER)
@output_option
@click.option("--count", is_flag=True, help="The provider's signed count that it pays.")
def account(_: Document) -> None:
    """Write the newest voucher of this node for PEER to a file, for `xsc verify`."""


_TIERS = {
    "mutual": "mutual: the two recognise each other",
    "one_way": "one_way: the provider recognises the customer",
    "open": "open: the provider does not recognise the customer",
}


def _explained(calls: Calls) -> Iterable[str]:
    return [*_own_slots(calls), *LEASE.offers(calls), *PEER.offers(calls)]


@market.command()
@click.argument("some_id", metavar="ID|NODE", type=Parsed("ID|NODE", str, _explained))
def why(settings: Settings, some_id: str) -> None:
    """Explain a lease, a need, an offer or a clearing, and what would change it.

    ID is its id, or the beginning of it. NODE is a peer: what it was granted
    here, and what it grants to this node. The price of a lease is explained from
    what both sides have signed; what a need was granted, from the clearing
    records of its providers, recomputed first.
    """
    try:
        with settings.calls().download(
            api.market.LEASE, api.market.LeaseId(id=some_id)
        ) as download:
            raw = b"".join(download.blocks())
    except (ArgumentInvalid, NotFound):  # a name need not look like the id of a lease
        settings.view(settings.ask(api.market.WHY, Id(id=some_id)), explain)
    else:
        passed_over = settings.ask(api.market.WHY, Id(id=some_id))["passed_over"]
        _show_price(settings, raw, passed_over)


def _show_price(settings: Settings, raw: bytes, passed_over: list[Document]) -> None:
    from xsc.base.ids import to_text
    from xsc.node.offline.verify import explain_price

    asked, because = explain_price(raw)
    answer = {
        "provider": to_text(asked.provider),
        "customer": to_text(asked.customer),
        "kind": asked.kind,
        "price_micro": asked.price,
        "tier": asked.tier,
        "slot": to_text(asked.slot),
        "need": None if asked.need is None else to_text(asked.need),
        "why": because,
        "passed_over": passed_over,
    }
    settings.view(answer, _show_reasons)


def _show_reasons(answer: Document) -> None:
    from xsc.terms.quote import UNITS

    show_pairs(
        [
            ("provider", short(answer["provider"])),
            ("customer", short(answer["customer"])),
            ("price", f"{format_credits(answer['price_micro'])} credits a {UNITS[answer['kind']]}"),
            ("tier", _TIERS[answer["tier"]]),
            ("slot", short(answer["slot"])),
            *([] if answer["need"] is None else [("need", short(answer["need"]))]),
            ("why", answer["why"]),
            *(("passed over", row["reason"]) for row in answer["passed_over"]),
        ]
    )


_CLEARINGS: Final[Columns] = {
    "clearing": ("id", short),
    "slot": ("slot", short),
    "kind": "kind",
    "when": ("at_ms", moment),
    "rule": "rule",
}


@asks(market, api.market.CLEARINGS)
def clearings(answer: Document) -> None:
    """List the clearings of this node's slots that are kept."""
    show_rows(answer["clearings"], _CLEARINGS, "nothing was cleared here")


@asks(market, api.market.CLEARING)
@click.argument("id", metavar="ID")
@output_option
def clearing(_: Document) -> None:
    """Write a signed clearing record to a file, which `xsc verify` recomputes.

    ID is that of the clearing, or the beginning of it.
    """


# What is granted ahead of use


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
        "<offers": "offers",
        "<needs": "needs",
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


@asks(allocation, api.market.WHY, name="why")
@click.argument("id", metavar="NODE|SLOT")
def explain(answer: Document) -> None:
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
