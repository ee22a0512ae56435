from dataclasses import asdict, replace

import pytest

from xsc.base.limits import (
    AMOUNT_MAX,
    COMPUTE_LEASE_MS,
    EPOCH_MS,
    GIB,
    LEASE_TIMEOUT_MS,
    PRICE_FUEL,
    REFUSED_RETRY_MS,
    REFUSED_RETRY_MS_MAX,
    REQUEST_WINDOW_MS,
    RESERVED_EPOCHS,
    STORAGE_LEASE_IDLE_MS,
    STORAGE_LEASE_MS,
)
from xsc.market.lease import (
    LeaseTerms,
    LeaseUse,
    advance,
    check_grant,
    check_request,
    check_voucher,
    counted,
    due_micro,
    exposure_micro,
    hold,
    hold_since,
    is_idle,
    is_useful,
    next_voucher,
    owed_micro,
    reserved,
    retry_ms,
    room,
    spend,
    status,
    terms_of,
    tolerance,
    with_voucher,
)
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.pricing import storage_amount
from xsc.terms.quote import Quote

T0 = 1_000_000
P, C, L = b"p" * 32, b"c" * 32, b"l" * 32
STORAGE = LeaseTerms(L, "storage", P, C, 10, 8 * GIB, T0, T0 + STORAGE_LEASE_MS)
COMPUTE = LeaseTerms(L, "compute", P, C, 10, 5 * PRICE_FUEL, T0, T0 + COMPUTE_LEASE_MS)
SMALL = replace(STORAGE, quantity=1600)
FRESH = LeaseUse(touched_ms=T0)


def test_the_first_epoch_is_due_at_once():
    use = hold(STORAGE, FRESH, GIB, T0 + 5)
    assert due_micro(STORAGE, use) == 10
    assert due_micro(STORAGE, advance(STORAGE, use, T0 + EPOCH_MS - 1)) == 10
    assert due_micro(STORAGE, advance(STORAGE, use, T0 + EPOCH_MS)) == 20


def test_an_epoch_counts_the_most_that_was_held_in_it():
    use = hold(STORAGE, FRESH, 4 * GIB, T0)
    use = hold(STORAGE, use, -3 * GIB, T0 + 1)
    use = hold(STORAGE, use, 2 * GIB, T0 + 2)
    assert (use.held_bytes, use.peak_bytes, use.used) == (3 * GIB, 4 * GIB, 4 * GIB)
    use = hold(STORAGE, use, -3 * GIB, T0 + EPOCH_MS)
    assert (use.held_bytes, use.used) == (0, 7 * GIB)
    assert advance(STORAGE, use, T0 + 5 * EPOCH_MS).used == 7 * GIB


def test_nothing_is_due_for_epochs_after_the_end():
    use = hold(STORAGE, FRESH, GIB, T0)
    epochs = STORAGE_LEASE_MS // EPOCH_MS
    assert advance(STORAGE, use, STORAGE.end_ms + 10 * EPOCH_MS).used == epochs * GIB


def test_no_more_goes_than_was_held():
    assert hold(STORAGE, FRESH, -GIB, T0).held_bytes == 0


def test_room_is_what_is_left():
    assert room(STORAGE, hold(STORAGE, FRESH, 3 * GIB, T0), T0) == 5 * GIB
    assert room(COMPUTE, spend(COMPUTE, FRESH, 2 * PRICE_FUEL, 20, T0), T0) == 3 * PRICE_FUEL
    assert room(COMPUTE, spend(COMPUTE, FRESH, 9 * PRICE_FUEL, 20, T0), T0) == 0


def test_the_states_of_a_compute_lease():
    after = COMPUTE.end_ms
    assert status(COMPUTE, FRESH, after - 1) == "open"
    assert status(COMPUTE, FRESH, after) == "expired"
    spent = spend(COMPUTE, FRESH, PRICE_FUEL, 10, T0)
    assert status(COMPUTE, spent, after) == "closing"
    assert status(COMPUTE, replace(spent, settled_micro=10), after) == "settled"


