"""What is checked before it is stored in a space, and who is told after: schemas and watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xsc.base.errors import ArgumentInvalid, RateLimited
from xsc.space import limits, paths, port
from xsc.space.record import Change


class Watch:
    """Changes under a prefix of one owner, from the call on.

    A reader that is slow gets the newest change of each path, so that what waits is bounded.
    """

    def __init__(self, owner: bytes, prefix: str) -> None:
        self.owner = owner
        self.prefix = prefix
        self._waiting: dict[str, Change] = {}
        self._some = asyncio.Event()
        self._ended = False

    def tell(self, change: Change) -> None:
        """Take a change in, if it is under the prefix."""
        if change.owner == self.owner and paths.is_under(change.path, self.prefix):
            self._waiting.pop(change.path, None)
            self._waiting[change.path] = change
            self._some.set()

    def end(self) -> None:
        """Let `next` return None once what waits was taken."""
        self._ended = True
        self._some.set()

    async def next(self) -> Change | None:
        """Return the next change, once there is one; None after the end."""
        while not self._waiting:
            if self._ended:
                return None
            self._some.clear()
            await self._some.wait()
        return self._waiting.pop(next(iter(self._waiting)))


class Watched:
    """A space whose values have schemas, and whose changes are told."""

    def __init__(self, owner: bytes) -> None:
        self.owner = owner
        """The id of this node."""
        self._schemas: dict[str, port.Check] = {}
        self._told: list[Callable[[Change], None]] = []
        self._watches: list[Watch] = []

    def register_schema(self, pattern: str, check: port.Check) -> None:
        """Check every value at the paths of a pattern, where `*` stands for one part.

        Raises:
            ArgumentInvalid: the pattern is none, or is registered already.
        """
        if fault := paths.fault_of(pattern.replace("*", "x")):
            raise ArgumentInvalid(f"not a pattern of paths: {fault}")
        if pattern in self._schemas:
            raise ArgumentInvalid(f"a schema is registered for '{pattern}' already")
        self._schemas[pattern] = check

    def has_schema(self, path: str) -> bool:
        """Say whether values at a path are checked, and so needed to store their records."""
        return any(paths.matches(path, pattern) for pattern in self._schemas)

    def check(self, owner: bytes, path: str, value: bytes | None) -> None:
        """Check a value by the schemas of its path.

        Raises:
            RecordInvalid: one of them refuses it.
        """
        if value is not None:
            for pattern, check in self._schemas.items():
                if paths.matches(path, pattern):
                    check(owner, value)

    def on_change(self, told: Callable[[Change], None]) -> None:
        """Call a function with every change that is stored from now on, until `off_change`."""
        self._told.append(told)

    def off_change(self, told: Callable[[Change], None]) -> None:
        """End one `on_change`."""
        self._told.remove(told)

    def tell(self, change: Change) -> None:
        """Tell a change that is stored."""
        for told in self._told:
            told(change)

    def watch(self, prefix: str, owner: bytes | None = None) -> Watch:
        """Return a watch over changes from now on; end it with `unwatch`.

        Raises:
            RateLimited: too many are open.
        """
        if len(self._watches) >= limits.WATCHES_MAX:
            raise RateLimited(f"more than {limits.WATCHES_MAX} watches are open")
        watch = Watch(owner or self.owner, prefix)
        self._watches.append(watch)
        self.on_change(watch.tell)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """End a watch."""
        self._watches.remove(watch)
        self.off_change(watch.tell)

    def end_watches(self) -> None:
        """End all watches: the node stops."""
        for watch in self._watches:
            watch.end()
