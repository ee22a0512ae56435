"""xsc ledger: who owes whom, and the signed entries that say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import click
from click import argument, option

from xsc import api
from xsc.base.errors import EXIT_PARTLY, ArgumentInvalid, CorruptionError
from xsc.base.units import format_credits, format_share, is_near, say_credits
from xsc.cli import options, picture, show
from xsc.cli.options import Group, Settings, asks
from xsc.client.core import Document

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


def _alone(key: str) -> Callable[[Document], str]:
    """Return the cell of an amount that a peer does not share with others."""
    return lambda row: "shared" if row["shared_through"] else format_credits(row[key])


def _one_credit(credit: Document) -> str:
    names = [show.named(row, "id") for row in credit["peers"]]
    more = [f"{len(names) - NAMES_SHOWN} more"] if len(names) > NAMES_SHOWN else []
    return (
        f"shared: all that came by {show.named(credit, 'through')} may owe "
        f"{format_credits(credit['limit_micro'])} together, {format_credits(credit['left_micro'])} "
        f"left: {', '.join(names[:NAMES_SHOWN] + more)}"
    )


@asks(ledger, api.ledger.BALANCE)
def balance(answer: Document) -> None:
    """Show what each peer owes this node and may owe, and this node there.

    Below zero, this node owes. A peer that does not answer shows no limit.
    """
    show.rows(
        answer["balances"],
        "peer id <owes_us=balance <may_owe_us <left <we_may_owe <left_",
        "nobody owes anything",
        id=("peer", show.short),
        may_owe_us=_alone("limit_micro"),
        left=_alone("left_micro"),
        we_may_owe=("own_limit_micro", _told),
        left_=("own_left_micro", _told),
    )
    for credit in answer["shared"]:
        show.line(_one_credit(credit))
    if answer["balances"]:
        show.line(LIMITS)
    for row in answer["balances"]:
        who = show.named(row, "peer")
        if row["balance_micro"]:
            show.line(row["says"])
        if row["clearing_micro"]:
            off = format_credits(abs(row["clearing_micro"]))
            show.line(f"{off} of it goes once {who} has booked a loop (xsc ledger clear)")
        if is_near(row["limit_micro"] - row["left_micro"], row["limit_micro"]):
            show.line(f"{who} has used more than 80 % of what it may owe you")
        own = row["own_limit_micro"]
        if own is not None and is_near(own - row["own_left_micro"], own):
            show.line(f"you have used more than 80 % of what you may owe {who}")
        if row["paid_micro"]:
            show.line(f"{format_credits(row['paid_micro'])} paid off the books waits for {who}")
        if row["heard_paid_micro"]:
            amount = format_credits(row["heard_paid_micro"])
            show.line(
                f"{who} says that {amount} was paid off the books; if so: "
                f"xsc ledger settle {who} --off-books {amount}"
            )
    show.pairs([("total", format_credits(answer["total_micro"]))])
    for row in answer["balances"]:
        if amount := row.get("unproven_micro", 0):
            show.warn(
                f"unproven with {show.named(row, 'peer')}: {format_credits(amount)} credits, "
                "said by the directory and shown by no entry"
            )


def _signed(row: Document) -> str:
    sign = {"in": "+", "out": "-"}.get(row["direction"], "")
    return sign + format_credits(row["amount_micro"])


limit_option = option(
    "--limit",
    type=options.WHOLE,
    default=ENTRIES_DEFAULT,
    help=f"Show the newest N entries.  [{ENTRIES_DEFAULT}]",
)


@asks(ledger, api.ledger.LOG)
@limit_option
@option("--before", type=options.WHOLE, metavar="SEQ", help="Show those before entry SEQ.")
def log(answer: Document) -> None:
    """List the entries of this node's ledger, newest first."""
    show.rows(
        answer["entries"],
        "<seq time=created kind peer <amount state entry=entry_id",
        "there are no such entries",
        amount=_signed,
    )
    if answer["more"]:
        show.line(f"older ones: xsc ledger log --before {answer['entries'][-1]['seq']}")


@asks(ledger, api.ledger.FLOWS)
@option(
    "--since", "within_ms", type=options.DURATION, help="Those of the last so long, by days.  [30d]"
)
def flows(answer: Document) -> None:
    """Sum up what this node earned of each peer and spent there.

    Entries count that both have signed. What was paid off the books is apart: received by this
    node, or paid; and so is what loops cleared of what the peer owed, and of what this node did.
    """
    show.rows(
        answer["flows"],
        "peer id <earned <spent <received <paid <cleared <cleared_own",
        "nothing was booked in that time",
        id=("peer", show.short),
    )


