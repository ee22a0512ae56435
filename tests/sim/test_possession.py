"""Hosts that hold less than they were given are found by challenges, and honest ones never are."""

import asyncio
import random

import pytest

from tests.sim.network import SEEDS, content, get, put, run
from xsc.base.errors import XscError
from xsc.base.limits import EPOCH_MS, MIB
from xsc.health.challenge import SLOT_MS
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.placement import Placement
from xsc.storage.repair.custodian import custody_message
from xsc.storage.shardstore import bodies as formats
from xsc.storage.transfer import put as sealing

SETTINGS = {
    "probe_interval": "60s",
    "repair_interval": "30d",
    "repair_grace": "5min",
    "moved_kept": "1min",
}


def thin(world, index, share, seed=1, of=formats.SHARDS):
    """Remove a share of the bodies of a host behind its back; return how many."""
    draw, store = random.Random(seed), world.disks[index].bodies
    gone = [
        (key, None)
        for key, raw in store.scan(formats.BODIES, b"c")
        if formats.decode_body(raw).index_key.startswith(of) and draw.random() < share
    ]
    store.write(gone, sync=True)
    return len(gone)


def columns(world, owner=0):
    entries = world.nodes[owner].storage.catalogue.entries()
    return [entry.placement.columns for _, entry in entries]


def outcomes(world, prober=0):
    """Return the last outcomes, by number of the host."""
    rows = world.nodes[prober].challenges.rows
    return {world.index_of(host): {row.outcome for row in by.values()} for host, by in rows.items()}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_host_whose_bodies_were_thinned_is_found_and_its_columns_move_away(seed):
    async def play(world):
        owner = world.nodes[0]
        stored = []
        for number in range(6):
            data = content(200_000, number)
            stored.append((await put(owner, data), data))
        victim = world.index_of(columns(world)[0][1])
        host = world.nodes[victim].key.node_id
        before = sum(host in each for each in columns(world))
        assert before
        assert thin(world, victim, 1.0, seed) >= before
        for _ in range(8):
            await world.skip(EPOCH_MS, SLOT_MS)
            if not any(host in each for each in columns(world)):
                break
        assert not any(host in each for each in columns(world)), "they move away unasked"
        assert all(found == {"ok"} for index, found in outcomes(world).items() if index != victim)
        for capability, data in stored:
            stat = await owner.storage.stat(capability)
            assert stat.margin == 2
            assert await get(owner, capability) == data
        assert owner.health.grade(host) == "watch", "what it admits is no bad proof, but a loss"

    run(31 + seed, 8, play, SETTINGS)


def test_a_host_that_only_others_hear_is_left():
    """It answers whom its customer asks for help, and nothing else of the customer."""

    async def play(world):
        owner = world.nodes[0]
        data = content(200_000)
        capability = await put(owner, data)
        (before,) = columns(world)
        hosts = [host for host in before if host != owner.key.node_id][:2]
        for host in hosts:
            index = world.index_of(host)
            world.net.partition("node-0", f"node-{index}")
            assert thin(world, index, 1.0)
        await world.skip(20 * EPOCH_MS, 8 * SLOT_MS, 5_000)
        assert columns(world) == [before], "a day has to pass"
        await world.skip_until(
            lambda: not set(hosts) & set(columns(world)[0]), 9 * EPOCH_MS, 8 * SLOT_MS, 5_000
        )
        assert not any(map(owner.health.is_absent, hosts))
        assert await get(owner, capability) == data

    run(38, 9, play, SETTINGS | {"probe_interval": "5s"})


def test_what_an_owner_says_of_its_code_stops_no_challenge_of_its_custodian():
    async def play(world):
        owner, custodian = world.nodes[:2]
        await put(custodian, content(200_000, 9))
        verify = parse_verify(await put(owner, content(200_000, 1)))
        hosts = tuple(node.key.node_id for node in world.nodes[2:9])
        named = owner.key.node_id
        for columns_of, k in ((hosts, 200), (hosts * 4, 1)):
            placement = Placement(k=k, columns=columns_of, survive=(0,) * 4)
            await world.nodes[0].peers.context.caller.call(
                custodian.key.node_id,
                "storage.guard",
                custody_message(verify, placement, ()),
                timeout_ms=5_000,
            )
            await world.crash(0)
            await world.skip(3 * EPOCH_MS, 4 * SLOT_MS)
            assert custodian.storage.custodian.refs(), "it looks after it"
            proved = await custodian.challenges.challenge(custodian.peers.peers())
            assert {each.outcome for each in proved if each.host in hosts} == {"ok"}
            await world.restart(0)
            await world.until(lambda: custodian.health.is_up(named))

    run(37, 9, play, SETTINGS)


