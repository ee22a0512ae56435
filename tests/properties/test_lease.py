"""The laws of leases: both sides come to the same, and nobody pays what does not follow."""

from dataclasses import dataclass, field, replace
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from xsc.base.limits import (
    COMPUTE_LEASE_MS,
    EPOCH_MS,
    MFUEL,
    MIB,
    REQUEST_WINDOW_MS,
    STORAGE_LEASE_IDLE_MS,
)
from xsc.identity.envelope import Signed
from xsc.market import account as rules
from xsc.market.account import Account
from xsc.market.lease import (
    LeaseTerms,
    advance,
    ended,
    hold,
    lowered,
    moved,
    new_use,
    reserved,
    room,
    spend,
    widened,
    worth,
)
from xsc.market.lease_entry import LeaseEntry
from xsc.terms.count import wide
from xsc.terms.pricing import WORTH, compute_amount

EPOCHS = 20
START = 1_700_000_000_000
LONG_MS = EPOCHS * EPOCH_MS
P, C = b"p" * 32, b"c" * 32
STORAGE = LeaseTerms(b"l" * 32, "storage", P, C, 40, 64 * MIB, START, START + LONG_MS)
COMPUTE = LeaseTerms(b"j" * 32, "compute", P, C, 40, 10**12, START, START + COMPUTE_LEASE_MS)
CLEARED = replace(STORAGE, lease_id=b"k" * 32, cleared=True)
RATE = LeaseTerms(
    b"r" * 32, "compute", P, C, 40_000, 900 * MFUEL, START, START + LONG_MS, cleared=True
)
NEXT = replace(
    STORAGE, lease_id=b"n" * 32, price=41, renews=STORAGE.lease_id, end_ms=START + 2 * LONG_MS
)
FRESH = new_use(STORAGE, START)
ALL = (STORAGE, COMPUTE, CLEARED, RATE, NEXT)


def entry_of(role, terms):
    return LeaseEntry(role, terms, new_use(terms, terms.start_ms), b"raw", b"id")


