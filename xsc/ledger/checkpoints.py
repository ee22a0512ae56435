"""Signs checkpoints of the own chain, has them co-signed, and co-signs those of peers.

    ledger.cosign   checkpoint; old, path: proves that it continues the one of that size
        -> size: of the last one of the caller that this node knows; cosigned: the checkpoint with
           this node's signature, None where `old` is not that size

Payments never wait for a checkpoint. It is published in the space, at `ledger/checkpoint`. The
rules are in `checkpoint`.

`ledger-tile/<first><number>`: the root of 256 leaves of an incarnation, which nothing changes any
more, so that a root or a proof does not read all halves. It is written with the first checkpoint
over it. `ledger-checkpoint` is the last own one, `ledger-signed/<author>` that of a peer: the note;
both are synced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from xsc.base import fields, ids, peering
from xsc.base.errors import EntryRefused, LedgerDamaged, NotFound, RecordInvalid, XscError
from xsc.base.peering import Answered, Header, Parts
from xsc.identity.context import Context
from xsc.ledger import checkpoint as rules
from xsc.ledger import tree
from xsc.ledger.chain import SIGNED, TILE, Chain, Part, key_of
from xsc.ledger.checkpoint import Checkpoint, open_checkpoint, open_stored
from xsc.ledger.fork import fork_bytes
from xsc.space.paths import UserSpacePaths
from xsc.space.port import Space

COSIGN: Final = "ledger.cosign"
CHECKPOINT_MS = 600_000
"""From one checkpoint to the next, if the chain has grown."""
LOOK_MS = 60_000
CHECKPOINT_ENTRIES = 256
"""As many new halves do not wait so long."""
COSIGN_TIMEOUT_MS = 5_000
OWN: Final = b"ledger-checkpoint"
TILE_LEAVES = 256


@dataclass(frozen=True, slots=True)
class Circle:
    """What checkpoints need to know of peers."""

    peers: peering.Peers
    is_up: Callable[[bytes], bool]
    weight_ppm: Callable[[bytes], int]
    """Returns this node's recognition of a peer: those that it recognises are to co-sign."""
    space: Space
    before_write: Callable[[], Awaitable[bool]]
    """Gets what a write to the space needs; False where there is nobody to tell."""
    seal: Callable[[], Awaitable[None]]
    """Seals what waits for it, before a checkpoint is signed over it."""

    async def put(self, path: str, value: bytes | None) -> None:
        """Publish a value, unless it is there or there is nobody to tell."""
        try:
            if self.space.get(path).value == value:
                return
        except NotFound:
            pass
        if await self.before_write():
            await self.space.put_all({path: value})


