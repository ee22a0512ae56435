"""The leases of a node, in both roles, kept in the state database; and the node that has them.

    market/lease/<c|p>/<lease id>    the lease as it was signed
    market/use/<c|p>/<lease id>      its use
    market/account/<c|p>/<peer>      what is owed in all: newest voucher and the booking under way
    market/closed                    there while the node is stopped, where it stopped in order

`c` is this node as the customer, `p` as the provider. Reservations of what runs
at this moment are in memory only: after a restart nothing runs.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import RecordInvalid, SignatureInvalid, SpaceExhausted, StoreDamaged
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.base.units import ceil_div
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed
from xsc.market.account import Account
from xsc.market.lease import LeaseUse, check_grant, half_ms, new_use, room_left, terms_of, worth
from xsc.market.lease_entry import ROLES, LeaseEntry, Role, drawn, own_leases
from xsc.market.ports import Commit, CountsFor, MarketPorts, MarketSettings
from xsc.market.reserved import Reserved
from xsc.market.room import LEASE_UNIT
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.quote import Kind
from xsc.terms.slot import EntitlementKey

T = TypeVar("T")
_VERSION: Final = 1
_LEASE: Final = b"market/lease/"
_USE: Final = b"market/use/"
_ACCOUNT: Final = b"market/account/"
_CLOSED: Final = b"market/closed"
_LETTERS: Final[dict[Role, bytes]] = {"customer": b"c/", "provider": b"p/"}
CUSTOMER: Final = (_LEASE + b"c/", _USE + b"c/", _ACCOUNT + b"c/")
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
        counts_for: as in `MarketPorts`.
    """

    def __init__(
        self,
        state: KeyValue,
        network: bytes,
        own: bytes,
        commit: Commit,
        counts_for: CountsFor,
    ) -> None:
        self._state = state
        self._network = network
        self._node = own
        self._commit = commit
        self._counts_for = counts_for
        self._entries: dict[Role, dict[bytes, LeaseEntry]] = {role: {} for role in ROLES}
        self._by_peer: defaultdict[tuple[Role, bytes], dict[bytes, LeaseEntry]] = defaultdict(dict)
        self._own = {role: own_leases(role, own) for role in ROLES}
        self._accounts: dict[Role, dict[bytes, Account]] = {role: {} for role in ROLES}
        self._touched: dict[tuple[Role, bytes], LeaseEntry | Account] = {}
        """By lease, or by account."""
        self._is_flushed_soon = False
        self.reserved = Reserved()
        """Under the leases as the provider."""
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
        for role in ROLES:
            try:
                self._load(role)
            except (RecordInvalid, SignatureInvalid) as fault:
                raise StoreDamaged(f"a kept lease cannot be read: {fault.message}") from fault

    def _load(self, role: Role) -> None:
        letter = _LETTERS[role]
        for lease_id, raw in self._below(_LEASE + letter):
            use = self._state.get(_USE + letter + lease_id)
            if use is None:
                raise RecordInvalid("a lease has no use")
            entry = self.entry_of(role, raw, 0)
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

    def entry_of(self, role: Role, raw: bytes, now_ms: int) -> LeaseEntry:
        """Return the entry of a signed lease that was not used yet.

        Raises:
            RecordInvalid, SignatureInvalid: it is no lease, or is not what its customer asked for.
        """
        lease = open_signed(raw, Lease, network=self._network)
        request = open_signed(lease.record.request, LeaseRequest, network=self._network)
        terms = terms_of(request.record, lease.record)
        if (lease.author, request.author) != (terms.provider, terms.customer):
            raise SignatureInvalid(
                "a lease is signed by its provider, and its request by its customer"
            )
        refusal = check_grant(request.record, lease.record)
        if refusal is not None:
            raise RecordInvalid(refusal)
        use = new_use(terms, now_ms)
        return LeaseEntry(role, terms, use, raw, request.id, request.record.draw)

    def get(self, role: Role, lease_id: bytes) -> LeaseEntry | None:
        """Return a lease, also one with oneself, or None."""
        return self._own[role].get(lease_id) or self._entries[role].get(lease_id)

    def all(self, role: Role) -> list[LeaseEntry]:
        """Return the leases of a role, in the order in which they came to be known."""
        return list(self._entries[role].values())

    def of(self, role: Role, peer: bytes) -> list[LeaseEntry]:
        """Return the leases of a role with one peer, in the order in which they came."""
        return list(self._by_peer.get((role, peer), {}).values())

    def pairs(self, role: Role) -> Iterator[tuple[LeaseEntry, LeaseEntry]]:
        """Yield each lease that another renews, and that one."""
        for entry in self.all(role):
            if entry.terms.renews is not None:
                old = self.get(role, entry.terms.renews)
                if old is not None:
                    yield old, entry

    def renewing(self, now_ms: int) -> list[tuple[LeaseEntry, LeaseEntry]]:
        """Return the same of this node where bytes are to come, or came as it does not know yet."""
        return [
            (old, new)
            for old, new in self.pairs("customer")
            if old.use.held_bytes
            and new.denial is None
            and not new.is_over(now_ms)
            and room_left(new.terms, new.use)
        ]

    def counts_for(self, entry: LeaseEntry) -> EntitlementKey:
        """Return what a lease counts for in clearings."""
        terms = entry.terms
        return self._counts_for(terms.kind, terms.provider, terms.customer, entry.drawn_key)

    def drawn(
        self,
        role: Role,
        now_ms: int,
        kinds: Collection[Kind] = tuple(LEASE_UNIT),
        *,
        young: bool = False,
    ) -> Counter[EntitlementKey]:
        """Return what leases have of each entitlement: bytes, or fuel steps a minute.

        Args:
            role: of this node in the leases.
            now_ms: the present.
            kinds: of the leases.
            young: leave out what is cleared again: storage is from half-life on.
        """
        found = Counter[EntitlementKey]()
        known: dict[tuple[Kind, bytes, EntitlementKey | None], EntitlementKey] = {}
        for entry in self._entries[role].values():
            terms = entry.terms
            is_old = young and terms.kind == "storage" and now_ms >= half_ms(terms)
            level = drawn(entry, now_ms)
            if level and terms.kind in kinds and not is_old:
                place = (terms.kind, entry.peer, entry.drawn_key)
                if place not in known:
                    known[place] = self.counts_for(entry)
                found[known[place]] += level
        return found

    def drawn_steps(
        self, role: Role, now_ms: int, *, young: bool = False
    ) -> dict[EntitlementKey, int]:
        """Return the same in steps of slots.

        What one customer has of a window is rounded up together: many small needs take no more.
        """
        found: dict[EntitlementKey, int] = {}
        for kind, unit in LEASE_UNIT.items():
            levels = self.drawn(role, now_ms, (kind,), young=young)
            had = Counter[tuple[bytes, bytes, int, bytes]]()
            for key, level in sorted(levels.items(), key=lambda item: (-item[1], item[0])):
                before = had[key[:4]]
                had[key[:4]] += level
                found[key] = ceil_div(before + level, unit) - ceil_div(before, unit)
        return found

    def add(self, entries: list[LeaseEntry]) -> None:
        """Keep new leases: they are on the disk on return, because they are promises."""
        changes: list[Change] = []
        for entry in entries:
            tail = _LETTERS[entry.role] + entry.terms.lease_id
            changes.append((_LEASE + tail, entry.raw))
            changes.append((_USE + tail, write_row(USES, entry.use)))
        if changes:
            self._state.write(changes, sync=True)
        for entry in entries:
            self._know(entry)

    def _know(self, entry: LeaseEntry) -> None:
        self._entries[entry.role][entry.terms.lease_id] = entry
        self.account(entry.role, entry.peer)
        self._by_peer[entry.role, entry.peer][entry.terms.lease_id] = entry
        if entry.role == "provider":
            entry.told = self.reserved.change
            self.reserved.change(entry)

    def _row(self, changed: LeaseEntry | Account) -> Change:
        """Return the row of an account, or of a lease's use: none once it is forgotten."""
        letter = _LETTERS[changed.role]
        if isinstance(changed, Account):
            return _ACCOUNT + letter + changed.peer, write_row(ACCOUNTS, changed)
        lease_id = changed.terms.lease_id
        is_known = self.get(changed.role, lease_id) is changed
        return _USE + letter + lease_id, write_row(USES, changed.use) if is_known else None

    def save(self, *entries: LeaseEntry) -> None:
        """Keep what became of leases, all or none, unsynced."""
        self._state.write([self._row(entry) for entry in entries], sync=False)

    async def sync(self, *changed: LeaseEntry | Account) -> None:
        """Keep what became of leases and of accounts, on the disk on return."""
        await self._commit([self._row(each) for each in changed])
        # What has changed meanwhile can have been written before those rows.
        self.keep(*changed)

    def keep(self, *changed: LeaseEntry | Account) -> None:
        """Keep changes, unsynced, at the end of this turn of the event loop.

        What many small puts do to one lease is written once. Of a lease with oneself nothing is.
        """
        for each in changed:
            key = each.id if isinstance(each, Account) else each.terms.lease_id
            if key not in self._own[each.role]:
                self._touched[each.role, key] = each
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
        lease_id, tail = entry.terms.lease_id, _LETTERS[entry.role] + entry.terms.lease_id
        account = self.account(entry.role, entry.peer)
        closed = account.closed + worth(entry.terms, entry.use.used)
        row = self._row(replace(account, closed=closed))
        self._state.write([(_LEASE + tail, None), (_USE + tail, None), row], sync=False)
        account.closed = closed
        self._touched.pop((entry.role, lease_id), None)
        del self._entries[entry.role][lease_id]
        if entry.role == "provider":
            entry.told = None
            self.reserved.forget(entry)
        del self._by_peer[entry.role, entry.peer][lease_id]


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