@dataclass
class Pair:
    """A customer and a provider, whose clock differs from the customer's by `skew_ms`."""

    skew_ms: int = 0
    terms: tuple = ALL
    now_ms: int = START
    vouchers: list = field(default_factory=list)

    def __post_init__(self):
        self.mine = {each.lease_id: entry_of("customer", each) for each in self.terms}
        self.theirs = {each.lease_id: entry_of("provider", each) for each in self.terms}
        self.own, self.other = Account("customer", P, C), Account("provider", P, C)

    @property
    def their_ms(self):
        return self.now_ms + self.skew_ms

    def change(self, lease_id, change):
        """Have a change of a use happen at both sides, each by its own clock."""
        mine, theirs = self.mine[lease_id], self.theirs[lease_id]
        mine.use = change(mine.terms, mine.use, self.now_ms)
        theirs.use = change(theirs.terms, theirs.use, self.their_ms)

    def hold(self, terms, delta):
        theirs = self.theirs[terms.lease_id]
        if theirs.use.given_back or not terms.start_ms <= min(self.now_ms, self.their_ms):
            return
        if max(self.now_ms, self.their_ms) >= terms.end_ms:
            return
        delta = max(-theirs.use.held_bytes, min(delta, room(terms, theirs.use, self.their_ms)))
        if delta:
            self.change(terms.lease_id, lambda t, use, now_ms: hold(t, use, delta, now_ms))

    def lower(self, terms, level):
        """Give room up by the customer's clock on both sides."""
        for side in (self.mine, self.theirs):
            entry = side[terms.lease_id]
            if entry.use.level:
                entry.use = lowered(terms, entry.use, level, self.now_ms)

    def run(self, terms, steps):
        if max(self.now_ms, self.their_ms) < terms.end_ms:
            self.change(terms.lease_id, lambda t, use, now_ms: spend(t, use, steps, now_ms))

    def move(self, size):
        for side, now_ms in ((self.mine, self.now_ms), (self.theirs, self.their_ms)):
            old, new = side[STORAGE.lease_id], side[NEXT.lease_id]
            fits = min(size, max(0, NEXT.quantity - new.use.held_bytes))
            uses = moved((old.terms, old.use), (new.terms, new.use), fits, now_ms)
            old.use, new.use = (widened(use, STORAGE.quantity) for use in uses)
            new.use = widened(new.use, fits, max(0, now_ms - new.terms.start_ms))

    def count(self):
        """Return what the provider signs now."""
        for entry in self.theirs.values():
            entry.use = advance(entry.terms, entry.use, self.their_ms)
        return rules.count_of(self.other, list(self.theirs.values()), self.their_ms)

    def take(self, count):
        """Have the customer take a count over; return what it makes of it."""
        agreed = rules.agree(
            self.own,
            list(self.mine.values()),
            Signed(count, P, b"net", count.id, b"count"),
            moving=(),
            asked_ms=self.now_ms + 1,
            now_ms=self.now_ms,
        )
        self.own.closed = agreed.closed
        for entry, use in agreed.uses:
            entry.use = use
        for lease_id in {entry.terms.lease_id for entry in agreed.gone} | agreed.denied:
            if lease_id not in {line.lease_id for line in count.leases}:
                del self.mine[lease_id]
        voucher = rules.next_voucher(self.own, agreed.amount_micro, count)
        if voucher is not None:
            rules.with_voucher(self.own, voucher, voucher.to_bytes())
            self.vouchers.append(voucher)
        return agreed

    def pay(self):
        if self.vouchers:
            newest = self.vouchers[-1]
            assert rules.check_voucher(self.other, newest, newest.to_bytes()) is None
            rules.with_voucher(self.other, newest, newest.to_bytes())

    def play(self, step):
        what, wait_ms, number = step
        self.now_ms += wait_ms
        match what:
            case "hold":
                self.hold(STORAGE, number)
            case "hold cleared":
                self.hold(CLEARED, number)
            case "lower":
                self.lower(CLEARED, abs(number))
            case "lower rate":
                self.lower(RATE, abs(number) % 900 * MFUEL)
            case "run":
                self.run(COMPUTE, abs(number))
            case "run rate":
                self.run(RATE, abs(number))
            case "move":
                self.move(abs(number))
            case "count":
                assert not self.take(self.count()).disputed
                self.pay()
            case "count, answer lost":
                self.count()
            case "count, voucher lost":
                assert not self.take(self.count()).disputed

    def ceiling(self, now_ms):
        """Return quantity, price and time of every lease, in WORTHths of a micro-credit."""
        total = 0
        for terms in self.terms:
            most = terms.quantity
            if terms.kind == "storage" or terms.cleared:
                most *= max(0, min(now_ms, terms.end_ms) - terms.start_ms)
            total += worth(terms, most)
        return total


STEPS = st.tuples(
    st.sampled_from(
        [
            "hold",
            "hold",
            "hold cleared",
            "lower",
            "lower rate",
            "run",
            "run rate",
            "move",
            "count",
            "count, answer lost",
            "count, voucher lost",
        ]
    ),
    st.one_of(st.integers(0, 90_000), st.integers(0, 3 * EPOCH_MS)),
    st.integers(-20 * MIB, 20 * MIB),
)
SKEWS = st.integers(-REQUEST_WINDOW_MS, REQUEST_WINDOW_MS)


# Room for now lapses by two clocks, long after the last change was agreed on.
@example(steps=[("hold", 0, 1), ("count", 0, 0)], skew=REQUEST_WINDOW_MS, wait=EPOCH_MS)
# The provider counts of a moment before the one at which a level was given up by the other clock.
@example(
    steps=[
        ("hold", 60_000, 0),
        ("lower", 0, 1),
        ("hold", 1, 0),
        ("count", 0, 0),
        ("lower", 0, 0),
        ("count", 0, 0),
    ],
    skew=-2,
    wait=0,
)
@given(st.lists(STEPS, max_size=20), SKEWS, st.integers(0, 3 * LONG_MS))
def test_after_a_last_count_both_totals_are_equal_and_within_what_was_leased(steps, skew, wait):
    pair = Pair(skew)
    for step in steps:
        pair.play(step)
    pair.now_ms += wait
    count = pair.count()
    agreed = pair.take(count)
    pair.pay()
    assert not agreed.disputed
    theirs = rules.due_micro(pair.other, pair.theirs.values(), pair.their_ms)
    own = (
        pair.own.closed + sum(worth(entry.terms, entry.use.used) for entry in pair.mine.values())
    ) // WORTH
    assert own == theirs == count.amount_micro
    # A level that was given up since may have been paid for a minute more: it is owed next.
    ahead = sum(worth(each, each.quantity * max(0, skew)) for each in (CLEARED, RATE)) // WORTH
    assert theirs <= pair.own.signed_micro == pair.other.signed_micro <= theirs + ahead + 1
    runs = sum(e.use.used for e in pair.theirs.values() if e.terms is COMPUTE)
    assert theirs <= (pair.ceiling(pair.their_ms) + worth(COMPUTE, runs)) // WORTH


