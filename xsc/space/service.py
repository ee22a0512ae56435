"""The space of one node: puts, gets, watches and schemas.

Own values are checked by the schemas of their path before anything is stored. A put returns once
it is on the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from xsc.base.errors import ArgumentInvalid, RateLimited, RecordInvalid, XscError
from xsc.identity.envelope import Signed
from xsc.space import limits, paths, port, table
from xsc.space.record import Change, Entry, SpaceRecord
from xsc.space.replicas import Taken
from xsc.space.store import SpaceStore, Stats


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


class SpaceService:
    """The space as this node and its users have it."""

    def __init__(self, store: SpaceStore) -> None:
        self._store = store
        self._watches: list[Watch] = []
        self._told: list[Callable[[Change], None]] = []
        self._schemas: dict[str, port.Check] = {
            paths.UserSpacePaths.INTERVAL: store.causality.check_grant
        }
        store.on_written(self.tell)

    @property
    def owner(self) -> bytes:
        """The id of this node."""
        return self._store.owner

    # Schemas

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

    def _check(self, owner: bytes, path: str, value: bytes | None) -> None:
        if value is not None:
            for pattern, check in self._schemas.items():
                if paths.matches(path, pattern):
                    check(owner, value)

    # Own values

    async def put(self, path: str, value: bytes) -> int:
        """Write a value and return its sequence.

        Raises:
            ArgumentInvalid: the path is none, or a schema or the size refuses the value.
            SpaceExhausted: a quota would be passed.
        """
        self._check_put(path, value)
        return (await self._store.put({path: value}))[path]

    async def put_all(self, values: Mapping[str, bytes | None]) -> dict[str, int]:
        """Write several values, all or none, and return their sequences; None deletes.

        Raises:
            ArgumentInvalid, SpaceExhausted: as `put`.
            NotFound: nothing is at a path that is to be deleted.
        """
        for path, value in values.items():
            self._check_put(path, value)
        return await self._store.put(values)

    def _check_put(self, path: str, value: bytes | None) -> None:
        if fault := paths.fault_of(path):
            raise ArgumentInvalid(f"not a path: {fault}")
        if value is not None and len(value) > limits.VALUE_BYTES_MAX:
            raise ArgumentInvalid(
                f"a value has at most {limits.VALUE_BYTES_MAX} bytes",
                hint="store it with `xsc store put`, and put its capability here",
            )
        try:
            self._check(self.owner, path, value)
        except RecordInvalid as refusal:
            raise ArgumentInvalid(f"not a value for '{path}': {refusal.message}") from None

    async def rm(self, path: str) -> int:
        """Delete a path and return the sequence of its tombstone.

        Raises:
            NotFound: nothing is there.
        """
        self._check_put(path, None)
        return (await self._store.put({path: None}))[path]

    # Values of any owner

    def get(self, path: str, owner: bytes | None = None) -> Entry:
        """Return the newest record of a path with its value.

        Raises:
            NotFound: nothing is there.
        """
        return self._store.get(owner or self._store.owner, path)

    def versions(self, path: str) -> list[Entry]:
        """Return what is kept of the replaced values of an own path, the newest first.

        `keep_versions` and `keep_days` of the settings say what is kept.
        """
        return self._store.versions(path)

    def ls(self, prefix: str, owner: bytes | None = None) -> list[SpaceRecord]:
        """Return the live records under a prefix."""
        return self._store.ls(owner or self._store.owner, prefix)

    async def take(
        self,
        owner: bytes,
        offered: Sequence[tuple[Signed[SpaceRecord], bytes | None]],
        listed: table.Repair | None = None,
    ) -> Taken:
        """Adopt verified records of another owner and tell watchers; none is published again."""
        good: list[tuple[Signed[SpaceRecord], bytes | None]] = []
        refused: list[XscError] = []
        for signed, value in offered:
            try:
                await self._store.work.run(
                    owner, len(value or b""), self._check, owner, signed.record.path, value
                )
            except XscError as fault:
                refused.append(fault)
            else:
                good.append((signed, value))
        taken = await self._store.take(owner, good, listed)
        told = set(taken.paths)
        for signed, value in good:
            record = signed.record
            if record.path in told:
                self.tell(Change(owner, record.path, record.sequence, value, signed))
        return Taken(taken.paths, refused + taken.refused)

    # Watching

    def watch(self, prefix: str, owner: bytes | None = None) -> Watch:
        """Return a watch over changes from now on; end it with `unwatch`.

        Raises:
            RateLimited: too many are open.
        """
        if len(self._watches) >= limits.WATCHES_MAX:
            raise RateLimited(f"more than {limits.WATCHES_MAX} watches are open")
        watch = Watch(owner or self._store.owner, prefix)
        self._watches.append(watch)
        return watch

    def unwatch(self, watch: Watch) -> None:
        """End a watch."""
        self._watches.remove(watch)

    def end_watches(self) -> None:
        """End all watches: the node stops."""
        for watch in self._watches:
            watch.end()

    def on_change(self, told: Callable[[Change], None]) -> None:
        """Call a function with every change that is stored from now on."""
        self._told.append(told)

    def tell(self, change: Change) -> None:
        """Tell watchers of a change that is stored."""
        for told in self._told:
            told(change)
        for watch in self._watches:
            watch.tell(change)

    async def close(self) -> None:
        """Return once all that was to be written is written, or has failed; write no more."""
        self.end_watches()
        await self._store.settle()

    async def compact(self) -> Stats:
        """Delete what need not be kept, return its space to the disk, and say what is left."""
        return await self._store.compact()

    def stats(self) -> Stats:
        """Return how much is stored."""
        return self._store.stats()
