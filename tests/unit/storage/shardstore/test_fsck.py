"""Comparing bodies and index; notes of damage; what a node does with a damaged disk."""

import asyncio
import contextlib
import random
import shutil

import pytest

from tests.unit.storage.shardstore.test_store import (
    ALICE,
    BOB,
    LEASE,
    LOCATE,
    Disk,
    fill,
    index_of,
    record,
    shard,
    wanted,
)
from xsc.base.clock import InlineExecutor
from xsc.base.errors import StoreDamaged, XscError
from xsc.base.log import SilentLog
from xsc.db.leveldb import LevelDBKeyValue, salvage
from xsc.db.memory import MemoryKeyValue
from xsc.node.home.stores import open_stores
from xsc.storage.object.inventory import FoundShard, Wanted
from xsc.storage.object.manifest import hash_of
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.fsck import Gaps, readable
from xsc.storage.shardstore.store import StorageNode


@pytest.fixture
def disk():
    return Disk()


class Torn(MemoryKeyValue):
    """Cannot read some keys: a scan fails at the first, as LevelDB's does."""

    def __init__(self, torn=()):
        super().__init__()
        self.torn = set(torn)

    def get(self, key, *, verify=True):
        if key in self.torn:
            raise StoreDamaged("a block fails its checksum")
        return super().get(key, verify=verify)

    def scan(self, start, stop=None, *, reverse=False):
        found = super().scan(start, stop, reverse=reverse)
        for key, value in found:
            if key in self.torn:
                raise StoreDamaged("a block fails its checksum")
            yield key, value


def body_key(sequence):
    return formats.sequenced(formats.BODIES, sequence)


# Reading past damage


def test_every_choice_of_unreadable_bodies_is_read_past():
    """All 2^8 losses among eight bodies whose sequences have gaps of their own."""
    sequences = [1, 2, 3, 7, 8, 20, 21, 5000]
    for choice in range(2 ** len(sequences)):
        torn = {s for bit, s in enumerate(sequences) if choice >> bit & 1}
        store = Torn(map(body_key, torn))
        store.write([(body_key(s), b"x") for s in sequences], sync=True)
        gaps = Gaps()
        found = [s for s, _, _ in readable(store, formats.BODIES, 0, gaps, sequences[-1])]
        assert found == [s for s in sequences if s not in torn]
        assert all(s in gaps for s in torn)
        assert not any(s in gaps for s in found)


def test_a_store_of_which_nothing_can_be_read_ends():
    class Dead(MemoryKeyValue):
        def scan(self, start, stop=None, *, reverse=False):
            raise StoreDamaged("no table can be read")

    gaps = Gaps()
    assert list(readable(Dead(), formats.BODIES, 6, gaps)) == []
    assert gaps.ranges == []


class Unscanned(Torn):
    """One of its newest tables cannot be opened: no scan begins, single reads look elsewhere."""

    def scan(self, start, stop=None, *, reverse=False):
        if self.torn:
            raise StoreDamaged("a table cannot be opened")
        yield from super().scan(start, stop, reverse=reverse)


@pytest.mark.parametrize("known", [0, 20, 5000])
def test_where_no_scan_gets_on_every_body_is_read_by_itself(known):
    sequences = [1, 2, 3, 7, 8, 20, 21, 5000]
    for choice in range(1, 2 ** len(sequences), 5):
        torn = {s for bit, s in enumerate(sequences) if choice >> bit & 1}
        store = Unscanned(map(body_key, torn))
        store.write([(body_key(s), b"x") for s in sequences], sync=True)
        gaps = Gaps()
        found = [s for s, _, _ in readable(store, formats.BODIES, 0, gaps, known)]
        # Behind a hole of over 4 096 sequences nothing is looked for that nobody knows of.
        reached = [s for s in sequences if known == 5000 or s < 5000]
        assert found == [s for s in reached if s not in torn]
        assert all(s in gaps for s in torn.intersection(reached))
        assert not any(s in gaps for s in found)
        assert sorted(gaps.ranges) == gaps.ranges
        if known == 5000:
            assert not any(s in gaps for s in range(1, 5000) if s not in torn)


# Comparing


async def test_a_sound_store_is_whole_and_counted_to_the_byte(disk):
    node = await fill(disk)
    for deep in (False, True):
        told = []
        audit = await node.audit(deep=deep, progress=told.append)
        assert audit.whole
        assert len(told) == audit.bodies
        assert 0 < sum(told) <= node.used_bytes
        assert audit.bytes_held == audit.bytes_counted == node.used_bytes
        assert audit.bodies == len(list(disk.bodies.scan(b"b", b"c")))