@asks(ledger, api.ledger.STATEMENT)
@option("--month", metavar="YYYY-MM", help="That month, in UTC.  [the present one]")
def statement(answer: Document) -> None:
    """Show what was booked in a month, both parties named, and who owes whom at its end."""
    show.line(
        f"{answer['name']}, {show.moment(answer['from_ms'])} to {show.moment(answer['until_ms'])}"
    )
    show.rows(
        answer["payments"],
        "time=created what=says entry=entry_id",
        "nothing was booked in that month",
    )
    for row in answer["balances"]:
        show.line(f"{row['says']}; before: {format_credits(row['opening_micro'])}")


@asks(ledger, api.ledger.EXPORT)
@option(
    "--format",
    type=click.Choice(api.ledger.EXPORT_FORMATS),
    default="csv",
    show_default=True,
    help="Of the file.",
)
@option("--month", metavar="YYYY-MM", help="Only that month, in UTC.  [all]")
@option(
    "-o", "--output", type=options.PATH, default=options.STREAM, help="File to write.  [-: shown]"
)
def export(_: Document) -> None:
    """Write what was booked as a file for other programs.

    Each payment is in it once. Beancount checks the balances at its end: bean-check FILE.
    """


@asks(ledger, api.ledger.VERIFY)
def verify(answer: Document) -> str:
    """Replay this node's ledger and check every signature and link in it."""
    return str(answer["text"])


_COMPARED: Final = {
    "same": "{who} has the same {shared}",
    "differs": "{who} has another entry than {entry_id} of {when} (×), the first of all",
    "apart": "{who} has not heard of a restart of this ledger, or this node of one of its",
    "silent": "{who} does not answer",
    "wrong": "{who} refuses to compare, or contradicts itself",
}


@asks(ledger, api.ledger.CUBES)
@argument("peer", type=options.PEER, required=False)
@option("--compare", is_flag=True, help="Ask the peers for theirs, and find what differs first.")
def cubes(answer: Document) -> int:
    """Show what both nodes have sealed of their entries, as cubes; with PEER only those with it.

    Nine cells are a face, three faces a cube, and a full cube is a cell of the next larger one.
    Drawn are the cubes that are being filled. Exits with 6 if a peer's differ.
    """
    if not answer["cubes"]:
        show.note("nothing was booked yet")
    for row in answer["cubes"]:
        who = show.named(row, "peer")
        show.line(f"{who}: {row['sealed']} sealed, {row['unsealed']} to be sealed")
        for line in picture.cubes(row["levels"]):
            show.line(show.GAP + line)
        if row["compared"] in _COMPARED:
            when = "" if row["created_ms"] is None else show.moment(row["created_ms"])
            show.line(_COMPARED[row["compared"]].format(**row | {"who": who, "when": when}))
    differ = any(row["compared"] == "differs" for row in answer["cubes"])
    return CorruptionError.exit_code if differ else 0


@asks(ledger, api.ledger.LIMITS)
def limits(answer: Document) -> None:
    """Show what each peer may owe this node, and what that is made of.

    The limit is the sum of starter, recognised and repaid, at most max; or what
    `xsc ledger limit` set.
    """
    show.rows(
        answer["limits"],
        "peer known <starter <recognised <repaid=repaid_credit <max <set <limit <owed",
        "no peer is known",
        set=("set_micro", lambda micro: "-" if micro is None else format_credits(micro)),
    )
    for row in answer["limits"]:
        who = show.named(row, "peer")
        if row["mutual_ppm"]:
            show.line(f"{who}: recognised both ways with {format_share(row['mutual_ppm'])}")
        if row["repaid_micro"]:
            repaid = say_credits(row["repaid_micro"])
            show.line(f"{who}: repaid {repaid} in 90 days, of which a half counts")
        if row["shared_through"]:
            show.line(f"{who}: shares its starter with all that came by the same peer")
        if is_near(row["owed_micro"], row["limit_micro"]):
            show.line(f"{who}: has used more than 80 % of its limit")


@asks(ledger, api.ledger.LIMIT)
@argument("peer", type=options.PEER)
@argument("limit_micro", metavar="CREDITS|auto", type=options.LIMIT)
def limit(answer: Document) -> str:
    """Set how much PEER may owe this node at most, in credits; `auto` ends that.

    With `auto` it is what `xsc ledger limits` explains. A limit below what it owes stops
    new debt and takes nothing back.
    """
    shared = ", shared with all that came by the same peer" if answer["shared_through"] else ""
    more_micro = answer["credit_left_micro"]
    left = f"{format_credits(abs(more_micro))} {'more' if more_micro >= 0 else 'less'} than now"
    return (
        f"{show.named(answer, 'peer')} may owe up to {format_credits(answer['limit_micro'])} "
        f"credits, {left}{shared}"
    )


