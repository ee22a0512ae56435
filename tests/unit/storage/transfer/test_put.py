"""Putting: what is sent, what happens when hosts fail on the way, what is left behind."""

import itertools
import threading
from dataclasses import replace

import pytest

from tests.settle import settle
from tests.unit.storage.world import NETWORK, Answer, World, content, get, put, receipt_in, stream
from xsc.base.errors import (
    DurabilityUnreachable,
    NoOffers,
    NotAllowed,
    PeerSilent,
    ReceiptInvalid,
    SpaceExhausted,
    TooLarge,
    UploadChanged,
    XscError,
)
from xsc.base.ids import short
from xsc.base.limits import SEGMENT_BYTES
from xsc.identity.envelope import sign
from xsc.node.system import ThreadExecutor
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.durability import Contract
from xsc.storage.transfer import put as pipeline
from xsc.storage.transfer.journal import ACK, HEAD, PREFIX, SEGMENT, UPLOAD_KEPT_MS
from xsc.storage.transfer.put import cut_stream

MIB = 2**20
FOUR_SEGMENTS = 13 * MIB + 5


async def states(host, capability):
    return [row.state for row in (await host.service.stat(capability)).hosts]


def used(world):
    return [host.node.used_bytes for host in world.hosts]


def accounts_agree(world, done):
    """Say whether hosts that are up and their customer count the same, lease by lease."""
    owner = world[0]
    entry = owner.service.catalogue.entry(parse_verify(done.capability).manifest_hash)
    leases = [(owner.lease_id(host.id), host) for host in world.hosts[1:] if host.up]
    named = {
        lease: sum(a.size_bytes for a in entry.held if a.lease_id == lease) for lease, _ in leases
    }
    counted = {lease: owner.customer_used.get(lease, 0) for lease, _ in leases}
    billed = {lease: host.book.used.get(lease, 0) for lease, host in leases}
    held = {lease: host.node.used_bytes for lease, host in leases}
    return named == counted == billed == held


@pytest.mark.parametrize("size", [0, 1, 4096])
async def test_a_small_object_is_one_request_a_host(size):
    world = await World(7).start()
    await put(world[0], content(size))
    assert sorted(world[0].calls) == sorted((host.id, "storage.put") for host in world[1:7])


async def test_a_segment_is_one_request_a_host():
    world = await World(7).start()
    done = await put(world[0], content(FOUR_SEGMENTS))
    assert len(world[0].calls) == 6 * 4
    assert done.hosts == tuple(host.id for host in world.hosts[1:7])
    assert done.survives.nodes == 2
    assert done.warnings == []


async def test_accounts_agree_with_what_hosts_hold():
    world = await World(7).start()
    await put(world[0], content(FOUR_SEGMENTS))
    for host in world[1:7]:
        lease = world[0].lease_id(host.id)
        assert host.node.used_bytes == host.book.used[lease] == world[0].customer_used[lease]
        assert dict(host.node.usage) == {lease: host.node.used_bytes}


async def test_a_lone_node_is_its_own_host_and_says_so():
    world = await World(1).start()
    data = content(5 * MIB)
    done = await put(world[0], data)
    assert done.warnings == ["the object does not survive the loss of this node"]
    assert done.survives.nodes == 0
    assert done.hosts == (world[0].id,) * 6
    assert world[0].calls == []
    assert world[0].node.used_bytes > len(data) * 3 // 2
    assert await get(world[0], done.capability) == data


async def test_with_few_nodes_columns_are_doubled_with_a_warning():
    world = await World(4).start()
    data = content(5 * MIB)
    done = await put(world[0], data)
    assert len(set(done.hosts)) == 4
    assert len(done.warnings) == 1
    assert done.survives.nodes == 1
    for lost in world.hosts[1:]:
        lost.up = False
        assert await get(world[0], done.capability) == data
        lost.up = True


