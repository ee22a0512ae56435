"""Which needs a slot can serve: each rule by itself, and four defects that must not return."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.allocation.matching import Party, mismatch, overlap, piece
from xsc.allocation.windows import ENDLESS_MS
from xsc.base.ids import to_text
from xsc.terms.slot import AvailabilitySlot, NeedSlot, pack_windows

PROVIDER, CUSTOMER = bytes([1]) * 32, bytes([2]) * 32


def at(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def offer(*windows, **changes):
    fields = {
        "slot_id": bytes(16),
        "kind": "compute",
        "quantity": 100,
        "windows_packed": pack_windows(windows or [(at("2027-06-01"), at("2027-08-01"))]),
        "valid_until_ms": ENDLESS_MS,
        "price_mutual": 1,
        "price_one_way": 2,
        "reserve": 3,
    }
    return AvailabilitySlot(**{**fields, **changes})


def need(*windows, **changes):
    fields = {
        "slot_id": bytes(16),
        "kind": "compute",
        "quantity": 10,
        "windows_packed": pack_windows(windows),
        "valid_until_ms": ENDLESS_MS,
        "price_max": 5,
    }
    return NeedSlot(**{**fields, **changes})


def matched(slot, wanted, *, tier="open", provider=PROVIDER, customer=CUSTOMER):
    return mismatch(slot, Party(provider, tier), wanted, Party(customer, tier)) is None


def test_d3_a_need_within_a_longer_time_is_found():
    """The original looked in one bucket a month: a slot from June to July missed July's needs."""
    assert matched(offer(), need((at("2027-07-05"), at("2027-07-07"))))
    assert not matched(offer(), need((at("2027-08-01"), at("2027-08-02"))))


def test_d4_a_need_without_a_window_is_met_at_any_time():
    assert matched(offer(), need())
    ended = need(valid_until_ms=at("2027-06-01"))
    assert not matched(offer(), ended)


def test_d5_hours_of_one_day_count():
    """The original compared dates: 9 to 10 matched 20 to 21."""
    morning = (at("2027-06-01T09:00"), at("2027-06-01T10:00"))
    evening = (at("2027-06-01T20:00"), at("2027-06-01T21:00"))
    assert not matched(offer(morning), need(evening))
    assert matched(offer(morning, evening), need(evening))
    assert not matched(offer(morning), need((morning[1], evening[0])))


def test_d10_one_location_matches_itself_and_what_has_none():
    """In the original, a slot and a need that were both in Berlin never matched."""
    assert matched(offer(location="Berlin"), need(location="berlin"))
    assert matched(offer(location="Berlin"), need())
    assert matched(offer(), need(location="Berlin"))
    assert not matched(offer(location="Berlin"), need(location="Bern"))


def test_kinds_do_not_mix():
    assert not matched(offer(kind="storage"), need())


def test_a_node_does_not_serve_itself():
    assert not matched(offer(), need(), customer=PROVIDER)


@pytest.mark.parametrize(
    ("filters", "tier", "expected"),
    [
        ((("node", to_text(CUSTOMER)),), "open", True),
        ((("node", to_text(PROVIDER)),), "open", False),
        ((("node", ""),), "open", False),
        ((("owner", "ALICE"),), "open", True),
        ((("owner", "bob"),), "open", False),
        ((("location", "Berlin"),), "open", True),
        ((("location", "bern"),), "open", False),
        ((("tier", "one_way"),), "open", False),
        ((("tier", "one_way"),), "one_way", True),
        ((("tier", "one_way"),), "mutual", True),
        ((("tier", "mutual"),), "one_way", False),
        ((("tier", "open"),), "open", True),
        ((("tier", "best"),), "mutual", False),
        ((("owner", "alice"), ("tier", "mutual")), "mutual", True),
        ((("owner", "alice"), ("tier", "mutual")), "open", False),
    ],
)
def test_filters_of_a_slot_judge_the_customer(filters, tier, expected):
    wanted = need(owner="alice", location="berlin")
    assert matched(offer(filters=filters), wanted, tier=tier) is expected


