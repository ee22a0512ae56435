"""The shard store against a dictionary, with kills and power losses between any two writes."""

import asyncio
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.storage.world import World, content, put, receipt_in
from xsc.base.clock import InlineExecutor
from xsc.base.errors import ShardMismatch, SpaceExhausted, UnavailableError, XscError
from xsc.base.log import SilentLog
from xsc.base.merkle import root_of
from xsc.base.units import held_bytes
from xsc.db.memory import MemoryKeyValue
from xsc.storage.object.inventory import FoundShard, Wanted
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore import compactor as shard_compactor
from xsc.storage.shardstore.bodies import Body, shard_key
from xsc.storage.shardstore.store import StorageNode
from xsc.storage.shardstore.writer import Write

CAPACITY = held_bytes(60, 4)
LOCATES = [b"x" * 32, b"y" * 32]
CUSTOMERS = [b"a" * 32, b"b" * 32]
MIB = 2**20


def counted(model):
    return sum(held_bytes(len(data)) for data in model.values())


class PowerLost(BaseException):
    """The machine stops between two writes."""


class Disk:
    def __init__(self):
        self.bodies = MemoryKeyValue()
        self.index = MemoryKeyValue()
        self.writes_left = None

    def crash(self):
        self.bodies.crash()
        self.index.crash()
        self.writes_left = None

    def spend(self):
        if self.writes_left == 0:
            raise PowerLost
        if self.writes_left is not None:
            self.writes_left -= 1

    async def node(self, capacity=CAPACITY):
        self.plain()
        write_bodies, write_index = self.bodies.write, self.index.write

        def to_bodies(changes, *, sync):
            if sync:
                self.spend()
            write_bodies(changes, sync=sync)
            if sync:
                self.spend()

        def to_index(changes, *, sync):
            self.spend()
            write_index(changes, sync=sync)

        self.bodies.write, self.index.write = to_bodies, to_index
        node = StorageNode(
            capacity_bytes=capacity,
            bodies=self.bodies,
            index=self.index,
            executor=InlineExecutor(),
            log=SilentLog(),
        )
        await node.start()
        return node

    def replace_index(self):
        self.index = MemoryKeyValue()

    def plain(self):
        for store in (self.bodies, self.index):
            vars(store).pop("write", None)


actions = st.one_of(
    st.tuples(
        st.just("store"),
        st.integers(0, 1),
        st.integers(0, 1),
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 20)), min_size=1, max_size=3),
    ),
    st.tuples(st.just("delete"), st.integers(0, 1), st.integers(0, 1)),
    st.tuples(st.just("crash"), st.integers(0, 3)),
    st.tuples(st.just("lose_index")),
    st.tuples(st.just("compact")),
)


@settings(max_examples=300)
@given(st.lists(actions, max_size=14))
def test_receipted_shards_are_there_and_accounts_are_exact_whatever_happens(story):
    with pytest.MonkeyPatch.context() as patch:
        # Notes of deletions go at the first chance, and not after some megabytes of them.
        patch.setattr(shard_compactor, "GONE_BYTES_MAX", -1)
        asyncio.run(play(story))


async def play(story):
    disk = Disk()
    node = await disk.node()
    model: dict[tuple[int, int, int], bytes] = {}
    for action in story:
        before = dict(model)
        unsure: dict[tuple[int, int, int], bytes | None] = {}
        try:
            match action:
                case ("store", locate, customer, columns):
                    wanted = {
                        (locate, customer, column): bytes([column]) * size
                        for column, size in columns
                    }
                    unsure = dict(wanted)
                    bodies = shards(locate, customer, columns)
                    fresh = sum(
                        held_bytes(len(d)) for place, d in wanted.items() if place not in model
                    )
                    clash = any(model.get(place, d) != d for place, d in wanted.items())
                    try:
                        await node.store(bodies)
                    except ShardMismatch:
                        assert clash
                    except SpaceExhausted:
                        assert counted(model) + fresh > CAPACITY
                    else:
                        assert not clash
                        model |= wanted
                case ("delete", locate, customer):
                    unsure = dict.fromkeys(
                        place for place in model if place[:2] == (locate, customer)
                    )
                    others = any(place[0] == locate for place in model)
                    if unsure or not others:
                        await node.delete(LOCATES[locate], CUSTOMERS[customer])
                    for place in unsure:
                        del model[place]
                case ("crash", writes):
                    # The power goes after that many more writes.
                    disk.writes_left = writes
                case ("lose_index",):
                    disk.replace_index()
                    node = await disk.node()
                case ("compact",):
                    await node.compactor.compact(everything=True)
                    assert list(disk.bodies.scan(b"g", b"h")) == []
        except (PowerLost, UnavailableError):
            # Calls of a batch hear of the lost power as of a stop of the node.
            assert disk.writes_left == 0
            disk.plain()
            disk.crash()
            node = await disk.node()
            model = before
            # What was asked for when the power went is there wholly, or not at all.
            place, data = next(iter(unsure.items()), (None, None))
            if place is not None:
                fresh = {p: d for p, d in unsure.items() if d is not None and p not in before}
                there = set(await stored(node)) - set(before)
                gone = set(before) - set(await stored(node))
                if data is None:
                    assert gone in (set(), set(unsure))
                else:
                    assert there in (set(), set(fresh))
                model = {p: d for p, d in before.items() if p not in gone}
                model |= {p: fresh[p] for p in there}
        await check(node, model)


async def stored(node):
    """Every place that has a shard, as (locate, customer, column)."""
    places = []
    for key, _ in node._index.between(b"s", b"t"):
        _, column, customer = formats.column_of_key(key)
        places.append((LOCATES.index(key[1:33]), CUSTOMERS.index(customer), column))
    return places


