"""One way to ask a host for shards, whether it is a peer or this node.

`PeerHosts` calls peers and verifies receipts; `OwnHost` asks the own shard store. What comes
back from here is verified: shards against the root asked for, receipts against what was sent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeAlias

from xsc.base.encoding import Value
from xsc.base.errors import (
    CreditExceeded,
    LeaseExhausted,
    ReceiptInvalid,
    RecordInvalid,
    ShardMismatch,
    ShardsInsufficient,
    SpaceExhausted,
    XscError,
)
from xsc.base.fields import take_bytes
from xsc.base.ids import short
from xsc.base.limits import MIB, STORAGE_QUESTION_TIMEOUT_MS
from xsc.base.log import Log
from xsc.base.peering import Reply
from xsc.base.units import held_bytes
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.storage.object import held_shards, messages
from xsc.storage.object.erasure import Buffer, StorageShard
from xsc.storage.object.expiry import with_ends
from xsc.storage.object.inventory import ColumnPresence, FoundShard, HeldObject, Wanted, whole_of
from xsc.storage.object.messages import ObjectRecord
from xsc.storage.object.receipts import check_receipt, deletion_fault, expected_receipt
from xsc.storage.ports import HostLease, Hosts, Leases
from xsc.storage.shardstore.bodies import bodies_of
from xsc.storage.shardstore.store import StorageNode
from xsc.storage.transfer import latency
from xsc.storage.transfer.latency import LatencyEstimate
from xsc.terms.storage_receipt import DeletionOrder, DeletionReceipt, HeldShard, StorageReceipt

VERIFIED_AT_ONCE_BYTES = MIB
"""Up to here a shard is verified where it arrives. A thread would give up and take the interpreter
lock for each leaf beside a busy event loop: half a millisecond of work took three."""
Take: TypeAlias = Callable[[int, Buffer], None]
"""Takes a column's shard that was verified, in whatever thread."""
StatPage: TypeAlias = tuple[bytes, int, bytes, bytes]
"""Locate id, generation and manifest hash of an object, and where the page before ended."""


class StorageHost(Protocol):
    """Hosts of one kind; each method names the host that it asks."""

    def is_up(self, node: bytes) -> bool:
        """Return whether the host answered lately."""

    def expected_ms(self, node: bytes, size_bytes: int) -> int:
        """Return how long an answer of that size is expected to take."""

    def note_late(self, node: bytes) -> None:
        """Take note that the host has not answered in time."""

    async def store(
        self,
        lease: HostLease,
        locate: bytes,
        generation: int,
        *,
        shards: Sequence[tuple[int, StorageShard]],
        record: ObjectRecord | None,
    ) -> int:
        """Store at a host in one request and verify its receipt; return the bytes confirmed.

        Raises:
            ReceiptInvalid, SignatureInvalid: the receipt is not what it must be.
            XscError: what the host answered, or that it is silent.
        """

    async def held_shards(
        self,
        lease: HostLease,
        locate: bytes,
        generation: int,
        wanted: Sequence[Wanted],
        size_of: Callable[[Wanted], int],
    ) -> set[tuple[int, int]]:
        """Return segment and column of the shards that a host has under a lease, by its receipt.

        Raises:
            ReceiptInvalid, SignatureInvalid: the receipt is not what it must be.
            XscError: what the host answered, or that it is silent.
        """

    async def keep(
        self, lease: HostLease, locate: bytes, generation: int, shards: Sequence[HeldShard]
    ) -> int:
        """Have a host keep, under a lease of this node too, what it has; return its bytes.

        Raises:
            ReceiptInvalid, SignatureInvalid: the receipt is not what it must be.
            XscError: what the host answered, or that it is silent.
        """

    async def fetch(
        self,
        node: bytes,
        locate: bytes,
        generation: int,
        want: Wanted,
        take: Take | None = None,
    ) -> Buffer:
        """Return one shard from a host, verified against its root.

        `take` is given it at once, in the thread that has verified it.

        Raises:
            ShardMismatch: the host gave other bytes, and is reported.
            ShardsInsufficient: the host does not have it, or knows that it is damaged.
            XscError: what the host answered, or that it is silent.
        """

    async def stat_page(self, node: bytes, page: StatPage, timeout_ms: int) -> HeldObject:
        """Return one page of what the host says that it holds of an object."""

    async def find(self, node: bytes, locate: bytes, manifest_hash: bytes) -> Buffer | None:
        """Return the sealed manifest that a host keeps, unverified."""

    async def holds(
        self,
        node: bytes,
        locate: bytes,
        generation: int,
        manifest_hash: bytes,
        roots: Sequence[bytes],
    ) -> ColumnPresence:
        """Return which columns a host says that it holds, by the roots of the first segment."""

    async def delete(
        self, node: bytes, locate: bytes, *, columns: Collection[int] = (), final: bool = False
    ) -> tuple[dict[bytes, int], Signed[DeletionReceipt] | None]:
        """Have a host delete what this node stored of an object there.

        Args:
            node: the host.
            locate: of the object.
            columns: which columns; none named: everything.
            final: for good: a put that is still under way to the host is refused there.

        Returns:
            The bytes freed under each lease, and the host's verified receipt: None for the own
            node, which owes none to itself.

        Raises:
            ReceiptInvalid, SignatureInvalid: the receipt is not what it must be.
            XscError: what the host answered, or that it is silent.
        """


