import asyncio
from collections import Counter

import pytest

from tests.settle import turns
from tests.unit.storage.world import content
from xsc.base.clock import InlineExecutor
from xsc.base.errors import ShardMismatch, SpaceExhausted, StoreDamaged, TooLarge
from xsc.base.keyvalue import prefix_end
from xsc.base.log import SilentLog
from xsc.base.merkle import root_of
from xsc.base.units import held_bytes
from xsc.db.memory import MemoryKeyValue
from xsc.storage.object.inventory import ColumnPresence, FoundShard, Wanted
from xsc.storage.object.manifest import column_digest, hash_of
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore import writer
from xsc.storage.shardstore.bodies import Body, record_key, shard_key
from xsc.storage.shardstore.compactor import BUCKET
from xsc.storage.shardstore.index import DELETE_BATCH
from xsc.storage.shardstore.store import StorageNode
from xsc.storage.shardstore.writer import Write

ALICE, BOB = b"a" * 32, b"b" * 32
LEASE, OTHER = b"1" * 32, b"2" * 32
LOCATE = b"l" * 32


def shard(column=0, *, segment=0, data=b"data", customer=ALICE, lease=LEASE, locate=LOCATE):
    key = shard_key(locate, 0, segment, column, customer)
    return Body(key, lease, root_of(data), data)


def record(*, sealed=b"sealed", customer=ALICE, lease=LEASE):
    return Body(record_key(LOCATE, customer), lease, hash_of(sealed), sealed)


def wanted(data=b"data", column=0, segment=0):
    return Wanted(segment, column, root_of(data))


class Bodies(MemoryKeyValue):
    """Counts its synced writes, and can fail."""

    commits = 0
    fail = None

    def write(self, changes, *, sync):
        self.commits += sync
        if self.fail is not None:
            raise self.fail
        super().write(changes, sync=sync)


class Yielding(InlineExecutor):
    """Lets others run before each work, and counts it."""

    runs = 0

    async def run(self, function, *args, **kwargs):
        await asyncio.sleep(0)
        self.runs += 1
        return await super().run(function, *args, **kwargs)


class Disk:
    """Two stores that outlive the node."""

    def __init__(self):
        self.bodies = Bodies()
        self.index = MemoryKeyValue()
        self.executor = Yielding()

    async def node(self, capacity=10**9, *, rebuild=False):
        node = StorageNode(
            capacity_bytes=capacity,
            bodies=self.bodies,
            index=self.index,
            executor=self.executor,
            log=SilentLog(),
        )
        self.recovery = await node.start(rebuild=rebuild)
        return node

    def damage(self, data: bytes, replacement: bytes):
        for key, value in list(self.bodies.scan(b"")):
            if data in value:
                self.bodies.write([(key, value.replace(data, replacement))], sync=True)


@pytest.fixture
def disk():
    return Disk()


def index_of(disk):
    """All that the index says, but the mark."""
    return [item for item in disk.index.scan(b"") if item[0] != formats.MARK]


async def test_what_was_stored_is_got(disk):
    node = await disk.node()
    assert await node.store([shard(0), shard(1, data=b"more!")]) == held_bytes(9, 2)
    assert await node.get(LOCATE, 0, [wanted(), wanted(b"more!", 1), wanted(column=2)]) == [
        FoundShard("ok", b"data"),
        FoundShard("ok", b"more!"),
        FoundShard("missing"),
    ]
    assert (node.used_bytes, node.writer.reserved_bytes) == (held_bytes(9, 2), 0)
    assert dict(node.usage) == {LEASE: held_bytes(9, 2)}
    assert disk.bodies.commits == 1


async def test_a_shard_of_another_root_generation_or_place_is_missing(disk):
    node = await disk.node()
    await node.store([shard()])
    assert await node.get(LOCATE, 0, [wanted(b"other")]) == [FoundShard("missing")]
    assert await node.get(LOCATE, 1, [wanted()]) == [FoundShard("missing")]
    assert await node.get(LOCATE, 0, [wanted(segment=1)]) == [FoundShard("missing")]
    assert await node.get(b"x" * 32, 0, [wanted()]) == [FoundShard("missing")]


async def test_storing_the_same_again_is_storing_once(disk):
    node = await disk.node()
    assert await node.store([shard(), record()]) > 0
    used, before = node.used_bytes, list(disk.bodies.scan(b""))
    assert await node.store([shard(), record()]) == 0
    assert node.used_bytes == used
    assert list(disk.bodies.scan(b"")) == before


