"""The rules of alerts: raised once, told once, kept until acknowledged and over."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.api import monitor as api
from xsc.api import status
from xsc.monitor import conditions
from xsc.monitor.conditions import HELD_MS, TOLD_AGAIN_MS, Alert, due, step, told

NOW = 1_700_000_000_000
PEER = bytes(32)
TARGETS = ("a", "b")

PEER_ROW = api.PeerMeasures(
    peer=PEER,
    state="up",
    up=True,
    availability_ppm=10**6,
    response_ms=1,
    grade="vetted",
    grade_level=1,
    quality_ppm=10**6,
    balance_micro=0,
    limit_micro=100,
    own_limit_micro=100,
    outcome=None,
    proven_age_ms=None,
    unproven_micro=0,
    owed_unproven_micro=0,
    head_age_ms=None,
)
WELL = api.Measures(
    at_ms=NOW,
    status=status.Status(
        id=PEER,
        name="a",
        version="1",
        network="xsc",
        state="running",
        home="/",
        api_url="",
        peer_url="",
        addresses=[],
        uptime_s=1,
        peers=status.PeersStatus(
            known=1, healthy=1, reached_by=1, not_reached_by=0, clock_refused_by=0
        ),
        storage=status.StorageStatus(
            capacity_bytes=100,
            used_bytes=0,
            reserved_bytes=0,
            offered_bytes=0,
            granted_bytes=0,
            disk_free_bytes=100,
        ),
        compute=status.ComputeStatus(
            workers=1, running=0, queued=0, offered_fuel_per_s=0, granted_fuel_per_s=0
        ),
        leases=status.LeasesStatus(ending=0, objects=0, first_end_ms=None, reasons=[]),
        traffic=status.TrafficStatus(sent_bytes=0, received_bytes=0),
        alerts=0,
    ),
    margins=[api.Margin(margin=1, objects=3)],
    kinds=[],
    leases=[],
    peers=[PEER_ROW],
    events=[],
    proofs=0,
    queue_delay_ms=0,
    loop_delay_ms=0,
)


def found(measures):
    return {alert.kind for alert in conditions.conditions(measures, NOW)}


def with_status(part, **fields):
    changed = replace(getattr(WELL.status, part), **fields)
    return replace(WELL, status=replace(WELL.status, **{part: changed}))


def with_peer(**fields):
    return replace(WELL, peers=[replace(PEER_ROW, **fields)])


@pytest.mark.parametrize(
    ("bad", "well", "kind"),
    [
        (
            replace(WELL, margins=[api.Margin(margin=0, objects=1)]),
            replace(WELL, margins=[]),
            "margin",
        ),
        (with_status("leases", ending=1), WELL, "lease"),
        (with_peer(balance_micro=81), with_peer(balance_micro=80), "debt"),
        (with_peer(balance_micro=-81), with_peer(balance_micro=-80), "own_debt"),
        (
            with_status("storage", disk_free_bytes=4),
            with_status("storage", disk_free_bytes=5),
            "disk",
        ),
        (
            with_status("peers", reached_by=0, not_reached_by=1),
            with_status("peers", reached_by=0),
            "unreachable",
        ),
        (replace(WELL, proofs=1), WELL, "proof"),
        (with_peer(outcome="missing"), with_peer(outcome="timeout"), "lost"),
        (with_peer(grade="suspended"), with_peer(grade="watch"), "grade"),
        (with_peer(grade="barred"), with_peer(grade="new"), "grade"),
    ],
)
def test_each_condition_begins_at_its_bound(bad, well, kind):
    assert found(WELL) == set()
    assert found(well) == set()
    assert found(bad) == {kind}


def test_a_limit_that_was_not_heard_is_no_limit():
    assert found(with_peer(balance_micro=-(10**9), own_limit_micro=None)) == set()


def alert(kind="lease", at_ms=NOW, says="x"):
    return Alert(kind=kind, says=says, since_ms=at_ms)


@pytest.mark.parametrize("kind", HELD_MS)
def test_some_conditions_are_alerts_once_they_have_held(kind):
    known = step([], [alert(kind)], NOW)
    assert not known[f"{kind}/"].raised
    for after_ms, raised in ((HELD_MS[kind] - 1, False), (HELD_MS[kind], True)):
        later = step(known.values(), [alert(kind, NOW + after_ms)], NOW + after_ms)
        assert later[f"{kind}/"].raised is raised
    # One that goes meanwhile was none.
    assert step(known.values(), [], NOW + 1) == {}


def test_a_target_that_heard_is_not_told_again_and_one_that_did_not_is():
    known = step([], [alert()], NOW)
    pairs = due(known.values(), TARGETS, NOW)
    assert [targets for _, targets in pairs] == [["a", "b"]]
    one = told(known["lease/"], ["a"], True, NOW)
    assert due([one], TARGETS, NOW + conditions.RETRY_MS - 1) == []
    assert [targets for _, targets in due([one], TARGETS, NOW + conditions.RETRY_MS)] == [["b"]]
    both = told(one, ["b"], False, NOW + 1)
    assert due([both], TARGETS, NOW + 10**9) == []


def test_it_is_tried_for_ever_but_at_least_once_an_hour():
    it = step([], [alert()], NOW)["lease/"]
    at = NOW
    for _ in range(50):
        it = told(it, [], True, at)
        assert due([it], ["a"], at) == []
        at += conditions.RETRY_MS_MAX
        assert due([it], ["a"], at)


def test_one_that_comes_and_goes_is_told_once():
    at, known, heard = NOW, {}, 0
    for turn in range(240):
        at += 60_000
        known = step(known.values(), [alert(at_ms=at)] if turn % 2 else [], at)
        for each, targets in due(known.values(), ["a"], at):
            known[each.key] = told(known[each.key], targets, False, at)
            heard += 1
    assert heard == 1


def test_what_is_over_stays_until_it_is_acknowledged():
    known = step([], [alert()], NOW)
    over = step(known.values(), [], NOW + 1)["lease/"]
    assert over.is_shown
    assert over.over_ms == NOW + 1
    assert due([over], TARGETS, NOW + 1) == []
    seen = over.model_copy(update={"acknowledged": True})
    assert not any(each.is_shown for each in step([seen], [], NOW + 2).values())
    assert step([seen], [], NOW + 1 + TOLD_AGAIN_MS) == {}
    assert step([over], [], NOW + 2)["lease/"].over_ms == NOW + 1
    assert step([over], [], NOW + 2 + conditions.KEPT_MS) == {}


def test_what_was_acknowledged_stays_so_while_it_holds_and_is_new_after_an_hour():
    known = step([], [alert()], NOW)["lease/"]
    seen = told(known, ["a"], False, NOW).model_copy(update={"acknowledged": True})
    again = step([seen], [alert(at_ms=NOW + 10**8)], NOW + 10**8)["lease/"]
    assert not again.is_shown
    over = step([seen], [], NOW + 1)
    soon = step(over.values(), [alert(at_ms=NOW + 2)], NOW + 2)["lease/"]
    assert not soon.is_shown
    back_ms = NOW + 1 + conditions.SHOWN_AGAIN_MS
    back = step(over.values(), [alert(at_ms=back_ms)], back_ms)["lease/"]
    assert back.is_shown
    assert due([back], ["a"], back_ms) == []
    late_ms = NOW + 1 + TOLD_AGAIN_MS
    late = step(step(over.values(), [], late_ms).values(), [alert(at_ms=late_ms)], late_ms)
    assert late["lease/"].is_shown


def proofs(count):
    return [*conditions.conditions(replace(WELL, proofs=count), NOW)]


def test_one_more_proof_is_told_again_and_one_fewer_is_not():
    seen = step([], proofs(2), NOW)["proof/"]
    seen = told(seen, ["a"], False, NOW).model_copy(update={"acknowledged": True})
    more = step([seen], proofs(3), NOW + 1)["proof/"]
    assert more.is_shown
    assert not due([more], ["a"], NOW + 1)
    later = step([more], proofs(3), NOW + TOLD_AGAIN_MS)["proof/"]
    assert due([later], ["a"], NOW + TOLD_AGAIN_MS)
    fewer = step([seen], proofs(1), NOW + 1)["proof/"]
    assert not fewer.is_shown


def test_one_that_nobody_acknowledged_stays_though_it_flickers():
    held = step(step([], [alert("margin")], NOW).values(), [alert("margin")], NOW + 60_000)
    at, known = NOW + 60_000, held
    for holds in (False, True, False, True, False):
        at += TOLD_AGAIN_MS
        known = step(known.values(), [alert("margin", at)] if holds else [], at)
        assert known["margin/"].is_shown


@given(st.lists(st.tuples(st.integers(-(10**9), 10**9), st.booleans(), st.booleans()), max_size=30))
def test_no_clock_that_jumps_loses_an_alert_or_a_message(turns):
    """Whatever the clock does: what holds is shown once its time is up, and told of in the end."""
    at, known = NOW, {}
    for jump, holds, acknowledges in turns:
        at = max(0, at + jump)
        known = step(known.values(), [alert(at_ms=at)] if holds else [], at)
        assert ("lease/" in known and known["lease/"].over_ms is None) is holds
        if holds:
            assert known["lease/"].raised
        if acknowledges:
            known = {k: a.model_copy(update={"acknowledged": True}) for k, a in known.items()}
        for each, targets in due(known.values(), TARGETS, at):
            known[each.key] = told(known[each.key], targets, False, at)
        if holds:
            assert known["lease/"].acknowledged or set(known["lease/"].told) == set(TARGETS)


@pytest.mark.parametrize("kind", ["margin", "lease", "proof"])
def test_what_was_acknowledged_is_shown_again_where_there_is_more_of_it(kind):
    def counted(count, at_ms):
        return alert(kind, at_ms).model_copy(update={"count": count})

    known = step([], [counted(1, NOW)], NOW)
    known = step(known.values(), [counted(1, NOW)], NOW + 60_000)
    seen = [known[f"{kind}/"].model_copy(update={"acknowledged": True})]
    assert not step(seen, [counted(1, NOW)], NOW + 60_001)[f"{kind}/"].is_shown
    assert step(seen, [counted(2, NOW)], NOW + 60_001)[f"{kind}/"].is_shown


def test_what_cannot_be_read_is_an_alert_of_its_own():
    assert found(replace(WELL, margins=[api.Margin(margin=-1, objects=1)])) == {
        "margin",
        "unreadable",
    }


def test_one_that_flickers_before_anybody_heard_is_tried_as_seldom_as_one_that_holds():
    at, known, tries = NOW, {}, 0
    for turn in range(240):
        at += 15_000
        known = step(known.values(), [alert(at_ms=at)] if turn % 2 else [], at)
        for each, _ in due(known.values(), ["a"], at):
            known[each.key] = told(known[each.key], [], True, at)
            tries += 1
    assert tries <= 7
