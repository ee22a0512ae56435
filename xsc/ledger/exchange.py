"""Tells peers the own incarnation, hears what they hold of the own chain, and recovers it.

A node that lost its ledger begins a new incarnation with all that its own store and its
peers show. What a peer shows later is taken as a claim. The rules are in `recovery`,
`incarnation` and `state`.
"""

from __future__ import annotations

import asyncio
import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from xsc.base import encoding, fields, ids
from xsc.base.errors import LedgerDamaged, PeerSilent, ReceiptInvalid, RecordInvalid, XscError
from xsc.base.limits import PEER_TIMEOUT_MS
from xsc.base.peering import Answered, Header, Parts
from xsc.identity.envelope import Signed, sign
from xsc.ledger.audit import Old, check_shown, known_entries
from xsc.ledger.chain import SIGNED, Part, row_of
from xsc.ledger.checkpoint import Checkpoint, open_checkpoint, open_stored
from xsc.ledger.checkpoints import Leaves
from xsc.ledger.entry import UNIT_NONE, Half, open_half
from xsc.ledger.incarnation import (
    ALL_TOLD,
    Claim,
    Incarnation,
    Noted,
    Restart,
    claim_hash,
    lacks_incarnation,
    open_incarnation,
    plan,
)
from xsc.ledger.state import take_old
from xsc.ledger.statement import known_peers, note_accounts

LEDGER_HISTORY_ITEMS_MAX = 64
"""Entries in one page of a ledger's history."""
HISTORY_TIMEOUT_MS = 60_000
"""For all pages of what one peer holds of a node that lost its disk."""
LEDGER_HEAD_TIMEOUT_MS = 2_000
"""How long a peer has to say where it has seen this node's chain end: a start waits for it."""

HEAD: Final = "ledger.head"
HISTORY: Final = "ledger.history"


@dataclass(frozen=True, slots=True)
class Restarted:
    """How an incarnation began."""

    silent: tuple[bytes, ...]
    """The peers that did not answer."""
    unproven: dict[bytes, int]
    """Per peer, the noted part of its debt that no entry shows; negative for this node's debt."""