async def test_another_shard_in_that_place_is_refused(disk):
    node = await disk.node()
    await node.store([shard()])
    with pytest.raises(ShardMismatch):
        await node.store([shard(1), shard(data=b"evil")])
    assert node.used_bytes == held_bytes(4)
    assert node.writer.reserved_bytes == 0
    assert await node.get(LOCATE, 0, [wanted()]) == [FoundShard("ok", b"data")]


async def test_nobody_takes_the_place_of_another_customers_shard(disk):
    node = await disk.node()
    await node.store([shard(customer=BOB, data=b"squat")])
    await node.store([shard(customer=ALICE, data=b"data")])
    got = await node.get(LOCATE, 0, [wanted(b"data"), wanted(b"squat")])
    assert got == [FoundShard("ok", b"data"), FoundShard("ok", b"squat")]


async def test_capacity_is_exact(disk):
    capacity = held_bytes(10, 2)
    node = await disk.node(capacity=capacity)
    with pytest.raises(SpaceExhausted):
        await node.store([shard(data=bytes(held_bytes(11)))])
    await node.store([shard(data=bytes(9))])
    with pytest.raises(SpaceExhausted):
        await node.store([shard(1, data=bytes(2))])
    assert len(list(disk.bodies.scan(b"b"))) == 1
    await node.store([shard(1, data=bytes(1))])
    assert (node.used_bytes, node.writer.free_bytes) == (capacity, 0)
    with pytest.raises(SpaceExhausted):
        await node.store([shard(2, data=bytes(1))])


