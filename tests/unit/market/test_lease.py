from dataclasses import replace

import pytest

from xsc.base.limits import (
    AMOUNT_MAX,
    COMPUTE_LEASE_MS,
    EPOCH_MS,
    GIB,
    LATE_MS,
    LEASE_TIMEOUT_MS,
    MFUEL,
    PRICE_FUEL,
    REQUEST_WINDOW_MS,
    STORAGE_LEASE_IDLE_MS,
    STORAGE_LEASE_MS,
)
from xsc.market.lease import (
    LeaseTerms,
    advance,
    check_grant,
    check_request,
    follow,
    hold,
    is_idle,
    is_useful,
    lowered,
    new_use,
    reserved,
    room,
    spend,
    worth,
)
from xsc.market.lease_entry import LeaseEntry, ahead_micro
from xsc.terms.count import CountLine, wide
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.pricing import WORTH

T0 = 1_000_000
P, C, L = b"p" * 32, b"c" * 32, b"l" * 32
STORAGE = LeaseTerms(L, "storage", P, C, 10, 8 * GIB, T0, T0 + STORAGE_LEASE_MS)
COMPUTE = LeaseTerms(L, "compute", P, C, 10, 5 * PRICE_FUEL, T0, T0 + COMPUTE_LEASE_MS)
CLEARED = replace(STORAGE, cleared=True)
FRESH = new_use(STORAGE, T0)
BARE = new_use(COMPUTE, T0)
LAPSE = T0 + STORAGE_LEASE_IDLE_MS


def due(terms, use, now_ms):
    return worth(terms, advance(terms, use, now_ms).used) // WORTH


def test_a_lease_for_now_keeps_all_of_it_free_until_nothing_came_for_ten_minutes():
    assert reserved(STORAGE, FRESH, LAPSE - 1) == 8 * GIB
    assert reserved(STORAGE, FRESH, LAPSE) == 0
    assert due(STORAGE, FRESH, T0) == 0
    assert due(STORAGE, FRESH, LAPSE) == due(STORAGE, FRESH, T0 + 9 * EPOCH_MS) == 80 // 6
    use = hold(STORAGE, FRESH, GIB, LAPSE - 1)
    assert reserved(STORAGE, use, 2 * LAPSE - T0 - 2) == 7 * GIB, "what comes keeps it free"
    assert reserved(STORAGE, use, 2 * LAPSE - T0 - 1) == 0
    late = hold(STORAGE, use, GIB, T0 + EPOCH_MS)
    assert reserved(STORAGE, late, T0 + EPOCH_MS) == 0, "for good"
    assert room(STORAGE, late, T0) == 6 * GIB, "it may still be used where there is room"


def test_what_is_held_is_billed_by_the_millisecond():
    use = replace(hold(STORAGE, FRESH, GIB, T0), level=0)
    assert advance(STORAGE, use, T0 + 7).used == 7 * GIB
    assert due(STORAGE, use, T0 + EPOCH_MS - 1) == 9
    assert due(STORAGE, use, T0 + EPOCH_MS) == 10
    gone = hold(STORAGE, use, -GIB, T0 + EPOCH_MS)
    assert due(STORAGE, gone, T0 + 9 * EPOCH_MS) == 10


def test_what_is_kept_after_the_end_is_billed_while_it_is_held_and_no_longer_than_it_has_to_be():
    use, late = hold(CLEARED, new_use(CLEARED, T0), GIB, T0), CLEARED.end_ms + EPOCH_MS
    whole = CLEARED.quantity * (CLEARED.end_ms - T0)
    assert advance(CLEARED, use, CLEARED.end_ms).used == whole
    assert advance(CLEARED, use, late).used == whole + GIB * EPOCH_MS, "the level has ended"
    assert advance(CLEARED, use, late + 2 * LATE_MS).used == whole + GIB * LATE_MS
    gone = hold(CLEARED, use, -GIB, late)
    assert advance(CLEARED, gone, late + EPOCH_MS).used == whole + GIB * EPOCH_MS


