"""Finds forks: compares with peers what others signed, and spreads the proofs through the space.

    ledger.compare  seen: author, number and id of halves; half: one that the other has otherwise
        -> differ: the place of one that this node has otherwise; half: its own one

Who asks shows no half until it hears that the other has another one of that number, and gets that
one for its own. Proofs are published at `ledger/forks/<author>` by all that hold them. A round
takes what peers have published, compares, and publishes in turn.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from typing import Final

from xsc.base import encoding, fields, ids, peering
from xsc.base.errors import LimitError, NotFound, PeerError, ProofInvalid, RecordInvalid, XscError
from xsc.base.limits import AMOUNT_MAX
from xsc.base.peering import Answered, Header, Parts
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, read_claimed
from xsc.ledger.chain import Chain, Part
from xsc.ledger.checkpoints import COSIGN_TIMEOUT_MS, Checkpoints, Circle
from xsc.ledger.entry import Half, open_half
from xsc.ledger.fork import fork_bytes
from xsc.space.paths import UserSpacePaths, below

COMPARE: Final = "ledger.compare"
COMPARED_MAX = 256
"""Halves of one question."""


class ForkGossip(Part):
    """What one node and its peers tell each other of forks.

    Args:
        context: of the node.
        chain: has what others signed.
        checkpoints: takes what peers publish of theirs.
        circle: the peers, and the space.
    """

    def __init__(
        self, context: Context, chain: Chain, checkpoints: Checkpoints, circle: Circle
    ) -> None:
        super().__init__(context, chain)
        self._forks = chain.forks
        self._checkpoints = checkpoints
        self._circle = circle
        self._settled = array("Q")
        """Own numbers of what may be compared, in the order in which it was settled."""
        self._open: set[int] = set()
        """Those that had no answer when it was looked last."""
        self._next_seq = max(0, chain.state.next_seq - COMPARED_MAX)
        """The one from which on it was not looked."""
        self._compared: dict[bytes, int] = {}
        """By peer, how many of them it was asked for."""
        self._shown: dict[bytes, Signed[Half] | None] = {}
        """By peer, the half that it is being shown; None once it did not show its own one: such a
        peer is shown no more."""
        self._taken: dict[tuple[bytes, str], bytes | None] = {}
        """By peer and path, the hash of the value that was taken last."""

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers peers, by method."""
        return {COMPARE: self._on_compare}

    async def round(self) -> None:
        """Take what peers publish, compare with those that are up, and publish what counts."""
        state, peers = self._chain.state, self._circle.peers.peers()
        new = [*self._open, *range(max(self._next_seq, state.first_seq), state.next_seq)]
        self._settled.extend(seq for seq in new if seq not in state.open)
        self._open, self._next_seq = {*new} & state.open.keys(), state.next_seq
        for peer in peers:
            await self._take(peer, peers)
        await asyncio.gather(*(self._compare(peer) for peer in peers if self._circle.is_up(peer)))
        await self._publish()

    # What is published

    async def _take(self, peer: bytes, peers: Sequence[bytes]) -> None:
        """Take what is new of a peer: its checkpoint, and proofs against other peers.

        One of a node that is no peer would be kept for good, and there are keys without end.
        """
        wanted = {below(UserSpacePaths.FORKS, each): each for each in peers}
        for record in self._circle.space.ls(UserSpacePaths.LEDGER, peer):
            path, author = record.path, wanted.get(record.path)
            if author is None and path != UserSpacePaths.CHECKPOINT:
                continue
            if self._taken.get((peer, path)) == record.digest:
                continue
            await asyncio.sleep(0)
            try:
                raw = self._circle.space.get(path, peer).value
                if raw is None:
                    continue
                self._taken[peer, path] = record.digest
                if author is None:
                    await self._checkpoints.see(peer, raw)
                else:
                    await self._forks.keep(raw, author)
            except NotFound:
                continue
            except (PeerError, LimitError, ProofInvalid) as fault:
                self._log.warning("ledger.published_wrong", peer=ids.short(peer), code=fault.code)

    async def _publish(self) -> None:
        """Write the proofs that count, and take back those that do not any more."""
        proofs = self._forks.all().items()
        wanted = {below(UserSpacePaths.FORKS, author): proof for author, proof in proofs}
        there = {record.path for record in self._circle.space.ls(UserSpacePaths.FORKS)}
        for path in sorted(there | wanted.keys()):
            await self._circle.put(path, wanted.get(path))

    async def pardon(self, author: bytes) -> int:
        """Hold no fork against an author any more up to all that it has signed as far as is known.

        Returns:
            The number up to which; a fork at a later one bars it again.

        Raises:
            NotFound: none is held against it.
        """
        last = self._checkpoints.last_of(author)
        signed = 0 if last is None else last.first_seq + last.size
        newest = self._chain.state.seen.numbered(author, 0, reverse=True)
        return await self._forks.pardon(author, max(signed, next(iter(newest), (0,))[0]))

    # What is compared

    async def _compare(self, peer: bytes) -> None:
        """Ask a peer for what settled since, and show it a half that it has otherwise."""
        try:
            # It is asked again for what it left unanswered, and shown nothing else.
            half = self._shown[peer] if peer in self._shown else await self._differing(peer)
            if half is not None:
                self._shown[peer] = half
                reply = await self._call(peer, {"v": 1, "seen": [], "half": half.raw})
                self._shown[peer] = None
                other = fields.take_bytes(reply.header, "half")
                await self._forks.keep(fork_bytes(half.raw, other))
                self._shown.pop(peer, None)
        except XscError as fault:
            self._log.info("ledger.not_compared", peer=ids.short(peer), code=fault.code)

    async def _differing(self, peer: bytes) -> Signed[Half] | None:
        """Return the first half that a peer has otherwise, of those that it was not asked for."""
        start = self._compared.get(peer, 0)
        numbers = self._settled[start : start + COMPARED_MAX]
        stop, halves = start + len(numbers), await self._executor.run(self._heard, numbers)
        # Of whom a fork is known, nothing more is to be found.
        asked = [
            (at, half)
            for at, half in halves
            if half.author != peer and self._forks.of(half.author) is None
        ]
        found: Signed[Half] | None = None
        if asked:
            seen: list[encoding.Value] = [[h.author, h.record.seq, h.id] for _, h in asked]
            reply = await self._call(peer, {"v": 1, "seen": seen, "half": None})
            # One half a round: a liar learns no more than one.
            for place in fields.take_list(reply.header, "differ", most=COMPARED_MAX)[:1]:
                if isinstance(place, int) and 0 <= place < len(asked):
                    at, found = asked[place]
                    stop = start + at + 1
        self._compared[peer] = stop
        return found

    async def _call(self, peer: bytes, header: dict[str, encoding.Value]) -> peering.Reply:
        return await self._caller.call(peer, COMPARE, header, timeout_ms=COSIGN_TIMEOUT_MS)

    def _heard(self, numbers: Sequence[int]) -> list[tuple[int, Signed[Half]]]:
        """Return the halves of peers beside own ones, and where in the numbers each is."""
        rows = ((at, self._chain.find(seq)) for at, seq in enumerate(numbers))
        raws = ((at, row.other) for at, row in rows if row)
        return [(at, read_claimed(raw, Half, network=self._network)) for at, raw in raws if raw]

    # What peers ask

    async def _on_compare(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        differ: list[encoding.Value] = []
        for place, item in enumerate(fields.take_list(header, "seen", most=COMPARED_MAX)):
            match item:
                case [bytes(author), int(seq), bytes(entry_id)] if 0 <= seq <= AMOUNT_MAX:
                    known = self._chain.state.seen.get(author, seq)
                    if known is not None and known.id != entry_id and author != caller:
                        differ = [place]
                        break
                case _:
                    raise RecordInvalid("what is compared is author, number and id of a half")
        own: bytes | None = None
        if (raw := fields.take_opt_bytes(header, "half")) is not None:
            half = open_half(raw, network=self._network)
            if (own := self._chain.contradicted(half)) is not None:
                await self._forks.keep(fork_bytes(own, raw))
        return {"v": 1, "differ": differ, "half": own}, ()
