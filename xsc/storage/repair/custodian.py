"""Custodian: this node keeps objects of other owners whole while they are away.

The owner hands over a verify capability and its placement. A custodian does nothing
while the owner answers. Once the owner has been silent for the grace, once more for
each custodian before this one, it repairs as an owner does (`Repairer`): as an
ordinary customer of the hosts, with leases of its own, and within what it may store
for that owner. The capability gives no right: a custodian can neither move nor delete
what others stored. When the owner is back, the custodian reports. The owner finds the
copies at their hosts, takes over those that it lacks, and lets the custodian delete
its own, one column at a time. The owner's side is `xsc.storage.repair.assignment`.

    storage/ward/<owner><manifest hash>     an object in custody
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final

from pydantic import Field

from xsc.base import encoding, errors, fields, ids, keyvalue, limits, merkle, peering, turns, units
from xsc.base.keyvalue import Commit
from xsc.identity.context import Context
from xsc.identity.envelope import Id32, Record
from xsc.storage.object.capability import VerifyCapability, parse, parse_verify
from xsc.storage.object.held import Held
from xsc.storage.object.manifest import open_manifest
from xsc.storage.object.placement import Placement
from xsc.storage.repair import maintained_object, node_watch
from xsc.storage.repair.mover import delete_at
from xsc.storage.transfer.host_client import HostClient

CUSTODY_SHARES = 4
"""What a node keeps for all absent owners: so many times what it keeps for one (`guard_bytes`)."""
CUSTODY_OBJECTS_A_PEER_MAX = 10_000
"""Objects that a node has in custody for one peer."""
CUSTODY_ROW_BYTES_A_PEER_MAX = 16 * limits.MIB
"""What it keeps on its disk of those: the row of one can have from 400 to 9 000 bytes."""
assert (
    limits.SYNCED_A_PEER_BYTES_MAX
    > CUSTODY_OBJECTS_A_PEER_MAX * limits.SYNC_BYTES + CUSTODY_ROW_BYTES_A_PEER_MAX
)

IN_CUSTODY: Final = b"storage/ward/"
_ROW_BYTES_MAX: Final = 4 * limits.RECORD_BYTES_MAX


class ObjectInCustody(Record):
    """An object that this node keeps whole while its owner is away."""

    KIND: ClassVar[str] = "ward"

    capability: str
    """A verify capability: it does not read."""
    owner: Id32
    before: Annotated[tuple[Id32, ...], Field(max_length=limits.CUSTODIANS_MAX)]
    """The custodians whose turn comes before this one's."""
    placement: Placement
    held: tuple[Held, ...]
    ended: bool
    """The owner has ended the custody; what is held is still to be deleted."""

    @property
    def verify(self) -> VerifyCapability:
        """The capability, parsed."""
        return parse_verify(self.capability)


@dataclass(slots=True)
class CustodyUsage:
    """What is in custody, by owner."""

    objects: Counter[bytes] = field(default_factory=Counter)
    rows: Counter[bytes] = field(default_factory=Counter)
    """Bytes of the rows in the own state."""
    held: Counter[bytes] = field(default_factory=Counter)
    """Bytes at hosts that this node pays for."""

    def add(self, entry: ObjectInCustody | None, sign: int) -> None:
        """Add an entry (1) or take it away (-1)."""
        if entry is not None:
            self.objects[entry.owner] += sign
            self.rows[entry.owner] += sign * len(entry.to_bytes())
            self.held[entry.owner] += sign * sum(item.size_bytes for item in entry.held)