def test_a_cleared_lease_is_billed_for_its_level_until_that_is_lowered():
    use = hold(CLEARED, new_use(CLEARED, T0), GIB, T0)
    assert due(CLEARED, use, T0 + EPOCH_MS) == 80, "also for what is free"
    low = lowered(CLEARED, use, 0, T0 + EPOCH_MS)
    assert (low.level, low.given_back) == (GIB, False), "not below what is held"
    assert due(CLEARED, low, T0 + 2 * EPOCH_MS) == 90
    empty = lowered(CLEARED, hold(CLEARED, low, -GIB, T0 + 2 * EPOCH_MS), 0, T0 + 2 * EPOCH_MS)
    assert empty.given_back
    assert due(CLEARED, empty, T0 + 9 * EPOCH_MS) == 90


def line_of(terms, used, *, held=0, level=0):
    return CountLine(
        lease_id=terms.lease_id, held_bytes=held, level=level, used=wide(used), end_ms=terms.end_ms
    )


def test_what_follows_is_taken_over_and_what_does_not_is_not_paid():
    at = T0 + EPOCH_MS
    most, leeway = GIB * EPOCH_MS, GIB * REQUEST_WINDOW_MS
    use = replace(hold(STORAGE, FRESH, GIB, T0), level=0, leeway=leeway)
    use = advance(STORAGE, use, at)
    for used, good in (
        (most, True),
        (most + leeway, True),
        (most + leeway + 1, False),
        (0, True),
        (2**200, False),
    ):
        line = line_of(STORAGE, used, held=GIB)
        after, paid, follows = follow(STORAGE, use, line, at, stood=True)
        assert follows == good
        assert paid == after.used == (used if good else most)
        assert after.held_bytes == GIB


def test_a_count_lowers_what_is_held_only_where_nothing_changed_meanwhile():
    at = T0 + EPOCH_MS
    use = replace(hold(STORAGE, FRESH, GIB, T0), level=0)
    for stood, said, held in ((True, 5, 5), (False, 5, GIB), (True, 9 * GIB, GIB)):
        line = line_of(STORAGE, 0, held=said)
        after, _, _ = follow(STORAGE, use, line, at, stood=stood)
        assert after.held_bytes == held


def test_fuel_that_never_ran_is_not_paid():
    use = spend(COMPUTE, BARE, 5, T0)
    for said, paid, follows in ((4, 4, True), (5, 5, True), (6, 5, False)):
        after, pays, good = follow(COMPUTE, use, line_of(COMPUTE, said), T0, stood=True)
        assert (after, pays, good) == (use, paid, follows)


def test_no_more_goes_than_was_held():
    assert hold(STORAGE, FRESH, -GIB, T0).held_bytes == 0


def test_room_is_what_is_left():
    assert room(STORAGE, hold(STORAGE, FRESH, 3 * GIB, T0), T0) == 5 * GIB
    assert room(COMPUTE, spend(COMPUTE, BARE, 2 * PRICE_FUEL, T0), T0) == 3 * PRICE_FUEL
    assert room(COMPUTE, spend(COMPUTE, BARE, 9 * PRICE_FUEL, T0), T0) == 0


def test_an_empty_lease_becomes_idle():
    assert not is_idle(STORAGE, FRESH, T0 + STORAGE_LEASE_IDLE_MS - 1)
    assert is_idle(STORAGE, FRESH, T0 + STORAGE_LEASE_IDLE_MS)
    assert not is_idle(STORAGE, hold(STORAGE, FRESH, 1, T0), T0 + STORAGE_LEASE_IDLE_MS)
    assert not is_idle(COMPUTE, FRESH, T0 + STORAGE_LEASE_IDLE_MS)


