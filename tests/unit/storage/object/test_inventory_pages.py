"""A stat that comes in pages says what one that came at once would say."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.storage.shardstore.test_store import LEASE, LOCATE, OTHER, Disk
from tests.unit.storage.world import World, content, put
from xsc.base.errors import PeerSilent, RecordInvalid
from xsc.base.limits import COLUMNS_MAX, MIB, SEGMENT_BYTES
from xsc.base.merkle import root_of
from xsc.base.units import held_bytes
from xsc.storage.object import messages
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.erasure import Code
from xsc.storage.object.inventory import PLACE_BYTES, HeldColumn, HeldObject, InventoryPages
from xsc.storage.object.manifest import SealedSegment, build, expected_digest
from xsc.storage.shardstore import store as shards
from xsc.storage.shardstore.bodies import Body, shard_key
from xsc.storage.transfer.host_client import STAT_PAGES_MAX

CUSTOMERS = [b"a" * 32, b"\xff" * 32]
SEGMENTS = 5
CODE = Code(1, 1)


def data_of(segment, column):
    return b"%d/%d" % (segment, column)


def roots_of(segment):
    return tuple(root_of(data_of(segment, column)) for column in range(CODE.n))


MANIFEST = build(
    CUSTOMERS[0],
    CODE,
    SEGMENT_BYTES * (SEGMENTS - 1) + 1,
    [
        SealedSegment(length=1, nonce=bytes(12), tag=bytes(16), roots=roots_of(index))
        for index in range(SEGMENTS)
    ],
)
PLACES = [
    (customer, segment, column)
    for customer in range(len(CUSTOMERS))
    for segment in range(SEGMENTS + 1)
    for column in range(CODE.n + 1)
]


def body(place, wrong=False):
    customer, segment, column = place
    data = b"wrong" if wrong else data_of(segment, column)
    lease = (LEASE, OTHER)[(customer + segment) % 2]
    key = shard_key(LOCATE, 0, segment, column, CUSTOMERS[customer])
    return Body(key, lease, root_of(data), data)


async def told(node, caller):
    """Ask for all pages, as what is sent and read."""
    stated, after, pages = InventoryPages(MANIFEST), b"", 0
    while True:
        page = await node.stat(LOCATE, 0, bytes(32), after)
        assert sum(row.segments for row in page.columns) <= shards.STAT_ROWS_MAX
        after = stated.add(messages.read_stated(messages.stat_answer(page, caller)))
        pages += 1
        if not after:
            return stated.whole(), pages


@given(
    st.lists(st.sampled_from(PLACES), unique=True),
    st.lists(st.sampled_from(PLACES), unique=True, max_size=3),
    st.booleans(),
    st.integers(1, 40),
    st.sampled_from(CUSTOMERS),
)
def test_pages_say_together_what_one_answer_says(left_out, wrong, extra, rows, caller):
    async def play():
        node = await Disk().node()
        # Mostly whole columns, which a draw of places alone would hardly make.
        held = [
            place
            for place in PLACES
            if place not in left_out and (extra or (place[1] < SEGMENTS and place[2] < CODE.n))
        ]
        for place in held:
            await node.store([body(place, place in wrong)])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards, "STAT_ROWS_MAX", 10**6)
            whole, _ = await told(node, caller)
            patch.setattr(shards, "STAT_ROWS_MAX", rows)
            paged, pages = await told(node, caller)
        assert pages == max(1, -(-len(held) // rows))
        assert [(r.customer, r.column, r.segments) for r in paged.columns] == [
            (r.customer, r.column, r.segments) for r in whole.columns
        ]
        for one, other in zip(paged.columns, whole.columns, strict=True):
            if one.column < CODE.n:
                good = expected_digest(MANIFEST, one.column)
                assert (one.digest == good) == (other.digest == good)
        assert paged.mine == whole.mine
        assert paged.mine == tuple(
            (lease, size)
            for lease in (LEASE, OTHER)
            if (
                size := sum(
                    held_bytes(len(item.data))
                    for item in (body(place, place in wrong) for place in held)
                    if (item.index_key[-32:], item.lease_id) == (caller, lease)
                )
            )
        )

    asyncio.run(play())


async def test_an_object_of_many_pages_is_seen_whole_and_its_damage_found(monkeypatch):
    monkeypatch.setattr(shards, "STAT_ROWS_MAX", 2)
    world = await World(3).start()
    owner = world[0]
    done = await put(owner, content(9 * MIB), code=(1, 2))
    seen = await owner.service.stat(done.capability)
    assert {host.state for host in seen.hosts} == {"ok"}
    host = world.by_id[next(node for node in done.hosts if node != owner.id)]
    locate = parse_verify(done.capability).locate
    entry = next(e for key, e in await host.node.entries(b"s", 100) if key[1:33] == locate)
    place = b"b" + entry.sequence.to_bytes(8, "big")
    raw = bytearray(host.bodies.get(place))
    raw[-1] ^= 1
    host.bodies.write([(place, bytes(raw))], sync=True)
    seen = await owner.service.stat(done.capability)
    assert [h.state for h in seen.hosts if h.node == host.id] == ["corrupt"]


def page(until, column=0):
    return HeldObject((HeldColumn(b"c" * 32, column, 1, bytes(32), 0),), "ok", until=until)


@pytest.mark.parametrize("until", [bytes(PLACE_BYTES), b"\1" * PLACE_BYTES])
def test_pages_that_do_not_go_on_are_refused(until):
    stated = InventoryPages(MANIFEST)
    stated.add(page(b"\1" * PLACE_BYTES))
    with pytest.raises(RecordInvalid, match="backwards"):
        stated.add(page(until))


def test_columns_without_end_are_refused():
    stated = InventoryPages(MANIFEST)

    def column(number):
        row = HeldColumn(number.to_bytes(32, "big"), 0, 1, bytes(32), 0)
        return HeldObject((row,), "ok", until=number.to_bytes(PLACE_BYTES, "big"))

    for number in range(1, COLUMNS_MAX + 1):
        stated.add(column(number))
    with pytest.raises(RecordInvalid, match="columns"):
        stated.add(column(COLUMNS_MAX + 1))


@pytest.mark.parametrize("delay_ms", [0, 1_000])
async def test_a_host_that_comes_to_no_end_is_given_up(delay_ms):
    world = await World(3).start()
    owner, liar = world[0], world[1]
    asked = 0

    def endless(method, answer):
        nonlocal asked
        if method != messages.STAT:
            return answer
        asked += 1
        until = asked.to_bytes(PLACE_BYTES, "big")
        return type(answer)(messages.stat_answer(page(until), owner.id), [])

    liar.corrupt = endless
    liar.delay = lambda method: delay_ms
    asking = asyncio.ensure_future(owner.service._client.stat(liar.id, LOCATE, MANIFEST, bytes(32)))
    while not asking.done():
        await asyncio.sleep(0)
        if (next_ms := world.clock.next_ms()) is not None:
            world.clock.advance_to(next_ms)
    with pytest.raises(PeerSilent, match="no end"):
        asking.result()
    assert asked <= (60 if delay_ms else STAT_PAGES_MAX)
