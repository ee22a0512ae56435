"""An object that is read for its holder by a node that holds shards of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import vectors
from tests.unit.storage.world import World, content, put
from xsc.base.errors import RecordInvalid, ShardsInsufficient, TooLarge, XscError
from xsc.base.limits import INPUT_BYTES_MAX
from xsc.storage.object.capability import parse_read
from xsc.storage.object.erasure import Code
from xsc.storage.transfer.locality import Reference, received_of

MIB = 2**20


async def stored(world, size=9 * MIB + 1):
    data = content(size)
    done = await put(world[0], data)
    return data, await world[0].service.refer(done.capability), parse_read(done.capability)


async def test_each_host_needs_only_what_it_lacks():
    world = await World(8).start()
    data, referred, _ = await stored(world)
    assert referred.size_bytes == len(data)
    for host in world.hosts[1:7]:
        got, received = await host.service.read_reference(referred.reference, len(data))
        assert got == data
        # Each holds one column of four that are needed, parity or not.
        assert (
            received
            == len(data) - referred.spared[host.id]
            == pytest.approx(len(data) * 3 / 4, abs=8)
        )
    got, received = await world[7].service.read_reference(referred.reference, len(data))
    assert got == data
    assert received >= len(data)
    assert set(referred.spared) == {host.id for host in world.hosts[1:7]}


async def test_who_holds_enough_fetches_nothing():
    world = await World(1).start()
    data, referred, _ = await stored(world, 100_000)
    assert await world[0].service.read_reference(referred.reference, len(data)) == (data, 0)
    assert referred.spared == {world[0].id: len(data)}


async def test_a_damaged_own_shard_is_fetched_and_not_counted_as_saved():
    world = await World(8).start()
    data, referred, capability = await stored(world, 100_000)
    host = world[2]
    await world[0].service._client.delete(host.id, capability.verify.locate, columns=range(6))
    got, received = await host.service.read_reference(referred.reference, len(data))
    assert (got, received) == (data, len(data))


async def test_what_is_too_large_or_out_of_reach_is_not_read():
    world = await World(8).start()
    data, referred, _ = await stored(world, 100_000)
    world[1].calls.clear()
    with pytest.raises(TooLarge):
        await world[1].service.read_reference(referred.reference, len(data) - 1)
    assert world[1].calls == []
    for index in (2, 3, 4):
        world[index].up = False
    with pytest.raises(ShardsInsufficient):
        await world[1].service.read_reference(referred.reference, len(data))


async def test_a_small_object_stands_in_its_manifest_and_is_not_referred_to():
    world = await World(8).start()
    _, referred, _ = await stored(world, 4096)
    assert referred.spared == {}
    with pytest.raises(RecordInvalid, match="sent itself"):
        await world[1].service.read_reference(referred.reference, 4096)


async def test_a_reference_gives_no_capability():
    world = await World(8).start()
    _, referred, capability = await stored(world, 100_000)
    for secret in (
        capability.read_secret,
        capability.verify.verify_key,
        capability.verify.manifest_key,
    ):
        assert secret not in referred.reference


async def test_a_wrong_reference_is_refused_and_asks_nobody():
    world = await World(8).start()
    _, referred, _ = await stored(world, 100_000)
    right = Reference.from_bytes(referred.reference)
    host = world[1]
    host.calls.clear()
    for raw in (
        b"",
        b"?",
        right.model_copy(update={"columns": right.columns[:5]}).to_bytes(),
        right.model_copy(update={"columns": (*right.columns, host.id)}).to_bytes(),
        right.model_copy(update={"columns": ()}).to_bytes(),
        right.model_copy(update={"manifest": b"?"}).to_bytes(),
        right.model_copy(update={"locate": b"short"}).to_bytes(),
        right.model_copy(update={"content_key": bytes(31)}).to_bytes(),
    ):
        with pytest.raises(RecordInvalid):
            await host.service.read_reference(raw, INPUT_BYTES_MAX)
    assert host.calls == []


async def test_a_reference_of_mixed_parts_gives_the_object_or_an_error_and_never_other_bytes():
    world = await World(8).start()
    data, referred, _ = await stored(world, 100_000)
    _, referred_too, _ = await stored(world, 5 * MIB)
    right = Reference.from_bytes(referred.reference)
    other = Reference.from_bytes(referred_too.reference)
    host = world[1]
    for change in (
        {"content_key": bytes(32)},
        {"content_key": other.content_key},
        {"manifest": other.manifest},
        {"locate": other.locate},
        {"locate": bytes(32)},
        {"columns": (world[7].id,) * 6},
    ):
        raw = right.model_copy(update=change).to_bytes()
        with pytest.raises(XscError):
            await host.service.read_reference(raw, INPUT_BYTES_MAX)
    # Whoever refers may be mistaken about some: what a node holds is told by its roots.
    for columns in (
        (world[7].id, *right.columns[1:]),
        (world[7].id, world[0].id, *right.columns[2:]),
    ):
        raw = right.model_copy(update={"columns": columns}).to_bytes()
        got, _ = await host.service.read_reference(raw, INPUT_BYTES_MAX)
        assert got == data


@given(st.integers(1, 4 * MIB), st.integers(1, 20), st.integers(0, 20), st.integers(0, 40))
def test_what_is_fetched_and_what_is_held_are_the_whole(length, k, m, own):
    code = Code(k, m)
    received = received_of(length, code, own)
    assert received % code.shard_bytes(length) == 0
    assert received + min(own, k) * code.shard_bytes(length) >= length
    assert (received == 0) is (own >= k)


@pytest.mark.parametrize("case", vectors("near")["references"])
def test_references(case):
    made = Reference(
        locate=bytes.fromhex(case["locate"]),
        content_key=bytes.fromhex(case["content_key"]),
        manifest=bytes.fromhex(case["manifest"]),
        columns=tuple(map(bytes.fromhex, case["columns"])),
    )
    assert made.to_bytes().hex() == case["bytes"]
    assert Reference.from_bytes(bytes.fromhex(case["bytes"])) == made
    assert case["content_key"] not in repr(made)
