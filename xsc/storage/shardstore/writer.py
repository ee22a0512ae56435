"""The one writer of a shard store: whatever changes bodies or index waits for its turn here.

Writes and deletions are planned one after the other against the index. Those that come
together share one synced write of the bodies, and one write of the index after it. What has
to see both databases between two changes has its turn, too. So nobody waits for somebody
else's change, and no change is seen by half.

An object that was deleted for good takes nothing more. A deletion can overtake a put of the
same customer: the put's body is still being received or hashed when the deletion, which has
none, is done. Were it stored then, it would lie there, and be billed, for as long as its
lease runs. So the ends of objects are remembered: the last TOMBSTONES_MAX of them, and where
they are more, of the customer that has most the oldest goes, so that nobody can make a host
forget what another one has deleted. Forgetting costs room, never data.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, ParamSpec, TypeAlias, TypeVar

from xsc.base import bounded, clock, gather, limits
from xsc.base.errors import NotAllowed, ShardMismatch, SpaceExhausted, XscError
from xsc.base.keyvalue import Change, KeyValue
from xsc.base.log import Log
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.bodies import Body, Damage, IndexEntry, Owner
from xsc.storage.shardstore.index import DELETE_BATCH, Choose, Drop, Put, ShardIndex

P = ParamSpec("P")
T = TypeVar("T")

TOMBSTONES_MAX = 16_384
"""Deleted objects of which a host takes nothing that was under way meanwhile."""
GROUP_BYTES = 16 * limits.MIB
"""A batch is closed once it holds this much; one larger write makes a batch of its own."""
PASSED_MAX = 8 * DELETE_BATCH
"""Entries that the deletions of one turn look at together, each an equal part of them."""


@dataclass(slots=True, eq=False)
class Write:
    """Bodies of one object and customer that are to be stored, all or none."""

    bodies: Sequence[Body]
    told: Callable[[Mapping[bytes, int]], None] = lambda _: None
    """Called once with `growth`, also where the caller was cancelled."""
    growth: Mapping[bytes, int] = field(default_factory=dict)
    """How many bytes more are held under each lease, also where the index was not written."""
    fault: XscError | None = None
    """Why it was not stored, or not entered into the index."""

    def __post_init__(self) -> None:
        """Check that it is of one object and customer, and has each body once."""
        assert len({formats.owner_of(body.index_key) for body in self.bodies}) == 1
        assert len({body.index_key for body in self.bodies}) == len(self.bodies)

    @property
    def owner(self) -> Owner:
        """Of which object it is, and whose."""
        return formats.owner_of(self.bodies[0].index_key)

    @property
    def held_bytes(self) -> int:
        """What the bodies count for."""
        return sum(body.held_bytes for body in self.bodies)


@dataclass(slots=True, eq=False)
class Deletion:
    """What a customer has of an object is to be deleted, in batches."""

    owner: Owner
    chosen: Choose
    unless_in: Container[bytes]
    """Objects of which nothing more is deleted once they are in there."""
    after: bytes = b""
    """The key in the index behind which it goes on."""
    freed: Counter[bytes] = field(default_factory=Counter)
    """Bytes freed under each lease."""
    more: bool = True
    """Whether it needs another turn."""


Call: TypeAlias = Write | Deletion | Callable[[], None]
"""What has its turn; the last kind looks at both databases between two changes."""


@dataclass(slots=True, eq=False)
class WritePlan:
    """What one write stores."""

    fresh: Sequence[Body]
    """Bodies that are written: not held yet, or held and damaged."""
    replaced: Sequence[IndexEntry]
    """Damaged bodies that they replace."""
    growth: Counter[bytes]
    """How many bytes more are held under each lease afterwards."""


def plan_write(
    bodies: Sequence[Body],
    held: Mapping[bytes, IndexEntry],
    damaged: Container[int],
    free_bytes: int,
    capacity_bytes: int,
) -> WritePlan:
    """Return what a write of some bodies stores.

    Args:
        bodies: of one object and customer.
        held: the entries that the index has of them, by index key.
        damaged: the sequences of bodies that are damaged.
        free_bytes: what they may take.
        capacity_bytes: of the store, for the error.

    Raises:
        ShardMismatch: another shard or manifest is held in that place.
        SpaceExhausted: they need more than is free.
    """
    fresh: list[Body] = []
    replaced: list[IndexEntry] = []
    for body in bodies:
        old = held.get(body.index_key)
        if old is not None:
            if body.proof != old.proof:
                what = "shard" if body.is_shard else "manifest"
                raise ShardMismatch(f"another {what} is held in that place already")
            if old.sequence not in damaged:
                continue
            replaced.append(old)
        fresh.append(body)
    plan = WritePlan(fresh, replaced, Counter())
    for body in fresh:
        plan.growth[body.lease_id] += body.held_bytes
    for old in replaced:
        plan.growth[old.lease_id] -= old.held_bytes
    total = plan.growth.total()
    if total > free_bytes:
        raise SpaceExhausted(
            f"no room for {total} bytes: {free_bytes} of {capacity_bytes} are free",
            hint="free space, raise `storage_capacity`, or add peers",
        )
    return plan


def _size_of(call: Call) -> int:
    if isinstance(call, Write):
        return call.held_bytes
    return DELETE_BATCH * limits.KIB if isinstance(call, Deletion) else limits.KIB


class ShardWriter:
    """Stores and deletes bodies in the order of the calls, and never more than the capacity.

    A write of the bodies that failed has changed nothing. What is on the disk and could not
    be entered into the index is entered before anything else is stored or deleted: else a
    shard could pass for held whose body is gone, or be written a second time.
    """

    def __init__(
        self,
        *,
        capacity_bytes: int,
        bodies: KeyValue,
        index: ShardIndex,
        damaged: dict[int, Damage],
        bury: Callable[[int, int], None],
        executor: clock.Executor,
        log: Log,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self._bodies = bodies
        self._index = index
        self._damaged = damaged
        self._bury = bury
        self._executor = executor
        self._log = log
        self._ended: bounded.Bounded[Owner, Literal[True]] = bounded.Bounded(TOMBSTONES_MAX)
        """Objects that were deleted for good, by customer."""
        self._behind: tuple[Sequence[Put], Sequence[Drop]] | None = None
        """What is on the disk and not in the index."""
        self._running: set[asyncio.Task[dict[bytes, int]]] = set()
        self._gather: gather.Gather[None, Call, None] = gather.Gather(
            self._turn, size_of=_size_of, size_max=GROUP_BYTES, all_run=True
        )
        self.next_sequence = 1
        self.gone_bytes = 0
        """Size of the notes of deletions that were written and not dropped since."""
        self.touched: set[bytes] | None = None
        """Objects of which something was stored since this was set."""
        self.reserved_bytes = 0
        """Bytes that are being written."""
        self.settle_use: Callable[[bytes, int], None] = lambda *_: None
        """Told what each deletion freed under a lease (-), also one that failed midway."""

    @property
    def free_bytes(self) -> int:
        """Bytes that can still be stored."""
        return max(0, self.capacity_bytes - self._index.used_bytes - self.reserved_bytes)

    # Calls

    async def store_together(self, writes: Sequence[Write]) -> list[Mapping[bytes, int] | XscError]:
        """Store several writes, each all or none, in one write to the disk.

        Returns for each, in order, how many bytes more are held under each lease: bodies that
        are held already count nothing, and a body that replaces another leaves less under the
        lease of that. Or why it was not stored, as one of these errors. A cancelled call goes on.

            ShardMismatch: another shard or manifest is held in that place.
            NotAllowed: the customer has deleted the object for good.
            SpaceExhausted: no room; nothing of it was written.
            StoreDamaged: the disk does not take it.
        """
        # Before anything is awaited: what is free is never shown to two writers.
        self.reserved_bytes += sum(write.held_bytes for write in writes)
        await asyncio.gather(*[self._gather.submit(None, write) for write in writes])
        return [write.fault or write.growth for write in writes]

    async def delete(
        self,
        locate: bytes,
        customer: bytes,
        chosen: Choose = lambda *_: True,
        *,
        final: bool = False,
        unless_in: Container[bytes] = (),
    ) -> dict[bytes, int]:
        """Delete what a customer has of an object; return the bytes freed under each lease.

        Nothing to delete is no error: deleting is idempotent, and what others have stays.
        A cancelled call goes on.

        Args:
            locate: of the object.
            customer: whose part of it.
            chosen: selects entries.
            final: also refuse puts of the object that are under way.
            unless_in: nothing more is deleted once the object is in there.
        """
        deletion = Deletion((locate, customer), chosen, unless_in)
        if final:
            self._ended.put(deletion.owner, True, customer)

        async def run() -> dict[bytes, int]:
            try:
                while deletion.more:
                    await self._gather.submit(None, deletion)
            finally:
                for lease_id, size in deletion.freed.items():
                    self.settle_use(lease_id, -size)
            return deletion.freed

        task = asyncio.create_task(run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def look(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a function gives that runs between two changes; it must be short."""
        found: list[T] = []
        await self._gather.submit(None, lambda: found.append(function(*args, **kwargs)))
        return found[0]

    # Turns

    async def _turn(self, _key: None, calls: Sequence[Call]) -> Sequence[XscError | None]:
        writes = [call for call in calls if isinstance(call, Write)]
        for write in writes:
            if write.owner in self._ended:
                write.fault = NotAllowed("that object was deleted here meanwhile")
        try:
            return await self._executor.run(self._carry_out, calls)
        finally:
            for write in writes:
                self.reserved_bytes -= write.held_bytes
                write.told(write.growth)

    def _carry_out(self, calls: Sequence[Call]) -> list[XscError | None]:
        """Carry out calls in order; writes, or deletions, that follow each other share a sync."""
        outcomes: list[XscError | None] = []
        passed_max = PASSED_MAX // max(1, sum(isinstance(call, Deletion) for call in calls))
        for _, group in groupby(calls, key=lambda call: call if callable(call) else type(call)):
            run = list(group)
            writes = [call for call in run if isinstance(call, Write)]
            deletions = [call for call in run if isinstance(call, Deletion)]
            fault: XscError | None = None
            try:
                if writes:
                    self._store(writes)
                elif deletions:
                    self._delete(deletions, passed_max)
                for call in run:
                    if callable(call):
                        call()
            except XscError as raised:
                fault = raised
            outcomes += [copy(fault) for _ in run]
        return outcomes

    def _store(self, writes: Sequence[Write]) -> None:
        """Store writes, or set why not; those that were refused already stay so."""
        entries: dict[bytes, IndexEntry] = {}
        replaced: list[IndexEntry] = []
        changes: list[Change] = []
        grown: list[tuple[Write, Mapping[bytes, int]]] = []
        waiting = [write for write in writes if write.fault is None]
        try:
            self._enter()
            free = self.capacity_bytes - self._index.used_bytes
            for write in waiting:
                keys = [body.index_key for body in write.bodies]
                held = self._index.entries(keys)
                held.update((key, entries[key]) for key in keys if key in entries)
                try:
                    plan = plan_write(
                        write.bodies, held, self._damaged, max(0, free), self.capacity_bytes
                    )
                except (ShardMismatch, SpaceExhausted) as fault:
                    write.fault = fault
                    continue
                free -= plan.growth.total()
                replaced += plan.replaced
                for body in plan.fresh:
                    entries[body.index_key] = formats.entry_of(body, self.next_sequence)
                    changes.append(self._change(formats.BODIES, formats.encode_body(body)))
                grown.append((write, plan.growth))
                if self.touched is not None:
                    self.touched.add(write.owner[0])
            if entries:
                changes += self._dropped(replaced)
                self._sync(changes, list(entries.items()), [])
            # They are held now, also where the index cannot be written.
            for write, growth in grown:
                write.growth = growth
            self._enter()
            self._note_dead(replaced)
        except XscError as fault:
            for write in waiting:
                if write.fault is None:
                    write.fault = copy(fault)

    def _delete(self, deletions: Sequence[Deletion], passed_max: int) -> None:
        """Delete the next batch of each deletion; of one owner one after the other."""
        self._enter()
        doomed: dict[Owner, tuple[Deletion, list[Put]]] = {}
        for deletion in deletions:
            if deletion.owner in doomed:
                continue
            deletion.more = False
            if deletion.owner[0] not in deletion.unless_in:
                mine, deletion.after = self._index.owned(
                    deletion.owner, deletion.chosen, deletion.after, passed_max
                )
                doomed[deletion.owner] = deletion, mine
                deletion.more = bool(deletion.after)
        puts = [put for _, mine in doomed.values() for put in mine]
        if not puts:
            return
        drops = [(key, entry.sequence) for key, entry in puts]
        entries = [entry for _, entry in puts]
        gone = formats.encode_gone(drops)
        self._sync([*self._dropped(entries), self._change(formats.GONE, gone)], [], drops)
        # They are gone now, also where the index cannot be written.
        for deletion, mine in doomed.values():
            for _, entry in mine:
                deletion.freed[entry.lease_id] += entry.held_bytes
        self._enter()
        self.gone_bytes += len(gone)
        self._note_dead(entries)

    def _change(self, prefix: bytes, value: bytes) -> Change:
        """Return the change that writes a body or note under the next sequence."""
        sequence = self.next_sequence
        self.next_sequence += 1
        return formats.sequenced(prefix, sequence), value

    def _dropped(self, entries: Sequence[IndexEntry]) -> list[Change]:
        """Return the changes that drop bodies and the notes of their damage."""
        changes: list[Change] = []
        for entry in entries:
            changes.append((formats.sequenced(formats.BODIES, entry.sequence), None))
            if entry.sequence in self._damaged:
                changes.append((formats.sequenced(formats.DAMAGED, entry.sequence), None))
        return changes

    def _note_dead(self, entries: Sequence[IndexEntry]) -> None:
        for entry in entries:
            self._damaged.pop(entry.sequence, None)
            self._bury(entry.sequence, entry.held_bytes)

    def _sync(self, changes: list[Change], puts: Sequence[Put], drops: Sequence[Drop]) -> None:
        """Sync changes of the bodies, which are still to be entered into the index."""
        self._bodies.write(changes, sync=True)
        self._behind = puts, drops

    def _enter(self) -> None:
        """Enter into the index what is on the disk and not in it."""
        if self._behind is not None:
            self._index.apply(*self._behind, self.next_sequence - 1)
            self._behind = None

    # Looks

    def note_damage(self, found: Sequence[Damage]) -> tuple[Damage, ...]:
        """Note damage of bodies that are still held, until they are stored anew; return it."""
        puts, drops = self._behind or ((), ())
        # Of what is on the disk and could not be entered yet, the index has the old entry.
        changed = {key for key, _ in (*puts, *drops)}
        held = []
        for damage in found:
            if damage.key in changed or self._index.entry(damage.key) != damage.entry:
                continue
            held.append(damage)
            sequence = damage.entry.sequence
            if sequence in self._damaged:
                continue
            self._damaged[sequence] = damage
            self._log.error("storage.damage_found", sequence=sequence, reason=damage.reason)
            note = formats.sequenced(formats.DAMAGED, sequence), formats.encode_damaged(damage)
            try:
                self._bodies.write([note], sync=False)
            except XscError as fault:
                # It is known until the end of this process, and found again by the next.
                self._log.warning("storage.note_failed", sequence=sequence, reason=fault.message)
        return tuple(held)

    def note_closed(self) -> None:
        """Note that the index is whole: the next start need not go through all of it."""
        if self._behind is None:
            self._index.note_closed()
