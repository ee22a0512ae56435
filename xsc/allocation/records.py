"""Keeps the clearing records of this node in its space, with the values that they name.

A record is the value at `market/clearings/ID`, and what it names, for as long, are those at
`market/named/NAME`. Beyond CLEARINGS_KEPT_MAX and CLEARINGS_BYTES_MAX the oldest records go that do
not hold any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from xsc.allocation.clearing_record import Published, charged, open_clearing
from xsc.base.errors import NotFound
from xsc.base.ids import from_text
from xsc.base.limits import CLEARINGS_BYTES_MAX, CLEARINGS_KEPT_MAX
from xsc.identity.envelope import Signed
from xsc.space.paths import UserSpacePaths
from xsc.space.port import Space
from xsc.terms.clearing import ClearingRecord, SpaceValue


@dataclass(frozen=True, slots=True)
class Clearing:
    """A clearing record that is kept, for people."""

    id: bytes
    slot: bytes
    kind: str
    at_ms: int
    rule: str


class Records:
    """The clearing records of this node.

    Args:
        space: keeps them.
        network: of all records.
    """

    def __init__(self, space: Space, network: bytes) -> None:
        self._space = space
        self._network = network
        self._names: dict[bytes, frozenset[bytes]] = {}
        """By record that is kept, what it names."""
        space.register_schema(f"{UserSpacePaths.CLEARINGS}/*", self._check_record)
        space.register_schema(f"{UserSpacePaths.NAMED}/*", lambda _, raw: SpaceValue.read(raw))

    def _check_record(self, _owner: bytes, raw: bytes) -> None:
        open_clearing(raw, self._network)

    def start(self) -> None:
        """Read what the kept records name.

        Raises:
            RecordInvalid: one cannot be read.
        """
        self._names = {}
        for each in self._space.ls(UserSpacePaths.CLEARINGS):
            record_id = _last(each.path)
            try:
                self._names[record_id] = self.opened(record_id).record.names
            except NotFound:
                # What peers gave back after a loss of the disk can lack its value.
                self._names[record_id] = frozenset()

    def ids(self) -> list[bytes]:
        """Return the ids of the records that are kept."""
        return [each for each, names in self._names.items() if names]

    def clearings(self) -> list[Clearing]:
        """Return the records that are kept, the newest first."""
        found = []
        for record_id in self.ids():
            record = self.opened(record_id).record
            slot = record.slot
            found.append(Clearing(record_id, slot.slot_id, slot.kind, record.at_ms, slot.rule))
        return sorted(found, key=lambda each: (-each.at_ms, each.id))

    def raw(self, record_id: bytes) -> bytes:
        """Return a signed record.

        Raises:
            NotFound: it is not kept.
        """
        raw = self._space.get(UserSpacePaths.clearing(record_id)).value
        if raw is None:
            raise NotFound(
                "the clearing is not kept any more",
                hint="`xsc market clearings` lists those that are",
            )
        return raw

    def opened(self, record_id: bytes) -> Signed[ClearingRecord]:
        """Return a record.

        Raises:
            NotFound: it is not kept.
        """
        return open_clearing(self.raw(record_id), self._network)

    def named(self, record_id: bytes) -> list[SpaceValue]:
        """Return the values that a record names, as far as they are kept."""
        paths = [UserSpacePaths.named(name) for name in sorted(self._names.get(record_id, ()))]
        kept = [self._space.get(path).value for path in paths]
        return [SpaceValue.read(raw) for raw in kept if raw is not None]

    def changes(
        self,
        made: Iterable[Signed[ClearingRecord]],
        present: Collection[bytes],
        published: Iterable[Published],
    ) -> tuple[dict[str, bytes | None], dict[bytes, frozenset[bytes]]]:
        """Return what is written of the space so that new records are kept, and what all name then.

        Args:
            made: the new records.
            present: the ids of all records that hold now.
            published: those that took part, and others.
        """
        values: Mapping[bytes, SpaceValue] = {
            name: value for each in published for name, value in each.named.items()
        }
        names, writes = self._names.copy(), dict[str, bytes | None]()
        uses = Counter(name for each in names.values() for name in each)
        for signed in made:
            names[signed.id] = signed.record.names
            writes[UserSpacePaths.clearing(signed.id)] = signed.raw
            for name in signed.record.names:
                if not uses[name]:
                    writes[UserSpacePaths.named(name)] = values[name].to_bytes()
                uses[name] += 1
        records = self._space.ls(UserSpacePaths.CLEARINGS)
        named = self._space.ls(UserSpacePaths.NAMED)
        sizes = {each.path: charged(each.size_bytes) for each in (*records, *named)}
        sizes |= {path: charged(len(raw)) for path, raw in writes.items() if raw is not None}
        over = sum(sizes.values()) - CLEARINGS_BYTES_MAX
        gone: dict[str, bytes | None] = {}
        for each in sorted(records, key=lambda each: each.sequence):
            if over <= 0 and len(names) <= CLEARINGS_KEPT_MAX:
                break
            record_id = _last(each.path)
            if record_id in present:
                continue
            mine = names.pop(record_id, frozenset())
            uses.subtract(mine)
            paths = [UserSpacePaths.named(name) for name in mine if not uses[name]]
            over -= sizes[each.path] + sum(sizes.get(path, 0) for path in paths)
            gone[each.path] = None
        gone |= {each.path: None for each in named if not uses[_last(each.path)]}
        # Those that go make room for the others.
        return gone | writes, names

    def wrote(self, names: Mapping[bytes, frozenset[bytes]]) -> None:
        """Note what the kept records name, once it was written."""
        self._names = dict(names)


def _last(path: str) -> bytes:
    """Return the hash at the end of a path."""
    return from_text(path.rpartition("/")[2])
