"""Decides which needs a slot can serve: time, location, kind and filters.

`mismatch` decides one pair at a moment, and says why. What is not stated matches: a slot without a
location serves any location, and a need without a window is met at any time. Filters are demands,
and must be met by what the other side states; an unknown filter refuses. docs/design/slots.md, M1
to M4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from xsc.allocation.published import Published, standing
from xsc.base import errors, ids
from xsc.terms.slot import AvailabilitySlot, NeedSlot, Slot

_RANKS: Final[Mapping[str, int]] = {"open": 0, "one_way": 1, "mutual": 2}


FILTERS: Final[Mapping[str, Callable[[str, Slot, Published, Published], bool]]] = {
    "node": lambda wanted, _slot, _by, other: ids.to_text(other.node) == wanted,
    "owner": lambda wanted, slot, *_: slot.owner.casefold() == wanted.casefold(),
    "location": lambda wanted, slot, *_: slot.location.casefold() == wanted.casefold(),
    "tier": lambda wanted, _slot, by, other: (
        _RANKS[standing(by, other)[0]] >= _RANKS.get(wanted, len(_RANKS))
    ),
}
"""Each says whether the other side, of that slot or need, meets what somebody wants of it. `tier`
is the least tier on which it stands there."""


def check_filters(filters: Iterable[tuple[str, str]]) -> None:
    """Refuse own filters that no other side could ever meet.

    Raises:
        ArgumentInvalid: a name is none of `FILTERS`, or a value is one that nobody has.
    """
    for name, wanted in filters:
        if name not in FILTERS:
            raise errors.ArgumentInvalid(
                f"there is no filter '{name}'", hint=f"the filters are {', '.join(FILTERS)}"
            )
        if name == "tier" and wanted not in _RANKS:
            raise errors.ArgumentInvalid(
                f"filter tier: '{wanted}' is no tier", hint=f"the tiers are {', '.join(_RANKS)}"
            )
        if name == "node":
            ids.node_id_from_text(wanted)
        elif not wanted:
            raise errors.ArgumentInvalid(
                f"filter {name}: an empty text matches nothing", hint=f"write {name}=NAME"
            )


def _unmet(slot: Slot, other: Slot, by: Published, party: Published) -> str | None:
    """Return the first filter of somebody's slot that the other side does not meet, if any.

    An unknown filter is met by nobody.
    """
    for name, wanted in slot.filters:
        if name not in FILTERS or not FILTERS[name](wanted, other, by, party):
            return f"{name}={wanted}"
    return None


def mismatch(
    slot: AvailabilitySlot, provider: Published, need: NeedSlot, customer: Published, now_ms: int
) -> str | None:
    """Return why a slot does not serve a need of another node at a moment; None if it does.

    Of several reasons it is the first: kind, node, location, filters of the slot and of the need,
    time.
    """
    if slot.kind != need.kind:
        return f"the slot offers {slot.kind}, and the need is of {need.kind}"
    if provider.node == customer.node:
        return "a node does not serve itself"
    if slot.location and need.location and slot.location.casefold() != need.location.casefold():
        return f"the slot is at '{slot.location}', and the need at '{need.location}'"
    if found := _unmet(slot, need, provider, customer):
        return f"the slot serves only {found}, which the customer is not"
    if found := _unmet(need, slot, customer, provider):
        return f"the need takes only {found}, which the provider is not"
    if slot.window_at(now_ms) is None:
        return "the slot has no window now"
    if need.window_at(now_ms) is None:
        return "the need has no window now"
    return None
