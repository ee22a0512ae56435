"""What this node needs by default: room for what it stores and for what was refused.

Kept at `market/short` of the state database: what a put or a repair found no room for.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Final, TypeAlias

from pydantic import Field

from xsc.base.errors import RecordInvalid, StoreDamaged
from xsc.base.keyvalue import KeyValue
from xsc.identity.envelope import Count, Record
from xsc.market import headroom, lease_store

SHORT_MS = 30 * 24 * 3_600_000
"""How long a node states that it needs room for what was refused."""
SHORT_FILLED_MS = 24 * 3_600_000
"""How long it keeps room for that once it has leased it."""
SHORTS_MAX = 64
"""Refusals for which it states a need."""

_SHORT: Final = b"market/short"
Short: TypeAlias = tuple[Count, Count, Count]
"""Bytes at a provider, at how many providers, and when it is forgotten; one of a size."""


class Shorts(Record):
    """All room that was refused."""

    shorts: Annotated[tuple[Short, ...], Field(max_length=SHORTS_MAX)] = ()


class DefaultNeed(lease_store.MarketPart):
    """Remembers what providers refused, and sums up what they hold."""

    def __init__(self, node: lease_store.MarketNode, state: KeyValue) -> None:
        super().__init__(node)
        self._state = state
        self._shorts: tuple[Short, ...] = ()

    def load(self) -> None:
        """Read what was kept.

        Raises:
            StoreDamaged: it is not what was written.
        """
        raw = self._state.get(_SHORT)
        try:
            self._shorts = () if raw is None else Shorts.from_bytes(raw).shorts
        except RecordInvalid as fault:
            raise StoreDamaged(f"what was refused cannot be read: {fault.message}") from fault

    # What is held

    def held(self) -> Counter[bytes]:
        """Return by provider the bytes that it holds for this node.

        What lies under a lease of another need that is stated is that need's. What was handed out
        is not held: a put that failed would need it.
        """
        others = {need.slot_id for need in self._ports.needs() if not need.standing}
        found = Counter[bytes]()
        for entry in self._store.all("customer"):
            if entry.use.denial is None and entry.terms.need not in others:
                found[entry.peer] += entry.use.held_bytes
        return found

    def rates_at(self, provider: bytes) -> list[bytes]:
        """Return the leases there of the default need of compute, the largest first."""
        standing = {need.slot_id for need in self._ports.needs() if need.standing}
        now_ms = self._clock.now_ms()
        found = [
            entry
            for entry in self._store.of("customer", provider)
            if entry.terms.kind == "compute"
            and entry.terms.need in standing
            and not entry.is_over(now_ms)
        ]
        return [entry.id for entry in sorted(found, key=lambda entry: -entry.use.level)]

    # What was refused

    def refused(self, size_bytes: int, providers: int) -> None:
        """Remember that so many more providers were to hold that much, and had no room.

        Tried again it needs no more, and no less: what it found room for since counts for it.
        """
        self.tidy()
        others = [each for each in self._shorts if each[0] != size_bytes]
        (known,) = [each for each in self._shorts if each[0] == size_bytes] or [(0, 0, 0)]
        until_ms = known[2] or self._clock.now_ms() + SHORT_MS
        self._keep([*others, (size_bytes, max(providers, known[1]), until_ms)][-SHORTS_MAX:])

    def placed(self, size_bytes: int) -> None:
        """Forget a refusal: what was to be held found its room."""
        self._keep([each for each in self._shorts if each[0] != size_bytes])

    def withdraw(self) -> None:
        """Forget all refusals."""
        self._keep([])

    def tidy(self) -> None:
        """Forget what was refused for SHORT_MS, or had its room for SHORT_FILLED_MS.

        While a provider promises room that others still hold, nothing is forgotten.
        """
        now_ms, kept = self._clock.now_ms(), []
        is_filled, is_promised = self._is_filled(), self._is_promised(now_ms)
        for size_bytes, providers, until_ms in self._shorts:
            end_ms = min(until_ms, now_ms + SHORT_FILLED_MS) if is_filled else until_ms
            if end_ms > now_ms or (is_promised and not is_filled):
                kept.append((size_bytes, providers, end_ms))
        self._keep(kept)

    def short(self) -> tuple[int, int]:
        """Return the bytes that were refused at a provider, and at how many."""
        providers = max((providers for _, providers, _ in self._shorts), default=1)
        return sum(size for size, _, _ in self._shorts), providers

    def _is_filled(self) -> bool:
        """Return whether cleared leases have room for all that was refused."""
        spare, (size_bytes, providers) = Counter[bytes](), self.short()
        for entry in self._store.all("customer"):
            if entry.terms.kind == "storage":
                spare[entry.peer] += max(0, entry.use.level - entry.use.held_bytes)
        return size_bytes > 0 and sum(room >= size_bytes for room in spare.values()) >= providers

    def _is_promised(self, now_ms: int) -> bool:
        """Return whether a provider grants more than its part, and no lease has that yet."""
        standing = {need.slot_id: need for need in self._ports.needs() if need.standing}
        drawn = self._store.drawn("customer", now_ms)
        return any(
            each.need in standing
            and each.quantity > standing[each.need].part(each.provider)
            and headroom.undrawn(each, drawn) > 0
            for each in self._ports.received()
        )

    def _keep(self, shorts: list[Short]) -> None:
        if tuple(shorts) != self._shorts:
            self._shorts = tuple(shorts)
            raw = Shorts(shorts=self._shorts).to_bytes() if shorts else None
            self._state.write([(_SHORT, raw)], sync=False)
            self._ports.on_need()
