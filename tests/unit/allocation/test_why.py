"""Explanations: each names a change that, played, has the effect that it names."""

from dataclasses import replace
from random import Random

from tests.unit.allocation.clearings import need, random_clearing
from xsc.allocation.clearing import Bid, SlotTerms, clear
from xsc.allocation.clearing_record import check_clearing
from xsc.allocation.explaining import Change, changes_of, explain, pairs_of

SALT = b"salt"
NEED = bytes(16)
TERMS = SlotTerms(10, 1, 2, 5)


def bid(customer, quantity, price_max=9):
    return Bid(customer, NEED, quantity, price_max)


def test_a_stranger_learns_what_recognition_and_which_price_would_have_served_it():
    bids = [
        bid(b"a", 4),
        bid(b"b", 6),
        bid(b"c", 3, price_max=7),
    ]
    weights = {b"a": ("mutual", 50_000)}
    *recognised, price = changes_of(TERMS, bids, weights, SALT, bids[2])
    assert recognised == [Change("one_way", 1, 3), Change("mutual", 10_000, 3)]
    assert (price.what, price.quantity) == ("price", 3)
    assert price.bound in (9, 10)
    assert changes_of(TERMS, bids, weights, SALT, bids[1]) == []


def test_a_mutual_peer_learns_the_recognition_for_a_unit_more():
    bids = [bid(b"a", 9), bid(b"b", 9)]
    weights = {b"a": ("mutual", 30_000), b"b": ("mutual", 10_000)}
    now = clear(TERMS, bids, weights, SALT).given()[bids[1].key]
    (more,) = changes_of(TERMS, bids, weights, SALT, bids[1])
    assert (more.what, more.quantity) == ("mutual", now + 1)


def test_every_change_has_the_effect_that_is_named(network):
    random = Random(7)
    found = set()
    for _ in range(25):
        signed, values = random_clearing(random, network)
        record, checked = signed.record, check_clearing(signed.raw, values)
        terms, bids, weights, salt = checked.clearing.game
        lines = {each.customer: each.lines for each in record.participants}
        rows = {
            (pair.customer.node, pair.need.slot_id): pair
            for customer in checked.clearing.customers
            for pair in pairs_of(checked.clearing.provider, customer, record.slot.slot_id)
        }
        for one in bids:
            said = explain(rows[one.key], checked, 0)
            told = sum(line[2] for line in lines[one.customer] if line[0] == one.need)
            assert said.quantity == told
            for change in said.changes:
                found.add(change.what)
                assert change.quantity > said.quantity
                told, stands = bids, weights
                if change.what == "price":
                    raised = replace(one, price_max=change.bound)
                    told = [raised if other == one else other for other in bids]
                else:
                    stands = {**weights, one.customer: (change.what, change.bound)}
                cleared = clear(terms, told, stands, salt)
                assert cleared.given().get(one.key, 0) == change.quantity
    assert found == {"price", "mutual", "one_way"}


def test_a_need_that_took_no_part_has_only_a_reason(network):
    random = Random(1)
    signed, values = random_clearing(random, network)
    checked = check_clearing(signed.raw, values)
    provider, customers = checked.clearing.provider, checked.clearing.customers
    pair, *_ = (pair for customer in customers for pair in pairs_of(provider, customer))
    said = explain(replace(pair, need=need(77)), checked, 0)
    assert (said.weight, said.eligible, said.stages, said.changes) == (None, None, (), ())
    assert said.because == "its provider had not seen the need when it cleared"
