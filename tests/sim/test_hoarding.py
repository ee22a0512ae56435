"""A customer that asks for all room, and a put that takes long: nobody's room is kept by asking."""

from tests.sim.network import content, get, put, run
from xsc.base.limits import MIB

MINUTE_MS = 60_000


def test_who_only_asks_for_room_takes_none_from_others():
    async def play(world):
        owner, hoarder, *hosts = world.nodes
        free = [host.market.headroom.free("storage") for host in hosts]
        for _ in range(10):
            found = await hoarder.market.buyer.lease_hosts(size_bytes=min(free), count=5)
            assert len(found.leases) == 5
            # Each time under new leases.
            hoarder.market.store._entries["customer"].clear()
        assert [host.market.headroom.free("storage") for host in hosts] == free
        data = content(4 * MIB + 1)
        capability = await put(owner, data)
        assert {at.node for at in (await owner.storage.stat(capability)).hosts} > {
            host.key.node_id for host in hosts
        }
        await hoarder.market.settlement.settle_all()
        for host in hosts:
            account = host.market.store.account("provider", hoarder.key.node_id)
            assert host.market.owed_micro(account) == account.settled_micro == 0

    run(3, 7, play)


def test_a_put_that_takes_more_than_an_hour_keeps_its_hosts():
    async def play(world):
        owner, data = world.nodes[0], content(32 * MIB)
        hosts = set()

        async def slowly():
            for start in range(0, len(data), 4 * MIB):
                yield data[start : start + 4 * MIB]
                await world.clock.sleep_ms(9 * MINUTE_MS)
                hosts.update(view.entry.peer for view in owner.market.leases())

        done = await owner.storage.put(slowly(), name="slow", size_hint=len(data))
        stat = await owner.storage.stat(done.capability)
        assert {host.node for host in stat.hosts} == hosts, "nobody was replaced"
        assert await get(owner, done.capability) == data

    run(9, 8, play, {"probe_interval": "1m", "settle_interval": "10m"})
