"""Writes the node's directory after changes, and sends its head to peers until they have it.

Changes within DIRECTORY_DELAY_MS are one write. The time between two writes is at
least DIRECTORY_INTERVAL_MS and twenty times the duration of the last one. If a caller
waits for a change, it is written at once, together with all changes since the last
head. The head is synced to the own disk before it is sent, so that no generation has
two directories. A directory that is too large for the head is stored as an object under a
hidden name; the previous one is deleted once a peer has the new head.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from xsc.base import clock, encoding, errors, ids, limits, merkle, units
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.ledger.service import LedgerService
from xsc.net.service import PeerNet
from xsc.storage.catalogue import directory, heads, names
from xsc.storage.object.durability import Contract
from xsc.storage.service import StorageService

DIRECTORY_INLINE_BYTES_MAX = 512 * limits.KIB
"""A larger directory is an object of its own."""
DIRECTORY_DELAY_MS = 500
"""Changes of the directory within this time are written together."""
DIRECTORY_INTERVAL_MS = 5_000
"""Least time between two writes of the directory, and between tries to tell peers."""
DIRECTORY_TOLD_MS_MAX = 3_000
"""How long a put waits for its name, and a stop for the last head."""
assert (
    limits.SYNCED_A_PEER_BYTES_MAX
    > limits.SYNCED_MS // DIRECTORY_INTERVAL_MS * limits.DIRECTORY_HEAD_BYTES_MAX
)

STATE = b"node/directory"
OBJECT_NAME = f"{names.HIDDEN}directory"
NONCE_BYTES = 12


async def _blocks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), limits.MIB):
        yield data[start : start + limits.MIB]


def pause_ms(size_bytes: int, taken_ms: int) -> int:
    """Return how long the next head waits after one of that size that took so long to write.

    Though somebody waits for it: a peer stores so many bytes of heads within a time, and what
    keeps the names must not keep the node from all else.
    """
    steps = max(1, units.ceil_div(size_bytes, limits.HEAD_STEP_BYTES))
    return max(limits.DIRECTORY_WAITED_MS * steps, 4 * taken_ms)


@dataclass(slots=True)
class _Waiting:
    """Somebody who waits until so many peers have the directory as it was then."""

    copies: int
    generation: int = 0
    """The first that holds it; 0 until it is written."""
    over: asyncio.Event = field(default_factory=asyncio.Event)


class DirectoryKeeper:
    """Writes the directory head of this node and sends it to its peers.

    Args:
        context: the node's values.
        peers: the peers that are told and listed.
        storage: what the directory lists.
        ledger: what the directory has a summary of.
        background: runs a named task once.
        on_old_copy: called with the fault when a peer shows a head that this node signed and
            this home does not have.
    """

    def __init__(
        self,
        context: Context,
        *,
        peers: PeerNet,
        storage: StorageService,
        ledger: LedgerService,
        background: Callable[[str, Callable[[], Awaitable[None]]], None],
        on_old_copy: Callable[[errors.XscError], None],
    ) -> None:
        self._context = context
        self._peers = peers
        self._storage = storage
        self._ledger = ledger
        self._state = context.state
        self._background = background
        self._on_old_copy = on_old_copy
        self._awake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._running = False
        self._waiting: list[_Waiting] = []
        self._told: dict[bytes, int] = {}
        self._telling: set[bytes] = set()
        self._silent: set[bytes] = set()
        """Peers that have not answered since somebody waited for them in vain."""
        self._replaced: list[str] = []
        """Capabilities of directory objects of before, until a peer has the present head."""
        self.newest: tuple[Signed[directory.DirectoryHead], directory.HeadBody] | None = None
        """The head that this node signed last, and what it says."""
        raw = self._state.get(STATE)
        if raw is not None:
            head = self._opened(raw)
            self.newest = head, directory.open_body(head.record, context.key)
        storage.catalogue.on_change = self.wake
        ledger.chain.on_change = self.wake

    def _opened(self, raw: bytes) -> Signed[directory.DirectoryHead]:
        return directory.open_head(raw, self._context.key.node_id, self._context.network)

    @property
    def head(self) -> bytes:
        """The signed head that this node wrote last; empty before the first."""
        return b"" if self.newest is None else self.newest[0].raw

    @property
    def generation(self) -> int:
        """The generation of that head; 0 before the first."""
        return 0 if self.newest is None else self.newest[0].record.generation

    def wake(self) -> None:
        """Look soon whether there is something to write or somebody to tell."""
        self._awake.set()

    async def run(self) -> None:
        """Write and tell whenever something changed, until cancelled."""
        self.wake()
        self._running = True
        try:
            while True:
                await self._awake.wait()
                if not self._is_waited_for():
                    await clock.rest(self._context.clock, self._hurry, DIRECTORY_DELAY_MS)
                self._awake.clear()
                self._hurry.clear()
                begun_ms = self._context.clock.monotonic_ms()
                await self.write()
                taken_ms = self._context.clock.monotonic_ms() - begun_ms
                self._tell()
                pause = pause_ms(len(self.head), taken_ms)
                await self._context.clock.sleep_ms(pause)
                if not self._is_waited_for():
                    rest_ms = max(DIRECTORY_INTERVAL_MS, 20 * taken_ms) - pause
                    await clock.rest(self._context.clock, self._hurry, max(0, rest_ms))
        finally:
            self._running = False

    def _is_waited_for(self) -> bool:
        return any(not waiting.generation for waiting in self._waiting)

    async def told(self, copies: int | None = None) -> tuple[int, int]:
        """Have the directory as it is now told at once; return how many peers have it, and should.

        Waits until as many have it as should, until all have answered, or for
        DIRECTORY_TOLD_MS_MAX; for a peer that was waited for in vain not again before it answers.

        Args:
            copies: how many peers should have it; all where None or where there are fewer.
        """
        known = len(self._peers.peers())
        waiting = _Waiting(known if copies is None else min(copies, known))
        if self._running and waiting.copies:
            self._waiting.append(waiting)
            self.wake()
            self._hurry.set()
            try:
                await clock.rest(self._context.clock, waiting.over, DIRECTORY_TOLD_MS_MAX)
            finally:
                self._waiting.remove(waiting)
        found = self._copies(waiting.generation) if waiting.generation else 0
        if waiting.generation and found < waiting.copies:
            self._silent |= self._telling
        return found, waiting.copies

    def _copies(self, generation: int, *, beside: bytes = b"") -> int:
        """Return how many peers, beside one, have a head of that generation or a later one."""
        peers = [peer for peer in self._peers.peers() if peer != beside]
        return sum(self._told.get(peer, -1) >= generation for peer in peers)

    def _end_waiting(self) -> None:
        """Wake those for whom enough is told, or nobody is left who may answer in time."""
        for waiting in self._waiting:
            if waiting.generation and (
                self._telling <= self._silent or self._copies(waiting.generation) >= waiting.copies
            ):
                waiting.over.set()

    def _known(self) -> tuple[bytes, ...]:
        """Return the known peers, without what only they or this node have signed of them."""
        bare = {"added_ms": 0, "record": b"", "introducible": False, "member": b""}
        infos = [self._peers.roster.info(peer) for peer in sorted(self._peers.roster.all_peers())]
        return tuple(info.model_copy(update=bare).to_bytes() for info in infos)

    async def write(self) -> bool:
        """Make a new head where something changed; return whether it did."""
        waiting = [each for each in self._waiting if not each.generation]
        made = await self._write()
        for each in waiting:
            each.generation = self.generation
        return made

    async def _write(self) -> bool:
        executor, catalogue = self._context.executor, self._storage.catalogue
        packed = await executor.run(lambda: directory.pack(catalogue.directory()))
        kept = None if self.newest is None else self.newest[1]
        body = directory.HeadBody(
            peers=self._known(),
            directory=packed if kept is None else kept.directory,
            listed=encoding.tagged_sha256("directory", packed),
            ledger=self._ledger.noted().to_bytes(),
            removed=tuple(self._peers.roster.removed()[: limits.REMOVED_LISTED_MAX]),
        )
        if body == kept or not body.peers:
            return False
        # Only a changed one is stored: what an object costs changes the ledger, and so the head.
        if kept is None or body.listed != kept.listed:
            where = await self._placed(packed)
            body = body.model_copy(update={"directory": where})
        await self._sign(body, self.generation + 1)
        if kept is not None and isinstance(kept.directory, str) and kept.listed != body.listed:
            self._replaced.append(kept.directory)
        return True

    async def _placed(self, packed: bytes) -> bytes | str:
        """Return a directory, or the capability of an object that has it, where it is large."""
        if len(packed) <= DIRECTORY_INLINE_BYTES_MAX:
            return packed
        done = await self._storage.put(
            _blocks(packed),
            name=OBJECT_NAME,
            size_hint=len(packed),
            # Names are kept as well as can be, whatever peers are there.
            contract=Contract(),
        )
        return done.capability

    async def go_on_from(self, found: directory.DirectoryHead, body: directory.HeadBody) -> None:
        """Sign anew what a head says that was found at peers.

        Its generation is above all that can have been written: a peer may have been silent,
        or hold a newer head back.
        """
        known = max(found.generation, self.generation)
        await self._sign(body, max(self._context.clock.now_ms(), known + limits.INCARNATION_GAP))

    async def _sign(self, body: directory.HeadBody, generation: int) -> None:
        """Sign the present head, which is on the disk before a peer gets it."""
        key, nonce = self._context.key, self._context.entropy.token(NONCE_BYTES)
        head = directory.make_head(body, generation, key, self._context.network, nonce)
        await self._context.executor.run(lambda: self._state.write([(STATE, head.raw)], sync=True))
        self.newest = head, body

    def copies_beside(self, peer: bytes) -> int:
        """Return how many peers beside that one are known to have the present head."""
        return self._copies(self.generation, beside=peer)

    def _tell(self) -> None:
        """Send the head, in the background, to every peer that does not have it."""
        if self.head:
            for peer in self._peers.peers():
                if self._told.get(peer, 0) < self.generation and peer not in self._telling:
                    self._telling.add(peer)
                    self._background("tell_directory", partial(self._tell_peer, peer))
        self._end_waiting()

    async def _tell_peer(self, peer: bytes) -> None:
        """Send the newest head to one peer until it has it, or does not take it."""
        try:
            while self._told.get(peer, 0) < (generation := self.generation):
                await self._send(peer, self.head)
                self._told[peer] = generation
                self._silent.discard(peer)
                self._end_waiting()
                if all(self._told.get(known) == generation for known in self._peers.peers()):
                    self._context.log.info("directory.told", generation=generation, state="told")
                while self._replaced and generation == self.generation:
                    with suppress(errors.XscError):
                        await self._storage.rm(self._replaced.pop())
        except errors.RateLimited:
            self.wake()  # not before the next interval is over
        except errors.XscError as fault:
            self._context.log.info("directory.not_told", peer=ids.short(peer), code=fault.code)
        finally:
            self._telling.discard(peer)
            self._end_waiting()

    async def _send(self, peer: bytes, raw: bytes) -> None:
        """Send a head to a peer; stop where the peer shows one that this home does not have.

        Raises:
            XscError: the peer did not store it.
        """
        parts = [merkle.Part(raw, merkle.root_of(raw))]
        reply = await self._peers.call(
            peer, heads.HEAD_PUT, {}, parts, timeout_ms=limits.STORAGE_QUESTION_TIMEOUT_MS
        )
        if not reply.parts:
            return
        head, generation = self._opened(bytes(reply.parts[0])), self.generation
        if head.record.generation > generation or (
            head.record.generation == generation and head.raw != self.head
        ):
            # This home is an old copy, and must not write over what came after it.
            self._context.log.error("directory.newer_at_peer", peer=ids.short(peer))
            self._on_old_copy(
                errors.StoreDamaged(
                    "a peer holds a newer directory of this node: this home is an old copy",
                    hint="restore the latest home, or recover it: xsc node recover",
                )
            )
        raise errors.RecordInvalid("the peer did not store the head")
