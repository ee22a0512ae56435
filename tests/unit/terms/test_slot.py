"""Slots, needs and commitments: golden bytes, and everything that is refused."""

from __future__ import annotations

import pytest

from tests.strategies import vectors
from xsc.base import limits
from xsc.base.encoding import decode
from xsc.base.errors import RecordInvalid, TooLarge, XscError
from xsc.base.units import ceil_div
from xsc.terms.pricing import PRICE_UNIT, SLOT_UNIT
from xsc.terms.slot import (
    SLOT_FILTERS_MAX,
    STEP,
    AvailabilitySlot,
    Commitment,
    NeedSlot,
)

GOLDEN = vectors("slots")
KINDS = {kind.KIND: kind for kind in (AvailabilitySlot, NeedSlot, Commitment)}
BODIES = {case["kind"]: decode(bytes.fromhex(case["body"])) for case in GOLDEN["records"]}
HOUR = limits.EPOCH_MS


def made(record, **changes):
    return record.from_value({**BODIES[record.KIND], **changes})


@pytest.mark.parametrize("case", GOLDEN["records"], ids=lambda case: case["kind"])
def test_golden_slots(case):
    """The bytes were made without this package; they never change for one version."""
    record = KINDS[case["kind"]].from_bytes(bytes.fromhex(case["body"]))
    assert record.to_bytes().hex() == case["body"]
    assert record.id.hex() == case["id"]


def test_every_changed_byte_of_a_commitment_is_refused_or_is_what_was_written():
    (raw,) = (bytes.fromhex(c["body"]) for c in GOLDEN["records"] if c["kind"] == "commitment")
    for place in range(len(raw)):
        for changed in (
            raw[:place],
            *(raw[:place] + bytes((raw[place] ^ flip,)) + raw[place + 1 :] for flip in (1, 0x80)),
        ):
            try:
                read = Commitment.read(changed)
            except XscError:
                continue
            assert read.to_bytes() == changed, place


