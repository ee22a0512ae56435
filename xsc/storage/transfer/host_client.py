"""Asks the hosts of objects, ranks them by latency, and races them for shards."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Container,
    Coroutine,
    Iterable,
    Sequence,
)
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

from xsc.base.clock import Clock
from xsc.base.errors import (
    LeaseExhausted,
    PeerSilent,
    ShardsInsufficient,
    XscError,
)
from xsc.base.ids import short
from xsc.base.limits import (
    MIB,
    STAT_PAGES_MAX,
    STAT_TIMEOUT_MS,
    STORE_REQUEST_BYTES_MAX,
)
from xsc.base.refusals import reasons
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.storage.object.erasure import Buffer, StorageShard
from xsc.storage.object.inventory import (
    ColumnPresence,
    HeldObject,
    Span,
    Wanted,
)
from xsc.storage.object.inventory_pages import InventoryPages
from xsc.storage.object.manifest import Manifest
from xsc.storage.object.messages import ObjectRecord
from xsc.storage.ports import HostLease, Hosts, Leases
from xsc.storage.shardstore.store import StorageNode
from xsc.storage.transfer import latency
from xsc.storage.transfer.deletions import dropped_ms
from xsc.storage.transfer.segment_decoder import SegmentDecoder
from xsc.storage.transfer.storage_host import OwnHost, PeerHosts, StorageHost, Take
from xsc.terms.storage_receipt import DeletionReceipt, HeldShard

T = TypeVar("T")
More: TypeAlias = Callable[[], Awaitable[Sequence["Source"]]]
"""Finds further sources of an object."""


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


def requests_of(
    shards: Sequence[tuple[int, StorageShard]], record: ObjectRecord | None
) -> list[tuple[list[tuple[int, StorageShard]], ObjectRecord | None]]:
    """Return the requests that carry these shards: one, unless they are too many bytes."""
    batches: list[list[tuple[int, StorageShard]]] = [[]]
    size = 0
    for item in shards:
        size += len(item[1].data)
        if batches[-1] and size > STORE_REQUEST_BYTES_MAX:
            batches.append([])
            size = len(item[1].data)
        batches[-1].append(item)
    if (
        record is not None
        and batches[-1]
        and size + len(record.sealed) > 2 * STORE_REQUEST_BYTES_MAX
    ):
        batches.append([])
    last = len(batches) - 1
    return [(batch, record if index == last else None) for index, batch in enumerate(batches)]


class HostClient:
    """The hosts of objects, this node among them."""

    def __init__(
        self,
        context: Context,
        *,
        hosts: Hosts,
        leases: Leases,
        node: StorageNode,
        lease_grace_ms: int,
    ) -> None:
        self.own = context.key.node_id
        self.network = context.network
        self.clock = context.clock
        self.executor = context.executor
        self.log = context.log
        self.hosts = hosts
        self._peer_hosts = PeerHosts(context, hosts)
        self._own_host = OwnHost(context, node, leases)
        self.lease_grace_ms = lease_grace_ms
        self.leaving: Callable[[], Collection[bytes]] = frozenset
        """Returns the nodes that leave."""
        self._reprobes: dict[bytes, asyncio.Task[None]] = {}

    def _at(self, node: bytes) -> StorageHost:
        return self._own_host if node == self.own else self._peer_hosts

    def is_up(self, node: bytes) -> bool:
        """Say whether a node can be asked with hope; the own node always."""
        return self._at(node).is_up(node)

    def has_dropped(self, node: bytes, lease_id: bytes, deleted_ms: int | None = None) -> bool:
        """Say whether a host must have dropped by itself what lay there under a lease.

        One that is no peer any more, or that leaves, is given no grace: nobody asks it again.
        """
        if node == self.own:
            return False
        end = self.hosts.lease_end(lease_id)
        stays = node in self.hosts.peers() and node not in self.leaving()
        at_ms = dropped_ms(
            None if end is None else end.end_ms, deleted_ms, self.lease_grace_ms if stays else 0
        )
        return at_ms is not None and self.clock.now_ms() > at_ms

    def expected_ms(self, node: bytes, size_bytes: int) -> int:
        """Return how long an answer of that size is expected to take."""
        return self._at(node).expected_ms(node, size_bytes)

    def kth_ms(self, sources: Iterable[Source], k: int, size_bytes: int) -> int:
        """Return how long an answer of the k-th best of some sources is expected to take."""
        return latency.kth_ms((self.expected_ms(each.node, size_bytes) for each in sources), k)

    def note_late(self, node: bytes) -> None:
        """Take note that a node has not answered in time."""
        self._at(node).note_late(node)

    def late_since_ms(self, node: bytes) -> int:
        """Return when a node was last found late, if it has not answered since; 0 where it has."""
        return self._peer_hosts.late_since_ms(node)

    def forget(self, node: bytes) -> None:
        """Expect of a node what is expected of one that was never asked: it has come up anew."""
        self._peer_hosts.forget(node)

    def reprobe(self, node: bytes, locate: bytes, generation: int, want: Wanted) -> bool:
        """Fetch a shard that nobody waits for from a slow node, if it is time to."""
        if node == self.own or node in self._reprobes:
            return False
        if not self._peer_hosts.begin_reprobe(node):
            return False

        async def attempt() -> None:
            try:
                await self.fetch(node, locate, generation, want)
            except XscError:
                self.note_late(node)

        task = asyncio.create_task(attempt())
        self._reprobes[node] = task
        task.add_done_callback(lambda _: self._reprobes.pop(node, None))
        return True

    def store(
        self,
        lease: HostLease,
        locate: bytes,
        generation: int,
        *,
        shards: Sequence[tuple[int, StorageShard]],
        record: ObjectRecord | None,
    ) -> Coroutine[Any, Any, int]:
        """Store at a host in one request and verify its receipt; return the bytes confirmed.

        Raises:
            ReceiptInvalid, SignatureInvalid: the receipt is not what it must be.
            XscError: what the host answered, or that it is silent.
        """
        return self._at(lease.node).store(lease, locate, generation, shards=shards, record=record)

    def held_shards(
        self,
        lease: HostLease,
        locate: bytes,
        generation: int,
        wanted: Sequence[Wanted],
        size_of: Callable[[Wanted], int],
    ) -> Coroutine[Any, Any, set[tuple[int, int]]]:
        """Return segment and column of the shards that a host has under a lease, by its receipt.

        Raises:
            ReceiptInvalid, SignatureInvalid: the receipt is not what it must be.
            XscError: what the host answered, or that it is silent.
        """
        return self._at(lease.node).held_shards(lease, locate, generation, wanted, size_of)

    def keep(
        self, lease: HostLease, locate: bytes, generation: int, shards: Sequence[HeldShard]
    ) -> Coroutine[Any, Any, int]:
        """Have a host keep, under a lease of this node too, what it has; return its bytes.

        Raises:
            ReceiptInvalid, SignatureInvalid: the receipt is not what it must be.
            XscError: what the host answered, or that it is silent.
        """
        return self._at(lease.node).keep(lease, locate, generation, shards)

    def fetch(
        self,
        node: bytes,
        locate: bytes,
        generation: int,
        want: Wanted,
        take: Take | None = None,
    ) -> Coroutine[Any, Any, Buffer]:
        """Return one shard from a host, verified against its root.

        `take` is given it at once, in the thread that has verified it.

        Raises:
            ShardMismatch: the host gave other bytes, and is reported.
            ShardsInsufficient: the host does not have it, or knows that it is damaged.
            XscError: what the host answered, or that it is silent.
        """
        return self._at(node).fetch(node, locate, generation, want, take)

    async def stat(
        self, node: bytes, locate: bytes, manifest: Manifest, manifest_hash: bytes
    ) -> HeldObject:
        """Return what a host says that it holds of an object, all pages of it.

        Raises:
            PeerSilent: it does not answer, or comes to no end in time.
            RecordInvalid: it answers nonsense, or goes backwards.
            XscError: what it answered.
        """
        end_ms = self.clock.monotonic_ms() + STAT_TIMEOUT_MS
        stated = InventoryPages(manifest)
        after = b""
        for _ in range(STAT_PAGES_MAX):
            left_ms = end_ms - self.clock.monotonic_ms()
            if left_ms <= 0:
                break
            asked = (locate, manifest.generation, manifest_hash, after)
            after = stated.add(await self._at(node).stat_page(node, asked, left_ms))
            if not after:
                return stated.whole()
        raise PeerSilent(f"{short(node)} comes to no end of what it holds")

    def find(
        self, node: bytes, locate: bytes, manifest_hash: bytes
    ) -> Coroutine[Any, Any, Buffer | None]:
        """Return the sealed manifest that a host keeps, unverified."""
        return self._at(node).find(node, locate, manifest_hash)

    def holds(
        self,
        node: bytes,
        locate: bytes,
        generation: int,
        manifest_hash: bytes,
        roots: Sequence[bytes],
    ) -> Coroutine[Any, Any, ColumnPresence]:
        """Return which columns a host says that it holds, by the roots of the first segment."""
        return self._at(node).holds(node, locate, generation, manifest_hash, roots)

    def delete(
        self, node: bytes, locate: bytes, *, columns: Collection[int] = (), final: bool = False
    ) -> Coroutine[Any, Any, tuple[dict[bytes, int], Signed[DeletionReceipt] | None]]:
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
        return self._at(node).delete(node, locate, columns=columns, final=final)

    async def note_freed(self, node: bytes, lease_id: bytes, size_bytes: int) -> None:
        """Take note of bytes that a host confirmed to have deleted."""
        if node == self.own or not size_bytes:
            return
        try:
            await self.hosts.used(lease_id, -size_bytes)
        except LeaseExhausted:
            self.log.info("storage.lease_over", peer=short(node), lease=short(lease_id))


async def first_of(
    clock: Clock,
    ways: Sequence[Callable[[], Coroutine[Any, Any, T]]],
    late_ms: int,
    note_late: Callable[[], None],
) -> T:
    """Return what the first way gives; the next is taken where it fails, or beside it when late.

    `note_late` is called when the first is late.

    Raises:
        XscError: all failed; the fault of the last.
    """
    waiting = list(ways)
    running: set[asyncio.Task[Any]] = set()
    alarm: asyncio.Task[None] | None = None
    try:
        while True:
            if waiting and (not running or alarm is None):
                running.add(asyncio.create_task(waiting.pop(0)()))
                if alarm is None:
                    alarm = asyncio.create_task(clock.sleep_ms(late_ms))
            pending: set[asyncio.Task[Any]] = set(running)
            if alarm is not None:
                pending.add(alarm)
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done.intersection(running):
                running.discard(task)
                try:
                    return cast(T, task.result())
                except XscError:
                    if not waiting and not running:
                        raise
            if alarm in done:
                alarm = None
                if len(waiting) == len(ways) - 1:
                    note_late()
    finally:
        await stop_all([*running, *([] if alarm is None else [alarm])])


@dataclass(frozen=True, slots=True)
class Source:
    """A column and the node that should hold it."""

    column: int
    node: bytes


def in_order(
    client: HostClient,
    sources: Iterable[Source],
    k: int,
    size_bytes: int = MIB,
    doubted: Container[bytes] = (),
) -> list[Source]:
    """Return sources in the order to ask them: up, not late, not slow, data columns, the fastest.

    Nodes that are doubted, because they failed this reader before, come last.
    """
    listed = list(sources)
    expected = [client.expected_ms(source.node, size_bytes) for source in listed]
    slow_ms = latency.slow_from_ms(latency.kth_ms(expected, k))
    ranked = sorted(
        zip(listed, expected, strict=True),
        key=lambda item: (
            item[0].node in doubted,
            not client.is_up(item[0].node),
            # Who was found late comes last, and of those the one that waits longest first.
            client.late_since_ms(item[0].node),
            item[1] > slow_ms,
            item[0].column >= k,
            item[1],
            item[0].column,
        ),
    )
    return [source for source, _ in ranked]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question of a race that is under way."""

    source: Source
    begun_ms: int
    expected_ms: int


