"""Keeps who may take part in the clearing of each window, in the order in which they are admitted.

`Matches` decides which needs the own slots can serve. Of these a queue holds the customers that
need something in the time of one window. What one customer publishes moves that customer alone,
so a change costs no look at the others.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, TypeAlias

from xsc.allocation.clearing_record import Published, Rank, Taker, rank, standing
from xsc.allocation.matching import Matches, Peer, overlap, places, windows_of
from xsc.base.limits import CLEARED_SLOTS_MAX, WINDOWS_AHEAD
from xsc.terms.quote import Tier
from xsc.terms.slot import AvailabilitySlot, NeedSlot, Window

Key: TypeAlias = tuple[bytes, int]
"""A slot and the start of one of its windows."""
Ask: TypeAlias = tuple[NeedSlot, Window]
"""A need, and the time of it that a window has."""
Standing: TypeAlias = tuple[Tier, int]
"""Tier and weight."""
_NEVER: Final = 2**63


def windows_ahead(slots: Iterable[AvailabilitySlot], now_ms: int) -> list[tuple[Window, Key]]:
    """Return the windows that are cleared: the next ones of each slot, in order of their start."""
    found = []
    for slot in slots:
        if slot.valid_until_ms > now_ms:
            first, _ = places((now_ms, slot.valid_until_ms), slot.windows)
            ahead = slot.windows[first : first + WINDOWS_AHEAD]
            found += [(window, (slot.slot_id, window[0])) for window in ahead]
    return sorted(found, key=lambda item: (item[0][0], item[1]))[:CLEARED_SLOTS_MAX]


class Queue:
    """Those who may take part in one window."""

    def __init__(self, window: Window, takers: Mapping[bytes, Taker]) -> None:
        self._salt = b""
        self._window = window
        self._takers = takers
        self._ranks: dict[bytes, Rank] = {}
        self._order: list[Rank] = []
        self.version = 0
        """Rises with each change."""

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Taker]:
        for place in self._order:
            yield self._takers[place[-1]]

    def shuffle(self, salt: bytes) -> None:
        """Let ties fall under another salt."""
        if salt != self._salt:
            self._salt = salt
            self.version += 1
            self._ranks = {node: rank(self._takers[node], salt) for node in self._ranks}
            self._order = sorted(self._ranks.values())

    def update(self, node: bytes) -> None:
        """Follow a change of one customer."""
        self.version += 1
        taker, before = self._takers.get(node), self._ranks.pop(node, None)
        after = rank(taker, self._salt) if taker is not None and self._is_met(taker) else None
        if after is not None:
            self._ranks[node] = after
        if before != after:
            if before is not None:
                del self._order[bisect_left(self._order, before)]
            if after is not None:
                insort(self._order, after)

    def asks(self, node: bytes) -> list[Ask]:
        """Return what a customer needs in the window."""
        return [
            (need, time)
            for need in self._takers[node].needs
            if (time := overlap(self._window, windows_of(need))) is not None
        ]

    def _is_met(self, taker: Taker) -> bool:
        return any(overlap(self._window, windows_of(need)) for need in taker.needs)


class Queues:
    """The queues of all windows of a node's slots.

    Args:
        node: the provider.
    """

    def __init__(self, node: bytes) -> None:
        self._node = node
        self._matches = Matches(node)
        self._slots: tuple[AvailabilitySlot, ...] = ()
        self._others: dict[bytes, Published] = {}
        self._own: Published | None = None
        self._standings: dict[bytes, tuple[Standing, Standing]] = {}
        """Of other nodes at this one, and of this one at them."""
        self._takers: dict[bytes, dict[bytes, Taker]] = {}
        """By slot and customer."""
        self._queues: dict[Key, Queue] = {}
        self._ends: dict[bytes, int] = {}
        """By node, when the first of its needs that are not over ends."""
        self._next_end_ms = _NEVER

    def needs_of(self, slot_id: bytes) -> Mapping[tuple[bytes, bytes], NeedSlot]:
        """Return the needs of others that an own slot can serve, by customer and need."""
        return self._matches.needs_of(slot_id)

    def others(self) -> dict[bytes, Published]:
        """Return what the nodes publish whose changes were followed."""
        return self._others.copy()

    def takers(self) -> set[bytes]:
        """Return the nodes with needs that an own slot can serve."""
        return set().union(*self._takers.values())

    def is_stated(self, customer: bytes, need_id: bytes) -> bool:
        """Return whether a customer still publishes a need."""
        said = self._others.get(customer)
        return said is not None and any(need.slot_id == need_id for need in said.commitment.needs)

    def change_own(self, own: Published, now_ms: int) -> None:
        """Follow a change of the own slots; one of the own weights changes all others as well."""
        self._own, self._slots = own, own.commitment.slots
        changed = self._matches.change_own(own.commitment)
        for key in [key for key in self._queues if key[0] in changed]:
            del self._queues[key]
        for slot_id in changed:
            self._takers.pop(slot_id, None)
        for slot in self._slots:
            if slot.slot_id in changed:
                nodes = {node for node, _ in self.needs_of(slot.slot_id)}
                self._takers[slot.slot_id] = {
                    node: taker
                    for node in nodes
                    if (taker := self._taker(slot.slot_id, self._others[node], now_ms))
                }
        self._follow(now_ms)

    def change(self, node: bytes, other: Published | None, now_ms: int) -> bool:
        """Follow what another node publishes, None where that is nothing; return if it is new."""
        assert self._own is not None, "the own slots come first"
        if other is None:
            if self._others.pop(node, None) is None:
                return False
            del self._ends[node], self._standings[node]
            self._matches.change(node, None)
        else:
            standings = standing(self._own, other), standing(other, self._own)
            if self._others.get(node) is other and self._standings[node] == standings:
                return False
            self._others[node], self._standings[node] = other, standings
            self._matches.change(node, Peer(other.commitment, *(tier for tier, _ in standings)))
        self._update(node, now_ms)
        return True

    def _update(self, node: bytes, now_ms: int) -> None:
        other = self._others.get(node)
        if other is not None:
            ends = (need.valid_until_ms for need in other.commitment.needs)
            self._ends[node] = min((end for end in ends if end > now_ms), default=_NEVER)
            self._next_end_ms = min(self._next_end_ms, self._ends[node])
        touched = set()
        for slot_id, takers in self._takers.items():
            before = takers.pop(node, None)
            after = None if other is None else self._taker(slot_id, other, now_ms)
            if after is not None:
                takers[node] = after
            if before or after:
                touched.add(slot_id)
        for key, queue in self._queues.items():
            if key[0] in touched:
                queue.update(node)

    def pass_time(self, now_ms: int) -> None:
        """Leave out needs that have ended, and follow the windows that are ahead now."""
        if now_ms >= self._next_end_ms:
            ended = [node for node, end in self._ends.items() if end <= now_ms]
            self._next_end_ms = min(
                (end for end in self._ends.values() if end > now_ms), default=_NEVER
            )
            for node in ended:
                self._update(node, now_ms)
        self._follow(now_ms)

    def of(self, key: Key, salt: bytes) -> Queue:
        """Return the queue of a window ahead, in which ties fall under a salt."""
        queue = self._queues[key]
        queue.shuffle(salt)
        return queue

    def _follow(self, now_ms: int) -> None:
        ahead = {key: window for window, key in windows_ahead(self._slots, now_ms)}
        for key in self._queues.keys() - ahead.keys():
            del self._queues[key]
        new = {key: Queue(ahead[key], self._takers[key[0]]) for key in ahead.keys() - self._queues}
        self._queues |= new
        # Customer by customer: reading the windows of a need takes longer than looking at them.
        for node in set[bytes]().union(*(self._takers[slot_id] for slot_id, _ in new)):
            for queue in new.values():
                queue.update(node)

    def _taker(self, slot_id: bytes, other: Published, now_ms: int) -> Taker | None:
        """Return a customer with the needs that a slot can serve; None if there are none."""
        matching = self.needs_of(slot_id)
        needs = tuple(
            need
            for need in other.commitment.needs
            if (other.node, need.slot_id) in matching
            and need.valid_until_ms > now_ms
            and need.cap(self._node)
        )
        return Taker(other, *self._standings[other.node][0], needs) if needs else None
