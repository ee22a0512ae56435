"""A customer that leases in several needs gets more of a slot than its recognition gives it."""

from tests.gathering import inputs_of, lines_in
from xsc.allocation.clearing_record import Published
from xsc.allocation.granting import clear_all
from xsc.base.limits import PRICE_BYTES, SLOT_STEP_BYTES
from xsc.terms.clearing import SpaceValue, TwoTierAllocationState
from xsc.terms.slot import AvailabilitySlot, Commitment, EntitlementKey, NeedSlot

NOTHING = SpaceValue(record=b"", value=b"")
PROVIDER, HONEST, GREEDY = b"p" * 32, b"h" * 32, b"g" * 32
A_STEP = PRICE_BYTES // SLOT_STEP_BYTES
SLOT = AvailabilitySlot(
    slot_id=b"s" * 16,
    kind="storage",
    quantity=100,
    valid_until_ms=2**60,
    price_mutual=8 * A_STEP,
    price_one_way=9 * A_STEP,
    reserve=10 * A_STEP,
)
OWN = Published(PROVIDER, Commitment(slots=(SLOT,)), NOTHING, {HONEST: 10**5, GREEDY: 10**5}, None)


def need(name, quantity, price):
    return NeedSlot(
        slot_id=name * 16,
        kind="storage",
        quantity=quantity,
        valid_until_ms=2**60,
        price_max=price * A_STEP,
    )


def cleared(drawn, last=None, **needs):
    others = {
        node: Published(node, Commitment(needs=stated), NOTHING, {PROVIDER: 10**5}, None)
        for node, stated in ((HONEST, needs["honest"]), (GREEDY, needs["greedy"]))
    }
    inputs = inputs_of(
        now_ms=1,
        own=OWN,
        others=others,
        drawn=drawn,
        pinned=drawn,
        credit=dict.fromkeys(others, 10**9),
        free={"storage": 100 - sum(drawn.values())},
    )
    state = clear_all(inputs, last or TwoTierAllocationState())[0]
    got = {HONEST: 0, GREEDY: sum(drawn.values())}
    for line in lines_in(state):
        had = drawn.get(EntitlementKey(PROVIDER, SLOT.slot_id, line.customer, line.need), 0)
        got[line.customer] += max(0, line.quantity - had)
    return got


HAS = {EntitlementKey(PROVIDER, SLOT.slot_id, GREEDY, b"a" * 16): 40}
WANTS = (need(b"h", 60, 20),)


def test_in_one_need_it_gets_half():
    assert cleared(HAS, honest=WANTS, greedy=(need(b"a", 100, 20),)) == {HONEST: 50, GREEDY: 50}


def test_in_a_further_need_that_pays_more_it_gets_no_more():
    greedy = need(b"a", 40, 20), need(b"b", 60, 21)
    assert cleared(HAS, honest=WANTS, greedy=greedy) == {HONEST: 50, GREEDY: 50}


def test_in_a_new_need_in_place_of_the_leased_one_it_gets_no_more():
    assert cleared(HAS, honest=WANTS, greedy=(need(b"b", 60, 20),)) == {HONEST: 50, GREEDY: 50}
