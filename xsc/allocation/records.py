"""Keeps the clearing records of this node in its space, with the values that they name.

A record is the value at `market/clearings/ID`, and what it names, for as long, are those at
`market/named/NAME`. Beyond CLEARINGS_BYTES_MAX the oldest records go that do not hold any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from xsc.allocation.clearing_record import Published, charged, open_clearing
from xsc.base.errors import NotFound, RecordInvalid
from xsc.base.ids import from_text
from xsc.base.limits import CLEARINGS_BYTES_MAX
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
            StoreDamaged, RecordInvalid: one cannot be read.
        """
        self._names = {each: self.opened(each).record.names for each in self.ids()}

    def ids(self) -> list[bytes]:
        """Return the ids of the records that are kept."""
        start = len(UserSpacePaths.CLEARINGS) + 1
        return [from_text(each.path[start:]) for each in self._space.ls(UserSpacePaths.CLEARINGS)]

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
        """Return the values that a record names."""
        found = []
        for name in sorted(self._names.get(record_id, ())):
            raw = self._space.get(UserSpacePaths.named(name)).value
            if raw is None:
                raise RecordInvalid("a value that a clearing names is gone")
            found.append(SpaceValue.read(raw))
        return found

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
        kept = [*self._space.ls(UserSpacePaths.CLEARINGS), *self._space.ls(UserSpacePaths.NAMED)]
        sizes = {each.path: charged(each.size_bytes) for each in kept}
        sizes |= {path: charged(len(raw)) for path, raw in writes.items() if raw is not None}
        over = sum(sizes.values()) - CLEARINGS_BYTES_MAX
        sequences = {each.path: each.sequence for each in kept}
        gone: dict[str, bytes | None] = {}
        for record_id in sorted(
            self._names.keys() - set(present),
            key=lambda each: sequences[UserSpacePaths.clearing(each)],
        ):
            if over <= 0:
                break
            uses.subtract(names[record_id])
            paths = [UserSpacePaths.named(each) for each in names.pop(record_id) if not uses[each]]
            for path in (UserSpacePaths.clearing(record_id), *paths):
                over -= sizes[path]
                gone[path] = None
        # Those that go make room for the others.
        return gone | writes, names

    def wrote(self, names: Mapping[bytes, frozenset[bytes]]) -> None:
        """Note what the kept records name, once it was written."""
        self._names = dict(names)
