"""What a customer takes of the states of other nodes, and what it comes to."""

from random import Random

from tests.unit.allocation.clearings import (
    NOW_MS,
    UNTIL_MS,
    cleared,
    key,
    need,
    published,
    slot,
)
from xsc.allocation.acceptance import at_once
from xsc.allocation.clearing_record import Offer
from xsc.allocation.receiving import clearings_of, lines_for, own_part, received, still_received
from xsc.terms.clearing import (
    SlotAllocationRecord,
    SlotDenominators,
    TwoTierAllocationState,
)
from xsc.terms.slot import Commitment, Entitlement


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


def test_a_line_counts_only_as_the_slot_the_need_and_the_checked_record_have_it(network):
    provider, customer = key(1), key(2)
    offered, asked = slot(), need()
    own = published(provider, network, Commitment(slots=(offered,)), {})
    other = published(customer, network, Commitment(needs=(asked,)), {})
    window = offered.windows[0]
    signed = cleared(Offer(offered, window, NOW_MS, 100), provider, own, [other], network)
    record = signed.record
    records = {signed.id: own_part(record, customer.node_id)}
    right = {
        "slot": offered.slot_id,
        "window": window,
        "customer": customer.node_id,
        "need": asked.slot_id,
        "tier": "open",
        "quantity": 40,
        "price": 8,
        "granted_ms": NOW_MS,
    }

    def taken(asked=asked, slots=(offered,), **changes) -> list[Entitlement]:
        line = SlotAllocationRecord(**{**right, **changes})
        state = TwoTierAllocationState(
            slot_denominators=(
                SlotDenominators(
                    slot=line.slot,
                    window=line.window,
                    kind=offered.kind,
                    rule=offered.rule,
                    capacity=100,
                    clearing=signed.id,
                    inputs=bytes(32),
                    tiers=record.tiers,
                ),
            ),
            slot_allocations=(line,),
            recipient_totals=((line.customer, offered.kind, line.quantity),),
        )
        needs = {asked.slot_id: asked}
        lines = lines_for(customer.node_id, state, needs)
        assert clearings_of(lines, state) == ({signed.id} if lines else set())
        matching = {asked.slot_id: {each.slot_id: each for each in slots}}
        return received(
            customer.node_id,
            provider.node_id,
            state,
            records=records,
            needs=needs,
            slots=matching,
        )

    (entitlement,) = taken()
    assert still_received([entitlement], {}) == []
    assert (entitlement.quantity, entitlement.price, entitlement.tier) == (40, 8, "open")
    for changes in (
        {"slot": b"f" * 16},
        {"window": (window[0], window[1] - 1)},
        {"customer": key(3).node_id},
        {"need": b"x" * 16},
        {"tier": "mutual"},
        {"quantity": 39},
        {"price": 7},
        {"price": 10},
        {"slots": ()},
        {"slots": (slot(quantity=39),)},
        {"asked": need(quantity=39)},
        {"asked": need(price_max=7)},
    ):
        assert not taken(**changes), changes


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
