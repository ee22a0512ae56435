"""Replays a stored ledger, and says where it first goes wrong.

What is stored goes in, a state or `LedgerDamaged` comes out. At a start, signatures are not
verified (hashes already bind the chain); who verifies the ledger takes what has to be.
`verify_settled` checks one exported entry with nothing but its bytes.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial

from xsc.base import encoding, fields, limits
from xsc.base.errors import (
    LedgerDamaged,
    LimitError,
    PeerError,
    ProofInvalid,
    RecordInvalid,
    XscError,
)
from xsc.base.ids import short
from xsc.identity.envelope import R, Signed, open_signed, read_unverified
from xsc.identity.keys import Unverified
from xsc.ledger import validation
from xsc.ledger.entry import BOTH_SIGN, EntryRow, Half, SettledEntry, intact, open_half
from xsc.ledger.incarnation import CLAIM_BYTES_MAX, Claim, claim_hash
from xsc.ledger.index import DAY, Index
from xsc.ledger.loop import open_voucher
from xsc.ledger.state import LedgerState, append, settle, take_old
from xsc.ledger.statement import say_entry
from xsc.terms.voucher import Voucher

ROWS_READ = 2**12
"""Rows of an index that a replay remembers."""
_YEAR_9999_MS = 253_402_300_799_999


def chain_end_bytes(next_seq: int, head: bytes) -> bytes:
    """Return the row that says how far the chain reaches: a lost last row must be noticed, too."""
    return encoding.encode({"v": 1, "next_seq": next_seq, "head": head})


def damaged(seq: int, sentence: str) -> LedgerDamaged:
    """Return the error of an entry that breaks a rule."""
    return LedgerDamaged(f"{entry_of(seq)} is damaged: {sentence}")


def missing(seq: int) -> LedgerDamaged:
    """Return the error of an entry that is not there."""
    return damaged(seq, "it is missing")


def entry_of(seq: int) -> str:
    """Return how an entry is called by its number."""
    return f"entry {seq} of the ledger"


@dataclass(frozen=True, slots=True)
class Old:
    """A half of an earlier incarnation, the other party's half, and their voucher."""

    half: Signed[Half]
    other: Signed[Half]
    voucher: Signed[Voucher]


def _opened(half: bytes, other: bytes, voucher: bytes, network: bytes) -> Old:
    own = open_half(half, network=network)
    under = open_voucher(voucher, own.record, network=network)
    return Old(own, open_half(other, network=network), under)


def check_shown(
    item: Mapping[str, encoding.Value], *, peer: bytes, me: bytes, network: bytes
) -> Old | None:
    """Return an item of a peer's history where it holds by itself, else None."""
    try:
        take = partial(fields.take_bytes, item)
        old = _opened(take("half"), take("other"), take("voucher"), network)
    except XscError:
        return None
    holds = validation.check_old(old.half, old.other, old.voucher) is None
    return old if holds and (old.half.author, old.other.author) == (me, peer) else None


def known_entries(rows: Iterable[EntryRow], *, network: bytes) -> list[Old]:
    """Return the settled entries of the own ledger.

    Raises:
        PeerError, LimitError: a row is damaged.
    """
    # Nothing is under a seal.
    return [
        _opened(row.half, row.other, row.voucher, network)
        for row in rows
        if row.other and row.voucher
    ]


