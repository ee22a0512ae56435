"""Puts and gets that are killed, and go on: nothing is sent twice but what was under way."""

import asyncio
import random

import pytest

from tests.sim.network import SEEDS, content, get, run, stream
from tests.sim.test_repair import agree
from xsc.base.errors import NoOffers, UploadChanged
from xsc.base.limits import MIB, SEGMENT_BYTES
from xsc.storage.transfer import journal
from xsc.storage.transfer.journal import UPLOAD_KEPT_MS

UPLOAD = b"u" * 32
SIZE = 4 * SEGMENT_BYTES + 12_345
OVERHEAD = 128 * 1024
"""Headers, and the object record at every host."""
ROOM = {"storage_capacity": "2GiB"}


class Counter:
    """Counts the bytes of shards that leave the owner, those that never arrive included."""

    def __init__(self, world):
        self._trace = world.net.trace
        self._seen = len(self._trace)

    def take(self):
        fresh, self._seen = self._trace[self._seen :], len(self._trace)
        return sum(
            event.size_bytes
            for event in fresh
            if event.what == "sent" and event.path.endswith(("storage.put", "peers.batch"))
        )


def begin(world, data, upload=UPLOAD, owner=0):
    storage = world.nodes[owner].storage
    return asyncio.ensure_future(
        storage.put(stream(data), name="object", size_hint=len(data), resume=upload)
    )


async def kill(task):
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def reaches(world, resume_journals, size_bytes):
    """Return once so much is stored, before anything else happens."""
    while await resume_journals.stored_bytes(UPLOAD) < size_bytes:
        await world.clock.sleep_ms(1)


async def back(world, index):
    await world.restart(index)
    await world.until(lambda: all(world.sees_all(node) for node in world.nodes))


def left_of(world, index=0):
    return [key for key, _ in world.disks[index].state.scan(b"storage/upload/", b"storage/upload0")]


def on_hosts(world):
    return sum(node.shards.used_bytes for node in world.nodes)


@pytest.mark.parametrize("seed", range(4)[:SEEDS])
def test_an_owner_killed_again_and_again_sends_only_again_what_was_under_way(seed):
    async def play(world):
        draw = random.Random(seed)
        world.net.delay_ms = (1, 30)
        sent = Counter(world)
        killed = 0
        for point in range(3):
            data = content(SIZE, seed=point)
            kills = 0
            while True:
                putting = begin(world, data)
                await world.clock.sleep_ms(draw.randrange(1, 300))
                if putting.done():
                    break
                await world.crash(0)
                await kill(putting)
                kills += 1
                killed += 1
                await back(world, 0)
            capability = putting.result().capability
            assert await get(world.nodes[5], capability) == data
            stat = await world.nodes[0].storage.stat(capability)
            assert {host.state for host in stat.hosts} == {"ok"}
            again = kills * SEGMENT_BYTES
            assert sent.take() <= (len(data) + again) * 6 // 4 + OVERHEAD, (point, kills)
            assert not left_of(world)
            assert (await world.nodes[0].storage.rm(capability)).unreachable == ()
            assert on_hosts(world) == 0
        assert killed

    run(700 + seed, 7, play, ROOM)


def test_what_a_put_had_counted_when_its_client_was_killed_is_counted_once():
    async def play(world):
        world.net.delay_ms = (1, 30)
        data = content(SEGMENT_BYTES + 12_345)
        killed = 0
        # The records go to the hosts within these moments, with the last segment.
        for moment_ms in range(0, 60, 4):
            upload = moment_ms.to_bytes(32, "big")
            putting = begin(world, data, upload)
            while await world.nodes[0].storage.resume_journals.stored_bytes(upload) < SEGMENT_BYTES:
                await world.clock.sleep_ms(1)
            await world.clock.sleep_ms(moment_ms)
            await kill(putting)
            killed += putting.cancelled()
            if not putting.cancelled():
                await world.nodes[0].storage.rm(putting.result().capability)
            capability = (await begin(world, data, upload)).capability
            await agree(world)
            assert (await world.nodes[0].storage.rm(capability)).unreachable == ()
            await agree(world)
        assert killed > 5
        assert on_hosts(world) == 0

    run(720, 7, play, ROOM)


