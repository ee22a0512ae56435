"""The network in memory: its troubles, and that they repeat."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.settle import settle
from tests.unit.net.nodes import take_all
from xsc.base.clock import ManualClock
from xsc.base.errors import PeerSilent
from xsc.net.transport.memory import MemoryNetwork
from xsc.net.transport.port import Arrival, Dropped, RawRequest, RawResponse

REQUEST = RawRequest("POST", "/x", {}, [b"body"])


async def run(clock: ManualClock, *work):
    """Advance the clock from sleeper to sleeper until all the work is done."""
    gathered = asyncio.gather(*work, return_exceptions=True)
    while not gathered.done():
        await settle()
        if not gathered.done() and (next_ms := clock.next_ms()) is not None:
            clock.advance_to(next_ms)
    return gathered.result()


async def answer(arrival: Arrival) -> RawResponse:
    return RawResponse(200, {}, [await arrival.read(take_all)])


async def story(seed: bytes):
    clock = ManualClock()
    network = MemoryNetwork(clock, seed, delay_ms=(5, 50), loss_ppm=200_000)
    ends = [network.transport(name) for name in ("a", "b", "c")]
    for end in ends:
        await end.serve(answer)
    results = await run(
        clock,
        *(
            source.send(target.addresses()[0], None, REQUEST, 1_000)
            for source in ends
            for target in ends
            for _ in range(5)
        ),
    )
    return network.trace, [type(result) for result in results]


async def test_one_seed_tells_one_story():
    trace, results = await story(b"one")
    assert (trace, results) == await story(b"one")
    assert trace != (await story(b"two"))[0]
    assert {PeerSilent, RawResponse} == set(results)
    assert {event.what for event in trace} == {"sent", "lost", "delivered", "answered"}
    assert {event.now_ms for event in trace} != {trace[0].now_ms}


@pytest.fixture
async def ends():
    clock = ManualClock()
    network = MemoryNetwork(clock)
    here, there = network.transport("here"), network.transport("there")
    await there.serve(answer)
    yield network, clock, here, there
    await there.close()


async def test_a_partition_is_silent_until_it_heals(ends):
    network, clock, here, _ = ends
    network.partition("there", "here")
    (result,) = await run(clock, here.send("there:1", None, REQUEST, 700))
    assert isinstance(result, PeerSilent)
    assert clock.monotonic_ms() == 700
    network.heal("here", "there")
    (result,) = await run(clock, here.send("there:1", None, REQUEST, 700))
    assert result.status == 200
    network.partition("there", "here")
    network.heal()
    (result,) = await run(clock, here.send("there:1", None, REQUEST, 700))
    assert result.status == 200


async def test_a_killed_node_drops_what_it_works_on_and_can_come_back(ends):
    network, _, here, there = ends
    entered = asyncio.Event()

    async def never(arrival: Arrival) -> RawResponse:
        entered.set()
        return await asyncio.get_running_loop().create_future()

    await there.close()
    again = network.transport("there")
    await again.serve(never)
    call = asyncio.create_task(here.send("there:1", None, REQUEST, 1_000))
    await entered.wait()
    network.kill("there")
    with pytest.raises(Dropped):
        await call
    with pytest.raises(PeerSilent):
        await here.send("there:1", None, REQUEST, 1_000)
    await there.serve(answer)
    assert (await here.send("there:1", None, REQUEST, 1_000)).status == 200


async def test_answers_can_be_altered_for_some(ends):
    network, _, here, _ = ends

    def change(source, target, request, response):
        return RawResponse(500) if request.path == "/x" else response

    network.corrupt = change
    assert (await here.send("there:1", None, REQUEST, 1_000)).status == 500
    network.corrupt = None
    assert (await here.send("there:1", None, REQUEST, 1_000)).status == 200


async def test_delay_and_loss_can_be_changed(ends):
    network, clock, here, _ = ends
    network.delay_ms = (30, 30)
    await run(clock, here.send("there:1", None, REQUEST, 1_000))
    assert clock.monotonic_ms() == 60
    network.loss_ppm = 1_000_000
    (result,) = await run(clock, here.send("there:1", None, REQUEST, 100))
    assert isinstance(result, PeerSilent)


async def counted(clock, network, count):
    """Send requests, and return how often each was delivered, and how many answers came."""
    here, there = network.transport("here"), network.transport("there")
    heard: Counter[bytes] = Counter()

    async def hear(arrival: Arrival) -> RawResponse:
        body = bytes(await arrival.read(take_all))
        heard[body] += 1
        return RawResponse(200, {}, [body])

    await there.serve(hear)
    requests = [RawRequest("POST", "/x", {}, [b"%d" % number]) for number in range(count)]
    (address,) = there.addresses()
    answers = await run(clock, *(here.send(address, None, each, 1_000) for each in requests))
    for _ in range(10):
        clock.advance_to(clock.now_ms() + 100)
        await settle()
    assert [b"".join(answer.body) for answer in answers] == [b"%d" % n for n in range(count)]
    return heard


@pytest.mark.parametrize("share_ppm", [0, 500_000, 1_000_000])
async def test_a_share_of_requests_is_delivered_twice_and_answered_once(share_ppm):
    clock = ManualClock()
    network = MemoryNetwork(clock, b"seed", delay_ms=(5, 50))
    network.duplicates_ppm = share_ppm
    heard = await counted(clock, network, 100)
    assert set(heard.values()) == {0: {1}, 500_000: {1, 2}, 1_000_000: {2}}[share_ppm]
    repeated = sum(event.what == "repeated" for event in network.trace)
    assert repeated == sum(heard.values()) - 100
    assert share_ppm != 500_000 or 30 <= repeated <= 70
    network.duplicates_ppm = 0


async def test_a_duplicate_comes_later_than_its_request():
    clock = ManualClock()
    network = MemoryNetwork(clock, b"seed", delay_ms=(5, 50))
    network.duplicates_ppm = 1_000_000
    await counted(clock, network, 20)
    times = {
        what: [event.now_ms for event in network.trace if event.what == what]
        for what in ("delivered", "repeated")
    }
    assert min(times["repeated"]) > min(times["delivered"])
