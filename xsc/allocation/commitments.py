"""Keeps what this node offers, needs and recognises, and knows what other nodes do.

A commitment is one value in the space of its node, which is where it is kept: there is no other
table (docs/design/slots.md, C1 to C6). So is recognition. Every node follows the recognition of
each peer (docs/design/space.md, S11), so nothing is sent from here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Any, Final
from zoneinfo import ZoneInfo

from xsc.allocation import clearing_record, declaring, matching, published
from xsc.allocation.recognition import read_weights, tier_of, value_of, with_weight
from xsc.allocation.windows import ENDLESS_MS
from xsc.base import clock, errors, ids, limits, peering
from xsc.identity.context import Context
from xsc.space import port, record
from xsc.space.paths import UserSpacePaths
from xsc.terms import clearing, pricing
from xsc.terms.quote import KINDS, Kind, Tier
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot

PRICES_POSTED_MS = 3_600_000
"""A node's posted prices follow its utilisation that often."""
NEED_INTERVAL_MS = 60_000
"""How long a default need stays as it is at least."""

LOOK_INTERVAL_MS: Final = 60_000
"""How soon after its end a slot is dropped."""
_PATH: Final = UserSpacePaths.COMMITMENT
_NOTHING = clearing.SpaceValue(record=b"", value=b"")


def zone_of(name: str) -> ZoneInfo:
    """Return the time zone of a name.

    Raises:
        ArgumentInvalid: this machine knows none.
    """
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # a folder, a path, and a name without a file
        raise errors.ArgumentInvalid(
            f"'{name}' is no time zone",
            hint="write for example Europe/Berlin, America/New_York or UTC",
        ) from None


class Heard:
    """The commitments, recognition and states of this node and others."""

    def __init__(self, space: port.Space) -> None:
        self._space = space
        self._published: dict[bytes, published.Published] = {}
        self._states: dict[bytes, clearing.TwoTierAllocationState | None] = {}
        space.on_change(self._changed)

    def _changed(self, change: record.Change) -> None:
        if change.path == UserSpacePaths.ALLOCATION_STATE:
            self._states.pop(change.owner, None)
        elif change.path in {UserSpacePaths.COMMITMENT, UserSpacePaths.RECOGNITION}:
            self._published.pop(change.owner, None)

    def keep(self, nodes: Collection[bytes]) -> None:
        """Forget all other nodes."""
        for known in (self._published, self._states):
            for gone in known.keys() - set(nodes):
                del known[gone]

    def of(self, node: bytes) -> published.Published:
        """Return what a node offers, needs and recognises."""
        if node not in self._published:
            commitment = self.value(UserSpacePaths.COMMITMENT, node) or _NOTHING
            recognition = self.value(UserSpacePaths.RECOGNITION, node)
            self._published[node] = published.Published.read(node, commitment, recognition)
        return self._published[node]

    def state_of(self, node: bytes) -> clearing.TwoTierAllocationState | None:
        """Return what a node says that it grants."""
        if node not in self._states:
            said = self.value(UserSpacePaths.ALLOCATION_STATE, node)
            self._states[node] = None if said is None else clearing_record.read_state(said.value)
        return self._states[node]

    def value(self, path: str, node: bytes) -> clearing.SpaceValue | None:
        """Return what a node has at a path, with the record that signs it; None for nothing."""
        try:
            entry = self._space.get(path, node)
        except errors.NotFound:
            return None
        if entry.value is None:
            return None
        return clearing.SpaceValue(record=entry.signed.raw, value=entry.value)


