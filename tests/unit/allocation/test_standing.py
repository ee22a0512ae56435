"""What a node offers and needs by default."""

from __future__ import annotations

import pytest

from tests.unit.allocation.test_declaring import NOW, edited
from xsc.allocation.declaring import (
    NOTHING,
    find,
    kept_steps,
    need_of,
    needed,
    offered,
    standing_need,
    with_slot,
    with_standing,
    without,
)
from xsc.allocation.windows import DAY_MS, ENDLESS_MS
from xsc.base.errors import ArgumentInvalid
from xsc.base.units import ceil_div
from xsc.terms.pricing import Ladder
from xsc.terms.slot import STEP, STEPS_MAX, AvailabilitySlot, Commitment, NeedSlot

STEP_BYTES = STEP["storage"]
GIB = 1 << 30


def stood(commitment, storage, compute=0, *, rungs=(5, 8, 13)):
    for kind, level in (("compute", compute), ("storage", storage)):
        fields = offered(kind, level, Ladder(*rungs)) | {"location": "berlin", "owner": "alice"}
        new_id = kind.encode()[:1] * 16
        commitment = with_standing(commitment, AvailabilitySlot, kind, fields, new_id)
    return commitment


def test_a_standing_slot_is_all_that_a_node_has_in_whole_steps():
    step = STEP["storage"]
    made = stood(Commitment(), 3 * step - 1, STEP["compute"] - 1)
    (slot,) = made.slots
    assert (slot.kind, slot.quantity, slot.standing) == ("storage", 2, True)
    assert (slot.price_mutual, slot.price_one_way, slot.reserve) == (5, 8, 13)
    assert (slot.windows, slot.valid_until_ms) == ((), ENDLESS_MS)
    assert slot.window_at(NOW) == (0, ENDLESS_MS)
    assert made.standing_made == ("storage",)
    assert stood(Commitment(), 2**63).slots[0].quantity == STEPS_MAX


def test_a_standing_slot_follows_what_its_node_has_and_asks():
    step = STEP["storage"]
    made = stood(Commitment(), 3 * step, STEP["compute"])
    assert stood(made, 3 * step, STEP["compute"]) == made
    later = stood(made, 5 * step, rungs=(6, 9, 14))
    (slot,) = later.slots
    before = find(made, slot.slot_id)
    assert (slot.quantity, slot.reserve, slot.windows) == (5, 14, before.windows)
    assert later.standing_made == ("storage",), "what is nothing now may stand again"
    assert stood(later, 5 * step, STEP["compute"]).standing_made == ("compute", "storage")


