"""Keeps the node's directory at its peers: written after changes, told until they have it.

Changes within DIRECTORY_DELAY_MS are one write, and the time between two writes
is at least DIRECTORY_INTERVAL_MS and twenty times what the last one took. The
head is on the own disk before a peer sees it, so that a generation never stands
for two directories. A directory that is too large for the head is an object of a
hidden name; the one before it is deleted once a peer has the new head.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from xsc.base.clock import Clock, Entropy, Executor
from xsc.base.encoding import Value, decode, encode, tagged_sha256
from xsc.base.errors import RateLimited, RecordInvalid, StoreDamaged, XscError
from xsc.base.fields import take_bool, take_bytes, take_int
from xsc.base.ids import short
from xsc.base.keyvalue import KeyValue
from xsc.base.limits import (
    DIRECTORY_DELAY_MS,
    DIRECTORY_INLINE_BYTES_MAX,
    DIRECTORY_INTERVAL_MS,
    MIB,
    STORAGE_QUESTION_TIMEOUT_MS,
)
from xsc.base.log import Log
from xsc.base.merkle import Part, root_of
from xsc.identity.keys import KeyPair
from xsc.net.service import PeerNet
from xsc.storage.directory import HeadBody, KnownPeer, body_bytes, make_head, open_body, pack
from xsc.storage.directory import open_head as open_signed_head
from xsc.storage.heads import HEAD_PUT
from xsc.storage.names import HIDDEN
from xsc.storage.service import StorageService

STATE = b"node/directory"
OBJECT_NAME = f"{HIDDEN}directory"
NONCE_BYTES = 12


async def _blocks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), MIB):
        yield data[start : start + MIB]


class DirectoryKeeper:
    """See the module."""

    def __init__(
        self,
        *,
        key: KeyPair,
        network: bytes,
        clock: Clock,
        entropy: Entropy,
        executor: Executor,
        peers: PeerNet,
        storage: StorageService,
        weight_ppm: Callable[[bytes], int],
        state: KeyValue,
        log: Log,
    ) -> None:
        self._key = key
        self._network = network
        self._clock = clock
        self._entropy = entropy
        self._executor = executor
        self._peers = peers
        self._storage = storage
        self._weight_ppm = weight_ppm
        self._state = state
        self._log = log
        self.on_old_copy: Callable[[], None] = lambda: None
        """Called when a peer shows a head that this node signed and this home does not have."""
        self._awake = asyncio.Event()
        self._told: dict[bytes, int] = {}
        self.generation = 0
        self._digest = b""
        self._raw = b""
        raw = state.get(STATE)
        if raw is not None:
            value = decode(raw, size_max=8 * MIB)
            if not isinstance(value, dict) or value.get("v") != 1:
                raise StoreDamaged("the own directory head is of no known form")
            self.generation = take_int(value, "generation")
            self._digest = take_bytes(value, "digest")
            self._raw = take_bytes(value, "head")
        storage.on_change = self.wake

    @property
    def head(self) -> bytes:
        """The signed head that this node wrote last; empty before the first."""
        return self._raw

    def wake(self) -> None:
        """Look soon whether there is something to write or somebody to tell."""
        self._awake.set()

    async def run(self) -> None:
        """Write and tell whenever something changed, until cancelled."""
        self.wake()
        while True:
            await self._awake.wait()
            await self._clock.sleep_ms(DIRECTORY_DELAY_MS)
            self._awake.clear()
            begun_ms = self._clock.monotonic_ms()
            await self.write()
            taken_ms = self._clock.monotonic_ms() - begun_ms
            await self.tell()
            await self._clock.sleep_ms(max(DIRECTORY_INTERVAL_MS, 20 * taken_ms))

    def _known(self) -> tuple[KnownPeer, ...]:
        infos = [self._peers.info(peer) for peer in sorted(self._peers.peers())]
        return tuple(
            KnownPeer(
                info.node_id,
                info.name,
                tuple(info.addresses),
                info.fingerprint,
                info.seq,
                self._weight_ppm(info.node_id),
            )
            for info in infos
        )

    async def write(self) -> bool:
        """Make a new head where something changed; return whether it did."""
        packed = await self._executor.run(lambda: pack(self._storage.directory()))
        peers = self._known()
        shown = body_bytes(HeadBody(0, peers, b"", None))
        digest = tagged_sha256("directory-content", tagged_sha256("directory", packed), shown)
        if digest == self._digest or not peers:
            return False
        before = self._storage_capability()
        capability: str | None = None
        if len(packed) > DIRECTORY_INLINE_BYTES_MAX:
            done = await self._storage.put(_blocks(packed), name=OBJECT_NAME, size_hint=len(packed))
            capability = done.capability
        body = HeadBody(
            self._clock.now_ms(), peers, packed if capability is None else None, capability
        )
        await self.keep(
            make_head(
                body,
                self.generation + 1,
                self._key,
                self._network,
                self._entropy.token(NONCE_BYTES),
            ).raw,
            digest,
        )
        if await self.tell() and before is not None:
            with suppress(XscError):
                await self._storage.rm(before)
        return True

    def _storage_capability(self) -> str | None:
        """Return the capability of the directory object that the present head names."""
        if not self._raw:
            return None
        head = open_signed_head(self._raw, self._key.node_id, self._network)
        return open_body(head.record, self._key).capability

    async def keep(self, raw: bytes, digest: bytes = b"") -> None:
        """Take a head as the present one, on the disk."""
        head = open_signed_head(raw, self._key.node_id, self._network)
        row: dict[str, Value] = {
            "v": 1,
            "generation": head.record.generation,
            "digest": digest,
            "head": raw,
        }
        changes: list[tuple[bytes, bytes | None]] = [(STATE, encode(row))]
        await self._executor.run(lambda: self._state.write(changes, sync=True))
        self.generation, self._digest, self._raw = head.record.generation, digest, raw

    def copies_beside(self, peer: bytes) -> int:
        """Return how many peers beside that one are known to have the present head."""
        return sum(
            generation == self.generation
            for node, generation in self._told.items()
            if node != peer and node in self._peers.peers()
        )

    async def tell(self) -> int:
        """Send the head to every peer that does not have it; return how many have it now."""
        if self._raw:
            waiting = [
                peer for peer in self._peers.peers() if self._told.get(peer, 0) < self.generation
            ]
            await asyncio.gather(
                *(self._tell(peer, self._raw, self.generation) for peer in waiting)
            )
        return sum(generation == self.generation for generation in self._told.values())

    async def _tell(self, peer: bytes, raw: bytes, generation: int) -> None:
        try:
            reply = await self._peers.call(
                peer,
                HEAD_PUT,
                {},
                [Part(raw, root_of(raw))],
                timeout_ms=STORAGE_QUESTION_TIMEOUT_MS,
            )
            if not take_bool(reply.header, "stored"):
                if len(reply.parts) != 1:
                    raise RecordInvalid("a refusal carries the head that is held")
                self._refused(peer, bytes(reply.parts[0]))
                return
        except RateLimited:
            # Not before the next interval is over.
            self.wake()
        except XscError as fault:
            self._log.info("directory_not_told", peer=short(peer), code=fault.code)
        else:
            self._told[peer] = generation
            if all(self._told.get(known) == generation for known in self._peers.peers()):
                self._log.info("directory_told", generation=generation, state="told")

    def _refused(self, peer: bytes, held: bytes) -> None:
        """Stop where a peer shows a head that this node signed and does not have.

        Raises:
            PeerError, TooLarge: what it shows is none.
        """
        head = open_signed_head(held, self._key.node_id, self._network).record
        if head.generation > self.generation or (
            head.generation == self.generation and held != self._raw
        ):
            # This home is an old copy, and must not write over what came after it.
            self._log.error("directory_is_newer_at_peer", peer=short(peer))
            self.on_old_copy()
        elif held != self._raw:
            self._log.warning("directory_refused_without_reason", peer=short(peer))
