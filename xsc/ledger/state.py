"""What the halves of one node's chain add up to.

The state follows from the chain and the counter-halves alone: replayed from
the first half it comes out equal to the last bit (`digest`). It is changed in
place, because copying it for each of a hundred thousand halves would make a
replay quadratic; nothing here refuses, `xsc.ledger.validation` has done so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xsc.base.encoding import Value, encode, tagged_sha256
from xsc.identity.envelope import Signed
from xsc.ledger.entry import GENESIS, Half


@dataclass(frozen=True, slots=True)
class Open:
    """An own `post` that its debtor has not answered."""

    debtor: bytes
    lease: bytes
    amount_micro: int


@dataclass(frozen=True, slots=True)
class Known:
    """An entry that has a place in the own chain."""

    entry_id: bytes
    """Id of the initiator's half: the same at both parties."""
    seq: int
    """Of the own half."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A peer's half that stands beside one of ours."""

    id: bytes
    prev: bytes
    seq: int
    """Of the own half."""


@dataclass(slots=True)
class LedgerState:
    """Balances and whatever else the next half is judged by."""

    me: bytes
    next_seq: int = 0
    head: bytes = GENESIS
    balances: dict[bytes, int] = field(default_factory=dict)
    """Per peer, what it owes me less what I owe it; settled entries only."""
    limits: dict[bytes, int] = field(default_factory=dict)
    """Per peer, what it may owe me."""
    open: dict[int, Open] = field(default_factory=dict)
    """Own `post` halves without an answer, by sequence number."""
    voided: set[int] = field(default_factory=set)
    """Own `post` halves that were withdrawn, by sequence number."""
    settled: dict[bytes, dict[tuple[bytes, bytes], int]] = field(default_factory=dict)
    """Per lease, then debtor and creditor, what was settled in all."""
    entries: dict[tuple[bytes, bytes], Known] = field(default_factory=dict)
    """By initiator and xid."""
    seen: dict[bytes, dict[int, Seen]] = field(default_factory=dict)
    """Per peer, its halves that stand beside ours, by its sequence number."""
    with_peer: dict[bytes, list[int]] = field(default_factory=dict)
    """Per peer, the own halves that concern it, by sequence number: an index only."""

    def open_micro(self, peer: bytes) -> int:
        """Return what the peer will owe in addition once it has answered everything."""
        return sum(item.amount_micro for item in self.open.values() if item.debtor == peer)

    def open_under(self, peer: bytes, lease: bytes) -> int | None:
        """Return the sequence number of the unanswered `post` under a lease, if there is one."""
        for seq, item in self.open.items():
            if item.debtor == peer and item.lease == lease:
                return seq
        return None

    def exposure(self, peer: bytes) -> int:
        """Return what the peer owes at most: settled and unanswered. It must keep its limit."""
        return self.balances.get(peer, 0) + self.open_micro(peer)

    def settled_under(self, lease: bytes, *, debtor: bytes, creditor: bytes) -> int:
        """Return what was settled under a lease in all."""
        return self.settled.get(lease, {}).get((debtor, creditor), 0)


def append(state: LedgerState, own: Signed[Half], initiator: Signed[Half] | None = None) -> None:
    """Take an own half to the end of the chain.

    Args:
        state: is changed in place.
        own: the next half of the own chain.
        initiator: the peer's half that it answers; None where it answers none.
    """
    half = own.record
    assert half.seq == state.next_seq
    assert half.prev == state.head
    if half.kind in ("open", "limit"):
        state.limits[half.peer] = half.amount_micro
    elif half.kind == "void":
        assert half.ref is not None
        seq = state.entries[state.me, half.ref].seq
        del state.open[seq]
        state.voided.add(seq)
    elif initiator is not None:
        _settle(state, half, initiator, half.seq)
        state.entries[half.peer, half.xid] = Known(initiator.id, half.seq)
    else:
        assert half.lease is not None
        state.open[half.seq] = Open(half.peer, half.lease, half.amount_micro)
    if half.link is None:
        state.entries[state.me, half.xid] = Known(own.id, half.seq)
    state.with_peer.setdefault(half.peer, []).append(half.seq)
    state.next_seq += 1
    state.head = own.id


def settle(state: LedgerState, own: Half, counter: Signed[Half]) -> None:
    """Take the answer to an own `post`: from now on it counts."""
    del state.open[own.seq]
    _settle(state, own, counter, own.seq)


def _settle(state: LedgerState, own: Half, other: Signed[Half], seq: int) -> None:
    assert own.lease is not None
    sign = 1 if own.credit == state.me else -1
    under = state.settled.setdefault(own.lease, {})
    parties = (own.debit, own.credit)
    under[parties] = under.get(parties, 0) + own.amount_micro
    state.balances[own.peer] = state.balances.get(own.peer, 0) + sign * own.amount_micro
    state.seen.setdefault(own.peer, {})[other.record.seq] = Seen(other.id, other.record.prev, seq)


def digest(state: LedgerState) -> bytes:
    """Return the 32-byte hash of everything in the state."""
    balances: list[Value] = [[peer, value] for peer, value in sorted(state.balances.items())]
    limits: list[Value] = [[peer, value] for peer, value in sorted(state.limits.items())]
    waiting: list[Value] = [
        [seq, item.debtor, item.lease, item.amount_micro]
        for seq, item in sorted(state.open.items())
    ]
    settled: list[Value] = [
        [lease, *parties, value]
        for lease, under in sorted(state.settled.items())
        for parties, value in sorted(under.items())
    ]
    entries: list[Value] = [
        [*place, known.entry_id, known.seq] for place, known in sorted(state.entries.items())
    ]
    seen: list[Value] = [
        [peer, seq, half.id, half.prev, half.seq]
        for peer, halves in sorted(state.seen.items())
        for seq, half in sorted(halves.items())
    ]
    voided: list[Value] = [*sorted(state.voided)]
    value: Value = {
        "v": 1,
        "me": state.me,
        "next_seq": state.next_seq,
        "head": state.head,
        "balances": balances,
        "limits": limits,
        "open": waiting,
        "voided": voided,
        "settled": settled,
        "entries": entries,
        "seen": seen,
    }
    return tagged_sha256("ledger_state", encode(value))