def test_a_customer_stops_using_a_lease_in_time():
    held = hold(STORAGE, FRESH, 1, T0)
    assert is_useful(STORAGE, FRESH, T0 + STORAGE_LEASE_IDLE_MS // 2 - 1)
    assert not is_useful(STORAGE, FRESH, T0 + STORAGE_LEASE_IDLE_MS // 2)
    assert is_useful(STORAGE, held, T0 + STORAGE_LEASE_MS // 2 - 1)
    assert not is_useful(STORAGE, held, T0 + STORAGE_LEASE_MS // 2)
    assert is_useful(COMPUTE, FRESH, T0)
    assert not is_useful(COMPUTE, FRESH, COMPUTE.end_ms - 1)
    assert not is_useful(STORAGE, replace(held, given_back=True), T0)


def test_what_may_come_to_be_lost_beside_what_is_owed_is_an_hour_more():
    def ahead(terms, use, now_ms):
        return ahead_micro(LeaseEntry("provider", terms, use, b"lease", b"id"), now_ms)

    assert ahead(STORAGE, FRESH, T0) == 80
    assert ahead(COMPUTE, BARE, T0) == 0
    assert ahead(STORAGE, FRESH, STORAGE.end_ms) == 0


def wish(**change):
    fields = {
        "lease_id": L,
        "provider": P,
        "customer": C,
        "kind": "storage",
        "quote": b"q",
        "quantity": 10,
        "quantity_min": 5,
        "price": 3,
        "start_ms": T0,
        "end_ms": T0 + STORAGE_LEASE_MS,
    }
    return LeaseRequest(**(fields | change))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"price": 4}, None),
        ({"lease_id": b"\0" * 32}, "own capacity"),
        ({"price": 2}, "below the 3"),
        ({"start_ms": T0 - REQUEST_WINDOW_MS - 1, "end_ms": T0 + 1}, "begin now"),
        ({"start_ms": T0 + REQUEST_WINDOW_MS + 1}, "begin now"),
        ({"end_ms": T0 + STORAGE_LEASE_MS + 1}, "longer"),
        ({"price": 2**47, "quantity": 2**47}, "worth more"),
    ],
)
def test_requests(change, reason):
    refusal = check_request(wish(**change), 3, T0)
    assert (refusal is None) if reason is None else reason in refusal


@pytest.mark.parametrize(
    "change",
    [
        {"start_ms": T0 - REQUEST_WINDOW_MS, "end_ms": T0 + 1},
        {"start_ms": T0 + REQUEST_WINDOW_MS},
        {"price": AMOUNT_MAX, "quantity": GIB, "quantity_min": 1, "end_ms": T0 + EPOCH_MS},
    ],
)
def test_a_request_at_a_bound_is_within_it(change):
    assert check_request(wish(**change), 3, T0) is None


def test_the_worth_of_a_request_counts_every_epoch_that_begins():
    most = {"price": AMOUNT_MAX, "quantity": GIB, "quantity_min": 1}
    assert check_request(wish(**most, end_ms=T0 + EPOCH_MS + 1), 3, T0)


def test_grants():
    request = wish()
    for quantity, good in ((4, False), (5, True), (10, True), (11, False)):
        lease = Lease(request=b"raw", quantity=quantity, granted_ms=T0)
        assert (check_grant(request, lease) is None) == good
    far = Lease(request=b"raw", quantity=7, granted_ms=T0 - REQUEST_WINDOW_MS - 1)
    assert check_grant(request, far)


def test_the_last_part_of_a_minute_gives_and_costs_as_much_less():
    rate = replace(COMPUTE, cleared=True, quantity=60 * MFUEL, end_ms=T0 + 60_500)
    use = new_use(rate, T0)
    assert room(rate, use, T0 + 59_999) == 60 * MFUEL
    assert room(rate, use, T0 + 60_000) == 60 * MFUEL // 120


def test_a_kind_is_used_as_what_it_is():
    with pytest.raises(AssertionError):
        hold(COMPUTE, BARE, 1, T0)
    with pytest.raises(AssertionError):
        spend(STORAGE, FRESH, 1, T0)
    assert advance(COMPUTE, BARE, T0 + EPOCH_MS) == BARE


def test_nothing_is_reserved_under_a_lease_that_is_over():
    assert reserved(STORAGE, FRESH, STORAGE.end_ms) == 0
    assert reserved(STORAGE, replace(FRESH, given_back=True), T0) == 0
    assert reserved(COMPUTE, BARE, T0) == 0


def test_an_order_must_still_arrive_in_time():
    assert is_useful(COMPUTE, FRESH, COMPUTE.end_ms - LEASE_TIMEOUT_MS - 1)
    assert not is_useful(COMPUTE, FRESH, COMPUTE.end_ms - LEASE_TIMEOUT_MS)
