"""The leases of a node, in both roles, kept in the state database.

    market/lease/<c|p>/<lease id>    the signed lease, whole, and its failure domain
    market/use/<c|p>/<lease id>      its use, last voucher and the booking under way
    market/denial/c/<lease id>       the provider's signed word that it does not know the lease
    market/closed                    there while the node is stopped, where it stopped in order

`c` is this node as the customer, `p` as the provider. Reservations of what runs
at this moment are in memory only: after a restart nothing runs.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Final

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import RecordInvalid, SpaceExhausted, StoreDamaged
from xsc.base.fields import take_bool, take_bytes, take_int, take_map, take_opt_bytes
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.base.units import ceil_div
from xsc.identity.envelope import open_signed
from xsc.market.entitlements import LEASE_UNIT
from xsc.market.keeping import room_left
from xsc.market.lease import LeaseUse, half_ms, new_use, terms_of
from xsc.market.lease_entry import Booking, LeaseEntry, Role, drawn
from xsc.market.ports import Commit, CountsFor
from xsc.market.reserved import Reserved
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.quote import Kind, Quote
from xsc.terms.slot import EntitlementKey

_VERSION: Final = 1
_LEASE: Final = b"market/lease/"
_USE: Final = b"market/use/"
_DENIAL: Final = b"market/denial/c/"
_CLOSED: Final = b"market/closed"
_LETTERS: Final[dict[Role, bytes]] = {"customer": b"c/", "provider": b"p/"}
CUSTOMER: Final = (_LEASE + b"c/", _USE + b"c/", _DENIAL)
"""Where the leases of a node as the customer begin."""
_USE_FIELDS = [item.name for item in fields(LeaseUse)]


@dataclass(frozen=True, slots=True)
class KeptUse:
    """What is kept of a lease's use, beside its terms."""

    use: LeaseUse
    voucher: bytes | None
    booking: Booking | None
    refusals: int


def write_use(kept: KeptUse) -> bytes:
    """Return the bytes of a lease's use."""
    use: dict[str, Value] = {name: getattr(kept.use, name) for name in _USE_FIELDS}
    booking: Value = None if kept.booking is None else dict(asdict(kept.booking))
    return encode(
        {
            "v": _VERSION,
            "use": use,
            "voucher": kept.voucher,
            "booking": booking,
            "refusals": kept.refusals,
        }
    )


def read_use(raw: bytes) -> KeptUse:
    """Return a lease's use.

    Raises:
        RecordInvalid: it is none.
    """
    value = decode(raw)
    if not isinstance(value, dict) or value.get("v") != _VERSION:
        raise RecordInvalid("the use of a lease is of an unknown version")
    kept = take_map(value, "use")
    booking: Booking | None = None
    if value.get("booking") is not None:
        under_way = take_map(value, "booking")
        booking = Booking(
            take_int(under_way, "number"),
            take_int(under_way, "attempt"),
            take_int(under_way, "amount_micro"),
            take_bytes(under_way, "voucher"),
        )
    use = LeaseUse(
        touched_ms=take_int(kept, "touched_ms"),
        held_bytes=take_int(kept, "held_bytes"),
        epoch=take_int(kept, "epoch"),
        peak_bytes=take_int(kept, "peak_bytes"),
        used=take_int(kept, "used"),
        billed_micro=take_int(kept, "billed_micro"),
        voucher_number=take_int(kept, "voucher_number"),
        voucher_micro=take_int(kept, "voucher_micro"),
        voucher_quantity=take_int(kept, "voucher_quantity"),
        settled_micro=take_int(kept, "settled_micro"),
        given_back=take_bool(kept, "given_back"),
        lapsed=take_bool(kept, "lapsed"),
        edge=take_int(kept, "edge"),
        level=take_int(kept, "level"),
        counted_ms=take_int(kept, "counted_ms"),
    )
    found = KeptUse(use, take_opt_bytes(value, "voucher"), booking, take_int(value, "refusals"))
    if write_use(found) != raw:
        # A name that is not known hides one that is: a voucher or a booking would be lost.
        raise RecordInvalid("the use of a lease has a field that is not known")
    return found


def _used(entry: LeaseEntry) -> bytes:
    return write_use(KeptUse(entry.use, entry.voucher, entry.booking, entry.refusals))


