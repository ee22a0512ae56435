"""Leases that go on: what both sides agree to, what is refused, and what a crash cannot break."""

from dataclasses import replace

import pytest

from tests.unit.allocation.fakes import Memory
from tests.unit.market.fakes import A_MIB, NET
from xsc.base.errors import (
    LeaseExhausted,
    NotFound,
    RateLimited,
    RecordInvalid,
    StoreDamaged,
    XscError,
)
from xsc.base.limits import (
    EPOCH_MS,
    MIB,
    RENEWAL_CALLS_A_PEER_MAX,
    RENEWAL_CALLS_MS,
    RENEWAL_RETRY_MS,
    RENEWALS_A_CALL_MAX,
    STORAGE_LEASE_BYTES,
    STORAGE_LEASE_MS,
)
from xsc.identity.envelope import open_signed, sign
from xsc.market.lease import advance
from xsc.market.pricing import PriceList
from xsc.market.renewal import check_renewal, due_ms, make_request
from xsc.node.offline.verify import verify_file
from xsc.terms.pricing import storage_amount
from xsc.terms.quote import Draw, Quote
from xsc.terms.renewal import Renewal, RenewalRequest

DAY_MS = 86_400_000
HALF_MS = STORAGE_LEASE_MS // 2
LATEST_MS = HALF_MS + STORAGE_LEASE_MS // 8


async def stored(world, customer, provider, size=10 * MIB):
    """Return a lease with bytes under it."""
    offered = await world.drive(customer.market.buyer.lease_hosts(size_bytes=size, count=1))
    (host,) = offered.leases
    provider.stores(host.lease_id, customer.id, size)
    await customer.market.taken.used(host.lease_id, size)
    await world.drive()
    return host.lease_id


def ends(customer, provider):
    return [
        node.one(role).end_ms for node, role in ((customer, "customer"), (provider, "provider"))
    ]


def renewals(world):
    return [call for call in world.wire.calls if call[2] == "market.renew"]


async def rounds(world, node, until_ms, step_ms=DAY_MS):
    """Let time pass in steps, with a look at the leases and a settlement after each."""
    while world.clock.now_ms() < until_ms:
        world.later(min(step_ms, until_ms - world.clock.now_ms()))
        await world.drive(node.market.renewals.round())
        await world.drive(node.market.settlement.settle_all())


