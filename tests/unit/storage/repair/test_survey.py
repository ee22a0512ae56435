"""What an object needs, and which copies of it may go, by what its hosts say."""

from dataclasses import replace

import pytest

from tests.unit.storage.repair.test_damage import NODES, OTHER, OWN, held, manifest_of
from xsc.api.objects import Ending
from xsc.base.limits import LEASE_LAST_MS, LEASE_RESCUE_MS, LEASE_URGENT_MS, STORAGE_LEASE_MS
from xsc.storage.object.capability import VerifyCapability
from xsc.storage.object.durability import Contract, HostLabels
from xsc.storage.object.expiry import refusing
from xsc.storage.object.held import Held
from xsc.storage.object.inventory import HeldColumn, HeldObject, HeldRecord
from xsc.storage.object.manifest import expected_digest
from xsc.storage.object.placement import placement_of
from xsc.storage.repair.maintained_object import MaintainedObject, merged
from xsc.storage.repair.survey import (
    Survey,
    columns_paid_by_others,
    columns_to_pay_for,
    former_hosts_up,
    found_placement,
    has_damaged_record,
    needs_repair,
    nodes_without_manifest,
    own_expiring,
    plan_cleanup,
    recounted_held,
    surplus_by_host,
)
from xsc.storage.transfer.get import Located

MANIFEST = manifest_of(2)
SPARE, AWAY, LEASE = b"s" * 32, b"a" * 32, b"l" * 32
EVERY_COLUMN = ("ok",) * 6


def survey_of(**change):
    """Return the survey of an object that needs nothing; `kept` changes the maintained object."""
    kept = {
        "ref": b"r" * 32,
        "capability": VerifyCapability(b"v" * 32, b"h" * 32),
        "owner": OWN,
        "placement": placement_of(MANIFEST, NODES),
        "held": tuple(Held(node, LEASE, 1_000) for node in NODES),
    }
    kept |= change.pop("kept", {})
    fields = {
        "maintained": MaintainedObject(**kept),
        "located": Located(b"L" * 32, MANIFEST, b"sealed", ((),) * 6),
        "columns": tuple(NODES),
        "states": EVERY_COLUMN,
        "answers": {node: held(MANIFEST, column) for column, node in enumerate(NODES)},
        "own": OWN,
        "leaving": frozenset(),
        "displaced": frozenset(),
        "unpaid": frozenset(),
        "up": frozenset(NODES),
    }
    return Survey(**fields | change)


def paying_at(*nodes):
    return {"held": tuple(Held(node, LEASE, 1_000) for node in (*NODES, *nodes))}


def needs(survey, *, reported=False):
    return needs_repair(survey, [*NODES, SPARE], reported=reported)


def test_an_object_that_is_whole_needs_nothing():
    survey = survey_of()
    assert survey.is_whole
    assert not needs(survey)
    assert (survey.margin, survey.waiting) == (2, 0)
    assert found_placement(survey) == survey.maintained.placement


@pytest.mark.parametrize(
    "change",
    [
        {"displaced": frozenset({3})},
        {"unpaid": frozenset({3})},
        {"kept": paying_at(SPARE), "up": frozenset({*NODES, SPARE})},
        {"kept": paying_at(AWAY), "dropped": frozenset({(AWAY, LEASE)})},
        {"answers": {NODES[1]: HeldObject((), "missing")}},
        {"answers": {NODES[1]: held(MANIFEST, 2)}},
        {"answers": {NODES[1]: replace(held(MANIFEST, 1), mine=((LEASE, 700),))}},
        {"columns": (NODES[1], *NODES[1:])},
    ],
    ids=["displaced", "unpaid", "former", "dropped", "record", "surplus", "count", "doubled"],
)
def test_each_of_these_is_a_reason_to_repair(change):
    assert needs(survey_of(**change))


def test_a_report_is_a_reason_to_look_and_a_silent_former_host_is_none():
    assert needs(survey_of(), reported=True)
    assert not needs(survey_of(kept=paying_at(AWAY)))


