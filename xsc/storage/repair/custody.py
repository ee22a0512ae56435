"""The objects that this node has in custody for other owners, as its state database keeps them.

storage/ward/<owner><manifest hash>     an object in custody
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final

from pydantic import Field

from xsc.base.errors import RateLimited, RecordInvalid, StoreDamaged, XscError
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.base.limits import (
    CUSTODIANS_MAX,
    MIB,
    RECORD_BYTES_MAX,
    SYNC_BYTES,
    SYNCED_A_PEER_BYTES_MAX,
)
from xsc.base.units import format_size
from xsc.identity.envelope import Id32, Record
from xsc.storage.object.capability import VerifyCapability, parse_verify
from xsc.storage.object.inventory import HeldAt
from xsc.storage.object.placement import Placement
from xsc.storage.ports import Commit

CUSTODY_SHARES = 4
"""What a node keeps for all absent owners: so many times what it keeps for one (`guard_bytes`)."""
CUSTODY_OBJECTS_A_PEER_MAX = 10_000
"""Objects that a node has in custody for one peer."""
CUSTODY_ROW_BYTES_A_PEER_MAX = 16 * MIB
"""What it keeps on its disk of those: the row of one can have from 400 to 9 000 bytes."""
assert (
    SYNCED_A_PEER_BYTES_MAX > CUSTODY_OBJECTS_A_PEER_MAX * SYNC_BYTES + CUSTODY_ROW_BYTES_A_PEER_MAX
)

IN_CUSTODY: Final = b"storage/ward/"
_ROW_BYTES_MAX: Final = 4 * RECORD_BYTES_MAX


class ObjectInCustody(Record):
    """An object that this node keeps whole while its owner is away."""

    KIND: ClassVar[str] = "ward"

    capability: str
    """A verify capability: it does not read."""
    owner: Id32
    before: Annotated[tuple[Id32, ...], Field(max_length=CUSTODIANS_MAX)]
    """The custodians whose turn comes before this one's."""
    placement: Placement
    held: tuple[HeldAt, ...]
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

    def __init__(self, state: KeyValue, commit: Commit, budget_bytes: int) -> None:
        self._state = state
        self._commit = commit
        self._budget_bytes = budget_bytes
        """Most that this node stores at hosts for one owner."""
        self._usage: CustodyUsage | None = None

    def objects(self) -> Iterator[tuple[bytes, ObjectInCustody]]:
        """Yield the objects in custody, by owner and manifest hash."""
        for key, raw in self._state.scan(IN_CUSTODY, prefix_end(IN_CUSTODY)):
            yield key.removeprefix(IN_CUSTODY), self._parse(raw)

    def get(self, ref: bytes) -> ObjectInCustody | None:
        """Return the entry of an object."""
        raw = self._state.get(IN_CUSTODY + ref)
        return None if raw is None else self._parse(raw)

    @staticmethod
    def _parse(raw: bytes) -> ObjectInCustody:
        try:
            return ObjectInCustody.from_bytes(raw, size_max=_ROW_BYTES_MAX)
        except RecordInvalid as fault:
            raise StoreDamaged(f"an object in custody is damaged: {fault.message}") from None

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
            raise RateLimited(
                f"this node has {CUSTODY_OBJECTS_A_PEER_MAX} objects in custody for one peer"
            )
        more = len(entry.to_bytes()) - (0 if known is None else len(known.to_bytes()))
        if more > 0 and usage.rows[entry.owner] + more > CUSTODY_ROW_BYTES_A_PEER_MAX:
            most = format_size(CUSTODY_ROW_BYTES_A_PEER_MAX)
            raise RateLimited(f"this node keeps {most} of placements in custody for one peer")

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
        except XscError:
            usage.add(known, 1)
            usage.add(entry, -1)
            raise
