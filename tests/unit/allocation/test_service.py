import asyncio

import pytest

from tests.settle import settle
from tests.unit.allocation.fakes import Memory, Wire
from xsc.allocation.recognition import Recognition
from xsc.allocation.service import AllocationService
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.errors import (
    ArgumentInvalid,
    NotAllowed,
    RateLimited,
    RecordInvalid,
    SignatureInvalid,
)
from xsc.base.limits import (
    RECOGNITION_RESEND_MS,
    RECOGNITIONS_A_PEER_MAX,
    RECOGNITIONS_MS,
)
from xsc.base.log import SilentLog
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair, network_id

NET = network_id("test")


class World:
    def __init__(self):
        self.wire = Wire()
        self.clock = ManualClock()
        self.keys = {}
        self.states = {}

    def node(self, number, state=None):
        key = KeyPair(bytes([number]) * 32)
        self.keys[number] = key
        self.states[number] = state or Memory()
        context = Context(
            key,
            NET,
            self.clock,
            SeededEntropy(bytes([number])),
            InlineExecutor(),
            self.wire.caller(key.node_id),
            SilentLog(),
        )
        service = AllocationService(
            context, state=self.states[number], peers=self.wire.peers(key.node_id)
        )
        self.wire.handlers[key.node_id] = service.handlers()
        return service

    def id(self, number):
        return self.keys[number].node_id


@pytest.fixture
def world():
    return World()


async def test_recognition_becomes_mutual(world):
    a, b = world.node(1), world.node(2)
    await a.recognise(world.id(2), 300_000)
    assert a.tier(world.id(2)) == "one_way"
    assert b.tier(world.id(1)) == "open"
    assert b.their_weight_ppm(world.id(1)) == 300_000
    await b.recognise(world.id(1), 200_000)
    assert a.tier(world.id(2)) == b.tier(world.id(1)) == "mutual"
    assert a.mutual_ppm(world.id(2)) == b.mutual_ppm(world.id(1)) == 200_000
    standing = a.standing(world.id(2))
    assert (standing.weight_ppm, standing.their_weight_ppm) == (300_000, 200_000)


async def test_a_withdrawn_weight_reaches_the_peer(world):
    a, b = world.node(1), world.node(2)
    await a.recognise(world.id(2), 300_000)
    await a.recognise(world.id(2), 0)
    assert b.their_weight_ppm(world.id(1)) == 0
    assert a.weights() == {}


async def test_everything_survives_a_restart(world):
    a, b = world.node(1), world.node(2)
    await a.recognise(world.id(2), 300_000)
    await b.recognise(world.id(1), 200_000)
    again = world.node(1, world.states[1])
    await again.start()
    assert again.mutual_ppm(world.id(2)) == 200_000
    await again.recognise(world.id(2), 100_000)
    assert b.their_weight_ppm(world.id(1)) == 100_000


async def test_a_silent_peer_is_told_when_it_comes_back(world):
    a, b = world.node(1), world.node(2)
    world.wire.down.add(world.id(2))
    await a.recognise(world.id(2), 300_000)
    assert a.weight_ppm(world.id(2)) == 300_000
    world.wire.down.clear()
    await a.peer_back(world.id(2))
    assert b.their_weight_ppm(world.id(1)) == 300_000


async def test_a_peer_that_lost_what_it_heard_is_told_again(world):
    a, _ = world.node(1), world.node(2)
    await a.recognise(world.id(2), 300_000)
    fresh = world.node(2, Memory())
    await a.tell()
    assert fresh.their_weight_ppm(world.id(1)) == 0
    await a.peer_back(world.id(2))
    assert fresh.their_weight_ppm(world.id(1)) == 300_000


async def test_a_silent_peer_is_told_by_the_timer(world):
    a, b = world.node(1), world.node(2)
    world.wire.down.add(world.id(2))
    await a.recognise(world.id(2), 300_000)
    task = asyncio.create_task(a.run())
    await asyncio.sleep(0)
    world.wire.down.clear()
    await settle()
    world.clock.advance_to(world.clock.now_ms() + RECOGNITION_RESEND_MS)
    await settle()
    assert b.their_weight_ppm(world.id(1)) == 300_000
    told = len(world.wire.calls)
    world.clock.advance_to(world.clock.now_ms() + RECOGNITION_RESEND_MS)
    await settle()
    assert len(world.wire.calls) == told
    task.cancel()


async def test_a_withdrawal_is_owed_over_a_restart(world):
    a, b = world.node(1), world.node(2)
    await a.recognise(world.id(2), 300_000)
    world.wire.down.add(world.id(2))
    await a.recognise(world.id(2), 0)
    world.wire.down.clear()
    again = world.node(1, world.states[1])
    await again.start()
    await again.tell()
    assert b.their_weight_ppm(world.id(1)) == 0


async def test_only_newer_records_count(world):
    a, b = world.node(1), world.node(2)
    await a.recognise(world.id(2), 300_000)
    old = world.states[1].get(b"allocation/own")
    await a.recognise(world.id(2), 100_000)
    answer, _ = await b.handlers()["market.recognise"](world.id(1), {"recognition": old}, ())
    assert answer == {"held": world.states[1].get(b"allocation/own")}
    assert b.their_weight_ppm(world.id(1)) == 100_000


