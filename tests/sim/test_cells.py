"""Cells and propagators on whole nodes: a node follows what its cells name."""

from tests.sim.network import run
from xsc.space.paths import UserSpacePaths


def double(strongest):
    return strongest[0].value * 2


def test_cells_of_two_nodes_agree_and_each_says_what_it_runs():
    async def play(world):
        ada, bea = world.nodes
        both = [ada.key.node_id, bea.key.node_id]
        most = [node.cells.cell("load", "max", both) for node in world.nodes]
        twice = ada.cells.cell("twice")
        await most[0].update(3)
        await ada.cells.register_propagator("double", [most[0]], twice, double)
        await most[1].update(5)
        await world.until(lambda: [cell.strongest().value for cell in most] == [5, 5])
        await world.until(lambda: twice.strongest().value == 10)
        assert b"double" in ada.space.get(UserSpacePaths.PROPAGATORS).value
        most[0].remove_source(bea.key.node_id)
        assert (bea.key.node_id, UserSpacePaths.cell("load")) not in ada.cells.subscriptions()
        await world.until(lambda: twice.strongest().value == 6)
        await most[1].update(7)
        await world.until(lambda: most[1].strongest().value == 7)
        assert most[0].strongest().value == 3

    run(3, 2, play, {"probe_interval": "60s"})
