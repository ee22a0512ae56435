"""What a need keeps of offers, and what it still wants of a provider."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.allocation.clearings import HOUR, NOW_MS, key, need
from xsc.allocation.acceptance import Granted, at_once, keep, still_wanted
from xsc.allocation.tiers import TIERS
from xsc.terms.slot import pack_windows

PROVIDER = key(1).node_id


def offer(number, quantity, tier="mutual", weight=1):
    return Granted(bytes([number]) * 32, quantity, tier, weight)


def test_mutual_providers_are_kept_first_and_the_rest_is_released():
    offers = [offer(1, 6, "open"), offer(2, 6, "one_way"), offer(3, 6, "mutual")]
    kept = keep(10, offers, {})
    assert list(kept.quantities.values()) == [0, 4, 6]
    assert kept.caps == {offers[0].provider: 0, offers[1].provider: 4}


def test_within_a_tier_providers_share_by_recognition():
    kept = keep(6, [offer(1, 9, weight=1), offer(2, 9, weight=2)], {})
    assert list(kept.quantities.values()) == [2, 4]


OFFERS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from(TIERS), st.integers(1, 3)), max_size=5
)


@given(st.integers(0, 20), OFFERS, st.dictionaries(st.integers(0, 6), st.integers(0, 9)))
def test_caps_only_fall_and_nothing_is_kept_beyond_need_offer_or_cap(quantity, made, said):
    offers = [offer(n, units, tier, weight) for n, (units, tier, weight) in enumerate(made)]
    caps = {bytes([n]) * 32: cap for n, cap in said.items()}
    kept = keep(quantity, offers, caps)
    assert sum(kept.quantities.values()) <= quantity
    for each in offers:
        assert kept.quantities[each.provider] <= min(
            each.quantity, caps.get(each.provider, each.quantity)
        )
    for provider, cap in caps.items():
        assert kept.caps[provider] <= cap
    # What was kept is kept again: no choice changes its mind.
    left = [
        Granted(each.provider, kept.quantities[each.provider], each.tier, each.weight)
        for each in offers
    ]
    again = keep(quantity, left, kept.caps)
    assert again.quantities == kept.quantities
    assert again.caps == kept.caps


def test_d2_two_slots_of_one_provider_do_not_fill_one_need_twice():
    one = need(quantity=10)
    window = (NOW_MS + HOUR, NOW_MS + 2 * HOUR)
    assert still_wanted(one, PROVIDER, window, []) == 10
    assert still_wanted(one, PROVIDER, window, [(window, 10)]) == 0
    assert still_wanted(one, PROVIDER, window, [(window, 4)]) == 6


def test_a_cap_bounds_all_slots_of_a_provider_together():
    one = need(quantity=10, caps=((PROVIDER, 3),))
    window = (NOW_MS + HOUR, NOW_MS + 2 * HOUR)
    assert still_wanted(one, PROVIDER, window, []) == 3
    assert still_wanted(one, PROVIDER, window, [(window, 3)]) == 0


def test_storage_counts_at_a_moment_and_compute_within_a_window_of_the_need():
    early, late = (NOW_MS + HOUR, NOW_MS + 2 * HOUR), (NOW_MS + 2 * HOUR, NOW_MS + 3 * HOUR)
    tomorrow = (NOW_MS + 26 * HOUR, NOW_MS + 27 * HOUR)
    stored = need(kind="storage", quantity=10)
    assert still_wanted(stored, PROVIDER, late, [(early, 10)]) == 10
    computed = need(quantity=10)
    assert still_wanted(computed, PROVIDER, late, [(early, 10)]) == 0
    daily = need(
        quantity=10,
        windows_packed=pack_windows([(NOW_MS, NOW_MS + 12 * HOUR), (NOW_MS + 24 * HOUR, 2**42)]),
        valid_until_ms=2**42,
    )
    assert still_wanted(daily, PROVIDER, late, [(early, 10)]) == 0
    assert still_wanted(daily, PROVIDER, tomorrow, [(early, 10)]) == 10


def test_what_one_provider_grants_at_once_is_what_counts():
    one, two = (NOW_MS, NOW_MS + HOUR), (NOW_MS + HOUR, NOW_MS + 2 * HOUR)
    both = (NOW_MS, NOW_MS + 2 * HOUR)
    stored = need(kind="storage", quantity=10)
    assert at_once(stored, [(one, 3), (two, 4)]) == 4
    assert at_once(stored, [(one, 3), (two, 4), (both, 2)]) == 9
    assert at_once(need(quantity=10), [(one, 3), (two, 4)]) == 7
    gap = (NOW_MS + 2 * HOUR, NOW_MS + 3 * HOUR)
    hourly = need(quantity=10, windows_packed=pack_windows([one, gap]))
    assert at_once(hourly, [(one, 3), (gap, 4)]) == 4