@pytest.mark.parametrize(
    ("windows", "why"),
    [
        ([(5, 5)], "no length"),
        ([(5, 4)], "no length"),
        ([(0, 2**63)], "windows"),
        ([(0, 1), (2, 3)], "at most 1"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_windows_that_are_none_are_refused(windows, why):
    with pytest.raises(RecordInvalid, match=why):
        made(NeedSlot, windows=windows)


@pytest.mark.parametrize(
    ("windows", "next_window", "window_at"),
    [
        ([(5, 9)], [(5, 9), (5, 9), (5, 9), None], [None, (5, 9), (5, 9), None]),
        ([], [(0, 9), (0, 9), (0, 9), None], [(0, 9), (0, 9), (0, 9), None]),
    ],
    ids=["a window", "none"],
)
def test_the_end_is_not_part_of_a_window(windows, next_window, window_at):
    need = made(NeedSlot, windows=windows, recurrence="", valid_until_ms=9)
    assert [need.next_window(now_ms) for now_ms in (4, 5, 8, 9)] == next_window
    assert [need.window_at(now_ms) for now_ms in (4, 5, 8, 9)] == window_at


@pytest.mark.parametrize("kind", [AvailabilitySlot, NeedSlot], ids=lambda kind: kind.KIND)
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"slot_id": bytes(15)}, "slot_id"),
        ({"kind": "memory"}, "kind"),
        ({"quantity": 0}, "quantity"),
        ({"quantity": 2**33}, "quantity"),
        ({"valid_until_ms": 1, "windows": [(1, 2)]}, "ends after the slot"),
        (
            {"kind": "storage", "windows": [(1, 2)], "recurrence": "daily 0:00-1:00"},
            "one window",
        ),
        ({"recurrence": "x" * 193}, "recurrence"),
        ({"location": "x" * 65}, "location"),
        ({"filters": [["b", "1"], ["a", "2"]]}, "filters do not rise"),
        ({"filters": [["a", "1"], ["a", "2"]]}, "filters do not rise"),
        ({"filters": [["", "1"]]}, "filters do not rise"),
        ({"filters": [[f"{n}", ""] for n in range(SLOT_FILTERS_MAX + 1)]}, "at most 8"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_a_slot_is_refused(kind, changes, why):
    with pytest.raises(RecordInvalid, match=why):
        made(kind, **changes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"price_mutual": 9}, "ladder must not fall"),
        ({"price_one_way": 14}, "ladder must not fall"),
        ({"reserve": 7}, "ladder must not fall"),
        ({"rule": "first-come"}, "rule"),
        ({"quantity": 2**32, "reserve": 2**62}, "more than any amount"),
        ({"price_max": 1}, "price_max"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_an_offer_is_refused(changes, why):
    with pytest.raises(RecordInvalid, match=why):
        made(AvailabilitySlot, **changes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"quantity": 2**32, "price_max": 2**62}, "more than any amount"),
        ({"number": 0}, "number"),
        ({"caps": [[bytes(32), 700]]}, "not below the quantity"),
        ({"caps": [[bytes(32), 1], [bytes(32), 2]]}, "caps do not rise"),
        ({"caps": [[bytes(31), 1]]}, "caps"),
        (
            {"caps": [[n.to_bytes(32, "big"), 0] for n in range(limits.PEERS_MAX + 1)]},
            "at most 1000",
        ),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_a_need_is_refused(changes, why):
    with pytest.raises(RecordInvalid, match=why):
        made(NeedSlot, **changes)


@pytest.mark.parametrize("kind", ["storage", "compute"])
def test_the_largest_amount_is_taken(kind):
    most = 2**33 - 1
    beyond = ceil_div((limits.AMOUNT_MAX + 1) * PRICE_UNIT[kind], most * SLOT_UNIT[kind])
    price = beyond - 1
    fits = {"kind": kind, "quantity": most, "recurrence": ""}
    fits |= {"windows": [(0, 1)]}
    assert made(NeedSlot, **fits, price_max=price).quantity == most
    ladder = {"price_mutual": 7, "price_one_way": 7, "reserve": price}
    assert made(AvailabilitySlot, **fits, **ladder).reserve == price
    with pytest.raises(RecordInvalid, match="more than any amount"):
        made(NeedSlot, **fits, price_max=beyond)


def test_the_largest_level_is_below_what_a_lease_counts():
    minute = 60 * STEP["compute"]
    assert (2**33 - 1) * max(minute, STEP["storage"]) < 2**63
    assert minute * 2**34 > 2**63, "and no wider than that"


def test_a_cap_limits_its_provider_and_no_other():
    need = made(NeedSlot, parts=[], spread=1)
    assert [need.cap(provider) for provider in (bytes(32), bytes([7]) * 32, bytes([8]) * 32)] == [
        0,
        350,
        700,
    ]


def test_a_need_has_a_part_of_one_provider_and_a_share_of_the_open_rest_of_all():
    """700 steps: 300 of one, 7 of another, 393 over three."""
    need = made(NeedSlot, caps=[])
    assert need.open_steps == 393
    assert [need.most(bytes([number]) * 32) for number in (7, 8, 9)] == [431, 138, 131]
    assert made(NeedSlot).cap(bytes([7]) * 32) == 350, "a cap counts beside"
    for wrong, why in (
        ({"parts": [[bytes(32), 701]]}, "more than the quantity"),
        ({"parts": [[bytes(32), 1], [bytes(32), 1]]}, "do not rise"),
        ({"parts": [[bytes(32), 0]]}, "greater than 0"),
        ({"spread": 0}, "spread"),
    ):
        with pytest.raises(RecordInvalid, match=why):
            made(NeedSlot, **{"caps": [], **wrong})


def numbered(kind, count):
    return [{**BODIES[kind], "slot_id": n.to_bytes(16, "big")} for n in range(count)]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"slots": numbered("availability_slot", limits.SLOTS_MAX + 1)}, "at most 64"),
        ({"slots": numbered("availability_slot", 10_000)}, "commitment"),
        ({"needs": numbered("need_slot", limits.NEEDS_MAX + 1)}, "at most 64"),
        ({"slots": numbered("availability_slot", 1) * 2}, "ids of the slots do not rise"),
        ({"needs": numbered("need_slot", 3)[::-1]}, "ids of the needs do not rise"),
        (
            {"slots": numbered("availability_slot", 1), "needs": numbered("need_slot", 1)},
            "have one id",
        ),
        ({"standing_made": ["storage", "compute"]}, "standing slots do not rise"),
        ({"damping_ppm": limits.PPM + 1}, "damping_ppm"),
        ({"damping_history": [[0, 1]] * (limits.DAMPING_HISTORY_MAX + 1)}, "at most 3"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_a_commitment_is_refused(changes, why):
    with pytest.raises(RecordInvalid, match=why):
        made(Commitment, **changes)


def test_as_many_slots_and_needs_as_there_may_be_fit():
    slots = numbered("availability_slot", limits.SLOTS_MAX)
    needs = [
        {**need, "slot_id": bytes((1,)) + need["slot_id"][1:], "caps": [], "parts": []}
        for need in numbered("need_slot", limits.NEEDS_MAX)
    ]
    largest = made(Commitment, slots=slots, needs=needs)
    assert len(largest.to_bytes()) <= limits.COMMITMENT_BYTES_MAX


def test_a_commitment_beyond_its_bytes_is_refused():
    filters = [[f"{n}" + "x" * 63, "x" * 64] for n in range(SLOT_FILTERS_MAX)]
    slots = [
        {**slot, "filters": filters} for slot in numbered("availability_slot", limits.SLOTS_MAX)
    ]
    with pytest.raises(TooLarge):
        Commitment.read(made(Commitment, slots=slots).to_bytes())
