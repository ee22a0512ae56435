"""Keeps a sample a minute of the few numbers that people plot, in a ring on the disk.

    monitor/history/<number>      a sample, as the state database has it

The ring is ordered by a number that only grows, so a clock that jumps loses nothing. The oldest
samples go once there are more than `SAMPLES_MAX`, or more bytes than `HISTORY_BYTES_MAX`: that is
30 days for a circle of up to 14 peers, and less for a larger one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

from xsc.api.monitor import Measures, PeerSample, Sample
from xsc.base.errors import RecordInvalid, StoreDamaged, XscError
from xsc.base.keyvalue import Change, prefix_end
from xsc.base.limits import MIB
from xsc.base.units import ceil_div
from xsc.identity.context import Context
from xsc.identity.envelope import Count, Record

SAMPLE_MS: Final = 60_000
SLACK_MS: Final = 5_000
"""How much sooner than a minute after the last one a sample may come."""
SAMPLES_MAX: Final = 30 * 24 * 60
HISTORY_BYTES_MAX: Final = 16 * MIB
ROWS: Final = b"monitor/history/"
NUMBER_BYTES: Final = 8
PEER_BYTES: Final = 8
"""Of a peer's id a sample has the beginning."""


class Row(Record):
    """A sample, as the ring has it."""

    at_ms: Count
    used_bytes: Count
    granted_bytes: Count
    margin: int | None
    price_micro: Count
    peers: tuple[tuple[bytes, int, int], ...]
    """Of each the beginning of its id, the balance and the availability."""


def row_of(measures: Measures) -> Row:
    """Return what the history keeps of measures."""
    prices = [row for row in measures.leases if row.role == "customer" and row.kind == "storage"]
    return Row(
        at_ms=measures.at_ms,
        used_bytes=measures.status.storage.used_bytes,
        granted_bytes=measures.status.storage.granted_bytes,
        margin=min((row.margin for row in measures.margins), default=None),
        price_micro=sum(row.lease_price_micro for row in prices),
        peers=tuple(
            (row.peer[:PEER_BYTES], row.balance_micro, row.availability_ppm)
            for row in measures.peers
        ),
    )


def sample_of(raw: bytes, known: Mapping[bytes, bytes]) -> Sample:
    """Return a row of the ring as the API shows it.

    Args:
        raw: the row.
        known: the ids of peers, by their beginnings.

    Raises:
        StoreDamaged: it is none.
    """
    try:
        row = Row.from_bytes(raw)
    except RecordInvalid as fault:
        raise StoreDamaged(f"a sample of the history is damaged: {fault.message}") from None
    peers = [
        PeerSample(peer=known.get(peer, peer), balance_micro=balance, availability_ppm=availability)
        for peer, balance, availability in row.peers
    ]
    return Sample(
        at_ms=row.at_ms,
        used_bytes=row.used_bytes,
        granted_bytes=row.granted_bytes,
        margin=row.margin,
        price_micro=row.price_micro,
        peers=peers,
    )


class History:
    """The ring of one node."""

    def __init__(self, context: Context) -> None:
        self._state = context.state
        self._commit = context.commit
        self._executor = context.executor
        self._log = context.log
        self._rows: deque[tuple[bytes, int]] | None = None
        """Key and size of each sample, the oldest first; None before they were counted."""
        self._held_bytes = 0
        self._last_ms: int | None = None
        """When the last sample was taken."""
        self._failing = False

    async def add(self, measures: Measures) -> None:
        """Keep a sample, and drop the oldest beyond the bounds.

        Where the disk takes none, that is logged once, and this sample is lost.
        """
        rows = await self._counted()
        last_ms = self._last_ms
        if last_ms is not None and 0 <= measures.at_ms - last_ms < SAMPLE_MS - SLACK_MS:
            return  # the node was started again
        raw = row_of(measures).to_bytes()
        number = int.from_bytes(rows[-1][0].removeprefix(ROWS), "big") + 1 if rows else 0
        key = ROWS + number.to_bytes(NUMBER_BYTES, "big")
        gone, freed = 0, 0
        while gone < len(rows) and (
            len(rows) - gone >= SAMPLES_MAX
            or self._held_bytes - freed + len(raw) > HISTORY_BYTES_MAX
        ):
            freed += rows[gone][1]
            gone += 1
        changes: list[Change] = [(key, raw), *((rows[place][0], None) for place in range(gone))]
        try:
            await self._commit(changes)
        except XscError as fault:
            if not self._failing:
                self._log.warning("node.sample_lost", reason=fault.message)
            self._failing = True
            return
        self._failing = False
        self._last_ms = measures.at_ms
        for _ in range(gone):
            rows.popleft()
        rows.append((key, len(raw)))
        self._held_bytes += len(raw) - freed

    async def _counted(self) -> deque[tuple[bytes, int]]:
        if self._rows is None:
            scan = self._state.scan(ROWS, prefix_end(ROWS))
            self._rows = await self._executor.run(
                lambda: deque((key, len(raw)) for key, raw in scan)
            )
            self._held_bytes = sum(size for _, size in self._rows)
            if self._rows and (raw := self._state.get(self._rows[-1][0])) is not None:
                self._last_ms = sample_of(raw, {}).at_ms
        return self._rows

    async def read(
        self, since_ms: int, samples: int, points: int, peers: Iterable[bytes]
    ) -> list[Sample]:
        """Return the samples since a moment, the oldest first, thinned out evenly to so many.

        Args:
            since_ms: the moment.
            samples: most that can be of that time.
            points: most that are returned; the newest is always one of them.
            peers: the ids that are known.

        Raises:
            StoreDamaged: a sample cannot be read.
        """
        known = {peer[:PEER_BYTES]: peer for peer in peers}

        def found() -> list[Sample]:
            newest = self._state.scan(ROWS, prefix_end(ROWS), reverse=True)
            rows = [raw for _, raw in islice(newest, samples)]
            every = ceil_div(len(rows), points) or 1
            # Only those that are shown are read: a month takes seconds.
            shown = [sample_of(raw, known) for raw in rows[::every]]
            return [sample for sample in reversed(shown) if sample.at_ms >= since_ms]

        return await self._executor.run(found)
