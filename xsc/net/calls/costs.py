"""What calls cost the node that answers them, and how large their heads may be: the table.

A unit is about a microsecond of a processor, as measured on the machine of docs/performance.md;
`xsc peer ls --costs` shows both side by side. What is measured decides nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from xsc.base import limits
from xsc.base.limits import KIB

HEAD_KIB_UNITS = 650
"""What each KiB of a head costs beside: four times what it takes to decode the worst one."""
SIGNATURE_UNITS = 100

_SLOT_MS: Final = 10_000
_SLOTS: Final = 6


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call of one method costs, and its bounds."""

    base: int = limits.REQUEST_UNITS
    kib: int = 1
    """Of what follows the head, of a request and of its answer. Records travel in the head: for
    a KiB of that all methods cost the same, HEAD_KIB_UNITS."""
    signatures: int = 0
    """That are made or verified, beside that of the request."""
    read_bytes: int = 2 * KIB
    """So many bytes that are read from the disk and hashed for a call cost a unit."""
    synced: bool = False
    """Whether something is written and synced that nobody pays for."""
    asked: int = limits.HEAD_BYTES_MAX
    """Most bytes of the header of a request; fewer where it waits for room with it."""
    answered: int = limits.HEAD_BYTES_MAX
    """The same, of its answer."""

    def body(self, size_bytes: int) -> int:
        """Return the units of so many bytes behind a head."""
        return size_bytes // KIB * self.kib

    def content(self, head_bytes: int, body_bytes: int) -> tuple[int, int]:
        """Return the units and synced bytes of what a call brings, before its head is decoded."""
        units = head_bytes // KIB * HEAD_KIB_UNITS + self.body(body_bytes)
        synced_bytes = limits.SYNC_BYTES + head_bytes + body_bytes if self.synced else 0
        return units + SIGNATURE_UNITS * self.signatures, synced_bytes


_LARGEST: Final = limits.FRAME_HEADER_BYTES_MAX
OTHER: Final = Cost()
"""What a method costs that the table does not name."""
COSTS: Final[Mapping[str, Cost]] = {
    "peers.join": Cost(base=1_200, asked=limits.JOIN_BYTES_MAX),
    # Lists are gone through. Bodies are read, which is charged as they are.
    "health.prove": Cost(signatures=1, kib=10, asked=4 * KIB),
    "peers.batch": Cost(
        asked=limits.BATCH_BYTES_MAX + limits.BATCH_CALL_BYTES_MAX, answered=_LARGEST
    ),
    # It goes over all leases of the customer, of which there may be many.
    "market.lease": Cost(base=2_000, signatures=2, synced=True),
    "market.account": Cost(base=10_000, signatures=2, synced=True, answered=_LARGEST),
    # It makes a call of this node to another peer.
    # It goes over all peers.
    "health.scores": Cost(base=10_000, answered=_LARGEST),
    "health.probe_for": Cost(base=1_500, signatures=2),
    # It may rest on a loop, which five have signed.
    "ledger.propose": Cost(signatures=7, synced=True),
    "ledger.account": Cost(signatures=2, synced=True),
    # It has this node ask a few of its own peers, and is answered with what five have signed.
    "ledger.offer": Cost(base=6_000, signatures=6, synced=True, asked=KIB),
    "ledger.loop": Cost(signatures=6, synced=True, asked=5 * KIB),
    # Of 27 cells that are read, the faces.
    "ledger.cubes": Cost(asked=KIB),
    "ledger.head": Cost(signatures=3, synced=True),
    # A checkpoint has the signatures of its co-signers, and a proof may be kept.
    "ledger.cosign": Cost(signatures=18, synced=True, asked=8 * KIB),
    "ledger.compare": Cost(base=1_500, signatures=4, synced=True, asked=24 * KIB),
    "ledger.history": Cost(base=1_500, answered=_LARGEST),
    # Arguments and names of files; paths of what the program leaves.
    "compute.run": Cost(asked=3 * limits.ARGUMENT_BYTES_MAX, answered=_LARGEST),
    "service.collect": Cost(answered=_LARGEST),
    "service.deploy": Cost(
        signatures=1, kib=20, synced=True, asked=limits.SERVICE_RECORD_BYTES_MAX + 4 * KIB
    ),
    "service.undeploy": Cost(signatures=1, synced=True),
    "space.next": Cost(asked=_LARGEST),
    # Paths of 256 records.
    "space.records": Cost(asked=272 * KIB),
    "space.grant": Cost(base=1_100, signatures=2, synced=True),
    # These are paid, but for their processor time.
    "storage.put": Cost(kib=2),
    "storage.get": Cost(asked=16 * KIB),
    "storage.find": Cost(asked=4 * KIB),
    # What it reads is written, too.
    "storage.keep": Cost(read_bytes=KIB // 2, asked=16 * KIB),
    "storage.stat": Cost(base=4_500, answered=_LARGEST),
    "storage.guard": Cost(synced=True),
    "storage.healed": Cost(synced=True),
    "storage.unguard": Cost(synced=True),
    "storage.head_put": Cost(base=700, signatures=2, synced=True),
}


@dataclass(slots=True)
class Spent:
    """What a peer spent, by method."""

    units: Counter[str] = field(default_factory=Counter)
    processor_us: Counter[str] = field(default_factory=Counter)


class Spending:
    """What peers spent within the last minute, by method. Times are of a steady clock."""

    def __init__(self) -> None:
        self._slots: deque[tuple[int, dict[bytes, Spent]]] = deque(maxlen=_SLOTS)

    def add(
        self, peer: bytes, method: str, now_ms: int, *, units: int = 0, processor_us: int = 0
    ) -> None:
        """Count what a peer spends now."""
        number = now_ms // _SLOT_MS
        if not self._slots or self._slots[-1][0] != number:
            self._slots.append((number, {}))
        spent = self._slots[-1][1].setdefault(peer, Spent())
        spent.units[method] += units
        spent.processor_us[method] += processor_us

    def of(self, peer: bytes, now_ms: int) -> Spent:
        """Return what a peer spent."""
        found = Spent()
        for number, slot in self._slots:
            if number > now_ms // _SLOT_MS - _SLOTS and peer in slot:
                found.units.update(slot[peer].units)
                found.processor_us.update(slot[peer].processor_us)
        return found
