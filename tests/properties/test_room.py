"""The laws of room that is granted ahead of use: levels add up over any moment."""

from hypothesis import given
from hypothesis import strategies as st

from xsc.node.slot_market import Level, free_over

times = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted)
levels = st.lists(
    st.tuples(times, st.integers(0, 9)).map(lambda drawn: Level(*drawn[0], drawn[1])), max_size=12
)


def at_instants(held, start, end):
    """Return the most that is promised at any instant, counted one by one."""
    return max(
        (
            sum(one.quantity for one in held if one.start_ms <= at < one.end_ms)
            for at in range(start, end)
        ),
        default=0,
    )


@given(levels, times)
def test_the_most_that_is_promised_is_the_most_at_any_instant(held, time):
    assert 200 - free_over(200, held, *time) == at_instants(held, *time)


@given(levels, times, st.integers(0, 60))
def test_what_is_granted_as_free_is_never_sold_twice(held, time, capacity):
    start, end = time
    free = free_over(capacity, held, start, end)
    after = [*held, Level(start, end, free)]
    for at in range(31):
        before = at_instants(held, at, at + 1)
        assert at_instants(after, at, at + 1) <= max(capacity, before)
    if start < end and free:
        # And nothing more would fit.
        assert at_instants(after, start, end) == capacity


@given(levels, times, times, st.integers(0, 60))
def test_a_longer_time_has_no_more_free(held, time, more, capacity):
    start, end = time
    wider = min(start, more[0]), max(end, more[1])
    assert free_over(capacity, held, *wider) <= free_over(capacity, held, start, end)


@given(levels, times, st.integers(0, 60), st.randoms())
def test_the_order_of_promises_does_not_matter(held, time, capacity, random):
    shuffled = list(held)
    random.shuffle(shuffled)
    assert free_over(capacity, shuffled, *time) == free_over(capacity, held, *time)
