"""xsc ledger: who owes whom, and the signed entries that say so."""

from __future__ import annotations

from pathlib import Path

import click

from xsc.base.units import format_credits
from xsc.cli.options import CREDITS, PATH, PEER, WHOLE, Group, Settings, pass_settings
from xsc.cli.output import moment, named, short, show, show_json, show_pairs, show_table, warn
from xsc.client.core import Document
from xsc.client.files import check_target, write_whole

ENTRIES_DEFAULT = 50


@click.group(cls=Group)
def ledger() -> None:
    """Show and settle what nodes owe each other, in credits."""


def _show_balances(answer: Document) -> None:
    show_table(
        ["peer", "id", "<owes us", "<may owe us"],
        [
            [
                named(row, row["peer"]),
                short(row["peer"]),
                format_credits(row["balance_micro"]),
                format_credits(row["limit_micro"]),
            ]
            for row in answer["balances"]
        ],
        "nobody owes anything",
    )
    show_pairs([("total", format_credits(answer["total_micro"]))])
    for row in answer["balances"]:
        if amount := row.get("unproven_micro", 0):
            warn(
                f"unproven with {named(row, row['peer'])}: {format_credits(amount)} credits, "
                "said by the directory and shown by no entry"
            )


def _show_entries(answer: Document) -> None:
    show_table(
        ["<seq", "time", "kind", "peer", "<amount", "state", "entry"],
        [
            [
                str(row["seq"]),
                moment(row["created_ms"]),
                row["kind"],
                named(row, row["peer"]),
                _signed(row),
                row["state"],
                row["entry_id"],
            ]
            for row in answer["entries"]
        ],
        "the ledger has no entries",
    )


def _signed(row: Document) -> str:
    sign = {"in": "+", "out": "-"}.get(row["direction"], "")
    return sign + format_credits(row["amount_micro"])


@ledger.command()
@pass_settings
def balance(settings: Settings) -> None:
    """Show what each peer owes this node; below zero, this node owes."""
    answer = settings.calls().balances()
    if settings.json:
        show_json(answer)
    else:
        _show_balances(answer)


limit_option = click.option(
    "--limit",
    type=WHOLE,
    default=ENTRIES_DEFAULT,
    metavar="N",
    help=f"Show the newest N entries.  [{ENTRIES_DEFAULT}]",
)


@ledger.command()
@limit_option
@pass_settings
def log(settings: Settings, limit: int) -> None:
    """List the entries of this node's ledger."""
    answer = settings.calls().entries(limit)
    if settings.json:
        show_json(answer)
    else:
        _show_entries(answer)


@ledger.command()
@limit_option
@pass_settings
def statement(settings: Settings, limit: int) -> None:
    """Show balances and entries together."""
    calls = settings.calls()
    balances, entries = calls.balances(), calls.entries(limit)
    if settings.json:
        show_json({**balances, **entries})
        return
    _show_balances(balances)
    show()
    _show_entries(entries)


@ledger.command()
@pass_settings
def verify(settings: Settings) -> None:
    """Replay this node's ledger and check every signature and link in it."""
    answer = settings.calls().verify_ledger()
    if settings.json:
        show_json(answer)
    else:
        show(answer["text"])


@ledger.command()
@click.argument("peer", type=PEER)
@click.argument("credits_", metavar="CREDITS", type=CREDITS)
@pass_settings
def limit(settings: Settings, peer: str, credits_: int) -> None:
    """Set how much PEER may owe this node at most, in credits.

    A limit below what it owes stops new debt and takes nothing back.
    """
    answer = settings.calls().set_limit(peer, credits_)
    if settings.json:
        show_json(answer)
    else:
        show(
            f"{named(answer, answer['peer'])} may owe up to "
            f"{format_credits(answer['limit_micro'])} credits, "
            f"{format_credits(answer['credit_left_micro'])} more than now"
        )


@ledger.command()
@pass_settings
def settle(settings: Settings) -> None:
    """Settle now what is owed by leases; the node does so by itself, too."""
    answer = settings.calls().settle()
    if settings.json:
        show_json(answer)
        return
    show_table(
        ["lease", "role", "peer", "<settled"],
        [
            [
                short(row["lease_id"]),
                row["role"],
                named(row, row["peer"]),
                format_credits(row["amount_micro"]),
            ]
            for row in answer["settled"]
        ],
        "nothing was left to settle",
    )
    if answer["pending"]:
        show(f"{answer['pending']} more wait for a peer to answer")


@ledger.command()
@click.argument("entry_id", metavar="ENTRY")
@click.option("-o", "--output", type=PATH, required=True, metavar="FILE", help="File to write.")
@pass_settings
def entry(settings: Settings, entry_id: str, output: Path) -> None:
    """Write one entry, signed by both sides, to a file that `xsc verify` checks."""
    check_target(output)
    with settings.calls().entry(entry_id) as download:
        size = write_whole(output, download.blocks())
    if settings.json:
        show_json({"file": str(output), "size_bytes": size})
