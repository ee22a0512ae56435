"""Slots and needs are made and edited from what their owner states."""

from __future__ import annotations

from datetime import UTC

import pytest

from xsc.allocation.declaring import (
    Statement,
    find,
    renewed,
    stated,
    with_slot,
    without,
)
from xsc.allocation.windows import DAY_MS, ENDLESS_MS
from xsc.base import limits
from xsc.base.errors import ArgumentInvalid, NotFound, TooLarge
from xsc.terms.pricing import Ladder
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot

NOW = 20_000 * DAY_MS + 12 * limits.EPOCH_MS
"""Noon of the fourth of October 2024, a Friday."""
NIGHTS = "daily 22:00-06:00 UTC"
PROVIDER = bytes([7]) * 32


def zones(name):
    if name != "UTC":
        raise ArgumentInvalid(f"'{name}' is no time zone")
    return UTC


def new(first, number, kind):
    slot_id = bytes([first, *number.to_bytes(15, "big")])
    return {"slot_id": slot_id, "kind": kind, "owner": "alice"}


def resolved(role, before, said, rungs=(5, 8, 13), now_ms=NOW):
    return stated(
        role,
        before,
        Statement(**said),
        posted=lambda *_: Ladder(*rungs),
        now_ms=now_ms,
        zones=zones,
    )


def offered(kind="compute", *, number=0, rungs=(5, 8, 13), **said):
    return resolved(AvailabilitySlot, new(1, number, kind), {"quantity": 100, **said}, rungs)


def needed(kind="compute", *, number=0, **said):
    return resolved(NeedSlot, new(2, number, kind), {"quantity": 100, "price": 20, **said})


def edited(slot, rungs=(5, 8, 13), now_ms=NOW, **said):
    return resolved(type(slot), dict(slot), said, rungs, now_ms)


def test_an_offer_has_the_rungs_of_its_reserve():
    slot = offered(location="berlin", filters=(("tier", "mutual"), ("owner", "bob")))
    assert (slot.price_mutual, slot.price_one_way, slot.reserve) == (5, 8, 13)
    assert slot.windows == ((NOW, NOW + limits.SLOT_HORIZON_MS),)
    assert slot.valid_until_ms == NOW + limits.SLOT_HORIZON_MS
    assert (slot.owner, slot.location) == ("alice", "berlin")
    assert slot.filters == (("owner", "bob"), ("tier", "mutual"))


def test_a_need_without_times_is_there_until_it_is_withdrawn():
    need = needed()
    assert (need.windows, need.valid_until_ms, need.number) == ((), ENDLESS_MS, 1)


def test_a_recurrence_has_its_next_window_and_no_end():
    slot = offered(every=NIGHTS)
    assert slot.windows == ((NOW + 10 * limits.EPOCH_MS, NOW + 18 * limits.EPOCH_MS),)
    assert slot.recurrence == NIGHTS
    assert slot.valid_until_ms == ENDLESS_MS
    ended = offered(every=NIGHTS, to_ms=NOW + 3 * DAY_MS)
    assert ended.windows == slot.windows
    assert ended.valid_until_ms == NOW + 3 * DAY_MS


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"quantity": None}, "quantity"),
        ({"quantity": 0}, "^quantity must be greater than 0$"),
        ({"quantity": 2**63}, "less than"),
        ({"from_ms": NOW + 5, "to_ms": NOW + 5}, "no length"),
        ({"from_ms": NOW + 5, "to_ms": NOW + 4}, "no length"),
        ({"to_ms": NOW}, "no length"),
        ({"from_ms": NOW - 5, "to_ms": NOW - 1}, "is over"),
        ({"to_ms": NOW + 91 * DAY_MS}, "more than 90 days"),
        ({"from_ms": NOW + 90 * DAY_MS}, "begins or ends more than 90 days"),
        ({"from_ms": NOW + 91 * DAY_MS, "every": NIGHTS}, "none within 90 days"),
        ({"from_ms": NOW + 9, "to_ms": NOW + 9, "every": NIGHTS}, "no window before its end"),
        ({"to_ms": NOW + DAY_MS // 4, "every": NIGHTS}, "no window before its end"),
        ({"every": "daily 10:00-11:00 Mars/Base"}, "is no time zone"),
        ({"every": "always"}, "not a recurrence"),
        ({"kind": "storage", "every": NIGHTS}, "storage has one window, with a start and an end"),
        ({"quantity": 2**32, "price": 2**62, "rungs": (13, 13, 2**62)}, "more than any amount"),
        ({"quantity": 2**33}, "quantity must be less than"),
        ({"location": "x" * 65}, "^location must have at most 64 characters$"),
        ({"filters": (("a", "1"),) * 2}, "filters do not rise"),
        (
            {"filters": tuple((f"{n}", "") for n in range(9))},
            "^filters must have at most 8 items",
        ),
    ],
    ids=str,
)
def test_a_wrong_statement_is_refused(said, why):
    with pytest.raises(ArgumentInvalid, match=why) as refused:
        offered(**said)
    assert "Input should" not in refused.value.message
    if "rungs" not in said:
        with pytest.raises(ArgumentInvalid, match=why):
            needed(**said)


