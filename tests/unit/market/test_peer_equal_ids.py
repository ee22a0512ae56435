"""A peer names its slot after the slot of another node, of the other kind."""

from tests.unit.market.fakes import ask
from tests.unit.market.test_signing import entitle, need_of, needs, signed
from xsc.base.errors import PeerSilent
from xsc.base.limits import SLOT_STEP_BYTES
from xsc.market.providers import LEASE

WORK = b"w" * 16


async def test_what_a_node_has_leased_out_is_counted_in_its_own_unit(world, three):
    """The silent peer asked for nothing: it was offered a rate on a slot of the node's own id."""
    buyer, evil, node = three
    granted = entitle(world, buyer, node, 50)
    await ask(world, buyer, node, offer=granted)
    before = dict(node.market.headroom.drawn_steps())
    assert list(before.values()) == [50]

    async def never(*_):
        raise PeerSilent("no answer")

    world.wire.handlers[evil.id] |= {LEASE: never}
    needs(node, need_of(1, need=WORK, kind="compute"))
    now = world.clock.now_ms()
    window = (now, now + 86_400_000)
    # The id of the node's own storage slot, which is published.
    entitle(world, node, evil, 1, kind="compute", need=WORK, slot=b"s" * 16, window=window)
    await signed(world, node)
    assert len(node.market.store.asked) == 1
    assert dict(node.market.headroom.drawn_steps()) == before


async def test_what_a_customer_has_is_counted_in_its_own_unit(world, three):
    customer, evil, provider = three
    needs(customer, need_of(50), need_of(1, need=WORK, kind="compute"))
    entitle(world, customer, provider, 50)
    await signed(world, customer)
    assert set(customer.market.signing.held_steps().values()) == {50}
    evil.room.steps = 10**13
    now = world.clock.now_ms()
    window = (now, now + 86_400_000)
    entitle(world, customer, evil, 1, kind="compute", need=WORK, slot=b"s" * 16, window=window)
    await signed(world, customer)
    held = customer.market.signing.held_steps()
    assert [steps for (need, _), steps in held.items() if need != WORK] == [50]
    assert SLOT_STEP_BYTES
