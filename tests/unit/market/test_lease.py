from dataclasses import replace

import pytest

from xsc.base.limits import (
    COMPUTE_LEASE_MS,
    EPOCH_MS,
    MIB,
    REQUEST_WINDOW_MS,
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
    due_micro,
    exposure_micro,
    hold,
    is_idle,
    is_useful,
    next_voucher,
    owed_micro,
    room,
    spend,
    status,
    terms_of,
    with_voucher,
)
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.quote import Quote

T0 = 1_000_000
P, C, L = b"p" * 32, b"c" * 32, b"l" * 32
STORAGE = LeaseTerms(L, "storage", P, C, 10, 8 * MIB, T0, T0 + STORAGE_LEASE_MS)
COMPUTE = LeaseTerms(L, "compute", P, C, 10, 5_000_000, T0, T0 + COMPUTE_LEASE_MS)
FRESH = LeaseUse(touched_ms=T0)


def test_the_first_epoch_is_due_at_once():
    use = hold(STORAGE, FRESH, MIB, T0 + 5)
    assert due_micro(STORAGE, use) == 10
    assert due_micro(STORAGE, advance(STORAGE, use, T0 + EPOCH_MS - 1)) == 10
    assert due_micro(STORAGE, advance(STORAGE, use, T0 + EPOCH_MS)) == 20


def test_an_epoch_counts_the_most_that_was_held_in_it():
    use = hold(STORAGE, FRESH, 4 * MIB, T0)
    use = hold(STORAGE, use, -3 * MIB, T0 + 1)
    use = hold(STORAGE, use, 2 * MIB, T0 + 2)
    assert (use.held_bytes, use.peak_bytes, use.used) == (3 * MIB, 4 * MIB, 4 * MIB)
    use = hold(STORAGE, use, -3 * MIB, T0 + EPOCH_MS)
    assert (use.held_bytes, use.used) == (0, 7 * MIB)
    assert advance(STORAGE, use, T0 + 5 * EPOCH_MS).used == 7 * MIB


def test_nothing_is_due_for_epochs_after_the_end():
    use = hold(STORAGE, FRESH, MIB, T0)
    epochs = STORAGE_LEASE_MS // EPOCH_MS
    assert advance(STORAGE, use, STORAGE.end_ms + 10 * EPOCH_MS).used == epochs * MIB


def test_no_more_goes_than_was_held():
    assert hold(STORAGE, FRESH, -MIB, T0).held_bytes == 0


def test_room_is_what_is_left():
    assert room(STORAGE, hold(STORAGE, FRESH, 3 * MIB, T0)) == 5 * MIB
    assert room(COMPUTE, spend(COMPUTE, FRESH, 2_000_000, 20)) == 3_000_000
    assert room(COMPUTE, spend(COMPUTE, FRESH, 9_000_000, 20)) == 0


def test_the_states_of_a_compute_lease():
    after = COMPUTE.end_ms
    assert status(COMPUTE, FRESH, after - 1) == "open"
    assert status(COMPUTE, FRESH, after) == "expired"
    spent = spend(COMPUTE, FRESH, 1_000_000, 10)
    assert status(COMPUTE, spent, after) == "closing"
    assert status(COMPUTE, replace(spent, settled_micro=10), after) == "settled"


def test_the_states_of_a_storage_lease():
    used = hold(STORAGE, FRESH, MIB, T0)
    gone = replace(hold(STORAGE, used, -MIB, T0 + 1), given_back=True)
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
    assert exposure_micro(STORAGE, hold(STORAGE, FRESH, MIB, T0), T0) == 90
    assert exposure_micro(COMPUTE, FRESH, T0) == 50
    spent = spend(COMPUTE, FRESH, 2_000_000, 20)
    assert exposure_micro(COMPUTE, spent, T0) == 50
    assert exposure_micro(COMPUTE, replace(spent, settled_micro=20), T0) == 30
    assert exposure_micro(COMPUTE, spent, COMPUTE.end_ms) == 20


def test_a_difference_that_clocks_explain_is_not_owed_at_the_end():
    use = hold(STORAGE, FRESH, MIB, T0)
    use = hold(STORAGE, use, -MIB, T0 + EPOCH_MS)
    paid = replace(use, voucher_number=1, voucher_micro=10, voucher_quantity=MIB, settled_micro=10)
    assert due_micro(STORAGE, paid) == 20
    assert owed_micro(STORAGE, paid, T0 + EPOCH_MS) == 10
    over = replace(paid, given_back=True)
    assert owed_micro(STORAGE, over, T0 + EPOCH_MS) == 0
    unpaid = replace(over, settled_micro=0)
    assert owed_micro(STORAGE, unpaid, T0 + EPOCH_MS) == 20
    more = replace(over, used=use.used + 8 * MIB)
    assert owed_micro(STORAGE, more, T0 + EPOCH_MS) > 0


def test_no_voucher_where_nothing_new_is_due():
    assert next_voucher(STORAGE, FRESH, T0) is None
    tiny = hold(STORAGE, FRESH, 100, T0)
    assert next_voucher(STORAGE, tiny, T0) is None
    use = hold(STORAGE, FRESH, MIB, T0)
    first = next_voucher(STORAGE, use, T0)
    assert (first.number, first.amount_micro, first.quantity) == (1, 10, MIB)
    use = with_voucher(use, first)
    assert next_voucher(STORAGE, use, T0) is None
    second = next_voucher(STORAGE, advance(STORAGE, use, T0 + EPOCH_MS), T0 + EPOCH_MS)
    assert (second.number, second.amount_micro) == (2, 20)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"amount_micro": 20, "quantity": 2_000_000}, None),
        ({"lease_id": b"x" * 32}, "another lease"),
        ({"customer": b"x" * 32}, "another lease"),
        ({"number": 1}, "does not follow"),
        ({"amount_micro": 9}, "falls behind"),
        ({"quantity": 999_999}, "falls behind"),
        ({"amount_micro": 31}, "above the price"),
        ({"quantity": 5_000_001}, "more than was leased"),
    ],
)
def test_compute_vouchers(change, reason):
    use = spend(COMPUTE, FRESH, 1_000_000, 10)
    first = next_voucher(COMPUTE, use, T0)
    use = spend(COMPUTE, with_voucher(use, first), 2_000_000, 20)
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
        ({"price": 2**31, "quantity": 2**31}, "worth more"),
    ],
)
def test_requests(change, reason):
    refusal = check_request(wish(**change), QUOTE, T0)
    assert (refusal is None) if reason is None else reason in refusal


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
        spend(STORAGE, FRESH, 1, 1)
    assert advance(COMPUTE, FRESH, T0 + EPOCH_MS) == FRESH
