"""What a node does with its services as it starts and stops."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.sim.network import World, run
from tests.unit.compute.programs import wasm
from xsc.base.ids import to_text
from xsc.base.jobs import JobSpec
from xsc.base.limits import MFUEL
from xsc.compute.worker.local import LocalSandbox

SETTINGS = {"compute_price_gfuel": "1000000", "compute_price_max_gfuel": "1000000"}


class Endless(LocalSandbox):
    """Ends no job by itself."""

    cancelled = False

    async def run(self, job, watch=None):
        self._jobs += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


class EndlessWorld(World):
    def parts(self, index, seed):
        parts = super().parts(index, seed)
        return replace(parts, sandbox=Endless(parts.executor))


def test_a_node_that_stops_cancels_the_orders_it_runs():
    async def play(world):
        customer, provider = world.nodes
        spec = JobSpec.invoke(wasm("add"), "add", ["1", "2"], on=to_text(provider.key.node_id))
        asking = asyncio.create_task(customer.compute.run(spec))
        sandbox = provider.parts.sandbox
        await world.until(lambda: sandbox.describe()["running"])
        assert not sandbox.cancelled
        await provider.stop()
        assert sandbox.cancelled
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    run(1, 2, play, SETTINGS, kind=EndlessWorld)


def test_the_compute_that_is_offered_is_what_the_workers_can_run():
    async def play(world):
        one, four = (node.capacity for node in world.nodes)
        assert one.level("compute") == 1_500 * MFUEL
        assert four.level("compute") == 4 * one.level("compute")

    class Workers(World):
        def __init__(self, *args):
            super().__init__(*args)
            self.settings_of = {0: {"compute_workers": "1"}, 1: {"compute_workers": "4"}}

    run(1, 2, play, {"worker_speed": "1500"}, kind=Workers)
