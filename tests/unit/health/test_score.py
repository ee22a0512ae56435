import json
import random
from fractions import Fraction
from itertools import permutations

import pytest

from tests.strategies import VECTORS
from xsc.base.errors import RecordInvalid
from xsc.base.limits import PPM
from xsc.health import score as rules
from xsc.health.score import DIMENSIONS, HALF_LIFE_HOURS, HOUR_MS, PRIOR, Score, Tally
from xsc.health.scoring import SCORE_BYTES_MAX

NOW = 490_000
FORK = b"f" * 32
THE_THREE = [each for each in DIMENSIONS if each != "availability"]


def availability(good, bad, hour=NOW):
    return Score(availability=Tally(good * PPM, bad * PPM, hour))


def known(**tallies):
    """Return the score of a peer that is known for long."""
    return availability(200, 0).model_copy(update=tallies)


def wrong(dimension, hour=NOW):
    return {dimension: rules.observed(Tally(), dimension, hour, ok=False)}


def quality(score, hour=NOW, reports=()):
    return rules.quality_ppm(score, rules.grade_of(score, hour, None), hour, reports)


def test_a_fresh_peer_is_worth_one_half():
    assert quality(Score()) == 500_000
    assert quality(availability(0, 1)) < 500_000 < quality(availability(1, 0))
    assert quality(availability(200, 0)) > 970_000
    assert quality(availability(0, 200)) < 20_000
    assert quality(availability(0, 10**9)) == 0


def is_below_bound(share, answered, missed):
    """Say whether a share is at most Wilson's lower bound, exactly: no root is taken."""
    z2 = Fraction(1645, 1000) ** 2
    a, b = answered + z2, Fraction(missed)
    n = a + b
    rest = 2 * a + z2 - share * 2 * (n + z2)
    return rest >= 0 and rest**2 >= (4 * z2 * a * b + z2**2 * n) / n


@pytest.mark.parametrize("missed", [0, 1, 2, 3, 10, 99, 1_000, 12_345])
def test_the_rank_is_the_bound_rounded_down(missed):
    for answered in [*range(60), *range(60, 20_000, 77)]:
        found = rules.rank_ppm(Tally(answered * PPM, missed * PPM), "availability")
        assert is_below_bound(Fraction(found, PPM), answered, missed)
        assert not is_below_bound(Fraction(found + 1, PPM), answered, missed)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_what_an_hour_leaves_is_the_root_of_one_half_rounded_down(dimension):
    hours, left = HALF_LIFE_HOURS[dimension], rules._HOUR_LEAVES[dimension]
    assert left**hours <= 1 << (40 * hours - 1) < (left + 1) ** hours


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_sums_halve_in_a_half_life_in_one_step_or_in_many(dimension):
    hours, start = HALF_LIFE_HOURS[dimension], Tally(1_000 * PPM, 10 * PPM, NOW)
    for halvings in (1, 2, 5):
        now = rules.decayed(start, dimension, NOW + halvings * hours)
        assert now.good == pytest.approx(start.good / 2**halvings, abs=2)
        assert now.bad == pytest.approx(start.bad / 2**halvings, abs=2)
    step = start
    for hour in range(hours):
        step = rules.decayed(step, dimension, NOW + hour + 1)
    assert step.good == pytest.approx(start.good / 2, abs=hours)
    assert rules.decayed(start, dimension, NOW + 99 * hours)[:2] == (0, 0)


def test_a_clock_that_was_wrong_makes_nothing_last():
    ahead = rules.observed(Tally(), "payment", NOW + 10**6, ok=False)
    assert rules.decayed(ahead, "payment", NOW)[2:] == (NOW, 0)
    assert rules.observed(ahead, "payment", NOW, ok=True).good == PPM, "this hour counts"
    behind = rules.observed(Tally(), "payment", 3, ok=False)
    assert rules.decayed(behind, "payment", NOW)[:2] == (0, 0)


def test_an_hour_is_one_observation_and_bad_if_anything_in_it_was():
    for said in ([True] * 9, [False] * 9, [True, False, True], [False, True, True, False]):
        tally = Tally()
        for ok in said:
            tally = rules.observed(tally, "compute", NOW, ok=ok)
        assert tally[:2] == ((PPM, 0) if all(said) else (0, PPM))
    for hour in range(3):
        tally = rules.observed(tally, "compute", NOW + 1 + hour, ok=True)
    assert tally.good == pytest.approx(3 * PPM, rel=0.01)


def test_peers_are_new_for_twenty_hours_of_probes():
    assert rules.grade_of(availability(19, 0), NOW, None) == "new"
    said, _ = rules.next_step(availability(19, 0), NOW, None)
    assert said.startswith("judged after about 1 hours more")
    assert rules.grade_of(availability(20, 0), NOW, None) == "vetted"


