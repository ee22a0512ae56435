"""Seals entries together with peers, and compares what is sealed.

    ledger.cubes  history, count, level, place, face: which history, of how many entries; which
                  cube, and of it a face, or None for the hashes of its faces. Level 0 asks for none
        -> history, count, hashes: none where the histories are not the same

The node of the lower id starts a seal, over entries that both parties have signed. It is proposed
and answered as every entry is (`proposals`), and moves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import Final, NamedTuple

from xsc.base import encoding, errors, fields, ids, merkle, peering
from xsc.identity.context import Context
from xsc.ledger import cube
from xsc.ledger.chain import SEAL, VOUCHER, Chain
from xsc.ledger.entry import XID_BYTES
from xsc.ledger.exchange import HistoryExchange
from xsc.ledger.proposals import Proposals

CUBES: Final = "ledger.cubes"


class Sealing:
    """What is sealed with one peer, and its cubes, as far as they were asked for.

    Args:
        chain: the own one.
        account: names the history.
    """

    def __init__(self, chain: Chain, account: bytes) -> None:
        self.account = account
        self._chain = chain
        self._cubes: dict[tuple[int, int], bytes] = {}
        self._grown = 0

    def seal_of(self, position: int) -> cube.Sealed:
        """Return the seal of an entry by its position.

        Raises:
            LedgerDamaged: a row is missing or damaged.
        """
        first, last = (SEAL + self.account + at.to_bytes(8, "big") for at in (0, position + 1))
        for _, row in self._chain.store.scan(first, last, reverse=True):
            try:
                under = self._chain.read(VOUCHER, int.from_bytes(row, "big"))
                sealed = cube.open_sealed(under)
            except errors.RecordInvalid:
                break
            if 0 <= position - sealed.before < len(sealed.entry_ids):
                return sealed
            break
        raise errors.LedgerDamaged(
            f"the row of the seal of entry {position} with a peer is missing or damaged",
            hint="restore the home from a backup",
        )

    def read(self, level: int, index: int) -> bytes:
        """Return a full cell; of cubes, one that `grow` has made."""
        if level:
            return self._cubes[level, index]
        sealed = self.seal_of(index)
        return sealed.entry_ids[index - sealed.before]

    def grow(self, count: int) -> None:
        """Make the cubes of so many entries."""
        while self._grown < count:
            sealed = self.seal_of(self._grown)
            cells = cube.grown(self.read, sealed)
            self._cubes |= {place: cell for place, cell in cells.items() if place[0]}
            self._grown += len(sealed.entry_ids)


class Check(NamedTuple):
    """What was sealed at a moment, and what was not."""

    next_seq: int
    open: set[int]
    peers: dict[bytes, tuple[int, list[tuple[bytes, int]]]]


class Seals:
    """The seals of one node."""

    def __init__(
        self, context: Context, chain: Chain, exchange: HistoryExchange, proposals: Proposals
    ) -> None:
        self._own = context.key.node_id
        self._entropy = context.entropy
        self._executor = context.executor
        self._caller = context.caller
        self._log = context.log
        self._chain = chain
        self._exchange = exchange
        self._proposals = proposals
        self._made: dict[bytes, Sealing] = {}
        self._making = asyncio.Lock()

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers peers, by method."""
        return {CUBES: self._on_cubes}

    async def seal_all(self) -> None:
        """Seal what waits with each peer that is to be asked by this node and answers."""
        peers = [peer for peer in self._chain.state.balances if peer > self._own]
        await asyncio.gather(*map(self._seal, peers))

    async def _seal(self, peer: bytes) -> None:
        try:
            while self._exchange.is_heard(peer):
                seq = await self._chain.exclusive(self._begin, peer)
                if seq is None:
                    return
                await self._proposals.propose(seq)
        except errors.XscError as fault:
            self._log.info("ledger.unsealed", peer=ids.short(peer), code=fault.code)

    async def _begin(self, peer: bytes) -> int | None:
        """Return the number of the own half of the next seal; None where nothing waits."""
        account = self._chain.history(peer)
        if (open_seq := self._chain.state.open_under(peer, account)) is not None:
            return open_seq
        waiting = islice(self._chain.unsealed(peer), cube.SEALED_MAX)
        entry_ids = tuple(entry_id for entry_id, _ in waiting)
        if not entry_ids:
            return None
        sealed = cube.Sealed(self._chain.sealed(peer), entry_ids)
        under = cube.seal_voucher(sealed, account, debtor=peer, creditor=self._own)
        xid = self._entropy.token(XID_BYTES)
        count = len(entry_ids)
        return self._proposals.begin(xid, peer, account, under, count, kind="seal")

    async def with_peer(self, peer: bytes) -> tuple[Sealing, int]:
        """Return the cubes with a peer, and of how many entries they are.

        Raises:
            LedgerDamaged: a row is missing or damaged.
        """
        account, count = self._chain.history(peer), self._chain.sealed(peer)
        async with self._making:
            if (made := self._made.get(peer)) is None or made.account != account:
                self._made[peer] = made = Sealing(self._chain, account)
            await self._executor.run(made.grow, count)
        return made, count

    async def _on_cubes(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> tuple[dict[str, encoding.Value], Sequence[bytes | memoryview]]:
        face = None if header.get("face") is None else fields.take_int(header, "face", most=2)
        level = fields.take_int(header, "level", most=cube.LEVEL_MAX)
        ask = cube.Ask(level, fields.take_int(header, "place"), face)
        theirs, most = fields.take_bytes(header, "history"), fields.take_int(header, "count")
        made, count = await self.with_peer(caller)
        found: list[encoding.Value] = []
        if level and theirs == made.account:
            found += cube.hashes(made.read, min(count, most), ask)
        return {"v": 1, "history": made.account, "count": count, "hashes": found}, ()

    async def compare(self, peer: bytes) -> tuple[int, int | None] | None:
        """Return how many entries were compared with a peer, and the place of the first other one.

        None where the histories are not the same: one of both has restarted, and the other was
        not told.

        Raises:
            XscError: the peer does not answer, or contradicts itself.
        """
        made, count = await self.with_peer(peer)

        async def answer(ask: cube.Ask) -> dict[str, encoding.Value]:
            header = {"v": 1, "history": made.account, "count": count, **ask._asdict()}
            return (await self._caller.call(peer, CUBES, header)).header

        first = await answer(cube.Ask(0, 0))
        if fields.take_bytes(first, "history") != made.account:
            return None
        count = min(count, fields.take_int(first, "count"))
        search, hashes = cube.search(made.read, count), None
        while True:
            try:
                ask = search.send(hashes)
            except StopIteration as end:
                return count, end.value
            hashes = fields.take_list(await answer(ask), "hashes", most=cube.FACE)

    async def begin_check(self) -> Check:
        """Return what `check` goes by; while nothing is written."""
        return self.now()

    def now(self) -> Check:
        """Return what is sealed at this moment."""
        state = self._chain.state
        peers = {
            peer: (self._chain.sealed(peer), [*self._chain.unsealed(peer)]) for peer in state.dealt
        }
        return Check(state.next_seq, {*state.open}, peers)

    def check(self, now: Check) -> None:
        """Check that every entry that both had signed was sealed, or waited for it.

        Raises:
            LedgerDamaged: a row is missing or damaged.
        """
        state = self._chain.state
        for peer, (sealed, unsealed) in now.peers.items():
            made = Sealing(self._chain, self._chain.history(peer))
            left = sum(
                not half.seals
                and state.first_seq <= half.seq < now.next_seq
                and half.seq not in now.open
                for _, half in state.seen.numbered(peer, self._chain.first_of(peer))
            )
            at = 0
            while at < sealed:
                at += len(made.seal_of(at).entry_ids)
            for entry_id, seq in unsealed:
                own = self._chain.own(seq)
                left -= entry_id == (own.record.link or own.id)
            if left != at:
                raise errors.LedgerDamaged(
                    f"the rows of what is not sealed with {ids.short(peer)} are damaged",
                    hint="restore the home from a backup",
                )