class Replay:
    """Takes what is stored to a state, one number after the other.

    Args:
        state: is changed in place.
        network: of all entries.
    """

    def __init__(self, state: LedgerState, network: bytes) -> None:
        self.state = state
        self._network = network
        self.held: Container[int] = ()
        """Own halves whose answers are not taken yet."""
        self.unverified: list[tuple[int, Unverified]] = []
        """The number and signature of each record that was read."""
        self.seq = 0
        """What is taken now, or was taken last."""
        self.half: Half
        """Of the present incarnation, the one that was taken last."""
        self.old: set[int] = set()
        """The entries of earlier incarnations that were taken."""

    def _opened(
        self, seq: int, row: EntryRow
    ) -> tuple[Signed[Half], Signed[Half] | None, Signed[Voucher] | None]:
        """Return an own half, the peer's and the voucher.

        Raises:
            LedgerDamaged: one of them is damaged.
        """
        with intact(entry_of(seq)):
            own = self._read(seq, row.half, Half)
            other = None if row.other is None else self._read(seq, row.other, Half)
            if row.voucher is None or own.record.kind == "claim":
                return own, other, None
            if own.record.purpose != "leases":
                voucher = open_voucher(row.voucher, own.record, network=self._network)
            else:
                voucher = self._read(seq, row.voucher, Voucher)
            return own, other, voucher

    def _read(self, seq: int, raw: bytes, kind: type[R]) -> Signed[R]:
        signed, unverified = read_unverified(
            raw, kind, network=self._network, size_max=limits.LEDGER_RECORD_BYTES_MAX
        )
        if isinstance(signed.record, Half) and signed.record.author != signed.author:
            raise RecordInvalid("it is signed by a node that is not its author")
        self.unverified.append((seq, unverified))
        return signed

    def take_old(self, seq: int, row: EntryRow) -> tuple[bytes, bytes]:
        """Take an old entry; return the ids of its two halves.

        Raises:
            LedgerDamaged: it breaks a rule.
        """
        state, self.seq = self.state, seq
        own, other, voucher = self._opened(seq, row)
        if other is None or voucher is None or seq >= state.first_seq or seq in self.old:
            raise damaged(seq, "it is no entry that both parties signed")
        if own.author != state.me or own.record.seq != seq:
            raise damaged(seq, "it is not this node's, or of another number")
        if (refusal := validation.check_old(own, other, voucher)) is not None:
            raise damaged(seq, refusal.sentence)
        take_old(state, own, other, voucher.record)
        self.old.add(seq)
        return own.id, other.id

    def take(self, seq: int, row: EntryRow) -> Claim | None:
        """Take the next half of the chain, with the answer that it is or has.

        Returns:
            The old entries that it claims, which are to be taken next, with `end_claim` after them.

        Raises:
            LedgerDamaged: it breaks a rule.
        """
        state, self.seq = self.state, seq
        if seq != state.next_seq:
            raise missing(state.next_seq)
        own, other, voucher = self._opened(seq, row)
        claims = own.record.kind == "claim"
        if (row.voucher is not None) != (claims or own.record.kind in BOTH_SIGN):
            raise damaged(seq, "a voucher is missing, or there is one too many")
        initiator = other if own.record.link is not None else None
        refusal = validation.check_own_next(state, own, voucher=voucher, initiator=initiator)
        if refusal is not None:
            raise damaged(seq, refusal.sentence)
        append(state, own, initiator)
        self.half = own.record
        if other is not None and initiator is None and seq not in self.held:
            self._settle(own, other)
        if not claims or row.voucher is None:
            return None
        with intact(entry_of(seq)):
            return Claim.from_bytes(row.voucher, size_max=CLAIM_BYTES_MAX)

    def end_claim(self, claim: Claim, taken: Sequence[tuple[bytes, bytes]]) -> None:
        """Check that the claim taken last is over the old entries that were taken after it.

        Raises:
            LedgerDamaged: it is over others.
        """
        half = self.half
        if half.receipt != claim_hash(claim, taken) or half.amount_micro != len(taken):
            raise damaged(half.seq, "it claims other entries than are stored")
        self.state.heard[half.peer] = claim.start

    def answer(self, seq: int, row: EntryRow) -> None:
        """Take the answer to an own half that was taken before.

        Raises:
            LedgerDamaged: it breaks a rule.
        """
        self.seq = seq
        own, other, _ = self._opened(seq, row)
        if other is not None:
            self._settle(own, other)

    def _settle(self, own: Signed[Half], other: Signed[Half]) -> None:
        refusal = validation.check_counter(own, other) or validation.check_chain(self.state, other)
        if own.record.kind not in BOTH_SIGN:
            refusal = validation.Refusal("fields_wrong", f"a '{own.record.kind}' has no answer")
        if refusal is not None:
            raise damaged(own.record.seq, refusal.sentence)
        settle(self.state, own.record, other)