@pytest.mark.parametrize(
    ("filters", "why", "hint"),
    [
        ((("foo", "bar"),), "no filter 'foo'", "node, owner, location, tier"),
        ((("tier", "best"),), "'best' is no tier", "open, one_way, mutual"),
        ((("node", "node-1"),), "a node id has 52 characters", None),
        ((("owner", ""),), "matches nothing", "owner=NAME"),
    ],
)
def test_a_filter_that_nobody_could_meet_is_refused(filters, why, hint):
    for make in (offered, needed):
        with pytest.raises(ArgumentInvalid, match=why) as refused:
            make(filters=filters)
        assert hint is None or hint in str(refused.value.hint)
    with pytest.raises(ArgumentInvalid, match=why):
        edited(needed(), filters=filters)


def test_a_ladder_that_falls_is_refused():
    with pytest.raises(ArgumentInvalid, match="ladder must not fall"):
        offered(rungs=(9, 8, 13))


def test_a_need_has_a_price_and_no_rule():
    with pytest.raises(ArgumentInvalid, match="price_max"):
        needed(price=None)
    with pytest.raises(ArgumentInvalid, match="no rule"):
        needed(rule="proportional")
    with pytest.raises(ArgumentInvalid, match="no rule"):
        edited(needed(), rule="proportional")


