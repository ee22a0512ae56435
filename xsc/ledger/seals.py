"""Seals entries together with peers, and compares what is sealed.

    ledger.cubes  history, count, level, place, face: which history, of how many entries; which
                  cube, and of it a face, or None for the hashes of its faces. Level 0 asks for none
        -> history, count, hashes: none where the histories are not the same

The node of the lower id starts a seal, over entries that both parties have signed. It is proposed
and answered as every entry is (`proposals`), and moves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import Final

from xsc.base import encoding, errors, fields, ids, peering
from xsc.base.peering import Answered, Header, Parts
from xsc.identity.context import Context
from xsc.ledger import cube
from xsc.ledger.chain import END, Chain, Part, key_of
from xsc.ledger.entry import Half
from xsc.ledger.exchange import HistoryExchange
from xsc.ledger.index import SEAL, SHARED
from xsc.ledger.proposals import Proposals
from xsc.terms.voucher import Voucher

CUBES: Final = "ledger.cubes"


class Seals(Part):
    """The seals of one node."""

    def __init__(
        self, context: Context, chain: Chain, exchange: HistoryExchange, proposals: Proposals
    ) -> None:
        super().__init__(context, chain)
        self._exchange = exchange
        self._proposals = proposals
        self._made: dict[bytes, cube.Cells] = {}
        self._making = asyncio.Lock()
        proposals.checks["seal"] = self._check

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers peers, by method."""
        return {CUBES: self._on_cubes}

    def _firsts(self, peer: bytes) -> dict[bytes, int]:
        return {self._own: self._chain.state.first_seq, peer: self._chain.first_of(peer)}

    def history(self, peer: bytes) -> bytes:
        """Return what names the sealed history with a peer, as far as both incarnations are known.

        It is the account of its seals, too.
        """
        return cube.history(self._firsts(peer))

    def shared(self, peer: bytes, first: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Yield the entries of that history, by the number of the half of the lower id.

        Seals are left out.

        Args:
            peer: with whom.
            first: the least of these numbers.
            stop: above the highest.
        """
        (_, low), (_, high) = sorted(self._firsts(peer).items())
        key, first = SHARED + peer, max(first, low)
        ends = key_of(key, first), key_of(key, max(first, stop))
        for at, row in self._chain.state.index.scan(*ends):
            if int.from_bytes(row[-8:], "big") >= high:
                yield int.from_bytes(at[-8:], "big"), row[:-8]

    def unsealed(self, peer: bytes, stop: int = END) -> Iterator[tuple[int, bytes]]:
        """Yield those that wait for a seal, up to a number."""
        return self.shared(peer, self._chain.state.sealed.get(peer, 0), stop)

    def _check(self, half: Half, _: Voucher) -> str | None:
        """Return why this node does not seal what a peer says at this moment."""
        if half.account != self.history(half.credit):
            return "the seal is of other incarnations"
        waiting = islice(self.unsealed(half.credit, half.amount_micro), cube.SEALED_MAX + 1)
        entry_ids = sorted(entry_id for _, entry_id in waiting)
        if not 0 < len(entry_ids) <= cube.SEALED_MAX or half.receipt != cube.seal_hash(entry_ids):
            return "the seal is not over what waits for one here"
        return "the seal is over numbers to come" if half.amount_micro > half.seq else None

    async def seal_all(self) -> None:
        """Seal what waits with each peer that is to be asked by this node and answers."""
        peers = [peer for peer in self._chain.state.balances if peer > self._own]
        await asyncio.gather(*map(self._seal, peers))

    async def _seal(self, peer: bytes) -> None:
        try:
            while self._exchange.is_heard(peer):
                seq = await self._chain.commit(self._begin, peer)
                if seq is None:
                    return
                await self._proposals.propose(seq)
        except errors.XscError as fault:
            self._log.info("ledger.unsealed", peer=ids.short(peer), code=fault.code)

    def _begin(self, peer: bytes) -> int | None:
        """Return the number of the own half of the next seal; None where nothing waits."""
        account, stop = self.history(peer), END
        for seq, item in [*self._chain.state.open.items()]:
            if item.debtor == peer and item.amount_micro:
                # What may be settled below a seal later would be in none.
                stop = min(stop, seq)
            elif item.debtor == peer and item.account == account:
                return seq
            elif item.debtor == peer:
                self._proposals.void(seq)  # a seal of a history that is over
        waiting = [*islice(self.unsealed(peer, stop), cube.SEALED_MAX)]
        if not waiting:
            return None
        below = waiting[-1][0] + 1
        receipt = cube.seal_hash(sorted(entry_id for _, entry_id in waiting))
        under = cube.seal_voucher(account, receipt, below, debtor=peer, creditor=self._own)
        return self._proposals.begin(under, below, kind="seal")

    async def with_peer(self, peer: bytes) -> tuple[cube.Cells, int]:
        """Return the cells of what is sealed with a peer, and of how many entries they are."""
        async with self._making:
            history = self.history(peer)
            if (made := self._made.get(peer)) is None or made.history != history:
                self._made[peer] = made = cube.Cells(history)
            await self._executor.run(self._grow, peer, made)
            return made, made.count()

    def _grow(self, peer: bytes, made: cube.Cells) -> None:
        """Add the cells of the seals that came since."""
        key = SEAL + made.history
        ends = key_of(key, made.below + 1), key_of(key, END)
        for at, begins in self._chain.state.index.scan(*ends):
            below = int.from_bytes(at[-8:], "big")
            entries = self.shared(peer, int.from_bytes(begins, "big"), below)
            made.add(sorted(entry_id for _, entry_id in entries))
            made.below = below

    async def _on_cubes(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        face = None if header.get("face") is None else fields.take_int(header, "face", most=2)
        level = fields.take_int(header, "level", most=cube.LEVEL_MAX)
        ask = cube.Ask(level, fields.take_int(header, "place"), face)
        theirs, most = fields.take_bytes(header, "history"), fields.take_int(header, "count")
        made, count = await self.with_peer(caller)
        found: list[encoding.Value] = []
        if level and theirs == made.history:
            found += made.hashes(min(count, most), ask)
        return {"v": 1, "history": made.history, "count": count, "hashes": found}, ()

    async def compare(self, peer: bytes) -> tuple[int, int | None] | None:
        """Return how many entries were compared with a peer, and the place of the first other one.

        None where the histories are not the same: one of both has restarted, and the other was
        not told.

        Raises:
            XscError: the peer does not answer, or contradicts itself.
        """
        made, count = await self.with_peer(peer)

        async def answer(ask: cube.Ask) -> dict[str, encoding.Value]:
            header = {"v": 1, "history": made.history, "count": count, **ask._asdict()}
            return (await self._caller.call(peer, CUBES, header)).header

        first = await answer(cube.Ask(0, 0))
        if fields.take_bytes(first, "history") != made.history:
            return None
        count = min(count, fields.take_int(first, "count"))
        search, hashes = cube.search(made, count), None
        while True:
            try:
                ask = search.send(hashes)
            except StopIteration as end:
                return count, end.value
            hashes = fields.take_list(await answer(ask), "hashes", most=cube.FACE)
