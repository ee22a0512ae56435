"""How often a program may write."""

from __future__ import annotations

from xsc.programs.limits import BACK_OFF_MS, BACK_OFF_MS_MAX, PUBLICATIONS_AN_HOUR_MAX
from xsc.programs.running import HOUR_MS, Pace


def worn(now_ms=0):
    """A pace whose hour is full."""
    pace = Pace()
    for _ in range(PUBLICATIONS_AN_HOUR_MAX):
        assert pace.pause_ms(now_ms) == 0
        pace.wrote(now_ms)
    return pace


def test_each_pause_is_twice_the_last_up_to_a_bound():
    pace, now_ms, pauses = worn(), 0, []
    while not pauses or pauses[-1] < BACK_OFF_MS_MAX:
        pauses.append(pace.pause_ms(now_ms))
        now_ms += pauses[-1]
        if now_ms >= HOUR_MS:
            break
        assert pace.pause_ms(now_ms) == 0
        pace.wrote(now_ms)
    assert pauses == [BACK_OFF_MS << count for count in range(len(pauses))]
    assert len(pauses) > 5


def test_a_pause_is_counted_from_the_last_write():
    assert [worn().pause_ms(ms) for ms in (0, 1, BACK_OFF_MS - 1, BACK_OFF_MS)] == [
        BACK_OFF_MS,
        BACK_OFF_MS - 1,
        1,
        0,
    ]


def test_an_hour_later_nothing_is_waited_for_and_pauses_begin_anew():
    pace = worn()
    pace.wrote(1)
    assert pace.pause_ms(HOUR_MS - 1) == 0
    assert pace.pause_ms(HOUR_MS) == 0
    for _ in range(PUBLICATIONS_AN_HOUR_MAX):
        pace.wrote(2 * HOUR_MS)
    assert pace.pause_ms(2 * HOUR_MS) == BACK_OFF_MS


def test_a_pause_is_never_longer_than_its_bound():
    pace = worn()
    for _ in range(30):
        pace.wrote(0)
    assert pace.pause_ms(0) == BACK_OFF_MS_MAX
