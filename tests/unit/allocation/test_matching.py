"""Which needs a slot can serve: each rule by itself, and four defects that must not return."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.allocation.clearing import TIERS
from xsc.allocation.granting import entitlements
from xsc.allocation.matching import mismatch
from xsc.allocation.published import Published, standing
from xsc.allocation.windows import ENDLESS_MS
from xsc.base.ids import to_text
from xsc.base.limits import MUTUAL_RECOGNITION_THRESHOLD_PPM as TAU
from xsc.terms.clearing import (
    SlotAllocationRecord,
    SlotDenominators,
    SpaceValue,
    TierLine,
    TwoTierAllocationState,
)
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot

PROVIDER, CUSTOMER = bytes([1]) * 32, bytes([2]) * 32


def node(id_, weights=None):
    return Published(id_, Commitment(), SpaceValue(record=b"", value=b""), weights or {})


def at(text):
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


def offer(*windows, **changes):
    fields = {
        "slot_id": bytes(16),
        "kind": "compute",
        "quantity": 100,
        "windows": tuple(windows or [(at("2027-06-01"), at("2027-08-01"))]),
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
        "windows": tuple(windows),
        "valid_until_ms": ENDLESS_MS,
        "price_max": 5,
    }
    return NeedSlot(**{**fields, **changes})


NOW = at("2027-07-05T09:30")


def matched(slot, wanted, *, tier="open", customer=CUSTOMER, now=NOW):
    weight = {"open": 0, "one_way": TAU - 1, "mutual": TAU}[tier]
    provider, other = node(PROVIDER, {customer: weight}), node(customer, {PROVIDER: weight})
    assert standing(provider, other)[0] == standing(other, provider)[0] == tier
    return mismatch(slot, provider, wanted, other, now) is None


def test_d3_a_need_within_a_longer_time_is_found():
    """The original looked in one bucket a month: a slot from June to July missed July's needs."""
    assert matched(offer(), need((at("2027-07-05"), at("2027-07-07"))))
    assert not matched(offer(), need((at("2027-07-06"), at("2027-07-07"))))


def test_d4_a_need_without_a_window_is_met_at_any_time():
    assert matched(offer(), need())
    ended = need(valid_until_ms=at("2027-06-01"))
    assert not matched(offer(), ended)


def test_d5_hours_of_one_day_count():
    """The original compared dates: 9 to 10 matched 20 to 21."""
    morning = (at("2027-07-05T09:00"), at("2027-07-05T10:00"))
    evening = (at("2027-07-05T20:00"), at("2027-07-05T21:00"))
    for now in (*morning, *evening):
        assert not matched(offer(morning), need(evening), now=now)
        assert matched(offer(evening), need(evening), now=now) is (now == evening[0])
        assert not matched(offer(morning), need((morning[1], evening[0])), now=now)


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
        ({}, {"valid_until_ms": at("2027-06-01")}, "the need has no window now"),
        ({"windows": ((0, NOW),)}, {}, "the slot has no window now"),
    ],
)
def test_the_rule_names_what_keeps_a_slot_from_serving_a_need(of_slot, of_need, expected):
    provider, customer = node(PROVIDER), node(CUSTOMER)
    slot, wanted = offer(**of_slot), need(**of_need)
    said = mismatch(slot, provider, wanted, customer, NOW)
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
    *[st.lists(st.integers(0, 60), min_size=2, max_size=2, unique=True).map(sorted)] * 2,
    st.integers(0, 61),
)
def test_the_time_of_an_entitlement_is_what_the_windows_of_a_moment_have_in_common(
    left, right, now
):
    is_in_both = all(start <= now < end for start, end in (left, right))
    slot, wanted = offer(tuple(left)), need(tuple(right))
    tiers = tuple(
        TierLine(tier=tier, capacity=1, given=int(tier == "open"), denominator=0) for tier in TIERS
    )
    line = SlotAllocationRecord(
        customer=CUSTOMER, need=wanted.slot_id, tier="open", quantity=1, price=0, granted_ms=0
    )
    state = TwoTierAllocationState(
        slot_denominators=(
            SlotDenominators(
                slot=slot.slot_id,
                window=tuple(left),
                kind=slot.kind,
                rule=slot.rule,
                clearing=bytes(32),
                tiers=tiers,
                allocations=(line,),
            ),
        )
    )
    needs = {(CUSTOMER, wanted.slot_id): wanted}
    found = [
        each.window for each in entitlements(PROVIDER, state, {slot.slot_id: slot}, needs, now)
    ]
    both = max(left[0], right[0]), min(left[1], right[1])
    assert found == ([both] if is_in_both else [])
    assert matched(slot, wanted, now=now) is is_in_both
