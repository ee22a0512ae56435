"""Hosts and customers of storage by the rules alone, day by day: standing slots and standing needs.

What nodes do is done by the functions that they call: the standing need, the clearing of a round,
caps, what is taken of offers, what is renewed for now. Bytes are counted in whole steps of a level,
prices are whole numbers, and nothing is lost on the way.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.gathering import inputs_of
from xsc.allocation.acceptance import answered
from xsc.allocation.declaring import needed, standing_need, with_standing
from xsc.allocation.granting import clear_all, entitlements
from xsc.allocation.published import Published, standing
from xsc.base.limits import PRICE_BYTES, SLOT_STEP_BYTES
from xsc.market.choosing import to_take
from xsc.market.headroom import undrawn
from xsc.terms.clearing import SpaceValue, TwoTierAllocationState
from xsc.terms.slot import (
    STEP,
    AvailabilitySlot,
    Commitment,
    Entitlement,
    EntitlementKey,
    NeedSlot,
)

DAY_MS = 24 * 3_600_000
TERM_DAYS, HALF_DAYS = 90, 45
END_MS = 2**50
NOTHING = SpaceValue(record=b"", value=b"")
PRICE = 10 * PRICE_BYTES // SLOT_STEP_BYTES
"""What hosts ask."""
UNIT = STEP["storage"]


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


@dataclass
class Lease:
    customer: bytes
    steps: int
    held: int
    """Of them: what bytes lie there."""
    since_day: int
    level: bool = False
    """Whether a clearing granted it: what is not held is kept free too."""

    @property
    def has(self) -> int:
        return self.steps if self.level else self.held


@dataclass
class Host:
    """One provider: a standing slot, and leases under it."""

    node: bytes
    steps: int
    weights: dict[bytes, int] = field(default_factory=dict)
    leases: list[Lease] = field(default_factory=list)
    granted: tuple[Entitlement, ...] = ()
    state: TwoTierAllocationState = field(default_factory=TwoTierAllocationState)

    def __post_init__(self) -> None:
        self.slot = AvailabilitySlot(
            slot_id=self.node[-16:],
            kind="storage",
            quantity=self.steps,
            windows=((0, END_MS),),
            valid_until_ms=END_MS,
            price_mutual=PRICE * 8 // 10,
            price_one_way=PRICE * 9 // 10,
            reserve=PRICE,
            standing=True,
        )
        self.published = Published(
            self.node, Commitment(slots=(self.slot,)), NOTHING, self.weights, None
        )

    @property
    def free(self) -> int:
        return self.steps - sum(lease.has for lease in self.leases)

    def of(self, customer: bytes) -> int:
        return sum(lease.held for lease in self.leases if lease.customer == customer)


class Customer:
    """One node that stores: its standing need follows what hosts hold and what they refused."""

    def __init__(self, node: bytes, price_max: int = 4 * PRICE, *, weights=None) -> None:
        self.node, self.price_max = node, price_max
        self.weights = weights or {}
        self.commitment = Commitment()
        self.short = 0
        """Steps that each of `spread` hosts more would have to hold."""
        self.spread = 1

    def state(self, hosts: list[Host]) -> None:
        held = {host.node: host.of(self.node) * SLOT_STEP_BYTES for host in hosts}
        short, new_id = self.short * SLOT_STEP_BYTES, self.node[-16:]
        fields = needed("storage", held, self.price_max, short, self.spread)
        self.commitment = with_standing(self.commitment, NeedSlot, "storage", fields, new_id)

    @property
    def published(self) -> Published:
        return Published(self.node, self.commitment, NOTHING, self.weights, None)


class Days:
    """A market that goes on day by day."""

    def __init__(self, hosts: list[Host], customers: list[Customer]) -> None:
        self.hosts, self.customers, self.day = hosts, customers, 0
        self.lost = Counter[bytes]()
        """By customer: the steps that were held and whose lease ended."""
        self.at_ms = 0
        """When something happens within a day."""

    @property
    def now_ms(self) -> int:
        return max(self.at_ms, 1_000 + self.day * DAY_MS)

    def key(self, host: Host, customer: bytes) -> EntitlementKey:
        return EntitlementKey(host.node, host.slot.slot_id, customer, customer[-16:])

    def drawn(self, host: Host, *, young: bool = False) -> dict[EntitlementKey, int]:
        found = Counter[EntitlementKey]()
        for lease in host.leases:
            if not young or self.day - lease.since_day < HALF_DAYS:
                found[self.key(host, lease.customer)] += lease.has
        return {key: steps for key, steps in found.items() if steps}

    def clear(self) -> None:
        others = {c.node: c.published for c in self.customers if c.commitment.needs}
        for host in self.hosts:
            inputs = inputs_of(
                now_ms=self.now_ms,
                own=host.published,
                others=others,
                drawn=self.drawn(host),
                pinned=self.drawn(host, young=True),
                credit=dict.fromkeys(others, 2**60),
                free={"storage": max(0, host.free)},
            )
            host.state = clear_all(inputs, host.state)[0]
            needs = {
                (node, need.slot_id): need
                for node, each in others.items()
                for need in each.commitment.needs
            }
            slots = {host.slot.slot_id: host.slot}
            host.granted = tuple(entitlements(host.node, host.state, slots, needs, self.now_ms))

    def settle(self) -> None:
        """Let all needs answer and hosts clear, until no cap falls any more."""
        for customer in self.customers:
            customer.state(self.hosts)
        while True:
            self.clear()
            changed = False
            for customer in self.customers:
                need = standing_need(customer.commitment, "storage")
                if need is None:
                    continue
                ranks = {
                    host.node: standing(customer.published, host.published) for host in self.hosts
                }
                grants = [each for host in self.hosts for each in host.granted]
                made = answered(
                    need,
                    grants,
                    {h.node: self.drawn(h).get(self.key(h, customer.node), 0) for h in self.hosts},
                    ranks,
                    is_due=False,
                    is_settled=True,
                )
                if made != need:
                    changed = True
                    needs = {"needs": (made,)}
                    customer.commitment = customer.commitment.model_copy(update=needs)
            if not changed:
                return

    def take(self) -> None:
        """Let customers take leases on what they are granted where there is room."""
        hosts = {host.node: host for host in self.hosts}
        for customer in self.customers:
            need = standing_need(customer.commitment, "storage")
            if need is None:
                continue
            offers = [e for h in self.hosts for e in h.granted if e.customer == customer.node]
            taken = {
                key: steps * UNIT
                for host in self.hosts
                for key, steps in self.drawn(host).items()
                if key.customer == customer.node
            }
            needs = {need.slot_id: need}
            for each, level in list(to_take(offers, needs, taken, self.now_ms)):
                host = hosts[each.provider]
                steps = min(level // UNIT, host.free)
                if steps:
                    host.leases.append(Lease(customer.node, steps, 0, self.day, level=True))

    def renewable(self, host: Host, lease: Lease) -> int:
        """As `Headroom.renewable`: all where no grant waits for room, else what the need has."""
        drawn, young = self.drawn(host), self.drawn(host, young=True)
        waiting = sum(
            undrawn(each, {key: steps * UNIT for key, steps in drawn.items()}) // UNIT
            for each in host.granted
        )
        if waiting <= host.free:
            return lease.held
        key = self.key(host, lease.customer)
        return max(
            0,
            min(
                lease.held,
                sum(e.quantity - young.get(key, 0) for e in host.granted if e.key == key),
            ),
        )

    def renew(self) -> None:
        """Renew what is past its half, as far as may be; end what is over."""
        for host in self.hosts:
            for lease in list(host.leases):
                age = self.day - lease.since_day
                if age >= TERM_DAYS:
                    host.leases.remove(lease)
                    self.lost[lease.customer] += lease.held
                elif age >= HALF_DAYS and lease.held:
                    steps = self.renewable(host, lease)
                    if steps:
                        host.leases.append(
                            Lease(lease.customer, steps, steps, self.day, level=lease.level)
                        )
                        lease.held -= steps
                        lease.steps = max(lease.held, lease.steps - steps)
                    if not lease.held:
                        host.leases.remove(lease)
                elif age >= HALF_DAYS:
                    host.leases.remove(lease)

    def pass_days(self, days: int, each_day=lambda: None) -> None:
        for _ in range(days):
            self.day += 1
            each_day()
            self.settle()
            self.renew()
            self.take()
