"""The ledger: balances, entries, verification, settling, limits."""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

from annotated_types import Ge, Le, MaxLen

from xsc.api.endpoint import Id, Key, Model, NamedPeer, Nothing, OfPeer, get, listing, post
from xsc.api.market import MONTH_MS

ENTRIES_MAX = 1_000
"""Entries of one answer, which is some 400 KB then."""


class Accounts(Model):
    """The accounts with all peers."""

    heard: bool = False
    """Say of the limits that peers set what they said last, and ask nobody."""


class LimitSet(OfPeer):
    """What a peer may owe now."""

    limit_micro: int
    credit_left_micro: int
    shared_through: str | None


class Balance(LimitSet):
    """What this node and one peer owe one another."""

    balance_micro: int
    """Positive where the peer owes."""
    unproven_micro: int
    clearing_micro: int
    """By how much loops that all have signed will change the balance once they are booked."""
    left_micro: int
    """What is left of its credit beside what its leases may come to."""
    own_limit_micro: int | None
    """The limit that the peer sets for this node; null if the peer does not say."""
    own_left_micro: int | None
    paid_micro: int
    heard_paid_micro: int
    entries: int
    says: str
    """Who owes whom, in words."""


class SharedCredit(Model):
    """One credit that several peers share."""

    through: str
    name: str
    limit_micro: int
    left_micro: int
    peers: list[NamedPeer]


class Balances(Model):
    """What this node and each peer owe one another."""

    balances: list[Balance]
    shared: list[SharedCredit]
    total_micro: int


class Page(Model):
    """So many entries, the newest first; of one peer, or those before one."""

    limit: Annotated[int, Ge(1), Le(ENTRIES_MAX)] = 50
    before: Annotated[int, Ge(0), Le(2**63 - 1)] | None = None
    peer: Annotated[str, MaxLen(256)] | None = None


EntryState = Literal["settled", "open", "void", "noted", "covered"]
"""`open` has no answer yet, `void` was withdrawn, `noted` needs no answer. `claim` is of an
incarnation before and was shown late; `covered` likewise, and counts nothing, because what
its debtor promised is booked already."""


class Entry(OfPeer):
    """One entry as this node's ledger shows it."""

    seq: int
    kind: str
    amount_micro: int
    direction: Literal["in", "out", "-"]
    """in: the peer comes to owe this node; out: this node comes to owe the peer."""
    account: Key | None
    created_ms: int
    entry_id: Key
    """The same at both parties."""
    state: EntryState


class Entries(Model):
    """Entries, the newest first, and whether there are older ones."""

    entries: list[Entry]
    more: bool


class Booked(Model):
    """What was booked within the last so long, from the beginning of a day (UTC)."""

    within_ms: Annotated[int, Ge(1), Le(2**53)] = MONTH_MS


class Flow(OfPeer):
    """What was booked with one peer: what both have signed, by the date of this node's half.

    What is open, void or covered does not count. What was paid off the books is apart.
    """

    earned_micro: int = 0
    """What the peer came to owe this node."""
    spent_micro: int = 0
    """What this node came to owe the peer."""
    received_micro: int = 0
    """What the peer paid off the books."""
    paid_micro: int = 0
    """What this node paid off the books."""
    cleared_micro: int = 0
    """What loops took off what the peer owed this node."""
    cleared_own_micro: int = 0
    """What loops took off what this node owed the peer."""


class Month(Model):
    """A month, such as 2026-11, in UTC."""

    month: Annotated[str, MaxLen(16)] | None = None
    """The present one if it is left out."""


class PaidLease(Model):
    """A lease between debtor and creditor that was used by the time of an entry."""

    lease_id: Key
    kind: str
    price_micro: int
    """A GiB and hour, or a Gfuel."""


class Paid(Model):
    """One entry that both have signed and that counts."""

    seq: int
    entry_id: Key
    created_ms: int
    debtor: Key
    debtor_name: str
    creditor: Key
    creditor_name: str
    amount_micro: int
    off_books: bool
    """Whether the creditor paid the debtor outside of XSC, and is owed that."""
    loop: bool
    """Whether a loop took it off what the creditor owed."""
    leases: list[PaidLease]
    """What this node noted when it was booked; empty of one that came by a recovery."""
    says: str


class Standing(Model):
    """What a peer owed this node at the beginning and at the end; below zero, was owed."""

    peer: Key
    name: str
    opening_micro: int
    closing_micro: int
    says: str
    """The latter in words."""


class Statement(Model):
    """All that was booked within a month, the oldest first."""

    node: Key
    name: str
    from_ms: int
    until_ms: int
    """The first moment after it."""
    payments: list[Paid]
    balances: list[Standing]


ExportFormat = Literal["beancount", "csv", "json"]
EXPORT_FORMATS: Final[tuple[ExportFormat, ...]] = get_args(ExportFormat)


class Export(Model):
    """All that was booked, or within a month, as a file for other programs."""

    format: ExportFormat
    month: Annotated[str, MaxLen(16)] | None = None


class Verified(Model):
    """What a replay of the ledger found."""

    ok: bool = True
    entries: int
    settled: int
    peers: int
    forks: int
    """Proofs that a peer keeps two ledgers."""
    head: Key
    text: str


class Settled(OfPeer):
    """What was booked with one peer."""

    role: Literal["customer", "provider"]
    amount_micro: int


class Settlement(Model):
    """What was booked, with how many peers something is still owed, and how much in all."""

    settled: list[Settled]
    pending: int
    pending_micro: int
    """Not due yet: no count that both have signed covers it. Storage is paid once it is proven."""


