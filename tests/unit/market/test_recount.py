"""What a customer counts after a power loss: what its records name, and what hosts show."""

import pytest

from tests.unit.market.fakes import NET, named
from tests.unit.market.test_renewals import stored
from xsc.base.errors import LeaseExhausted
from xsc.base.limits import EPOCH_MS, MIB
from xsc.market.lease_store import LeaseStore


async def forgotten(world, customer, provider, more):
    """Have a host hold more than the customer counts, as a power loss leaves it."""
    lease_id = await stored(world, customer, provider)
    provider.stores(lease_id, customer.id, more)
    return lease_id


async def paid(world, customer, provider, lease_id):
    await world.drive(customer.market.settlement.settle_all())
    mine, theirs = customer.one("customer"), provider.one("provider")
    assert (mine.held_bytes, mine.used) == (theirs.held_bytes, theirs.used)
    assert provider.ledger.settled(lease_id) == theirs.due_micro


async def test_what_the_records_name_is_counted_again_and_for_the_time_since(world, pair):
    customer, provider = pair
    lease_id = await forgotten(world, customer, provider, 3 * MIB)
    world.later(50 * EPOCH_MS)
    await customer.restart()
    assert not customer.market.store.complete
    customer.market.taken.reconcile({lease_id: 13 * MIB}, {})
    await paid(world, customer, provider, lease_id)


async def test_what_was_on_its_way_is_counted_when_the_host_shows_it(world, pair):
    customer, provider = pair
    lease_id = await forgotten(world, customer, provider, 3 * MIB)
    world.later(50 * EPOCH_MS)
    await customer.restart()
    customer.market.taken.reconcile({lease_id: 10 * MIB}, {lease_id: 1})
    await customer.market.taken.recounted(lease_id, 3 * MIB)
    await paid(world, customer, provider, lease_id)
    # One doubt, once: whatever else comes to light counts from now on.
    world.later(50 * EPOCH_MS)
    provider.stores(lease_id, customer.id, MIB)
    await customer.market.taken.recounted(lease_id, MIB)
    await paid(world, customer, provider, lease_id)


async def test_the_records_lower_a_count_only_where_something_was_on_its_way(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    for doubts, counted in ({}, 10 * MIB), ({lease_id: 1}, 4 * MIB):
        await customer.restart()
        customer.market.taken.reconcile({lease_id: 4 * MIB}, doubts)
        assert customer.one("customer").held_bytes == counted


async def test_a_host_that_shows_less_lowers_the_count(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    await customer.market.taken.recounted(lease_id, -4 * MIB)
    assert customer.one("customer").held_bytes == 6 * MIB
    with pytest.raises(LeaseExhausted):
        await customer.market.taken.recounted(bytes(31) + b"x", 1)


async def test_only_a_node_that_stopped_in_order_lost_no_count(world, pair):
    customer, _ = pair
    await customer.restart()
    assert not customer.market.store.complete
    await world.drive(customer.market.close())
    await customer.restart()
    assert customer.market.store.complete
    await customer.restart()
    assert not customer.market.store.complete


def test_that_it_stopped_in_order_is_taken_back_on_the_disk_first():
    class Disk:
        def __init__(self):
            self.rows, self.written = {}, []

        def get(self, key):
            return self.rows.get(key)

        def scan(self, start, stop):
            return iter(())

        def write(self, changes, *, sync):
            self.written.append((changes, sync))
            self.rows.update(changes)

    disk = Disk()
    LeaseStore(disk, NET, disk.write, named).close()
    store = LeaseStore(disk, NET, disk.write, named)
    store.load()
    assert store.complete
    (changes, sync) = disk.written[-1]
    assert sync
    assert [value for _, value in changes] == [None]
