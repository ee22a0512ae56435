"""The state of a ledger: balances, limits and open entries that follow from its halves.

The state follows from the chain, the counter-halves and what an incarnation carries over
only: a replay gives the same state (`digest`). It is changed in place, because copying it
for each of a hundred thousand halves would make a replay quadratic. Nothing is checked
here; `xsc.ledger.validation` has done so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from xsc.base.encoding import Value, encode, tagged_sha256
from xsc.identity.envelope import Signed
from xsc.ledger.entry import GENESIS, Half
from xsc.ledger.flows import Flows
from xsc.ledger.incarnation import Restart
from xsc.ledger.loop import LOOP_MICRO_MIN, LOOP_SHARE, SignedLoop
from xsc.terms.voucher import Voucher


@dataclass(frozen=True, slots=True)
class Open:
    """An own `post` that its debtor has not answered, or a seal, which moves nothing."""

    debtor: bytes
    account: bytes
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
    """A peer's half of an entry in this ledger."""

    id: bytes
    prev: bytes
    seq: int
    """Of the own half."""
    seals: bool
    """Of those, the next incarnation takes none along."""


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
    opened: set[bytes] = field(default_factory=set)
    """Peers whose account was opened in this incarnation: an index only."""
    open: dict[int, Open] = field(default_factory=dict)
    """Own halves that wait for an answer, by sequence number."""
    voided: set[int] = field(default_factory=set)
    """Those that were withdrawn, by sequence number."""
    settled: dict[bytes, dict[tuple[bytes, bytes], int]] = field(default_factory=dict)
    """Per account, then debtor and creditor, what was settled in all."""
    entries: dict[tuple[bytes, bytes], Known] = field(default_factory=dict)
    """By initiator and xid."""
    seen: dict[bytes, dict[int, Seen]] = field(default_factory=dict)
    """Per peer, its halves of entries in this ledger, by its sequence number."""
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
    claims_head: bytes = GENESIS
    """Hash over all claims, in the order of taking."""
    claims: set[int] = field(default_factory=set)
    """Old halves that came after the incarnation had begun, by sequence number."""
    covered: set[int] = field(default_factory=set)
    """Old halves whose voucher was booked in full already: they count nothing."""
    loops: dict[bytes, SignedLoop] = field(default_factory=dict)
    """By id, those that this node has signed and that are not booked with both neighbours. They
    are stored beside the chain, and no replay gives them."""
    order: list[int] = field(default_factory=list)
    """The own halves in the order in which they were taken: an index only."""
    with_peer: dict[bytes, list[int]] = field(default_factory=dict)
    """The same of each peer."""
    flows: Flows = field(default_factory=Flows)
    """The settled ones by date: an index only."""

    def open_micro(self, peer: bytes) -> int:
        """Return what the peer will owe in addition once it has answered everything."""
        return sum(item.amount_micro for item in self.open.values() if item.debtor == peer)

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
        unproven = max(0, self.unproven_micro(peer))
        held = sum(
            loop.record.amount_micro
            for loop in self.loops.values()
            if loop.record.after(self.me) == peer
            and not self.settled_under(loop.id, debtor=peer, creditor=self.me)
            and self.open_under(peer, loop.id) is None
        )
        return self.balances.get(peer, 0) + self.open_micro(peer) + unproven + held

    def clearing(self, peer: bytes) -> int:
        """Return by how much complete loops will change a balance once they are booked."""
        total = 0
        for loop in self.loops.values():
            before, after = loop.record.before(self.me), loop.record.after(self.me)
            amount = loop.record.amount_micro if loop.is_complete else 0
            if after == peer and not self.settled_under(loop.id, debtor=peer, creditor=self.me):
                total += amount
            if before == peer and not self.settled_under(loop.id, debtor=self.me, creditor=peer):
                total -= amount
        return total

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
        owed, owing = self.balances.get(before, 0), -self.exposure(after)
        for loop in self.loops.values():
            if loop.record.before(self.me) == before and not self.settled_under(
                loop.id, debtor=self.me, creditor=before
            ):
                owed -= loop.record.amount_micro
        for other in offered:
            owed -= other.amount_micro if other.before == before else 0
            owing -= other.amount_micro if other.after == after else 0
        most = max(0, min(owed, owing))
        debt = min(self.balances.get(before, 0), -self.balances.get(after, 0))
        return max(LOOP_MICRO_MIN, min(most, debt // LOOP_SHARE)), most

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
        state.opened.add(half.peer)
        state.limits.pop(half.peer, None)
        if half.kind == "limit":
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
        assert half.account is not None
        state.open[half.seq] = Open(half.peer, half.account, half.moves_micro)
    if half.link is None:
        state.entries[state.me, half.xid] = Known(own.id, half.seq)
    _list(state, half)
    state.next_seq += 1
    state.head = own.id


def next_claim(before: bytes, turn: bytes, own_id: bytes, other_id: bytes) -> bytes:
    """Return the hash over all claims where one is added."""
    return tagged_sha256("ledger_claim", before, turn, own_id, other_id)


def _list(state: LedgerState, half: Half) -> None:
    state.order.append(half.seq)
    state.with_peer.setdefault(half.peer, []).append(half.seq)


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
    turn: bytes | None = None,
) -> None:
    """Take an entry of an incarnation before.

    It counts as far as the debtor promised: what was hidden, booked anew under the same
    voucher, and is shown now, counts once.

    Args:
        state: is changed in place.
        own: the own half.
        other: the peer's.
        voucher: what it rests on.
        turn: when it was taken, where that was after the present incarnation had begun.
    """
    half = own.record
    assert half.account is not None
    first = own if half.link is None else other
    state.entries.setdefault((first.author, half.xid), Known(first.id, half.seq))
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
        _see(state, half.peer, other, half.seq)
    else:
        _settle(state, half, other, half.seq)
    if turn is not None:
        state.claims.add(half.seq)
        state.claims_head = next_claim(state.claims_head, turn, own.id, other.id)
    _list(state, half)


def settle(state: LedgerState, own: Half, counter: Signed[Half]) -> None:
    """Take the answer to an own half: from now on it counts."""
    del state.open[own.seq]
    _settle(state, own, counter, own.seq)


def _settle(state: LedgerState, own: Half, other: Signed[Half], seq: int) -> None:
    assert own.account is not None
    sign = 1 if own.credit == state.me else -1
    under = state.settled.setdefault(own.account, {})
    parties = (own.debit, own.credit)
    under[parties] = under.get(parties, 0) + own.amount_micro
    state.balances[own.peer] = state.balances.get(own.peer, 0) + sign * own.moves_micro
    _see(state, own.peer, other, seq)
    if own.kind == "post":
        state.flows.add(own)


def _see(state: LedgerState, peer: bytes, other: Signed[Half], seq: int) -> None:
    state.seen.setdefault(peer, {}).setdefault(
        other.record.seq, Seen(other.id, other.record.prev, seq, other.record.kind == "seal")
    )


def digest(state: LedgerState) -> bytes:
    """Return the 32-byte hash of everything in the state."""
    balances: list[Value] = [[peer, value] for peer, value in sorted(state.balances.items())]
    limits: list[Value] = [[peer, value] for peer, value in sorted(state.limits.items())]
    waiting: list[Value] = [
        [seq, item.debtor, item.account, item.amount_micro]
        for seq, item in sorted(state.open.items())
    ]
    settled: list[Value] = [
        [account, *parties, value]
        for account, under in sorted(state.settled.items())
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
    noted: list[Value] = [[peer, value] for peer, value in sorted(state.noted.items())]
    shown: list[Value] = [[peer, value] for peer, value in sorted(state.shown.items())]
    promised: list[Value] = [[*place, value] for place, value in sorted(state.promised.items())]
    claims: list[Value] = [*sorted(state.claims)]
    covered: list[Value] = [*sorted(state.covered)]
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
        "first_seq": state.first_seq,
        "noted": noted,
        "noted_seq": state.noted_seq,
        "shown": shown,
        "promised": promised,
        "claims": claims,
        "claims_head": state.claims_head,
        "covered": covered,
    }
    return tagged_sha256("ledger_state", encode(value))
