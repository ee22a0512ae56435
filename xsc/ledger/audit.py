"""Replays a stored ledger from its first half, and says where it first goes wrong.

StoredRows go in, a state or `LedgerDamaged` comes out. The service replays without
signatures when it starts (hashes already bind the chain) and with them when it
is asked to verify. `verify_settled` checks one exported entry with nothing but
its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from xsc.base import encoding, limits, units
from xsc.base.errors import LedgerDamaged, LimitError, PeerError, ProofInvalid, RecordInvalid
from xsc.base.ids import short
from xsc.identity.envelope import R, Signed, open_signed
from xsc.ledger import incarnation, validation
from xsc.ledger.entry import BOTH_SIGN, Half, SettledEntry, open_half
from xsc.ledger.loop import open_voucher
from xsc.ledger.state import LedgerState, append, begin, settle, take_old
from xsc.terms.voucher import Voucher, off_books_account

FORMAT = 1
_YEAR_9999_MS = 253_402_300_799_999


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Everything that the store holds of one ledger."""

    mark: bytes | None
    """The encoded `ChainEnd`; None in an empty store."""
    halves: Mapping[int, bytes]
    """Own signed halves, by sequence number."""
    others: Mapping[int, bytes]
    """The signed halves of peers beside them, by the own half's sequence number."""
    vouchers: Mapping[int, bytes]
    """The signed vouchers under them, likewise."""
    restart: bytes | None = None
    """What the present incarnation began with; None in the first."""
    claims: Mapping[int, bytes] = field(default_factory=dict)
    """When each claim was taken, by its sequence number."""


@dataclass(frozen=True, slots=True)
class ChainEnd:
    """How far the chain reaches: a lost last row must be noticed too."""

    next_seq: int
    head: bytes
    claims: bytes
    """Hash over the claims; GENESIS where there are none."""


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """What a replay found."""

    state: LedgerState
    settled: int
    """Entries with both halves."""


def chain_end_bytes(mark: ChainEnd) -> bytes:
    """Return the row that says where the chain ends, and which claims there are."""
    return encoding.encode(
        {"v": FORMAT, "next_seq": mark.next_seq, "head": mark.head, "claims": mark.claims}
    )


def claim_bytes(at_seq: int, number: int) -> bytes:
    """Return the row that says before which half of the chain a claim was taken, and as which."""
    return at_seq.to_bytes(8, "big") + number.to_bytes(8, "big")


def _mark(raw: bytes | None) -> ChainEnd | None:
    if raw is None:
        return None
    match encoding.decode(raw):
        case {
            "v": 1,
            "next_seq": int(next_seq),
            "head": bytes(head),
            "claims": bytes(claims),
            **rest,
        } if not rest:
            return ChainEnd(next_seq, head, claims)
    raise LedgerDamaged(
        "the ledger's mark is damaged, or of a newer format",
        hint="restore the home from a backup, or use the xsc that wrote it",
    )


def _damaged(seq: int, sentence: str) -> LedgerDamaged:
    return LedgerDamaged(
        f"entry {seq} of the ledger is damaged: {sentence}",
        hint="restore the home from a backup; the peers hold their halves of every entry",
    )


def trusted(raw: bytes, kind: type[R], network: bytes) -> Signed[R]:
    """Return a record of our own store, its signature unchecked.

    Raises:
        TooLarge, RecordInvalid: not the envelope of such a record.
    """
    fields = encoding.decode(raw, size_max=limits.LEDGER_RECORD_BYTES_MAX)
    match fields:
        case {"body": bytes(body), "by": bytes(author), "net": bytes(net)} if net == network:
            record = kind.from_bytes(body, size_max=limits.LEDGER_RECORD_BYTES_MAX)
            return Signed(record, author, network, record.id, raw)
    raise RecordInvalid(f"not a signed {kind.KIND} of this network")


def replay(rows: StoredRows, *, me: bytes, network: bytes, signatures: bool) -> ReplayResult:
    """Return what the rows add up to.

    Args:
        rows: of the whole store.
        me: the node whose ledger it is.
        network: the network of all its entries.
        signatures: whether to verify signatures, some 0.1 ms each.

    Raises:
        LedgerDamaged: names the first entry that breaks a rule.
    """
    try:
        mark = _mark(rows.mark)
    except (PeerError, LimitError) as fault:
        raise LedgerDamaged(f"the ledger's mark is damaged: {fault.message}") from None
    state = LedgerState(me)
    if rows.restart is not None:
        _begin(state, rows, network, signatures=signatures)
    claims = _in_turn(rows)

    def take_claims(before_seq: int) -> None:
        while claims and claims[-1][0] <= before_seq:
            _take_old(state, rows, claims.pop()[1], network, signatures=signatures)

    for number in range(sum(seq >= state.first_seq for seq in rows.halves)):
        seq = state.first_seq + number
        take_claims(seq)
        try:
            _replay_one(state, rows, seq, network, signatures=signatures)
        except (PeerError, LimitError) as fault:
            raise _damaged(seq, fault.message) from None
    take_claims(state.next_seq)
    ends = ChainEnd(state.next_seq, state.head, state.claims_head)
    if mark != ends if mark else state.order or rows.restart is not None:
        raise _damaged(state.next_seq, "the chain does not end where it should")
    strays = {*rows.halves, *rows.others, *rows.vouchers, *rows.claims} - {*state.order}
    if strays:
        raise _damaged(min(strays), "its parts are there, the entry itself is not")
    settled = sum(len(halves) for halves in state.seen.values())
    return ReplayResult(state, settled)


