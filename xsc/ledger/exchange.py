"""Tells peers the own incarnation, hears what they hold of the own chain, and recovers it.

A node that lost its ledger begins a new incarnation with all that its own store and its
peers show. What a peer shows later is taken as a claim. The rules are in `recovery`,
`incarnation` and `state`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from xsc.base import encoding, fields, ids, keyvalue, merkle
from xsc.base.errors import LedgerDamaged, PeerSilent, ReceiptInvalid, RecordInvalid, XscError
from xsc.base.limits import PEER_TIMEOUT_MS
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, read_claimed, sign
from xsc.ledger.audit import chain_end_bytes
from xsc.ledger.chain import (
    CLAIM,
    HALF,
    HEARD,
    MARK,
    OTHER,
    PEER,
    RESTART,
    SEAL,
    SIGNED,
    SNAPSHOT,
    UNSEALED,
    VOUCHER,
    Chain,
    key_of,
    rows_of,
)
from xsc.ledger.checkpoint import Checkpoint, open_checkpoint, open_mark
from xsc.ledger.entry import GENESIS, Half, open_half
from xsc.ledger.incarnation import Incarnation, Noted, Restart, open_incarnation, restart_bytes
from xsc.ledger.leaves import Leaves
from xsc.ledger.recovery import (
    Old,
    check_shown,
    known_entries,
    lacks_incarnation,
    merged,
    plan,
    turns_of,
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
        self._executor = context.executor
        self._caller = context.caller
        self._log = context.log
        self._chain = chain
        self._shown_to: dict[bytes, int] = {}
        """By peer, the number from which on it is asked: it did not send all of its claims."""

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
        shown: dict[bytes, list[Old]] = {peer: [] for peer in peers}
        answers = await asyncio.gather(*(self._ask(peer, shown[peer]) for peer in peers))
        heard = {peer: raw for peer, raw in zip(peers, answers, strict=True) if raw is not None}
        entries = [item for peer in peers for item in shown[peer]]
        await self._chain.exclusive(self._begin_anew, entries, heard, noted)
        self._chain.recovering = False
        silent = tuple(peer for peer in peers if peer not in heard)
        state = self._chain.state
        unproven = {
            peer: micro for peer in known_peers(state) if (micro := state.unproven_micro(peer))
        }
        return Restarted(silent, unproven)

    async def _ask(self, peer: bytes, shown: list[Old]) -> int | None:
        """Fetch a peer's history; return the number of the newest own incarnation it knows."""
        try:
            return await self._history(peer, shown)
        except XscError as fault:
            self._log.warning("ledger.history_untold", peer=ids.short(peer), code=fault.code)
            return None

    async def _begin_anew(
        self, shown: Sequence[Old], heard: dict[bytes, int], noted: Noted
    ) -> None:
        def work() -> list[keyvalue.Change]:
            rows = [*self._chain.rows.stored()]
            entries = merged([*known_entries(rows, network=self._network), *shown])
            known = {row.seq + 1 for row in rows} | {self._chain.state.next_seq}
            known |= {item.half.record.seq + 1 for item in entries} | {*heard.values()}
            record = plan(entries, noted, highest_seq=max(known), now_ms=self._clock.now_ms())
            signed = sign(record, self._key, self._network)
            changes: list[keyvalue.Change] = [(SNAPSHOT, None)]
            for prefix in (HALF, OTHER, VOUCHER, CLAIM, HEARD, SEAL, UNSEALED):
                changes += [(prefix + key, None) for key, _ in self._chain.table(prefix)]
            for item in entries:
                changes += rows_of(item)
            changes += [(HEARD + peer, b"") for peer in heard]
            changes.append((RESTART, restart_bytes(Restart(signed, noted))))
            changes.append((MARK, chain_end_bytes(record.first_seq, signed.id, GENESIS)))
            return changes

        await self._chain.write(await self._executor.run(work))
        self._chain.state = await self._executor.run(self._chain.load)

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
        return self._chain.restart is None or self._chain.store.get(HEARD + peer) is not None

    async def _claims_of(self, peer: bytes) -> None:
        """Take the claims that a peer shows; where it stops, the next call goes on from there."""
        shown: list[Old] = []
        try:
            await self._history(peer, shown, start=self._shown_to.get(peer, 0))
        except XscError:
            if shown:
                self._shown_to[peer] = shown[-1].half.record.seq + 1
            await self._chain.exclusive(self._take_claims, peer, shown, heard=False)
            raise
        self._shown_to.pop(peer, None)
        await self._chain.exclusive(self._take_claims, peer, shown, heard=True)

    async def _take_claims(self, peer: bytes, shown: Sequence[Old], *, heard: bool) -> None:
        """Take the entries of earlier incarnations that a peer shows and this ledger lacks."""
        state = self._chain.state
        late = []
        for item in merged(shown):
            seq = item.half.record.seq
            if seq >= state.first_seq:
                continue  # `_confirm` checks those
            known = self._chain.store.get(key_of(HALF, seq))
            if known is None:
                late.append(item)
            elif known != item.half.raw:
                self._log.warning("ledger.claim_number_taken", peer=ids.short(peer), entry=seq)
        turns, claims_head = turns_of(state, late)
        changes: list[keyvalue.Change] = [(HEARD + peer, b"")] if heard else []
        for item, turn in zip(late, turns, strict=True):
            changes += [*rows_of(item), (key_of(CLAIM, item.half.record.seq), turn)]
        if late:
            changes.append((MARK, chain_end_bytes(state.next_seq, state.head, claims_head)))
        self._chain.put(changes)
        for item, turn in zip(late, turns, strict=True):
            take_old(state, item.half, item.other, item.voucher.record, turn)
        if late:
            self._log.warning("ledger.claims", peer=ids.short(peer), entries=len(late))

    async def _history(self, peer: bytes, shown: list[Old], *, start: int = 0) -> int:
        """Fetch a peer's entries of the own chain; return the newest own incarnation it knows.

        Args:
            peer: the peer to ask.
            shown: valid entries are added to it, also where the peer falls silent later.
            start: number of the first entry.
        """
        end_ms = self._clock.monotonic_ms() + HISTORY_TIMEOUT_MS
        wrong, more, newest = 0, True, 0
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
            if (told := self._told_of_me(reply.header)) is not None:
                newest = max(newest, told.record.first_seq)
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
        return newest

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
        restart = None if self._chain.restart is None else self._chain.restart.incarnation.raw
        try:
            reply = await self._caller.call(
                peer, HEAD, {"v": 1, "incarnation": restart}, timeout_ms=LEDGER_HEAD_TIMEOUT_MS
            )
            fields.take_int(reply.header, "next_seq")
            if lacks_incarnation(self._chain.restart, self._told_of_me(reply.header)):
                raise LedgerDamaged(
                    f"{ids.short(peer)} holds an incarnation of this node that its own ledger "
                    "lacks: this home is an old copy",
                    hint="use the home that was recovered last, or recover it: xsc node recover",
                )
            if reply.header.get("yours") is not None:
                self._confirm(peer, fields.take_bytes(reply.header, "yours"))
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

    def _confirm(self, peer: bytes, raw: bytes) -> None:
        mine = open_half(raw, network=self._network)
        if mine.author != self._key.node_id:
            raise ReceiptInvalid(f"{ids.short(peer)} shows an entry of another node as this node's")
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

    async def on_history(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> tuple[dict[str, encoding.Value], Sequence[bytes | memoryview]]:
        """Return a page of the caller's halves that this ledger has, from a number on."""
        start = fields.take_int(header, "start")
        numbered = self._chain.state.seen.numbered(caller, start)
        seen = ((theirs, known.seq) for theirs, known in numbered if not known.seals)
        items: list[encoding.Value] = []
        for theirs, seq in islice(seen, LEDGER_HISTORY_ITEMS_MAX):
            items.append(
                {
                    "seq": theirs,
                    "half": self._chain.read(OTHER, seq),
                    "other": self._chain.read(HALF, seq),
                    "voucher": self._chain.read(VOUCHER, seq),
                }
            )
        return {
            "v": 1,
            "items": items,
            "more": next(seen, None) is not None,
            "incarnation": self._chain.store.get(PEER + caller),
        }, ()

    async def on_head(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> tuple[dict[str, encoding.Value], Sequence[bytes | memoryview]]:
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
        mark = open_mark(self._chain.store.get(SIGNED + caller), self._network)
        return {
            "v": 1,
            "next_seq": state.next_seq,
            "head": state.head,
            "yours": yours,
            "old": sum(not known.seals for _, known in state.seen.numbered(caller, 0, first)),
            "incarnation": None if told is None else told.raw,
            "checkpoint": None if mark is None else mark.last.raw,
        }, ()

    async def _keep_incarnation(self, told: Signed[Incarnation]) -> None:
        """Keep a peer's incarnation if its number is the highest so far."""
        known = self._chain.incarnation_of(told.author)
        if known is not None and told.record.first_seq <= known.record.first_seq:
            return
        changes: list[keyvalue.Change] = [(PEER + told.author, told.raw)]
        for entry_id, seq in self._chain.unsealed(told.author):
            # Halves of the new incarnation can be older here than the word of it.
            raw = self._chain.read(OTHER, seq)
            other = read_claimed(raw, Half, network=self._network).record
            if other.seq < told.record.first_seq:
                changes.append((UNSEALED + told.author + entry_id, None))
        await self._chain.write(changes)
        self._log.warning(
            "ledger.restarted", peer=ids.short(told.author), first_seq=told.record.first_seq
        )
