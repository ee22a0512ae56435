import pytest

from tests.unit.health.test_service import Node
from xsc.base.encoding import encode
from xsc.base.errors import RecordInvalid, StoreDamaged
from xsc.base.limits import PPM
from xsc.health.score import DIMENSIONS, HOUR_MS
from xsc.health.scoring import FRESH_MS, SCORES
from xsc.health.service import PROBE_INTERVAL_MS

SECRET = b"e" * 32


@pytest.fixture
def a():
    return Node(1)


@pytest.fixture
def b(a):
    node = Node(2)
    a.others, node.others = [node], [a]
    return node


def events(node):
    return [event for event, _ in node.lines]


async def test_what_is_observed_survives_a_restart_and_heals_in_days(a, b):
    for _ in range(25):
        a.health.scores.probed(b.id, PPM, ok=True)
    good = a.health.quality_ppm(b.id)
    a.health.report(b.id, "integrity", "shard_mismatch")
    assert a.lines[-2:] == [
        ("health.peer_reported", {"peer": a.lines[-2][1]["peer"], "what": "shard_mismatch"}),
        (
            "health.graded",
            a.lines[-1][1] | {"before": "vetted", "grade": "watch", "cause": "shard_mismatch"},
        ),
    ]
    worse = a.health.quality_ppm(b.id)
    assert good // 3 < worse <= good // 2
    a.health = a.start()
    assert (a.health.quality_ppm(b.id), a.health.grade(b.id)) == (worse, "watch")
    a.clock.advance_to(a.clock.now_ms() + 38 * 24 * HOUR_MS)
    for _ in range(25):
        a.health.scores.probed(b.id, PPM, ok=True)
    assert a.health.grade(b.id) == "vetted"
    assert a.health.quality_ppm(b.id) > worse
    assert len(list(a.store.scan(b"health/"))) == 1
    a.health.report(b"z" * 32, "integrity", "shard_mismatch")
    assert len(list(a.store.scan(b"health/"))) == 1, "nothing is kept of who is no peer"


async def test_a_bad_proof_suspends_with_its_evidence_until_the_operator_lifts_it(a, b):
    a.health.report(b.id, "integrity", "bad_proof", evidence=SECRET)
    judged = a.health.scores.judged(b.id)
    assert (judged.grade, judged.score.events[-1].evidence) == ("suspended", SECRET)
    a.health.scores.lift(b.id)
    assert a.health.grade(b.id) == "new"
    a.health = a.start()
    assert a.health.grade(b.id) == "new"
    a.health.report(b.id, "integrity", "bad_proof", evidence=SECRET)
    assert a.health.grade(b.id) == "suspended", "it counts anew"


async def test_a_burst_within_an_hour_is_one_observation(a, b):
    for _ in range(50):
        a.health.report(b.id, "compute", "dissent")
        a.health.served(b.id, "compute")
    assert a.health.scores.tally(b.id, "compute")[:2] == (0, PPM)


@pytest.mark.parametrize("raw", [b"", b"\xff", encode({"v": 2}), encode({"v": 1})])
async def test_a_damaged_score_stops_the_start(a, raw):
    a.store.write([(b"health/score/" + b"n" * 32, raw)], sync=True)
    with pytest.raises(StoreDamaged, match="score"):
        a.start()


async def test_the_subject_is_told_what_it_is_judged_by(a, b):
    b.health.report(a.id, "payment", "lease_count")
    told = await a.health.scores.of_me(b.id)
    assert (told.node, told.grade) == (b.id, "watch")
    assert told[1:] == b.health.scores.judged(a.id)[1:]
    assert told.score.events[-1].cause == "lease_count"


async def test_reports_of_recognised_peers_move_the_rank_for_a_day_and_no_grade(a, b):
    c = Node(3)
    a.others.append(c)
    b.others.append(c)
    for _ in range(30):
        a.health.scores.probed(c.id, PPM, ok=True)
        b.clock.advance_to(b.clock.now_ms() + HOUR_MS)
        b.health.report(c.id, "integrity", "shard_mismatch")
    before = a.health.quality_ppm(c.id)
    weights = {b.id: 0}
    b.health.scores._recognition_ppm = lambda _: PPM
    a.health.scores._recognition_ppm = lambda peer: weights.get(peer, 0)
    await a.health.scores.learn(a.peers())
    assert a.health.quality_ppm(c.id) == before, "nobody is recognised"
    weights[b.id] = PPM
    await a.health.scores.learn(a.peers())
    assert a.health.quality_ppm(c.id) < before
    assert a.health.grade(c.id) == "vetted"
    assert list(a.health.scores.reports(c.id)) == [b.id]
    assert not a.health.scores.reports(b.id), "nobody speaks of itself"
    weights[b.id] = 0
    assert a.health.quality_ppm(c.id) == before, "it is recognised no more"
    weights[b.id] = PPM
    a.clock.advance_to(a.clock.now_ms() + FRESH_MS)
    assert not a.health.scores.reports(c.id)


