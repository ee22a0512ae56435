"""Puts an object: cut, encrypt, encode, send to every host, replace hosts that fail.

Touches hosts through `HostClient`. A few segments are on their way at any time, and
each waits for the signed receipts of all its hosts. The last segment goes only
when all others are stored, and carries the sealed manifest and the placement.

A host that fails is replaced by another node; what it held of earlier segments
is built again from the other hosts. Where fewer nodes are up than the code has
shards, its columns move to the hosts that are left, with a warning. An object
ends with every column stored, or is deleted again. docs/design/storage.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from xsc.api.market import PassedOver
from xsc.base import errors, merkle, units
from xsc.base.clock import Entropy, run_sized
from xsc.base.ids import short
from xsc.base.limits import INLINE_BYTES_MAX, OBJECT_BYTES_MAX, SEGMENT_BYTES, SEGMENTS_IN_FLIGHT
from xsc.identity.keys import KeyPair
from xsc.storage.object import messages
from xsc.storage.object import segment as segments
from xsc.storage.object.capability import ReadCapability, VerifyCapability, content_key, verify_key
from xsc.storage.object.durability import Contract, survival
from xsc.storage.object.durability import plan as plan_columns
from xsc.storage.object.erasure import Code, StorageShard, cut
from xsc.storage.object.held import Held, held_of
from xsc.storage.object.inventory import SegmentShards
from xsc.storage.object.manifest import SealedSegment, build, hash_of, open_manifest, seal_manifest
from xsc.storage.object.placement import (
    Placement,
    check_code,
    placement_of,
    warnings_of,
)
from xsc.storage.object.segment import NONCE_BYTES, Place
from xsc.storage.transfer import sending
from xsc.storage.transfer.host_client import HostClient, let_end, stop_all, together
from xsc.storage.transfer.journal import Kept, ResumeJournal
from xsc.storage.transfer.rooms import PLAN_HOSTS_MAX, RoomSearch
from xsc.storage.transfer.sender import ColumnSender
from xsc.terms.lease import LeaseHandle
from xsc.terms.storage_receipt import HeldShard

PUT_ENDS_MS = 10_000
"""How long segments may still be on their way whose client has gone."""

UNKNOWN_SIZE_BYTES = 4 * SEGMENT_BYTES
"""Room asked for at first for a stream of unknown length; it grows as the stream does."""

MANIFEST_SEGMENT_BYTES = 250
"""What a segment adds to a manifest, about."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """An object that is stored whole."""

    capability: str
    size_bytes: int
    sealed: bytes
    placement: Placement
    held: tuple[Held, ...]
    """By host and lease; hosts that failed on the way stand here too."""
    warnings: list[str]
    survives: Contract
    """How many nodes, sites and owners can be lost, whichever they are."""
    passed_over: tuple[PassedOver, ...]
    version: int = 1
    """Its number under the name."""

    @property
    def hosts(self) -> tuple[bytes, ...]:
        """The node of each column."""
        return self.placement.columns


async def cut_stream(source: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, bool]]:
    """Yield the stream in segments, and whether each is the last; empty is one empty segment.

    Raises:
        TooLarge: longer than any object can be.
    """
    pieces: list[memoryview] = []
    size = total = 0
    async for chunk in source:
        total += len(chunk)
        if total > OBJECT_BYTES_MAX:
            raise errors.TooLarge(
                f"an object has at most {OBJECT_BYTES_MAX} bytes", hint="store it in several parts"
            )
        rest = memoryview(chunk)
        # Strictly more: the last segment is known only when something follows it, or nothing.
        while size + len(rest) > SEGMENT_BYTES:
            fits = SEGMENT_BYTES - size
            yield b"".join((*pieces, rest[:fits])), False
            rest = rest[fits:]
            pieces, size = [], 0
        pieces.append(rest)
        size += len(rest)
    yield b"".join(pieces), True


def _cut_segment(
    key: bytes, nonce: bytes, place: Place, plain: bytes, code: Code
) -> tuple[SealedSegment, list[StorageShard]]:
    ciphertext, tag = segments.seal(key, nonce, place, plain)
    shards = cut(ciphertext, code)
    roots = tuple(shard.root for shard in shards)
    return SealedSegment(length=len(plain), nonce=nonce, tag=tag, roots=roots), shards


def changed() -> errors.UploadChanged:
    """Return the error of a put that goes on with another content."""
    return errors.UploadChanged(
        "the content is not the one that the put which broke off had begun with",
        hint="nothing is left of that put; store it again",
    )


class Upload:
    """One put. Used once."""

    def __init__(
        self,
        client: HostClient,
        key: KeyPair,
        entropy: Entropy,
        *,
        code: Code,
        contract: Contract,
        journal: ResumeJournal,
        secret: bytes,
        kept: Kept | None = None,
    ) -> None:
        """Begin.

        Args:
            client: the hosts.
            key: of the owner.
            entropy: for nonces.
            code: of the object.
            contract: what it must survive.
            journal: keeps where something lies that must be deleted should this not end, and
                what it takes to go on after a kill.
            secret: the read secret.
            kept: what a put kept that this one goes on with.
        """
        journal.begins(secret, code)
        self._journal = journal
        self._kept = kept
        self._client = client
        self._key = key
        self._entropy = entropy
        self._code = code
        self._contract = contract
        self._secret = secret
        self._content_key = content_key(secret)
        keys = VerifyCapability(verify_key(secret), bytes(32))
        self._locate = keys.locate
        self._manifest_key = keys.manifest_key
        self._rooms = RoomSearch(client, code, contract)
        self._sender = ColumnSender(
            client,
            self._locate,
            code,
            sending.Sending({}, code.m, contract, replaces=True),
            rooms=self._rooms,
            notes=journal,
        )
        if kept is not None:
            self._sender.held = kept.held()
        self._sealed: dict[int, SealedSegment] = {}

    async def run(self, source: AsyncIterator[bytes], size_hint: int | None) -> Uploaded:
        """Store the stream.

        Args:
            source: the bytes, in chunks of any size.
            size_hint: the length where it is known.

        Raises:
            DurabilityUnreachable: too few nodes for what must be survived; nothing was sent.
            NoOffers, SpaceExhausted: no host, or no other one where one failed.
            XscError: what the last host to try failed with.
        """
        pieces, rooms, kept = cut_stream(source), self._rooms, self._kept
        whole = abandoned = False
        try:
            first, final = await anext(pieces)
            rooms.size_hint = len(first) if final else size_hint or UNKNOWN_SIZE_BYTES
            rooms.note_size(len(first))
            if kept is None:
                await self._choose()
            elif final or kept.code != self._code or not rooms.keeps(kept.nodes):
                # The id was given again with other options: what was stored is deleted.
                raise changed()
            else:
                await self._go_on(kept)
            uploaded = await self._send(first, final, pieces)
            whole = True
        except errors.XscError as fault:
            rooms.note_unplaced(self._sender.state.gone)
            # Somebody was silent: the same put again may go on where this one ended.
            abandoned = not isinstance(fault, errors.UnavailableError)
            raise
        else:
            rooms.note_placed()
            return uploaded
        finally:
            await _close(pieces)
            # Nothing goes on with a put of one segment.
            is_over = not self._journal.resumes or abandoned or self._sender.last == 0
            if not whole and is_over and (self._sender.held or self._journal.begun):
                await self._undo()
            elif not whole and self._journal.begun:
                await self._uncount_records()

    # Going on

    async def _go_on(self, kept: Kept) -> None:
        """Take up where an earlier put of the same content ended."""
        rooms, sender = self._rooms, self._sender
        rooms.size_hint = max(rooms.size_hint, sum(s.length for s in kept.segments.values()))
        columns = dict(enumerate(kept.head.hosts))
        await together(self._ask_for_rest(kept, *item) for item in columns.items())
        whole = kept.whole()
        sender.place(columns)
        for column, lease in columns.items():
            had = (each for each in kept.segments if kept.has(each, column, lease.node))
            sender.before[column] = frozenset(had)
            sender.done[column].update(whole)
        for index in whole:
            self._note(index, kept.segments[index])
        self._journal.moved(sender)
        self._client.log.info("storage.put_goes_on", segments=len(whole))

    async def _ask_for_rest(self, kept: Kept, column: int, lease: LeaseHandle) -> None:
        """Learn from a host what it stored of a column before its receipt could be kept."""
        missing = [
            HeldShard(
                segment=index,
                column=column,
                size_bytes=self._code.shard_bytes(segment.length),
                root=segment.roots[column],
            )
            for index, segment in sorted(kept.segments.items())
            if not kept.has(index, column, lease.node)
        ]
        held: list[HeldShard] = []
        for start in range(0, len(missing), messages.GET_MAX):
            asked = missing[start : start + messages.GET_MAX]
            try:
                held += await self._client.confirmed(
                    messages.HAVE, lease, self._locate, self._code.generation, asked
                )
            except errors.XscError as fault:
                # What it does not confirm is sent again.
                self._client.log.info(
                    "storage.host_not_asked", peer=short(lease.node), code=fault.code
                )
                break
        for item in held:
            place = Held(lease.node, lease.lease_id, units.held_bytes(item.size_bytes))
            kept.acks[item.segment, column] = place
            self._journal.acked(item.segment, column, place)
            self._sender.count(lease, place.size_bytes)

    # Hosts

    async def _choose(self) -> None:
        never = check_code(self._code, self._contract)
        if never is not None:
            raise errors.DurabilityUnreachable(never.reason, hint=never.hint)
        n, rooms = self._code.n, self._rooms
        leases = await rooms.lease(rooms.size_for(n), n)
        columns = self._plan(leases)
        if len(leases) < n:
            # Each holds several columns, which was not known before.
            leases = await rooms.lease(rooms.size_for(len(leases)), len(leases))
            columns = self._plan(leases)
        elif columns is None:
            # Those that the auction preferred do not do: plan over everybody who has room.
            leases = await rooms.lease(rooms.size_for(n), PLAN_HOSTS_MAX)
            columns = self._plan(leases)
        if columns is None:
            raise await rooms.refusal([lease.node for lease in leases], {})
        by_node = {lease.node: lease for lease in leases}
        self._sender.place({column: by_node[node] for column, node in enumerate(columns)})

    def _plan(self, leases: Sequence[LeaseHandle]) -> tuple[bytes, ...] | None:
        hosts = self._client.labels_of([lease.node for lease in leases])
        return plan_columns(hosts, self._code.n, self._code.m, self._contract)

    # Sending

    async def _send(
        self, first: bytes, final: bool, pieces: AsyncIterator[tuple[bytes, bool]]
    ) -> Uploaded:
        index, size = 0, 0
        plain = first
        running: set[asyncio.Task[None]] = set()
        try:
            while not final:
                await _until_left(running, SEGMENTS_IN_FLIGHT - 1)
                running.add(asyncio.create_task(self._segment(index, plain)))
                size += len(plain)
                index += 1
                plain, final = await anext(pieces)
                self._rooms.note_size(size + len(plain))
            await _until_left(running, 0)
            return await self._end(index, plain, size + len(plain), running)
        except BaseException as fault:
            goes_on = self._journal.resumes and self._sender.last != 0
            if goes_on and not isinstance(fault, errors.XscError):
                # The client went away: what is on its way need not be sent again.
                await let_end(running, self._client.clock, PUT_ENDS_MS)
            raise
        finally:
            await stop_all(running)

    async def _cut(self, index: int, plain: bytes, *, final: bool) -> dict[int, StorageShard]:
        """Return the shards of a segment.

        Raises:
            UploadChanged: the put before sealed it with another content.
        """
        place = Place(self._locate, index, len(plain), final)
        kept = None if self._kept is None else self._kept.segments.get(index)
        nonce = self._entropy.token(NONCE_BYTES) if kept is None else kept.nonce
        sealed, shards = await run_sized(
            self._client.executor,
            len(plain),
            _cut_segment,
            self._content_key,
            nonce,
            place,
            plain,
            self._code,
        )
        if kept is not None and kept != sealed:
            raise changed()
        self._note(index, sealed)
        if self._journal.resumes and kept is None and not (final and index == 0):
            await self._journal.begin(self._sender, index, sealed)
        return {shard.column: shard for shard in shards}

    def _note(self, index: int, sealed: SealedSegment) -> None:
        self._sealed[index] = sealed
        self._sender.segments[index] = SegmentShards(
            self._locate, self._code, index, sealed.length, sealed.roots
        )

    async def _segment(self, index: int, plain: bytes) -> None:
        sender, shards = self._sender, await self._cut(index, plain, final=False)
        if all(index in sender.done[column] for column in sender.state.slots):
            # Stored by the put before: only that it is the same content was still to be seen.
            return
        sender.live[index] = shards
        await together(sender.store(column, index) for column in sender.state.slots)
        del sender.live[index]

    async def _end(
        self, index: int, plain: bytes, size: int, running: set[asyncio.Task[None]]
    ) -> Uploaded:
        """Store the last segment, and the manifest with it."""
        sender = self._sender
        sender.last = index
        inline: bytes | None = None
        if size <= INLINE_BYTES_MAX:
            nonce = self._entropy.token(NONCE_BYTES)
            place = Place(self._locate, 0, size, final=True)
            ciphertext, tag = segments.seal(self._content_key, nonce, place, plain)
            inline = bytes(ciphertext)
            self._note(0, SealedSegment(length=0, nonce=nonce, tag=tag, roots=()))
            sender.live[0] = {}
        else:
            sender.live[index] = await self._cut(index, plain, final=True)
        manifest = build(
            self._key.node_id,
            self._code,
            size,
            [self._sealed[number] for number in range(index + 1)],
            inline=inline,
            survive=self._contract,
        )
        sealed = None if self._kept is None else self._kept.sealed
        again = sealed is not None
        if sealed is not None:
            # Hosts may hold it already, and take no other under the same locate id.
            verify = VerifyCapability(verify_key(self._secret), hash_of(sealed))
            if open_manifest(sealed, verify) != manifest:
                raise changed()
        else:
            sealed = await run_sized(
                self._client.executor,
                (index + 1) * MANIFEST_SEGMENT_BYTES,
                seal_manifest,
                manifest,
                self._manifest_key,
                self._entropy.token(NONCE_BYTES),
            )
            if self._journal.resumes and index:
                await self._journal.sealed(sealed)
        root, digest = merkle.root_of(sealed), hash_of(sealed)
        sender.record = messages.ObjectRecord(sealed, root, digest, again=again)
        await self._rooms.require(sender.state.columns, sender.state.gone)
        running.add(asyncio.create_task(self._store_last(index)))
        await _until_left(running, 0)
        await self._rooms.require(sender.state.columns, sender.state.gone)
        columns = sender.state.columns
        return Uploaded(
            capability=ReadCapability(self._secret, hash_of(sealed)).to_text(),
            size_bytes=size,
            sealed=sealed,
            placement=placement_of(manifest, columns),
            held=held_of(sender.held),
            warnings=warnings_of(columns, self._code, self._client.own),
            survives=survival(self._client.labels_of(columns), self._code.m).shown_for(
                self._contract
            ),
            passed_over=tuple(
                each
                for (node, lease_id), each in self._rooms.passed_over.items()
                if (node, lease_id) not in sender.held and (lease_id or node not in columns)
            ),
        )

    async def _store_last(self, index: int) -> None:
        sender = self._sender
        await together(sender.store(column, index) for column in sender.state.slots)
        await sender.store_records()

    async def _uncount_records(self) -> None:
        """Count no record of a put that may go on: then it is sent, and counted, again."""
        sender = self._sender
        size = 0 if sender.record is None else sender.record.held_bytes
        for node, lease_id in sender.recorded.items():
            sender.held[node, lease_id] -= size
            await self._client.note_freed(node, lease_id, size)
        self._journal.moved(sender)

    # Undoing

    async def _undo(self) -> None:
        """Delete what was stored, as far as hosts can be reached; the rest is asked for again."""
        held = held_of(self._sender.held)
        left, _ = await self._client.delete_all(self._locate, held)
        tell = self._client.log.warning if left else self._client.log.info
        silent = sorted({item.node for item in left})
        hosts = len({item.node for item in held})
        tell("storage.put_undone", hosts=hosts, left_at=[short(node) for node in silent])
        await self._journal.undone(self._sender, left)


async def _until_left(running: set[asyncio.Task[None]], most: int) -> None:
    """Wait until at most so many tasks run; those that are done leave the set.

    Where this is cancelled they go on, unlike those that are gathered.
    """
    while len(running) > most:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in running if task.done()]:
            task.result()
            running.discard(task)


async def _close(pieces: AsyncIterator[tuple[bytes, bool]]) -> None:
    """End a generator that was not read to its end."""
    close = getattr(pieces, "aclose", None)
    if close is not None:
        await close()
