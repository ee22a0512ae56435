from dataclasses import replace

import pytest

from xsc.base.encoding import encode
from xsc.base.errors import StoreDamaged
from xsc.base.limits import BUCKETS_KEPT, PPM
from xsc.health.detector import BUCKET_MS, MISSES_TO_DOWN, RESPONSES_KEPT, AvailabilityTester
from xsc.health.score import trust_ppm

NODE = b"n" * 32


def after(*results):
    made = AvailabilityTester()
    for at_ms, (available, response_ms) in enumerate(results):
        made.record_result(NODE, available, response_ms, at_ms)
    return made


def test_the_examples_of_the_seed():
    stats = after((True, 100)).get_stats(NODE)
    assert (stats.availability, stats.avg_response_ms) == (1_000_000, 100)
    stats = after((True, 100), (False, 0), (True, 150)).get_stats(NODE)
    assert (stats.availability, stats.avg_response_ms) == (666_666, 125)
    stats = AvailabilityTester().get_stats(b"other")
    assert (stats.availability, stats.avg_response_ms, stats.last_seen_ms) == (0, 0, None)


def test_only_answers_have_a_time():
    stats = after((True, 10), (False, 3_000)).get_stats(NODE)
    assert (stats.avg_response_ms, stats.probes, stats.answered) == (10, 2, 1)
    assert stats.last_seen_ms == 0
    assert after((False, 9)).get_stats(NODE).avg_response_ms == 0


def test_one_miss_makes_suspect_and_two_take_down():
    made = AvailabilityTester()
    steps = [
        (False, None, "suspect", False),
        (True, True, "up", True),
        (False, None, "suspect", True),
        (True, None, "up", True),
        (False, None, "suspect", True),
        (False, False, "down", False),
        (False, None, "down", False),
        (True, True, "up", True),
    ]
    assert (made.state(NODE), made.is_up(NODE)) == ("unknown", False)
    for at_ms, (available, changed, state, up) in enumerate(steps):
        assert made.record_result(NODE, available, 1, at_ms) is changed
        assert (made.state(NODE), made.is_up(NODE)) == (state, up)


def test_a_peer_that_never_answered_goes_down_without_having_been_up():
    made = AvailabilityTester()
    for at_ms in range(MISSES_TO_DOWN):
        assert made.record_result(NODE, False, 0, at_ms) is None
    assert made.state(NODE) == "down"


def test_results_count_for_days_and_are_dropped_when_they_are_old():
    made = AvailabilityTester()
    for day in range(14):
        for hour in range(24):
            at_ms = (24 * day + hour) * 3_600_000
            made.record_result(NODE, day != 3, 5, at_ms)
    assert made.get_stats(NODE).availability == 13 * PPM // 14, "a day away is a day away"
    made.changes(NODE)
    for number in range(1, BUCKETS_KEPT):
        made.record_result(NODE, True, 5, (BUCKETS_KEPT + number) * BUCKET_MS)
        assert made.get_stats(NODE).probes == 6 * (BUCKETS_KEPT - 1 - number) + number
    assert made.get_stats(NODE).availability == PPM
    gone = [number for number, raw in made.changes(NODE) if raw is None]
    assert gone == list(range(BUCKETS_KEPT))


def test_results_of_a_clock_that_was_wrong_are_dropped():
    made = AvailabilityTester()
    made.record_result(NODE, False, 0, 900 * BUCKET_MS)
    made.record_result(NODE, True, 0, 7 * BUCKET_MS)
    assert (made.get_stats(NODE).probes, made.get_stats(NODE).availability) == (1, PPM)
    assert [number for number, raw in made.changes(NODE) if raw is None] == [900]


def test_a_result_of_the_next_hours_is_of_a_clock_that_was_wrong():
    made = AvailabilityTester()
    made.record_result(NODE, False, 0, 8 * BUCKET_MS)
    made.record_result(NODE, True, 0, 7 * BUCKET_MS)
    assert made.get_stats(NODE).probes == 1


def test_a_wrong_answer_counts_by_its_age():
    made = AvailabilityTester()
    made.record_wrong(NODE, 3 * BUCKET_MS)
    assert made.get_stats(NODE).trust_ppm == trust_ppm({0: 1})
    made.record_result(NODE, True, 1, 5 * BUCKET_MS)
    assert made.get_stats(NODE).trust_ppm == trust_ppm({2: 1})


def test_it_was_seen_at_its_last_answer():
    made = AvailabilityTester()
    for number in (3, 5, 4 + BUCKETS_KEPT // 2):
        made.record_result(NODE, True, 1, number * BUCKET_MS)
    assert made.get_stats(NODE).last_seen_ms == (4 + BUCKETS_KEPT // 2) * BUCKET_MS


def test_the_expected_time_is_that_of_the_last_answers():
    made = after(*[(True, 900)] * 50, *[(True, 7)] * RESPONSES_KEPT)
    assert made.get_stats(NODE).avg_response_ms == 7


def test_what_does_not_count_changes_the_state_alone():
    made = after((True, 10))
    for at_ms in range(MISSES_TO_DOWN):
        made.record_result(NODE, False, 0, at_ms, counts=False)
    assert made.state(NODE) == "down"
    assert (made.get_stats(NODE).probes, made.get_stats(NODE).availability) == (1, PPM)


def kept(made):
    """Return a detector made from what another one would have on the disk."""
    again = AvailabilityTester()
    for number, raw in made.changes(NODE):
        again.restore(NODE, number, raw)
    return again


def test_results_come_back_but_the_state_does_not():
    made = after((True, 10), (False, 0), (False, 0))
    made.record_wrong(NODE, 5 * BUCKET_MS)
    made.record_result(NODE, True, 10, 6 * BUCKET_MS)
    again, stats = kept(made), made.get_stats(NODE)
    assert again.get_stats(NODE) == replace(stats, avg_response_ms=0)
    assert (again.state(NODE), again.is_up(NODE)) == ("unknown", False)
    assert again.record_result(NODE, False, 0, 6 * BUCKET_MS) is None
    assert again.state(NODE) == "suspect"
    assert again.get_stats(NODE).wrong == 1
    assert again.forget(NODE) == [0, 5, 6]
    assert again.get_stats(NODE).probes == 0
    assert again.forget(NODE) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        encode({"v": 2, "answered": 1, "missed": 0, "wrong": 0, "seen": 0}),
        encode({"v": 1, "answered": -1, "missed": 0, "wrong": 0, "seen": 0}),
        encode({"v": 1, "answered": 1, "missed": 0, "seen": 0}),
        encode({"v": 1, "answered": 1, "missed": 0, "wrong": 0, "seen": b""}),
    ],
)
def test_damaged_results_are_refused(raw):
    with pytest.raises(StoreDamaged):
        AvailabilityTester().restore(NODE, 0, raw)