@given(st.lists(STEPS, max_size=20), st.lists(st.integers(0, 3 * EPOCH_MS), max_size=6))
def test_any_counts_in_between_give_the_total_of_one(steps, looks):
    one, many = Pair(), Pair()
    steps = [step for step in steps if not step[0].startswith("count")]
    for step in steps:
        for part in sorted({min(look, step[1]) for look in looks}):
            many.now_ms, before = many.now_ms + part, many.now_ms
            many.take(many.count())
            many.now_ms = before
        one.play(step)
        many.play(step)
    one.now_ms = many.now_ms = max(one.now_ms, many.now_ms)
    assert one.take(one.count()).amount_micro == many.take(many.count()).amount_micro


@given(st.lists(STEPS, max_size=10))
def test_a_voucher_never_falls_and_old_ones_change_nothing(steps):
    pair = Pair()
    for step in [*steps, ("count", EPOCH_MS, 0)]:
        pair.play(step)
    numbers = [(voucher.number, voucher.amount_micro) for voucher in pair.vouchers]
    assert numbers == sorted(set(numbers))
    # Losing all but the last changes nothing.
    late = Account("provider", P, C)
    for voucher in pair.vouchers[-1:]:
        assert rules.check_voucher(late, voucher, voucher.to_bytes()) is None
        rules.with_voucher(late, voucher, voucher.to_bytes())
    assert (late.number, late.signed_micro) == (pair.other.number, pair.other.signed_micro)


LIES = st.sampled_from(["used", "held", "level", "twice", "closed", "amount", "somebody's", "end"])


