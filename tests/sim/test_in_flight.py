"""Many runs of one customer at one provider at once: they wait for each other, none is refused."""

from __future__ import annotations

import asyncio

from tests.sim.network import run
from tests.unit.compute.programs import wasm
from xsc.base.ids import to_text
from xsc.base.jobs import JobSpec
from xsc.base.limits import COMPUTE_LEASE_MS
from xsc.compute.deployments.wagi import Request
from xsc.compute.wasm.limits import Limits

FLIGHT = 64
STARTER = {"services_listen": "8080"}


async def invoke(world, customer, provider):
    node = to_text(world.nodes[provider].key.node_id)
    done = await world.nodes[customer].compute.run(
        JobSpec.invoke(wasm("add"), "add", ["1", "2"], on=node)
    )
    assert done.results == ("3",)
    assert done.provider == node


def test_four_customers_on_starter_credit_have_16_calls_each_in_flight_at_one_provider():
    async def play(world):
        await asyncio.gather(
            *(invoke(world, customer, 0) for customer in (1, 2, 3, 4) for _ in range(FLIGHT // 4))
        )

    run(1, 5, play, STARTER)


def test_calls_that_never_pause_are_served_across_the_ends_of_leases():
    async def play(world):
        until_ms = world.clock.monotonic_ms() + 3 * COMPUTE_LEASE_MS // 2

        async def one_by_one():
            while world.clock.monotonic_ms() < until_ms:
                await invoke(world, 0, 1)
                await world.clock.sleep_ms(5_000)

        await asyncio.gather(*(one_by_one() for _ in range(16)))

    run(1, 2, play, STARTER)


def test_a_service_at_a_peer_answers_16_requests_at_once_beside_runs_of_its_owner():
    async def play(world):
        owner, holder = world.nodes[0], world.nodes[1]
        await owner.services.owner.deploy(
            wasm("greet"), "greet", limits=Limits(), concurrency=16, on=holder.key.node_id
        )
        request = Request("GET", "/fn/x/greet", "", "", "", [])

        async def ask():
            served = await holder.services.holder.answer(owner.key.node_id, "greet", request)
            return served.response.status

        for _ in range(5):
            calls = asyncio.gather(*(invoke(world, 0, 1) for _ in range(16)))
            assert set(await asyncio.gather(*(ask() for _ in range(16)))) == {200}
            await calls
            await world.clock.sleep_ms(COMPUTE_LEASE_MS // 3)

    run(1, 2, play, STARTER)