def test_a_custodian_whose_owner_is_back_only_deletes_its_copies():
    kept = {"only_clean": True, "is_own": False, "owner": OTHER}
    assert not needs(survey_of(kept=kept, displaced=frozenset({1})), reported=True)
    assert needs(survey_of(kept=kept | paying_at(SPARE), up=frozenset({*NODES, SPARE})))


def test_a_custodian_leaves_the_manifest_to_the_owner():
    answers = {NODES[1]: HeldObject((), "missing")}
    assert not needs(survey_of(kept={"is_own": False, "owner": OTHER}, answers=answers))


def test_columns_of_silent_nodes_wait_until_they_are_displaced():
    states = ("ok", "unreachable", "unreachable", *EVERY_COLUMN[3:])
    survey = survey_of(states=states, displaced=frozenset({2}))
    assert (survey.waiting, survey.margin, survey.is_whole) == (1, 0, False)


def test_only_an_owner_that_knows_all_labels_moves_good_columns():
    asked = MANIFEST.model_copy(update={"survive": tuple(Contract(1, 1, 0))})
    located = Located(b"L" * 32, asked, b"sealed", ((),) * 6)
    labels = {node: HostLabels(node) for node in NODES}
    assert survey_of(located=located, labels=labels).layout.movable
    fewer = {node: HostLabels(node) for node in NODES[1:]}
    assert not survey_of(located=located, labels=fewer).layout.movable
    assert not survey_of(located=located).layout.movable
    custody = {"is_own": False, "owner": OTHER}
    assert not survey_of(kept=custody, located=located, labels=labels).layout.movable
    assert survey_of().layout.movable, "without a contract about labels none is needed"


# Leases


def test_a_column_that_only_others_pay_for_is_to_be_taken_over():
    answers = {node: held(MANIFEST, column) for column, node in enumerate(NODES)}
    answers[NODES[2]] = held(MANIFEST, 2, customer=OTHER)
    answers[NODES[3]] = None
    answers[NODES[4]] = held(MANIFEST, 4, digest=b"d" * 32)
    assert columns_paid_by_others(survey_of(answers=answers)) == {2, 4}
    lost = ("ok", "ok", "missing", *EVERY_COLUMN[3:])
    assert columns_paid_by_others(survey_of(answers=answers, states=lost)) == {4}


def test_of_an_inline_object_the_record_is_what_is_paid_for():
    manifest = MANIFEST.model_copy(update={"inline": b"x"})
    located = Located(b"L" * 32, manifest, b"sealed", ((),) * 6)
    answers = {node: HeldObject((), "ok", (HeldRecord(OWN),)) for node in NODES}
    answers[NODES[1]] = HeldObject((), "ok", (HeldRecord(OTHER),))
    assert columns_paid_by_others(survey_of(answers=answers, located=located)) == {1}


def test_a_custodian_that_only_deletes_takes_no_lease():
    answers = dict.fromkeys(NODES)
    survey = survey_of(answers=answers, kept={"only_clean": True, "is_own": False})
    assert columns_to_pay_for(survey, 0, 1) == (frozenset(), frozenset())


A, B = b"a" * 32, b"b" * 32
DAY = 86_400_000
NOW = 1_000 * DAY


def looked_at(inline):
    """Return where an object is found, and a function that makes what hosts say."""
    manifest = MANIFEST.model_copy(update={"inline": b"x" if inline else None})

    def said(column, *copies):
        if inline:
            return HeldObject((), "ok", tuple(HeldRecord(who, end) for who, end in copies))
        digest = expected_digest(manifest, column)
        return HeldObject(
            tuple(HeldColumn(w, column, 2, digest, 0, end) for w, end in copies), "ok"
        )

    return Located(b"L" * 32, manifest, b"sealed", ((),) * 6), said