class Commitments:
    """The commitment and recognition of this node, and those of others as far as they are here.

    Args:
        context: of the node.
        space: keeps all of them.
        peers: who is known; nobody else is recognised or recognises.
        posted: what this node asks.
        by_default: returns the fields of what this node offers or needs of a kind by default
            (`offered`, `needed`).
        on_withdrawn: called once a standing need of that kind was withdrawn by its owner.
        on_recognised: called once own recognition, or what a peer gives to this node, changed.
        before_stand: done before standing slots are published; says whether anybody is there.
        site: where this node is; empty where unknown.
        owner: who runs this node; empty where unknown.
    """

    def __init__(
        self,
        context: Context,
        space: port.Space,
        peers: peering.Peers,
        *,
        posted: declaring.Posted,
        by_default: Callable[[type[declaring.Either], Kind], dict[str, Any]],
        on_withdrawn: Callable[[Kind], None],
        on_recognised: Callable[[], None],
        before_stand: Callable[[], Awaitable[bool]],
        site: str = "",
        owner: str = "",
    ) -> None:
        self._node = context.key.node_id
        self._clock = context.clock
        self._context = context
        self._space = space
        self._peers = peers
        self._posted = posted
        self._by_default = by_default
        self._on_withdrawn = on_withdrawn
        self._on_recognised = on_recognised
        self._setting = asyncio.Lock()
        self._told: dict[bytes, int] = {}
        """What each owner gave to this node when that was last told since the start."""
        self._stirred = asyncio.Event()
        self._before_stand = before_stand
        self._next_ms: dict[str, int] = {}
        """When what follows this node may change again, by the event of its fault."""
        self._place: dict[type[declaring.Either], dict[str, Any]] = {
            AvailabilitySlot: {"location": site, "owner": owner},
            NeedSlot: {"owner": owner},
        }
        """What slots and needs say of where this node is."""
        self.heard = Heard(space)
        """What all nodes have published."""
        space.register_schema(_PATH, lambda _, value: Commitment.read(value))
        space.register_schema(UserSpacePaths.RECOGNITION, read_weights)
        space.on_change(self._changed)

    def start(self) -> None:
        """Read what the own space has.

        Raises:
            StoreDamaged: the store fails its checksums.
            RecordInvalid: a kept value is not what was written.
        """
        self.heard.of(self._node)

    @property
    def own(self) -> Commitment:
        """What this node offers and needs."""
        return self.heard.of(self._node).commitment

    def quote(self, kind: Kind, provider: bytes, customer: bytes) -> pricing.Quote | None:
        """Return what a provider's slots ask of a customer now: the cheapest that serves it.

        While needs compete for a slot, strangers are asked what its clearing costs. None: nothing
        is offered to that customer now, as far as is known here.
        """
        now_ms = self._clock.now_ms()
        there, here = self.heard.of(provider), self.heard.of(customer)
        tier, _ = published.standing(there, here)
        need = NeedSlot(
            slot_id=declaring.NOTHING, kind=kind, quantity=1, price_max=0, valid_until_ms=ENDLESS_MS
        )
        found, costs = list[pricing.Quote](), dict[bytes, int]()
        if tier == "open" and (state := self.heard.state_of(provider)) is not None:
            for each in state.slot_denominators:
                costs[each.slot] = max((line.price for line in each.allocations), default=0)
        for slot in there.commitment.slots:
            window, ladder = slot.window_at(now_ms), slot.ladder
            if window is not None and matching.mismatch(slot, there, need, here, now_ms) is None:
                ladder = replace(ladder, reserve=max(ladder.reserve, costs.get(slot.slot_id, 0)))
                found.append(pricing.Quote(provider, kind, slot.slot_id, window, tier, ladder))
        return min(found, key=lambda quote: (quote.price, quote.slot), default=None)

    def labels(self, node: bytes) -> tuple[str, str] | None:
        """Return the site and owner that a node's slots name; None where it published nothing."""
        there = self.heard.of(node)
        if not there.commitment_value.record:
            return None
        slots = there.commitment.slots
        return max(((slot.location, slot.owner) for slot in slots), default=("", ""))

    async def declare(
        self, role: type[declaring.Either], kind: Kind, said: declaring.Statement
    ) -> bytes:
        """Publish a new slot or need and return its id, once it is on the disk.

        Raises:
            ArgumentInvalid, TooLarge: it cannot be one.
        """
        slot_id = self._context.entropy.token(limits.SLOT_ID_BYTES)
        before = self._place[role] | {"slot_id": slot_id, "kind": kind}
        await self.publish(lambda own: declaring.with_slot(own, self._stated(role, before, said)))
        return slot_id

    async def offer_all(self, kind: Kind) -> bytes:
        """Publish the standing slot of a kind again, and return its id; one that is there stays.

        Raises:
            ArgumentInvalid, TooLarge: there is nothing to offer, or it cannot be one.
        """

        def with_all(own: Commitment) -> Commitment:
            made = tuple(each for each in own.standing_made if each != kind)
            return self._standing(AvailabilitySlot, own.model_copy(update={"standing_made": made}))

        await self.publish(with_all)
        slot = declaring.standing_slot(self.own, kind)
        if slot is None:
            raise errors.ArgumentInvalid(
                f"this node has no {kind} to offer",
                hint="look at the settings offer, storage_capacity and worker_speed",
            )
        return slot.slot_id

    async def edit(self, slot_id: bytes, said: declaring.Statement) -> None:
        """Publish a slot or need with what is stated anew.

        Raises:
            NotFound: it is not there.
            ArgumentInvalid, TooLarge: it cannot be so.
        """

        def edited(own: Commitment) -> Commitment:
            found = declaring.find(own, slot_id)
            return declaring.with_slot(own, self._stated(type(found), dict(found), said))

        await self.publish(edited)

    def _stated(
        self, role: type[declaring.Either], before: dict[str, Any], said: declaring.Statement
    ) -> declaring.Either:
        now_ms = self._clock.now_ms()
        return declaring.stated(
            role, before, said, posted=self._posted, now_ms=now_ms, zones=zone_of
        )

    async def withdraw(self, slot_id: bytes) -> None:
        """Withdraw a slot or need.

        Raises:
            NotFound: it is not there.
        """
        found = declaring.find(self.own, slot_id)
        await self.publish(lambda own: declaring.without(own, slot_id))
        if isinstance(found, NeedSlot) and found.standing:
            self._on_withdrawn(found.kind)

    async def publish(self, change: Callable[[Commitment], Commitment]) -> None:
        """Write what becomes of the own commitment; return once that is on the disk."""
        async with self._setting:
            changed = change(self.own)
            if changed != self.own:
                await self._space.put(_PATH, changed.to_bytes())

    def _changed(self, change: record.Change) -> None:
        if change.path != UserSpacePaths.RECOGNITION:
            return
        owner, is_own = change.owner, change.owner == self._node
        theirs = self._given(owner, self._node)
        if is_own or theirs != self._told.get(owner):
            self._told[owner] = theirs
            if not is_own:
                self._context.log.info(
                    "allocation.recognised", peer=ids.short(owner), their_weight_ppm=theirs
                )
            self._on_recognised()

    async def run(self) -> None:
        """Follow the time, what this node leases, and what it needs; never returns."""
        while True:
            await self.follow()
            await clock.event_within(self._clock, self._stirred, LOOK_INTERVAL_MS)
            if self._stirred.is_set():
                # A put takes several leases at once.
                await self._clock.sleep_ms(limits.ALLOCATION_DEBOUNCE_MS)
                self._stirred.clear()

    def stir(self) -> None:
        """Look again soon at what this node needs: what it stores, lacks or deploys changed."""
        self._stirred.set()

    async def follow(self) -> None:
        """Publish what follows the time and this node where it changed.

        What follows the node changes at most once in an interval each. A node without peers has
        nobody to tell.
        """
        with_offers = partial(self._standing, AvailabilitySlot)
        with_needs = partial(self._standing, NeedSlot)
        with_windows = partial(declaring.renewed, now_ms=self._clock.now_ms(), zones=zone_of)
        for event, made, interval_ms in (
            ("allocation.capacity_not_offered", with_offers, PRICES_POSTED_MS),
            ("allocation.need_not_stated", with_needs, NEED_INTERVAL_MS),
            ("allocation.windows_not_continued", with_windows, 0),
        ):
            now_ms = self._clock.monotonic_ms()
            if now_ms < self._next_ms.get(event, 0):
                continue
            try:
                if made(self.own) == self.own or not await self._before_stand():
                    continue
                await self.publish(made)
            except (errors.ArgumentInvalid, errors.TooLarge, errors.SpaceExhausted) as fault:
                self._context.log.warning(event, fault=fault.message)
            self._next_ms[event] = now_ms + interval_ms

    def _standing(self, role: type[declaring.Either], own: Commitment) -> Commitment:
        for kind in KINDS:
            fields = self._by_default(role, kind) | self._place[role]
            new_id = self._context.entropy.token(limits.SLOT_ID_BYTES)
            own = declaring.with_standing(own, role, kind, fields, new_id)
        return own

    # Recognition

    def _given(self, owner: bytes, node: bytes) -> int:
        """Return what an owner gives to a node."""
        return self.heard.of(owner).weights.get(node, 0)

    def weight_ppm(self, peer: bytes) -> int:
        """Return this node's recognition of a peer; 0 of one that is blocked or not known."""
        return self._given(self._node, peer) if self._peers.is_peer(peer) else 0

    def their_weight_ppm(self, peer: bytes) -> int:
        """Return a peer's recognition of this node as its space has it; else as `weight_ppm`."""
        return self._given(peer, self._node) if self._peers.is_peer(peer) else 0

    def recognition_ppm(self, peer: bytes) -> int:
        """Return the mutual recognition of a peer and this node: the lesser of both weights."""
        return min(self.weight_ppm(peer), self.their_weight_ppm(peer))

    def tier(self, peer: bytes) -> Tier:
        """Return the tier on which the peer is served here."""
        return tier_of(self.weight_ppm(peer), self.their_weight_ppm(peer))

    async def recognise(self, peer: bytes, ppm: int) -> None:
        """Set the weight of a peer; return once that is on the disk.

        Raises:
            ArgumentInvalid: this node itself, out of range, or more than is left to give.
        """
        async with self._setting:
            before = self.heard.of(self._node).weights
            weights = with_weight(before, peer, ppm)
            if weights != before:
                await self._space.put(UserSpacePaths.RECOGNITION, value_of(weights))