@pytest.mark.parametrize("dimension", THE_THREE)
def test_a_wrong_answer_puts_on_watch_halves_the_quality_and_heals(dimension):
    clean, score = known(), known(**wrong(dimension))
    assert rules.grade_of(score, NOW, None) == "watch"
    assert quality(clean) * 2 // 5 < quality(score) <= quality(clean) // 2
    sentence, until_ms = rules.next_step(score, NOW, None)
    over = until_ms // HOUR_MS
    assert sentence.endswith("if nothing more is found")
    assert rules.grade_of(score, over - 1, None) == "watch"
    assert rules.grade_of(score, over, None) in {"new", "vetted"}
    # Three quarters of it are left.
    assert over - NOW == pytest.approx(HALF_LIFE_HOURS[dimension] * 0.415, rel=0.01)


def test_a_bad_proof_suspends_for_a_half_life_and_no_longer():
    proof = wrong("integrity")
    score = known(**proof, forged=proof["integrity"])
    assert rules.grade_of(score, NOW, None) == "suspended"
    until = rules.next_step(score, NOW, None)[1] // HOUR_MS
    assert until - NOW == pytest.approx(90 * 24, abs=2)
    assert rules.grade_of(score, until - 1, None) == "suspended"
    assert rules.grade_of(score, until, None) != "suspended"


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_who_is_surely_bad_is_suspended_and_who_may_be_good_is_not(dimension):
    for good, bad, expected in ((19, 0, False), (0, 20, True), (13, 27, True), (14, 14, False)):
        score = known(**{dimension: Tally(good * PPM, bad * PPM, NOW)})
        assert (rules.grade_of(score, NOW, None) == "suspended") == expected, (good, bad)


def test_only_a_fork_of_the_ledger_bars_and_lifting_the_rest_does_not_end_that():
    worst = {each: Tally(0, 10**6 * PPM, NOW) for each in DIMENSIONS}
    score = Score(**worst, forged=worst["integrity"])
    assert rules.grade_of(score, NOW, None) == "suspended"
    assert rules.grade_of(Score(), NOW, FORK) == "barred"
    assert rules.next_step(Score(), NOW, FORK)[1] is None
    lifted = rules.lifted(score)
    assert rules.grade_of(lifted, NOW, FORK) == "barred"
    assert rules.grade_of(lifted, NOW, None) == "new"


def test_an_outage_of_half_a_day_in_thirty_changes_no_grade():
    tally = Tally()
    for hour in range(30 * 24):
        tally = rules.probed(
            rules.decayed(tally, "availability", NOW + hour), NOW + hour, PPM, ok=True
        )
    for hour in range(30 * 24, 30 * 24 + 12):
        tally = rules.probed(tally, NOW + hour, PPM, ok=False)
        score = Score(availability=tally)
        assert rules.grade_of(score, NOW + hour, None) == "vetted"
        assert quality(score, NOW + hour) > 930_000


def test_who_is_away_for_days_is_on_watch_and_comes_back():
    tally, grades = Tally(300 * PPM, 0, NOW), []
    for hour in range(30 * 24):
        tally = rules.probed(tally, NOW + hour, PPM, ok=not 24 <= hour < 24 * 5)
        grades.append(rules.grade_of(Score(availability=tally), NOW + hour, None))
    assert "watch" in grades
    assert grades[-1] == "vetted"


def test_without_evidence_a_score_decays_to_what_it_was_at_first():
    bad = known(**wrong("integrity"), **wrong("compute"))
    later = NOW + rules.SEARCHED_HOURS
    assert quality(bad, later) == quality(Score(), later) == 500_000


# Reports of others


def reports(*weighed):
    """Return reports of observers that saw the same in each dimension."""
    return [(weight, (sums,) * len(DIMENSIONS)) for weight, sums in weighed]


