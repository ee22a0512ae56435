"""Power lost at every write of the shard store, with every part of what was not synced.

One story goes through everything that writes: storing, replacing, mending,
deleting, dropping, noting damage, starting anew. After each write of either
database the disks are copied as the power could leave them: what was synced, and
any beginning of what was not. On every such copy a node starts, and must still
keep what was promised: what was stored is there, what was deleted is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.unit.storage.shardstore.test_store import ALICE, BOB, LEASE, LOCATE, OTHER, record, shard
from xsc.base.clock import InlineExecutor
from xsc.base.keyvalue import Change
from xsc.base.log import SilentLog
from xsc.base.units import held_bytes
from xsc.db.memory import MemoryKeyValue
from xsc.storage.object.inventory import Wanted
from xsc.storage.object.manifest import hash_of
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Body
from xsc.storage.shardstore.store import StorageNode

ELSEWHERE = b"z" * 32


class Watched(MemoryKeyValue):
    """Tells of every write."""

    def __init__(self, told=lambda: None):
        super().__init__()
        self.told = told

    def write(self, changes, *, sync):
        super().write(changes, sync=sync)
        self.told()

    def state(self) -> tuple[dict[bytes, bytes], list[Change]]:
        return dict(self._durable), list(self._unsynced)


def survivor(durable, unsynced, kept):
    """Return the store of which so many unsynced changes came to the disk."""
    store = MemoryKeyValue()
    store.write(list(durable.items()), sync=True)
    if kept:
        store.write(unsynced[:kept], sync=True)
    return store


@dataclass
class Copy:
    """The disks at one moment, and what had been promised until then."""

    bodies: tuple
    index: tuple
    promised: dict[bytes, Body]
    gone: set[bytes]


@dataclass
class Story:
    copies: list[Copy] = field(default_factory=list)
    promised: dict[bytes, Body] = field(default_factory=dict)
    gone: set[bytes] = field(default_factory=set)

    def __post_init__(self):
        self.bodies = Watched(self.told)
        self.index = Watched(self.told)

    def told(self):
        self.copies.append(
            Copy(self.bodies.state(), self.index.state(), dict(self.promised), set(self.gone))
        )

    async def start(self, **options):
        self.node = make(self.bodies, self.index)
        await self.node.start(**options)

    async def store(self, *bodies):
        self.gone -= {body.index_key for body in bodies}
        await self.node.store(list(bodies))
        self.promised |= {body.index_key: body for body in bodies}

    async def remove(self, keys, work):
        """Do a deletion of those keys: until it returned nothing is promised about them."""
        for key in keys:
            del self.promised[key]
        assert await work
        self.gone |= set(keys)


def make(bodies, index):
    return StorageNode(
        capacity_bytes=10**6,
        bodies=bodies,
        index=index,
        executor=InlineExecutor(),
        log=SilentLog(),
    )


async def tell(story: Story) -> None:
    await story.start()
    first = [shard(0), shard(1, data=b"one!")]
    await story.store(*first)
    await story.store(record())
    await story.store(shard(0, customer=BOB, lease=OTHER))
    await story.store(shard(0, locate=ELSEWHERE), shard(1, locate=ELSEWHERE, lease=OTHER))
    node = story.node
    # One shard is damaged, found, noted, and mended.
    hurt = shard(1, data=b"one!")
    entry = node._index.entry(hurt.index_key)
    key = formats.sequenced(formats.BODIES, entry.sequence)
    del story.promised[hurt.index_key]
    story.bodies.write([(key, story.bodies.get(key).replace(b"one!", b"two?"))], sync=True)
    await node.audit(deep=True)
    await story.store(hurt)
    await story.start()
    node = story.node
    await story.remove(
        [shard(1, locate=ELSEWHERE).index_key],
        node.writer.delete(ELSEWHERE, ALICE, lambda _, entry: entry.lease_id == OTHER),
    )
    await story.remove(
        [shard(0, locate=ELSEWHERE).index_key],
        node.writer.delete(ELSEWHERE, ALICE, unless_in={LOCATE}),
    )
    await story.remove(
        [*(body.index_key for body in first), record().index_key],
        node.delete(LOCATE, ALICE),
    )
    await story.store(shard(0), record())
    await story.start(rebuild=True)
    await story.store(shard(2, data=b"last"))
    await story.remove(
        [shard(0, customer=BOB).index_key],
        story.node.delete(LOCATE, BOB),
    )
    await story.start()


async def check(copy: Copy, bodies: MemoryKeyValue, index: MemoryKeyValue) -> None:
    node = make(bodies, index)
    await node.start()
    for body in copy.promised.values():
        locate, _ = formats.owner_of(body.index_key)
        if body.is_shard:
            segment, column, _ = formats.column_of_key(body.index_key)
            (found,) = await node.get(locate, 0, [Wanted(segment, column, body.proof)])
            assert found.state == "ok"
            assert bytes(found.data) == bytes(body.data)
        else:
            found = await node.find(locate, hash_of(body.data))
            assert bytes(found) == bytes(body.data)
    for key in copy.gone:
        assert node._index.entry(key) is None
    audit = await node.audit(deep=True)
    assert not audit.index_faults
    assert audit.bytes_held == audit.bytes_counted == node.used_bytes
    assert {item.key for item in audit.damaged}.isdisjoint(copy.promised)


async def test_promises_hold_wherever_the_power_goes():
    story = Story()
    await tell(story)
    assert len(story.copies) > 30
    played = 0
    for copy in story.copies:
        body_losses, index_losses = len(copy.bodies[1]), len(copy.index[1])
        for kept_bodies in range(body_losses + 1):
            for kept_index in range(index_losses + 1):
                bodies = survivor(*copy.bodies, kept_bodies)
                await check(copy, bodies, survivor(*copy.index, kept_index))
                played += 1
    assert played > 390
    # The story came to its end as it should.
    left = {shard(0).index_key, record().index_key, shard(2).index_key}
    assert {key for key, _ in await story.node.entries(b"", 100)} == left
    assert dict(story.node.usage) == {LEASE: held_bytes(8, 2) + record().held_bytes}