@pytest.mark.parametrize(
    ("of_slot", "of_need", "expected"),
    [
        ({}, {}, None),
        ({"kind": "storage"}, {"filters": (("owner", "x"),)}, "the slot offers storage"),
        ({"location": "Bern"}, {"location": "Berlin"}, "the slot is at 'Bern'"),
        ({"filters": (("tier", "mutual"),)}, {}, "the slot serves only tier=mutual"),
        ({}, {"filters": (("owner", "x"),)}, "the need takes only owner=x"),
        ({}, {"valid_until_ms": at("2027-06-01")}, "no window of the slot"),
    ],
)
def test_the_rule_names_what_keeps_a_slot_from_serving_a_need(of_slot, of_need, expected):
    provider, customer = Party(PROVIDER, "open"), Party(CUSTOMER, "open")
    slot, wanted = offer(**of_slot), need(**of_need)
    said = mismatch(slot, provider, wanted, customer)
    assert said is None if expected is None else said.startswith(expected)


def test_filters_of_a_need_judge_the_provider():
    wanted = need(filters=(("node", to_text(PROVIDER)), ("owner", "alice")))
    assert matched(offer(owner="Alice"), wanted)
    assert not matched(offer(owner="bob"), wanted)


def test_a_filter_on_what_is_not_stated_refuses():
    assert not matched(offer(), need(filters=(("owner", "alice"),)))
    assert not matched(offer(), need(filters=(("location", "berlin"),)))


def test_an_unknown_filter_refuses():
    assert not matched(offer(filters=(("certified", "yes"),)), need())
    assert not matched(offer(), need(filters=(("certified", "yes"),)))


@given(
    st.lists(st.integers(0, 400), max_size=6, unique=True).map(sorted),
    st.lists(st.integers(0, 400), max_size=200, unique=True).map(sorted),
)
def test_many_windows_meet_few_as_each_meets_each(few, many):
    left, right = (tuple(zip(cuts[::2], cuts[1::2], strict=False)) for cuts in (few, many))
    expected = any(a < d and c < b for a, b in left for c, d in right)
    for one, other in ((left, right), (right, left)):
        if one and other:
            assert matched(offer(*one), need(*other)) is expected


def test_a_window_after_all_of_many_meets_none_of_them():
    many = [(2 * hour, 2 * hour + 1) for hour in range(20)]
    assert not matched(offer((40, 41)), need(*many))
    assert not matched(offer(*many), need((40, 41)))


@pytest.mark.parametrize(
    ("window", "windows", "expected"),
    [
        ((10, 20), [(0, 100)], (10, 20)),
        ((10, 20), [(12, 15)], (12, 15)),
        ((10, 20), [(0, 12), (15, 17), (19, 30)], (10, 20)),
        ((10, 20), [(0, 10), (20, 30)], None),
        ((10, 20), [], None),
        ((10, 20), [(11, 13), (15, 17)], (11, 17)),
    ],
)
def test_the_time_of_an_entitlement_is_what_both_have_in_common(window, windows, expected):
    assert overlap(window, windows) == expected


@pytest.mark.parametrize(
    ("now_ms", "expected"),
    [(0, (12, 20)), (19, (12, 20)), (20, (30, 40)), (39, (30, 40)), (40, (50, 55)), (60, (50, 55))],
)
def test_a_rate_is_granted_for_the_next_piece_that_has_not_ended(now_ms, expected):
    window, windows = (12, 55), [(0, 5), (10, 15), (15, 20), (30, 40), (50, 70), (80, 90)]
    assert piece(window, windows, kind="compute", now_ms=now_ms) == expected
    assert piece(window, windows, kind="storage", now_ms=now_ms) == (12, 55)
    assert piece((20, 30), windows, kind="compute", now_ms=now_ms) is None