async def test_a_restored_copy_goes_on_above_what_its_peers_heard(world):
    a, b = world.node(1), world.node(2)
    await a.recognise(world.id(2), 300_000)
    copy = Memory()
    copy.table = dict(world.states[1].table)
    for ppm in (100_000, 110_000, 120_000):
        await a.recognise(world.id(2), ppm)
    restored = world.node(1, copy)
    await restored.start()
    await restored.recognise(world.id(2), 50_000)
    await restored.tell()
    assert b.their_weight_ppm(world.id(1)) == 50_000


def recognition(key, sequence, network=NET):
    return sign(
        Recognition(owner=key.node_id, sequence=sequence, weights=(), created_ms=1), key, network
    ).raw


LAST = 2**63 - 2


@pytest.mark.parametrize(
    "answer",
    [
        lambda own, liar: {"sequence": LAST, "id": b"i" * 32},
        lambda own, liar: {"held": recognition(liar, LAST)},
        lambda own, liar: {"held": recognition(own, LAST)[:-1] + b"\0"},
        lambda own, liar: {"held": recognition(own, LAST, network_id("other"))},
        lambda own, liar: {"held": recognition(own, 1)},
        lambda own, liar: {},
    ],
    ids=["a number", "of the peer", "forged", "of another network", "replayed", "nothing"],
)
async def test_no_word_of_a_peer_advances_the_sequence(world, answer):
    """Only a record that this node signed shows that it has lost its newest."""
    a, _, c = world.node(1), world.node(2), world.node(3)
    await a.recognise(world.id(3), 100_000)
    await a.recognise(world.id(3), 200_000)

    async def lie(_caller, _header, _parts):
        return answer(world.keys[1], world.keys[2]), ()

    world.wire.handlers[world.id(2)] = {"market.recognise": lie}
    await a.recognise(world.id(2), 300_000)
    for _ in range(3):
        await a.peer_back(world.id(2))
    await a.recognise(world.id(3), 400_000)
    assert c.their_weight_ppm(world.id(1)) == 400_000
    kept = open_signed(world.states[1].get(b"allocation/own"), Recognition, network=NET)
    assert kept.record.sequence == 4, "one for each change"
    # It is asked again, and takes the newest as soon as it is honest.
    honest = world.node(2, Memory())
    await a.tell()
    assert honest.their_weight_ppm(world.id(1)) == 300_000


async def test_what_is_not_the_callers_own_word_is_refused(world):
    _, b = world.node(1), world.node(2)
    handler = b.handlers()["market.recognise"]
    other = KeyPair(b"\x09" * 32)
    by_other = sign(
        Recognition(owner=other.node_id, sequence=1, weights=(), created_ms=1), other, NET
    ).raw
    with pytest.raises(SignatureInvalid):
        await handler(world.id(1), {"recognition": by_other}, ())
    for_other = sign(
        Recognition(owner=other.node_id, sequence=1, weights=(), created_ms=1), world.keys[1], NET
    ).raw
    with pytest.raises(RecordInvalid):
        await handler(world.id(1), {"recognition": for_other}, ())
    with pytest.raises(RecordInvalid):
        await handler(world.id(1), {}, ())
    with pytest.raises(NotAllowed):
        await handler(other.node_id, {"recognition": by_other}, ())
    foreign = sign(
        Recognition(owner=world.id(1), sequence=1, weights=(), created_ms=1),
        world.keys[1],
        network_id("other"),
    ).raw
    with pytest.raises(RecordInvalid):
        await handler(world.id(1), {"recognition": foreign}, ())


async def test_the_budget_holds(world):
    a, _, _ = world.node(1), world.node(2), world.node(3)
    await a.recognise(world.id(2), 700_000)
    with pytest.raises(ArgumentInvalid):
        await a.recognise(world.id(3), 300_001)
    with pytest.raises(ArgumentInvalid):
        await a.recognise(world.id(1), 1)
    assert a.weights() == {world.id(2): 700_000}
    await a.recognise(world.id(3), 300_000)
    assert sum(a.weights().values()) == 1_000_000


async def test_a_peer_is_heard_so_often_within_a_time_and_told_later(world):
    a, b, c = world.node(1), world.node(2), world.node(3)
    for number in range(1, RECOGNITIONS_A_PEER_MAX + 10):
        await a.recognise(world.id(2), number)
    assert b.their_weight_ppm(world.id(1)) == RECOGNITIONS_A_PEER_MAX
    handler = b.handlers()["market.recognise"]
    with pytest.raises(RateLimited):
        await handler(world.id(1), {"recognition": recognition(world.keys[1], 1)}, ())
    await c.recognise(world.id(2), 5)
    assert b.their_weight_ppm(world.id(3)) == 5
    task = asyncio.create_task(a.run())
    # The newest is owed, and told as soon as it is heard again.
    for _ in range(RECOGNITIONS_MS // RECOGNITION_RESEND_MS + 1):
        await settle()
        world.clock.advance_to(world.clock.now_ms() + RECOGNITION_RESEND_MS)
    await settle()
    assert b.their_weight_ppm(world.id(1)) == RECOGNITIONS_A_PEER_MAX + 9
    task.cancel()
