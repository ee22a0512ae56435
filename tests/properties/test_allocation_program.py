"""The allocation program beside the direct call of its rule, over random markets.

TEST_ALLOCATION_MARKETS plays more of them (`make test-long`: 1 000).
"""

import os
from functools import partial
from random import Random

from tests.gathering import inputs_of, lines_in
from xsc.allocation.granting import GATHERED_BYTES_MAX, Inputs, clear_all
from xsc.allocation.program import parts_of, state_after, state_of
from xsc.allocation.published import Published
from xsc.allocation.recognition import value_of
from xsc.base.encoding import decode, encode
from xsc.base.errors import XscError
from xsc.node.programs import ALLOCATION, allocation_function
from xsc.programs.compile import compile_program
from xsc.programs.document import parse, resolve
from xsc.programs.frame import Execution
from xsc.programs.functions import Functions
from xsc.programs.limits import GIVEN_BYTES_MAX
from xsc.terms.clearing import SpaceValue, TwoTierAllocationState
from xsc.terms.slot import (
    AvailabilitySlot,
    Commitment,
    EntitlementKey,
    NeedSlot,
)

MARKETS = int(os.environ.get("TEST_ALLOCATION_MARKETS", "100"))
ROUNDS = 3
NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
OWN = bytes(32)
REFUSALS = (XscError, ArithmeticError, LookupError, TypeError, ValueError)
"""What a replay takes for a failure of the function."""


def allocation_program():
    program = resolve(parse(ALLOCATION, "toml"), {}, {})
    return compile_program(program, Functions([allocation_function(state_of)]), built_in=True)


def windows_of(random):
    start = NOW_MS + random.randrange(-4, 6) * HOUR_MS
    return [(start, start + random.randint(2, 8) * HOUR_MS)]


def slot_of(random, number):
    reserve = random.randint(2, 12)
    return AvailabilitySlot(
        slot_id=bytes([0, number]) * 8,
        kind=random.choice(["storage", "compute"]),
        quantity=random.randint(1, 40),
        windows=tuple(windows_of(random)),
        valid_until_ms=NOW_MS + 14 * HOUR_MS,
        price_mutual=random.randint(0, 1),
        price_one_way=random.randint(1, 2),
        reserve=reserve,
        rule=random.choice(["weighted-uniform", "weighted-uniform", "proportional"]),
    )


def need_of(random, number):
    return NeedSlot(
        slot_id=bytes([1, number]) * 8,
        kind=random.choice(["storage", "compute"]),
        quantity=random.randint(3, 40),
        valid_until_ms=NOW_MS + 14 * HOUR_MS,
        price_max=random.randint(0, 20),
        number=random.randint(1, 3),
    )


def said(random, node, commitment, weights):
    recognition = SpaceValue(record=random.randbytes(8), value=value_of(weights))
    return Published(
        node,
        commitment,
        SpaceValue(record=random.randbytes(8), value=commitment.to_bytes()),
        weights,
        recognition if weights else None,
    )


class Market:
    """One provider and some customers, from round to round."""

    def __init__(self, random):
        self.random = random
        self.slots = tuple(slot_of(random, number) for number in range(random.randint(1, 3)))
        self.nodes = [bytes([number]) * 32 for number in range(1, random.randint(2, 6))]
        self.others = {}
        self.last = TwoTierAllocationState()
        self.now_ms = NOW_MS
        for node in self.nodes:
            self.change(node)

    def change(self, node):
        random = self.random
        needs = tuple(need_of(random, number) for number in range(random.randint(0, 3)))
        weights = {OWN: random.randint(1, 900_000)} if random.random() < 0.5 else {}
        damping = random.choice([1_000_000, 500_000])
        commitment = Commitment(needs=needs, damping_ppm=damping)
        self.others[node] = said(random, node, commitment, weights)

    def inputs(self):
        random = self.random
        share = 1_000_000 // len(self.nodes)
        weights = {node: random.randint(1, share) for node in self.nodes if random.random() < 0.7}
        history = tuple((random.randint(0, 3), NOW_MS) for _ in range(random.randint(0, 3)))
        own = Commitment(slots=self.slots, damping_history=history)
        drawn = {
            EntitlementKey(OWN, each.slot, *line.pin): random.randint(0, line.quantity)
            for each in self.last.slot_denominators
            for line in each.allocations
            if random.random() < 0.4
        }
        return inputs_of(
            now_ms=self.now_ms,
            own=said(random, OWN, own, weights),
            others=dict(sorted(self.others.items())),
            theirs={n: p.weights[OWN] for n, p in self.others.items() if OWN in p.weights},
            drawn=drawn,
            pinned={key: steps for key, steps in drawn.items() if random.random() < 0.7},
            credit={node: random.choice([0, 100, 10**9]) for node in self.others},
            free={
                "storage": random.randint(0, 60),
                "compute": random.randint(0, 60),
            },
            is_pending=random.random() < 0.3,
        )

    def step(self, state):
        self.last = state
        self.now_ms += self.random.choice([0, 1_000, HOUR_MS])
        if self.random.random() < 0.6:
            self.change(self.random.choice(self.nodes))


def play(seed):
    """Play one market through the program and the rule; return how many states grant something."""
    market = Market(Random(seed))
    execution = Execution.begin(allocation_program())
    published = b""
    states = 0
    for _ in range(ROUNDS):
        inputs = market.inputs()
        granted = clear_all(inputs, market.last)[0]
        state = state_after(inputs, granted, market.last)
        gathered = inputs.gathered.to_bytes()
        execution.run({"gathered": gathered, "last": published})
        assert not execution.errors, seed
        assert not execution.stale, seed
        assert execution.output("state") == state.to_bytes(), seed
        assert Inputs.read(gathered).gathered.to_bytes() == gathered, seed
        published = state.to_bytes()
        states += bool(lines_in(state))
        market.step(state)
    return states


def test_the_program_gives_what_the_rule_gives():
    played = [play(seed) for seed in range(MARKETS)]
    assert sum(played) > MARKETS // 2, "many rounds grant something"


def test_what_can_be_gathered_can_be_given():
    assert GATHERED_BYTES_MAX == GIVEN_BYTES_MAX


def changed(random, value):
    """Return a value with one leaf or list of it changed at random."""
    if isinstance(value, dict) and value:
        name = random.choice(sorted(value))
        return value | {name: changed(random, value[name])}
    if isinstance(value, list) and value and random.random() < 0.9:
        place = random.randrange(len(value))
        return [*value[:place], changed(random, value[place]), *value[place + 1 :]]
    if isinstance(value, list):
        return random.choice([[], [*value, *value], [7], value[1:]])
    if isinstance(value, bytes) and len(value) > 40 and random.random() < 0.7:
        try:
            return encode(changed(random, decode(value)))
        except XscError:
            return value[1:]
    return random.choice([-1, 0, 2**62, 2**64 - 1, b"", bytes(32), bytes(16), "x", True, None, []])


def test_what_a_peer_makes_up_is_refused_or_computed():
    function = allocation_function(state_of)
    computed = 0

    def played(last, raw):
        return function.run("", raw, last)

    for seed in range(MARKETS):
        market = Market(Random(seed))
        inputs = market.inputs()
        last = clear_all(inputs, market.last)[0]
        market.step(last)
        found = decode(market.inputs().gathered.to_bytes())
        for _ in range(5):
            raw = encode(changed(market.random, found))
            for run in (partial(played, last.to_bytes()), parts_of):
                try:
                    run(raw)
                    computed += 1
                except REFUSALS:
                    pass
    assert computed > MARKETS, "some still make sense"
