"""xsc market: what others offer, and what has been agreed."""

from __future__ import annotations

from pathlib import Path

import click

from xsc.base.errors import ArgumentInvalid, NotFound
from xsc.base.limits import FUEL_QUANTUM
from xsc.base.units import format_credits, format_size
from xsc.cli.options import LEASE, PATH, Group, Settings, pass_settings
from xsc.cli.output import moment, named, short, show_json, show_pairs, show_table
from xsc.client.files import check_target, write_whole

KINDS = ("storage", "compute")


def _amount(kind: str, quantity: int) -> str:
    """Return a quantity of what is traded: bytes, or fuel times 64 MiB steps in millions."""
    return format_size(quantity) if kind == "storage" else f"{quantity // FUEL_QUANTUM} M"


@click.group(cls=Group)
def market() -> None:
    """Show offers and leases."""


@market.command()
@click.argument("kind", metavar="[KIND]", required=False, type=click.Choice(KINDS))
@pass_settings
def offers(settings: Settings, kind: str | None) -> None:
    """Show the prices of all peers; KIND is storage or compute."""
    answer = settings.calls().offers()
    if kind is not None:
        answer["offers"] = [row for row in answer["offers"] if row["kind"] == kind]
    if settings.json:
        show_json(answer)
        return
    show_table(
        ["node", "kind", "<available", "<price", "<reserve", "for a", "tier", "valid until"],
        [
            [
                named(row, row["node"]),
                row["kind"],
                _amount(row["kind"], row["available"]),
                format_credits(row["price_micro"]),
                format_credits(row["reserve_micro"]),
                row["unit"],
                row["tier"],
                moment(row["valid_until_ms"]),
            ]
            for row in answer["offers"]
        ],
        "nobody offers anything",
    )


@market.command()
@pass_settings
def leases(settings: Settings) -> None:
    """List the leases that this node has given and taken."""
    answer = settings.calls().leases()
    if settings.json:
        show_json(answer)
        return
    show_table(
        [
            *("lease", "role", "peer", "kind", "<used", "<of", "<price", "<owed", "<settled"),
            *("state", "until"),
        ],
        [
            [
                short(row["lease_id"]),
                row["role"],
                named(row, row["peer"]),
                row["kind"],
                _amount(row["kind"], row["used"]),
                _amount(row["kind"], row["quantity"]),
                format_credits(row["price_micro"]),
                format_credits(row["due_micro"]),
                format_credits(row["settled_micro"]),
                row["state"],
                moment(row["end_ms"]),
            ]
            for row in answer["leases"]
        ],
        "this node has no leases",
    )


@market.command()
@click.argument("lease_id", metavar="LEASE", type=LEASE)
@click.option("-o", "--output", type=PATH, required=True, metavar="FILE", help="File to write.")
@click.option("--renewal", is_flag=True, help="Its newest renewal, which `xsc verify` reads.")
@click.option("--denial", is_flag=True, help="The host's signed word that it does not know it.")
@pass_settings
def lease(settings: Settings, lease_id: str, output: Path, *, renewal: bool, denial: bool) -> None:
    """Write a signed lease to a file, for `xsc verify --lease`.

    LEASE is its id, or the beginning of it.
    """
    check_target(output)
    if renewal and denial:
        raise ArgumentInvalid("--renewal and --denial are two records: ask for one")
    with settings.calls().lease(lease_id, renewal=renewal, denial=denial) as download:
        size = write_whole(output, download.blocks())
    if settings.json:
        show_json({"file": str(output), "size_bytes": size})


_TIERS = {
    "mutual": "mutual: the two recognise each other",
    "one_way": "one_way: the provider recognises the customer",
    "open": "open: the provider does not recognise the customer",
}


@market.command()
@click.argument("lease_id", metavar="LEASE", type=LEASE)
@pass_settings
def why(settings: Settings, lease_id: str) -> None:
    """Explain the price of a lease, from what both sides have signed.

    LEASE is its id, or the beginning of it.
    """
    from xsc.base.ids import to_text
    from xsc.node.offline.verify import explain_price
    from xsc.terms.quote import UNITS

    calls = settings.calls()
    try:
        with calls.lease(lease_id, renewal=True) as download:
            raw = b"".join(download.blocks())
    except NotFound:  # of its renewals there is none, or of leases
        with calls.lease(lease_id) as download:
            raw = b"".join(download.blocks())
    found = explain_price(raw)
    quote = found.quote
    if settings.json:
        show_json(
            {
                "provider": to_text(quote.provider),
                "customer": to_text(quote.customer),
                "kind": quote.kind,
                "price_micro": found.price,
                "asked_micro": quote.price,
                "tier": quote.tier,
                "price_mutual_micro": quote.price_mutual,
                "price_one_way_micro": quote.price_one_way,
                "reserve_micro": quote.reserve,
                "why": found.why,
            }
        )
        return
    ladder = (quote.price_mutual, quote.price_one_way, quote.reserve)
    mutual, one_way, others = map(format_credits, ladder)
    show_pairs(
        [
            ("provider", short(to_text(quote.provider))),
            ("customer", short(to_text(quote.customer))),
            ("price", f"{format_credits(found.price)} credits a {UNITS[quote.kind]}"),
            ("asked", format_credits(quote.price)),
            ("tier", _TIERS[quote.tier]),
            ("posted", f"mutual {mutual}, one_way {one_way}, open {others}"),
            ("why", found.why),
        ]
    )
