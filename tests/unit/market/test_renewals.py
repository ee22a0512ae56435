"""A renewal gives a lease its next term: what both agree to, what is refused, and each crash."""

import pytest

from tests.unit.allocation.fakes import Memory
from tests.unit.market.fakes import A_MIB, DISK, NET, RECORDS, ask, granted_on, request_of
from xsc.base.errors import (
    RecordInvalid,
    SpaceExhausted,
    StoreDamaged,
    XscError,
)
from xsc.base.ids import short
from xsc.base.limits import EPOCH_MS, LEASE_WARNING_MS, MIB, REQUEST_WINDOW_MS, STORAGE_LEASE_MS
from xsc.identity.envelope import open_signed, sign
from xsc.market import pricing
from xsc.market.lease import due_ms
from xsc.market.pricing import PriceList
from xsc.market.providers import LEASE
from xsc.market.signing import RENEWAL_RETRY_MS
from xsc.node.offline.verify import explain_price, verify_file
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.pricing import amount

DAY_MS = 86_400_000
HALF_MS = STORAGE_LEASE_MS // 2
LATEST_MS = HALF_MS + STORAGE_LEASE_MS // 8


async def stored(world, customer, provider, size=10 * MIB):
    """Return a lease with bytes under it."""
    offered = await world.drive(customer.market.buyer.lease_hosts(size_bytes=size, count=1))
    (host,) = offered.leases
    provider.stores(host.lease_id, customer.id, size)
    await customer.market.buyer.used(host.lease_id, size)
    customer.keep(RECORDS, {host.lease_id: customer.kept(RECORDS, host.lease_id) + size})
    await world.drive()
    return host.lease_id


def both(customer, provider, field):
    return [
        getattr(holder, field)
        for node, role in ((customer, "customer"), (provider, "provider"))
        for holder in (node.newest(role).terms, node.one(role).use, node.one(role))
        if hasattr(holder, field)
    ]


def ends_in(customer, provider, world):
    """Return in how many milliseconds the lease ends, as both sides say."""
    (end_ms,) = {*both(customer, provider, "end_ms")}
    return end_ms - world.clock.now_ms()


def requests(world):
    return [call for call in world.wire.calls if call[2] == LEASE]


async def rounds(world, node, until_ms, step_ms=DAY_MS):
    """Let time pass in steps, with a look at the leases and a settlement after each."""
    while world.clock.now_ms() < until_ms:
        world.later(min(step_ms, until_ms - world.clock.now_ms()))
        await world.drive(node.market.signing.look())
        await world.drive(node.market.settlement.settle_all())


def agree(customer, provider):
    """Hold both sides' counts of a lease against each other, and against what is booked."""
    own, view = customer.one("customer"), provider.one("provider")
    assert (own.entry.raw, own.due_micro) == (view.entry.raw, view.due_micro)
    assert own.use.held_bytes == view.use.held_bytes
    (account,) = [each for each in provider.market.store.accounts() if each.role == "provider"]
    assert provider.market.owed_micro(account) == 0
    assert provider.ledger.owed(customer.id) == account.settled_micro == view.due_micro


