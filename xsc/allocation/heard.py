"""What nodes have published of their allocation, as far as it is here, read once."""

from __future__ import annotations

from collections.abc import Collection

from xsc.allocation.clearing_record import Published, read_state
from xsc.base.errors import NotFound
from xsc.space.paths import UserSpacePaths
from xsc.space.port import Space
from xsc.space.record import Change
from xsc.terms.clearing import SpaceValue, TwoTierAllocationState

_NOTHING = SpaceValue(record=b"", value=b"")


class Heard:
    """The commitments, recognition and states of this node and others."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._published: dict[bytes, Published] = {}
        self._states: dict[bytes, TwoTierAllocationState | None] = {}
        space.on_change(self._changed)

    def _changed(self, change: Change) -> None:
        if change.path == UserSpacePaths.ALLOCATION_STATE:
            self._states.pop(change.owner, None)
        elif change.path in {UserSpacePaths.COMMITMENT, UserSpacePaths.RECOGNITION}:
            self._published.pop(change.owner, None)

    def keep(self, nodes: Collection[bytes]) -> None:
        """Forget all other nodes."""
        for known in (self._published, self._states):
            for gone in known.keys() - set(nodes):
                del known[gone]

    def knows(self, node: bytes) -> bool:
        """Return whether what a node has published needs no reading."""
        return node in self._published and node in self._states

    def of(self, node: bytes) -> Published:
        """Return what a node offers, needs and recognises."""
        if node not in self._published:
            commitment = self.value(UserSpacePaths.COMMITMENT, node) or _NOTHING
            recognition = self.value(UserSpacePaths.RECOGNITION, node)
            self._published[node] = Published.read(node, commitment, recognition)
        return self._published[node]

    def state_of(self, node: bytes) -> TwoTierAllocationState | None:
        """Return what a node says that it grants."""
        if node not in self._states:
            said = self.value(UserSpacePaths.ALLOCATION_STATE, node)
            self._states[node] = None if said is None else read_state(said.value)
        return self._states[node]

    def value(self, path: str, node: bytes) -> SpaceValue | None:
        """Return what a node has at a path, with the record that signs it; None for nothing."""
        try:
            entry = self._space.get(path, node)
        except NotFound:
            return None
        if entry.value is None:
            return None
        return SpaceValue(record=entry.signed.raw, value=entry.value)
