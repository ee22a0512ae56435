"""Asks the hosts of objects, and remembers how long they take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from xsc.base import encoding, errors, fields, ids, limits, peering
from xsc.base.clock import Clock
from xsc.base.units import held_bytes
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.storage.object import inventory, messages, receipts
from xsc.storage.object.durability import HostLabels
from xsc.storage.object.erasure import Buffer, StorageShard
from xsc.storage.object.held import Held
from xsc.storage.object.manifest import Manifest
from xsc.storage.object.messages import ObjectRecord
from xsc.storage.ports import Hosts
from xsc.storage.transfer import deletions, latency
from xsc.storage.transfer.latency import LatencyEstimate
from xsc.terms.lease import LeaseHandle
from xsc.terms.storage_receipt import DeletionOrder, DeletionReceipt, HeldShard, StorageReceipt

STAT_PAGES_MAX = 1_024
STAT_TIMEOUT_MS = 60_000
"""For all pages of one stat."""
SMALL_MANIFEST_BYTES = 48 * limits.KIB
"""Up to here the question for a manifest travels with others: most are a few hundred bytes."""

T = TypeVar("T")
VERIFIED_AT_ONCE_BYTES = limits.MIB
"""Up to here a shard is verified where it arrives. A thread would give up and take the interpreter
lock for each leaf beside a busy event loop: half a millisecond of work took three."""
Take: TypeAlias = Callable[[int, Buffer], None]
"""Takes a column's shard that was verified, in whatever thread."""


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return what all give, in order; the first to fail stops the others."""
    tasks = [asyncio.create_task(item) for item in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await stop_all(tasks)


async def stop_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they are over, also where the waiting is cancelled."""
    waiting = []
    for task in tasks:
        if not task.done():
            task.cancel()
            waiting.append(task)
        elif not task.cancelled():
            task.exception()  # asked for: asyncio reports what nobody has
    if waiting:
        # Unlike `asyncio.wait`, this ends after them even so.
        await asyncio.gather(*waiting, return_exceptions=True)


async def let_end(tasks: Iterable[asyncio.Task[Any]], clock: Clock, most_ms: int) -> None:
    """Wait until tasks are over, however they end, but no longer than that."""
    waiting = {task for task in tasks if not task.done()}
    alarm = asyncio.create_task(clock.sleep_ms(most_ms))
    try:
        while waiting and not alarm.done():
            done, _ = await asyncio.wait({*waiting, alarm}, return_when=asyncio.FIRST_COMPLETED)
            waiting -= done
    finally:
        alarm.cancel()


@dataclass(frozen=True, slots=True)
class Source:
    """A column and the node that should hold it."""

    column: int
    node: bytes


def _read_one(
    reply: peering.Reply, want: inventory.Wanted, take: Take | None
) -> inventory.FoundShard:
    """Return what a peer answered to a question about one shard."""
    (found,) = messages.read_got(reply.header, reply.parts, [want])
    if take is not None and found.data is not None:
        take(want.column, found.data)
    return found


