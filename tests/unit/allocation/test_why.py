"""Explanations: each names a change that, played, has the effect that it names."""

from dataclasses import replace
from random import Random

from tests.gathering import Terms, given_of
from tests.unit.allocation.clearings import DAY, NOW_MS, need, random_clearing
from xsc.allocation.clearing import TIERS, Bid, clear
from xsc.allocation.clearing_record import check_clearing
from xsc.allocation.explaining import Change, changes_of, explain, pairs_of
from xsc.base.units import format_time
from xsc.terms.clearing import (
    SlotAllocationRecord,
    SlotDenominators,
    TierLine,
    TwoTierAllocationState,
)

SALT = b"salt"
NEED = bytes(16)
TERMS = Terms(10, 1, 2, 5)
NOTHING = TwoTierAllocationState()


def bid(customer, quantity, price_max=9, tier="open", weight=1):
    return Bid(customer, NEED, quantity, price_max, tier, weight)


def changes(bids, bid):
    return changes_of(TERMS.slot, TERMS.capacity, bids, SALT, bid)


def test_a_stranger_learns_what_recognition_and_which_price_would_have_served_it():
    bids = [
        bid(b"a", 4, tier="mutual", weight=50_000),
        bid(b"b", 6),
        bid(b"c", 3, price_max=7),
    ]
    *recognised, price = changes(bids, bids[2])
    assert recognised == [Change("one_way", 1, 3), Change("mutual", 10_000, 3)]
    assert (price.what, price.quantity) == ("price", 3)
    assert price.bound in (9, 10)
    assert changes(bids, bids[1]) == []


def test_a_mutual_peer_learns_the_recognition_for_a_unit_more():
    bids = [bid(b"a", 9, 9, "mutual", 30_000), bid(b"b", 9, 9, "mutual", 10_000)]
    now = TERMS.clear(bids, SALT).lines[bids[1].pin].quantity
    (more,) = changes(bids, bids[1])
    assert (more.what, more.quantity) == ("mutual", now + 1)


def test_every_change_has_the_effect_that_is_named(network):
    random = Random(7)
    found = set()
    for _ in range(25):
        signed, values = random_clearing(random, network)
        clearing = check_clearing(signed.raw, values)
        slot, capacity, bids, salt = clearing.game
        given = given_of(clearing.clear())
        rows = {
            (pair.customer.node, pair.need.slot_id): pair
            for customer in clearing.customers.values()
            for pair in pairs_of(clearing.provider, customer, slot.slot_id)
        }
        for one in bids:
            said = explain(rows[one.pin], clearing, NOTHING, 0, NOW_MS)
            assert said.granted.quantity == given.get(one.pin, 0)
            for change in said.changes:
                found.add(change.what)
                assert change.quantity > said.granted.quantity
                told = [
                    replace(other, price_max=change.bound)
                    if change.what == "price" and other == one
                    else replace(other, tier=change.what, weight=change.bound)
                    if change.what != "price" and other.customer == one.customer
                    else other
                    for other in bids
                ]
                changed = given_of(clear(slot, capacity, told, salt))
                assert changed.get(one.pin, 0) == change.quantity
    assert found == {"price", "mutual", "one_way"}


def test_a_need_that_took_no_part_has_only_a_reason(network):
    random = Random(1)
    signed, values = random_clearing(random, network)
    clearing = check_clearing(signed.raw, values)
    provider, customers = clearing.provider, clearing.customers.values()
    pair, *_ = (pair for customer in customers for pair in pairs_of(provider, customer))
    said = explain(replace(pair, need=need(77)), clearing, NOTHING, 0, NOW_MS)
    assert (said.bid, said.granted, said.changes) == (None, None, ())
    assert said.because == (
        "its provider has not seen the need, or divides the slot with it as without it"
    )


def nothing_eligible(network):
    """Return a slot and a need of it, and a clearing that has the need and grants it nothing."""
    signed, values = random_clearing(Random(1), network)
    clearing = check_clearing(signed.raw, values)
    node, need_id, _ = clearing.record.eligible[0]
    slot, customer = clearing.record.slot, clearing.customers[node]
    (pair,) = (
        pair
        for pair in pairs_of(clearing.provider, customer, need_id)
        if pair.slot.slot_id == slot.slot_id
    )
    pair = replace(pair, need=pair.need.model_copy(update={"quantity": 40, "caps": ()}))
    record = clearing.record.model_copy(update={"eligible": ()})
    return pair, replace(clearing, record=record)


def granted(pair, quantity, needs=1):
    """Return a state in which another slot gives the need, and others of its customer, so much."""
    others = [number.to_bytes(16, "big") for number in range(1, needs)]
    needs = sorted([pair.need.slot_id, *others])
    lines = tuple(
        SlotAllocationRecord(
            customer=pair.customer.node,
            need=each,
            granted_ms=NOW_MS,
            tier="open",
            quantity=quantity,
            price=1,
        )
        for each in needs
    )
    given = {"mutual": 0, "one_way": 0, "open": quantity * len(lines)}
    tiers = tuple(
        TierLine(tier=tier, capacity=1000, given=given[tier], denominator=0) for tier in TIERS
    )
    return TwoTierAllocationState(
        slot_denominators=(
            SlotDenominators(
                slot=b"other".ljust(16),
                window=DAY[0],
                kind=pair.slot.kind,
                rule=pair.slot.rule,
                clearing=bytes(32),
                tiers=tiers,
                allocations=lines,
            ),
        )
    )


def test_a_need_learns_the_one_thing_that_kept_it_from_more(network):
    pair, clearing = nothing_eligible(network)
    provider, customer = pair.provider.node, pair.customer.node

    def because(pair=pair, state=NOTHING):
        return explain(pair, clearing, state, 0, NOW_MS).because

    def changed(part, **changes):
        return replace(pair, **{part: getattr(pair, part).model_copy(update=changes)})

    used_up = "the credit of its customer at this provider is used up"
    assert because() == f"it was granted nothing: {used_up}"
    margin = changed("need", parts=((provider, 7),))
    assert because(margin).endswith(f"{used_up}, or no room is free for the margin")
    free = changed("slot", reserve=0, price_mutual=0, price_one_way=0)
    assert because(free).endswith("no room free for the margin that it asks for")
    assert because(state=granted(pair, 40)).endswith(
        "other slots of this provider give it 400 Mfuel/s"
    )
    assert because(state=granted(pair, 39)).endswith(used_up)
    capped = changed("need", caps=((provider, 10),))
    assert because(capped, granted(pair, 10)).endswith(
        "other providers give it 300 Mfuel/s and other slots of this provider give it 100 Mfuel/s"
    )
    assert "grants 512 needs of one customer" in because(state=granted(pair, 1, 512))
    end_ms = NOW_MS + 1
    paused = TwoTierAllocationState(pauses=((pair.slot.slot_id, customer, 1, end_ms),))
    assert because(state=paused).endswith(f"and waits until {format_time(end_ms)}")
    over = TwoTierAllocationState(pauses=((pair.slot.slot_id, customer, 1, NOW_MS),))
    assert because(state=over).endswith(used_up)
