"""What a customer takes of the states of other nodes, and what it comes to."""

from tests.unit.allocation.clearings import (
    NOW_MS,
    key,
    need,
    slot,
)
from xsc.allocation.acceptance import received
from xsc.allocation.clearing import TIERS
from xsc.allocation.published import Published
from xsc.terms.clearing import (
    SlotAllocationRecord,
    SlotDenominators,
    SpaceValue,
    TierLine,
    TwoTierAllocationState,
)
from xsc.terms.slot import Commitment

RIGHT = {
    "customer": key(2).node_id,
    "need": need().slot_id,
    "tier": "open",
    "quantity": 40,
    "price": 8,
    "granted_ms": NOW_MS,
}
CLEARING = bytes(32)
NOTHING = SpaceValue(record=b"", value=b"")


def taken(asked=None, slots=None, standing="open", before=(), **changes):
    """Return what counts of a state of one line, and the clearings that are doubted."""
    of, window = changes.pop("of", slot().slot_id), changes.pop("window", slot().windows[0])
    line, asked = SlotAllocationRecord(**{**RIGHT, **changes}), asked or need()
    slots = (slot(),) if slots is None else slots
    tiers = tuple(
        TierLine(
            tier=stage,
            capacity=100,
            given=line.quantity if stage == line.tier else 0,
            denominator=0,
        )
        for stage in TIERS
    )
    divided = SlotDenominators(
        slot=of,
        window=window,
        kind="compute",
        rule="weighted-uniform",
        clearing=CLEARING,
        tiers=tiers,
        allocations=(line,),
    )
    state = TwoTierAllocationState(slot_denominators=(divided,))
    gives = {"open": ({}, {}), "one_way": ({key(2).node_id: 50_000}, {})}
    gives["mutual"] = gives["one_way"][0], {key(1).node_id: 50_000}
    nodes = [Published(key(1).node_id, Commitment(slots=slots), NOTHING, gives[standing][0])]
    nodes.append(Published(key(2).node_id, Commitment(needs=(asked,)), NOTHING, gives[standing][1]))
    return received(nodes[1], {asked.slot_id: asked}, nodes[0], state, before, now_ms=NOW_MS)


def test_a_line_counts_only_within_what_slot_and_need_say():
    (each,), doubted = taken()
    assert (each.quantity, each.price, each.tier, doubted) == (40, 8, "open", set())
    start, end = slot().windows[0]
    for changes in (
        {"of": b"f" * 16},
        {"window": (start, end - 1)},
        {"customer": key(3).node_id},
        {"need": b"x" * 16},
        {"price": 11},
        {"slots": ()},
        {"asked": need(valid_until_ms=NOW_MS)},
        {"slots": (slot(quantity=39),)},
        {"asked": need(quantity=39)},
        {"asked": need(price_max=7)},
    ):
        assert taken(**changes) == ([], set()), changes


def test_a_line_counts_only_on_its_tier_at_what_its_slot_asks():
    mixed = (slot(rule="proportional"),)
    for changes in (
        {"price": 9},
        {"tier": "mutual", "price": 2},
        {"tier": "one_way", "price": 4},
        {"slots": mixed, "tier": "one_way", "price": 5},
        {"slots": mixed, "tier": "mutual", "stage": "open"},
    ):
        stage = changes.pop("stage", changes.get("tier", "open"))
        counts, doubted = lines_of(stage=stage, **changes)
        assert (len(counts), doubted) == (1, set()), changes
    for tier, stage, price, slots in (
        ("open", "open", 7, None),
        ("open", "mutual", 2, None),
        ("mutual", "open", 8, None),
        ("mutual", "mutual", 3, None),
        ("one_way", "mutual", 2, None),
        ("one_way", "mutual", 2, mixed),
        ("one_way", "one_way", 3, mixed),
        ("open", "one_way", 4, mixed),
    ):
        assert lines_of(tier=tier, stage=stage, price=price, slots=slots) == ([], {CLEARING})


def lines_of(*, stage, tier="open", **changes):
    """As `taken`: a line of a stage for a customer of a tier."""
    return taken(standing=tier, tier=stage, **changes)


def test_a_line_that_has_counted_goes_on_while_its_provider_clears_again():
    """Where a price or recognition changes, the state is a moment behind."""
    before, _ = taken()
    dearer = (slot(reserve=9),)
    assert taken(slots=dearer) == ([], {CLEARING})
    assert taken(slots=dearer, before=before) == (before, set())
    assert taken(standing="mutual", before=before) == (before, set())
    for changes in ({"quantity": 39}, {"price": 7}, {"tier": "mutual"}):
        assert taken(slots=dearer, before=before, **changes) == ([], {CLEARING}), changes
