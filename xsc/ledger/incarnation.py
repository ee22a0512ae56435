"""What a node that lost its ledger begins anew with, and what it takes along.

The halves of one author stand in one sequence. Who lost some of them cannot know
where it ended: a peer may be silent, or hold the last ones back. So the chain
restarts, at a number above all that can have been signed, under a signed record
that names the last half that was proven: the incarnation. Two halves in one place
can then only be those of an author that forked one incarnation.

Old halves, of an incarnation before, are taken where both parties signed them.
They stand apart from the chain, and count by what the debtor promised in all.
Laws: docs/design/ledger.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from xsc.base.encoding import Value, decode, encode, tagged_sha256
from xsc.base.errors import RecordInvalid
from xsc.base.fields import take_int, take_list
from xsc.base.ids import ID_BYTES
from xsc.base.limits import (
    AMOUNT_MAX,
    DIRECTORY_HEAD_BYTES_MAX,
    LEDGER_RECORD_BYTES_MAX,
    NOTED_ACCOUNTS_MAX,
)
from xsc.identity.envelope import Count, Id32, Record, Signed, open_signed

_VERSION = 1
_NOTED_BYTES_MAX = DIRECTORY_HEAD_BYTES_MAX


class Incarnation(Record):
    """Signed by its author: its chain goes on here, and what came before may have gaps."""

    KIND: ClassVar[str] = "incarnation"

    first_seq: Count
    """Number of its first half, which follows on this record; the higher one counts."""
    proven_seq: Count
    """Number of the last half before it that was proven; 0 where none was."""
    proven: Id32
    """Its id; GENESIS where none was."""
    carried: Id32
    """Hash over all that was taken along."""
    created_ms: Count


@dataclass(frozen=True, slots=True)
class NotedAccount:
    """How things stood with one peer, as the author itself noted it."""

    peer: bytes
    balance_micro: int
    """What the peer owed, less what it was owed."""
    limit_micro: int | None
    """What it might owe, where that was noted."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What the directory head says of the ledger at its time: nobody else signed it."""

    next_seq: int = 0
    accounts: tuple[NotedAccount, ...] = ()


@dataclass(frozen=True, slots=True)
class Restart:
    """An incarnation, and what was noted of the ledger when it began."""

    incarnation: Signed[Incarnation]
    noted: Noted


def worth_noting(
    accounts: Iterable[NotedAccount], *, default_limit_micro: int
) -> tuple[NotedAccount, ...]:
    """Return the accounts that a head has room for, in order of id: the largest balances.

    Those of which nothing need be noted are the first to go, and only where there is no room: that
    nothing is owed, too, is more than a peer shows who hides what paid its debt.
    """
    by_worth = sorted(
        accounts,
        key=lambda item: (
            -abs(item.balance_micro),
            item.limit_micro in (None, default_limit_micro),
            item.peer,
        ),
    )
    return tuple(sorted(by_worth[:NOTED_ACCOUNTS_MAX], key=lambda item: item.peer))


def noted_bytes(noted: Noted) -> bytes:
    """Return the canonical bytes of what is noted."""
    accounts: list[Value] = [
        [item.peer, item.balance_micro, item.limit_micro] for item in noted.accounts
    ]
    return encode({"v": _VERSION, "next_seq": noted.next_seq, "accounts": accounts})


def open_noted(raw: bytes) -> Noted:
    """Return what was noted.

    Raises:
        TooLarge, RecordInvalid: it is of no known form.
    """
    value = decode(raw, size_max=_NOTED_BYTES_MAX)
    if not isinstance(value, dict) or value.get("v") != _VERSION:
        raise RecordInvalid("what is noted of the ledger is of no known form")
    rows = take_list(value, "accounts", most=NOTED_ACCOUNTS_MAX)
    return Noted(take_int(value, "next_seq"), tuple(_account(row) for row in rows))


def _account(row: Value) -> NotedAccount:
    match row:
        case [bytes(peer), int(balance), int(limit) | (None as limit)] if (
            len(peer) == ID_BYTES
            and -AMOUNT_MAX <= balance <= AMOUNT_MAX
            and (limit is None or 0 <= limit <= AMOUNT_MAX)
        ):
            return NotedAccount(peer, balance, limit)
    raise RecordInvalid("an account is of no known form")


def carried_hash(noted: Noted, old: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the hash over what an incarnation takes along.

    Args:
        noted: what was noted of the ledger.
        old: the ids of each old half and of the one beside it, in order of number.
    """
    listed: list[Value] = [[own, other] for own, other in old]
    return tagged_sha256("ledger_carried", encode([noted_bytes(noted), listed]))


def restart_bytes(restart: Restart) -> bytes:
    """Return the row that keeps an incarnation with what was noted."""
    return encode(
        {"v": _VERSION, "incarnation": restart.incarnation.raw, "noted": noted_bytes(restart.noted)}
    )


def open_incarnation(raw: bytes, *, author: bytes, network: bytes | None) -> Signed[Incarnation]:
    """Return an incarnation that a node signed.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: it is none, or another's.
    """
    return open_signed(
        raw, Incarnation, network=network, author=author, size_max=LEDGER_RECORD_BYTES_MAX
    )


def open_restart(raw: bytes, *, author: bytes, network: bytes) -> Restart:
    """Return what the row of `restart_bytes` says.

    Raises:
        PeerError, LimitError: it is damaged.
    """
    match decode(raw, size_max=2 * _NOTED_BYTES_MAX):
        case {"v": 1, "incarnation": bytes(inner), "noted": bytes(noted), **rest} if not rest:
            return Restart(
                open_incarnation(inner, author=author, network=network), open_noted(noted)
            )
    raise RecordInvalid("the restart of the ledger is of no known form")
