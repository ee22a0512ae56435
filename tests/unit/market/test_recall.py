"""What a host tells a customer that lost its disk, and what the customer believes."""

import pytest

from tests.unit.allocation.fakes import Memory
from tests.unit.market.fakes import NET, RECORDS
from tests.unit.market.test_renewals import LATEST_MS, stored
from xsc.base.errors import PeerSilent, RecordInvalid, SignatureInvalid, StoreDamaged
from xsc.base.limits import (
    EPOCH_MS,
    HISTORY_LEASES_MAX,
    HISTORY_TIMEOUT_MS,
    MIB,
    PEER_TIMEOUT_MS,
    STORAGE_LEASE_BYTES,
)
from xsc.identity.envelope import open_signed, sign
from xsc.market.recall import HISTORY, RECALLS
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.voucher import Voucher


async def lost(customer, provider, held):
    """Lose the customer's disk, but for its ledger; return how many leases came back."""
    customer.state = Memory()
    await customer.restart()
    # A recovered ledger says what was settled; the fake keeps it at the provider.
    customer.ledger.booked = provider.ledger.booked
    customer.market.recalls.begin({provider.id: held})
    return await customer.market.recalls.recall(provider.id)


async def test_a_lease_comes_back_as_it_was_and_goes_on(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    world.later(50 * EPOCH_MS)
    await world.drive(customer.market.settlement.settle_all())
    before = customer.newest("customer")
    lease_id = before.lease_id
    world.later(7 * EPOCH_MS)
    assert await lost(customer, provider, {lease_id: 10 * MIB}) == 2
    after = customer.newest("customer")
    assert (after.end_ms, after.price, after.quantity) == (
        before.end_ms,
        before.price,
        before.quantity,
    )
    assert after.settled_micro == before.settled_micro
    assert after.used == before.used + 7 * 10 * MIB == provider.newest("provider").used
    assert await customer.market.recalls.recall(provider.id) == 0, "once is enough"
    await customer.restart()
    await world.drive(customer.market.settlement.settle_all())
    assert provider.ledger.settled(lease_id) == provider.newest("provider").due_micro
    await customer.market.taken.used(lease_id, -10 * MIB)
    assert customer.newest("customer").held_bytes == 0


async def test_who_has_a_list_from_before_a_renewal_has_all_of_it_go_over(world, pair):
    customer, provider = pair
    old_id = await stored(world, customer, provider)
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    new_id = customer.newest("customer").lease_id
    world.later(50 * EPOCH_MS)
    await world.drive(customer.market.settlement.settle_all())
    assert await lost(customer, provider, {old_id: 10 * MIB}) == 2
    customer.keep(RECORDS, {old_id: 10 * MIB})
    await world.drive(customer.market.renewals.round())
    after = customer.newest("customer")
    assert (after.lease_id, after.held_bytes) == (new_id, 10 * MIB)
    assert after.used == provider.newest("provider").used
    await world.drive(customer.market.settlement.settle_all())
    theirs = [view for view in provider.market.leases() if view.role == "provider"]
    assert all(provider.ledger.settled(view.lease_id) >= view.due_micro for view in theirs)


async def test_without_a_voucher_the_use_counts_from_the_start(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(5 * EPOCH_MS)
    await lost(customer, provider, {lease_id: 10 * MIB})
    assert customer.one("customer").used == provider.one("provider").used == 6 * 10 * MIB


async def test_no_more_is_counted_than_the_directory_and_the_host_agree_on(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    await lost(customer, provider, {lease_id: 4 * MIB})
    assert customer.one("customer").held_bytes == 4 * MIB
    await lost(customer, provider, {lease_id: 40 * MIB})
    assert customer.one("customer").held_bytes == 10 * MIB
    await lost(customer, provider, {})
    assert customer.one("customer").held_bytes == 0


async def test_many_leases_come_in_pages_and_another_ones_are_told_to_nobody(world, pair):
    customer, provider = pair
    provider.room.storage = 2**50
    other = world.node(3)
    other.room.storage = 0
    world.wire.down.add(other.id)
    await world.drive()
    held = {}
    for _ in range(HISTORY_LEASES_MAX + 1):
        lease_id = await stored(world, customer, provider, STORAGE_LEASE_BYTES)
        held[lease_id] = STORAGE_LEASE_BYTES
    world.wire.down.clear()
    foreign = await stored(world, other, provider)
    assert await lost(customer, provider, held) == HISTORY_LEASES_MAX + 1
    known = {view.lease_id for view in customer.market.leases()}
    assert known == set(held)
    assert foreign not in known


async def test_a_silent_host_is_asked_again(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.wire.down.add(provider.id)
    with pytest.raises(PeerSilent):
        await lost(customer, provider, {lease_id: 10 * MIB})
    await customer.restart()
    world.wire.down.clear()
    assert await customer.market.recalls.recall(provider.id) == 1


async def test_a_host_that_crawls_is_asked_again_and_what_it_has_told_is_kept(world, pair):
    customer, provider = pair
    held = {}
    for _ in range(8):
        lease_id = await stored(world, customer, provider, STORAGE_LEASE_BYTES)
        held[lease_id] = STORAGE_LEASE_BYTES
    handlers = world.wire.handlers[provider.id]
    honest = handlers[HISTORY]

    async def crawl(caller, header, parts):
        world.clock.advance_to(world.clock.now_ms() + PEER_TIMEOUT_MS - 1_000)
        answer, bodies = await honest(caller, header, parts)
        told = answer["leases"]
        return {"leases": told[:1], "more": len(told) > 1}, bodies

    handlers[HISTORY] = crawl
    before_ms = world.clock.now_ms()
    with pytest.raises(PeerSilent):
        await lost(customer, provider, held)
    assert world.clock.now_ms() - before_ms < HISTORY_TIMEOUT_MS + PEER_TIMEOUT_MS
    assert len(customer.market.leases()) == 5
    handlers[HISTORY] = honest
    assert await customer.market.recalls.recall(provider.id) == 3


async def test_a_damaged_note_of_what_to_recall_is_found(world, pair):
    customer, provider = pair
    for raw in (b"\xff", b"\xa0", b"\xa1dheld\x81\x01"):
        customer.state.table[RECALLS + provider.id] = raw
        with pytest.raises(StoreDamaged):
            await customer.market.recalls.recall(provider.id)


def signed_as(key, record, **changes):
    return sign(record.model_copy(update=changes), key, NET).raw


@pytest.mark.parametrize(
    "twist",
    [
        "nothing",
        "lease by the customer",
        "request by the host",
        "more than asked for",
        "voucher by the host",
        "voucher of another lease",
        "negative count",
        "the same again",
    ],
)
async def test_what_a_host_tells_must_be_signed_and_its_own(world, pair, twist):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    other_id = await stored(world, customer, provider, STORAGE_LEASE_BYTES)
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    await world.drive(customer.market.settlement.settle_all())
    honest, _ = await provider.market.recalls.on_history(customer.id, {"after": None}, ())
    items = {
        open_signed(
            open_signed(item["lease"], Lease, network=NET).record.request,
            LeaseRequest,
            network=NET,
        ).record.lease_id: item
        for item in honest["leases"]
    }
    item, other = dict(items[lease_id]), items[other_id]
    lease = open_signed(item["lease"], Lease, network=NET).record
    told = [item]
    match twist:
        case "nothing":
            told = [7]
        case "lease by the customer":
            item["lease"] = signed_as(customer.key, lease)
        case "request by the host":
            request = open_signed(lease.request, LeaseRequest, network=NET).record
            item["lease"] = signed_as(
                provider.key, lease, request=signed_as(provider.key, request, quantity=2**60)
            )
        case "more than asked for":
            item["lease"] = signed_as(provider.key, lease, quantity=2**60)
        case "voucher by the host":
            voucher = open_signed(item["voucher"], Voucher, network=NET).record
            item["voucher"] = signed_as(provider.key, voucher, amount_micro=2**50)
        case "voucher of another lease":
            item["voucher"] = other["voucher"]
        case "negative count":
            item["used"] = -1
        case "the same again":
            told = [item, item]

    async def answer(caller, header, parts):
        return {"leases": told, "more": False}, ()

    world.wire.handlers[provider.id]["market.history"] = answer
    with pytest.raises((RecordInvalid, SignatureInvalid)):
        await lost_with(customer, provider, answer, world, lease_id)
    assert customer.market.leases() == [], "all of a page or nothing"


async def lost_with(customer, provider, answer, world, lease_id):
    customer.state = Memory()
    await customer.restart()
    world.wire.handlers[provider.id]["market.history"] = answer
    customer.market.recalls.begin({provider.id: {lease_id: 10 * MIB}})
    await customer.market.recalls.recall(provider.id)
