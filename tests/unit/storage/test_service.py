"""Finding, stat, ls, rm, and what a host refuses."""

from dataclasses import replace

import pytest

from tests.unit.storage.world import FAR, NETWORK, Answer, Lease, World, content, get, put
from xsc.base.errors import (
    ArgumentInvalid,
    LeaseExhausted,
    NotAllowed,
    ObjectUnknown,
    RecordInvalid,
    ShardMismatch,
    SignatureInvalid,
    SpaceExhausted,
    StoreDamaged,
    XscError,
)
from xsc.base.ids import short, to_text
from xsc.base.keyvalue import prefix_end
from xsc.base.merkle import Part, root_of
from xsc.identity.envelope import open_signed, sign
from xsc.node.verify import verify_file
from xsc.storage import deletions, messages
from xsc.storage.capability import parse_read, parse_verify
from xsc.storage.delegation import move_by_owner, open_placement
from xsc.storage.erasure import Code, cut
from xsc.storage.messages import ObjectRecord, put_message
from xsc.storage.names import NAMES
from xsc.storage.placement import Placement
from xsc.storage.service import MANIFESTS, OBJECTS
from xsc.terms.deletion_receipt import DeletionReceipt, Freed
from xsc.terms.storage_receipt import StorageReceipt

MIB = 2**20


def what_is_left(host):
    """What the state holds beside receipts and the numbers of names, which stay."""
    stay = (NAMES, deletions.DELETED, deletions.ENDED)
    return [key for key, _ in host.state.scan(b"") if not key.startswith(stay)]


async def states(host, capability):
    return [row.state for row in (await host.service.stat(capability)).hosts]


# stat


async def test_stat_is_the_document_that_scripts_hold_on_to():
    world = await World(8).start()
    done = await put(world[0], content(9 * MIB + 1))
    world[2].up = False
    found = (await world[7].service.stat(done.capability)).to_json()
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
    assert (await world[0].service.stat(done.capability)).condition.healable is False


@pytest.mark.parametrize("size", [5, 5000])
async def test_missing_and_corrupt_are_told_apart(size):
    world = await World(8).start()
    done = await put(world[0], content(size))
    await world[1].node.delete(parse_read(done.capability).verify.locate, world[0].id)
    for key, value in list(world[2].bodies.scan(b"b")):
        bad = bytearray(value)
        bad[-1] ^= 1
        world[2].bodies.write([(key, bytes(bad))], sync=True)
    assert await states(world[7], done.capability) == ["missing", "corrupt", *["ok"] * 4]
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


def placement_of(world, done):
    locate = parse_read(done.capability).verify.locate
    entry = world[0].service._entry(parse_read(done.capability).manifest_hash)
    return locate, open_signed(entry.placement, Placement, network=NETWORK).record


async def test_the_highest_placement_generation_wins():
    world = await World(8).start()
    data = content(5000)
    done = await put(world[0], data)
    _, placement = placement_of(world, done)
    # Column 0 moves to node 7: the shard, and a later placement at one host alone.
    capability = parse_read(done.capability).verify
    found = await world[1].node.find(capability.locate, capability.manifest_hash)
    columns = (world[7].id, *placement.columns[1:])
    moved = sign(
        placement.model_copy(update={"generation": 2, "columns": columns}), world[0].key, NETWORK
    )
    sealed = bytes(found.sealed)
    record = ObjectRecord(sealed, root_of(sealed), capability.manifest_hash, moved.raw, moved.id, 2)
    header, parts = put_message(world[0].lease_id(world[7].id), capability.locate, 0, [], record)
    await world[0].call(world[7].id, messages.PUT, header, parts)
    located = await world[6].service._locate(capability)
    assert located.placement.columns == columns


async def forged(world, done, change, signer):
    _, placement = placement_of(world, done)
    raw = sign(placement.model_copy(update=change), signer.key, NETWORK).raw

    def corrupt(method, answer):
        if method != "storage.find":
            return answer
        return Answer({"placements": [raw]}, answer.parts)

    return corrupt


