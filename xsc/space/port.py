"""The node's space as the subsystems see it that keep what they tell others there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from xsc.space.record import Change, Entry, SpaceRecord

Check: TypeAlias = Callable[[bytes, bytes], object]
"""Takes an owner and a value; raises RecordInvalid for a value that is not of a schema."""


class Space(Protocol):
    """Own values, and those of the peers that are followed."""

    @property
    def owner(self) -> bytes:
        """The id of this node."""

    def get(self, path: str, owner: bytes | None = None) -> Entry:
        """Return the newest record of a path with its value.

        Raises:
            NotFound: nothing is there.
        """

    async def put(self, path: str, value: bytes) -> int:
        """Write a value and return its sequence, once it is on the disk."""

    async def put_all(self, values: Mapping[str, bytes | None]) -> dict[str, int]:
        """Write several values, all or none, and return their sequences; None deletes."""

    async def rm(self, path: str) -> int:
        """Delete a path and return the sequence of its tombstone."""

    def ls(self, prefix: str, owner: bytes | None = None) -> list[SpaceRecord]:
        """Return the live records under a prefix."""

    def register_schema(self, pattern: str, check: Check) -> None:
        """Check every value at the paths of a pattern, in which `*` is one part, before it is kept.

        So their records always come with their value, also with a large one.
        """

    def on_change(self, told: Callable[[Change], None]) -> None:
        """Call a function with every change that is stored from now on, until `off_change`."""

    def off_change(self, told: Callable[[Change], None]) -> None:
        """End one `on_change`."""
