"""A renewal is a new lease: what both agree to, what is refused, and what a crash cannot break."""

from dataclasses import replace

import pytest

from tests.unit.allocation.fakes import Memory
from tests.unit.market.fakes import A_MIB, DISK, NET, RECORDS
from xsc.base.errors import LeaseExhausted, RecordInvalid, StoreDamaged, XscError
from xsc.base.limits import (
    EPOCH_MS,
    MIB,
    RENEWAL_RETRY_MS,
    REQUEST_WINDOW_MS,
    STORAGE_LEASE_IDLE_MS,
    STORAGE_LEASE_MS,
)
from xsc.identity.envelope import open_signed, sign
from xsc.market.lease import due_ms
from xsc.market.pricing import PriceList
from xsc.market.providers import LEASE
from xsc.node.offline.verify import explain_price, verify_file
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.pricing import storage_amount

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


def leases(node, role):
    return {view.lease_id: view for view in node.market.leases() if view.role == role}


def both(customer, provider, field):
    return [
        getattr(node.newest(role), field)
        for node, role in ((customer, "customer"), (provider, "provider"))
    ]


def requests(world):
    return [call for call in world.wire.calls if call[2] == LEASE]


async def rounds(world, node, until_ms, step_ms=DAY_MS):
    """Let time pass in steps, with a look at the leases and a settlement after each."""
    while world.clock.now_ms() < until_ms:
        world.later(min(step_ms, until_ms - world.clock.now_ms()))
        await world.drive(node.market.renewals.round())
        await world.drive(node.market.settlement.settle_all())


def total(node, role, field):
    return sum(getattr(view, field) for view in leases(node, role).values())


def agree(customer, provider):
    """Hold both sides' counts of all leases against each other, and against what is booked."""
    mine, theirs = leases(customer, "customer"), leases(provider, "provider")
    for lease_id in mine.keys() ^ theirs.keys():
        assert not {**mine, **theirs}[lease_id].held_bytes, "only what is over is forgotten"
    for lease_id in mine.keys() & theirs.keys():
        own, view = mine[lease_id], theirs[lease_id]
        assert (view.due_micro, view.held_bytes) == (own.due_micro, own.held_bytes)
    (account,) = [each for each in provider.market.accounts() if each.role == "provider"]
    assert provider.market.owed_micro(account) == 0
    assert provider.ledger.owed(customer.id) == account.settled_micro


