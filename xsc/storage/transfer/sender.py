"""Sends the columns of one object to their hosts, and carries out what `sending` decides."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

from xsc.base import ids, units
from xsc.base.errors import XscError
from xsc.base.limits import STORE_REQUEST_BYTES_MAX
from xsc.storage.object import messages
from xsc.storage.object.erasure import Code, StorageShard, rebuild
from xsc.storage.object.inventory import SegmentShards
from xsc.storage.transfer import sending
from xsc.storage.transfer.host_client import HostClient, Source, together
from xsc.storage.transfer.race import in_order, race
from xsc.storage.transfer.rooms import RoomSearch
from xsc.terms.lease import LeaseHandle


async def rebuilt(
    client: HostClient,
    segment: SegmentShards,
    *,
    sources: Iterable[Source],
    columns: Sequence[int],
) -> list[StorageShard]:
    """Return shards of a segment, built from k of those at other hosts.

    Raises:
        ShardsInsufficient: fewer than k can be fetched.
    """
    got = await race(client, segment, in_order(client, sources, segment.code.k))
    return await client.executor.run(rebuild, got, segment.code, segment.length, columns)


class Notes:
    """Is told where something is about to lie, and what does. This one keeps nothing."""

    def about_to(self, sender: ColumnSender, place: tuple[bytes, bytes]) -> None:
        """Note that something may lie at a host, under a lease, whatever comes of it."""

    def stored(
        self, sender: ColumnSender, index: int, column: int, shards: Sequence[StorageShard]
    ) -> None:
        """Note that a host has confirmed a column of a segment."""

    def moved(self, sender: ColumnSender) -> None:
        """Note that a column goes to another host from now on."""


class ColumnSender:
    """Sends the columns of one object. Each call returns once its host has confirmed."""

    def __init__(
        self,
        client: HostClient,
        locate: bytes,
        code: Code,
        state: sending.Sending,
        *,
        rooms: RoomSearch | None = None,
        notes: Notes | None = None,
    ) -> None:
        """Begin.

        Args:
            client: the hosts.
            locate: of the object.
            code: its code.
            state: where its columns go.
            rooms: where hosts are replaced.
            notes: is told what becomes of what is sent.
        """
        self._client = client
        self._locate = locate
        self._code = code
        self._rooms = rooms
        self._notes = notes or Notes()
        self.state = state
        self.live: dict[int, dict[int, StorageShard]] = {}
        """By segment and column: shards of segments that are under way."""
        self.segments: dict[int, SegmentShards] = {}
        self.done: defaultdict[int, set[int]] = defaultdict(set)
        """By column: segments that its host, or the one before it, confirmed."""
        self.before: dict[int, frozenset[int]] = {}
        """By column: segments that its first host confirmed to an earlier put."""
        self.held: dict[tuple[bytes, bytes], int] = {}
        """By host and lease: what was confirmed. Hosts that failed stand here, too."""
        self.record: messages.ObjectRecord | None = None
        self.last = -1
        """The segment with which the record goes."""
        self.recorded: dict[bytes, bytes] = {}
        """By host: under which lease it keeps the record."""
        self.given_up = ""
        """Why a column was given up last, where hosts are not replaced."""
        self._recording: set[bytes] = set()
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By column: held while its host is replaced."""
        self._choosing = asyncio.Lock()
        """Held while another host is chosen, so that two columns do not get the same one."""

    def place(self, leases: Mapping[int, LeaseHandle]) -> None:
        """Begin with these hosts."""
        self.state = replace(
            self.state, slots={each: sending.Slot(it) for each, it in leases.items()}
        )

    def count(self, lease: LeaseHandle, size_bytes: int) -> None:
        """Count what a host confirmed under a lease."""
        place = (lease.node, lease.lease_id)
        self.held[place] = self.held.get(place, 0) + size_bytes

    def _about_to(self, lease: LeaseHandle) -> None:
        place = (lease.node, lease.lease_id)
        if place not in self.held:
            self._notes.about_to(self, place)
            self.held[place] = 0

    async def store(self, column: int, index: int, *, again: bool = False) -> None:
        """Store a column of a segment that is live, at whatever host it has by then.

        A column that is given up has no slot any more.

        Args:
            column: which.
            index: the segment.
            again: send the record alone, where a host lacks it.

        Raises:
            XscError: no host takes it.
        """
        while slot := self.state.slots.get(column):
            # No host is to blame where the own disk takes no note.
            self._about_to(slot.lease)
            is_there = again or (index in self.before.get(column, ()) and not slot.tries)
            shard = None if is_there else self.live[index].get(column)
            shards = [] if shard is None else [shard]
            try:
                await self._deliver(slot.lease, index, shards)
            except XscError as fault:
                await self._replace(column, slot.tries, fault)
            else:
                if self.state.slots[column].tries == slot.tries:
                    if shards:
                        self._notes.stored(self, index, column, shards)
                    self.done[column].add(index)
                    return

    async def store_records(self) -> None:
        """Bring the record to the hosts that got none with the last segment.

        The column that was to bring it may have gone elsewhere.

        Raises:
            XscError: as `store`.
        """
        while lacking := [
            column
            for column, slot in self.state.slots.items()
            if slot.lease.node not in self.recorded
        ]:
            await together(self.store(column, self.last, again=True) for column in lacking)

    async def _deliver(
        self, lease: LeaseHandle, index: int, shards: Sequence[StorageShard]
    ) -> None:
        """Store shards of a segment at a host, with the record where it is the last segment."""
        self._about_to(lease)
        # Of several columns at one host, one brings the record.
        carries = index == self.last and lease.node not in {*self.recorded, *self._recording}
        if carries:
            self._recording.add(lease.node)
        try:
            record = self.record if carries else None
            requests = [([(index, shard) for shard in shards], record)]
            if shards and record is not None and len(record.sealed) > STORE_REQUEST_BYTES_MAX:
                requests = [(requests[0][0], None), ([], record)]
            for batch, brought in requests:
                if batch or brought is not None:
                    stored = await self._client.store(
                        lease, self._locate, self._code.generation, shards=batch, record=brought
                    )
                    self.count(lease, stored)
            if carries:
                self.recorded[lease.node] = lease.lease_id
        finally:
            if carries:
                self._recording.discard(lease.node)

    # Where a host fails

    def _step(self, event: sending.Event) -> sending.Ask | sending.Fill | sending.GiveUp | None:
        self.state, effect = sending.step(self.state, event)
        return effect

    async def _replace(self, column: int, tries: int, fault: XscError) -> None:
        """Have a column go elsewhere after a failure, with all that was stored of it.

        Raises:
            XscError: it goes nowhere.
        """
        async with self._turns[column]:
            effect = self._step(self._failed(column, tries, fault))
            replaced = False
            while effect is not None:
                if isinstance(effect, sending.GiveUp):
                    if not self.state.replaces:
                        self.given_up = fault.message
                        return
                    if effect.fault is not None:
                        raise effect.fault
                    assert self._rooms is not None
                    raise await self._rooms.refusal(effect.columns, self.state.gone)
                if isinstance(effect, sending.Ask):
                    if effect.asking == "other":
                        self._client.log.warning(
                            "storage.host_replaced",
                            peer=ids.short(self.state.slots[column].lease.node),
                            reason=fault.code,
                        )
                    effect = await self._ask(effect)
                    continue
                replaced = True
                try:
                    await self._fill(column)
                    effect = None
                except XscError as again:
                    fault, tries = again, self.state.slots[column].tries
                    effect = self._step(self._failed(column, tries, fault))
            if replaced:
                self._notes.moved(self)

    def _failed(self, column: int, tries: int, fault: XscError) -> sending.Failed:
        slot = self.state.slots[column]
        held = self.held.get((slot.lease.node, slot.lease.lease_id), 0)
        denied = self._client.hosts.is_denied(slot.lease.lease_id)
        return sending.Failed(column, tries, fault, held, denied)

    async def _ask(self, ask: sending.Ask) -> sending.Ask | sending.Fill | sending.GiveUp | None:
        assert self._rooms is not None
        node = self.state.slots[ask.column].lease.node
        there = sum(size for (at, _), size in self.held.items() if at == node)
        async with self._choosing if ask.asking == "other" else nullcontext():
            if ask.asking == "more":
                hosts = len(set(self.state.columns))
                lease = await self._rooms.at(node, hosts, there)
            else:
                sizes = (self.segments[index].length for index in self.done[ask.column])
                least = sum(units.held_bytes(self._code.shard_bytes(length)) for length in sizes)
                others = {self._client.own, *self._client.hosts.peers()} - {node}
                taken = self.state.taken if ask.asking == "other" else frozenset(others)
                lease = await self._rooms.elsewhere(taken, least)
            labels = {each.node: each for each in self._client.labels_of(self.state.columns)}
            return self._step(sending.Offered(ask.column, ask.asking, lease, labels))

    async def _fill(self, column: int) -> None:
        """Store at a column's new host what the one before held."""
        lease = self.state.slots[column].lease
        for index in sorted(self.done[column]):
            if index in self.live:
                shards = [shard for each, shard in self.live[index].items() if each == column]
            else:
                shards = await rebuilt(
                    self._client,
                    self.segments[index],
                    sources=[
                        Source(other, node)
                        for other, node in enumerate(self.state.columns)
                        if other != column and node not in self.state.gone
                    ],
                    columns=[column],
                )
            await self._deliver(lease, index, shards)
            self._notes.stored(self, index, column, shards)