async def race(
    client: HostClient,
    *,
    locate: bytes,
    generation: int,
    segment: int,
    roots: Sequence[bytes],
    sources: Sequence[Source],
    k: int,
    span: Span | None = None,
    size_bytes: int = MIB,
    decoder: SegmentDecoder | None = None,
    arrived: Callable[[], None] | None = None,
    more: More | None = None,
    doubted: set[bytes] | None = None,
) -> dict[int, Buffer]:
    """Return k verified shards of a segment, from the first sources of k columns to give theirs.

    With a span it is the same leaves of each. Several sources may name one column.
    The next source is asked at once when one fails. When one takes longer than
    `latency.patience_ms`, a hedged request goes to the next source beside it.

    Args:
        client: the hosts.
        locate: the object.
        generation: of its placement.
        segment: its number.
        roots: of its shards, by column.
        sources: in the order in which they are asked.
        k: how many shards are needed.
        span: the leaves to fetch; None: whole shards.
        size_bytes: of a whole shard.
        decoder: takes each shard as it arrives; its tickets limit the concurrent requests.
        arrived: called after each shard.
        more: finds other sources, called once when all have failed.
        doubted: nodes that fail are added to it.

    Raises:
        ShardsInsufficient: fewer than k can be fetched; the message names who is silent.
    """
    clock = client.clock
    size = size_bytes if span is None else span.size_bytes
    kth_ms = client.kth_ms(sources, k, size)
    waiting = list(sources)
    running: dict[asyncio.Task[Any], _Asked] = {}
    late: set[asyncio.Task[Any]] = set()
    answers: list[tuple[int, int]] = []
    got: dict[int, Buffer] = {}
    failed: list[tuple[Source, XscError]] = []
    faulty = set() if doubted is None else doubted
    take = None if decoder is None else decoder.take
    tickets = deque(() if decoder is None else decoder.tickets)
    lacking = 0  # how many are late beside whom nobody was asked yet
    searching: asyncio.Task[list[Source]] | None = None
    alarm: asyncio.Task[None] | None = None

    def next_source(*, also_running: bool = False) -> Source | None:
        """Return a source of a column that nobody is asked for, else of one that is late."""
        asked = {each.source.column for each in running.values()}
        busy = {each.source.node for each in running.values()}
        # Nodes that failed come last. A node that says that it holds what others hold, too, is
        # asked for one shard at a time: so a liar is believed once.
        waiting.sort(key=lambda source: source.node in faulty)
        left = [source for source in waiting if source.column not in got]
        fresh = [source for source in left if source.column not in asked]
        count = Counter(source.column for source in fresh)
        free = (each for each in fresh if count[each.column] == 1 or each.node not in busy)
        return next(free, None) or next(iter(fresh or (left if also_running else ())), None)

    def ask(source: Source) -> None:
        waiting.remove(source)
        want = Wanted(segment, source.column, roots[source.column], span)
        task = asyncio.create_task(client.fetch(source.node, locate, generation, want, take))
        expected_ms = client.expected_ms(source.node, size)
        running[task] = _Asked(source, clock.monotonic_ms(), expected_ms)

    async def others(find: More) -> list[Source]:
        found = await find()
        tried = {*(each.source for each in running.values()), *(source for source, _ in failed)}
        return [source for source in found if source not in tried]

    def search() -> None:
        """Look for others beside all else, once."""
        nonlocal more, searching
        if more is not None:
            searching, more = asyncio.create_task(others(more)), None

    try:
        while len(got) < k:
            while tickets and tickets[0].done():
                tickets.popleft()
            while len({*got, *(each.source.column for each in running.values())}) < k - len(
                tickets
            ):
                source = next_source()
                if source is None:
                    break
                ask(source)
            while lacking and (beside := next_source(also_running=True)) is not None:
                ask(beside)
                lacking -= 1
            if lacking or not (running or tickets or searching):
                search()
            if not (running or tickets or searching):
                raise insufficient(segment, k, len(got), failed)
            patience_ms = latency.patience_ms(kth_ms, size, answers)
            awaited: list[asyncio.Future[Any]] = [*running, *list(tickets)[:1]]
            if searching is not None:
                awaited.append(searching)
            on_time = [each.begun_ms for task, each in running.items() if task not in late]
            if on_time:
                left_ms = min(on_time) + patience_ms - clock.monotonic_ms()
                alarm = asyncio.create_task(clock.sleep_ms(max(0, left_ms)))
                awaited.append(alarm)
            over, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if alarm is not None:
                alarm.cancel()
            now_ms = clock.monotonic_ms()
            # Answers first: where this node itself was slow, they come with their alarm.
            for task in [task for task in running if task in over]:
                each = running.pop(task)
                try:
                    got[each.source.column] = task.result()
                except XscError as fault:
                    failed.append((each.source, fault))
                    faulty.add(each.source.node)
                else:
                    answers.append((now_ms - each.begun_ms, each.expected_ms))
                    if arrived is not None:
                        arrived()
            if searching is not None and searching in over:
                waiting, searching = searching.result(), None
            patience_ms = latency.patience_ms(kth_ms, size, answers)
            for task, each in running.items():
                if task not in late and now_ms - each.begun_ms >= patience_ms:
                    late.add(task)
                    client.note_late(each.source.node)
                    lacking += 1
        if span is None:
            slow_ms = latency.slow_from_ms(kth_ms)
            for source in waiting:
                is_last = client.expected_ms(source.node, size) > slow_ms
                want = Wanted(segment, source.column, roots[source.column])
                if (is_last or client.late_since_ms(source.node)) and client.reprobe(
                    source.node, locate, generation, want
                ):
                    break
        return dict(sorted(got.items())[:k])
    finally:
        alarms = [task for task in (alarm, searching) if task is not None]
        await stop_all([*running, *alarms])


def insufficient(
    segment: int, k: int, got: int, failed: Sequence[tuple[Source, XscError]]
) -> ShardsInsufficient:
    """Return the error that says how many of k shards were fetched, and what failed."""
    named = reasons((source.node, fault) for source, fault in failed)
    return ShardsInsufficient(
        f"{got} of the {k} shards needed of segment {segment} could be fetched ({named})",
        hint="try again when the silent peers are back; `xsc store stat` shows every shard",
    )
