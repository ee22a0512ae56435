"""What follows from leases as a node keeps them."""

from dataclasses import replace

import pytest

from xsc.base.limits import (
    AMOUNT_MAX,
    EPOCH_MS,
    GIB,
    LEASE_KEPT_MS,
    PRICE_FUEL,
    STORAGE_LEASE_IDLE_MS,
    STORAGE_LEASE_MS,
    UNBOOKED_A_CUSTOMER_MAX,
)
from xsc.market.lease import LeaseTerms, LeaseUse, spend
from xsc.market.lease_entry import (
    Booking,
    LeaseEntry,
    calls_micro,
    exposure_micro,
    is_at_limit,
    is_booking_due,
    is_done,
    kept_free,
    next_booking,
    owed_micro,
    tidied,
    usable,
    view,
)

T0 = 1_700_000_000_000
END = T0 + STORAGE_LEASE_MS
HOST, OTHER, CUSTOMER = b"h" * 32, b"o" * 32, b"c" * 32


def entry(role="provider", kind="storage", *, number=1, use=None, **changed):
    given = {
        "lease_id": bytes([number]) * 32,
        "kind": kind,
        "provider": HOST,
        "customer": CUSTOMER,
        "price": 3,
        "quantity": 10 * GIB,
        "start_ms": T0,
        "end_ms": END,
        "cleared": False,
    }
    terms = LeaseTerms(**{name: changed.pop(name, value) for name, value in given.items()})
    return LeaseEntry(role, terms, use or LeaseUse(T0), b"lease", b"id", **changed)


def holding(size, **changed):
    return LeaseUse(T0, held_bytes=size, peak_bytes=size, used=size, **changed)


def test_storage_keeps_free_what_is_reserved_less_what_is_being_written():
    assert kept_free(entry(), T0) == 10 * GIB
    assert kept_free(entry(reserved=3 * GIB), T0) == 7 * GIB
    assert kept_free(entry(use=holding(4 * GIB)), T0) == 6 * GIB
    assert kept_free(entry(), END) == 0


def test_compute_keeps_free_what_was_cleared_and_nothing_for_now():
    run = {"kind": "compute", "quantity": 100, "reserved": 30}
    assert kept_free(entry(**run), T0) == 0
    cleared = entry(**run, cleared=True, use=LeaseUse(T0, level=100))
    assert kept_free(cleared, T0) == 100
    assert kept_free(cleared, END) == 0


def test_what_runs_may_cost_is_counted_to_their_end():
    run = entry(kind="compute", quantity=9 * PRICE_FUEL, reserved=2 * PRICE_FUEL)
    cleared = entry(kind="compute", reserved=PRICE_FUEL, cleared=True)
    assert calls_micro([run, cleared, entry(reserved=GIB)]) == 6
    run.use = spend(run.terms, run.use, PRICE_FUEL, 3, T0)
    assert exposure_micro([run], END + 1) == 3
    assert calls_micro([run]) == 6


def test_debts_and_exposures_of_several_leases_add_up():
    entries = [entry(use=holding(GIB)), entry(number=2, use=holding(2 * GIB))]
    assert owed_micro(entries, T0) == 9
    assert owed_micro(entries, T0 + EPOCH_MS) == 18
    assert exposure_micro(entries, T0) == 9 + 2 * 30, "and one more epoch of all that is leased"
    assert owed_micro([], T0) == exposure_micro([], T0) == 0


@pytest.mark.parametrize(("left", "reached"), [(8, True), (9, True), (10, False)])
def test_a_customer_is_at_its_limit_once_it_owes_what_is_left(left, reached):
    entries = [entry(use=holding(GIB)), entry(number=2, use=holding(2 * GIB))]
    assert is_at_limit(entries, left, T0) == reached


def test_nobody_reaches_a_limit_under_leases_that_cost_nothing():
    assert not is_at_limit([entry(price=0)], -1, T0)
    assert not is_at_limit([], -1, T0)


def test_a_lease_is_done_once_it_is_over_empty_settled_and_no_work_is_left():
    assert not is_done(entry(), T0)
    assert is_done(entry(), END)
    assert not is_done(entry(reserved=1), END)
    assert not is_done(entry(booking=Booking(1, 0, 1, b"v")), END)
    assert not is_done(entry(use=holding(GIB)), END), "it owes"
    assert not is_done(entry(price=0, use=holding(GIB)), END), "it holds bytes"