async def test_an_index_that_says_anything_else_is_a_fault(disk):
    node = await fill(disk)
    sound = dict(disk.index.scan(b""))
    for key, value in sound.items():
        if key == formats.MARK or key.startswith(formats.USAGE):
            continue
        entry = formats.decode_entry(value)
        for other in (
            None,
            formats.IndexEntry(entry.sequence, entry.size_bytes + 1, LEASE, entry.proof),
            formats.IndexEntry(entry.sequence, entry.size_bytes, b"9" * 32, entry.proof),
            formats.IndexEntry(entry.sequence, entry.size_bytes, LEASE, bytes(32)),
        ):
            raw = None if other is None else formats.encode_entry(other)
            if raw == value:
                continue
            disk.index.write([(key, raw)], sync=True)
            assert (await node.audit()).index_faults
            disk.index.write([(key, value)], sync=True)
    assert (await node.audit()).whole
    node._index.usage[LEASE] += 1
    (fault,) = (await node.audit()).index_faults
    assert "holds" in fault


async def test_damage_of_every_kind_is_found_listed_and_told_by_stat(disk):
    node = await disk.node()
    pieces = [shard(0), shard(1, data=b"one!"), shard(2, data=b"two!"), record()]
    await node.store(pieces)
    disk.damage(b"data", b"dada")
    disk.bodies.write([(body_key(2), None)], sync=True)
    disk.bodies.write([(body_key(3), b"\x00")], sync=True)
    disk.damage(b"sealed", b"sEaled")
    shallow = await node.audit()
    assert {item.entry.sequence: item.reason for item in shallow.damaged} == {
        2: "gone",
        3: "unreadable",
    }
    deep = await node.audit(deep=True)
    reasons = {item.entry.sequence: item.reason for item in deep.damaged}
    assert reasons == {1: "mismatch", 2: "gone", 3: "unreadable", 4: "mismatch"}
    assert deep.bytes_held == deep.bytes_counted == node.used_bytes
    listed = sorted(item.entry.sequence for item in node.damaged)
    assert listed == [1, 2, 3, 4]
    held = await node.stat(LOCATE, 0, hash_of(b"sealed"))
    assert [(row.column, row.damaged) for row in held.columns] == [(0, 1), (1, 1), (2, 1)]
    assert held.record == "corrupt"


async def test_damage_that_was_found_is_known_after_a_start_and_a_rebuild(disk):
    node = await disk.node()
    await node.store([shard(0), shard(1, data=b"one!"), shard(2, data=b"two!"), record()])
    before, used = index_of(disk), node.used_bytes
    disk.damage(b"data", b"dada")
    disk.bodies.write([(body_key(2), None), (body_key(3), b"\x00")], sync=True)
    await node.audit(deep=True)
    for rebuild in (False, True):
        node = await disk.node(rebuild=rebuild)
        assert sorted(item.entry.sequence for item in node.damaged) == [1, 2, 3]
        # What cannot be read keeps its place and its bytes: accounting is identical.
        assert index_of(disk) == before
        assert node.used_bytes == used
        found = await node.get(LOCATE, 0, [wanted(), wanted(b"one!", 1), wanted(b"two!", 2)])
        assert found == [FoundShard("corrupt")] * 3


async def test_a_damaged_body_leaves_the_list_when_it_is_stored_anew_or_deleted(disk):
    node = await disk.node()
    await node.store([shard(0), shard(1, data=b"one!")])
    await node.store([shard(0, customer=BOB)])
    disk.bodies.write([(body_key(1), None), (body_key(2), None)], sync=True)
    assert len((await node.audit()).damaged) == 2
    await node.store([shard(0)])
    assert [item.entry.sequence for item in node.damaged] == [2]
    await node.delete(LOCATE, ALICE)
    assert node.damaged == ()
    assert list(disk.bodies.scan(formats.DAMAGED, b"e")) == []
    assert (await node.audit(deep=True)).whole
    assert (await disk.node()).damaged == ()


async def test_what_salvage_brings_back_beside_what_took_its_place_goes_again(disk):
    node = await disk.node()
    await node.store([record()])
    old = disk.bodies.get(body_key(1))
    disk.damage(b"sealed", b"sEaled")
    await node.audit(deep=True)
    await node.store([record()])
    assert disk.bodies.get(body_key(1)) is None
    before, used = index_of(disk), node.used_bytes
    disk.bodies.write([(body_key(1), old)], sync=True)
    node = await disk.node(rebuild=True)
    assert (index_of(disk), node.used_bytes) == (before, used)
    assert disk.bodies.get(body_key(1)) is None
    assert (await node.audit(deep=True)).whole


async def test_a_check_beside_writers_finds_no_fault(disk):
    node = await disk.node()
    stop = False

    async def work(number):
        locate = bytes([number]) * 32
        while not stop:
            await node.store([shard(0, locate=locate), shard(1, locate=locate)])
            await node.delete(locate, ALICE)

    workers = [asyncio.create_task(work(number)) for number in range(1, 5)]
    for _ in range(30):
        assert (await node.audit(deep=True)).whole
    stop = True
    await asyncio.gather(*workers)
    assert node.used_bytes == 0


