"""The laws of leases: both sides come to the same, and nobody pays what does not follow."""

from dataclasses import dataclass, field

from hypothesis import example, given
from hypothesis import strategies as st

from xsc.base.limits import COMPUTE_LEASE_MS, EPOCH_MS, MFUEL, MIB, OFFER_MS, REQUEST_WINDOW_MS
from xsc.identity.envelope import Signed
from xsc.market import account as rules
from xsc.market import proof
from xsc.market.account import Account
from xsc.market.lease import (
    LATE_MS,
    LeaseEntry,
    advance,
    check_renewal,
    ended,
    half_ms,
    has_time,
    hold,
    lowered,
    new_use,
    ran,
    renewed,
    room,
    spend,
    worth,
)
from xsc.terms.lease import LeaseRequest
from xsc.terms.pricing import WORTH, compute_amount
from xsc.terms.voucher import wide

EPOCHS = 8
START = 1_700_000_000_000
LONG_MS = EPOCHS * EPOCH_MS
P, C = b"p" * 32, b"c" * 32
MOST = 64 * MIB
"""Of bytes under a lease."""
DEAR = 45
"""The highest price of a renewal."""
STORAGE = LeaseRequest(
    lease_id=b"l" * 32,
    provider=P,
    customer=C,
    kind="storage",
    slot=b"s" * 16,
    window=(0, 2**60),
    tier="open",
    need=None,
    level=0,
    price=40,
    start_ms=START,
    end_ms=START + LONG_MS,
)


def terms_of(letter, **changes):
    return STORAGE.model_copy(update={"lease_id": letter * 32, **changes})


CLEARED = terms_of(b"k", need=b"n" * 16, level=MOST)
COMPUTE = terms_of(b"j", kind="compute", end_ms=START + COMPUTE_LEASE_MS)
RATE = terms_of(b"r", kind="compute", need=b"m" * 16, level=900 * MFUEL, price=40_000)
ALL = (STORAGE, COMPUTE, CLEARED, RATE)


