"""Finding, stat, ls, rm, and what a host refuses."""

import asyncio
from collections import Counter

import pytest

from tests.settle import turns
from tests.unit.storage.world import FAR, NETWORK, Answer, World, content, get, put
from xsc.api.serial import document
from xsc.base.errors import (
    ArgumentInvalid,
    LeaseExhausted,
    NotAllowed,
    ObjectUnknown,
    PeerSilent,
    RateLimited,
    RecordInvalid,
    ReplayRefused,
    ShardMismatch,
    SignatureInvalid,
    SpaceExhausted,
    StoreDamaged,
    TooLarge,
    XscError,
)
from xsc.base.ids import short, to_text
from xsc.base.limits import READ_TOGETHER_MAX
from xsc.base.merkle import Part, root_of
from xsc.base.units import held_bytes
from xsc.identity.envelope import open_signed, sign
from xsc.node.offline.verify import verify_file
from xsc.storage.catalogue.names import NAMES
from xsc.storage.catalogue.objects import MANIFESTS, OBJECTS
from xsc.storage.object import messages
from xsc.storage.object.capability import parse_read, parse_verify
from xsc.storage.object.erasure import Code, cut
from xsc.storage.object.manifest import hash_of
from xsc.storage.object.messages import ObjectRecord, put_message
from xsc.storage.shardstore import bodies
from xsc.storage.transfer import deletions
from xsc.terms.lease import LeaseHandle
from xsc.terms.storage_receipt import (
    DeletionOrder,
    DeletionReceipt,
    Freed,
    HeldShard,
    StorageReceipt,
)

MIB = 2**20


def what_is_left(host):
    """What the state holds beside receipts and the numbers of names, which stay."""
    stay = (NAMES, deletions.ENDED)
    return [key for key, _ in host.state.scan(b"") if not key.startswith(stay)]


async def states(host, capability):
    return [row.state for row in (await host.service.stat(capability)).hosts]


# reading many


async def test_small_objects_are_read_together_in_order_by_anybody():
    world = await World(8).start()
    contents = [content(size) for size in (0, 1, 4096, 4097, 50_000)]
    capabilities = [(await put(world[0], each)).capability for each in contents]
    for reader in (world[0], world[7]):
        assert await reader.service.contents(capabilities) == contents


async def test_no_more_is_read_together_than_a_segment():
    world = await World(8).start()
    large = (await put(world[0], content(3 * MIB))).capability
    for capabilities in ([large] * 2, [large] * (READ_TOGETHER_MAX + 1)):
        with pytest.raises(TooLarge):
            await world[0].service.contents(capabilities)


# stat


async def test_stat_is_the_document_that_scripts_hold_on_to():
    world = await World(8).start()
    done = await put(world[0], content(9 * MIB + 1))
    world[2].up = False
    found = document(await world[7].service.stat(done.capability))
    assert found == {
        "size_bytes": 9 * MIB + 1,
        "code": {"k": 4, "m": 2},
        "hosts": [
            {
                "shard": column,
                "node": to_text(node),
                "state": "unreachable" if column == 1 else "ok",
            }
            for column, node in enumerate(done.hosts)
        ],
        "readable": True,
        "margin": 1,
        "healable": True,
        "ends_ms": None,
        "ending": [],
    }


async def test_a_verify_capability_is_enough_for_stat():
    world = await World(8).start()
    done = await put(world[0], content(5000))
    verify = parse_read(done.capability).verify.to_text()
    assert await states(world[7], verify) == ["ok"] * 6


async def test_six_nodes_cannot_heal():
    world = await World(6).start()
    done = await put(world[0], content(5000))
    assert (await world[0].service.stat(done.capability)).healable is False


@pytest.mark.parametrize("size", [5, 5000])
async def test_missing_and_corrupt_are_told_apart(size):
    world = await World(8).start()
    done = await put(world[0], content(size))
    await world[1].node.delete(parse_read(done.capability).verify.locate, world[0].id)
    for key, value in list(world[2].bodies.scan(b"b")):
        bad = bytearray(value)
        bad[-1] ^= 1
        world[2].bodies.write([(key, bytes(bad))], sync=True)
    told = await states(world[7], done.capability)
    if size == 5:
        # Of an object without shards every copy is the same: for a reader they have no order.
        assert told.count("ok") == 4
    else:
        assert told == ["missing", "corrupt", *["ok"] * 4]
    assert await states(world[0], done.capability) == ["missing", "corrupt", *["ok"] * 4]
    assert await get(world[7], done.capability) == content(size)


