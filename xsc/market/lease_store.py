"""The leases of a node, in both roles, kept in the state database.

    market/lease/<c|p>/<lease id>    the signed lease, whole, and its failure domain
    market/use/<c|p>/<lease id>      its use
    market/denial/c/<lease id>       the provider's signed count, in which the lease is not, or over
    market/account/<c|p>/<peer>      what is owed in all: newest voucher and the booking under way
    market/closed                    there while the node is stopped, where it stopped in order

`c` is this node as the customer, `p` as the provider. Reservations of what runs
at this moment are in memory only: after a restart nothing runs.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import RecordInvalid, SpaceExhausted, StoreDamaged
from xsc.base.fields import take_bool, take_bytes, take_int, take_map, take_opt_bytes
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.base.units import ceil_div
from xsc.identity.envelope import open_signed
from xsc.market.account import Account, Booking
from xsc.market.keeping import room_left
from xsc.market.lease import LeaseUse, half_ms, new_use, terms_of, worth
from xsc.market.lease_entry import LeaseEntry, Role, drawn
from xsc.market.own import own_leases
from xsc.market.ports import Commit, CountsFor
from xsc.market.reserved import Reserved
from xsc.market.room import LEASE_UNIT
from xsc.terms.count import number_of, wide
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.quote import Kind
from xsc.terms.slot import EntitlementKey

_VERSION: Final = 1
_LEASE: Final = b"market/lease/"
_USE: Final = b"market/use/"
_DENIAL: Final = b"market/denial/c/"
_CLOSED: Final = b"market/closed"
_LETTERS: Final[dict[Role, bytes]] = {"customer": b"c/", "provider": b"p/"}
_ACCOUNT: Final = b"market/account/"
CUSTOMER: Final = (_LEASE + b"c/", _USE + b"c/", _DENIAL, _ACCOUNT + b"c/")
"""Where the leases of a node as the customer begin."""


def write_use(use: LeaseUse) -> bytes:
    """Return the bytes of a lease's use."""
    return encode({"v": _VERSION, **asdict(use), "used": wide(use.used)})


def read_use(raw: bytes) -> LeaseUse:
    """Return a lease's use.

    Raises:
        RecordInvalid: it is none.
    """
    value = _opened(raw)
    use = LeaseUse(
        touched_ms=take_int(value, "touched_ms"),
        held_bytes=take_int(value, "held_bytes"),
        level=take_int(value, "level"),
        used=number_of(take_bytes(value, "used")),
        counted_ms=take_int(value, "counted_ms"),
        minute=take_int(value, "minute"),
        spent=take_int(value, "spent"),
        given_back=take_bool(value, "given_back"),
        lapsed=take_bool(value, "lapsed"),
        known=take_bool(value, "known"),
    )
    if write_use(use) != raw:
        raise RecordInvalid("the use of a lease has a field that is not known")
    return use


_KEPT_OF_ACCOUNT: Final = (
    "number",
    "signed_micro",
    "voucher",
    "count",
    "settled_micro",
    "refusals",
    "agreed_ms",
    "disputed",
)


def write_account(account: Account) -> bytes:
    """Return the bytes of an account."""
    kept: dict[str, Value] = {name: getattr(account, name) for name in _KEPT_OF_ACCOUNT}
    booking: Value = None if account.booking is None else dict(asdict(account.booking))
    return encode({"v": _VERSION, "closed": wide(account.closed), "booking": booking, **kept})


