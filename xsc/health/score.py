"""How far to rely on a peer, by what it did here: sums that decay, bounds over them, and a grade.

In each dimension an hour is one observation, good or bad, so that who is used more is not judged
faster. Sums halve in HALF_LIFE_HOURS. Peers are ranked by lower bounds, in which each begins with
some good observations; the upper bound must be low before one is suspended. What others report
moves the rank alone, and less than what was seen here. All is in integers, in parts per million of
an observation. Design: docs/design/health.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from math import isqrt
from typing import Annotated, Final, NamedTuple, TypeAlias, get_args

from pydantic import Field

from xsc.base.grade import GRADES, Dimension, Grade
from xsc.base.limits import PPM
from xsc.base.units import ceil_div, format_share
from xsc.identity.envelope import Count, Record

Sums: TypeAlias = tuple[int, int]
"""Good and bad observations of one dimension, in ppm of one, as others report them."""

DIMENSIONS: Final[tuple[Dimension, ...]] = get_args(Dimension)
HOUR_MS = 3_600_000
HALF_LIFE_HOURS: Final[dict[Dimension, int]] = {
    "integrity": 90 * 24,
    "availability": 14 * 24,
    "compute": 30 * 24,
    "payment": 30 * 24,
}
_ONE = 1 << 40
_HOUR_LEAVES: Final[dict[Dimension, int]] = {
    "integrity": 1_099_158_849_482,
    "availability": 1_097_245_741_411,
    "compute": 1_098_453_632_425,
    "payment": 1_098_453_632_425,
}
"""What an hour leaves of a sum, of _ONE: the root of one half, rounded down."""
PRIOR: Final[dict[Dimension, int]] = {
    "integrity": 20 * PPM,
    "availability": 2_706_025,
    "compute": 20 * PPM,
    "payment": 20 * PPM,
}
"""Good observations that each peer begins with in its rank; of availability z², which is one half.

In the others who was not used stands behind nobody: else all would stay with whom they know.
"""
RANK_Z2 = 2_706_025
"""1.645², one-sided 95 %: of the lower bound by which peers are ranked."""
JUDGE_Z2 = 9 * PPM
"""3²: of the upper bound by which they are judged."""
JUDGED_MIN = 20 * PPM
"""Fewer observations are not judged by their share."""
WATCHED = 3 * PPM // 4
"""Bad observations from which a peer is on watch: one, until a part of it has decayed."""
FORGED = PPM // 2
"""Bad proofs from which it is suspended: one, for a half-life."""
WATCH_BELOW_PPM = 900_000
SUSPEND_BELOW_PPM = 600_000
EVENTS_KEPT = 16
CAUSE_CHARS_MAX = 200
"""What a peer answered may be a part of a cause."""
CAUSES: Final[dict[Grade, str]] = {
    "vetted": "it has answered probes for long enough",
    "barred": "two entries of its ledger contradict each other",
}
"""Why a grade changes where no single observation does it; any other worse grade is absence."""
ABSENT = "it was absent"
SEARCHED_HOURS = 1 << 20
"""Within that every sum has decayed to nothing."""


class Tally(NamedTuple):
    """What was observed of one peer in one dimension, decayed to one hour."""

    good: Count = 0
    bad: Count = 0
    hour: Count = 0
    """Since 1970."""
    counted: Annotated[int, Field(ge=0, le=2)] = 0
    """How this hour counts so far: 0 not, 1 as good, 2 as bad."""


class Event(Record):
    """Why a peer's score changed: a bad observation, or another grade."""

    at_ms: Count
    before: Grade
    after: Grade
    dimension: Dimension | None
    """None where time alone made it better, where its ledger bars it, or by the operator."""
    cause: str
    evidence: bytes
    """The hash of a signed record that shows it; empty where only this node saw it."""


class Score(Record):
    """All that is kept of one peer."""

    integrity: Tally = Tally()
    availability: Tally = Tally()
    compute: Tally = Tally()
    payment: Tally = Tally()
    forged: Tally = Tally()
    """Bad proofs alone; they are bad observations of integrity as well."""
    seen_ms: Count | None = None
    """When it answered a probe last."""
    grade: Grade = "new"
    """As of the last event."""
    events: tuple[Event, ...] = ()
    """The last EVENTS_KEPT, the oldest first."""

    def tally(self, dimension: Dimension) -> Tally:
        """Return what was observed in a dimension."""
        found: Tally = getattr(self, dimension)
        return found