async def test_a_column_without_one_of_its_segments_is_missing():
    world = await World(8).start()
    done = await put(world[0], content(9 * MIB + 1))
    host = world[4]
    key = next(key for key, _ in host.index.scan(b"s", b"t"))
    host.index.write([(key, None)], sync=True)
    assert await states(world[7], done.capability) == ["ok"] * 3 + ["missing"] + ["ok"] * 2


async def test_a_host_that_answers_a_stat_with_nonsense_has_nothing():
    world = await World(8).start()
    done = await put(world[0], content(5000))

    def corrupt(method, answer):
        return Answer({"record": 5}, []) if method == "storage.stat" else answer

    world[1].corrupt = corrupt
    assert (await states(world[7], done.capability))[0] == "missing"


# find


async def test_a_manifest_of_another_object_is_ignored():
    world = await World(8).start()
    data = content(5000)
    done = await put(world[0], data)

    def corrupt(method, answer):
        return Answer(answer.header, [memoryview(b"x" * 500)]) if answer.parts else answer

    for host in world[1:6]:
        host.corrupt = lambda method, answer: (
            corrupt(method, answer) if method == "storage.find" else answer
        )
    assert await get(world[7], done.capability) == data


async def test_nobody_honest_is_nobody():
    world = await World(8).start()
    done = await put(world[0], content(5000))
    for host in world.hosts[:7]:
        host.corrupt = lambda method, answer: Answer({}, []) if "find" in method else answer
    with pytest.raises(ObjectUnknown):
        await get(world[7], done.capability)


# ls and rm


async def test_ls_shows_what_was_put_in_order():
    world = await World(7).start()
    first = await put(world[0], content(10), name="first")
    world.clock.advance_to(world.clock.now_ms() + 5)
    second = await put(world[0], content(5000), name="second")
    world[3].up = False
    rows = [document(row) for row in world[0].service.ls()]
    assert rows == [
        {
            "name": "first",
            "version": 1,
            "capability": first.capability,
            "size_bytes": 10,
            "created_ms": world.clock.now_ms() - 5,
            "margin": 1,
            "survives_nodes": 1,
            "ends_ms": FAR.end_ms,
            "ending": [],
            "hosts": [to_text(node) for node in first.hosts],
        },
        {
            "name": "second",
            "version": 1,
            "capability": second.capability,
            "size_bytes": 5000,
            "created_ms": world.clock.now_ms(),
            "margin": 1,
            "survives_nodes": 1,
            "ends_ms": FAR.end_ms,
            "ending": [],
            "hosts": [to_text(node) for node in second.hosts],
        },
    ]
    assert world[1].service.ls() == []


async def test_rm_deletes_everywhere():
    world = await World(7).start()
    done = await put(world[0], content(9 * MIB + 1))
    result = await world[0].service.rm(done.capability)
    assert set(result.confirmed) == set(done.hosts)
    assert result.partly is False
    assert sum(host.node.used_bytes for host in world.hosts) == 0
    assert what_is_left(world[0]) == []
    assert world[0].service.ls() == []
    with pytest.raises(ObjectUnknown):
        await get(world[0], done.capability)


async def test_rm_says_who_was_silent_and_asks_again():
    world = await World(7).start()
    done = await put(world[0], content(5000))
    world[2].up = False
    result = await world[0].service.rm(done.capability)
    assert result.partly
    assert result.unreachable == (world[2].id,)
    assert world[0].service.ls() == []
    assert (await world[0].service.rm(done.capability)).unreachable == (world[2].id,)
    world[2].up = True
    again = await world[0].service.rm(done.capability)
    assert again.confirmed == (world[2].id,)
    assert not again.partly
    assert world[2].node.used_bytes == 0
    assert set(world[0].customer_used.values()) == {0}
    assert what_is_left(world[0]) == []


async def test_rm_of_an_own_object_that_the_state_forgot_works():
    world = await World(7).start()
    done = await put(world[0], content(5000))
    for key, _ in list(world[0].state.scan(b"")):
        world[0].state.write([(key, None)], sync=True)
    assert not (await world[0].service.rm(done.capability)).partly
    assert sum(host.node.used_bytes for host in world.hosts) == 0