def test_an_empty_lease_is_given_back_in_time():
    at = T0 + STORAGE_LEASE_IDLE_MS
    for role in ("customer", "provider"):
        assert not tidied(entry(role), at - 1)[0].given_back
        assert tidied(entry(role), at)[0].given_back
    assert not tidied(entry(reserved=1), at)[0].given_back
    assert not tidied(entry(use=holding(1)), at)[0].given_back


def test_a_settled_lease_is_forgotten_some_time_after_its_end():
    at = END + LEASE_KEPT_MS
    used = entry(use=holding(GIB))
    assert not tidied(used, at)[1], "it owes"
    empty = entry(use=LeaseUse(T0, given_back=True))
    assert not tidied(empty, T0 + LEASE_KEPT_MS - 1)[1]
    assert tidied(empty, T0 + LEASE_KEPT_MS)[1], "its end was when it was given back"
    assert not tidied(entry(denial=b"d"), at - 1)[1]
    assert tidied(entry(denial=b"d"), at)[1]


def test_what_a_customer_still_counts_as_held_is_forgotten_a_term_later():
    free = entry("customer", price=0, use=holding(GIB))
    assert not tidied(free, END + STORAGE_LEASE_MS - 1)[1]
    assert tidied(free, END + STORAGE_LEASE_MS)[1]
    assert not tidied(entry(price=0, use=holding(GIB)), END + STORAGE_LEASE_MS)[1]


def test_the_cheapest_usable_lease_of_each_node_is_found():
    def found(*entries, kind="storage", quantity=GIB, nodes=(HOST, OTHER)):
        return [at.terms.lease_id[0] for at in usable(entries, kind, quantity, nodes, T0)]

    mine = [entry("customer"), entry("customer", number=2, price=2)]
    assert found(*mine, entry("customer", number=3, price=2)) == [2], "of equals the first"
    assert found(*mine, entry("customer", number=3, provider=OTHER)) == [2, 3]
    assert found(*mine, nodes=(OTHER,)) == []
    assert found(*mine, quantity=10 * GIB) == [2]
    assert found(*mine, quantity=10 * GIB + 1) == []
    assert found(*mine, kind="compute") == []
    assert found(entry("customer", denial=b"d")) == []
    assert found(entry("customer", avoided_until_ms=T0 + 1)) == []
    assert found(entry("customer", avoided_until_ms=T0)) == [1]
    assert found(entry("customer", end_ms=T0)) == []
    handed_out = entry("customer", promised=[(T0 + 1, 10 * GIB)])
    assert found(handed_out) == []


def test_what_a_voucher_promises_beyond_what_is_booked_is_booked_next():
    signed = entry(use=replace(LeaseUse(T0), voucher_number=7, voucher_micro=50), voucher=b"v")
    signed.refusals = 2
    assert next_booking(signed, 20) == Booking(7, 2, 30, b"v")
    assert next_booking(signed, 49) == Booking(7, 2, 1, b"v")
    assert next_booking(signed, 50) is None
    assert next_booking(entry(), 0) is None


def test_a_view_shows_the_lease_as_of_now_and_a_denied_one_as_it_ended():
    held = entry("customer", use=holding(GIB))
    later = T0 + EPOCH_MS
    assert (view(held, later).status, view(held, later).used) == ("open", 2 * GIB)
    assert view(held, later).peer == HOST
    held.denial = b"d"
    assert (view(held, later).status, view(held, later).used) == ("denied", GIB)


def signed(micro, number=1, **changed):
    return entry(number=number, use=LeaseUse(T0, voucher_micro=micro), **changed)


def test_a_quarter_of_the_credit_that_is_left_is_booked_at_once():
    waits = [signed(1), signed(24, 2)]
    assert is_booking_due(waits, waits, 100, T0)
    assert not is_booking_due(waits, waits, 101, T0)
    assert is_booking_due(waits[:1], waits, 100, T0), "what others have signed on the same credit"
    # Nothing can be booked where nothing is left.
    assert not is_booking_due(waits, waits, 0, T0)
    assert not is_booking_due(waits, waits, -1, T0)
    assert not is_booking_due(waits, waits, AMOUNT_MAX, T0)


def test_many_leases_that_are_over_are_booked_at_once():
    waits = [signed(1, number) for number in range(UNBOOKED_A_CUSTOMER_MAX)]
    assert not is_booking_due(waits, waits, AMOUNT_MAX, END - 1)
    assert not is_booking_due(waits[1:], waits, AMOUNT_MAX, END)
    assert is_booking_due(waits, waits, AMOUNT_MAX, END)
