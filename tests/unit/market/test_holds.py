"""What is granted and not drawn is billed, by both sides alike, and never twice."""

from dataclasses import replace

import pytest

from tests.unit.market.fakes import A_STEP, NET, RATE
from tests.unit.market.test_entitlements import DAY_MS, computing, entitle, leased, three
from xsc.base.errors import RateLimited, XscError
from xsc.base.limits import (
    COMPUTE_LEASE_MS,
    EPOCH_MS,
    HOLD_DIFFERENCE_PART,
    HOLD_TOLERANCE_MS,
    PRICE_FUEL,
    SLOT_STEP_FUEL,
    STORAGE_LEASE_IDLE_MS,
)
from xsc.base.limits import SLOT_STEP_BYTES as STEP
from xsc.db.memory import MemoryKeyValue
from xsc.identity.envelope import open_signed, sign
from xsc.market import hold as holding
from xsc.market.lease import HOLD_MARK, check_request
from xsc.market.settlement import SETTLE
from xsc.terms.lease import LeaseRequest
from xsc.terms.quote import Quote
from xsc.terms.slot import NeedSlot
from xsc.terms.voucher import Voucher

__all__ = ["three"]


async def settled(world, *nodes):
    """Count what is held, and pay it."""
    for node in nodes:
        node.market.tidy()
    for node in nodes:
        await world.drive(node.market.settlement.settle_all())


def due(*nodes):
    return [(view.due_micro, view.settled_micro) for view in nodes]


async def test_what_is_held_undrawn_is_paid_at_its_price_an_epoch(world, three):
    holder, _, provider = three
    entitle(world, holder, provider, 80, price=8 * A_STEP)
    await settled(world, holder, provider)
    for hours in range(1, 4):
        world.later(EPOCH_MS)
        await settled(world, holder, provider)
        both = holder.hold("customer"), provider.hold("provider")
        assert due(*both) == [(80 * 8 * hours,) * 2] * 2
        assert {view.status for view in both} == {"undrawn"}
        assert {(view.price, view.quantity) for view in both} == {(8 * A_STEP, 80 * STEP)}


@pytest.mark.parametrize("hours", [1, 24])
async def test_compute_that_is_held_costs_what_its_rate_would_run(world, three, hours):
    holder, _, provider = three
    now_ms = world.clock.now_ms()
    whole = {"kind": "compute", "window": (now_ms, now_ms + hours * EPOCH_MS), "price": 5}
    entitle(world, holder, provider, 400, **whole)
    await settled(world, holder, provider)
    world.later(EPOCH_MS)
    await settled(world, holder, provider)
    paid = 5 * 400 * SLOT_STEP_FUEL * 3_600 // PRICE_FUEL
    assert paid == 72_000
    assert due(holder.hold("customer"), provider.hold("provider")) == [(paid, paid)] * 2