def test_who_seals_what_nobody_can_read_and_names_others_as_owner_harms_no_host(monkeypatch):
    """Hosts cannot see that; they were put on watch, and suspended within a day."""

    async def play(world):
        author, custodian, reader = world.nodes[:3]
        honest = sealing.seal_manifest
        monkeypatch.setattr(
            sealing, "seal_manifest", lambda made, key, nonce: honest(made, bytes(len(key)), nonce)
        )
        capability = await put(author, content(200_000, 1))
        verify = parse_verify(capability)
        monkeypatch.setattr(sealing, "seal_manifest", honest)
        (hosts,) = columns(world)
        placement = Placement(k=3, columns=hosts, survive=(0,) * 4)
        await author.peers.context.caller.call(
            custodian.key.node_id,
            "storage.guard",
            custody_message(verify, placement, ()),
            timeout_ms=5_000,
        )
        with pytest.raises(XscError):
            await reader.storage.stat(capability)
        await world.crash(0)
        await world.skip(4 * EPOCH_MS, 4 * SLOT_MS)
        for node in (custodian, reader):
            assert {node.health.grade(host) for host in node.peers.peers()} <= {"new", "vetted"}

    run(39, 8, play, SETTINGS)


def test_a_custodian_challenges_for_an_owner_that_is_away_and_repairs():
    async def play(world):
        capability = await put(world.nodes[0], content(200_000))
        ref = parse_verify(capability).manifest_hash
        owner = world.nodes[0].key.node_id
        await world.skip_until(
            lambda: any(
                ref in {key[32:] for key, _ in node.storage.custodian.store.objects()}
                for node in world.nodes[1:]
            ),
            30 * 60_000,
            60_000,
        )
        await world.crash(0)
        victim = world.index_of(columns(world)[0][1])
        await world.skip(3 * EPOCH_MS, 4 * SLOT_MS)
        probers = [
            index
            for index, node in enumerate(world.nodes[1:], 1)
            if any(owner in rows for rows in node.challenges.rows.values())
        ]
        assert probers, "somebody challenges in the place of the owner"
        assert thin(world, victim, 1.0)
        host = world.nodes[victim].key.node_id
        await world.skip(6 * EPOCH_MS, 4 * SLOT_MS)
        found = [
            kept.placement.columns
            for index in probers
            for key, kept in world.nodes[index].storage.custodian.store.objects()
            if key[32:] == ref
        ]
        assert any(host not in each for each in found)
        reader = world.nodes[next(i for i in range(1, 9) if i != victim)]
        assert await get(reader, capability) == content(200_000)

    run(37, 9, play, SETTINGS)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_honest_host_fails_while_objects_come_move_and_go(seed):
    async def play(world):
        draw, owner, kept, seen = random.Random(seed), world.nodes[0], [], set()

        async def change():
            for number in range(10):
                size = draw.choice((10, 5_000, 300_000, 4 * MIB + 1))
                kept.append(await put(owner, content(size, number)))
                if draw.random() < 0.4:
                    await owner.storage.rm(kept.pop(draw.randrange(len(kept))))
                await world.clock.sleep_ms(draw.randrange(5_000))

        async def fall():
            for _ in range(3):
                await world.clock.sleep_ms(draw.randrange(10_000))
                index = draw.randrange(1, world.count)
                await world.crash(index)
                await world.clock.sleep_ms(draw.randrange(20_000))
                await world.restart(index)

        changing = asyncio.gather(change(), fall())
        while not changing.done():
            for proved in await owner.challenges.challenge(owner.peers.peers()):
                seen.add(proved.outcome)
            await world.clock.sleep_ms(500)
            if draw.random() < 0.05:
                world.clock.advance_to(world.clock.now_ms() + EPOCH_MS)
        await changing
        assert "ok" in seen
        assert seen <= {"ok", "prober_void", "unreachable"}, seen

    run(41 + seed, 9, play, SETTINGS)


def test_a_verify_capability_is_enough_to_have_an_object_proven():
    async def play(world):
        for size in (10, 300_000):
            capability = parse_verify(await put(world.nodes[0], content(size)))
            hosts = [
                h.node for h in (await world.nodes[0].storage.stat(capability.to_text())).hosts
            ]
            for index in (0, 7):
                asker = world.nodes[index]
                owner, held = await asker.storage.possessions.of_object(capability, hosts)
                done = await asker.challenges.prove_object(owner, capability.locate, held)
                assert {proved.host for proved in done} == set(hosts) - {asker.key.node_id}
                assert {proved.outcome for proved in done} == {"ok"}
            victim = next(host for host in hosts if host != asker.key.node_id)
            thin(world, world.index_of(victim), 1.0, of=b"")
            done = await asker.challenges.prove_object(owner, capability.locate, held)
            assert {proved.host for proved in done if proved.outcome == "missing"} == {victim}

    run(43, 8, play, SETTINGS)