async def test_unreadable_blocks_do_not_keep_a_node_from_starting(disk):
    disk.bodies = Torn()
    node = await disk.node()
    await node.store([shard(column, data=b"data%d" % column) for column in range(6)])
    disk.bodies.torn = {body_key(2), body_key(3)}
    node = await disk.node()
    assert not disk.recovery.rebuilt
    audit = await node.audit(deep=True)
    assert [item.entry.sequence for item in audit.damaged] == [2, 3]
    assert audit.unreadable == ((2, 3),)
    # Without any index, what was noted is still known by name.
    disk.index = MemoryKeyValue()
    node = await disk.node()
    assert disk.recovery.rebuilt
    states = await node.get(LOCATE, 0, [wanted(b"data%d" % c, c) for c in range(6)])
    assert [item.state for item in states] == ["ok", "corrupt", "corrupt", "ok", "ok", "ok"]
    await node.store([shard(9)])
    assert (await node.get(LOCATE, 0, [wanted(column=9)]))[0].state == "ok"


async def test_a_damaged_note_of_a_deletion_costs_a_rebuild_and_brings_nothing_back(disk):
    node = await disk.node()
    await node.store([shard(0), shard(1)])
    lagging = dict(disk.index.scan(b""))
    await node.delete(LOCATE, ALICE)
    ((note, _),) = disk.bodies.scan(formats.GONE, b"h")
    disk.bodies.write([(note, b"\x00")], sync=True)
    disk.index = MemoryKeyValue()
    disk.index.write(list(lagging.items()), sync=True)
    node = await disk.node()
    assert disk.recovery.rebuilt
    assert node.used_bytes == 0
    assert (await node.get(LOCATE, 0, [wanted()]))[0].state == "missing"


# Real databases, damaged at random


DATA = [random.Random(number).randbytes(3000) for number in range(40)]


def make(folder):
    """A closed store of forty shards of known content in several files."""

    async def main():
        node, stores = await start(folder)
        try:
            for number, data in enumerate(DATA):
                await node.store([shard(0, segment=number, data=data)])
                if number == 25:
                    stores.bodies.compact(b"", b"\xff")
                    stores.index.compact(b"", b"\xff")
            await node.store([record()])
        finally:
            stores.close()

    asyncio.run(main())


async def start(folder, rebuild=False):
    stores = open_stores(folder, SilentLog())
    try:
        executor = InlineExecutor()
        node = StorageNode(
            capacity_bytes=2**30,
            bodies=stores.bodies,
            index=stores.index,
            executor=executor,
            log=SilentLog(),
        )
        await node.start(rebuild=rebuild)
    except XscError:
        stores.close()
        raise
    return node, stores


WANTED = [Wanted(number, 0, shard(data=data).proof) for number, data in enumerate(DATA)]


async def survive(folder, rebuild=False):
    """Start on a damaged store; return the states, or None where it was refused."""
    try:
        node, stores = await start(folder, rebuild)
    except StoreDamaged:
        return None
    try:
        found = await node.get(LOCATE, 0, WANTED)
        for item, data in zip(found, DATA, strict=True):
            assert item.state != "ok" or bytes(item.data) == data
        audit = await node.audit(deep=True)
        assert not audit.index_faults
        assert audit.bytes_held == audit.bytes_counted == node.used_bytes
        lost = {w.segment for w, item in zip(WANTED, found, strict=True) if item.state == "corrupt"}
        listed = {
            formats.column_of_key(item.key)[0]
            for item in node.damaged
            if item.key.startswith(formats.SHARDS)
        }
        # A read is for the right bytes; harm beside them is found by the scan alone.
        assert lost <= listed
        with contextlib.suppress(StoreDamaged):
            await node.store([shard(0, segment=99)])
        await node.compactor.compact(everything=True)
        return [item.state for item in found]
    finally:
        stores.close()


def harm(draw, folder):
    """Do something to one file: flip a bit, cut the end, empty it, or take it away."""
    files = sorted(file for file in folder.iterdir() if file.name not in ("LOCK", "LOG"))
    file = draw.choice([file for file in files if not file.name.startswith("LOG")])
    raw = bytearray(file.read_bytes())
    match draw.choice(["flip", "flip", "flip", "cut", "zero", "remove"]):
        case "flip" if raw:
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
            file.write_bytes(raw)
        case "cut" if raw:
            file.write_bytes(raw[: draw.randrange(len(raw))])
        case "zero" if raw:
            first = draw.randrange(len(raw))
            last = min(len(raw), first + 512)
            raw[first:last] = bytes(last - first)
            file.write_bytes(raw)
        case "remove":
            file.unlink()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "db"
    make(folder)
    return folder