class HostClient:
    """Asks the hosts of objects, this node among them, and verifies what they answer.

    Receipts are held against what was sent, shards against the root that was asked for.
    """

    def __init__(
        self,
        context: Context,
        *,
        hosts: Hosts,
        leaving: Callable[[], frozenset[bytes]],
        lease_grace_ms: int,
    ) -> None:
        self._context = context
        self.own = context.key.node_id
        self.clock = context.clock
        self.executor = context.executor
        self.log = context.log
        self.hosts = hosts
        self._latencies: dict[bytes, LatencyEstimate] = {}
        self.lease_grace_ms = lease_grace_ms
        self.leaving = leaving
        """Returns the nodes that leave."""
        self._reprobes: dict[bytes, asyncio.Task[None]] = {}

    def is_up(self, node: bytes) -> bool:
        """Say whether a node can be asked with hope; the own node always."""
        return self.hosts.is_up(node)

    def labels_of(self, nodes: Iterable[bytes]) -> list[HostLabels]:
        """Return nodes with the labels that are known of them."""
        return [HostLabels(node, *self.hosts.labels(node)) for node in nodes]

    def has_dropped(self, node: bytes, lease_id: bytes, deleted_ms: int | None = None) -> bool:
        """Say whether a host must have dropped by itself what lay there under a lease.

        One that is no peer any more, or that leaves, is given no grace: nobody asks it again.
        """
        end = self.hosts.lease_end(lease_id)
        stays = node in self.hosts.peers() and node not in self.leaving()
        at_ms = deletions.dropped_ms(
            None if end is None else end.end_ms, deleted_ms, self.lease_grace_ms if stays else 0
        )
        return at_ms is not None and self.clock.now_ms() > at_ms

    def _latency(self, node: bytes) -> LatencyEstimate:
        return self._latencies.get(node) or LatencyEstimate(self.hosts.response_ms(node))

    def expected_ms(self, node: bytes, size_bytes: int) -> int:
        """Return how long an answer of that size is expected to take."""
        return self._latency(node).expected_ms(size_bytes)

    def kth_ms(self, sources: Iterable[Source], k: int, size_bytes: int) -> int:
        """Return how long an answer of the k-th best of some sources is expected to take."""
        return latency.kth_ms((self.expected_ms(each.node, size_bytes) for each in sources), k)

    def note_late(self, node: bytes) -> None:
        """Take note that a peer has not answered in time."""
        now_ms = self.clock.monotonic_ms()
        self._latencies[node] = latency.late(self._latency(node), now_ms)

    def late_since_ms(self, node: bytes) -> int:
        """Return when a peer was last found late, if it has not answered since; 0 where it has."""
        return self._latencies[node].late_ms if node in self._latencies else 0

    def forget(self, node: bytes) -> None:
        """Expect of a peer what is expected of one that was never asked: it has come up anew."""
        self._latencies.pop(node, None)

    def reprobe(self, node: bytes, locate: bytes, generation: int, want: inventory.Wanted) -> bool:
        """Fetch a shard that nobody waits for from a slow node, if it is time to."""
        now_ms, estimate = self.clock.monotonic_ms(), self._latency(node)
        if node in self._reprobes or not self.is_up(node) or not latency.is_due(estimate, now_ms):
            return False
        self._latencies[node] = latency.reprobed(estimate, now_ms)

        async def attempt() -> None:
            try:
                await self.fetch(node, locate, generation, want)
            except errors.XscError:
                self.note_late(node)

        task = asyncio.create_task(attempt())
        self._reprobes[node] = task
        task.add_done_callback(lambda _: self._reprobes.pop(node, None))
        return True

    def _blame(self, node: bytes, what: str, reason: str) -> None:
        self.log.warning("storage.peer_wrong", peer=ids.short(node), what=what, reason=reason)
        self.hosts.report(node, "integrity", what)

    async def store(
        self,
        lease: LeaseHandle,
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
        header, parts = messages.put_message(lease.lease_id, locate, generation, shards, record)
        try:
            reply = await self._context.caller.call(lease.node, messages.PUT, header, parts)
        except (errors.CreditExceeded, errors.LeaseExhausted, errors.SpaceExhausted):
            await self.hosts.refused(lease.lease_id)
            raise
        manifest = None if record is None else record.manifest_hash
        expected = self._receipt(lease, locate, generation, receipts.named(shards), manifest)
        self._check_receipt(reply.header, expected)
        size = held_bytes(sum(len(shard.data) for _, shard in shards), len(shards))
        await self.hosts.used(lease.lease_id, size)
        if record is not None:
            await self.hosts.used(lease.lease_id, record.held_bytes, found=record.again)
            size += record.held_bytes
        return size

    def _receipt(
        self,
        lease: LeaseHandle,
        locate: bytes,
        generation: int,
        shards: Sequence[HeldShard],
        manifest: bytes | None = None,
    ) -> StorageReceipt:
        return StorageReceipt(
            host=lease.node,
            customer=self.own,
            lease_id=lease.lease_id,
            locate=locate,
            generation=generation,
            shards=tuple(shards),
            manifest=manifest,
            stored_ms=0,
        )

    def _check_receipt(
        self,
        header: Mapping[str, encoding.Value],
        expected: StorageReceipt,
        *,
        some: bool = False,
    ) -> tuple[HeldShard, ...]:
        try:
            return receipts.check_receipt(header, expected, self._context.network, some=some)
        except errors.XscError as fault:
            self._blame(expected.host, "receipt_invalid", fault.message)
            raise

    async def confirmed(
        self,
        method: str,
        lease: LeaseHandle,
        locate: bytes,
        generation: int,
        shards: Sequence[HeldShard],
    ) -> tuple[HeldShard, ...]:
        """Return what a host confirms by its receipt to have of some shards, and count it.

        Asked with `messages.HAVE`, that is what it has under the lease; with `messages.KEEP` it
        keeps all of them under it from now on, or fails.

        Raises:
            ReceiptInvalid, SignatureInvalid: the receipt is not what it must be.
            XscError: what the host answered, or that it is silent.
        """
        header = messages.keep_message(lease.lease_id, locate, generation, shards)
        reply = await self._context.caller.call(lease.node, method, header)
        expected = self._receipt(lease, locate, generation, shards)
        told = self._check_receipt(reply.header, expected, some=method == messages.HAVE)
        size = held_bytes(sum(item.size_bytes for item in told), len(told))
        await self.hosts.used(lease.lease_id, size, found=method == messages.HAVE)
        return told

    async def fetch(
        self,
        node: bytes,
        locate: bytes,
        generation: int,
        want: inventory.Wanted,
        take: Take | None = None,
    ) -> Buffer:
        """Return one shard from a host, verified against its root.

        `take` is given it at once, in the thread that has verified it.

        Raises:
            ShardMismatch: the host gave other bytes, and is reported.
            ShardsInsufficient: the host does not have it, or knows that it is damaged.
            XscError: what the host answered, or that it is silent.
        """
        begun_ms = self.clock.monotonic_ms()
        header = messages.get_message(locate, generation, [want])
        reply = await self._context.caller.call(node, messages.GET, header)
        size = sum(len(part) for part in reply.parts)
        now_ms = self.clock.monotonic_ms()
        self._latencies[node] = latency.answered(
            self._latency(node), size, now_ms - begun_ms, now_ms
        )
        try:
            if size > VERIFIED_AT_ONCE_BYTES:
                found = await self.executor.run(_read_one, reply, want, take)
            else:
                found = _read_one(reply, want, take)
        except errors.RecordInvalid as fault:
            self._blame(node, "record_invalid", fault.message)
            raise
        if found.data is not None:
            return found.data
        where = f"segment {want.segment}, column {want.column}"
        if found.state == "corrupt" and reply.header["states"] == ["ok"]:
            self._blame(node, "shard_mismatch", where)
            raise errors.ShardMismatch(
                f"{ids.short(node)} gave other bytes than it was given for {where}"
            )
        if found.state == "corrupt":
            self.log.warning("storage.shard_damaged", peer=ids.short(node), shard=where)
        raise errors.ShardsInsufficient(f"{ids.short(node)} says {found.state} for {where}")

    async def stat(
        self, node: bytes, locate: bytes, manifest: Manifest, manifest_hash: bytes
    ) -> inventory.HeldObject:
        """Return what a host says that it holds of an object, all pages of it.

        Raises:
            PeerSilent: it does not answer, or comes to no end in time.
            RecordInvalid: it answers nonsense, or goes backwards.
            XscError: what it answered.
        """
        end_ms = self.clock.monotonic_ms() + STAT_TIMEOUT_MS
        stated = inventory.InventoryPages(manifest)
        after = b""
        for _ in range(STAT_PAGES_MAX):
            if self.clock.monotonic_ms() >= end_ms:
                break
            header = messages.stat_message(locate, manifest.generation, manifest_hash, after)
            reply = await self._context.caller.call(node, messages.STAT, header)
            after = stated.add(messages.read_stated(reply.header))
            if not after:
                return stated.whole()
        raise errors.PeerSilent(f"{ids.short(node)} comes to no end of what it holds")

    async def find(self, node: bytes, locate: bytes, manifest_hash: bytes) -> Buffer | None:
        """Return the sealed manifest that a host keeps, unverified."""
        call = self._context.caller.call
        try:
            header = messages.find_message(locate, manifest_hash, SMALL_MANIFEST_BYTES)
            reply = await call(node, messages.FIND, header)
        except errors.TooLarge:
            header = messages.find_message(locate, manifest_hash, limits.PEER_BODY_BYTES_MAX)
            reply = await call(node, messages.FIND, header)
        return messages.read_found(reply.parts)

    async def holds(
        self,
        node: bytes,
        locate: bytes,
        generation: int,
        manifest_hash: bytes,
        roots: Sequence[bytes],
    ) -> inventory.ColumnPresence:
        """Return which columns a host says that it holds, by the roots of the first segment."""
        header = messages.holds_message(locate, generation, manifest_hash, roots)
        reply = await self._context.caller.call(node, messages.HOLDS, header)
        return messages.read_held(reply.header, max(1, len(roots)))

    async def delete(
        self, node: bytes, locate: bytes, *, columns: Collection[int] = (), final: bool = False
    ) -> tuple[dict[bytes, int], Signed[DeletionReceipt]]:
        """Have a host delete what this node stored of an object there.

        Args:
            node: the host.
            locate: of the object.
            columns: which columns; none named: everything.
            final: for good: a put that is still under way to the host is refused there.

        Returns:
            The bytes freed under each lease, and the host's verified receipt.

        Raises:
            ReceiptInvalid, SignatureInvalid: the receipt is not what it must be.
            XscError: what the host answered, or that it is silent.
        """
        order = sign(
            DeletionOrder(
                customer=self.own,
                host=node,
                locate=locate,
                columns=tuple(sorted(columns)),
                final=final,
                ordered_ms=self.clock.now_ms(),
            ),
            self._context.key,
            self._context.network,
        )
        reply = await self._context.caller.call(node, messages.DELETE, {"order": order.raw})
        try:
            signed = open_signed(
                fields.take_bytes(reply.header, "receipt"),
                DeletionReceipt,
                network=self._context.network,
                author=node,
            )
            fault = receipts.deletion_fault(signed.record, order, now_ms=self.clock.now_ms())
            if fault is not None:
                raise errors.ReceiptInvalid(fault)
        except errors.XscError as wrong:
            self._blame(node, "receipt_invalid", wrong.message)
            raise
        return {item.lease_id: item.size_bytes for item in signed.record.freed}, signed

    async def delete_all(
        self, locate: bytes, held: Sequence[Held]
    ) -> tuple[tuple[Held, ...], list[Signed[DeletionReceipt]]]:
        """Have hosts delete for good what this node stored of an object; count it no more.

        Return what is left at hosts that did not confirm, and the receipts of the others.
        """

        async def one(node: bytes) -> Signed[DeletionReceipt] | None:
            try:
                _, receipt = await self.delete(node, locate, final=True)
            except errors.XscError as fault:
                self.log.warning(
                    "storage.delete_failed", peer=ids.short(node), reason=fault.message
                )
                return None
            for item in held:
                if item.node == node:
                    await self.note_freed(*item)
            return receipt

        nodes = sorted({item.node for item in held})
        said = dict(zip(nodes, await together(map(one, nodes)), strict=True))
        left = tuple(item for item in held if said[item.node] is None)
        return left, [receipt for receipt in said.values() if receipt is not None]

    async def note_freed(self, node: bytes, lease_id: bytes, size_bytes: int) -> None:
        """Take note of bytes that a host confirmed to have deleted."""
        if not size_bytes:
            return
        try:
            await self.hosts.used(lease_id, -size_bytes)
        except errors.LeaseExhausted:
            self.log.info("storage.lease_over", peer=ids.short(node), lease=ids.short(lease_id))
