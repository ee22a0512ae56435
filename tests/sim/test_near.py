"""A job on whole nodes goes to who holds shards of its input, and says what that saved."""

from __future__ import annotations

from tests.sim.network import content, put, run
from tests.unit.compute.programs import wasm
from xsc.base.ids import from_text, to_text
from xsc.base.jobs import JobSpec
from xsc.base.limits import MIB
from xsc.identity.envelope import open_signed
from xsc.node.offline.verify import verify_file
from xsc.terms.execution import ExecutionReceipt

SETTINGS = {"compute_price_gfuel": "1000000", "compute_price_max_gfuel": "1000000"}
FUEL = 400_000_000


async def job(world, capability, **how):
    inputs = await world.nodes[0].job_inputs.find({"text": capability})
    spec = JobSpec.run(wasm("upper"), env={"GREETING": "hei"}, fuel=FUEL, **how)
    return await world.nodes[0].compute.run(spec, objects=inputs)


def test_a_job_runs_where_shards_of_its_input_lie_and_verify_checks_the_saving():
    data = content(MIB)

    async def play(world):
        # Of seven peers six get a column; the others of four that are needed come from peers.
        capability = await put(world.nodes[0], data)
        referred = await world.nodes[0].storage.refer(capability)
        holders = {node for node, spared in referred.spared.items() if spared == MIB // 4}
        assert len(holders) == 6
        done = await job(world, capability)
        assert done.files["deep/TEXT"] == data.upper()
        assert from_text(done.provider) in holders
        assert done.saved_bytes == MIB // 4
        told = verify_file(done.receipt, wasm("upper"))
        assert "256.0 KiB of 1.0 MiB were there already" in told
        again = await job(world, capability, on=done.provider)
        assert again.saved_bytes == MIB // 4 + len(wasm("upper"))
        (far,) = {node.key.node_id for node in world.nodes[1:]} - holders
        assert (await job(world, capability, on=to_text(far))).saved_bytes == 0
        # The object is known by its content now: it is not read here again.
        world.net.trace.clear()
        await job(world, capability, on=done.provider)
        sources = {
            each.source
            for each in world.net.trace
            if each.what == "sent" and "storage.get" in each.path
        }
        assert sources == {world.name(world.index_of(from_text(done.provider)))}
        receipt = open_signed(done.receipt, ExecutionReceipt, network=None).record
        assert receipt.observed.saved_bytes == MIB // 4

    run(1, 8, play, SETTINGS)


def test_a_provider_that_cannot_reach_the_other_shards_is_sent_the_input():
    data = content(MIB)

    async def play(world):
        capability = await put(world.nodes[0], data)
        referred = await world.nodes[0].storage.refer(capability)
        near = world.index_of(min(referred.spared))
        provider = world.nodes[near]
        for index in range(1, 8):
            if index != near:
                provider.peers.roster.block(world.nodes[index].key.node_id)
        done = await job(world, capability, on=to_text(provider.key.node_id))
        assert done.files["deep/TEXT"] == data.upper()
        assert done.saved_bytes == 0

    run(2, 8, play, SETTINGS)
