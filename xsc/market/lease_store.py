"""The leases of a node, in both roles, kept in the state database; and the node that has them.

    market/lease/<c|p>/<lease id>    the lease as it was signed
    market/use/<c|p>/<lease id>      its use
    market/asked/<lease id>          a request for a cleared lease that was not answered yet
    market/account/<c|p>/<peer>      what is owed in all: newest voucher and the booking under way
    market/closed                    there while the node is stopped, where it stopped in order

`c` is this node as the customer, `p` as the provider. Reservations of what runs
at this moment are in memory only: after a restart nothing runs.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import RecordInvalid, SignatureInvalid, SpaceExhausted, StoreDamaged
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.base.units import ceil_div
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
from xsc.market.ports import Commit, MarketPorts, MarketSettings, NeedOf
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.quote import KINDS, Kind
from xsc.terms.slot import LEASE_UNIT, EntitlementKey

T = TypeVar("T")
_VERSION: Final = 1
_LEASE: Final = b"market/lease/"
_USE: Final = b"market/use/"
_ASKED: Final = b"market/asked/"
_ACCOUNT: Final = b"market/account/"
_CLOSED: Final = b"market/closed"
_LETTERS: Final[dict[Role, bytes]] = {"customer": b"c/", "provider": b"p/"}
CUSTOMER: Final = (_LEASE + b"c/", _USE + b"c/", _ASKED, _ACCOUNT + b"c/")
"""Where the leases of a node as the customer begin."""
USES: Final = TypeAdapter(LeaseUse)
ACCOUNTS: Final = TypeAdapter(Account)


def write_row(kind: TypeAdapter[T], row: T) -> bytes:
    """Return the bytes of a use or an account."""
    return encode({"v": _VERSION, **kind.dump_python(row)})


def read_row(kind: TypeAdapter[T], raw: bytes, **known: Value) -> T:
    """Return the use or account of its bytes.

    Args:
        kind: USES or ACCOUNTS.
        raw: what `write_row` returned.
        known: what its key says.

    Raises:
        RecordInvalid: it is none.
    """
    value: Any = decode(raw)
    try:
        row = kind.validate_python({**value, **known})
    except (TypeError, ValidationError) as fault:
        raise RecordInvalid(f"a row is wrong: {fault}") from None
    if write_row(kind, row) != raw:
        # A name that is not known hides one that is: a voucher or a booking would be lost.
        raise RecordInvalid("a row is of an unknown version, or has a field that is not known")
    return row


class LeaseStore:
    """All leases by role and id; what changes is written at once, counts of use by `flush`.

    Args:
        state: the store; other tables may live in it.
        network: the network of all leases.
        own: this node.
        commit: writes to `state` and syncs, together with what others commit at the time.
        need_of: as in `MarketPorts`.
    """

    def __init__(
        self, state: KeyValue, network: bytes, own: bytes, commit: Commit, need_of: NeedOf
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
        self._touched: dict[tuple[Role, bytes], LeaseEntry | Account] = {}
        """By lease, or by account."""
        self._is_flushed_soon = False
        self.asked: dict[bytes, Signed[LeaseRequest]] = {}
        """Own requests for cleared leases that were not answered yet, by lease."""
        self._kept_of: dict[bytes, int] = {}
        """By lease of a customer, what is kept free for it."""
        self.kept: Counter[Kind] = Counter()
        """What is kept free for all leases as the provider, until `tidied` sees that they end."""
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
        letter = _LETTERS[role]
        for lease_id, raw in self._below(_LEASE + letter):
            use = self._state.get(_USE + letter + lease_id)
            if use is None:
                raise RecordInvalid("a lease has no use")
            entry = self.entry_of(role, raw)
            entry.use = read_row(USES, use)
            self._know(entry)
        for peer, raw in self._below(_ACCOUNT + letter):
            of = self.account(role, peer)
            known = {"role": role, "provider": of.provider, "customer": of.customer}
            self._accounts[role][peer] = read_row(ACCOUNTS, raw, **known)

    def _below(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        for key, raw in self._state.scan(prefix, prefix_end(prefix)):
            yield key.removeprefix(prefix), raw

    def account(self, role: Role, peer: bytes) -> Account:
        """Return the account with a peer, in which this node has that role."""
        account = self._accounts[role].get(peer)
        if account is None:
            parties = (self._node, peer) if role == "provider" else (peer, self._node)
            account = self._accounts[role][peer] = Account(role, *parties)
        return account

    def accounts(self, role: Role) -> list[Account]:
        """Return the accounts of a role."""
        return list(self._accounts[role].values())

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
        use = new_use(terms, lease.record.level, lease.record.granted_ms)
        return LeaseEntry(role, terms, use, raw, request.id, lease.record.clearing)

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
        """Return what leases have of each entitlement: bytes, or fuel steps a minute.

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
            if asked.record.kind not in kinds:
                continue
            found[key_of(asked.record, asked.record.need or NO_NEED)] += asked.record.level
        return found

    def drawn_steps(
        self, role: Role, now_ms: int, *, young: bool = False
    ) -> dict[EntitlementKey, int]:
        """Return the same in steps of slots.

        What one customer has of a slot is rounded up together: many small needs take no more.
        """
        found: dict[EntitlementKey, int] = {}
        for kind, unit in LEASE_UNIT.items():
            levels = self.drawn(role, now_ms, (kind,), young=young)
            had = Counter[tuple[bytes, bytes, bytes]]()
            for key, level in sorted(levels.items(), key=lambda item: (-item[1], item[0])):
                before = had[key[:3]]
                had[key[:3]] += level
                found[key] = ceil_div(before + level, unit) - ceil_div(before, unit)
        return found

    def add(self, entry: LeaseEntry) -> None:
        """Keep a new lease: it is on the disk on return, because it is a promise."""
        tail = _LETTERS[entry.role] + entry.id
        rows: list[Change] = [(_LEASE + tail, entry.raw), (_USE + tail, write_row(USES, entry.use))]
        if entry.role == "customer":
            rows.append((_ASKED + entry.id, None))
        self._state.write(rows, sync=True)
        if entry.role == "customer":
            self.asked.pop(entry.id, None)
        self._know(entry)

    def renew(self, entry: LeaseEntry, raw: bytes) -> None:
        """Begin the next term of a lease; it is on the disk on return."""
        after = self.entry_of(entry.role, raw)
        use = renewed(entry.role, entry.terms, entry.use, after.terms, after.use.level)
        tail = _LETTERS[entry.role] + entry.id
        self._state.write([(_LEASE + tail, raw), (_USE + tail, write_row(USES, use))], sync=True)
        entry.terms, entry.raw, entry.use = after.terms, raw, use
        entry.request_id, entry.clearing = after.request_id, after.clearing

    def ask(self, request: Signed[LeaseRequest]) -> None:
        """Keep a request for a cleared lease: on the disk before it is sent, as it may be granted.

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
        if entry.role == "provider":
            entry.told = self._recount
            self._recount(entry)

    def _recount(self, entry: LeaseEntry) -> None:
        kept = kept_free(entry)
        self.kept[entry.terms.kind] += kept - self._kept_of.get(entry.id, 0)
        self._kept_of[entry.id] = kept

    def _row(self, changed: LeaseEntry | Account) -> Change:
        """Return the row of an account, or of a lease's use: none once it is forgotten."""
        letter = _LETTERS[changed.role]
        if isinstance(changed, Account):
            return _ACCOUNT + letter + changed.peer, write_row(ACCOUNTS, changed)
        is_known = self.get(changed.role, changed.id) is changed
        return _USE + letter + changed.id, write_row(USES, changed.use) if is_known else None

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
        """Keep changes, unsynced, at the end of this turn of the event loop.

        What many small puts do to one lease is written once. Of a lease with oneself nothing is.
        """
        for each in changed:
            if each.id not in self._own[each.role]:
                self._touched[each.role, each.id] = each
        if self._touched and not self._is_flushed_soon:
            self._is_flushed_soon = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Write what was noted since the last time, unsynced; where the disk is full, later."""
        self._is_flushed_soon = False
        if not self._touched:
            return
        try:
            self._state.write([self._row(each) for each in self._touched.values()], sync=False)
        except SpaceExhausted:
            return  # nothing here is lost: it is written with the next change, or at the end
        self._touched.clear()

    def close(self) -> None:
        """Write what is left, and that nothing was left out."""
        self.flush()
        self._state.write([(_CLOSED, b"")], sync=False)

    def forget(self, entry: LeaseEntry) -> None:
        """Drop a lease that is over; the account keeps what it came to."""
        tail = _LETTERS[entry.role] + entry.id
        account = self.account(entry.role, entry.peer)
        closed = account.closed + entry.use.used
        row = self._row(replace(account, closed=closed))
        self._state.write([(_LEASE + tail, None), (_USE + tail, None), row], sync=False)
        account.closed = closed
        self._touched.pop((entry.role, entry.id), None)
        del self._entries[entry.role][entry.id]
        if entry.role == "provider":
            entry.told = None
            self.kept[entry.terms.kind] -= self._kept_of.pop(entry.id, 0)
        del self._by_peer[entry.role, entry.peer][entry.id]


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
