"""A customer that lost its disk learns from its hosts which leases it has there.

    market/recall/<peer>     what is known of own bytes there, while the peer is still to be asked

Everything that binds is signed: the lease by both, the vouchers by
the customer itself, so that a host can show too little, never too much. What was
used since the last voucher follows from what the directory of objects says is held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import RecordInvalid, StoreDamaged, XscError
from xsc.base.fields import take_bool, take_bytes, take_int, take_list, take_map, take_opt_bytes
from xsc.base.ids import ID_BYTES, short
from xsc.base.keyvalue import Change, KeyValue
from xsc.base.limits import EPOCH_MS, HISTORY_LEASES_MAX, KIB
from xsc.base.merkle import Part
from xsc.base.peering import HeadBound, History
from xsc.base.units import ceil_div
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed
from xsc.market import lease as leases
from xsc.market.keeping import reconciled
from xsc.market.lease_entry import LeaseEntry
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import MarketPorts
from xsc.market.quote import domain_of
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.quote import Quote
from xsc.terms.voucher import Voucher

HISTORY: Final = "market.history"
HEADS: Final = {HISTORY: HeadBound(answered=HISTORY_LEASES_MAX * 8 * KIB)}
"""Of each lease the request with its quote, and a voucher: 4 KiB."""
RECALLS: Final = b"market/recall/"
_VERSION: Final = 1


class LeaseRecall:
    """Recovers leases that this node lost from their hosts, and tells customers theirs."""

    def __init__(
        self, context: Context, ports: MarketPorts, store: LeaseStore, state: KeyValue
    ) -> None:
        self._own = context.key.node_id
        self._network = context.network
        self._clock = context.clock
        self._caller = context.caller
        self._log = context.log
        self._store = store
        self._credit = ports.credit
        self._state = state

    # The provider's side

    async def on_history(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Tell a customer its leases of storage here, and nobody else's, a page at a time."""
        after = take_opt_bytes(header, "after") or b""
        mine = sorted(
            (
                entry
                for entry in self._store.all("provider")
                if entry.terms.customer == caller
                and entry.terms.kind == "storage"
                and not (entry.use.given_back and not entry.use.held_bytes)
                and entry.terms.lease_id > after
            ),
            key=lambda entry: entry.terms.lease_id,
        )
        page: list[Value] = [self._told(entry) for entry in mine[:HISTORY_LEASES_MAX]]
        return {"leases": page, "more": len(mine) > HISTORY_LEASES_MAX}, ()

    def _told(self, entry: LeaseEntry) -> dict[str, Value]:
        use = leases.advance(entry.terms, entry.use, self._clock.now_ms())
        return {
            "lease": entry.raw,
            "voucher": entry.voucher,
            "held_bytes": use.held_bytes,
            "used": use.used,
            "level": use.level,
        }

    # The customer's side

    def begin(self, held: Mapping[bytes, Mapping[bytes, int]]) -> None:
        """Note which peers are to be asked, and what the directory knows of bytes there."""
        changes: list[Change] = []
        for peer, by_lease in sorted(held.items()):
            listed: list[Value] = [[lease_id, size] for lease_id, size in sorted(by_lease.items())]
            changes.append((RECALLS + peer, encode({"v": _VERSION, "held": listed})))
        if changes:
            self._state.write(changes, sync=True)

    async def recall(self, peer: bytes) -> int:
        """Take the leases at a peer back, if it is still to be asked; return how many were new.

        Raises:
            PeerSilent: the peer does not answer, or comes to no end in time. What it told is
                kept, and it is asked again later.
            XscError: it answers nonsense; it is asked again later.
        """
        raw = self._state.get(RECALLS + peer)
        if raw is None:
            return 0
        held = _held(raw)
        found = 0
        history = History(self._caller, self._clock, peer, HISTORY)
        after: bytes | None = None
        while True:
            reply = await history.page({"after": after})
            told = take_list(reply.header, "leases", most=HISTORY_LEASES_MAX)
            fresh = []
            for item in told:
                entry = self._entry(peer, item, held)
                if after is not None and entry.terms.lease_id <= after:
                    raise RecordInvalid("the list of leases goes backwards")
                after = entry.terms.lease_id
                if self._store.get("customer", entry.terms.lease_id) is None:
                    fresh.append(entry)
            self._store.add(fresh)
            found += len(fresh)
            if not told or not take_bool(reply.header, "more"):
                break
        for old, _ in self._store.pairs("customer"):
            # The directory can be older than a renewal, which finds out what went over.
            missing = held.get(old.terms.lease_id, 0) - old.use.held_bytes
            if old.peer == peer and missing > 0:
                old.use = leases.hold(old.terms, old.use, missing, self._clock.now_ms())
                self._store.save(old)
        self._state.write([(RECALLS + peer, None)], sync=False)
        self._log.info("market.leases_recalled", peer=short(peer), leases=found)
        return found

    def _entry(self, peer: bytes, item: Value, held: Mapping[bytes, int]) -> LeaseEntry:
        """Return a lease as it is known to have been, checked.

        Raises:
            RecordInvalid, SignatureInvalid: it is not this node's lease at that peer.
        """
        if not isinstance(item, dict):
            raise RecordInvalid("a lease that was told is of no known form")
        raw = take_bytes(item, "lease")
        lease = open_signed(raw, Lease, network=self._network, author=peer).record
        request = open_signed(lease.request, LeaseRequest, network=self._network, author=self._own)
        if request.record.provider != peer or request.record.kind != "storage":
            raise RecordInvalid("the lease is at another node, or not of storage")
        refusal = leases.check_grant(lease.request, request.record, lease)
        if refusal is not None:
            raise RecordInvalid(refusal)
        quote = open_signed(request.record.quote, Quote, network=self._network, author=peer).record
        now_ms = self._clock.now_ms()
        entry = self._store.entry_of("customer", raw, now_ms, domain_of(quote))
        self._count(entry, take_opt_bytes(item, "voucher"), held)
        theirs = take_int(item, "held_bytes"), take_int(item, "used")
        entry.use = reconciled(entry.terms, entry.use, *theirs, now_ms)
        if entry.terms.cleared:
            level = min(entry.use.level, take_int(item, "level"))
            entry.use = leases.lowered(entry.terms, entry.use, level, now_ms)
        return entry

    def _count(self, entry: LeaseEntry, raw: bytes | None, held: Mapping[bytes, int]) -> None:
        """Count on from the last voucher, by what the directory says is held."""
        terms = entry.terms
        size = held.get(terms.lease_id, 0)
        # The first epoch is due as soon as bytes are held.
        since_ms, used = terms.start_ms, 0 if terms.cleared else size
        if raw is not None:
            voucher = open_signed(raw, Voucher, network=self._network, author=self._own).record
            if voucher.lease_id != terms.lease_id:
                raise RecordInvalid("the voucher is for another lease")
            entry.use = leases.with_voucher(entry.use, voucher)
            entry.voucher = raw
            if voucher.quantity >= used:
                since_ms, used = voucher.until_ms, voucher.quantity
        last = max(0, ceil_div(terms.end_ms - terms.start_ms, EPOCH_MS) - 1)
        entry.use = replace(
            entry.use,
            held_bytes=size,
            peak_bytes=size,
            epoch=min(last, max(0, since_ms - terms.start_ms) // EPOCH_MS),
            used=used,
            counted_ms=since_ms,
            level=terms.quantity if terms.cleared else 0,
            settled_micro=self._credit.settled(terms.lease_id),
        )


def _held(raw: bytes) -> dict[bytes, int]:
    """Return what the directory knew of bytes at a peer, by lease."""
    try:
        value = take_map({"value": decode(raw)}, "value")
        found: dict[bytes, int] = {}
        for item in take_list(value, "held", most=2**20):
            match item:
                case [bytes(lease_id), int(size)] if len(lease_id) == ID_BYTES and size >= 0:
                    found[lease_id] = size
                case _:
                    raise RecordInvalid("an item is of no known form")
    except XscError as fault:
        raise StoreDamaged(f"a note of what to recall is damaged: {fault.message}") from None
    return found