def test_the_states_of_a_storage_lease():
    used = hold(STORAGE, FRESH, GIB, T0)
    gone = replace(hold(STORAGE, used, -GIB, T0 + 1), given_back=True)
    assert status(STORAGE, used, T0) == "open"
    assert status(STORAGE, gone, T0 + 1) == "closing"
    assert status(STORAGE, replace(gone, settled_micro=10), T0 + 1) == "settled"
    assert status(STORAGE, replace(FRESH, given_back=True), T0) == "expired"


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


def test_exposure_is_what_is_owed_and_what_is_still_allowed():
    assert exposure_micro(STORAGE, FRESH, T0) == 80
    assert exposure_micro(STORAGE, hold(STORAGE, FRESH, GIB, T0), T0) == 90
    assert exposure_micro(COMPUTE, FRESH, T0) == 0
    spent = spend(COMPUTE, FRESH, 2 * PRICE_FUEL, 20, T0)
    assert exposure_micro(COMPUTE, spent, T0) == 20
    assert exposure_micro(COMPUTE, replace(spent, settled_micro=20), T0) == 0
    assert exposure_micro(COMPUTE, spent, COMPUTE.end_ms) == 20


def test_a_difference_that_clocks_explain_is_not_owed_at_the_end():
    use = hold(STORAGE, FRESH, GIB, T0)
    use = hold(STORAGE, use, -GIB, T0 + EPOCH_MS)
    paid = replace(use, voucher_number=1, voucher_micro=10, voucher_quantity=GIB, settled_micro=10)
    assert due_micro(STORAGE, paid) == 20
    assert owed_micro(STORAGE, paid, T0 + EPOCH_MS) == 10
    over = replace(paid, given_back=True)
    assert owed_micro(STORAGE, over, T0 + EPOCH_MS) == 0
    unpaid = replace(over, settled_micro=0)
    assert owed_micro(STORAGE, unpaid, T0 + EPOCH_MS) == 20
    more = replace(over, used=use.used + 8 * GIB)
    assert owed_micro(STORAGE, more, T0 + EPOCH_MS) > 0


def test_no_voucher_where_nothing_new_is_due():
    assert next_voucher(STORAGE, FRESH, T0) is None
    tiny = hold(SMALL, FRESH, 100, T0)
    assert next_voucher(SMALL, tiny, T0) is None
    use = hold(STORAGE, FRESH, GIB, T0)
    first = next_voucher(STORAGE, use, T0)
    assert (first.number, first.amount_micro, first.quantity) == (1, 10, GIB)
    use = with_voucher(use, first)
    assert next_voucher(STORAGE, use, T0) is None
    second = next_voucher(STORAGE, advance(STORAGE, use, T0 + EPOCH_MS), T0 + EPOCH_MS)
    assert (second.number, second.amount_micro) == (2, 20)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"amount_micro": 20, "quantity": 2 * PRICE_FUEL}, None),
        ({"lease_id": b"x" * 32}, "another lease"),
        ({"customer": b"x" * 32}, "another lease"),
        ({"number": 1}, "does not follow"),
        ({"amount_micro": 9}, "falls behind"),
        ({"quantity": PRICE_FUEL - 1}, "falls behind"),
        ({"amount_micro": 31}, "above the price"),
        ({"quantity": 5 * PRICE_FUEL + 1}, "more than was leased"),
    ],
)
def test_compute_vouchers(change, reason):
    use = spend(COMPUTE, FRESH, PRICE_FUEL, 10, T0)
    first = next_voucher(COMPUTE, use, T0)
    use = spend(COMPUTE, with_voucher(use, first), 2 * PRICE_FUEL, 20, T0)
    voucher = next_voucher(COMPUTE, use, T0).model_copy(update=change)
    refusal = check_voucher(COMPUTE, use, voucher)
    assert (refusal is None) if reason is None else reason in refusal