@pytest.mark.parametrize(
    ("change", "signer"),
    [
        ({"generation": 9}, 1),
        ({"locate": bytes(32), "generation": 9}, 0),
        ({"k": 3, "generation": 9}, 0),
        ({"columns": (bytes(32),) * 5, "generation": 9}, 0),
    ],
)
async def test_a_placement_that_the_owner_did_not_sign_for_it_is_ignored(change, signer):
    world = await World(8).start()
    data = content(5000)
    done = await put(world[0], data)
    world[1].corrupt = await forged(world, done, change, world[signer])
    assert await get(world[7], done.capability) == data
    assert (world[1].id, "record_invalid") in world[7].reports


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
    rows = [row.to_json() for row in world[0].service.ls()]
    assert rows == [
        {
            "name": "first",
            "version": 1,
            "capability": first.capability,
            "size_bytes": 10,
            "created_ms": world.clock.now_ms() - 5,
            "margin": 1,
            "ends_ms": FAR.end_ms,
            "ending": [],
        },
        {
            "name": "second",
            "version": 1,
            "capability": second.capability,
            "size_bytes": 5000,
            "created_ms": world.clock.now_ms(),
            "margin": 1,
            "ends_ms": FAR.end_ms,
            "ending": [],
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
        self.columns = (world[1].id,) * 6

    def placement(self, signer=0, **change):
        fields = {
            "locate": self.locate,
            "owner": self.world[0].id,
            "generation": 1,
            "k": 4,
            "m": 2,
            "code_generation": 0,
            "columns": self.columns,
            "segments": 1,
        }
        return sign(Placement(**fields | change), self.world[signer].key, NETWORK)

    async def send(self, placement=None, sender=0, sealed=b"sealed"):
        signed = placement or self.placement()
        record = ObjectRecord(sealed, root_of(sealed), b"", signed.raw, signed.id, 1)
        lease = self.world[sender].lease_id(self.world[1].id)
        header, parts = put_message(lease, self.locate, 0, self.shards, record)
        return await self.world[sender].call(self.world[1].id, messages.PUT, header, parts)


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
    assert receipt.placement == request.placement().id
    assert receipt.stored_ms == world.clock.now_ms()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"locate": bytes(32)}, RecordInvalid),
        ({"owner": bytes(32)}, RecordInvalid),
        ({"code_generation": 1}, RecordInvalid),
        ({"columns": (bytes(32),) * 6}, RecordInvalid),
        ({"signer": 2}, SignatureInvalid),
    ],
)
async def test_a_host_takes_only_placements_of_its_customer_that_name_it(change, fault):
    world = await World(3).start()
    request = Request(world)
    with pytest.raises(fault):
        await request.send(request.placement(**change))
    assert world[1].node.used_bytes == 0
    assert world[1].book.used == {}


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
    world[1].node.capacity_bytes = 100
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
    with pytest.raises(NotAllowed):
        await world[2].call(world[1].id, messages.DELETE, {"locate": request.locate})
    assert world[1].node.used_bytes > 0
    held = world[1].node.used_bytes
    reply = await world[0].call(world[1].id, messages.DELETE, {"locate": request.locate})
    receipt = open_signed(
        reply.header["receipt"], DeletionReceipt, network=NETWORK, author=world[1].id
    ).record
    assert (receipt.customer, receipt.locate) == (world[0].id, request.locate)
    assert receipt.freed_bytes == held
    assert set(world[1].book.used.values()) == {0}


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
    kept = list(deletions.of_object(world[0].state, locate))
    assert sorted(kept) == sorted(signed.raw for signed in result.receipts)
    assert list(deletions.of_object(world[0].state, bytes(32))) == []


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


async def test_receipts_of_deletions_are_dropped_once_no_lease_can_be_left():
    world = await World(7).start()
    state = world[0].state
    done = await put(world[0], content(9 * MIB + 1))
    await world[0].service.rm(done.capability)
    now_ms = world.clock.now_ms()
    assert deletions.too_old(state, now_ms + deletions.KEPT_MS, 100) == []
    late = now_ms + deletions.KEPT_MS + 1
    assert len(deletions.too_old(state, late, 2)) == 2
    state.write(deletions.too_old(state, late, 100), sync=False)
    assert not list(state.scan(deletions.DELETED, prefix_end(deletions.DELETED)))
    # A guardian that did not hear of the deletion may come much later.
    late = now_ms + deletions.ENDED_KEPT_MS
    assert deletions.too_old(state, late, 100) == []
    state.write(deletions.too_old(state, late + 1, 100), sync=False)
    assert not [key for key, _ in state.scan(b"") if not key.startswith(NAMES)]


async def test_what_takes_the_place_of_another_is_counted_under_the_lease_that_it_lies_under():
    world = await World(3).start()
    owner = world[0]
    done = await put(owner, content(50_000), code=(1, 1))
    verify = parse_verify(done.capability)
    host = world.by_id[next(node for node in done.hosts if node != owner.id)]
    located = await owner.service.open(done.capability)
    sealed = located._located.sealed
    placement = open_placement(located._located.placement_raw, NETWORK)
    raw = move_by_owner(placement, done.hosts, owner.key, verify.delegate.node_id, NETWORK)
    record = ObjectRecord(
        sealed=sealed,
        sealed_root=root_of(sealed),
        manifest_hash=verify.manifest_hash,
        placement=raw,
        placement_id=open_placement(raw, NETWORK).id,
        placement_generation=open_placement(raw, NETWORK).rank,
    )
    other = Lease(host.id, b"other" + bytes(27))
    await owner.service._reach.store(other, verify.locate, 0, shards=[], record=record)
    assert host.book.used[other.lease_id] == len(sealed) + len(raw)
    assert host.book.used == host.node.usage
    await owner.service.rm(done.capability)
    assert set(host.book.used.values()) == {0}


@pytest.mark.parametrize("words", [[True, True], [True, False], [False, True], [False, False]])
async def test_whatever_own_placement_is_replaced_counts_what_lay_there(words):
    world = await World(8).start()
    owner = world[0]
    done = await put(owner, content(50_000))
    ref = parse_verify(done.capability).manifest_hash
    mender = owner.service.mender
    for by_owner in [*words, True]:
        charge = mender._keeper.load(ref)
        survey = await mender.survey(charge)
        # As a delegate it signs where others still pay for a part.
        raw = mender._sign(charge, survey.placed, survey.columns, by_owner=by_owner)
        assert await mender._keeper.save(ref, raw, charge.held)
        charge = replace(charge, placement=raw)
        await mender._spread(charge, survey, open_placement(raw, NETWORK), survey.columns)
        for item in mender._keeper.load(ref).held:
            assert world.by_id[item.node].node.usage[item.lease_id] == item.size_bytes
