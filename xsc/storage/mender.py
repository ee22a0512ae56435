"""Keeps objects whole: looks after each, and moves columns that are lost or must leave.

Touches hosts through `Reach`. What it is given of an object is a `Charge`: a
*verify* capability and a key to sign placements with. It cannot read what it
mends. Plans are made anew from what the hosts say (`mending`) and are kept
nowhere, so that a restart loses at most the object that was being worked on:
whom it sends to is written down first, and what lies there without a placement
is deleted before the next try. DESIGN section 5; docs/design/storage-repair.md.
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

from xsc.base.errors import LeaseExhausted, LimitError, NoOffers, NotAllowed, XscError
from xsc.base.ids import short
from xsc.base.limits import (
    MENDS_A_ROUND_MAX,
    MENDS_AT_ONCE,
    STORE_REQUEST_BYTES_MAX,
    SURVEYS_AT_ONCE,
)
from xsc.base.merkle import root_of
from xsc.base.turns import Turns, sliced
from xsc.identity.keys import KeyPair
from xsc.storage.capability import VerifyCapability
from xsc.storage.delegation import (
    Placed,
    move_by_delegate,
    move_by_owner,
    open_placement,
)
from xsc.storage.durability import Host, survival
from xsc.storage.erasure import Buffer, StorageShard
from xsc.storage.expiry import own_ends, own_expiring, ward_expiring
from xsc.storage.held import HeldObject, Wanted
from xsc.storage.manifest import Manifest, code_of, expected_digest, hash_of, segments_of
from xsc.storage.mending import (
    Watch,
    is_gone,
    is_steady,
    lost_columns,
    margin,
    surplus,
    watched,
)
from xsc.storage.messages import GET_MAX, ObjectRecord
from xsc.storage.patching import damaged_segments, good_for
from xsc.storage.pipeline import Held
from xsc.storage.placement import State, column_states
from xsc.storage.ports import HostLease
from xsc.storage.proving import Prover
from xsc.storage.reach import Reach, Source, in_order, race, requests_of, rest, together
from xsc.storage.reading import Located, roots_of
from xsc.storage.receipts import shards_of
from xsc.storage.recount import differences, most_held, recounted
from xsc.storage.rehoming import Layout, next_want
from xsc.storage.repair import rebuild
from xsc.storage.segment import length_of
from xsc.terms.lease import OWN_LEASE


@dataclass(frozen=True, slots=True)
class MendSettings:
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
class Charge:
    """An object to look after, and by what right."""

    ref: bytes
    """The manifest hash."""
    capability: VerifyCapability
    owner: KeyPair | None
    """The owner's key, at the owner alone; others sign as the delegate."""
    placement: bytes
    held: tuple[Held, ...]
    """What this node pays for, by host and lease; also what it was about to send."""
    rescue_ms: int = 0
    """At a guardian: how long before its end it keeps what the owner did not renew."""
    only_clean: bool = False
    """Nothing is to be mended by this node: only what it pays for in vain is deleted."""