@given(st.lists(STEPS, max_size=10), SKEWS, LIES, st.integers(1, 2**70), st.data())
def test_who_counts_more_than_follows_is_never_paid_for_it(steps, skew, lie, more, data):
    pair = Pair(skew)
    for step in steps:
        pair.play(step)
    pair.now_ms += EPOCH_MS
    honest = pair.count()
    most = honest.amount_micro
    lines, change = list(honest.leases), {}
    place = data.draw(st.integers(0, len(lines) - 1))
    line = lines[place]
    entry = pair.mine[line.lease_id]
    if lie == "used":
        at = advance(entry.terms, entry.use, max(pair.now_ms, pair.their_ms))
        lines[place] = line.model_copy(update={"used": wide(at.used + entry.use.leeway + more)})
    elif lie == "held":
        lines[place] = line.model_copy(update={"held_bytes": line.held_bytes + min(more, 2**60)})
    elif lie == "level":
        lines[place] = line.model_copy(update={"level": line.level + min(more, 2**60)})
    elif lie == "twice":
        lines.append(line)
    elif lie == "closed":
        change["closed"] = wide(int.from_bytes(honest.closed, "big") + more)
    elif lie == "somebody's":
        lines.append(line.model_copy(update={"lease_id": b"?" * 32, "used": wide(more)}))
    elif lie == "end":
        lines[place] = line.model_copy(update={"end_ms": line.end_ms + min(more, 2**50)})
    change["amount_micro"] = min(2**60, most + more)
    lying = honest.model_copy(update={"leases": tuple(lines), **change})
    if lie == "twice":
        wrong = rules.check_count(pair.own, lying, pair.now_ms)
        assert wrong is not None
        return
    agreed = pair.take(lying)
    # What a minute of each clock explains is the most that a lie gains, and no voucher more.
    explained = sum(
        worth(each.terms, advance(each.terms, each.use, pair.their_ms).used)
        for each in pair.mine.values()
    )
    assert agreed.amount_micro <= max(most, (pair.own.closed + explained) // WORTH)
    if lie == "used":
        assert line.lease_id in agreed.disputed
    else:
        assert agreed.amount_micro == most
    # Whatever it said, the honest count pays what is due.
    pair.now_ms += EPOCH_MS
    again = pair.count()
    pair.take(again)
    assert pair.own.signed_micro == again.amount_micro


events = st.lists(
    st.tuples(st.integers(0, 3 * EPOCH_MS), st.integers(-8 * MIB, 8 * MIB)), max_size=12
)


def played(events, terms=STORAGE):
    """Yield (time, use) after each event, where a delta is kept inside of the lease."""
    now, use = terms.start_ms, FRESH
    for wait, delta in events:
        now += wait
        use = hold(terms, use, min(delta, room(terms, use, now)), now)
        yield now, use


def by_the_second(events, until_ms):
    """Reference: what is held or kept free, for each stretch of time between two changes."""
    now, touched, held, total = START, START, 0, 0
    end_ms = STORAGE.end_ms
    lapsed = False
    for wait, delta in [*events, (until_ms, 0)]:
        then = min(until_ms, now + wait)
        marks = sorted({now, then, min(max(touched + STORAGE_LEASE_IDLE_MS, now), then)})
        for first, last in pairwise(marks):
            lapsed = lapsed or first >= touched + STORAGE_LEASE_IDLE_MS
            billed = held if lapsed else max(held, STORAGE.quantity)
            total += billed * max(0, min(last, end_ms) - min(first, end_ms))
        if then >= touched + STORAGE_LEASE_IDLE_MS:
            lapsed = lapsed or touched + STORAGE_LEASE_IDLE_MS <= end_ms
        now = then
        held = max(0, held + min(delta, STORAGE.quantity - held))
        touched = now
    return total


@given(events)
def test_the_use_is_what_was_held_or_kept_free_for_each_millisecond(events):
    now, last = [(START, FRESH), *played(events)][-1]
    assert last.used == by_the_second(events, now)


@given(events)
def test_what_is_owed_never_falls(events):
    used = 0
    for _, use in played(events):
        assert use.used >= used
        assert 0 <= use.held_bytes <= STORAGE.quantity
        used = use.used


@given(events, st.lists(st.integers(0, 30 * EPOCH_MS), max_size=5))
def test_looking_changes_nothing(events, looks):
    for now, use in played(events):
        seen = use
        for later in sorted(looks):
            seen = advance(STORAGE, seen, now + later)
        end = now + max(looks, default=0)
        assert advance(STORAGE, use, end) == seen
        assert advance(STORAGE, seen, now - 1) == seen


@given(st.lists(st.integers(0, 10**10), max_size=20))
def test_a_compute_lease_comes_to_the_fuel_that_ran(runs):
    use = new_use(COMPUTE, START)
    for steps in runs:
        use = spend(COMPUTE, use, steps, START)
    assert use.used == sum(runs)
    assert worth(COMPUTE, use.used) // WORTH == compute_amount(COMPUTE.price, sum(runs))


moves = st.lists(
    st.tuples(st.integers(0, 5 * EPOCH_MS), st.integers(0, 4 * MIB)), min_size=1, max_size=12
)


@given(st.integers(0, 30 * EPOCH_MS), st.integers(1, 8 * MIB), moves)
def test_each_byte_is_billed_once_whenever_it_goes_over(wait, size, moves):
    """A twin that is never renewed, and does not end, counts as much as old and new together."""
    endless = replace(STORAGE, end_ms=2**60)
    now = START
    old = twin = replace(hold(endless, FRESH, size, now), level=0)
    now += wait
    renewing = replace(NEXT, start_ms=now, end_ms=2**60)
    new = new_use(renewing, now)
    for wait_ms, delta in moves:
        now += wait_ms
        old, new = moved((endless, old), (renewing, new), delta, now)
        twin = advance(endless, twin, now)
        assert old.held_bytes + new.held_bytes == size
    later = now + 3 * EPOCH_MS
    old, new = advance(endless, old, later), advance(renewing, new, later)
    assert old.used + new.used == advance(endless, twin, later).used


@given(events, st.lists(st.integers(0, 30 * EPOCH_MS), max_size=5))
def test_room_that_lapsed_stays_lapsed_whoever_looks_and_when(events, looks):
    lapsed = False
    for now, use in played(events):
        for later in looks:
            kept = reserved(STORAGE, use, now + later)
            assert kept in (0, room(STORAGE, use, START))
            seen = advance(STORAGE, use, now + later)
            assert reserved(STORAGE, seen, now + later) == kept
        assert not use.level or not lapsed
        lapsed = not use.level


@given(events, st.integers(0, 40 * EPOCH_MS))
def test_what_was_ended_is_billed_no_more(events, wait):
    for now, use in played(events):
        over = ended(use)
        assert advance(STORAGE, over, now + wait).used == use.used
