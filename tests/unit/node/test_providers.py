"""What storage and compute are told of other nodes, and of the own one."""

from tests.unit.market.fakes import World
from xsc.base.limits import MIB
from xsc.node.providers import Providers


async def test_the_own_node_is_always_up_and_answers_at_once():
    world = World()
    own, peer = world.node(1, site="attic"), world.node(2, owner="bob")
    providers = Providers(own.id, own.market, own.health, world.wire.peers(own.id))
    assert (providers.is_up(peer.id), providers.response_ms(peer.id)) == (True, 7)
    world.wire.down.update((own.id, peer.id))
    assert (providers.is_up(peer.id), providers.is_up(own.id)) == (False, True)
    assert providers.response_ms(own.id) == 0
    assert providers.peers() == [peer.id]


async def test_leases_and_labels_are_those_of_the_market():
    world = World()
    own, peer = world.node(1, site="attic"), world.node(2, owner="bob")
    providers = Providers(own.id, own.market, own.health, world.wire.peers(own.id))
    found = await world.drive(providers.lease_hosts(size_bytes=MIB, count=1))
    assert [lease.node for lease in found.leases] == [peer.id]
    assert providers.labels(peer.id) == ("", "bob", "")
    assert providers.labels(own.id) == ("attic", "", "")
    assert await providers.learn_labels([own.id, peer.id]) == {own.id, peer.id}
    await providers.used(found.leases[0].lease_id, MIB)
    assert own.one("customer").use.held_bytes == MIB