class Limit(Model):
    """What a peer may owe this node at most."""

    peer: Annotated[str, MaxLen(256)]
    limit_micro: Annotated[int, Ge(0), Le(2**62)] | None = None
    """Null ends what was set: the formula holds again."""


class PeerLimit(OfPeer):
    """What a peer may owe this node, and what that is made of."""

    known: Literal["direct", "introduced", "stranger", "barred"]
    shared_through: str | None
    """The introducer whose peers share one credit."""
    starter_micro: int
    mutual_ppm: int
    recognised_micro: int
    """What mutual recognition adds."""
    repaid_micro: int
    """What it repaid within 90 days."""
    repaid_credit_micro: int
    """What that adds."""
    max_micro: int
    """The most that these come to."""
    set_micro: int | None
    """What the operator set instead."""
    limit_micro: int
    owed_micro: int
    """What it owes at most, with what it has not answered."""


class Payment(Model):
    """What was paid off the books."""

    peer: Annotated[str, MaxLen(256)]
    amount_micro: Annotated[int, Ge(0), Le(2**62)]


class PaymentHeard(OfPeer):
    """What became of it."""

    amount_micro: int
    state: Literal["booked", "waits", "withdrawn"]
    heard_paid_micro: int
    balance_micro: int


class Loop(Model):
    """Debts that go around, each member's to the next and the last one's to the first."""

    members: list[NamedPeer]
    amount_micro: int
    """What comes off each debt."""
    state: Literal["booked", "unbooked", "unsigned"]
    """unbooked: all have signed, but a neighbour of this node has not booked it yet. unsigned: a
    member has not signed yet; until it does, the amount is in no other loop."""
    waits_for: list[NamedPeer]


class Loops(Model):
    """The loops that were found now, and those that wait."""

    loops: list[Loop]
    silent: list[NamedPeer]
    """Peers with debts that do not answer: no loop through them could be looked for."""


class CubesAsked(Model):
    """The cubes with all peers, or with one."""

    peer: Annotated[str, MaxLen(256)] | None = None
    compare: bool = False
    """Ask the peers for theirs, too."""


class CubeLevel(Model):
    """One cube of a level: three faces of nine cells."""

    level: int
    """At 1 a cell is an entry, above it is a cube of the level below."""
    index: int
    full: int
    """Cells from the first one on; of 27."""
    differs: int | None
    """The cell in which the entry is that differs."""


Compared = Literal["same", "differs", "apart", "silent", "wrong", "-"]


class Cubes(OfPeer):
    """What is sealed of the entries with one peer."""

    sealed: int
    unsealed: int
    """Entries that wait for the next seal."""
    levels: list[CubeLevel]
    """The cubes that are being filled, or those of the entry that differs; the highest first."""
    compared: Compared
    """differs: the peer has another entry in the place of `entry_id`. apart: one of both has begun
    a new incarnation, of which the other was not told. silent: it did not answer. wrong: its
    answers contradict each other, or it refused. -: it was not asked."""
    shared: int | None
    """Entries that were compared."""
    entry_id: Key | None
    """The own one that the peer has otherwise, the first of all."""
    created_ms: int | None
    """Of its own half."""


class Cosigner(Model):
    """Who is to co-sign a checkpoint."""

    id: Key | None
    """Null of one that this node does not know any more."""
    name: str
    signed: bool


class Checkpoint(Model):
    """How long the own chain is and the root over it, signed together with others."""

    size: int
    """Halves of the present incarnation; 0 of an empty chain, which is not signed."""
    root: Key | None
    cosigners: list[Cosigner]
    """None where this node recognises fewer than four peers: then each pair checks for itself."""
    needed: int
    complete: bool
    """Whether enough have signed it."""
    text: str
    """The signed note."""


class Pardon(Model):
    """Whose fork is held against it no more."""

    peer: Annotated[str, MaxLen(256)]


class Pardoned(OfPeer):
    """What was pardoned."""

    through_seq: int
    """A fork at a later number bars it again."""


BALANCE = get("/v1/ledger/balance", Accounts, Balances, "Show what each owes.")
LOG = get("/v1/ledger/log", Page, Entries, "List entries, the newest first.")
FLOWS = listing("/v1/ledger/flows", Booked, Flow, "Sum up what was earned and spent by peer.")
STATEMENT = get("/v1/ledger/statement", Month, Statement, "Show what was booked in a month.")
EXPORT = get("/v1/ledger/export", Export, bytes, "Return what was booked as a file.", gives="bytes")
VERIFY = get("/v1/ledger/verify", Nothing, Verified, "Replay the ledger.")
ENTRY = get("/v1/ledger/entry/{id}", Id, bytes, "Return one settled entry.", gives="cbor")
PASSPORT = get("/v1/ledger/passport/{id}", Id, bytes, "Return a passport.", gives="cbor")
LIMIT = post("/v1/ledger/limit", Limit, LimitSet, "Set what a peer may owe.")
LIMITS = listing("/v1/ledger/limits", Nothing, PeerLimit, "Show what each limit is made of.")
SETTLE = post("/v1/ledger/settle", Nothing, Settlement, "Settle now what is owed.")
CUBES = listing("/v1/ledger/cubes", CubesAsked, Cubes, "Show what is sealed with each peer.")
CLEAR = post("/v1/ledger/clear", Nothing, Loops, "Take off debts that go around.")
CHECKPOINT = post(
    "/v1/ledger/checkpoint", Nothing, Checkpoint, "Sign how the ledger is, and have that co-signed."
)
PARDON = post("/v1/ledger/pardon", Pardon, Pardoned, "Hold a fork against its author no more.")
OFF_BOOKS = post("/v1/ledger/off-books", Payment, PaymentHeard, "Report a payment outside of XSC.")