def _size_of(shards: Sequence[tuple[int, StorageShard]], record: ObjectRecord | None) -> int:
    """Return the bytes that a write counts for."""
    size = held_bytes(sum(len(shard.data) for _, shard in shards), len(shards))
    return size if record is None else size + record.held_bytes


def _data_of(node: bytes, want: Wanted, found: FoundShard, log: Log) -> Buffer:
    """Return the bytes of a shard that was found.

    Raises:
        ShardsInsufficient: the host does not have it, or knows that it is damaged.
    """
    if found.data is None:
        where = f"segment {want.segment}, column {want.column}"
        if found.state == "corrupt":
            log.warning("storage.shard_damaged", peer=short(node), shard=where)
        raise ShardsInsufficient(f"{short(node)} says {found.state} for {where}")
    return found.data


def _read_one(reply: Reply, want: Wanted, take: Take | None) -> FoundShard:
    """Return what a peer answered to a question about one shard."""
    (found,) = messages.read_got(reply.header, reply.parts, [want])
    if take is not None and found.data is not None:
        take(want.column, found.data)
    return found


class OwnHost:
    """This node as its own host: its shard store, without a call or a receipt."""

    def __init__(self, context: Context, node: StorageNode, leases: Leases) -> None:
        self._own = context.key.node_id
        self._log = context.log
        self._node = node
        self._leases = leases

    def is_up(self, _node: bytes) -> bool:
        """Return True."""
        return True

    def expected_ms(self, _node: bytes, _size_bytes: int) -> int:
        """Return 0."""
        return 0

    def note_late(self, _node: bytes) -> None:
        """Do nothing."""

    async def store(
        self,
        lease: HostLease,
        locate: bytes,
        generation: int,
        *,
        shards: Sequence[tuple[int, StorageShard]],
        record: ObjectRecord | None,
    ) -> int:
        """Store in the shard store; return the bytes that it counts for."""
        size, held = _size_of(shards, record), 0
        self._leases.admit(lease.lease_id, self._own, size)
        bodies = bodies_of(
            customer=self._own,
            lease_id=lease.lease_id,
            locate=locate,
            generation=generation,
            shards=shards,
            record=record,
        )
        try:
            await self._node.store(bodies)
            held = size
        finally:
            self._leases.stored(lease.lease_id, size, held)
        return size

    async def held_shards(
        self,
        lease: HostLease,
        locate: bytes,
        generation: int,
        wanted: Sequence[Wanted],
        _size_of: Callable[[Wanted], int],
    ) -> set[tuple[int, int]]:
        """Return segment and column of those shards that can be read."""
        held = self._node.held_shards
        own = await held(locate, generation, self._own, lease.lease_id, wanted)
        return {(want.segment, want.column) for want, _ in own}

    async def keep(
        self, lease: HostLease, locate: bytes, generation: int, shards: Sequence[HeldShard]
    ) -> int:
        """Store the shards of other customers for this node too; return their bytes."""
        wanted = [Wanted(item.segment, item.column, item.root) for item in shards]
        found = whole_of(wanted, await self._node.get(locate, generation, wanted))
        return await self.store(lease, locate, generation, shards=found, record=None)

    async def fetch(
        self,
        node: bytes,
        locate: bytes,
        generation: int,
        want: Wanted,
        take: Take | None = None,
    ) -> Buffer:
        """Return one shard, verified against its root."""
        (found,) = await self._node.get(locate, generation, [want])
        if take is not None and found.data is not None:
            take(want.column, found.data)
        return _data_of(node, want, found, self._log)

    async def stat_page(self, _node: bytes, page: StatPage, _timeout_ms: int) -> HeldObject:
        """Return one page of what is held of an object."""
        return with_ends(await self._node.stat(*page), self._leases.end_ms)

    async def find(self, _node: bytes, locate: bytes, manifest_hash: bytes) -> Buffer | None:
        """Return the sealed manifest."""
        return await self._node.find(locate, manifest_hash)

    async def holds(
        self,
        _node: bytes,
        locate: bytes,
        generation: int,
        manifest_hash: bytes,
        roots: Sequence[bytes],
    ) -> ColumnPresence:
        """Return which columns are held, by the roots of the first segment."""
        return await self._node.holds(locate, generation, manifest_hash, roots)

    async def delete(
        self, _node: bytes, locate: bytes, *, columns: Collection[int] = (), final: bool = False
    ) -> tuple[dict[bytes, int], Signed[DeletionReceipt] | None]:
        """Delete without a receipt: this node owes none to itself."""
        if columns:
            return await self._node.trim(locate, self._own, frozenset(columns)), None
        return await self._node.delete(locate, self._own, final=final), None


