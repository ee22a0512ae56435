"""Laws of interval tree clocks: they order events as the sets of known events do."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from xsc.base.errors import XscError
from xsc.space import itc
from xsc.space.itc import Clock, Stamp, join_events, leq

DOMAIN = b"\1" * 32
TRACES_AN_EXAMPLE = 40


def events(depth=5):
    """Event trees in normal form."""
    counters = st.one_of(st.integers(0, 5), st.integers(0, 2**40))
    return st.recursive(
        counters,
        lambda inner: st.builds(itc._node, counters, inner, inner),
        max_leaves=2**depth,
    )


def intervals():
    """Intervals in normal form."""
    return st.recursive(
        st.integers(0, 1), lambda inner: st.builds(itc._pair, inner, inner), max_leaves=12
    )


class World:
    """Clocks of one domain, each with the set of events that it knows."""

    def __init__(self):
        self.clocks = [Clock(DOMAIN, 1, 0)]
        self.known = [frozenset()]
        self.made = 0

    def step(self, action, one, other):
        one %= len(self.clocks)
        other %= len(self.clocks)
        if action == "event":
            self.made += 1
            self.clocks[one] = self.clocks[one].tick()
            self.known[one] |= {self.made}
        elif action == "grant" and len(self.clocks) < 8:
            clock = self.clocks[one]
            kept, given_away = itc.cut_grant(clock.interval, 0, self.made + 1)
            self.clocks[one] = Clock(DOMAIN, kept, clock.event)
            self.clocks.append(Clock(DOMAIN, given_away, clock.event))
            self.known.append(self.known[one])
        elif action == "leave" and len(self.clocks) > 1:
            del self.clocks[other], self.known[other]
        elif action == "hear":
            clock = self.clocks[one]
            heard = join_events(clock.event, self.clocks[other].peek().event)
            self.clocks[one] = Clock(DOMAIN, clock.interval, heard)
            self.known[one] |= self.known[other]

    def check(self):
        for mine, my_events in zip(self.clocks, self.known, strict=True):
            for yours, your_events in zip(self.clocks, self.known, strict=True):
                assert leq(mine.event, yours.event) == (my_events <= your_events)
                one, other = mine.peek(), yours.peek()
                assert one.before(other) == (my_events < your_events)
                assert one.concurrent(other) == (
                    not my_events <= your_events and not your_events <= my_events
                )
        left = 1
        for clock in self.clocks:
            assert itc.covers(left, clock.interval)
            left = itc.minus(left, clock.interval)
            assert itc.read_event(itc.event_bytes(clock.event)) == clock.event
            assert itc.read_interval(itc.interval_bytes(clock.interval)) == clock.interval


ACTIONS = ("event", "event", "grant", "leave", "hear")


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 7), st.integers(0, 7))))
def test_clocks_order_as_causal_histories_do(steps):
    world = World()
    for step in steps:
        world.step(*step)
    world.check()


@settings(max_examples=260)
@given(st.integers(0, 2**64))
def test_ten_thousand_traces_order_as_causal_histories_do(seed):
    rng = random.Random(seed)
    for _ in range(TRACES_AN_EXAMPLE):
        world = World()
        for _ in range(rng.randrange(4, 24)):
            world.step(rng.choice(ACTIONS), rng.randrange(8), rng.randrange(8))
        world.check()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 15), st.integers(0, 15)), max_size=60))
def test_what_is_adopted_never_claims_an_order_that_is_not_there(steps):
    """Adopting only the author's part loses what third parties did, and never adds to it."""
    kept, clocks = 1, []
    for number in range(1, 16):
        kept, given_away = itc.cut_grant(kept, 0, number)
        clocks.append(Clock(DOMAIN, given_away, 0))
    clocks.append(Clock(DOMAIN, kept, 0))
    known = [frozenset()] * 16
    records = {}
    for made, (is_event, one, other) in enumerate(steps):
        if is_event:
            clocks[one] = clocks[one].tick()
            known[one] |= {made}
            records[made] = (clocks[one].peek(), known[one])
        else:
            clocks[one] = clocks[one].adopt(clocks[other].interval, clocks[other].peek())
            known[one] |= known[other]
    for first, (stamp, _) in records.items():
        for other_stamp, history in records.values():
            if stamp.before(other_stamp):
                assert first in history


@given(events(), events(), events())
def test_joins_are_least_upper_bounds(one, other, third):
    joined = join_events(one, other)
    assert joined == join_events(other, one)
    assert join_events(joined, third) == join_events(one, join_events(other, third))
    assert join_events(one, one) == one
    assert leq(one, joined)
    assert leq(other, joined)
    assert leq(joined, third) == (leq(one, third) and leq(other, third))


@given(events(), events(), events())
def test_leq_is_a_partial_order(one, other, third):
    assert leq(one, one)
    assert (leq(one, other) and leq(other, one)) == (one == other)
    if leq(one, other) and leq(other, third):
        assert leq(one, third)


@given(intervals().filter(bool), events())
def test_an_event_is_later_and_counts_in_the_own_interval_alone(interval, event):
    ticked = itc.tick(interval, event)
    assert leq(event, ticked)
    assert ticked != event
    rest = itc.minus(1, interval)
    outside = [itc._piece(way) for way in itc._pieces(rest)]
    for piece in outside:
        assert itc.own_part(piece, ticked) == itc.own_part(piece, event)


@given(intervals(), intervals())
def test_what_is_taken_away_and_what_is_left_have_nothing_in_common(one, other):
    left, common = itc.minus(one, other), itc.minus(one, itc.minus(one, other))
    assert itc.minus(common, left) == common
    assert itc.minus(one, common) == left
    assert itc.covers(one, left)
    assert itc.covers(other, common)


@given(intervals().filter(bool), st.integers(1, 20_000))
def test_a_grant_splits_what_there_was(interval, number):
    kept, given_away = itc.cut_grant(interval, itc.depth_of(interval), number)
    assert kept != 0
    assert given_away != 0
    assert itc.minus(interval, given_away) == kept
    assert itc.covers(interval, given_away)


@given(events())
def test_reading_undoes_writing(event):
    assert itc.read_event(itc.event_bytes(event)) == event


@given(intervals())
def test_reading_undoes_writing_intervals(interval):
    assert itc.read_interval(itc.interval_bytes(interval)) == interval


@given(st.binary(max_size=40))
def test_any_other_bytes_are_refused_by_name(raw):
    for read, write in (
        (itc.read_event, itc.event_bytes),
        (itc.read_interval, itc.interval_bytes),
    ):
        try:
            found = read(raw)
        except XscError:
            continue
        assert write(found) == raw


@given(events(), events())
def test_stamps_are_before_equal_or_concurrent(one, other):
    left, right = Stamp(DOMAIN, one), Stamp(DOMAIN, other)
    cases = [left == right, left.before(right), right.before(left), left.concurrent(right)]
    assert sum(cases) == 1