async def test_a_damaged_list_of_objects_is_named():
    world = await World(7).start()
    done = await put(world[0], content(5000))
    key = OBJECTS + parse_read(done.capability).manifest_hash
    world[0].state.write([(key, b"\x00")], sync=True)
    with pytest.raises(StoreDamaged):
        world[0].service.ls()


async def test_a_damaged_manifest_in_the_state_is_refused():
    world = await World(7).start()
    done = await put(world[0], content(5000))
    key = MANIFESTS + parse_read(done.capability).manifest_hash
    world[0].state.write([(key, b"x" * 100)], sync=True)
    with pytest.raises(XscError):
        await get(world[0], done.capability)


async def test_a_name_has_a_bound():
    world = await World(7).start()
    with pytest.raises(ArgumentInvalid):
        await put(world[0], b"", name="n" * 1025)


# What a host refuses


class Request:
    """A put from node 0 to node 1, to be spoiled."""

    def __init__(self, world):
        self.world = world
        self.locate = b"l" * 32
        self.shards = [(0, shard) for shard in cut(content(100), Code())]

    async def send(self, sender=0, sealed=b"sealed"):
        record = ObjectRecord(sealed, root_of(sealed), b"")
        lease = self.world[sender].lease_id(self.world[1].id)
        header, parts = put_message(lease, self.locate, 0, self.shards, record)
        return await self.world[sender].call(self.world[1].id, messages.PUT, header, parts)

    async def delete(self, sender=0, **change):
        fields = {
            "customer": self.world[sender].id,
            "host": self.world[1].id,
            "locate": self.locate,
            "columns": (),
            "final": False,
            "ordered_ms": 1,
        }
        signer = self.world[change.pop("signer", sender)]
        order = sign(DeletionOrder(**fields | change), signer.key, NETWORK)
        header = {"order": order.raw}
        reply = await self.world[sender].call(self.world[1].id, messages.DELETE, header)
        return order, reply


async def test_a_receipt_names_all_that_was_stored():
    world = await World(3).start()
    request = Request(world)
    reply = await request.send()
    receipt = open_signed(
        reply.header["receipt"], StorageReceipt, network=NETWORK, author=world[1].id
    ).record
    assert [(held.segment, held.column, held.root) for held in receipt.shards] == [
        (0, shard.column, shard.root) for _, shard in request.shards
    ]
    assert receipt.manifest == hash_of(b"sealed")
    assert receipt.stored_ms == world.clock.now_ms()


async def test_another_shard_in_the_same_place_is_refused_and_gives_its_room_back():
    world = await World(3).start()
    request = Request(world)
    await request.send()
    used = dict(world[1].book.used)
    request.shards = [(0, shard) for shard in cut(content(100, seed=2), Code())]
    with pytest.raises(ShardMismatch):
        await request.send()
    assert world[1].book.used == used


async def test_the_same_put_again_is_receipted_and_costs_nothing():
    world = await World(3).start()
    request = Request(world)
    await request.send()
    used = dict(world[1].book.used)
    assert (await request.send()).header["receipt"]
    assert world[1].book.used == used == dict(world[1].node.usage)


async def test_a_full_host_refuses_and_the_lease_is_not_used():
    world = await World(3).start()
    world[1].node.writer.capacity_bytes = 100
    with pytest.raises(SpaceExhausted):
        await Request(world).send()
    assert set(world[1].book.used.values()) == {0}


async def test_without_a_lease_nothing_is_written():
    world = await World(3).start()
    world[1].book.room[world[0].lease_id(world[1].id)] = 0
    with pytest.raises(LeaseExhausted):
        await Request(world).send()
    assert list(world[1].bodies.scan(b"b")) == []


async def test_only_the_customer_deletes_and_its_lease_is_freed():
    world = await World(3).start()
    request = Request(world)
    await request.send()
    held = world[1].node.used_bytes
    assert held > 0
    _, reply = await request.delete(sender=2)
    receipt = open_signed(
        reply.header["receipt"], DeletionReceipt, network=NETWORK, author=world[1].id
    ).record
    assert (receipt.customer, receipt.freed) == (world[2].id, ())
    assert world[1].node.used_bytes == held
    order, reply = await request.delete()
    receipt = open_signed(
        reply.header["receipt"], DeletionReceipt, network=NETWORK, author=world[1].id
    ).record
    assert (receipt.customer, receipt.locate) == (world[0].id, request.locate)
    assert receipt.order == order.id
    assert receipt.freed_bytes == held
    assert set(world[1].book.used.values()) == {0}


