"""Finds loops of debts, signs them, and has those booked that all members have signed.

    ledger.offer  an `Offer`
        -> loop: what all behind the caller have signed, None where nothing goes around
    ledger.loop   loop: what a member after this node has signed, or all have
        -> loop: what this node has of it, which it has signed itself

An offer travels along debts until it is back at its origin, and the signatures come back the
way of the answers. A member promises the amount to the offer while it waits, so that what it
is asked to sign it can sign. Once it has signed, nothing but the booking takes the loop away.
"""

from __future__ import annotations

import asyncio
from typing import Final

from xsc.base import fields, ids, peering
from xsc.base.errors import EntryRefused, RecordInvalid, Recovering, XscError
from xsc.base.peering import Answered, Header, Parts
from xsc.identity.context import Context
from xsc.identity.envelope import sign
from xsc.ledger import loop as rules
from xsc.ledger.chain import Chain, Part
from xsc.ledger.exchange import HistoryExchange
from xsc.ledger.loop import (
    LOOP_MICRO_MIN,
    OFFER_TIMEOUT_MS,
    XID_BYTES,
    Loop,
    Offer,
    SignedLoop,
    open_loop,
)
from xsc.ledger.proposals import Proposals
from xsc.ledger.state import Offered

LOOPS_FOUND_MAX = 4
"""By one search along the debt to one creditor."""
TOLD_TIMEOUT_MS = 5_000
"""For an answer to a loop that is shown."""
LOOP_FIRST_MS = 3_600_000
"""After a start."""
LOOP_EVERY_MS = 24 * 3_600_000

OFFER: Final = "ledger.offer"
LOOP: Final = "ledger.loop"


