"""Custodians: peers that keep an object whole while its owner is away.

The owner hands a verify capability and its placement to a few peers. A custodian does
nothing while the owner answers. Once the owner has been silent for longer than the
grace, once more for each custodian before this one, it repairs like an owner does
(`repairer`): as an ordinary customer of the hosts, with leases of its own, and within
what it may keep for that owner. No right follows from the capability: what others
stored it can neither move nor delete. When the owner is back, the custodian reports;
the owner finds the copies at their hosts, takes over those that it lacks, and lets the
custodian give up its own, one column at a time.

    storage/ward/<owner><manifest hash>     what this node guards for others
    storage/told/<manifest hash>            who guards an own object
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final

from pydantic import Field

from xsc.base.encoding import Value
from xsc.base.errors import (
    NotAllowed,
    PeerUnknown,
    RateLimited,
    RecordInvalid,
    StoreDamaged,
    UnavailableError,
    XscError,
)
from xsc.base.fields import take_bool, take_bytes, take_list, take_str
from xsc.base.ids import ID_BYTES, short
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.base.limits import (
    BATCH_CALLS_MAX,
    CUSTODIAN_RETRY_MS,
    CUSTODIANS,
    CUSTODIANS_MAX,
    CUSTODY_MS,
    CUSTODY_OBJECTS_A_PEER_MAX,
    CUSTODY_ROW_BYTES_A_PEER_MAX,
    CUSTODY_SHARES,
    LEASE_RESCUE_MS,
    LEASE_TURN_MS,
    RECORD_BYTES_MAX,
    STORAGE_QUESTION_TIMEOUT_MS,
)
from xsc.base.merkle import Part
from xsc.base.peering import Caller
from xsc.base.tally import Tally
from xsc.base.turns import Turns, sliced
from xsc.base.units import format_size
from xsc.identity.envelope import Id32, Record
from xsc.storage.object.capability import VerifyCapability, parse
from xsc.storage.object.erasure import Buffer
from xsc.storage.object.inventory import HeldAt
from xsc.storage.object.manifest import open_manifest
from xsc.storage.object.placement import Placement
from xsc.storage.ports import Commit
from xsc.storage.repair.repairer import MaintainedObject, Repairer
from xsc.storage.transfer.deletions import was_ended
from xsc.storage.transfer.host_client import Reach, together
from xsc.storage.transfer.put import Held

GUARD: Final = "storage.guard"
UNGUARD: Final = "storage.unguard"
HEALED: Final = "storage.healed"
RESIGN: Final = "storage.resign"
IN_CUSTODY: Final = b"storage/ward/"
ASSIGNED: Final = b"storage/told/"
_CUSTODY_ROW_BYTES_MAX: Final = 4 * RECORD_BYTES_MAX


class ObjectInCustody(Record):
    """An object that this node guards for its owner."""

    KIND: ClassVar[str] = "ward"

    capability: str
    """To verify: it does not read."""
    owner: Id32
    before: Annotated[tuple[Id32, ...], Field(max_length=CUSTODIANS_MAX)]
    """The custodians whose turn comes before this one's."""
    placement: Placement
    held: tuple[HeldAt, ...]
    ended: bool
    """The owner wants it guarded no more; what is held is still to be deleted."""


class AssignedCustodians(Record):
    """The custodians of an object, in order."""

    KIND: ClassVar[str] = "told"

    nodes: tuple[Id32, ...]


@dataclass(slots=True)
class CustodyUsage:
    """What is guarded, by owner."""

    objects: Counter[bytes] = field(default_factory=Counter)
    rows: Counter[bytes] = field(default_factory=Counter)
    """Bytes of the rows on the own disk."""
    held: Counter[bytes] = field(default_factory=Counter)
    """Bytes at hosts that this node pays for."""

    def add(self, entry: ObjectInCustody | None, sign: int) -> None:
        """Count a entry (1), or count it no more (-1)."""
        if entry is not None:
            self.objects[entry.owner] += sign
            self.rows[entry.owner] += sign * len(entry.to_bytes())
            self.held[entry.owner] += sign * sum(item.size_bytes for item in entry.held)


