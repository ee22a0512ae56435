"""The life of a lease: what it allows, what it comes to, and what follows of a count."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from xsc.base.limits import (
    AMOUNT_MAX,
    COMPUTE_LEASE_MS,
    EPOCH_MS,
    GIB,
    LEASE_TIMEOUT_MS,
    MFUEL,
    MIB,
    PRICE_FUEL,
    REQUEST_WINDOW_MS,
    STORAGE_LEASE_MS,
)
from xsc.base.units import format_duration
from xsc.market import account as accounts
from xsc.market import lease as rules
from xsc.market.account import (
    REFUSED_RETRY_MS,
    REFUSED_RETRY_MS_MAX,
    Account,
    is_booking_due,
    views,
)
from xsc.market.lease import (
    LATE_MS,
    LEASE_KEPT_MS,
    QUANTITY_MAX,
    LeaseEntry,
    LeaseUse,
    advance,
    ahead_micro,
    check_grant,
    check_renewal,
    check_request,
    due_ms,
    ended,
    follow,
    hold,
    is_done,
    is_useful,
    kept_free,
    lowered,
    new_use,
    renewed,
    room,
    run_most,
    spend,
    tidied,
    worth,
)
from xsc.storage.object.expiry import before_end
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.pricing import WORTH
from xsc.terms.voucher import CountLine, wide

T0 = 1_700_000_000_000
END = T0 + STORAGE_LEASE_MS
HOST, OTHER, CUSTOMER, L = b"h" * 32, b"o" * 32, b"c" * 32, b"\1" * 32
NEED = b"n" * 16
ACCOUNT = Account("provider", HOST, CUSTOMER)


def asked(kind="storage", level=0, **change):
    """Return the terms of a lease: cleared where it has a level."""
    fields = {
        "lease_id": L,
        "provider": HOST,
        "customer": CUSTOMER,
        "kind": kind,
        "slot": b"s" * 16,
        "window": (0, 2**60),
        "tier": "open",
        "need": NEED if level else None,
        "level": level,
        "price": 10,
        "start_ms": T0,
        "end_ms": END if kind == "storage" else T0 + COMPUTE_LEASE_MS,
    }
    return LeaseRequest(**(fields | change))


STORAGE, COMPUTE = asked(), asked("compute")
CLEARED = asked(level=8 * GIB)
FRESH, BARE, FULL = new_use(STORAGE, 0), new_use(COMPUTE, 0), new_use(CLEARED, 8 * GIB)


def entry(role="provider", kind="storage", *, number=1, use=None, level=0, price=3, **changed):
    of_entry = {"reserved", "promised", "avoided_until_ms", "is_apart"} & changed.keys()
    given = {name: changed.pop(name) for name in of_entry}
    terms = asked(kind, level, price=price, lease_id=bytes([number]) * 32, **changed)
    return LeaseEntry(role, terms, use or new_use(terms, level), b"lease", **given)


def holding(size, **changed):
    return LeaseUse(T0, held_bytes=size, counted_ms=T0, **changed)


def due(terms, use, now_ms):
    return advance(terms, use, now_ms).used // WORTH


def test_a_start_that_is_yet_to_come_makes_nothing_free():
    early_ms = T0 - REQUEST_WINDOW_MS
    use = hold(STORAGE, FRESH, GIB, early_ms)
    assert advance(STORAGE, use, T0).used == worth(STORAGE, GIB * REQUEST_WINDOW_MS)
    use = hold(STORAGE, use, -GIB, T0)
    use = hold(STORAGE, use, GIB, T0 + 5)
    assert advance(STORAGE, use, T0 + 6).used == worth(STORAGE, GIB * (REQUEST_WINDOW_MS + 1))


def test_a_lease_for_now_keeps_nothing_free_and_is_billed_for_what_is_held():
    assert kept_free(entry()) == 0
    assert due(STORAGE, FRESH, END) == 0
    assert room(STORAGE, FRESH, T0) == QUANTITY_MAX, "its provider says what there is"
    use = hold(STORAGE, FRESH, GIB, T0)
    assert advance(STORAGE, use, T0 + 7).used == worth(STORAGE, 7 * GIB)
    assert due(STORAGE, use, T0 + EPOCH_MS - 1) == 9
    assert due(STORAGE, use, T0 + EPOCH_MS) == 10
    gone = hold(STORAGE, use, -GIB, T0 + EPOCH_MS)
    assert due(STORAGE, gone, T0 + 9 * EPOCH_MS) == 10
    assert hold(STORAGE, FRESH, -GIB, T0).held_bytes == 0, "no more goes than was held"


def test_what_is_kept_after_the_end_is_billed_while_it_is_held_and_no_longer_than_it_has_to_be():
    use, late = hold(CLEARED, FULL, GIB, T0), CLEARED.end_ms + EPOCH_MS
    whole = 8 * GIB * (CLEARED.end_ms - T0)

    def comes_to(use, at_ms, used):
        return advance(CLEARED, use, at_ms).used == worth(CLEARED, used)

    assert comes_to(use, CLEARED.end_ms, whole)
    assert comes_to(use, late, whole + GIB * EPOCH_MS), "the level has ended"
    assert comes_to(use, late + 2 * LATE_MS, whole + GIB * LATE_MS)
    assert comes_to(hold(CLEARED, use, -GIB, late), late + EPOCH_MS, whole + GIB * EPOCH_MS)


def test_a_cleared_lease_is_billed_for_its_level_until_that_is_lowered():
    use = hold(CLEARED, FULL, GIB, T0)
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
    most, leeway = (worth(STORAGE, GIB * ms) for ms in (EPOCH_MS, REQUEST_WINDOW_MS))
    use = advance(STORAGE, replace(hold(STORAGE, FRESH, GIB, T0), leeway=leeway), at)
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
    use = hold(STORAGE, FRESH, GIB, T0)
    for stood, said, held in ((True, 5, 5), (False, 5, GIB), (True, 9 * GIB, GIB)):
        line = line_of(STORAGE, 0, held=said)
        after, _, _ = follow(STORAGE, use, line, T0 + EPOCH_MS, stood=stood)
        assert after.held_bytes == held


def test_fuel_that_never_ran_is_not_paid():
    use, step = spend(COMPUTE, BARE, 5, T0), worth(COMPUTE, 1)
    for said, paid, follows in ((4, 4, True), (5, 5, True), (6, 5, False)):
        line = line_of(COMPUTE, said * step)
        assert follow(COMPUTE, use, line, T0, stood=True) == (use, paid * step, follows)


def test_room_is_what_is_left():
    assert room(CLEARED, hold(CLEARED, FULL, 3 * GIB, T0), T0) == 5 * GIB
    assert room(CLEARED, hold(CLEARED, FULL, 9 * GIB, T0), T0) == 0


def test_a_customer_stops_using_a_lease_in_time():
    assert is_useful(STORAGE, FRESH, T0 + STORAGE_LEASE_MS // 2 - 1)
    assert not is_useful(STORAGE, FRESH, T0 + STORAGE_LEASE_MS // 2)
    assert is_useful(COMPUTE, BARE, T0)
    assert is_useful(COMPUTE, BARE, COMPUTE.end_ms - LEASE_TIMEOUT_MS - 1), "an order must arrive"
    assert not is_useful(COMPUTE, BARE, COMPUTE.end_ms - LEASE_TIMEOUT_MS)
    assert not is_useful(STORAGE, replace(FRESH, given_back=True), T0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"price": 11}, None),
        ({"start_ms": T0 - REQUEST_WINDOW_MS, "end_ms": T0 + 1}, None),
        ({"start_ms": T0 + REQUEST_WINDOW_MS}, None),
        ({"price": AMOUNT_MAX, "level": GIB, "end_ms": T0 + EPOCH_MS}, None),
        ({"level": MIB + 1}, None),
        ({"start_ms": T0 - REQUEST_WINDOW_MS - 1, "end_ms": T0 + 1}, "begin now"),
        ({"start_ms": T0 + REQUEST_WINDOW_MS + 1}, "begin now"),
        ({"end_ms": END + 1}, "longer"),
        ({"price": AMOUNT_MAX, "level": GIB, "end_ms": T0 + EPOCH_MS + 1}, "worth more"),
    ],
)
def test_requests(change, reason):
    refusal = check_request(asked(**change), T0, STORAGE_LEASE_MS)
    assert (refusal is None) if reason is None else reason in refusal


def test_a_request_is_for_now_or_names_a_need_and_its_level():
    for change in ({"need": NEED}, {"level": 1, "need": None}, {"end_ms": T0}):
        with pytest.raises(ValidationError):
            asked(**change)


def test_grants():
    request = asked(level=10)
    for level, good in ((0, False), (1, True), (10, True), (11, False)):
        lease = Lease(request=b"raw", level=level)
        assert (check_grant(request, lease) is None) == good
    assert check_grant(STORAGE, Lease(request=b"raw", level=1))


def test_the_last_minute_gives_and_costs_as_much_less_as_it_is_shorter():
    rate = asked("compute", MFUEL, end_ms=T0 + 60_500)
    use = new_use(rate, MFUEL)
    assert room(rate, use, T0 - 1) == 0
    assert room(rate, use, T0 + 500) == 60 * MFUEL
    assert room(rate, use, T0 + 60_000) == MFUEL // 2


def test_a_rate_refills_with_time_up_to_a_minute_and_no_more_runs_than_is_billed():
    rate = asked("compute", MFUEL, end_ms=T0 + EPOCH_MS)
    use = spend(rate, new_use(rate, MFUEL), 60 * MFUEL, T0)
    assert (room(rate, use, T0), run_most(use)) == (0, 60 * MFUEL)
    assert room(rate, use, T0 + 15_000) == 15 * MFUEL
    assert room(rate, use, T0 + EPOCH_MS // 2) == 60 * MFUEL
    use, ran = new_use(rate, MFUEL), 0
    for now_ms in range(T0, rate.end_ms, 7_000):
        steps = room(rate, use, now_ms)
        use, ran = spend(rate, use, steps, now_ms), ran + steps
    assert ran == MFUEL * EPOCH_MS // 1_000
    assert spend(rate, ended(use), 1, rate.end_ms) == ended(use), "a run that ends after its lease"


def test_a_kind_is_used_as_what_it_is():
    with pytest.raises(AssertionError):
        hold(COMPUTE, BARE, 1, T0)
    with pytest.raises(AssertionError):
        spend(STORAGE, FRESH, 1, T0)
    assert advance(COMPUTE, BARE, T0 + EPOCH_MS) == BARE


# Renewal


@pytest.mark.parametrize("term_ms", [60_000, STORAGE_LEASE_MS])
def test_a_provider_refuses_a_longer_lease_than_it_grants_and_says_how_long_that_is(term_ms):
    end_ms = T0 + rules.longest_ms("storage", term_ms, cleared=False)
    assert check_request(asked(end_ms=end_ms), T0, term_ms) is None
    refusal = check_request(asked(end_ms=end_ms + 1), T0, term_ms)
    assert refusal == f"the lease is longer than {format_duration(term_ms)}, the longest here"
    assert rules.longest_ms("compute", term_ms, cleared=False) == COMPUTE_LEASE_MS


@pytest.mark.parametrize("term_ms", [60_000, STORAGE_LEASE_MS])
def test_a_lease_of_any_term_is_renewed_between_its_half_and_the_warning(term_ms):
    old = asked(end_ms=T0 + term_ms)
    for number in range(64):
        terms = asked(lease_id=bytes([number]) * 32, end_ms=T0 + term_ms)
        assert term_ms // 2 < due_ms(terms) - T0 <= term_ms * 5 // 8
        left_ms = terms.end_ms - due_ms(terms)
        assert left_ms > before_end(30 * 86_400_000, term_ms), "before its bytes would move"
    use, now_ms = holding(10), T0 + term_ms // 2 + 1
    assert check_renewal(asked(start_ms=now_ms, end_ms=now_ms + term_ms), old, use, now_ms) is None
    assert check_renewal(asked(start_ms=now_ms, end_ms=old.end_ms + 1), old, use, now_ms)


@pytest.mark.parametrize("counted_ms", [-50, 0, 40])
def test_a_term_begins_at_one_moment_whatever_was_counted_before(counted_ms):
    """Each side has counted up to another moment when it hears of it."""
    now_ms = T0 + 1_000
    use = advance(CLEARED, hold(CLEARED, FULL, GIB, T0), now_ms + counted_ms)
    new = asked(level=2 * GIB, price=7, start_ms=now_ms, end_ms=now_ms + STORAGE_LEASE_MS)
    after = advance(new, renewed("customer", CLEARED, use, new, 2 * GIB), now_ms + 100)
    assert after.used == worth(CLEARED, 8 * GIB * 1_000) + worth(new, 2 * GIB * 100)


def test_a_new_term_brings_back_no_level_that_was_given_up():
    use = lowered(CLEARED, hold(CLEARED, FULL, GIB, T0), 0, T0 + EPOCH_MS)
    assert renewed("provider", CLEARED, use, CLEARED, 8 * GIB).level == GIB


# What follows for a node


def test_what_is_kept_free_is_the_level_less_what_is_held_or_being_written():
    assert kept_free(entry(level=10 * GIB)) == 10 * GIB
    assert kept_free(entry(level=10 * GIB, reserved=3 * GIB)) == 7 * GIB
    assert kept_free(entry(level=10 * GIB, use=holding(4 * GIB, level=10 * GIB))) == 6 * GIB
    assert kept_free(entry(kind="compute", reserved=30)) == 0, "nothing for now"
    assert kept_free(entry(kind="compute", level=100, reserved=30)) == 100


def test_debts_of_several_leases_add_up_and_are_rounded_down_once():
    entries = [entry(use=holding(GIB)), entry(number=2, use=holding(2 * GIB))]
    assert accounts.owed_micro(ACCOUNT, entries, T0) == 0
    assert accounts.owed_micro(ACCOUNT, entries, T0 + EPOCH_MS) == 9
    assert accounts.owed_micro(ACCOUNT, entries, T0 + EPOCH_MS - 1) == 8
    small = [entry(number=number, price=1, use=holding(GIB // 2)) for number in (1, 2)]
    assert accounts.owed_micro(ACCOUNT, small, T0 + EPOCH_MS) == 1, "two halves"
    assert accounts.owed_micro(ACCOUNT, [], T0) == 0
    assert [ahead_micro(each, T0) for each in entries] == [3, 6], "an hour more of each"
    assert ahead_micro(entry(level=GIB), T0) == 3
    assert ahead_micro(entry(kind="compute"), T0) == ahead_micro(entries[0], END) == 0


def test_a_lease_is_done_once_it_is_over_empty_and_no_work_is_left():
    assert not is_done(entry(), T0)
    assert is_done(entry(), END)
    assert not is_done(entry(reserved=1), END)
    assert not is_done(entry(use=holding(GIB)), END), "it holds bytes"


def test_a_cleared_lease_keeps_nothing_after_its_end():
    mine = entry(level=GIB)
    assert [tidied(mine, at_ms)[0].level for at_ms in (T0, END - 1, END)] == [GIB, GIB, 0]


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


def test_a_view_shows_the_lease_as_of_now_and_a_denied_one_as_it_ended():
    held = entry("customer", use=holding(GIB))
    account = Account("customer", HOST, CUSTOMER)
    (seen,) = views(account, [held], T0 + EPOCH_MS)
    assert (seen.status, seen.due_micro, seen.settled_micro, seen.entry.peer) == (
        "open",
        3,
        0,
        HOST,
    )
    held.use = replace(ended(held.use), denial=b"d")
    (seen,) = views(account, [held], T0 + EPOCH_MS)
    assert (seen.status, seen.due_micro) == ("denied", 0)


def test_what_is_settled_counts_for_leases_in_their_order():
    entries = [entry(number=number, use=holding(GIB)) for number in (1, 2, 3)]
    account = Account("provider", HOST, CUSTOMER, closed=WORTH, settled_micro=5)
    dues = [view.due_micro for view in views(account, entries, END)]
    account.settled_micro = dues[0] + 3
    seen = views(account, entries, END)
    assert [view.settled_micro for view in seen] == [dues[0], 2, 0], "what is forgotten comes first"
    assert [view.status for view in seen] == ["settled", "closing", "closing"]


def test_a_quarter_of_the_credit_that_is_left_is_booked_at_once():
    def signed(micro, settled=0):
        return Account("provider", HOST, CUSTOMER, signed_micro=micro, settled_micro=settled)

    waits = [signed(1), signed(24)]
    assert is_booking_due(waits, 100)
    assert not is_booking_due(waits, 101)
    assert not is_booking_due([signed(1), signed(24, 1)], 100), "what is booked waits no more"
    # Nothing can be booked where nothing is left.
    assert not is_booking_due(waits, 0)
    assert not is_booking_due(waits, -1)
    assert not is_booking_due(waits, AMOUNT_MAX)


def test_refused_bookings_are_tried_ever_more_rarely():
    waits = [accounts.retry_ms(refusals) for refusals in range(40)]
    assert waits[:4] == [0, 0, REFUSED_RETRY_MS, 2 * REFUSED_RETRY_MS]
    assert waits == sorted(waits)
    assert waits[-1] == REFUSED_RETRY_MS_MAX


def test_what_a_rate_costs_is_no_more_for_what_ran_within_it():
    rate = asked("compute", PRICE_FUEL)
    use = new_use(rate, PRICE_FUEL)
    ran = spend(rate, use, 60 * PRICE_FUEL, T0)
    assert due(rate, ran, rate.end_ms) == due(rate, use, rate.end_ms) == 60 * 10
