"""xsc ledger: who owes whom, and the signed entries that say so."""

from __future__ import annotations

from pathlib import Path

import click

from xsc.base.errors import EXIT_PARTLY, ArgumentInvalid
from xsc.base.units import format_credits
from xsc.cli.options import CREDITS, PATH, PEER, WHOLE, Group, Settings, pass_settings
from xsc.cli.output import moment, named, short, show, show_json, show_pairs, show_table, warn
from xsc.client.core import Document
from xsc.client.files import check_target, write_whole

ENTRIES_DEFAULT = 50
NAMES_SHOWN = 8
"""Of the peers that share a credit."""


@click.group(cls=Group)
def ledger() -> None:
    """Show and settle what nodes owe each other, in credits."""


LIMITS = (
    "left: how far the limit is, with what is stored and not billed yet. At its limit a "
    "customer stores and runs nothing more; what it has stored stays to the end of its "
    "lease, and can be read."
)


def _told(amount_micro: int | None) -> str:
    """Return an amount that a peer told, or that it did not."""
    return "?" if amount_micro is None else format_credits(amount_micro)


def _one_credit(credit: Document) -> str:
    names = [named(row, row["id"]) for row in credit["peers"]]
    more = [f"{len(names) - NAMES_SHOWN} more"] if len(names) > NAMES_SHOWN else []
    return (
        f"shared: all that came by {named(credit, credit['through'])} may owe "
        f"{format_credits(credit['limit_micro'])} together, {format_credits(credit['left_micro'])} "
        f"left: {', '.join(names[:NAMES_SHOWN] + more)}"
    )


def _show_balances(answer: Document) -> None:
    show_table(
        ["peer", "id", "<owes us", "<may owe us", "<left", "<we may owe", "<left"],
        [
            [
                named(row, row["peer"]),
                short(row["peer"]),
                format_credits(row["balance_micro"]),
                *(
                    ("shared", "shared")
                    if row["shared_through"]
                    else (format_credits(row["limit_micro"]), format_credits(row["left_micro"]))
                ),
                _told(row["own_limit_micro"]),
                _told(row["own_left_micro"]),
            ]
            for row in answer["balances"]
        ],
        "nobody owes anything",
    )
    for credit in answer["shared"]:
        show(_one_credit(credit))
    if answer["balances"]:
        show(LIMITS)
    for row in answer["balances"]:
        who = named(row, row["peer"])
        if row["paid_micro"]:
            show(f"{format_credits(row['paid_micro'])} paid off the books waits for {who}")
        if row["heard_paid_micro"]:
            amount = format_credits(row["heard_paid_micro"])
            show(
                f"{who} says that {amount} was paid off the books; if so: "
                f"xsc ledger settle {who} --off-books {amount}"
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
        "there are no such entries",
    )
    if answer["more"]:
        show(f"older ones: xsc ledger log --before {answer['entries'][-1]['seq']}")


def _signed(row: Document) -> str:
    sign = {"in": "+", "out": "-"}.get(row["direction"], "")
    return sign + format_credits(row["amount_micro"])


@ledger.command()
@pass_settings
def balance(settings: Settings) -> None:
    """Show what each peer owes this node and may owe, and this node there.

    Below zero, this node owes. A peer that does not answer shows no limit.
    """
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
@click.option("--before", type=WHOLE, metavar="SEQ", help="Show those before entry SEQ.")
@pass_settings
def log(settings: Settings, limit: int, before: int | None) -> None:
    """List the entries of this node's ledger, newest first."""
    answer = settings.calls().entries(limit, before)
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
            + (", shared with all that came by the same peer" if answer["shared_through"] else "")
        )


@ledger.command()
@click.argument("peer", type=PEER, required=False)
@click.option(
    "--off-books",
    type=CREDITS,
    metavar="CREDITS",
    help="Say that so much of the debt with PEER was paid off the books; 0 takes it back.",
)
@pass_settings
def settle(settings: Settings, peer: str | None, off_books: int | None) -> int:
    """Settle now what is owed by leases; the node books it by itself once an hour.

    With PEER and --off-books: what one of both nodes owes the other was paid off the books.
    It counts once the operators of both have said the same, and both nodes have signed
    it. Exits with 7 while it waits for the other.
    """
    if (peer is None) != (off_books is None):
        raise ArgumentInvalid(
            "PEER and --off-books go together",
            hint="xsc ledger settle PEER --off-books CREDITS, or xsc ledger settle alone",
        )
    if peer is not None and off_books is not None:
        return _settle_off_books(settings, peer, off_books)
    answer = settings.calls().settle()
    if settings.json:
        show_json(answer)
        return 0
    show_table(
        ["role", "peer", "<settled"],
        [
            [
                row["role"],
                named(row, row["peer"]),
                format_credits(row["amount_micro"]),
            ]
            for row in answer["settled"]
        ],
        "nothing was left to settle",
    )
    if answer["pending"]:
        show(f"with {answer['pending']} peers something is still owed")
    return 0


def _settle_off_books(settings: Settings, peer: str, amount_micro: int) -> int:
    answer = settings.calls().settle_off_books(peer, amount_micro)
    waits = answer["state"] == "waits"
    if settings.json:
        show_json(answer)
        return EXIT_PARTLY if waits else 0
    who = named(answer, answer["peer"])
    if waits:
        show(f"waits until {who} says the same; this node goes on asking")
        if answer["heard_paid_micro"]:
            show(f"{who} says {format_credits(answer['heard_paid_micro'])}")
        return EXIT_PARTLY
    if not amount_micro:
        show("taken back, unless it was booked before")
    else:
        balance = answer["balance_micro"]
        owes = f"{who} owes this node" if balance >= 0 else f"this node owes {who}"
        show(f"booked and signed by both; {owes} {format_credits(abs(balance))}")
    return 0


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
