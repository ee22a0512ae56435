"""The state of a ledger: balances, limits and open entries that follow from its halves.

The state follows from the chain, the counter-halves and what an incarnation carries over
only: a replay gives the same. It is changed in place, because copying it for each of a hundred
thousand halves would make a replay quadratic. What grows with each entry is in its index.
Nothing is checked here; `xsc.ledger.validation` has done so.

A snapshot is the record of a state at one half, so that a start need not replay all. It has what is
small: balances, limits, what is open. What grows is written together with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, Final, NamedTuple

from xsc.base.limits import MIB
from xsc.identity.envelope import Count, Id32, Record, Signed
from xsc.ledger.entry import GENESIS, Half
from xsc.ledger.incarnation import Restart
from xsc.ledger.index import ID, SEAL, SHARED, Flows, Index, Known, Seen
from xsc.ledger.loop import LOOP_MICRO_MIN, LOOP_SHARE, SignedLoop
from xsc.terms.voucher import Voucher


class Open(NamedTuple):
    """An own `post` that its debtor has not answered, or a seal, which moves nothing."""

    debtor: bytes
    account: bytes
    amount_micro: int


@dataclass(frozen=True, slots=True)
class Offered:
    """What an offer that is under way may come to take off two debts."""

    before: bytes
    """Who owes this node."""
    after: bytes
    """Whom it owes."""
    amount_micro: int


@dataclass(slots=True)
class LedgerState:
    """Balances and whatever else the next half is judged by."""

    me: bytes
    next_seq: int = 0
    head: bytes = GENESIS
    balances: dict[bytes, int] = field(default_factory=dict)
    """Per peer, what it owes me less what I owe it; settled entries only."""
    limits: dict[bytes, int] = field(default_factory=dict)
    """Per peer, what the operator set that it may owe me; of others the formula says it."""
    open: dict[int, Open] = field(default_factory=dict)
    """Own halves that wait for an answer, by sequence number."""
    voided: set[int] = field(default_factory=set)
    """Those that were withdrawn, by sequence number."""
    settled: dict[bytes, dict[tuple[bytes, bytes], int]] = field(default_factory=dict)
    """Per account, then debtor and creditor, what was settled in all."""
    first_seq: int = 0
    """Of the present incarnation."""
    noted: dict[bytes, int] = field(default_factory=dict)
    """Per peer, what it owed when the directory was written that this incarnation began with."""
    noted_seq: int = 0
    """The halves of lower numbers are in what was noted."""
    shown: dict[bytes, int] = field(default_factory=dict)
    """Per peer, what the old halves that are in what was noted add up to."""
    promised: dict[tuple[bytes, bytes, bytes], int] = field(default_factory=dict)
    """Per account, debtor and creditor, the highest voucher under an old half."""
    heard: dict[bytes, int] = field(default_factory=dict)
    """Per peer, from which number on it is asked for old entries; ALL_TOLD of who told all."""
    covered: set[int] = field(default_factory=set)
    """Old halves whose voucher was booked in full already: they count nothing."""
    loops: dict[bytes, SignedLoop] = field(default_factory=dict)
    """By id, those that this node has signed and that are not booked with both neighbours. They
    are stored beside the chain, and no replay gives them."""
    unbooked: dict[bytes, dict[bytes, int]] = field(default_factory=dict)
    """Of these, per neighbour and id, by how much the booking will change its balance."""
    halves: int = 0
    """The own ones, those of earlier incarnations included."""
    dealt: dict[bytes, int] = field(default_factory=dict)
    """Per peer, how many entries both have signed, seals left out."""
    sealed: dict[bytes, int] = field(default_factory=dict)
    """Per peer, the number below which the halves of the lower id are sealed, of all histories."""
    index: Index = field(default_factory=Index)
    """All that grows with each entry, and is looked up in these tables."""
    seen: Seen = field(init=False)
    """Halves of peers, by peer and its sequence number."""
    flows: Flows = field(init=False)
    """The own halves by peer and date."""

    def __post_init__(self) -> None:
        self.seen, self.flows = Seen(self.index), Flows(self.index)

    def open_under(self, peer: bytes, account: bytes) -> int | None:
        """Return the sequence number of the unanswered `post` in an account, if there is one."""
        for seq, item in self.open.items():
            if item.debtor == peer and item.account == account:
                return seq
        return None

    def unproven_micro(self, peer: bytes) -> int:
        """Return what was noted of the peer's debt and no half shows; below zero, of the own."""
        if peer not in self.noted:
            return 0
        return self.noted[peer] - self.shown.get(peer, 0)

    def exposure(self, peer: bytes) -> int:
        """Return what the peer owes at most. It must keep its limit.

        That is the sum of what is settled, unanswered, unproven and in loops: hiding a debt
        gains no credit.
        """
        loops = self.unbooked.get(peer, {})
        waiting = sum(
            item.amount_micro
            for item in self.open.values()
            if item.debtor == peer and item.account not in loops
        )
        held = sum(max(0, micro) for micro in loops.values())
        return self.balances.get(peer, 0) + waiting + max(0, self.unproven_micro(peer)) + held

    def clearing(self, peer: bytes) -> int:
        """Return by how much complete loops will change a balance once they are booked."""
        loops = self.unbooked.get(peer, {})
        return sum(micro for each, micro in loops.items() if self.loops[each].is_complete)

    def clearable(
        self, before: bytes, after: bytes, offered: Iterable[Offered] = ()
    ) -> tuple[int, int]:
        """Return the least and the most that one more loop may take off; the least is more if none.

        No debt changes sides, and none counts twice.

        Args:
            before: who owes this node.
            after: whom it owes.
            offered: what is promised to offers under way.
        """
        held = sum(min(0, micro) for micro in self.unbooked.get(before, {}).values())
        owed, owing = self.balances.get(before, 0) + held, -self.exposure(after)
        for other in offered:
            owed -= other.amount_micro if other.before == before else 0
            owing -= other.amount_micro if other.after == after else 0
        most = max(0, min(owed, owing))
        debt = min(self.balances.get(before, 0), -self.balances.get(after, 0))
        return max(LOOP_MICRO_MIN, min(most, debt // LOOP_SHARE)), most

    def keep_loop(self, loop: SignedLoop) -> bool:
        """Count what members have signed of a loop; return whether any of it is to be booked."""
        amount = loop.record.amount_micro
        edges = {loop.record.before(self.me): -amount, loop.record.after(self.me): amount}
        left = edges.keys() - set(chain.from_iterable(self.settled.get(loop.id, ())))
        for peer in left:
            self.unbooked.setdefault(peer, {})[loop.id] = edges[peer]
        if left:
            self.loops[loop.id] = loop
        else:
            self.loops.pop(loop.id, None)
        return bool(left)

    def number_of(self, entry_id: bytes) -> int | None:
        """Return the number of the own half of an entry."""
        raw = self.index.get(ID + entry_id)
        return None if raw is None else int.from_bytes(raw, "big")

    def near(self, peer: bytes, seq: int) -> dict[int, Known]:
        """Return the halves of a peer with a number, and with those next to it."""
        found = {number: self.seen.get(peer, number) for number in range(max(0, seq - 1), seq + 2)}
        return {number: known for number, known in found.items() if known is not None}

    def settled_under(self, account: bytes, *, debtor: bytes, creditor: bytes) -> int:
        """Return what was settled in an account in all."""
        return self.settled.get(account, {}).get((debtor, creditor), 0)


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
        state.limits.pop(half.peer, None)
        if half.kind == "limit":
            state.limits[half.peer] = half.amount_micro
    elif half.kind == "void":
        assert half.account is not None
        waiting = state.open_under(half.peer, half.account)
        assert waiting is not None
        del state.open[waiting]
        state.voided.add(waiting)
    elif initiator is None and half.kind != "claim":
        assert half.account is not None
        state.open[half.seq] = Open(half.peer, half.account, half.moves_micro)
    _list(state, half, initiator or own)
    if initiator is not None:
        _settle(state, half, initiator)
    state.next_seq += 1
    state.head = own.id


def _list(state: LedgerState, half: Half, first: Signed[Half]) -> None:
    state.index.changes[ID + first.id] = half.seq.to_bytes(8, "big")
    state.flows.show(half)
    state.halves += 1


def begin(state: LedgerState, restart: Restart) -> None:
    """Begin an incarnation in an empty state.

    Limits go on as they were noted.
    """
    incarnation = restart.incarnation
    state.first_seq = state.next_seq = incarnation.record.first_seq
    state.head = incarnation.id
    state.noted_seq = restart.noted.next_seq
    for account in restart.noted.accounts:
        state.noted[account.peer] = account.balance_micro
        if account.limit_micro is not None:
            state.limits[account.peer] = account.limit_micro


def take_old(
    state: LedgerState,
    own: Signed[Half],
    other: Signed[Half],
    voucher: Voucher,
) -> None:
    """Take an entry of an incarnation before.

    It counts as far as the debtor promised: what was hidden, booked anew under the same
    voucher, and is shown now, counts once.

    Args:
        state: is changed in place.
        own: the own half.
        other: the peer's.
        voucher: what it rests on.
    """
    half = own.record
    assert half.account is not None
    _list(state, half, own if half.link is None else other)
    if half.seq < state.noted_seq:
        sign = 1 if half.credit == state.me else -1
        state.shown[half.peer] = state.shown.get(half.peer, 0) + sign * half.amount_micro
    place = half.account, half.debit, half.credit
    booked = state.settled_under(half.account, debtor=half.debit, creditor=half.credit)
    if (waiting := state.open_under(half.debit, half.account)) is not None:
        booked += state.open[waiting].amount_micro
    promised = max(state.promised.get(place, 0), voucher.amount_micro)
    state.promised[place] = promised
    if booked + half.amount_micro > promised:
        state.covered.add(half.seq)
        _see(state, half, other)
    else:
        _settle(state, half, other)


def settle(state: LedgerState, own: Half, counter: Signed[Half]) -> None:
    """Take the answer to an own half: from now on it counts."""
    del state.open[own.seq]
    _settle(state, own, counter)


def _settle(state: LedgerState, own: Half, other: Signed[Half]) -> None:
    assert own.account is not None
    sign = 1 if own.credit == state.me else -1
    if own.kind == "seal":
        begins = state.sealed.get(own.peer, 0).to_bytes(8, "big")
        state.index.changes[SEAL + own.account + own.amount_micro.to_bytes(8, "big")] = begins
        state.sealed[own.peer] = own.amount_micro
    else:
        under = state.settled.setdefault(own.account, {})
        parties = (own.debit, own.credit)
        under[parties] = under.get(parties, 0) + own.amount_micro
    state.balances[own.peer] = state.balances.get(own.peer, 0) + sign * own.moves_micro
    state.unbooked.get(own.peer, {}).pop(own.account, None)
    _see(state, own, other)
    if own.kind == "post":
        state.flows.add(own)


def _see(state: LedgerState, own: Half, other: Signed[Half]) -> None:
    said = Known(other.id, other.record.prev, own.kind == "seal", own.seq)
    if state.seen.add(said, own.peer, other.record.seq) and not said.seals:
        state.dealt[own.peer] = state.dealt.get(own.peer, 0) + 1
        if own.seq >= state.first_seq:
            seqs = own.seq, other.record.seq
            first, second = seqs if state.me < own.peer else seqs[::-1]
            entry_id = other.record.link or other.id
            key = SHARED + own.peer + first.to_bytes(8, "big")
            state.index.changes[key] = entry_id + second.to_bytes(8, "big")


SNAPSHOT_BYTES_MAX = 64 * MIB
"""Some hundred bytes a peer."""


class Snapshot(Record):
    """Signed by the node for itself: all that `LedgerState` says of these names, in order."""

    KIND: ClassVar[str] = "ledger_snapshot"

    next_seq: Count
    head: Id32
    """The id of the half before `next_seq`: the snapshot is of this chain and no other."""
    first_seq: Count
    noted_seq: Count
    halves: Count
    balances: tuple[tuple[Id32, int], ...]
    limits: tuple[tuple[Id32, int], ...]
    noted: tuple[tuple[Id32, int], ...]
    shown: tuple[tuple[Id32, int], ...]
    dealt: tuple[tuple[Id32, int], ...]
    sealed: tuple[tuple[Id32, int], ...]
    heard: tuple[tuple[Id32, int], ...]
    voided: tuple[Count, ...]
    covered: tuple[Count, ...]
    settled: tuple[tuple[Id32, tuple[tuple[tuple[Id32, Id32], int], ...]], ...]
    """By account, debtor and creditor."""
    promised: tuple[tuple[tuple[Id32, Id32, Id32], int], ...]
    open: tuple[tuple[Count, tuple[Id32, Id32, Count]], ...]
    """By number, debtor, account and amount."""


_NAMES: Final = Snapshot.model_fields.keys() - {"v"}


def _in_order(value: object) -> object:
    if isinstance(value, dict):
        return tuple((key, _in_order(item)) for key, item in sorted(value.items()))
    return tuple(sorted(value)) if isinstance(value, set) else value


def snapshot_of(state: LedgerState) -> Snapshot:
    """Return the snapshot of a state."""
    said: dict[str, Any] = {name: _in_order(getattr(state, name)) for name in _NAMES}
    return Snapshot(**said)


def restored(snapshot: Snapshot, *, me: bytes, index: Index) -> LedgerState:
    """Return the state that a snapshot is of."""
    state = LedgerState(me, index=index)
    for name in _NAMES:
        setattr(state, name, type(getattr(state, name))(getattr(snapshot, name)))
    state.settled = {account: dict(under) for account, under in snapshot.settled}
    state.open = {seq: Open(*item) for seq, item in snapshot.open}
    return state
