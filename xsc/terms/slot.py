"""Capacity slots and need slots: what a node offers and needs, ahead of use (docs/design/slots.md).

A node publishes all of its slots and needs as one `Commitment`. The record of its space is what
signs, numbers and dates it. `Entitlement` is what a need was granted of a slot; it is not sent.

A quantity is a level, in steps: bytes held at any one moment, in steps of SLOT_STEP_BYTES, or fuel
steps a second, in steps of SLOT_STEP_FUEL. Levels add up over any moment. Prices:
`xsc.terms.pricing`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeAlias

from pydantic import Field, model_validator

from xsc.base import limits, units
from xsc.identity.envelope import Count, Id32, Record
from xsc.terms.pricing import Ladder, slot_amount
from xsc.terms.quote import Kind, Label, SlotId, Tier

SLOT_FILTERS_MAX = 8

STEPS_MAX: Final = 2**33 - 1
Steps = Annotated[int, Field(gt=0, le=STEPS_MAX)]
"""Of a level. In bytes, or in fuel steps a minute, it is below 2^63."""
DivisionRule = Literal["weighted-uniform", "proportional"]
STEP: Final[dict[Kind, int]] = {"storage": limits.SLOT_STEP_BYTES, "compute": limits.SLOT_STEP_FUEL}
"""What a step of a level is: bytes, or fuel steps a second."""
Window: TypeAlias = tuple[int, int]
"""From a moment to another one, which is not part of it; milliseconds of UTC."""


class EntitlementKey(NamedTuple):
    """What names an entitlement among all: a provider can give its slot the id of another's."""

    provider: bytes
    slot: bytes
    customer: bytes
    need: bytes


def check_rising(what: str, items: Iterable[Any]) -> None:
    """Check that each of some things is above the one before.

    Raises:
        ValueError: one is not.
    """
    if any(one >= other for one, other in pairwise(items)):
        raise ValueError(f"the {what} do not rise")


def _check_amount(kind: Kind, quantity: int, price: int) -> None:
    if slot_amount(kind, price, quantity) > limits.AMOUNT_MAX:
        raise ValueError("quantity times price is more than any amount")


class Slot(Record):
    """What offers and needs have in common."""

    slot_id: SlotId
    """Random; kept when the slot is edited."""
    kind: Kind
    quantity: Steps
    windows: Annotated[tuple[tuple[Count, Count], ...], Field(max_length=1)] = ()
    """The present or next one; without any it is there until it ends."""
    recurrence: Annotated[str, Field(max_length=192)] = ""
    """As the owner said it, with its zone: what follows the window; empty where nothing does."""
    location: Label = ""
    """Failure domain: the site; empty where nothing is said."""
    owner: Label = ""
    """Failure domain: who runs it; empty where nothing is said."""
    filters: Annotated[tuple[tuple[Label, Label], ...], Field(max_length=SLOT_FILTERS_MAX)] = ()
    """What the other side must be, by rising names (`xsc.allocation.matching`)."""
    valid_until_ms: Count

    def next_window(self, now_ms: int) -> Window | None:
        """Return the window; None once it has ended."""
        (window,) = self.windows or ((0, self.valid_until_ms),)
        return window if now_ms < window[1] else None

    def window_at(self, now_ms: int) -> Window | None:
        """Return the window if a moment is in it."""
        window = self.next_window(now_ms)
        return window if window is not None and window[0] <= now_ms else None

    @model_validator(mode="after")
    def _is_well_formed(self) -> Self:
        for start, end in self.windows:
            if end <= start:
                raise ValueError("a window has no length: its end is not after its start")
            if end > self.valid_until_ms:
                raise ValueError("a window ends after the slot does")
        if self.kind == "storage" and self.recurrence:
            raise ValueError("storage has one window, with a start and an end")
        check_rising("filters", ["", *(name for name, _ in self.filters)])
        return self


class AvailabilitySlot(Slot):
    """Capacity that a node offers, at a price ladder that does not fall."""

    price_mutual: Count
    """For mutually recognised peers (p1)."""
    price_one_way: Count
    """For peers that the provider recognises (p2)."""
    reserve: Count
    """What everybody else pays at least."""
    rule: DivisionRule = "weighted-uniform"
    """How a tier is divided."""
    standing: bool = False
    """Whether it is one by default: its node keeps quantity and prices at what it has and asks."""

    @property
    def ladder(self) -> Ladder:
        """What it asks of each tier."""
        return Ladder(self.price_mutual, self.price_one_way, self.reserve)

    @model_validator(mode="after")
    def _is_an_offer(self) -> Self:
        if not self.price_mutual <= self.price_one_way <= self.reserve:
            raise ValueError("the price ladder must not fall: mutual <= one-way <= reserve")
        _check_amount(self.kind, self.quantity, self.reserve)
        return self


