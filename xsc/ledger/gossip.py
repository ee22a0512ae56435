"""Finds forks: compares with peers what others signed, and spreads the proofs through the space.

    ledger.compare  seen: author, number and id of halves; half: one that the other has otherwise
        -> differ: the place of one that this node has otherwise; half: its own one

Who asks shows no half until it hears that the other has another one of that number, and gets that
one for its own. Proofs are published at `ledger/forks/<author>` by all that hold them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Final

from xsc.base import encoding, fields, ids, merkle, peering
from xsc.base.errors import (
    ArgumentInvalid,
    LimitError,
    NotFound,
    PeerError,
    ProofInvalid,
    RecordInvalid,
    XscError,
)
from xsc.base.limits import AMOUNT_MAX
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, read_claimed
from xsc.ledger.chain import OTHER, Chain, key_of
from xsc.ledger.checkpoints import COSIGN_TIMEOUT_MS, Checkpoints, Circle
from xsc.ledger.entry import Half, open_half
from xsc.ledger.fork import fork_bytes, open_fork
from xsc.space.paths import UserSpacePaths, is_under
from xsc.space.record import Change

COMPARE: Final = "ledger.compare"
COMPARED_MAX = 256
"""Halves of one question."""


class ForkGossip:
    """What one node and its peers tell each other of forks.

    Args:
        context: of the node.
        chain: has what others signed.
        checkpoints: takes what peers publish of theirs.
        circle: the peers, and the space.
        told: called with an author of whom a proof begins or ends to count.
    """

    def __init__(
        self,
        context: Context,
        chain: Chain,
        checkpoints: Checkpoints,
        circle: Circle,
        *,
        told: Callable[[bytes], None],
    ) -> None:
        self._own = context.key.node_id
        self._network = context.network
        self._executor = context.executor
        self._caller = context.caller
        self._log = context.log
        self._chain = chain
        self._forks = chain.forks
        self._checkpoints = checkpoints
        self._told = told
        self._circle = circle
        self._space = circle.space
        self._compared: dict[bytes, int] = {}
        """By peer, the own number from which on it was not asked."""
        self._late: dict[bytes, set[int]] = {}
        """By peer, the own numbers below that had no answer yet."""
        self._shown: dict[bytes, Signed[Half] | None] = {}
        """By peer, the half that it is being shown; None once it did not show its own one: such a
        peer is shown no more."""
        self._news: dict[tuple[bytes, str], None] = {}
        """What may be published, by owner and path."""
        self._woken = asyncio.Event()
        self._forks.on_change = self._changed
        self._space.on_change(self._space_changed)

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers peers, by method."""
        return {COMPARE: self._on_compare}

    def _changed(self, author: bytes) -> None:
        self._told(author)
        self._woken.set()

    def _space_changed(self, change: Change) -> None:
        if change.owner != self._own and is_under(change.path, UserSpacePaths.LEDGER):
            self._news[change.owner, change.path] = None
            self._woken.set()

    def look_at(self, peers: Collection[bytes]) -> None:
        """Take soon what peers have published."""
        for peer in peers:
            there = self._space.ls(UserSpacePaths.LEDGER, peer)
            self._news |= dict.fromkeys((peer, record.path) for record in there)
        self._woken.set()

    async def take(self) -> None:
        """Take what peers publish, and publish the forks that count, as it comes; never returns."""
        self.look_at(self._circle.peers.peers())
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._news:
                place = next(iter(self._news))
                del self._news[place]
                await self._take(*place)
                await asyncio.sleep(0)
            await self._publish_forks()

    async def _take(self, peer: bytes, path: str) -> None:
        """Take one value of a peer: its checkpoint, or a proof against another peer."""
        author = _author_of(path)
        is_proof = author is not None and self._circle.peers.is_peer(author)
        if not self._circle.peers.is_peer(peer) or not (
            is_proof or path == UserSpacePaths.CHECKPOINT
        ):
            return
        try:
            raw = self._space.get(path, peer).value
        except NotFound:
            return
        try:
            if raw is not None and author is None:
                await self._checkpoints.see(peer, raw)
            elif raw is not None and author is not None and self._forks.of(author) is None:
                await self._take_proof(author, raw)
        except (PeerError, LimitError, ProofInvalid) as fault:
            self._log.warning("ledger.published_wrong", peer=ids.short(peer), code=fault.code)

    async def _take_proof(self, author: bytes, raw: bytes) -> None:
        # One of a node that is no peer would be kept for good, and there are keys without end.
        if open_fork(raw, network=self._network).author != author:
            raise RecordInvalid("the proof is against another node than its path says")
        await self._forks.keep(raw)

    async def pardon(self, author: bytes) -> int:
        """Hold no fork against an author any more up to all that it has signed as far as is known.

        Returns:
            The number up to which; a fork at a later one bars it again.

        Raises:
            NotFound: none is held against it.
        """
        mark = self._checkpoints.mark_of(author)
        signed = 0 if mark is None else mark.last.first_seq + mark.last.size
        newest = self._chain.state.seen.numbered(author, 0, reverse=True)
        return await self._forks.pardon(author, max(signed, next(iter(newest), (0,))[0]))

    async def _publish_forks(self) -> None:
        """Write the proofs that count, and take back those that do not any more."""
        wanted = {UserSpacePaths.fork(author): raw for author, raw in self._forks.all().items()}
        there = {record.path for record in self._space.ls(UserSpacePaths.FORKS)}
        for path in there - wanted.keys():
            await self._circle.put(path, None)
        for path, proof in wanted.items():
            await self._circle.put(path, proof)

    async def compare(self) -> None:
        """Ask peers that are up whether they have otherwise what others signed for this node."""
        peers = [peer for peer in self._circle.peers.peers() if self._circle.is_up(peer)]
        await asyncio.gather(*map(self._compare_with, peers))

    async def _compare_with(self, peer: bytes) -> None:
        state = self._chain.state
        begin = max(state.first_seq, state.next_seq - COMPARED_MAX)
        start = max(self._compared.get(peer, begin), state.first_seq)
        stop, late = min(start + COMPARED_MAX, state.next_seq), self._late.setdefault(peer, set())
        answered = sorted(seq for seq in late if seq not in state.open)[:COMPARED_MAX]
        numbers = [*answered, *range(start, stop)][:COMPARED_MAX]
        stop = start + len(numbers) - len(answered)
        waits = {seq for seq in state.open if start <= seq < stop}
        halves = await self._executor.run(self._heard_from, numbers)
        # Of whom a fork is known, nothing more is to be found.
        halves = [h for h in halves if h.author != peer and self._forks.of(h.author) is None]
        try:
            if peer in self._shown:
                # It is asked again for what it left unanswered, and shown nothing else.
                await self._show(peer, self._shown[peer])
                return
            if halves:
                seen: list[encoding.Value] = [[h.author, h.record.seq, h.id] for h in halves]
                header: dict[str, encoding.Value] = {"v": 1, "seen": seen, "half": None}
                reply = await self._call(peer, header)
                # One half a round: a liar learns no more than one.
                for place in fields.take_list(reply.header, "differ", most=COMPARED_MAX)[:1]:
                    if isinstance(place, int) and 0 <= place < len(halves):
                        await self._show(peer, halves[place])
                        return  # The others of these are compared the next time.
        except XscError as fault:
            self._log.info("ledger.not_compared", peer=ids.short(peer), code=fault.code)
            return
        self._compared[peer] = stop
        self._late[peer] = late - {*answered} | waits

    async def _call(self, peer: bytes, header: dict[str, encoding.Value]) -> peering.Reply:
        return await self._caller.call(peer, COMPARE, header, timeout_ms=COSIGN_TIMEOUT_MS)

    def _heard_from(self, numbers: Sequence[int]) -> list[Signed[Half]]:
        """Return the halves of peers beside the own ones of some numbers."""
        rows = (self._chain.get(key_of(OTHER, seq)) for seq in numbers)
        return [read_claimed(raw, Half, network=self._network) for raw in rows if raw is not None]

    async def _show(self, peer: bytes, half: Signed[Half] | None) -> None:
        """Show a half to a peer that has another one of its number, and keep both as a proof."""
        if half is None:
            return
        self._shown[peer] = half
        reply = await self._call(peer, {"v": 1, "seen": [], "half": half.raw})
        self._shown[peer] = None
        await self._forks.keep(fork_bytes(half.raw, fields.take_bytes(reply.header, "half")))
        del self._shown[peer]

    async def _on_compare(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> tuple[dict[str, encoding.Value], Sequence[bytes | memoryview]]:
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


def _author_of(path: str) -> bytes | None:
    """Return against whom a proof at a path is; None where no proof is."""
    begin, _, author = path.rpartition("/")
    try:
        return ids.node_id_from_text(author) if begin == UserSpacePaths.FORKS else None
    except ArgumentInvalid:
        return None
