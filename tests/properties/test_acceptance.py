"""Several providers and needs, by the rules that nodes call, come to rest from any start.

Providers clear over the caps that needs publish, needs answer what is granted to them: `clear_all`,
`answered` as the allocator calls it, in any order.
"""

from random import Random

import pytest

from tests.gathering import inputs_of
from xsc.allocation import acceptance
from xsc.allocation.acceptance import answered, width
from xsc.allocation.granting import clear_all, entitlements
from xsc.allocation.published import Published, standing
from xsc.base.limits import ALLOCATION_LOOK_MS
from xsc.terms.clearing import SpaceValue, TwoTierAllocationState
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot

NOTHING = SpaceValue(record=b"", value=b"")
END_MS = 60 * 24 * 3_600_000
STEP_MS = 100
ROUNDS_MAX = 60


def name(number):
    return number.to_bytes(32, "big")


class Market:
    """Providers with a slot each and customers with a need each; nodes act one at a time.

    Args:
        supplies: by provider.
        needs: by customer, the quantity.
        weights: by the numbers of a provider and a customer, what each gives the other, in ppm.
    """

    def __init__(self, supplies, needs, weights, spread=1, *, narrows=False):
        self.now_ms = 1_000
        self.narrows = narrows
        """Whether spread needs give back what no object fits beside."""
        self.providers = [name(1 + number) for number in range(len(supplies))]
        self.customers = [name(101 + number) for number in range(len(needs))]
        self.up = set(self.providers)
        self.weights = {node: {} for node in (*self.providers, *self.customers)}
        for (one, other), (given, returned) in weights.items():
            self.weights[self.providers[one]][self.customers[other]] = given
            self.weights[self.customers[other]][self.providers[one]] = returned
        self.slots = {
            node: AvailabilitySlot(
                slot_id=node[-16:],
                kind="storage",
                quantity=quantity,
                windows=((0, END_MS),),
                valid_until_ms=END_MS,
                price_mutual=1,
                price_one_way=2,
                reserve=3,
            )
            for node, quantity in zip(self.providers, supplies, strict=True)
        }
        self.needs = {
            node: NeedSlot(
                slot_id=node[-16:],
                kind="storage",
                quantity=quantity,
                spread=spread,
                price_max=9,
                valid_until_ms=END_MS,
            )
            for node, quantity in zip(self.customers, needs, strict=True)
        }
        self.last = dict.fromkeys(self.providers, TwoTierAllocationState())
        self.granted = dict.fromkeys(self.providers, ())
        self.begun = dict.fromkeys(self.customers, 0)
        self.on_the_way = {}
        """By customer, what arrives before the present grants."""

    def change(self, customer, **changes):
        need = self.needs[customer]
        self.needs[customer] = NeedSlot(**dict(need) | changes)

    def published(self, node):
        said = (
            Commitment(slots=(self.slots[node],))
            if node in self.slots
            else Commitment(needs=(self.needs[node],))
        )
        return Published(node, said, NOTHING, self.weights[node], None)

    def clear(self, provider):
        """Clear the slot; return whether others are granted anything else."""
        inputs = inputs_of(
            now_ms=self.now_ms,
            own=self.published(provider),
            others={node: self.published(node) for node in self.customers},
            credit=dict.fromkeys(self.customers, 10**9),
            free={"storage": 10**6},
        )
        # Here nothing lapses: what is offered stands until all are at rest, and is leased then.
        last = self.last[provider]
        slots = tuple(
            slot.model_copy(
                update={
                    "allocations": tuple(
                        line.model_copy(update={"granted_ms": line.granted_ms and self.now_ms})
                        for line in slot.allocations
                    )
                }
            )
            for slot in last.slot_denominators
        )
        last = last.model_copy(update={"slot_denominators": slots, "pauses": ()})
        made = self.last[provider] = clear_all(inputs, last)[0]
        slots = {slot.slot_id: slot for slot in self.slots.values()}
        needs = {(node, need.slot_id): need for node, need in self.needs.items()}
        before = self.granted[provider]
        self.granted[provider] = tuple(entitlements(provider, made, slots, needs, self.now_ms))

        def shown(granted):
            return [(each.customer, each.quantity) for each in granted]

        return shown(before) != shown(self.granted[provider])

    def heard(self, customer):
        """Return what a customer is granted, as far as it has arrived."""
        return [
            each
            for provider in sorted(self.up)
            for each in self.granted[provider]
            if each.customer == customer
        ]

    def answered(self, customer, received, *, is_due):
        """Return the need of a customer as it would publish it now."""
        ranks = {node: standing(self.published(customer), self.published(node)) for node in self.up}
        return answered(
            self.needs[customer], received, {}, ranks, is_due=is_due, is_settled=self.narrows
        )

    def answer(self, customer):
        """Answer what is granted; return whether the need is published anew."""
        received = self.on_the_way.pop(customer, None)
        if received is None:
            received = self.heard(customer)
        need = self.needs[customer]
        is_due = self.now_ms - self.begun[customer] >= ALLOCATION_LOOK_MS
        after = self.answered(customer, received, is_due=is_due)
        if after.number > need.number:
            self.begun[customer] = self.now_ms
        self.needs[customer] = after
        return after != need

    def would_begin(self, customer):
        """Return whether a need would begin a new number, if it was due."""
        after = self.answered(customer, self.heard(customer), is_due=True)
        return after != self.needs[customer]

    def settle(self, random):
        """Let everybody act, each time in another order, until nothing changes."""
        for rounds in range(ROUNDS_MAX):
            acts = [(self.clear, node) for node in sorted(self.up)]
            acts += [(self.answer, node) for node in self.customers]
            random.shuffle(acts)
            changed = [act(node) for act, node in acts]
            self.now_ms += STEP_MS
            if not any(changed):
                return rounds
        raise AssertionError("it comes to no rest")

    def rest(self, random, minutes=20):
        """Settle until no need would begin anew, if it might."""
        for _ in range(minutes):
            self.settle(random)
            if not any(map(self.would_begin, self.customers)):
                return
            self.now_ms += ALLOCATION_LOOK_MS
        raise AssertionError("it comes to no rest")

    def lines(self):
        return sorted(
            (provider, each.customer, each.quantity)
            for provider in self.up
            for each in self.granted[provider]
        )

    def units(self, customer):
        return sum(units for _, node, units in self.lines() if node == customer)

    def check(self):
        """Nothing is filled or sold twice."""
        for node, need in self.needs.items():
            assert self.units(node) <= need.quantity
        for node in self.up:
            sold = sum(units for provider, _, units in self.lines() if provider == node)
            assert sold <= self.slots[node].quantity


