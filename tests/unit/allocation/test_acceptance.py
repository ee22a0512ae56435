"""What a need keeps of offers, and what it still wants of a provider."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.allocation.clearings import HOUR, NOW_MS, key, need, slot, steps_of
from xsc.allocation.acceptance import answered, keep, pending
from xsc.allocation.clearing import TIERS, Claim
from xsc.allocation.published import Published
from xsc.terms.clearing import SpaceValue
from xsc.terms.slot import Commitment, Entitlement


def offer(number, quantity, tier="mutual", weight=1):
    return Claim(bytes([number]) * 32, tier, weight, quantity)


def test_mutual_providers_are_kept_first_and_the_rest_is_released():
    offers = [offer(1, 6, "open"), offer(2, 6, "one_way"), offer(3, 6, "mutual")]
    kept, caps = keep(10, offers, {})
    assert list(kept.values()) == [0, 4, 6]
    assert caps == {offers[0].id: 0, offers[1].id: 4}


def test_within_a_tier_providers_share_by_recognition():
    kept, _ = keep(6, [offer(1, 9, weight=1), offer(2, 9, weight=2)], {})
    assert list(kept.values()) == [2, 4]


def test_a_default_need_takes_whole_columns_of_as_many_providers_as_it_is_spread_over():
    """Of six that offer three steps each, five: an even division of 15 leaves three with two."""
    providers = [key(number).node_id for number in range(1, 7)]
    stated = need(1, quantity=16, spread=5, standing=True, parts=((providers[0], 1),))
    ranks = dict.fromkeys(providers, ("open", 1)) | {providers[5]: ("mutual", 1)}
    offered = dict.fromkeys(providers, 3) | {providers[0]: 4}
    (last,) = sorted(providers[:5])[-1:]
    lines = [granted(each, steps, stated) for each, steps in offered.items()]
    capped = answered(stated, lines, {}, ranks, is_due=True, is_settled=True)
    assert dict(capped.caps) == {last: stated.part(last)}
    lines = [granted(each, capped.cap(each), capped) for each in providers if capped.cap(each)]
    assert sum(each.quantity for each in lines) in (15, 16)
    assert answered(capped, lines, {}, ranks, is_due=True, is_settled=True) == capped


def test_what_one_provider_more_is_to_hold_is_not_divided_among_all_that_offer():
    one, two = sorted(key(number).node_id for number in (1, 2))
    stated = need(1, quantity=3, standing=True)
    lines = [granted(each, 3, stated) for each in (one, two)]
    ranks = {one: ("open", 1), two: ("open", 1)}
    capped = answered(stated, lines, {}, ranks, is_due=True, is_settled=True)
    assert dict(capped.caps) == {two: 0}


OFFERS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(TIERS), st.integers(1, 3)), max_size=5
)


@given(st.integers(0, 20), OFFERS, st.dictionaries(st.integers(0, 6), st.integers(0, 9)))
def test_caps_only_fall_and_nothing_is_kept_beyond_need_offer_or_cap(quantity, made, said):
    offers = [offer(n, units, tier, weight) for n, (units, tier, weight) in enumerate(made)]
    caps = {bytes([n]) * 32: cap for n, cap in said.items()}
    kept, lowered = keep(quantity, offers, caps)
    assert sum(kept.values()) <= quantity
    for each in offers:
        assert kept[each.id] <= min(each.need, caps.get(each.id, each.need))
    for provider, cap in caps.items():
        assert lowered[provider] <= cap
    # What was kept is kept again: no choice changes its mind.
    left = [replace(each, need=kept[each.id]) for each in offers]
    assert keep(quantity, left, lowered) == (kept, lowered)


def granted(provider, quantity, asked):
    window = (NOW_MS, NOW_MS + HOUR)
    return Entitlement(
        slot=bytes(16),
        window=window,
        provider=provider,
        customer=key(9).node_id,
        need=asked.slot_id,
        kind=asked.kind,
        quantity=quantity,
        slot_quantity=100,
        tier="open",
        price=1,
        granted_ms=NOW_MS,
        until_ms=NOW_MS + HOUR,
        clearing=bytes(32),
    )


def published(number, *, slots=(), needs=()):
    commitment = Commitment(slots=slots, needs=needs)
    return Published(key(number).node_id, commitment, SpaceValue(record=b"", value=b""))


def test_a_need_waits_until_all_that_match_it_have_offered_or_are_capped():
    one, two = (
        published(1, slots=(slot(),)),
        published(2, slots=(slot(kind="storage"), slot(slot_id=b"s" * 16))),
    )
    asked, other = need(1, quantity=10), need(2, quantity=10)

    def waits(*needs, offers, others=(one, two)):
        mine = {each.slot_id: each for each in needs}
        return pending(published(9, needs=needs), mine, others, offers, NOW_MS)

    offers = [granted(one.node, 6, asked), granted(one.node, 6, other)]
    both = {asked.slot_id, other.slot_id}
    assert waits(asked, other, offers=offers) == both, "another that matches has not offered"
    assert waits(asked, other, offers=offers, others=(one,)) == set()
    more = [*offers, granted(two.node, 4, asked)]
    assert waits(asked, other, offers=more) == {other.slot_id}
    assert waits(need(1, quantity=10, caps=((two.node, 0),)), offers=offers) == set()
    elsewhere = need(1, location="x", filters=(("owner", "y"),))
    assert waits(elsewhere, offers=[]) == set(), "no slot matches"


def test_many_offers_to_many_needs_take_few_steps():
    providers = [published(number) for number in range(1, 9)]

    def work(count):
        needs = {number.to_bytes(16, "big"): need(1) for number in range(count)}
        offers = [
            granted(provider.node, 1, need(1, slot_id=need_id))
            for need_id in needs
            for provider in providers
        ]
        own = published(9)
        return steps_of(lambda: pending(own, needs, providers, offers, NOW_MS))

    assert work(64) <= 10 * work(8)