class CustodyStore:
    """Reads and writes the objects in custody, and bounds what one owner may hand over."""

    def __init__(self, state: keyvalue.KeyValue, commit: Commit, budget_bytes: int) -> None:
        self._state = state
        self._commit = commit
        self._budget_bytes = budget_bytes
        """Most that this node stores at hosts for one owner."""
        self._usage: CustodyUsage | None = None

    def objects(self) -> Iterator[tuple[bytes, ObjectInCustody]]:
        """Yield the objects in custody, by owner and manifest hash."""
        for key, raw in self._state.scan(IN_CUSTODY, keyvalue.prefix_end(IN_CUSTODY)):
            yield key.removeprefix(IN_CUSTODY), self._parse(raw)

    def get(self, ref: bytes) -> ObjectInCustody | None:
        """Return the entry of an object."""
        raw = self._state.get(IN_CUSTODY + ref)
        return None if raw is None else self._parse(raw)

    @staticmethod
    def _parse(raw: bytes) -> ObjectInCustody:
        try:
            return ObjectInCustody.from_bytes(raw, size_max=_ROW_BYTES_MAX)
        except errors.RecordInvalid as fault:
            raise errors.StoreDamaged(f"an object in custody is damaged: {fault.message}") from None

    def usage(self) -> CustodyUsage:
        """Return what is in custody, by owner; counted once, then kept up to date."""
        if self._usage is None:
            self._usage = CustodyUsage()
            for _, entry in self.objects():
                self._usage.add(entry, 1)
        return self._usage

    def budget_left(self, owner: bytes) -> int:
        """Return how many more bytes may be stored at hosts for an owner.

        One owner has `budget_bytes`, all of them together CUSTODY_SHARES times that.
        """
        held = self.usage().held
        most = CUSTODY_SHARES * self._budget_bytes - held.total()
        return max(0, min(self._budget_bytes - held[owner], most))

    def check_room(self, entry: ObjectInCustody, known: ObjectInCustody | None) -> None:
        """Return if an entry may take the place of the known one.

        Raises:
            RateLimited: this node has enough in custody for its owner.
        """
        usage = self.usage()
        if known is None and usage.objects[entry.owner] >= CUSTODY_OBJECTS_A_PEER_MAX:
            raise errors.RateLimited(
                f"this node has {CUSTODY_OBJECTS_A_PEER_MAX} objects in custody for one peer"
            )
        more = len(entry.to_bytes()) - (0 if known is None else len(known.to_bytes()))
        if more > 0 and usage.rows[entry.owner] + more > CUSTODY_ROW_BYTES_A_PEER_MAX:
            most = units.format_size(CUSTODY_ROW_BYTES_A_PEER_MAX)
            raise errors.RateLimited(
                f"this node keeps {most} of placements in custody for one peer"
            )

    async def put(
        self, ref: bytes, known: ObjectInCustody | None, entry: ObjectInCustody | None
    ) -> None:
        """Replace the known entry, synced; None deletes it."""
        row = None if entry is None else entry.to_bytes()
        # Counted before it is written: of many at once none passes the bound.
        usage = self.usage()
        usage.add(known, -1)
        usage.add(entry, 1)
        try:
            await self._commit([(IN_CUSTODY + ref, row)])
        except errors.XscError:
            usage.add(known, 1)
            usage.add(entry, -1)
            raise


GUARD: Final = "storage.guard"
UNGUARD: Final = "storage.unguard"
HEALED: Final = "storage.healed"


def custody_message(
    capability: VerifyCapability, placement: Placement, before: Sequence[bytes]
) -> dict[str, encoding.Value]:
    """Return the header of a `storage.guard`."""
    return {
        "capability": capability.to_text(),
        "placement": placement.to_bytes(),
        "before": [*before],
    }