def _in_turn(rows: StoredRows) -> list[tuple[int, int]]:
    """Return before which half each claim was taken, and its number, the last one first."""
    turns = sorted(((raw, seq) for seq, raw in rows.claims.items()), reverse=True)
    return [(int.from_bytes(raw[:8], "big"), seq) for raw, seq in turns]


def _begin(state: LedgerState, rows: StoredRows, network: bytes, *, signatures: bool) -> None:
    """Begin the present incarnation, with all that it took along."""
    assert rows.restart is not None
    try:
        restart = incarnation.open_restart(rows.restart, author=state.me, network=network)
    except (PeerError, LimitError) as fault:
        raise LedgerDamaged(f"the restart of the ledger is damaged: {fault.message}") from None
    begin(state, restart)
    carried = [
        _take_old(state, rows, seq, network, signatures=signatures)
        for seq in sorted(rows.halves)
        if seq < state.first_seq and seq not in rows.claims
    ]
    if incarnation.carried_hash(restart.noted, carried) != restart.incarnation.record.carried:
        raise LedgerDamaged(
            "the ledger does not hold what its incarnation took along",
            hint="restore the home from a backup, or recover it: xsc node recover",
        )


def _take_old(
    state: LedgerState, rows: StoredRows, seq: int, network: bytes, *, signatures: bool
) -> tuple[bytes, bytes]:
    """Take an old entry to the state; return the ids of its two halves."""
    try:
        own, other, voucher = _opened(rows, seq, network, signatures=signatures)
    except (PeerError, LimitError) as fault:
        raise _damaged(seq, fault.message) from None
    if other is None or voucher is None or seq >= state.first_seq:
        raise _damaged(seq, "it is no entry that both parties signed")
    if own.author != state.me or own.record.seq != seq:
        raise _damaged(seq, "it is not this node's, or of another number")
    if (refusal := validation.check_old(own, other, voucher)) is not None:
        raise _damaged(seq, refusal.sentence)
    take_old(state, own, other, voucher.record, rows.claims.get(seq))
    return own.id, other.id


def _opened(
    rows: StoredRows, seq: int, network: bytes, *, signatures: bool
) -> tuple[Signed[Half], Signed[Half] | None, Signed[Voucher] | None]:
    """Return an own half, the peer's and the voucher.

    Raises:
        PeerError, LimitError: one of them is damaged.
    """

    def opened(raw: bytes) -> Signed[Half]:
        if signatures:
            return open_half(raw, network=network)
        return trusted(raw, Half, network)

    raw = rows.halves.get(seq)
    if raw is None:
        raise _damaged(seq, "it is missing")
    own, beside, under = opened(raw), rows.others.get(seq), rows.vouchers.get(seq)
    voucher: Signed[Voucher] | None = None
    if under is not None:
        if signatures or own.record.clears or own.record.kind == "seal":
            voucher = open_voucher(under, own.record, network=network)
        else:
            voucher = trusted(under, Voucher, network)
    return own, None if beside is None else opened(beside), voucher


def _replay_one(
    state: LedgerState, rows: StoredRows, seq: int, network: bytes, *, signatures: bool
) -> None:
    """Take one row of the chain to the state."""
    own, other, voucher = _opened(rows, seq, network, signatures=signatures)
    if (voucher is not None) != (own.record.kind in BOTH_SIGN):
        raise _damaged(seq, "a voucher is missing, or there is one too many")
    answers = own.record.link is not None
    refusal = validation.check_own_next(
        state, own, voucher=voucher, initiator=other if answers else None
    )
    if refusal is None and other is not None and not answers:
        refusal = validation.check_counter(own, other) or validation.check_chain(state, other)
        if own.record.kind not in BOTH_SIGN:
            refusal = validation.Refusal("fields_wrong", f"a '{own.record.kind}' has no answer")
    if refusal is not None:
        raise _damaged(seq, refusal.sentence)
    append(state, own, other if answers else None)
    if other is not None and not answers:
        settle(state, own.record, other)


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
    if said.kind not in BOTH_SIGN or said.link is not None or said.credit != half.author:
        raise ProofInvalid("this entry does not hold: it is no debt that its creditor booked")
    if exported.author not in (half.author, counter.author):
        raise ProofInvalid("this entry does not hold: a stranger exported it")
    if said.amount_micro > voucher.record.amount_micro:
        raise ProofInvalid("this entry does not hold: it is over more than the voucher")
    assert said.account is not None
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        milliseconds=min(counter.record.created_ms, _YEAR_9999_MS)
    )
    amount = units.format_credits(said.amount_micro)
    if said.clears:
        what = (
            f"a loop that all its members signed took {amount} credits off what "
            f"{short(said.credit)} owed {short(said.debit)}"
        )
    elif said.kind == "seal":
        what = (
            f"{short(said.credit)} and {short(said.debit)} sealed {said.amount_micro} of their "
            "entries"
        )
    elif said.account == off_books_account(said.credit, said.debit):
        what = f"{short(said.credit)} paid {short(said.debit)} {amount} credits off the books"
    else:
        what = (
            f"{short(said.debit)} owes {short(said.credit)} "
            f"{amount} credits in account {short(said.account)}"
        )
    return f"entry {short(half.id)}: {what}, signed by both, answered {at:%Y-%m-%d %H:%M:%S} UTC"