@pytest.mark.parametrize(
    ("nodes", "survive", "code"), [(4, 2, (4, 2)), (7, 3, (4, 2)), (1, 1, (4, 2)), (2, 1, (4, 2))]
)
async def test_a_durability_that_cannot_be_met_is_refused_before_anything_is_sent(
    nodes, survive, code
):
    world = await World(nodes).start()
    with pytest.raises(DurabilityUnreachable) as fault:
        await put(world[0], content(5 * MIB), contract=Contract(survive), code=code)
    assert fault.value.hint
    assert world[0].calls == []
    assert sum(used(world)) == 0


async def test_a_refusal_offers_the_most_that_works():
    world = await World(12).start()
    for index, host in enumerate(world.hosts):
        world.labels[host.id] = (f"site{index // 4}", "")
    with pytest.raises(DurabilityUnreachable) as fault:
        await put(world[0], content(MIB), contract=Contract(0, 2))
    assert "`--survive 1site`" in fault.value.hint
    done = await put(world[0], content(MIB), contract=Contract(0, 1))
    assert done.survives[1] == 1


@pytest.mark.parametrize(
    ("nodes", "survive", "code"), [(7, 2, (4, 2)), (3, 1, (4, 2)), (3, 2, (1, 2)), (8, 4, (4, 4))]
)
async def test_a_durability_that_can_be_met_is_held(nodes, survive, code):
    world = await World(nodes).start()
    data = content(100_000)
    done = await put(world[0], data, contract=Contract(survive), code=code)
    assert done.survives.nodes >= survive
    for lost in itertools.combinations(range(1, nodes), survive):
        for index in lost:
            world[index].up = False
        assert await get(world[0], done.capability) == data
        for index in lost:
            world[index].up = True


def dies_at(host, number):
    def before(_method, served):
        if served >= number:
            host.up = False
            raise PeerSilent("the peer died")

    host.before = before


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("victims", [(1,), (6,), (2, 5)])
async def test_a_host_that_dies_on_the_way_is_replaced(number, victims):
    """All columns end on hosts that live, whichever request was the last one answered."""
    world = await World(9).start()
    for victim in victims:
        dies_at(world[victim], number)
    data = content(FOUR_SEGMENTS)
    done = await put(world[0], data)
    spare = [world[index].id for index in (7, 8)[: len(victims)]]
    kept = {host.id for host in world[1:7]} - {world[victim].id for victim in victims}
    assert set(done.hosts) == kept | set(spare)
    assert done.warnings == []
    assert accounts_agree(world, done)
    assert await states(world[0], done.capability) == ["ok"] * 6
    assert await get(world[3], done.capability) == data
    # Any two more may go: what was rebuilt is as good as what was sent.
    for host in done.hosts[:2]:
        world.by_id[host].up = False
    assert await get(world[0], done.capability) == data


@pytest.mark.parametrize("number", [1, 3, 4])
async def test_a_host_that_answers_and_dies_before_the_answer_arrives_is_replaced(number):
    world = await World(8).start()

    def before(_method, served):
        if served == number:
            world[2].up = False

    world[2].before = before
    data = content(FOUR_SEGMENTS)
    done = await put(world[0], data)
    assert set(done.hosts) == {host.id for host in world[1:8]} - {world[2].id}
    world[2].up = True
    assert await states(world[0], done.capability) == ["ok"] * 6
    # What the dead host holds is known, and deleted with the rest.
    assert world[2].node.used_bytes > 0
    result = await world[0].service.rm(done.capability)
    assert not result.partly
    assert sum(used(world)) == 0


async def test_a_replacement_that_dies_too_is_replaced():
    world = await World(9).start()
    dies_at(world[1], 3)
    dies_at(world[7], 1)
    data = content(FOUR_SEGMENTS)
    done = await put(world[0], data)
    assert world[8].id in done.hosts
    assert accounts_agree(world, done)
    assert await states(world[0], done.capability) == ["ok"] * 6