@ledger.command()
@argument("peer", type=options.PEER, required=False)
@option(
    "--off-books",
    type=options.CREDITS,
    help="Say that so much of the debt with PEER was paid off the books; 0 takes it back.",
)
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
    if peer is None or off_books is None:
        answer = settings.ask(api.ledger.SETTLE)
        settings.view(answer)
        show.rows(
            answer["settled"],
            "role peer <settled=amount",
            "nothing was left to settle",
        )
        if answer["pending"]:
            who = "a peer" if answer["pending"] == 1 else f"{answer['pending']} peers"
            amount = say_credits(answer["pending_micro"])
            show.line(f"not due yet: {amount} with {who}; storage is paid once it is proven")
        return 0
    answer = settings.ask(api.ledger.OFF_BOOKS, peer=peer, amount_micro=off_books)
    settings.view(answer)
    _show_payment(off_books, answer)
    return EXIT_PARTLY if answer["state"] == "waits" else 0


def _show_payment(amount_micro: int, answer: Document) -> None:
    who = show.named(answer, "peer")
    if answer["state"] == "waits":
        show.line(f"waits until {who} says the same; this node goes on asking")
        if answer["heard_paid_micro"]:
            show.line(f"{who} says {format_credits(answer['heard_paid_micro'])}")
    elif not amount_micro:
        show.line(f"nothing is said to be paid to or by {who}; what was booked stays")
    else:
        balance = answer["balance_micro"]
        owes = f"{who} owes this node" if balance >= 0 else f"this node owes {who}"
        show.line(f"booked and signed by both; {owes} {format_credits(abs(balance))}")


def _around(row: Document) -> str:
    return " > ".join(show.named(member, "id") for member in row["members"])


@asks(ledger, api.ledger.CLEAR)
def clear(answer: Document) -> None:
    """Take off debts that go around; the node does so by itself once a day.

    Where this node owes a peer, which owes another, which owes this node, all three sign the
    least of the debts off. A loop waits while a member has not signed it, or not booked it.
    """
    show.rows(
        answer["loops"],
        "<amount state waits_for loop",
        "no debts go around",
        waits_for=lambda row: " ".join(show.named(each, "id") for each in row["waits_for"]) or "-",
        loop=_around,
    )
    for peer in answer["silent"]:
        show.warn(f"{show.named(peer, 'id')} does not answer: no loop through it was looked for")


@asks(ledger, api.ledger.CHECKPOINT)
def checkpoint(answer: Document) -> None:
    """Sign how this ledger is now, have that co-signed, and show it.

    The node does so by itself every ten minutes, if there is something new. Who shows a peer
    another ledger than the one that was signed is found out, and barred by all.
    """
    if not answer["size"]:
        show.line("the ledger has no entry yet")
        return
    show.pairs([("entries", str(answer["size"])), ("root", answer["root"])])
    if not answer["cosigners"]:
        show.line("not co-signed: this node recognises fewer than four peers (xsc peer recognise)")
        return
    show.rows(
        answer["cosigners"],
        "co-signer id signed",
        "",
        **{"co-signer": lambda row: row["name"] or "?"},
        id=("id", lambda node: show.short(node) if node else "-"),
        signed=lambda row: "yes" if row["signed"] else "no",
    )
    signed = sum(row["signed"] for row in answer["cosigners"])
    state = "complete" if answer["complete"] else "not complete yet; the node asks again"
    show.line(f"{signed} of {len(answer['cosigners'])} signed, {answer['needed']} needed: {state}")


@asks(ledger, api.ledger.PARDON)
@argument("peer", type=options.PEER)
def pardon(answer: Document) -> str:
    """Hold it against PEER no more that it keeps two ledgers, at this node alone.

    What is found of its later entries bars it again.
    """
    return f"{show.named(answer, 'peer')} is not barred any more"


@asks(ledger, api.ledger.ENTRY)
@argument("id", metavar="ENTRY")
@options.output_option
def entry(_: Document) -> None:
    """Write one entry, signed by both sides, to a file that `xsc verify` checks."""


@asks(ledger, api.ledger.PASSPORT)
@argument("id", metavar="LEASE", type=options.LEASE)
@options.output_option
def passport(_: Document) -> None:
    """Write all that is known of a lease to one file that `xsc verify` checks anywhere.

    LEASE is its id, or the beginning of it. The file has what both sides signed of the lease, its
    slot and need, the last voucher and count, the last proof of storage, and the last entry with
    its place under a checkpoint, which is signed if there is none yet.
    """
