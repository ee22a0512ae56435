"""Recognition in real spaces; what the network would bring is handed over here."""

import pytest

from xsc.allocation.commitments import Commitments
from xsc.allocation.recognition import read_weights, value_of
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.encoding import encode
from xsc.base.errors import ArgumentInvalid, RecordInvalid, SpaceExhausted, StoreDamaged
from xsc.base.limits import PEERS_MAX, PPM
from xsc.base.log import SilentLog
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.identity.keys import KeyPair, network_id
from xsc.space.limits import VALUE_INLINE_BYTES_MAX
from xsc.space.paths import UserSpacePaths
from xsc.space.replicas import META
from xsc.space.store import SpaceStore

NET = network_id("test")
PATH = UserSpacePaths.RECOGNITION


class Node:
    """A node and its peers: all that were made, but those that it barred."""

    def __init__(self, world, number):
        self.world = world
        self.key = KeyPair(bytes([number]) * 32)
        self.id = self.key.node_id
        self.db = MemoryKeyValue()
        self.barred = set()
        self.changes = 0
        self.begin()

    def begin(self):
        ports = (self.world.clock, SeededEntropy(b"7"), InlineExecutor(), None, SilentLog())
        context = Context(self.key, NET, *ports, None, None)
        self.store = SpaceStore(self.db, context)
        self.space = self.store
        self.service = Commitments(
            context,
            self.space,
            self,
            posted=None,
            by_default=None,
            on_withdrawn=None,
            on_recognised=self.count_change,
            before_stand=None,
        )

    def weights(self):
        return self.service.heard.of(self.id).weights

    def weights_of(self, peer):
        return self.service.weight_ppm(peer), self.service.their_weight_ppm(peer)

    def count_change(self):
        self.changes += 1

    def is_peer(self, node):
        known = {other.id for other in self.world.nodes} - {self.id}
        return node in known - self.barred

    async def hear(self, other, path=PATH):
        """Take what another has at a path, as it comes from any replica."""
        page = await other.store.page(other.id, path, 0, count=9, size_bytes=2**20)
        offered = [
            (entry.signed, other.db.get(b"v" + other.id + path.encode())) for entry in page.entries
        ]
        return await self.space.take(other.id, offered)


class World:
    def __init__(self):
        self.clock = ManualClock()
        self.nodes = []

    def node(self):
        self.nodes.append(Node(self, len(self.nodes) + 1))
        return self.nodes[-1]


@pytest.fixture
def world():
    return World()


@pytest.fixture
def two(world):
    return world.node(), world.node()


async def test_recognition_becomes_mutual(two):
    a, b = two
    await a.service.recognise(b.id, 300_000)
    await b.hear(a)
    assert (a.service.tier(b.id), b.service.tier(a.id)) == ("one_way", "open")
    assert b.service.their_weight_ppm(a.id) == 300_000
    await b.service.recognise(a.id, 200_000)
    await a.hear(b)
    assert a.service.tier(b.id) == b.service.tier(a.id) == "mutual"
    assert a.weights_of(b.id) == (300_000, 200_000)
    assert b.weights_of(a.id) == (200_000, 300_000)


async def test_a_withdrawn_weight_reaches_the_peer(two):
    a, b = two
    await a.service.recognise(b.id, 300_000)
    await b.hear(a)
    await a.service.recognise(b.id, 0)
    assert a.weights() == {}
    await b.hear(a)
    assert b.service.their_weight_ppm(a.id) == 0


async def test_a_deleted_recognition_recognises_nobody(two):
    a, b = two
    await a.service.recognise(b.id, 300_000)
    await b.hear(a)
    await a.space.rm(PATH)
    assert a.weights() == {}
    await b.hear(a)
    assert b.service.their_weight_ppm(a.id) == 0


async def test_everything_survives_a_restart(two):
    a, b = two
    await a.service.recognise(b.id, 300_000)
    await b.service.recognise(a.id, 200_000)
    await a.hear(b)
    a.db = a.db.after_crash()
    a.begin()
    a.service.start()
    assert a.weights_of(b.id) == (300_000, 200_000)
    await a.service.recognise(b.id, 100_000)
    await b.hear(a)
    assert b.service.their_weight_ppm(a.id) == 100_000


async def test_a_damaged_store_is_no_empty_one(two):
    a, b = two
    await a.service.recognise(b.id, 300_000)
    a.db.write([(META + a.id + PATH.encode(), b"x")], sync=True)
    a.begin()
    with pytest.raises(StoreDamaged):
        a.service.start()


