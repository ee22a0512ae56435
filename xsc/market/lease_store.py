"""The leases of a node, in both roles, kept in the state database.

    market/lease/<c|p>/<lease id>    the signed lease, whole, and its failure domain
    market/use/<c|p>/<lease id>      its use, last voucher and the booking under way
    market/renewal/<c|p>/<lease id>  the last signed renewal, whole, where it was renewed
    market/denial/c/<lease id>       the provider's signed word that it does not know the lease
    market/hold/<c|p>/<account>      the account of an undrawn entitlement, with its use
    market/allowance/<need>          what a need of this node allows for all of them, and has signed
    market/closed                    there while the node is stopped, where it stopped in order

`c` is this node as the customer, `p` as the provider. Reservations of what runs
at this moment are in memory only: after a restart nothing runs.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Final

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import RecordInvalid, SpaceExhausted, StoreDamaged
from xsc.base.fields import take_bool, take_bytes, take_int, take_map, take_opt_bytes, take_str
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.base.units import ceil_div
from xsc.identity.envelope import open_signed
from xsc.market.entitlements import LEASE_UNIT
from xsc.market.hold import Allowance, Hold, account_terms
from xsc.market.lease import LeaseTerms, LeaseUse, terms_of
from xsc.market.lease_entry import Booking, LeaseEntry, Role, drawn, used
from xsc.market.ports import Commit
from xsc.market.renewal import restored
from xsc.market.reserved import Reserved
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.quote import Kind, Quote
from xsc.terms.renewal import Renewal, RenewalRequest
from xsc.terms.slot import EntitlementKey

_VERSION: Final = 1
_LEASE: Final = b"market/lease/"
_USE: Final = b"market/use/"
_RENEWAL: Final = b"market/renewal/"
_DENIAL: Final = b"market/denial/c/"
_HOLD: Final = b"market/hold/"
_ALLOWANCE: Final = b"market/allowance/"
_CLOSED: Final = b"market/closed"
_LETTERS: Final[dict[Role, bytes]] = {"customer": b"c/", "provider": b"p/"}
CUSTOMER: Final = (_LEASE + b"c/", _USE + b"c/", _DENIAL, _HOLD + b"c/", _ALLOWANCE)
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
    )
    found = KeptUse(use, take_opt_bytes(value, "voucher"), booking, take_int(value, "refusals"))
    if write_use(found) != raw:
        # A name that is not known hides one that is: a voucher or a booking would be lost.
        raise RecordInvalid("the use of a lease has a field that is not known")
    return found


def _used(entry: LeaseEntry) -> bytes:
    return write_use(KeptUse(entry.use, entry.voucher, entry.booking, entry.refusals))


def _read_kind(row: dict[str, Value]) -> Kind:
    return "storage" if take_str(row, "kind") == "storage" else "compute"


def _hold_row(entry: LeaseEntry, hold: Hold) -> bytes:
    row: dict[str, Value] = {
        "v": _VERSION,
        "hold": dict(asdict(hold)),
        "start_ms": entry.terms.start_ms,
        "end_ms": entry.terms.end_ms,
        "use": _used(entry),
    }
    return encode(row)


def _read_hold(role: Role, account_id: bytes, raw: bytes) -> LeaseEntry:
    row = decode(raw)
    if not isinstance(row, dict) or row.get("v") != _VERSION:
        raise RecordInvalid("an account is of an unknown version")
    kept = take_map(row, "hold")
    hold = Hold(
        provider=take_bytes(kept, "provider"),
        slot=take_bytes(kept, "slot"),
        opens_ms=take_int(kept, "opens_ms"),
        customer=take_bytes(kept, "customer"),
        need=take_bytes(kept, "need"),
        kind=_read_kind(kept),
        clearing=take_bytes(kept, "clearing"),
        price=take_int(kept, "price"),
        quantity=take_int(kept, "quantity"),
        until_ms=take_int(kept, "until_ms"),
        counted_ms=take_int(kept, "counted_ms"),
        rest=take_int(kept, "rest"),
        is_used=take_bool(kept, "is_used"),
    )
    terms = account_terms(
        hold.key,
        take_int(row, "start_ms"),
        take_int(row, "end_ms"),
    )
    state = read_use(take_bytes(row, "use"))
    entry = LeaseEntry(role, terms, state.use, b"", b"", hold=hold)
    entry.voucher, entry.booking, entry.refusals = state.voucher, state.booking, state.refusals
    if account_id != terms.lease_id or _hold_row(entry, hold) != raw:
        raise RecordInvalid("an account is not what was written")
    return entry


def _allowance_row(allowance: Allowance) -> Change:
    return _ALLOWANCE + allowance.need, encode({"v": _VERSION, **asdict(allowance)})


def _read_allowance(raw: bytes) -> Allowance:
    row = decode(raw)
    if not isinstance(row, dict) or row.get("v") != _VERSION:
        raise RecordInvalid("an allowance is of an unknown version")
    return Allowance(
        need=take_bytes(row, "need"),
        kind=_read_kind(row),
        counted_ms=take_int(row, "counted_ms"),
        allowed_micro=take_int(row, "allowed_micro"),
        rate=take_int(row, "rate"),
        rest=take_int(row, "rest"),
        signed_micro=take_int(row, "signed_micro"),
    )


class LeaseStore:
    """All leases by role and id; what changes is written at once, counts of use by `flush`.

    Args:
        state: the store; other tables may live in it.
        network: the network of all leases.
        commit: writes to `state` and syncs, together with what others commit at the time.
    """

    def __init__(self, state: KeyValue, network: bytes, commit: Commit) -> None:
        self._state = state
        self._network = network
        self._commit = commit
        self._entries: dict[Role, dict[bytes, LeaseEntry]] = {"customer": {}, "provider": {}}
        self._by_peer: defaultdict[tuple[Role, bytes], dict[bytes, LeaseEntry]] = defaultdict(dict)
        self._holds: dict[Role, dict[bytes, LeaseEntry]] = {"customer": {}, "provider": {}}
        self._holds_by_peer: defaultdict[tuple[Role, bytes], dict[bytes, LeaseEntry]] = defaultdict(
            dict
        )
        self.allowances: dict[bytes, Allowance] = {}
        """By need of this node."""
        self._touched: dict[bytes, LeaseEntry] = {}
        self._is_flushed_soon = False
        self._drawing: dict[Role, dict[bytes, LeaseEntry]] = {"customer": {}, "provider": {}}
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
        for _, value in self._state.scan(_ALLOWANCE, prefix_end(_ALLOWANCE)):
            try:
                allowance = _read_allowance(value)
            except RecordInvalid as fault:
                raise StoreDamaged(f"an allowance cannot be read: {fault.message}") from fault
            self.allowances[allowance.need] = allowance
        for role, letter in _LETTERS.items():
            prefix = _LEASE + letter
            for key, value in self._state.scan(prefix, prefix_end(prefix)):
                lease_id = key.removeprefix(prefix)
                try:
                    tail = letter + lease_id
                    entry = self._read(role, value, self._state.get(_USE + tail))
                    entry.renewal = self._state.get(_RENEWAL + tail)
                    if entry.renewal is not None:
                        entry.terms = self.renewed_terms(entry, entry.renewal)
                    if role == "customer":
                        entry.denial = self._state.get(_DENIAL + lease_id)
                except RecordInvalid as fault:
                    raise StoreDamaged(f"a kept lease cannot be read: {fault.message}") from fault
                self._know(entry)
            prefix = _HOLD + letter
            for key, value in self._state.scan(prefix, prefix_end(prefix)):
                try:
                    held = _read_hold(role, key.removeprefix(prefix), value)
                except RecordInvalid as fault:
                    raise StoreDamaged(f"a kept account cannot be read: {fault.message}") from fault
                self._know_hold(held)

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
        return LeaseEntry(
            role,
            terms_of(request.record, lease.record.quantity),
            LeaseUse(touched_ms=now_ms),
            raw,
            request.id,
            domain,
            quote.record.draw,
        )

    def renewed_terms(self, entry: LeaseEntry, raw: bytes) -> LeaseTerms:
        """Return the terms of a lease after a signed renewal.

        Raises:
            RecordInvalid, SignatureInvalid: it is none.
        """
        renewal = open_signed(raw, Renewal, network=self._network)
        request = open_signed(renewal.record.request, RenewalRequest, network=self._network)
        return restored(entry.terms, request.record, renewal.record.quantity)

    def get(self, role: Role, lease_id: bytes) -> LeaseEntry | None:
        """Return a lease, or None."""
        return self._entries[role].get(lease_id)

    def account(self, role: Role, lease_id: bytes) -> LeaseEntry | None:
        """Return a lease, or the account of what is held undrawn; or None."""
        return self.get(role, lease_id) or self._holds[role].get(lease_id)

    def holds(self, role: Role) -> Iterator[LeaseEntry]:
        """Yield the accounts of what is held undrawn."""
        yield from list(self._holds[role].values())

    def accounts(self, role: Role) -> Iterator[LeaseEntry]:
        """Yield everything under which something is owed: leases, and what is held undrawn."""
        yield from self.all(role)
        yield from self.holds(role)

    def accounts_of(self, role: Role, peer: bytes) -> Iterator[LeaseEntry]:
        """Yield the same with one peer."""
        yield from self.of(role, peer)
        yield from list(self._holds_by_peer.get((role, peer), {}).values())

    def all(self, role: Role) -> Iterator[LeaseEntry]:
        """Yield the leases of a role, in the order in which they came to be known."""
        yield from list(self._entries[role].values())

    def both(self) -> Iterator[LeaseEntry]:
        """Yield the leases of both roles, those as the customer first."""
        yield from self.all("customer")
        yield from self.all("provider")

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
        if entry.draw is not None:
            self._drawing[entry.role][entry.terms.lease_id] = entry
        if entry.role == "provider":
            entry.told = self.reserved.change
            self.reserved.change(entry)

    def _know_hold(self, entry: LeaseEntry) -> None:
        self._holds[entry.role][entry.terms.lease_id] = entry
        self._holds_by_peer[entry.role, entry.peer][entry.terms.lease_id] = entry

    def drawn(self, role: Role, now_ms: int) -> dict[EntitlementKey, int]:
        """Return what all leases have drawn of each entitlement: bytes, or fuel steps."""
        return self._of_entitlements(role, lambda entry: drawn(entry, now_ms))

    def used(self, role: Role, now_ms: int) -> dict[EntitlementKey, int]:
        """Return what of each entitlement is used under leases, which bill it."""
        return self._of_entitlements(role, lambda entry: used(entry, now_ms))

    def drawn_steps(self, role: Role, now_ms: int) -> dict[EntitlementKey, int]:
        """Return what is drawn of each entitlement in steps of its slot, rounded up."""
        kinds = {entry.drawn_key: entry.terms.kind for entry in self._drawing[role].values()}
        return {
            key: ceil_div(taken, LEASE_UNIT[kinds[key]])
            for key, taken in self.drawn(role, now_ms).items()
        }

    def _of_entitlements(
        self, role: Role, taken: Callable[[LeaseEntry], int]
    ) -> dict[EntitlementKey, int]:
        found: defaultdict[EntitlementKey, int] = defaultdict(int)
        for entry in self._drawing[role].values():
            if (key := entry.drawn_key) is not None:
                found[key] += taken(entry)
        return found

    def add(self, entries: list[LeaseEntry]) -> None:
        """Keep new leases: they are on the disk on return, because they are promises."""
        changes: list[Change] = []
        for entry in entries:
            tail = _LETTERS[entry.role] + entry.terms.lease_id
            row: Value = {"v": _VERSION, "lease": entry.raw, "domain": entry.domain}
            changes.append((_LEASE + tail, encode(row)))
            changes.append((_USE + tail, _used(entry)))
            if entry.renewal is not None:
                changes.append((_RENEWAL + tail, entry.renewal))
        if changes:
            self._state.write(changes, sync=True)
        for entry in entries:
            self._know(entry)

    def save(self, entry: LeaseEntry) -> None:
        """Keep what became of a lease, unsynced."""
        self._state.write([self.use_row(entry)], sync=False)

    def allow(self, allowance: Allowance) -> None:
        """Keep what a need allows, unsynced: what is signed is written with it.

        What follows from the last row and the time is not written.
        """
        before = self.allowances.get(allowance.need)
        self.allowances[allowance.need] = allowance
        if before is None or before != replace(
            allowance,
            counted_ms=before.counted_ms,
            allowed_micro=before.allowed_micro,
            rest=before.rest,
        ):
            self._state.write([_allowance_row(allowance)], sync=False)

    def forget_allowance(self, need: bytes) -> None:
        """Drop what a need allowed that is no more and has no account."""
        del self.allowances[need]
        self._state.write([(_ALLOWANCE + need, None)], sync=False)

    def open_hold(self, entry: LeaseEntry) -> None:
        """Keep the account of what is held undrawn, unsynced: what is published brings it back."""
        self._know_hold(entry)
        self.save(entry)

    @staticmethod
    def use_row(entry: LeaseEntry) -> Change:
        """Return the row that keeps what became of a lease so far."""
        if entry.hold is not None:
            return _HOLD + _LETTERS[entry.role] + entry.terms.lease_id, _hold_row(entry, entry.hold)
        return _USE + _LETTERS[entry.role] + entry.terms.lease_id, _used(entry)

    def renew(self, renewed: list[tuple[LeaseEntry, LeaseTerms, LeaseUse, bytes]]) -> None:
        """Keep renewals and the use as of then, all or none; on the disk on return."""
        changes: list[Change] = []
        for entry, _, use, raw in renewed:
            tail = _LETTERS[entry.role] + entry.terms.lease_id
            changes.append((_RENEWAL + tail, raw))
            changes.append((_USE + tail, _used(replace(entry, use=use))))
        self._state.write(changes, sync=True)
        for entry, terms, use, raw in renewed:
            entry.terms, entry.use, entry.renewal = terms, use, raw

    def deny(self, entries: list[LeaseEntry], denial: bytes) -> None:
        """Keep that a provider denied leases that it has granted; on the disk on return."""
        changes: list[Change] = []
        for entry in entries:
            changes += [(_DENIAL + entry.terms.lease_id, denial), self.use_row(entry)]
        if changes:
            self._state.write(changes, sync=True)
        for entry in entries:
            entry.denial = denial

    async def sync(self, entry: LeaseEntry) -> None:
        """Keep what became of a lease, on the disk on return."""
        rows = [self.use_row(entry)]
        if entry.role == "customer" and entry.hold is not None:
            rows.append(_allowance_row(self.allowances[entry.hold.need]))
        await self._commit(rows)
        if entry.hold is not None and len(rows) > 1 and entry.hold.need in self.allowances:
            # The same holds of what its need allows.
            now = _allowance_row(self.allowances[entry.hold.need])
            if now != rows[1]:
                self._state.write([now], sync=False)
        if self.account(entry.role, entry.terms.lease_id) is entry:
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
        if entry.hold is not None:
            self._state.write([(_HOLD + tail, None)], sync=False)
            del self._holds[entry.role][entry.terms.lease_id]
            held = self._holds_by_peer[entry.role, entry.peer]
            del held[entry.terms.lease_id]
            if not held:
                del self._holds_by_peer[entry.role, entry.peer]
            return
        keys = [_LEASE + tail, _USE + tail, _RENEWAL + tail]
        if entry.role == "customer":
            keys.append(_DENIAL + entry.terms.lease_id)
        changes: list[Change] = [(key, None) for key in keys]
        self._drawing[entry.role].pop(entry.terms.lease_id, None)
        self._state.write(changes, sync=False)
        del self._entries[entry.role][entry.terms.lease_id]
        if entry.role == "provider":
            entry.told = None
            self.reserved.forget(entry)
        with_peer = self._by_peer[entry.role, entry.peer]
        del with_peer[entry.terms.lease_id]
        if not with_peer:
            del self._by_peer[entry.role, entry.peer]
