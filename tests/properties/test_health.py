"""Laws of the score and of the availability."""

from dataclasses import replace
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.errors import RecordInvalid
from xsc.base.limits import BUCKETS_KEPT, LEAF_BYTES, PPM
from xsc.health import challenge as rules
from xsc.health.detector import BUCKET_MS, MISSES_TO_DOWN, AvailabilityTester
from xsc.health.score import quality_ppm
from xsc.terms.possession import LEAVES_ASKED, Extent, counts_in

NODE = b"n" * 32
COUNT = st.integers(0, 10**9)
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


@given(answered=COUNT, missed=COUNT)
def test_the_score_is_the_exact_floor_of_the_bound(answered, missed):
    ppm = quality_ppm(answered, missed)
    good, bad = answered + Z_SQUARED, Fraction(missed)
    assert not_above_the_bound(ppm, good, bad)
    assert not not_above_the_bound(ppm + 1, good, bad)


@given(answered=COUNT, missed=COUNT)
def test_it_lies_between_nothing_and_the_whole(answered, missed):
    assert 0 <= quality_ppm(answered, missed) <= PPM


@given(answered=COUNT, missed=COUNT)
def test_an_answer_never_lowers_and_a_miss_never_raises(answered, missed):
    here = quality_ppm(answered, missed)
    assert quality_ppm(answered + 1, missed) >= here >= quality_ppm(answered, missed + 1)


def test_the_same_for_every_small_count():
    table = [[quality_ppm(a, m) for m in range(201)] for a in range(201)]
    for a, m in product(range(200), repeat=2):
        assert table[a + 1][m] >= table[a][m] >= table[a][m + 1]


STEPS = st.integers(0, 3 * BUCKET_MS)
RESULTS = st.lists(st.tuples(st.booleans(), STEPS), max_size=150)


def recorded(results):
    """Return a detector, when each result came, and which times it came up or went down."""
    tester, times, changes, now_ms = AvailabilityTester(), [], [], 0
    for available, step_ms in results:
        now_ms += step_ms
        times.append(now_ms)
        changed = tester.record_result(NODE, available, step_ms % 7, now_ms)
        if changed is not None:
            changes.append(changed)
        assert tester.is_up(NODE) == (bool(changes) and changes[-1])
    return tester, times, changes


@given(RESULTS)
def test_availability_is_the_share_of_the_kept_results(results):
    tester, times, changes = recorded(results)
    newest = times[-1] // BUCKET_MS if times else 0
    kept = [
        available
        for (available, _), at_ms in zip(results, times, strict=True)
        if newest - at_ms // BUCKET_MS < BUCKETS_KEPT
    ]
    stats = tester.get_stats(NODE)
    assert (stats.probes, stats.answered) == (len(kept), sum(kept))
    assert stats.availability == (sum(kept) * PPM // len(kept) if kept else 0)
    said = [available for available, _ in results]
    if said[-MISSES_TO_DOWN:] == [False] * MISSES_TO_DOWN:
        assert tester.state(NODE) == "down"
    if said[-1:] == [True]:
        assert tester.state(NODE) == "up"
    assert changes == [index % 2 == 0 for index in range(len(changes))]


@given(RESULTS, st.integers(1, 9))
def test_the_store_gives_back_what_it_was_given(results, written):
    """Whenever changes are written: what lies in the store says the same as the memory."""
    tester, disk, now_ms = AvailabilityTester(), {}, 0
    for index, (available, step_ms) in enumerate(results):
        now_ms += step_ms
        tester.record_result(NODE, available, 1, now_ms)
        if step_ms % 5 == 0:
            tester.record_wrong(NODE, now_ms)
        if index % written == 0 or index == len(results) - 1:
            disk.update(tester.changes(NODE))
    again = AvailabilityTester()
    for number, raw in sorted(disk.items()):
        if raw is not None:
            again.restore(NODE, number, raw)
    before = tester.get_stats(NODE)
    assert again.get_stats(NODE) == replace(before, avg_response_ms=0)


@given(RESULTS, st.booleans())
def test_a_further_result_keeps_the_law_too(results, more):
    tester, times, _ = recorded(results)
    before = tester.get_stats(NODE)
    tester.record_result(NODE, more, 0, times[-1] if times else 0)
    after = tester.get_stats(NODE)
    old = quality_ppm(before.answered, before.probes - before.answered)
    new = quality_ppm(after.answered, after.probes - after.answered)
    assert new >= old if more else new <= old


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