@pytest.mark.parametrize("inline", [True, False])
def test_a_custodian_keeps_what_ends_soon_and_moves_what_it_cannot_keep(inline):
    located, said = looked_at(inline)
    soon, far = NOW + 20 * DAY, NOW + 22 * DAY
    answers = {
        NODES[0]: said(0, (A, far)),
        NODES[1]: said(1, (A, soon)),
        NODES[2]: said(2, (A, soon), (B, far)),
        NODES[3]: said(3, (A, soon), (OWN, soon)),
        NODES[4]: said(4, (A, NOW + LEASE_LAST_MS)),
        NODES[5]: None,
    }
    states = ["ok"] * 5 + ["unreachable"]
    kept = {"is_own": False, "owner": A, "before": (B,), "rescue_ms": LEASE_RESCUE_MS}
    survey = survey_of(located=located, answers=answers, states=states, kept=kept)

    def expiring():
        return columns_to_pay_for(survey, NOW, STORAGE_LEASE_MS)

    assert expiring() == ({1}, {3, 4})
    # Whoever else keeps it, and for how long ever, may let it go.
    for stranger in ((OTHER, far), (OTHER, None)):
        answers[NODES[1]] = said(1, (A, soon), stranger)
        assert expiring() == ({1}, {3, 4})
        answers[NODES[1]] = said(1, stranger)
        assert expiring() == ({1}, {3, 4})
    answers[NODES[1]] = said(1, (A, None))
    answers[NODES[4]] = said(4)
    states[3] = "corrupt"
    assert expiring() == (frozenset(), frozenset())


@pytest.mark.parametrize("inline", [True, False])
def test_an_owner_moves_what_was_refused_unless_the_host_keeps_it_after_all(inline):
    located, said = looked_at(inline)
    soon, far = NOW + LEASE_URGENT_MS, NOW + LEASE_URGENT_MS + 1
    answers = {node: said(column, (OWN, soon)) for column, node in enumerate(NODES)}
    answers[NODES[1]] = said(1, (OWN, far), (OWN, soon))
    answers[NODES[2]] = said(2, (A, far))
    answers[NODES[5]] = None
    ends = [Ending(node=node, ends_ms=soon, reason="debt") for node in NODES]
    ends[3] = Ending(node=NODES[3], ends_ms=soon)
    ends[4] = Ending(node=NODES[4], ends_ms=far, reason="debt")
    survey = survey_of(located=located, answers=answers, refusing=refusing(ends, soon))
    assert own_expiring(survey, soon) == {0, 2}, "not what is only due, has time, or is silent"


# Records


def test_what_hosts_say_is_counted():
    answer = replace(held(MANIFEST, 1), mine=((LEASE, 700),))
    found = recounted_held(survey_of(answers={NODES[1]: answer}))
    assert found[1] == Held(NODES[1], LEASE, 700)
    assert found[0] == Held(NODES[0], LEASE, 1_000)


def test_the_own_node_counts_for_itself():
    answer = replace(held(MANIFEST, 1), mine=((LEASE, 700),))
    survey = survey_of(answers={NODES[1]: answer}, own=NODES[1])
    assert recounted_held(survey) == survey.maintained.held


def test_a_column_found_elsewhere_is_placed_there_once_it_is_paid_for():
    columns = (SPARE, *NODES[1:])
    assert found_placement(survey_of(columns=columns)).columns == columns
    waiting = survey_of(columns=columns, unpaid=frozenset({0}))
    assert found_placement(waiting) == waiting.maintained.placement
    custody = survey_of(columns=columns, unpaid=frozenset({0}), kept={"is_own": False})
    assert found_placement(custody).columns == columns


def test_the_manifest_is_stored_where_a_column_is_and_nobody_leaves():
    lacking = {node: HeldObject((), "missing") for node in (*NODES[:2], SPARE)}
    survey = survey_of(answers=lacking | {NODES[3]: None}, leaving=frozenset({NODES[1]}))
    assert nodes_without_manifest(survey) == [NODES[0]]


