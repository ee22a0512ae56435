"""Writes the journal of a put, and ends puts that broke off and did not go on.

How a segment is sealed is synced before it is sent. Receipts are written without
a sync: a kill loses none, and a power failure some, whose shards are sent again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from xsc.base import errors, ids, turns, units
from xsc.base.keyvalue import Change, KeyValue
from xsc.storage.object.capability import VerifyCapability, verify_key
from xsc.storage.object.erasure import Code, StorageShard
from xsc.storage.object.held import Held, held_of
from xsc.storage.object.manifest import SealedSegment
from xsc.storage.ports import Commit
from xsc.storage.transfer import host_client, journal
from xsc.storage.transfer.journal import Head, Kept
from xsc.storage.transfer.sender import ColumnSender, Notes

UPLOAD_KEPT_MS = 24 * 3_600_000
"""How long a put that broke off may still go on; then what it stored is deleted."""
UPLOADS_INTERVAL_MS = 60_000
"""How often puts that broke off are looked through."""


class ResumeJournal(Notes):
    """The journal of one put: where something of it may lie, and what it takes to go on."""

    secret: bytes
    code: Code

    def __init__(
        self,
        upload: bytes,
        state: KeyValue,
        commit: Commit,
        client: host_client.HostClient,
        *,
        resumes: bool,
    ) -> None:
        self.upload = upload
        self.resumes = resumes
        """Whether the put can go on after a kill; nothing goes on with one of one segment."""
        self.begun = False
        """Whether something of this run of the put is kept."""
        self._state = state
        self._commit = commit
        self._clock = client.clock
        self._executor = client.executor
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
        kept = await self._executor.run(journal.read, self._state, self.upload)
        return kept if kept is not None and kept.head.hosts else None

    def _head(
        self, sender: ColumnSender, held: Mapping[tuple[bytes, bytes], int], *, over: bool = False
    ) -> Change:
        """Return the write of the head: of a put that is `over`, hosts are asked for a day."""
        now_ms = self._clock.now_ms()
        head = Head(
            secret=self.secret,
            k=self.code.k,
            m=self.code.m,
            touched_ms=max(0, now_ms - UPLOAD_KEPT_MS) if over else now_ms,
            hosts=() if over else sender.state.leases,
            places=held_of(held),
        )
        return journal.HEAD + self.upload, head.to_bytes()

    async def begin(
        self, sender: ColumnSender, index: int, length: int, sealed: SealedSegment
    ) -> None:
        """Keep how a segment is sealed; it may be sent once this returned."""
        changes: list[Change] = [journal.segment_change(self.upload, index, length, sealed)]
        if not self.begun:
            changes.append(self._head(sender, sender.held))
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
        self._keep(self._head(sender, noted, over=True))
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
        self._state.write([journal.ack_change(self.upload, index, column, place)], sync=False)

    def moved(self, sender: ColumnSender) -> None:
        """Keep where columns go from now on."""
        if self.resumes and sender.last != 0:
            self._keep(self._head(sender, sender.held))

    def _keep(self, head: Change) -> None:
        self.begun = True
        self._state.write([head], sync=False)

    async def sealed(self, sealed: bytes) -> None:
        """Keep the sealed manifest; it may be sent afterwards."""
        await self._commit([(journal.RECORD + self.upload, sealed)])

    async def undone(self, sender: ColumnSender, left: Mapping[tuple[bytes, bytes], int]) -> None:
        """Keep of a put that has failed only where something of it may lie still."""
        changes = await self.forget()
        if left:
            changes.append(self._head(sender, left, over=True))
        if changes:
            await self._commit(changes)

    async def forget(self) -> list[Change]:
        """Return the writes that drop the journal."""
        if not self.resumes:
            return [(journal.HEAD + self.upload, None)] if self.begun else []
        return await self._executor.run(journal.forget, self._state, self.upload)


class ResumeJournals:
    """All puts that can go on: one at a time for each id, and none for ever.

    Journals have rows by the 100 000 where much was stored: they are gone through in
    threads, so that others are answered meanwhile.
    """

    def __init__(self, client: host_client.HostClient, state: KeyValue, commit: Commit) -> None:
        self._client = client
        self._state = state
        self._commit = commit
        self._turns: turns.Turns[bytes] = turns.Turns()

    @asynccontextmanager
    async def turn(self, upload: bytes, *, resumes: bool = True) -> AsyncIterator[ResumeJournal]:
        """Give the journal of an upload, once no other put of that id runs."""
        async with self._turns.of(upload):
            yield ResumeJournal(upload, self._state, self._commit, self._client, resumes=resumes)

    async def _forget(self, upload: bytes) -> list[Change]:
        return await self._client.executor.run(journal.forget, self._state, upload)

    async def stored_bytes(self, upload: bytes) -> int:
        """Return how much of an upload's content need not be sent again."""

        def count() -> int:
            try:
                kept = journal.read(self._state, upload)
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
        for upload in journal.ids(self._state):
            try:
                kept = journal.read(self._state, upload)
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
        for upload in list(journal.ids(self._state)):
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
        kept = await self._client.executor.run(journal.read_rest, self._state, upload)
        if kept is None:
            await self._commit(await self._forget(upload))
        else:
            await self._end(upload, kept, self._client.clock.now_ms())

    async def set_apart(self, upload: bytes) -> None:
        """Keep under another id what a put that is over left at silent hosts.

        To be called in the turn of its id, before a put of that id begins anew.
        """
        head = journal.read_head(self._state, upload)
        if head is not None:
            rows = [(journal.HEAD + upload, None), (journal.HEAD + _locate(head), head.to_bytes())]
            await self._commit(rows)

    async def _over(self, upload: bytes, now_ms: int) -> Kept | None:
        """Return what is kept of an upload that nobody went on with for too long, else None."""
        head = journal.read_head(self._state, upload)
        if head is None or now_ms - head.touched_ms < UPLOAD_KEPT_MS:
            return None
        asked_for_good = not head.hosts and now_ms - head.touched_ms < 2 * UPLOAD_KEPT_MS
        if asked_for_good and not any(self._client.is_up(place.node) for place in head.places):
            return None
        return await self._client.executor.run(journal.read, self._state, upload)

    async def _end(self, upload: bytes, kept: Kept, now_ms: int) -> None:
        held, touched_ms = kept.held(), kept.head.touched_ms
        if kept.head.hosts:
            # Silent hosts are asked from now on, however long this node itself was away.
            touched_ms = now_ms - UPLOAD_KEPT_MS
        # From here on nothing can go on with it: hosts lose its shards one by one.
        head = kept.head.model_copy(
            update={"hosts": (), "places": held_of(held), "touched_ms": touched_ms}
        )
        rows = await self._forget(upload)
        await self._commit([*rows, (journal.HEAD + upload, head.to_bytes())])
        locate = _locate(kept.head)
        left = dict(held)
        for node in sorted({node for node, _ in held}):
            try:
                await self._client.delete(node, locate, final=True)
            except errors.XscError as fault:
                self._client.log.info("storage.upload_left", peer=ids.short(node), code=fault.code)
                continue
            for place in [place for place in left if place[0] == node]:
                await self._client.note_freed(*place, left.pop(place))
        if left and now_ms - touched_ms < 2 * UPLOAD_KEPT_MS:
            rest = head.model_copy(update={"places": held_of(left)})
            await self._commit([(journal.HEAD + upload, rest.to_bytes())])
        else:
            await self._commit([(journal.HEAD + upload, None)])
        self._client.log.info("storage.upload_ended", hosts=len(held), left_at=len(left))


def _locate(head: Head) -> bytes:
    """Return what hosts file the object under."""
    return VerifyCapability(verify_key(head.secret), bytes(32)).locate