@pytest.mark.parametrize("size", [0, 4096, 4097])
async def test_hosts_that_die_with_the_record_are_replaced_and_each_host_has_it(size):
    world = await World(9).start()
    dies_at(world[1], 1)
    dies_at(world[2], 1)
    done = await put(world[0], content(size))
    assert set(done.hosts) == {host.id for host in world.hosts[3:9]}
    assert accounts_agree(world, done)
    assert await states(world[0], done.capability) == ["ok"] * 6


async def test_the_own_node_is_the_last_replacement():
    world = await World(7).start()
    dies_at(world[3], 2)
    data = content(FOUR_SEGMENTS)
    done = await put(world[0], data)
    assert world[0].id in done.hosts
    assert done.warnings == []
    assert await states(world[0], done.capability) == ["ok"] * 6


@pytest.mark.parametrize("number", [1, 2, 4])
async def test_where_no_node_is_left_columns_double_up_if_less_is_asked_for(number):
    world = await World(6).start()
    dies_at(world[3], number)
    data = content(FOUR_SEGMENTS)
    done = await put(world[0], data, contract=Contract())
    assert len(set(done.hosts)) == 5
    assert accounts_agree(world, done)
    assert "5 nodes" in done.warnings[0]
    assert done.survives.nodes == 1
    assert await states(world[0], done.capability) == ["ok"] * 6
    assert await get(world[2], done.capability) == data


@pytest.mark.parametrize("asked", [{}, {"contract": Contract(2)}], ids=["default", "asked"])
async def test_doubling_up_never_breaks_the_contract(asked):
    world = await World(6).start()
    dies_at(world[3], 2)
    with pytest.raises(NoOffers) as caught:
        await put(world[0], content(FOUR_SEGMENTS), **asked)
    assert f"silent: {short(world[3].id)}" in caught.value.message
    assert "`--survive 1node`" in caught.value.hint
    world[3].before = lambda method, number: None
    assert sum(used(world)) == world[3].node.used_bytes
    assert world[0].service.ls() == []


@pytest.mark.parametrize(("nodes", "victims"), [(4, (1, 2)), (5, (1, 2, 3))])
async def test_a_refusal_after_several_deaths_names_the_dead_and_offers_less(nodes, victims):
    """Also those that no other node has taken over yet."""
    world = await World(nodes).start()
    for victim in victims:
        dies_at(world[victim], 2)
    with pytest.raises(NoOffers) as caught:
        await put(world[0], content(FOUR_SEGMENTS), contract=Contract(1))
    dead = ", ".join(sorted(short(world[victim].id) for victim in victims))
    assert f"silent: {dead}" in caught.value.message
    assert "`--survive 0nodes`" in caught.value.hint


async def test_a_refusal_does_not_offer_the_contract_that_it_refuses():
    """The column of the dead node doubles where it may be lost with another of its site."""
    world = await World(6).start()
    for index, host in enumerate(world.hosts):
        world.labels[host.id] = (f"site{index // 2}", "")
    dies_at(world[1], 2)
    with pytest.raises(NoOffers) as caught:
        await put(world[0], content(FOUR_SEGMENTS), contract=Contract(0, 1))
    assert "`--survive" not in caught.value.hint
    assert "put it again" in caught.value.hint
    done = await put(world[0], content(FOUR_SEGMENTS), contract=Contract(0, 1))
    assert done.survives[1] == 1


async def test_nodes_that_are_up_and_refuse_are_named_and_no_reason_to_double_up():
    world = await World(7).start()
    data = content(FOUR_SEGMENTS)

    def full(method, served):
        if served >= 3:
            raise SpaceExhausted("no room")

    world[3].before = full
    world[0].node.writer.capacity_bytes = 0
    with pytest.raises(SpaceExhausted) as caught:
        await put(world[0], data)
    both = ", ".join(sorted(short(node.id) for node in (world[0], world[3])))
    assert f"no room: {both}" in caught.value.message
    world[3].before = lambda method, number: None
    assert sum(used(world)) == world[3].node.used_bytes