async def test_a_peer_is_told_nothing_of_itself_among_the_others(a, b):
    c = Node(3)
    a.others.append(c)
    a.health.scores.probed(b.id, PPM, ok=True)
    a.health.scores.probed(c.id, PPM, ok=True)
    answer, _ = await a.health.handlers()[SCORES](b.id, {"v": 1}, ())
    assert answer["scores"] == [], "who is not recognised makes no use of it"
    a.health.scores._recognition_ppm = lambda _: 1
    answer, _ = await a.health.handlers()[SCORES](b.id, {"v": 1}, ())
    assert [row[0] for row in answer["scores"]] == [c.id]
    with pytest.raises(RecordInvalid):
        await a.health.handlers()[SCORES](b.id, {"v": 2}, ())
    with pytest.raises(RecordInvalid):
        await a.health.handlers()[SCORES](b.id, {}, ())


ROW = [b"p" * 32, *[0] * (2 * len(DIMENSIONS))]


@pytest.mark.parametrize(
    "scores",
    [
        None,
        [1],
        [ROW[:-1]],
        [[*ROW, 0]],
        [[b"p", *ROW[1:]]],
        [[*ROW[:-1], -1]],
        [[*ROW[:-1], 2**63]],
        [[*ROW[:-1], True]],
        [[*ROW[:-1], "1"]],
        [ROW] * 1_001,
    ],
)
async def test_what_is_no_report_counts_as_none(a, b, scores):
    a.health.scores._recognition_ppm = lambda _: PPM

    def forge(reply):
        reply.header["scores"] = scores
        return reply

    a.forge = forge
    await a.health.scores.learn(a.peers())
    assert events(a)[-1] == "health.scores_unheard"
    assert not a.health.scores.reports(b"p" * 32)


async def test_who_is_silent_is_no_observer(a, b):
    a.health.scores._recognition_ppm = lambda _: PPM
    a.silent = {b.id}
    await a.health.scores.learn(a.peers())
    assert events(a)[-1] == "health.scores_unheard"


async def test_one_hour_leaves_one_event_and_evidence_is_not_pushed_out(a, b):
    a.health.report(b.id, "integrity", "bad_proof", evidence=SECRET)
    for number in range(50):
        a.health.report(b.id, "integrity", f"space: {number}")
    assert [event.evidence for event in a.health.scores.of(b.id).events] == [SECRET]


async def test_evidence_that_comes_later_in_an_hour_counts(a, b):
    a.health.report(b.id, "integrity", "shard_mismatch")
    a.health.report(b.id, "integrity", "bad_proof", evidence=SECRET)
    assert a.health.grade(b.id) == "suspended"
    assert a.health.scores.of(b.id).events[-1].evidence == SECRET


async def test_silence_puts_on_watch_and_never_suspends(a, b):
    for _ in range(60):
        a.health.scores.silent(b.id)
        a.clock.advance_to(a.clock.now_ms() + 24 * HOUR_MS)
        assert a.health.grade(b.id) in {"watch", "new"}
    a.health.scores.silent(b.id)
    assert a.health.grade(b.id) == "watch"


async def test_a_fork_bars_with_its_own_evidence_and_keeps_that_of_others(a, b):
    a.health.scores._fork = lambda _: b"f" * 32
    a.health.report(b.id, "integrity", "bad_proof", evidence=SECRET)
    found = [(event.after, event.evidence) for event in a.health.scores.of(b.id).events]
    assert found == [("barred", b"f" * 32), ("barred", SECRET)]


@pytest.mark.parametrize("count", [1, 5, 12, 13, 18, 24, 25, 50])
async def test_an_hour_of_probes_is_an_hour_whatever_the_number_of_peers(a, count):
    a.others = [Node(number) for number in range(2, 2 + count)]
    turns = 60 * 60 * 1_000 // PROBE_INTERVAL_MS * min(12, count) // count
    assert a.health._window_ppm() * turns == pytest.approx(PPM, rel=0.01)