@pytest.mark.parametrize(
    ("said", "standing"),
    [
        ({"filters": (("tier", "mutual"),)}, True),
        ({"rule": "proportional"}, True),
        ({"quantity": 3}, False),
        ({"price": 13}, False),
        ({"location": "paris"}, False),
        ({"to_ms": NOW + DAY_MS}, False),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_an_edit_of_what_a_standing_slot_follows_makes_it_a_stated_one(said, standing):
    made = stood(Commitment(), 3 * STEP["storage"])
    (slot,) = made.slots
    changed = edited(slot, **said)
    assert changed.standing is standing
    after = stood(with_slot(made, changed), 9 * STEP["storage"], rungs=(1, 1, 1))
    assert [each.slot_id for each in after.slots] == [slot.slot_id]
    assert (after.slots[0] == changed) is not standing
    assert after.slots[0].filters == changed.filters
    assert after.slots[0].rule == changed.rule


def test_a_withdrawn_standing_slot_stays_away():
    made = stood(Commitment(), STEP["storage"])
    gone = without(made, made.slots[0].slot_id)
    assert stood(gone, STEP["storage"]) == gone
    assert stood(gone, 0).standing_made == ()


def test_what_is_worth_more_than_any_amount_is_not_offered():
    with pytest.raises(ArgumentInvalid, match="more than any amount"):
        stood(Commitment(), 2**63, rungs=(1, 1, 10**12))


def needing(commitment, held, short=0, spread=1, *, price=9, kind="storage"):
    new_id = {"storage": b"n" * 16, "compute": b"m" * 16}[kind]
    fields = needed(kind, held, price, short, spread) | {"owner": "alice"}
    return with_standing(commitment, NeedSlot, kind, fields, new_id)


def hosts(count):
    return [bytes([number]) * 32 for number in range(count)]


def test_a_need_has_a_part_for_each_that_holds_something_and_goes_with_the_last():
    first, second, third = hosts(3)
    made = needing(Commitment(), {second: 1, first: STEP_BYTES + 1, third: 0})
    need = standing_need(made)
    assert need.parts == ((first, 2), (second, 1))
    assert (need.quantity, need.spread, need.price_max, need.owner) == (3, 1, 9, "alice")
    assert [need.cap(node) for node in (first, second, third)] == [2, 1, 0]
    assert needing(made, {second: 5, first: 2 * STEP_BYTES}) == made, "a part seldom changes"
    less = needing(made, {second: 1})
    assert (standing_need(less).number, standing_need(less).slot_id) == (2, need.slot_id)
    assert needing(less, {second: 0}) == Commitment() == needing(Commitment(), {})


def test_what_was_refused_is_open_to_all_over_so_many_providers():
    made = needing(Commitment(), {hosts(1)[0]: 1}, short=3 * STEP_BYTES, spread=6)
    need = standing_need(made)
    assert (need.quantity, need.open_steps, need.spread) == (1 + 18, 18, 6)
    assert [need.cap(node) for node in hosts(2)] == [4, 3]
    assert standing_need(needing(made, {hosts(1)[0]: 1})).quantity == 1


@pytest.mark.parametrize("providers", range(1, 14))
def test_a_part_has_room_for_what_others_lose_where_there_are_more_than_an_object_needs(providers):
    for held in (1, STEP_BYTES, 700 * STEP_BYTES, 3 * GIB + 1, 2**43 + 12345):
        part = kept_steps(held, providers) * STEP_BYTES
        margin = 0 if providers <= 6 else max(held // 10, ceil_div(held, providers - 1))
        assert held + margin <= part
        assert part <= max(STEP_BYTES, ceil_div((held + margin) * 9, 8) + STEP_BYTES)
    counts = {kept_steps(size * STEP_BYTES, 6) for size in range(512, 1024)}
    assert len(counts) == 9, "eighths of the power of two below"


def test_a_default_need_follows_its_node_and_is_edited_by_nobody():
    need = standing_need(needing(Commitment(), {hosts(1)[0]: 1}))
    with pytest.raises(ArgumentInvalid, match="follows what the node stores"):
        edited(need, quantity=5)


def test_a_need_of_more_than_any_amount_is_not_stated():
    with pytest.raises(ArgumentInvalid, match="more than any amount"):
        needing(Commitment(), {hosts(1)[0]: 2**55}, price=10**14)


def test_leases_for_now_count_for_the_standing_need():
    node, other = hosts(1)[0], bytes([5]) * 16
    said = needing(Commitment(), {node: 1})
    need_id = standing_need(said).slot_id
    assert need_of(said, "storage", None) == need_id
    assert need_of(Commitment(), "storage", None) == NOTHING
    # A lease of a need that is stated no more counts for the standing one, too, but of compute.
    assert need_of(said, "storage", other) == need_of(said, "storage", need_id) == need_id
    assert need_of(said, "compute", other) == need_of(Commitment(), "storage", other) == other


def test_a_need_of_compute_is_the_rate_at_each_provider_without_a_margin():
    step = STEP["compute"]
    rates = dict.fromkeys(hosts(9), 17 * step + 1)
    made = needing(Commitment(), rates, kind="compute")
    need = standing_need(made, "compute")
    assert (need.kind, need.open_steps, need.spread) == ("compute", 0, 1)
    assert need.parts == tuple((node, 18) for node in hosts(9)), "eighths of sixteen steps"
    assert standing_need(made) is None
    both = needing(made, {hosts(1)[0]: 1})
    assert standing_need(both, "compute") == need
    assert needing(both, {}, kind="compute") == needing(Commitment(), {hosts(1)[0]: 1})
