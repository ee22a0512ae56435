"""Proves to a node that leaves where its shards lie by now, with the word of who holds them.

Whoever moved a column asks its new host for a receipt of what it can read there
(`storage.attest`) and hands it over with the new placement (`storage.moved`).
Only then does it delete what it has at the node that leaves. Nothing of this is
kept: what a crash interrupts is done again at the next look at the object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from xsc.base.encoding import Value
from xsc.base.errors import (
    NotAllowed,
    ReceiptInvalid,
    ShardsInsufficient,
    UnavailableError,
    XscError,
)
from xsc.base.fields import take_bytes
from xsc.base.ids import ID_BYTES, short
from xsc.base.limits import DRAIN_PAGE_SEGMENTS, STORAGE_QUESTION_TIMEOUT_MS
from xsc.base.merkle import Part
from xsc.base.peering import Caller, Handler
from xsc.base.units import ceil_div
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.storage import bodies, messages
from xsc.storage.delegation import open_placement, valid_placements
from xsc.storage.drain import MOVED, REASON_CHARS_MAX, STAYS, Drain
from xsc.storage.erasure import Buffer
from xsc.storage.held import Wanted
from xsc.storage.leaving import page_of
from xsc.storage.manifest import hash_of, segments_of
from xsc.storage.reach import Reach
from xsc.storage.reading import Located
from xsc.storage.receipts import receipt_fault, shards_of
from xsc.storage.shards import StorageNode
from xsc.terms.storage_receipt import HeldShard, StorageReceipt

ATTEST: Final = "storage.attest"
READ_AT_ONCE: Final = 8
"""Shards that are in memory while a host checks what it says a receipt of."""


class Prover:
    """See the module."""

    def __init__(
        self, *, reach: Reach, caller: Caller, node: StorageNode, key: KeyPair, drain: Drain
    ) -> None:
        self._reach = reach
        self._caller = caller
        self._node = node
        self._key = key
        self._drain = drain

    @property
    def leaving(self) -> frozenset[bytes]:
        """The nodes that leave, this one included."""
        return self._drain.leaving()

    # Who moved it

    async def prove(self, located: Located, leaver: bytes, is_gone: Callable[[], bool]) -> bool:
        """Hand over what proves that an object lies elsewhere; False where it must be tried again.

        A node that leaves and does not take the proof has had its chance. Nothing more is read
        of an object that is gone by then: its deletion waits for this.
        """
        manifest, columns = located.manifest, located.placement.columns
        if leaver in columns or not self._reach.is_up(leaver):
            return False
        ref = hash_of(located.sealed)
        try:
            held = await self._reach.stat(leaver, located.locate, manifest.generation, ref)
            here = {row.column for row in held.columns if row.column < len(columns)}
            segments = segments_of(manifest)
            if not segments:
                pages = [(0, range(0))] if held.record != "missing" else []
            else:
                # A record without shards goes with any of them.
                wanted = here or ({0} if held.record != "missing" else set())
                count = ceil_div(segments, DRAIN_PAGE_SEGMENTS)
                pages = [
                    (column, page_of(page, segments))
                    for column in sorted(wanted)
                    for page in range(count if here else 1)
                ]
            receipts = []
            for page in pages:
                if is_gone():
                    return False
                receipts.append(await self._attested(located, ref, *page))
        except XscError as fault:
            self._note(located, leaver, fault)
            return False
        for receipt in receipts:
            try:
                await self._hand(leaver, located.placement_raw, receipt)
            except UnavailableError as fault:
                self._note(located, leaver, fault)
                return False
            except XscError as fault:
                self._note(located, leaver, fault)
        return True

    def _note(self, located: Located, leaver: bytes, fault: XscError) -> None:
        self._reach.log.info(
            "drain_not_proven",
            object=short(located.locate),
            peer=short(leaver),
            reason=fault.message,
        )

    async def _hand(self, leaver: bytes, placement: bytes, receipt: bytes) -> None:
        if leaver == self._reach.own:
            await self._drain.take_moved(placement, receipt)
            return
        await self._caller.call(
            leaver,
            MOVED,
            {"placement": placement, "receipt": receipt},
            timeout_ms=STORAGE_QUESTION_TIMEOUT_MS,
        )

    async def excuse(self, located: Located, leaver: bytes, reason: str) -> None:
        """Tell a node that leaves why an object cannot be moved away from it."""
        text = reason[:REASON_CHARS_MAX]
        if leaver == self._reach.own:
            await self._drain.take_stays(located.locate, text)
            return
        try:
            await self._caller.call(
                leaver,
                STAYS,
                {"locate": located.locate, "reason": text},
                timeout_ms=STORAGE_QUESTION_TIMEOUT_MS,
            )
        except XscError as fault:
            self._note(located, leaver, fault)

    async def _attested(self, located: Located, ref: bytes, column: int, segments: range) -> bytes:
        """Return the receipt of the host of a column for some of its segments.

        Raises:
            ReceiptInvalid, SignatureInvalid: it is not what it must be.
            XscError: what the host answered, or that it is silent.
        """
        manifest = located.manifest
        host = located.placement.columns[column]
        expected = shards_of(manifest, column, segments)
        wanted = [Wanted(shard.segment, column, shard.root) for shard in expected]
        if host == self._reach.own:
            raw = await self.attest(host, located.locate, manifest.generation, ref, wanted)
        else:
            header = messages.get_message(located.locate, manifest.generation, wanted)
            reply = await self._caller.call(host, ATTEST, header | {"manifest": ref})
            raw = take_bytes(reply.header, "receipt")
        receipt = open_signed(raw, StorageReceipt, network=self._reach.network, author=host).record
        fault = receipt_fault(
            receipt,
            StorageReceipt(
                host=host,
                customer=self._reach.own,
                lease_id=receipt.lease_id,
                locate=located.locate,
                generation=manifest.generation,
                shards=expected,
                manifest=ref,
                placement=open_placement(located.placement_raw, self._reach.network).id,
                stored_ms=0,
            ),
        )
        if fault is not None:
            raise ReceiptInvalid(fault)
        return raw

    # Who holds it now

    def handlers(self) -> dict[str, Handler]:
        """Return what answers peers, by method."""
        return {ATTEST: self._on_attest}

    async def _on_attest(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        ref = take_bytes(header, "manifest", size=ID_BYTES)
        locate, generation, wanted = messages.read_get(header)
        return {"receipt": await self.attest(caller, locate, generation, ref, wanted)}, []

    async def attest(
        self,
        customer: bytes,
        locate: bytes,
        generation: int,
        ref: bytes,
        wanted: Sequence[Wanted],
    ) -> bytes:
        """Return a signed receipt of what a customer has here, once it was read and verified.

        Raises:
            NotAllowed: that customer has no such object here.
            ShardsInsufficient: some of it is not here, or damaged.
        """
        own = bodies.RECORDS + locate + customer
        records = [entry for key, entry in await self._node.between(own, own + b"\0")]
        if not records or not records[0].proof.startswith(ref):
            raise NotAllowed("this node holds no such object for that customer")
        found = await self._node.find(locate, ref)
        if found is None:
            raise ShardsInsufficient("the record of that object is damaged here")
        mine = records[0].proof[ID_BYTES:]
        valid = valid_placements(found.placements, self._reach.network)
        known = {hash_of(placed.raw): placed for placed in valid}
        if mine not in known:
            raise ShardsInsufficient("the record of that object is damaged here")
        # Others may have stored placements of their own under that id.
        owner = known[mine].placement.owner
        placed = max(
            (item for item in known.values() if item.placement.owner == owner),
            key=lambda placed: placed.rank,
        )
        held = []
        lease_id = records[0].lease_id
        for want in wanted:
            key = bodies.shards_prefix(locate, generation, want.segment)
            key += bytes([want.column]) + customer
            for _, entry in await self._node.between(key, key + b"\0"):
                if entry.proof != want.root:
                    continue
                lease_id = entry.lease_id
                held.append(
                    HeldShard(
                        segment=want.segment,
                        column=want.column,
                        size_bytes=entry.size_bytes,
                        root=entry.proof,
                    )
                )
        states = []
        for start in range(0, len(wanted), READ_AT_ONCE):
            some = wanted[start : start + READ_AT_ONCE]
            states += [item.state for item in await self._node.get(locate, generation, some)]
        if len(held) != len(wanted) or set(states) - {"ok"}:
            raise ShardsInsufficient("some of those shards are not held here, or damaged")
        receipt = StorageReceipt(
            host=self._reach.own,
            customer=customer,
            lease_id=lease_id,
            locate=locate,
            generation=generation,
            shards=tuple(held),
            manifest=ref,
            placement=placed.id,
            stored_ms=self._reach.clock.now_ms(),
        )
        return sign(receipt, self._key, self._reach.network).raw