class Custodian:
    """Takes objects into custody, and gives them back. A registry for their repairer."""

    def __init__(
        self,
        context: Context,
        client: HostClient,
        watch: node_watch.NodeWatch,
        *,
        accepts: Callable[[bytes], bool],
        budget_bytes: int,
    ) -> None:
        self._context = context
        self._own = context.key.node_id
        self._client = client
        self.store = CustodyStore(context.state, context.commit, budget_bytes)
        self._watch = watch
        self._accepts = accepts
        self.turns: turns.Turns[bytes] = turns.Turns()
        """By object: held while it is surveyed or repaired, or its copies are deleted."""
        self._rows: turns.Turns[bytes] = turns.Turns()
        """By object: held from the reading of its row until it is written."""

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers owners, by method."""
        return {GUARD: self.on_guard, UNGUARD: self.on_unguard}

    async def run(self) -> None:
        """Delete what is not needed any more, and report to owners, until cancelled."""
        while True:
            await self._context.clock.sleep_ms(self._watch.look_ms)
            await self.end_all()
            await self.report_all()

    # Registry of the repairer

    def _acts(self, entry: ObjectInCustody) -> bool:
        """Say whether it is this node's turn: the owner has been silent for that long."""
        if self._own in self._client.leaving() or not self._accepts(entry.owner):
            return False
        return self._watch.silent_ms(entry.owner) >= self._watch.grace_ms * (1 + len(entry.before))

    def refs(self) -> Iterator[tuple[bytes, Placement, Collection[bytes]]]:
        """Yield what to look after: objects of absent owners, or with copies to delete."""
        for ref, entry in self.store.objects():
            if not entry.ended and (entry.held or self._acts(entry)):
                former = maintained_object.former_hosts(entry.placement.columns, entry.held)
                yield ref, entry.placement, former

    def load(self, ref: bytes) -> maintained_object.MaintainedObject | None:
        """Return an object in custody as the repairer needs it; None if the custody has ended."""
        entry = self.store.get(ref)
        if entry is None or entry.ended:
            return None
        return maintained_object.MaintainedObject(
            ref,
            entry.verify,
            entry.owner,
            entry.placement,
            entry.held,
            is_own=False,
            before=entry.before,
            budget_bytes=self.store.budget_left(entry.owner),
            rescue_ms=limits.LEASE_RESCUE_MS
            - min(len(entry.before), limits.CUSTODIANS - 1) * limits.LEASE_TURN_MS,
            only_clean=not self._acts(entry),
        )

    async def save(self, ref: bytes, placement: Placement, held: tuple[Held, ...]) -> bool:
        """Write what became of an object; return False if its custody has ended."""
        async with self._rows.of(ref):
            entry = self.store.get(ref)
            if entry is None:
                return False
            change = entry.model_copy(update={"placement": placement, "held": held})
            await self.store.put(ref, entry, change)
        return not entry.ended

    # Beginning and end

    async def on_guard(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> peering.Answered:
        """Take an object of the caller into custody.

        Raises:
            RecordInvalid: not a verify capability, or no placement.
            NotAllowed: the operator does not allow it for this caller.
            RateLimited: this node has enough in custody for this caller.
        """
        if not self._accepts(caller):
            raise errors.NotAllowed("this node takes nothing into custody for that peer")
        capability = parse(fields.take_str(header, "capability"))
        if not isinstance(capability, VerifyCapability):
            raise errors.RecordInvalid("a custodian takes no capability that reads")
        placement = Placement.from_bytes(fields.take_bytes(header, "placement"))
        ref = caller + capability.manifest_hash
        before = tuple(
            fields.take_bytes({"node": node}, "node", size=ids.ID_BYTES)
            for node in fields.take_list(header, "before", most=limits.CUSTODIANS_MAX)
        )
        async with self._rows.of(ref):
            known = self.store.get(ref)
            held = () if known is None else known.held
            entry = ObjectInCustody(
                capability=capability.to_text(),
                owner=caller,
                before=before,
                # A custodian that has stored something itself has the better placement.
                placement=known.placement if known is not None and held else placement,
                held=held,
                ended=False,
            )
            if entry != known:
                self.store.check_room(entry, known)
                await self.store.put(ref, known, entry)
        return {}, []

    async def on_unguard(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> peering.Answered:
        """End the custody of an object; its copies are deleted in the background.

        Raises:
            NotAllowed: this object is not in custody for the caller.
        """
        ref = caller + fields.take_bytes(header, "object", size=ids.ID_BYTES)
        async with self._rows.of(ref):
            entry = self.store.get(ref)
            if entry is None:
                raise errors.NotAllowed(
                    "this node does not have that object in custody for that node"
                )
            await self._end(ref, entry)
        return {}, []

    async def _end(self, ref: bytes, entry: ObjectInCustody) -> None:
        ended = entry.model_copy(update={"ended": True}) if entry.held else None
        await self.store.put(ref, entry, ended)

    async def end_all(self) -> None:
        """Delete the copies of objects whose custody has ended."""
        for ref in [ref async for ref, entry in turns.sliced(self.store.objects()) if entry.ended]:
            # A repair under way stops, and writes what is where, before this begins.
            async with self.turns.of(ref), self._rows.of(ref):
                entry = self.store.get(ref)
                if entry is None or not entry.ended:
                    continue
                left = entry.held
                for node in dict.fromkeys(item.node for item in left):
                    left = await delete_at(self._client, entry.verify, node, frozenset(), left)
                rest = entry.model_copy(update={"held": left}) if left else None
                await self.store.put(ref, entry, rest)

    # Calls to owners

    async def report_all(self) -> None:
        """Tell owners that are back which copies this node has, until it may delete them all.

        It resigns from objects that the operator allows no more, once nothing is paid for them.
        """
        # There can be thousands of objects of one owner, and each call waits for its time limit.
        silent: set[bytes] = set()
        for ref, entry in [item async for item in turns.sliced(self.store.objects())]:
            resigns = not entry.held and not self._accepts(entry.owner)
            if entry.ended or not (entry.held or resigns):
                continue
            if entry.owner in silent or not self._client.is_up(entry.owner):
                continue
            try:
                reply = await self._context.caller.call(
                    entry.owner,
                    HEALED,
                    {"object": ref[ids.ID_BYTES :], "resigns": resigns},
                    timeout_ms=limits.STORAGE_QUESTION_TIMEOUT_MS,
                )
                ended = fields.take_bool(reply.header, "ended")
                release = fields.take_bool(reply.header, "release")
            except errors.XscError as fault:
                self._context.log.info(
                    "custody.owner_not_told", peer=ids.short(entry.owner), reason=fault.message
                )
                if isinstance(fault, errors.UnavailableError):
                    silent.add(entry.owner)
                continue
            if release:
                await self._delete_one(ref)
            async with self._rows.of(ref):
                # It may have ended during the call, or be paid for by now.
                now = self.store.get(ref)
                if now is not None and (ended or (resigns and not now.held)):
                    await self._end(ref, now)

    # Deleting copies

    async def _delete_one(self, ref: bytes) -> None:
        """Delete one column of an object, as its owner allowed."""
        async with self.turns.of(ref), self._rows.of(ref):
            entry = self.store.get(ref)
            if entry is None or not entry.held:
                return
            nodes = [item.node for item in entry.held]
            node = next((node for node in nodes if self._client.is_up(node)), nodes[0])
            try:
                columns = await self._columns_at(node, entry.verify)
            except errors.XscError as fault:
                self._context.log.info(
                    "custody.not_deleted", peer=ids.short(node), reason=fault.message
                )
                return
            # The last one goes together with all else that is there.
            one = frozenset({min(columns)} if len(columns) > 1 else ())
            held = await delete_at(self._client, entry.verify, node, one, entry.held)
            await self.store.put(ref, entry, entry.model_copy(update={"held": held}))

    async def _columns_at(self, node: bytes, capability: VerifyCapability) -> set[int]:
        """Return which columns of an object a host says that it has for this node."""
        sealed = None
        if self._client.is_up(node):
            sealed = await self._client.find(node, capability.locate, capability.manifest_hash)
        if sealed is None:
            return set()
        manifest = open_manifest(sealed, capability)
        said = await self._client.stat(node, capability.locate, manifest, capability.manifest_hash)
        return {row.column for row in said.columns if row.customer == self._own}
