"""Explanations: each names a change that, played, has the effect that it names."""

from dataclasses import replace
from random import Random

import pytest

from tests.unit.allocation.clearings import key, random_clearing
from xsc.allocation.clearing import Bid, SlotTerms, clear_slot
from xsc.allocation.clearing_record import (
    bids_of,
    eligible_of,
    offer_of,
    open_inputs,
    terms_of,
)
from xsc.allocation.why import Change, Displaced, explain, why
from xsc.base.errors import NotFound

SALT = b"salt"
NEED = bytes(16)
TERMS = SlotTerms(10, 1, 2, 5)


def bid(customer, tier, weight, quantity, **changes):
    return Bid(
        customer, NEED, tier, weight, quantity, **{"quantity_min": 0, "price_max": 9, **changes}
    )


def test_a_stranger_learns_what_recognition_and_which_price_would_have_served_it():
    bids = [
        bid(b"a", "mutual", 50_000, 4),
        bid(b"b", "open", 1, 6),
        bid(b"c", "open", 1, 3, price_max=7),
    ]
    said = why(TERMS, bids, SALT, bids[2])
    assert (said.tier, said.lines, said.share) == ("open", (), None)
    assert said.displaced == ()
    price = next(change for change in said.changes if change.what == "price")
    assert price.bound in (9, 10)
    assert price.quantity == 3
    assert Change("one_way", 1, 3) in said.changes
    assert Change("mutual", 10_000, 3) in said.changes
    winner = why(TERMS, bids, SALT, bids[1])
    # The loser's bid sets the price of what it would have got.
    assert winner.displaced == (Displaced(b"c", NEED, 3, 7),)
    assert winner.changes == ()
    assert winner.quantity == 6


def test_a_mutual_peer_learns_its_share_and_the_recognition_for_a_unit_more():
    bids = [bid(b"a", "mutual", 30_000, 9), bid(b"b", "mutual", 10_000, 9)]
    said = why(TERMS, bids, SALT, bids[1])
    assert said.share == 2.5
    assert said.lines[0].quantity in (2, 3)
    (more,) = said.changes
    assert (more.what, more.quantity) == ("mutual", said.quantity + 1)


def test_a_need_that_left_learns_the_minimum_that_would_have_kept_it():
    bids = [bid(b"a", "mutual", 30_000, 9), bid(b"b", "mutual", 10_000, 9, quantity_min=5)]
    said = why(TERMS, bids, SALT, bids[1])
    assert said.left
    assert said.quantity == 0
    least = next(change for change in said.changes if change.what == "minimum")
    assert least.bound == least.quantity
    kept = clear_slot(TERMS, [bids[0], replace(bids[1], quantity_min=least.bound)], SALT)
    assert kept.given()[bids[1].key] == least.quantity


def test_every_change_has_the_effect_that_is_named(network):
    random = Random(7)
    found = set()
    for _ in range(25):
        signed = random_clearing(random, network)
        record = signed.record
        provider, customers = open_inputs(record, network)
        offer = offer_of(record)
        bids = bids_of(provider, customers, eligible_of(record))
        lines = {each.customer: each.lines for each in record.participants}
        for one in bids:
            said = explain(signed, *one.key)
            told = sum(line[2] for line in lines[one.customer] if line[0] == one.need)
            assert said.quantity == told
            for change in said.changes:
                found.add(change.what)
                assert change.quantity > said.quantity
                fields = {
                    "price": {"price_max": change.bound},
                    "minimum": {"quantity_min": change.bound},
                    "mutual": {"tier": "mutual", "weight": change.bound},
                    "one_way": {"tier": "one_way", "weight": change.bound},
                }[change.what]
                whole = change.what in {"mutual", "one_way"}
                changed = [
                    replace(other, **fields)
                    if (other.customer == one.customer if whole else other.key == one.key)
                    else other
                    for other in bids
                ]
                cleared = clear_slot(terms_of(offer), changed, record.salt)
                assert cleared.given().get(one.key, 0) == change.quantity
    assert found == {"price", "minimum", "mutual", "one_way"}


def test_a_need_that_took_no_part_has_no_explanation(network):
    signed = random_clearing(Random(1), network)
    with pytest.raises(NotFound):
        explain(signed, key(99).node_id, NEED)
