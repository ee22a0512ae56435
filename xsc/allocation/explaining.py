"""Explains to people what needs were granted of slots, here and at other providers.

A clearing of another node is explained from its record alone, which is fetched and recomputed
first. Where no slot matches a need, the matching rule says why (docs/design/allocation.md, W1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from xsc.allocation.allocating import Allocator
from xsc.allocation.clearing_record import Checked
from xsc.allocation.commitments import Commitments
from xsc.allocation.declaring import Either
from xsc.allocation.matching import Party, mismatch
from xsc.allocation.recognition import tier_of
from xsc.allocation.why import Outcome, Pair, absence, explain
from xsc.base.errors import LimitError, NotFound, PeerError, ProofInvalid, UnavailableError
from xsc.base.ids import to_text
from xsc.base.limits import WHY_RECORDS_MAX, WHYS_MAX
from xsc.base.peering import Peers
from xsc.identity.context import Context
from xsc.terms.slot import EntitlementKey, Window


@dataclass(frozen=True, slots=True)
class Explained:
    """One need in one window of one slot; in none where nothing of the slot was cleared for it."""

    pair: Pair
    because: str = ""
    clearing: bytes | None = None
    window: Window | None = None
    outcome: Outcome | None = None
    """None where it took no part."""


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

        def begins(raw: bytes) -> bool:
            return to_text(raw).startswith(text)

        peers = self._peers.peers()
        found = [each for each in self._commitments.own.both if begins(each.slot_id)]
        clearings: dict[bytes, bytes] = {}
        if not found:
            theirs = (slot for peer in peers for slot in self._commitments.of(peer).slots)
            found = [slot for slot in theirs if begins(slot.slot_id)]
            clearings = {each: of for each, of in self._allocator.named().items() if begins(each)}
        if len(found) + len(clearings) != 1:
            raise NotFound(
                f"{'more than one' if found or clearings else 'no'} need, slot or clearing that is"
                f" known here has an id that begins with '{text}'",
                hint="`xsc market slots` and `xsc market clearings` list them",
            )
        for record_id, provider in clearings.items():
            return await self._of_clearing(provider, record_id)
        return await self._answer(pair for peer in peers for pair in self._pairs(peer, found[0]))

    async def by_node(self, node: bytes) -> Explanation:
        """Explain what a node has of this one and this one of it; of this node, all its needs."""
        if node != self._node:
            return await self._answer(self._pairs(node))
        pairs = (pair for peer in self._peers.peers() for pair in self._pairs(peer))
        return await self._answer(pair for pair in pairs if pair.customer.node == node)

    def _sides(self, peer: bytes) -> tuple[Party, Party]:
        """Return this node and a peer, as each sees the other."""
        mine, theirs = self._weights(peer)
        return Party(self._node, tier_of(theirs, mine)), Party(peer, tier_of(mine, theirs))

    def _pairs(self, peer: bytes, one: Either | None = None) -> Iterator[Pair]:
        """Return the pairs of this node and a peer; those of one slot or need where it is given."""
        here, there = self._sides(peer)
        own, said = self._commitments.own, self._commitments.of(peer)
        for provider, slots, customer, needs in (
            (here, own.slots, there, said.needs),
            (there, said.slots, here, own.needs),
        ):
            for slot, need in product(slots, needs):
                if one is None or one is slot or one is need:
                    yield Pair(slot, provider, need, customer)

    async def _of_clearing(self, provider: bytes, record_id: bytes) -> Explanation:
        """Explain everybody of an own clearing, and the own needs of another's."""
        checked = await self._allocator.records.checked(provider, record_id)
        slot, pairs = checked.record.slot, []
        if provider == self._node:
            for each in checked.customers:
                here, there = self._sides(each.node)
                pairs += [Pair(slot, here, need, there) for need in each.commitment.needs]
        else:
            here, there = self._sides(provider)
            pairs = [Pair(slot, there, need, here) for need in self._commitments.own.needs]
        return await self._answer(pairs, (record_id, checked))

    async def _answer(
        self, pairs: Iterable[Pair], only: tuple[bytes, Checked] | None = None
    ) -> Explanation:
        """Explain pairs in all windows that were cleared, or in one clearing only."""
        opened: dict[bytes, Checked | str] = {}
        took_part: set[tuple[bytes, bytes]] = set()
        if only is not None:
            opened = {only[0]: only[1]}
            parts = only[1].record.participants
            took_part = {(each.customer, need) for each in parts for need, _ in each.eligible}
        matched: list[Pair] = []
        others: list[Explained] = []
        for pair in pairs:
            reason = mismatch(pair.slot, pair.provider, pair.need, pair.customer)
            if reason is None or (pair.customer.node, pair.need.slot_id) in took_part:
                matched.append(pair)
            elif len(others) <= WHYS_MAX:
                others.append(Explained(pair, reason))
        if not matched:
            return Explanation(others[:WHYS_MAX], len(others) > WHYS_MAX)
        rows: list[Explained] = []
        for pair in matched:
            provider = pair.provider.node
            cleared = [(only[1].record.window, only[0])] if only else self._cleared(pair)
            if not cleared:
                rows.append(
                    Explained(pair, "they match, and no clearing of the slot is known here yet")
                )
            for window, record_id in cleared:
                is_full = provider != self._node and len(opened) >= WHY_RECORDS_MAX
                if len(rows) >= WHYS_MAX or (is_full and record_id not in opened):
                    return Explanation(rows, True)
                if record_id not in opened:
                    opened[record_id] = await self._open(provider, record_id)
                row = Explained(pair, clearing=record_id, window=window)
                rows.append(await self._explained(row, window, opened[record_id]))
        return Explanation(rows[:WHYS_MAX], len(rows) > WHYS_MAX)

    def _cleared(self, pair: Pair) -> list[tuple[Window, bytes]]:
        """Return the windows of a slot that were cleared, and the records' ids."""
        provider = pair.provider.node
        states = {**self._allocator.states(), self._node: self._allocator.state}
        return [
            (each.window, each.clearing)
            for each in (states[provider].slot_denominators if provider in states else ())
            if each.slot == pair.slot.slot_id
        ]

    async def _open(self, provider: bytes, record_id: bytes) -> Checked | str:
        """Return a record that may be explained, or why it may not."""
        try:
            return await self._allocator.records.checked(provider, record_id)
        except (NotFound, UnavailableError, LimitError):
            return "its clearing record is not here, and its provider does not give it now"
        except PeerError as fault:
            return f"its provider gave no clearing record: {fault.message}"
        except ProofInvalid as fault:
            return (
                f"its clearing record does not recompute, so nothing of it counts: {fault.message}"
            )

    async def _explained(self, row: Explained, window: Window, checked: Checked | str) -> Explained:
        if isinstance(checked, str):
            return replace(row, because=checked)
        pair, record = row.pair, checked.record
        if (record.slot.slot_id, record.window) != (pair.slot.slot_id, window):
            because = "the clearing record that its provider names is of another slot or window"
            return replace(row, because=because)
        slot_id, customer, need_id = pair.slot.slot_id, pair.customer.node, pair.need.slot_id
        async with self._turn:
            outcome = await self._executor.run(explain, checked, customer, need_id)
        if outcome is not None:
            return replace(row, because=outcome.because, outcome=outcome)
        key = EntitlementKey(record.provider, slot_id, window[0], customer, need_id)
        return replace(row, because=absence(pair, checked, self._drawn().get(key, 0)))
