"""The loop: debts that go around, which all its members sign to take one amount off.

Each member owes the next, and the last one the first. The origin, which is the first member,
signs first, then the last member, and so back to the second: a member signs what all behind it
have signed, and the signature of the second completes it. docs/design/ledger.md, "Loops".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from xsc.base import encoding, errors, limits
from xsc.identity.envelope import Count, Id32, Record, Signed, open_signed
from xsc.ledger.cube import seal_voucher
from xsc.ledger.entry import Half
from xsc.terms.voucher import Voucher, voucher_in_all

LOOP_MEMBERS_MAX = 5
XID_BYTES = 16
Id16 = Annotated[bytes, Field(min_length=XID_BYTES, max_length=XID_BYTES)]
OFFER_TIMEOUT_MS = 16_000
"""For all that comes of one offer; half of what is left for each further member."""
LOOP_MICRO_MIN = 1_000
"""What a loop takes off at least: a smaller debt is not worth its entries."""
LOOP_SHARE = 16
"""A loop takes at least such a part off the lesser of a member's two debts, or all that is free of
them: else who never signs would hold up large debts by small loops."""
LOOP_FAN_MAX = 4
"""Creditors to which a member passes an offer on, beside the origin."""


class Loop(Record):
    """Signed by each member: this amount is off every debt, once all have signed."""

    KIND: ClassVar[str] = "loop"

    members: Annotated[tuple[Id32, ...], Field(min_length=3, max_length=LOOP_MEMBERS_MAX)]
    """Each owes the next one, the last one the first."""
    amount_micro: Annotated[int, Field(ge=LOOP_MICRO_MIN, lt=2**63)]
    xid: Id16
    """Drawn by the origin: the same debts may go around again."""

    @model_validator(mode="after")
    def _distinct(self) -> Loop:
        if len({*self.members}) != len(self.members):
            raise ValueError("a node is a member twice")
        return self

    @property
    def signers(self) -> tuple[bytes, ...]:
        """The members in the order in which they sign."""
        return self.members[:1] + self.members[:0:-1]

    def before(self, member: bytes) -> bytes:
        """Return who owes a member."""
        return self.members[self.members.index(member) - 1]

    def after(self, member: bytes) -> bytes:
        """Return whom a member owes."""
        return self.members[(self.members.index(member) + 1) % len(self.members)]


class Offer(Record):
    """What travels along debts until it is back at its origin."""

    path: Annotated[tuple[Id32, ...], Field(min_length=1, max_length=LOOP_MEMBERS_MAX)]
    """The members so far, the origin first and the sender last."""
    amount_micro: Count
    """What may be taken off."""
    left_ms: Annotated[int, Field(ge=0, le=OFFER_TIMEOUT_MS)]
    """How long the sender waits."""
    search: Id16
    """Drawn by the origin, so that it knows its own offer."""


@dataclass(frozen=True, slots=True)
class SignedLoop:
    """A loop and the envelopes of the members that have signed so far, in their order."""

    record: Loop
    id: bytes
    network: bytes
    envelopes: tuple[bytes, ...]

    @property
    def raw(self) -> bytes:
        """The bytes that are sent, stored and shown."""
        return encoding.encode([*self.envelopes])

    @property
    def is_complete(self) -> bool:
        """Whether all have signed."""
        return len(self.envelopes) == len(self.record.members)

    def is_signed_by(self, member: bytes) -> bool:
        """Return whether a node has signed."""
        return member in self.record.signers[: len(self.envelopes)]

    def is_turn_of(self, member: bytes) -> bool:
        """Return whether a node is the next to sign."""
        return self.record.signers[len(self.envelopes) :][:1] == (member,)

    def signed(self, envelope: Signed[Loop]) -> SignedLoop:
        """Return the loop with the next signature."""
        return SignedLoop(self.record, self.id, self.network, (*self.envelopes, envelope.raw))


def open_loop(raw: bytes, *, network: bytes | None) -> SignedLoop:
    """Return a loop that members have signed in their order, the signatures verified.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: see `open_signed`.
    """
    envelopes = encoding.decode(raw, size_max=limits.LEDGER_RECORD_BYTES_MAX)
    if not isinstance(envelopes, list) or not 0 < len(envelopes) <= LOOP_MEMBERS_MAX:
        raise errors.RecordInvalid("a loop is a list of what its members signed")
    found = []
    for envelope in envelopes:
        if not isinstance(envelope, bytes):
            raise errors.RecordInvalid("a loop is a list of what its members signed")
        opened = open_signed(envelope, Loop, network=network)
        network = opened.network
        found.append(opened)
    first = found[0]
    if any(each.id != first.id for each in found):
        raise errors.RecordInvalid("the members of this loop have signed different ones")
    if tuple(each.author for each in found) != first.record.signers[: len(found)]:
        raise errors.RecordInvalid("this loop is not signed by its members in their order")
    return SignedLoop(first.record, first.id, first.network, tuple(each.raw for each in found))


def begin(envelope: Signed[Loop]) -> SignedLoop:
    """Return a loop that its origin alone has signed."""
    return SignedLoop(envelope.record, envelope.id, envelope.network, (envelope.raw,))


def voucher_of(loop: SignedLoop, *, debtor: bytes, creditor: bytes) -> Signed[Voucher]:
    """Return what a complete loop is worth as a voucher of one member to the one before it.

    Who was owed comes to owe the amount, which takes it off. The account is the loop's id, so
    that it is booked once.

    Args:
        loop: the loop.
        debtor: of the entry: the member that is owed.
        creditor: of the entry: the member before it, which owes.

    Raises:
        RecordInvalid: not all have signed, or these two are not neighbours in it.
    """
    record = loop.record
    if not loop.is_complete:
        raise errors.RecordInvalid("not all members have signed this loop")
    if creditor not in record.members or record.after(creditor) != debtor:
        raise errors.RecordInvalid("the debt between these two is not in the loop")
    voucher = voucher_in_all(loop.id, debtor, creditor, record.amount_micro)
    return Signed(voucher, debtor, loop.network, loop.id, loop.raw)


def open_voucher(raw: bytes, half: Half, *, network: bytes | None) -> Signed[Voucher]:
    """Return what a half rests on, its signatures verified: a voucher, or the loop that it names.

    A seal, and a report of a payment, is not signed but by the two halves.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: it is none of these.
    """
    if half.purpose == "seal":
        if raw or half.account is None or half.receipt is None:
            raise errors.RecordInvalid("a seal is not of its form")
        below, parties = half.amount_micro, {"debtor": half.debit, "creditor": half.credit}
        return seal_voucher(half.account, half.receipt, below, **parties)
    if half.purpose == "off_books":
        voucher = Voucher.from_bytes(raw)
        return Signed(voucher, half.debit, network or b"", voucher.id, raw)
    if half.purpose == "loop":
        loop = open_loop(raw, network=network)
        return voucher_of(loop, debtor=half.debit, creditor=half.credit)
    return open_signed(raw, Voucher, network=network, size_max=limits.LEDGER_RECORD_BYTES_MAX)


def next_members(debts: Mapping[bytes, int], path: Sequence[bytes]) -> list[bytes]:
    """Return to whom a node passes an offer on: the origin, then its largest debts.

    Args:
        debts: per creditor of the node, how much may be taken off.
        path: the members before the node, the origin first.
    """
    origin = [path[0]] if len(path) > 1 and path[0] in debts else []
    if len(path) + 1 == LOOP_MEMBERS_MAX:
        return origin
    others = sorted((peer for peer in debts if peer not in path), key=lambda p: (-debts[p], p))
    return origin + others[:LOOP_FAN_MAX]