class Keeper(Protocol):
    """Holds charges on the disk."""

    def refs(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the charges to be looked after at this moment: reference and placement."""

    def load(self, ref: bytes) -> Charge | None:
        """Return a charge; None where it is gone."""

    async def save(self, ref: bytes, placement: bytes, held: tuple[Held, ...]) -> bool:
        """Keep placement and what is held, synced; False where the charge is gone.

        Of one that is being deleted what is held is kept still: all of that is deleted.
        """


@dataclass(frozen=True, slots=True)
class LoneLease:
    """Room at a host that is held under a lease known before."""

    node: bytes
    lease_id: bytes
    price: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """A column that has a new home."""

    column: int
    source: bytes
    target: bytes


@dataclass(frozen=True, slots=True)
class Mended:
    """What one look at an object came to."""

    margin: int
    """Before."""
    moved: tuple[Moved, ...]
    left: tuple[int, ...]
    """Columns that are lost or must leave, and have no new home yet."""
    reason: str
    """Why some are left; empty where none are."""
    patched: int = 0
    """Damaged shards that were stored anew where they were."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What the hosts of an object say."""

    charge: Charge
    located: Located
    placed: Placed
    states: tuple[State, ...]
    answers: dict[bytes, HeldObject | None]
    homeless: frozenset[int]
    """Columns that are lost, or on nodes that leave."""
    foreign: frozenset[int]
    """Columns that stay where they are, but must come under a lease of this node: at the
    owner, those that others pay for; at a guardian, those that the owner did not renew."""
    expiring: frozenset[int] = frozenset()
    """Columns whose lease ends soon where no other is to be had; part of `homeless`."""
    labelled: frozenset[bytes] = frozenset()
    """Nodes that said where they are and whose, or that they do not say it."""

    @property
    def columns(self) -> tuple[bytes, ...]:
        """The node of each column."""
        return self.placed.placement.columns

    @property
    def doubled(self) -> bool:
        """Whether some node holds several columns."""
        return len(set(self.columns)) < len(self.columns)

    @property
    def margin(self) -> int:
        """How many more columns may be lost."""
        return margin(self.states, self.placed.placement.k)


Progress = Callable[[int, int], None]
"""Hears how many segments of how many are done."""


class Mender:
    """See the module."""

    def __init__(
        self,
        *,
        reach: Reach,
        keeper: Keeper,
        settings: MendSettings,
        locate: Callable[[VerifyCapability], Awaitable[Located]],
        ask: Callable[[bytes, VerifyCapability], Awaitable[Located | None]],
        stat: Callable[[bytes, VerifyCapability, int], Coroutine[Any, Any, HeldObject | None]],
        prover: Prover,
    ) -> None:
        self._reach = reach
        self._keeper = keeper
        self._settings = settings
        self._locate = locate
        self._ask = ask
        self._stat = stat
        self._prover = prover
        self._proved: dict[bytes, frozenset[bytes]] = {}
        """By object: the nodes that leave and need nothing more of it."""
        self._watches: dict[bytes, Watch] = {}
        self._turns: Turns[bytes] = Turns()
        """By object: held while a charge is looked at, mended or changed."""
        self._moved_ms: dict[bytes, int] = {}
        self._left: set[bytes] = set()
        """Objects of which something may lie at nodes that are silent and count no more."""
        self._again: set[bytes] = set()
        self._woken = asyncio.Event()
        self._free_ms = 0
        self.lately: deque[tuple[bytes, Mended]] = deque(maxlen=MENDS_A_ROUND_MAX)
        """What was mended in this run, by reference, the oldest first."""

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

    def gone(self, nodes: Iterable[bytes]) -> frozenset[bytes]:
        """Return those of some nodes that were silent for longer than the grace."""
        now_ms = self._reach.clock.monotonic_ms()
        for node in nodes:
            if node != self._reach.own and node not in self._watches:
                # Not even a peer any more: its time runs from now on.
                self._watches[node] = Watch(None if self._reach.is_up(node) else now_ms, now_ms)
        return frozenset(
            node
            for node in nodes
            if is_gone(self._watches.get(node), now_ms, self._settings.grace_ms)
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
        return frozenset((up | {self._reach.own}) - self._prover.leaving)

    async def run(self) -> None:
        """Look after all charges until cancelled."""
        seen: object = None
        full_ms = 0
        while True:
            self.look()
            now_ms = self._reach.clock.monotonic_ms()
            everything = now_ms >= full_ms
            if everything:
                full_ms = now_ms + self._settings.check_ms
            listed = [item async for item in sliced(self._keeper.refs())]
            situation = (
                self.gone({*self._watches}),
                self.available(),
                self._prover.leaving,
                frozenset(ref for ref, _ in listed) if len(listed) < MENDS_A_ROUND_MAX else 0,
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

    async def adopt(self, ref: bytes, placed: Placed) -> None:
        """Take a checked placement for an object, if it is a later one, and look at it soon."""
        async with self._turns.of(ref):
            # Only now: it may have been mended, or deleted, while this waited.
            charge = self._keeper.load(ref)
            if charge is None:
                return
            if placed.rank <= open_placement(charge.placement, self._reach.network).rank:
                return
            await self._keeper.save(ref, placed.raw, charge.held)
        self._again.add(ref)
        self._woken.set()

    def apart(self, ref: bytes) -> AbstractAsyncContextManager[object]:
        """Hold an object's turn: nothing of it is looked at, moved or counted meanwhile.

        What is under way ends first; of a charge that is gone by then, at the next segment.
        """
        return self._turns.of(ref)

    def _is_gone(self, ref: bytes) -> bool:
        return self._keeper.load(ref) is None

    def _concerned(self, raw: bytes) -> bool:
        try:
            placement = open_placement(raw, self._reach.network).placement
        except XscError:
            return True
        columns = placement.columns
        nodes = set(columns)
        if len(nodes) < len(columns):
            return True
        if placement.survive is not None:
            hosts = self._hosts_of(nodes)
            if not survival([hosts[n] for n in columns], placement.m).meets(placement.asked):
                return True
        return bool(self.gone(nodes) or nodes & self._prover.leaving)

    async def round(
        self,
        listed: Sequence[tuple[bytes, bytes]],
        *,
        everything: bool,
        also: Collection[bytes] = (),
    ) -> None:
        """Look at every charge that may need something; mend the weakest first."""
        again, self._again = self._again, set()
        refs = [
            ref
            async for ref, raw in sliced(listed)
            if everything or ref in again or ref in also or self._concerned(raw)
        ]
        places = asyncio.Semaphore(SURVEYS_AT_ONCE)

        async def look(ref: bytes) -> tuple[int, bytes] | None:
            async with places:
                if ref in self._turns:
                    # It is being mended; that can take long, and others wait.
                    self._again.add(ref)
                    return None
                # What is found anew is kept: nobody else may be changing the charge meanwhile.
                async with self._turns.of(ref):
                    charge = self._keeper.load(ref)
                    if charge is None:
                        return None
                    try:
                        survey = await self.survey(charge)
                    except XscError as fault:
                        self._fault(ref, fault)
                        return None
                    if self._needs(survey):
                        return survey.margin, ref
                    self._nothing_to_do(survey)
                    return None

        found = await together(look(ref) for ref in refs)
        order = sorted(item for item in found if item is not None)
        self._again.update(ref for _, ref in order[MENDS_A_ROUND_MAX:])
        queue = [ref for _, ref in order[:MENDS_A_ROUND_MAX]]

        async def work() -> None:
            while queue:
                ref = queue.pop(0)
                try:
                    await self.mend(ref)
                except XscError as fault:
                    self._fault(ref, fault)

        await together(work() for _ in range(MENDS_AT_ONCE))

    def _nothing_to_do(self, survey: Survey) -> None:
        """Forget when an object moved of which nothing can be deleted, until somebody is back."""
        ref, now_ms = survey.charge.ref, self._reach.clock.monotonic_ms()
        moved_ms = self._moved_ms.get(ref)
        if moved_ms is not None and now_ms - moved_ms >= self._settings.kept_ms:
            del self._moved_ms[ref]
            self._left.add(ref)
        if not self._outdated(survey):
            self._left.discard(ref)

    def _fault(self, ref: bytes, fault: XscError) -> None:
        self._reach.log.warning("storage_mend_failed", object=short(ref), reason=fault.message)

    # What an object needs

    async def survey(self, charge: Charge) -> Survey:
        """Ask all hosts of an object, under the latest placement that one of them knows.

        Raises:
            XscError: the object cannot be found.
        """
        located = await self._locate(charge.capability)
        while True:
            manifest, columns = located.manifest, located.placement.columns
            nodes = sorted(set(columns))
            said = await together(
                self._stat(node, charge.capability, manifest.generation) for node in nodes
            )
            answers = dict(zip(nodes, said, strict=True))
            newer = await self._newer(charge, located, answers)
            if newer is None:
                break
            located = newer
        if located.placement_raw != charge.placement:
            charge = replace(charge, placement=located.placement_raw)
            await self._keeper.save(charge.ref, charge.placement, charge.held)
        placed = open_placement(located.placement_raw, self._reach.network)
        states = await self._reach.executor.run(column_states, manifest, columns, answers)
        leaving = {column for column, node in enumerate(columns) if node in self._prover.leaving}
        lost = lost_columns(columns, states, self.gone(set(columns)))
        foreign, expiring = self._to_renew(charge, placed, manifest, states, answers)
        homeless = lost | leaving | expiring
        labelled: frozenset[bytes] = frozenset()
        if homeless or placed.placement.survive is not None:
            nodes = sorted({*columns, *self.available(also_unsteady=True)})
            labelled = await self._reach.hosts.learn_labels(nodes)
        return Survey(
            charge,
            located,
            placed,
            tuple(states),
            answers,
            homeless,
            foreign - homeless,
            expiring,
            labelled,
        )

    def _to_renew(
        self,
        charge: Charge,
        placed: Placed,
        manifest: Manifest,
        states: Sequence[State],
        answers: dict[bytes, HeldObject | None],
    ) -> tuple[frozenset[int], frozenset[int]]:
        """Return the columns that need a lease of this node where they are, or elsewhere."""
        columns, own = placed.placement.columns, self._reach.own
        now_ms = self._reach.clock.now_ms()
        if charge.owner is None:
            if charge.only_clean:
                return frozenset(), frozenset()
            return ward_expiring(
                manifest,
                columns,
                states,
                answers,
                own=own,
                now_ms=now_ms,
                rescue_ms=charge.rescue_ms,
            )
        foreign: frozenset[int] = frozenset()
        if placed.repairs:
            foreign = self._not_mine(manifest, columns, states, answers)
        held = ((item.node, item.lease_id) for item in charge.held if item.size_bytes)
        ends = own_ends(held, own, self._reach.hosts.lease_end)
        ending = own_expiring(manifest, columns, states, answers, ends=ends, own=own, now_ms=now_ms)
        return foreign, ending - foreign

    def _layout(self, survey: Survey) -> Layout:
        """Return how an object lies, as it is planned with."""
        placement, columns = survey.placed.placement, survey.columns
        return Layout(
            columns=columns,
            homeless=survey.homeless,
            m=placement.m,
            own=self._reach.own,
            doubled=survey.doubled,
            labels=self._hosts_of(survey.labelled),
            asked=placement.asked,
            # Guardians move what is lost, and nobody moves for labels that were not heard yet.
            movable=survey.charge.owner is not None and survey.labelled >= set(columns),
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

    async def _newer(
        self, charge: Charge, located: Located, answers: dict[bytes, HeldObject | None]
    ) -> Located | None:
        """Return what a host knows that claims a later placement, where it can show one.

        A host cannot tell whose placements count. One that can show none as high as it
        claims counts, in the answers, as what it can show.
        """
        trusted = {self._reach.own, located.manifest.owner}
        claims = sorted(
            (-held.rank, node)
            for node, held in answers.items()
            if held is not None
            and (
                held.rank > located.rank
                or (held.rank == located.rank and not held.has(located.rank, trusted))
            )
        )
        for _, node in claims:
            try:
                found = await self._ask(node, charge.capability)
            except XscError as fault:
                self._fault(charge.ref, fault)
                continue
            if found is not None and found.rank > located.rank:
                return found
            held = answers[node]
            assert held is not None
            answers[node] = replace(held, rank=0 if found is None else found.rank)
        return None

    def _stale(self, survey: Survey) -> list[bytes]:
        """Return the hosts that answer and do not have the latest placement."""
        return [
            node
            for node, held in survey.answers.items()
            if held is not None
            and (held.rank < survey.located.rank or held.record != "ok")
            and node not in self._prover.leaving
        ]

    def _outdated(self, survey: Survey) -> set[bytes]:
        """Return the nodes at which this node pays for what counts no more."""
        nodes = {item.node for item in survey.charge.held}
        if survey.charge.owner is None and not survey.placed.repairs:
            # The owner has placed it anew: nothing that was repaired for it is needed.
            return nodes
        return nodes - set(survey.columns)

    def _leftovers(self, survey: Survey) -> set[bytes]:
        """Return those of them that can be asked to delete it now."""
        nodes, own = self._outdated(survey) - set(self._unproved(survey)), self._reach.own
        return {node for node in nodes if node == own or self._reach.is_up(node)}

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
            if held is None or node in self._prover.leaving:
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
        column_bytes = self._column_bytes(manifest)
        record_bytes = self._record_bytes(survey.located)
        held = survey.charge.held
        for node, answer in survey.answers.items():
            if node != self._reach.own and answer is not None:
                most = most_held(answer, self._reach.own, column_bytes, record_bytes)
                held = recounted(held, node, answer.mine, most)
        return held

    async def _recount(self, survey: Survey) -> Survey:
        """Count what hosts hold for this node as they say it, where a crash lost the count."""
        charge, held = survey.charge, self._recounted(survey)
        if held == charge.held:
            return survey
        for node, lease_id, more_bytes in differences(charge.held, held):
            await self._reach.note_recounted(node, lease_id, more_bytes)
            self._reach.log.info(
                "storage_recounted",
                object=short(charge.ref),
                peer=short(node),
                lease=short(lease_id),
                more_bytes=more_bytes,
            )
        await self._keeper.save(charge.ref, charge.placement, held)
        return replace(survey, charge=replace(charge, held=held))

    def _needs(self, survey: Survey) -> bool:
        if self._recounted(survey) != survey.charge.held:
            return True
        if survey.charge.only_clean:
            return bool(self._leftovers(survey))
        wanted = survey.homeless or survey.foreign or self._stale(survey)
        if survey.charge.owner is not None and survey.placed.repairs:
            return True
        if wanted or self._leftovers(survey) or self._surplus(survey) or self._unproved(survey):
            return True
        if self._long_gone(survey, survey.charge.held):
            return True
        return next_want(self._layout(survey), self.available()) is not None

    def _unproved(self, survey: Survey) -> list[bytes]:
        """Return the nodes that leave, are up, and may hold what lies elsewhere by now."""
        away = self._prover.leaving - set(survey.columns)
        done = self._proved.get(survey.charge.ref, frozenset())
        return sorted(node for node in away - done if self._reach.is_up(node))

    async def _prove(self, survey: Survey) -> None:
        """Show nodes that leave where the object lies, before anything there is deleted."""
        if survey.charge.owner is None and not survey.placed.repairs:
            return
        ref = survey.charge.ref
        done = self._proved.pop(ref, frozenset()) - set(survey.columns)
        if done:
            self._proved[ref] = done
        for node in self._unproved(survey):
            if await self._prover.prove(survey.located, node, lambda: self._is_gone(ref)):
                done |= {node}
                self._proved[ref] = done
            else:
                self._again.add(ref)

    async def _part(self, survey: Survey, mended: Mended) -> None:
        """Look again at once at what moved from a node that leaves; tell it what could not."""
        leaving = self._prover.leaving
        if any(item.source in leaving for item in mended.moved):
            self._again.add(survey.charge.ref)
            self._woken.set()
        for node in sorted({survey.columns[column] for column in mended.left} & leaving):
            await self._prover.excuse(survey.located, node, mended.reason)

    # Mending

    async def mend(self, ref: bytes, progress: Progress | None = None) -> Mended | None:
        """Give an object what it needs; None where this node does not look after it.

        Raises:
            XscError: the object cannot be found.
        """
        async with self._turns.of(ref):
            charge = self._keeper.load(ref)
            if charge is None:
                return None
            survey = await self.survey(charge)
            survey = await self._recount(survey)
            await self._prove(survey)
            charge = await self._clean(survey)
            survey = replace(survey, charge=charge)
            if charge.only_clean or (
                charge.owner is None
                and not (survey.placed.repairs or survey.homeless or survey.foreign)
            ):
                return Mended(survey.margin, (), (), "")
            before = survey.margin
            if patched := await self._patch(survey):
                survey = await self.survey(charge)
            chosen, reason = await self._choose(survey)
            moved: tuple[Moved, ...] = ()
            if chosen:
                moved, fault = await self._move(survey, chosen, progress)
                reason = fault or reason
            elif (
                charge.owner is not None
                and survey.placed.repairs
                and not (survey.foreign or survey.homeless)
            ):
                await self._confirm(survey)
            elif stale := self._stale(survey):
                await self._spread(charge, survey, survey.placed, stale)
            done = {item.column for item in moved}
            left = tuple(sorted(survey.homeless - done))
            if left and not reason:
                reason = "no node that is up and holds none of it has room"
            if left:
                self._reach.log.warning(
                    "storage_not_healed", object=short(ref), columns=list(left), reason=reason
                )
            mended = Mended(before, moved, left, reason if left else "", patched)
            if moved:
                self.lately.append((ref, mended))
            await self._part(survey, mended)
            return mended

    async def _patch(self, survey: Survey) -> int:
        """Store damaged shards anew at hosts that have the rest of their columns; return how many.

        What cannot be stored there is left to be moved with its column.
        """
        charge, located = survey.charge, survey.located
        manifest, leaving = located.manifest, self._prover.leaving
        done = 0
        for column, segments in damaged_segments(
            manifest, survey.columns, survey.answers, self._reach.own
        ).items():
            node = survey.columns[column]
            leases = list({item.lease_id for item in charge.held if item.node == node})
            if node in leaving or len(leases) != 1:
                # Under which of several leases the shard lies is not known here.
                continue
            lease = LoneLease(node, leases[0])
            try:
                for segment in segments:
                    shard = await self._patched(survey, segment, column)
                    size, fault = await self._send(lease, located, segment, shard)
                    if fault:
                        self._reach.log.info("storage_not_patched", peer=short(node), reason=fault)
                        break
                    # It takes the place of what was counted already.
                    await self._reach.note_freed(node, lease.lease_id, size)
                    done += 1
            except XscError as fault_error:
                self._fault(charge.ref, fault_error)
        if done:
            self._reach.log.info("storage_shards_patched", object=short(charge.ref), shards=done)
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

    async def _clean(self, survey: Survey) -> Charge:
        """Delete what counts no more, once nobody can still be reading by the last placement."""
        charge, now_ms = survey.charge, self._reach.clock.monotonic_ms()
        moved_ms = self._moved_ms.get(charge.ref)
        if moved_ms is not None and now_ms - moved_ms < self._settings.kept_ms:
            return charge
        self._moved_ms.pop(charge.ref, None)
        held = list(charge.held)
        locate = charge.capability.locate
        for node in sorted(self._leftovers(survey)):
            try:
                await self._reach.delete(node, locate, final=False)
            except NotAllowed:
                pass
            except XscError as fault:
                self._fault(charge.ref, fault)
                continue
            for item in [item for item in held if item.node == node]:
                await self._reach.note_freed(node, item.lease_id, item.size_bytes)
                held.remove(item)
        for item in self._long_gone(survey, held):
            await self._reach.note_freed(item.node, item.lease_id, item.size_bytes)
            held.remove(item)
        for node, columns in sorted(self._surplus(survey).items()):
            try:
                freed = await self._reach.trim(node, locate, columns)
            except XscError as fault:
                self._fault(charge.ref, fault)
                continue
            held = without(held, node, freed)
        if tuple(held) != charge.held:
            charge = replace(charge, held=tuple(held))
            await self._keeper.save(charge.ref, charge.placement, charge.held)
        return charge

    def _column_bytes(self, manifest: Manifest) -> int:
        code = code_of(manifest)
        full, tail = divmod(manifest.size_bytes, manifest.segment_bytes)
        if manifest.inline is not None:
            return 0
        return full * code.shard_bytes(manifest.segment_bytes) + code.shard_bytes(tail)

    @staticmethod
    def _record_bytes(located: Located) -> int:
        """Return the most that the object record takes at a host, after some moves."""
        return 2 * len(located.placement_raw) + 1024 + len(located.sealed)

    async def _choose(self, survey: Survey) -> tuple[dict[int, HostLease], str]:
        """Return room for each column that moves, and what failed."""
        reach = self._reach
        layout = self._layout(survey)
        silent = {node for node, held in survey.answers.items() if held is None}
        available = self.available(also_unsteady=survey.margin <= 0) - silent
        available -= {survey.columns[column] for column in survey.expiring}
        located = survey.located
        size = self._column_bytes(located.manifest) + self._record_bytes(located)
        chosen: dict[int, HostLease] = {}
        reason = ""
        for column in sorted(survey.foreign):
            lease, fault = await self._lease(frozenset({layout.columns[column]}), size)
            if lease is not None:
                chosen[column] = lease
            reason = reason or fault
        readable = survey.margin >= 0 or located.manifest.inline is not None
        while readable:
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
        try:
            leases = await self._reach.hosts.lease_hosts(
                size_bytes=size, count=1, exclude=frozenset(known - targets)
            )
        except (NoOffers, LimitError) as fault:
            return None, fault.message
        if not leases or leases[0].node not in targets:
            return None, "no node that may take it has room"
        return leases[0], ""

    async def _move(
        self,
        survey: Survey,
        chosen: dict[int, HostLease],
        progress: Progress | None,
    ) -> tuple[tuple[Moved, ...], str]:
        """Build or copy the chosen columns at their new hosts, then say where they are."""
        charge, located = survey.charge, survey.located
        # First on the disk: after a crash it is known where something may lie.
        # It stands apart from what was confirmed: so it is known that more may lie there.
        held = (*charge.held, *marks(chosen.values()))
        if not await self._keeper.save(charge.ref, charge.placement, held):
            return (), "it is being deleted"
        sent: list[Held] = []
        alive = dict(chosen)
        before = list(charge.held)
        fault = ""
        try:
            for column, lease in chosen.items():
                if survey.columns[column] == lease.node and column in survey.homeless:
                    # What lies there is not what it should be.
                    freed = await self._reach.trim(lease.node, located.locate, {column})
                    before = without(before, lease.node, freed)
            count = segments_of(located.manifest)
            moving = await self._keep_there(survey, alive, sent)
            for index in range(count if moving else 0):
                if self._is_gone(charge.ref):
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
            Moved(column, survey.columns[column], lease.node)
            for column, lease in sorted(alive.items())
        )
        if fault:
            self._again.add(charge.ref)
        if not moved:
            await self._keeper.save(charge.ref, charge.placement, held)
            return (), fault
        columns = list(survey.columns)
        for item in moved:
            columns[item.column] = item.target
        # While others still pay for a part, the owner's word would have them delete it.
        whole = survey.foreign <= set(alive)
        raw = self._sign(charge, survey.placed, columns, by_owner=whole)
        # The record goes there, too.
        held = (*held, *marks(alive.values()))
        # The own word first; hosts that miss it are told again whenever they are asked.
        if not await self._keeper.save(charge.ref, raw, held):
            return (), "it is being deleted"
        self._moved_ms[charge.ref] = self._reach.clock.monotonic_ms()
        charge = replace(charge, placement=raw, held=held)
        placed = open_placement(raw, self._reach.network)
        silent = {node for node, held_there in survey.answers.items() if held_there is None}
        nodes = [node for node in dict.fromkeys(columns) if node not in silent]
        await self._spread(charge, survey, placed, nodes)
        for item in moved:
            self._reach.log.info(
                "storage_column_moved",
                object=short(charge.ref),
                column=item.column,
                source=short(item.source),
                target=short(item.target),
            )
        return moved, fault

    async def _confirm(self, survey: Survey) -> None:
        """Place an object anew as it lies: all of it is the owner's again, others may delete."""
        charge = survey.charge
        raw = self._sign(charge, survey.placed, survey.columns)
        if await self._keeper.save(charge.ref, raw, charge.held):
            nodes = [node for node, held in survey.answers.items() if held is not None]
            placed = open_placement(raw, self._reach.network)
            await self._spread(replace(charge, placement=raw), survey, placed, nodes)

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
                self._fault(survey.charge.ref, fault)
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

    def _sign(
        self, charge: Charge, placed: Placed, columns: Sequence[bytes], *, by_owner: bool = True
    ) -> bytes:
        delegate = charge.capability.delegate
        if charge.owner is not None and (by_owner or placed.placement.delegate is None):
            return move_by_owner(
                placed, columns, charge.owner, delegate.node_id, self._reach.network
            )
        return move_by_delegate(placed, columns, delegate, self._reach.network)

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
                self._fault(survey.charge.ref, fault)
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

    # Saying where it is

    async def _spread(
        self, charge: Charge, survey: Survey, placed: Placed, nodes: Sequence[bytes]
    ) -> None:
        """Give hosts the latest placement; who misses it now gets it at the next look."""
        located = survey.located
        record = ObjectRecord(
            sealed=located.sealed,
            sealed_root=root_of(located.sealed),
            manifest_hash=hash_of(located.sealed),
            placement=placed.raw,
            placement_id=placed.id,
            placement_generation=placed.rank,
        )
        paid = {item.node for item in survey.charge.held if item.size_bytes}
        rooms = await self._rooms_for(charge, record, nodes)
        if rooms and not await self._keeper.save(
            charge.ref, charge.placement, (*charge.held, *marks(rooms.values()))
        ):
            return
        added = await together(
            self._tell(
                charge,
                located,
                record,
                node,
                room=rooms.get(node),
                replaced_bytes=self._replaced_bytes(survey, node) if node in paid else 0,
            )
            for node in nodes
        )
        new = [item for item in added if item is not None]
        held = merged(charge.held, new)
        if new or held != charge.held:
            await self._keeper.save(charge.ref, charge.placement, held)

    async def _rooms_for(
        self, charge: Charge, record: ObjectRecord, nodes: Collection[bytes]
    ) -> dict[bytes, HostLease]:
        """Return room for the record at nodes where this node pays for nothing of the object."""
        known = {item.node for item in charge.held} | {self._reach.own}
        unknown = [node for node in nodes if node not in known]
        size = len(record.sealed) + len(record.placement)
        found = await together(self._lease(frozenset({node}), size) for node in unknown)
        return {
            node: lease
            for node, (lease, _) in zip(unknown, found, strict=True)
            if lease is not None
        }

    def _replaced_bytes(self, survey: Survey, node: bytes) -> int:
        """Return the size of this node's record at a host that is paid, which a new one replaces.

        A host tells the rank of the placement in it, so which one it is: the owner signs as
        the delegate, too, while others pay for a part. It may have dropped the record.
        """
        placed = survey.placed
        mine = placed.base if survey.charge.owner is not None else placed.raw
        held = survey.answers.get(node)
        if held is not None and held.records:
            ranks = [item.rank for item in held.records if item.customer == self._reach.own]
            if not ranks:
                return 0
            if placed.rank in ranks:
                mine = placed.raw
        return len(survey.located.sealed) + len(mine)

    async def _tell(
        self,
        charge: Charge,
        located: Located,
        record: ObjectRecord,
        node: bytes,
        *,
        room: HostLease | None,
        replaced_bytes: int,
    ) -> Held | None:
        """Store the record at one host; return what it counts for where it is new there."""
        known = [item.lease_id for item in charge.held if item.node == node]
        leases: list[HostLease] = [LoneLease(node, lease_id) for lease_id in known]
        if node == self._reach.own:
            leases = [LoneLease(node, OWN_LEASE)]
        elif not known:
            if room is None:
                return None
            leases = [room]
        size = len(record.sealed) + len(record.placement)
        for lease in leases:
            try:
                await self._record(lease, located, record)
            except LeaseExhausted:
                continue
            except XscError as fault:
                self._fault(charge.ref, fault)
                return None
            if not known:
                return Held(lease.node, lease.lease_id, size)
            await self._reach.note_freed(node, lease.lease_id, replaced_bytes)
            return Held(lease.node, lease.lease_id, size - replaced_bytes)
        fresh, _ = await self._lease(frozenset({node}), size)
        if fresh is None:
            return None
        try:
            await self._record(fresh, located, record)
        except XscError as fault:
            self._fault(charge.ref, fault)
            return None
        return Held(fresh.node, fresh.lease_id, size)

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