async def test_a_lease_is_renewed_between_its_half_and_an_eighth_later(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    start_ms = world.clock.now_ms()
    await rounds(world, customer, start_ms + HALF_MS - 1)
    assert len(requests(world)) == 1
    end_ms = customer.one("customer").end_ms
    await rounds(world, customer, start_ms + LATEST_MS + DAY_MS)
    assert len(requests(world)) == 2
    mine, theirs = both(customer, provider, "end_ms")
    assert mine == theirs
    assert end_ms + HALF_MS <= mine <= end_ms + LATEST_MS + DAY_MS
    assert both(customer, provider, "renews") == [lease_id] * 2
    assert both(customer, provider, "held_bytes") == [10 * MIB] * 2


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


async def test_for_a_year_and_more_both_sides_agree_and_each_hour_is_paid_once(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    seen, dues = 0, {}
    for day in range(400):
        if day % 50 == 10:
            await customer.restart()
        if day % 50 == 30:
            await provider.restart()
        await rounds(world, customer, world.clock.now_ms() + DAY_MS)
        dues |= {key: view.due_micro for key, view in leases(provider, "provider").items()}
        for node in (customer, provider):
            node.market.tidy()
        seen = max(seen, len(leases(provider, "provider")))
    agree(customer, provider)
    assert both(customer, provider, "end_ms")[0] > world.clock.now_ms() + STORAGE_LEASE_MS // 4
    # Each lease is rounded down when it is shown, and all of them once when they are paid.
    assert 0 <= provider.ledger.owed(customer.id) - sum(dues.values()) <= len(dues)
    assert 6 <= len(dues) <= 9
    assert seen == 2, "a lease that is empty ends and is forgotten"


async def test_a_renewal_takes_no_room_that_is_not_there(world, pair):
    """A full host can renew: bytes that it holds already take no further room."""
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    provider.room.stored = provider.room.storage
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    assert both(customer, provider, "renews") == [lease_id] * 2
    assert both(customer, provider, "held_bytes") == [10 * MIB] * 2
    assert provider.market.headroom.free("storage") == 0


async def test_each_lease_has_its_price_from_the_moment_at_which_it_begins(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    assert customer.one("customer").price == 40 * A_MIB
    provider.settings["prices"] = PriceList(20 * A_MIB, 20 * A_MIB)
    await provider.restart()
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    before = leases(customer, "customer")[lease_id].due_micro
    new = customer.newest("customer")
    assert 20 * A_MIB <= new.price == provider.newest("provider").price < 40 * A_MIB
    assert new.start_ms == world.clock.now_ms()
    world.later(48 * EPOCH_MS)
    await world.drive(customer.market.settlement.settle_all())
    assert customer.newest("customer").due_micro == storage_amount(new.price, 48 * 10 * MIB)
    assert leases(customer, "customer")[lease_id].due_micro == before
    agree(customer, provider)


async def test_new_objects_go_on_under_the_new_lease_once_it_has_all(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    new_id = customer.newest("customer").lease_id
    assert await stored(world, customer, provider) == new_id != lease_id


async def test_nothing_new_takes_the_room_of_what_is_to_go_over(world, pair, monkeypatch):
    customer, provider = pair
    old_id = await stored(world, customer, provider)

    async def away(_pairs):
        return ()

    monkeypatch.setattr(customer, "on_renewed", away)
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    renewing = customer.newest("customer")
    assert (renewing.renews, renewing.held_bytes) == (old_id, 0)
    offered = await world.drive(customer.market.buyer.lease_hosts(size_bytes=MIB, count=1))
    assert offered.leases[0].node == provider.id
    assert offered.leases[0].lease_id not in {old_id, renewing.lease_id}


async def test_an_empty_lease_is_not_renewed(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    await customer.market.buyer.used(lease_id, -10 * MIB)
    await rounds(world, customer, world.clock.now_ms() + LATEST_MS + DAY_MS)
    assert len(requests(world)) == 1


# What is refused, and said


def why(customer):
    return customer.market.renewals.ending(STORAGE_LEASE_MS)[0].reason


def is_renewed(customer, provider):
    return both(customer, provider, "held_bytes") == [10 * MIB] * 2 and all(
        both(customer, provider, "renews")
    )


async def test_debt_refuses_a_renewal_until_it_is_paid(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.ledger.limit = 0
    await rounds(world, customer, world.clock.now_ms() + LATEST_MS)
    assert "may still owe" in why(customer)
    assert customer.one("customer").end_ms < world.clock.now_ms() + HALF_MS
    provider.ledger.limit = 10**12
    world.later(RENEWAL_RETRY_MS)
    await world.drive(customer.market.renewals.round())
    assert is_renewed(customer, provider)


async def test_a_host_that_is_leaving_renews_nothing(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.leaving.add(provider.id)
    await rounds(world, customer, world.clock.now_ms() + LATEST_MS)
    assert "leaving" in why(customer)
    assert customer.one("customer").end_ms < world.clock.now_ms() + HALF_MS


async def test_little_credit_renews_what_is_held_and_gives_up_the_rest(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    world.later(LATEST_MS)
    await world.drive(customer.market.settlement.settle_all())
    provider.ledger.limit = provider.ledger.owed(customer.id) + storage_amount(10 * A_MIB, 20 * MIB)
    await world.drive(customer.market.renewals.round())
    assert is_renewed(customer, provider)
    (quantity,) = set(both(customer, provider, "quantity"))
    assert 20 * MIB <= quantity < 21 * MIB


async def test_with_less_credit_a_part_is_renewed_and_the_rest_stays_for_its_term(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(LATEST_MS)
    await world.drive(customer.market.settlement.settle_all())
    provider.ledger.limit = provider.ledger.owed(customer.id) + storage_amount(10 * A_MIB, 4 * MIB)
    await world.drive(customer.market.renewals.round())
    new = customer.newest("customer")
    assert 4 * MIB <= new.held_bytes < 5 * MIB
    assert new.held_bytes == new.quantity
    old = leases(customer, "customer")[lease_id]
    assert old.held_bytes + new.held_bytes == 10 * MIB
    assert "only a part" in customer.market.renewals.end_of(lease_id).reason
    provider.ledger.limit = 10**12
    world.later(RENEWAL_RETRY_MS)
    await world.drive(customer.market.renewals.round())
    assert leases(customer, "customer")[lease_id].held_bytes == 0
    assert total(customer, "customer", "held_bytes") == 10 * MIB
    await world.drive(customer.market.settlement.settle_all())
    agree(customer, provider)


async def test_refusals_are_asked_again_after_hours_and_silence_at_each_look(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.ledger.limit = 0
    world.later(LATEST_MS)
    for _ in range(3):
        await world.drive(customer.market.renewals.round())
    assert len(requests(world)) == 2
    world.later(RENEWAL_RETRY_MS)
    world.wire.down.add(provider.id)
    await world.drive(customer.market.renewals.round())
    assert why(customer) == "the host is silent"
    assert len(requests(world)) == 2
    world.wire.down.clear()
    provider.ledger.limit = 10**12
    await world.drive(customer.market.renewals.round())
    assert is_renewed(customer, provider)


async def test_more_than_the_own_reserve_is_not_paid(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.settings["prices"] = PriceList(41 * A_MIB, 41 * A_MIB)
    await provider.restart()
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    assert "above storage_price_max_gib_hour" in why(customer)
    assert len(requests(world)) == 1


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
    provider.drops(lease_id, 10 * MIB)
    world.later(RENEWAL_RETRY_MS)
    await world.drive(customer.market.renewals.round())
    assert why(customer) == "nothing is held under the lease that it renews"


async def test_what_ended_can_be_renewed_while_it_is_kept(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    world.later(STORAGE_LEASE_MS + 20 * DAY_MS)
    await world.drive(customer.market.renewals.round())
    assert is_renewed(customer, provider)
    assert both(customer, provider, "end_ms") == [world.clock.now_ms() + STORAGE_LEASE_MS] * 2
    await world.drive(customer.market.settlement.settle_all())
    agree(customer, provider)


async def test_what_was_kept_between_the_end_of_a_lease_and_its_renewal_is_paid(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    gap = storage_amount(40 * A_MIB, 10 * MIB * (20 * DAY_MS // EPOCH_MS))
    world.later(STORAGE_LEASE_MS)
    await world.drive(customer.market.settlement.settle_all())
    before = provider.ledger.owed(customer.id)
    world.later(20 * DAY_MS)
    await world.drive(customer.market.renewals.round())
    await world.drive(customer.market.settlement.settle_all())
    assert provider.ledger.owed(customer.id) - before >= gap


@pytest.mark.parametrize("late_ms", [0, STORAGE_LEASE_MS // 4])
async def test_a_renewal_reserves_nothing_and_takes_what_is_free(world, pair, late_ms):
    customer, provider = pair
    await stored(world, customer, provider)
    provider.room.stored = provider.room.storage - 3 * MIB
    world.later(LATEST_MS + late_ms)
    await world.drive(customer.market.renewals.round())
    lease_id = provider.newest("provider").lease_id
    assert provider.market.headroom.free("storage") == 3 * MIB
    with pytest.raises(LeaseExhausted):
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
    (account,) = provider.market.accounts()
    assert provider.market.owed_micro(account) > 0
    paid = storage_amount(40 * A_MIB, 10 * MIB * (LATEST_MS // EPOCH_MS))
    room = leases(provider, "provider")[lease_id].quantity
    assert account.settled_micro <= paid + storage_amount(40 * A_MIB, room)


# What is asked


async def request_of(world, customer, provider, lease_id, /, **change):
    """Return a signed request as the customer would make it, but for some fields."""
    quote = (
        await provider.market.handlers()["market.quote"](customer.id, {"kind": "storage"}, ())
    )[0]["quote"]
    entry = provider.market.store.get("provider", lease_id)
    start_ms = world.clock.now_ms()
    fields = {
        "lease_id": b"\x07" * 32,
        "provider": provider.id,
        "customer": customer.id,
        "kind": "storage",
        "quote": quote,
        "quantity": entry.terms.quantity,
        "quantity_min": 1,
        "price": 40 * A_MIB,
        "start_ms": start_ms,
        "end_ms": start_ms + STORAGE_LEASE_MS,
        "renews": lease_id,
    } | change
    return sign(LeaseRequest(**fields), customer.key, NET).raw


async def answer_to(provider, caller, request):
    header, _ = await provider.market.handlers()[LEASE](caller.id, {"request": request}, ())
    return header["lease"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"start_ms": 5}, "begin now"),
        ({"end_ms": 2**60}, "longer"),
        ({"end_ms": 2}, "too soon after"),
        ({"quantity": 2**40}, "more than the one"),
        ({"renews": b"\x05" * 32}, "no such lease"),
        ({"kind": "compute"}, ""),
        ({"quote": b"no quote"}, ""),
        ({"price": 0}, "below the 10240"),
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
    raw = await request_of(world, customer, provider, lease_id, **change)
    with pytest.raises(XscError, match=reason or None):
        await answer_to(provider, customer, raw)
    assert provider.one("provider") == before
    fit = await request_of(world, customer, provider, lease_id)
    await answer_to(provider, customer, fit)


async def test_only_its_customer_renews_a_lease_and_what_is_held_goes_over_once(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(LATEST_MS)
    thief = world.node(3)
    raw = await request_of(world, thief, provider, lease_id)
    with pytest.raises(RecordInvalid, match="another customer"):
        await answer_to(provider, thief, raw)
    raw = await request_of(world, customer, provider, lease_id)
    first = await answer_to(provider, customer, raw)
    assert await answer_to(provider, customer, raw) == first, "a replay gets the same lease"
    granted = provider.market.granter
    new_id = b"\x07" * 32
    for old, new, caller in (
        (new_id, lease_id, customer),
        (lease_id, lease_id, customer),
        (b"\x05" * 32, new_id, customer),
        (lease_id, new_id, thief),
    ):
        with pytest.raises(LeaseExhausted):
            granted.admit_renewal(old, new, caller.id, MIB)
    for _ in range(2):
        await provider.renew(lease_id, new_id, customer.id)
    assert provider.newest("provider").held_bytes == 10 * MIB
    assert total(provider, "provider", "held_bytes") == 10 * MIB


async def test_the_first_half_of_a_term_is_not_renewed(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(HALF_MS - REQUEST_WINDOW_MS - 1)
    early = await request_of(world, customer, provider, lease_id)
    with pytest.raises(RecordInvalid, match="first half"):
        await answer_to(provider, customer, early)


async def test_a_lease_whose_answer_was_lost_is_used_and_one_that_stays_empty_ends(world, pair):
    customer, provider = pair
    lease_id = await stored(world, customer, provider)
    world.later(LATEST_MS)
    lost = await request_of(world, customer, provider, lease_id)
    await answer_to(provider, customer, lost)
    await world.drive(customer.market.renewals.round())
    assert is_renewed(customer, provider) or len(leases(provider, "provider")) == 3
    world.later(STORAGE_LEASE_IDLE_MS)
    provider.market.tidy()
    views = leases(provider, "provider")
    assert views[b"\x07" * 32].status == "expired"
    assert total(provider, "provider", "held_bytes") == 10 * MIB


async def test_a_lease_that_its_host_took_back_empty_is_followed_by_another(
    world, pair, monkeypatch
):
    """Its answer came, and the customer was away before the bytes could go over."""
    customer, provider = pair
    await stored(world, customer, provider)
    world.later(LATEST_MS)

    async def away(pairs):
        """Have no host answer."""
        return {old_id for _, old_id, _ in pairs}

    with monkeypatch.context() as patch:
        patch.setattr(customer, "on_renewed", away)
        await world.drive(customer.market.renewals.round())
    empty = customer.newest("customer").lease_id
    world.later(STORAGE_LEASE_IDLE_MS)
    for node in (customer, provider):
        node.market.tidy()
    assert leases(provider, "provider")[empty].status == "expired"
    assert leases(customer, "customer")[empty].status == "open", "bytes may have gone over"
    assert customer.market.renewals.is_renewing(customer.newest("customer").renews)
    for _ in range(2):
        await world.drive(customer.market.renewals.round())
        world.later(EPOCH_MS)
    assert leases(customer, "customer")[empty].status == "expired"
    assert is_renewed(customer, provider)
    assert customer.newest("customer").lease_id != empty
    assert not customer.market.renewals.is_renewing(customer.newest("customer").renews)


async def test_a_lease_that_renews_another_proves_itself(world, pair):
    customer, provider = pair
    await stored(world, customer, provider)
    world.later(LATEST_MS)
    await world.drive(customer.market.renewals.round())
    raw = customer.market.lease_record(customer.newest("customer").lease_id)
    assert provider.market.lease_record(provider.newest("provider").lease_id) == raw
    assert "renewing lease" in verify_file(raw)
    assert "a renewal costs" in explain_price(raw).why
    lease = open_signed(raw, Lease, network=NET).record
    request = open_signed(lease.request, LeaseRequest, network=NET).record
    forged = sign(request.model_copy(update={"renews": None}), provider.key, NET).raw
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
        held = {key: provider.kept(DISK, key) for key in leases(provider, "provider")}
        provider.market.granter.reconcile(held)
        known = {key: customer.kept(RECORDS, key) for key in leases(customer, "customer")}
        customer.market.buyer.reconcile(known, set())
        world.later(RENEWAL_RETRY_MS)
        await world.drive(customer.market.renewals.round())
        world.later(EPOCH_MS)
        await world.drive(customer.market.settlement.settle_all())
        assert is_renewed(customer, provider)
        assert both(customer, provider, "end_ms")[1] > start_ms + STORAGE_LEASE_MS
        agree(customer, provider)
    assert killed >= 6
