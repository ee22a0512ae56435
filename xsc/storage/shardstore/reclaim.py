"""Which parts of the shard store are worth compacting: rules over sequences, no disk.

Deleted bodies keep their room until the tables that hold them are written anew.
That costs as much as the living bodies beside them, and nothing else is written
to the tables meanwhile, so it goes in slices of neighbouring bodies: small
enough that writers hardly notice, and only where enough is dead. Bodies are
appended, hence neighbours by sequence are neighbours on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from xsc.base.limits import MIB

BUCKET = 64
"""Sequences that are counted together."""
SLICE_BYTES = 64 * MIB
"""Most of the disk that one compaction goes through, unless one bucket alone has more."""
DEAD_SHARE = 8
"""A slice is compacted once one part in so many is dead: 1.15 times the live data is kept."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Sequences low <= s < high, to be compacted at once."""

    low: int
    high: int


class DeadSpace:
    """Bytes that were deleted and not reclaimed yet, by bucket of sequences."""

    def __init__(self) -> None:
        self._dead: dict[int, int] = {}
        self.gone_bytes = 0
        """Size of the notes of deletions that were written and not dropped since."""

    @property
    def size_bytes(self) -> int:
        """All of them."""
        return sum(self._dead.values())

    def bury(self, sequence: int, size_bytes: int) -> None:
        """Take note that a body was deleted."""
        bucket = sequence // BUCKET
        self._dead[bucket] = self._dead.get(bucket, 0) + size_bytes

    def survey(self, live: dict[int, int], size_of: Callable[[int, int], int]) -> None:
        """Learn what is dead from what lives by bucket: what was known before is gone.

        Args:
            live: bytes of living bodies by bucket.
            size_of: about how many bytes of the disk the sequences low <= s < high take.
        """
        last = max(live, default=-1)
        for bucket in range(last + 1):
            dead = size_of(bucket * BUCKET, (bucket + 1) * BUCKET) - live.get(bucket, 0)
            if dead > 0:
                self._dead[bucket] = max(dead, self._dead.get(bucket, 0))

    def plan(self, size_of: Callable[[int, int], int], *, everything: bool) -> list[Slice]:
        """Return the slices that are worth their writing; with `everything`, all with dead."""
        found: list[Slice] = []
        run: list[int] = []

        def close() -> None:
            if not run:
                return
            low, high = run[0] * BUCKET, (run[-1] + 1) * BUCKET
            dead = sum(self._dead[bucket] for bucket in run)
            if everything or dead * DEAD_SHARE >= size_of(low, high):
                found.append(Slice(low, high))
            run.clear()

        size = 0
        for bucket in sorted(self._dead):
            more = size_of(bucket * BUCKET, (bucket + 1) * BUCKET)
            if run and (bucket != run[-1] + 1 or size + more > SLICE_BYTES):
                close()
                size = 0
            run.append(bucket)
            size += more
        close()
        return found

    def done(self, piece: Slice) -> None:
        """Take note that a slice was compacted."""
        for bucket in range(piece.low // BUCKET, piece.high // BUCKET):
            self._dead.pop(bucket, None)


def live_by_bucket(items: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return the bytes of living bodies by bucket, of (sequence, bytes)."""
    live: dict[int, int] = {}
    for sequence, size_bytes in items:
        bucket = sequence // BUCKET
        live[bucket] = live.get(bucket, 0) + size_bytes
    return live
