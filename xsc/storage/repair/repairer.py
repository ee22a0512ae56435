"""Keeps objects whole: surveys each, and moves columns that are lost or must leave.

A repairer knows of an object its *verify* capability and its placement. It cannot
read what it repairs, and stores as an ordinary customer, whether this node is the
owner or a custodian. Plans are made again from what the hosts say and are not kept,
so that a restart loses at most the work on the current objects.

Each repair: survey (`Surveyor`), decide (`survey`, `migration`), carry out (`Repairer`,
`ColumnMover`). A good column is deleted only if it is surplus, one at a
time, and only after every column that remains was read whole from its host just before. No
report of a peer deletes anything: it is a reason to look. A custodian may delete one copy of
its own after each look that found every column good, under leases of this node, and read all
of them. Design: docs/design/storage-repair.md.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from xsc.api.objects import Moved, Repaired
from xsc.base import clock, errors, ids, limits, room, tally, turns
from xsc.identity.context import Context
from xsc.storage.catalogue.finder import ObjectFinder
from xsc.storage.object.durability import survival
from xsc.storage.object.held import differences
from xsc.storage.object.placement import Placement
from xsc.storage.repair import mover, node_watch
from xsc.storage.repair.drain import Drain
from xsc.storage.repair.maintained_object import MaintainedObject, MaintainedObjects, Settings
from xsc.storage.repair.survey import (
    Survey,
    former_hosts_up,
    found_placement,
    needs_repair,
    plan_cleanup,
    recounted_held,
)
from xsc.storage.repair.surveyor import Surveyor
from xsc.storage.transfer import host_client

REPORTS_AN_OBJECT_MAX = 16
"""How often within REPORTS_MS an owner reads all of an object because a peer reports copies."""
REPORTS_MS = 24 * 3_600_000


class CopyReports:
    """Keeps in memory which custodians reported copies of which objects."""

    def __init__(self) -> None:
        self.by_object: dict[bytes, dict[bytes, bool]] = {}
        """By object and custodian: whether it may delete one of its copies."""
        self._counted = tally.Tally(REPORTS_AN_OBJECT_MAX, REPORTS_MS)

    def take_permission(self, ref: bytes, custodian: bytes) -> bool:
        """Return whether a custodian may delete one copy now; the permission is used by that."""
        reports = self.by_object.get(ref, {})
        if reports.get(custodian):
            del reports[custodian]
            return True
        return False

    def note(self, ref: bytes, custodian: bytes, now_ms: int) -> bool:
        """Note a report; return whether the object is to be looked at because of it.

        Each such look reads the whole object, so that their number is limited.
        """
        reports = self.by_object.setdefault(ref, {})
        if custodian in reports or self._counted.wait_ms(ref + custodian, now_ms):
            return False
        self._counted.note(ref + custodian, now_ms)
        reports[custodian] = False
        return True

    def waiting(self, ref: bytes) -> list[bytes]:
        """Return the custodians that wait for a look at the object."""
        return [node for node, may in self.by_object.get(ref, {}).items() if not may]

    def permit(self, ref: bytes, custodians: Iterable[bytes]) -> None:
        """Let each of these custodians that is not forgotten delete one copy of an object."""
        reports = self.by_object.get(ref, {})
        reports.update((node, True) for node in custodians if node in reports)


REPAIRS_AT_ONCE = 64
"""What they ask of the same hosts travels together."""
REPAIR_BYTES = 2 * limits.SEGMENT_BYTES
"""Of objects under repair, of a large one a segment: so many bytes are in memory some times."""
REPAIRS_A_ROUND_MAX = 1_024
"""Objects repaired before the order of urgency is made anew."""
SURVEYS_AT_ONCE = 64


class Repairer:
    """Looks after all objects of one registry."""

    def __init__(
        self,
        context: Context,
        client: host_client.HostClient,
        objects: MaintainedObjects,
        *,
        settings: Settings,
        finder: ObjectFinder,
        watch: node_watch.NodeWatch,
        drain: Drain,
    ) -> None:
        self._context = context
        self._client = client
        self._objects = objects
        self._settings = settings
        self.watch = watch
        self._drain = drain
        bandwidth = node_watch.Bandwidth(context.clock, settings.repair_bytes_a_second)
        self.surveyor = Surveyor(
            context,
            client,
            objects,
            finder=finder,
            watch=watch,
            bandwidth=bandwidth,
            lease_ms=settings.storage_lease_ms,
        )
        self._mover = mover.ColumnMover(context, client, objects, self.surveyor, bandwidth)
        self.reports = CopyReports()
        self._kept_until_ms: dict[bytes, int] = {}
        """By object of which columns moved: how long the old copies stay for readers."""
        self._again: set[bytes] = set()
        """Objects to look at in the next round, whatever else happens."""
        self._warned: dict[bytes, tuple[str, dict[str, object]]] = {}
        """What was logged last of objects that could not be made whole."""
        self._woken = asyncio.Event()
        self._room = room.Room(REPAIR_BYTES, REPAIR_BYTES)
        """Segments of objects that are repaired at the same time."""
        self.under_way: dict[bytes, int] = {}
        """The objects that are repaired now, and since when."""
        self.recent: deque[tuple[bytes, int, Repaired]] = deque(maxlen=REPAIRS_A_ROUND_MAX)
        """What was repaired in this run, by reference, and when, the oldest first."""
        self._placed = Counter[tuple[tuple[bytes, ...], int]]()
        """How many objects have such columns, and need so many of them, at the last look."""

    def margins(self) -> Counter[int]:
        """Return how many objects have a margin: shards at hosts that answer, less those needed."""
        up = frozenset(filter(self._client.is_up, {self._client.own, *self._client.hosts.peers()}))
        found = Counter[int]()
        for (columns, needed), objects in self._placed.items():
            found[sum(node in up for node in columns) - needed] += objects
        return found

    def note_placed(self, placement: Placement) -> None:
        """Count an object for its margin, until the next look at all of them."""
        self._placed[tuple(sorted(placement.columns)), placement.k] += 1

    # When to look

    def node_changed(self) -> None:
        """Start a round: a peer came up or went down, or leaves."""
        self.watch.look()
        self._woken.set()

    def look_at(self, refs: Iterable[bytes]) -> None:
        """Start a round that looks at these objects."""
        self._again.update(refs)
        self._woken.set()

    def load(self, ref: bytes) -> MaintainedObject | None:
        """Return an object that this looks after; None if it is gone or being deleted."""
        return self._objects.load(ref)

    def note_unreadable(self, ref: bytes, places: Collection[tuple[int, bytes]]) -> None:
        """Count columns at nodes as damaged at the next look, whatever these say that they have."""
        known = self.surveyor.unreadable.get(ref, frozenset())
        if places:
            self.surveyor.unreadable[ref] = known | frozenset(places)

    def reported(self, ref: bytes, custodian: bytes) -> bool:
        """Note that a custodian keeps copies of an object; return whether it may delete one."""
        if self.reports.take_permission(ref, custodian):
            return True
        if self.reports.note(ref, custodian, self._context.clock.monotonic_ms()):
            self.look_at([ref])
        return False

    async def run(self) -> None:
        """Look after all objects until cancelled."""
        seen: object = None
        full_ms = 0
        while True:
            self.watch.look()
            now_ms = self._context.clock.monotonic_ms()
            everything = now_ms >= full_ms
            if everything:
                full_ms = now_ms + self._settings.repair_interval_ms
            over = [ref for ref, until in self._kept_until_ms.items() if until <= now_ms]
            for ref in over:
                del self._kept_until_ms[ref]
                self._again.add(ref)
            listed = [item async for item in turns.sliced(self._objects.refs())]
            listed_ms = self._context.clock.monotonic_ms() - now_ms
            known = frozenset(ref for ref, _, _ in listed)
            self._placed = Counter()
            for _, placement, _ in listed:
                self.note_placed(placement)
            situation = (
                self.watch.all_gone(),
                self.watch.available(),
                self._client.leaving(),
                known if len(listed) < REPAIRS_A_ROUND_MAX else 0,
            )
            for remembered in (self.surveyor.unreadable, self.reports.by_object, self._warned):
                for ref in remembered.keys() - known:
                    remembered.pop(ref)
            if everything or situation != seen or self._again:
                seen = situation
                await self.round(listed, everything=everything)
            kept_ms = min(self._kept_until_ms.values(), default=2**62) - now_ms
            rest_ms = min(self.watch.look_ms, max(1_000, kept_ms))
            # Peers can wake it as often as they like: at most a fifth of the time is for lists.
            await self._context.clock.sleep_ms(4 * listed_ms)
            await clock.rest(self._context.clock, self._woken, rest_ms)

    def _is_affected(self, placement: Placement, former: Collection[bytes]) -> bool:
        """Say whether what is known of nodes is a reason to look at an object.

        Args:
            placement: of the object.
            former: nodes without a column, at which this node still pays for something of it.
        """
        columns = placement.columns
        nodes = set(columns)
        if len(nodes) < len(columns) or any(map(self._client.is_up, former)):
            return True
        if any(placement.contract):
            hosts = self._client.labels_of(columns)
            if not survival(hosts, placement.m).meets(placement.contract):
                return True
        return bool(self.watch.gone(nodes) or nodes & self._client.leaving())

    async def round(
        self,
        listed: Sequence[tuple[bytes, Placement, Collection[bytes]]],
        *,
        everything: bool,
    ) -> None:
        """Survey every object that may need something; repair those with the least margin first.

        Args:
            listed: as `MaintainedObjects.refs`.
            everything: whether to survey all of them.
        """
        again, self._again = self._again, set()
        refs = [
            ref
            async for ref, placement, former in turns.sliced(listed)
            if everything or ref in again or self._is_affected(placement, former)
        ]
        places = asyncio.Semaphore(SURVEYS_AT_ONCE)
        found = await host_client.together(self._margin_if_needed(ref, places) for ref in refs)
        order = sorted(
            (margin, ref) for margin, ref in zip(found, refs, strict=True) if margin is not None
        )
        self._again.update(ref for _, ref in order[REPAIRS_A_ROUND_MAX:])
        queue = [ref for _, ref in order[:REPAIRS_A_ROUND_MAX]]

        async def work() -> None:
            while queue:
                ref = queue.pop(0)
                try:
                    done = await self.repair(ref)
                except errors.XscError as fault:
                    self._failed(ref, fault)
                    continue
                if done is not None and done.moved and len(order) > REPAIRS_A_ROUND_MAX:
                    # The rest follows at once, unless nothing finds a place.
                    self._woken.set()

        await host_client.together(work() for _ in range(REPAIRS_AT_ONCE))

    async def _margin_if_needed(self, ref: bytes, places: asyncio.Semaphore) -> int | None:
        """Survey an object; return its margin if it needs a repair."""
        async with places:
            if ref in self._objects.turns:
                # It is being repaired; that can take long, and others wait.
                self._again.add(ref)
                return None
            async with self._objects.turns.of(ref):
                maintained = self._objects.load(ref)
                if maintained is None:
                    return None
                try:
                    survey = await self.surveyor.survey(maintained)
                except errors.XscError as fault:
                    self._failed(ref, fault)
                    return None
                reported = bool(self.reports.waiting(ref))
                able, run = self.watch.available(), self._context.executor.run
                if await run(needs_repair, survey, able, reported=reported):
                    return survey.margin
                self._warned.pop(ref, None)
                return None

    def _failed(self, ref: bytes, fault: errors.XscError) -> None:
        self._warn(ref, "repair.failed", reason=fault.message)

    def _warn(self, ref: bytes, event: str, **fields: object) -> None:
        """Log what keeps an object from being whole, once: it is tried in every round."""
        if self._warned.get(ref) != (event, fields):
            self._warned[ref] = (event, fields)
            self._context.log.warning(event, object=ids.short(ref), **fields)

    # Repair

    async def repair(self, ref: bytes, progress: mover.Progress | None = None) -> Repaired | None:
        """Give an object what it needs; return None if this node does not look after it.

        Raises:
            XscError: the object cannot be found.
        """
        async with self._objects.turns.of(ref):
            maintained = self._objects.load(ref)
            if maintained is None:
                return None
            unreadable = self.surveyor.unreadable.get(ref)
            survey = await self._corrected(await self.surveyor.verified(maintained))
            survey = replace(survey, maintained=await self._cleaned(survey))
            if maintained.only_clean:
                return Repaired(margin=survey.margin, waiting=survey.waiting)
            size = min(limits.SEGMENT_BYTES, survey.manifest.size_bytes)
            await self._room.wait(ref, size)
            self.under_way[ref] = self._context.clock.now_ms()
            try:
                result = await self._restore(survey, progress)
            finally:
                del self.under_way[ref]
                self._room.give(ref, size)
            if unreadable is not None and self.surveyor.unreadable.get(ref) is unreadable:
                # It counted for this repair; the next survey shows whether it can be read now.
                del self.surveyor.unreadable[ref]
                self._again.add(ref)
            return result

    async def _corrected(self, survey: Survey) -> Survey:
        """Write down what hosts have of an object and where it was found, if that changed."""
        maintained, held = survey.maintained, recounted_held(survey)
        for node, lease_id, more_bytes in differences(maintained.held, held):
            self._context.log.info(
                "repair.recounted",
                object=ids.short(maintained.ref),
                peer=ids.short(node),
                lease=ids.short(lease_id),
                more_bytes=more_bytes,
            )
        corrected = replace(maintained, held=held, placement=found_placement(survey))
        if corrected != maintained:
            await self._objects.save(corrected.ref, corrected.placement, corrected.held)
        return replace(survey, maintained=corrected)

    async def _cleaned(self, survey: Survey) -> MaintainedObject:
        """Delete the copies that are not needed any more; return the object as it is then.

        Not while a reader may still use them.
        """
        maintained, ref = survey.maintained, survey.maintained.ref
        if self._kept_until_ms.get(ref, 0) > self._context.clock.monotonic_ms():
            return maintained
        # Who reports during this may have made its copy after the read: it waits.
        reported_by = self.reports.waiting(ref)
        former = await self.surveyor.finder.ask(
            former_hosts_up(survey), maintained.capability, survey.manifest
        )
        plan = plan_cleanup(survey, former)
        capability, held = maintained.capability, maintained.held
        for node, columns in plan.broken:
            held = await mover.delete_at(self._client, capability, node, columns, held)
        for item in plan.dropped:
            await self._client.note_freed(item.node, item.lease_id, item.size_bytes)
        held = tuple(item for item in held if item not in plan.dropped)
        if (plan.copies or reported_by) and not maintained.only_clean:
            bad = await self.surveyor.read_all(survey)
            if bad == [] and plan.copies:
                held = await mover.delete_at(self._client, capability, *plan.copies[0], held)
                self._again.add(ref)
            elif bad == []:
                # Every column was read whole, and no copy deleted after that.
                self.reports.permit(ref, reported_by)
            elif any(not fault.silent for fault in bad or ()):
                self._again.add(ref)
        if held != maintained.held:
            maintained = replace(maintained, held=held)
            await self._objects.save(ref, maintained.placement, maintained.held)
        return maintained

    async def _restore(self, survey: Survey, progress: mover.Progress | None) -> Repaired:
        """Store what is lost, damaged or must leave its host again."""
        maintained, before = survey.maintained, survey.margin
        patched = await self._mover.rewrite_damaged(survey)
        if patched:
            survey = await self.surveyor.verified(maintained)
        available = self.watch.available(also_unsteady=survey.margin <= 0)
        chosen, reason = await self._mover.choose(survey, available)
        moved: tuple[Moved, ...] = ()
        if maintained.is_own:
            chosen |= await self._mover.rooms_for_records(survey, chosen)
        if chosen:
            maintained, moved, fault = await self._mover.move(survey, chosen, progress)
            reason = fault or reason
            if fault:
                self._again.add(maintained.ref)
            if moved:
                now_ms = self._context.clock.monotonic_ms()
                self._kept_until_ms[maintained.ref] = now_ms + self._settings.moved_kept_ms
                self.surveyor.unreadable.pop(maintained.ref, None)
        left = tuple(sorted(survey.displaced - {item.shard for item in moved}))
        if left and not reason:
            reason = "no node that is up and holds none of it has room"
        result = Repaired(
            margin=before,
            moved=moved,
            left=left,
            reason=reason if left else "",
            patched=patched,
            waiting=survey.waiting,
        )
        await self._report(survey, result)
        return result

    async def _report(self, survey: Survey, result: Repaired) -> None:
        """Log what was done; tell nodes that leave what could not be moved from them."""
        ref, leaving = survey.maintained.ref, self._client.leaving()
        for item in result.moved:
            self._context.log.info(
                "repair.column_moved",
                object=ids.short(ref),
                column=item.shard,
                source=ids.short(item.from_),
                target=ids.short(item.to),
            )
        if result.moved:
            self.recent.append((ref, self._context.clock.now_ms(), result))
        if result.left:
            self._warn(ref, "repair.incomplete", columns=list(result.left), reason=result.reason)
        else:
            self._warned.pop(ref, None)
        for node in sorted({survey.columns[column] for column in result.left} & leaving):
            await self._drain.excuse(node, survey.located.locate, result.reason)