# What is observed


@lru_cache(maxsize=4096)
def _left(of_hour: int, hours: int) -> int:
    """Return what so many hours leave, of _ONE: an integer of many bits comes before."""
    return of_hour**hours >> 40 * (hours - 1) if hours else _ONE


def decayed(tally: Tally, dimension: Dimension, hour: int) -> Tally:
    """Return a tally decayed to an hour. One of a later hour, by a wrong clock, is moved there."""
    passed = hour - tally.hour
    if passed <= 0:
        return tally if passed == 0 else tally._replace(hour=hour, counted=0)
    if not tally.good + tally.bad:
        return Tally(hour=hour)
    halvings, rest = divmod(passed, HALF_LIFE_HOURS[dimension])
    left, shift = _left(_HOUR_LEAVES[dimension], rest), 40 + halvings
    return Tally(tally.good * left >> shift, tally.bad * left >> shift, hour)


def observed(tally: Tally, dimension: Dimension, hour: int, *, ok: bool) -> Tally:
    """Count an hour, once: as bad if anything in it was."""
    now = decayed(tally, dimension, hour)
    if ok:
        return now if now.counted else now._replace(good=now.good + PPM, counted=1)
    if now.counted == 2:
        return now
    good = max(0, now.good - PPM) if now.counted else now.good
    return now._replace(good=good, bad=now.bad + PPM, counted=2)


def probed(tally: Tally, hour: int, weight: int, *, ok: bool) -> Tally:
    """Count a window of probes, which is a part of an hour, in ppm of it."""
    now = decayed(tally, "availability", hour)
    if ok:
        return now._replace(good=now.good + weight)
    return now._replace(bad=now.bad + weight)


# What follows from it


