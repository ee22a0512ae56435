"""What the allocation of slots needs of the market."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from xsc.terms.quote import Kind
from xsc.terms.slot import EntitlementKey, Window


class SlotRoom(Protocol):
    """What this node can grant, as one pass over its slots takes it."""

    def left(self, kind: Kind, window: Window) -> int:
        """Return the steps that can be granted over a window, beside what is drawn."""

    def take(self, kind: Kind, window: Window, steps: int) -> None:
        """Count steps as granted over a window."""


class Program(Protocol):
    """The allocation program, which serves in place of the direct call of the rule."""

    fault: str
    """Why it does not serve, or ''."""

    def run(self, given: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return its outputs; None where it fails."""

    def writes(self) -> Mapping[str, bytes | None]:
        """Return what is written with them, by path of the own space."""

    def wrote(self) -> None:
        """Go on from what was written."""

    def undo(self, fault: str = "") -> None:
        """Begin again from what was written last; `fault` says why it was not written."""


class Market(Protocol):
    """Capacity, what was drawn of it, and credit."""

    def free(self) -> Mapping[Kind, int]:
        """Return what is neither used nor reserved now."""

    def room(self, free: Mapping[Kind, int], now_ms: int) -> SlotRoom:
        """Return what so much has room for."""

    def drawn(self) -> Mapping[EntitlementKey, int]:
        """Return the steps that leases have drawn of each entitlement, rounded up."""

    def pinned(self) -> Mapping[EntitlementKey, int]:
        """Return the same of those that are not cleared again yet."""

    def credit_micro(self, customer: bytes, takers: Collection[bytes]) -> int:
        """Return the micro-credits that a customer may still come to owe.

        It has an equal part of a credit that it shares with others of these takers.
        """