async def test_what_is_being_written_counts(disk):
    node = await disk.node(capacity=held_bytes(10, 2))
    first = asyncio.create_task(node.store([shard(data=bytes(6))]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert node.writer.reserved_bytes == held_bytes(6)
    with pytest.raises(SpaceExhausted):
        await node.store([shard(1, data=bytes(5))])
    assert await first == held_bytes(6)
    assert (node.used_bytes, node.writer.reserved_bytes) == (held_bytes(6), 0)


async def test_concurrent_stores_of_one_shard_write_it_once(disk):
    node = await disk.node()
    grown = await asyncio.gather(*(node.store([shard()]) for _ in range(5)))
    assert sorted(grown) == [0, 0, 0, 0, held_bytes(4)]
    assert node.used_bytes == held_bytes(4)


async def test_a_failed_write_leaves_nothing_reserved(disk):
    node = await disk.node(capacity=held_bytes(10))
    disk.bodies.fail = StoreDamaged("the disk is full")
    with pytest.raises(StoreDamaged):
        await node.store([shard(data=bytes(10))])
    disk.bodies.fail = None
    assert node.writer.reserved_bytes == 0
    await node.store([shard(data=bytes(10))])
    assert node.used_bytes == held_bytes(10)


async def test_a_cancelled_store_is_finished_and_counted(disk):
    node = await disk.node()
    task = asyncio.create_task(node.store([shard()]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The same shard again waits for the write that goes on.
    assert await node.store([shard()]) == 0
    assert (node.used_bytes, node.writer.reserved_bytes) == (held_bytes(4), 0)


@pytest.mark.parametrize("count", range(1, 5))
async def test_a_cancelled_store_tells_once_what_was_stored_and_one_that_is_refused_nothing(
    disk, count
):
    node = await disk.node()
    told = []
    first = Write([shard()], lambda held: told.append(dict(held)))
    second = Write([shard(data=b"other")], lambda held: told.append(dict(held)))
    task = asyncio.create_task(node.writer.store_together([first, second]))
    await turns(count)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await node.store([shard()]) == 0
    assert sorted(told, key=repr) == [{LEASE: held_bytes(4)}, {}]
    assert (node.used_bytes, node.writer.reserved_bytes) == (held_bytes(4), 0)


async def test_notes_of_damage_that_cannot_be_dropped_fail_nothing_that_is_on_the_disk(disk):
    async def damaged():
        node = await disk.node()
        disk.damage(b"data", b"flip")
        assert await node.get(LOCATE, 0, [wanted()]) == [FoundShard("corrupt")]
        return node

    def full(changes, *, sync):
        if not sync:
            raise SpaceExhausted("the disk is full")
        write(changes, sync=sync)

    write = disk.bodies.write
    await (await disk.node()).store([shard()])
    node, told = await damaged(), []
    disk.bodies.write = full
    again = Write([shard()], lambda held: told.append(dict(held)))
    assert await node.writer.store_together([again]) == [{LEASE: 0}]
    assert told == [{LEASE: 0}]
    assert await node.get(LOCATE, 0, [wanted()]) == [FoundShard("ok", b"data")]
    disk.bodies.write = write
    node = await damaged()
    disk.bodies.write = full
    assert await node.delete(LOCATE, ALICE) == {LEASE: held_bytes(4)}
    assert not node.damaged
    disk.bodies.write = write
    node = await disk.node(rebuild=True)
    assert (node.used_bytes, node.damaged) == (0, ())


async def test_writes_that_come_together_fail_each_for_itself(disk):
    node = await disk.node(capacity=held_bytes(20, 3))
    await node.store([shard(data=b"first")])
    outcomes = await node.writer.store_together(
        [
            Write([shard(data=b"other")]),
            Write([shard(1, data=bytes(8))]),
            Write([shard(2, data=bytes(held_bytes(30)))]),
            Write([shard(3, data=b"x")]),
        ]
    )
    assert [type(one) for one in outcomes] == [ShardMismatch, Counter, SpaceExhausted, Counter]
    assert (node.used_bytes, node.writer.reserved_bytes) == (held_bytes(14, 3), 0)
    # One write to the disk for all of them.
    assert disk.bodies.commits == 2


async def test_a_write_that_fails_is_the_error_of_all_that_it_held(disk):
    node = await disk.node()
    disk.bodies.fail = SpaceExhausted("the disk is full")
    told = []
    writes = [Write([shard(n)], lambda held: told.append(dict(held))) for n in range(3)]
    outcomes = await node.writer.store_together(writes)
    assert [type(one) for one in outcomes] == [SpaceExhausted] * 3
    assert len({id(one) for one in outcomes}) == 3
    assert told == [{}] * 3
    assert (node.used_bytes, node.writer.reserved_bytes) == (0, 0)
    disk.bodies.fail = None
    assert await node.store([shard(0)]) == held_bytes(4)


async def test_a_damaged_body_is_corrupt_and_never_wrong_bytes(disk):
    node = await disk.node()
    await node.store([shard()])
    disk.damage(b"data", b"dada")
    assert await node.get(LOCATE, 0, [wanted()]) == [FoundShard("corrupt")]


async def test_a_damaged_header_is_corrupt(disk):
    node = await disk.node()
    await node.store([shard()])
    ((key, value),) = disk.bodies.scan(b"b")
    for index in range(len(value)):
        bad = bytearray(value)
        bad[index] ^= 1
        disk.bodies.write([(key, bytes(bad))], sync=True)
        (found,) = await node.get(LOCATE, 0, [wanted()])
        assert found == FoundShard("corrupt") or bytes(found.data) == b"data"


async def test_a_store_that_fails_its_checksum_is_corrupt(disk):
    node = await disk.node()
    await node.store([shard()])

    def fail(_key, *, verify):
        raise StoreDamaged("a block fails its checksum")

    disk.bodies.get = fail
    assert await node.get(LOCATE, 0, [wanted()]) == [FoundShard("corrupt")]


async def test_a_body_that_is_gone_is_corrupt(disk):
    node = await disk.node()
    await node.store([shard()])
    ((key, _),) = disk.bodies.scan(b"b")
    disk.bodies.write([(key, None)], sync=True)
    assert await node.get(LOCATE, 0, [wanted()]) == [FoundShard("corrupt")]


async def test_a_damaged_shard_is_repaired_by_storing_it_again(disk):
    node = await disk.node()
    await node.store([shard()])
    disk.damage(b"data", b"dada")
    await node.get(LOCATE, 0, [wanted()])
    assert await node.store([shard()]) == 0
    assert await node.get(LOCATE, 0, [wanted()]) == [FoundShard("ok", b"data")]
    assert node.used_bytes == held_bytes(4)
    assert len(list(disk.bodies.scan(b"b"))) == 1


async def test_a_damaged_manifest_is_repaired_by_storing_it_again(disk):
    node = await disk.node()
    await node.store([record()])
    disk.damage(b"sealed", b"sEaled")
    assert await node.find(LOCATE, hash_of(b"sealed")) is None
    assert await node.store([record()]) == 0
    assert bytes(await node.find(LOCATE, hash_of(b"sealed"))) == b"sealed"
    assert node.used_bytes == record().held_bytes
    assert len(list(disk.bodies.scan(b"b", b"c"))) == 1


async def test_another_manifest_of_one_customer_under_the_same_locate_id_is_refused(disk):
    node = await disk.node()
    await node.store([record()])
    with pytest.raises(ShardMismatch, match="manifest"):
        await node.store([record(sealed=b"another")])
    await node.store([record(sealed=b"another", customer=BOB)])
    for sealed in (b"sealed", b"another"):
        assert bytes(await node.find(LOCATE, hash_of(sealed))) == sealed


async def test_find_gives_only_the_manifest_that_was_asked_for(disk):
    """Whoever stored it, and from whichever copy is whole."""
    node = await disk.node()
    await node.store([record()])
    before = disk.bodies.get(formats.sequenced(b"b", 1))
    await node.store([record(customer=BOB)])
    assert await node.find(LOCATE, hash_of(b"other")) is None
    assert await node.find(b"x" * 32, hash_of(b"sealed")) is None
    assert bytes(await node.find(LOCATE, hash_of(b"sealed"))) == b"sealed"
    hurt = before.replace(b"sealed", b"sEaled")
    disk.bodies.write([(formats.sequenced(b"b", 1), hurt)], sync=True)
    assert bytes(await node.find(LOCATE, hash_of(b"sealed"))) == b"sealed"
    disk.damage(b"sealed", b"sEaled")
    assert await node.find(LOCATE, hash_of(b"sealed")) is None


async def test_holds_tells_the_columns_with_the_asked_roots_whoever_stored_them(disk):
    node = await disk.node()
    pieces = [b"column %d" % column for column in range(6)]
    roots = [root_of(data) for data in pieces]
    manifest = hash_of(b"sealed")

    async def holds(**change):
        asked = {"locate": LOCATE, "generation": 0, "manifest_hash": manifest, "roots": roots}
        return await node.holds(**asked | change)

    assert await holds() == ColumnPresence(frozenset(), record=False)
    await node.store([shard(0, data=pieces[0]), shard(3, data=pieces[3])])
    await node.store([shard(5, data=pieces[5], customer=BOB, lease=OTHER)])
    await node.store([shard(1, segment=1, data=pieces[1])])
    right = ColumnPresence(frozenset({0, 3, 5}), record=False)
    assert await holds() == right, "a column is told by its first segment"
    await node.store([record(customer=BOB)])
    right = ColumnPresence(frozenset({0, 3, 5}), record=True)
    assert await holds() == right
    assert await holds(manifest_hash=bytes(32)) == ColumnPresence(right.columns, record=False)
    assert await holds(generation=1) == ColumnPresence(frozenset(), record=True)
    assert await holds(locate=b"x" * 32) == ColumnPresence(frozenset(), record=False)
    assert await holds(roots=roots[::-1]) == ColumnPresence(frozenset(), record=True)
    assert await holds(roots=roots[:4]) == ColumnPresence(frozenset({0, 3}), record=True)
    assert await holds(roots=[]) == ColumnPresence(frozenset(), record=True)


async def test_nobody_adds_to_what_a_node_holds_or_hides_it(disk):
    """Others with garbage under the same locate id, whose ids come before and after."""
    node = await disk.node()
    pieces = [b"column %d" % column for column in range(6)]
    roots = [root_of(data) for data in pieces]

    async def holds():
        return await node.holds(LOCATE, 0, hash_of(b"sealed"), roots)

    strangers = [bytes([number]) * 32 for number in (*range(20), *range(200, 220))]
    held = ColumnPresence(frozenset(), record=False)
    for column, owner in ((2, ALICE), (4, BOB), (255, BOB)):
        for stranger in strangers:
            garbage = [shard(c, data=b"garbage %d" % c, customer=stranger) for c in range(7)]
            await node.store([*garbage, record(sealed=b"garbage", customer=stranger)])
        assert await holds() == held
        await node.store([shard(column, data=b"column %d" % column, customer=owner)])
        if column < len(roots):
            held = ColumnPresence(held.columns | {column}, record=False)
        assert await holds() == held
    await node.store([record()])
    held = ColumnPresence(held.columns, record=True)
    assert await holds() == held
    for stranger in strangers:
        await node.delete(LOCATE, stranger)
    assert await holds() == held
    await node.delete(LOCATE, BOB)
    assert await holds() == ColumnPresence(held.columns - {4}, record=True)
    again = await disk.node(rebuild=True)
    assert await again.holds(LOCATE, 0, hash_of(b"sealed"), roots) == await holds()


async def test_stat_tells_columns_apart_and_finds_damage(disk):
    node = await disk.node()
    await node.store(
        [shard(0), shard(0, segment=1, data=b"next"), shard(4, data=b"four"), record()]
    )
    disk.damage(b"next", b"nExt")
    held = await node.stat(LOCATE, 0, hash_of(b"sealed"))
    assert held.record == "ok"
    assert [(row.column, row.segments, row.damaged) for row in held.columns] == [
        (0, 2, 1),
        (4, 1, 0),
    ]
    assert held.columns[0].digest == column_digest([(0, root_of(b"data")), (1, root_of(b"next"))])
    assert (await node.stat(LOCATE, 0, bytes(32))).record == "missing"
    assert (await node.stat(LOCATE, 1, hash_of(b"sealed"))).columns == ()
    disk.damage(b"sealed", b"sEaled")
    assert (await node.stat(LOCATE, 0, hash_of(b"sealed"))).record == "corrupt"


async def test_get_refuses_more_than_fits_an_answer(disk):
    node = await disk.node()
    await node.store([shard(), shard(1)])
    with pytest.raises(TooLarge):
        await node.get(LOCATE, 0, [wanted(), wanted(column=1)], size_max=7)
    assert len(await node.get(LOCATE, 0, [wanted(), wanted(column=1)], size_max=8)) == 2


async def test_only_the_customer_that_stored_deletes(disk):
    node = await disk.node()
    await node.store([shard(), record()])
    assert await node.delete(LOCATE, BOB) == {}
    assert await node.get(LOCATE, 0, [wanted()]) == [FoundShard("ok", b"data")]
    await node.store([shard(customer=BOB, lease=OTHER)])
    assert await node.delete(LOCATE, BOB) == {OTHER: held_bytes(4)}
    assert await node.get(LOCATE, 0, [wanted()]) == [FoundShard("ok", b"data")]
    freed = await node.delete(LOCATE, ALICE)
    assert freed == {LEASE: held_bytes(4) + record().held_bytes}
    assert node.used_bytes == 0
    assert dict(node.usage) == {}
    assert list(disk.bodies.scan(b"b", b"c")) == []
    assert index_of(disk) == []


async def test_deleting_twice_is_deleting_once(disk):
    node = await disk.node()
    await node.store([shard()])
    await node.delete(LOCATE, ALICE)
    assert await node.delete(LOCATE, ALICE) == {}
    assert await node.delete(b"x" * 32, ALICE) == {}


async def test_a_deletion_of_many_shards_goes_in_batches(disk):
    node = await disk.node()
    for start in range(0, DELETE_BATCH + 10, 174):
        await node.store([shard(0, segment=segment) for segment in range(start, start + 174)])
    count = len(list(disk.bodies.scan(b"b", b"c")))
    assert count > DELETE_BATCH
    assert await node.delete(LOCATE, ALICE) == {LEASE: held_bytes(4 * count, count)}
    assert index_of(disk) == []


async def test_deletions_of_many_objects_pass_no_more_in_a_turn_than_one(disk, monkeypatch):
    monkeypatch.setattr(writer, "PASSED_MAX", 12)
    node = await disk.node()
    places = [bytes([number]) * 32 for number in range(4)]
    for locate in places:
        await node.store([shard(locate=locate, segment=number) for number in range(7)])
    passed = Counter()

    def chosen(*_):
        passed[disk.executor.runs] += 1
        return True

    deleting = [node.writer.delete(locate, ALICE, chosen) for locate in places]
    assert await asyncio.gather(*deleting) == [{LEASE: held_bytes(28, 7)}] * 4
    assert passed.total() == 28
    assert max(passed.values()) <= 12
    assert index_of(disk) == []


async def test_a_deletion_waits_for_stores_of_the_object(disk):
    node = await disk.node()
    storing = asyncio.create_task(node.store([shard()]))
    await asyncio.sleep(0)
    assert await node.delete(LOCATE, ALICE) == {LEASE: held_bytes(4)}
    assert await storing == held_bytes(4)
    assert node.used_bytes == 0


async def test_what_was_deleted_may_be_stored_again(disk):
    node = await disk.node()
    await node.store([shard()])
    await node.delete(LOCATE, ALICE)
    assert await node.store([shard(data=b"new")]) == held_bytes(3)
    assert await node.get(LOCATE, 0, [wanted(b"new")]) == [FoundShard("ok", b"new")]


async def test_compact_covers_what_was_deleted(disk):
    node = await disk.node()
    ranges = []
    disk.bodies.compact = lambda start, stop: ranges.append((start, stop))
    assert await node.compactor.compact() == 0
    await node.store([shard(0), shard(1), shard(2)])
    await node.delete(LOCATE, ALICE)
    assert await node.compactor.compact() == 1
    assert await node.compactor.compact() == 0
    assert ranges == [(formats.sequenced(b"b", 0), formats.sequenced(b"b", BUCKET))]


async def test_little_that_is_dead_waits_until_it_is_more(disk):
    node = await disk.node()
    await node.store([shard(column, data=bytes(1000)) for column in range(20)])
    await node.store([shard(0, customer=BOB, data=bytes(1000))])
    await node.delete(LOCATE, BOB)
    assert await node.compactor.compact() == 0
    assert await node.compactor.compact(everything=True) == 1


async def test_what_was_deleted_before_a_start_is_found_by_a_survey(disk):
    node = await disk.node()
    await node.store([shard(0, data=bytes(1000)), shard(1)])
    await node.delete(LOCATE, ALICE)
    await node.store([shard(2, data=bytes(1000))])
    node = await disk.node()
    disk.bodies.disk_bytes = lambda start, stop: 9000
    assert await node.compactor.survey() == 8000
    assert await node.compactor.compact() == 1


async def fill(disk):
    node = await disk.node()
    await node.store([shard(0), shard(1, data=content(100)), record()])
    await node.store([shard(0, customer=BOB, lease=OTHER)])
    await node.store([record(customer=BOB, lease=OTHER)])
    await node.store([shard(5, locate=b"z" * 32, lease=OTHER)])
    await node.delete(b"z" * 32, ALICE)
    await node.store([shard(2, segment=7)])
    return node


async def test_a_rebuilt_index_is_the_live_one(disk):
    live = await fill(disk)
    before = index_of(disk)
    rebuilt = await disk.node(rebuild=True)
    assert disk.recovery.rebuilt
    assert index_of(disk) == before
    assert rebuilt.used_bytes == live.used_bytes
    assert dict(rebuilt.usage) == dict(live.usage)


async def test_a_lost_index_is_rebuilt(disk):
    live = await fill(disk)
    before = index_of(disk)
    disk.index = MemoryKeyValue()
    rebuilt = await disk.node()
    assert disk.recovery.rebuilt
    assert index_of(disk) == before
    assert rebuilt.used_bytes == live.used_bytes


async def test_every_loss_of_unsynced_index_writes_is_caught_up(disk):
    """The index may come back from a power loss at any of its earlier states."""
    states = [dict(disk.index.scan(b""))]
    write = disk.index.write

    def recording(changes, *, sync):
        write(changes, sync=sync)
        states.append(dict(disk.index.scan(b"")))

    disk.index.write = recording
    live = await fill(disk)
    disk.index.write = write
    final, usage, used = index_of(disk), dict(live.usage), live.used_bytes
    bodies = dict(disk.bodies.scan(b""))
    assert len(states) > 6
    for state in states:
        disk.index = MemoryKeyValue()
        disk.index.write(list(state.items()), sync=True)
        disk.bodies = MemoryKeyValue()
        disk.bodies.write(list(bodies.items()), sync=True)
        node = await disk.node()
        assert index_of(disk) == final
        assert dict(node.usage) == usage
        assert node.used_bytes == used


async def test_a_damaged_index_is_rebuilt(disk):
    live = await fill(disk)
    before = index_of(disk)
    for key, bad in ((formats.MARK, b"\xff"), (formats.USAGE + LEASE, b"\x01")):
        disk.index.write([(key, bad)], sync=True)
        node = await disk.node()
        assert disk.recovery.rebuilt
        assert index_of(disk) == before
        assert node.used_bytes == live.used_bytes


async def test_a_clean_start_replays_nothing_and_keeps_no_notes(disk):
    await fill(disk)
    await disk.node()
    assert disk.recovery.rebuilt is False
    assert disk.recovery.replayed == 0
    assert list(disk.bodies.scan(formats.GONE, b"h")) == []


async def test_sequences_are_never_used_twice(disk):
    node = await disk.node()
    await node.store([shard()])
    await node.delete(LOCATE, ALICE)
    await disk.node()
    again = await disk.node()
    await again.store([shard()])
    ((key, _),) = disk.bodies.scan(b"b", b"c")
    assert formats.sequence_of(key) == 3


async def test_a_body_that_cannot_be_read_does_not_stop_a_rebuild(disk):
    await fill(disk)
    first = next(disk.bodies.scan(b"b"))[0]
    disk.bodies.write([(first, b"\x00")], sync=True)
    node = await disk.node(rebuild=True)
    assert disk.recovery.damaged == 1
    assert await node.get(LOCATE, 0, [wanted(column=2, segment=7)]) == [FoundShard("ok", b"data")]


async def test_a_repaired_and_deleted_shard_leaves_nothing_in_a_lagging_index(disk):
    node = await disk.node()
    await node.store([shard()])
    lagging = dict(disk.index.scan(b""))
    disk.damage(b"data", b"dada")
    await node.get(LOCATE, 0, [wanted()])
    await node.store([shard()])
    await node.delete(LOCATE, ALICE)
    disk.index = MemoryKeyValue()
    disk.index.write(list(lagging.items()), sync=True)
    node = await disk.node()
    assert node.used_bytes == 0
    assert index_of(disk) == []


async def test_what_is_deleted_before_it_is_read_is_missing_and_not_damaged(disk):
    node = await disk.node()
    await node.store([shard(), record()])

    class Deleting(InlineExecutor):
        async def run(self, function, *args, **kwargs):
            if function in (node._reader.get, node._reader.stat):
                await node.delete(LOCATE, ALICE)
            return await super().run(function, *args, **kwargs)

    node._executor = Deleting()
    assert await node.get(LOCATE, 0, [wanted()]) == [FoundShard("missing")]
    await node.store([shard(), record()])
    held = await node.stat(LOCATE, 0, hash_of(b"sealed"))
    assert (held.record, held.records) == ("missing", ())
    assert [column.bad for column in held.columns] == [()]
    assert list(disk.bodies.scan(formats.DAMAGED, prefix_end(formats.DAMAGED))) == []


async def test_stores_that_are_synced_together_share_one_write_of_the_index(disk):
    class Counting(MemoryKeyValue):
        writes = 0

        def write(self, changes, *, sync):
            Counting.writes += 1
            super().write(changes, sync=sync)

    disk.index = Counting()
    node = await disk.node()
    before = Counting.writes
    await asyncio.gather(*(node.store([shard(segment=number)]) for number in range(20)))
    assert Counting.writes - before <= 3
    assert node.used_bytes == 20 * held_bytes(len(b"data"))
    again = await disk.node(rebuild=True)
    assert again.used_bytes == node.used_bytes


async def test_a_deletion_between_stores_of_one_write_drops_only_what_came_before(disk):
    node = await disk.node()
    await node.store([shard()])
    both = [node.store([shard(locate=b"m" * 32, segment=n)]) for n in range(5)]
    await asyncio.gather(node.delete(LOCATE, ALICE), *both)
    await node.store([shard()])
    assert node.used_bytes == 6 * held_bytes(len(b"data"))
    assert (await disk.node(rebuild=True)).used_bytes == node.used_bytes


async def test_an_index_that_cannot_be_written_fails_every_store_that_waits_for_it(disk):
    node = await disk.node()

    def broken(changes, *, sync):
        raise StoreDamaged("no")

    disk.index.write, good = broken, disk.index.write
    stores = (node.store([shard(segment=number)]) for number in range(3))
    got = await asyncio.gather(*stores, return_exceptions=True)
    assert [type(item) for item in got] == [StoreDamaged] * 3
    disk.index.write = good
    # The bodies are there; the next start enters them.
    assert (await disk.node()).used_bytes == 3 * held_bytes(len(b"data"))


async def test_what_was_deleted_and_could_not_be_entered_is_no_damage(disk):
    node = await disk.node()
    await node.store([shard(), shard(1), record()])

    def broken(changes, *, sync):
        raise SpaceExhausted("the disk is full")

    disk.index.write, good = broken, disk.index.write
    with pytest.raises(SpaceExhausted):
        await node.delete(LOCATE, ALICE)
    assert (await node.audit(deep=True)).damaged == ()
    assert node.damaged == ()
    disk.index.write = good
    await node.delete(LOCATE, ALICE)
    assert node.used_bytes == 0