class Past(Index):
    """The index as a replay from the first half on makes it, without holding it in memory.

    Look-ups go to what must come out, and see what the replay has taken.

    Args:
        there: the rows that must come out.
    """

    def __init__(self, there: Index) -> None:
        super().__init__()
        self.there = there
        # Most are needed again soon.
        self._there = lru_cache(ROWS_READ)(there.get)
        self._forgotten = 0
        self.replay: Replay

    def get(self, key: bytes) -> bytes | None:
        """Return a row of a half, if that was taken."""
        raw = self._there(key)
        return raw if raw is not None and self._is_taken(int.from_bytes(raw[-8:], "big")) else None

    def _is_taken(self, seq: int) -> bool:
        state = self.replay.state
        taken = seq < state.next_seq if seq >= state.first_seq else seq in self.replay.old
        return taken and seq != self.replay.seq

    def forget(self) -> None:
        """Forget all rows but sums of days, which go on: one hash is over what they were."""
        for key in [key for key in self.changes if key[:1] != DAY]:
            self._forgotten += hash((key, self.changes.pop(key)))

    def made(self) -> int:
        """Return the sum of the hashes of all rows."""
        return self._forgotten + sum(map(hash, self.changes.items()))


def index_damaged() -> LedgerDamaged:
    """Return the error of rows that can be made anew from entries."""
    return LedgerDamaged(
        "the ledger's snapshot or index does not follow from its entries",
        hint="restart the node: both are then made anew from the entries",
    )


def check_end(state: LedgerState, mark: bytes | None) -> None:
    """Check that a chain ends where its mark says.

    Raises:
        LedgerDamaged: it does not.
    """
    end = chain_end_bytes(state.next_seq, state.head)
    if mark != end if mark is not None else state.halves or state.first_seq:
        raise damaged(state.next_seq, "the chain does not end where it should")


def verify_settled(raw: bytes) -> str:
    """Return, in words for people, what an exported entry proves.

    Args:
        raw: a signed `SettledEntry`, as `LedgerService.export` gives it.

    Raises:
        ProofInvalid: a signature, a hash or the content does not fit.
    """
    try:
        exported = open_signed(raw, SettledEntry, network=None)
        half = open_half(exported.record.half, network=exported.network)
        counter = open_half(exported.record.counter, network=exported.network)
        voucher = open_voucher(exported.record.voucher, half.record, network=exported.network)
    except (PeerError, LimitError) as fault:
        raise ProofInvalid(f"this entry does not hold: {fault.message}") from None
    said = half.record
    refusal = validation.check_counter(half, counter) or validation.check_voucher(said, voucher)
    if refusal is not None:
        raise ProofInvalid(f"this entry does not hold: {refusal.sentence}")
    is_debt = said.kind in BOTH_SIGN and said.link is None and said.amount_micro > 0
    if not is_debt or said.credit != half.author:
        raise ProofInvalid("this entry does not hold: it is no debt that its creditor booked")
    if exported.author not in (half.author, counter.author):
        raise ProofInvalid("this entry does not hold: a stranger exported it")
    if said.amount_micro > voucher.record.amount_micro:
        raise ProofInvalid("this entry does not hold: it is over more than the voucher")
    assert said.account is not None
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        milliseconds=min(counter.record.created_ms, _YEAR_9999_MS)
    )
    return (
        f"entry {short(half.id)}: {say_entry(said, short)}, in account {short(said.account)}, "
        f"signed by both, answered {at:%Y-%m-%d %H:%M:%S} UTC"
    )
