"""The clearing beside a second implementation that was written from docs/design alone.

`tests/independent/clearing.py` shares no code with `xsc`. Both clear the vectors and any slots that
Hypothesis draws, and are compared line by line: customer, need, stage, units and price.
"""

from fractions import Fraction
from random import Random

import cbor2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.gathering import Terms, inputs_of
from tests.independent import clearing as second
from tests.strategies import vectors
from xsc.allocation.clearing import TIERS, Bid, salt_of
from xsc.allocation.clearing_record import Clearing
from xsc.allocation.granting import clear_all, entitlements
from xsc.allocation.published import Published
from xsc.terms.clearing import SpaceValue, TwoTierAllocationState
from xsc.terms.slot import (
    AvailabilitySlot,
    Commitment,
    EntitlementKey,
    NeedSlot,
)

RULES = ("weighted-uniform", "proportional")
NODES = [bytes([number]) * 32 for number in range(9)]
NEEDS = [bytes([1, number]) * 8 for number in range(3)]
PROVIDER = NODES[0]
NOTHING = SpaceValue(record=b"", value=b"")
HOUR_MS = 3_600_000
NOW_MS = 1_700_000_000_000
ABUNDANT = {"storage": 2**40, "compute": 2**40}
PPM = st.sampled_from([1, 9_999, 10_000, 10_001, 30_000, 60_000, 100_000])
UNITS = st.integers(1, 12) | st.integers(1, 1_000)
PRICES = st.integers(0, 9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", vectors("two_tier")["cases"], ids=lambda case: case["name"])
def test_it_divides_as_was_worked_out(case, rule):
    rest, given_, denominators = case["capacity"], {}, {}
    for stage, tier in enumerate(TIERS):
        claims = {
            claim["id"]: (claim["weight"] or 1, claim["need"], claim.get("damping_ppm", 1_000_000))
            for claim in case["claims"]
            if claim["tier"] == tier
        }
        units, denominator = second.divide(rule, rest, claims, stage)
        rest -= sum(units.values())
        given_ |= dict.fromkeys(claims, 0) | units
        denominators[tier] = denominator
    if rule == "proportional":
        assert denominators == case["proportional"]["denominators"]
        assert given_ == case["proportional"]["allocations"]
    else:
        assert given_ == case["weighted_uniform"]


@pytest.mark.parametrize("case", vectors("clearing")["records"], ids=lambda case: case["name"])
def test_it_recomputes_the_golden_clearings(case):
    lines, stages = second.recompute(bytes.fromhex(case["envelope"]))
    found = [[customer.hex(), need.hex(), *of] for customer, need, *of in second.joined(lines)]
    assert found == case["lines"]
    assert [[*stage] for stage in stages] == case["stages"]


def ladders():
    return st.tuples(*[st.integers(0, 6)] * 3).map(sorted)


@st.composite
def standings(draw):
    tier = draw(st.sampled_from(TIERS))
    weight = 1 if tier == "open" else draw(st.integers(1, 4) | PPM)
    return tier, weight, draw(st.sampled_from([1_000_000, 800_000, 500_000, 0]))


@st.composite
def games(draw):
    """Return a slot of the second implementation, capacity, bids and standings."""
    slot = dict(zip(("price_mutual", "price_one_way", "reserve"), draw(ladders()), strict=True))
    slot["rule"] = draw(st.sampled_from(RULES))
    customers = NODES[: draw(st.integers(0, 7))]
    bids = [
        second.Bid(customer, need, draw(st.integers(0, 3) | UNITS), draw(PRICES))
        for customer in customers
        for need in NEEDS[: draw(st.integers(1, 3))]
    ]
    capacity = draw(st.integers(0, sum(bid.units for bid in bids)))
    return slot, capacity, bids, {customer: draw(standings()) for customer in customers}


def lines_of(cleared):
    """Return lines of the first implementation as those of the second."""
    return [(*pin, *granted) for pin, granted in sorted(cleared.lines.items())]


@given(games(), st.binary(min_size=16, max_size=16), st.integers(0, 2**45))
def test_any_slot_is_cleared_alike(game, slot_id, at_ms):
    slot, capacity, bids, known = game
    salt = second.salt_of(slot_id, at_ms)
    assert salt == salt_of(slot_id, at_ms)
    lines, stages = second.clear(slot, capacity, bids, known, salt)
    terms = Terms(capacity, *list(slot.values())[:3], slot["rule"])
    made = terms.clear([Bid(*bid, *known[bid.customer]) for bid in bids], salt)
    assert second.joined(lines) == lines_of(made)
    assert all(line.tier == known[line.customer][0] for line in lines)
    assert stages == [(tier.capacity, tier.given, tier.denominator) for tier in made.tiers]


@given(games(), st.integers(0, 60))
def test_units_go_one_by_one_to_the_highest_weight(game, capacity):
    """The definition of `weighted-uniform`, beside the level that both implementations find."""
    _, _, bids, known = game
    claims = {
        bid.customer: (known[bid.customer][1], bid.units, 1_000_000) for bid in bids if bid.units
    }
    units = dict.fromkeys(claims, 0)
    for _ in range(capacity):
        waiting = [claim for claim in claims if units[claim] < claims[claim][1]]
        if waiting:
            ranks = {c: (-Fraction(claims[c][0], units[c] + 1), c) for c in waiting}
            units[min(ranks, key=ranks.__getitem__)] += 1
    assert second.divide("weighted-uniform", capacity, claims, 0)[0] == units


def window(random):
    start = random.randint(-4, 4)
    return NOW_MS + start * HOUR_MS, NOW_MS + (start + random.randint(1, 5)) * HOUR_MS


def stated(random):
    """Return what slots and needs have in common."""
    kind = random.choice(["compute", "compute", "compute", "storage"])
    filters = [(("tier", "one_way"),), (("location", "BERLIN"),), (("tier", "mutual"),)]
    return {
        "kind": kind,
        "quantity": random.choice([random.randint(1, 12), random.randint(1, 300)]),
        "windows": (window(random),),
        "valid_until_ms": NOW_MS + 48 * HOUR_MS,
        "location": random.choice([*[""] * 6, "Berlin", "berlin", "Paris"]),
        "filters": random.choice([*[()] * 6, *filters]),
    }


def slot_of(random, number):
    prices = sorted(random.randint(0, 6) for _ in range(3))
    return AvailabilitySlot(
        slot_id=bytes([0, number]) * 8,
        rule=random.choice(RULES),
        **stated(random),
        **dict(zip(("price_mutual", "price_one_way", "reserve"), prices, strict=True)),
    )


def need_of(random, need_id):
    common = stated(random)
    if random.random() < 0.6:
        common |= {
            "windows": (),
            "valid_until_ms": NOW_MS + random.choice([0, 3, 20, 20, 20]) * HOUR_MS,
        }
    quantity = common["quantity"]
    parts = {}
    if random.random() < 0.3:
        parts[random.choice(NODES[:2])] = random.randint(1, quantity)
    return NeedSlot(
        slot_id=need_id,
        price_max=random.randint(0, 14),
        parts=tuple(parts.items()),
        spread=random.choice([1, 1, 2, 3]),
        caps=((PROVIDER, random.randrange(quantity)),) if random.random() < 0.2 else (),
        **common,
    )


def world(random):
    """Return what all nodes publish, by node; the first one offers."""
    nodes, published = NODES[: random.randint(2, 7)], {}
    for node in nodes:
        slots = [slot_of(random, n) for n in range(random.randint(1, 3))]
        needs = [need_of(random, need_id) for need_id in NEEDS[: random.randint(1, 3)]]
        said = Commitment(
            slots=tuple(slots) if node == PROVIDER else (),
            needs=tuple(needs) if node != PROVIDER or random.random() < 0.2 else (),
            damping_ppm=random.choice([1_000_000, 800_000, 500_000]),
        )
        weights = {
            other: random.choice([1, 9_999, 10_000, 10_001, 30_000, 60_000, 100_000])
            for other in nodes
            if other != node and random.random() < 0.7
        }
        published[node] = Published(node, said, NOTHING, weights)
    return published


FIRST = TwoTierAllocationState(), {}
"""The state before the first clearing, and the records that it names."""


def both(published, drawn=None, pinned=None, last=FIRST):
    """Clear all slots twice; return what each comes to, and the state."""
    drawn, pinned = drawn or {}, pinned or {}
    inputs = inputs_of(
        now_ms=NOW_MS,
        own=published[PROVIDER],
        others={node: each for node, each in published.items() if node != PROVIDER},
        drawn={EntitlementKey(PROVIDER, *key): units for key, units in drawn.items()},
        pinned={EntitlementKey(PROVIDER, *key): units for key, units in pinned.items()},
        credit=dict.fromkeys(published, 2**62),
        free=ABUNDANT,
    )
    state, records = last
    state, made = clear_all(inputs, state)
    records = {**records, **made}
    first = {}
    for each in state.slot_denominators:
        clearing = Clearing(records[each.clearing], published[PROVIDER], published)
        lines = lines_of(clearing.clear())
        assert lines == [line.said for line in each.allocations]
        first[each.slot] = clearing.record.capacity, lines
    other = second.Provider(
        PROVIDER,
        {node: cbor2.loads(each.commitment.to_bytes()) for node, each in published.items()},
        {node: each.weights for node, each in published.items()},
        NOW_MS,
    )

    def by_slot(held):
        found = {}
        for (slot_id, *who), units in held.items():
            found.setdefault(slot_id, {})[tuple(who)] = units
        return found

    again = {
        slot_id: (capacity, second.joined(lines))
        for slot_id, capacity, lines in other.clear_all(by_slot(pinned))
    }
    return first, again, (state, records)


def granted(published, state):
    """Return what the state of the provider grants."""
    slots = {slot.slot_id: slot for slot in published[PROVIDER].commitment.slots}
    needs = {
        (node, need.slot_id): need
        for node, each in published.items()
        for need in each.commitment.needs
    }
    return list(entitlements(PROVIDER, state, slots, needs, NOW_MS))


SEEDS = st.integers(0, 2**32)


def check(published, drawn=None, pinned=None, last=FIRST):
    """Assert that both clear a provider alike; return its state and the records."""
    first, again, last = both(published, drawn, pinned, last)
    for key, (capacity, lines) in first.items():
        assert again.pop(key) == (capacity, lines)
    assert all(not lines for _, lines in again.values()), "nobody wants these"
    for each in granted(published, last[0]):
        (mine,) = (line for line in first[each.slot][1] if line[:2] == each.key[2:])
        assert (each.quantity, each.price) == mine[3:]
    return last


@given(SEEDS)
def test_all_slots_of_a_provider_are_cleared_alike(seed):
    """Matching, parts, spread, caps, and what overlaps in several slots of one provider."""
    check(world(Random(seed)))


@given(SEEDS)
@example(81_150)  # a customer with a third need that took what the second had to lack
def test_all_slots_are_cleared_alike_around_what_leases_have(seed):
    random = Random(seed)
    published = world(random)
    state, _ = check(published)
    drawn = {each.key[1:]: random.randint(1, each.quantity) for each in granted(published, state)}
    for _ in range(4):
        # Leases end their first half, and half of the nodes state something else.
        pinned = {key: random.choice([0, units, units]) for key, units in drawn.items()}
        changed = world(random)
        nodes = [node for node in published if node in changed and node != PROVIDER]
        now = {node: changed[node] for node in nodes if random.random() < 0.5}
        last = check(published | now, drawn, pinned)
        # What has been cleared is not cleared again, unless that comes to something else.
        check(published | now, drawn, dict.fromkeys(pinned, 0), last)
        fewer = {key: random.randint(0, units) for key, units in drawn.items()}
        check(published | now, fewer, fewer, last)
