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

from xsc.base import encoding, fields, ids, keyvalue, peering
from xsc.base.errors import LedgerDamaged, PeerSilent, ReceiptInvalid, RecordInvalid, XscError
from xsc.base.limits import PEER_TIMEOUT_MS
from xsc.base.peering import Answered, Header, Parts
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, sign
from xsc.ledger.audit import chain_end_bytes
from xsc.ledger.chain import (
    FOR,
    HALF,
    MARK,
    OTHER,
    PEER,
    RESTART,
    SIGNED,
    SNAPSHOT,
    VOUCHER,
    Chain,
    key_of,
    rows_of,
)
from xsc.ledger.checkpoint import Checkpoint, open_checkpoint, open_stored
from xsc.ledger.entry import UNIT_NONE, XID_BYTES, Half, open_half
from xsc.ledger.incarnation import (
    ALL_TOLD,
    Claim,
    Incarnation,
    Noted,
    Restart,
    claim_hash,
    open_incarnation,
    restart_bytes,
)
from xsc.ledger.leaves import Leaves
from xsc.ledger.recovery import (
    Old,
    check_shown,
    known_entries,
    lacks_incarnation,
    merged,
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


class HistoryExchange:
    """Asks peers for ledger heads and histories, and answers them."""

    def __init__(self, context: Context, chain: Chain) -> None:
        self._key = context.key
        self._network = context.network
        self._clock = context.clock
        self._entropy = context.entropy
        self._executor = context.executor
        self._caller = context.caller
        self._log = context.log
        self._chain = chain

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
        await self._chain.exclusive(self._begin_anew, known, noted)
        self._chain.recovering = False
        await self._chain.commit(self._claim_own)
        told = await asyncio.gather(*map(self._told, peers))
        state = self._chain.state
        unproven = {
            peer: micro for peer in known_peers(state) if (micro := state.unproven_micro(peer))
        }
        return Restarted(tuple(itertools.compress(peers, map(operator.not_, told))), unproven)

    async def _known_to(self, peer: bytes) -> tuple[int, Signed[Half] | None]:
        """Return a number above all that a peer knows of the own chain, and the last half."""
        try:
            reply = await self._ask_head(peer)
            told, last = self._told_of_me(reply.header), self._shown_head(peer, reply.header)
        except XscError as fault:
            self._log.info("ledger.head_not_confirmed", peer=ids.short(peer), code=fault.code)
            return 0, None
        first = 0 if told is None else told.record.first_seq
        return (first, None) if last is None else (max(first, last.record.seq + 1), last)

    async def _told(self, peer: bytes) -> bool:
        """Take what a peer shows of earlier incarnations; return whether that was all."""
        try:
            await self.hear(peer)
        except XscError as fault:
            self._log.warning("ledger.history_untold", peer=ids.short(peer), code=fault.code)
            return False
        return True

    async def _begin_anew(
        self, known: Sequence[tuple[int, Signed[Half] | None]], noted: Noted
    ) -> None:
        def work() -> list[keyvalue.Change]:
            rows = [*self._chain.rows.stored()]
            kept = known_entries(rows, network=self._network)
            lasts = [half for _, half in known if half is not None]
            lasts += [item.half for item in kept[-1:]]
            record = plan(
                max(lasts, key=lambda half: half.record.seq, default=None),
                noted,
                highest_seq=max(
                    self._chain.state.next_seq,
                    *(row.seq + 1 for row in rows[-1:]),
                    *(seq for seq, _ in known),
                    0,
                ),
                now_ms=self._clock.now_ms(),
            )
            signed = sign(record, self._key, self._network)
            changes: list[keyvalue.Change] = [(SNAPSHOT, None)]
            for prefix in (HALF, OTHER, VOUCHER, FOR):
                changes += [(prefix + key, None) for key, _ in self._chain.table(prefix)]
            for item in kept:
                changes += rows_of(item)
            changes.append((RESTART, restart_bytes(Restart(signed, noted))))
            changes.append((MARK, chain_end_bytes(record.first_seq, signed.id)))
            return changes

        await self._chain.write(await self._executor.run(work))
        self._chain.state = await self._executor.run(self._chain.load)

    def _claim_own(self) -> None:
        """Claim the entries that the own store has, peer by peer."""
        by_peer: dict[bytes, list[Old]] = {}
        rows = self._chain.rows.stored(0, self._chain.state.first_seq)
        for item in known_entries(rows, network=self._network):
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

    async def _claims_of(self, peer: bytes) -> None:
        """Claim what a peer shows; where it stops, the next call goes on from there."""
        shown: list[Old] = []
        heard = self._chain.state.heard.get(peer, 0)
        try:
            await self._history(peer, shown, start=heard if heard < ALL_TOLD else 0)
        except XscError:
            if shown:
                go_on = shown[-1].half.record.seq + 1
                await self._chain.commit(self._take_claims, peer, shown, go_on)
            raise
        await self._chain.commit(self._take_claims, peer, shown, ALL_TOLD)

    def _take_claims(self, peer: bytes, shown: Sequence[Old], start: int) -> None:
        """Claim the entries of earlier incarnations that a peer shows and this ledger lacks."""
        late = []
        for item in merged(shown):
            seq = item.half.record.seq
            if seq >= self._chain.state.first_seq:
                continue  # `_confirm` checks those
            known = self._chain.get(key_of(HALF, seq))
            if known is None:
                late.append(item)
            elif known != item.half.raw:
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
            credit=self._key.node_id,
            xid=self._entropy.token(XID_BYTES),
            amount_micro=len(items),
            receipt=claim_hash(claim, ((item.half.id, item.other.id) for item in items)),
        )
        seq = self._chain.extend(half).seq
        self._chain.put([(key_of(VOUCHER, seq), claim.to_bytes())])
        for item in items:
            self._chain.put(rows_of(item))
            take_old(self._chain.state, item.half, item.other, item.voucher.record)
        self._chain.state.heard[peer] = start

    async def _history(self, peer: bytes, shown: list[Old], *, start: int) -> None:
        """Fetch a peer's entries of the own chain.

        Args:
            peer: the peer to ask.
            shown: valid entries are added to it, also where the peer falls silent later.
            start: number of the first entry.
        """
        end_ms = self._clock.monotonic_ms() + HISTORY_TIMEOUT_MS
        wrong, more = 0, True
        while more:
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
                seq = fields.take_int(item, "seq")
                if seq < start:
                    raise RecordInvalid("a history goes backwards")
                start = seq + 1
                found = check_shown(item, peer=peer, me=self._key.node_id, network=self._network)
                if found is None or found.half.record.seq != seq:
                    self._log.warning("ledger.history_wrong", peer=ids.short(peer), entry=seq)
                    wrong += 1
                else:
                    shown.append(found)
            if wrong > LEDGER_HISTORY_ITEMS_MAX:
                # Valid entries are bounded by the chain, invalid ones are not.
                raise RecordInvalid("a history shows too much that does not hold")
            more = fields.take_bool(reply.header, "more") and bool(items)

    def _told_of_me(self, header: dict[str, encoding.Value]) -> Signed[Incarnation] | None:
        """Return the own incarnation that a peer shows; None where it shows none."""
        raw = fields.take_opt_bytes(header, "incarnation")
        if raw is None:
            return None
        return open_incarnation(raw, author=self._key.node_id, network=self._network)

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
            reply = await self._ask_head(peer)
            if lacks_incarnation(self._chain.restart, self._told_of_me(reply.header)):
                raise LedgerDamaged(
                    f"{ids.short(peer)} holds an incarnation of this node that its own ledger "
                    "lacks: this home is an old copy",
                    hint="use the home that was recovered last, or recover it: xsc node recover",
                )
            if (mine := self._shown_head(peer, reply.header)) is not None:
                self._confirm(peer, mine)
            if (raw := fields.take_opt_bytes(reply.header, "checkpoint")) is not None:
                own = open_checkpoint(raw, network=self._network)
                await self._executor.run(self._confirm_checkpoint, peer, own)
            old = fields.take_int(reply.header, "old")
            # Before the first restart there is no incarnation that old halves could be of.
            known = self._chain.state.old.get(peer, 0)
            if claims and self._chain.restart is not None and old > known:
                await self._claims_of(peer)
        except LedgerDamaged:
            raise
        except XscError as fault:
            self._log.info("ledger.head_not_confirmed", peer=ids.short(peer), code=fault.code)
            return False
        return True

    async def _ask_head(self, peer: bytes) -> peering.Reply:
        """Tell a peer the own incarnation, and ask where it has seen the own chain end."""
        restart = None if self._chain.restart is None else self._chain.restart.incarnation.raw
        return await self._caller.call(
            peer, HEAD, {"v": 1, "incarnation": restart}, timeout_ms=LEDGER_HEAD_TIMEOUT_MS
        )

    def _shown_head(self, peer: bytes, header: dict[str, encoding.Value]) -> Signed[Half] | None:
        """Return the newest half of this node that a peer shows in its answer."""
        if (raw := fields.take_opt_bytes(header, "yours")) is None:
            return None
        mine = open_half(raw, network=self._network)
        if mine.author != self._key.node_id:
            raise ReceiptInvalid(f"{ids.short(peer)} shows an entry of another node as this node's")
        return mine

    def _confirm(self, peer: bytes, mine: Signed[Half]) -> None:
        seq = mine.record.seq
        if seq < self._chain.state.first_seq:
            return  # a claim, at most
        if seq >= self._chain.state.next_seq or self._chain.own(seq).id != mine.id:
            raise LedgerDamaged(
                f"{ids.short(peer)} holds entry {seq} of this node, which its own "
                "ledger lacks: this home is an old copy",
                hint="restore the latest home; going on from an old one would fork the ledger",
            )

    def _confirm_checkpoint(self, peer: bytes, own: Checkpoint) -> None:
        if own.author != self._key.node_id:
            raise ReceiptInvalid(f"{ids.short(peer)} shows a checkpoint of another node")
        leaves = Leaves(self._chain)
        if own.first_seq < leaves.first_seq:
            return  # of an incarnation before
        if (
            own.first_seq > leaves.first_seq
            or own.size > leaves.size
            or leaves.top(0, own.size) != own.root
        ):
            raise LedgerDamaged(
                f"{ids.short(peer)} knows {own.size} entries that this node signed together, and "
                "its own ledger has others: this home is an old copy",
                hint="restore the latest home; going on from an old one would fork the ledger",
            )

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
        items: list[encoding.Value] = [
            {
                "seq": theirs,
                "half": self._chain.read(OTHER, seq),
                "other": self._chain.read(HALF, seq),
                "voucher": self._chain.read(VOUCHER, seq),
            }
            for theirs, seq in seen[:LEDGER_HISTORY_ITEMS_MAX]
        ]
        return {"v": 1, "items": items, "more": len(seen) > len(items)}, ()

    async def on_head(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        """Keep the caller's incarnation; return the known ends of its chain and of the own one."""
        raw = fields.take_opt_bytes(header, "incarnation")
        if raw is not None:
            incarnation = open_incarnation(raw, author=caller, network=self._network)
            await self._chain.exclusive(self._keep_incarnation, incarnation)
        told = self._chain.incarnation_of(caller)
        state = self._chain.state
        newest = next(state.seen.numbered(caller, 0, reverse=True), None)
        yours = None if newest is None else self._chain.read(OTHER, newest[1].seq)
        first = 0 if told is None else told.record.first_seq
        signed = open_stored(self._chain.store.get(SIGNED + caller), self._network)
        return {
            "v": 1,
            "next_seq": state.next_seq,
            "head": state.head,
            "yours": yours,
            "old": sum(not known.seals for _, known in state.seen.numbered(caller, 0, first)),
            "incarnation": None if told is None else told.raw,
            "checkpoint": None if signed is None else signed.raw,
        }, ()

    async def _keep_incarnation(self, told: Signed[Incarnation]) -> None:
        """Keep a peer's incarnation if its number is the highest so far."""
        known = self._chain.incarnation_of(told.author)
        if known is not None and told.record.first_seq <= known.record.first_seq:
            return
        await self._chain.write([(PEER + told.author, told.raw)])
        self._log.warning(
            "ledger.restarted", peer=ids.short(told.author), first_seq=told.record.first_seq
        )
