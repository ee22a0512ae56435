"""What this node needs by default: room for what it stores and for what was refused.

Kept at `market/short` of the state database: what a put or a repair found no room for, and since
when leases have room for all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import RecordInvalid, StoreDamaged
from xsc.base.fields import take_int, take_list
from xsc.base.keyvalue import KeyValue
from xsc.base.limits import SHORT_FILLED_MS, SHORT_MS, SHORTS_MAX
from xsc.identity.context import Context
from xsc.market.lease_store import LeaseStore
from xsc.market.room import undrawn
from xsc.terms.slot import Entitlement, NeedSlot

_SHORT: Final = b"market/short"


@dataclass(frozen=True, slots=True)
class Short:
    """Room that was refused: so many bytes at so many providers each."""

    size_bytes: int
    providers: int
    since_ms: int


class DefaultNeed:
    """Remembers what providers refused, and sums up what they hold.

    Args:
        context: of the node.
        store: its leases.
        state: keeps what was refused.
        needs: returns what this node says that it needs.
        offers: returns what others offer to these needs.
        on_change: called when any of it may have changed.
    """

    def __init__(
        self,
        context: Context,
        store: LeaseStore,
        state: KeyValue,
        *,
        needs: Callable[[], Sequence[NeedSlot]],
        offers: Callable[[], Sequence[Entitlement]],
        on_change: Callable[[], None],
    ) -> None:
        self._needs = needs
        self._offers = offers
        self._clock = context.clock
        self._store = store
        self._state = state
        self._shorts: dict[int, Short] = {}
        self._filled_ms: int | None = None
        """Since when leases have room for all that was refused."""
        self.on_change = on_change

    def load(self) -> None:
        """Read what was kept.

        Raises:
            StoreDamaged: it is not what was written.
        """
        raw = self._state.get(_SHORT)
        if raw is None:
            return
        try:
            rows = decode(raw)
            if not isinstance(rows, dict):
                raise RecordInvalid("what was refused is of no known form")
            for row in take_list(rows, "shorts"):
                if not isinstance(row, dict):
                    raise RecordInvalid("what was refused is of no known form")
                short = Short(
                    take_int(row, "size_bytes"),
                    take_int(row, "providers"),
                    take_int(row, "since_ms"),
                )
                self._shorts[short.size_bytes] = short
            if "filled_ms" in rows:
                self._filled_ms = take_int(rows, "filled_ms")
        except RecordInvalid as fault:
            raise StoreDamaged(f"what was refused cannot be read: {fault.message}") from fault

    # What is held

    def held(self) -> Counter[bytes]:
        """Return by provider the bytes that it holds for this node.

        What lies under a lease of another need that is stated is that need's. What was handed out
        is not held: a put that failed would need it.
        """
        others = {need.slot_id for need in self._needs() if not need.standing}
        found = Counter[bytes]()
        for entry in self._store.all("customer"):
            is_others = entry.draw is not None and entry.draw.need in others
            if entry.terms.kind == "storage" and entry.denial is None and not is_others:
                found[entry.peer] += entry.use.held_bytes
        return found

    def rates_at(self, provider: bytes) -> list[bytes]:
        """Return the leases there of the default need of compute, the largest first."""
        standing = {need.slot_id for need in self._needs() if need.standing}
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
        """Remember that so many more providers were to hold that much, and had no room."""
        self.tidy()
        known = self._shorts.get(size_bytes)
        now_ms = self._clock.now_ms()
        short = Short(size_bytes, providers, now_ms if known is None else known.since_ms)
        if short != known:
            self._shorts[size_bytes] = short
            while len(self._shorts) > SHORTS_MAX:
                del self._shorts[
                    min(self._shorts.values(), key=lambda each: each.since_ms).size_bytes
                ]
            self._keep()

    def placed(self, size_bytes: int) -> None:
        """Forget a refusal: what was to be held found its room."""
        if self._shorts.pop(size_bytes, None) is not None:
            self._keep()

    def withdraw(self) -> None:
        """Forget all refusals."""
        self._shorts.clear()
        self._filled_ms = None
        self._keep()

    def tidy(self) -> None:
        """Forget what was refused for SHORT_MS, or had its room for SHORT_FILLED_MS.

        It is not forgotten within SHORT_FILLED_MS of a promise of room that others still hold.
        """
        now_ms = self._clock.now_ms()
        soon = now_ms - SHORT_MS + SHORT_FILLED_MS // 2
        ending = [each for each in self._shorts.values() if each.since_ms <= soon]
        if ending and self._is_promised(now_ms):
            since_ms = now_ms - SHORT_MS + SHORT_FILLED_MS
            for each in ending:
                self._shorts[each.size_bytes] = replace(each, since_ms=since_ms)
            self._keep()
        before = self._filled_ms, len(self._shorts)
        self._shorts = {each.size_bytes: each for each in self._open()}
        filled_ms = now_ms if self._filled_ms is None else self._filled_ms
        self._filled_ms = filled_ms if self._is_filled() else None
        if self._filled_ms is not None and now_ms - filled_ms >= SHORT_FILLED_MS:
            self.withdraw()
        elif before != (self._filled_ms, len(self._shorts)):
            self._keep()

    def short(self) -> tuple[int, int]:
        """Return the bytes that were refused at a provider, and at how many."""
        shorts = self._open()
        size_bytes = sum(each.size_bytes for each in shorts)
        return size_bytes, max((each.providers for each in shorts), default=1)

    def _open(self) -> list[Short]:
        """Return what was refused, and not too long ago."""
        since_ms = self._clock.now_ms() - SHORT_MS
        return [each for each in self._shorts.values() if each.since_ms > since_ms]

    def _is_filled(self) -> bool:
        """Return whether cleared leases have room for all that was refused."""
        size_bytes, providers = self.short()
        spare = Counter[bytes]()
        for entry in self._store.all("customer"):
            if entry.terms.cleared and entry.terms.kind == "storage" and entry.denial is None:
                spare[entry.peer] += max(0, entry.use.level - entry.use.held_bytes)
        return size_bytes > 0 and sum(room >= size_bytes for room in spare.values()) >= providers

    def _is_promised(self, now_ms: int) -> bool:
        """Return whether a provider grants more than its part, and no lease has that yet."""
        parts = {need.slot_id: dict(need.parts) for need in self._needs() if need.standing}
        drawn = self._store.drawn("customer", now_ms)
        return any(
            each.need in parts
            and each.quantity > parts[each.need].get(each.provider, 0)
            and undrawn(each, drawn) > 0
            for each in self._offers()
        )

    def _keep(self) -> None:
        rows: list[Value] = [
            {"size_bytes": each.size_bytes, "providers": each.providers, "since_ms": each.since_ms}
            for each in self._shorts.values()
        ]
        kept: dict[str, Value] = {"shorts": rows}
        if self._filled_ms is not None:
            kept["filled_ms"] = self._filled_ms
        self._state.write([(_SHORT, encode(kept) if rows else None)], sync=False)
        self.on_change()
