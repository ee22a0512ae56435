"""What `xsc ledger settle` says."""

from tests.sim.network import content, put, run
from xsc.api.endpoint import Nothing
from xsc.base.limits import MIB
from xsc.node.routes import ledger

SETTINGS = {
    "storage_price_gib_hour": "10000000",
    "storage_price_max_gib_hour": "10000000",
    "starter_credit": "1000",
}


def test_a_peer_that_owes_and_is_owed_is_one_peer_with_which_something_is_owed():
    async def play(world):
        node, *others = world.nodes
        for each in (node, others[0]):
            await put(each, content(MIB))
        await world.clock.sleep_ms(60_000)
        for index in range(1, len(world.nodes)):
            await world.crash(index)
        await world.until(lambda: not any(map(node.health.is_up, node.peers.roster.peers())))
        await world.clock.sleep_ms(60_000)
        owed = [each for each in node.market.store.accounts() if node.market.owed_micro(each)]
        assert len({each.peer for each in owed}) < len(owed)
        said = await ledger.settle(node, Nothing())
        assert said.pending == len({each.peer for each in owed})

    run(51, 7, play, SETTINGS)
