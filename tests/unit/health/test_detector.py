from xsc.health.detector import (
    MISSES_TO_DOWN,
    RESPONSES_KEPT,
    WINDOWS_TO_ABSENT,
    AvailabilityTester,
)

NODE = b"n" * 32


def after(*results):
    made = AvailabilityTester()
    for available, response_ms in results:
        made.record_result(NODE, available, response_ms)
    return made


def test_only_answers_have_a_time():
    assert after((True, 10), (False, 3_000)).response_ms(NODE) == 10
    assert after((True, 100), (False, 0), (True, 150)).response_ms(NODE) == 125
    assert after((False, 9)).response_ms(NODE) == AvailabilityTester().response_ms(NODE) == 0


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
    for available, changed, state, up in steps:
        assert made.record_result(NODE, available, 1) is changed
        assert (made.state(NODE), made.is_up(NODE)) == (state, up)


def test_a_peer_that_never_answered_goes_down_without_having_been_up():
    made = AvailabilityTester()
    for _ in range(MISSES_TO_DOWN):
        assert made.record_result(NODE, False, 0) is None
    assert made.state(NODE) == "down"


def test_the_expected_time_is_that_of_the_last_answers():
    made = after(*[(True, 900)] * 50, *[(True, 7)] * RESPONSES_KEPT)
    assert made.response_ms(NODE) == 7


def test_who_nobody_finds_is_absent_and_an_answer_ends_it():
    made = after((True, 10))
    for number in range(WINDOWS_TO_ABSENT):
        assert not made.is_absent(NODE)
        assert made.record_unfound(NODE) == (number + 1 == WINDOWS_TO_ABSENT)
    assert made.record_found(NODE)
    assert (made.is_absent(NODE), made.is_found(NODE)) == (False, True)
    made.record_result(NODE, True, 1)
    assert not made.is_found(NODE)
    made.forget(NODE)
    assert made.state(NODE) == "unknown"