def entry_of(role, terms):
    return LeaseEntry(role, terms, new_use(terms, terms.level), b"raw")


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
        terms, use = theirs.terms, theirs.use
        if use.given_back or not terms.start_ms <= min(self.now_ms, self.their_ms):
            return
        if max(self.now_ms, self.their_ms) >= terms.end_ms:
            return
        left = min(room(terms, use, self.their_ms), MOST - use.held_bytes)
        delta = max(-use.held_bytes, min(delta, left))
        if delta:
            self.change(terms.lease_id, lambda t, use, now_ms: hold(t, use, delta, now_ms))

    def lower(self, terms, level):
        """Give room up at the provider; its customer sees it in the next count."""
        entry = self.theirs[terms.lease_id]
        if entry.use.level:
            entry.use = lowered(entry.terms, entry.use, level, self.their_ms)

    def run(self, terms, steps):
        if max(self.now_ms, self.their_ms) < terms.end_ms:
            self.change(terms.lease_id, lambda t, use, now_ms: spend(t, use, steps, now_ms))

    def renew(self, lease_id, price, *, is_heard):
        """Begin the next term after half-life, at the customer too where it hears of it at once."""
        self.hear_all()
        theirs = self.theirs[lease_id]
        self.now_ms = max(self.now_ms, half_ms(theirs.terms))
        changes = {"price": price, "start_ms": self.now_ms, "end_ms": self.now_ms + LONG_MS}
        later = theirs.terms.model_copy(update=changes)
        if check_renewal(later, theirs.terms, theirs.use, self.their_ms) is not None:
            return
        self.next_term(theirs, later, theirs.use.level)
        if is_heard:
            self.hear(lease_id)

    def hear_all(self):
        """Ask again for what was not answered; the answer is the same."""
        for lease_id in self.theirs:
            self.hear(lease_id)

    def hear(self, lease_id):
        mine, theirs = self.mine.get(lease_id), self.theirs[lease_id]
        if mine is not None and mine.terms is not theirs.terms:
            self.next_term(mine, theirs.terms, theirs.use.level)

    @staticmethod
    def next_term(entry, terms, level):
        use = renewed(entry.role, entry.terms, entry.use, terms, level)
        entry.terms, entry.use = terms, use

    def count(self):
        """Return what the provider signs now."""
        for entry in self.theirs.values():
            entry.use = advance(entry.terms, entry.use, self.their_ms)
        self.prove()
        return rules.count_of(self.other, list(self.theirs.values()), self.their_ms)

    def prove(self):
        """Have the provider prove all that it holds, as it has each hour before."""
        for account, entries, now_ms in (
            (self.own, [*self.mine.values()], self.now_ms),
            (self.other, [*self.theirs.values()], self.their_ms),
        ):
            account.proven_ms = max(account.proven_ms, now_ms - EPOCH_MS)
            proof.decide(account, entries, now_ms, now_ms, ok=True)

    def take(self, count):
        """Have the customer take a count over; return what it makes of it."""
        ends_ms = {line.lease_id: line.end_ms for line in count.leases}
        agreed = rules.agree(
            self.own,
            # The answer to a renewal is to come, and it is paid after that.
            [e for e in self.mine.values() if ends_ms.get(e.id, 0) <= e.terms.end_ms],
            Signed(count, P, b"net", count.id, b"count"),
            asked_ms=self.now_ms + 1,
            now_ms=self.now_ms,
        )
        self.own.closed, self.own.stored = agreed.closed, agreed.stored
        for entry, use in agreed.uses:
            entry.use = use
        for lease_id in {entry.terms.lease_id for entry in agreed.gone} | agreed.denied:
            if lease_id not in ends_ms:
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
        starts = [e.terms.start_ms for k, e in self.theirs.items() if k in self.mine]
        if self.now_ms + wait_ms - max(starts, default=0) > REQUEST_WINDOW_MS:
            self.hear_all()
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
            case "renew" | "renewed, answer lost" | "renew cleared":
                of = CLEARED if what == "renew cleared" else STORAGE
                price = 40 + number % (DEAR - 40 + 1)
                self.renew(of.lease_id, price, is_heard=what != "renewed, answer lost")
            case "count":
                assert not self.take(self.count()).disputed
                self.pay()
            case "count, answer lost":
                self.count()
            case "count, voucher lost":
                assert not self.take(self.count()).disputed

    def ceiling(self, now_ms):
        """Return the most that all leases can come to, in WORTHths of a micro-credit."""
        total, now_ms = 0, max(now_ms, START + OFFER_MS)  # It is paid whatever is given up.
        for entry in self.theirs.values():
            terms = entry.terms
            most = terms.level or MOST
            if terms.kind == "storage":
                most = max(most, MOST) * (min(now_ms, terms.end_ms + LATE_MS) - START)
                terms = terms.model_copy(update={"price": DEAR})
            elif terms.cleared:
                most *= min(now_ms, terms.end_ms) - START
            else:
                total += entry.use.used
                continue
            total += worth(terms, max(0, most))
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
            "renew",
            "renewed, answer lost",
            "renew cleared",
            "count",
            "count, answer lost",
            "count, voucher lost",
        ]
    ),
    st.one_of(st.integers(0, 90_000), st.integers(0, 3 * EPOCH_MS)),
    st.integers(-20 * MIB, 20 * MIB),
)
SKEWS = st.integers(-REQUEST_WINDOW_MS, REQUEST_WINDOW_MS)


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
@example(
    steps=[
        ("hold", 2, 1),
        ("hold cleared", 0, 1),
        ("renew", 0, 0),
        ("renew", 0, 0),
        ("hold", 1, 0),
        ("count", 0, 0),
    ],
    skew=-2,
    wait=1,
)
@given(st.lists(STEPS, max_size=20), SKEWS, st.integers(0, 3 * LONG_MS))
def test_after_a_last_count_both_totals_are_equal_and_within_what_was_leased(steps, skew, wait):
    pair = Pair(skew)
    for step in steps:
        pair.play(step)
    pair.now_ms += wait
    pair.hear_all()
    count = pair.count()
    agreed = pair.take(count)
    pair.pay()
    assert not agreed.disputed
    theirs = rules.due_micro(pair.other, pair.theirs.values(), pair.their_ms)
    own = (pair.own.closed + sum(entry.use.used for entry in pair.mine.values())) // WORTH
    assert own == theirs == count.amount_micro
    assert theirs == pair.own.signed_micro == pair.other.signed_micro
    assert theirs <= pair.ceiling(max(pair.now_ms, pair.their_ms)) // WORTH


