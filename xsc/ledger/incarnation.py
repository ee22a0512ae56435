"""The record under which a node that lost its ledger starts a new chain, and what it carries over.

The halves of one author form one sequence. A node that lost some of them cannot know
where the sequence ended: a peer may be silent, or withhold the last ones. So the chain
restarts under a signed record, the incarnation, at a number above all that can have been
signed. Two halves with one number then
prove that their author forked one incarnation.

Halves of earlier incarnations are kept if both parties signed them. They are not part of
the chain, and are bounded by the debtor's vouchers. Laws: docs/design/ledger.md.

Both parties keep an entry that books something, so the peers together show the whole ledger, except
for what a silent peer holds or a dishonest one hides. The directory head says how much that is; it
is listed as unproven, and taken when it is shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, NamedTuple

from pydantic import Field

from xsc.base import encoding, errors, limits
from xsc.identity.envelope import Count, Id32, Record, Signed, open_signed

NOTED_ACCOUNTS_MAX = 2**14
"""Accounts of which the directory head says how they stand: half a head."""

ALL_TOLD = 2**63 - 1
"""Above every number."""
CLAIM_BYTES_MAX = 64 * limits.MIB
_NOTED_BYTES_MAX = limits.DIRECTORY_HEAD_BYTES_MAX


class Incarnation(Record):
    """Signed by its author: its chain goes on here, and what came before may have gaps."""

    first_seq: Count
    """Number of its first half, which follows on this record; the higher one counts."""
    noted: Id32
    """Hash of what was noted of the ledger."""
    created_ms: Count


class NotedAccount(NamedTuple):
    """The account with one peer, as the author itself noted it."""

    peer: Id32
    balance_micro: Annotated[int, Field(ge=-limits.AMOUNT_MAX, le=limits.AMOUNT_MAX)]
    """What the peer owed, less what it was owed."""
    limit_micro: Count | None
    """What it might owe, where that was noted."""


class Noted(Record):
    """The accounts in a directory head, as of its time: signed by the author alone."""

    next_seq: Count = 0
    accounts: Annotated[tuple[NotedAccount, ...], Field(max_length=NOTED_ACCOUNTS_MAX)] = ()


@dataclass(frozen=True, slots=True)
class Restart:
    """An incarnation, and what was noted of the ledger when it began."""

    incarnation: Signed[Incarnation]
    noted: Noted


def worth_noting(accounts: Iterable[NotedAccount]) -> tuple[NotedAccount, ...]:
    """Return the accounts that a head has room for, in order of id: the largest balances.

    Accounts without a balance and a limit are left out first, and only where there is no room:
    a noted balance of 0 still contradicts a peer that hides the payment of its debt.
    """
    by_worth = sorted(
        accounts,
        key=lambda item: (
            -abs(item.balance_micro),
            item.limit_micro is None,
            item.peer,
        ),
    )
    return tuple(sorted(by_worth[:NOTED_ACCOUNTS_MAX], key=lambda item: item.peer))


def open_noted(raw: bytes) -> Noted:
    """Return what was noted.

    Raises:
        TooLarge, RecordInvalid: it is of no known form.
    """
    return Noted.from_bytes(raw, size_max=_NOTED_BYTES_MAX)


class Claim(Record):
    """The entries of earlier incarnations that a claim takes: of the own store, or of a peer."""

    seqs: tuple[Count, ...]
    """The numbers of the own halves."""
    start: Count
    """From which number on the peer is asked for more; ALL_TOLD if there is no more."""


def claim_hash(claim: Claim, taken: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the hash by which its half names a claim.

    Args:
        claim: the claim.
        taken: the ids of each own half and of the one beside it, in its order.
    """
    return encoding.tagged_sha256("ledger_claim", claim.to_bytes(), *chain.from_iterable(taken))


def restart_bytes(restart: Restart) -> bytes:
    """Return the row that keeps an incarnation with what was noted."""
    return encoding.encode(
        {"v": 1, "incarnation": restart.incarnation.raw, "noted": restart.noted.to_bytes()}
    )


def open_incarnation(raw: bytes, *, author: bytes, network: bytes | None) -> Signed[Incarnation]:
    """Return an incarnation that a node signed.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: it is none, or another's.
    """
    return open_signed(
        raw, Incarnation, network=network, author=author, size_max=limits.LEDGER_RECORD_BYTES_MAX
    )


def open_restart(raw: bytes, *, author: bytes, network: bytes) -> Restart:
    """Return what the row of `restart_bytes` says.

    Raises:
        PeerError, LimitError: it is damaged.
    """
    match encoding.decode(raw, size_max=2 * _NOTED_BYTES_MAX):
        case {"v": 1, "incarnation": bytes(inner), "noted": bytes(noted), **rest} if not rest:
            incarnation = open_incarnation(inner, author=author, network=network)
            if incarnation.record.noted == hashlib.sha256(noted).digest():
                return Restart(incarnation, open_noted(noted))
    raise errors.RecordInvalid("the restart of the ledger is of no known form")


def lacks_incarnation(known: Restart | None, told: Signed[Incarnation] | None) -> bool:
    """Return whether a peer was told an incarnation of this node that its own ledger lacks.

    Args:
        known: the restart in the own ledger; None in the first incarnation.
        told: the newest one that the peer was told; None for none.
    """
    if told is None or (known is not None and told.raw == known.incarnation.raw):
        return False
    return told.record.first_seq >= (1 if known is None else known.incarnation.record.first_seq)


def plan(noted: Noted, *, highest_seq: int, now_ms: int) -> Incarnation:
    """Return the incarnation that follows on what is known.

    Args:
        noted: what the directory says of the ledger.
        highest_seq: above every number that is known to have been used.
        now_ms: the time. It is the number, too: two restarts of which the second does not
            know the first have two numbers all the same.
    """
    known = max(highest_seq, noted.next_seq)
    return Incarnation(
        first_seq=max(now_ms, known + limits.INCARNATION_GAP),
        noted=hashlib.sha256(noted.to_bytes()).digest(),
        created_ms=now_ms,
    )
