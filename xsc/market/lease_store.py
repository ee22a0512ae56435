"""The leases of a node, in both roles, kept in the state database; and the node that has them.

    market/lease/<c|p>/<lease id>    the lease as it was signed, and its use
    market/asked/<lease id>          a request, not for now, that was not answered yet
    market/account/<c|p>/<peer>      what is owed in all: newest voucher and the booking under way
    market/closed                    there while the node is stopped, where it stopped in order

`c` is this node as the customer, `p` as the provider. Reservations of what runs
at this moment are in memory only: after a restart nothing runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from xsc.api.ledger import PaidLease
from xsc.base import encoding, keyvalue, units
from xsc.base.errors import RecordInvalid, SignatureInvalid, SpaceExhausted, StoreDamaged
from xsc.base.keyvalue import Commit
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed
from xsc.market.account import Account
from xsc.market.lease import (
    NO_NEED,
    ROLES,
    LeaseEntry,
    LeaseUse,
    Role,
    check_grant,
    drawn,
    is_young,
    kept_free,
    key_of,
    new_use,
    own_leases,
    renewed,
)
from xsc.market.ports import MarketPorts, MarketSettings, NeedOf
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.quote import KINDS, Kind
from xsc.terms.slot import STEP, EntitlementKey
from xsc.terms.voucher import leases_account

T = TypeVar("T")
_VERSION: Final = 1
_LEASE: Final = b"market/lease/"
_ASKED: Final = b"market/asked/"
_ACCOUNT: Final = b"market/account/"
_CLOSED: Final = b"market/closed"
_LETTERS: Final[dict[Role, bytes]] = {"customer": b"c/", "provider": b"p/"}
CUSTOMER: Final = (_LEASE + b"c/", _ASKED, _ACCOUNT + b"c/")
"""Where the leases of a node as the customer begin."""
USES: Final = TypeAdapter(LeaseUse)
ACCOUNTS: Final = TypeAdapter(Account)


def write_row(kind: TypeAdapter[T], row: T) -> bytes:
    """Return the bytes of a use or an account."""
    return encoding.encode({"v": _VERSION, **kind.dump_python(row)})


def read_row(kind: TypeAdapter[T], raw: bytes) -> T:
    """Return the use or account that `write_row` wrote.

    Raises:
        RecordInvalid: it is none.
    """
    value: Any = encoding.decode(raw)
    try:
        row = kind.validate_python(value)
    except (TypeError, ValidationError) as fault:
        raise RecordInvalid(f"a row is wrong: {fault}") from None
    if write_row(kind, row) != raw:
        # A name that is not known hides one that is: a voucher or a booking would be lost.
        raise RecordInvalid("a row is of an unknown version, or has a field that is not known")
    return row


def _lease_row(entry: LeaseEntry) -> keyvalue.Change:
    row = encoding.encode([entry.raw, write_row(USES, entry.use)])
    return _LEASE + _LETTERS[entry.role] + entry.id, row


def _account_row(account: Account) -> keyvalue.Change:
    return _ACCOUNT + _LETTERS[account.role] + account.peer, write_row(ACCOUNTS, account)


class LeaseStore:
    """All leases by role and id; what changes is written at once.

    Args:
        state: the store; other tables may live in it.
        network: the network of all leases.
        own: this node.
        commit: writes to `state` and syncs, together with what others commit at the time.
        need_of: as in `MarketPorts`.
    """

    def __init__(
        self, state: keyvalue.KeyValue, network: bytes, own: bytes, commit: Commit, need_of: NeedOf
    ) -> None:
        self._state = state
        self._network = network
        self._node = own
        self._commit = commit
        self._need_of = need_of
        self._entries: dict[Role, dict[bytes, LeaseEntry]] = {role: {} for role in ROLES}
        self._by_peer: defaultdict[tuple[Role, bytes], dict[bytes, LeaseEntry]] = defaultdict(dict)
        self._own = {role: own_leases(role, own) for role in ROLES}
        self._accounts: dict[Role, dict[bytes, Account]] = {role: {} for role in ROLES}
        self.asked: dict[bytes, Signed[LeaseRequest]] = {}
        """Own requests for cleared leases, and renewals, that were not answered yet, by lease."""
        self.complete = False
        """Whether what was loaded is all that there was: the node before stopped in order."""

    def load(self) -> None:
        """Read what was kept.

        Raises:
            StoreDamaged: something kept is not what was written.
        """
        self.complete = self._state.get(_CLOSED) is not None
        if self.complete:
            # Before anything else is written: a power loss must never leave it there.
            self._state.write([(_CLOSED, None)], sync=True)
        try:
            for role in ROLES:
                self._load(role)
            for lease_id, raw in self._below(_ASKED):
                self.asked[lease_id] = open_signed(raw, LeaseRequest, network=self._network)
        except (RecordInvalid, SignatureInvalid) as fault:
            raise StoreDamaged(f"a kept lease cannot be read: {fault.message}") from fault

    def _load(self, role: Role) -> None:
        for _, row in self._below(_LEASE + _LETTERS[role]):
            match encoding.decode(row):
                case [bytes() as raw, bytes() as use]:
                    entry = self.entry_of(role, raw)
                    granted, entry.use = entry.use.level, read_row(USES, use)
                    if role == "customer" and entry.use.level < granted:
                        entry.less = entry.use.level, 0  # Its provider may not have heard yet.
                    self._know(entry)
                case _:
                    raise RecordInvalid("a row is no lease and its use")
        for peer, row in self._below(_ACCOUNT + _LETTERS[role]):
            self._accounts[role][peer] = read_row(ACCOUNTS, row)

    def _below(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, raw in self._state.scan(prefix, keyvalue.prefix_end(prefix)):
            yield key.removeprefix(prefix), raw

    def account(self, role: Role, peer: bytes) -> Account:
        """Return the account with a peer, in which this node has that role."""
        account = self._accounts[role].get(peer)
        if account is None:
            parties = (self._node, peer) if role == "provider" else (peer, self._node)
            account = self._accounts[role][peer] = Account(role, *parties)
        return account

    def accounts(self, *roles: Role) -> list[Account]:
        """Return the accounts of roles, or all."""
        return [each for role in roles or ROLES for each in self._accounts[role].values()]

    def entry_of(self, role: Role, raw: bytes) -> LeaseEntry:
        """Return the entry of a signed lease that was not used yet.

        Raises:
            RecordInvalid, SignatureInvalid: it is no lease, or is not what its customer asked for.
        """
        lease = open_signed(raw, Lease, network=self._network)
        request = open_signed(lease.record.request, LeaseRequest, network=self._network)
        terms = request.record
        if (lease.author, request.author) != (terms.provider, terms.customer):
            raise SignatureInvalid(
                "a lease is signed by its provider, and its request by its customer"
            )
        refusal = check_grant(terms, lease.record)
        if refusal is not None:
            raise RecordInvalid(refusal)
        use = new_use(terms, lease.record.level)
        return LeaseEntry(role, terms, use, raw, lease.record.clearing)

    def get(self, role: Role, lease_id: bytes) -> LeaseEntry | None:
        """Return a lease, also one with oneself, or None."""
        return self._own[role].get(lease_id) or self._entries[role].get(lease_id)

    def all(self, role: Role) -> list[LeaseEntry]:
        """Return the leases of a role, in the order in which they came to be known."""
        return list(self._entries[role].values())

    def of(self, role: Role, peer: bytes) -> list[LeaseEntry]:
        """Return the leases of a role with one peer, in the order in which they came."""
        return list(self._by_peer.get((role, peer), {}).values())

    def key(self, entry: LeaseEntry) -> EntitlementKey:
        """Return what a lease counts for in clearings."""
        terms = entry.terms
        return key_of(terms, self._need_of(terms.customer, terms.kind, terms.need))

    def drawn(
        self, role: Role, now_ms: int, kinds: Sequence[Kind] = KINDS, *, young: bool = False
    ) -> Counter[EntitlementKey]:
        """Return what leases have of each entitlement: bytes, or fuel steps a second.

        Args:
            role: of this node in the leases.
            now_ms: the present.
            kinds: of the leases.
            young: leave out what is cleared again: storage is from half-life on.
        """
        found = Counter[EntitlementKey]()
        for entry in self._entries[role].values():
            level = drawn(entry, now_ms) if entry.terms.kind in kinds else 0
            if level and not (young and not is_young(entry.terms, now_ms)):
                found[self.key(entry)] += level
        for asked in self.asked.values() if role == "customer" else ():
            if asked.record.kind not in kinds or asked.record.renews:
                continue
            found[key_of(asked.record, asked.record.need or NO_NEED)] += asked.record.level
        return found

    def price(self, role: Role, lease_id: bytes) -> int:
        """Return the price under a lease; 0 where it is not known."""
        entry = self.get(role, lease_id)
        return 0 if entry is None else entry.terms.price

    def drawn_steps(
        self, role: Role, now_ms: int, *, young: bool = False
    ) -> dict[EntitlementKey, int]:
        """Return the same in steps of slots.

        What one customer has of a slot is rounded up together: many small needs take no more.
        """
        found: dict[EntitlementKey, int] = {}
        for kind, unit in STEP.items():
            levels = self.drawn(role, now_ms, (kind,), young=young)
            had = Counter[tuple[bytes, bytes, bytes]]()
            for key, level in sorted(levels.items(), key=lambda item: (-item[1], item[0])):
                before = had[key[:3]]
                had[key[:3]] += level
                found[key] = units.ceil_div(before + level, unit) - units.ceil_div(before, unit)
        return found

    def add(self, entry: LeaseEntry) -> LeaseEntry:
        """Keep a new lease, or begin the next term of one, and return it.

        It is on the disk on return, because it is a promise.
        """
        known = self.get(entry.role, entry.id)
        if known is not None:
            entry.use = renewed(entry.role, known.terms, known.use, entry.terms, entry.use.level)
        rows = [_lease_row(entry)]
        if entry.role == "customer":
            rows.append((_ASKED + entry.id, None))
        self._state.write(rows, sync=True)
        if entry.role == "customer":
            self.asked.pop(entry.id, None)
        if known is None:
            self._know(entry)
            return entry
        known.terms, known.raw, known.use = entry.terms, entry.raw, entry.use
        known.clearing = entry.clearing
        return known

    def ask(self, request: Signed[LeaseRequest]) -> None:
        """Keep a request, not for now: on the disk before it is sent, as it may be granted.

        It counts for its need until its provider has answered, or can grant it no more.
        """
        self._state.write([(_ASKED + request.record.lease_id, request.raw)], sync=True)
        self.asked[request.record.lease_id] = request

    def refused(self, lease_id: bytes) -> None:
        """Forget a request that is not granted."""
        if self.asked.pop(lease_id, None) is not None:
            self._state.write([(_ASKED + lease_id, None)], sync=False)

    def _know(self, entry: LeaseEntry) -> None:
        self._entries[entry.role][entry.id] = entry
        self.account(entry.role, entry.peer)
        self._by_peer[entry.role, entry.peer][entry.id] = entry

    def kept(self, kind: Kind) -> int:
        """Return what is kept free for customers, until `tidied` sees that a lease is over."""
        entries = self._entries["provider"].values()
        return sum(kept_free(e) for e in entries if e.use.level and e.terms.kind == kind)

    def _row(self, changed: LeaseEntry | Account) -> keyvalue.Change:
        """Return the row of an account, or of a lease: none once it is forgotten."""
        if isinstance(changed, Account):
            return _account_row(changed)
        key, row = _lease_row(changed)
        return key, row if self.get(changed.role, changed.id) is changed else None

    def save(self, *entries: LeaseEntry) -> None:
        """Keep what became of leases: on the disk on return, as others may have their room."""
        if entries:
            self._state.write([self._row(entry) for entry in entries], sync=True)

    async def sync(self, *changed: LeaseEntry | Account) -> None:
        """Keep what became of leases and of accounts, on the disk on return."""
        try:
            await self._commit([self._row(each) for each in changed])
        finally:
            # What has changed meanwhile can have been written before those rows, or they were not.
            self.keep(*changed)

    def keep(self, *changed: LeaseEntry | Account) -> None:
        """Keep changes, unsynced; of a lease with oneself nothing is.

        Where the disk is full, they are written with the next count, or at the end.
        """
        rows = [self._row(each) for each in changed if each.id not in self._own[each.role]]
        with suppress(SpaceExhausted):
            self._state.write(rows, sync=False)

    def close(self) -> None:
        """Write everything as it is, and that nothing was left out and no count is in doubt."""
        rows = [self._row(entry) for role in ROLES for entry in self.all(role)]
        rows += [_account_row(account) for account in self.accounts()]
        if not any(entry.unnamed_bytes for entry in self.all("customer")):
            rows.append((_CLOSED, b""))
        self._state.write(rows, sync=False)

    def forget(self, entry: LeaseEntry) -> None:
        """Drop a lease that is over; the account keeps what it came to."""
        account, (key, _) = self.account(entry.role, entry.peer), _lease_row(entry)
        closed, stored = account.closed + entry.use.used, account.stored + entry.use.stored
        row = _account_row(replace(account, closed=closed, stored=stored))
        self._state.write([(key, None), row], sync=False)
        account.closed, account.stored = closed, stored
        del self._entries[entry.role][entry.id]
        del self._by_peer[entry.role, entry.peer][entry.id]


def used_leases(store: LeaseStore, peer: bytes, account: bytes) -> list[PaidLease]:
    """Return the leases with a peer that an account came to something for, and are known."""
    return [
        PaidLease(lease_id=each.id, kind=each.terms.kind, price_micro=each.terms.price)
        for role in ROLES
        for each in store.of(role, peer)
        if each.use.used and leases_account(each.terms.provider, each.terms.customer) == account
    ]


class MarketNode:
    """This node on the market: who it is, what it needs of others, and its leases."""

    def __init__(
        self, context: Context, ports: MarketPorts, settings: MarketSettings, store: LeaseStore
    ) -> None:
        self.id = context.key.node_id
        self.key = context.key
        self.network = context.network
        self.clock = context.clock
        self.entropy = context.entropy
        self.caller = context.caller
        self.log = context.log
        self.ports = ports
        self.settings = settings
        self.store = store


class MarketPart:
    """A part of the market, with what all of them use of the node at hand."""

    def __init__(self, node: MarketNode) -> None:
        self._node = node
        self._clock = node.clock
        self._store = node.store
        self._ports = node.ports