async def check(node, model):
    assert sorted(await stored(node)) == sorted(model)
    assert node.used_bytes == counted(model) <= CAPACITY
    assert node.writer.reserved_bytes == 0
    assert sum(node.usage.values()) == node.used_bytes
    audit = await node.audit(deep=True)
    assert audit.whole
    assert audit.bytes_held == audit.bytes_counted == node.used_bytes
    for (locate, _, column), data in model.items():
        (found,) = await node.get(LOCATES[locate], 0, [Wanted(0, column, root_of(data))])
        assert found == FoundShard("ok", data)


def shards(locate, customer, columns):
    return [
        Body(
            shard_key(LOCATES[locate], 0, 0, column, CUSTOMERS[customer]),
            CUSTOMERS[customer],
            root_of(bytes([column]) * size),
            bytes([column]) * size,
        )
        for column, size in sorted(dict(columns).items())
    ]


writes = st.tuples(
    st.integers(0, 1),
    st.integers(0, 1),
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2)), min_size=1, max_size=2),
)


@given(st.lists(writes, max_size=2), st.lists(writes, min_size=1, max_size=4))
def test_writes_that_come_together_are_as_if_one_by_one(before, group):
    async def outcome(rounds):
        """Return what came of each write, and what lies there afterwards."""
        node = await Disk().node(10**6)
        told = []
        given = []
        for one in rounds:
            items = [
                Write(shards(*item), lambda held, item=item: told.append((item, dict(held))))
                for item in one
            ]
            for item, held in zip(one, await node.writer.store_together(items), strict=True):
                given.append((item, type(held) if isinstance(held, XscError) else dict(held)))
        heard = [(item, {} if isinstance(held, type) else held) for item, held in given]
        assert sorted(told, key=repr) == sorted(heard, key=repr)
        assert node.writer.reserved_bytes == 0
        audit = await node.audit(deep=True)
        assert audit.whole
        assert audit.bytes_held == audit.bytes_counted == node.used_bytes
        held = [bytes(body) for body in map(key_and_proof, node._index.between(b"s", b"t"))]
        return sorted(given, key=repr), dict(node.usage), held

    def key_and_proof(item):
        return item[0] + item[1].proof

    async def compare():
        first = [[item] for item in before]
        at_once = await outcome([*first, group])
        assert at_once in [
            await outcome([*first, *([item] for item in order)]) for order in permutations(group)
        ]

    asyncio.run(compare())


@given(st.lists(writes, min_size=1, max_size=4), st.integers(0, 4))
def test_of_writes_that_come_together_each_is_wholly_there_after_a_power_loss(group, left):
    async def play():
        disk = Disk()
        node = await disk.node(10**6)
        disk.writes_left = left
        outcomes = []
        try:
            outcomes = await node.writer.store_together([Write(shards(*item)) for item in group])
            if any(isinstance(held, UnavailableError) for held in outcomes):
                raise PowerLost
        except PowerLost:
            assert disk.writes_left == 0
            disk.plain()
            disk.crash()
            node = await disk.node(10**6)
        disk.writes_left = None
        there = dict.fromkeys(await stored(node))
        wholly = []
        for locate, customer, columns in group:
            wanted = shards(locate, customer, columns)
            found = [
                await node.get(
                    LOCATES[locate],
                    0,
                    [Wanted(0, formats.column_of_key(body.index_key)[1], body.proof)],
                )
                for body in wanted
            ]
            wholly.append(found == [[FoundShard("ok", body.data)] for body in wanted])
        for number, held in enumerate(outcomes):
            # What was answered is as it was answered.
            assert wholly[number] or isinstance(held, (ShardMismatch, UnavailableError))
        # Nothing lies there but what is wholly there.
        whole = {
            (locate, customer, column)
            for (locate, customer, columns), there_too in zip(group, wholly, strict=True)
            if there_too
            for column in dict(columns)
        }
        assert set(there) <= whole
        await node.audit(deep=True)

    asyncio.run(play())


class Snapshot:
    """What the disk of a host would hold if the power went right after it gave a receipt."""

    def __init__(self, host, receipts):
        self.receipts = list(receipts)
        self.bodies, self.index = MemoryKeyValue(), MemoryKeyValue()
        self.bodies.write(list(host.bodies._durable.items()), sync=True)
        self.index.write(list(host.index._durable.items()), sync=True)

    async def readable(self):
        node = StorageNode(
            capacity_bytes=2**30,
            bodies=self.bodies,
            index=self.index,
            executor=InlineExecutor(),
            log=SilentLog(),
        )
        await node.start()
        for receipt in self.receipts:
            wanted = [Wanted(held.segment, held.column, held.root) for held in receipt.shards]
            found = await node.get(receipt.locate, receipt.generation, wanted)
            assert [item.state for item in found] == ["ok"] * len(wanted)
            if receipt.manifest is not None:
                assert await node.find(receipt.locate, receipt.manifest) is not None


async def test_whatever_was_receipted_is_there_after_a_power_loss():
    """At the moment of every receipt of a put, with all that was not synced dropped."""
    world = await World(8).start()
    snapshots = []
    for host in world.hosts[1:]:
        receipts = []

        def note(method, answer, host=host, receipts=receipts):
            if method == "storage.put":
                receipts.append(receipt_in(answer.header))
                snapshots.append(Snapshot(host, receipts))
            return answer

        host.corrupt = note
    await put(world[0], content(9 * MIB + 1))
    assert len(snapshots) == 18
    for snapshot in snapshots:
        await snapshot.readable()