async def test_what_a_host_only_says_is_no_deletion():
    """Nothing counts as deleted before its receipt is there, whatever else a host answers."""
    world = await World(7).start()
    owner = world[0]
    done = await put(owner, content(70_000))
    liar = world.by_id[next(node for node in done.hosts if node != owner.id)]

    def refuse(method, _number):
        if method == messages.DELETE:
            raise NotAllowed("only the node that stored an object can delete it")

    liar.before = refuse
    result = await owner.service.rm(done.capability)
    assert liar.id not in result.confirmed
    assert result.unreachable == (liar.id,)
    assert await owner.service.retry_deletions() == (0, 1, 0)
    liar.before = lambda method, number: None
    assert await owner.service.retry_deletions() == (1, 0, 0)
    assert liar.node.used_bytes == 0


async def test_a_caller_has_one_long_look_at_a_time_and_others_their_own():
    """Else a peer could have all threads read for it, for questions of some bytes."""
    world = await World(3).start()
    host, running, most = world[0], 0, 0
    looks = Counter()

    def slow(name):
        async def look(*_args, **_options):
            nonlocal running, most
            looks[name] += 1
            running += 1
            most = max(most, running)
            await turns(5)
            running -= 1
            raise StoreDamaged("nothing to see")

        return look

    for name in ("stat", "held_shards", "has_any"):
        setattr(host.node, name, slow(name))

    shard = HeldShard(segment=0, column=0, size_bytes=1, root=bytes(32))

    def asked(caller):
        order = DeletionOrder(
            customer=caller.id,
            host=host.id,
            locate=bytes(32),
            columns=(),
            final=False,
            ordered_ms=1,
        )
        return {
            messages.STAT: messages.stat_message(bytes(32), 0, bytes(32)),
            messages.HAVE: messages.keep_message(bytes(32), bytes(32), 0, [shard]),
            messages.DELETE: {"order": sign(order, caller.key, NETWORK).raw},
        }

    calls = [
        caller.call(host.id, method, header)
        for caller in (world[1], world[2])
        for method, header in asked(caller).items()
        for _ in range(10)
    ]
    await asyncio.gather(*calls, return_exceptions=True)
    assert looks == {"stat": 20, "held_shards": 20, "has_any": 20}
    assert most == 2


@pytest.mark.parametrize("fault", [RateLimited, PeerSilent, ReplayRefused])
async def test_a_host_that_is_only_busy_has_lost_nothing(fault):
    """What is tried again in a moment is no loss: repairing it would cost for nothing."""
    world = await World(8).start()
    done = await put(world[0], content(70_000))
    host = world.by_id[done.hosts[2]]

    def busy(method, _number):
        if method == messages.STAT:
            raise fault("not now")

    host.before = busy
    assert (await states(world[0], done.capability))[2] == "unreachable"
    host.before = lambda method, number: None
    assert await states(world[0], done.capability) == ["ok"] * 6


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"sender": 2, "customer": "owner"}, RecordInvalid),
        ({"sender": 2, "customer": "owner", "signer": 0}, SignatureInvalid),
        ({"signer": 2}, SignatureInvalid),
        ({"host": bytes(32)}, RecordInvalid),
        ({"customer": bytes(32)}, RecordInvalid),
    ],
)
async def test_nobody_else_orders_a_deletion_not_even_with_the_owners_own_order(change, fault):
    world = await World(3).start()
    request = Request(world)
    await request.send()
    held = world[1].node.used_bytes
    if change.get("customer") == "owner":
        change = change | {"customer": world[0].id}
    with pytest.raises(fault):
        await request.delete(**change)
    assert world[1].node.used_bytes == held