async def test_what_finds_no_room_is_needed_until_the_same_put_succeeds():
    world = await World(8).start()
    data = content(FOUR_SEGMENTS)
    for host in (*world.hosts[:1], *world.hosts[3:]):
        host.node.writer.capacity_bytes = 0
    with pytest.raises(XscError):
        await put(world[0], data)
    ((size_bytes, providers),) = world[0].short.items()
    assert FOUR_SEGMENTS // 4 < size_bytes < FOUR_SEGMENTS // 3
    assert providers == 4, "two of six had room; the own node is no provider"
    for host in world.hosts[3:]:
        host.node.writer.capacity_bytes = FOUR_SEGMENTS
    await put(world[0], data)
    assert world[0].short == {}


async def test_what_a_fallback_finds_no_room_for_is_not_needed_beside_the_first_choice():
    """Columns fit into three nodes; half an object, as few nodes would hold, into none."""
    world = await World(8).start()
    column = FOUR_SEGMENTS // 4
    for host in world.hosts:
        host.node.writer.capacity_bytes = 0
    for host in world.hosts[1:3]:
        host.node.writer.capacity_bytes = column * 5 // 4
    for tries in range(2):
        with pytest.raises(XscError):
            await put(world[0], content(FOUR_SEGMENTS))
        ((size_bytes, providers),) = world[0].short.items()
        assert column < size_bytes < column * 4 // 3, tries
        assert providers == 4, tries


async def test_a_put_that_fails_leaves_nothing_behind():
    world = await World(7).start()

    def refuse(method, served):
        if method == "storage.put" and served >= 3:
            raise SpaceExhausted("no room")

    for host in world.hosts[1:]:
        host.before = refuse
    world[0].node.writer.capacity_bytes = 3 * MIB
    with pytest.raises(XscError):
        await put(world[0], content(FOUR_SEGMENTS))
    assert sum(used(world)) == 0
    assert all(sum(host.book.used.values()) == 0 for host in world.hosts[1:])
    assert set(world[0].customer_used.values()) <= {0}
    assert world[0].service.ls() == []


async def test_a_source_that_fails_leaves_nothing_behind():
    world = await World(7).start()

    async def source():
        yield content(9 * MIB)
        raise OSError("the pipe broke")

    with pytest.raises(OSError, match="pipe"):
        await world[0].service.put(source(), name="x")
    assert sum(used(world)) == 0


async def test_an_own_disk_that_is_full_is_the_fault_of_no_host():
    world = await World(8).start()
    owner, write = world[0], world[0].state.write

    def full(changes, *, sync):
        if not sync:
            raise SpaceExhausted("the own disk is full")
        write(changes, sync=sync)

    owner.state.write = full
    with pytest.raises(SpaceExhausted, match="the own disk is full"):
        await put(owner, content(FOUR_SEGMENTS))
    assert not [peer for peer, method in owner.calls if method == "storage.put"]
    owner.state.write = write
    await put(owner, content(FOUR_SEGMENTS))


async def test_a_stream_of_unknown_length_grows_its_leases():
    world = await World(7).start()
    for host in world.hosts[1:]:
        host.book.room[world[0].lease_id(host.id)] = 0
    data = content(FOUR_SEGMENTS)
    # The first estimate is far too small, so that every host must be asked for more.
    done = await put(world[0], data, size_hint=1)
    assert await get(world[0], done.capability) == data
    assert len(set(done.hosts)) == 6
    assert world[0].id not in done.hosts


async def test_a_host_that_has_no_more_room_under_its_lease_is_replaced():
    world = await World(8).start()
    world[1].book.room[b"no"] = 0
    room = {world[0].lease_id(world[1].id): 2 * MIB}

    class Stuck(type(world[1].book)):
        def admit(self, lease_id, customer, size_bytes):
            self.room = room
            super().admit(lease_id, customer, size_bytes)

    world[1].book = Stuck()
    world[1].service._shard_server._leases = world[1].book
    lease_hosts = world[0].lease_hosts

    async def no_top_up(*, size_bytes, count, exclude=frozenset()):
        found = await lease_hosts(size_bytes=size_bytes, count=count, exclude=exclude)
        room[world[0].lease_id(world[1].id)] = 2 * MIB
        return found

    world[0].lease_hosts = no_top_up
    data = content(FOUR_SEGMENTS)
    done = await put(world[0], data)
    assert world[1].id not in done.hosts
    assert set(world[0].refusals) == {world[0].lease_id(world[1].id)}, "the market hears of it"
    assert await get(world[0], done.capability) == data