QUOTE = Quote(
    provider=P,
    customer=C,
    kind="storage",
    tier="open",
    price_mutual=1,
    price_one_way=2,
    reserve=3,
    price=3,
    available=9,
    valid_from_ms=T0,
    valid_until_ms=T0 + 60_000,
    nonce=b"n" * 16,
)


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
        ({"provider": C}, "other nodes"),
        ({"customer": P}, "other nodes"),
        ({"kind": "compute"}, "another kind"),
        ({"price": 2}, "below the quote"),
        ({"start_ms": T0 - REQUEST_WINDOW_MS - 1, "end_ms": T0 + 1}, "begin now"),
        ({"start_ms": T0 + REQUEST_WINDOW_MS + 1}, "begin now"),
        ({"end_ms": T0 + STORAGE_LEASE_MS + 1}, "longer"),
        ({"price": 2**47, "quantity": 2**47}, "worth more"),
    ],
)
def test_requests(change, reason):
    refusal = check_request(wish(**change), QUOTE, T0)
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
    assert check_request(wish(**change), QUOTE, T0) is None


def test_the_worth_of_a_request_counts_every_epoch_that_begins():
    most = {"price": AMOUNT_MAX, "quantity": GIB, "quantity_min": 1}
    assert check_request(wish(**most, end_ms=T0 + EPOCH_MS + 1), QUOTE, T0)


def test_grants():
    request = wish()
    assert terms_of(request, 7).quantity == 7
    for quantity, good in ((4, False), (5, True), (10, True), (11, False)):
        lease = Lease(request=b"raw", quantity=quantity, granted_ms=T0)
        assert (check_grant(b"raw", request, lease) is None) == good
    assert check_grant(b"other", request, Lease(request=b"raw", quantity=7, granted_ms=T0))


def test_a_kind_is_used_as_what_it_is():
    with pytest.raises(AssertionError):
        hold(COMPUTE, FRESH, 1, T0)
    with pytest.raises(AssertionError):
        spend(STORAGE, FRESH, 1, 1, T0)
    assert advance(COMPUTE, FRESH, T0 + EPOCH_MS) == FRESH


# Room that is reserved


