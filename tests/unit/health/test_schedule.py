from hypothesis import given
from hypothesis import strategies as st

from xsc.health.schedule import due, wait_ms

A, B, C = b"a", b"b", b"c"


def test_whoever_waited_longest_comes_first():
    assert due([C, B, A], {A: 30, B: 10}, 100, 50) == [C, B, A]
    assert due([A, B, C], {A: 51, B: 50, C: 49}, 100, 50) == [C, B]
    assert due([A, A], {}, 0, 50) == [A]
    assert due([], {A: 1}, 100, 50) == []


def test_nobody_is_due_before_the_wait_is_over():
    assert wait_ms([A, B], {A: 90, B: 70}, 100, 50) == 20
    assert wait_ms([A, B], {A: 90}, 100, 50) == 0
    assert wait_ms([A], {A: 10}, 100, 50) == 0
    assert wait_ms([], {}, 100, 50) == 50


@given(
    last=st.dictionaries(st.sampled_from([A, B, C]), st.integers(0, 100)),
    now=st.integers(100, 200),
    interval=st.integers(1, 100),
)
def test_after_the_wait_somebody_is_due(last, now, interval):
    wait = wait_ms(last, last, now, interval)
    assert bool(due(last, last, now, interval)) == (wait == 0 and bool(last))
    if last:
        assert due(last, last, now + wait, interval)
