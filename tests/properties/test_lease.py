"""The laws of a lease: what is owed never falls, and both sides come to the same."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import EPOCH_MS, MIB, RESERVED_EPOCHS
from xsc.market.keeping import agreed, begin_ms, moved, reconciled
from xsc.market.lease import (
    LeaseTerms,
    LeaseUse,
    advance,
    check_voucher,
    counted,
    due_micro,
    exposure_micro,
    hold,
    hold_since,
    new_use,
    next_voucher,
    owed_micro,
    reserved,
    room,
    spend,
    status,
    tolerance,
    with_voucher,
)
from xsc.terms.pricing import compute_amount, storage_amount

EPOCHS = 20
STORAGE = LeaseTerms(
    b"l" * 32, "storage", b"p" * 32, b"c" * 32, 40, 64 * MIB, 1_000, 1_000 + EPOCHS * EPOCH_MS
)
COMPUTE = LeaseTerms(b"l" * 32, "compute", b"p" * 32, b"c" * 32, 40, 10**12, 1_000, 61_000)
FRESH = LeaseUse(touched_ms=1_000)

events = st.lists(
    st.tuples(st.integers(0, 3 * EPOCH_MS), st.integers(-8 * MIB, 8 * MIB)), max_size=12
)


def played(events):
    """Yield (time, use) after each event, where a delta is kept inside of the lease."""
    now, use = STORAGE.start_ms, FRESH
    for wait, delta in events:
        now += wait
        free = room(STORAGE, use, STORAGE.start_ms)
        use = hold(STORAGE, use, min(delta, free), now)
        yield now, use


def by_epochs(events):
    """Reference: for each begun epoch, the most bytes held in it."""
    now, held = STORAGE.start_ms, 0
    most = [0] * EPOCHS
    for wait, delta in events:
        until = now + wait
        first = min((now - STORAGE.start_ms) // EPOCH_MS, EPOCHS - 1)
        last = min((until - STORAGE.start_ms) // EPOCH_MS, EPOCHS - 1)
        for epoch in range(first, last + 1):
            most[epoch] = max(most[epoch], held)
        now = until
        held = max(0, held + min(delta, STORAGE.quantity - held))
        most[last] = max(most[last], held)
    return sum(most)


@given(events)
def test_the_use_is_the_sum_of_each_epochs_most(events):
    last = FRESH
    for _, use in played(events):
        last = use
    assert last.used == by_epochs(events)


@given(events)
def test_what_is_owed_never_falls(events):
    due = 0
    for _, use in played(events):
        assert due_micro(STORAGE, use) >= due
        assert 0 <= use.held_bytes <= use.peak_bytes <= STORAGE.quantity
        due = due_micro(STORAGE, use)


@given(events, st.lists(st.integers(0, 30 * EPOCH_MS), max_size=5))
def test_looking_changes_nothing(events, looks):
    for now, use in played(events):
        seen = use
        for later in sorted(looks):
            seen = advance(STORAGE, seen, now + later)
        end = now + max(looks, default=0)
        assert advance(STORAGE, use, end) == seen
        assert advance(STORAGE, seen, now - 1) == seen


@given(events)
def test_vouchers_of_one_side_pass_the_other(events):
    customer = provider = FRESH
    vouchers = []
    for now, use in played(events):
        customer = replace(
            use,
            voucher_number=customer.voucher_number,
            voucher_micro=customer.voucher_micro,
            voucher_quantity=customer.voucher_quantity,
        )
        voucher = next_voucher(STORAGE, customer, now)
        if voucher is None:
            assert due_micro(STORAGE, customer) == customer.voucher_micro
            continue
        customer = with_voucher(customer, voucher)
        seen = replace(
            use,
            voucher_number=provider.voucher_number,
            voucher_micro=provider.voucher_micro,
            voucher_quantity=provider.voucher_quantity,
        )
        assert check_voucher(STORAGE, seen, voucher) is None
        provider = with_voucher(seen, voucher)
        for old in [*vouchers, voucher]:
            assert check_voucher(STORAGE, provider, old) is not None
        vouchers.append(voucher)
        assert voucher.amount_micro == storage_amount(STORAGE.price, voucher.quantity)
    # Losing all but the last changes nothing.
    if vouchers:
        final = replace(provider, voucher_number=0, voucher_micro=0, voucher_quantity=0)
        assert check_voucher(STORAGE, final, vouchers[-1]) is None
        assert with_voucher(final, vouchers[-1]) == provider


@given(events, st.integers(0, 200 * MIB))
def test_no_more_than_an_epoch_beyond_the_use_is_taken(events, beyond):
    use = FRESH
    now = STORAGE.start_ms
    for moment, after in played(events):
        now, use = moment, after
    more = replace(use, used=use.used + beyond)
    voucher = next_voucher(STORAGE, more, now)
    if voucher is not None:
        refused = check_voucher(STORAGE, use, voucher) is not None
        # What is billed at least counts as used, on both sides.
        ahead = counted(STORAGE, more) - counted(STORAGE, use)
        assert refused == (ahead > tolerance(STORAGE))


@given(st.lists(st.integers(0, 10**10), max_size=20))
def test_a_compute_voucher_is_the_sum_of_its_bills(runs):
    use = FRESH
    for steps in runs:
        use = spend(COMPUTE, use, steps, compute_amount(COMPUTE.price, steps), COMPUTE.start_ms)
    assert due_micro(COMPUTE, use) == sum(compute_amount(COMPUTE.price, run) for run in runs)
    voucher = next_voucher(COMPUTE, use, 2_000)
    if voucher is not None:
        assert voucher.quantity == sum(runs)
        assert check_voucher(COMPUTE, FRESH, voucher) is None


@given(events, st.integers(0, 40 * EPOCH_MS), st.integers(0, 10**9))
def test_what_is_left_to_settle_is_never_negative_and_exposure_covers_it(events, wait, settled):
    for now, use in played(events):
        later = advance(STORAGE, replace(use, settled_micro=settled), now + wait)
        owed = owed_micro(STORAGE, later, now + wait)
        assert 0 <= owed <= due_micro(STORAGE, later)
        assert exposure_micro(STORAGE, later, now + wait) >= owed
        assert (status(STORAGE, later, now + wait) == "open") == (now + wait < STORAGE.end_ms)


moves = st.lists(
    st.tuples(st.integers(0, 5 * EPOCH_MS), st.integers(-2 * MIB, 4 * MIB), st.booleans()),
    min_size=1,
    max_size=12,
)


@given(st.integers(0, 30 * EPOCH_MS), st.integers(1, 8 * MIB), moves)
def test_each_byte_epoch_is_owed_once_whenever_the_bytes_go_over(wait, size, moves):
    """A twin that is never renewed, and does not end, counts as much as old and new together."""
    now = STORAGE.start_ms
    old = twin = hold(STORAGE, FRESH, size, now)
    endless = replace(STORAGE, end_ms=2**60)
    now += wait
    start_ms = begin_ms(STORAGE, now)
    renewing = replace(
        STORAGE,
        lease_id=b"n" * 32,
        start_ms=start_ms,
        end_ms=start_ms + 200 * EPOCH_MS,
        renews=STORAGE.lease_id,
    )
    new = new_use(renewing, now)
    for wait_ms, delta, is_moved in moves:
        now += wait_ms
        if is_moved:
            old, new = moved((STORAGE, old), (renewing, new), abs(delta), now)
        twin = advance(endless, twin, now)
        assert old.held_bytes + new.held_bytes == size
    old, new = moved((STORAGE, old), (renewing, new), size, now)
    assert (old.held_bytes, new.held_bytes) == (0, size)
    later = max(now, start_ms) + 3 * EPOCH_MS
    twin = advance(endless, twin, later)
    old, new = advance(STORAGE, old, later), advance(renewing, new, later)
    assert old.used + new.used == twin.used
    bill = due_micro(STORAGE, old) + due_micro(renewing, new)
    first = STORAGE.quantity // RESERVED_EPOCHS
    assert (
        bill - storage_amount(STORAGE.price, max(0, first - old.used))
        <= due_micro(endless, replace(twin, used=max(twin.used, first))) + 1
    )


@given(st.integers(0, 30 * EPOCH_MS), st.integers(1, 8 * MIB), st.integers(0, 9 * EPOCH_MS))
def test_who_hears_late_that_bytes_went_over_counts_as_the_provider_does(wait, size, late):
    now = STORAGE.start_ms
    use = hold(STORAGE, FRESH, size, now)
    now += wait
    start_ms = begin_ms(STORAGE, now)
    end_ms = start_ms + 200 * EPOCH_MS
    renewing = replace(STORAGE, start_ms=start_ms, end_ms=end_ms, renews=STORAGE.lease_id)
    theirs = moved((STORAGE, use), (renewing, new_use(renewing, now)), size, now)
    now += late
    mine = moved((STORAGE, use), (renewing, new_use(renewing, now)), size, now)
    old, new = advance(STORAGE, theirs[0], now), advance(renewing, theirs[1], now)
    mine = agreed((STORAGE, mine[0]), (renewing, mine[1]), old.used)
    assert [count.used for count in mine] == [old.used, new.used]


mebibytes = st.integers(0, 16 * MIB)


@given(mebibytes, mebibytes, mebibytes, st.integers(0, 9), st.integers(0, 9))
def test_who_missed_a_deletion_counts_like_its_provider_once_that_has_said_so(
    first, freed, again, deleted, told
):
    """Whatever epoch it was deleted and told in; also of bytes that come again in that epoch."""
    at = [STORAGE.start_ms + epoch * EPOCH_MS + 1 for epoch in (0, deleted, deleted + told)]
    both = hold(STORAGE, FRESH, first, at[0])
    provider = advance(STORAGE, hold(STORAGE, both, -min(first, freed), at[1]), at[2])
    customer = reconciled(STORAGE, both, provider.held_bytes, provider.used, at[2])
    assert customer.held_bytes == provider.held_bytes
    mine, theirs = (hold(STORAGE, use, again, at[2]) for use in (customer, provider))
    assert (mine.used, mine.peak_bytes) == (theirs.used, theirs.peak_bytes)


@given(st.integers(0, 8 * MIB), st.integers(1, 8 * MIB), st.integers(0, 15), st.integers(0, 15))
def test_what_is_counted_late_since_its_epoch_is_owed_as_if_counted_in_time(held, more, at, wait):
    now = STORAGE.start_ms + at * EPOCH_MS
    late = now + wait * EPOCH_MS
    use = hold(STORAGE, FRESH, held, STORAGE.start_ms)
    in_time = advance(STORAGE, hold(STORAGE, use, more, now), late)
    found = hold_since(STORAGE, advance(STORAGE, use, late), more, at, late)
    assert (found.held_bytes, found.used) == (in_time.held_bytes, in_time.used)
    gone = hold_since(STORAGE, in_time, -more, at, late)
    assert (gone.held_bytes, gone.used) == (held, in_time.used), "what is owed never falls"


@given(events, st.lists(st.integers(0, 30 * EPOCH_MS), max_size=5))
def test_room_that_lapsed_stays_lapsed_whoever_looks_and_when(events, looks):
    lapsed = False
    for now, use in played(events):
        for later in looks:
            kept = reserved(STORAGE, use, now + later)
            assert kept in (0, room(STORAGE, use, STORAGE.start_ms))
            seen = advance(STORAGE, use, now + later)
            assert reserved(STORAGE, seen, now + later) == kept
        assert use.lapsed or not lapsed
        lapsed = use.lapsed


@given(events)
def test_the_charge_is_for_what_is_reserved_and_falls_away_as_the_lease_is_used(events):
    for _, use in played(events):
        least = STORAGE.quantity // RESERVED_EPOCHS if use.used else 0
        assert counted(STORAGE, use) == max(use.used, least)
