"""A market of the rules alone: providers clear, needs keep, caps fall, until nothing changes.

No services, no messages, no clock: plain Python over the functions that nodes call. One provider
has one slot, one customer one need. Amounts are drawn from a seed.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from random import Random

from tests.gathering import Terms, given_of
from xsc.allocation.acceptance import keep
from xsc.allocation.clearing import Bid, Claim
from xsc.allocation.recognition import tier_of

NEED_ID = bytes(16)


def name(index: int) -> bytes:
    return index.to_bytes(32, "big")


@dataclass
class Market:
    """Nodes by number; each offers and needs."""

    supply: list[int]
    need: list[int]
    weights: list[dict[int, int]]
    """By node, what it gives to others, in ppm."""
    caps: list[dict[bytes, int]] = field(default_factory=list)
    offers: list[dict[bytes, Claim]] = field(default_factory=list)
    """By customer, what each provider grants it."""
    messages: list[int] = field(default_factory=list)
    """By node, what it published, counted once for each node that follows it."""

    def __post_init__(self) -> None:
        count = len(self.supply)
        self.caps = [{} for _ in range(count)]
        self.offers = [{} for _ in range(count)]
        self.messages = [0] * count
        self.recognised_by: list[set[int]] = [set() for _ in range(count)]
        for node, given in enumerate(self.weights):
            for other in given:
                self.recognised_by[other].add(node)

    def customers_of(self, provider: int) -> list[int]:
        """Return whom a provider serves: those that it recognises."""
        return sorted(self.weights[provider])

    def clear(self, provider: int) -> set[int]:
        """Clear one slot and return the customers whose grant changed."""
        bids: list[Bid] = []
        for customer in self.customers_of(provider):
            mine = self.weights[provider][customer]
            theirs = self.weights[customer].get(provider, 0)
            tier = tier_of(mine, theirs)
            weight = min(mine, theirs) if tier == "mutual" else mine
            wanted = min(self.need[customer], self.caps[customer].get(name(provider), 1 << 62))
            if wanted:
                bids.append(Bid(name(customer), NEED_ID, wanted, 10, tier, weight))
        given = given_of(Terms(self.supply[provider], 1, 1, 11).clear(bids, name(provider)))
        changed = set()
        for customer in self.customers_of(provider):
            units = given.get((name(customer), NEED_ID), 0)
            before = self.offers[customer].get(name(provider))
            if units != (before.need if before else 0):
                theirs = self.weights[customer].get(provider, 0)
                tier = tier_of(theirs, self.weights[provider][customer])
                weight = max(1, min(theirs, self.weights[provider][customer]))
                if tier == "one_way":
                    weight = theirs
                self.offers[customer][name(provider)] = Claim(name(provider), tier, weight, units)
                changed.add(customer)
        if changed:
            self.messages[provider] += len(self.weights[provider])
        return changed

    def accept(self, customer: int) -> set[int]:
        """Keep the best offers and return the providers whose cap fell."""
        offers, before = [*self.offers[customer].values()], self.caps[customer]
        _, self.caps[customer] = keep(self.need[customer], offers, before)
        fell = {
            int.from_bytes(provider, "big")
            for provider, cap in self.caps[customer].items()
            if cap < before.get(provider, 1 << 62)
        }
        if fell:
            self.messages[customer] += len(self.recognised_by[customer])
        return fell

    def settle(self) -> int:
        """Let all providers clear, then all customers keep, and so on; return the rounds."""
        providers, rounds = set(range(len(self.supply))), 0
        while providers:
            rounds += 1
            customers = set().union(*(self.clear(provider) for provider in sorted(providers)))
            providers = set().union(*(self.accept(customer) for customer in sorted(customers)))
        return rounds

    def settle_in_any_order(self, random: Random) -> None:
        """Let one node act at a time, whichever comes."""
        waiting = [("clear", node) for node in range(len(self.supply))]
        while waiting:
            act, node = waiting.pop(random.randrange(len(waiting)))
            if act == "clear":
                more = [("accept", other) for other in self.clear(node)]
            else:
                more = [("clear", other) for other in self.accept(node)]
            waiting += [each for each in sorted(more) if each not in waiting]

    def served(self) -> list[int]:
        """Return what each need is granted in the end."""
        return [sum(offer.need for offer in offers.values()) for offers in self.offers]

    def lines(self) -> dict[tuple[int, bytes], int]:
        """Return what each provider grants each customer."""
        return {
            (customer, provider): offer.need
            for customer, offers in enumerate(self.offers)
            for provider, offer in offers.items()
            if offer.need
        }

    def flow(self) -> int:
        """Return the most that could be served: the maximum flow from supplies to needs."""
        count = len(self.supply)
        source, sink = 2 * count, 2 * count + 1
        room: defaultdict[int, dict[int, int]] = defaultdict(dict)

        def edge(one: int, other: int, units: int) -> None:
            room[one][other] = units
            room[other].setdefault(one, 0)

        for node in range(count):
            edge(source, node, self.supply[node])
            edge(count + node, sink, self.need[node])
            for customer in self.weights[node]:
                edge(node, count + customer, self.supply[node])
        total = 0
        while True:
            way: dict[int, int] = {source: source}
            waiting = deque([source])
            while waiting and sink not in way:
                here = waiting.popleft()
                for there, units in room[here].items():
                    if units and there not in way:
                        way[there] = here
                        waiting.append(there)
            if sink not in way:
                return total
            path, there = [], sink
            while there != source:
                path.append((way[there], there))
                there = way[there]
            least = min(room[one][other] for one, other in path)
            for one, other in path:
                room[one][other] -= least
                room[other][one] += least
            total += least


def random_market(random: Random, nodes: int, degree: int, supply_percent: int = 100) -> Market:
    """Return a market whose nodes each recognise `degree` others, half of them mutually."""
    weights: list[dict[int, int]] = [{} for _ in range(nodes)]
    for node in range(nodes):
        for other in random.sample(range(nodes), min(nodes - 1, degree * 2 // 3)):
            if other == node:
                continue
            weights[node][other] = random.randint(10_000, 40_000)
            if random.random() < 0.5:
                weights[other].setdefault(node, random.randint(10_000, 40_000))
    need = [random.randint(50, 1_500) * 1_000 for _ in range(nodes)]
    whole = sum(need) * supply_percent // 100
    parts = [random.randint(50, 1_500) for _ in range(nodes)]
    supply = [whole * part // sum(parts) for part in parts]
    return Market(supply, need, weights)
