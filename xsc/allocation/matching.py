"""Decides which needs a slot can serve: time, location, kind, filters and least quantity.

`mismatch` decides one pair, and says why. `Matches` keeps the pairs of one node's own slots and
needs while other nodes change theirs. What is not stated matches: a slot without a location
serves any location, and a need without a window is met at any time. Filters are demands, and must
be met by what the other side states; an unknown filter refuses. docs/design/slots.md, M1 to M6.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, Literal, TypeAlias

from xsc.base.errors import ArgumentInvalid
from xsc.base.ids import node_id_from_text, to_text
from xsc.terms.quote import Tier
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot, Slot, SlotKind, Window

_RANKS: Final[Mapping[str, int]] = {"open": 0, "one_way": 1, "mutual": 2}


@dataclass(frozen=True, slots=True)
class Party:
    """One side of a match, as the other side sees it."""

    node: bytes
    tier: Tier
    """How the node that sets the filter stands to this one."""


def _node(wanted: str, party: Party, _slot: Slot) -> bool:
    return to_text(party.node) == wanted


def _owner(wanted: str, _party: Party, slot: Slot) -> bool:
    return slot.owner.casefold() == wanted.casefold()


def _location(wanted: str, _party: Party, slot: Slot) -> bool:
    return slot.location.casefold() == wanted.casefold()


def _tier(wanted: str, party: Party, _slot: Slot) -> bool:
    return _RANKS[party.tier] >= _RANKS.get(wanted, len(_RANKS))


FILTERS: Final[Mapping[str, Callable[[str, Party, Slot], bool]]] = {
    "node": _node,
    "owner": _owner,
    "location": _location,
    "tier": _tier,
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


def unmet(slot: Slot, other: Slot, party: Party) -> tuple[str, str] | None:
    """Return the first filter of a slot that the other side does not meet, if any.

    An unknown filter is met by nobody.
    """
    for name, wanted in slot.filters:
        if name not in FILTERS or not FILTERS[name](wanted, party, other):
            return name, wanted
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


_FEW: Final = 8
"""Looking a window up takes about as long as passing so many by."""


def _meet(left: tuple[Window, ...], right: tuple[Window, ...]) -> bool:
    """Return whether any two windows overlap; both sides rise."""
    if len(left) > len(right):
        left, right = right, left
    if len(left) * _FEW < len(right):
        # The first window that ends after a start is the only one that can decide.
        for start, end in left:
            place = bisect_right(right, start, key=_end_of)
            if place < len(right) and right[place][0] < end:
                return True
        return False
    mine = theirs = 0
    while mine < len(left) and theirs < len(right):
        if left[mine][1] <= right[theirs][0]:
            mine += 1
        elif right[theirs][1] <= left[mine][0]:
            theirs += 1
        else:
            return True
    return False


Mismatch: TypeAlias = Literal[
    "kind", "node", "minimum", "location", "filter_of_slot", "filter_of_need", "time"
]
"""What keeps a slot from serving a need; "minimum" is that of either side."""


def mismatch(
    slot: AvailabilitySlot, provider: Party, need: NeedSlot, customer: Party
) -> Mismatch | None:
    """Return why a slot can serve a need of another node in none of its windows; None if it can.

    Of several reasons it is the first, in the order of `Mismatch`.
    """
    if slot.kind != need.kind:
        return "kind"
    if provider.node == customer.node:
        return "node"
    if slot.quantity < need.quantity_min or need.quantity < slot.quantity_min:
        return "minimum"
    if slot.location and need.location and slot.location.casefold() != need.location.casefold():
        return "location"
    if unmet(slot, need, customer) is not None:
        return "filter_of_slot"
    if unmet(need, slot, provider) is not None:
        return "filter_of_need"
    return None if _meet(slot.windows, windows_of(need)) else "time"


def match(slot: AvailabilitySlot, provider: Party, need: NeedSlot, customer: Party) -> bool:
    """Return whether a slot can serve a need of another node in some of its windows."""
    return mismatch(slot, provider, need, customer) is None


Key: TypeAlias = tuple[bytes, bytes]
"""A node and the id of one of its slots or needs."""


class _Shelf:
    """The needs of all other nodes by kind and location."""

    def __init__(self) -> None:
        self._by_place: dict[tuple[SlotKind, str], dict[Key, NeedSlot]] = {}

    def put(self, key: Key, slot: NeedSlot) -> None:
        place = (slot.kind, slot.location.casefold())
        self._by_place.setdefault(place, {})[key] = slot

    def drop(self, key: Key, slot: NeedSlot) -> None:
        place = (slot.kind, slot.location.casefold())
        del self._by_place[place][key]
        if not self._by_place[place]:
            del self._by_place[place]

    def candidates(self, slot: AvailabilitySlot) -> Iterator[tuple[Key, NeedSlot]]:
        """Return what has the kind and may have the location of a slot."""
        if slot.location:
            places = [(slot.kind, slot.location.casefold()), (slot.kind, "")]
        else:
            places = [place for place in self._by_place if place[0] == slot.kind]
        for place in places:
            yield from self._by_place.get(place, {}).items()


@dataclass(frozen=True, slots=True)
class Peer:
    """What another node has published, and how the two nodes stand to each other."""

    commitment: Commitment
    tier: Tier
    """Of the other node at this one."""
    own_tier: Tier
    """Of this node at the other one."""


class Matches:
    """The needs that match one node's own slots, updated by each change."""

    def __init__(self, node: bytes) -> None:
        self._node = node
        self._own = Commitment()
        self._peers: dict[bytes, Peer] = {}
        self._parties: dict[bytes, tuple[Party, Party]] = {}
        """This node as each other node sees it, and the other node as this one does."""
        self._needs = _Shelf()
        self._needs_of: dict[bytes, dict[Key, NeedSlot]] = {}

    def needs_of(self, slot_id: bytes) -> Mapping[Key, NeedSlot]:
        """Return the needs of other nodes that an own slot can serve."""
        return self._needs_of.get(slot_id, {})

    def change(self, node: bytes, peer: Peer | None) -> set[bytes]:
        """Replace what is known of another node; None where it is gone.

        Returns:
            The own slots that had or have matches among what changed.
        """
        before = self._peers.pop(node, None)
        if peer is not None:
            self._peers[node] = peer
            self._parties[node] = (Party(self._node, peer.own_tier), Party(node, peer.tier))
        as_before = (
            before is not None
            and peer is not None
            and (before.tier, before.own_tier) == (peer.tier, peer.own_tier)
        )
        old_needs, new_needs = _changed(before, peer, as_before)
        touched: set[bytes] = set()
        for need in old_needs:
            key = (node, need.slot_id)
            self._needs.drop(key, need)
            touched |= {own for own, found in self._needs_of.items() if found.pop(key, None)}
        if peer is None:
            self._parties.pop(node, None)
        for need in new_needs:
            key = (node, need.slot_id)
            self._needs.put(key, need)
            for own_slot in self._own.slots:
                if self._own_serves(own_slot, key, need):
                    self._needs_of[own_slot.slot_id][key] = need
                    touched.add(own_slot.slot_id)
        return touched

    def change_own(self, commitment: Commitment) -> set[bytes]:
        """Replace the own commitment and return the own slots that changed."""
        before, self._own = self._own, commitment
        old = {slot.slot_id: slot for slot in before.slots}
        new = {slot.slot_id: slot for slot in commitment.slots}
        touched = {
            slot_id for slot_id in old.keys() | new.keys() if old.get(slot_id) != new.get(slot_id)
        }
        for slot_id in touched:
            self._needs_of.pop(slot_id, None)
        for slot in commitment.slots:
            if slot.slot_id in touched:
                self._needs_of[slot.slot_id] = {
                    key: need
                    for key, need in self._needs.candidates(slot)
                    if self._own_serves(slot, key, need)
                }
        return touched

    def _own_serves(self, slot: AvailabilitySlot, key: Key, need: NeedSlot) -> bool:
        own, other = self._parties[key[0]]
        return match(slot, own, need, other)


def _changed(
    before: Peer | None, after: Peer | None, as_before: bool
) -> tuple[list[NeedSlot], list[NeedSlot]]:
    """Return what is to be taken out and what is to be put in; what is the same stays."""
    old = {need.slot_id: need for need in before.commitment.needs} if before else {}
    new = {need.slot_id: need for need in after.commitment.needs} if after else {}
    same = {key for key, need in new.items() if as_before and old.get(key) == need}
    return (
        [need for key, need in old.items() if key not in same],
        [need for key, need in new.items() if key not in same],
    )
