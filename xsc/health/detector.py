"""Whether a peer is up, and how it has answered so far.

The *state* follows from the last probes of this run and says which peers to ask now. A peer
is *absent* if no window that counts found it, neither by itself nor through others. The
*availability* follows from the results of the last days, those of earlier runs included,
and says how far to rely on a peer. Results also count plainly wrong answers: bytes that
are not the shard, or a result that others contradict.

This module only counts. `xsc.health.service` sends the probes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from xsc.base import encoding, errors, limits
from xsc.health.schedule import timeout_ms
from xsc.health.score import trust_ppm

RESPONSES_KEPT = 200
"""Answers of a peer in this run whose mean time is expected of the next."""
BUCKET_MS = 6 * 3_600_000
MISSES_TO_DOWN = 2
"""Probes missed in a row after which a peer is down; before that it is suspect."""
WINDOWS_TO_ABSENT = 4
"""Windows in a row that count and did not find a peer, after which it is absent."""

State: TypeAlias = Literal["unknown", "up", "suspect", "down"]

_VERSION = 1


@dataclass(slots=True)
class Bucket:
    """What came of one peer in BUCKET_MS."""

    answered: int = 0
    missed: int = 0
    wrong: int = 0
    """Answers that were plainly wrong, of any kind."""
    seen_ms: int | None = None
    """When it answered last."""

    def to_bytes(self) -> bytes:
        """Return it for the store."""
        counts = {"answered": self.answered, "missed": self.missed, "wrong": self.wrong}
        return encoding.encode({"v": _VERSION, "seen": self.seen_ms, **counts})


@dataclass(frozen=True, slots=True)
class AvailabilityStats:
    """What the kept results of one peer add up to."""

    availability: int
    """Share of the counted probes that were answered, parts per million; 0 before the first."""
    avg_response_ms: int
    """Mean time of the last answers in this run, rounded down; 0 before the first."""
    probes: int
    answered: int
    wrong: int
    """Answers that were plainly wrong."""
    trust_ppm: int
    """What those leave of the score."""
    last_seen_ms: int | None
    """When it answered last."""


@dataclass(slots=True)
class _History:
    buckets: dict[int, Bucket] = field(default_factory=dict)
    """By number of BUCKET_MS since 1970."""
    newest: int = 0
    """The bucket of the last result."""
    changed: set[int] = field(default_factory=set)
    times: deque[int] = field(default_factory=lambda: deque(maxlen=RESPONSES_KEPT))
    run_misses: int | None = None
    """Misses in a row in this run; None before its first probe."""
    up: bool = False
    unfound: int = 0
    """Windows in a row that count and did not find it."""
    found: bool = False
    """Whether the last of them that missed it found it through others."""
    stats: AvailabilityStats | None = None
    """Until the next result: readers ask for it several times a segment."""

    def turn(self, number: int) -> None:
        """Make a bucket the newest; drop those that are too old, or of a clock that was wrong."""
        self.newest, self.stats = number, None
        for other in [n for n in self.buckets if not 0 <= number - n < limits.BUCKETS_KEPT]:
            del self.buckets[other]
            self.changed.add(other)

    def bucket(self, at_ms: int) -> Bucket:
        """Return the bucket of a moment, to be counted in."""
        self.turn(at_ms // BUCKET_MS)
        self.changed.add(self.newest)
        return self.buckets.setdefault(self.newest, Bucket())


def state_after(misses_in_row: int | None) -> State:
    """Return the state after so many misses in a row; None: no probe yet."""
    if misses_in_row is None:
        return "unknown"
    if misses_in_row == 0:
        return "up"
    return "down" if misses_in_row >= MISSES_TO_DOWN else "suspect"


class AvailabilityTester:
    """The results of BUCKETS_KEPT times BUCKET_MS of each peer."""

    def __init__(self) -> None:
        self._histories: dict[bytes, _History] = {}

    def record_result(
        self, node_id: bytes, available: bool, response_ms: int, at_ms: int, *, counts: bool = True
    ) -> bool | None:
        """Take a probe; return whether the peer is up now if that changed, or None.

        A peer comes up with an answer and goes down with MISSES_TO_DOWN misses
        in a row: one lost message takes nobody down. What does not count changes
        the state alone.
        """
        history = self._histories.setdefault(node_id, _History())
        if available:
            history.bucket(at_ms).seen_ms = at_ms
            history.times.append(response_ms)
            history.run_misses = history.unfound = 0
            history.found = False
        else:
            history.run_misses = (history.run_misses or 0) + 1
        if counts:
            self.count(node_id, available, at_ms)
        before, state = history.up, state_after(history.run_misses)
        if state == "suspect":
            return None
        history.up = state == "up"
        return history.up if history.up != before else None

    def count(self, node_id: bytes, available: bool, at_ms: int) -> None:
        """Count a result for the availability."""
        bucket = self._histories.setdefault(node_id, _History()).bucket(at_ms)
        bucket.answered += available
        bucket.missed += not available

    def record_unfound(self, node_id: bytes, at_ms: int) -> bool:
        """Take a window that counts, in which nobody found a peer; return whether it is absent.

        Only that of an absent peer counts as a miss.
        """
        history = self._histories.setdefault(node_id, _History())
        history.unfound += 1
        history.found = False
        if absent := self.is_absent(node_id):
            self.count(node_id, False, at_ms)
        return absent

    def record_found(self, node_id: bytes) -> bool:
        """Take a pong that another brought; return whether the peer was absent until now."""
        absent = self.is_absent(node_id)
        history = self._histories.setdefault(node_id, _History())
        history.unfound = 0
        history.found = True
        return absent

    def record_wrong(self, node_id: bytes, at_ms: int) -> None:
        """Count an answer that was plainly wrong."""
        self._histories.setdefault(node_id, _History()).bucket(at_ms).wrong += 1

    def get_stats(self, node_id: bytes) -> AvailabilityStats:
        """Return what is known of a peer; zeros where nothing is."""
        history = self._histories.get(node_id, _History())
        if history.stats is None:
            history.stats = _stats(history)
        return history.stats

    def state(self, node_id: bytes) -> State:
        """Return the peer's state; unknown before the first probe of this run."""
        return state_after(self._histories.get(node_id, _History()).run_misses)

    def is_up(self, node_id: bytes) -> bool:
        """Return whether the peer answered in this run and has not gone down since."""
        history = self._histories.get(node_id)
        return history is not None and history.up

    def is_found(self, node_id: bytes) -> bool:
        """Return whether a peer is silent here, and others brought a pong of it last."""
        return self._histories.get(node_id, _History()).found

    def is_absent(self, node_id: bytes) -> bool:
        """Return whether nobody has found the peer for WINDOWS_TO_ABSENT windows that count."""
        return self._histories.get(node_id, _History()).unfound >= WINDOWS_TO_ABSENT

    def timeout_ms(self, node_id: bytes, most_ms: int) -> int:
        """Return how long to wait for the next answer of a peer; at most so long."""
        history = self._histories.get(node_id, _History())
        return timeout_ms(history.times, history.run_misses or 0, most_ms)

    def forget(self, node_id: bytes) -> list[int]:
        """Drop everything about a peer; return the numbers of its buckets."""
        history = self._histories.pop(node_id, _History())
        return sorted(history.buckets.keys() | history.changed)

    def changes(self, node_id: bytes) -> list[tuple[int, bytes | None]]:
        """Return what is to be kept of a peer since the last call; None: to be dropped."""
        history = self._histories[node_id]
        numbers, history.changed = sorted(history.changed), set()
        found = ((number, history.buckets.get(number)) for number in numbers)
        return [(number, None if one is None else one.to_bytes()) for number, one in found]

    def restore(self, node_id: bytes, number: int, raw: bytes) -> None:
        """Take a bucket of an earlier run, the oldest first.

        It says nothing about the peer's present state.

        Raises:
            StoreDamaged: not what `changes` gives.
        """
        damaged = errors.StoreDamaged(
            "the results of earlier probes are damaged, or of a newer format",
            hint="the table 'health/probe/' of the state database may be deleted",
        )
        try:
            value = encoding.decode(raw)
        except (errors.PeerError, errors.LimitError):
            raise damaged from None
        match value:
            case {
                "v": 1,
                "answered": int(answered),
                "missed": int(missed),
                "wrong": int(wrong),
                "seen": int() | None as seen_ms,
            } if min(answered, missed, wrong) >= 0:
                bucket = Bucket(answered, missed, wrong, seen_ms)
            case _:
                raise damaged
        history = self._histories.setdefault(node_id, _History())
        history.turn(number)
        history.buckets[number] = bucket


def _stats(history: _History) -> AvailabilityStats:
    buckets = history.buckets
    answered = sum(bucket.answered for bucket in buckets.values())
    probes = answered + sum(bucket.missed for bucket in buckets.values())
    return AvailabilityStats(
        availability=answered * limits.PPM // probes if probes else 0,
        avg_response_ms=sum(history.times) // len(history.times) if history.times else 0,
        probes=probes,
        answered=answered,
        wrong=sum(bucket.wrong for bucket in buckets.values()),
        trust_ppm=trust_ppm({history.newest - n: one.wrong for n, one in buckets.items()}),
        last_seen_ms=max(
            (one.seen_ms for one in buckets.values() if one.seen_ms is not None), default=None
        ),
    )