class HistoryExchange(Part):
    """Asks peers for ledger heads and histories, and answers them."""

    async def restart(self, peers: Sequence[bytes], noted: Noted) -> Restarted:
        """Begin a new incarnation with the entries that the own store and peers show.

        Entries that both sides signed stay valid. A silent peer is not waited for: what it
        holds is taken when it answers.

        Args:
            peers: peers to ask.
            noted: the accounts in the newest directory.
        """
        if self._chain.state.next_seq > noted.next_seq:
            noted = note_accounts(self._chain.state)
        known = await asyncio.gather(*map(self._known_to, peers))
        kept = await self._chain.exclusive(self._begin_anew, known, noted)
        self._chain.recovering = False
        await self._chain.commit(self._claim_own, kept)
        told = await asyncio.gather(*map(self._told, peers))
        state = self._chain.state
        unproven = {
            peer: micro for peer in known_peers(state) if (micro := state.unproven_micro(peer))
        }
        return Restarted(tuple(itertools.compress(peers, map(operator.not_, told))), unproven)

    async def _known_to(self, peer: bytes) -> int:
        """Return a number above all that a peer knows of the own chain."""
        try:
            _, told, last = await self._ask_head(peer)
        except XscError as fault:
            self._log.info("ledger.head_not_confirmed", peer=ids.short(peer), code=fault.code)
            return 0
        first = 0 if told is None else told.record.first_seq
        return first if last is None else max(first, last.record.seq + 1)

    async def _told(self, peer: bytes) -> bool:
        """Take what a peer shows of earlier incarnations; return whether that was all."""
        try:
            await self.hear(peer)
        except XscError as fault:
            self._log.warning("ledger.history_untold", peer=ids.short(peer), code=fault.code)
            return False
        return True

    async def _begin_anew(self, known: Sequence[int], noted: Noted) -> list[Old]:
        """Begin, in a step that runs alone; return the entries that the own store has."""

        def work() -> tuple[Restart, list[Old]]:
            rows = (row for _, row in self._chain.stored())
            kept = known_entries(rows, network=self._network)
            highest = max([self._chain.state.next_seq, *known])
            record = plan(noted, highest_seq=highest, now_ms=self._clock.now_ms())
            return Restart(sign(record, self._key, self._network), noted), kept

        restart, kept = await self._executor.run(work)
        await self._chain.begin_anew(restart, kept)
        return kept

    def _claim_own(self, kept: Sequence[Old]) -> None:
        """Claim the entries that the own store has, peer by peer."""
        by_peer: dict[bytes, list[Old]] = {}
        for item in kept:
            by_peer.setdefault(item.other.author, []).append(item)
        for peer, items in sorted(by_peer.items()):
            self._claim(peer, items, 0)

    async def hear(self, peer: bytes) -> None:
        """Ask a peer, once in an incarnation, for the entries of earlier ones.

        Nothing is booked with a peer before: what was settled in an account is not known.

        Raises:
            XscError: the peer does not answer.
        """
        if not self.is_heard(peer):
            await self._claims_of(peer)

    def is_heard(self, peer: bytes) -> bool:
        """Return whether a peer has told what it holds since this incarnation began."""
        return self._chain.restart is None or self._chain.state.heard.get(peer) == ALL_TOLD

    def _take_claims(self, peer: bytes, shown: Sequence[Old], start: int) -> None:
        """Claim the entries of earlier incarnations that a peer shows and this ledger lacks."""
        late = []
        for item in shown:
            seq = item.half.record.seq
            if seq >= self._chain.state.first_seq:
                continue  # `_confirm` checks those
            known = self._chain.find(seq)
            if known is None:
                late.append(item)
            elif known.half != item.half.raw:
                self._log.warning("ledger.claim_number_taken", peer=ids.short(peer), entry=seq)
        if late:
            self._log.info("ledger.claims", peer=ids.short(peer), entries=len(late))
        heard = self._chain.state.heard.get(peer, 0)
        if late or heard < start == ALL_TOLD:
            self._claim(peer, late, max(heard, start))

    def _claim(self, peer: bytes, items: Sequence[Old], start: int) -> None:
        claim = Claim(seqs=tuple(item.half.record.seq for item in items), start=start)
        half = Half(
            kind="claim",
            unit=UNIT_NONE,
            peer=peer,
            debit=peer,
            credit=self._own,
            amount_micro=len(items),
            receipt=claim_hash(claim, ((item.half.id, item.other.id) for item in items)),
        )
        self._chain.extend(half, claim=claim.to_bytes())
        self._chain.put(map(row_of, items))
        for item in items:
            take_old(self._chain.state, item.half, item.other, item.voucher.record)
        self._chain.state.heard[peer] = start

    async def _claims_of(self, peer: bytes) -> None:
        """Claim, page by page, what a peer shows; where it stops, the next call goes on."""
        heard = self._chain.state.heard.get(peer, 0)
        start = heard if heard < ALL_TOLD else 0
        end_ms = self._clock.monotonic_ms() + HISTORY_TIMEOUT_MS
        wrong, more = 0, True
        while more:
            shown: list[Old] = []
            left_ms = end_ms - self._clock.monotonic_ms()
            if left_ms <= 0:
                raise PeerSilent(f"{ids.short(peer)} comes to no end of its answer")
            reply = await self._caller.call(
                peer,
                HISTORY,
                {"v": 1, "start": start},
                timeout_ms=min(left_ms, PEER_TIMEOUT_MS),
            )
            items = fields.take_list(reply.header, "items", most=LEDGER_HISTORY_ITEMS_MAX)
            for item in items:
                if not isinstance(item, dict):
                    raise RecordInvalid("an item of a history must be a map")
                seq = fields.take_int(item, "seq", most=ALL_TOLD - 1)
                if seq < start:
                    raise RecordInvalid("a history goes backwards")
                start = seq + 1
                found = check_shown(item, peer=peer, me=self._own, network=self._network)
                if found is None or found.half.record.seq != seq:
                    self._log.warning("ledger.history_wrong", peer=ids.short(peer), entry=seq)
                    wrong += 1
                else:
                    shown.append(found)
            if wrong > LEDGER_HISTORY_ITEMS_MAX:
                # Valid entries are bounded by the chain, invalid ones are not.
                raise RecordInvalid("a history shows too much that does not hold")
            more = fields.take_bool(reply.header, "more") and bool(items)
            await self._chain.commit(self._take_claims, peer, shown, start if more else ALL_TOLD)

    async def confirm_head(self, peers: Sequence[bytes], *, claims: bool = True) -> int:
        """Tell peers the own incarnation, and compare the ends of the own chain that they know.

        Must run before a node whose home was restored from a copy signs anything: going on
        from an old end would fork its chain. Returns how many peers answered.

        Args:
            peers: peers to ask.
            claims: whether to fetch entries of earlier incarnations that a peer has and this
                ledger lacks. Each peer may take up to HISTORY_TIMEOUT_MS for it.

        Raises:
            LedgerDamaged: a peer holds a half of this node that its own ledger lacks.
        """
        answers = await asyncio.gather(*(self._confirm_at(peer, claims) for peer in peers))
        return sum(answers)

    async def _confirm_at(self, peer: bytes, claims: bool) -> bool:
        """Ask one peer; return whether it answered."""
        try:
            header, told, mine = await self._ask_head(peer)
            if lacks_incarnation(self._chain.restart, told):
                raise _old_copy(peer, "an incarnation of this node")
            if mine is not None:
                self._confirm(peer, mine)
            if (raw := fields.take_opt_bytes(header, "checkpoint")) is not None:
                own = open_checkpoint(raw, network=self._network)
                await self._executor.run(self._confirm_checkpoint, peer, own)
            state = self._chain.state
            # It may have answered what is open here.
            known = state.dealt.get(peer, 0) + sum(o.debtor == peer for o in state.open.values())
            # Before the first restart there is no incarnation that old halves could be of.
            if claims and self._chain.restart and fields.take_int(header, "entries") > known:
                await self._claims_of(peer)
        except LedgerDamaged:
            raise
        except XscError as fault:
            self._log.info("ledger.head_not_confirmed", peer=ids.short(peer), code=fault.code)
            return False
        return True

    async def _ask_head(
        self, peer: bytes
    ) -> tuple[Header, Signed[Incarnation] | None, Signed[Half] | None]:
        """Tell a peer the own incarnation, and ask where it has seen the own chain end.

        Returns:
            Its answer, and of that the incarnation and the newest half of this node.
        """
        restart = None if self._chain.restart is None else self._chain.restart.incarnation.raw
        reply = await self._caller.call(
            peer, HEAD, {"v": 1, "incarnation": restart}, timeout_ms=LEDGER_HEAD_TIMEOUT_MS
        )
        told = mine = None
        if (raw := fields.take_opt_bytes(reply.header, "incarnation")) is not None:
            told = open_incarnation(raw, author=self._own, network=self._network)
        if (raw := fields.take_opt_bytes(reply.header, "yours")) is not None:
            mine = open_half(raw, network=self._network)
            if mine.author != self._own:
                raise ReceiptInvalid(f"{ids.short(peer)} shows an entry of another node")
        return reply.header, told, mine

    def _confirm(self, peer: bytes, mine: Signed[Half]) -> None:
        seq = mine.record.seq
        if seq < self._chain.state.first_seq:
            return  # a claim, at most
        if seq >= self._chain.state.next_seq or self._chain.own(seq).id != mine.id:
            raise _old_copy(peer, f"entry {seq} of this node")

    def _confirm_checkpoint(self, peer: bytes, own: Checkpoint) -> None:
        if own.author != self._own:
            raise ReceiptInvalid(f"{ids.short(peer)} shows a checkpoint of another node")
        leaves = Leaves(self._chain)
        if own.first_seq < leaves.first_seq:
            return  # of an incarnation before
        if (
            own.first_seq > leaves.first_seq
            or own.size > leaves.size
            or leaves.top(0, own.size) != own.root
        ):
            raise _old_copy(peer, f"a checkpoint of this node over {own.size} entries")

    # What peers ask

    async def on_history(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        """Return a page of the caller's halves that this ledger has, from a number on."""
        start = fields.take_int(header, "start")

        def known() -> list[tuple[int, int]]:
            """Return one more than a page, in a step: they are on the disk before they are sent."""
            numbered = self._chain.state.seen.numbered(caller, start)
            seen = ((theirs, known.seq) for theirs, known in numbered if not known.seals)
            return [*islice(seen, LEDGER_HISTORY_ITEMS_MAX + 1)]

        seen = await self._chain.commit(known)
        rows = [(theirs, self._chain.row(seq)) for theirs, seq in seen[:LEDGER_HISTORY_ITEMS_MAX]]
        items: list[encoding.Value] = [
            {"seq": theirs, "half": row.other, "other": row.half, "voucher": row.voucher}
            for theirs, row in rows
        ]
        return {"v": 1, "items": items, "more": len(seen) > len(items)}, ()

    async def on_head(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        """Keep the caller's incarnation; return the known ends of its chain and of the own one."""
        raw = fields.take_opt_bytes(header, "incarnation")
        if raw is not None:
            incarnation = open_incarnation(raw, author=caller, network=self._network)
            await self._chain.commit(self._chain.keep_incarnation, incarnation)
        told = self._chain.incarnation_of(caller)
        state = self._chain.state
        newest = next(state.seen.numbered(caller, 0, reverse=True), None)
        yours = None if newest is None else self._chain.other(newest[1].seq)
        signed = open_stored(self._chain.store.get(SIGNED + caller), self._network)
        return {
            "v": 1,
            "yours": yours,
            "entries": state.dealt.get(caller, 0),
            "incarnation": None if told is None else told.raw,
            "checkpoint": None if signed is None else signed.raw,
        }, ()


def _old_copy(peer: bytes, what: str) -> LedgerDamaged:
    return LedgerDamaged(
        f"{ids.short(peer)} holds {what} that its own ledger lacks: this home is an old copy",
        hint="use the latest home, or recover it (xsc node recover): going on from an old one "
        "would fork the ledger",
    )
