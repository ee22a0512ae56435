"""What this node needs by default: room for what it stores and for what was refused.

Kept at `market/short` of the state database: what a put or a repair found no room for, and since
when leases have room for all of it.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Final

from xsc.base.errors import RecordInvalid, StoreDamaged
from xsc.base.keyvalue import KeyValue
from xsc.base.limits import SHORT_FILLED_MS, SHORT_MS, SHORTS_MAX
from xsc.identity.envelope import Count, Record
from xsc.market.lease_store import MarketNode
from xsc.market.room import undrawn

_SHORT: Final = b"market/short"


class Short(Record):
    """Room that was refused: so many bytes at so many providers each."""

    KIND: ClassVar[str] = "short"

    size_bytes: Count
    providers: Count
    until_ms: Count
    """When it is forgotten."""


class Shorts(Record):
    """All room that was refused."""

    KIND: ClassVar[str] = "shorts"

    shorts: tuple[Short, ...] = ()
    """One of a size."""
    filled_ms: Count | None = None
    """Since when leases have room for all of it."""


class DefaultNeed:
    """Remembers what providers refused, and sums up what they hold."""

    def __init__(self, node: MarketNode, state: KeyValue) -> None:
        self._clock = node.clock
        self._store = node.store
        self._ports = node.ports
        self._state = state
        self._kept = Shorts()

    def load(self) -> None:
        """Read what was kept.

        Raises:
            StoreDamaged: it is not what was written.
        """
        raw = self._state.get(_SHORT)
        try:
            self._kept = Shorts() if raw is None else Shorts.from_bytes(raw)
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
            is_others = entry.draw is not None and entry.draw.need in others
            if entry.terms.kind == "storage" and entry.denial is None and not is_others:
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
            and entry.draw is not None
            and entry.draw.need in standing
            and entry.denial is None
            and not entry.is_over(now_ms)
        ]
        found.sort(key=lambda entry: -entry.use.level)
        return [entry.terms.lease_id for entry in found]

    # What was refused

    def refused(self, size_bytes: int, providers: int) -> None:
        """Remember that so many more providers were to hold that much, and had no room.

        Tried again it needs no more, and no less: what it found room for since counts for it.
        """
        self.tidy()
        known = {each.size_bytes: each for each in self._kept.shorts}
        until_ms = self._clock.now_ms() + SHORT_MS
        if size_bytes in known:
            until_ms = known[size_bytes].until_ms
            providers = max(providers, known[size_bytes].providers)
        known[size_bytes] = Short(size_bytes=size_bytes, providers=providers, until_ms=until_ms)
        newest = sorted(known.values(), key=lambda each: each.until_ms)[-SHORTS_MAX:]
        self._keep(tuple(newest), self._kept.filled_ms)

    def placed(self, size_bytes: int) -> None:
        """Forget a refusal: what was to be held found its room."""
        left = tuple(each for each in self._kept.shorts if each.size_bytes != size_bytes)
        self._keep(left, self._kept.filled_ms)

    def withdraw(self) -> None:
        """Forget all refusals."""
        self._keep((), None)

    def tidy(self) -> None:
        """Forget what was refused for SHORT_MS, or had its room for SHORT_FILLED_MS.

        It is not forgotten within SHORT_FILLED_MS of a promise of room that others still hold.
        """
        now_ms, shorts = self._clock.now_ms(), self._kept.shorts
        ending = [each for each in shorts if each.until_ms <= now_ms + SHORT_FILLED_MS // 2]
        if ending and self._is_promised(now_ms):
            longer = {"until_ms": now_ms + SHORT_FILLED_MS}
            shorts = tuple(e.model_copy(update=longer) if e in ending else e for e in shorts)
        shorts = tuple(each for each in shorts if each.until_ms > now_ms)
        filled_ms = None
        if self._is_filled(*_summed(shorts)):
            filled_ms = now_ms if self._kept.filled_ms is None else self._kept.filled_ms
            if now_ms - filled_ms >= SHORT_FILLED_MS:
                shorts, filled_ms = (), None
        self._keep(shorts, filled_ms)

    def short(self) -> tuple[int, int]:
        """Return the bytes that were refused at a provider, and at how many."""
        now_ms = self._clock.now_ms()
        return _summed(tuple(each for each in self._kept.shorts if each.until_ms > now_ms))

    def _is_filled(self, size_bytes: int, providers: int) -> bool:
        """Return whether cleared leases have room for all that was refused."""
        spare = Counter[bytes]()
        for entry in self._store.all("customer"):
            if entry.terms.cleared and entry.terms.kind == "storage" and entry.denial is None:
                spare[entry.peer] += max(0, entry.use.level - entry.use.held_bytes)
        return size_bytes > 0 and sum(room >= size_bytes for room in spare.values()) >= providers

    def _is_promised(self, now_ms: int) -> bool:
        """Return whether a provider grants more than its part, and no lease has that yet."""
        parts = {need.slot_id: dict(need.parts) for need in self._ports.needs() if need.standing}
        drawn = self._store.drawn("customer", now_ms)
        return any(
            each.need in parts
            and each.quantity > parts[each.need].get(each.provider, 0)
            and undrawn(each, drawn) > 0
            for each in self._ports.received()
        )

    def _keep(self, shorts: tuple[Short, ...], filled_ms: int | None) -> None:
        kept = Shorts(shorts=shorts, filled_ms=filled_ms)
        if kept != self._kept:
            self._kept = kept
            self._state.write([(_SHORT, kept.to_bytes() if shorts else None)], sync=False)
            self._ports.on_need()


def _summed(shorts: tuple[Short, ...]) -> tuple[int, int]:
    size_bytes = sum(each.size_bytes for each in shorts)
    return size_bytes, max((each.providers for each in shorts), default=1)
