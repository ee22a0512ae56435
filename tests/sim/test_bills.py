"""What a put and a run come to cost, on whole nodes."""

from tests.sim.network import content, put, run
from xsc.base.limits import MIB


def test_in_a_network_of_seven_nodes_a_put_costs_what_is_asked_and_mutual_peers_pay_their_rung():
    async def play(world):
        owner, friend = world.nodes[0], world.nodes[1]
        for one, other in ((owner, friend), (friend, owner)):
            await one.commitments.recognise(other.key.node_id, 100_000)
        await world.until(lambda: friend.commitments.tier(owner.key.node_id) == "mutual")
        await put(owner, content(3 * MIB))
        prices = {lease.entry.peer: lease.entry.terms.price for lease in owner.market.leases()}
        assert len(prices) == 6
        assert prices.pop(friend.key.node_id) == 1370 * 8 // 10
        assert set(prices.values()) == {1370}

    run(1, 7, play)