def test_what_is_not_recognised_changes_nothing_and_grades_never_change():
    score = known()
    lies = reports(*[(0, (0, 10**15))] * 50)
    assert quality(score, reports=lies) == quality(score)


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("weight", [PPM, PPM // 10, 1])
def test_one_observer_is_a_quarter_at_most_and_all_are_a_half(dimension, weight):
    for good, bad in ((0, 0), (5, 1), (300, 7)):
        tally = Tally(good * PPM, bad * PPM, NOW)
        own = tally.good + tally.bad + PRIOR[dimension]
        for count in range(1, 9):
            lies = [(weight, (0, 2**63 - 1))] * count
            found = rules.rank_ppm(tally, dimension, lies)
            share = min(own // 3 * weight // PPM * count, own)
            assert share * 4 <= (own + share) * count + 4
            assert share * 2 <= own + share
            more = tally.good + PRIOR[dimension], tally.bad + share
            assert found == pytest.approx(rules.lower_ppm(*more, rules.RANK_Z2), abs=2)


def test_all_liars_together_take_half_of_the_quality():
    score, lies = known(), reports(*[(PPM, (0, 2**63 - 1))] * 20)
    assert quality(score, reports=lies) == quality(score) // 2


def test_the_order_of_reports_does_not_matter():
    score = known(**wrong("compute"))
    said = reports((PPM, (9 * PPM, PPM)), (PPM // 3, (10**12, 5)), (7, (0, 10**14)), (PPM, (0, 4)))
    assert len({quality(score, reports=each) for each in permutations(said)}) == 1


def test_a_report_weighs_by_recognition():
    score = known()
    found = [
        quality(score, reports=reports((weight, (0, 30 * PPM)))) for weight in range(0, PPM, 50_000)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] > 0


# A host that lost a tenth


def grades_of_a_day(seed, share, before=0):
    """Return the grades of a host that misses a share and is challenged each hour of a day."""
    chance, hour = random.Random(seed), NOW
    score = known(integrity=Tally(before * PPM, 0, hour))
    for _ in range(24):
        hour += 1
        ok = chance.random() < (1 - share) ** 4
        tally = rules.observed(score.tally("integrity"), "integrity", hour, ok=ok)
        score = score.model_copy(update={"integrity": tally})
        yield rules.grade_of(score, hour, None)


@pytest.mark.parametrize("before", [0, 3_000])
def test_who_lost_a_tenth_is_on_watch_within_a_day(before):
    found = ["watch" in grades_of_a_day(seed, 0.1, before) for seed in range(100)]
    assert sum(found) >= 99


def test_who_lost_nothing_never_is():
    assert all(set(grades_of_a_day(seed, 0)) == {"vetted"} for seed in range(100))


# What is kept


def test_events_say_what_changed_and_why():
    score = rules.noted(known(), NOW * HOUR_MS, None)
    assert (score.events[-1].before, score.events[-1].after) == ("new", "vetted")
    score = score.model_copy(update=wrong("payment"))
    score = rules.noted(score, NOW * HOUR_MS, None, dimension="payment", cause="lease_count")
    event = score.events[-1]
    assert (event.before, event.after, event.dimension) == ("vetted", "watch", "payment")
    assert event.cause == "lease_count"
    assert rules.noted(score, NOW * HOUR_MS, None) is score, "nothing new"
    later = rules.noted(score, (NOW + 30 * 24) * HOUR_MS, None)
    assert (later.events[-1].after, later.events[-1].cause) == ("vetted", "nothing more was found")
    barred = rules.noted(score, NOW * HOUR_MS, FORK)
    assert (barred.events[-1].after, barred.events[-1].evidence) == ("barred", FORK)
    for number in range(50):
        score = rules.noted(score, number, None, dimension="payment", cause=f"cause {number}")
    assert len(score.events) == rules.EVENTS_KEPT
    assert score.events[-1].cause == "cause 49"


def test_who_was_absent_hears_that():
    score = rules.noted(known(), NOW * HOUR_MS, None)
    away = score.model_copy(update={"availability": Tally(10 * PPM, 90 * PPM, NOW)})
    event = rules.noted(away, NOW * HOUR_MS, None).events[-1]
    assert (event.cause, event.dimension) == ("it was absent", "availability")


def test_a_worse_grade_is_never_worth_more():
    bad = wrong("integrity")
    found = [
        quality(score) for score in (known(), known(**bad), known(**bad, forged=bad["integrity"]))
    ]
    assert found[0] > found[1] >= found[2]


def test_what_a_peer_answered_is_cut_in_a_cause_so_that_a_score_stays_small():
    score = known()
    for number in range(50):
        score = rules.noted(
            score, number * HOUR_MS, FORK, dimension="integrity", cause="\U0001f480" * 5_000
        )
    assert len(score.to_bytes()) < SCORE_BYTES_MAX


def test_a_kept_score_comes_back_and_every_changed_byte_is_refused_or_another():
    score = rules.noted(known(**wrong("compute")), NOW * HOUR_MS, FORK, cause="dissent")
    raw = score.to_bytes()
    assert Score.from_bytes(raw) == score
    for place in range(len(raw)):
        for bit in (1, 128):
            changed = bytearray(raw)
            changed[place] ^= bit
            try:
                assert Score.from_bytes(bytes(changed)) != score
            except RecordInvalid:
                continue


def test_the_vector_of_a_kept_score():
    vector = json.loads((VECTORS / "score.json").read_text())
    score = Score.from_bytes(bytes.fromhex(vector["score"]))
    assert score.to_bytes().hex() == vector["score"]
    assert score.integrity == Tally(24 * PPM, 0, vector["hour"], 1)
    assert rules.grade_of(score, vector["hour"], None) == score.grade == vector["grade"]
