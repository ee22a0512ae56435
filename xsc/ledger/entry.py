"""The half: what one party of an entry signs, as a link of its own hash chain.

An entry between two nodes has two halves with the same content, one in the
chain of each. The creditor makes the first, the debtor answers with the second,
linked to it. What concerns only its author (a limit, a withdrawal) is a half
without a counterpart.

This module knows the form and how halves are made; what may follow on what is
`xsc.ledger.validation`'s to say. docs/design/ledger.md; vectors in
tests/vectors/ledger.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, model_validator

from xsc.base import errors, limits
from xsc.identity.envelope import Count, Id32, Record, Signed, open_signed
from xsc.terms.voucher import off_books_account

EntryKind = Literal["open", "limit", "post", "void", "seal", "claim"]
Purpose = Literal["leases", "off_books", "loop", "seal"]

GENESIS = b"\0" * 32
"""The `prev` of an author's first half."""
UNIT_CREDIT = 1
"""Micro-credits. Units of capacity are to follow."""
UNIT_NONE = 0
"""Of what moves nothing: a seal names a number."""
UNITS: Final = {"seal": (UNIT_NONE,), "claim": (UNIT_NONE,), "void": (UNIT_NONE, UNIT_CREDIT)}
"""Of the kinds that are not of micro-credits alone."""
BOTH_SIGN: Final = ("post", "seal")
"""The kinds that a peer answers."""


class Half(Record):
    """One party's signed word on an entry.

    `limit` says how much the peer may owe the author whatever the rule says, `open` that it may
    owe again what follows from the rule; `post` moves an amount; `void` withdraws the author's
    entry of that account that has no answer; `seal` puts the
    entries of both parties in an order; `claim` takes entries of earlier incarnations.
    """

    KIND: ClassVar[str] = "entry"

    seq: Count = 0
    """Place in the author's chain, from 0 and without gaps."""
    prev: Id32 = GENESIS
    """Id of the author's half before this one; GENESIS at 0."""
    peer: Id32
    """The other party."""
    link: Id32 | None = None
    """Id of the initiator's half, in the half that answers it."""
    kind: EntryKind
    unit: Annotated[int, Field(ge=0, lt=2**32)] = UNIT_CREDIT
    debit: Id32
    """The node that comes to owe. The peer of the node that starts a seal."""
    credit: Id32
    """The node that is owed. Of a seal, who starts it."""
    amount_micro: Count
    """Of a claim, a number of entries; of a seal, below which number its starter's are sealed."""
    account: Id32 | None = None
    receipt: Id32 | None = None
    """Record id of the debtor's voucher that the entry rests on, of a report that was paid off the
    books, or of a loop; hash of what a seal or a claim is over."""
    created_ms: Count = 0

    @model_validator(mode="after")
    def _form(self) -> Half:
        both = self.kind in BOTH_SIGN
        if self.debit == self.credit:
            raise ValueError("debtor and creditor are the same node")
        if self.peer not in (self.debit, self.credit):
            raise ValueError("the peer is neither debtor nor creditor")
        if self.unit not in UNITS.get(self.kind, (UNIT_CREDIT,)):
            raise ValueError(f"unit {self.unit} is not that of a '{self.kind}'")
        if (self.account is not None) != (both or self.kind == "void"):
            raise ValueError("a 'post', 'seal' or 'void' names an account, no other does")
        if (self.receipt is not None) != (both or self.kind == "claim"):
            raise ValueError("a 'post', 'seal' or 'claim' names what it rests on, no other does")
        if self.link is not None and not both:
            raise ValueError(f"a '{self.kind}' answers nothing")
        # Two that start at once would wait for each other.
        if self.kind == "seal" and self.credit > self.debit:
            raise ValueError("the node of the lower id starts a seal")
        return self

    @property
    def author(self) -> bytes:
        """The party that is not the peer, and that must have signed."""
        return self.credit if self.peer == self.debit else self.debit

    @property
    def moves_micro(self) -> int:
        """What the debtor comes to owe by it."""
        return self.amount_micro if self.unit == UNIT_CREDIT else 0

    @property
    def clears(self) -> bool:
        """Whether it rests on a loop, whose id is its account, too, and not on a voucher."""
        return self.receipt is not None and self.receipt == self.account

    @property
    def purpose(self) -> Purpose:
        """What an entry that both sign is for."""
        if self.kind == "seal":
            return "seal"
        if self.clears:
            return "loop"
        # Who paid off the books is owed that.
        paid = self.account == off_books_account(self.credit, self.debit)
        return "off_books" if paid else "leases"


class EntryRow(Record):
    """What is stored of an entry under the number of the own half."""

    half: bytes
    """The own signed half."""
    other: bytes | None = None
    """The signed half of the peer beside it."""
    voucher: bytes | None = None
    """What is under them; of a claim, which entries it takes."""


class SettledEntry(Record):
    """Both halves of an entry and what is under it: all that a third party needs."""

    half: bytes
    """The initiator's signed half."""
    counter: bytes
    """The counterparty's signed half."""
    voucher: bytes
    """The debtor's signed voucher, the loop, or what the halves alone sign; empty of a seal."""


@contextmanager
def intact(what: str) -> Iterator[None]:
    """Read something of the own store.

    Raises:
        LedgerDamaged: what was read is damaged, and not what a peer said.
    """
    try:
        yield
    except (errors.PeerError, errors.LimitError) as fault:
        raise errors.LedgerDamaged(f"{what} is damaged: {fault.message}") from None


def open_half(raw: bytes, *, network: bytes | None) -> Signed[Half]:
    """Return the half of an envelope, signed by the party that it says speaks.

    Raises:
        TooLarge, RecordInvalid, SignatureInvalid: see `open_signed`.
    """
    signed = open_signed(raw, Half, network=network, size_max=limits.LEDGER_RECORD_BYTES_MAX)
    if signed.author != signed.record.author:
        raise errors.RecordInvalid("this entry is signed by a node that is not its author")
    return signed


def counter_half(half: Signed[Half], **place: bytes | int) -> Half:
    """Return the half with which its peer answers: the same content, at a place of its chain."""
    return half.record.model_copy(update={"peer": half.author, "link": half.id, **place})


def void_half(post: Half, **place: bytes | int) -> Half:
    """Return the author's half that withdraws its own unanswered `post`."""
    return post.model_copy(update={"kind": "void", "receipt": None, **place})
