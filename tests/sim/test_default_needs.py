"""What nodes need by default takes part in clearings: no market command is typed but one."""

import pytest

from tests.sim.network import content, get, put, run
from tests.sim.test_slots import SETTINGS, cleared, granted, leased, mutual, need, recompute_all
from xsc.allocation.declaring import standing_need
from xsc.base.errors import SpaceExhausted
from xsc.base.limits import (
    DATA_SHARDS_DEFAULT,
    EPOCH_MS,
    MIB,
    SLOT_STEP_BYTES,
    STORAGE_LEASE_MS,
)
from xsc.base.units import ceil_div
from xsc.storage.object.durability import Contract

COLUMN_BYTES = 5 * MIB

OFFERING = {key: value for key, value in SETTINGS.items() if key != "offer"}


def test_a_put_states_a_need_and_is_what_fills_it():
    async def play(world):
        customer, *providers = world.nodes
        await mutual(customer, providers[0])
        await put(customer, content(MIB))
        await world.until(lambda: len(customer.allocator.received()) == 6)
        stated = standing_need(customer.commitments.own)
        assert [node for node, _ in stated.parts] == sorted(p.key.node_id for p in providers)
        assert {steps for _, steps in stated.parts} == {1}
        for provider in providers:
            assert granted(provider) == {customer.key.node_id: 1}
            recompute_all(provider)
        tiers = {each.provider: each.tier for each in customer.allocator.received()}
        assert tiers.pop(providers[0].key.node_id) == "mutual"
        assert set(tiers.values()) == {"open"}
        await world.skip(10 * 60_000, 60_000)
        assert len(customer.market.leases()) == 6, "the put's own leases are what the need gets"
        assert not cleared(customer)
        assert customer.commitments.own.needs == (stated,)
        assert not any(p.commitments.own.needs for p in providers), "who stores nothing"

    run(41, 7, play, OFFERING)


def test_room_that_falls_free_goes_to_a_friend_before_a_stranger_that_asked_first():
    async def play(world):
        provider, filler, stranger, friend = world.nodes
        await mutual(provider, friend)
        everybody = frozenset(node.key.node_id for node in world.nodes)

        async def ask(node, steps):
            return await node.market.buyer.lease_hosts(
                size_bytes=steps * SLOT_STEP_BYTES,
                count=1,
                exclude=everybody - {provider.key.node_id},
            )

        whole = provider.market.headroom.free("storage") // SLOT_STEP_BYTES
        filled = await need(filler, whole)
        await world.until(lambda: leased(filler) == whole)
        for node in (stranger, friend):
            assert not (await ask(node, whole)).leases
            node.market.default_need.refused(whole * SLOT_STEP_BYTES, 1)
            await world.skip(120_000, 30_000)
            assert standing_need(node.commitments.own).open_steps >= whole
        await filler.commitments.withdraw(filled)
        await world.until(lambda: leased(friend) == whole)
        assert leased(stranger) == 0
        (lease,) = (await ask(friend, whole)).leases
        assert lease.lease_id == cleared(friend)[0].id
        recompute_all(provider)

    def prepare(world):
        for index in (1, 2, 3):
            world.settings_of[index] = {"offer": "none"}

    run(42, 4, play, OFFERING | {"storage_capacity": "2GiB"}, prepare=prepare)


def test_at_half_life_what_a_put_leased_for_now_is_cleared_against_the_needs_of_friends():
    """The stranger typed nothing; its lease is not renewed, and the friend is granted the room."""

    async def play(world):
        provider, stranger, friend = world.nodes
        await mutual(provider, friend)
        capability = await put(stranger, content(MIB), contract=Contract(0))
        (lease,) = [
            view for view in stranger.market.leases() if view.entry.peer == provider.key.node_id
        ]
        await world.until(lambda: granted(provider) == {stranger.key.node_id: 1})
        (slot,) = [slot for slot in provider.commitments.own.slots if slot.kind == "storage"]
        await need(friend, slot.quantity)
        await world.until(lambda: leased(friend) == slot.quantity - 1)
        await friend.market.settlement.settle_all()
        assert granted(provider)[friend.key.node_id] == slot.quantity - 1, "the other is young"
        # All renewals are due by then, and no bytes have to move yet.
        await world.skip(STORAGE_LEASE_MS * 5 // 8, 12 * EPOCH_MS)
        (after,) = [view for view in provider.market.leases() if view.entry.id == lease.entry.id]
        assert after.entry.raw == lease.entry.raw, "its room was granted to the friend"
        assert granted(provider) == {friend.key.node_id: slot.quantity}
        await world.skip(STORAGE_LEASE_MS // 4, 96 * EPOCH_MS, 120_000)
        assert lease.entry.id not in provider.shards.usage, "its bytes have moved"
        assert await get(stranger, capability) == content(MIB)
        assert leased(friend) == slot.quantity

    def prepare(world):
        world.settings_of[1] = world.settings_of[2] = {"offer": "none"}

    run(
        43,
        3,
        play,
        OFFERING | {"storage_capacity": "2GiB", "settle_interval": "20h"},
        prepare=prepare,
    )


def test_a_put_that_was_refused_needs_a_column_at_each_host_and_succeeds_once_it_is_granted():
    async def play(world):
        customer = world.nodes[0]
        data = content(COLUMN_BYTES * DATA_SHARDS_DEFAULT)
        # It has a lease at each, which says nothing of the room there.
        await put(customer, content(MIB))
        world.full = {1, 2}
        for _ in range(2):
            with pytest.raises(SpaceExhausted):
                await put(customer, data)
            size_bytes, providers = customer.market.default_need.short()
            assert COLUMN_BYTES < size_bytes < COLUMN_BYTES + MIB
            assert providers == 2
        steps = ceil_div(size_bytes, SLOT_STEP_BYTES)

        def has_columns():
            there = [lease.use.level for lease in cleared(customer)]
            return len([each for each in there if each >= size_bytes]) >= providers

        await world.until(lambda: standing_need(customer.commitments.own) is not None)
        assert standing_need(customer.commitments.own).open_steps == steps * providers
        await world.until(has_columns)
        world.full = set()
        await world.skip(120_000, 30_000)
        assert len(cleared(customer)) == providers, "room that falls free is not needed any more"
        await put(customer, data)
        assert customer.market.default_need.short() == (0, 1)
        await world.until(lambda: standing_need(customer.commitments.own).open_steps == 0)

    run(44, 7, play, OFFERING | {"storage_capacity": "1GiB"})
