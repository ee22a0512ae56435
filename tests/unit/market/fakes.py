"""Small real parts that stand where the other services will, and nodes wired from them."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from tests.settle import settle
from tests.unit.allocation.fakes import Memory, Wire
from xsc.allocation.declaring import need_of
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.errors import (
    CreditExceeded,
    EntryRefused,
    PeerSilent,
)
from xsc.base.limits import (
    COMPUTE_LEASE_MS,
    EPOCH_MS,
    GIB,
    PRICE_BYTES,
    SLOT_STEP_BYTES,
    STORAGE_LEASE_MS,
)
from xsc.db.group import GroupCommit
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair, network_id
from xsc.market.ports import MarketPorts, MarketSettings
from xsc.market.pricing import PriceList
from xsc.market.providers import LEASE
from xsc.market.service import MarketService
from xsc.market.settlement import ACCOUNT
from xsc.terms.lease import LeaseRequest
from xsc.terms.possession import Answered
from xsc.terms.pricing import Quote
from xsc.terms.slot import STEP, Commitment
from xsc.terms.voucher import Voucher

NET = network_id("test")
TEN_MINUTES_MS = 600_000

A_MIB = 1024
"""The price a GiB and hour that is a micro-credit a MiB and hour."""
A_STEP = PRICE_BYTES // SLOT_STEP_BYTES
"""The price a GiB and hour that is a micro-credit a step of a slot and hour."""
DISK, RECORDS = b"test/disk/", b"test/records/"
"""What a node holds for others, and what it has at others as its records say, by lease."""
RATE = STEP["compute"]
"""What a step of a slot of compute is in a lease."""


@dataclass
class Ledger:
    """Books what is collected, once a transfer id; `trouble` says how the next ones fail.

    silent: not booked. late: not yet booked, but before the next one. lost: booked, and the
    answer is lost. refused: not booked, and the transfer id is spent.
    """

    limit: int = 10**9
    sharing: list = field(default_factory=list)
    booked: dict = field(default_factory=dict)
    under_way: dict = field(default_factory=dict)
    trouble: list = field(default_factory=list)
    asked: list = field(default_factory=list)

    def owed(self, peer):
        return sum(amount for debtor, amount, _ in self.booked.values() if debtor == peer)

    def credit_left(self, peer):
        return self.limit - sum(map(self.owed, self.shares_with(peer)))

    def shares_with(self, peer):
        return self.sharing if peer in self.sharing else [peer]

    def settled(self, account):
        return sum(amount for _, amount, at in self.booked.values() if at == account)

    async def collect(self, voucher):
        self.asked.append(voucher)
        await asyncio.sleep(0)
        self.booked |= self.under_way
        self.under_way = {}
        signed = open_signed(voucher, Voucher, network=NET).record
        debtor, account = signed.customer, signed.account
        amount_micro = signed.amount_micro - self.settled(account)
        entry = self.booked.get(voucher, (debtor, amount_micro, account))
        if not amount_micro:
            return self.settled(account)
        trouble = self.trouble.pop(0) if self.trouble else ""
        if trouble == "silent":
            raise PeerSilent("the debtor does not answer")
        if trouble == "late":
            self.under_way[voucher] = entry
            raise PeerSilent("the debtor does not answer yet")
        if trouble == "no credit":
            raise CreditExceeded("the debtor says that it has no room for it")
        if trouble == "refused":
            raise EntryRefused("the debtor refused")
        if voucher not in self.booked and amount_micro > self.credit_left(debtor):
            raise CreditExceeded("the debt limit would be passed")
        self.booked[voucher] = entry
        if trouble == "lost":
            raise PeerSilent("the answer was lost")
        return self.settled(account)


@dataclass
class Health:
    wire: Wire
    quality: dict = field(default_factory=dict)
    served_by: list = field(default_factory=list)
    grades: dict = field(default_factory=dict)

    def is_up(self, peer):
        return peer not in self.wire.down

    def is_absent(self, peer):
        return peer in self.wire.down

    async def probe_unknown(self):
        """Do nothing: every peer is known here."""

    def quality_ppm(self, peer):
        return self.quality.get(peer, 900_000)

    def report(self, peer, dimension, what):
        self.quality[peer] = self.quality_ppm(peer) // 2

    def served(self, peer, dimension):
        self.served_by.append((peer, dimension))

    def grade(self, peer):
        return self.grades.get(peer, "vetted")

    def response_ms(self, peer):
        return 7


OFFERED = {"storage": b"s" * 16, "compute": b"c" * 16}
"""The slots that a node publishes here, which are open for ever."""
ALWAYS = (0, 2**62)


@dataclass
class Recognised:
    world: object
    weights: dict = field(default_factory=dict)
    mutual: dict = field(default_factory=dict)
    theirs: dict = field(default_factory=dict)

    def tier(self, peer):
        if self.mutual.get(peer, 0) >= 10_000:
            return "mutual"
        return "one_way" if self.weights.get(peer) else "open"

    def weight_ppm(self, peer):
        return self.weights.get(peer, 0)

    def quote(self, kind, provider, customer):
        """Return what a node asks, as its published slot would say."""
        node = self.world.of(provider)
        if node is None or not node.offers:
            return None
        tier = node.standing.tier(customer)
        ladder = node.market.headroom.pricing().ladder(kind)
        return Quote(provider, kind, OFFERED[kind], ALWAYS, tier, ladder)

    def labels(self, node):
        node = self.world.of(node)
        return None if node is None else (node.settings["site"], node.settings["owner"])

    async def learn(self, nodes, *, anew=False):
        """Do nothing: what all nodes publish is here."""


@dataclass
class Room:
    storage: int = 16 * GIB
    stored: int = 0
    steps: int = 10**13
    running: int = 0

    def level(self, kind):
        return self.storage if kind == "storage" else self.steps

    def free(self, kind):
        return self.level(kind) - (self.stored if kind == "storage" else self.running)


@dataclass
class Lines:
    """Keeps what is logged."""

    lines: list = field(default_factory=list)

    def info(self, event, **fields):
        self.lines.append((event, fields))

    warning = error = info


@dataclass
class Skewed:
    """A clock that is ahead of another one."""

    clock: ManualClock
    ahead_ms: int

    def now_ms(self):
        return self.clock.now_ms() + self.ahead_ms

    def __getattr__(self, name):
        return getattr(self.clock, name)


class Node:
    ahead_ms = 0
    """By how much its clock is ahead of the others'."""
    proves = True
    """Whether it has just answered a challenge whenever it is asked for a count."""

    def __init__(self, world, number, **settings):
        self.world = world
        self.key = KeyPair(bytes([number]) * 32)
        self.id = self.key.node_id
        self.state = Memory()
        self.ledger = Ledger()
        self.health = Health(world.wire)
        self.standing = Recognised(world)
        self.room = Room()
        self.log = Lines()
        self.settings = {
            "prices": PriceList(10 * A_MIB, 10 * A_MIB, 200_000, 100_000),
            "price_max": {"storage": 40 * A_MIB, "compute": 40 * A_MIB},
            "settle_interval_ms": 10_000,
            "booking_interval_ms": 3_600_000,
            "site": "",
            "owner": "",
        } | settings
        self.entropy = SeededEntropy(bytes([number]))
        self.leaving = set()
        self.custodians = set()
        self.offers = True
        self.denied = []
        self.granted = []
        self.received = []
        self.needs = {}
        self.market = self.make()

    def make(self):
        ports = MarketPorts(
            peers=self.world.wire.peers(self.id),
            credit=self.ledger,
            quality=self.health,
            standing=self.standing,
            capacity=self.room,
            leaving=lambda: self.leaving,
            needs=lambda: list(self.needs.values()),
            need_of=lambda who, kind, named: need_of(self.world.stated(who), kind, named),
            on_need=lambda: None,
        )
        ports.granted, ports.received = lambda: self.granted, lambda: self.received
        ports.on_denied = self.on_denied
        market = MarketService(
            Context(
                self.key,
                NET,
                Skewed(self.world.clock, self.ahead_ms),
                self.entropy,
                InlineExecutor(),
                self.world.wire.caller(self.id),
                self.log,
                self.state,
                GroupCommit(self.state, InlineExecutor()).commit,
            ),
            ports,
            settings=MarketSettings(**self.settings),
        )
        ports.prove, ports.custodians = self.prove, lambda: self.custodians
        answer = market.handlers()[ACCOUNT]

        async def proven_first(caller, header, parts):
            customer = self.world.of(caller)
            if header["voucher"] is None and customer is not None and self.proves:
                self.prove_to(customer)
            return await answer(caller, header, parts)

        self.world.wire.handlers[self.id] = {**market.handlers(), ACCOUNT: proven_first}
        return market

    def prove_to(self, customer, *, ok=True, leaves=2**30):
        """Answer a challenge, as both sides hear of it."""
        now_ms = self.market.settlement._clock.now_ms()
        proof = Answered(leaves, now_ms // EPOCH_MS, now_ms, ok)
        sides = (self, "provider", customer.id), (customer, "customer", self.id)
        for node, role, peer in sides if ok else ():
            # As if challenges had come every hour.
            account = node.market.store.account(role, peer)
            account.proven_ms = max(account.proven_ms, now_ms - EPOCH_MS)
        self.market.settlement.challenged("provider", customer.id, proof)
        customer.market.settlement.challenged("customer", self.id, proof)

    async def prove(self, hosts):
        """Have hosts prove what they hold."""
        for host in hosts:
            if self.world.of(host).proves:
                self.world.of(host).prove_to(self)

    def kept(self, where, lease_id):
        """Return the bytes under a lease, as the disk says."""
        return int(self.state.get(where + lease_id) or 0)

    def keep(self, where, sizes):
        """Write the bytes under leases to the disk."""
        self.state.write([(where + key, b"%d" % size) for key, size in sizes.items()], sync=False)

    async def on_denied(self, leases):
        self.denied.append(set(leases))

    async def restart(self):
        """Come back from what is on the disk."""
        self.market = self.make()
        await self.market.start()
        return self.market

    def stores(self, lease_id, customer, size_bytes):
        """Hold bytes under a lease, as a put would."""
        self.market.granter.admit(lease_id, customer, size_bytes)
        self.market.granter.stored(lease_id, size_bytes, size_bytes)
        self.keep(DISK, {lease_id: self.kept(DISK, lease_id) + size_bytes})

    def drops(self, lease_id, size_bytes):
        """Hold bytes no more, as after a deletion."""
        self.market.granter.settle_use(lease_id, -size_bytes)
        self.keep(DISK, {lease_id: self.kept(DISK, lease_id) - size_bytes})

    def newest(self, role):
        """Return the lease of a role that began last."""
        return max(self.market.store.all(role), key=lambda entry: entry.terms.start_ms)

    def views(self, role):
        """Return the leases of a role, as people see them."""
        return [view for view in self.market.leases() if view.entry.role == role]

    def one(self, role):
        (view,) = self.views(role)
        return view


class World:
    """Nodes on one clock, which moves to the next sleeper whenever nobody can go on."""

    def __init__(self):
        self.wire = Wire()
        self.clock = ManualClock()
        self.nodes = {}

    def node(self, number, **settings):
        self.nodes[number] = Node(self, number, **settings)
        return self.nodes[number]

    def of(self, node_id):
        """Return the node of an id; None where there is none."""
        return next((node for node in self.nodes.values() if node.id == node_id), None)

    def stated(self, node_id):
        """Return what a node publishes."""
        for node in self.nodes.values():
            if node.id == node_id:
                return Commitment(needs=tuple(need for _, need in sorted(node.needs.items())))
        return Commitment()

    def later(self, duration_ms):
        self.clock.advance_to(self.clock.now_ms() + duration_ms)

    async def drive(self, *work, steps=400):
        """Return the results of all, moving the clock as far as they need."""
        tasks = [asyncio.ensure_future(item) for item in work]
        for _ in range(steps):
            await settle()
            if all(task.done() for task in tasks):
                break
            next_ms = self.clock.next_ms()
            if next_ms is not None:
                self.clock.advance_to(next_ms)
        assert all(task.done() for task in tasks), "somebody waits for ever"
        results = await asyncio.gather(*tasks, return_exceptions=True)
        faults = [item for item in results if isinstance(item, BaseException)]
        if faults and len(results) == 1:
            raise faults[0]
        return results[0] if len(results) == 1 else results


def by_node(calls):
    counted = defaultdict(int)
    for _, peer, method in calls:
        counted[peer, method] += 1
    return counted


async def admit(world, provider, lease_id, customer, steps=10**9, *, wait_ms=0):
    """Admit a run at a provider, and return its terms."""
    granted = provider.market.granter
    terms = granted.compute_terms(lease_id, customer.id, steps)
    await world.drive(granted.admit_compute(lease_id, customer.id, steps, wait_ms))
    return terms


def request_of(world, customer, provider, /, kind="storage", offer=None, **change):
    """Return a signed request on what is published or was granted, but for some fields."""
    now_ms = world.clock.now_ms()
    fields = {
        "lease_id": b"\x07" * 32,
        "provider": provider.id,
        "customer": customer.id,
        "kind": kind,
        "slot": OFFERED[kind],
        "window": ALWAYS,
        "tier": provider.standing.tier(customer.id),
        "need": None,
        "level": 0,
        "price": 40 * A_MIB,
        "start_ms": now_ms,
        "end_ms": now_ms + (STORAGE_LEASE_MS if kind == "storage" else COMPUTE_LEASE_MS),
    }
    if offer is not None:
        fields |= {
            "kind": offer.kind,
            "slot": offer.slot,
            "window": offer.window,
            "tier": offer.tier,
            "need": offer.need,
            "level": offer.quantity * STEP[offer.kind],
            "price": offer.price,
        }
    return sign(LeaseRequest(**(fields | change)), customer.key, NET).raw


async def granted_on(customer, provider, request, least=0):
    """Return the lease that a provider signs on a request, as it came."""
    header = {"request": request, "least": least}
    answer, _ = await provider.market.handlers()[LEASE](customer.id, header, ())
    return answer["lease"]


async def ask(world, customer, provider, lease_id=b"\x07" * 32, /, **change):
    """Ask for a lease as a customer that states what it likes; return the provider's entry."""
    raw = request_of(world, customer, provider, lease_id=lease_id, **change)
    await granted_on(customer, provider, raw)
    return provider.market.store.get("provider", lease_id)