def lower_ppm(good: int, bad: int, z2: int) -> int:
    """Return the lower bound of Wilson's interval, rounded down, for counts not both zero.

    With a, b the counts, n = a + b and z², all in ppm of an observation, it is
    ((2a + z²) - sqrt((4 z² a b + z⁴ n) / n)) / 2 (n + z²).
    """
    count = good + bad
    under_root = 4 * z2 * good * bad + z2 * z2 * count
    # The least integer that is not below PPM times the root.
    root = isqrt(ceil_div(PPM * PPM * under_root, count) - 1) + 1
    return max(0, (PPM * (2 * good + z2) - root) // (2 * (count + z2)))


def upper_ppm(tally: Tally) -> int:
    """Return the upper bound of the share of good observations; all of it before the first."""
    if not tally.good + tally.bad:
        return PPM
    return PPM - lower_ppm(tally.bad, tally.good, JUDGE_Z2)


def rank_ppm(tally: Tally, dimension: Dimension, reports: Iterable[tuple[int, Sums]] = ()) -> int:
    """Return the lower bound in a dimension, with what others report, in any order.

    No report is more than a quarter of all that counts, and all are no more than half.

    Args:
        tally: what was observed here.
        dimension: in which.
        reports: the mutual recognition of an observer, in ppm, and what it observed.
    """
    good, bad = tally.good + PRIOR[dimension], tally.bad
    own = good + bad
    found = []
    for weight_ppm, sums in reports:
        mass = sum(sums)
        # A third of what counts here is a quarter of both together.
        counts = min(own // 3, mass) * weight_ppm // PPM
        found.append([each * counts // max(1, mass) for each in sums])
    mass = max(own, sum(map(sum, found)))
    good += sum(each for each, _ in found) * own // mass
    bad += sum(each for _, each in found) * own // mass
    return lower_ppm(good, bad, RANK_Z2)


_AT_FIRST: Final = {each: lower_ppm(PRIOR[each], 0, RANK_Z2) for each in DIMENSIONS}


def quality_ppm(
    score: Score,
    grade: Grade,
    hour: int,
    reports: Iterable[tuple[int, tuple[Sums, ...]]] = (),
) -> int:
    """Return what a peer's price is divided by, 0 to PPM; one half of it for a new peer.

    It is the bound of availability, less what bad observations take in the other dimensions, and
    half of that on watch or worse. What others report takes half of it at most.

    Args:
        score: of the peer.
        grade: of the peer.
        hour: the present.
        reports: the mutual recognition of each observer, in ppm, and what it observed in each
            of DIMENSIONS.
    """
    quality = max(_product(score, hour, ()) // 2, _product(score, hour, [*reports]))
    return quality if grade in {"new", "vetted"} else quality // 2


def _product(score: Score, hour: int, theirs: Collection[tuple[int, tuple[Sums, ...]]]) -> int:
    """Return the product of the bounds, of what a peer begins with in all but availability."""
    quality = PPM
    for place, each in enumerate(DIMENSIONS):
        now = decayed(score.tally(each), each, hour)
        bound = rank_ppm(now, each, ((weight, sums[place]) for weight, sums in theirs))
        if each != "availability":
            bound = min(PPM, bound * PPM // _AT_FIRST[each])
        quality = quality * bound // PPM
    return quality


def grade_of(score: Score, hour: int, fork: bytes | None) -> Grade:
    """Return the grade of a peer in an hour.

    Args:
        score: what was observed here; what others say decides nothing.
        hour: the present.
        fork: the hash of two entries of the ledger that prove that it keeps two; None without any.
    """
    if fork is not None:
        return "barred"
    now = {each: decayed(score.tally(each), each, hour) for each in DIMENSIONS}
    judged = [each for each, tally in now.items() if tally.good + tally.bad >= JUDGED_MIN]
    forged = decayed(score.forged, "integrity", hour).bad
    if forged >= FORGED or any(upper_ppm(now[each]) < SUSPEND_BELOW_PPM for each in judged):
        return "suspended"
    wrong = any(now[each].bad >= WATCHED for each in DIMENSIONS if each != "availability")
    away = "availability" in judged and upper_ppm(now["availability"]) < WATCH_BELOW_PPM
    if wrong or away:
        return "watch"
    return "vetted" if "availability" in judged else "new"


def next_step(score: Score, hour: int, fork: bytes | None) -> tuple[str, int | None]:
    """Return what it takes to the next grade, and from when on a bad one is over by itself."""
    grade = grade_of(score, hour, fork)
    if grade == "barred":
        return "the fork is held against it until the operator pardons it: xsc ledger pardon", None
    availability = decayed(score.tally("availability"), "availability", hour)
    if grade == "new":
        left = ceil_div(JUDGED_MIN - availability.good - availability.bad, PPM)
        return f"judged after about {left} hours more of probes that others answer, too", None
    if grade == "vetted":
        least, most = format_share(WATCH_BELOW_PPM), format_share(upper_ppm(availability))
        return f"watch after a wrong answer, or if its availability, {most}, is below {least}", None
    reaches = hour, hour + SEARCHED_HOURS
    while reaches[0] + 1 < reaches[1]:
        middle = sum(reaches) // 2
        same = grade_of(score, middle, fork) == grade
        reaches = (middle, reaches[1]) if same else (reaches[0], middle)
    after = grade_of(score, reaches[1], fork)
    return f"{after} if nothing more is found", reaches[1] * HOUR_MS


# What is kept of it


def noted(
    score: Score,
    at_ms: int,
    fork: bytes | None,
    *,
    dimension: Dimension | None = None,
    cause: str = "",
    evidence: bytes = b"",
) -> Score:
    """Return a score with an event, if something bad was observed or its grade is another.

    Args:
        score: with the observation.
        at_ms: the present.
        fork: as for `grade_of`.
        dimension: of what was bad, or None.
        cause: what was bad; empty where nothing was.
        evidence: the hash of a signed record that shows it.
    """
    grade = grade_of(score, at_ms // HOUR_MS, fork)
    if grade == score.grade and not cause:
        return score
    if not cause:
        worse = GRADES.index(grade) > GRADES.index(score.grade)
        cause = CAUSES.get(grade, ABSENT) if worse else "nothing more was found"
        dimension = "availability" if cause == ABSENT else None
        evidence = fork if fork and grade == "barred" else b""
    event = Event(
        at_ms=at_ms,
        before=score.grade,
        after=grade,
        dimension=dimension,
        cause=cause[:CAUSE_CHARS_MAX],
        evidence=evidence,
    )
    events = (*score.events, event)[-EVENTS_KEPT:]
    return score.model_copy(update={"grade": grade, "events": events})


def lifted(score: Score) -> Score:
    """Return a score without anything bad in it."""
    clean: dict[str, object] = {
        each: score.tally(each)._replace(bad=0, counted=min(score.tally(each).counted, 1))
        for each in DIMENSIONS
    }
    return score.model_copy(update={**clean, "forged": Tally()})
