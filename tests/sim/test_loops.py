"""A debt around three whole nodes clears by itself."""

from tests.sim.network import run
from tests.sim.test_checkpoints import DEBT, book
from xsc.ledger.loops import LOOP_FIRST_MS


async def indebted(world):
    """Let each of three nodes owe the next one."""
    for index in range(3):
        await book(world.nodes[(index + 1) % 3], world.nodes[index], index)


def owed(world):
    return [
        node.ledger.balance(other.key.node_id)
        for node in world.nodes
        for other in world.nodes
        if other is not node
    ]


def test_a_debt_around_three_nodes_clears_by_itself_within_a_day():
    async def play(world):
        await indebted(world)
        assert sorted({*owed(world)}) == [-DEBT, DEBT]
        await world.clock.sleep_ms(2 * LOOP_FIRST_MS + 60_000)
        assert {*owed(world)} == {0}
        for node in world.nodes:
            assert not node.ledger.chain.state.loops
            await node.ledger.verify()

    run(7, 3, play, {"starter_credit": "1000"})
