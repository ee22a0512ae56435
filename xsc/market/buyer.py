"""Finds leases for what this node stores and runs: those at hand first, new ones by auction.

The rules are in `auction`, `lease_entry.usable` and `quote.wanted_quantity`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from xsc.base.errors import (
    ArgumentInvalid,
    ComputeExhausted,
    PeerLeaving,
    PeerSilent,
    SpaceExhausted,
    XscError,
)
from xsc.base.ids import short
from xsc.base.limits import COMPUTE_IN_FLIGHT_MAX
from xsc.base.refusals import refusal
from xsc.identity.context import Context
from xsc.market import lease as rules
from xsc.market.choosing import Chosen, LeaseChooser, PassedOver
from xsc.market.default_need import DefaultNeed
from xsc.market.headroom import Headroom
from xsc.market.lease_entry import OWN, LeaseEntry, usable
from xsc.market.lease_store import LeaseStore
from xsc.market.ports import MarketPorts
from xsc.market.quote import QUANTITY_MAX
from xsc.market.quotes import Quotes
from xsc.market.waiting import WaitingLines
from xsc.terms.quote import Kind

KINDS: Final[tuple[Kind, ...]] = ("storage", "compute")


@dataclass(frozen=True, slots=True)
class LeaseHandle:
    """A lease to use; one with oneself costs nothing."""

    node: bytes
    lease_id: bytes
    price: int


@dataclass(frozen=True, slots=True)
class LeasedHosts:
    """Leases to use at distinct nodes, and why others gave none where they are too few."""

    leases: list[LeaseHandle]
    refused: dict[bytes, XscError]
    passed_over: list[PassedOver]
    """Other nodes and leases, and why they were not used."""


class LeaseBuyer:
    """Leases capacity for this node."""

    def __init__(
        self,
        context: Context,
        ports: MarketPorts,
        store: LeaseStore,
        *,
        quotes: Quotes,
        headroom: Headroom,
        chooser: LeaseChooser,
        lines: WaitingLines[bytes | None],
        default_need: DefaultNeed,
    ) -> None:
        self._default_need = default_need
        self._lines = lines
        self._chooser = chooser
        self._own = context.key.node_id
        self._clock = context.clock
        self._store = store
        self._peers = ports.peers
        self._quotes = quotes
        self._quality = ports.quality
        self._headroom = headroom
        self._leaving = ports.leaving
        self._locks: dict[Kind, asyncio.Lock] = {kind: asyncio.Lock() for kind in KINDS}

    # What is leased

    async def lease_hosts(
        self, *, size_bytes: int, count: int, exclude: frozenset[bytes] = frozenset()
    ) -> LeasedHosts:
        """Return room for `size_bytes` at each of `count` distinct nodes, fewer where fewer exist.

        Leases in distinct failure domains are preferred: leases at hand, then new ones by
        auction. Then domains are ignored. The own node, which settles nothing, is last.
        Where fewer than `count` are found, the answer says why each other node gave none.
        """
        if not 0 < size_bytes <= QUANTITY_MAX:
            raise ArgumentInvalid("the size to lease is out of range")
        wanted = [peer for peer in self._peers.peers() if peer not in exclude]
        leaving = self._leaving()
        staying = [peer for peer in wanted if peer not in leaving]
        nodes = self._quotes.up(staying)
        if len(nodes) < min(count, len(wanted)):
            await self._quality.probe_unknown()
            nodes = self._quotes.up(staying)
        absent: dict[bytes, XscError] = {}
        for node in wanted:
            if node in leaving:
                absent[node] = PeerLeaving(f"{short(node)} leaves the network")
            elif node not in nodes:
                absent[node] = PeerSilent(f"{short(node)} does not answer")
        async with self._locks["storage"]:
            chosen = await self._chooser.choose("storage", nodes, size_bytes, count, absent=absent)
            hosts = [self._hand_out(entry, size_bytes) for entry in chosen.leases]
        refused = chosen.faults
        if len(hosts) < count and self._own not in exclude:
            if self._own not in leaving and self._headroom.free("storage") >= size_bytes:
                hosts.append(self._hand_out_own("storage"))
            else:
                refused[self._own] = SpaceExhausted("this node has no room for that")
        if hosts:
            self._default_need.on_change()
        if len(hosts) >= count:
            refused = {}
        for host in hosts:
            refused.pop(host.node, None)
        return LeasedHosts(hosts, refused, chosen.passed_over)

    async def lease_compute(
        self,
        *,
        fuel_steps: int,
        on: bytes | None,
        saved: Mapping[bytes, int] | None = None,
        wait_ms: int = 0,
        apart: bool = False,
    ) -> LeaseHandle:
        """Return a lease to run under, on that node or on the best.

        Where COMPUTE_IN_FLIGHT_MAX runs of this node are under way there, it waits until one of
        them ends: calls wait in a line for each `on`.

        Args:
            fuel_steps: the most that the run may be billed for.
            on: the node; None for the best.
            saved: by node, the bytes that need not be sent to it. A node
                that saves more is worth a higher price (`auction.near`).
            wait_ms: how long it may wait.
            apart: whether a service uses the lease, and no runs: it is a new one.

        Raises:
            NoOffers: no node offers it at a price within the reserve, or none answers.
            CreditExceeded, ComputeExhausted: every node refused for this reason.
            RateLimited: too many runs of this node are under way, and none ended in time.
        """
        if not 0 < fuel_steps <= QUANTITY_MAX:
            raise ArgumentInvalid("the fuel to lease is out of range")
        if on == self._own:
            if self._headroom.free("compute"):
                return self._hand_out_own("compute")
            raise ComputeExhausted("all fuel of this node is leased ahead of use, or it has none")
        until_ms = self._clock.monotonic_ms() + wait_ms
        while True:
            left_ms = max(0, until_ms - self._clock.monotonic_ms())
            if not apart:
                await self._lines.enter(on, lambda: self._may_ask(on), left_ms)
            async with self._locks["compute"]:
                if not apart and not self._may_ask(on):
                    continue  # Others that looked at the same time came before it.
                chosen = await self._take_fuel(fuel_steps, on, saved or {}, apart=apart)
                for entry in chosen.leases:
                    entry.is_apart = apart
                    return self._hand_out(entry, 0 if apart else fuel_steps)
            if on is None and self._headroom.free("compute"):
                return self._hand_out_own("compute")
            raise refusal(chosen.faults, "no node offers the fuel that is needed")

    def _may_ask(self, on: bytes | None) -> bool:
        """Return whether a node can be asked where this one has not too many runs under way."""
        nodes = [on] if on is not None else self._quotes.up()
        return not nodes or any(self._in_flight(node) < COMPUTE_IN_FLIGHT_MAX for node in nodes)

    async def _take_fuel(
        self, fuel_steps: int, on: bytes | None, saved: Mapping[bytes, int], *, apart: bool
    ) -> Chosen:
        """Return a lease to run under, or why each node gave none.

        It is one at hand, a cleared one first, unless a node without one saves more bytes.
        """
        nodes = [on] if on is not None else self._quotes.up()
        if not apart:
            nodes = [node for node in nodes if self._in_flight(node) < COMPUTE_IN_FLIGHT_MAX]
            at_hand = self._usable("compute", fuel_steps, nodes)
            cleared = [entry for entry in at_hand if entry.terms.cleared]
            most = max((saved.get(node, 0) for node in nodes), default=0)
            near = [entry for entry in at_hand if saved.get(entry.terms.provider, 0) >= most]
            if cleared or near:
                chosen = Chosen([(cleared or near)[0]])
                self._chooser.explain("compute", nodes, fuel_steps, chosen)
                return chosen
        return await self._chooser.choose(
            "compute", nodes, fuel_steps, 1, new=apart, saved=None if on else saved
        )

    def _in_flight(self, node: bytes) -> int:
        """Return how many runs of this node wait or are under way at another."""
        now_ms = self._clock.now_ms()
        return sum(
            len(entry.promised)
            for entry in self._store.of("customer", node)
            if entry.terms.kind == "compute" and entry.promised_at(now_ms)
        )

    async def lease_providers(
        self, *, fuel_steps: int, count: int, exclude: frozenset[bytes] = frozenset()
    ) -> list[LeaseHandle]:
        """Return leases for that many fuel steps at `count` peers, fewer where fewer exist.

        Distinct failure domains are preferred, as by `lease_hosts`. This node is never chosen.

        Raises:
            NoOffers: no node offers it at a price within the reserve, or none answers.
            CreditExceeded, ComputeExhausted: every node refused for this reason.
        """
        if not 0 < fuel_steps <= QUANTITY_MAX:
            raise ArgumentInvalid("the fuel to lease is out of range")
        async with self._locks["compute"]:
            nodes = [peer for peer in self._quotes.up() if peer not in exclude]
            chosen = await self._chooser.choose("compute", nodes, fuel_steps, count)
            if not chosen.leases:
                raise refusal(chosen.faults, "no node offers the fuel that is needed")
            return [self._hand_out(entry, fuel_steps) for entry in chosen.leases]

    def _usable(self, kind: Kind, quantity: int, nodes: Iterable[bytes]) -> list[LeaseEntry]:
        """Return leases with room at those nodes, one a node, best price for quality first."""
        now_ms = self._clock.now_ms()
        # One that is to take over what lies under another has its room for that.
        filling = {new.terms.lease_id for _, new in self._store.renewing(now_ms)}
        entries = [
            entry for entry in self._store.all("customer") if entry.terms.lease_id not in filling
        ]
        return sorted(usable(entries, kind, quantity, set(nodes), now_ms), key=self._score)

    def _score(self, entry: LeaseEntry) -> tuple[int, bytes]:
        node = entry.terms.provider
        return entry.terms.price * 2**40 // self._chooser.rank(node), node

    def _hand_out_own(self, kind: Kind) -> LeaseHandle:
        entry = self._store.get("customer", OWN[kind])
        assert entry is not None, "a node has a lease of each kind with itself"
        return self._hand_out(entry, 0)

    def _hand_out(self, entry: LeaseEntry, quantity: int) -> LeaseHandle:
        now_ms = self._clock.now_ms()
        if entry.terms.cleared and entry.terms.kind == "storage":
            quantity = min(quantity, rules.room(entry.terms, entry.use, now_ms))
        if quantity:
            entry.promise(quantity, now_ms)
        terms = entry.terms
        price = rules.run_price(terms) if terms.kind == "compute" else terms.price
        return LeaseHandle(terms.provider, terms.lease_id, price)