class LeaseStore:
    """All leases by role and id; what changes is written at once, counts of use by `flush`.

    Args:
        state: the store; other tables may live in it.
        network: the network of all leases.
        commit: writes to `state` and syncs, together with what others commit at the time.
        counts_for: as in `MarketPorts`.
    """

    def __init__(
        self,
        state: KeyValue,
        network: bytes,
        commit: Commit,
        counts_for: CountsFor,
    ) -> None:
        self._state = state
        self._network = network
        self._commit = commit
        self._entries: dict[Role, dict[bytes, LeaseEntry]] = {"customer": {}, "provider": {}}
        self._by_peer: defaultdict[tuple[Role, bytes], dict[bytes, LeaseEntry]] = defaultdict(dict)
        self._touched: dict[bytes, LeaseEntry] = {}
        self._is_flushed_soon = False
        self._counts_for = counts_for
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

    def _read(self, role: Role, kept: bytes, kept_use: bytes | None) -> LeaseEntry:
        value = decode(kept)
        if not isinstance(value, dict) or value.get("v") != _VERSION:
            raise RecordInvalid("a lease is of an unknown version")
        if kept_use is None:
            raise RecordInvalid("a lease has no use")
        entry = self.entry_of(role, take_bytes(value, "lease"), 0, take_bytes(value, "domain"))
        kept_state = read_use(kept_use)
        entry.use, entry.voucher = kept_state.use, kept_state.voucher
        entry.kept_epoch = entry.use.epoch
        entry.booking, entry.refusals = kept_state.booking, kept_state.refusals
        return entry

    def entry_of(self, role: Role, raw: bytes, now_ms: int, domain: bytes = b"") -> LeaseEntry:
        """Return the entry of a signed lease that was not used yet.

        Raises:
            RecordInvalid, SignatureInvalid: it is no lease.
        """
        lease = open_signed(raw, Lease, network=self._network)
        request = open_signed(lease.record.request, LeaseRequest, network=self._network)
        quote = open_signed(request.record.quote, Quote, network=self._network)
        cleared = quote.record.draw is not None
        terms = terms_of(request.record, lease.record.quantity, cleared=cleared)
        return LeaseEntry(
            role,
            terms,
            new_use(terms, now_ms),
            raw,
            request.id,
            domain,
            quote.record.draw,
        )

    def get(self, role: Role, lease_id: bytes) -> LeaseEntry | None:
        """Return a lease, or None."""
        return self._entries[role].get(lease_id)

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
        self._by_peer[entry.role, entry.peer][entry.terms.lease_id] = entry
        if entry.role == "provider":
            entry.told = self.reserved.change
            self.reserved.change(entry)

    def drawn(
        self, role: Role, now_ms: int, *, at_limit: Collection[bytes] = (), young: bool = False
    ) -> dict[EntitlementKey, int]:
        """Return what leases have of each entitlement: bytes, or fuel steps a minute.

        A lease that its provider signed not to know has nothing.

        Args:
            role: of this node in the leases.
            now_ms: the present.
            at_limit: customers that have reached their debt limit: what they hold counts.
            young: leave out what is cleared again: storage is from half-life on.
        """
        found: dict[EntitlementKey, int] = {}
        for levels in self._levels(role, now_ms, at_limit, young=young).values():
            found |= levels
        return found

    def drawn_steps(
        self, role: Role, now_ms: int, *, at_limit: Collection[bytes] = (), young: bool = False
    ) -> dict[EntitlementKey, int]:
        """Return the same in steps of slots, rounded up."""
        return {
            key: ceil_div(level, LEASE_UNIT[kind])
            for kind, levels in self._levels(role, now_ms, at_limit, young=young).items()
            for key, level in levels.items()
        }

    def counts_for(self, entry: LeaseEntry) -> EntitlementKey:
        """Return what a lease counts for in clearings."""
        terms = entry.terms
        return self._counts_for(terms.kind, terms.provider, terms.customer, entry.drawn_key)

    def _levels(
        self, role: Role, now_ms: int, at_limit: Collection[bytes], *, young: bool
    ) -> dict[Kind, Counter[EntitlementKey]]:
        found: dict[Kind, Counter[EntitlementKey]] = {"storage": Counter(), "compute": Counter()}
        known: dict[tuple[bytes, EntitlementKey | None], EntitlementKey] = {}
        for entry in self._entries[role].values():
            terms = entry.terms
            is_old = terms.kind == "storage" and now_ms >= half_ms(terms)
            if entry.denial is not None or (young and is_old):
                continue
            is_released = terms.customer in at_limit
            level = entry.use.held_bytes if is_released else drawn(entry, now_ms)
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
            changes.append((_USE + tail, _used(entry)))
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
        return _USE + _LETTERS[entry.role] + entry.terms.lease_id, _used(entry)

    def deny(self, entries: list[LeaseEntry], denial: bytes) -> None:
        """Keep that a provider denied leases that it has granted; on the disk on return."""
        changes: list[Change] = []
        for entry in entries:
            changes += [(_DENIAL + entry.terms.lease_id, denial), self.use_row(entry)]
        if changes:
            self._state.write(changes, sync=True)
        for entry in entries:
            entry.denial = denial

    async def sync(self, *entries: LeaseEntry) -> None:
        """Keep what became of leases, on the disk on return."""
        await self._commit([self.use_row(entry) for entry in entries])
        for entry in entries:
            if self.get(entry.role, entry.terms.lease_id) is entry:
                # What has changed meanwhile can have been written before that row.
                self.keep(entry)

    def keep(self, entry: LeaseEntry) -> None:
        """Keep a change of use, unsynced, at the end of this turn of the event loop.

        What many small puts do to one lease is written once.
        """
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
        """Drop a lease that is over and settled."""
        tail = _LETTERS[entry.role] + entry.terms.lease_id
        self._touched.pop(tail, None)
        keys = [_LEASE + tail, _USE + tail]
        if entry.role == "customer":
            keys.append(_DENIAL + entry.terms.lease_id)
        changes: list[Change] = [(key, None) for key in keys]
        self._state.write(changes, sync=False)
        del self._entries[entry.role][entry.terms.lease_id]
        if entry.role == "provider":
            entry.told = None
            self.reserved.forget(entry)
        with_peer = self._by_peer[entry.role, entry.peer]
        del with_peer[entry.terms.lease_id]
        if not with_peer:
            del self._by_peer[entry.role, entry.peer]
