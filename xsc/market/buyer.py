"""Finds leases for what this node stores and runs, and counts what is used of them.

Those at hand come first, new ones are taken by auction. What is used hosts and receipts say.

The rules are in `choosing` and `auction`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from xsc.api.market import PassedOver
from xsc.base import errors, ids, limits, refusals
from xsc.base.bounded import Bounded
from xsc.market import lease as rules
from xsc.market import lease_store, waiting
from xsc.market.auction import QUALITY_PPM_LEAST, Bid, near, place, reserve
from xsc.market.choosing import Wish, at_hand, is_dear, why_lost, why_unused
from xsc.market.headroom import Headroom
from xsc.market.lease import OWN, QUANTITY_MAX, LeaseEntry
from xsc.market.providers import Providers
from xsc.terms.lease import LeaseHandle
from xsc.terms.quote import KINDS, Kind

PASSED_OVER_MAX = 1024
"""Leases and providers of which a node knows why it passed them over."""
COMPUTE_WAITING_MAX = 1024
"""Calls of this node that look for a lease, or wait for others of it to end."""
COMPUTE_IN_FLIGHT_MAX = limits.JOBS_QUEUED_A_PEER_MAX
"""Runs of this node at one provider, which has no more of one customer wait."""
QUALITY_STEP_PPM = 100_000
"""Providers whose quality is of one such step are alike."""
LEASE_REFUSED_MS = 600_000
"""How long a customer leaves a lease alone under which its host took no more."""


@dataclass(frozen=True, slots=True)
class LeasedHosts:
    """Leases to use at distinct nodes, and why others gave none where they are too few."""

    leases: list[LeaseHandle]
    refused: dict[bytes, errors.XscError]
    passed_over: list[PassedOver]
    """Other nodes and leases, and why they were not used."""


def _given(found: LeasedHosts) -> list[LeaseHandle]:
    """Return the leases of compute that were found; raise why there are none."""
    if not found.leases:
        raise refusals.refusal(
            found.refused,
            "no node offers the fuel that is needed",
            also="a run that is allowed less fuel may cost less: --fuel",
        )
    return found.leases


class LeaseBuyer(lease_store.MarketPart):
    """Leases capacity for this node, and counts what storage and compute use of it."""

    def __init__(
        self,
        node: lease_store.MarketNode,
        providers: Providers,
        headroom: Headroom,
        agree: Callable[[bytes], Awaitable[None]],
    ) -> None:
        super().__init__(node)
        self._providers = providers
        self._headroom = headroom
        self._agree = agree
        self._lines = waiting.WaitingLines(
            node.clock, most=COMPUTE_WAITING_MAX, each=COMPUTE_WAITING_MAX
        )
        self._locks: dict[Kind, asyncio.Lock] = {kind: asyncio.Lock() for kind in KINDS}
        self._passed_over: Bounded[bytes, PassedOver] = Bounded(PASSED_OVER_MAX)
        """What the last choices passed over, by lease or node, for `market why`."""

    # What is leased

    async def lease_hosts(
        self, *, size_bytes: int, count: int, exclude: frozenset[bytes] = frozenset()
    ) -> LeasedHosts:
        """Return room for `size_bytes` at each of `count` distinct nodes, fewer where fewer exist.

        Leases in distinct failure domains are preferred: leases at hand, then new ones by
        auction. Then domains are ignored. The own node, which settles nothing, is last.
        Where fewer than `count` are found, the answer says why each other node gave none.
        """
        wanted = [peer for peer in self._ports.peers.peers() if peer not in exclude]
        leaving = self._ports.leaving()
        staying = [node for node in wanted if node not in leaving]
        if len(self._providers.up(staying)) < min(count, len(wanted)):
            await self._ports.quality.probe_unknown()
        nodes = self._providers.up(staying)
        absent: dict[bytes, errors.XscError] = {}
        for node in wanted:
            if node in leaving:
                absent[node] = errors.PeerLeaving(f"{ids.short(node)} leaves the network")
            elif node not in nodes:
                absent[node] = errors.PeerSilent(f"{ids.short(node)} does not answer")
        async with self._locks["storage"]:
            found = await self._choose(Wish("storage", size_bytes, nodes), count, absent)
            if len(found.leases) < count and self._node.id not in exclude:
                if self._node.id not in leaving and self._headroom.free("storage") >= size_bytes:
                    found.leases.append(LeaseHandle(self._node.id, OWN["storage"], 0))
                else:
                    found.refused[self._node.id] = errors.SpaceExhausted(
                        "this node has no room for that"
                    )
        if found.leases:
            self._ports.on_need()
        if len(found.leases) >= count:
            found.refused.clear()
        return found

    async def lease_compute(
        self,
        *,
        fuel_steps: int,
        on: bytes | None,
        saved: Mapping[bytes, int] | None = None,
        wait_ms: int = 0,
    ) -> LeaseHandle:
        """Return a lease to run under, on that peer or on the best node.

        A lease at hand is used, a cleared one first, unless a node without one saves more bytes.
        Where COMPUTE_IN_FLIGHT_MAX runs of this node are under way there, it waits until one of
        them ends: calls wait in a line for each `on`.

        Args:
            fuel_steps: the most that the run may be billed for.
            on: the peer; None for the best node, and this one where no peer offers it.
            saved: by node, the bytes that need not be sent to it. A node
                that saves more is worth a higher price (`auction.near`).
            wait_ms: how long it may wait.

        Raises:
            NoOffers: no node offers it at a price within the reserve, or none answers.
            CreditExceeded, ComputeExhausted: every node refused for this reason.
            RateLimited: too many runs of this node are under way, and none ended in time.
        """
        near_data = saved if on is None and saved else {}
        until_ms = self._clock.monotonic_ms() + wait_ms
        while True:
            left_ms = max(0, until_ms - self._clock.monotonic_ms())
            await self._lines.enter(on or b"", lambda: self._idle(on) is not None, left_ms)
            async with self._locks["compute"]:
                nodes = self._idle(on)
                if nodes is None:
                    continue  # Others that looked at the same time came before it.
                wish = Wish("compute", fuel_steps, nodes, near_data)
                entry = self._preferred(wish)
                if entry is not None:
                    return self._hand_out(entry, wish)
                found = await self._choose(wish, 1)
            if on is None and not found.leases and self._headroom.free("compute"):
                return LeaseHandle(self._node.id, OWN["compute"], 0)
            return _given(found)[0]

    async def lease_service(self, *, fuel_steps: int, on: bytes) -> LeaseHandle:
        """Return a new lease at a peer for a service there, which no run uses.

        Raises:
            NoOffers, CreditExceeded, ComputeExhausted: as `lease_providers`.
        """
        return _given(await self._choose(Wish("compute", fuel_steps, [on], new=True), 1))[0]

    async def lease_providers(
        self, *, fuel_steps: int, count: int, exclude: frozenset[bytes] = frozenset()
    ) -> list[LeaseHandle]:
        """Return leases for that many fuel steps at `count` peers, fewer where fewer exist.

        Distinct failure domains are preferred, as by `lease_hosts`. This node is never chosen.

        Raises:
            NoOffers: no node offers it at a price within the reserve, or none answers.
            CreditExceeded, ComputeExhausted: every node refused for this reason.
        """
        nodes = [peer for peer in self._providers.up() if peer not in exclude]
        async with self._locks["compute"]:
            return _given(await self._choose(Wish("compute", fuel_steps, nodes), count))

    def _idle(self, on: bytes | None) -> list[bytes] | None:
        """Return the nodes at which not too many runs of this one wait or are under way.

        None: there are too many at each. Where no node is up, there is none to wait for.
        """
        targets = self._providers.up() if on is None else [on]
        now_ms, runs = self._clock.now_ms(), Counter[bytes]()
        for entry in self._store.all("customer"):
            if entry.terms.kind == "compute" and entry.promised_at(now_ms):
                runs[entry.peer] += len(entry.promised)
        idle = [node for node in targets if runs[node] < COMPUTE_IN_FLIGHT_MAX]
        return idle if idle or not targets else None

    def _hand_out(self, entry: LeaseEntry, wish: Wish) -> LeaseHandle:
        """Return a lease to use, and remember what was handed out of it."""
        terms, now_ms = entry.terms, self._clock.now_ms()
        entry.is_apart = wish.new
        if not wish.new:
            left = rules.room(terms, entry.use, now_ms)
            entry.promise(min(wish.quantity, left), now_ms)
        price = rules.run_price(terms) if terms.kind == "compute" else terms.price
        return LeaseHandle(terms.provider, terms.lease_id, price)

    # How providers are chosen

    async def _choose(
        self, wish: Wish, count: int, absent: Mapping[bytes, errors.XscError] | None = None
    ) -> LeasedHosts:
        """Hand out leases at up to `count` distinct nodes, and say why others gave none.

        They are in distinct failure domains as far as there are such; then domains do not matter.

        Args:
            wish: what is needed.
            count: at how many nodes.
            absent: nodes that cannot be asked, and why.
        """
        if not 0 < wish.quantity <= QUANTITY_MAX:
            raise errors.ArgumentInvalid("the quantity to lease is out of range")
        await self._ports.standing.learn(wish.nodes)
        mine, now_ms = self._leases(wish), self._clock.now_ms()
        leases = {} if wish.new else at_hand(mine, wish, now_ms)
        chosen, faults = dict[bytes, LeaseEntry](), dict(absent or {})
        bids, heard = dict[bytes, Bid](), set[bytes]()
        grades = {node: self._ports.quality.grade(node) for node in wish.nodes}
        for node in [node for node, grade in grades.items() if grade == "barred"]:
            faults[node] = errors.NoOffers(f"{ids.short(node)} is barred: it keeps two ledgers")
        last = {node for node, grade in grades.items() if grade == "suspended"}
        while len(chosen) < count:
            rest = [
                node
                for node in wish.nodes
                if node not in chosen and node not in faults and node not in last
            ]
            bids = self._bids(wish, rest, leases)
            taken = {self._providers.domain(node) for node in chosen}
            winners = self._won(wish, bids, count - len(chosen), taken)
            if not winners and last:
                last = set()  # There are not enough others.
                continue
            if not winners:
                break
            answers = await asyncio.gather(
                *(self._take(wish, each, leases.get(each.node)) for each in winners)
            )
            for winner, answer in zip(winners, answers, strict=True):
                if not isinstance(answer, errors.XscError):
                    chosen[winner.node] = answer
                elif isinstance(answer, errors.NoOffers) and winner.node not in heard:
                    heard.add(winner.node)  # It has published something else since.
                    await self._ports.standing.learn([winner.node], anew=True)
                else:
                    faults[winner.node] = answer
        for node in [node for node in chosen if grades[node] == "suspended"]:
            self._node.log.warning("market.suspended_taken", kind=wish.kind, peer=ids.short(node))
        domains = {self._providers.domain(node): node for node in chosen}
        most = self._node.settings.price_max[wish.kind]
        for node in sorted({*wish.nodes} - chosen.keys() - faults.keys()):
            reason = f"{ids.short(node)} offers no {wish.kind} to this node now"
            if node in last:
                reason = f"{ids.short(node)} is suspended, and there are others"
            if node in bids:
                reason = why_lost(bids[node], domains, most)
            faults[node] = errors.NoOffers(reason)
        passed = [
            PassedOver(node=node, lease_id=None, reason=fault.message)
            for node, fault in faults.items()
        ]
        passed += [
            PassedOver(node=entry.peer, lease_id=entry.id, reason=why)
            for entry in mine
            if (why := why_unused(entry, wish, chosen, now_ms))
        ]
        for each in passed:
            self._passed_over.put(each.lease_id or each.node, each)
        if passed:
            said = [f"{ids.short(each.lease_id or each.node)}: {each.reason}" for each in passed]
            self._node.log.info("market.passed_over", kind=wish.kind, passed_over=said)
        handles = [self._hand_out(entry, wish) for entry in chosen.values()]
        return LeasedHosts(handles, faults, passed)

    def _preferred(self, wish: Wish) -> LeaseEntry | None:
        """Return the lease at hand that does without asking anybody, if there is one.

        A run under a cleared rate costs nothing more.
        """
        most = max((wish.saved.get(node, 0) for node in wish.nodes), default=0)
        found = at_hand(self._leases(wish), wish, self._clock.now_ms()).items()
        for node, entry in sorted(found, key=lambda each: rules.run_price(each[1].terms)):
            if not self._providers.is_trusted(node):
                continue  # Others are asked first.
            if entry.terms.cleared or wish.saved.get(node, 0) >= most:
                return entry
        return None

    def _leases(self, wish: Wish) -> list[LeaseEntry]:
        """Return the leases of this node that a wish may use.

        What is needed of compute by default is for deployments, and not for other runs.
        """
        apart = {need.slot_id for need in self._ports.needs() if need.standing}
        return [
            entry
            for entry in self._store.all("customer")
            if entry.terms.kind == wish.kind
            and entry.peer in wish.nodes
            and (wish.kind == "storage" or entry.terms.need not in apart)
        ]

    def _bids(
        self, wish: Wish, nodes: Sequence[bytes], leases: Mapping[bytes, LeaseEntry]
    ) -> dict[bytes, Bid]:
        """Return what those of the nodes bid that can serve a wish, as far as they say.

        What a provider has posted for this node, or agreed on before, is what is paid.

        Args:
            wish: what is needed.
            nodes: of those that may be asked.
            leases: those at hand, by node.
        """
        kind, now_ms, held = wish.kind, self._clock.now_ms(), Counter[bytes]()
        for entry in self._leases(wish):
            held[entry.peer] += entry.use.held_bytes + entry.promised_at(now_ms)
        found, most = dict[bytes, Bid](), self._node.settings.price_max[kind]
        for node in nodes:
            lease = leases.get(node)
            quote = self._ports.standing.quote(kind, node, self._node.id)
            if quote is not None and (lease is None or quote.price <= most):
                price, posted = quote.price, quote.tier != "open"
            elif lease is not None:
                price, posted = lease.terms.price, True
            else:
                continue
            worth = near(self._rank(node), node, wish.saved)
            # Where room is paid in any case comes first, then who holds least.
            tie = -1 if lease is not None and lease.terms.cleared else held[node]
            found[node] = Bid(node, price, worth, self._providers.domain(node), posted, tie)
        return found

    async def _take(
        self, wish: Wish, winner: Bid, lease: LeaseEntry | None
    ) -> LeaseEntry | errors.XscError:
        """Return a lease at a provider that was chosen: the one at hand, if it is not dear."""
        quote = self._ports.standing.quote(wish.kind, winner.node, self._node.id)
        if lease is not None and (quote is None or not is_dear(lease, winner.price)):
            return lease
        if quote is None:
            return errors.NoOffers(f"{ids.short(winner.node)} offers nothing to this node any more")
        answer = await self._providers.lease(quote, winner.price, least=wish.quantity)
        return lease if isinstance(answer, errors.XscError) and lease is not None else answer

    def _won(
        self, wish: Wish, bids: Mapping[bytes, Bid], count: int, taken: Collection[bytes]
    ) -> list[Bid]:
        """Return the winners of an auction of this node, at what they are paid.

        They are in distinct domains that are not taken; where no such bids, domains do not matter.
        Nearness to data is worth something above the own price, too.
        """
        most = self._node.settings.price_max[wish.kind]
        payable = [bid for bid in bids.values() if bid.price <= most]
        fresh = [bid for bid in payable if bid.domain not in taken]
        fresh = fresh or [replace(bid, domain=bid.node) for bid in payable]
        own_price = self._headroom.pricing().unit_price(wish.kind)
        if wish.saved:
            own_price = own_price * limits.NEAR_PRICE_PPM // limits.PPM
        price_max = reserve(fresh, count, own_price, most)
        return place(fresh, count, price_max, seed=self._node.entropy.token(limits.NONCE_BYTES))

    def _rank(self, node: bytes) -> int:
        """Return the quality of a node, in ppm: in steps, so that those alike are."""
        quality = self._ports.quality.quality_ppm(node)
        return max(QUALITY_PPM_LEAST, quality - quality % QUALITY_STEP_PPM)

    async def price(self, kind: Kind, count: int) -> int | None:
        """Return the most that one of so many providers would be paid now; None: none would win."""
        wish = Wish(kind, 0, [*filter(self._providers.is_trusted, self._providers.up())])
        await self._ports.standing.learn(wish.nodes)
        bids = self._bids(wish, wish.nodes, {})
        winners = self._won(wish, bids, count, ())
        if len(winners) < count:
            winners = self._won(wish, bids, count, {bid.domain for bid in bids.values()})
        return max((winner.price for winner in winners), default=None)

    def passed_over(self) -> list[PassedOver]:
        """Return what was passed over of late: of each lease or provider, the newest reason."""
        kept = self._passed_over
        return [each for key in list(kept) if (each := kept.get(key))]

    # What was used, as hosts and receipts say

    def reconcile(self, held: Mapping[bytes, int], doubts: Collection[bytes]) -> None:
        """Take over what the own records name under each lease, after a crash.

        Uses are kept unsynced, the records are synced. They only raise a count: the provider's next
        one lowers it to what is there. Where a transfer was under way, up to SLOT_STEP_BYTES more
        may be there.

        Args:
            held: bytes by lease.
            doubts: leases under which a transfer was under way.
        """
        for entry in self._store.all("customer"):
            terms, use, named = entry.terms, entry.use, held.get(entry.id, 0)
            most = named + limits.SLOT_STEP_BYTES * (entry.id in doubts)
            if terms.kind == "storage" and not use.given_back and most > use.held_bytes:
                self._node.log.warning("market.count_raised", lease=ids.short(entry.id), most=most)
                # It was held since then: what follows from that is believed.
                use = replace(use, held_bytes=most, missing_bytes=0, touched_ms=use.counted_ms)
                entry.use = rules.widened(terms, use, most)
                self._store.save(entry)
            entry.unnamed_bytes = max(0, entry.use.held_bytes - named)

    async def used(self, lease_id: bytes, delta_bytes: int, *, found: bool = False) -> None:
        """Count bytes that a host confirmed to hold (+) or to have deleted (-).

        Args:
            lease_id: under which lease.
            delta_bytes: how many.
            found: they were there before: what is held and no record names is of them first.

        Raises:
            LeaseExhausted: no such lease.
        """
        entry = self._known(lease_id)
        entry.heard(delta_bytes)
        known = min(entry.unnamed_bytes, delta_bytes) if found else 0
        entry.unnamed_bytes -= known
        entry.use = rules.hold(entry.terms, entry.use, delta_bytes - known, self._clock.now_ms())
        self._store.keep(entry)

    async def spent(self, lease_id: bytes, fuel_steps: int) -> None:
        """Count what a verified receipt bills.

        Raises:
            LeaseExhausted: no such lease.
        """
        entry = self._known(lease_id)
        self.unused(lease_id, fuel_steps)
        entry.use = rules.spend(entry.terms, entry.use, fuel_steps, self._clock.now_ms())
        self._store.keep(entry)
        self._ports.quality.served(entry.peer, "compute")

    def unused(self, lease_id: bytes, fuel_steps: int) -> None:
        """Take back what was handed out for a run that its provider refused, or could not end."""
        entry = self._store.get("customer", lease_id)
        if entry is not None:
            entry.heard(fuel_steps)
            self._lines.wake()

    async def refused(self, lease_id: bytes) -> None:
        """Prefer other leases for LEASE_REFUSED_MS, because a host takes no more under this one.

        The host is asked what it counts: where the lease is not in that, it is over.
        """
        entry = self._store.get("customer", lease_id)
        if entry is not None and entry.raw:  # nothing is settled with oneself
            entry.avoided_until_ms = self._clock.now_ms() + LEASE_REFUSED_MS
            if entry.use.denial is None:
                await self._agree(entry.peer)

    def is_denied(self, lease_id: bytes) -> bool:
        """Return whether the host of a lease has signed a count without it."""
        entry = self._store.get("customer", lease_id)
        return entry is not None and entry.use.denial is not None

    def price_and_room(self, lease_id: bytes, provider: bytes) -> tuple[int, int] | None:
        """Return the price a Gfuel of a compute lease taken there, and the steps left under it.

        None where no such lease is known.
        """
        entry = self._store.get("customer", lease_id)
        if entry is None or entry.peer != provider or entry.terms.kind != "compute":
            return None
        room = rules.room(entry.terms, entry.use, self._clock.now_ms())
        return rules.run_price(entry.terms), room

    def _known(self, lease_id: bytes) -> LeaseEntry:
        entry = self._store.get("customer", lease_id)
        if entry is None:
            raise errors.LeaseExhausted("this node has no such lease")
        return entry
