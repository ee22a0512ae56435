"""A debt around three whole nodes clears by itself."""

from tests.sim.network import run
from xsc.identity.envelope import sign
from xsc.ledger.loops import LOOP_FIRST_MS
from xsc.terms.voucher import Voucher

DEBT = 500_000


async def indebted(world):
    """Let each of three nodes owe the next one."""
    for index in range(3):
        debtor, creditor = world.nodes[index], world.nodes[(index + 1) % 3]
        said = Voucher(
            account=bytes([index]) * 32,
            provider=creditor.key.node_id,
            customer=debtor.key.node_id,
            number=1,
            amount_micro=DEBT,
            until_ms=0,
            count=None,
        )
        voucher = sign(said, debtor.key, debtor.peers.network)
        await creditor.ledger.collect(
            xid=bytes([index]) * 16,
            debtor=debtor.key.node_id,
            account=said.account,
            voucher=voucher.raw,
        )


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
