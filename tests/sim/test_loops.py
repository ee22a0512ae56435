"""A debt around three whole nodes clears by itself."""

from tests.sim.network import run
from tests.sim.test_checkpoints import DEBT, book
from xsc.api.endpoint import Nothing
from xsc.api.ledger import Page
from xsc.ledger.loops import LOOP_FIRST_MS
from xsc.node.routes import ledger


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
        await world.skip(2 * LOOP_FIRST_MS + 60_000, 60_000)
        assert {*owed(world)} == {0}
        for node in world.nodes:
            assert not node.ledger.chain.state.loops
            await node.ledger.verify()

    run(7, 3, play, {"starter_credit": "1000"})


def test_a_silent_member_is_named_and_what_a_loop_took_off_is_shown_as_such():
    async def play(world):
        await indebted(world)
        ada, _, cid = world.nodes
        await world.crash(2)
        await world.until(lambda: not ada.health.is_up(cid.key.node_id))
        said = await ledger.clear(ada, Nothing())
        assert (said.loops, [each.id for each in said.silent]) == ([], [cid.key.node_id])
        await world.restart(2)
        await world.until(lambda: world.sees_all(ada))
        said = await ledger.clear(ada, Nothing())
        assert ([each.amount_micro for each in said.loops], said.silent) == ([DEBT], [])
        await world.clock.sleep_ms(60_000)
        rows = (await ledger.log(ada, Page())).entries
        assert sorted(row.direction for row in rows if row.kind == "loop") == ["in", "out"]

    run(8, 3, play, {"starter_credit": "1000"})