def _of(pairs: tuple[tuple[bytes, int], ...], provider: bytes, default: int) -> int:
    """Return what rising pairs have for a provider."""
    # A pass asks for each window, and there may be as many as peers.
    place = bisect_left(pairs, (provider,))
    if place < len(pairs) and pairs[place][0] == provider:
        return pairs[place][1]
    return default


class NeedSlot(Slot):
    """Capacity that a node needs."""

    price_max: Count
    """What the node pays at most."""
    parts: Annotated[tuple[tuple[Id32, Steps], ...], Field(max_length=limits.PEERS_MAX)] = ()
    """Steps of the quantity that are of one provider alone, by rising ids; the rest is open."""
    spread: Annotated[int, Field(ge=1, le=limits.PEERS_MAX)] = 1
    """Over how many providers the open rest goes: none has more than its share of it."""
    standing: bool = False
    """Whether it is one by default: its node keeps it at what it stores, runs, or lacks."""
    number: Annotated[int, Field(gt=0, lt=2**63)] = 1
    """Rises when its owner changes quantity, parts, price or times; caps are of one number."""
    caps: Annotated[tuple[tuple[Id32, Count], ...], Field(max_length=limits.PEERS_MAX)] = ()
    """What the need still accepts of a provider, by rising ids. Within a number it only falls."""

    @model_validator(mode="after")
    def _is_a_need(self) -> Self:
        check_rising("providers of the caps", [provider for provider, _ in self.caps])
        check_rising("providers of the parts", [provider for provider, _ in self.parts])
        if any(cap >= self.quantity for _, cap in self.caps):
            raise ValueError("a cap is not below the quantity")
        if self.open_steps < 0:
            raise ValueError("the parts are more than the quantity")
        _check_amount(self.kind, self.quantity, self.price_max)
        return self

    @property
    def open_steps(self) -> int:
        """What is of no one provider alone."""
        return self.quantity - sum(steps for _, steps in self.parts)

    def part(self, provider: bytes) -> int:
        """Return what the need has for a provider alone."""
        return _of(self.parts, provider, 0)

    def most(self, provider: bytes) -> int:
        """Return what the need has for a provider: its part, and a share of the open rest."""
        return self.part(provider) + units.ceil_div(self.open_steps, self.spread)

    def cap(self, provider: bytes) -> int:
        """Return what the need accepts of a provider."""
        return min(self.most(provider), _of(self.caps, provider, self.quantity))


class Commitment(Record):
    """Everything that a node offers and needs; the one value at `allocation/commitment`."""

    slots: Annotated[tuple[AvailabilitySlot, ...], Field(max_length=limits.SLOTS_MAX)] = ()
    needs: Annotated[tuple[NeedSlot, ...], Field(max_length=limits.NEEDS_MAX)] = ()
    standing_made: Annotated[tuple[Kind, ...], Field(max_length=len(STEP))] = ()
    """Of which kinds there has been a standing slot, by rising kinds: none is made again."""
    damping_ppm: Annotated[int, Field(ge=0, le=limits.PPM)] = limits.PPM
    damping_history: Annotated[
        tuple[tuple[Count, Count], ...], Field(max_length=limits.DAMPING_HISTORY_MAX)
    ] = ()
    """What was granted beyond the needs, and when, in milliseconds; the oldest first."""

    @model_validator(mode="after")
    def _ids_rise(self) -> Self:
        slots, needs = ([each.slot_id for each in of] for of in (self.slots, self.needs))
        check_rising("ids of the slots", slots)
        check_rising("ids of the needs", needs)
        if not set(slots).isdisjoint(needs):
            raise ValueError("a slot and a need have one id")
        check_rising("kinds of standing slots", self.standing_made)
        return self

    @property
    def both(self) -> tuple[AvailabilitySlot | NeedSlot, ...]:
        """The slots and the needs."""
        return self.slots + self.needs

    @classmethod
    def read(cls, value: bytes) -> Self:
        """Return the commitment that a space has as its value.

        Raises:
            TooLarge, RecordInvalid: it is none.
        """
        return cls.from_bytes(value, size_max=limits.COMMITMENT_BYTES_MAX)


@dataclass(frozen=True, slots=True)
class Entitlement:
    """Capacity of one window of a slot, kept free for one customer at a price."""

    slot: bytes
    window: Window
    """When it may be drawn: what the slot's window and the need's have in common."""
    provider: bytes
    customer: bytes
    need: bytes
    kind: Kind
    quantity: int
    slot_quantity: int
    """Of the whole slot."""
    tier: Tier
    price: int
    """Micro-credits a GiB and hour, or a Gfuel."""
    granted_ms: int
    until_ms: int
    """The end of the window, or when it lapses undrawn, whichever is first."""
    clearing: bytes
    """Id of the clearing record that grants it."""

    @property
    def key(self) -> EntitlementKey:
        """What names it among all."""
        return EntitlementKey(self.provider, self.slot, self.customer, self.need)
