"""What a customer takes of the states of other nodes, and what it comes to."""

from fractions import Fraction
from random import Random

from tests.unit.allocation.clearings import (
    NOW_MS,
    UNTIL_MS,
    key,
    need,
    slot,
)
from xsc.allocation.acceptance import at_once, received
from xsc.allocation.clearing import TIERS
from xsc.terms.clearing import (
    SlotAllocationRecord,
    SlotDenominators,
    TierLine,
    TwoTierAllocationState,
    to_ratio,
)
from xsc.terms.slot import Entitlement


def test_the_sweep_is_what_looking_at_every_moment_gives():
    random = Random(7)
    for _ in range(300):
        lines = [
            ((start, start + random.randint(1, 20)), random.randint(1, 9))
            for start in (random.randrange(60) for _ in range(random.randint(0, 9)))
        ]
        plainly = [
            sum(units for (start, end), units in lines if start <= at < end) for at in range(80)
        ]
        assert at_once(lines) == max(plainly)


def test_what_many_lines_come_to_takes_few_steps():
    steps = 0

    class Counted(int):
        def __add__(self, other):
            nonlocal steps
            steps += 1
            return Counted(int(self) + int(other))

        __radd__ = __add__

        def __neg__(self):
            return Counted(-int(self))

    lines = [((NOW_MS, UNTIL_MS), Counted(1)) for _ in range(4096)]
    assert at_once(lines) == 4096
    assert steps <= 4 * 4096


RIGHT = {
    "slot": slot().slot_id,
    "window": slot().windows[0],
    "customer": key(2).node_id,
    "need": need().slot_id,
    "tier": "open",
    "quantity": 40,
    "price": 8,
    "granted_ms": NOW_MS,
}
CLEARING = bytes(32)


def taken(asked=None, slots=None, standing="open", before=(), **changes):
    """Return what counts of a state of one line, and the clearings that are doubted."""
    line, asked = SlotAllocationRecord(**{**RIGHT, **changes}), asked or need()
    slots = (slot(),) if slots is None else slots
    empty = to_ratio(Fraction(0))
    tiers = tuple(
        TierLine(
            tier=stage,
            capacity=100,
            given=line.quantity if stage == line.tier else 0,
            denominator=empty,
            level=None,
        )
        for stage in TIERS
    )
    divided = SlotDenominators(
        slot=line.slot,
        window=line.window,
        kind="compute",
        rule="weighted-uniform",
        capacity=100,
        clearing=CLEARING,
        inputs=bytes(32),
        tiers=tiers,
    )
    state = TwoTierAllocationState(
        slot_denominators=(divided,),
        slot_allocations=(line,),
        recipient_totals=((line.customer, "compute", line.quantity),),
    )
    return received(
        key(2).node_id,
        key(1).node_id,
        state,
        tier=standing,
        needs={asked.slot_id: asked},
        slots={asked.slot_id: {each.slot_id: each for each in slots}},
        before=before,
        now_ms=0,
    )


def test_a_line_counts_only_within_what_slot_and_need_say():
    (each,), doubted = taken()
    assert (each.quantity, each.price, each.tier, doubted) == (40, 8, "open", set())
    start, end = RIGHT["window"]
    for changes in (
        {"slot": b"f" * 16},
        {"window": (start, end - 1)},
        {"customer": key(3).node_id},
        {"need": b"x" * 16},
        {"price": 11},
        {"slots": ()},
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


def granted(number, quantity, window, provider=b"p" * 32, asked="storage"):
    return Entitlement(
        slot=bytes([number]) * 16,
        opens_ms=window[0],
        closes_ms=window[1],
        window=window,
        provider=provider,
        customer=b"c" * 32,
        need=need(kind=asked).slot_id,
        kind=asked,
        quantity=quantity,
        tier="open",
        price=8,
        granted_ms=window[0],
        until_ms=window[1],
        clearing=bytes(32),
    )
