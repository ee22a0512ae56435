"""What storage and compute are told of other nodes."""

from tests.unit.market.fakes import World
from xsc.base.limits import MIB
from xsc.node.build import Providers


async def test_leases_and_labels_are_those_of_the_market():
    world = World()
    own, peer = world.node(1, site="attic"), world.node(2, owner="bob")
    providers = Providers(own.market, own.health, world.wire.peers(own.id))
    found = await world.drive(providers.lease_hosts(size_bytes=MIB, count=1))
    assert [lease.node for lease in found.leases] == [peer.id]
    assert providers.labels(peer.id) == ("", "bob", "")
    assert providers.labels(own.id) == ("attic", "", "")
    assert await providers.learn_labels([own.id, peer.id]) == {own.id, peer.id}
    await providers.used(found.leases[0].lease_id, MIB)
    assert own.one("customer").use.held_bytes == MIB