def drawn_by(random):
    """Return the arguments of a market."""
    providers, customers = random.randint(2, 3), random.randint(2, 4)
    supplies = [random.randint(4, 12) for _ in range(providers)]
    needs = [random.randint(2, 10) for _ in range(customers)]
    weights = {
        (one, other): tuple(random.choice([20_000, 30_000, 50_000, 90_000]) for _ in range(2))
        for one in range(providers)
        for other in range(customers)
        if random.random() < 0.9
    }
    return supplies, needs, weights


def spoil(market, random):
    """Start from any caps, and from offers that no provider makes any more."""
    market.settle(random)
    for customer in market.customers:
        most = market.needs[customer].quantity - 1
        caps = {node: random.randint(0, most) for node in market.providers if random.random() < 0.5}
        market.on_the_way[customer] = [
            each
            for node in market.providers
            for each in market.granted[node]
            if each.customer == customer and random.random() < 0.5
        ]
        market.change(customer, caps=tuple(sorted(caps.items())))


@pytest.mark.parametrize("seed", range(12))
def test_in_any_order_it_comes_to_the_same_rest(seed):
    told = drawn_by(Random(seed))
    found = []
    for order in range(3):
        market = Market(*told)
        market.rest(Random(order))
        market.check()
        assert {need.number for need in market.needs.values()} == {1}, "nobody begins anew"
        found.append(market.lines())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("seed", range(20))