def test_an_edit_keeps_what_is_not_stated():
    slot = offered(every=NIGHTS, location="berlin", rule="proportional")
    later = edited(slot, now_ms=NOW + DAY_MS, quantity=50)
    assert dict(later) == dict(slot) | {"quantity": 50}
    priced = edited(slot, (7, 8, 9), price=9)
    assert dict(priced) == dict(slot) | {"price_mutual": 7, "price_one_way": 8, "reserve": 9}
    moved = edited(slot, to_ms=NOW + DAY_MS // 2)
    assert moved.windows == ((slot.windows[0][0], NOW + DAY_MS // 2),)
    assert moved.recurrence == slot.recurrence


def test_an_edit_of_one_end_keeps_the_other():
    slot = offered(from_ms=NOW + 5, to_ms=NOW + 50)
    later = edited(slot, to_ms=NOW + 60)
    assert later.windows == ((NOW + 5, NOW + 60),)
    shorter = edited(slot, from_ms=NOW + 9)
    assert shorter.windows == ((NOW + 9, NOW + 50),)


@pytest.mark.parametrize(
    ("said", "is_new"),
    [
        ({"quantity": 90}, True),
        ({"price": 21}, True),
        ({"to_ms": NOW + DAY_MS}, True),
        ({"every": NIGHTS}, True),
        ({"quantity": 100, "price": 20}, False),
        ({"filters": (("tier", "mutual"),)}, False),
        ({"location": "berlin"}, False),
    ],
    ids=str,
)
def test_a_changed_need_begins_a_new_number(said, is_new):
    need = needed().model_copy(update={"caps": ((PROVIDER, 10),), "number": 4})
    later = edited(need, **said)
    assert (later.number, later.caps) == ((5, ()) if is_new else (4, need.caps))
    assert later.slot_id == need.slot_id


def test_slots_and_needs_are_added_replaced_and_taken_out():
    commitment = Commitment(damping_ppm=500_000, damping_history=((1, 2),))
    slot, need = offered(), needed()
    both = with_slot(with_slot(commitment, need), slot)
    assert (both.slots, both.needs) == ((slot,), (need,))
    assert (both.damping_ppm, both.damping_history) == (500_000, ((1, 2),))
    other = slot.model_copy(update={"quantity": 7})
    assert with_slot(both, other).slots == (other,)
    assert find(both, need.slot_id) == need
    left = without(without(both, slot.slot_id), need.slot_id)
    assert left == commitment
    with pytest.raises(NotFound):
        find(left, need.slot_id)


@pytest.mark.parametrize(("make", "most"), [(offered, 64), (needed, 64)])
def test_there_are_so_many_slots_and_needs(make, most):
    commitment = Commitment()
    for number in range(most):
        commitment = with_slot(commitment, make(number=number))
    with pytest.raises(TooLarge, match=f"at most {most}"):
        with_slot(commitment, make(number=most))
    with_slot(commitment, make(number=0, quantity=5))


def test_a_commitment_has_so_many_bytes():
    caps = tuple((number.to_bytes(32, "big"), 1) for number in range(limits.PEERS_MAX))
    needs = [needed(number=number).model_copy(update={"caps": caps}) for number in range(2)]
    commitment = with_slot(Commitment(), needs[0])
    with pytest.raises(TooLarge, match="bytes"):
        with_slot(commitment, needs[1])


def test_what_is_over_is_dropped_and_what_recurs_goes_on():
    commitment = Commitment()
    for slot in (
        offered(number=1, to_ms=NOW + DAY_MS),
        offered(number=2, every=NIGHTS),
        offered(number=3, every="Fri 10:00-11:00", to_ms=NOW + 10 * DAY_MS),
        needed(number=4),
        needed(number=5, to_ms=NOW + 2 * DAY_MS),
        needed(number=6, every=NIGHTS),
    ):
        commitment = with_slot(commitment, slot)
    assert renewed(commitment, NOW, zones) == commitment
    later = renewed(commitment, NOW + DAY_MS, zones)
    assert [slot.slot_id[-1] for slot in later.slots] == [2, 3]
    ((start, end),) = commitment.slots[1].windows
    night = start + DAY_MS, end + DAY_MS
    assert later.slots[0].windows == later.needs[2].windows == (night,)
    assert later.needs[2].number == 1
    # The last Friday is over before the end that was stated.
    gone = renewed(commitment, NOW + 9 * DAY_MS, zones)
    assert [slot.slot_id[-1] for slot in gone.slots] == [2]
    assert [need.slot_id[-1] for need in gone.needs] == [4, 6]


def test_a_need_of_storage_is_spread_over_providers_and_an_offer_is_not():
    need = needed("storage", spread=6)
    assert (need.spread, need.most(PROVIDER)) == (6, 17)
    again = edited(need, spread=5)
    assert (again.spread, again.number) == (5, 2)
    with pytest.raises(ArgumentInvalid, match="no spread"):
        offered("storage", spread=6)
    with pytest.raises(ArgumentInvalid, match="spread"):
        needed("storage", spread=0)


def test_a_hint_names_the_command_that_was_meant():
    for work, command in (
        (lambda: offered(quantity=0), "offer"),
        (lambda: needed(quantity=0), "need"),
        (lambda: edited(needed(), quantity=0), "edit"),
    ):
        with pytest.raises(ArgumentInvalid) as refused:
            work()
        assert refused.value.hint == f"`xsc market {command} --help` shows what it takes"
