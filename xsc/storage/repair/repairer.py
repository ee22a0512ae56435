"""Keeps objects whole: looks after each, and moves columns that are lost or must leave.

Touches hosts through `Reach`. What it is given of an object is a `MaintainedObject`: a
*verify* capability, and where its columns were last. It cannot read what it repairs,
and stores as an ordinary customer, whether it is the owner or a custodian. Plans are
made anew from what the hosts say (`repairing`) and are kept nowhere, so that a restart
loses at most the object that was being worked on: whom it sends to is written down
first, and what is there without being in the placement is deleted before the next try.

A good column is deleted only where it is surplus, one at a time, and only after every
column that remains was read whole from its host just before. No report of a peer
deletes anything. docs/design/storage-repair.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from xsc.base.errors import (
    LeaseExhausted,
    ObjectUnknown,
    RecordInvalid,
    XscError,
)
from xsc.base.ids import short
from xsc.base.limits import (
    REPAIRS_A_ROUND_MAX,
    REPAIRS_AT_ONCE,
    REPORTS_AN_OBJECT_MAX,
    REPORTS_MS,
    STORE_REQUEST_BYTES_MAX,
    SURVEYS_AT_ONCE,
    WATCHES_MAX,
)
from xsc.base.merkle import root_of
from xsc.base.refusals import refusal
from xsc.base.tally import Tally
from xsc.base.turns import Turns, sliced
from xsc.base.units import held_bytes
from xsc.storage.object.capability import VerifyCapability
from xsc.storage.object.durability import Host, survival
from xsc.storage.object.erasure import Buffer, StorageShard
from xsc.storage.object.expiry import custody_expiring, own_ends, own_expiring
from xsc.storage.object.inventory import HeldObject, Wanted
from xsc.storage.object.manifest import Manifest, code_of, expected_digest, hash_of, segments_of
from xsc.storage.object.messages import GET_MAX, ObjectRecord
from xsc.storage.object.placement import (
    Placement,
    State,
    column_bytes,
    column_state,
    column_states,
    placement_of,
)
from xsc.storage.object.rebuild import rebuild
from xsc.storage.object.receipts import shards_of
from xsc.storage.object.segment import length_of
from xsc.storage.ports import HostLease
from xsc.storage.repair.damage import damaged_segments, good_for
from xsc.storage.repair.drain import Drain
from xsc.storage.repair.migration import Layout, next_want
from xsc.storage.repair.repair_rules import (
    Watch,
    is_gone,
    is_steady,
    lost_columns,
    margin,
    surplus,
    watched,
)
from xsc.storage.transfer.deep_read import read_every_shard
from xsc.storage.transfer.get import Located, roots_of
from xsc.storage.transfer.host_client import (
    Reach,
    Source,
    in_order,
    race,
    requests_of,
    rest,
    together,
)
from xsc.storage.transfer.put import Held
from xsc.storage.transfer.recount import differences, most_held, recounted
from xsc.terms.lease import OWN_LEASE


@dataclass(frozen=True, slots=True)
class RepairSettings:
    """What the operator decides."""

    grace_ms: int
    """How long a node must be silent before what it holds counts as lost."""
    bytes_a_second: int
    """Most that is fetched and sent; 0: no bound."""
    check_ms: int
    """How often every host of every object is asked, also where nothing happened."""
    kept_ms: int
    """How long moved columns stay where they were: somebody may be reading by the old placement."""


@dataclass(frozen=True, slots=True)
class MaintainedObject:
    """An object to look after, and by what right."""

    ref: bytes
    """What the objects files it under."""
    capability: VerifyCapability
    owner: bytes
    placement: Placement
    held: tuple[Held, ...]
    """What this node pays for, by host and lease; also what it was about to send."""
    is_own: bool = True
    """Whether this node is the owner; else it is a custodian."""
    before: tuple[bytes, ...] = ()
    """At a custodian: the custodians whose turn comes first."""
    budget_bytes: int | None = None
    """At a custodian: how much more it may keep for that owner."""
    rescue_ms: int = 0
    """At a custodian: how long before its end it keeps what the owner did not renew."""
    only_clean: bool = False
    """Nothing is to be repaired by this node: only what it pays for in vain is deleted."""


class MaintainedObjects(Protocol):
    """Holds objects on the disk."""

    def refs(self) -> Iterator[tuple[bytes, Placement]]:
        """Yield the objects to be looked after at this moment: reference and placement."""

    def load(self, ref: bytes) -> MaintainedObject | None:
        """Return an object; None where it is gone."""

    async def save(self, ref: bytes, placement: Placement, held: tuple[Held, ...]) -> bool:
        """Keep placement and what is held, synced; False where the object is gone.

        Of one that is being deleted what is held is kept still: all of that is deleted.
        """


@dataclass(frozen=True, slots=True)
class KnownLease:
    """Room at a host that is held under a lease known before."""

    node: bytes
    lease_id: bytes
    price: int = 0


@dataclass(frozen=True, slots=True)
class MovedColumn:
    """A column that has a new home."""

    column: int
    source: bytes
    target: bytes


@dataclass(frozen=True, slots=True)
class RepairResult:
    """What one look at an object came to."""

    margin: int
    """Before."""
    moved: tuple[MovedColumn, ...]
    left: tuple[int, ...]
    """Columns that are lost or must leave, and have no new home yet."""
    reason: str
    """Why some are left; empty where none are."""
    patched: int = 0
    """Damaged shards that were stored anew where they were."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What the hosts of an object say."""

    kept: MaintainedObject
    located: Located
    columns: tuple[bytes, ...]
    """The node of each column: of the placement, or where it was found instead."""
    states: tuple[State, ...]
    answers: dict[bytes, HeldObject | None]
    homeless: frozenset[int]
    """Columns that are lost, or on nodes that leave."""
    foreign: frozenset[int]
    """Columns that stay where they are, but must come under a lease of this node: at the
    owner, those that others pay for; at a custodian, those that the owner did not renew."""
    expiring: frozenset[int] = frozenset()
    """Columns whose lease ends soon where no other is to be had; part of `homeless`."""
    labelled: frozenset[bytes] = frozenset()
    """Nodes that said where they are and whose, or that they do not say it."""

    @property
    def manifest(self) -> Manifest:
        """What was stored."""
        return self.located.manifest

    @property
    def is_whole(self) -> bool:
        """Whether every column is good where it is, and this node pays for what it must."""
        good = all(state == "ok" for state in self.states)
        return good and not (self.homeless or self.foreign)

    @property
    def doubled(self) -> bool:
        """Whether some node holds several columns."""
        return len(set(self.columns)) < len(self.columns)

    @property
    def margin(self) -> int:
        """How many more columns may be lost."""
        return margin(self.states, self.manifest.k)