def tampered(host, change):
    """The host signs, but something else than it was given."""

    def corrupt(method, answer):
        if method != "storage.put":
            return answer
        raw = change(receipt_in(answer.header))
        return Answer({"receipt": raw}, [])

    host.corrupt = corrupt


@pytest.mark.parametrize(
    "name", ["host", "customer", "lease_id", "locate", "manifest", "placement", "shards"]
)
async def test_a_host_whose_receipt_says_something_else_is_replaced_and_reported(name):
    world = await World(8).start()
    wrong = () if name == "shards" else b"x" * 32
    tampered(
        world[2],
        lambda receipt: sign(receipt.model_copy(update={name: wrong}), world[2].key, NETWORK).raw,
    )
    done = await put(world[0], content(5000))
    assert world[2].id not in done.hosts
    assert (world[2].id, "receipt_invalid") in world[0].reports


@pytest.mark.parametrize("signer", ["other", "network", "garbage"])
async def test_a_receipt_that_the_host_did_not_sign_is_refused(signer):
    world = await World(8).start()
    forge = {
        "other": lambda receipt: sign(receipt, world[3].key, NETWORK).raw,
        "network": lambda receipt: sign(receipt, world[2].key, b"n" * 32).raw,
        "garbage": lambda receipt: b"garbage",
    }[signer]
    tampered(world[2], forge)
    done = await put(world[0], content(5000))
    assert world[2].id not in done.hosts
    assert (world[2].id, "receipt_invalid") in world[0].reports


async def test_with_no_honest_host_nothing_is_stored():
    world = await World(2).start()
    world[0].node.writer.capacity_bytes = 0
    tampered(world[1], lambda receipt: b"")
    with pytest.raises((ReceiptInvalid, XscError)):
        await put(world[0], content(5000))
    assert world[0].service.ls() == []


async def chunks(*sizes):
    for size in sizes:
        yield bytes([size % 251]) * size