def read_account(account: Account, raw: bytes) -> None:
    """Fill an account in from its bytes.

    Raises:
        RecordInvalid: it is none.
    """
    value = _opened(raw)
    account.closed = number_of(take_bytes(value, "closed"))
    account.number, account.refusals = take_int(value, "number"), take_int(value, "refusals")
    account.signed_micro = take_int(value, "signed_micro")
    account.agreed_ms = take_int(value, "agreed_ms")
    account.settled_micro = take_int(value, "settled_micro")
    account.voucher = take_opt_bytes(value, "voucher")
    account.count = take_opt_bytes(value, "count")
    account.disputed = take_opt_bytes(value, "disputed")
    if value.get("booking") is not None:
        under_way = take_map(value, "booking")
        account.booking = Booking(
            take_int(under_way, "number"),
            take_int(under_way, "attempt"),
            take_int(under_way, "amount_micro"),
            take_bytes(under_way, "voucher"),
        )
    if write_account(account) != raw:
        # A name that is not known hides one that is: a voucher or a booking would be lost.
        raise RecordInvalid("an account has a field that is not known")


def _opened(raw: bytes) -> dict[str, Value]:
    value = decode(raw)
    if not isinstance(value, dict) or value.get("v") != _VERSION:
        raise RecordInvalid("it is of an unknown version")
    return value


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
        self._entries: dict[Role, dict[bytes, LeaseEntry]] = {"customer": {}, "provider": {}}
        self._by_peer: defaultdict[tuple[Role, bytes], dict[bytes, LeaseEntry]] = defaultdict(dict)
        self._accounts: dict[tuple[Role, bytes], Account] = {}
        self._touched: dict[bytes, LeaseEntry] = {}
        self._is_flushed_soon = False
        self._counts_for = counts_for
        self._own: dict[Role, dict[bytes, LeaseEntry]] = {
            "customer": own_leases("customer", own),
            "provider": own_leases("provider", own),
        }
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
        for role, letter in _LETTERS.items():
            prefix = _LEASE + letter
            for key, value in self._state.scan(prefix, prefix_end(prefix)):
                lease_id = key.removeprefix(prefix)
                try:
                    tail = letter + lease_id
                    entry = self._read(role, value, self._state.get(_USE + tail))
                    if role == "customer":
                        entry.denial = self._state.get(_DENIAL + lease_id)
                except RecordInvalid as fault:
                    raise StoreDamaged(f"a kept lease cannot be read: {fault.message}") from fault
                self._know(entry)
            prefix = _ACCOUNT + letter
            for key, value in self._state.scan(prefix, prefix_end(prefix)):
                try:
                    read_account(self.account(role, key.removeprefix(prefix)), value)
                except RecordInvalid as fault:
                    raise StoreDamaged(f"an account cannot be read: {fault.message}") from fault

    def _read(self, role: Role, kept: bytes, kept_use: bytes | None) -> LeaseEntry:
        value = _opened(kept)
        if kept_use is None:
            raise RecordInvalid("a lease has no use")
        entry = self.entry_of(role, take_bytes(value, "lease"), 0, take_bytes(value, "domain"))
        entry.use = read_use(kept_use)
        return entry

    def account(self, role: Role, peer: bytes) -> Account:
        """Return the account with a peer, in which this node has that role."""
        account = self._accounts.get((role, peer))
        if account is None:
            parties = (self._node, peer) if role == "provider" else (peer, self._node)
            account = Account(role, *parties)
            self._accounts[role, peer] = account
        return account

    def accounts(self, role: Role) -> Iterator[Account]:
        """Yield the accounts of a role."""
        yield from [account for account in self._accounts.values() if account.role == role]

    def entry_of(self, role: Role, raw: bytes, now_ms: int, domain: bytes = b"") -> LeaseEntry:
        """Return the entry of a signed lease that was not used yet.

        Raises:
            RecordInvalid, SignatureInvalid: it is no lease.
        """
        lease = open_signed(raw, Lease, network=self._network)
        request = open_signed(lease.record.request, LeaseRequest, network=self._network)
        terms = terms_of(request.record, lease.record.quantity)
        entry = LeaseEntry(
            role,
            terms,
            new_use(terms, now_ms),
            raw,
            request.id,
            domain,
            request.record.draw,
        )
        if not terms.cleared:
            # Its room lapses by two clocks, and what was noted of a lease that was kept is gone.
            entry.changed(terms.quantity)
        return entry

    def get(self, role: Role, lease_id: bytes) -> LeaseEntry | None:
        """Return a lease, also one with oneself, or None."""
        return self._own[role].get(lease_id) or self._entries[role].get(lease_id)

    def all(self, role: Role) -> Iterator[LeaseEntry]:
        """Yield the leases of a role, in the order in which they came to be known."""
        yield from list(self._entries[role].values())

    def both(self) -> Iterator[LeaseEntry]:
        """Yield the leases of both roles, those as the customer first."""
        yield from self.all("customer")
        yield from self.all("provider")

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

    def find(self, lease_id: bytes) -> Iterator[LeaseEntry]:
        """Yield the leases of that id, as the customer first; at most one in each role."""
        for leases in self._entries.values():
            if lease_id in leases:
                yield leases[lease_id]

    def of(self, role: Role, peer: bytes) -> Iterator[LeaseEntry]:
        """Yield the leases of a role with one peer, in the order in which they came to be known."""
        yield from list(self._by_peer.get((role, peer), {}).values())

    def _know(self, entry: LeaseEntry) -> None:
        self._entries[entry.role][entry.terms.lease_id] = entry
        self.account(entry.role, entry.peer)
        self._by_peer[entry.role, entry.peer][entry.terms.lease_id] = entry
        if entry.role == "provider":
            entry.told = self.reserved.change
            self.reserved.change(entry)

    def drawn(self, role: Role, now_ms: int, *, young: bool = False) -> dict[EntitlementKey, int]:
        """Return what leases have of each entitlement: bytes, or fuel steps a minute.

        A lease that its provider signed not to know has nothing.

        Args:
            role: of this node in the leases.
            now_ms: the present.
            young: leave out what is cleared again: storage is from half-life on.
        """
        found: dict[EntitlementKey, int] = {}
        for levels in self._levels(role, now_ms, young=young).values():
            found |= levels
        return found

    def drawn_steps(
        self, role: Role, now_ms: int, *, young: bool = False
    ) -> dict[EntitlementKey, int]:
        """Return the same in steps of slots.

        What one customer has of a window is rounded up together: many small needs take no more.
        """
        found: dict[EntitlementKey, int] = {}
        for kind, levels in self._levels(role, now_ms, young=young).items():
            had = Counter[tuple[bytes, bytes, int, bytes]]()
            for key, level in sorted(levels.items(), key=lambda item: (-item[1], item[0])):
                customer = had[key[:4]]
                had[key[:4]] += level
                unit = LEASE_UNIT[kind]
                found[key] = ceil_div(customer + level, unit) - ceil_div(customer, unit)
        return found

    def counts_for(self, entry: LeaseEntry) -> EntitlementKey:
        """Return what a lease counts for in clearings."""
        terms = entry.terms
        return self._counts_for(terms.kind, terms.provider, terms.customer, entry.drawn_key)

    def _levels(
        self, role: Role, now_ms: int, *, young: bool
    ) -> dict[Kind, Counter[EntitlementKey]]:
        found: dict[Kind, Counter[EntitlementKey]] = {"storage": Counter(), "compute": Counter()}
        known: dict[tuple[bytes, EntitlementKey | None], EntitlementKey] = {}
        for entry in self._entries[role].values():
            terms = entry.terms
            is_old = terms.kind == "storage" and now_ms >= half_ms(terms)
            if entry.denial is not None or (young and is_old):
                continue
            level = drawn(entry, now_ms)
            if level:
                place = (entry.peer, entry.drawn_key)
                if place not in known:
                    known[place] = self.counts_for(entry)
                found[terms.kind][known[place]] += level
        return found

    def add(self, entries: list[LeaseEntry]) -> None:
        """Keep new leases: they are on the disk on return, because they are promises."""
        changes: list[Change] = []
        for entry in entries:
            tail = _LETTERS[entry.role] + entry.terms.lease_id
            row: Value = {"v": _VERSION, "lease": entry.raw, "domain": entry.domain}
            changes.append((_LEASE + tail, encode(row)))
            changes.append((_USE + tail, write_use(entry.use)))
        if changes:
            self._state.write(changes, sync=True)
        for entry in entries:
            self._know(entry)

    def save(self, *entries: LeaseEntry) -> None:
        """Keep what became of leases, all or none, unsynced."""
        self._state.write([self.use_row(entry) for entry in entries], sync=False)

    @staticmethod
    def use_row(entry: LeaseEntry) -> Change:
        """Return the row that keeps what became of a lease so far."""
        return _USE + _LETTERS[entry.role] + entry.terms.lease_id, write_use(entry.use)

    async def sync(self, *entries: LeaseEntry, account: Account | None = None) -> None:
        """Keep what became of leases, and an account, on the disk on return."""
        changes = [self.use_row(entry) for entry in entries]
        if account is not None:
            row = _ACCOUNT + _LETTERS[account.role] + account.peer
            changes.append((row, write_account(account)))
        changes += [
            (_DENIAL + entry.terms.lease_id, entry.denial)
            for entry in entries
            if entry.denial is not None
        ]
        await self._commit(changes)
        # What has changed meanwhile can have been written before those rows.
        later: list[Change] = []
        if account is not None:
            row = _ACCOUNT + _LETTERS[account.role] + account.peer
            later.append((row, write_account(account)))
        for entry in entries:
            if self.get(entry.role, entry.terms.lease_id) is entry:
                self.keep(entry)
            else:
                later.append((_USE + _LETTERS[entry.role] + entry.terms.lease_id, None))
        if any(change not in changes for change in later):
            self._state.write(later, sync=False)

    def keep(self, entry: LeaseEntry) -> None:
        """Keep a change of use, unsynced, at the end of this turn of the event loop.

        What many small puts do to one lease is written once. Of a lease with oneself nothing is.
        """
        if entry.terms.lease_id in self._own[entry.role]:
            return
        if not self._is_flushed_soon:
            self._is_flushed_soon = True
            asyncio.get_running_loop().call_soon(self.flush)
        self._touched[_LETTERS[entry.role] + entry.terms.lease_id] = entry

    def flush(self) -> None:
        """Write what was noted since the last time, unsynced; where the disk is full, later."""
        self._is_flushed_soon = False
        changes: list[Change] = [self.use_row(entry) for entry in self._touched.values()]
        if not changes:
            return
        try:
            self._state.write(changes, sync=False)
        except SpaceExhausted:
            return  # nothing here is lost: it is written with the next change, or at the end
        self._touched.clear()

    def close(self) -> None:
        """Write what is left, and that nothing was left out."""
        self.flush()
        self._state.write([(_CLOSED, b"")], sync=False)

    def forget(self, entry: LeaseEntry) -> None:
        """Drop a lease that is over; the account keeps what it came to."""
        tail = _LETTERS[entry.role] + entry.terms.lease_id
        account = self.account(entry.role, entry.peer)
        account.closed += worth(entry.terms, entry.use.used)
        self._touched.pop(tail, None)
        keys = [_LEASE + tail, _USE + tail]
        if entry.role == "customer":
            keys.append(_DENIAL + entry.terms.lease_id)
        changes: list[Change] = [(key, None) for key in keys]
        changes.append((_ACCOUNT + _LETTERS[entry.role] + entry.peer, write_account(account)))
        self._state.write(changes, sync=False)
        del self._entries[entry.role][entry.terms.lease_id]
        if entry.role == "provider":
            entry.told = None
            self.reserved.forget(entry)
        with_peer = self._by_peer[entry.role, entry.peer]
        del with_peer[entry.terms.lease_id]
        if not with_peer:
            del self._by_peer[entry.role, entry.peer]