async def test_a_lease_is_renewed_between_its_half_and_an_eighth_later(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    start_ms = world.clock.now_ms()
    await rounds(world, customer, start_ms + HALF_MS - 1)
    assert len(requests(world)) == 1
    await rounds(world, customer, start_ms + LATEST_MS + DAY_MS)
    assert len(requests(world)) == 2
    left_ms = ends_in(customer, provider, world)
    assert STORAGE_LEASE_MS - LATEST_MS + HALF_MS - DAY_MS <= left_ms <= STORAGE_LEASE_MS
    assert both(customer, provider, "lease_id") == [lease_id] * 2
    assert both(customer, provider, "held_bytes") == [10 * MIB] * 2


async def test_leases_are_due_at_moments_of_their_own_that_a_restart_does_not_change(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    (entry,) = customer.market.store.all("customer")
    moments = {
        due_ms(entry.terms.model_copy(update={"lease_id": bytes([n]) * 32})) for n in range(64)
    }
    assert len(moments) == 64
    assert max(moments) - min(moments) > STORAGE_LEASE_MS // 16
    before = due_ms(entry.terms)
    await customer.restart()
    (entry,) = customer.market.store.all("customer")
    assert due_ms(entry.terms) == before


async def test_for_a_year_and_more_both_sides_agree_and_each_hour_is_paid_once(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    for day in range(400):
        if day % 50 == 10:
            await customer.restart()
        if day % 50 == 30:
            await provider.restart()
        await rounds(world, customer, world.clock.now_ms() + DAY_MS)
        for node in (customer, provider):
            node.market.tidy()
    agree(customer, provider)
    assert both(customer, provider, "lease_id") == [lease_id] * 2
    assert ends_in(customer, provider, world) > STORAGE_LEASE_MS // 4
    assert 7 <= len(requests(world)) <= 10
    # The auction paid it at most, and what it posts since is less.
    days = amount("storage", 1, 400 * 24 * 10 * MIB)
    assert days * 10 * A_MIB < provider.ledger.owed(customer.id) < days * 40 * A_MIB


async def test_a_renewal_takes_no_room_that_is_not_there(world, pair):
    """A full host can renew: bytes that it holds already take no further room."""
    customer, provider = pair
    await stored(world, customer, provider)
    provider.room.stored = provider.room.storage
    world.later(LATEST_MS)
    await world.drive(customer.market.signing.look())
    assert ends_in(customer, provider, world) == STORAGE_LEASE_MS
    assert both(customer, provider, "held_bytes") == [10 * MIB] * 2
    assert provider.market.headroom.free("storage") == 0


async def test_each_lease_has_its_price_from_the_moment_at_which_it_begins(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    assert both(customer, provider, "price") == [40 * A_MIB] * 2
    provider.settings["prices"] = PriceList(20 * A_MIB, 20 * A_MIB)
    await provider.restart()
    world.later(LATEST_MS)
    await world.drive(customer.market.signing.look())
    before = customer.one("customer").due_micro
    assert both(customer, provider, "price") == [20 * A_MIB] * 2
    world.later(48 * EPOCH_MS)
    await world.drive(customer.market.settlement.settle_all())
    more = customer.one("customer").due_micro - before
    assert more == amount("storage", 20 * A_MIB, 48 * 10 * MIB)
    agree(customer, provider)


async def test_new_objects_go_on_under_a_lease_that_was_renewed(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(LATEST_MS)
    await world.drive(customer.market.signing.look())
    assert await stored(world, customer, provider) == lease_id


async def test_an_empty_lease_is_not_renewed(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    await customer.market.buyer.used(lease_id, -10 * MIB)
    await rounds(world, customer, world.clock.now_ms() + LATEST_MS + DAY_MS)
    assert len(requests(world)) == 1


# What is refused, and said


def why(customer):
    return customer.market.signing.ending(STORAGE_LEASE_MS)[0].reason


def is_renewed(customer, provider):
    return both(customer, provider, "held_bytes") == [10 * MIB] * 2 and all(
        end_ms > customer.world.clock.now_ms() + STORAGE_LEASE_MS - DAY_MS
        for end_ms in both(customer, provider, "end_ms")
    )


async def test_debt_refuses_a_renewal_until_it_is_paid(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.ledger.limit = 0
    await rounds(world, customer, world.clock.now_ms() + LATEST_MS)
    assert "may still come to be owed" in why(customer)
    assert ends_in(customer, provider, world) < HALF_MS
    # What is held is renewed whole or not at all.
    await world.drive(customer.market.settlement.settle_all())
    hour = amount("storage", 10 * A_MIB, 10 * MIB)
    provider.ledger.limit = provider.ledger.owed(customer.id) + hour - 1
    world.later(RENEWAL_RETRY_MS)
    await world.drive(customer.market.signing.look())
    assert not is_renewed(customer, provider)
    provider.ledger.limit = 10**12
    world.later(RENEWAL_RETRY_MS)
    await world.drive(customer.market.signing.look())
    assert is_renewed(customer, provider)


async def test_a_host_that_is_leaving_renews_nothing(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.leaving.add(provider.id)
    await rounds(world, customer, world.clock.now_ms() + LATEST_MS)
    assert "leaving" in why(customer)
    assert ends_in(customer, provider, world) < HALF_MS


async def test_refusals_are_asked_again_after_hours_and_silence_at_each_look(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.ledger.limit = 0
    world.later(LATEST_MS)
    for _ in range(3):
        await world.drive(customer.market.signing.look())
    assert len(requests(world)) == 2
    world.later(RENEWAL_RETRY_MS)
    world.wire.down.add(provider.id)
    await world.drive(customer.market.signing.look())
    assert why(customer) == "the host is silent"
    assert len(requests(world)) == 2
    world.wire.down.clear()
    provider.ledger.limit = 10**12
    await world.drive(customer.market.signing.look())
    assert is_renewed(customer, provider)


async def test_what_ends_soon_is_logged_once_a_day(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.leaving.add(provider.id)
    end_ms = customer.one("customer").entry.terms.end_ms
    world.later(end_ms - LEASE_WARNING_MS - world.clock.now_ms() - 1)
    for later_ms, times in ((0, 0), (1, 1), (DAY_MS - 1, 1), (1, 2)):
        world.later(later_ms)
        await world.drive(customer.market.signing.look())
        said = [fields for event, fields in customer.log.lines if event == "market.leases_end_soon"]
        assert len(said) == times
    assert (said[1]["peers"], said[1]["leases"]) == ([short(provider.id)], 1)
    assert (said[1]["first"], len(said[1]["reasons"])) == ("in 29d", 1)
    assert "leaving" in said[1]["reasons"][0]


async def test_more_than_the_own_reserve_is_not_paid(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.settings["prices"] = PriceList(41 * A_MIB, 41 * A_MIB)
    await provider.restart()
    world.later(LATEST_MS)
    await world.drive(customer.market.signing.look())
    assert "above what is paid" in why(customer)
    assert len(requests(world)) == 1


async def test_a_host_that_lost_the_lease_or_what_lay_under_it_says_so(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(LATEST_MS)
    provider.drops(lease_id, 10 * MIB)
    await world.drive(customer.market.signing.look())
    assert why(customer) == "nothing is held under the lease"
    provider.state = Memory()
    await provider.restart()
    await world.drive(customer.market.settlement.settle_due())
    world.later(RENEWAL_RETRY_MS)
    await world.drive(customer.market.signing.look())
    assert "signed that it does not know" in customer.market.signing.end_of(lease_id).reason
    assert customer.denied == [{lease_id}]
    assert not provider.market.leases()


async def test_what_is_asked_again_of_a_host_that_lost_it_is_not_paid(world, pair):
    """It grants nothing anew under the lease's id, and its count says that it has none."""
    customer, provider = pair
    await stored(world, customer, provider)
    world.later(LATEST_MS)
    await world.drive(customer.market.settlement.settle_all())
    paid = provider.ledger.owed(customer.id)
    provider.state = Memory()
    await provider.restart()
    await world.drive(customer.market.signing.look())
    world.later(DAY_MS)
    await world.drive(customer.market.settlement.settle_all())
    assert len(customer.denied) == 1
    assert not provider.market.leases()
    assert provider.ledger.owed(customer.id) == paid


async def test_what_ended_can_be_renewed_while_it_is_kept(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    world.later(STORAGE_LEASE_MS + 20 * DAY_MS)
    await world.drive(customer.market.signing.look())
    assert is_renewed(customer, provider)
    assert ends_in(customer, provider, world) == STORAGE_LEASE_MS
    await world.drive(customer.market.settlement.settle_all())
    agree(customer, provider)


async def test_what_was_kept_between_the_end_of_a_lease_and_its_renewal_is_paid(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    gap = amount("storage", 40 * A_MIB, 10 * MIB * (20 * DAY_MS // EPOCH_MS))
    world.later(STORAGE_LEASE_MS)
    await world.drive(customer.market.settlement.settle_all())
    before = provider.ledger.owed(customer.id)
    world.later(20 * DAY_MS)
    await world.drive(customer.market.signing.look())
    await world.drive(customer.market.settlement.settle_all())
    assert provider.ledger.owed(customer.id) - before >= gap


@pytest.mark.parametrize("late_ms", [0, STORAGE_LEASE_MS // 4])
async def test_a_renewal_reserves_nothing_and_takes_what_is_free(world, pair, late_ms):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.room.stored = provider.room.storage - 3 * MIB
    world.later(LATEST_MS + late_ms)
    await world.drive(customer.market.signing.look())
    lease_id = provider.newest("provider").id
    assert provider.market.headroom.free("storage") == 3 * MIB
    with pytest.raises(SpaceExhausted):
        provider.stores(lease_id, customer.id, 3 * MIB + 1)
    provider.stores(lease_id, customer.id, 3 * MIB)


async def test_a_count_that_is_too_high_is_lowered_to_the_hosts(world, pair):
    """The host deleted a part, and its answer got lost."""
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(1)
    provider.drops(lease_id, 9 * MIB)
    await rounds(world, customer, world.clock.now_ms() + LATEST_MS)
    assert both(customer, provider, "held_bytes") == [MIB] * 2
    agree(customer, provider)


async def test_what_a_host_counts_beyond_what_follows_is_not_paid_and_stays_owed(world, pair):
    """A put whose end the customer never heard of: the lease is renewed, the debt shows."""
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    provider.stores(lease_id, customer.id, MIB)
    await rounds(world, customer, world.clock.now_ms() + LATEST_MS)
    (account,) = provider.market.store.accounts()
    assert provider.market.owed_micro(account) > 0
    paid = amount("storage", 40 * A_MIB, 10 * MIB * (LATEST_MS // EPOCH_MS))
    # Of what came it knows nothing but that two clocks can differ by a minute.
    assert account.settled_micro <= paid + amount("storage", 40 * A_MIB, 10 * MIB)


# What is asked


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"start_ms": 5}, "begin now"),
        ({"end_ms": 2**60}, "longer"),
        ({"end_ms": 2}, "too soon after"),
        ({"level": 2**40, "need": b"n" * 16}, "another need"),
        ({"kind": "compute"}, "another kind"),
        ({"slot": b"x" * 16}, "another slot"),
        ({"tier": "mutual"}, "another tier"),
        ({"price": 0}, "this node asks 10240"),
    ],
    ids=lambda item: next(iter(item)) if isinstance(item, dict) else "",
)
async def test_a_request_that_does_not_fit_changes_nothing(world, pair, change, reason):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(LATEST_MS)
    await world.drive(customer.market.settlement.settle_all())
    entry = provider.market.store.get("provider", lease_id)
    start_ms = world.clock.now_ms()
    known = {
        "start_ms": lambda by: start_ms + by if by == 1 else start_ms + by * EPOCH_MS,
        "end_ms": lambda by: entry.terms.end_ms + EPOCH_MS - 1 if by == 2 else start_ms + by,
    }
    change = {key: known[key](value) if key in known else value for key, value in change.items()}
    before = provider.one("provider")
    with pytest.raises(XscError, match=reason):
        await ask(world, customer, provider, lease_id, **change)
    assert provider.one("provider") == before
    await ask(world, customer, provider, lease_id)
    assert provider.one("provider") != before


async def test_only_its_customer_renews_a_lease(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(LATEST_MS)
    with pytest.raises(RecordInvalid, match="another customer"):
        await ask(world, world.node(3), provider, lease_id)
    raw = request_of(world, customer, provider, lease_id=lease_id)
    first = await granted_on(customer, provider, raw)
    for _ in range(2):
        assert await granted_on(customer, provider, raw) == first, "a replay gets the same lease"
        world.later(1)
        raw = request_of(world, customer, provider, lease_id=lease_id)


async def test_the_first_half_of_a_term_is_not_renewed(world, pair):
    """The answer to one that comes early is the present lease."""
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    before = provider.newest("provider").raw
    world.later(HALF_MS - REQUEST_WINDOW_MS - 1)
    early = request_of(world, customer, provider, lease_id=lease_id)
    assert await granted_on(customer, provider, early) == before
    assert provider.newest("provider").raw == before


async def test_a_lease_of_another_term_than_was_asked_for_is_not_taken(world, pair):
    """Where a provider has it still, or gives one that this customer did not sign for."""
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    (host,) = customer.market.store.all("customer")
    before, honest = host.raw, world.wire.handlers[provider.id]
    world.later(LATEST_MS)
    thief = request_of(world, world.node(3), provider, lease_id=lease_id)
    foreign = sign(Lease(request=thief, level=0), provider.key, NET)
    for raw in (before, foreign.raw, b"no lease"):

        async def answer(*_, raw=raw):
            return {"lease": raw}, ()

        world.wire.handlers[provider.id] = honest | {LEASE: answer}
        await world.drive(customer.market.signing.look())
        world.later(RENEWAL_RETRY_MS)
        assert customer.newest("customer").raw == before


async def test_a_lease_that_was_renewed_proves_itself(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    world.later(LATEST_MS)
    await world.drive(customer.market.signing.look())
    why_it_costs = pricing.why(customer.newest("customer").terms)
    raw = customer.market.lease_record(customer.newest("customer").id)
    assert provider.market.lease_record(provider.newest("provider").id) == raw
    assert verify_file(raw)
    assert explain_price(raw) == (customer.newest("customer").terms, why_it_costs)
    lease = open_signed(raw, Lease, network=NET).record
    request = open_signed(lease.request, LeaseRequest, network=NET).record
    forged = sign(request.model_copy(update={"price": 2**40}), provider.key, NET).raw
    with pytest.raises(XscError):
        verify_file(sign(lease.model_copy(update={"request": forged}), provider.key, NET).raw)


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
        await stored(world, customer, provider)
        start_ms = world.clock.now_ms()
        world.later(LATEST_MS)
        victim = customer if who == "customer" else provider
        victim.state.left, victim.state.after = number, after
        try:
            await world.drive(customer.market.settlement.settle_all())
            await world.drive(customer.market.signing.look())
            await world.drive(customer.market.settlement.settle_all())
        except StoreDamaged:
            pass
        if victim.state.left >= 0:
            break
        killed += 1
        victim.state.left = None
        await customer.restart()
        await provider.restart()
        held = {e.id: provider.kept(DISK, e.id) for e in provider.market.store.all("provider")}
        provider.market.granter.reconcile(held)
        known = {e.id: customer.kept(RECORDS, e.id) for e in customer.market.store.all("customer")}
        customer.market.buyer.reconcile(known, set())
        world.later(RENEWAL_RETRY_MS)
        await world.drive(customer.market.signing.look())
        world.later(EPOCH_MS)
        await world.drive(customer.market.settlement.settle_all())
        assert is_renewed(customer, provider)
        assert both(customer, provider, "end_ms")[1] > start_ms + STORAGE_LEASE_MS
        agree(customer, provider)
    assert killed >= 5
