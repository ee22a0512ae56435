"""What follows from leases as a node keeps them."""

from dataclasses import replace

from xsc.base.limits import (
    AMOUNT_MAX,
    EPOCH_MS,
    GIB,
    LEASE_KEPT_MS,
    PRICE_FUEL,
    REFUSED_RETRY_MS,
    REFUSED_RETRY_MS_MAX,
    STORAGE_LEASE_IDLE_MS,
    STORAGE_LEASE_MS,
)
from xsc.market import account as rules
from xsc.market.account import Account, Booking, is_booking_due, next_booking, views
from xsc.market.lease import LeaseTerms, LeaseUse, ended, new_use, spend
from xsc.market.lease_entry import (
    LeaseEntry,
    ahead_micro,
    calls_micro,
    is_done,
    kept_free,
    tidied,
)
from xsc.terms.pricing import WORTH

T0 = 1_700_000_000_000
END = T0 + STORAGE_LEASE_MS
HOST, OTHER, CUSTOMER = b"h" * 32, b"o" * 32, b"c" * 32
ACCOUNT = Account("provider", HOST, CUSTOMER)


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
    return LeaseEntry(role, terms, use or new_use(terms, T0), b"lease", b"id", **changed)


def holding(size, **changed):
    """Return the use of a lease under which bytes lie, and no room is kept free."""
    return LeaseUse(T0, held_bytes=size, counted_ms=T0, **changed)


def test_storage_keeps_free_what_is_reserved_less_what_is_being_written():
    assert kept_free(entry(), T0) == 10 * GIB
    assert kept_free(entry(reserved=3 * GIB), T0) == 7 * GIB
    assert kept_free(entry(use=holding(4 * GIB, level=10 * GIB)), T0) == 6 * GIB
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
    run.use = spend(run.terms, run.use, PRICE_FUEL, T0)
    assert rules.owed_micro(ACCOUNT, [run], END + 1) == 3
    assert calls_micro([run]) == 6


def test_debts_of_several_leases_add_up_and_are_rounded_down_once():
    entries = [entry(use=holding(GIB)), entry(number=2, use=holding(2 * GIB))]
    assert rules.owed_micro(ACCOUNT, entries, T0) == 0
    assert rules.owed_micro(ACCOUNT, entries, T0 + EPOCH_MS) == 9
    assert rules.owed_micro(ACCOUNT, entries, T0 + EPOCH_MS - 1) == 8
    small = [entry(number=number, price=1, use=holding(GIB // 2)) for number in (1, 2)]
    assert rules.owed_micro(ACCOUNT, small, T0 + EPOCH_MS) == 1, "two halves"
    assert rules.owed_micro(ACCOUNT, [], T0) == 0
    assert [ahead_micro(each, T0) for each in entries] == [30, 30], "an hour more of each"
    assert ahead_micro(entries[0], END) == 0


def test_a_lease_is_done_once_it_is_over_empty_and_no_work_is_left():
    assert not is_done(entry(), T0)
    assert is_done(entry(), END)
    assert not is_done(entry(reserved=1), END)
    assert not is_done(entry(use=holding(GIB)), END), "it holds bytes"


def test_an_empty_lease_is_given_back_in_time():
    at = T0 + STORAGE_LEASE_IDLE_MS
    for role in ("customer", "provider"):
        assert not tidied(entry(role), at - 1)[0].given_back
        assert tidied(entry(role), at)[0].given_back
    assert not tidied(entry(reserved=1), at)[0].given_back
    assert not tidied(entry(use=holding(1)), at)[0].given_back


def test_a_provider_forgets_a_lease_some_time_after_its_end():
    at = END + LEASE_KEPT_MS
    assert not tidied(entry(use=holding(GIB)), END - 1)[1]
    assert not tidied(entry(reserved=1), at)[1], "something is written"
    assert not tidied(entry(use=holding(GIB)), at)[1], "it holds bytes"
    empty = entry(use=LeaseUse(T0, given_back=True))
    assert not tidied(empty, T0 + LEASE_KEPT_MS - 1)[1]
    assert tidied(empty, T0 + LEASE_KEPT_MS)[1], "its end was when it was given back"


def test_what_a_customer_still_counts_as_held_is_forgotten_a_term_later():
    held = entry("customer", use=holding(GIB))
    assert not tidied(held, END + STORAGE_LEASE_MS - 1)[1]
    assert tidied(held, END + STORAGE_LEASE_MS)[1]


def test_what_a_voucher_promises_beyond_what_is_booked_is_booked_next():
    signed = Account("provider", HOST, CUSTOMER, number=7, signed_micro=50, voucher=b"v")
    signed.refusals = 2
    for settled_micro, booking in ((20, Booking(7, 2, 30, b"v")), (49, Booking(7, 2, 1, b"v"))):
        signed.settled_micro = settled_micro
        assert next_booking(signed) == booking
    signed.settled_micro = 50
    assert next_booking(signed) is None
    assert next_booking(Account("provider", HOST, CUSTOMER)) is None


def test_a_view_shows_the_lease_as_of_now_and_a_denied_one_as_it_ended():
    held = entry("customer", use=holding(GIB))
    account = Account("customer", HOST, CUSTOMER)
    (seen,) = views(account, [held], T0 + EPOCH_MS)
    assert (seen.status, seen.due_micro, seen.settled_micro, seen.peer) == ("open", 3, 0, HOST)
    held.use = replace(ended(held.use), denial=b"d")
    (seen,) = views(account, [held], T0 + EPOCH_MS)
    assert (seen.status, seen.due_micro) == ("denied", 0)


def test_what_is_settled_counts_for_leases_in_their_order():
    entries = [entry(number=number, use=holding(GIB)) for number in (1, 2, 3)]
    account = Account("provider", HOST, CUSTOMER, closed=WORTH, settled_micro=5)
    at = END
    dues = [view.due_micro for view in views(account, entries, at)]
    account.settled_micro = dues[0] + 3
    seen = views(account, entries, at)
    assert [view.settled_micro for view in seen] == [dues[0], 2, 0], "what is forgotten comes first"
    assert [view.status for view in seen] == ["settled", "closing", "closing"]


def signed(micro, settled=0):
    return Account("provider", HOST, CUSTOMER, signed_micro=micro, settled_micro=settled)


def test_a_quarter_of_the_credit_that_is_left_is_booked_at_once():
    waits = [signed(1), signed(24)]
    assert is_booking_due(waits, 100)
    assert not is_booking_due(waits, 101)
    assert not is_booking_due([signed(1), signed(24, 1)], 100), "what is booked waits no more"
    # Nothing can be booked where nothing is left.
    assert not is_booking_due(waits, 0)
    assert not is_booking_due(waits, -1)
    assert not is_booking_due(waits, AMOUNT_MAX)


def test_refused_bookings_are_tried_ever_more_rarely():
    waits = [rules.retry_ms(refusals) for refusals in range(40)]
    assert waits[:4] == [0, 0, REFUSED_RETRY_MS, 2 * REFUSED_RETRY_MS]
    assert waits == sorted(waits)
    assert waits[-1] == REFUSED_RETRY_MS_MAX