def test_a_byte_costs_a_part_of_what_is_reserved_and_what_is_filled_costs_no_more():
    assert due_micro(STORAGE, FRESH) == 0, "a grant that was lost costs nobody anything"
    byte = hold(STORAGE, FRESH, 1, T0)
    assert counted(STORAGE, byte) == STORAGE.quantity // RESERVED_EPOCHS
    assert due_micro(STORAGE, byte) == 5
    assert counted(STORAGE, hold(STORAGE, byte, GIB, T0)) == GIB + 1
    assert counted(replace(STORAGE, renews=b"o" * 32), byte) == 1, "a renewal reserves nothing"
    voucher = next_voucher(STORAGE, byte, T0)
    assert (voucher.amount_micro, voucher.quantity) == (5, STORAGE.quantity // RESERVED_EPOCHS)
    assert check_voucher(STORAGE, byte, voucher) is None


def test_unused_room_lapses_for_good_once_a_lease_fills_too_slowly():
    part = STORAGE.quantity // RESERVED_EPOCHS
    use = hold(STORAGE, FRESH, part, T0)
    assert reserved(STORAGE, use, T0 + 2 * EPOCH_MS - 1) == room(STORAGE, use, T0)
    assert reserved(STORAGE, use, T0 + 2 * EPOCH_MS) == 0
    late = hold(STORAGE, use, 7 * part, T0 + 2 * EPOCH_MS)
    assert reserved(STORAGE, late, T0 + 2 * EPOCH_MS) == 0
    assert room(STORAGE, late, T0) == 8 * part, "it may still be used where there is room"
    for epoch in range(1, RESERVED_EPOCHS):
        use = hold(STORAGE, use, part, T0 + epoch * EPOCH_MS)
        assert reserved(STORAGE, use, T0 + epoch * EPOCH_MS) == room(STORAGE, use, T0)
    assert use.held_bytes == STORAGE.quantity
    assert reserved(STORAGE, hold(STORAGE, use, -1, T0 + 17 * EPOCH_MS), T0 + 17 * EPOCH_MS) == 0


def test_nothing_is_reserved_under_a_lease_that_is_over():
    assert reserved(STORAGE, FRESH, STORAGE.end_ms) == 0
    assert reserved(STORAGE, replace(FRESH, given_back=True), T0) == 0
    assert reserved(COMPUTE, FRESH, T0) == 0
    assert reserved(COMPUTE, FRESH, COMPUTE.end_ms) == 0


# What two clocks explain


def ended(at_ms, epochs_paid, size=STORAGE.quantity):
    """Return a lease that was given back, of whose epochs some are paid."""
    use = hold(STORAGE, hold(STORAGE, FRESH, size, T0), -size, at_ms)
    paid = storage_amount(STORAGE.price, size * epochs_paid)
    return replace(
        use,
        given_back=True,
        voucher_number=1,
        voucher_micro=paid,
        voucher_quantity=size * epochs_paid,
        settled_micro=paid,
    )


def test_an_epoch_that_had_just_begun_is_forgiven_and_no_other():
    size = STORAGE.quantity
    one = storage_amount(STORAGE.price, size)
    crumb = replace(
        ended(T0 + EPOCH_MS - 1, 1), voucher_micro=1, voucher_quantity=size // 80, settled_micro=1
    )
    assert owed_micro(STORAGE, crumb, T0 + EPOCH_MS) == one - 1
    just = T0 + 3 * EPOCH_MS + REQUEST_WINDOW_MS - 1
    assert owed_micro(STORAGE, ended(just, 3), just) == 0
    assert owed_micro(STORAGE, ended(just, 2), just) == 2 * one, "one epoch, once"
    assert owed_micro(STORAGE, ended(just + 1, 3), just + 1) == one
    assert owed_micro(STORAGE, advance(STORAGE, ended(just, 3), just * 9), just * 9) == 0
    open_still = replace(ended(just, 3), given_back=False)
    assert owed_micro(STORAGE, open_still, just) == one


def test_what_is_forgiven_is_what_a_clock_that_differs_by_a_minute_would_not_count():
    for second in range(-90, 91, 10):
        at_ms = T0 + 3 * EPOCH_MS + 1_000 * second
        skews = range(1 - REQUEST_WINDOW_MS, REQUEST_WINDOW_MS, 9_999)
        least = min((at_ms + skew - T0) // EPOCH_MS + 1 for skew in skews)
        for paid in range(1, 5):
            forgiven = owed_micro(STORAGE, ended(at_ms, paid), at_ms) == 0
            assert forgiven == (paid >= least), (second, paid)


def test_what_came_in_that_minute_is_owed_and_only_what_was_held_before_is_not():
    size = STORAGE.quantity // 2
    begun = T0 + 3 * EPOCH_MS
    use = hold(STORAGE, hold(STORAGE, FRESH, size, T0), size, begun + 1_000)
    use = hold(STORAGE, use, -2 * size, begun + 2_000)
    assert use.used == 3 * size + 2 * size
    for paid, owed in ((3, 2), (4, 0), (5, 0)):
        micro = storage_amount(STORAGE.price, paid * size)
        part = replace(
            use,
            given_back=True,
            voucher_micro=micro,
            voucher_quantity=paid * size,
            settled_micro=micro,
        )
        assert owed_micro(STORAGE, part, begun + 2_000) == storage_amount(
            STORAGE.price, owed * size
        )
        later = advance(STORAGE, part, begun + 9 * EPOCH_MS)
        assert owed_micro(STORAGE, later, begun + 9 * EPOCH_MS) == storage_amount(
            STORAGE.price, owed * size
        )
    again = hold(STORAGE, hold(STORAGE, use, size, begun + 3_000), -size, begun + 9 * EPOCH_MS)
    assert again.edge == size, "once a lease: what was held into the last epoch"


# Bounds, each from both sides


def test_nothing_was_used_of_a_lease_that_is_fresh():
    assert set(asdict(LeaseUse(0)).values()) == {0}


def test_an_order_must_still_arrive_in_time():
    assert is_useful(COMPUTE, FRESH, COMPUTE.end_ms - LEASE_TIMEOUT_MS - 1)
    assert not is_useful(COMPUTE, FRESH, COMPUTE.end_ms - LEASE_TIMEOUT_MS)


def test_clocks_differ_over_storage_alone():
    assert (tolerance(STORAGE), tolerance(COMPUTE)) == (STORAGE.quantity, 0)


def test_one_micro_credit_settles():
    over = replace(FRESH, given_back=True, settled_micro=1)
    assert status(STORAGE, over, T0) == "settled"
    assert status(COMPUTE, spend(COMPUTE, FRESH, 1, 1, T0), COMPUTE.end_ms) == "closing"


def test_refused_bookings_are_tried_ever_more_rarely():
    assert [retry_ms(refusals) for refusals in range(5)] == [
        0,
        0,
        REFUSED_RETRY_MS,
        2 * REFUSED_RETRY_MS,
        4 * REFUSED_RETRY_MS,
    ]
    waits = [retry_ms(refusals) for refusals in range(2, 40)]
    assert waits == [
        min(REFUSED_RETRY_MS * 2**number, REFUSED_RETRY_MS_MAX) for number in range(38)
    ]


def test_a_clock_before_the_start_begins_no_epoch():
    use = hold(STORAGE, FRESH, GIB, T0 - 5 * EPOCH_MS)
    assert (use.epoch, use.used) == (0, GIB)


def test_bytes_carried_into_an_epoch_are_its_edge_until_others_come():
    first = hold(STORAGE, FRESH, 5, T0)
    assert first.edge == 0
    second = advance(STORAGE, first, T0 + EPOCH_MS)
    assert (second.edge, second.used) == (5, 10)
    assert hold(STORAGE, second, 3, T0 + EPOCH_MS).edge == 5
    at_once = T0 + EPOCH_MS + REQUEST_WINDOW_MS - 1
    gone = hold(STORAGE, second, -5, at_once)
    assert gone.edge == 5, "another clock may not count this epoch"
    assert hold(STORAGE, second, -5, at_once + 1).edge == 0
    assert hold(STORAGE, gone, 0, at_once).edge == 5
    assert hold(STORAGE, gone, 1, at_once).edge == 0
    assert advance(STORAGE, gone, T0 + 3 * EPOCH_MS).edge == 5


def test_a_lease_lapses_where_less_than_its_part_was_filled():
    part = STORAGE.quantity // RESERVED_EPOCHS
    for held, lapsed in ((part, False), (part - 1, True)):
        use = advance(STORAGE, hold(STORAGE, FRESH, held, T0), T0 + EPOCH_MS)
        assert use.lapsed == lapsed


def test_what_was_held_and_not_counted_is_due_since_its_epoch():
    use = advance(STORAGE, hold(STORAGE, FRESH, 10, T0), T0 + 3 * EPOCH_MS)
    now_ms = T0 + 3 * EPOCH_MS
    more = hold_since(STORAGE, use, 4, 1, now_ms)
    assert (more.held_bytes, more.used) == (14, use.used + 4 + 2 * 4)
    assert hold_since(STORAGE, use, 4, 3, now_ms).used == use.used + 4
    assert hold_since(STORAGE, use, 4, 4, now_ms).used == use.used + 4
    less = hold_since(STORAGE, use, -4, 0, now_ms)
    assert (less.held_bytes, less.used) == (6, use.used)


def test_a_voucher_may_repeat_the_last_ones_amount_and_quantity():
    use = spend(COMPUTE, FRESH, PRICE_FUEL, 10, T0)
    first = next_voucher(COMPUTE, use, T0)
    again = first.model_copy(update={"number": 2})
    assert check_voucher(COMPUTE, with_voucher(use, first), again) is None
    whole = {"amount_micro": 50, "quantity": COMPUTE.quantity}
    assert check_voucher(COMPUTE, use, first.model_copy(update=whole)) is None
    whole["amount_micro"] = 51
    assert "above the price" in check_voucher(COMPUTE, use, first.model_copy(update=whole))


def test_what_is_forgiven_at_the_end_is_at_most_the_edge():
    over = replace(FRESH, given_back=True, used=20 * GIB, edge=GIB)
    paid = replace(over, voucher_micro=1, settled_micro=1, voucher_quantity=19 * GIB)
    assert owed_micro(STORAGE, paid, T0) == 0
    for change in (
        {"voucher_quantity": 19 * GIB - 1},
        {"settled_micro": 0},
        {"voucher_micro": 0},
        {"held_bytes": 1},
        {"given_back": False},
    ):
        assert owed_micro(STORAGE, replace(paid, **change), T0) > 0
