"""Seals entries together with peers, and compares what is sealed.

    ledger.cubes  history, count, level, index, face: which history, of how many entries; which
                  cube, and of it a face, or None for the hashes of its faces. Level 0: only compare
        -> history, count, hashes: none where the histories are not the same

The node of the lower id starts a seal, over entries that both parties have signed. It is proposed
and answered as every entry is (`proposals`), and moves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from xsc.api.ledger import Cubes
from xsc.base import encoding, errors, fields, ids, merkle, peering
from xsc.identity.context import Context
from xsc.identity.envelope import sign
from xsc.ledger import cube, entry
from xsc.ledger.cells import not_following
from xsc.ledger.chain import VOUCHER, Chain
from xsc.ledger.exchange import HistoryExchange
from xsc.ledger.proposals import Proposals
from xsc.ledger.state import LedgerState

SEAL_EVERY_MS = 600_000

CUBES: Final = "ledger.cubes"


@dataclass(frozen=True, slots=True)
class _Compared:
    """How a peer's cubes differ from the own ones."""

    how: Literal["same", "differs", "apart", "silent", "-"]
    shared: int | None = None
    differs: int | None = None
    """Place of the first entry that does."""


class Seals:
    """The seals of one node."""

    def __init__(
        self, context: Context, chain: Chain, exchange: HistoryExchange, proposals: Proposals
    ) -> None:
        self._key = context.key
        self._own = context.key.node_id
        self._network = context.network
        self._clock = context.clock
        self._entropy = context.entropy
        self._caller = context.caller
        self._log = context.log
        self._chain = chain
        self._exchange = exchange
        self._proposals = proposals

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
        state, account = self._chain.state, self._chain.history(peer)
        if (waiting := state.open_under(peer, account)) is not None:
            return waiting
        if not (entry_ids := self._chain.cells.next_ids(peer)):
            return None
        sealed = cube.Sealed(self._chain.sealed(peer), entry_ids)
        half = entry.post_half(
            kind="seal",
            creditor=self._own,
            debtor=peer,
            seq=state.next_seq,
            prev=state.head,
            xid=self._entropy.token(entry.XID_BYTES),
            amount_micro=len(entry_ids),
            account=account,
            receipt=sealed.id,
            created_ms=self._clock.now_ms(),
        )
        under = cube.voucher_of(sealed, half, self._network)
        await self._chain.extend(sign(half, self._key, self._network), under)
        return half.seq

    def _reader(self, peer: bytes) -> cube.ReadCell:
        return lambda level, index: self._chain.cells.read(peer, level, index)

    async def _on_cubes(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> tuple[dict[str, encoding.Value], Sequence[bytes | memoryview]]:
        ask = cube.Ask(
            fields.take_int(header, "level", most=cube.LEVEL_MAX),
            fields.take_int(header, "index"),
            None if header.get("face") is None else fields.take_int(header, "face", most=2),
        )
        own, count = self._chain.history(caller), self._chain.sealed(caller)
        shared = min(count, fields.take_int(header, "count"))
        found: list[encoding.Value] = []
        if ask.level and fields.take_bytes(header, "history") == own:
            found += cube.hashes(self._reader(caller), shared, ask)
        return {"v": 1, "history": own, "count": count, "hashes": found}, ()

    async def cubes(self, peer: bytes, *, compare: bool) -> Cubes:
        """Return what is sealed with a peer, and how the peer's cubes differ where it is asked."""
        sealed = self._chain.sealed(peer)
        found = _Compared("-")
        if compare:
            try:
                found = await self._compare(peer, sealed)
            except errors.LedgerDamaged:
                raise
            except errors.XscError as fault:
                self._log.info("ledger.uncompared", peer=ids.short(peer), code=fault.code)
                found = _Compared("silent")
        at = found.differs
        half = None if at is None else self._chain.own(self._chain.cells.seq_at(peer, at)).record
        return Cubes(
            peer=peer,
            sealed=sealed,
            unsealed=sum(1 for _ in self._chain.cells.unsealed(peer)),
            levels=cube.drawn(sealed, at),
            compared=found.how,
            shared=found.shared,
            entry_id=None if at is None else self._chain.cells.read(peer, 0, at),
            created_ms=None if half is None else half.created_ms,
        )

    async def _compare(self, peer: bytes, sealed: int) -> _Compared:
        """Find the first entry that differs by asking the peer, level by level."""
        history = self._chain.history(peer)

        async def asked(ask: cube.Ask, count: int) -> dict[str, encoding.Value]:
            header: dict[str, encoding.Value] = {
                "v": 1,
                "history": history,
                "count": count,
                "level": ask.level,
                "index": ask.index,
                "face": ask.face,
            }
            return (await self._caller.call(peer, CUBES, header)).header

        first = await asked(cube.Ask(0, 0, None), sealed)
        if fields.take_bytes(first, "history") != history:
            return _Compared("apart")
        shared = min(sealed, fields.take_int(first, "count"))
        search = cube.search(self._reader(peer), shared)
        answer = None
        while True:
            try:
                ask = next(search) if answer is None else search.send(answer)
            except StopIteration as end:
                if end.value is None:
                    return _Compared("same", shared)
                return _Compared("differs", shared, end.value)
            hashes = fields.take_list(await asked(ask, shared), "hashes", most=cube.FACE)
            answer = [each for each in hashes if isinstance(each, bytes)]

    def check(self, state: LedgerState) -> None:
        """Read all rows of the cubes back: they must follow from the halves, and nothing more.

        Args:
            state: what the halves add up to.

        Raises:
            LedgerDamaged: they do not.
        """
        cells, rows = self._chain.cells, 0
        id_of = {known.seq: known.entry_id for known in state.entries.values()}
        for peer, seen in state.seen.items():
            first, history = self._chain.first_of(peer), self._chain.history(peer)
            waiting = {
                id_of[half.seq]: half.seq
                for seq, half in seen.items()
                if not half.seals and half.seq >= state.first_seq and seq >= first
            }
            for seal in sorted(half.seq for half in seen.values() if half.seals):
                if self._chain.own(seal).record.account == history:
                    sealed = cube.open_sealed(self._chain.read(VOUCHER, seal))
                    rows += cells.check(peer, sealed, waiting)
            if dict(cells.unsealed(peer)) != waiting:
                raise not_following(peer)
            rows += len(waiting)
        if cells.count() != rows:
            raise not_following(self._own)