@pytest.mark.parametrize(
    "sizes",
    [
        (),
        (0,),
        (1,),
        (SEGMENT_BYTES,),
        (SEGMENT_BYTES, 0),
        (SEGMENT_BYTES + 1,),
        (2 * SEGMENT_BYTES,),
        (3 * SEGMENT_BYTES - 1, 1),
        (3 * SEGMENT_BYTES, 1, 0, 0),
        (1,) * 1000,
    ],
)
async def test_streams_are_cut_to_full_segments_and_one_last(sizes):
    pieces = [piece async for piece in cut_stream(chunks(*sizes))]
    assert [final for _, final in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(len(data) == SEGMENT_BYTES for data, final in pieces if not final)
    assert 0 < len(pieces[-1][0]) <= SEGMENT_BYTES or sum(sizes) == 0
    whole = b"".join([chunk async for chunk in chunks(*sizes)])
    assert b"".join(data for data, _ in pieces) == whole


async def test_an_endless_stream_is_stopped(monkeypatch):
    monkeypatch.setattr(pipeline, "OBJECT_BYTES_MAX", 2 * SEGMENT_BYTES)
    world = await World(1).start()

    async def endless():
        while True:
            yield bytes(MIB)

    with pytest.raises(TooLarge):
        await world[0].service.put(endless(), name="x")
    assert sum(used(world)) == 0


async def test_at_most_a_few_segments_are_on_their_way():
    world = await World(7).start()
    read = 0
    most = 0

    async def source():
        nonlocal read, most
        for _ in range(12):
            read += 1
            stored = min(host.served for host in world.hosts[1:])
            most = max(most, read - stored)
            yield content(SEGMENT_BYTES)

    await world[0].service.put(source(), name="x", size_hint=12 * SEGMENT_BYTES)
    assert most <= 3 + 3


async def test_a_wide_code_on_few_hosts_goes_in_several_requests():
    world = await World(2).start()
    world[0].node.writer.capacity_bytes = 0
    data = content(5 * MIB)
    done = await put(world[0], data, code=(2, 8), contract=Contract())
    assert accounts_agree(world, done)
    assert await get(world[1], done.capability) == data


async def test_a_peer_cannot_delete_what_another_stored():
    world = await World(8).start()
    done = await put(world[0], content(5000))
    with pytest.raises(NotAllowed):
        await world[7].service.rm(done.capability)
    assert await states(world[0], done.capability) == ["ok"] * 6
    assert await get(world[7], done.capability) == content(5000)


async def test_a_stream_needs_no_size():
    world = await World(7).start()
    data = content(9 * MIB + 1)
    done = await world[0].service.put(stream(data, 77_777), name="x")
    assert await get(world[5], done.capability) == data


async def broken_put(world, data):
    """Begin a put that keeps what it stored when its client goes away."""

    async def broken():
        async for chunk in stream(data[: 9 * MIB]):
            yield chunk
        await settle()
        raise PeerSilent("the client went away")

    with pytest.raises(PeerSilent):
        await world[0].service.put(broken(), name="x", resume=b"i" * 32)
    assert sum(used(world))


async def test_an_id_that_is_given_again_with_another_code_begins_anew_and_leaves_nothing():
    world = await World(6).start()
    data = content(FOUR_SEGMENTS)
    await broken_put(world, data)

    async def put_again():
        again = {"name": "x", "code": (2, 1), "resume": b"i" * 32}
        return await world[0].service.put(stream(data), **again)

    with pytest.raises(UploadChanged):
        await put_again()
    assert not sum(used(world))
    assert not sum(world[0].customer_used.values())
    assert await get(world[1], (await put_again()).capability) == data


@pytest.mark.parametrize("why", ["changed", "damaged", "too old"])
async def test_an_id_that_is_given_again_forgets_no_host_that_was_silent(why):
    """Whatever ended the put before: its host is asked also where the id is used again."""
    world = await World(7).start()
    data = content(FOUR_SEGMENTS)
    await broken_put(world, data)
    owner, silent = world[0], world[3]
    silent.up = False
    again = {"name": "x", "resume": b"i" * 32}
    if why == "changed":
        again["code"] = (2, 1)
        with pytest.raises(UploadChanged):
            await owner.service.put(stream(data), **again)
    elif why == "damaged":
        harm(world, SEGMENT)
    else:
        world.clock.advance_to(world.clock.now_ms() + UPLOAD_KEPT_MS)
        await owner.service.resume_journals.expire()
    done = await owner.service.put(stream(data), **again)
    assert silent.node.used_bytes
    silent.up = True
    await owner.service.resume_journals.expire()
    assert not silent.node.used_bytes
    assert await get(world[1], done.capability) == data
    assert accounts_agree(world, done)
    assert not list(owner.state.scan(PREFIX, PREFIX + b"\xff"))


async def test_a_host_that_is_silent_when_a_put_is_given_up_is_asked_again_for_a_day():
    """Also where this node was away itself for longer than that."""
    world = await World(6).start()
    await broken_put(world, content(FOUR_SEGMENTS))
    resume_journals, silent = world[0].service.resume_journals, world[3]
    world.clock.advance_to(world.clock.now_ms() + 5 * UPLOAD_KEPT_MS)
    silent.up = False
    for later_ms in (0, UPLOAD_KEPT_MS - 1):
        world.clock.advance_to(world.clock.now_ms() + later_ms)
        await resume_journals.expire()
        assert [host for host in world.hosts if host.node.used_bytes] == [silent]
    silent.up = True
    await resume_journals.expire()
    assert not sum(used(world))
    assert not sum(world[0].customer_used.values())
    assert not list(world[0].state.scan(PREFIX, PREFIX + b"\xff"))


async def test_a_host_that_stays_silent_is_not_asked_for_ever():
    world = await World(6).start()
    await broken_put(world, content(FOUR_SEGMENTS))
    world[3].up = False
    for _ in range(2):
        assert list(world[0].state.scan(PREFIX, PREFIX + b"\xff"))
        world.clock.advance_to(world.clock.now_ms() + UPLOAD_KEPT_MS)
        await world[0].service.resume_journals.expire()
    assert not list(world[0].state.scan(PREFIX, PREFIX + b"\xff"))


async def test_a_put_that_may_still_go_on_is_looked_at_without_reading_all_that_it_stored():
    world = await World(6).start()
    await broken_put(world, content(FOUR_SEGMENTS))
    scan, scanned = world[0].state.scan, []
    world[0].state.scan = lambda start, stop: scanned.append(start) or scan(start, stop)
    await world[0].service.resume_journals.expire()
    assert scanned == [HEAD]


def harm(world, prefix):
    """Damage the first row of a kind in the journal of the put that broke off."""
    key, value = next(iter(world[0].state.scan(prefix, prefix + b"\xff")))
    world[0].state.write([(key, value[:-1])], sync=True)


@pytest.mark.parametrize("prefix", [SEGMENT, ACK])
async def test_what_a_damaged_journal_speaks_of_is_deleted_when_its_time_is_over(prefix):
    world = await World(6).start()
    await broken_put(world, content(FOUR_SEGMENTS))
    harm(world, prefix)
    world.clock.advance_to(world.clock.now_ms() + UPLOAD_KEPT_MS)
    await world[0].service.resume_journals.expire()
    assert not sum(used(world))
    assert not list(world[0].state.scan(PREFIX, PREFIX + b"\xff"))


@pytest.mark.parametrize("prefix", [SEGMENT, ACK, HEAD])
async def test_a_put_whose_journal_is_damaged_begins_anew(prefix):
    world = await World(6).start()
    data = content(FOUR_SEGMENTS)
    await broken_put(world, data)
    before = {id(host): host.node.used_bytes for host in world.hosts}
    harm(world, prefix)
    resume_journals = world[0].service.resume_journals
    assert await resume_journals.stored_bytes(b"i" * 32) == 0
    done = await world[0].service.put(stream(data), name="x", resume=b"i" * 32)
    assert await get(world[1], done.capability) == data
    assert not list(world[0].state.scan(PREFIX, PREFIX + b"\xff"))
    await world[0].service.rm(done.capability)
    # Nobody knows of which object it was: hosts drop what has no record by themselves.
    left = before if prefix == HEAD else dict.fromkeys(before, 0)
    assert {id(host): host.node.used_bytes for host in world.hosts} == left


@pytest.mark.parametrize("over", [False, True])
async def test_a_journal_is_gone_through_in_threads_so_that_others_are_answered(over):
    world = await World(6).start()
    data = content(FOUR_SEGMENTS)
    await broken_put(world, data)
    service, state = world[0].service, world[0].state
    scan, here, seen = state.scan, threading.get_ident(), set()

    def watched(start, stop=None):
        if start.startswith((SEGMENT, ACK)):
            seen.add(threading.get_ident())
        return scan(start, stop)

    state.scan = watched
    executor = service._client.executor = ThreadExecutor(1)
    journals = service.resume_journals
    journals._context = replace(journals._context, executor=executor)
    try:
        if over:
            world.clock.advance_to(world.clock.now_ms() + UPLOAD_KEPT_MS)
            await service.resume_journals.expire()
            assert not sum(used(world))
        else:
            assert await service.resume_journals.stored_bytes(b"i" * 32) >= SEGMENT_BYTES
            done = await service.put(stream(data), name="x", resume=b"i" * 32)
            assert await get(world[1], done.capability) == data
    finally:
        executor.close()
    assert seen
    assert here not in seen
    assert not list(scan(PREFIX, PREFIX + b"\xff"))