class PeerHosts:
    """Peers as hosts: by calls, with the latency that is expected of each."""

    def __init__(self, context: Context, hosts: Hosts) -> None:
        self._context = context
        self._own = context.key.node_id
        self._hosts = hosts
        self._latencies: dict[bytes, LatencyEstimate] = {}

    def is_up(self, node: bytes) -> bool:
        """Return whether a peer answered its last probes."""
        return self._hosts.is_up(node)

    def _latency(self, node: bytes) -> LatencyEstimate:
        return self._latencies.get(node) or LatencyEstimate(self._hosts.response_ms(node))

    def expected_ms(self, node: bytes, size_bytes: int) -> int:
        """Return how long an answer of that size is expected to take."""
        return self._latency(node).expected_ms(size_bytes)

    def note_late(self, node: bytes) -> None:
        """Take note that a peer has not answered in time."""
        now_ms = self._context.clock.monotonic_ms()
        self._latencies[node] = latency.late(self._latency(node), now_ms)

    def late_since_ms(self, node: bytes) -> int:
        """Return when a peer was last found late, if it has not answered since; 0 where it has."""
        return self._latencies[node].late_ms if node in self._latencies else 0

    def forget(self, node: bytes) -> None:
        """Expect of a peer what is expected of one that was never asked: it has come up anew."""
        self._latencies.pop(node, None)

    def begin_reprobe(self, node: bytes) -> bool:
        """Return whether it is time to probe a slow peer again, and take note that it is done."""
        now_ms = self._context.clock.monotonic_ms()
        if not self.is_up(node) or not latency.is_due(self._latency(node), now_ms):
            return False
        self._latencies[node] = latency.reprobed(self._latency(node), now_ms)
        return True

    def _blame(self, node: bytes, what: str, reason: str) -> None:
        self._context.log.warning("storage.peer_wrong", peer=short(node), what=what, reason=reason)
        self._hosts.report(node, what)

    async def store(
        self,
        lease: HostLease,
        locate: bytes,
        generation: int,
        *,
        shards: Sequence[tuple[int, StorageShard]],
        record: ObjectRecord | None,
    ) -> int:
        """Store at a peer in one request and verify its receipt; return the bytes confirmed."""
        size = _size_of(shards, record)
        try:
            await self._store(lease, locate, generation, shards, record)
        except (CreditExceeded, LeaseExhausted, SpaceExhausted):
            await self._hosts.refused(lease.lease_id)
            raise
        await self._hosts.used(lease.lease_id, size)
        return size

    async def _store(
        self,
        lease: HostLease,
        locate: bytes,
        generation: int,
        batch: Sequence[tuple[int, StorageShard]],
        record: ObjectRecord | None,
    ) -> None:
        header, parts = messages.put_message(lease.lease_id, locate, generation, batch, record)
        reply = await self._context.caller.call(lease.node, messages.PUT, header, parts)
        expected = expected_receipt(
            host=lease.node,
            customer=self._own,
            lease_id=lease.lease_id,
            locate=locate,
            generation=generation,
            shards=batch,
            manifest=None if record is None else record.manifest_hash,
            stored_ms=0,
        )
        self._check_receipt(lease.node, reply.header, expected)

    def _check_receipt(
        self, node: bytes, header: Mapping[str, Value], expected: StorageReceipt
    ) -> None:
        try:
            check_receipt(header, expected, self._context.network)
        except XscError as fault_error:
            self._blame(node, "receipt_invalid", fault_error.message)
            raise

    async def held_shards(
        self,
        lease: HostLease,
        locate: bytes,
        generation: int,
        wanted: Sequence[Wanted],
        size_of: Callable[[Wanted], int],
    ) -> set[tuple[int, int]]:
        """Return what a peer has under a lease, by its verified receipt."""
        header = held_shards.have_message(lease.lease_id, locate, generation, wanted)
        reply = await self._context.caller.call(lease.node, held_shards.HAVE, header)
        try:
            receipt = open_signed(
                take_bytes(reply.header, "receipt"),
                StorageReceipt,
                network=self._context.network,
                author=lease.node,
            ).record
            fault = held_shards.receipt_fault(
                receipt,
                host=lease.node,
                customer=self._own,
                lease_id=lease.lease_id,
                locate=locate,
                generation=generation,
                wanted=wanted,
                size_of=size_of,
            )
            if fault is not None:
                raise ReceiptInvalid(fault)
        except XscError as wrong:
            self._blame(lease.node, "receipt_invalid", wrong.message)
            raise
        size = held_bytes(sum(held.size_bytes for held in receipt.shards), len(receipt.shards))
        await self._hosts.used(lease.lease_id, size)
        return {(held.segment, held.column) for held in receipt.shards}

    async def keep(
        self, lease: HostLease, locate: bytes, generation: int, shards: Sequence[HeldShard]
    ) -> int:
        """Have a peer store under a lease of this node what it has; return its bytes."""
        size = held_bytes(sum(item.size_bytes for item in shards), len(shards))
        reply = await self._context.caller.call(
            lease.node,
            messages.KEEP,
            messages.keep_message(lease.lease_id, locate, generation, shards),
        )
        expected = StorageReceipt(
            host=lease.node,
            customer=self._own,
            lease_id=lease.lease_id,
            locate=locate,
            generation=generation,
            shards=tuple(shards),
            manifest=None,
            stored_ms=0,
        )
        self._check_receipt(lease.node, reply.header, expected)
        await self._hosts.used(lease.lease_id, size)
        return size

    async def fetch(
        self,
        node: bytes,
        locate: bytes,
        generation: int,
        want: Wanted,
        take: Take | None = None,
    ) -> Buffer:
        """Return one shard from a peer, verified against its root; report a wrong one."""
        begun_ms = self._context.clock.monotonic_ms()
        header = messages.get_message(locate, generation, [want])
        reply = await self._context.caller.call(node, messages.GET, header)
        size = sum(len(part) for part in reply.parts)
        now_ms = self._context.clock.monotonic_ms()
        self._latencies[node] = latency.answered(
            self._latency(node), size, now_ms - begun_ms, now_ms
        )
        try:
            if size > VERIFIED_AT_ONCE_BYTES:
                found = await self._context.executor.run(_read_one, reply, want, take)
            else:
                found = _read_one(reply, want, take)
        except RecordInvalid as fault:
            self._blame(node, "record_invalid", fault.message)
            raise
        if found.state == "corrupt" and reply.header["states"] == ["ok"]:
            where = f"segment {want.segment}, column {want.column}"
            self._blame(node, "shard_mismatch", where)
            raise ShardMismatch(f"{short(node)} gave other bytes than it was given for {where}")
        return _data_of(node, want, found, self._context.log)

    async def stat_page(self, node: bytes, page: StatPage, timeout_ms: int) -> HeldObject:
        """Return one page of what a peer says that it holds of an object."""
        reply = await self._context.caller.call(
            node,
            messages.STAT,
            messages.stat_message(*page),
            timeout_ms=min(timeout_ms, STORAGE_QUESTION_TIMEOUT_MS),
        )
        return messages.read_stated(reply.header)

    async def find(self, node: bytes, locate: bytes, manifest_hash: bytes) -> Buffer | None:
        """Return the sealed manifest that a peer keeps, unverified."""
        header = messages.find_message(locate, manifest_hash)
        reply = await self._context.caller.call(
            node, messages.FIND, header, timeout_ms=STORAGE_QUESTION_TIMEOUT_MS
        )
        return messages.read_found(reply.parts)

    async def holds(
        self,
        node: bytes,
        locate: bytes,
        generation: int,
        manifest_hash: bytes,
        roots: Sequence[bytes],
    ) -> ColumnPresence:
        """Return which columns a peer says that it holds."""
        header = messages.holds_message(locate, generation, manifest_hash, roots)
        reply = await self._context.caller.call(
            node, messages.HOLDS, header, timeout_ms=STORAGE_QUESTION_TIMEOUT_MS
        )
        return messages.read_held(reply.header, max(1, len(roots)))

    async def delete(
        self, node: bytes, locate: bytes, *, columns: Collection[int] = (), final: bool = False
    ) -> tuple[dict[bytes, int], Signed[DeletionReceipt] | None]:
        """Have a peer delete, by a signed order; return its verified receipt as well."""
        order = sign(
            DeletionOrder(
                customer=self._own,
                host=node,
                locate=locate,
                columns=tuple(sorted(columns)),
                final=final,
                ordered_ms=self._context.clock.now_ms(),
            ),
            self._context.key,
            self._context.network,
        )
        reply = await self._context.caller.call(node, messages.DELETE, {"order": order.raw})
        try:
            signed = open_signed(
                take_bytes(reply.header, "receipt"),
                DeletionReceipt,
                network=self._context.network,
                author=node,
            )
            fault = deletion_fault(signed.record, order, now_ms=self._context.clock.now_ms())
            if fault is not None:
                raise ReceiptInvalid(fault)
        except XscError as wrong:
            self._blame(node, "receipt_invalid", wrong.message)
            raise
        return {item.lease_id: item.size_bytes for item in signed.record.freed}, signed
