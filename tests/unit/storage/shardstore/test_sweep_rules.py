"""What a host drops by itself, and above all what it does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.net.nodes import RecordingLog
from tests.unit.storage.shardstore.test_store import BOB, LEASE, OTHER, Disk, record, shard
from tests.unit.storage.world import Book
from xsc.base import limits
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.limits import PPM, STORAGE_LEASE_MS
from xsc.base.units import held_bytes
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.storage import sweeper
from xsc.storage.shardstore import writer
from xsc.storage.sweeper import (
    MARKS,
    ORPHANS,
    SWEEP_OBJECTS_MAX,
    Mark,
    Sweeper,
    ended,
    needless,
    older_than,
)
from xsc.terms.lease import OWN_STORAGE

HOUR = 3_600_000
DAY = 24 * HOUR
GRACE, LEFTOVER = 30 * DAY, DAY
ELSEWHERE = b"z" * 32


class Clock(ManualClock):
    """Pauses take no time, and days pass at once."""

    def __init__(self):
        super().__init__()
        self.later_ms = 0

    def now_ms(self):
        return super().now_ms() + self.later_ms

    async def sleep_ms(self, duration_ms):
        pass


class Scene:
    def __init__(self):
        self.disk = Disk()
        self.state = MemoryKeyValue()
        self.clock = Clock()
        self.book = Book()
        self.log = RecordingLog()

    async def start(self):
        self.node = await self.disk.node()
        self.node.writer.settle_use = self.book.settle_use
        entropy, executor = SeededEntropy(b""), InlineExecutor()
        context = Context(
            None, b"", self.clock, entropy, executor, None, self.log, self.state, None
        )
        self.sweeper = Sweeper(
            context,
            node=self.node,
            leases=self.book,
            grace_ms=GRACE,
            leftover_ms=LEFTOVER,
        )
        return self

    async def store(self, *bodies):
        for body in bodies:
            await self.node.store([body])
            if body.lease_id != OWN_STORAGE:
                self.book.used[body.lease_id] = (
                    self.book.used.get(body.lease_id, 0) + body.held_bytes
                )

    async def hours(self, count):
        """Let time pass with a round every hour; return what was dropped in all."""
        expired = leftover = 0
        for _ in range(count):
            self.clock.later_ms += HOUR
            swept = await self.sweeper.round()
            expired += swept.expired_bytes
            leftover += swept.leftover_bytes
        return expired, leftover


@pytest.fixture
async def scene():
    return await Scene().start()


async def test_a_lease_that_is_over_keeps_its_bodies_through_the_grace_and_no_longer(scene):
    await scene.store(shard(), record(), shard(3, lease=OTHER))
    now_ms = scene.clock.now_ms()
    scene.book.ends_ms = {LEASE: now_ms + DAY, OTHER: now_ms + 400 * DAY}
    scene.clock.later_ms = DAY + GRACE
    assert (await scene.sweeper.round()).expired_bytes == 0
    scene.clock.later_ms += 1
    swept = await scene.sweeper.round()
    assert swept.expired_bytes == held_bytes(4) + record().held_bytes
    (line,) = [fields for event, fields in scene.log.events if event == "storage.dropped"]
    assert (line["why"], line["size_bytes"]) == ("lease_over", swept.expired_bytes)
    assert line["used_bytes"] == scene.node.used_bytes == held_bytes(4)
    capacity = scene.node.writer.capacity_bytes
    assert line["used_ppm"] == held_bytes(4) * PPM // capacity
    assert dict(scene.node.usage) == {OTHER: held_bytes(4)}
    assert scene.book.used == {LEASE: 0, OTHER: held_bytes(4)}
    assert (await scene.node.audit(deep=True)).whole


async def test_only_what_lies_under_the_lease_that_is_over_goes(scene):
    """Of an object stored under two leases, what the other lease holds stays."""
    await scene.store(
        shard(0), shard(1, lease=OTHER), record(), shard(0, locate=ELSEWHERE, customer=BOB)
    )
    now_ms = scene.clock.now_ms()
    scene.book.ends_ms = {LEASE: now_ms, OTHER: now_ms + 400 * DAY}
    scene.clock.later_ms = GRACE + 1
    await scene.sweeper.round()
    (left,) = [key async for key in keys(scene)]
    assert left == shard(1, lease=OTHER).index_key


async def keys(scene):
    for key, _ in await scene.node.entries(b"", 1000):
        yield key


async def test_debt_and_fullness_delete_nothing(scene):
    await scene.store(shard(), record())
    scene.book.ends_ms = {LEASE: scene.clock.now_ms() + 80 * DAY}
    scene.book.room = {LEASE: 0}
    assert await scene.hours(79 * 24) == (0, 0)


async def test_own_objects_never_run_out(scene):
    await scene.store(shard(lease=OWN_STORAGE), record())
    scene.book.ends_ms = {LEASE: scene.clock.now_ms() + 4000 * DAY}
    scene.clock.later_ms = 3000 * DAY
    assert await scene.hours(30) == (0, 0)


async def test_a_lease_that_nobody_knows_counts_from_when_it_was_missed(scene):
    await scene.store(shard(), record())
    await scene.sweeper.round()
    scene.clock.later_ms = STORAGE_LEASE_MS + GRACE
    assert (await scene.sweeper.round()).expired_bytes == 0
    # One that comes to be known again is as it says.
    scene.book.ends_ms = {LEASE: scene.clock.now_ms() + DAY}
    scene.clock.later_ms += 1
    assert (await scene.sweeper.round()).expired_bytes == 0
    assert list(scene.state.scan(ORPHANS, b"storage/orphan0")) == []
    scene.book.ends_ms = {}
    await scene.sweeper.round()
    scene.clock.later_ms += STORAGE_LEASE_MS + GRACE + 1
    assert (await scene.sweeper.round()).expired_bytes == held_bytes(4) + record().held_bytes


async def test_an_upload_that_was_given_up_is_dropped_after_a_day(scene):
    await scene.store(shard(0), shard(1))
    assert await scene.hours(24) == (0, 0)
    assert await scene.hours(2) == (0, held_bytes(8, 2))
    assert scene.node.used_bytes == 0
    assert scene.book.used == {LEASE: 0}
    assert (await scene.node.audit(deep=True)).whole


async def test_a_record_from_anybody_keeps_an_upload(scene):
    await scene.store(shard(0), record(customer=BOB))
    assert await scene.hours(24 * 20) == (0, 0)


async def test_a_record_at_the_last_moment_keeps_an_upload(scene):
    await scene.store(shard(0))
    await scene.hours(24)
    await scene.store(record())
    assert await scene.hours(48) == (0, 0)


async def test_a_shard_that_comes_during_the_round_keeps_an_upload(scene, monkeypatch):
    """The survey has passed its object by then: the writer looks again before it deletes."""
    await scene.store(shard(0), shard(0, customer=BOB, locate=ELSEWHERE))
    await scene.hours(24)
    survey = scene.sweeper._survey

    async def late(over):
        found = await survey(over)
        await scene.store(shard(1))
        return found

    monkeypatch.setattr(scene.sweeper, "_survey", late)
    assert await scene.hours(2) == (0, held_bytes(4))
    assert scene.node.used_bytes == held_bytes(8, 2)


async def test_no_turn_of_the_writer_looks_at_all_of_a_large_leftover(scene, monkeypatch):
    monkeypatch.setattr(writer, "PASSED_MAX", 4)
    monkeypatch.setattr(limits, "SWEEP_SLICE", 4)
    await scene.store(*(shard(0, segment=segment) for segment in range(40)))
    await scene.hours(24)
    passed, run, between = [], scene.disk.executor.run, scene.node._index.between

    def counted(*asked):
        for put in between(*asked):
            passed[-1] += 1
            yield put

    async def noted(*work, **options):
        passed.append(0)
        return await run(*work, **options)

    monkeypatch.setattr(scene.disk.executor, "run", noted)
    monkeypatch.setattr(scene.node._index, "between", counted)
    assert await scene.hours(2) == (0, held_bytes(160, 40))
    assert max(passed) == 4


async def test_an_upload_that_goes_on_is_kept_however_long_it_takes(scene):
    for segment in range(10):
        await scene.store(shard(0, segment=segment))
        assert await scene.hours(20) == (0, 0)
    await scene.store(record())
    assert await scene.hours(100) == (0, 0)


async def test_the_age_of_an_upload_is_known_after_a_restart(scene):
    await scene.store(shard(0))
    await scene.hours(12)
    await scene.start()
    assert await scene.hours(12) == (0, 0)
    assert await scene.hours(2) == (0, held_bytes(4))


async def test_a_host_that_was_off_for_days_drops_nothing_that_it_has_not_marked(scene):
    await scene.store(shard(0))
    scene.clock.later_ms = 10 * DAY
    await scene.start()
    assert await scene.hours(24) == (0, 0)


async def test_marks_from_a_clock_that_was_ahead_say_nothing(scene):
    scene.clock.later_ms = 100 * DAY
    await scene.sweeper.round()
    scene.clock.later_ms = 0
    await scene.store(shard(0))
    assert await scene.hours(24) == (0, 0)
    assert await scene.hours(2) == (0, held_bytes(4))


async def test_marks_do_not_pile_up(scene):
    await scene.hours(24 * 30)
    assert len(list(scene.state.scan(MARKS, b"storage/mark0"))) <= 27


async def test_a_round_is_bounded_and_a_collection_is_not(scene, monkeypatch):
    monkeypatch.setattr(sweeper, "SWEEP_OBJECTS_MAX", 3)
    for number in range(8):
        await scene.store(shard(locate=bytes([number]) * 32))
    scene.book.ends_ms = {LEASE: scene.clock.now_ms()}
    scene.clock.later_ms = GRACE + 1
    first = await scene.sweeper.round()
    assert first.objects == 3
    rest = await scene.sweeper.round(everything=True)
    assert rest.objects == 5
    assert SWEEP_OBJECTS_MAX > 3


async def test_slices_see_every_entry_once(scene, monkeypatch):
    bodies = [
        shard(c, segment=s, locate=bytes([n]) * 32)
        for n in range(5)
        for s in range(3)
        for c in (0, 4)
    ]
    await scene.store(*bodies, record())
    whole = await scene.node.entries(b"", 1000)
    assert len(whole) == 31
    for most in (1, 2, 7, 30, 31):
        seen, after = [], b""
        while part := await scene.node.entries(after, most):
            assert len(part) <= most
            seen += part
            after = part[-1][0]
        assert seen == whole


@given(st.dictionaries(st.integers(0, 100), st.integers(0, 50), max_size=12), st.integers(0, 100))
def test_a_mark_that_is_dropped_was_of_no_use(pairs, before):
    marks, sequence = [], 0
    for time_ms, more in sorted(pairs.items()):
        sequence += more
        marks.append(Mark(time_ms, sequence))
    gone = needless(marks, before)
    kept = [mark for mark in marks if mark not in gone]
    for later in range(before, 110):
        assert older_than(kept, later) == older_than(marks, later)


@given(st.dictionaries(st.binary(min_size=1, max_size=2), st.integers(0, 99)), st.integers(0, 99))
def test_a_lease_is_over_strictly_after_its_grace(ends, now_ms):
    assert ended(ends, now_ms, 7) == {lease for lease, end in ends.items() if now_ms - end > 7}
