"""Whether a peer is up, and how it has answered so far.

Two questions, two answers: the *state* follows from the last probes of this
run and says whom to ask now; the *availability* follows from the kept results,
also those of earlier runs, and says how far to rely on a peer.

This module only counts. `xsc.health.service` sends the probes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import LimitError, PeerError, StoreDamaged
from xsc.base.limits import MISSES_TO_DOWN, PPM, PROBES_KEPT

State: TypeAlias = Literal["unknown", "up", "suspect", "down"]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Probe:
    """The outcome of one probe."""

    at_ms: int
    available: bool
    response_ms: int
    """How long the answer took; 0 where none came."""


@dataclass(frozen=True, slots=True)
class AvailabilityStats:
    """What the kept probes of one peer add up to."""

    availability: int
    """Share of probes answered, parts per million; 0 before the first."""
    avg_response_ms: int
    """Mean time of the answered ones, rounded down; 0 before the first."""
    probes: int
    answered: int
    misses_in_row: int
    """Since the last answer."""
    last_seen_ms: int | None
    """When it answered last."""


@dataclass(slots=True)
class _History:
    probes: deque[Probe] = field(default_factory=lambda: deque(maxlen=PROBES_KEPT))
    misses_in_row: int = 0
    last_seen_ms: int | None = None
    run_misses: int | None = None
    """Misses in a row in this run; None before its first probe."""
    up: bool = False
    stats: AvailabilityStats | None = None
    """Of the probes, until the next one: readers ask for it several times a segment."""


def state_after(misses_in_row: int | None) -> State:
    """Return the state after so many misses in a row; None stands for no probe yet."""
    if misses_in_row is None:
        return "unknown"
    if misses_in_row == 0:
        return "up"
    return "down" if misses_in_row >= MISSES_TO_DOWN else "suspect"


class AvailabilityTester:
    """The results of probes, PROBES_KEPT of each peer."""

    def __init__(self) -> None:
        self._histories: dict[bytes, _History] = {}

    def record_result(
        self, node_id: bytes, available: bool, response_ms: int, at_ms: int
    ) -> bool | None:
        """Take a result; return whether the peer is up now if that changed, or None.

        A peer comes up with an answer and goes down with MISSES_TO_DOWN misses
        in a row: one lost message takes nobody down.
        """
        history = self._histories.setdefault(node_id, _History())
        history.probes.append(Probe(at_ms, available, response_ms if available else 0))
        history.stats = None
        if available:
            history.misses_in_row = history.run_misses = 0
            history.last_seen_ms = at_ms
        else:
            history.misses_in_row += 1
            history.run_misses = (history.run_misses or 0) + 1
        before, state = history.up, state_after(history.run_misses)
        if state == "suspect":
            return None
        history.up = state == "up"
        return history.up if history.up != before else None

    def get_stats(self, node_id: bytes) -> AvailabilityStats:
        """Return what is known of a peer; zeros where nothing is."""
        history = self._histories.get(node_id, _History())
        if history.stats is not None:
            return history.stats
        times = [probe.response_ms for probe in history.probes if probe.available]
        probes = len(history.probes)
        history.stats = AvailabilityStats(
            availability=len(times) * PPM // probes if probes else 0,
            avg_response_ms=sum(times) // len(times) if times else 0,
            probes=probes,
            answered=len(times),
            misses_in_row=history.misses_in_row,
            last_seen_ms=history.last_seen_ms,
        )
        return history.stats

    def state(self, node_id: bytes) -> State:
        """Return the peer's state; unknown before the first probe of this run."""
        return state_after(self._histories.get(node_id, _History()).run_misses)

    def is_up(self, node_id: bytes) -> bool:
        """Return whether the peer answered in this run and has not gone down since."""
        history = self._histories.get(node_id)
        return history is not None and history.up

    def forget(self, node_id: bytes) -> None:
        """Drop everything about a peer."""
        self._histories.pop(node_id, None)

    def to_bytes(self, node_id: bytes) -> bytes:
        """Return a peer's results for the store."""
        history = self._histories[node_id]
        probes: list[Value] = [
            [probe.at_ms, probe.available, probe.response_ms] for probe in history.probes
        ]
        return encode(
            {
                "v": _VERSION,
                "probes": probes,
                "misses": history.misses_in_row,
                "seen": history.last_seen_ms,
            }
        )

    def restore(self, node_id: bytes, raw: bytes) -> None:
        """Take results of an earlier run; they say nothing about the peer's present state.

        Raises:
            StoreDamaged: not what `to_bytes` gives.
        """
        damaged = StoreDamaged(
            "the results of earlier probes are damaged, or of a newer format",
            hint="the table 'health/' of the state database may be deleted",
        )
        try:
            value = decode(raw)
        except (PeerError, LimitError):
            raise damaged from None
        match value:
            case {
                "v": 1,
                "probes": list(probes),
                "misses": int(misses),
                "seen": int() | None as seen,
            }:
                history = _History(misses_in_row=misses, last_seen_ms=seen)
            case _:
                raise damaged
        history.probes.extend(_restored(probes, damaged))
        self._histories[node_id] = history


def _restored(probes: Iterable[Value], damaged: StoreDamaged) -> Iterable[Probe]:
    for probe in probes:
        match probe:
            case [int(at_ms), bool(available), int(response_ms)]:
                yield Probe(at_ms, available, response_ms)
            case _:
                raise damaged