async def test_a_weight_holds_once_it_is_on_the_disk(two):
    a, b = two
    await a.service.recognise(b.id, 300_000)
    a.db.write = refuse
    with pytest.raises(SpaceExhausted):
        await a.service.recognise(b.id, 100_000)
    assert a.service.weight_ppm(b.id) == 300_000


def refuse(_changes, *, sync):
    raise SpaceExhausted("the disk is full")


async def test_what_changes_nothing_is_not_written(two):
    a, b = two
    await a.service.recognise(b.id, 0)
    assert a.space.ls("") == []
    await a.service.recognise(b.id, 300_000)
    sequence = a.space.get(PATH).signed.record.sequence
    await a.service.recognise(b.id, 300_000)
    assert a.space.get(PATH).signed.record.sequence == sequence


FALSE = {
    "above the whole": lambda a, b, c: value_of_any([(b, PPM), (c, 1)]),
    "itself": lambda a, b, c: value_of({a: 1}),
    "no weights": lambda a, b, c: b"",
    "a text": lambda a, b, c: b"100%",
    "another version": lambda a, b, c: value_of({b: 1}).replace(b"\x61v\x01", b"\x61v\x02"),
    "too many": lambda a, b, c: value_of_any(
        [(number.to_bytes(32, "big"), 1) for number in range(PEERS_MAX + 1)]
    ),
}


def value_of_any(weights):
    """Return the value of weights that no honest node writes."""
    return encode({"v": 1, "weights": [list(pair) for pair in sorted(weights)]})


@pytest.mark.parametrize("false", FALSE.values(), ids=FALSE.keys())
async def test_a_false_value_is_refused_and_the_last_one_holds(world, two, false):
    a, b = two
    c = world.node()
    await a.service.recognise(b.id, 300_000)
    await b.hear(a)
    value = false(a.id, b.id, c.id)
    with pytest.raises(ArgumentInvalid):
        await a.space.put(PATH, value)
    a.store._schemas.clear()  # as one does that checks nothing
    a.store._told.clear()
    await a.store.put(PATH, value)
    taken = await b.hear(a)
    assert [type(fault) for fault in taken.refused] == [RecordInvalid]
    assert b.service.their_weight_ppm(a.id) == 300_000
    b.begin()
    b.service.start()
    assert b.service.their_weight_ppm(a.id) == 300_000


async def test_an_older_record_changes_nothing(two):
    a, b = two
    await a.service.recognise(b.id, 300_000)
    old = a.store.get(PATH)
    await a.service.recognise(b.id, 100_000)
    await b.hear(a)
    await b.space.take(a.id, [(old.signed, old.value)])
    assert b.service.their_weight_ppm(a.id) == 100_000


async def test_who_is_blocked_or_not_known_has_no_weight(two):
    a, b = two
    await a.service.recognise(b.id, 300_000)
    await b.service.recognise(a.id, 300_000)
    await a.hear(b)
    a.barred = {b.id}
    assert (a.service.weight_ppm(b.id), a.service.their_weight_ppm(b.id)) == (0, 0)
    assert a.service.tier(b.id) == "open"
    a.barred = set()
    assert a.service.tier(b.id) == "mutual"


async def test_only_what_concerns_this_node_is_told(world, two):
    a, b = two
    c = world.node()
    await a.service.recognise(c.id, 1)
    await b.hear(a)
    await a.space.put("allocation/state", b"x")
    await b.hear(a, "allocation/state")
    before = b.changes
    await a.service.recognise(c.id, 2)
    await b.hear(a)
    assert b.changes == before
    await a.service.recognise(b.id, 1)
    await b.hear(a)
    await b.service.recognise(a.id, 1)
    assert b.changes == before + 2


async def test_the_budget_holds(world, two):
    a, b = two
    c = world.node()
    await a.service.recognise(b.id, 700_000)
    with pytest.raises(ArgumentInvalid):
        await a.service.recognise(c.id, 300_001)
    with pytest.raises(ArgumentInvalid):
        await a.service.recognise(a.id, 1)
    assert a.weights() == {b.id: 700_000}
    await a.service.recognise(c.id, 300_000)
    assert sum(a.weights().values()) == PPM


async def test_so_many_weights_as_peers_are_more_than_a_small_value(two):
    a, b = two
    weights = {number.to_bytes(32, "big"): PPM // PEERS_MAX for number in range(PEERS_MAX - 1)}
    value = value_of({**weights, b.id: PPM // PEERS_MAX})
    assert len(value) > VALUE_INLINE_BYTES_MAX
    assert len(read_weights(a.id, value)) == PEERS_MAX
    await a.space.put(PATH, value)
    await b.hear(a)
    assert b.service.their_weight_ppm(a.id) == PPM // PEERS_MAX