def custodians_in_order(
    up: Collection[bytes], hosts: Collection[bytes], weight_ppm: Callable[[bytes], int]
) -> list[bytes]:
    """Return whom to ask: the most recognised first, then nodes that hold none of the object."""
    return sorted(up, key=lambda node: (-weight_ppm(node), node in hosts, node))


def custody_message(
    capability: VerifyCapability, placement: Placement, before: Sequence[bytes]
) -> dict[str, Value]:
    """Return the header of a `storage.guard`."""
    return {
        "capability": capability.to_text(),
        "placement": placement.to_bytes(),
        "before": [*before],
    }


class Custodian:
    """Asks peers to be custodians of own objects, and is custodian of objects of peers."""

    def __init__(
        self,
        *,
        reach: Reach,
        caller: Caller,
        state: KeyValue,
        commit: Commit,
        weight_ppm: Callable[[bytes], int],
        own: Callable[[], Iterable[tuple[bytes, Placement]]],
        load: Callable[[bytes], MaintainedObject | None],
        grace_ms: int,
        leaving: Callable[[], frozenset[bytes]],
        accepts: Callable[[bytes], bool],
        budget_bytes: int,
    ) -> None:
        self._leaving = leaving
        self._reach = reach
        self._caller = caller
        self._state = state
        self._commit = commit
        self._weight_ppm = weight_ppm
        self._own = own
        self._load = load
        self._grace_ms = grace_ms
        self._accepts = accepts
        self._budget_bytes = budget_bytes
        self._refused: dict[bytes, int] = {}
        """When a node that guards nothing for this one may be asked again."""
        self.repairer: Repairer | None = None
        """Knows for how long owners have been silent; set once it is made."""
        self.owner: Repairer | None = None
        """Looks after the own objects; set once it is made."""
        self._counted: CustodyUsage | None = None
        self._handed = Tally(2 * CUSTODY_OBJECTS_A_PEER_MAX, CUSTODY_MS)
        self._asking: Turns[bytes] = Turns()
        """By object of this node: held while others are asked to guard it, or told to stop."""
        self._turns: Turns[bytes] = Turns()
        """By entry: held from its reading until it is written, and while it is ended."""

    # The owner's side

    async def run(self) -> None:
        """Keep every own object guarded, until cancelled."""
        while True:
            await self._reach.clock.sleep_ms(max(1_000, min(30_000, self._grace_ms // 4)))
            await self.ask_all()
            await self.release_all()
            await self.resign_all()
            await self.end_all()
            await self.report_all()

    async def ask_all(self) -> None:
        """Hand objects that have too few custodians to more of them."""
        leaving = self._leaving()
        now_ms = self._reach.clock.monotonic_ms()
        self._refused = {node: at for node, at in self._refused.items() if at > now_ms}
        up = [
            node
            for node in self._reach.hosts.peers()
            if self._reach.is_up(node) and node not in leaving and node not in self._refused
        ]
        asked = []
        async for ref, _ in sliced(self._own()):
            told = self._told(ref)
            if len(told) >= min(CUSTODIANS, len(up)) and not self._gone(told):
                continue
            asked.append(self._ask(ref, up))
            if len(asked) == BATCH_CALLS_MAX:
                # Together their calls share requests, and what was agreed shares syncs.
                await together(asked)
                asked = []
        await together(asked)

    def _gone(self, nodes: Collection[bytes]) -> frozenset[bytes]:
        leaving = self._leaving().intersection(nodes)
        return leaving if self.repairer is None else self.repairer.gone(nodes) | leaving

    def _told(self, ref: bytes) -> tuple[bytes, ...]:
        raw = self._state.get(ASSIGNED + ref)
        if raw is None:
            return ()
        try:
            return AssignedCustodians.from_bytes(raw).nodes
        except RecordInvalid as fault:
            raise StoreDamaged(f"a list of custodians is damaged: {fault.message}") from None

    async def _ask(self, ref: bytes, up: Sequence[bytes]) -> None:
        async with self._asking.of(ref):
            # Only now: who waited for the turn may have deleted it.
            item, told = self._load(ref), self._told(ref)
            if item is None:
                return
            agreed = await self._agreed(item, up, told)
            if agreed != told:
                await self._commit([(ASSIGNED + ref, AssignedCustodians(nodes=agreed).to_bytes())])

    async def _agreed(
        self, item: MaintainedObject, up: Sequence[bytes], told: tuple[bytes, ...]
    ) -> tuple[bytes, ...]:
        """Return who guards an object once those that should have been asked."""
        gone = self._gone(told)
        keep = [node for node in told if node not in gone]
        fresh = custodians_in_order(set(up) - set(keep), item.placement.columns, self._weight_ppm)
        agreed: list[bytes] = []
        for node in [*keep, *fresh]:
            if len(agreed) == CUSTODIANS:
                break
            if node in self._refused:
                continue
            header = custody_message(item.capability, item.placement, agreed)
            try:
                await self._caller.call(node, GUARD, header)
            except XscError as fault:
                self._reach.log.info("custody.refused", peer=short(node), reason=fault.message)
                if isinstance(fault, (NotAllowed, RateLimited)):
                    self._refused[node] = self._reach.clock.monotonic_ms() + CUSTODIAN_RETRY_MS
                continue
            agreed.append(node)
        return tuple(agreed)

    async def release(self, ref: bytes) -> None:
        """Tell the custodians of a deleted object; those that are silent are told later."""
        async with self._asking.of(ref):
            told = self._told(ref)
            left = tuple([node for node in told if not await self._released(ref, node)])
            if left != told:
                row = AssignedCustodians(nodes=left).to_bytes() if left else None
                await self._commit([(ASSIGNED + ref, row)])

    async def _released(self, ref: bytes, node: bytes) -> bool:
        """Tell a custodian; say whether it need not be told again."""
        try:
            await self._caller.call(node, UNGUARD, {"object": ref})
        except XscError as fault:
            self._reach.log.info("custody.end_not_told", peer=short(node), reason=fault.message)
            # Else it guards nothing of this node, or cannot be asked any more.
            return isinstance(fault, (NotAllowed, PeerUnknown))
        return True

    async def release_all(self) -> None:
        """Tell custodians that are up again of what was deleted meanwhile."""
        rows = self._state.scan(ASSIGNED, prefix_end(ASSIGNED))
        ended = [
            ref
            async for ref in sliced(key.removeprefix(ASSIGNED) for key, _ in rows)
            if was_ended(self._state, ref)
        ]
        peers = set(self._reach.hosts.peers())
        for ref in ended:
            if any(node not in peers or self._reach.is_up(node) for node in self._told(ref)):
                await self.release(ref)

    # The custodian's side

    def objects(self) -> Iterator[tuple[bytes, ObjectInCustody]]:
        """Yield what this node guards, by owner and manifest hash."""
        for key, raw in self._state.scan(IN_CUSTODY, prefix_end(IN_CUSTODY)):
            yield key.removeprefix(IN_CUSTODY), self._parse(raw)

    def _entry(self, ref: bytes) -> ObjectInCustody | None:
        raw = self._state.get(IN_CUSTODY + ref)
        return None if raw is None else self._parse(raw)

    @staticmethod
    def _parse(raw: bytes) -> ObjectInCustody:
        try:
            return ObjectInCustody.from_bytes(raw, size_max=_CUSTODY_ROW_BYTES_MAX)
        except RecordInvalid as fault:
            raise StoreDamaged(f"an object in custody is damaged: {fault.message}") from None

    def _acts(self, entry: ObjectInCustody) -> bool:
        """Say whether it is this node's turn: the owner is silent, and so long."""
        if self.repairer is None or self._reach.own in self._leaving():
            return False
        if not self._accepts(entry.owner):
            return False
        return self.repairer.silent_ms(entry.owner) >= self._grace_ms * (1 + len(entry.before))

    def refs(self) -> Iterator[tuple[bytes, Placement]]:
        """Yield what to look at: objects of absent owners, or with copies to give back."""
        return (
            (ref, entry.placement)
            for ref, entry in self.objects()
            if not entry.ended and (entry.held or self._acts(entry))
        )

    def load(self, ref: bytes) -> MaintainedObject | None:
        """Return a entry as a item."""
        entry = self._entry(ref)
        if entry is None or entry.ended:
            return None
        capability = _capability(entry)
        held = tuple(Held(item.node, item.lease_id, item.size_bytes) for item in entry.held)
        acts = self._acts(entry)
        rescue_ms = LEASE_RESCUE_MS - min(len(entry.before), CUSTODIANS - 1) * LEASE_TURN_MS
        return MaintainedObject(
            ref,
            capability,
            entry.owner,
            entry.placement,
            held,
            is_own=False,
            before=entry.before,
            budget_bytes=self._budget_left(entry.owner),
            rescue_ms=rescue_ms,
            only_clean=not acts,
        )

    def _budget_left(self, owner: bytes) -> int:
        """Return how many more bytes may be kept for an owner: its share, and the rest of all."""
        kept = self._counts().held
        most = CUSTODY_SHARES * self._budget_bytes - kept.total()
        return max(0, min(self._budget_bytes - kept[owner], most))

    async def save(self, ref: bytes, placement: Placement, held: tuple[Held, ...]) -> bool:
        """Keep what became of a entry; of one that has ended, what is to be given back."""
        kept = tuple(
            HeldAt(node=item.node, lease_id=item.lease_id, size_bytes=item.size_bytes)
            for item in held
        )
        async with self._turns.of(ref):
            entry = self._entry(ref)
            if entry is None:
                return False
            change = entry.model_copy(update={"placement": placement, "held": kept})
            await self._put(ref, entry, change)
        return not entry.ended

    async def on_guard(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        """Take an object of the caller into guard.

        Raises:
            RecordInvalid: not a verify capability, or no placement.
            NotAllowed: it does not guard for this caller, by its operator's word.
            RateLimited: it guards enough for this caller.
        """
        if not self._accepts(caller):
            raise NotAllowed("this node guards nothing for that peer")
        capability = parse(take_str(header, "capability"))
        if not isinstance(capability, VerifyCapability):
            raise RecordInvalid("a custodian takes no capability that reads")
        placement = Placement.from_bytes(take_bytes(header, "placement"))
        ref = caller + capability.manifest_hash
        before = tuple(
            take_bytes({"node": node}, "node", size=ID_BYTES)
            for node in take_list(header, "before", most=CUSTODIANS_MAX)
        )
        async with self._turns.of(ref):
            known = self._entry(ref)
            held = () if known is None else known.held
            entry = ObjectInCustody(
                capability=capability.to_text(),
                owner=caller,
                before=before,
                # Where the custodian itself has stored something, it knows better.
                placement=known.placement if known is not None and held else placement,
                held=held,
                ended=False,
            )
            if entry != known:
                self._check_room(entry, known)
                self._handed.count(caller, self._reach.clock.monotonic_ms(), "objects in custody")
                await self._put(ref, known, entry)
        return {}, []

    def _check_room(self, entry: ObjectInCustody, known: ObjectInCustody | None) -> None:
        """Refuse a entry that may not be kept for its owner in the place of what is known.

        Raises:
            RateLimited: this node guards enough for it.
        """
        counts = self._counts()
        if known is None and counts.objects[entry.owner] >= CUSTODY_OBJECTS_A_PEER_MAX:
            raise RateLimited(f"this node guards {CUSTODY_OBJECTS_A_PEER_MAX} objects for one peer")
        more = len(entry.to_bytes()) - (0 if known is None else len(known.to_bytes()))
        if more > 0 and counts.rows[entry.owner] + more > CUSTODY_ROW_BYTES_A_PEER_MAX:
            most = format_size(CUSTODY_ROW_BYTES_A_PEER_MAX)
            raise RateLimited(f"this node keeps {most} of placements that it guards for one peer")

    async def _put(
        self, ref: bytes, known: ObjectInCustody | None, entry: ObjectInCustody | None
    ) -> None:
        """Keep an entry in the place of what is known, or nothing, and count it."""
        row = None if entry is None else entry.to_bytes()
        # Before it is written: of many at once none passes the bound.
        counts = self._counts()
        counts.add(known, -1)
        counts.add(entry, 1)
        try:
            await self._commit([(IN_CUSTODY + ref, row)])
        except XscError:
            counts.add(known, 1)
            counts.add(entry, -1)
            raise

    def _counts(self) -> CustodyUsage:
        """Return what is guarded, by owner; counted once, then kept up."""
        if self._counted is None:
            self._counted = CustodyUsage()
            for _, entry in self.objects():
                self._counted.add(entry, 1)
        return self._counted

    async def on_unguard(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        """End a guard; what is held for it is deleted in the background."""
        ref = caller + take_bytes(header, "object", size=ID_BYTES)
        async with self._turns.of(ref):
            entry = self._entry(ref)
            if entry is None:
                raise NotAllowed("nothing is guarded here for that node")
            ended = entry.model_copy(update={"ended": True}) if entry.held else None
            await self._put(ref, entry, ended)
        return {}, []

    async def resign_all(self) -> None:
        """Tell owners of what this node guards no longer; what it pays for they take over first."""
        silent: set[bytes] = set()
        for ref, entry in [item async for item in sliced(self.objects())]:
            if entry.ended or entry.held or self._accepts(entry.owner):
                continue
            if entry.owner in silent or not self._reach.is_up(entry.owner):
                continue
            try:
                await self._caller.call(
                    entry.owner, RESIGN, _about(ref), timeout_ms=STORAGE_QUESTION_TIMEOUT_MS
                )
            except XscError as fault:
                peer = short(entry.owner)
                self._reach.log.info(
                    "custody.resignation_not_told", peer=peer, reason=fault.message
                )
                if isinstance(fault, UnavailableError):
                    silent.add(entry.owner)
                continue
            async with self._turns.of(ref):
                # The call took its time: it may have ended, or be paid for by now.
                now = self._entry(ref)
                if now is not None and not now.held:
                    await self._put(ref, now, None)

    async def on_resign(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        """Learn, as the owner, that a custodian guards an object no longer."""
        ref = take_bytes(header, "object", size=ID_BYTES)
        async with self._asking.of(ref):
            told = self._told(ref)
            if caller in told:
                self._refused[caller] = self._reach.clock.monotonic_ms() + CUSTODIAN_RETRY_MS
                left = AssignedCustodians(nodes=tuple(node for node in told if node != caller))
                await self._commit([(ASSIGNED + ref, left.to_bytes())])
        return {}, []

    async def report_all(self) -> None:
        """Tell owners that are back what is kept for them, until they let all of it go."""
        silent: set[bytes] = set()
        for ref, entry in [item async for item in sliced(self.objects())]:
            if entry.ended or not entry.held or not self._reach.is_up(entry.owner):
                continue
            if entry.owner in silent:
                continue
            try:
                reply = await self._caller.call(
                    entry.owner, HEALED, _about(ref), timeout_ms=STORAGE_QUESTION_TIMEOUT_MS
                )
                ended = take_bool(reply.header, "ended")
                release = take_bool(reply.header, "release")
            except XscError as fault:
                peer = short(entry.owner)
                self._reach.log.info("custody.repair_not_told", peer=peer, reason=fault.message)
                if isinstance(fault, UnavailableError):
                    # Of its other objects it is told another time: there can be thousands.
                    silent.add(entry.owner)
                continue
            if release:
                await self._give_up_one(ref)
            if ended:
                # It was deleted, and this node did not hear of it.
                async with self._turns.of(ref):
                    now = self._entry(ref)
                    if now is not None:
                        await self._put(ref, now, now.model_copy(update={"ended": True}))

    async def _give_up_one(self, ref: bytes) -> None:
        """Delete one column of what is kept for an owner, as that has let it go."""
        async with self._apart(ref), self._turns.of(ref):
            entry = self._entry(ref)
            if entry is None or not entry.held:
                return
            nodes = [item.node for item in entry.held]
            node = next((node for node in nodes if self._reach.is_up(node)), nodes[0])
            try:
                held = await self._give_up_at(node, entry)
            except XscError as fault:
                self._reach.log.info("custody.not_deleted", peer=short(node), reason=fault.message)
                return
            await self._put(ref, entry, entry.model_copy(update={"held": held}))

    async def _give_up_at(self, node: bytes, entry: ObjectInCustody) -> tuple[HeldAt, ...]:
        """Delete one column at a host, or all where that is the only one; return what is left."""
        capability = _capability(entry)
        columns: set[int] = set()
        sealed = None
        if self._reach.is_up(node):
            sealed = await self._reach.find(node, capability.locate, capability.manifest_hash)
        if sealed is not None:
            manifest = open_manifest(sealed, capability)
            said = await self._reach.stat(
                node, capability.locate, manifest, capability.manifest_hash
            )
            columns = {row.column for row in said.columns if row.customer == self._reach.own}
        if len(columns) < 2:
            left = await self._give_back(entry, [node])
            return tuple(item for item in entry.held if item.node != node) + left
        freed, _ = await self._reach.delete(node, capability.locate, columns={min(columns)})
        left_at: list[HeldAt] = []
        for item in entry.held:
            size = min(item.size_bytes, freed.get(item.lease_id, 0)) if item.node == node else 0
            await self._reach.note_freed(node, item.lease_id, size)
            left_at.append(item.model_copy(update={"size_bytes": item.size_bytes - size}))
        return tuple(left_at)

    async def on_healed(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[Buffer]]:
        """Hear, as the owner, that somebody keeps copies; say what it may do with them.

        A report is a reason to look and nothing else: what is where, the hosts say. It may come of
        a node that is custodian no more, or of one whose answer was lost when it was asked. The
        answer lets the caller delete a column of its own (`release`), or all of them where the
        object was deleted (`ended`). Of an object that this node does not know it says neither.
        """
        ref = take_bytes(header, "object", size=ID_BYTES)
        known = self._load(ref) is not None
        release = known and self.owner is not None and self.owner.reported(ref, caller)
        ended = not known and was_ended(self._state, ref)
        return {"ended": ended, "release": release}, []

    async def end_all(self) -> None:
        """Delete what is held for guards that have ended."""
        for ref in [ref async for ref, entry in sliced(self.objects()) if entry.ended]:
            # Who repairs it stops, and says what lies where by then.
            async with self._apart(ref), self._turns.of(ref):
                entry = self._entry(ref)
                if entry is None or not entry.ended:
                    continue
                left = await self._give_back(entry, [item.node for item in entry.held])
                rest = entry.model_copy(update={"held": left}) if left else None
                await self._put(ref, entry, rest)

    def _apart(self, ref: bytes) -> AbstractAsyncContextManager[object]:
        return nullcontext() if self.repairer is None else self.repairer.apart(ref)

    async def _give_back(
        self, entry: ObjectInCustody, nodes: Iterable[bytes]
    ) -> tuple[HeldAt, ...]:
        """Delete what is held for an entry at some hosts; return what hosts did not confirm."""
        capability = _capability(entry)
        left: list[HeldAt] = []
        for node in dict.fromkeys(nodes):
            items = [item for item in entry.held if item.node == node]
            try:
                await self._reach.delete(node, capability.locate)
            except XscError as fault:
                self._reach.log.info("custody.not_deleted", peer=short(node), reason=fault.message)
                over = [i for i in items if self._reach.has_dropped(node, i.lease_id)]
                left += [item for item in items if item not in over]
                items = over
            for item in items:
                await self._reach.note_freed(node, item.lease_id, item.size_bytes)
        return tuple(left)


def _about(ref: bytes) -> dict[str, Value]:
    """Return the header that names the object of a entry to its owner."""
    return {"object": ref[ID_BYTES:]}


def _capability(entry: ObjectInCustody) -> VerifyCapability:
    capability = parse(entry.capability)
    assert isinstance(capability, VerifyCapability)
    return capability