class Leaves:
    """The tree over a chain as it is at this moment.

    Its methods read the store. They raise LedgerDamaged where a half is missing or damaged.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.first_seq = chain.state.first_seq
        self.size = chain.state.next_seq - self.first_seq
        """Halves."""
        self._head = chain.state.head

    def _key(self, number: int) -> bytes:
        return key_of(key_of(TILE, self.first_seq), number)

    def _tile(self, number: int) -> bytes:
        stored = self._chain.store.get(self._key(number))
        return stored or self._hashed(number * TILE_LEAVES, (number + 1) * TILE_LEAVES)

    def _hashed(self, low: int, high: int) -> bytes:
        own, first = self._chain.own, self.first_seq
        return tree.root_of([tree.leaf_hash(own(first + at).id) for at in range(low, high)])

    def top(self, low: int, high: int) -> bytes:
        """Return the root of the leaves from one number, which begins a subtree, to another."""
        if high - low < TILE_LEAVES:
            return self._hashed(low, high)
        tiles = [self._tile(number) for number in range(low // TILE_LEAVES, high // TILE_LEAVES)]
        rest = high // TILE_LEAVES * TILE_LEAVES
        return tree.root_of([*tiles, self._hashed(rest, high)] if rest < high else tiles)

    def check_from(self, size: int) -> Mapping[bytes, bytes]:
        """Read all halves again from a number on; return the rows of the tiles that are full now.

        Raises:
            LedgerDamaged: one does not follow on the one before it, or the last one is not the
                end of the chain.
        """
        low = max(0, size - 1) // TILE_LEAVES * TILE_LEAVES
        before, hashes, rows = None, [], {}
        for index in range(low, self.size):
            half = self._chain.own(self.first_seq + index)
            if before not in {None, half.record.prev}:
                break
            before = half.id
            hashes.append(tree.leaf_hash(before))
            if len(hashes) == TILE_LEAVES:
                rows[self._key(index // TILE_LEAVES)] = tree.root_of(hashes)
                hashes.clear()
        if before != self._head:
            raise _damaged()
        return rows


def _damaged() -> LedgerDamaged:
    return LedgerDamaged(
        "the chain on the disk is not the one that this node works with",
        hint="restart the node; if it happens again, restore the home from a backup",
    )


class Checkpoints(Part):
    """The checkpoints of one node."""

    def __init__(self, context: Context, chain: Chain, circle: Circle) -> None:
        super().__init__(context, chain)
        self._circle = circle
        self._signing = asyncio.Lock()
        self._marking = asyncio.Lock()
        self._signed_ms = context.clock.monotonic_ms()

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers peers, by method."""
        return {COSIGN: self._on_cosign}

    async def round(self) -> None:
        """Sign a checkpoint if one is due."""
        last = self.last()
        new = Leaves(self._chain).size - (0 if last is None else last.size)
        waited_ms = self._clock.monotonic_ms() - self._signed_ms
        if new >= CHECKPOINT_ENTRIES or (waited_ms >= CHECKPOINT_MS and not self._is_whole(last)):
            await self._circle.seal()
            await self.sign()

    # The own checkpoint

    def last(self) -> Checkpoint | None:
        """Return the last own checkpoint of this incarnation."""
        return self._stored(OWN, self._chain.state.first_seq)

    def last_of(self, author: bytes) -> Checkpoint | None:
        """Return the last checkpoint of an author that this node signed or knows of."""
        return self._stored(SIGNED + author, self._chain.first_of(author))

    def _stored(self, key: bytes, first_seq: int) -> Checkpoint | None:
        found = open_stored(self._chain.store.get(key), self._network)
        # Each incarnation begins a tree.
        return found if found is not None and found.first_seq == first_seq else None

    def _is_whole(self, last: Checkpoint | None) -> bool:
        """Return whether a checkpoint covers the chain, and enough have signed it."""
        size = Leaves(self._chain).size
        return not size if last is None else last.size == size and last.is_complete

    async def sign(self) -> Checkpoint | None:
        """Sign how the chain is now, have that co-signed by those that answer, and publish it.

        Returns:
            The checkpoint with the signatures that it has; None of an empty chain.

        Raises:
            LedgerDamaged: the chain on the disk is not the one that this node works with.
        """
        async with self._signing:
            self._signed_ms = self._clock.monotonic_ms()
            # All of it is on the disk: what a crash took back must never have been signed over.
            leaves = await self._chain.commit(Leaves, self._chain)
            if not leaves.size or self._chain.recovering:
                return self.last()
            new = await self._executor.run(self._next, leaves)
            await self._chain.snapshot()
            # Those of the former list first: others ask for their signatures.
            for named in (new.former, new.cosigners):
                todo = [
                    peer
                    for peer in self._circle.peers.peers()
                    if rules.is_listed(peer, named)
                    and peer not in new.signatures
                    and self._circle.is_up(peer)
                ]
                given = await asyncio.gather(*(self._ask(peer, new, leaves) for peer in todo))
                more = {by: raw for by, raw in zip(todo, given, strict=True) if raw is not None}
                new = replace(new, signatures={**new.signatures, **more})
            await self._write(OWN, new.raw)
            await self._circle.put(UserSpacePaths.CHECKPOINT, new.raw)
            return new

    def _next(self, leaves: Leaves) -> Checkpoint:
        """Write the next checkpoint, after all that is new was read from the disk and hashed."""
        last = self.last()
        named = () if last is None else last.cosigners
        known = [
            peer
            for peer in self._circle.peers.peers()
            if self._circle.weight_ppm(peer) > 0
            # Who is down comes to no list, and stays in one.
            and (rules.is_listed(peer, named) or self._circle.is_up(peer))
        ]
        drawn = rules.draw(self._own, known)
        cosigners = rules.listed(drawn)
        if last is not None and not last.is_complete:
            cosigners = named  # The list changes once enough have signed this one.
        if last is not None and (last.size, named) == (leaves.size, cosigners):
            return last
        rows = leaves.check_from(0 if last is None else last.size)
        self._chain.store.write([*rows.items()], sync=False)
        root = leaves.top(0, leaves.size)
        # What a damaged disk gives must never be signed: it would prove a fork.
        if last is not None and leaves.top(0, last.size) != last.root:
            raise _damaged()
        former = named if named != cosigners else ()
        if last is not None and not last.is_complete:
            former = last.former
        new = Checkpoint(
            self._network, self._own, leaves.first_seq, leaves.size, root, cosigners, former
        ).signed(self._key)
        # It is on the disk before anybody sees it: there is no other of this size, ever.
        self._chain.store.write([(OWN, new.raw)], sync=True)
        return new

    async def _ask(self, peer: bytes, new: Checkpoint, leaves: Leaves) -> bytes | None:
        """Have a peer co-sign; return its signature."""
        old, path = 0, list[bytes]()
        try:
            for _ in range(2):
                reply = await self._caller.call(
                    peer,
                    COSIGN,
                    {"v": 1, "checkpoint": new.raw, "old": old, "path": [*path]},
                    timeout_ms=COSIGN_TIMEOUT_MS,
                )
                if (raw := fields.take_opt_bytes(reply.header, "cosigned")) is not None:
                    given = open_checkpoint(raw, network=self._network)
                    return given.signatures.get(peer) if given.text == new.text else None
                old = fields.take_int(reply.header, "size", most=new.size)
                if not old:
                    return None
                path = await self._executor.run(tree.prove_consistency, old, new.size, leaves.top)
        except XscError as fault:
            self._log.info("ledger.not_cosigned", peer=ids.short(peer), reason=fault.message)
        return None

    # Those of peers

    async def _on_cosign(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        new = open_checkpoint(fields.take_bytes(header, "checkpoint"), network=self._network)
        old = fields.take_int(header, "old")
        listed = fields.take_list(header, "path", most=tree.PATH_MAX + 1)
        path = [each for each in listed if isinstance(each, bytes)]
        if new.author != caller or len(path) != len(listed):
            raise RecordInvalid("a checkpoint comes from its author, and a path has hashes")
        if new.first_seq != self._chain.first_of(caller):
            raise EntryRefused("it is of another incarnation than this node was told of")
        async with self._marking:
            last = self.last_of(caller)
            if last is not None and new.contradicts(last):
                await self._chain.forks.keep(fork_bytes(last.bare, new.bare))
            if last is not None and old != last.size:
                return {"v": 1, "size": last.size, "cosigned": None}, ()
            if (reason := rules.why_not_signed(last, new, path, self._own)) is not None:
                raise EntryRefused(f"the checkpoint is not signed: {reason}")
            given = new.signed(self._key, self._clock.now_ms() // 1_000)
            # What it has of others stays: they may be those before it.
            await self._write(SIGNED + caller, new.raw)
        return {"v": 1, "size": new.size, "cosigned": given.raw}, ()

    async def see(self, peer: bytes, raw: bytes) -> None:
        """Note what a peer published; what contradicts the checkpoint noted before proves a fork.

        Raises:
            TooLarge, RecordInvalid, SignatureInvalid: it is not the peer's.
        """
        new = open_checkpoint(raw, network=self._network)
        if new.author != peer:
            raise RecordInvalid("this checkpoint is of another node's ledger")
        if new.first_seq != self._chain.first_of(peer):
            return
        async with self._marking:
            last = self.last_of(peer)
            if last is not None and new.contradicts(last):
                await self._chain.forks.keep(fork_bytes(last.bare, new.bare))
            elif rules.is_followed(last, new):
                await self._write(SIGNED + peer, new.raw)

    async def _write(self, key: bytes, raw: bytes) -> None:
        await self._executor.run(self._chain.store.write, [(key, raw)], sync=True)
