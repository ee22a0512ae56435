"""The objects that this node stored, in its state database.

storage/object/<manifest hash>       the entry of an object
storage/manifest/<manifest hash>     its sealed manifest
storage/unfound/<manifest hash>      an object of the directory that a recovery did not find
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Final

from pydantic import Field

from xsc.base import errors, limits, turns
from xsc.base.keyvalue import Change, prefix_end
from xsc.identity.context import Context
from xsc.identity.envelope import Count, Record
from xsc.storage.catalogue import names
from xsc.storage.catalogue.directory import DirectoryEntry, pack, unpack
from xsc.storage.object import durability
from xsc.storage.object.capability import VerifyCapability, parse_read, parse_verify
from xsc.storage.object.held import Held
from xsc.storage.object.placement import Placement, likely_columns, placement_of
from xsc.storage.transfer import deletions, get
from xsc.storage.transfer.put import Uploaded

OBJECTS: Final = b"storage/object/"
MANIFESTS: Final = b"storage/manifest/"
UNFOUND: Final = b"storage/unfound/"


class ObjectEntry(Record):
    """An object that this node stored, as its state database has it."""

    name: Annotated[str, Field(max_length=names.NAME_CHARS_MAX)]
    capability: str
    size_bytes: Count
    created_ms: Count
    placement: Placement
    held: tuple[Held, ...]
    """By host and lease; hosts that failed during the put included."""
    deleting: bool
    """Deletion has begun; the last confirmation deletes the entry."""
    version: Annotated[int, Field(ge=1, lt=2**63)] = 1
    """The number under the name; without a name always 1."""


def entry_of(listed: DirectoryEntry, placement: Placement) -> ObjectEntry:
    """Return the entry of an object of a directory."""
    return ObjectEntry(
        name=listed.name,
        capability=listed.capability,
        size_bytes=listed.size_bytes,
        created_ms=listed.created_ms,
        placement=placement,
        held=listed.held,
        deleting=False,
        version=listed.version,
    )


class ObjectCatalogue:
    """Reads and writes the entries of own objects, their names and versions."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._own = context.key.node_id
        self._state = context.state
        self._commit = context.commit
        self.versions = names.NameVersions(context.state)
        self.rows: turns.Turns[bytes] = turns.Turns()
        """By manifest hash: held from the reading of an entry until it is written."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when an object was added or deleted."""

    # Entries

    def entry(self, ref: bytes) -> ObjectEntry | None:
        """Return the entry of an object, by its manifest hash."""
        raw = self._state.get(OBJECTS + ref)
        return None if raw is None else self._parse(raw)

    def shown_name(self, ref: bytes) -> str:
        """Return the name of an object as people see it; empty where it has none."""
        entry = self.entry(ref)
        return "" if entry is None or entry.name.startswith(names.HIDDEN) else entry.name

    def entries(self) -> Iterator[tuple[bytes, ObjectEntry]]:
        """Yield manifest hash and entry of each object."""
        for key, raw in self._state.scan(OBJECTS, prefix_end(OBJECTS)):
            yield key.removeprefix(OBJECTS), self._parse(raw)

    @staticmethod
    def _parse(raw: bytes) -> ObjectEntry:
        try:
            return ObjectEntry.from_bytes(raw, size_max=limits.MANIFEST_BYTES_MAX)
        except errors.RecordInvalid as fault:
            raise errors.StoreDamaged(f"the list of objects is damaged: {fault.message}") from None

    def placement(self, capability: VerifyCapability) -> tuple[Placement, bytes] | None:
        """Return placement and sealed manifest of an own object; None if it is not one.

        Raises:
            ObjectUnknown: it is being deleted.
        """
        entry = self.entry(capability.manifest_hash)
        if entry is not None and entry.deleting:
            # Hosts that have not confirmed the deletion may still have it.
            raise errors.ObjectUnknown("the object was deleted")
        sealed = self._state.get(MANIFESTS + capability.manifest_hash)
        return None if entry is None or sealed is None else (entry.placement, sealed)

    def sealed_bytes(self, ref: bytes) -> int:
        """Return how many bytes the sealed manifest of an own object has."""
        return len(self._state.get(MANIFESTS + ref) or b"")

    async def add(self, done: Uploaded, name: str, also: Sequence[Change] = ()) -> int:
        """Write a new object, in one commit with other changes; return its version."""
        if not name:
            await self._add(done, name, 1, also)
            return 1
        async with self.versions.turns.of(name):
            version = self.versions.next(name)
            await self._add(done, name, version, also)
        return version

    async def _add(self, done: Uploaded, name: str, version: int, also: Sequence[Change]) -> None:
        entry = ObjectEntry(
            name=name,
            capability=done.capability,
            size_bytes=done.size_bytes,
            created_ms=self._context.clock.now_ms(),
            placement=done.placement,
            held=done.held,
            deleting=False,
            version=version,
        )
        await self._commit([*self._rows_of(entry, done.sealed), *also])
        self.on_change()

    def _rows_of(self, entry: ObjectEntry, sealed: bytes) -> list[Change]:
        """Return the changes that write an object and its version."""
        ref = parse_verify(entry.capability).manifest_hash
        changes: list[Change] = [(OBJECTS + ref, entry.to_bytes()), (MANIFESTS + ref, sealed)]
        if entry.name:
            changes.extend(self.versions.rows(entry.name, entry.version, ref))
        return changes

    async def note_placement(
        self, ref: bytes, placement: Placement, held: tuple[Held, ...]
    ) -> bool:
        """Write where an object is now; return False if it is deleted or being deleted.

        Of an object that is being deleted only `held` is written: all of that is to be deleted.
        """
        async with self.rows.of(ref):
            entry = self.entry(ref)
            if entry is None:
                return False
            change = {
                "placement": entry.placement if entry.deleting else placement,
                "held": held,
            }
            await self._commit([(OBJECTS + ref, entry.model_copy(update=change).to_bytes())])
            return not entry.deleting

    # Names

    def named(self, name: str, version: int | None = None, *, deleting: bool = False) -> list[str]:
        """Return the capabilities of a name's versions, the newest first; or of one version.

        Args:
            name: as it was stored.
            version: its number; None for all of them.
            deleting: also those of which some host has yet to confirm the deletion.

        Raises:
            ObjectUnknown: nothing was stored under it here, or it was deleted.
        """
        found = []
        for number, ref in self.versions.of(name):
            if version is not None and number != version:
                continue
            entry = self.entry(ref)
            if entry is None:
                listed = self.unfound_entry(ref)
                found += [] if listed is None else [listed.capability]
            elif deleting or not entry.deleting:
                found.append(entry.capability)
        if not found:
            what = "object" if version is None else f"version {version} of an object"
            raise errors.ObjectUnknown(
                f"this node has stored no {what} under that name",
                hint="`xsc store ls --versions` shows names and versions",
            )
        return found

    async def restore(self, name: str, version: int) -> int:
        """Make an older version of a name its newest; return its new number.

        Nothing is copied or sent. The old number is not used any more.

        Raises:
            ObjectUnknown: no such version, or a recovery has not found it.
        """
        ref = parse_verify(self.named(name, version)[0]).manifest_hash
        async with self.rows.of(ref), self.versions.turns.of(name):
            # It may have been deleted or renumbered while this waited.
            self.named(name, version)
            entry, made = self.entry(ref), self.versions.next(name)
            if entry is None:
                raise errors.ObjectUnknown(
                    "that version is at no host that answered since the recovery",
                    hint="try again when more peers are up",
                )
            moved = entry.model_copy(update={"version": made})
            await self._commit(
                [
                    (OBJECTS + ref, moved.to_bytes()),
                    names.version_row(name, version, None),
                    *self.versions.rows(name, made, ref),
                ]
            )
        self.on_change()
        return made

    # Directory

    def directory(self) -> list[DirectoryEntry]:
        """Return the objects as the directory lists them, oldest first."""
        rows = [
            DirectoryEntry(
                entry.name,
                entry.version,
                entry.capability,
                entry.size_bytes,
                entry.created_ms,
                entry.held,
            )
            for _, entry in self.entries()
            if not entry.deleting
            and (entry.name.startswith(names.PART) or not entry.name.startswith(names.HIDDEN))
        ]
        rows += self.unfound()
        return sorted(rows, key=lambda row: (row.created_ms, row.name, row.capability))

    def unfound(self) -> list[DirectoryEntry]:
        """Return the objects that a recovery did not find; they stay in the directory."""
        rows = self._state.scan(UNFOUND, prefix_end(UNFOUND))
        return [item for _, raw in rows for item in unpack(raw)]

    def unfound_entry(self, ref: bytes) -> DirectoryEntry | None:
        """Return an object that a recovery did not find."""
        raw = self._state.get(UNFOUND + ref)
        return None if raw is None else unpack(raw)[0]

    async def keep_unfound(self, listed: Sequence[DirectoryEntry]) -> None:
        """Replace the objects that a recovery did not find. Their hosts may come back."""
        changes: list[Change] = []
        for item in self.unfound():
            changes.append((UNFOUND + parse_read(item.capability).manifest_hash, None))
            if item.name:
                changes.append(names.version_row(item.name, item.version, None))
        for item in listed:
            ref = parse_read(item.capability).manifest_hash
            changes.append((UNFOUND + ref, pack([item])))
            if item.name:
                changes.append(names.version_row(item.name, item.version, ref))
        await self._commit(changes)

    async def keep_versions(self, listed: Sequence[DirectoryEntry]) -> None:
        """Continue the version numbers of names from those of a directory."""
        last: dict[str, int] = {}
        for item in listed:
            if item.name:
                last[item.name] = max(last.get(item.name, 0), item.version)
        await self._commit([names.last_row(name, number) for name, number in last.items()])

    async def adopt(self, listed: DirectoryEntry, located: get.Located) -> None:
        """Write an object of a directory as it was found at its hosts."""
        await self._commit(self._adoption(listed, located))

    async def adopt_unfound(self, listed: DirectoryEntry, located: get.Located) -> None:
        """Write an object that a recovery had not found, unless it was deleted since."""
        ref = parse_read(listed.capability).manifest_hash
        async with self.rows.of(ref):
            if self.unfound_entry(ref) is None:
                return
            await self._commit(self._adoption(listed, located))
        self.on_change()

    def _adoption(self, listed: DirectoryEntry, located: get.Located) -> list[Change]:
        hosts = [item.node for item in listed.held]
        columns = likely_columns(located.holders, hosts, self._own)
        entry = entry_of(listed, placement_of(located.manifest, columns))
        ref = parse_read(listed.capability).manifest_hash
        return [*self._rows_of(entry, located.sealed), (UNFOUND + ref, None)]

    # Deletion

    def entry_of_unfound(self, listed: DirectoryEntry) -> ObjectEntry:
        """Return the entry under which an object is deleted that a recovery did not find.

        Its placement is not known. A deletion asks only the hosts in `held`.
        """
        nowhere = Placement(k=1, columns=(self._own,), survive=tuple(durability.Contract()))
        return entry_of(listed, nowhere)

    async def begin_deletion(self, ref: bytes) -> None:
        """Mark an object as being deleted."""
        async with self.rows.of(ref):
            entry, listed = self.entry(ref), self.unfound_entry(ref)
            if listed is not None:
                entry = self.entry_of_unfound(listed)
            if entry is not None and not entry.deleting:
                going = entry.model_copy(update={"deleting": True}).to_bytes()
                await self._commit([(OBJECTS + ref, going), (UNFOUND + ref, None)])

    def deletion_began_ms(self, ref: bytes) -> int | None:
        """Return when the deletion of an object began; None if it did not."""
        return deletions.ended_since(self._state, ref)

    async def note_deletion(
        self,
        ref: bytes,
        entry: ObjectEntry | None,
        left: tuple[Held, ...],
    ) -> None:
        """Write what came of a deletion; delete the entry if no host is left to confirm it.

        The caller holds the row.
        """
        now_ms = self._context.clock.now_ms()
        changes: list[Change] = [(OBJECTS + ref, None), (MANIFESTS + ref, None)]
        if entry is not None and entry.name:
            changes.append(names.version_row(entry.name, entry.version, None))
        if entry is not None and left:
            rest = entry.model_copy(update={"deleting": True, "held": left})
            changes = [(OBJECTS + ref, rest.to_bytes())]
        if self.deletion_began_ms(ref) is None:
            changes.append(deletions.ended_row(ref, now_ms))
        await self._commit(changes)
        self.on_change()
