"""Group commit: concurrent writers share one synced write.

A synced write costs the same for one change as for many. The commits that are asked for
during a write form the next one.
"""

from __future__ import annotations

from collections.abc import Sequence

from xsc.base.clock import Executor
from xsc.base.gather import Gather
from xsc.base.keyvalue import Change, KeyValue
from xsc.base.limits import MIB

GROUP_BYTES = 16 * MIB
"""A group is closed once it holds this much; one larger commit makes a group of its own."""


class GroupCommit:
    """Commits to one store, in the order of the calls."""

    def __init__(
        self, store: KeyValue, executor: Executor, *, group_bytes: int = GROUP_BYTES
    ) -> None:
        self._store = store
        self._executor = executor
        self._gather: Gather[None, list[Change], None] = Gather(
            self._write, size_of=_size_bytes, size_max=group_bytes, all_run=True
        )

    async def commit(self, changes: list[Change]) -> None:
        """Return once all the changes are on the disk; they are applied all or none.

        They are written even if the caller is cancelled.

        Raises:
            XscError: the write of the group failed; every caller in it gets the error.
        """
        await self._gather.submit(None, changes)

    async def _write(self, _key: None, commits: Sequence[list[Change]]) -> Sequence[None]:
        group = [change for changes in commits for change in changes]
        await self._executor.run(self._store.write, group, sync=True)
        return [None] * len(commits)

    async def settle(self) -> None:
        """Return once everything that was asked for so far is written or has failed."""
        await self._gather.idle()


def _size_bytes(changes: list[Change]) -> int:
    return sum(len(key) + (0 if value is None else len(value)) for key, value in changes)
