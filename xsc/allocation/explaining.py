"""Explains to people what needs were granted of slots, here and at other providers.

A clearing of another node is explained from its record alone, which is fetched and recomputed
first. Where no slot matches a need, the matching rule says why (docs/design/allocation.md, W1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from xsc.allocation.allocating import Allocator
from xsc.allocation.clearing_record import Checked
from xsc.allocation.commitments import Commitments
from xsc.allocation.matching import Party
from xsc.allocation.reasons import Pair, Said, of_absence, of_mismatch, of_outcome
from xsc.allocation.recognition import tier_of
from xsc.allocation.why import Why, explain
from xsc.base.errors import LimitError, NotFound, PeerError, ProofInvalid, UnavailableError
from xsc.base.ids import to_text
from xsc.base.limits import WHY_RECORDS_MAX, WHYS_MAX
from xsc.base.peering import Peers
from xsc.identity.context import Context
from xsc.terms.slot import AvailabilitySlot, Commitment, EntitlementKey, NeedSlot, Window


@dataclass(frozen=True, slots=True)
class Explained:
    """One need in one window of one slot; in none where nothing of the slot was cleared for it."""

    pair: Pair
    said: Said
    clearing: bytes | None = None
    window: Window | None = None
    why: Why | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """An answer: where any slot matches any need, only of those."""

    rows: list[Explained]
    is_cut: bool
    """Whether there is more than one answer may say."""


class Explaining:
    """Explains the clearings of this node, and of others what they gave to this node's needs.

    Args:
        context: of the node.
        allocator: has the clearings.
        commitments: what nodes offer and need.
        weights: returns what this node gives to another, and what that gives to this one.
        peers: who is known.
        drawn: returns what leases have drawn of entitlements, of both roles, in steps.
    """

    def __init__(
        self,
        context: Context,
        *,
        allocator: Allocator,
        commitments: Commitments,
        weights: Callable[[bytes], tuple[int, int]],
        peers: Peers,
        drawn: Callable[[], Mapping[EntitlementKey, int]],
    ) -> None:
        self._node = context.key.node_id
        self._executor = context.executor
        self._allocator = allocator
        self._commitments = commitments
        self._weights = weights
        self._peers = peers
        self._drawn = drawn
        self._turn = asyncio.Lock()
        """All explanations together take one thread: a peer's record can take long."""

    async def by_id(self, text: str) -> Explanation:
        """Explain an own need, a slot or a clearing by how its id begins; own ones come first.

        Raises:
            NotFound: there is none, or more than one.
        """
        own = [each for each in _both(self._commitments.own) if _begins(each.slot_id, text)]
        if not own:
            clearings = {
                each: provider
                for each, provider in self._allocator.named().items()
                if _begins(each, text)
            }
            slots = [
                (node, slot)
                for node in self._peers.peers()
                for slot in self._commitments.of(node).slots
                if _begins(slot.slot_id, text)
            ]
            if len(clearings) == 1 and not slots:
                ((record_id, provider),) = clearings.items()
                return await self._of_clearing(provider, record_id)
            if len(slots) == 1 and not clearings:
                ((node, slot),) = slots
                return await self._of_pairs(self._pairs(node, [slot], self._node, self._own_needs))
        elif len(own) == 1:
            (one,) = own
            if isinstance(one, NeedSlot):
                return await self._of_pairs(
                    pair
                    for node in self._peers.peers()
                    for pair in self._pairs(
                        node, self._commitments.of(node).slots, self._node, [one]
                    )
                )
            return await self._of_pairs(
                pair
                for node in self._peers.peers()
                for pair in self._pairs(self._node, [one], node, self._commitments.of(node).needs)
            )
        many = own or clearings or slots
        raise NotFound(
            f"{'more than one' if many else 'no'} need, slot or clearing that is known here has an "
            f"id that begins with '{text}'",
            hint="`xsc market slots`, `clearings`, `leases` and `xsc allocation show` list them",
        )

    async def by_node(self, node: bytes) -> Explanation:
        """Explain what a node has of this one and this one of it; of this node, all its needs."""
        pairs: list[Pair] = []
        for peer in self._peers.peers() if node == self._node else [node]:
            theirs = self._commitments.of(peer)
            if peer == node:
                own = self._commitments.own.slots
                pairs += self._pairs(self._node, own, peer, theirs.needs)
            pairs += self._pairs(peer, theirs.slots, self._node, self._own_needs)
        return await self._of_pairs(pairs)

    @property
    def _own_needs(self) -> tuple[NeedSlot, ...]:
        return self._commitments.own.needs

    def _pairs(
        self,
        provider: bytes,
        slots: Iterable[AvailabilitySlot],
        customer: bytes,
        needs: Iterable[NeedSlot],
    ) -> list[Pair]:
        """Return all pairs of two nodes, one of which is this one."""
        peer = customer if provider == self._node else provider
        mine, theirs = self._weights(peer)
        here, there = tier_of(mine, theirs), tier_of(theirs, mine)
        tiers = (there, here) if provider == self._node else (here, there)
        sides = Party(provider, tiers[0]), Party(customer, tiers[1])
        needs = tuple(needs)
        return [Pair(slot, sides[0], need, sides[1]) for slot in slots for need in needs]

    async def _of_pairs(self, pairs: Iterable[Pair]) -> Explanation:
        matched: list[Pair] = []
        others: list[Explained] = []
        for pair in pairs:
            reason = pair.mismatch()
            if reason is None:
                matched.append(pair)
            elif len(others) <= WHYS_MAX:
                others.append(Explained(pair, of_mismatch(pair, reason)))
        if not matched:
            return Explanation(others[:WHYS_MAX], len(others) > WHYS_MAX)
        rows: list[Explained] = []
        opened: dict[bytes, Checked | Said] = {}
        for pair in matched:
            windows = self._cleared(pair)
            if not windows:
                said = Said("they match, and no clearing of the slot is known here yet")
                rows.append(Explained(pair, said))
            for window, record_id in windows:
                provider, is_open = pair.provider.node, record_id in opened
                is_full = provider != self._node and len(opened) >= WHY_RECORDS_MAX
                if len(rows) >= WHYS_MAX or (is_full and not is_open):
                    return Explanation(rows, True)
                if not is_open:
                    opened[record_id] = await self._open(provider, record_id)
                rows.append(await self._of_window(pair, window, record_id, opened[record_id]))
        return Explanation(rows[:WHYS_MAX], len(rows) > WHYS_MAX)

    def _cleared(self, pair: Pair) -> list[tuple[Window, bytes]]:
        """Return the windows of a slot that were cleared, and the records' ids."""
        slot_id, provider = pair.slot.slot_id, pair.provider.node
        if provider == self._node:
            return [
                (each.record.window, each.id)
                for each in self._allocator.present()
                if each.record.slot.slot_id == slot_id
            ]
        state = self._allocator.states().get(provider)
        return [
            (each.window, each.clearing)
            for each in (() if state is None else state.slot_denominators)
            if each.slot == slot_id
        ]

    async def _open(self, provider: bytes, record_id: bytes) -> Checked | Said:
        """Return a record that may be explained, or why it may not."""
        try:
            return await self._allocator.opened(provider, record_id)
        except (NotFound, UnavailableError, LimitError):
            return Said("its clearing record is not here, and its provider does not give it now")
        except PeerError as fault:
            return Said(f"its provider gave no clearing record: {fault.message}")
        except ProofInvalid as fault:
            return Said(
                f"its clearing record does not recompute, so nothing of it counts: {fault.message}"
            )

    async def _of_window(
        self, pair: Pair, window: Window, record_id: bytes, checked: Checked | Said
    ) -> Explained:
        if isinstance(checked, Said):
            return Explained(pair, checked, record_id, window)
        record = checked.record
        if (record.slot.slot_id, record.window) != (pair.slot.slot_id, window):
            said = Said("the clearing record that its provider names is of another slot or window")
            return Explained(pair, said, record_id, window)
        customer, need = pair.customer.node, pair.need
        try:
            async with self._turn:
                why = await self._executor.run(explain, checked, customer, need.slot_id)
        except NotFound:
            slot_id = record.slot.slot_id
            key = EntitlementKey(record.provider, slot_id, window[0], customer, need.slot_id)
            drawn = self._drawn().get(key, 0)
            return Explained(pair, of_absence(pair, checked, drawn), record_id, window)
        return Explained(pair, of_outcome(why, need), record_id, window, why)

    async def _of_clearing(self, provider: bytes, record_id: bytes) -> Explanation:
        """Explain everybody of an own clearing, and the own needs of another's."""
        checked = await self._allocator.opened(provider, record_id)
        record = checked.record
        if provider == self._node:
            seen = {each.node: each.commitment.needs for each in checked.customers}
        else:
            seen = {self._node: self._own_needs}
        took_part = {
            (each.customer, need) for each in record.participants for need, _ in each.eligible
        }
        rows: list[Explained] = []
        others: list[Explained] = []
        for customer, needs in seen.items():
            for pair in self._pairs(provider, [record.slot], customer, needs):
                reason = pair.mismatch()
                if reason is None or (customer, pair.need.slot_id) in took_part:
                    if len(rows) == WHYS_MAX:
                        return Explanation(rows, True)
                    rows.append(await self._of_window(pair, record.window, record_id, checked))
                else:
                    said = of_mismatch(pair, reason)
                    others.append(Explained(pair, said, record_id, record.window))
        return Explanation(rows or others[:WHYS_MAX], not rows and len(others) > WHYS_MAX)


def _both(commitment: Commitment) -> tuple[AvailabilitySlot | NeedSlot, ...]:
    return (*commitment.slots, *commitment.needs)


def _begins(raw: bytes, text: str) -> bool:
    return to_text(raw).startswith(text)