@pytest.mark.parametrize("seed", range(4))
def test_of_a_put_whose_client_is_killed_nothing_is_sent_again(seed):
    async def play(world):
        draw = random.Random(seed)
        world.net.delay_ms = (1, 30)
        sent = Counter(world)
        # The last segment, which goes with the records, is of any length.
        data = content(4 * SEGMENT_BYTES + draw.randrange(1, SEGMENT_BYTES), seed=seed)
        kills = 0
        while True:
            putting = begin(world, data)
            await world.clock.sleep_ms(draw.randrange(1, 90))
            if putting.done():
                break
            await kill(putting)
            kills += 1
        assert kills
        assert await get(world.nodes[5], putting.result().capability) == data
        assert sent.take() <= len(data) * 6 // 4 + OVERHEAD

    run(720 + seed, 7, play, ROOM)


@pytest.mark.parametrize("seed", range(1))
def test_a_host_killed_with_the_client_costs_no_more_than_what_it_had_not_synced(seed):
    async def play(world):
        draw = random.Random(seed)
        world.net.delay_ms = (1, 30)
        sent = Counter(world)
        for point in range(2):
            data = content(SIZE, seed=point)
            putting = begin(world, data)
            await world.clock.sleep_ms(draw.randrange(20, 110))
            victim = draw.randrange(1, 7)
            assert not putting.done()
            putting.cancel()
            await world.crash(victim)
            await kill(putting)
            await back(world, victim)
            done = await begin(world, data)
            assert await get(world.nodes[0], done.capability) == data
            if world.nodes[victim].key.node_id in done.hosts:
                assert sent.take() <= (len(data) + SEGMENT_BYTES) * 6 // 4 + OVERHEAD, point
            else:
                # It was replaced meanwhile: its column is built anew.
                assert sent.take() <= (len(data) + SEGMENT_BYTES) * 7 // 4 + OVERHEAD, point
            await world.nodes[0].storage.rm(done.capability)

    run(740 + seed, 7, play, ROOM)


