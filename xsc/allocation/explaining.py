"""Explains to people what needs were granted of slots, here and at other providers.

A clearing of another node is explained from its record alone, which is fetched and recomputed
first. Where no slot matches a need, the matching rule says why (docs/design/allocation.md, W1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from xsc.allocation.allocating import Allocator
from xsc.allocation.clearing_record import Checked, eligible_of
from xsc.allocation.commitments import Heard
from xsc.allocation.matching import mismatch
from xsc.allocation.queries import Explained, Pair, explain, pairs_of
from xsc.base.errors import LimitError, NotFound, PeerError, ProofInvalid, UnavailableError
from xsc.base.ids import to_text
from xsc.base.limits import WHY_RECORDS_MAX, WHYS_MAX
from xsc.base.peering import Peers
from xsc.identity.context import Context
from xsc.terms.slot import EntitlementKey

_PAIRS_AT_ONCE: Final = 512
"""Pairs of slots and needs that are matched before others have their turn: there may be many."""


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
        heard: what nodes offer, need and recognise.
        peers: who is known.
        drawn: returns what leases have drawn of entitlements, of both roles, in steps.
    """

    def __init__(
        self,
        context: Context,
        *,
        allocator: Allocator,
        heard: Heard,
        peers: Peers,
        drawn: Callable[[], Mapping[EntitlementKey, int]],
    ) -> None:
        self._node = context.key.node_id
        self._executor = context.executor
        self._allocator = allocator
        self._heard = heard
        self._peers = peers
        self._drawn = drawn
        self._turn = asyncio.Lock()
        """All explanations together take one thread: a peer's record can take long."""

    async def by_id(self, text: str) -> Explanation:
        """Explain an own need, a slot or a clearing by how its id begins; own ones come first.

        Raises:
            NotFound: there is none, or more than one.
        """

        def beginning(ids: Iterable[bytes]) -> list[bytes]:
            return [each for each in ids if to_text(each).startswith(text)]

        peers, clearings = self._peers.peers(), self._allocator.named()
        said = {node: self._heard.of(node).commitment for node in (self._node, *peers)}
        theirs = [slot.slot_id for peer in peers for slot in said[peer].slots]
        own = beginning(each.slot_id for each in said[self._node].both)
        found = own or beginning([*theirs, *clearings])
        if len(found) != 1:
            raise NotFound(
                f"{'more than one' if found else 'no'} need, slot or clearing that is known here"
                f" has an id that begins with '{text}'",
                hint="`xsc market slots` and `xsc market clearings` list them",
            )
        (one,) = found
        if one in clearings:
            return await self._of_clearing(clearings[one], one)
        return await self._answer(self._pairs(peers, one))

    async def by_node(self, node: bytes) -> Explanation:
        """Explain what a node has of this one and this one of it; of this node, all its needs."""
        if node != self._node:
            return await self._answer(self._pairs([node]))
        own, others = self._heard.of(node), map(self._heard.of, self._peers.peers())
        return await self._answer(pair for other in others for pair in pairs_of(other, own))

    def _pairs(self, peers: Iterable[bytes], one: bytes | None = None) -> Iterator[Pair]:
        """Return the pairs of this node and peers; those of one slot or need where it is given."""
        own = self._heard.of(self._node)
        for peer in peers:
            other = self._heard.of(peer)
            yield from pairs_of(own, other, one)
            yield from pairs_of(other, own, one)

    async def _of_clearing(self, provider: bytes, record_id: bytes) -> Explanation:
        """Explain everybody of an own clearing, and the own needs of another's."""
        only = await self._allocator.records.checked(provider, record_id)
        is_own, slot_id = provider == self._node, only.record.slot.slot_id
        customers = only.customers if is_own else [self._heard.of(self._node)]
        pairs = (pair for each in customers for pair in pairs_of(only.provider, each, slot_id))
        return await self._answer(pairs, only)

    async def _answer(self, pairs: Iterable[Pair], only: Checked | None = None) -> Explanation:
        """Explain pairs in all windows that were cleared, or in one clearing only."""
        took_part = {} if only is None else eligible_of(only.record)
        rows: list[Explained] = []
        others: list[Explained] = []
        for number, pair in enumerate(pairs):
            if number % _PAIRS_AT_ONCE == 0:
                await asyncio.sleep(0)
            reason = mismatch(pair.slot, pair.provider, pair.need, pair.customer)
            if reason is None or pair.need.slot_id in took_part.get(pair.customer.node, ()):
                rows += self._cleared(pair, only)
            elif len(others) <= WHYS_MAX:
                others.append(Explained(pair, reason))
            if len(rows) > WHYS_MAX:
                break
        asked, done = rows or others, list[Explained]()
        opened: dict[bytes, Checked | str] = {} if only is None else {only.signed.id: only}
        for row in asked[:WHYS_MAX]:
            provider, record_id = row.pair.provider.node, row.clearing
            if record_id is None:
                done.append(row)
                continue
            if record_id not in opened:
                if provider != self._node and len(opened) >= WHY_RECORDS_MAX:
                    return Explanation(done, True)
                opened[record_id] = await self._open(provider, record_id)
            done.append(await self._explained(row, opened[record_id]))
        return Explanation(done, len(asked) > WHYS_MAX)

    def _cleared(self, pair: Pair, only: Checked | None) -> list[Explained]:
        """Return the windows of a slot that were cleared, not explained yet."""
        if only is not None:
            return [Explained(pair, "", only.signed.id, only.record.window)]
        state = self._heard.state_of(pair.provider.node)
        return [
            Explained(pair, "", each.clearing, each.window)
            for each in (() if state is None else state.slot_denominators)
            if each.slot == pair.slot.slot_id
        ] or [Explained(pair, "they match, and no clearing of the slot is known here yet")]

    async def _open(self, provider: bytes, record_id: bytes) -> Checked | str:
        """Return a record that may be explained, or why it may not."""
        try:
            return await self._allocator.records.checked(provider, record_id)
        except ProofInvalid as fault:
            return (
                f"its clearing record does not recompute, so nothing of it counts: {fault.message}"
            )
        except (NotFound, UnavailableError, LimitError, PeerError) as fault:
            return f"its clearing record is not here, and its provider gives none: {fault.message}"

    async def _explained(self, row: Explained, checked: Checked | str) -> Explained:
        if isinstance(checked, str):
            return replace(row, because=checked)
        pair, record = row.pair, checked.record
        slot_id, customer, need_id = pair.slot.slot_id, pair.customer.node, pair.need.slot_id
        if (record.slot.slot_id, record.window) != (slot_id, row.window):
            because = "the clearing record that its provider names is of another slot or window"
            return replace(row, because=because)
        key = EntitlementKey(record.provider, slot_id, record.window[0], customer, need_id)
        drawn = self._drawn().get(key, 0)
        async with self._turn:
            return await self._executor.run(explain, row, checked, drawn)
