"""What a put keeps on the disk, so that it can go on after a kill; ends puts that did not go on.

    storage/upload/h/<id>                      head: secret, code, hosts
    storage/upload/s/<id><segment>             nonce, tag and roots; on the disk before it is sent
    storage/upload/a/<id><segment><column>     a host's receipt for its column of a segment
    storage/upload/r/<id>                      the sealed manifest, before it is sent

The id is the caller's. A segment is sealed anew under its kept nonce and compared:
where tag or roots differ the content has changed, and nothing of what was
computed leaves this process. So one nonce never protects two contents.
docs/design/storage.md, "Resuming".

How a segment is sealed is synced before it is sent. Receipts are written without
a sync: a kill loses none, and a power failure some, whose shards are sent again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import ClassVar

from xsc.base import errors, limits, turns, units
from xsc.base.ids import ID_BYTES
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.identity.context import Context
from xsc.identity.envelope import Count, Id32, Record
from xsc.storage.object.capability import VerifyCapability, verify_key
from xsc.storage.object.erasure import Code, StorageShard
from xsc.storage.object.held import Held, held_of
from xsc.storage.object.manifest import SealedSegment, hash_of, open_manifest
from xsc.storage.transfer import host_client
from xsc.storage.transfer.sender import ColumnSender, Notes
from xsc.terms.lease import LeaseHandle

PREFIX = b"storage/upload/"
HEAD = PREFIX + b"h/"
SEGMENT = PREFIX + b"s/"
ACK = PREFIX + b"a/"
RECORD = PREFIX + b"r/"
_KINDS = (HEAD, SEGMENT, ACK, RECORD)
UPLOAD_KEPT_MS = 24 * 3_600_000
"""How long a put that broke off may still go on; then what it stored is deleted."""
UPLOADS_INTERVAL_MS = 60_000
"""How often puts that broke off are looked through."""


class Head(Record):
    """What is the same for a whole upload."""

    KIND: ClassVar[str] = "upload_head"

    secret: Id32
    k: Count
    m: Count
    touched_ms: Count
    """When it was begun, or last went on."""
    hosts: tuple[LeaseHandle, ...]
    """Where each column goes; none where nothing goes on with it."""
    places: tuple[Held, ...]
    """What may lie where."""


class Receipted(Record):
    """What a host gave a receipt for."""

    KIND: ClassVar[str] = "upload_receipt"

    at: Held


@dataclass(slots=True)
class Kept:
    """Everything that is kept of one upload."""

    head: Head
    segments: dict[int, SealedSegment] = field(default_factory=dict)
    acks: dict[tuple[int, int], Held] = field(default_factory=dict)
    """By segment and column."""
    sealed: bytes | None = None
    """The sealed manifest, once there is one."""

    @property
    def code(self) -> Code:
        """The code it was begun with."""
        return Code(self.head.k, self.head.m)

    @property
    def nodes(self) -> list[bytes]:
        """The present host of each column."""
        return [lease.node for lease in self.head.hosts]

    def has(self, segment: int, column: int, node: bytes) -> bool:
        """Say whether a host gave a receipt for a column of a segment."""
        ack = self.acks.get((segment, column))
        return ack is not None and ack.node == node

    def whole(self) -> list[int]:
        """Return the segments that every host of now gave a receipt for."""
        return [
            segment
            for segment in sorted(self.segments)
            if all(self.has(segment, *each) for each in enumerate(self.nodes))
        ]

    def stored_bytes(self) -> int:
        """Return how much of the content need not be sent again."""
        return sum(self.segments[segment].length for segment in self.whole())

    def held(self) -> dict[tuple[bytes, bytes], int]:
        """Return what may lie where, by node and lease."""
        places = {(node, lease_id): size for node, lease_id, size in self.head.places}
        receipted: dict[tuple[bytes, bytes], int] = {}
        for node, lease_id, size in self.acks.values():
            receipted[node, lease_id] = receipted.get((node, lease_id), 0) + size
        for place, size in receipted.items():
            places[place] = max(size, places.get(place, 0))
        return places


def segment_change(upload: bytes, index: int, sealed: SealedSegment) -> Change:
    """Return the write that keeps how a segment was sealed."""
    return SEGMENT + upload + index.to_bytes(4, "big"), sealed.to_bytes()


def ack_change(upload: bytes, index: int, column: int, place: Held) -> Change:
    """Return the write that keeps a receipt."""
    key = ACK + upload + index.to_bytes(4, "big") + column.to_bytes(2, "big")
    return key, Receipted(at=place).to_bytes()


def uploads(state: KeyValue) -> Iterator[bytes]:
    """Yield every upload that something is kept of."""
    for key, _ in state.scan(HEAD, prefix_end(HEAD)):
        yield key.removeprefix(HEAD)


def read_head(state: KeyValue, upload: bytes) -> Head | None:
    """Return what is kept of an upload as a whole, or None.

    Raises:
        StoreDamaged: what is kept is not what was written.
    """
    raw = state.get(HEAD + upload)
    if raw is None:
        return None
    try:
        return Head.from_bytes(raw, size_max=limits.MIB)
    except errors.RecordInvalid as fault:
        raise errors.StoreDamaged(f"the journal of a put is damaged: {fault.message}") from None


def read(state: KeyValue, upload: bytes) -> Kept | None:
    """Return what is kept of an upload, or None.

    Raises:
        StoreDamaged: what is kept is not what was written.
    """
    head = read_head(state, upload)
    if head is None:
        return None
    kept = Kept(head)
    try:
        for tail, value in _tails(state, SEGMENT + upload):
            segment = SealedSegment.from_bytes(value)
            kept.segments[int.from_bytes(tail, "big")] = segment
        for tail, value in _tails(state, ACK + upload):
            place = int.from_bytes(tail[:4], "big"), int.from_bytes(tail[4:], "big")
            kept.acks[place] = Receipted.from_bytes(value).at
        kept.sealed = state.get(RECORD + upload)
        if kept.sealed is not None:
            # Whoever goes on sends it as it is: what does not open cannot be sent.
            verify = VerifyCapability(verify_key(head.secret), hash_of(kept.sealed))
            open_manifest(kept.sealed, verify)
    except errors.RecordInvalid as fault:
        raise errors.StoreDamaged(f"the journal of a put is damaged: {fault.message}") from None
    return kept


def read_rest(state: KeyValue, upload: bytes) -> Kept | None:
    """Return what can be read of a journal that is damaged: enough to delete what it speaks of.

    None where the head cannot be read, without which nobody knows the object.
    """
    try:
        head = read_head(state, upload)
    except errors.StoreDamaged:
        return None
    if head is None:
        return None
    kept = Kept(head)
    with suppress(errors.StoreDamaged):
        for tail, value in _tails(state, ACK + upload):
            with suppress(errors.RecordInvalid):
                place = int.from_bytes(tail[:4], "big"), int.from_bytes(tail[4:], "big")
                kept.acks[place] = Receipted.from_bytes(value).at
    # A host whose receipts cannot be read may hold something all the same.
    known = {**{lease[:2]: 0 for lease in head.hosts}, **kept.held()}
    kept.head = head.model_copy(update={"places": held_of(known)})
    return kept


def _tails(state: KeyValue, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    for key, value in state.scan(prefix, prefix_end(prefix)):
        yield key.removeprefix(prefix), value


def forget(state: KeyValue, upload: bytes) -> list[Change]:
    """Return the writes that drop all that is kept of an upload."""
    assert len(upload) == ID_BYTES
    prefixes = [kind + upload for kind in _KINDS]
    return [(key, None) for prefix in prefixes for key, _ in state.scan(prefix, prefix_end(prefix))]


class ResumeJournal(Notes):
    """The journal of one put: where something of it may lie, and what it takes to go on."""

    secret: bytes
    code: Code

    def __init__(self, upload: bytes, context: Context, *, resumes: bool) -> None:
        self.upload = upload
        self.resumes = resumes
        """Whether the put can go on after a kill; nothing goes on with one of one segment."""
        self.begun = False
        """Whether something of this run of the put is kept."""
        self._state = context.state
        self._commit = context.commit
        self._clock = context.clock
        self._executor = context.executor
        self._noted: set[tuple[bytes, bytes]] = set()
        """Where an undo asks, as far as it is kept already."""

    def begins(self, secret: bytes, code: Code) -> None:
        """Take note of what the put begins with."""
        self.secret, self.code = secret, code

    async def going_on(self) -> Kept | None:
        """Return what a put can go on with.

        Raises:
            StoreDamaged: it cannot be read.
        """
        kept = await self._executor.run(read, self._state, self.upload)
        return kept if kept is not None and kept.head.hosts else None

    def _head(
        self, sender: ColumnSender, places: tuple[Held, ...], *, over: bool = False
    ) -> Change:
        """Return the write of the head: of a put that is `over`, hosts are asked for a day."""
        now_ms = self._clock.now_ms()
        head = Head(
            secret=self.secret,
            k=self.code.k,
            m=self.code.m,
            touched_ms=max(0, now_ms - UPLOAD_KEPT_MS) if over else now_ms,
            hosts=() if over else sender.state.leases,
            places=places,
        )
        return HEAD + self.upload, head.to_bytes()

    async def begin(self, sender: ColumnSender, index: int, sealed: SealedSegment) -> None:
        """Keep how a segment is sealed; it may be sent once this returned."""
        changes: list[Change] = [segment_change(self.upload, index, sealed)]
        if not self.begun:
            changes.append(self._head(sender, held_of(sender.held)))
        self.begun = True
        await self._commit(changes)

    def about_to(self, sender: ColumnSender, place: tuple[bytes, bytes]) -> None:
        """Note that an undo must ask that host, and all others that have a column.

        Without a sync: what is counted afterwards is on the disk only where this is.
        """
        if (self.resumes and sender.last != 0) or place in self._noted:
            return
        hosts = (lease[:2] for lease in sender.state.leases)
        noted = dict.fromkeys((*sender.held, *hosts, place), 0)
        self._keep(self._head(sender, held_of(noted), over=True))
        self._noted.update(noted)

    def stored(
        self, sender: ColumnSender, index: int, column: int, shards: Sequence[StorageShard]
    ) -> None:
        """Keep a receipt."""
        if not self.resumes or sender.last == index == 0:
            return
        lease = sender.state.slots[column].lease
        size = units.held_bytes(sum(len(shard.data) for shard in shards), len(shards))
        self.acked(index, column, Held(lease.node, lease.lease_id, size))

    def acked(self, index: int, column: int, place: Held) -> None:
        """Keep a receipt for a column of a segment."""
        self._state.write([ack_change(self.upload, index, column, place)], sync=False)

    def moved(self, sender: ColumnSender) -> None:
        """Keep where columns go from now on."""
        if self.resumes and sender.last != 0:
            self._keep(self._head(sender, held_of(sender.held)))

    def _keep(self, head: Change) -> None:
        self.begun = True
        self._state.write([head], sync=False)

    async def sealed(self, sealed: bytes) -> None:
        """Keep the sealed manifest; it may be sent afterwards."""
        await self._commit([(RECORD + self.upload, sealed)])

    async def undone(self, sender: ColumnSender, left: tuple[Held, ...]) -> None:
        """Keep of a put that has failed only where something of it may lie still."""
        changes = await self.forget()
        if left:
            changes.append(self._head(sender, left, over=True))
        if changes:
            await self._commit(changes)

    async def forget(self) -> list[Change]:
        """Return the writes that drop the journal."""
        if not self.resumes:
            return [(HEAD + self.upload, None)] if self.begun else []
        return await self._executor.run(forget, self._state, self.upload)


class ResumeJournals:
    """All puts that can go on: one at a time for each id, and none for ever.

    Journals have rows by the 100 000 where much was stored: they are gone through in
    threads, so that others are answered meanwhile.
    """

    def __init__(self, context: Context, client: host_client.HostClient) -> None:
        self._context = context
        self._client = client
        self._state = context.state
        self._commit = context.commit
        self._turns: turns.Turns[bytes] = turns.Turns()

    @asynccontextmanager
    async def turn(self, upload: bytes, *, resumes: bool = True) -> AsyncIterator[ResumeJournal]:
        """Give the journal of an upload, once no other put of that id runs."""
        async with self._turns.of(upload):
            yield ResumeJournal(upload, self._context, resumes=resumes)

    async def _forget(self, upload: bytes) -> list[Change]:
        return await self._client.executor.run(forget, self._state, upload)

    async def stored_bytes(self, upload: bytes) -> int:
        """Return how much of an upload's content need not be sent again."""

        def count() -> int:
            try:
                kept = read(self._state, upload)
            except errors.StoreDamaged:
                return 0  # It will begin anew.
            return 0 if kept is None else kept.stored_bytes()

        return await self._client.executor.run(count)

    def orders(self) -> tuple[Counter[bytes], set[bytes]]:
        """Return the bytes under each lease that uploads which have not ended have stored.

        And their leases, as each has something on its way at any time.
        """
        held: Counter[bytes] = Counter()
        doubts: set[bytes] = set()
        for upload in uploads(self._state):
            try:
                kept = read(self._state, upload)
            except errors.StoreDamaged:
                continue  # `expire` tells it, and drops the journal.
            if kept is None:
                continue
            doubts.update({lease.lease_id for lease in kept.head.hosts})
            for (_, lease_id), size in kept.held().items():
                held[lease_id] += size
                doubts.add(lease_id)
        return held, doubts

    async def run(self) -> None:
        """End what nobody goes on with, again and again, until cancelled."""
        while True:
            await self._client.clock.sleep_ms(UPLOADS_INTERVAL_MS)
            await self.expire()

    async def expire(self) -> None:
        """Delete what puts have stored that broke off too long ago, and their journals."""
        now_ms = self._client.clock.now_ms()
        for upload in list(uploads(self._state)):
            if upload in self._turns:
                continue
            async with self.turn(upload):
                try:
                    kept = await self._over(upload, now_ms)
                except errors.StoreDamaged as fault:
                    await self.give_up(upload, fault)
                    continue
                if kept is not None:
                    await self._end(upload, kept, now_ms)

    async def give_up(self, upload: bytes, fault: errors.StoreDamaged) -> None:
        """End a put whose journal is damaged; to be called in its turn.

        The hosts that can still be read of are asked to delete what it stored. Where not even
        the head can be read, hosts drop it by themselves.
        """
        self._client.log.error("storage.journal_damaged", reason=fault.message)
        kept = await self._client.executor.run(read_rest, self._state, upload)
        if kept is None:
            await self._commit(await self._forget(upload))
        else:
            await self._end(upload, kept, self._client.clock.now_ms())

    async def set_apart(self, upload: bytes) -> None:
        """Keep under another id what a put that is over left at silent hosts.

        To be called in the turn of its id, before a put of that id begins anew.
        """
        head = read_head(self._state, upload)
        if head is not None:
            rows = [(HEAD + upload, None), (HEAD + _locate(head), head.to_bytes())]
            await self._commit(rows)

    async def _over(self, upload: bytes, now_ms: int) -> Kept | None:
        """Return what is kept of an upload that nobody went on with for too long, else None."""
        head = read_head(self._state, upload)
        if head is None or now_ms - head.touched_ms < UPLOAD_KEPT_MS:
            return None
        asked_for_good = not head.hosts and now_ms - head.touched_ms < 2 * UPLOAD_KEPT_MS
        if asked_for_good and not any(self._client.is_up(place.node) for place in head.places):
            return None
        return await self._client.executor.run(read, self._state, upload)

    async def _end(self, upload: bytes, kept: Kept, now_ms: int) -> None:
        held, touched_ms = held_of(kept.held()), kept.head.touched_ms
        if kept.head.hosts:
            # Silent hosts are asked from now on, however long this node itself was away.
            touched_ms = now_ms - UPLOAD_KEPT_MS
        # From here on nothing can go on with it: hosts lose its shards one by one.
        head = kept.head.model_copy(update={"hosts": (), "places": held, "touched_ms": touched_ms})
        rows = await self._forget(upload)
        await self._commit([*rows, (HEAD + upload, head.to_bytes())])
        left, _ = await self._client.delete_all(_locate(kept.head), held)
        if left and now_ms - touched_ms < 2 * UPLOAD_KEPT_MS:
            rest = head.model_copy(update={"places": left})
            await self._commit([(HEAD + upload, rest.to_bytes())])
        else:
            await self._commit([(HEAD + upload, None)])
        self._client.log.info("storage.upload_ended", hosts=len(held), left_at=len(left))


def _locate(head: Head) -> bytes:
    """Return what hosts file the object under."""
    return VerifyCapability(verify_key(head.secret), bytes(32)).locate
