"""Decides which needs a slot can serve: time, location, kind and filters.

`mismatch` decides one pair, and says why. What is not stated matches: a slot without a location
serves any location, and a need without a window is met at any time. Filters are demands, and must
be met by what the other side states; an unknown filter refuses. docs/design/slots.md, M1 to M4.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from xsc.base.errors import ArgumentInvalid
from xsc.base.ids import node_id_from_text, to_text
from xsc.terms.quote import Kind, Tier
from xsc.terms.slot import AvailabilitySlot, NeedSlot, Slot, Window

_RANKS: Final[Mapping[str, int]] = {"open": 0, "one_way": 1, "mutual": 2}


@dataclass(frozen=True, slots=True)
class Party:
    """One side of a match, as the other side sees it."""

    node: bytes
    tier: Tier
    """How the node that sets the filter stands to this one."""


FILTERS: Final[Mapping[str, Callable[[str, Party, Slot], bool]]] = {
    "node": lambda wanted, party, _: to_text(party.node) == wanted,
    "owner": lambda wanted, _, slot: slot.owner.casefold() == wanted.casefold(),
    "location": lambda wanted, _, slot: slot.location.casefold() == wanted.casefold(),
    "tier": lambda wanted, party, _: _RANKS[party.tier] >= _RANKS.get(wanted, len(_RANKS)),
}
"""Each says whether the other side meets what is wanted. `tier` is the least tier."""


def check_filters(filters: Iterable[tuple[str, str]]) -> None:
    """Refuse own filters that no other side could ever meet.

    Raises:
        ArgumentInvalid: a name is none of `FILTERS`, or a value is one that nobody has.
    """
    for name, wanted in filters:
        if name not in FILTERS:
            raise ArgumentInvalid(
                f"there is no filter '{name}'", hint=f"the filters are {', '.join(FILTERS)}"
            )
        if name == "tier" and wanted not in _RANKS:
            raise ArgumentInvalid(
                f"filter tier: '{wanted}' is no tier", hint=f"the tiers are {', '.join(_RANKS)}"
            )
        if name == "node":
            node_id_from_text(wanted)
        elif not wanted:
            raise ArgumentInvalid(
                f"filter {name}: an empty text matches nothing", hint=f"write {name}=NAME"
            )


def _unmet(slot: Slot, other: Slot, party: Party) -> str | None:
    """Return the first filter of a slot that the other side does not meet, if any.

    An unknown filter is met by nobody.
    """
    for name, wanted in slot.filters:
        if name not in FILTERS or not FILTERS[name](wanted, party, other):
            return f"{name}={wanted}"
    return None


def windows_of(slot: Slot) -> tuple[Window, ...]:
    """Return the windows of a slot; a need without any is met at any time until it ends."""
    return slot.windows or ((0, slot.valid_until_ms),)


_start_of, _end_of = itemgetter(0), itemgetter(1)


def places(window: Window, windows: Sequence[Window]) -> Window:
    """Return the place of the first of windows that a window overlaps, and the one after the last.

    The windows rise; where it overlaps none, the first place is not before the other one.
    """
    return (
        bisect_right(windows, window[0], key=_end_of),
        bisect_left(windows, window[1], key=_start_of),
    )


def overlap(window: Window, windows: Sequence[Window]) -> Window | None:
    """Return the time from the first common moment of a window and others, which rise, to the last.

    None where no time of any length is common.
    """
    first, after = places(window, windows)
    if first >= after:
        return None
    return max(window[0], windows[first][0]), min(window[1], windows[after - 1][1])


def piece(window: Window, windows: Sequence[Window], *, kind: Kind, now_ms: int) -> Window | None:
    """Return when what is granted of a window can be leased: it serves windows, which rise.

    Of compute it is the first common piece that has not ended, or the last one of all. Windows that
    touch make one piece. What is stored does not go between two pieces, so of storage it is all of
    the time from the first to the last.
    """
    whole = overlap(window, windows)
    if kind == "storage" or whole is None:
        return whole
    first, after = places(window, windows)
    start, end = whole[0], windows[first][1]
    for begins, ends in windows[first + 1 : after]:
        if begins > end:
            if end > now_ms:
                break
            start = begins
        end = ends
    return start, min(end, whole[1])


def _meet(left: Sequence[Window], right: Sequence[Window]) -> bool:
    """Return whether any two windows overlap; both sides rise."""
    few, many = sorted((left, right), key=len)
    return any(overlap(window, many) is not None for window in few)


def mismatch(
    slot: AvailabilitySlot, provider: Party, need: NeedSlot, customer: Party
) -> str | None:
    """Return why a slot can serve a need of another node in none of its windows; None if it can.

    Of several reasons it is the first: kind, node, location, filters of the slot and of the need,
    time.
    """
    if slot.kind != need.kind:
        return f"the slot offers {slot.kind}, and the need is of {need.kind}"
    if provider.node == customer.node:
        return "a node does not serve itself"
    if slot.location and need.location and slot.location.casefold() != need.location.casefold():
        return f"the slot is at '{slot.location}', and the need at '{need.location}'"
    if found := _unmet(slot, need, customer):
        return f"the slot serves only {found}, which the customer is not"
    if found := _unmet(need, slot, provider):
        return f"the need takes only {found}, which the provider is not"
    if not _meet(slot.windows, windows_of(need)):
        return "no window of the slot overlaps one of the need"
    return None