async def test_what_is_used_is_its_lease_s_and_what_is_not_is_billed_on(world, three):
    holder, _, provider = three
    entitle(world, holder, provider, 80, price=8 * A_STEP)
    await settled(world, holder, provider)
    world.later(EPOCH_MS)
    host = await leased(world, holder, provider, 60 * STEP)
    await settled(world, holder, provider)
    # Kept free under an empty lease it costs the same.
    world.later(STORAGE_LEASE_IDLE_MS // 2)
    await settled(world, holder, provider)
    idle = 80 * 8 * (EPOCH_MS + STORAGE_LEASE_IDLE_MS // 2) // EPOCH_MS
    assert due(holder.hold("customer"), provider.hold("provider")) == [(idle, idle)] * 2
    provider.stores(host.lease_id, holder.id, 60 * STEP)
    await world.drive(holder.market.taken.used(host.lease_id, 60 * STEP))
    await settled(world, holder, provider)
    world.later(EPOCH_MS // 2)
    await settled(world, holder, provider)
    more = idle + 20 * 8 // 2
    assert due(holder.hold("customer"), provider.hold("provider")) == [(more, more)] * 2
    assert provider.one("provider").due_micro == 60 * 8


async def test_storage_costs_from_its_grant_also_before_its_need_begins(world, three):
    holder, _, provider = three
    made = entitle(world, holder, provider, 80, price=8 * A_STEP)
    for nodes in (holder.received, provider.granted):
        nodes.clear()
        now_ms = world.clock.now_ms()
        nodes.append(replace(made, window=(now_ms + 2 * EPOCH_MS, made.window[1])))
    for _ in range(3):
        await settled(world, holder, provider)
        world.later(EPOCH_MS // 2)
    await settled(world, holder, provider)
    assert due(holder.hold("customer"), provider.hold("provider")) == [(960, 960)] * 2


async def test_empty_leases_hold_nothing_for_less(world, three):
    holder, _, provider = three
    entitle(world, holder, provider, 80, price=8 * A_STEP)
    await settled(world, holder, provider)
    for _ in range(6):
        await leased(world, holder, provider, 80 * STEP)
        world.later(STORAGE_LEASE_IDLE_MS)
        await settled(world, holder, provider)
    assert due(holder.hold("customer"), provider.hold("provider")) == [(640, 640)] * 2


async def test_what_lapses_or_is_withdrawn_costs_nothing_more_and_is_settled(world, three):
    holder, _, provider = three
    made = entitle(
        world, holder, provider, 80, price=8 * A_STEP, until_ms=world.clock.now_ms() + EPOCH_MS
    )
    await settled(world, holder, provider)
    world.later(3 * EPOCH_MS)
    await settled(world, holder, provider)
    assert due(holder.hold("customer"), provider.hold("provider")) == [(640, 640)] * 2
    assert {view.status for view in holder.market.leases()} == {"settled"}
    holder.received.remove(made)
    provider.granted.remove(made)
    later = replace(made, need=b"o" * 16, granted_ms=world.clock.now_ms(), until_ms=2**60)
    holder.received.append(later)
    provider.granted.append(later)
    await settled(world, holder, provider)
    world.later(EPOCH_MS // 4)
    provider.granted.remove(later)
    holder.received.remove(later)
    for _ in range(3):
        await settled(world, holder, provider)
        world.later(HOLD_TOLERANCE_MS)
    assert {view.status for view in holder.market.leases()} == {"settled"}
    assert sum(view.settled_micro for view in provider.market.leases()) == 160
    for _ in range(3):
        await settled(world, holder, provider)
        world.later(EPOCH_MS)
    assert holder.market.leases() == provider.market.leases() == []


@pytest.mark.parametrize("pieces", [2, 5, 60])
async def test_a_hold_that_is_renewed_costs_what_holding_costs(world, three, pieces):
    holder, _, provider = three
    made = entitle(world, holder, provider, 80, price=9 * A_STEP)
    await settled(world, holder, provider)
    for _ in range(pieces):
        world.later(EPOCH_MS // pieces)
        renewed = replace(
            made,
            granted_ms=world.clock.now_ms(),
            until_ms=world.clock.now_ms() + DAY_MS,
            clearing=bytes([pieces]) * 32,
        )
        for of in (holder.received, provider.granted):
            of[:] = [renewed]
        await settled(world, holder, provider)
    assert due(holder.hold("customer"), provider.hold("provider")) == [(720, 720)] * 2


async def test_a_need_that_is_declared_anew_costs_what_holding_costs(world, three):
    holder, _, provider = three
    made = entitle(world, holder, provider, 80, price=9 * A_STEP)
    await settled(world, holder, provider)
    for number in range(6):
        world.later(EPOCH_MS // 6)
        now_ms = world.clock.now_ms()
        anew = replace(made, need=bytes([number]) * 16, granted_ms=now_ms)
        for of in (holder.received, provider.granted):
            of[:] = [anew]
        await settled(world, holder, provider)
    assert sum(view.settled_micro for view in provider.market.leases()) == 720


async def test_who_does_not_pay_what_it_holds_loses_credit(world, three):
    holder, _, provider = three
    entitle(world, holder, provider, 80, price=8 * A_STEP, until_ms=2**60)
    provider.market.tidy()
    before = provider.market.limits.left(holder.id)
    world.later(DAY_MS)
    provider.market.tidy()
    assert provider.market.limits.left(holder.id) == before - 24 * 640
    provider.ledger.limit = 24 * 640
    provider.market.tidy()
    assert holder.id in provider.market.limits.at_limit
    await settled(world, holder, provider)


async def test_nobody_owes_more_than_it_counts(world, three):
    holder, _, provider = three
    made = entitle(world, holder, provider, 80, price=600 * A_STEP)
    hidden = replace(made, need=b"x" * 16)
    provider.granted.append(hidden)
    provider.granted[0] = replace(made, quantity=90)
    await settled(world, holder, provider)
    world.later(EPOCH_MS)
    holder.received.clear()
    await settled(world, holder, provider)
    for _ in range(3):
        await settled(world, holder, provider)
        world.later(HOLD_TOLERANCE_MS)
    paid = holder.hold("customer")
    assert paid.due_micro == 80 * 600
    assert sum(view.settled_micro for view in provider.market.leases()) == paid.settled_micro


async def test_seconds_between_both_sides_are_settled_in_the_end(world, three):
    holder, _, provider = three
    made = entitle(world, holder, provider, 80, price=7_919 * A_STEP)
    provider.market.tidy()
    holder.received.clear()
    world.later(7_000)
    # It is seen late, and its end is seen early.
    holder.received.append(replace(made, granted_ms=world.clock.now_ms()))
    await settled(world, holder, provider)
    world.later(EPOCH_MS)
    holder.received.clear()
    await settled(world, holder)
    world.later(5_000)
    provider.granted.clear()
    for _ in range(4):
        await settled(world, holder, provider)
        world.later(HOLD_TOLERANCE_MS)
    both = holder.hold("customer"), provider.hold("provider")
    paid, counted = (80 * 7_919 * ms // EPOCH_MS for ms in (EPOCH_MS, EPOCH_MS + 12_000))
    assert due(*both) == [(paid, paid), (counted, paid)], "the lower count is what is paid"
    assert {view.status for view in both} == {"settled"}
    assert provider.market.limits.exposure(holder.id) == 0
    world.later(2 * EPOCH_MS)
    await settled(world, holder, provider)
    assert holder.market.leases() == provider.market.leases() == []


async def test_what_is_not_signed_yet_is_not_forgotten(world, three):
    holder, _, provider = three
    entitle(world, holder, provider, 80, price=600 * A_STEP)
    await settled(world, holder, provider)
    world.later(40 * EPOCH_MS // 2)
    await settled(world, holder, provider)
    world.later(EPOCH_MS)
    for of in (holder.received, provider.granted):
        of.clear()
    for _ in range(3):
        holder.market.tidy()
        world.later(EPOCH_MS)
    await settled(world, holder, provider)
    assert provider.ledger.owed(holder.id) == 80 * 600 * 21


async def test_a_provider_waives_no_more_than_a_sixteenth_of_what_was_paid(world, three):
    holder, _, provider = three
    made = entitle(world, holder, provider, 80, price=600 * A_STEP)
    await settled(world, holder, provider)
    hours = HOLD_DIFFERENCE_PART
    world.later(hours * EPOCH_MS)
    await settled(world, holder, provider)
    paid = provider.hold("provider").settled_micro
    assert paid == 80 * 600 * hours
    holder.received.clear()
    await settled(world, holder)
    world.later(EPOCH_MS)
    provider.granted.clear()
    await settled(world, provider)
    assert provider.market.limits.exposure(holder.id) == 0
    # One minute more than that part, and all of it stays owed.
    provider.granted[:] = [replace(made, granted_ms=world.clock.now_ms())]
    await settled(world, provider)
    world.later(60_000)
    provider.granted.clear()
    await settled(world, provider)
    assert provider.market.limits.exposure(holder.id) == 80 * 600 * 61 // 60


async def test_what_a_need_allows_is_all_that_is_signed_for_it(world, three):
    holder, other, provider = three
    now_ms = world.clock.now_ms()
    for number in range(40):
        window = (now_ms + 3_000 * number, now_ms + 3_000 * (number + 1))
        for host in (other, provider):
            made = entitle(world, holder, host, 7, kind="compute", price=1_000_000, window=window)
            made = replace(made, until_ms=window[1], granted_ms=window[0])
            host.granted[-1] = holder.received[-1] = made
    need = NeedSlot(
        slot_id=made.need,
        kind="compute",
        quantity=7,
        price_max=1_000_000,
        valid_until_ms=2**60,
    )
    holder.needs[made.need] = need
    # By the millisecond: 7 steps at that price. Two providers ask that much each.
    allows, rate = 0, 70

    def booked():
        return sum(host.ledger.owed(holder.id) for host in (other, provider))

    for turn in range(35):
        await settled(world, holder, other, provider)
        assert booked() == allows
        if turn == 5:
            await holder.restart()
        if turn == 20:
            # A lower price takes nothing back, and a higher one allows more from now on.
            holder.needs[made.need] = need.model_copy(update={"price_max": 500_000, "number": 2})
            rate = 35
        if turn == 25:
            holder.needs[made.need] = need.model_copy(update={"price_max": 1_500_000, "number": 3})
            rate = 105
        if turn == 30:
            holder.needs[made.need] = need.model_copy(update={"quantity": 1, "number": 4})
            rate = 10
        holder.market.tidy()
        world.later(2_900)
        allows += 2_900 * rate
    holder.market.tidy()
    assert holder.market.limits.exposure(holder.id) == 0


async def test_a_power_loss_forgets_nothing_that_was_signed_for_a_need(world, three):
    holder, _, provider = three
    holder.state = MemoryKeyValue()
    await holder.restart()
    window = world.clock.now_ms(), world.clock.now_ms() + EPOCH_MS
    made = entitle(world, holder, provider, 7, kind="compute", price=1_000_000, window=window)
    holder.needs[made.need] = holder.stated()[0].model_copy(update={"quantity": 3})
    allows = 0
    for number in range(12):
        each = replace(made, slot=bytes([number]) * 16)
        holder.received[:] = provider.granted[:] = [each]
        await settled(world, holder, provider)
        world.later(EPOCH_MS // 4)
        allows += 30 * EPOCH_MS // 4
        await settled(world, holder, provider)
        holder.state = holder.state.after_crash()
        await holder.restart()
        assert provider.ledger.owed(holder.id) <= allows
    assert provider.ledger.owed(holder.id) == allows


async def test_a_grant_that_its_provider_dates_back_costs_nothing_for_what_was_not_seen(
    world, three
):
    holder, _, provider = three
    window = (world.clock.now_ms(), world.clock.now_ms() + DAY_MS)

    def backdated(slot):
        each = entitle(world, holder, provider, 80, price=600 * A_STEP, slot=slot, window=window)
        holder.received[-1] = replace(each, granted_ms=window[0])

    world.later(20 * EPOCH_MS)
    backdated(b"1" * 16)
    holder.market.tidy()
    assert holder.hold("customer").due_micro <= 80 * 600 * HOLD_TOLERANCE_MS // EPOCH_MS
    before = holder.hold("customer").due_micro
    # It was away for hours, and what it held then has ended.
    holder.received.clear()
    holder.market.tidy()
    world.later(EPOCH_MS)
    await holder.restart()
    backdated(b"1" * 16)
    for slot in (b"2", b"3"):
        backdated(slot * 16)
        world.later(1_000)
        holder.market.tidy()
        assert all(view.due_micro <= before + 40 for view in holder.market.leases())
        holder.received.pop()
    await world.drive(holder.market.settlement.settle_all())


async def test_a_restart_of_either_side_forgets_no_hold(world, three):
    holder, _, provider = three
    entitle(world, holder, provider, 80, price=8 * A_STEP)
    await settled(world, holder, provider)
    world.later(EPOCH_MS)
    await settled(world, holder, provider)
    for node in (holder, provider):
        await node.restart()
    world.later(EPOCH_MS)
    await settled(world, holder, provider)
    assert due(holder.hold("customer"), provider.hold("provider")) == [(1280, 1280)] * 2


async def test_a_provider_does_not_bill_the_time_for_which_it_was_down(world, three):
    holder, _, provider = three
    entitle(world, holder, provider, 80, price=8 * A_STEP)
    await settled(world, holder, provider)
    world.later(EPOCH_MS)
    await settled(world, holder, provider)
    world.later(10 * EPOCH_MS)
    await provider.restart()
    provider.market.tidy()
    assert provider.hold("provider").due_micro == 640


async def test_an_account_that_was_forgotten_goes_on_from_what_was_settled(world, three):
    holder, _, provider = three
    made = entitle(
        world, holder, provider, 80, price=8 * A_STEP, until_ms=world.clock.now_ms() + EPOCH_MS
    )
    await settled(world, holder, provider)
    for _ in range(5):
        world.later(EPOCH_MS)
        await settled(world, holder, provider)
    assert holder.market.leases() == provider.market.leases() == []
    holder.ledger.booked = dict(provider.ledger.booked)
    again = replace(made, granted_ms=world.clock.now_ms(), until_ms=2**60)
    for of in (holder.received, provider.granted):
        of[:] = [again]
    await settled(world, holder, provider)
    world.later(EPOCH_MS)
    await settled(world, holder, provider)
    assert due(holder.hold("customer"), provider.hold("provider")) == [(1280, 1280)] * 2


async def test_no_lease_has_the_id_of_an_account(world, three):
    holder, _, provider = three
    made = entitle(world, holder, provider, 80)
    account_id = holding.hold_id(made.key)
    assert account_id.startswith(HOLD_MARK)
    request = LeaseRequest.model_construct(
        lease_id=account_id, provider=provider.id, customer=holder.id
    )
    assert "held undrawn" in check_request(request, Quote.model_construct(), 0)


async def test_a_stranger_s_voucher_pays_no_account(world, three):
    holder, other, provider = three
    made = entitle(world, holder, provider, 80)
    provider.market.tidy()
    voucher = Voucher(
        lease_id=holding.hold_id(made.key),
        provider=provider.id,
        customer=other.id,
        number=1,
        amount_micro=5,
        quantity=5,
        until_ms=0,
    )
    for author in (holder, other):
        raw = sign(voucher, author.key, NET).raw
        with pytest.raises(XscError):
            await provider.market.settlement.on_settle(
                other.id, {"voucher": raw, "book_now": True}, ()
            )
    assert provider.hold("provider").settled_micro == 0


async def test_the_accounts_of_a_customer_are_bounded(world, three, monkeypatch):
    monkeypatch.setattr("xsc.market.holds.HOLDS_A_CUSTOMER_MAX", 3)
    holder, _, provider = three
    for number in range(3):
        assert not provider.market.holds.is_full(holder.id)
        entitle(world, holder, provider, 1, need=bytes([number]) * 16)
        provider.market.tidy()
    assert provider.market.holds.is_full(holder.id)


async def test_after_a_restart_nothing_is_signed_beyond_what_is_allowed(world, three):
    """The account is kept as it was counted; it is bounded again where it is signed."""
    holder, _, provider = three
    now_ms = world.clock.now_ms()
    whole = {"kind": "compute", "window": (now_ms, now_ms + DAY_MS), "price": 12_000}
    entitle(world, holder, provider, 400, **whole)
    holder.stated()
    for need, stated in list(holder.needs.items()):
        holder.needs[need] = stated.model_copy(update={"price_max": 0, "quantity": 1})
    await settled(world, holder, provider)
    world.later(EPOCH_MS)
    holder.market.tidy()
    await holder.restart()
    await world.drive(holder.market.settlement.settle_all())
    assert [entry.use.voucher_micro for entry in holder.market.store.holds("customer")] == [0]


async def test_a_provider_that_settles_nothing_has_few_accounts_and_calls(
    world, three, monkeypatch
):
    monkeypatch.setattr("xsc.market.holds.HOLDS_A_CUSTOMER_MAX", 3)
    holder, _, provider = three
    for number in range(9):
        entitle(world, holder, provider, 80, price=8 * A_STEP, need=bytes([number]) * 16)
    holder.market.tidy()
    assert sum(1 for _ in holder.market.store.holds("customer")) == 3
    world.later(EPOCH_MS)
    world.wire.calls.clear()
    asked = []

    async def refuse(_caller, header, _parts):
        asked.append(open_signed(header["voucher"], Voucher, network=None).record.lease_id)
        raise RateLimited("not now")

    world.wire.handlers[provider.id][SETTLE] = refuse
    for count in (1, 2, 3):
        world.later(1000)
        await settled(world, holder)
        assert len(asked) == count
    # One call a round, each for another account.
    assert len(set(asked)) == 3


async def test_fuel_that_was_used_is_billed_by_its_lease_alone(world, three):
    holder, _, provider = three
    now_ms = world.clock.now_ms()
    whole = {"kind": "compute", "window": (now_ms, now_ms + EPOCH_MS), "price": 5}
    entitle(world, holder, provider, 400, until_ms=now_ms + EPOCH_MS, **whole)
    await settled(world, holder, provider)
    host = await computing(world, holder, provider, 400 * RATE)
    spent = 300 * RATE
    provider.market.granted.admit_compute(host.lease_id, holder.id, spent)
    provider.market.granted.used_compute(host.lease_id, spent, spent)
    await world.drive(holder.market.taken.spent(host.lease_id, spent, 900))
    await settled(world, holder, provider)
    for _ in range(60):
        world.later(COMPUTE_LEASE_MS)
        await settled(world, holder, provider)
    # For the minute of the lease only a quarter was held.
    held = 72_000 - 900
    assert due(holder.hold("customer"), provider.hold("provider")) == [(held, held)] * 2
    assert sum(view.settled_micro for view in provider.market.leases()) == 72_000
