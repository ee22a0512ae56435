import pytest

from xsc.base.encoding import encode
from xsc.base.errors import StoreDamaged
from xsc.base.limits import MISSES_TO_DOWN, PROBES_KEPT
from xsc.health.detector import AvailabilityTester

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
    assert (stats.misses_in_row, stats.last_seen_ms) == (1, 0)
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


def test_history_is_bounded_and_forgets_the_oldest():
    made = after(*[(False, 0)] * 50, *[(True, 7)] * PROBES_KEPT)
    stats = made.get_stats(NODE)
    assert (stats.probes, stats.availability) == (PROBES_KEPT, 1_000_000)


def test_results_come_back_but_the_state_does_not():
    made = after((True, 10), (False, 0), (False, 0))
    again = AvailabilityTester()
    again.restore(NODE, made.to_bytes(NODE))
    assert again.get_stats(NODE) == made.get_stats(NODE)
    assert (again.state(NODE), again.is_up(NODE)) == ("unknown", False)
    assert again.record_result(NODE, False, 0, 9) is None
    assert again.state(NODE) == "suspect"
    assert again.get_stats(NODE).misses_in_row == 3
    again.forget(NODE)
    assert again.get_stats(NODE).probes == 0
    again.forget(NODE)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        encode({"v": 2, "probes": [], "misses": 0, "seen": None}),
        encode({"v": 1, "probes": [[1, 1]], "misses": 0, "seen": None}),
        encode({"v": 1, "probes": [[1, 1, 1]], "misses": 0, "seen": None}),
        encode({"v": 1, "probes": 3, "misses": 0, "seen": None}),
        encode({"v": 1, "probes": [], "misses": 0, "seen": b""}),
    ],
)
def test_damaged_results_are_refused(raw):
    with pytest.raises(StoreDamaged):
        AvailabilityTester().restore(NODE, raw)