class Loops(Part):
    """The loops of one node."""

    def __init__(
        self, context: Context, chain: Chain, exchange: HistoryExchange, proposals: Proposals
    ) -> None:
        super().__init__(context, chain)
        self._exchange = exchange
        self._proposals = proposals
        self._lock = asyncio.Lock()
        self._searched: tuple[bytes, bytes] | None = None
        """The creditor to which an offer of this node is under way, and what was drawn for it."""
        self._offered: list[Offered] = []
        self._asking: set[tuple[bytes, bool]] = set()
        """Peers whose offer is being passed on: one of its own, and one of others."""
        self._news: asyncio.Queue[bytes] = asyncio.Queue()
        """Loops of which something was learned."""
        self._learn = proposals.on_loop = self._news.put_nowait

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers peers, by method."""
        return {OFFER: self._on_offer, LOOP: self._on_loop}

    # The own search

    async def clear(self) -> list[SignedLoop]:
        """Look for loops through this node, and go on with those that are not booked yet.

        Returns:
            The loops that were found and that all have signed.
        """
        async with self._lock:
            found: list[SignedLoop] = []
            for peer in sorted(self._debts()):
                for _ in range(LOOPS_FOUND_MAX):
                    if (one := await self._search(peer)) is None:
                        break
                    found.append(one)
            await asyncio.gather(*map(self._go_on, [*self._chain.state.loops]))
            return found

    def _debts(self) -> dict[bytes, int]:
        """Return per creditor how much a loop may take off."""
        state = self._chain.state
        free = {peer: -state.exposure(peer) for peer, owed in state.balances.items() if owed < 0}
        return {
            peer: micro
            for peer, micro in free.items()
            if micro >= LOOP_MICRO_MIN and self._exchange.is_heard(peer)
        }

    async def _search(self, peer: bytes) -> SignedLoop | None:
        """Have an offer travel from this node; return the loop that came of it, complete."""
        micro = self._debts().get(peer, 0)
        if micro < LOOP_MICRO_MIN:
            return None
        search = self._entropy.token(XID_BYTES)
        self._searched = peer, search
        try:
            offer = Offer(
                path=(self._own,), amount_micro=micro, left_ms=OFFER_TIMEOUT_MS, search=search
            )
            loop = await self._ask(peer, offer)
            # One that is booked already can be shown again.
            if loop is None or not loop.is_complete or loop.id in self._chain.state.settled:
                return None
            return await self._chain.commit(self._take, peer, loop)
        except XscError as fault:
            self._log.info("ledger.offer_failed", peer=ids.short(peer), code=fault.code)
            return None
        finally:
            self._searched = None

    async def _ask(self, peer: bytes, offer: Offer) -> SignedLoop | None:
        """Offer to a creditor what goes around; return what all behind this node have signed."""
        header = offer.to_value()
        reply = await self._caller.call(peer, OFFER, header, timeout_ms=offer.left_ms)
        raw = fields.take_opt_bytes(reply.header, "loop")
        if raw is None:
            return None
        loop = open_loop(raw, network=self._network)
        if loop.record.members[: len(offer.path)] != offer.path:
            raise RecordInvalid("the loop goes another way than the offer")
        return loop

    # What peers ask

    async def _on_offer(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        offer = Offer.from_value(header)
        path = offer.path
        if path[-1] != caller or len({*path}) != len(path):
            raise RecordInvalid("an offer names each member once, and its sender last")
        loop: SignedLoop | None = None
        asking = caller, len(path) == 1
        if path[0] == self._own and len(path) > 2:
            loop = await self._close(offer)
        elif self._own not in path and asking not in self._asking:
            self._asking.add(asking)
            try:
                loop = await self._pass_on(caller, offer)
            finally:
                self._asking.discard(asking)
        return {"v": 1, "loop": None if loop is None else loop.raw}, ()

    async def _close(self, offer: Offer) -> SignedLoop | None:
        """Sign the loop of an own offer that is back, the first of all members."""
        path = offer.path
        if self._searched != (path[1], offer.search):
            return None
        least, most = self._chain.state.clearable(path[-1], path[1], self._offered)
        if (micro := min(offer.amount_micro, most)) < least:
            return None
        # One offer ends in one loop: what would not be completed counts for long.
        self._searched = None
        loop = Loop(members=path, amount_micro=micro, xid=self._entropy.token(XID_BYTES))
        return await self._chain.commit(self._sign, loop, None, None)

    async def _pass_on(self, caller: bytes, offer: Offer) -> SignedLoop | None:
        """Offer it to this node's creditors, one after the other, and sign what comes back."""
        end_ms = self._clock.monotonic_ms() + offer.left_ms
        path = *offer.path, self._own
        for peer in rules.next_members(self._debts(), offer.path):
            left_ms = end_ms - self._clock.monotonic_ms()
            least, most = self._chain.state.clearable(caller, peer, self._offered)
            micro = min(offer.amount_micro, most)
            if micro < least or left_ms <= 0 or not self._exchange.is_heard(caller):
                continue
            promise = Offered(caller, peer, micro)
            self._offered.append(promise)
            try:
                said = {"path": path, "amount_micro": micro, "left_ms": left_ms // 2}
                loop = await self._ask(peer, offer.model_copy(update=said))
                # Nobody would hear of a signature that is late.
                if loop is not None and self._clock.monotonic_ms() < end_ms:
                    return await self._chain.commit(self._sign, loop.record, loop, promise)
            except XscError as fault:
                self._log.info("ledger.offer_failed", peer=ids.short(peer), code=fault.code)
            finally:
                self._offered.remove(promise)
        return None

    async def _on_loop(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        loop = open_loop(fields.take_bytes(header, "loop"), network=self._network)
        if self._own not in loop.record.members:
            raise RecordInvalid("this node is no member of the loop")
        kept = await self._chain.commit(self._take, caller, loop)
        return {"v": 1, "loop": kept.raw}, ()

    def _take(self, caller: bytes, loop: SignedLoop) -> SignedLoop:
        """Keep what is more than was known of a loop, sign where it is the turn; return it."""
        known = self._chain.state.loops.get(loop.id)
        if known is not None and len(known.envelopes) >= len(loop.envelopes):
            return known
        if loop.is_signed_by(self._own):
            self._chain.keep_loop(loop)
            self._learn(loop.id)
            return loop
        if caller != loop.record.after(self._own):
            raise EntryRefused("the member before this node's turn has not signed the loop")
        loop = self._sign(loop.record, loop, None)
        self._learn(loop.id)
        return loop

    # Signing

    def _sign(self, record: Loop, behind: SignedLoop | None, promise: Offered | None) -> SignedLoop:
        """Sign a loop over what both neighbours' debts have room for; it counts before it is sent.

        Args:
            record: the loop.
            behind: what those have signed whose turn was before; None if this node is first.
            promise: what was promised to the offer that this is the answer to.

        Raises:
            EntryRefused: it is not this node's turn, or the debts are not so large.
            Recovering: this node signs nothing before its restart.
        """
        if self._chain.recovering:
            raise Recovering("this node is recovering its ledger and signs nothing yet")
        before, after = record.before(self._own), record.after(self._own)
        if record.id in self._chain.state.loops or record.id in self._chain.state.settled:
            raise EntryRefused("this node has signed that loop before")
        if behind is not None and not behind.is_turn_of(self._own):
            raise EntryRefused("it is not this node's turn to sign the loop")
        others = [each for each in self._offered if each is not promise]
        least, most = self._chain.state.clearable(before, after, others)
        if not least <= record.amount_micro <= most:
            raise EntryRefused("a loop does not take that off debts of this node that are so large")
        if not (self._exchange.is_heard(before) and self._exchange.is_heard(after)):
            raise EntryRefused("this node has not heard its neighbours since it recovered")
        own = sign(record, self._key, self._network)
        loop = rules.begin(own) if behind is None else behind.signed(own)
        self._chain.keep_loop(loop)
        if loop.is_complete:
            self._learn(loop.id)
        return loop

    # Booking

    def waits_for(self, loop: SignedLoop) -> list[bytes]:
        """Return whose turn it is to sign, or else the neighbours that have not booked the loop."""
        if not loop.is_complete:
            return [loop.record.signers[len(loop.envelopes)]]
        around = loop.record.before(self._own), loop.record.after(self._own)
        return [peer for peer in around if self._is_unbooked(loop.id, peer)]

    def _is_unbooked(self, loop_id: bytes, peer: bytes) -> bool:
        return loop_id in self._chain.state.unbooked.get(peer, {})

    async def _go_on(self, loop_id: bytes) -> None:
        """Show a loop to the neighbours where they may not know it, and book its own debt."""
        # In a step: what this node has signed counts on its disk before it is shown.
        loop = await self._chain.commit(lambda: self._chain.state.loops.get(loop_id))
        if loop is None:
            return
        before, after = loop.record.before(self._own), loop.record.after(self._own)
        try:
            if self._is_unbooked(loop_id, before):
                reply = await self._caller.call(
                    before, LOOP, {"v": 1, "loop": loop.raw}, timeout_ms=TOLD_TIMEOUT_MS
                )
                told = open_loop(fields.take_bytes(reply.header, "loop"), network=self._network)
                if told.id == loop_id and told.is_signed_by(self._own):
                    loop = await self._chain.commit(self._take, before, told)
        except XscError as fault:
            self._log.info("ledger.loop_untold", peer=ids.short(before), code=fault.code)
        try:
            if loop.is_complete and self._is_unbooked(loop_id, after):
                worth = rules.voucher_of(loop, debtor=after, creditor=self._own)
                # Where it is not answered, the entry stays, and is proposed again.
                await self._proposals.book(worth)
        except XscError as fault:
            self._log.info("ledger.loop_unbooked", peer=ids.short(after), code=fault.code)

    async def run(self) -> None:
        """Go on with loops, at once after a start and when something is learned; never returns."""
        for loop_id in self._chain.state.loops:
            self._learn(loop_id)
        # Side by side: a neighbour that is silent holds up none of the others.
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(self._go_on(await self._news.get()))

    async def run_daily(self) -> None:
        """Look for loops once a day; never returns."""
        # Nodes that start together do not all promise the same debts at the same moment.
        spread_ms = int.from_bytes(self._own[:8], "big") % LOOP_FIRST_MS
        await self._clock.sleep_ms(LOOP_FIRST_MS + spread_ms)
        while True:
            await self.clear()
            await self._clock.sleep_ms(LOOP_EVERY_MS)