def test_a_damaged_record_counts_only_where_this_node_pays():
    corrupt = HeldObject((), "corrupt")
    survey = survey_of(answers={NODES[0]: corrupt, SPARE: corrupt})
    assert has_damaged_record(survey, NODES[0])
    assert not has_damaged_record(survey, SPARE)
    unpaid = survey_of(answers={NODES[0]: corrupt}, kept={"held": (Held(NODES[0], LEASE, 0),)})
    assert not has_damaged_record(unpaid, NODES[0])


# Copies


def test_former_hosts_are_where_it_is_paid_for_and_no_column_is():
    survey = survey_of(kept=paying_at(SPARE, AWAY), up=frozenset({*NODES, SPARE}))
    assert former_hosts_up(survey) == {SPARE}


def test_what_is_no_whole_column_is_deleted_at_once():
    survey = survey_of(kept=paying_at(SPARE))
    for said in (HeldObject((), "missing"), held(MANIFEST, 1, digest=b"d" * 32)):
        plan = plan_cleanup(survey, {SPARE: said})
        assert (plan.broken, plan.copies) == (((SPARE, frozenset()),), ())


def test_a_silent_former_host_is_left_alone():
    plan = plan_cleanup(survey_of(kept=paying_at(SPARE)), {SPARE: None})
    assert (plan.broken, plan.copies) == ((), ())


def test_the_last_copy_goes_with_all_that_is_there_and_others_one_by_one():
    survey = survey_of(kept=paying_at(SPARE))
    one = held(MANIFEST, 2)
    assert plan_cleanup(survey, {SPARE: one}).copies == ((SPARE, frozenset()),)
    two = HeldObject(one.columns + held(MANIFEST, 4).columns, "ok")
    assert plan_cleanup(survey, {SPARE: two}).copies == ((SPARE, frozenset({2})),)


def test_a_copy_stays_while_its_column_is_at_a_node_that_has_several():
    columns = (NODES[1], *NODES[1:])
    survey = survey_of(columns=columns, kept=paying_at(SPARE))
    plan = plan_cleanup(survey, {SPARE: held(MANIFEST, 0)})
    assert plan.copies == ()
    for vacated in ({"leaving": frozenset({SPARE})}, {"refusing": frozenset({SPARE})}):
        plan = plan_cleanup(replace(survey, **vacated), {SPARE: held(MANIFEST, 0)})
        assert plan.copies == ((SPARE, frozenset()),), "others wait for the room"


def test_a_surplus_column_of_a_present_host_is_named():
    both = HeldObject(held(MANIFEST, 1).columns + held(MANIFEST, 2).columns, "ok")
    plan = plan_cleanup(survey_of(answers={NODES[1]: both}), {})
    assert plan.copies == ((NODES[1], frozenset({2})),)
    broken = HeldObject(
        held(MANIFEST, 1).columns + held(MANIFEST, 2, digest=b"d" * 32).columns, "ok"
    )
    plan = plan_cleanup(survey_of(answers={NODES[1]: broken}), {})
    assert (plan.broken, plan.copies) == (((NODES[1], frozenset({2})),), ())


def test_columns_of_others_and_such_as_cannot_be_are_no_surplus():
    row = held(MANIFEST, 1).columns
    others = HeldObject(row + held(MANIFEST, 2, customer=OTHER).columns, "ok")
    beyond = HeldObject(row + tuple(replace(item, column=9) for item in row), "ok")
    for said in (others, beyond):
        assert surplus_by_host(survey_of(answers={NODES[1]: said})) == {}


def test_what_a_silent_host_has_dropped_is_only_counted():
    survey = survey_of(kept=paying_at(AWAY), dropped=frozenset({(AWAY, LEASE)}))
    assert plan_cleanup(survey, {}).dropped == (Held(AWAY, LEASE, 1_000),)


def test_sums_by_host_and_lease():
    first, more = Held(SPARE, LEASE, 3), Held(SPARE, LEASE, 4)
    assert merged([first], [more, Held(AWAY, LEASE, 1)]) == (
        Held(SPARE, LEASE, 7),
        Held(AWAY, LEASE, 1),
    )