@pytest.mark.parametrize(
    "method", [messages.PUT, messages.GET, messages.STAT, messages.FIND, messages.DELETE]
)
@pytest.mark.parametrize("header", [{}, {"locate": b"short"}, {"locate": 5, "shards": []}])
async def test_every_method_refuses_what_is_malformed(method, header):
    world = await World(2).start()
    with pytest.raises(RecordInvalid):
        await world[0].call(world[1].id, method, header)


async def test_parts_that_were_not_announced_are_refused():
    world = await World(2).start()
    data = b"data"
    with pytest.raises(RecordInvalid):
        await world[0].call(
            world[1].id,
            messages.PUT,
            put_message(b"1" * 32, b"l" * 32, 0, [], None)[0],
            [Part(data, root_of(data))],
        )


async def test_every_host_signs_its_deletion_and_the_owner_keeps_the_receipts():
    world = await World(7).start()
    done = await put(world[0], content(9 * MIB + 1))
    locate = parse_read(done.capability).verify.locate
    freed = {host.id: host.node.used_bytes for host in world.hosts[1:]}
    result = await world[0].service.rm(done.capability)
    assert {signed.author for signed in result.receipts} == set(done.hosts)
    for signed in result.receipts:
        assert signed.record.freed_bytes == freed[signed.author] > 0
        assert verify_file(signed.raw).startswith(f"deletion receipt: {short(signed.author)} holds")
    assert all(signed.record.locate == locate for signed in result.receipts)


@pytest.mark.parametrize(
    "change",
    [
        {"host": bytes(32)},
        {"customer": bytes(32)},
        {"locate": bytes(32)},
        {"deleted_ms": 0},
        {"freed": (Freed(lease_id=bytes(32), size_bytes=1),) * 2},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_wrong_deletion_receipt_confirms_nothing(change):
    world = await World(7).start()
    done = await put(world[0], content(9 * MIB + 1))
    liar = world.by_id[done.hosts[0]]

    def lie(method, answer):
        if method == messages.DELETE:
            said = open_signed(answer.header["receipt"], DeletionReceipt, network=NETWORK).record
            raw = sign(said.model_copy(update=change), liar.key, NETWORK).raw
            return Answer({"receipt": raw}, [])
        return answer

    liar.corrupt = lie
    result = await world[0].service.rm(done.capability)
    assert result.unreachable == (liar.id,)
    assert liar.id not in {signed.author for signed in result.receipts}
    assert (liar.id, "receipt_invalid") in world[0].reports
    # What the host says of itself is checked, not believed: another node's word is none.
    liar.corrupt = lambda method, answer: answer
    assert not (await world[0].service.rm(done.capability)).unreachable


async def test_that_an_object_was_deleted_is_dropped_after_ten_years():
    """A custodian that did not hear of the deletion may come much later."""
    world = await World(7).start()
    state = world[0].state
    done = await put(world[0], content(9 * MIB + 1))
    await world[0].service.rm(done.capability)
    late = world.clock.now_ms() + deletions.ENDED_KEPT_MS
    assert deletions.too_old(state, late, 100) == []
    state.write(deletions.too_old(state, late + 1, 100), sync=False)
    assert not [key for key, _ in state.scan(b"") if not key.startswith(NAMES)]


async def test_what_takes_the_place_of_another_is_counted_under_the_lease_that_it_lies_under():
    """A damaged record that is stored anew, under another lease."""
    world = await World(3).start()
    owner = world[0]
    done = await put(owner, content(50_000), code=(1, 1))
    verify = parse_verify(done.capability)
    host = world.by_id[next(node for node in done.hosts if node != owner.id)]
    sealed = (await owner.service.open(done.capability))._located.sealed
    for key, raw in list(host.bodies.scan(bodies.BODIES, bodies.BODIES + b"\xff")):
        if not bodies.decode_body(raw).is_shard:
            host.bodies.write([(key, raw[:-1] + bytes([raw[-1] ^ 1]))], sync=True)
    assert await host.node.find(verify.locate, verify.manifest_hash) is None
    record = ObjectRecord(sealed, root_of(sealed), verify.manifest_hash)
    other = LeaseHandle(host.id, b"other" + bytes(27))
    await owner.service._client.store(other, verify.locate, 0, shards=[], record=record)
    assert host.book.used[other.lease_id] == record.held_bytes == held_bytes(len(sealed))
    assert host.book.used == host.node.usage
    await owner.service.rm(done.capability)
    assert set(host.book.used.values()) == {0}