def test_from_any_start_it_comes_to_rest_and_new_numbers_to_that_of_a_fresh_start(seed):
    random = Random(seed)
    told = drawn_by(random)
    market = Market(*told)
    spoil(market, random)
    market.rest(random)
    market.check()
    for customer, need in market.needs.items():
        # No need goes without what it has refused.
        open_caps = [node for node, _ in need.caps if node in market.up]
        assert market.units(customer) == need.quantity or not open_caps
        market.change(customer, number=need.number + 1, caps=())
    market.rest(random)
    fresh = Market(*told)
    fresh.rest(Random(0))
    assert market.lines() == fresh.lines()


@pytest.mark.parametrize("seed", range(30))
def test_of_parts_and_a_spread_rest_no_provider_has_more_than_its_own_in_any_order(seed):
    told = drawn_by(Random(seed))
    found = []
    for order in range(2):
        random, market = Random(seed), Market(*told)
        for customer in market.customers:
            left, parts = market.needs[customer].quantity, []
            for provider in market.providers:
                if part := random.randint(0, left):
                    parts.append((provider, part))
                    left -= part
            market.change(customer, parts=tuple(parts), spread=random.randint(1, 3))
        market.rest(Random(order))
        market.check()
        for provider, customer, units in market.lines():
            assert units <= market.needs[customer].most(provider)
        found.append(market.lines())
        # Where there is room for all, each need is full but for what others would have to hold.
        market = Market([200] * len(told[0]), *told[1:])
        market.needs = {node: each.model_copy() for node, each in market.needs.items()}
        for customer in market.customers:
            first, rest = market.providers[0], market.needs[customer].quantity - 1
            market.change(customer, parts=((first, 1),), spread=len(market.providers))
            assert market.needs[customer].open_steps == rest
        market.rest(Random(order))
        assert all(market.units(node) == need.quantity for node, need in market.needs.items())
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", range(30))
def test_spread_needs_come_to_rest_with_what_fits_and_begin_anew_without_an_offer(seed):
    random = Random(seed)
    supplies, needs, weights = drawn_by(random)
    market = Market(supplies, [3 * need for need in needs], weights, 2, narrows=True)

    def check():
        market.rest(random, minutes=60)
        market.check()
        for customer, need in market.needs.items():
            units = [units for _, node, units in market.lines() if node == customer]
            wide = width(units, 2)
            assert not wide or sum(units) in (2 * wide, need.quantity)

    check()
    market.up.discard(random.choice(market.providers))
    check()


KEEP = acceptance.keep


def keep_everything(quantity, offers, caps, parts):
    return KEEP(10 * quantity, offers, caps, parts)


def caps_that_rise(quantity, offers, caps, parts):
    kept, lowered = KEEP(quantity, offers, {}, parts)
    return kept, lowered if sum(kept.values()) == quantity else {}


@pytest.mark.parametrize("broken", [keep_everything, caps_that_rise])
def test_a_broken_answer_is_noticed(broken, monkeypatch):
    monkeypatch.setattr(acceptance, "keep", broken)
    for seed in range(40):
        market = Market(*drawn_by(Random(seed)))
        try:
            market.rest(Random(seed))
            market.check()
        except AssertionError:
            return
    pytest.fail("the law noticed nothing")


def test_what_a_dead_provider_granted_is_asked_of_others():
    weights = {(0, 0): (90_000, 90_000), (1, 0): (90_000, 30_000)}
    market = Market([8, 10], [10], weights)
    random = Random(0)
    market.rest(random)
    (customer,) = market.customers
    assert market.units(customer) == 10
    market.up.remove(market.providers[0])
    market.rest(random)
    assert market.units(customer) == 10
    assert market.needs[customer].number == 2