async def test_a_lease_is_renewed_between_its_half_and_an_eighth_later(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    start_ms = world.clock.now_ms()
    await rounds(world, customer, start_ms + HALF_MS - 1)
    assert renewals(world) == []
    end_ms = ends(customer, provider)[0]
    await rounds(world, customer, start_ms + LATEST_MS + DAY_MS)
    assert len(renewals(world)) == 1
    mine, theirs = ends(customer, provider)
    assert mine == theirs
    assert end_ms + HALF_MS <= mine <= end_ms + LATEST_MS + DAY_MS


async def test_leases_are_due_at_moments_of_their_own_that_a_restart_does_not_change(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    (entry,) = customer.market.store.all("customer")
    moments = {due_ms(replace(entry.terms, lease_id=bytes([number]) * 32)) for number in range(64)}
    assert len(moments) == 64
    assert max(moments) - min(moments) > STORAGE_LEASE_MS // 16
    before = due_ms(entry.terms)
    await customer.restart()
    (entry,) = customer.market.store.all("customer")
    assert due_ms(entry.terms) == before


async def test_for_a_year_and_more_both_sides_agree_and_every_epoch_is_paid_once(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    start_ms = world.clock.now_ms()
    for day in range(400):
        if day % 50 == 10:
            await customer.restart()
        if day % 50 == 30:
            await provider.restart()
        await rounds(world, customer, world.clock.now_ms() + DAY_MS)
    mine, theirs = customer.one("customer"), provider.one("provider")
    assert mine.end_ms == theirs.end_ms > world.clock.now_ms() + STORAGE_LEASE_MS // 4
    epochs = (world.clock.now_ms() - start_ms) // EPOCH_MS + 1
    assert mine.used == theirs.used == epochs * 10 * MIB
    assert provider.ledger.settled(lease_id) == mine.due_micro == mine.settled_micro
    assert 5 <= len(renewals(world)) <= 8


async def test_all_leases_at_a_host_that_can_be_renewed_share_a_call(world, pair):
    customer, provider = pair
    for _ in range(5):
        await stored(world, customer, provider, STORAGE_LEASE_BYTES)
    writes = provider.state.synced
    await rounds(world, customer, world.clock.now_ms() + LATEST_MS + DAY_MS)
    assert len(customer.market.leases()) == 5
    assert len(renewals(world)) == 1
    assert len({view.end_ms for view in provider.market.leases()}) == 1
    settled = len([1 for call in world.wire.calls if call[2] == "market.settle"])
    assert provider.state.synced - writes <= 1 + 3 * settled


async def test_more_leases_than_a_call_may_carry_go_in_several(world, pair):
    customer, provider = pair
    provider.room.storage = 2**50
    for _ in range(RENEWALS_A_CALL_MAX + 1):
        await stored(world, customer, provider, STORAGE_LEASE_BYTES)
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    assert len(renewals(world)) == 2
    assert {view.end_ms for view in provider.market.leases()} == {
        world.clock.now_ms() + STORAGE_LEASE_MS
    }
    requests = [b""] * (RENEWALS_A_CALL_MAX + 1)
    with pytest.raises(RecordInvalid):
        await provider.market.renewals.on_renew(customer.id, {"requests": requests}, ())


async def test_the_price_of_a_renewal_counts_from_there_on_alone(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    assert customer.one("customer").price == 40 * A_MIB
    provider.settings["prices"] = PriceList(20 * A_MIB, 20 * A_MIB)
    await provider.restart()
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    before = customer.one("customer")
    price = before.price
    assert 20 * A_MIB <= price == provider.one("provider").price < 40 * A_MIB
    assert before.due_micro == storage_amount(40 * A_MIB, before.used)
    world.later(48 * EPOCH_MS)
    await world.drive(customer.market.settlement.settle_all())
    due = before.due_micro + storage_amount(price, 48 * 10 * MIB)
    assert customer.one("customer").due_micro == provider.ledger.settled(lease_id) == due


async def test_new_objects_go_on_under_a_renewed_lease(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    assert await stored(world, customer, provider) == lease_id


async def test_an_empty_lease_is_not_renewed(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    await customer.market.taken.used(lease_id, -10 * MIB)
    await rounds(world, customer, world.clock.now_ms() + LATEST_MS + DAY_MS)
    assert renewals(world) == []


# What is refused, and said


def why(customer):
    (lease,) = customer.market.renewals.ending(STORAGE_LEASE_MS)
    return lease.reason


async def test_debt_refuses_a_renewal_until_it_is_paid(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.ledger.limit = 0
    await rounds(world, customer, world.clock.now_ms() + LATEST_MS)
    assert "debt limit" in why(customer)
    assert ends(customer, provider)[1] < world.clock.now_ms() + HALF_MS
    provider.ledger.limit = 10**12
    world.later(RENEWAL_RETRY_MS)
    await world.drive(customer.market.renewals.round())
    assert ends(customer, provider) == [world.clock.now_ms() + STORAGE_LEASE_MS] * 2
    assert why(customer) == ""


async def test_a_host_that_is_leaving_renews_nothing(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.leaving.add(provider.id)
    await rounds(world, customer, world.clock.now_ms() + LATEST_MS)
    assert "leaving" in why(customer)
    assert ends(customer, provider)[1] < world.clock.now_ms() + HALF_MS


async def test_little_credit_renews_what_is_held_and_gives_up_the_rest(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    world.later(LATEST_MS)
    await world.drive(customer.market.settlement.settle_all())
    provider.ledger.limit = provider.ledger.owed(customer.id) + storage_amount(10 * A_MIB, 20 * MIB)
    await world.drive(customer.market.renewals.round())
    assert customer.one("customer").quantity == provider.one("provider").quantity
    assert 20 * MIB <= provider.one("provider").quantity < 21 * MIB
    assert (
        provider.market.granted.end_ms(provider.one("provider").lease_id)
        > world.clock.now_ms() + HALF_MS
    )


async def test_refusals_are_asked_again_after_hours_and_silence_at_each_look(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.ledger.limit = 0
    world.later(LATEST_MS)
    for _ in range(3):
        await world.drive(customer.market.renewals.round())
    assert len(renewals(world)) == 1
    world.later(RENEWAL_RETRY_MS)
    world.wire.down.add(provider.id)
    await world.drive(customer.market.renewals.round())
    assert why(customer) == "the host is silent"
    assert len(renewals(world)) == 1
    world.wire.down.clear()
    provider.ledger.limit = 10**12
    await world.drive(customer.market.renewals.round())
    assert why(customer) == ""


async def test_more_than_the_own_reserve_is_not_paid(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.settings["prices"] = PriceList(41 * A_MIB, 41 * A_MIB)
    await provider.restart()
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    assert "above storage_price_max_gib_hour" in why(customer)
    assert renewals(world) == []


async def test_a_host_that_lost_the_lease_or_what_lay_under_it_says_so(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(LATEST_MS)
    kept = provider.state
    provider.state = Memory()
    await provider.restart()
    await world.drive(customer.market.renewals.round())
    assert why(customer) == "this customer has no such lease here"
    provider.state = kept
    await provider.restart()
    provider.market.granted.settle_use(lease_id, -10 * MIB)
    world.later(RENEWAL_RETRY_MS)
    await world.drive(customer.market.renewals.round())
    assert customer.market.renewals.end_of(lease_id).reason == "nothing is held under the lease"
    assert customer.one("customer").held_bytes == 0, "nothing more is paid for it"


async def test_what_ended_can_be_renewed_while_it_is_kept_and_the_gap_is_paid(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    start_ms = world.clock.now_ms()
    world.later(STORAGE_LEASE_MS + 20 * DAY_MS)
    await world.drive(customer.market.renewals.round())
    assert ends(customer, provider) == [world.clock.now_ms() + STORAGE_LEASE_MS] * 2
    await world.drive(customer.market.settlement.settle_all())
    epochs = (world.clock.now_ms() - start_ms) // EPOCH_MS + 1
    assert provider.one("provider").used == epochs * 10 * MIB
    assert provider.ledger.settled(lease_id) == provider.one("provider").due_micro


@pytest.mark.parametrize("late_ms", [0, STORAGE_LEASE_MS])
async def test_a_renewal_reserves_nothing_and_takes_what_is_free(world, pair, late_ms):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    provider.room.stored = provider.room.storage - 3 * MIB
    world.later(LATEST_MS + late_ms)
    await world.drive(customer.market.renewals.round())
    assert provider.one("provider").renewals == 1
    assert provider.market.headroom.free("storage") == 3 * MIB
    with pytest.raises(LeaseExhausted):
        provider.stores(lease_id, customer.id, 3 * MIB + 1)
    provider.stores(lease_id, customer.id, 3 * MIB)


async def test_a_renewal_that_extends_next_to_nothing_is_refused(world, pair):
    """Each one costs a synced write: a customer could ask for as many as it likes."""
    customer, provider = pair
    await stored(world, customer, provider)
    world.later(LATEST_MS)
    entry = next(provider.market.store.all("provider"))
    quote = Quote(
        provider=provider.id,
        customer=customer.id,
        kind="storage",
        tier="open",
        price_mutual=10 * A_MIB,
        price_one_way=10 * A_MIB,
        reserve=10 * A_MIB,
        price=10 * A_MIB,
        available=1,
        valid_from_ms=0,
        valid_until_ms=1,
        nonce=bytes(16),
    )
    now_ms = world.clock.now_ms()
    use = advance(entry.terms, entry.use, now_ms)
    request = make_request(entry.terms, use, quote, b"q", now_ms)
    for more_ms, refused in ((1, True), (EPOCH_MS - 1, True), (EPOCH_MS, False)):
        short = request.model_copy(update={"end_ms": entry.terms.end_ms + more_ms})
        assert (check_renewal(entry.terms, use, short, quote, now_ms) is not None) == refused
    drawn = Draw(slot=b"s" * 16, start_ms=0, end_ms=1, need=b"n" * 16)
    cheap = quote.model_copy(update={"draw": drawn})
    assert "entitlement" in check_renewal(entry.terms, use, request, cheap, now_ms)


async def test_a_count_that_is_too_high_is_lowered_to_the_hosts_and_then_renewed(world, pair):
    """The host deleted a part, and its answer got lost: neither voucher nor account fits."""
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    provider.market.granted.settle_use(lease_id, -9 * MIB)
    world.later(LATEST_MS)
    await world.drive(customer.market.settlement.settle_all())
    await world.drive(customer.market.renewals.round())
    assert "more than was held" in why(customer)
    assert customer.one("customer").held_bytes == provider.one("provider").held_bytes == MIB
    world.later(RENEWAL_RETRY_MS)
    await world.drive(customer.market.renewals.round())
    assert why(customer) == ""
    assert customer.one("customer").used == provider.one("provider").used
    await rounds(world, customer, world.clock.now_ms() + 3 * DAY_MS)
    assert provider.ledger.settled(lease_id) == provider.one("provider").due_micro


async def test_what_a_host_counts_beyond_the_account_stays_owed(world, pair):
    """A put whose end the customer never heard of: the lease is renewed, the debt shows."""
    customer, provider = pair
    await stored(world, customer, provider)
    provider.stores(provider.one("provider").lease_id, customer.id, MIB)
    world.later(LATEST_MS)
    await world.drive(customer.market.settlement.settle_all())
    owed = provider.one("provider").due_micro - customer.one("customer").due_micro
    assert owed > 0
    await world.drive(customer.market.renewals.round())
    assert ends(customer, provider) == [world.clock.now_ms() + STORAGE_LEASE_MS] * 2
    mine, theirs = customer.one("customer"), provider.one("provider")
    assert theirs.used > mine.used
    assert theirs.due_micro > theirs.settled_micro


# What is asked


async def request_of(world, customer, provider, /, **change):
    """Return a signed request as the customer would make it, but for some fields."""
    quote = (
        await provider.market.handlers()["market.quote"](customer.id, {"kind": "storage"}, ())
    )[0]["quote"]
    now_ms = world.clock.now_ms()
    view = customer.one("customer")
    fields = {
        "lease_id": view.lease_id,
        "provider": provider.id,
        "customer": customer.id,
        "number": 1,
        "quote": quote,
        "quantity": view.quantity,
        "quantity_min": view.held_bytes,
        "price": 40 * A_MIB,
        "base_quantity": view.used,
        "base_amount_micro": view.due_micro,
        "start_ms": now_ms,
        "end_ms": now_ms + STORAGE_LEASE_MS,
    } | change
    return sign(RenewalRequest(**fields), customer.key, NET).raw


async def answer_to(provider, caller, *requests):
    header, _ = await provider.market.renewals.on_renew(caller.id, {"requests": [*requests]}, ())
    return header["answers"] if len(requests) > 1 else header["answers"][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"number": 2}, "was renewed 0 times"),
        ({"price": 10 * A_MIB - 1}, "below the quote"),
        ({"start_ms": 5}, "begin now"),
        ({"end_ms": 2**60}, "longer"),
        ({"base_quantity": 0, "base_amount_micro": 0}, "falls behind"),
        ({"base_amount_micro": 1}, "not the price"),
        ({"base_quantity": 2**50, "base_amount_micro": 40 * 2**30}, "more than was held"),
        ({"quantity": MIB, "quantity_min": 1}, "less than is held"),
        ({"price": 2**40, "quantity": 2**62}, "worth more"),
        ({"lease_id": b"\x05" * 32}, "no such lease"),
        ({"provider": b"\x05" * 32}, "another lease"),
        ({"quote": b"no quote"}, ""),
    ],
    ids=lambda item: next(iter(item)) if isinstance(item, dict) else "",
)
async def test_a_request_that_does_not_fit_changes_nothing(world, pair, change, reason):
    customer, provider = pair
    await stored(world, customer, provider)
    world.later(LATEST_MS)
    await world.drive(customer.market.settlement.settle_all())
    before = provider.one("provider")
    raw = await request_of(world, customer, provider, **change)
    answer = await answer_to(provider, customer, raw)
    assert reason in answer["reason"]
    assert provider.one("provider") == before
    fit = await request_of(world, customer, provider)
    assert "renewal" in await answer_to(provider, customer, fit)


async def test_nobody_else_renews_and_nothing_is_renewed_twice_at_once(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    world.later(LATEST_MS)
    raw = await request_of(world, customer, provider)
    thief = world.node(3)
    assert "reason" in await answer_to(provider, thief, raw)
    first, second, third = await answer_to(provider, customer, raw, raw, 7)
    assert "renewal" in first
    assert (second["reason"], third["reason"]) == (
        "the lease is named twice",
        "a request is no signed record",
    )


async def test_the_first_half_of_a_term_is_not_renewed_and_a_replay_extends_nothing(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    early = await request_of(world, customer, provider)
    assert "first half" in (await answer_to(provider, customer, early))["reason"]
    world.later(LATEST_MS)
    raw = await request_of(world, customer, provider)
    first = await answer_to(provider, customer, raw)
    end_ms = provider.one("provider").end_ms
    world.later(DAY_MS)
    later = await request_of(world, customer, provider)
    for again in (raw, later):
        assert await answer_to(provider, customer, again) == first
    more = await request_of(world, customer, provider, number=2)
    assert "first half" in (await answer_to(provider, customer, more))["reason"]
    assert provider.one("provider").end_ms == end_ms


async def test_a_lost_answer_is_told_again_and_both_signed_it(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(LATEST_MS)
    lost = await request_of(world, customer, provider)
    raw = (await answer_to(provider, customer, lost))["renewal"]
    world.later(3 * EPOCH_MS)
    await world.drive(customer.market.renewals.round())
    assert ends(customer, provider) == [provider.market.granted.end_ms(lease_id)] * 2
    renewal = open_signed(raw, Renewal, network=NET, author=provider.id).record
    request = open_signed(renewal.request, RenewalRequest, network=NET, author=customer.id)
    assert renewal.request == lost
    assert request.record.end_ms == customer.one("customer").end_ms
    assert customer.one("customer").used == provider.one("provider").used


@pytest.mark.parametrize(
    "twist",
    [
        lambda request, renewal: (request, replace_(renewal, quantity=request.quantity + 1)),
        lambda request, renewal: (replace_(request, number=0 + 1, lease_id=b"\7" * 32), renewal),
    ],
)
async def test_an_answer_that_does_not_fit_is_not_taken(world, pair, twist):
    customer, provider = pair
    await stored(world, customer, provider)
    world.later(LATEST_MS)

    async def wrong(caller, header, parts):
        raw = header["requests"][0]
        request = open_signed(raw, RenewalRequest, network=NET).record
        renewal = Renewal(request=raw, quantity=request.quantity, renewed_ms=1)
        changed, renewal = twist(request, renewal)
        signed = sign(changed, customer.key, NET).raw
        renewal = replace_(renewal, request=signed)
        return {"answers": [{"renewal": sign(renewal, provider.key, NET).raw}]}, ()

    world.wire.handlers[provider.id]["market.renew"] = wrong
    before = customer.one("customer")
    await world.drive(customer.market.renewals.round())
    assert customer.one("customer") == replace(before, used=customer.one("customer").used)
    assert "renewal" in why(customer)


def replace_(record, **changes):
    return record.model_copy(update=changes)


@pytest.mark.parametrize(
    ("change", "outer"),
    [
        ({"price": 1}, {}),
        ({"quantity_min": 2**40, "quantity": 2**40}, {}),
        ({}, {"quantity": 2**40}),
        ({"provider": b"\5" * 32}, {}),
        ({"customer": b"\5" * 32}, {}),
        ({"quote": b"none"}, {}),
    ],
    ids=lambda item: next(iter(item), "-"),
)
async def test_a_renewal_proves_itself_and_a_false_one_does_not(world, pair, change, outer):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    with pytest.raises(NotFound):
        customer.market.renewal_record(lease_id)
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    raw = customer.market.renewal_record(lease_id)
    assert provider.market.renewal_record(lease_id) == raw
    assert "renewal 1 of lease" in verify_file(raw)
    renewal = open_signed(raw, Renewal, network=NET).record
    request = open_signed(renewal.request, RenewalRequest, network=NET).record
    inner = sign(replace_(request, **change), customer.key, NET).raw
    forged = sign(replace_(renewal, request=inner, **outer), provider.key, NET).raw
    with pytest.raises(XscError):
        verify_file(forged)
    with pytest.raises(XscError):
        verify_file(sign(renewal, customer.key, NET).raw)


# Crashes


class Dying(Memory):
    """Dies at one of its writes, before or after it is on the disk."""

    left = None
    after = False

    def write(self, changes, *, sync):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                if self.after and self.left == -1:
                    super().write(changes, sync=sync)
                raise StoreDamaged("the process is dead")
        super().write(changes, sync=sync)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("who", ["customer", "provider"])
async def test_a_kill_at_every_write_of_a_renewal_loses_nothing_and_pays_once(world, who, after):
    """Each write is the last one of a process; what both come to is what an undisturbed one has."""
    killed = 0
    for number in range(100):
        customer, provider = (world.node(2 * number + 10 + i) for i in (1, 2))
        world.wire.handlers = {node.id: node.market.handlers() for node in (customer, provider)}
        for node in (customer, provider):
            node.state = Dying()
            await node.restart()
        customer.room.storage = 0
        lease_id = await stored(world, customer, provider)
        start_ms = world.clock.now_ms()
        world.later(LATEST_MS)
        victim = customer if who == "customer" else provider
        victim.state.left, victim.state.after = number, after
        try:
            await world.drive(customer.market.settlement.settle_all())
            await world.drive(customer.market.renewals.round())
            await world.drive(customer.market.settlement.settle_all())
        except StoreDamaged:
            pass
        if victim.state.left >= 0:
            break
        killed += 1
        victim.state.left = None
        await customer.restart()
        await provider.restart()
        world.later(RENEWAL_RETRY_MS)
        await world.drive(customer.market.renewals.round())
        await world.drive(customer.market.settlement.settle_all())
        mine, theirs = customer.one("customer"), provider.one("provider")
        assert mine.end_ms == theirs.end_ms > start_ms + STORAGE_LEASE_MS
        epochs = (world.clock.now_ms() - start_ms) // EPOCH_MS + 1
        assert mine.used == theirs.used == epochs * 10 * MIB
        assert mine.due_micro == provider.ledger.settled(lease_id) == theirs.due_micro
    assert killed >= 3


async def test_a_customer_asks_so_often_within_a_time_and_others_as_before(world, pair):
    customer, provider = pair
    other = world.node(3)
    asked = provider.market.handlers()["market.renew"]
    for _ in range(RENEWAL_CALLS_A_PEER_MAX):
        await asked(customer.id, {"requests": []}, ())
    with pytest.raises(RateLimited):
        await asked(customer.id, {"requests": []}, ())
    await asked(other.id, {"requests": []}, ())
    world.later(RENEWAL_CALLS_MS)
    await asked(customer.id, {"requests": []}, ())