@pytest.mark.parametrize("seed", [1, 2][:SEEDS])
def test_a_get_that_is_killed_fetches_one_segment_again_at_most(seed):
    async def play(world):
        draw = random.Random(seed)
        # Nobody is late, so that no shard is asked for beside another.
        world.net.delay_ms = (1, 20)
        data = content(4 * SEGMENT_BYTES, seed=seed)
        capability = (await begin(world, data)).capability
        before = len(world.net.trace)
        got = bytearray()
        kills = 0

        async def read():
            reader = await world.nodes[0].storage.open(capability)
            async for chunk in reader.stream(len(got)):
                got.extend(chunk)
                # A client that takes its time: what is ready waits for it.
                await world.clock.sleep_ms(draw.randrange(10, 40) * len(chunk) // MIB)

        while True:
            reading = asyncio.ensure_future(read())
            await world.clock.sleep_ms(draw.randrange(50, 200))
            if reading.done():
                break
            await world.crash(0)
            await kill(reading)
            kills += 1
            await back(world, 0)
        assert bytes(got) == data
        assert kills
        # Every request is for one shard, a quarter of a segment.
        assert asked_for(world, before) <= 4 * (4 + kills)

    run(760 + seed, 7, play, ROOM)


def asked_for(world, before):
    """Return how many shards hosts were asked for: in these reads one a request."""
    return sum(
        event.what == "sent" and event.path.endswith("storage.get")
        for event in world.net.trace[before:]
    )


@pytest.mark.parametrize("seed", range(3)[:SEEDS])
def test_a_host_that_is_killed_in_a_get_costs_what_it_was_asked_for(seed):
    async def play(world):
        draw = random.Random(seed)
        world.net.delay_ms = (1, 20)
        data = content(6 * SEGMENT_BYTES, seed=seed)
        capability = (await begin(world, data)).capability
        hosts = {host.node for host in (await world.nodes[0].storage.stat(capability)).hosts}
        victim = next(
            index
            for index in draw.sample(range(1, 7), 6)
            if world.nodes[index].key.node_id in hosts
        )
        before = len(world.net.trace)
        got = bytearray()
        kill_at = draw.randrange(len(data))
        reader = await world.nodes[0].storage.open(capability)
        async for chunk in reader.stream():
            got.extend(chunk)
            await world.clock.sleep_ms(5)
            if len(got) >= kill_at and world.net.is_up(f"node-{victim}"):
                await world.crash(victim)
        assert bytes(got) == data
        # Beside those of the object only such as it had been asked for, of two segments at most.
        assert asked_for(world, before) <= 4 * 6 + 2
        await back(world, victim)

    run(770 + seed, 7, play, ROOM)


@pytest.mark.parametrize("seed", range(4)[:SEEDS])
def test_hosts_and_the_client_killed_at_any_point_lose_nothing(seed):
    async def play(world):
        draw = random.Random(seed)
        world.net.delay_ms = (1, 30)
        for point in range(3):
            data = content(SIZE, seed=point)
            putting = begin(world, data)
            await world.clock.sleep_ms(draw.randrange(1, 300))
            victim = draw.randrange(1, 8)
            await kill(putting)
            await world.crash(victim)
            if draw.random() < 0.5:
                await back(world, victim)
            capability = (await begin(world, data)).capability
            assert await get(world.nodes[0], capability) == data
            stat = await world.nodes[0].storage.stat(capability)
            assert {host.state for host in stat.hosts} == {"ok"}
            assert not left_of(world)
            if not world.net.is_up(f"node-{victim}"):
                await back(world, victim)
            await world.nodes[0].storage.rm(capability)

    run(800 + seed, 8, play, ROOM)


def test_what_is_said_to_be_stored_is_not_sent_again():
    async def play(world):
        world.net.delay_ms = (5, 5)
        sent = Counter(world)
        data = content(SIZE)
        resume_journals = world.nodes[0].storage.resume_journals
        assert await resume_journals.stored_bytes(UPLOAD) == 0
        putting = begin(world, data)
        await reaches(world, resume_journals, 2 * SEGMENT_BYTES)
        await kill(putting)
        stored = await resume_journals.stored_bytes(UPLOAD)
        sent.take()
        await begin(world, data)
        assert sent.take() <= (SIZE - stored) * 6 // 4 + 256 * 1024

    run(61, 7, play, ROOM)


@pytest.mark.parametrize("where", [0, SEGMENT_BYTES + 7, SIZE - 1])
def test_a_changed_file_is_never_mixed_in(where):
    async def play(world):
        world.net.delay_ms = (5, 5)
        data = content(SIZE)
        putting = begin(world, data)
        resume_journals = world.nodes[0].storage.resume_journals
        # Until every segment is sealed and sent, but not the put's end.
        await reaches(world, resume_journals, 3 * SEGMENT_BYTES)
        begun = [key for key in left_of(world) if key.startswith(journal.SEGMENT)]
        await kill(putting)
        other = bytearray(data)
        other[where] ^= 1
        if where // SEGMENT_BYTES < len(begun):
            with pytest.raises(UploadChanged):
                await begin(world, bytes(other))
            assert not left_of(world)
            assert on_hosts(world) == 0
        capability = (await begin(world, bytes(other))).capability
        assert await get(world.nodes[3], capability) == bytes(other)

    run(62, 7, play, ROOM)


@pytest.mark.parametrize("size", [0, 5, SEGMENT_BYTES, 2 * SEGMENT_BYTES + 1, SIZE + SEGMENT_BYTES])
def test_a_file_of_another_length_is_never_mixed_in(size):
    async def play(world):
        world.net.delay_ms = (5, 5)
        resume_journals = world.nodes[0].storage.resume_journals
        putting = begin(world, content(SIZE))
        await reaches(world, resume_journals, 3 * SEGMENT_BYTES)
        await kill(putting)
        data = content(SIZE + SEGMENT_BYTES)[:size]
        with pytest.raises(UploadChanged):
            await begin(world, data)
        assert not left_of(world)
        assert on_hosts(world) == 0
        assert await get(world.nodes[3], (await begin(world, data)).capability) == data

    run(63, 7, play, ROOM)


def test_no_nonce_ever_protects_two_contents():
    async def play(world):
        world.net.delay_ms = (5, 5)
        seen = {}

        def note():
            for key, raw in world.disks[0].state.scan(journal.SEGMENT, journal.SEGMENT + b"\xff"):
                kept = journal.SealedSegment.from_bytes(raw)
                secret = journal.read(world.disks[0].state, UPLOAD).head.secret
                assert seen.setdefault((secret, kept.nonce), (key, kept.tag)) == (key, kept.tag)

        resume_journals = world.nodes[0].storage.resume_journals
        for seed in range(3):
            for stop in (1, 2, 3):
                putting = begin(world, content(SIZE, seed=seed))
                while await resume_journals.stored_bytes(UPLOAD) < stop * SEGMENT_BYTES:
                    note()
                    await world.clock.sleep_ms(1)
                note()
                await kill(putting)
            with pytest.raises(UploadChanged):
                await begin(world, content(SIZE, seed=seed + 1))
        assert len({secret for secret, _ in seen}) == 3
        assert len(seen) == len({nonce for _, nonce in seen}) >= 9

    run(64, 7, play, ROOM)


def test_two_puts_of_one_id_wait_for_each_other():
    async def play(world):
        data = content(SIZE)
        first, second = begin(world, data), begin(world, data)
        done = await asyncio.gather(first, second)
        assert len({item.capability for item in done}) == 2
        for item in done:
            assert await get(world.nodes[2], item.capability) == data
        assert not world.nodes[0].storage.resume_journals._turns

    run(65, 7, play, ROOM)


@pytest.mark.parametrize("restarted", [False, True])
def test_what_nobody_goes_on_with_is_deleted_in_time(restarted):
    async def play(world):
        world.net.delay_ms = (5, 5)
        resume_journals = world.nodes[0].storage.resume_journals
        putting = begin(world, content(SIZE))
        await reaches(world, resume_journals, SEGMENT_BYTES)
        await kill(putting)
        if restarted:
            await world.crash(0)
            await back(world, 0)
        assert left_of(world)
        assert on_hosts(world) > 0
        # Days of probes are not what is looked at here.
        world.clock._now_ms += UPLOAD_KEPT_MS - 120_000
        await world.nodes[0].storage.resume_journals.expire()
        assert left_of(world)
        world.clock._now_ms += 240_000
        await world.nodes[0].storage.resume_journals.expire()
        assert not left_of(world)
        assert on_hosts(world) == 0

    run(66, 7, play, ROOM)


def test_a_silent_host_is_asked_again_before_an_upload_is_forgotten():
    async def play(world):
        world.net.delay_ms = (5, 5)
        resume_journals = world.nodes[0].storage.resume_journals
        putting = begin(world, content(SIZE))
        await reaches(world, resume_journals, SEGMENT_BYTES)
        await kill(putting)
        (place, *_) = journal.read(world.disks[0].state, UPLOAD).head.hosts
        silent = world.index_of(place.node)
        await world.crash(silent)
        world.clock._now_ms += UPLOAD_KEPT_MS
        await resume_journals.expire()
        kept = journal.read(world.disks[0].state, UPLOAD)
        assert {item.node for item in kept.head.places} == {place.node}
        # What is being deleted can no more be gone on with.
        assert await resume_journals.stored_bytes(UPLOAD) == 0
        await back(world, silent)
        await resume_journals.expire()
        assert not left_of(world)
        assert on_hosts(world) == 0

    run(67, 7, play, ROOM)


def test_a_put_that_finds_too_few_hosts_for_now_goes_on_later():
    async def play(world):
        world.net.delay_ms = (5, 5)
        data = content(SIZE)
        resume_journals = world.nodes[0].storage.resume_journals
        putting = begin(world, data)
        await reaches(world, resume_journals, 2 * SEGMENT_BYTES)
        for index in range(1, 7):
            world.net.partition("node-0", f"node-{index}")
        done = (await asyncio.gather(putting, return_exceptions=True))[0]
        world.net.heal()
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        if isinstance(done, Exception):
            assert not isinstance(done, NoOffers) or left_of(world)
            done = await begin(world, data)
        assert await get(world.nodes[0], done.capability) == data

    run(68, 7, play, ROOM)


def test_small_objects_keep_no_journal():
    async def play(world):
        for size in (0, 1, 4096, 4097, SEGMENT_BYTES):
            data = content(size)
            putting = begin(world, data)
            while not putting.done():
                assert not left_of(world)
                await world.clock.sleep_ms(1)
            assert await get(world.nodes[1], putting.result().capability) == data

    run(69, 7, play, ROOM)
