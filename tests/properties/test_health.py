"""Laws of the score and of the availability."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.errors import RecordInvalid
from xsc.base.limits import LEAF_BYTES, PPM
from xsc.health import challenge as rules
from xsc.health.detector import MISSES_TO_DOWN, AvailabilityTester
from xsc.health.score import (
    DIMENSIONS,
    GRADES,
    HOUR_MS,
    JUDGED_MIN,
    Score,
    Tally,
    grade_of,
    next_step,
    quality_ppm,
    rank_ppm,
)
from xsc.terms.possession import LEAVES_ASKED, Extent, counts_in

NODE = b"n" * 32
COUNT = st.integers(0, 10**9)
NOW = 490_000
Z_SQUARED = Fraction(1645, 1000) ** 2


def not_above_the_bound(ppm: int, good: Fraction, bad: Fraction) -> bool:
    """Whether ppm / PPM <= the Wilson lower bound, decided without any root.

    The bound is the lesser root x of (x - p)^2 = z^2 x (1 - x) / n: below the
    middle of both roots the difference is positive up to the bound.
    """
    n = good + bad
    x, p = Fraction(ppm, PPM), good / n
    middle = (p + Z_SQUARED / (2 * n)) / (1 + Z_SQUARED / n)
    return x <= middle and (x - p) ** 2 >= Z_SQUARED * x * (1 - x) / n


@given(good=COUNT, bad=COUNT)
def test_the_rank_is_the_exact_floor_of_the_bound(good, bad):
    ppm = rank_ppm(Tally(good * PPM, bad * PPM), "availability")
    assert 0 <= ppm <= PPM
    assert not_above_the_bound(ppm, good + Z_SQUARED, Fraction(bad))
    assert not not_above_the_bound(ppm + 1, good + Z_SQUARED, Fraction(bad))


TALLIES = st.fixed_dictionaries(
    {
        each: st.builds(
            Tally, st.integers(0, 10**10), st.integers(0, 10**10), st.just(NOW), st.just(0)
        )
        for each in DIMENSIONS
    }
)
SUMS = st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
REPORTS = st.lists(st.tuples(st.integers(0, PPM), st.tuples(*[SUMS] * len(DIMENSIONS))), max_size=5)


def judged(tallies, reports=()):
    """Return how bad a grade is, and the quality."""
    score = Score(**tallies)
    grade = grade_of(score, NOW, None)
    return max(1, GRADES.index(grade)), quality_ppm(score, grade, NOW, reports)


@given(TALLIES, REPORTS, st.sampled_from(DIMENSIONS))
def test_one_more_good_hour_never_lowers_and_one_more_bad_never_raises(tallies, reports, dimension):
    grade, quality = judged(tallies, reports)
    assert 0 <= quality <= PPM
    now = tallies[dimension]
    # Own evidence makes room for that of others: without them it is exact.
    alone = judged(tallies)
    better = judged(tallies | {dimension: now._replace(good=now.good + PPM)})
    worse = judged(tallies | {dimension: now._replace(bad=now.bad + PPM)})
    if now.good + now.bad >= JUDGED_MIN:
        assert better[0] <= grade <= worse[0]
        assert better[1] >= alone[1] >= worse[1]


@given(TALLIES, REPORTS)
def test_no_report_moves_a_grade_and_the_order_does_not_matter(tallies, reports):
    assert judged(tallies, reports) == judged(tallies, reports[::-1])
    assert judged(tallies, reports)[0] == judged(tallies)[0]


@given(TALLIES, st.integers(0, 20_000))
def test_nothing_gets_worse_by_waiting(tallies, hours):
    score = Score(**tallies)
    before, after = (grade_of(score, at, None) for at in (NOW, NOW + hours))
    assert GRADES.index(after) <= GRADES.index(before)


@given(TALLIES)
def test_the_next_step_tells_the_truth(tallies):
    score = Score(**tallies)
    grade = grade_of(score, NOW, None)
    until_ms = next_step(score, NOW, None)[1]
    assert (until_ms is None) == (grade in {"new", "vetted"})
    if until_ms is not None:
        assert grade_of(score, until_ms // HOUR_MS - 1, None) == grade
        assert grade_of(score, until_ms // HOUR_MS, None) != grade


RESULTS = st.lists(st.booleans(), max_size=150)


@given(RESULTS)
def test_a_peer_is_up_from_an_answer_to_two_misses_in_a_row(results):
    tester, changes = AvailabilityTester(), []
    for available in results:
        changed = tester.record_result(NODE, available, 7)
        if changed is not None:
            changes.append(changed)
        assert tester.is_up(NODE) == (bool(changes) and changes[-1])
    if results[-MISSES_TO_DOWN:] == [False] * MISSES_TO_DOWN:
        assert tester.state(NODE) == "down"
    if results[-1:] == [True]:
        assert tester.state(NODE) == "up"
    assert changes == [index % 2 == 0 for index in range(len(changes))]


# Challenges


@st.composite
def lists(draw):
    """Extents of different names."""
    names = draw(st.sets(st.binary(min_size=34, max_size=34), min_size=1, max_size=200))
    size = st.integers(1, 70_000)
    return [Extent(name, draw(st.integers(1, 3)), draw(size), draw(size)) for name in sorted(names)]


def drawn_of(extents, seed):
    pages = rules.pages_of(extents)
    index = rules.index_of(pages)
    shown = [pages[number] for number in rules.pages_drawn(index, seed)]
    return index, shown, rules.leaves_drawn(index, shown, seed)


@given(extents=lists(), seed=st.binary(min_size=32, max_size=32))
def test_what_is_drawn_is_there_and_each_leaf_once(extents, seed):
    _, _, drawn = drawn_of(extents, seed)
    known = {extent.name: extent for extent in extents}
    for extent, body, leaf in drawn:
        assert known[extent.name] == extent
        assert body < extent.bodies
        assert leaf * LEAF_BYTES < extent.size_of(body)
    total = sum(counts_in(b"".join(extent.to_bytes() for extent in extents)))
    assert len(set(drawn)) == len(drawn) == min(LEAVES_ASKED, total)


@given(extents=lists(), seed=st.binary(min_size=32, max_size=32), data=st.data())
def test_no_list_stands_for_another(extents, seed, data):
    """Changed in any byte of what is shown, it is refused, or is not what was committed to."""
    index, shown, drawn = drawn_of(extents, seed)
    place = data.draw(st.integers(-1, len(shown) - 1))
    raw = bytearray(index if place < 0 else shown[place])
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    if place < 0:
        nonce = b"n" * 32
        other = rules.commitment_of(nonce, bytes(raw))
        assert other != rules.commitment_of(nonce, index)
        return
    changed = [bytes(raw) if number == place else page for number, page in enumerate(shown)]
    with pytest.raises(RecordInvalid):
        rules.leaves_drawn(index, changed, seed)
    assert drawn_of(extents[::-1], seed)[2] == drawn, "the order of extents does not matter"


@given(
    outcomes=st.lists(
        st.sampled_from(["ok", "bad_proof", "missing", "timeout", "unreachable", "prober_void"]),
        max_size=60,
    ),
    step_ms=st.integers(0, 10**8),
)
def test_only_answers_and_long_silence_are_failures(outcomes, step_ms):
    row, since_ms, silences = None, None, 0
    for number, outcome in enumerate(outcomes):
        now_ms = number * step_ms
        row = rules.noted(row, outcome, number, now_ms)
        if outcome in {"timeout", "unreachable"}:
            since_ms = now_ms if since_ms is None else since_ms
            silences += 1
            long = silences > rules.AGAIN_MIN and now_ms - since_ms >= rules.CONTAINED_MS
            assert row.outcome == ("missing" if long else outcome)
        else:
            assert row.outcome == outcome
        if row.outcome in rules.ANSWERED:
            since_ms, silences = None, 0