@given(
    st.lists(st.tuples(st.integers(1, MIB), st.integers(0, 2), st.integers(0, 2))),
    st.sampled_from([STORAGE, CLEARED]),
)
def test_what_was_deleted_before_a_count_is_taken_off_once_when_it_is_heard(deletions, terms):
    pair, key = Pair(), terms.lease_id
    pair.hold(terms, MOST)
    mine, theirs, unheard = pair.mine[key], pair.theirs[key], []
    for most, counts, hears in [*deletions, (1, 1, len(deletions) + 1)]:
        unheard.append(min(most, theirs.use.held_bytes))
        theirs.use = hold(theirs.terms, theirs.use, -unheard[-1], pair.their_ms)
        for _ in range(counts):
            pair.now_ms += 10_000
            assert not pair.take(pair.count()).disputed
        for size in unheard[:hears]:
            mine.use = hold(mine.terms, mine.use, -size, pair.now_ms)
        del unheard[:hears]
        assert theirs.use.held_bytes <= mine.use.held_bytes + mine.use.missing_bytes
    assert mine.use.held_bytes == theirs.use.held_bytes


@given(st.lists(STEPS, max_size=20), st.lists(st.integers(0, 3 * EPOCH_MS), max_size=6))
def test_any_counts_in_between_give_the_total_of_one(steps, looks):
    one, many = Pair(), Pair()
    steps = [step for step in steps if not step[0].startswith("count") and "lost" not in step[0]]
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
    pair.hear_all()
    honest = pair.count()
    most = honest.amount_micro
    # Room that was given up and not heard of: by the customer's own count it is still owed.
    unheard = any(each.use.level > pair.theirs[key].use.level for key, each in pair.mine.items())
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
        advance(each.terms, each.use, pair.their_ms).used for each in pair.mine.values()
    )
    assert agreed.amount_micro <= max(most, (pair.own.closed + explained) // WORTH)
    if lie == "used":
        # A run that has ended can be told in an answer that is on its way.
        assert (line.lease_id in agreed.disputed) == has_time(entry.terms)
    elif lie != "end":  # A term that the customer has not heard of is not paid before it has.
        assert agreed.amount_micro == most
    # Whatever it said, the honest count pays what is due; what was paid before is of that.
    pair.now_ms += EPOCH_MS
    again = pair.count()
    pair.take(again)
    before = agreed.amount_micro if unheard else 0
    assert pair.own.signed_micro == max(before, again.amount_micro)


def used_of(pair, terms):
    """Return what a lease came to by the customer's own count."""
    mine = pair.mine[terms.lease_id]
    return advance(mine.terms, mine.use, pair.now_ms).used


def counted(pair, terms, used):
    """Return a count that says so much of a lease, and that all of it is due."""
    honest = pair.count()
    lines = [
        line.model_copy(update={"used": wide(used)}) if line.lease_id == terms.lease_id else line
        for line in honest.leases
    ]
    return honest.model_copy(update={"leases": tuple(lines), "amount_micro": 2**60})


@given(st.integers(0, 899), st.integers(1, 2**70))
def test_a_lie_over_room_given_up_is_paid_no_more_than_the_own_count(level, more):
    """Not even what a provider gets that says, within the rule, that it has just heard of it."""
    lied, late = Pair(), Pair()
    for pair in (lied, late):
        pair.lower(RATE, level * MFUEL)
        pair.now_ms += EPOCH_MS
    wrong = lied.take(counted(lied, RATE, used_of(lied, RATE) + more))
    believed = late.take(counted(late, RATE, used_of(late, RATE)))
    assert RATE.lease_id in wrong.disputed
    assert not believed.disputed
    assert wrong.amount_micro == believed.amount_micro
    # Once the customer has heard of it, a lie brings nothing at all.
    heard = Pair()
    heard.lower(RATE, level * MFUEL)
    heard.take(heard.count())
    heard.now_ms += EPOCH_MS
    if RATE.lease_id in heard.mine:
        heard.take(counted(heard, RATE, used_of(heard, RATE) + more))
        assert heard.own.signed_micro == heard.count().amount_micro


events = st.lists(
    st.tuples(st.integers(0, 3 * EPOCH_MS), st.integers(-8 * MIB, 8 * MIB)), max_size=12
)


both = st.sampled_from([STORAGE, CLEARED])


def played(events, terms):
    """Yield (time, use) after each event, where a delta is kept inside of the lease."""
    now, use = START, new_use(terms, terms.level)
    for wait, delta in events:
        now += wait
        most = min(room(terms, use, now), MOST - use.held_bytes) if now < terms.end_ms else 0
        use = hold(terms, use, min(delta, most), now)
        yield now, use


@given(events, both)
def test_the_use_is_what_was_held_or_kept_free_for_each_millisecond(events, terms):
    total = held = 0
    now = START
    for then, use in played(events, terms):
        total += max(held, terms.level) * max(0, min(then, terms.end_ms) - now)
        total += held * max(0, then - max(now, terms.end_ms))
        now, held = then, use.held_bytes
        assert use.used == worth(terms, total)


@given(events, both)
def test_what_is_owed_never_falls(events, terms):
    used = 0
    for _, use in played(events, terms):
        assert use.used >= used
        assert 0 <= use.held_bytes <= MOST
        used = use.used


@given(events, both, st.lists(st.integers(0, 30 * EPOCH_MS), max_size=5))
def test_looking_changes_nothing(events, terms, looks):
    for now, use in played(events, terms):
        seen = use
        for later in sorted(looks):
            seen = advance(terms, seen, now + later)
        end = now + max(looks, default=0)
        assert advance(terms, use, end) == seen
        assert advance(terms, seen, now - 1) == seen


@given(st.lists(st.integers(0, 10**10), max_size=20))
def test_a_compute_lease_comes_to_the_fuel_that_ran(runs):
    use = new_use(COMPUTE, 0)
    for steps in runs:
        use = spend(COMPUTE, use, steps, START)
    assert use.used == worth(COMPUTE, sum(runs))
    assert use.used // WORTH == compute_amount(COMPUTE.price, sum(runs))
    assert ran(COMPUTE, use, START) == sum(runs)


renewals = st.lists(
    st.tuples(
        st.integers(REQUEST_WINDOW_MS, 5 * EPOCH_MS),
        st.integers(0, REQUEST_WINDOW_MS),
        st.integers(0, DEAR),
        st.integers(-4 * MIB, 4 * MIB),
    ),
    max_size=12,
)


@given(renewals, both)
def test_each_byte_is_billed_at_the_price_of_the_term_in_which_it_lay(renewals, terms):
    """Also where a term began before what was counted already, by another clock."""
    use, now, total = new_use(terms, terms.level), START, 0
    for wait, before, price, delta in renewals:
        now += wait
        use, start, held = advance(terms, use, now), now - before, use.held_bytes
        billed = max(held, use.level)
        changes = {"start_ms": start, "end_ms": start + LONG_MS, "price": price}
        later = terms.model_copy(update=changes)
        total += worth(terms, billed * (wait - before)) + worth(later, billed * before)
        use, terms = renewed("customer", terms, use, later, use.level), later
        assert (use.used, use.held_bytes) == (total, held)
        use = hold(terms, use, min(delta, MOST - held, room(terms, use, now)), now)


@given(events, both, st.integers(0, 40 * EPOCH_MS))
def test_what_was_ended_is_billed_no_more(events, terms, wait):
    for now, use in played(events, terms):
        over = ended(use)
        assert advance(terms, over, now + wait).used == use.used