Progress = Callable[[int, int], None]
"""Hears how many segments of how many are done."""


class Repairer:
    """See the module."""

    def __init__(
        self,
        *,
        reach: Reach,
        objects: MaintainedObjects,
        settings: RepairSettings,
        find: Callable[[VerifyCapability], Awaitable[Located]],
        search: Callable[[VerifyCapability, Located], Awaitable[Located]],
        stat: Callable[[bytes, VerifyCapability, Manifest], Coroutine[Any, Any, HeldObject | None]],
        drain: Drain,
    ) -> None:
        self._reach = reach
        self._objects = objects
        self._settings = settings
        self._find = find
        self._search = search
        self._stat = stat
        self._drain = drain
        self._failed: dict[bytes, frozenset[tuple[int, bytes]]] = {}
        """By object: column and node of what could not be read although its host says that
        it holds it."""
        self._reported: dict[bytes, dict[bytes, bool]] = {}
        """By object, who keeps copies of it, and whether it may give one of them up."""
        self._reports = Tally(REPORTS_AN_OBJECT_MAX, REPORTS_MS)
        self._watches: dict[bytes, Watch] = {}
        self._turns: Turns[bytes] = Turns()
        """By object: held while an object is looked at, repaired or changed."""
        self._moved_ms: dict[bytes, int] = {}
        self._left: set[bytes] = set()
        """Objects of which something may lie at nodes that are silent and count no more."""
        self._again: set[bytes] = set()
        self._woken = asyncio.Event()
        self._free_ms = 0
        self.recent: deque[tuple[bytes, RepairResult]] = deque(maxlen=REPAIRS_A_ROUND_MAX)
        """What was repaired in this run, by reference, the oldest first."""

    @property
    def _leaving(self) -> frozenset[bytes]:
        """The nodes that leave, this one included."""
        return self._drain.leaving()

    # When to look

    def look(self) -> None:
        """Note which nodes are up."""
        now_ms = self._reach.clock.monotonic_ms()
        hosts = self._reach.hosts
        for node in {*hosts.peers(), *self._watches}:
            self._watches[node] = watched(
                self._watches.get(node),
                up=hosts.is_up(node),
                now_ms=now_ms,
                grace_ms=self._settings.grace_ms,
            )

    def node_changed(self) -> None:
        """Look at once: a peer came up or went down."""
        self.look()
        self._woken.set()

    def look_at(self, refs: Collection[bytes]) -> None:
        """Look at some objects at once: a host has told that it holds them no more."""
        self._again.update(refs)
        self._woken.set()

    def gone(self, nodes: Iterable[bytes]) -> frozenset[bytes]:
        """Return those of some nodes that were silent for longer than the grace."""
        now_ms = self._reach.clock.monotonic_ms()
        nodes = list(nodes)
        unknown = [node for node in nodes if node != self._reach.own and node not in self._watches]
        for node in unknown:
            if len(self._watches) < WATCHES_MAX:
                # Not even a peer any more: its time runs from now on.
                self._watches[node] = Watch(None if self._reach.is_up(node) else now_ms, now_ms)
        # Where objects in custody name more nodes than there can be, the rest were never there.
        over = {node for node in unknown if node not in self._watches}
        return frozenset(
            node
            for node in nodes
            if node in over or is_gone(self._watches.get(node), now_ms, self._settings.grace_ms)
        )

    def silent_ms(self, node: bytes) -> int:
        """Return for how long a node has been silent; 0 while it is up."""
        self.gone([node])
        watch = self._watches.get(node)
        if watch is None or watch.down_since_ms is None:
            return 0
        return self._reach.clock.monotonic_ms() - watch.down_since_ms

    def available(self, *, also_unsteady: bool = False) -> frozenset[bytes]:
        """Return the nodes that may be given columns."""
        now_ms = self._reach.clock.monotonic_ms()
        up = {node for node in self._reach.hosts.peers() if self._reach.is_up(node)}
        if not also_unsteady:
            grace_ms = self._settings.grace_ms
            up = {node for node in up if is_steady(self._watches.get(node), now_ms, grace_ms)}
        return frozenset((up | {self._reach.own}) - self._leaving)

    async def run(self) -> None:
        """Look after all objects until cancelled."""
        seen: object = None
        full_ms = 0
        while True:
            self.look()
            now_ms = self._reach.clock.monotonic_ms()
            everything = now_ms >= full_ms
            if everything:
                full_ms = now_ms + self._settings.check_ms
            listed = [item async for item in sliced(self._objects.refs())]
            situation = (
                self.gone({*self._watches}),
                self.available(),
                self._leaving,
                frozenset(ref for ref, _ in listed) if len(listed) < REPAIRS_A_ROUND_MAX else 0,
            )
            cleanable = {
                ref: moved_ms
                for ref, moved_ms in self._moved_ms.items()
                if now_ms - moved_ms >= self._settings.kept_ms
            }
            known = {ref for ref, _ in listed}
            for ref in cleanable.keys() - known:
                # It was deleted meanwhile, or is looked after no more.
                del self._moved_ms[ref], cleanable[ref]
            self._left &= known
            for ref in (self._failed.keys() | self._reported.keys()) - known:
                self._failed.pop(ref, None)
                self._reported.pop(ref, None)
            also = {*cleanable, *(self._left if situation != seen else ())}
            if everything or situation != seen or self._again or cleanable:
                seen = situation
                await self.round(listed, everything=everything, also=also)
            await rest(self._reach.clock, self._woken, self._tick_ms(cleanable))

    def _tick_ms(self, looked_at: Mapping[bytes, int]) -> int:
        """Return when to look again: at once where something that moved may be deleted.

        What was just looked at for that is not looked at sooner than anything else.
        """
        most_ms = min(30_000, self._settings.grace_ms // 4)
        times = [ms for ref, ms in self._moved_ms.items() if looked_at.get(ref) != ms]
        if times:
            first_ms = min(times) + self._settings.kept_ms
            most_ms = min(most_ms, first_ms - self._reach.clock.monotonic_ms())
        return max(1_000, most_ms)

    def reported(self, ref: bytes, caller: bytes) -> bool:
        """Hear that somebody keeps copies of an object; say whether it may give one up.

        It may once after each look that found every column good, under leases of this node,
        and read all of them. The report itself is only a reason to look.
        """
        reports = self._reported.setdefault(ref, {})
        if reports.get(caller):
            del reports[caller]
            return True
        now_ms = self._reach.clock.monotonic_ms()
        # Each has all of the object read.
        if caller not in reports and not self._reports.wait_ms(ref + caller, now_ms):
            self._reports.note(ref + caller, now_ms)
            reports[caller] = False
            self._again.add(ref)
            self._woken.set()
        return False

    def _is_reported(self, ref: bytes) -> bool:
        """Say whether somebody waits for a look at what it keeps."""
        return False in self._reported.get(ref, {}).values()

    def apart(self, ref: bytes) -> AbstractAsyncContextManager[object]:
        """Hold an object's turn: nothing of it is looked at, moved or counted meanwhile.

        What is under way ends first; of an object that is gone by then, at the next segment.
        """
        return self._turns.of(ref)

    def _is_gone(self, ref: bytes) -> bool:
        return self._objects.load(ref) is None

    def _concerned(self, placement: Placement) -> bool:
        columns = placement.columns
        nodes = set(columns)
        if len(nodes) < len(columns):
            return True
        if any(placement.asked):
            hosts = self._hosts_of(nodes)
            if not survival([hosts[n] for n in columns], placement.m).meets(placement.asked):
                return True
        return bool(self.gone(nodes) or nodes & self._leaving)

    async def round(
        self,
        listed: Sequence[tuple[bytes, Placement]],
        *,
        everything: bool,
        also: Collection[bytes] = (),
    ) -> None:
        """Look at every object that may need something; repair the weakest first."""
        again, self._again = self._again, set()
        refs = [
            ref
            async for ref, placement in sliced(listed)
            if everything or ref in again or ref in also or self._concerned(placement)
        ]
        places = asyncio.Semaphore(SURVEYS_AT_ONCE)

        async def look(ref: bytes) -> tuple[int, bytes] | None:
            async with places:
                if ref in self._turns:
                    # It is being repaired; that can take long, and others wait.
                    self._again.add(ref)
                    return None
                # What is found anew is kept: nobody else may be changing the object meanwhile.
                async with self._turns.of(ref):
                    kept = self._objects.load(ref)
                    if kept is None:
                        return None
                    try:
                        survey = await self.survey(kept)
                    except XscError as fault:
                        self._fault(ref, fault)
                        return None
                    if self._needs(survey):
                        return survey.margin, ref
                    self._nothing_to_do(survey)
                    return None

        found = await together(look(ref) for ref in refs)
        order = sorted(item for item in found if item is not None)
        self._again.update(ref for _, ref in order[REPAIRS_A_ROUND_MAX:])
        queue = [ref for _, ref in order[:REPAIRS_A_ROUND_MAX]]

        async def work() -> None:
            while queue:
                ref = queue.pop(0)
                try:
                    await self.repair(ref)
                except XscError as fault:
                    self._fault(ref, fault)

        await together(work() for _ in range(REPAIRS_AT_ONCE))

    def _nothing_to_do(self, survey: Survey) -> None:
        """Forget when an object moved of which nothing can be deleted, until somebody is back."""
        ref, now_ms = survey.kept.ref, self._reach.clock.monotonic_ms()
        moved_ms = self._moved_ms.get(ref)
        if moved_ms is not None and now_ms - moved_ms >= self._settings.kept_ms:
            del self._moved_ms[ref]
            self._left.add(ref)
        if not self._outdated(survey):
            self._left.discard(ref)

    def _fault(self, ref: bytes, fault: XscError) -> None:
        self._reach.log.warning("repair.failed", object=short(ref), reason=fault.message)

    # What an object needs

    async def survey(self, kept: MaintainedObject) -> Survey:
        """Ask all hosts of an object; what they have lost is looked for at all peers.

        Raises:
            RecordInvalid: the manifest is not of the object that is to be looked after.
            XscError: the object cannot be found.
        """
        located = await self._find(kept.capability)
        manifest, columns = located.manifest, list(kept.placement.columns)
        if manifest.owner != kept.owner or len(columns) != manifest.k + manifest.m:
            raise RecordInvalid("the object is another one than its placement is for")
        answers = await self._ask(kept, manifest, columns)
        states = await self._reach.executor.run(column_states, manifest, columns, answers)
        for column, node in self._failed.get(kept.ref, ()):
            if columns[column] == node:
                states[column] = "corrupt"
        await self._found_elsewhere(kept, located, columns, states, answers)
        lost = lost_columns(columns, states, self.gone(set(columns)))
        leaving = {column for column, node in enumerate(columns) if node in self._leaving}
        foreign, expiring = self._to_renew(kept, columns, manifest, states, answers)
        homeless = lost | leaving | expiring
        labelled: frozenset[bytes] = frozenset()
        if homeless or any(manifest.asked[1:]):
            nodes = sorted({*columns, *self.available(also_unsteady=True)})
            labelled = await self._reach.hosts.learn_labels(nodes)
        return Survey(
            kept,
            located,
            tuple(columns),
            tuple(states),
            answers,
            homeless,
            foreign - homeless,
            expiring,
            labelled,
        )

    async def _ask(
        self, kept: MaintainedObject, manifest: Manifest, nodes: Iterable[bytes]
    ) -> dict[bytes, HeldObject | None]:
        ordered = sorted(set(nodes))
        said = await together(self._stat(node, kept.capability, manifest) for node in ordered)
        return dict(zip(ordered, said, strict=True))

    async def _found_elsewhere(
        self,
        kept: MaintainedObject,
        located: Located,
        columns: list[bytes],
        states: list[State],
        answers: dict[bytes, HeldObject | None],
    ) -> None:
        """Take lost columns where another host has them: a custodian may have rebuilt them.

        A node that has another column already does not count: one that says that it holds all
        would get all.
        """
        lost = lost_columns(columns, states, self.gone(set(columns)))
        if not lost:
            return
        manifest = located.manifest
        found = await self._search(kept.capability, located)
        failed = self._failed.get(kept.ref, frozenset())
        for column in sorted(lost):
            before = columns[column]
            others = set(found.holders[column]) - self._leaving - {before}
            for node in sorted(others - set(columns)):
                if (column, node) in failed:
                    continue
                if answers.get(node) is None:
                    answers |= await self._ask(kept, manifest, [node])
                if column_state(manifest, column, answers[node]) == "ok":
                    columns[column], states[column] = node, "ok"
                    break

    def _to_renew(
        self,
        kept: MaintainedObject,
        columns: Sequence[bytes],
        manifest: Manifest,
        states: Sequence[State],
        answers: dict[bytes, HeldObject | None],
    ) -> tuple[frozenset[int], frozenset[int]]:
        """Return the columns that need a lease of this node where they are, or elsewhere."""
        own, now_ms = self._reach.own, self._reach.clock.now_ms()
        if not kept.is_own:
            if kept.only_clean:
                return frozenset(), frozenset()
            return custody_expiring(
                manifest,
                columns,
                states,
                answers,
                own=own,
                trusted={kept.owner, *kept.before},
                now_ms=now_ms,
                rescue_ms=kept.rescue_ms,
            )
        foreign = self._not_mine(manifest, columns, states, answers)
        held = ((item.node, item.lease_id) for item in kept.held if item.size_bytes)
        ends = own_ends(held, own, self._reach.hosts.lease_end)
        ending = own_expiring(manifest, columns, states, answers, ends=ends, own=own, now_ms=now_ms)
        return foreign, ending - foreign

    def _layout(self, survey: Survey) -> Layout:
        """Return how an object lies, as it is planned with."""
        columns, asked = survey.columns, survey.manifest.asked
        return Layout(
            columns=columns,
            homeless=survey.homeless,
            m=survey.manifest.m,
            own=self._reach.own,
            doubled=survey.doubled,
            labels=self._hosts_of(survey.labelled),
            asked=asked,
            # Custodians move what is lost, and nobody moves for labels that were not heard yet.
            movable=survey.kept.is_own and (not any(asked[1:]) or survey.labelled >= set(columns)),
        )

    def _hosts_of(self, nodes: Iterable[bytes]) -> dict[bytes, Host]:
        return {node: Host(node, *self._reach.hosts.labels(node)) for node in nodes}

    def _not_mine(
        self,
        manifest: Manifest,
        columns: Sequence[bytes],
        states: Sequence[State],
        answers: dict[bytes, HeldObject | None],
    ) -> frozenset[int]:
        found = set()
        for column, (node, state) in enumerate(zip(columns, states, strict=True)):
            held = answers[node]
            if state != "ok" or held is None:
                continue
            if manifest.inline is not None:
                if held.records and all(row.customer != self._reach.own for row in held.records):
                    found.add(column)
                continue
            digest = expected_digest(manifest, column)
            mine = [
                row
                for row in held.columns
                if (row.customer, row.column, row.digest) == (self._reach.own, column, digest)
            ]
            if not mine:
                found.add(column)
        return frozenset(found)

    def _stale(self, survey: Survey) -> list[bytes]:
        """Return the hosts that answer and do not have the manifest."""
        return [
            node
            for node, held in survey.answers.items()
            if held is not None
            and held.record != "ok"
            and node in survey.columns
            and node not in self._leaving
        ]

    @staticmethod
    def _outdated(survey: Survey) -> set[bytes]:
        """Return the nodes of no column at which this node pays."""
        return {item.node for item in survey.kept.held} - set(survey.columns)

    def _leftovers(self, survey: Survey) -> set[bytes]:
        """Return those of them that can be asked to delete it now."""
        return {node for node in self._outdated(survey) if self._reach.is_up(node)}

    def _long_gone(self, survey: Survey, held: Iterable[Held]) -> list[Held]:
        """Return what lay at nodes that are silent and have dropped it by themselves since."""
        return [
            item
            for item in held
            if item.node not in survey.columns
            and not self._reach.is_up(item.node)
            and self._reach.has_dropped(item.node, item.lease_id)
        ]

    def _surplus(self, survey: Survey) -> dict[bytes, frozenset[int]]:
        found = {}
        for node, held in survey.answers.items():
            if held is None or node not in survey.columns:
                continue
            mine = [row.column for row in held.columns if row.customer == self._reach.own]
            columns = len(survey.columns)
            extra = surplus(survey.columns, node, [column for column in mine if column < columns])
            if extra:
                found[node] = extra
        return found

    def _recounted(self, survey: Survey) -> tuple[Held, ...]:
        """Return what is held, by what hosts say lies there under leases of this node."""
        manifest = survey.located.manifest
        a_column = self._column_bytes(manifest)
        a_record = self._record_bytes(survey.located)
        held = survey.kept.held
        for node, answer in survey.answers.items():
            if node != self._reach.own and answer is not None:
                most = most_held(answer, self._reach.own, a_column, a_record)
                held = recounted(held, node, answer.mine, most)
        return held

    async def _recount(self, survey: Survey) -> Survey:
        """Count what hosts hold for this node as they say it, where a crash lost the count."""
        kept, held = survey.kept, self._recounted(survey)
        if held == kept.held:
            return survey
        for node, lease_id, more_bytes in differences(kept.held, held):
            await self._reach.note_recounted(node, lease_id, more_bytes)
            self._reach.log.info(
                "repair.recounted",
                object=short(kept.ref),
                peer=short(node),
                lease=short(lease_id),
                more_bytes=more_bytes,
            )
        await self._objects.save(kept.ref, kept.placement, held)
        return replace(survey, kept=replace(kept, held=held))

    def _needs(self, survey: Survey) -> bool:
        if self._recounted(survey) != survey.kept.held:
            return True
        if survey.kept.only_clean:
            return bool(self._leftovers(survey))
        wanted = bool(survey.homeless or survey.foreign)
        wanted = wanted or (survey.kept.is_own and bool(self._stale(survey)))
        if wanted or self._leftovers(survey) or self._surplus(survey):
            return True
        if self._is_reported(survey.kept.ref):
            return True
        if self._long_gone(survey, survey.kept.held):
            return True
        return next_want(self._layout(survey), self.available()) is not None

    async def _part(self, survey: Survey, repaired: RepairResult) -> None:
        """Look again at once at what moved from a node that leaves; tell it what could not."""
        leaving = self._leaving
        if any(item.source in leaving for item in repaired.moved):
            self._again.add(survey.kept.ref)
            self._woken.set()
        for node in sorted({survey.columns[column] for column in repaired.left} & leaving):
            await self._drain.excuse(node, survey.located.locate, repaired.reason)

    # Mending

    async def repair(self, ref: bytes, progress: Progress | None = None) -> RepairResult | None:
        """Give an object what it needs; None where this node does not look after it.

        Raises:
            XscError: the object cannot be found.
        """
        async with self._turns.of(ref):
            kept = self._objects.load(ref)
            if kept is None:
                return None
            failed = self._failed.get(ref)
            survey = await self._confirmed(kept)
            survey = await self._recount(survey)
            survey = await self._moved_by_others(survey)
            kept = await self._clean(survey)
            survey = replace(survey, kept=kept)
            if kept.only_clean:
                return RepairResult(survey.margin, (), (), "")
            before = survey.margin
            if patched := await self._patch(survey):
                survey = await self._confirmed(kept)
            chosen, reason = await self._choose(survey)
            moved: tuple[MovedColumn, ...] = ()
            if chosen:
                moved, fault = await self._move(survey, chosen, progress)
                reason = fault or reason
            elif kept.is_own and (stale := self._stale(survey)):
                await self._spread(kept, survey, stale)
            if failed is not None and self._failed.get(ref) is failed:
                # It counted for this look; whether it can be read by now is seen anew.
                del self._failed[ref]
                self._again.add(ref)
            done = {item.column for item in moved}
            left = tuple(sorted(survey.homeless - done))
            if left and not reason:
                reason = "no node that is up and holds none of it has room"
            if left:
                self._reach.log.warning(
                    "repair.incomplete", object=short(ref), columns=list(left), reason=reason
                )
            repaired = RepairResult(before, moved, left, reason if left else "", patched)
            if moved:
                self.recent.append((ref, repaired))
            await self._part(survey, repaired)
            return repaired

    async def _confirmed(self, kept: MaintainedObject) -> Survey:
        """Survey an object; what was found elsewhere counts only once it was read whole there."""
        while True:
            survey = await self.survey(kept)
            placed = zip(survey.columns, kept.placement.columns, strict=True)
            found = [node if node != before else None for node, before in placed]
            if not any(found):
                return survey
            _, bad = await read_every_shard(self._reach, survey.located, found, self._pace)
            if not bad:
                return survey
            wrong = frozenset((fault.column, fault.node) for fault in bad)
            self._failed[kept.ref] = self._failed.get(kept.ref, frozenset()) | wrong

    async def _moved_by_others(self, survey: Survey) -> Survey:
        """Keep where columns were found, but for those that are still to be taken over."""
        kept = survey.kept
        before = kept.placement.columns
        foreign = survey.foreign if kept.is_own else ()
        columns = [
            before[column] if column in foreign else node
            for column, node in enumerate(survey.columns)
        ]
        if columns == [*before]:
            return survey
        kept = replace(kept, placement=placement_of(survey.manifest, columns))
        await self._objects.save(kept.ref, kept.placement, kept.held)
        return replace(survey, kept=kept)

    async def _patch(self, survey: Survey) -> int:
        """Store damaged shards anew at hosts that have the rest of their columns; return how many.

        What cannot be stored there is left to be moved with its column.
        """
        kept, located = survey.kept, survey.located
        manifest, leaving = located.manifest, self._leaving
        done = 0
        for column, segments in damaged_segments(
            manifest, survey.columns, survey.answers, self._reach.own
        ).items():
            node = survey.columns[column]
            leases = list({item.lease_id for item in kept.held if item.node == node})
            if node in leaving or len(leases) != 1:
                # Under which of several leases the shard lies is not known here.
                continue
            lease = KnownLease(node, leases[0])
            try:
                for segment in segments:
                    shard = await self._patched(survey, segment, column)
                    size, fault = await self._send(lease, located, segment, shard)
                    if fault:
                        self._reach.log.info(
                            "repair.shard_not_rewritten", peer=short(node), reason=fault
                        )
                        break
                    # It takes the place of what was counted already.
                    await self._reach.note_freed(node, lease.lease_id, size)
                    done += 1
            except XscError as fault_error:
                self._fault(kept.ref, fault_error)
        if done:
            self._reach.log.info("repair.shards_rewritten", object=short(kept.ref), shards=done)
        return done

    async def _patched(self, survey: Survey, segment: int, column: int) -> StorageShard:
        """Build one damaged shard from columns that are whole in this segment."""
        located, manifest = survey.located, survey.located.manifest
        code = code_of(manifest)
        length = length_of(segment, manifest.size_bytes, manifest.segment_bytes)
        await self._pace(code.shard_bytes(length) * (1 + manifest.k))
        good = good_for(manifest, survey.columns, survey.answers, segment)
        got = await race(
            self._reach,
            locate=located.locate,
            generation=manifest.generation,
            segment=segment,
            roots=roots_of(manifest, segment),
            sources=in_order(
                self._reach, [Source(each, survey.columns[each]) for each in good], manifest.k
            ),
            k=manifest.k,
        )
        (shard,) = await self._reach.executor.run(rebuild, got, code, length, [column])
        return shard

    async def _clean(self, survey: Survey) -> MaintainedObject:
        """Delete what counts no more, once nobody can still be reading it there.

        What is no whole column is deleted at once. Of whole columns one is deleted a look, or
        a custodian may give one up, after all that remain were read.
        """
        kept, now_ms = survey.kept, self._reach.clock.monotonic_ms()
        moved_ms = self._moved_ms.get(kept.ref)
        if moved_ms is not None and now_ms - moved_ms < self._settings.kept_ms:
            return kept
        self._moved_ms.pop(kept.ref, None)
        held = list(kept.held)
        good: list[tuple[bytes, frozenset[int]]] = []
        answers = await self._ask(kept, survey.manifest, sorted(self._leftovers(survey)))
        for node, said in answers.items():
            if said is None:
                continue
            whole = self._whole_columns(survey, said)
            if not whole:
                held = await self._delete(survey, node, frozenset(), held)
            elif self._may_go(survey, node, min(whole)):
                # The last one goes with all that is there beside it.
                good.append((node, frozenset({min(whole)}) if len(whole) > 1 else frozenset()))
            else:
                self._left.add(kept.ref)
        for node, columns in sorted(self._surplus(survey).items()):
            whole = self._whole_columns(survey, survey.answers[node]) & columns
            if broken := columns - whole:
                held = await self._delete(survey, node, broken, held)
            good += [
                (node, frozenset({column}))
                for column in sorted(whole)
                if self._may_go(survey, node, column)
            ]
        for item in self._long_gone(survey, held):
            await self._reach.note_freed(item.node, item.lease_id, item.size_bytes)
            held.remove(item)
        reported = self._is_reported(kept.ref)
        if good:
            # Where it cannot be deleted now, it is looked at again when nodes come or go.
            self._left.add(kept.ref)
        if (good or reported) and not kept.only_clean and await self._is_proven(survey):
            if good:
                held = await self._delete(survey, *good[0], held)
                self._again.add(kept.ref)
            elif reported:
                self._reported[kept.ref] = dict.fromkeys(self._reported[kept.ref], True)
        if tuple(held) != kept.held:
            kept = replace(kept, held=tuple(held))
            await self._objects.save(kept.ref, kept.placement, kept.held)
        return kept

    def _may_go(self, survey: Survey, node: bytes, column: int) -> bool:
        """Say whether a good column may go although it is elsewhere, too.

        Not where it is now with a node that has several: the copy is worth more than that one.
        """
        return node in self._leaving or survey.columns.count(survey.columns[column]) == 1

    def _whole_columns(self, survey: Survey, said: HeldObject | None) -> frozenset[int]:
        """Return the columns that a host says to have whole for this node."""
        if said is None:
            return frozenset()
        own, manifest = self._reach.own, survey.manifest
        if manifest.inline is not None:
            return frozenset({0} if any(row.customer == own for row in said.records) else ())
        return frozenset(
            row.column
            for row in said.columns
            if row.customer == own
            and row.column < len(survey.columns)
            and row.digest == expected_digest(manifest, row.column)
        )

    async def _delete(
        self, survey: Survey, node: bytes, columns: frozenset[int], held: list[Held]
    ) -> list[Held]:
        """Delete columns at a host, or all where none is named; return what is held then."""
        locate = survey.located.locate
        try:
            freed, _ = await self._reach.delete(node, locate, columns=columns)
        except XscError as fault:
            self._fault(survey.kept.ref, fault)
            return held
        if columns:
            for lease_id, size in freed.items():
                await self._reach.note_freed(node, lease_id, size)
            return without(held, node, freed)
        for item in [item for item in held if item.node == node]:
            await self._reach.note_freed(node, item.lease_id, item.size_bytes)
        return [item for item in held if item.node != node]

    async def _is_proven(self, survey: Survey) -> bool:
        """Say whether every column is good where it is: each is read whole, and verified."""
        if not survey.is_whole:
            return False
        ref = survey.kept.ref

        async def pace(size_bytes: int) -> None:
            if self._is_gone(ref):
                # Its deletion waits for this.
                raise ObjectUnknown("it is being deleted")
            await self._pace(size_bytes)

        try:
            _, bad = await read_every_shard(self._reach, survey.located, survey.columns, pace)
        except ObjectUnknown:
            return False
        # Silence is no loss before the grace is over: it is asked again later.
        failed = frozenset((fault.column, fault.node) for fault in bad if not fault.silent)
        if failed:
            self._failed[ref] = failed
        for fault in bad[:1]:
            self._reach.log.warning(
                "repair.column_not_proven",
                object=short(ref),
                peer=short(fault.node),
                column=fault.column,
                reason=fault.reason,
            )
        if failed:
            self._again.add(ref)
        return not bad

    def _column_bytes(self, manifest: Manifest) -> int:
        if manifest.inline is not None:
            return 0
        return column_bytes(manifest.size_bytes, code_of(manifest), manifest.segment_bytes)

    @staticmethod
    def _record_bytes(located: Located) -> int:
        """Return what the object record counts for at a host."""
        return held_bytes(len(located.sealed))

    async def _choose(self, survey: Survey) -> tuple[dict[int, HostLease], str]:
        """Return room for each column that moves, and what failed."""
        reach = self._reach
        layout = self._layout(survey)
        silent = {node for node, held in survey.answers.items() if held is None}
        available = self.available(also_unsteady=survey.margin <= 0) - silent
        available -= {survey.columns[column] for column in survey.expiring}
        located = survey.located
        size = self._column_bytes(located.manifest) + self._record_bytes(located)
        budget_bytes = survey.kept.budget_bytes
        most = len(layout.columns) if budget_bytes is None else budget_bytes // max(1, size)
        chosen: dict[int, HostLease] = {}
        reason = ""
        for column in sorted(survey.foreign)[:most]:
            lease, fault = await self._lease(frozenset({layout.columns[column]}), size)
            if lease is not None:
                chosen[column] = lease
            reason = reason or fault
        readable = survey.margin >= 0 or located.manifest.inline is not None
        while readable:
            if len(chosen) >= most:
                reason = reason or "what this node may keep for that owner is used up"
                break
            want = await reach.executor.run(next_want, layout, available)
            if want is None:
                break
            lease, fault = await self._lease(want.targets, size)
            if lease is None:
                reason = reason or fault
                available -= want.targets
                continue
            layout = layout.placed(want.column, lease.node)
            chosen[want.column] = lease
        if not readable:
            reason = "fewer columns are left than the object needs"
        return chosen, reason

    async def _lease(self, targets: frozenset[bytes], size: int) -> tuple[HostLease | None, str]:
        """Return room at one of these nodes, or why there is none."""
        known = {self._reach.own, *self._reach.hosts.peers()}
        offered = await self._reach.hosts.lease_hosts(
            size_bytes=size, count=1, exclude=frozenset(known - targets)
        )
        if not offered.leases:
            fault = refusal(offered.refused, "no node offers the room that is needed")
            return None, fault.message
        if offered.leases[0].node not in targets:
            return None, "no node that may take it has room"
        return offered.leases[0], ""

    async def _move(
        self,
        survey: Survey,
        chosen: dict[int, HostLease],
        progress: Progress | None,
    ) -> tuple[tuple[MovedColumn, ...], str]:
        """Build or copy the chosen columns at their new hosts, then say where they are."""
        kept, located = survey.kept, survey.located
        # First on the disk: after a crash it is known where something may lie.
        # It stands apart from what was confirmed: so it is known that more may lie there.
        held = (*kept.held, *marks(chosen.values()))
        if not await self._objects.save(kept.ref, kept.placement, held):
            return (), "it is being deleted"
        sent: list[Held] = []
        alive = dict(chosen)
        before = list(kept.held)
        fault = ""
        try:
            for column, lease in chosen.items():
                if survey.columns[column] == lease.node and column in survey.homeless:
                    # What lies there is not what it should be.
                    before = await self._delete(survey, lease.node, frozenset({column}), before)
            count = segments_of(located.manifest)
            moving = await self._keep_there(survey, alive, sent)
            for index in range(count if moving else 0):
                if self._is_gone(kept.ref):
                    fault, alive = "it is being deleted", {}
                    break
                shards = await self._build(survey, index, sorted(moving & set(alive)))
                answers = await together(
                    self._send(alive[shard.column], located, index, shard) for shard in shards
                )
                for shard, (size, why) in zip(shards, answers, strict=True):
                    lease = alive[shard.column]
                    sent.append(Held(lease.node, lease.lease_id, size))
                    if why:
                        fault = why
                        del alive[shard.column]
                if not moving & set(alive):
                    break
                if progress is not None:
                    progress(index + 1, count)
        except XscError as broken:
            fault, alive = broken.message, {}
        held = self._without_ended(merged(before, sent), alive)
        moved = tuple(
            MovedColumn(column, survey.columns[column], lease.node)
            for column, lease in sorted(alive.items())
        )
        if fault:
            self._again.add(kept.ref)
        if not moved:
            await self._objects.save(kept.ref, kept.placement, held)
            return (), fault
        columns = list(survey.columns)
        for item in moved:
            columns[item.column] = item.target
        placement = placement_of(located.manifest, columns)
        # The record goes there, too.
        held = (*held, *marks(alive.values()))
        if not await self._objects.save(kept.ref, placement, held):
            return (), "it is being deleted"
        self._moved_ms[kept.ref] = self._reach.clock.monotonic_ms()
        self._failed.pop(kept.ref, None)
        kept = replace(kept, placement=placement, held=held)
        await self._spread(kept, survey, [item.target for item in moved])
        for item in moved:
            self._reach.log.info(
                "repair.column_moved",
                object=short(kept.ref),
                column=item.column,
                source=short(item.source),
                target=short(item.target),
            )
        return moved, fault

    async def _keep_there(
        self, survey: Survey, chosen: dict[int, HostLease], sent: list[Held]
    ) -> set[int]:
        """Have hosts keep what stays where it is, without a byte sent; return what must move."""
        located = survey.located
        manifest, moving = located.manifest, set(chosen)
        for column, lease in sorted(chosen.items()):
            if survey.columns[column] != lease.node or column in survey.homeless:
                continue
            shards = shards_of(manifest, column)
            most = max(1, STORE_REQUEST_BYTES_MAX // max((s.size_bytes for s in shards), default=1))
            most = min(most, GET_MAX)
            try:
                for start in range(0, len(shards), most):
                    size = await self._reach.keep(
                        lease, located.locate, manifest.generation, shards[start : start + most]
                    )
                    sent.append(Held(lease.node, lease.lease_id, size))
            except XscError as fault:
                self._fault(survey.kept.ref, fault)
                continue
            moving.discard(column)
        return moving

    def _without_ended(
        self, held: tuple[Held, ...], alive: dict[int, HostLease]
    ) -> tuple[Held, ...]:
        """Return what is held without what lay under leases that are over, where there are new."""
        now_ms = self._reach.clock.now_ms()
        fresh = {(lease.node, lease.lease_id) for lease in alive.values()}
        nodes = {node for node, _ in fresh}

        def is_over(item: Held) -> bool:
            end = self._reach.hosts.lease_end(item.lease_id)
            return end is None or end.end_ms <= now_ms

        return tuple(
            item
            for item in held
            if (item.node, item.lease_id) in fresh
            or item.node not in nodes
            or item.node == self._reach.own
            or not is_over(item)
        )

    async def _build(
        self, survey: Survey, index: int, columns: Sequence[int]
    ) -> list[StorageShard]:
        """Return the wanted shards of a segment: copied where they still lie, else rebuilt."""
        located, manifest = survey.located, survey.located.manifest
        roots = roots_of(manifest, index)
        code = code_of(manifest)
        length = min(manifest.segment_bytes, manifest.size_bytes - index * manifest.segment_bytes)
        await self._pace(code.shard_bytes(length) * (len(columns) + manifest.k))
        if all(survey.states[column] == "ok" for column in columns):
            try:
                return await together(self._copy(survey, index, column) for column in columns)
            except XscError as fault:
                self._fault(survey.kept.ref, fault)
        good = [
            Source(column, node)
            for column, (node, state) in enumerate(zip(survey.columns, survey.states, strict=True))
            if state == "ok"
        ]
        got = await race(
            self._reach,
            locate=located.locate,
            generation=manifest.generation,
            segment=index,
            roots=roots,
            sources=in_order(self._reach, good, manifest.k),
            k=manifest.k,
        )
        return await self._reach.executor.run(rebuild, got, code, length, columns)

    async def _copy(self, survey: Survey, index: int, column: int) -> StorageShard:
        manifest = survey.located.manifest
        root = roots_of(manifest, index)[column]
        data: Buffer = await self._reach.fetch(
            survey.columns[column],
            survey.located.locate,
            manifest.generation,
            Wanted(index, column, root),
        )
        return StorageShard(column, data, root)

    async def _send(
        self, lease: HostLease, located: Located, index: int, shard: StorageShard
    ) -> tuple[int, str]:
        """Store a shard; return the bytes confirmed, or why there are none."""
        try:
            size = await self._reach.store(
                lease,
                located.locate,
                located.manifest.generation,
                shards=[(index, shard)],
                record=None,
            )
        except XscError as fault:
            return 0, fault.message
        return size, ""

    async def _pace(self, size_bytes: int) -> None:
        """Wait for the turn of so many bytes."""
        rate = self._settings.bytes_a_second
        if not rate:
            return
        now_ms = self._reach.clock.monotonic_ms()
        start_ms = max(now_ms, self._free_ms)
        self._free_ms = start_ms + size_bytes * 1000 // rate
        if start_ms > now_ms:
            await self._reach.clock.sleep_ms(start_ms - now_ms)

    # The manifest

    async def _spread(self, kept: MaintainedObject, survey: Survey, nodes: Iterable[bytes]) -> None:
        """Store the manifest at hosts; who misses it now gets it at the next look."""
        sealed = survey.located.sealed
        record = ObjectRecord(
            sealed=sealed, sealed_root=root_of(sealed), manifest_hash=hash_of(sealed)
        )
        # A node that had something of it before may have the manifest still.
        wanted = list(dict.fromkeys(nodes))
        new = [node for node in wanted if node not in survey.answers]
        answers = survey.answers | await self._ask(kept, survey.manifest, new)
        survey = replace(survey, answers=answers)
        lacking = [node for node in wanted if not self._has_record(survey, node)]
        rooms = await self._rooms_for(kept, record, lacking)
        if rooms and not await self._objects.save(
            kept.ref, kept.placement, (*kept.held, *marks(rooms.values()))
        ):
            return
        damaged = {node for node in lacking if self._is_damaged(survey, node)}
        added = await together(
            self._tell(kept, survey.located, record, node, rooms.get(node)) for node in lacking
        )
        counted: list[Held] = []
        for item in added:
            if item is not None and item.node in damaged:
                # It took the place of what was counted already.
                await self._reach.note_freed(item.node, item.lease_id, item.size_bytes)
            elif item is not None:
                counted.append(item)
        held = merged(kept.held, counted)
        if held != kept.held:
            await self._objects.save(kept.ref, kept.placement, held)

    @staticmethod
    def _is_damaged(survey: Survey, node: bytes) -> bool:
        """Say whether a host has a record of this node that cannot be read any more."""
        said = survey.answers.get(node)
        pays = any(item.node == node and item.size_bytes for item in survey.kept.held)
        return said is not None and said.record == "corrupt" and pays

    def _has_record(self, survey: Survey, node: bytes) -> bool:
        said = survey.answers.get(node)
        return said is not None and any(row.customer == self._reach.own for row in said.records)

    async def _rooms_for(
        self, kept: MaintainedObject, record: ObjectRecord, nodes: Collection[bytes]
    ) -> dict[bytes, HostLease]:
        """Return room for the record at nodes where this node pays for nothing of the object."""
        known = {item.node for item in kept.held} | {self._reach.own}
        unknown = [node for node in nodes if node not in known]
        size = record.held_bytes
        found = await together(self._lease(frozenset({node}), size) for node in unknown)
        return {
            node: lease
            for node, (lease, _) in zip(unknown, found, strict=True)
            if lease is not None
        }

    async def _tell(
        self,
        kept: MaintainedObject,
        located: Located,
        record: ObjectRecord,
        node: bytes,
        room: HostLease | None,
    ) -> Held | None:
        """Store the record at one host; return what it counts for there."""
        # The newest lease first: the others may be full, or over.
        known = [item.lease_id for item in reversed(kept.held) if item.node == node]
        leases: list[HostLease] = [KnownLease(node, id_) for id_ in dict.fromkeys(known)]
        if node == self._reach.own:
            leases = [KnownLease(node, OWN_LEASE)]
        elif room is not None:
            leases = [room]
        for lease in leases:
            try:
                await self._record(lease, located, record)
            except LeaseExhausted:
                continue
            except XscError as fault:
                self._fault(kept.ref, fault)
                return None
            return Held(lease.node, lease.lease_id, record.held_bytes)
        fresh, _ = await self._lease(frozenset({node}), record.held_bytes)
        if fresh is None:
            return None
        try:
            await self._record(fresh, located, record)
        except XscError as fault:
            self._fault(kept.ref, fault)
            return None
        return Held(fresh.node, fresh.lease_id, record.held_bytes)

    async def _record(self, lease: HostLease, located: Located, record: ObjectRecord) -> None:
        generation = located.manifest.generation
        for batch, carried in requests_of([], record):
            await self._reach.store(lease, located.locate, generation, shards=batch, record=carried)


def marks(leases: Iterable[HostLease]) -> list[Held]:
    """Return the mark that more may lie under leases than was counted."""
    return [Held(lease.node, lease.lease_id, 0) for lease in leases]


def merged(held: Iterable[Held], more: Iterable[Held]) -> tuple[Held, ...]:
    """Return what is held by host and lease, summed."""
    sizes: dict[tuple[bytes, bytes], int] = {}
    for item in (*held, *more):
        place = (item.node, item.lease_id)
        sizes[place] = sizes.get(place, 0) + item.size_bytes
    return tuple(Held(node, lease_id, max(0, size)) for (node, lease_id), size in sizes.items())


def without(held: Sequence[Held], node: bytes, freed: dict[bytes, int]) -> list[Held]:
    """Return what is held after a host freed so many bytes under each lease."""
    return [
        replace(item, size_bytes=max(0, item.size_bytes - freed.get(item.lease_id, 0)))
        if item.node == node
        else item
        for item in held
    ]
