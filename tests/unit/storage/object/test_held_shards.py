"""What a host says that it has already: only what it can read back, and it is bound by it."""

import asyncio

import pytest

from tests.unit.storage.shardstore.test_store import (
    ALICE,
    BOB,
    LEASE,
    LOCATE,
    OTHER,
    Disk,
    shard,
    wanted,
)
from tests.unit.storage.world import World
from xsc.base.errors import NotFound, ReceiptInvalid, RecordInvalid
from xsc.base.limits import STAT_READ_BYTES_MAX
from xsc.base.merkle import root_of
from xsc.storage.object.erasure import StorageShard
from xsc.storage.object.inventory import Wanted
from xsc.storage.object.messages import GET_MAX, HAVE, keep_message, read_keep
from xsc.storage.object.receipts import receipt_fault
from xsc.terms.lease import LeaseHandle
from xsc.terms.storage_receipt import HeldShard, StorageReceipt

HOST = b"h" * 32


def asked(**changes):
    return {
        "host": HOST,
        "customer": ALICE,
        "lease_id": LEASE,
        "locate": LOCATE,
        "generation": 0,
    } | changes


def receipt(*shards, **changes):
    fields = asked() | {"manifest": None, "stored_ms": 1}
    return StorageReceipt(**(fields | {"shards": shards} | changes))


def held(column=0, segment=0, data=b"data", size_bytes=4):
    return HeldShard(segment=segment, column=column, size_bytes=size_bytes, root=root_of(data))


def fault(given):
    return receipt_fault(given, receipt(held(), held(1)), some=True)


def test_a_question_is_read_as_it_was_asked():
    listed = [wanted(), wanted(b"more", 3, 7)]
    header = keep_message(LEASE, LOCATE, 2, [held(), held(3, 7, b"more")])
    assert read_keep(header) == (LEASE, LOCATE, 2, listed, 8)


@pytest.mark.parametrize(
    "change",
    [
        {"lease": b"short"},
        {"locate": None},
        {"generation": -1},
        {"shards": [{"segment": 0, "column": 0}]},
        {"shards": [7]},
        {"shards": [{"segment": 0, "column": 256, "root": bytes(32)}]},
        {"shards": [{"segment": 0, "column": 0, "root": bytes(32)}] * 2},
        {"shards": [{"segment": n, "column": 0, "root": bytes(32)} for n in range(GET_MAX + 1)]},
    ],
)
def test_a_malformed_question_is_refused(change):
    header = keep_message(LEASE, LOCATE, 0, [held()])
    with pytest.raises(RecordInvalid):
        read_keep(header | change)


def test_every_part_of_the_answer_matters():
    assert fault(receipt()) is None
    assert fault(receipt(held())) is None
    assert fault(receipt(held(1), held(0))) is None
    for name in ("host", "customer", "lease_id", "locate", "manifest"):
        assert fault(receipt(held(), **{name: b"x" * 32}))
    assert fault(receipt(held(), generation=1))
    assert fault(receipt(held(), held()))
    for wrong in (held(2), held(segment=1), held(data=b"more"), held(size_bytes=5)):
        assert fault(receipt(wrong))


async def test_only_what_lies_there_so_and_can_be_read_back_is_named():
    disk = Disk()
    node = await disk.node()
    await node.store([shard(0), shard(1, data=b"bites"), shard(2, lease=OTHER)])
    await node.store([shard(3, customer=BOB)])
    disk.damage(b"bites", b"bitex")
    questions = [wanted(column=column) for column in range(5)]
    questions[1] = wanted(b"bites", 1)
    found = await node.held_shards(LOCATE, 0, ALICE, LEASE, [*questions, wanted(b"else", 0, 1)])
    assert found == [(questions[0], 4)]
    assert await node.held_shards(LOCATE, 0, ALICE, LEASE, [Wanted(0, 0, root_of(b"other"))]) == []
    assert await node.held_shards(LOCATE, 1, ALICE, LEASE, [wanted()]) == []


async def test_what_is_being_written_is_waited_for():
    node = await Disk().node()
    storing = asyncio.ensure_future(node.store([shard()]))
    await asyncio.sleep(0)
    assert node.writer.reserved_bytes
    assert await node.held_shards(LOCATE, 0, ALICE, LEASE, [wanted()]) == [(wanted(), 4)]
    await storing


async def test_no_more_is_read_for_one_question_than_for_a_stat():
    node = await Disk().node()
    data = bytes(STAT_READ_BYTES_MAX // 4)
    for segment in range(5):
        await node.store([shard(segment=segment, data=data)])
    questions = [wanted(data, segment=segment) for segment in range(5)]
    found = await node.held_shards(LOCATE, 0, ALICE, LEASE, questions)
    assert [want for want, _ in found] == questions[:4]


async def ask(world):
    lease = LeaseHandle(world[1].id, world[0].lease_id(world[1].id))
    data = StorageShard(0, b"data", root_of(b"data"))
    client = world[0].service._client
    await client.store(lease, LOCATE, 0, shards=[(0, data)], record=None)
    return await client.confirmed(HAVE, lease, LOCATE, 0, [held(), held(1)])


async def test_a_peer_names_what_it_has_by_a_receipt():
    world = await World(2).start()
    assert await ask(world) == (held(),)


@pytest.mark.parametrize("lie", ["another", "unsigned"])
async def test_a_peer_that_lies_about_it_is_reported(lie):
    world = await World(2).start()

    def corrupt(method, answer):
        if method == HAVE:
            raw = answer.header["receipt"]
            answer.header["receipt"] = raw[:-1] + bytes([raw[-1] ^ 1])
        return answer

    if lie == "unsigned":
        world[1].corrupt = corrupt
    else:
        have = world[1].node.held_shards

        async def more(*args, **options):
            return [*await have(*args, **options), (wanted(column=9), 4)]

        world[1].node.held_shards = more
    with pytest.raises((ReceiptInvalid, RecordInvalid)):
        await ask(world)
    assert [what for _, what in world[0].reports] == ["receipt_invalid"]


async def test_a_peer_of_an_earlier_release_does_not_know_the_question():
    world = await World(2).start()
    handlers = world[1].service.handlers
    known = {name: handler for name, handler in handlers().items() if name != HAVE}

    class Earlier(dict):
        def __missing__(self, key):
            raise NotFound("this node has no such method")

    world[1].service.handlers = lambda: Earlier(known)
    with pytest.raises(NotFound):
        await ask(world)
    assert world[0].reports == []
