"""Explanations: each names a change that, played, has the effect that it names."""

from dataclasses import replace
from random import Random

from tests.gathering import Terms, given_of
from tests.unit.allocation.clearings import need, random_clearing
from xsc.allocation.clearing import Bid, clear
from xsc.allocation.clearing_record import check_clearing
from xsc.allocation.explaining import Change, changes_of, explain, pairs_of

SALT = b"salt"
NEED = bytes(16)
TERMS = Terms(10, 1, 2, 5)


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
            said = explain(rows[one.pin], clearing, 0)
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
    said = explain(replace(pair, need=need(77)), clearing, 0)
    assert (said.bid, said.granted, said.changes) == (None, None, ())
    assert said.because == (
        "its provider has not seen the need, or divides the slot with it as without it"
    )