def test_a_sound_store_gives_everything(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "db")
    assert asyncio.run(survive(tmp_path / "db")) == ["ok"] * len(DATA)


@pytest.mark.parametrize("seed", range(6))
def test_no_damage_of_the_index_costs_anything(sound, tmp_path, seed):
    draw = random.Random(seed)
    for number in range(10):
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder)
        for _ in range(draw.choice([1, 1, 3])):
            if any((folder / "index").iterdir()):
                harm(draw, folder / "index")
        assert asyncio.run(survive(folder)) == ["ok"] * len(DATA)


def test_a_lost_index_costs_nothing(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "db")
    shutil.rmtree(tmp_path / "db" / "index")
    assert asyncio.run(survive(tmp_path / "db")) == ["ok"] * len(DATA)
    shutil.rmtree(tmp_path / "db" / "index")
    (tmp_path / "db" / "index").write_text("no directory")
    assert asyncio.run(survive(tmp_path / "db")) == ["ok"] * len(DATA)


@pytest.mark.parametrize("indexed", [True, False])
def test_beside_a_table_that_cannot_be_opened_all_others_are_read(tmp_path, indexed):
    """Whichever it is: also one of the newest, past which no scan gets."""

    def single(folder):
        store = LevelDBKeyValue(folder)
        try:
            for number in range(1, len(DATA) + 1):
                try:
                    yield store.get(body_key(number)) is not None
                except StoreDamaged:
                    yield False
        finally:
            store.close()

    def scanned(folder):
        store = LevelDBKeyValue(folder)
        try:
            return list(store.scan(formats.BODIES, b"c"))
        except StoreDamaged:
            return []
        finally:
            store.close()

    sound = tmp_path / "sound"
    make(sound)
    for _ in range(2):
        # Each opening makes a table of the log; notes keep the newest from going deeper.
        asyncio.run(survive(sound))
    tables = sorted((sound / "bodies").glob("*.ldb"))
    hopeless = 0
    for number, table in enumerate(tables):
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder)
        with (folder / "bodies" / table.name).open("r+b") as file:
            file.truncate(table.stat().st_size - 40)
        if not indexed:
            shutil.rmtree(folder / "index")
        there = list(single(folder / "bodies"))
        hopeless += any(there) and not scanned(folder / "bodies")
        states = asyncio.run(survive(folder))
        assert [state == "ok" for state in states] == there
        salvage(folder / "bodies")
        states = asyncio.run(survive(folder))
        assert [state == "ok" for state in states] == there, "nor is more lost, or found"
    assert hopeless


@pytest.mark.parametrize("seed", range(10))
def test_damaged_bodies_are_enumerated_or_refused_and_never_served(sound, tmp_path, seed):
    draw = random.Random(1000 + seed)
    refused = 0
    for number in range(10):
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder)
        harm(draw, folder / "bodies")
        if draw.random() < 0.3:
            harm(draw, folder / "index")
        if asyncio.run(survive(folder)) is not None:
            continue
        refused += 1
        # What is refused can be salvaged, and the old directory stays.
        old = sorted(file.name for file in (folder / "bodies").iterdir())
        kept = salvage(folder / "bodies")
        assert set(old) <= {file.name for file in kept.iterdir()} | {"LOG.old"}
        # As the command does it: LevelDB repairs logs without looking at their checksums.
        states = asyncio.run(survive(folder, rebuild=True))
        assert states is not None
    assert refused < 10


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_state_is_refused_in_one_sentence_or_reads_as_it_was(sound, tmp_path, seed):
    draw = random.Random(2000 + seed)
    for number in range(8):
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder)
        harm(draw, folder / "state")
        asyncio.run(survive(folder))


async def test_a_note_of_damage_that_outlived_its_body_brings_nothing_back(disk):
    """Damage was found while the body was being deleted, and the power went."""
    for rebuild in (False, True):
        disk = Disk()
        node = await disk.node()
        await node.store([shard(0), shard(1)])
        entry = node._index.entry(shard(0).index_key)
        lagging = dict(disk.index.scan(b""))
        note = formats.encode_damaged(formats.Damage(shard(0).index_key, entry, "gone"))
        await node.delete(LOCATE, ALICE)
        disk.bodies.write([(formats.sequenced(formats.DAMAGED, entry.sequence), note)], sync=True)
        if rebuild:
            disk.index = MemoryKeyValue()
            disk.index.write(list(lagging.items()), sync=True)
        node = await disk.node(rebuild=rebuild)
        assert node.used_bytes == 0
        assert node.damaged == ()
        assert list(disk.bodies.scan(formats.DAMAGED, b"e")) == []
