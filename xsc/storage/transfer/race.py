"""Ranks the hosts of an object by latency, and races them for shards."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from xsc.base import errors, limits, refusals
from xsc.storage.object.erasure import Buffer
from xsc.storage.object.inventory import SegmentShards
from xsc.storage.object.segment import Span
from xsc.storage.transfer import latency
from xsc.storage.transfer.host_client import HostClient, Source, Take, stop_all

More: TypeAlias = Callable[[], Awaitable[Sequence[Source]]]
"""Finds further sources of an object."""


def in_order(
    client: HostClient,
    sources: Iterable[Source],
    k: int,
    size_bytes: int = limits.MIB,
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
    segment: SegmentShards,
    sources: Sequence[Source],
    *,
    span: Span | None = None,
    column: int | None = None,
    take: Take | None = None,
    tickets: Iterable[asyncio.Future[None]] = (),
    arrived: Callable[[], None] | None = None,
    more: More | None = None,
    doubted: set[bytes] | None = None,
) -> dict[int, Buffer]:
    """Return k verified shards of a segment, from the first sources of k columns to give theirs.

    Fewer where one `column` is enough. With a span it is the same leaves of each. Several sources
    may name one column.
    The next source is asked at once when one fails. When one takes longer than
    `latency.patience_ms`, a hedged request goes to the next source beside it.

    Args:
        client: the hosts.
        segment: whose shards are fetched.
        sources: in the order in which they are asked.
        span: the leaves to fetch; None: whole shards.
        column: one that is enough without the others. Its best source, if that is up and was not
            late or wrong before, is asked alone until it is.
        take: takes each shard as it arrives.
        tickets: as many requests as are done may be under way; none: any number.
        arrived: called after each shard.
        more: finds other sources, called once when all have failed.
        doubted: nodes that fail are added to it.

    Raises:
        ShardsInsufficient: fewer than k can be fetched; the message names who is silent.
    """
    clock = client.clock
    k, where = segment.code.k, (segment.locate, segment.code.generation)
    size = segment.shard_bytes if span is None else span.size_bytes
    kth_ms = client.kth_ms(sources, k, size)
    waiting = list(sources)
    running: dict[asyncio.Task[Any], _Asked] = {}
    late: set[asyncio.Task[Any]] = set()
    answers: list[tuple[int, int]] = []
    got: dict[int, Buffer] = {}
    failed: list[tuple[Source, errors.XscError]] = []
    faulty = set() if doubted is None else doubted
    tickets = deque(tickets)
    lacking = 0  # how many are late beside whom nobody was asked yet
    searching: asyncio.Task[list[Source]] | None = None
    alarm: asyncio.Task[None] | None = None
    best = next((source for source in waiting if source.column == column), None)
    alone = (
        best is not None
        and client.is_up(best.node)
        and not (best.node in faulty or client.late_since_ms(best.node))
    )
    if alone:
        waiting.sort(key=lambda source: source is not best)

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
        want = segment.wanted(source.column, span)
        task = asyncio.create_task(client.fetch(source.node, *where, want, take))
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
        while len(got) < k and column not in got:
            while tickets and tickets[0].done():
                tickets.popleft()
            alone = alone and not (failed or late)
            enough = 1 if alone else k - len(tickets)
            while len({*got, *(each.source.column for each in running.values())}) < enough:
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
                raise insufficient(segment.index, k, len(got), failed)
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
                except errors.XscError as fault:
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
                want = segment.wanted(source.column)
                if (is_last or client.late_since_ms(source.node)) and client.reprobe(
                    source.node, *where, want
                ):
                    break
        return dict(sorted(got.items())[:k])
    finally:
        alarms = [task for task in (alarm, searching) if task is not None]
        await stop_all([*running, *alarms])


def insufficient(
    segment: int, k: int, got: int, failed: Sequence[tuple[Source, errors.XscError]]
) -> errors.ShardsInsufficient:
    """Return the error that says how many of k shards were fetched, and what failed."""
    named = refusals.reasons((source.node, fault) for source, fault in failed)
    return errors.ShardsInsufficient(
        f"{got} of the {k} shards needed of segment {segment} could be fetched ({named})",
        hint="try again when the silent peers are back; `xsc store stat` shows every shard",
    )
