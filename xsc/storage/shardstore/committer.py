"""Commits bodies under new sequences, and enters what was committed into the index."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from xsc.base.clock import Executor
from xsc.base.errors import XscError
from xsc.base.gather import Gather
from xsc.base.keyvalue import Change
from xsc.storage.ports import Commit
from xsc.storage.shardstore.fsck import Damage
from xsc.storage.shardstore.index import Drop, Put, ShardIndex


@dataclass(frozen=True, slots=True, eq=False)
class _Unindexed:
    """Bodies on the disk that the index does not know yet."""

    sequences: Sequence[int]
    puts: Sequence[Put]
    drops: Sequence[Drop]


class Committer:
    """Gives sequences, commits bodies and keeps the index behind them.

    The mark of the index stays below every sequence that was given and is not indexed.
    """

    def __init__(self, index: ShardIndex, commit: Commit, executor: Executor) -> None:
        self._index = index
        self.commit_port = commit
        self._executor = executor
        self.next_sequence = 1
        self.open: set[int] = set()
        """Sequences that were given and whose bodies are not indexed yet."""
        self._unindexed: list[_Unindexed] = []
        self._indexing = asyncio.Lock()
        self._gather: Gather[None, _Unindexed, None] = Gather(self._index_group, all_run=True)

    def take_sequences(self, count: int) -> list[int]:
        """Return the next sequences; each must be committed or given up."""
        taken = list(range(self.next_sequence, self.next_sequence + count))
        self.next_sequence += count
        self.open.update(taken)
        return taken

    async def commit(self, sequences: Sequence[int], changes: list[Change]) -> None:
        """Commit; a write that failed has changed nothing, and its sequences are given up."""
        try:
            await self.commit_port(changes)
        except XscError:
            self.open.difference_update(sequences)
            raise

    async def index(
        self, sequences: Sequence[int], puts: Sequence[Put], drops: Sequence[Drop]
    ) -> None:
        """Enter bodies that were committed, also if the caller is cancelled."""
        await self._gather.submit(None, _Unindexed(sequences, puts, drops))

    async def _index_group(self, _key: None, group: Sequence[_Unindexed]) -> Sequence[None]:
        indexed = {sequence for item in group for sequence in item.sequences}
        async with self._indexing:
            try:
                # A note drops by sequence, so puts may all come before all notes.
                await self._executor.run(
                    self._index.apply,
                    [put for item in group for put in item.puts],
                    [drop for item in group for drop in item.drops],
                    min(self.open - indexed, default=self.next_sequence) - 1,
                )
            except BaseException:
                self._unindexed.extend(group)  # tried again before the next write
                raise
            self.open -= indexed
        return [None] * len(group)

    async def catch_up(self) -> None:
        """Enter what is committed and could not be entered; nothing is stored or deleted before.

        Else a shard could pass for held whose body is gone, or be written a second time.

        Raises:
            SpaceExhausted, StoreDamaged: the index still cannot be written.
        """
        while self._unindexed:
            async with self._indexing:
                for item in list(self._unindexed):
                    mark = min(self.open.difference(item.sequences), default=self.next_sequence)
                    await self._executor.run(self._index.apply, item.puts, item.drops, mark - 1)
                    self.open.difference_update(item.sequences)
                    self._unindexed.remove(item)

    @property
    def is_behind(self) -> bool:
        """Whether something is committed and could not be entered."""
        return bool(self._unindexed)

    def still_held(self, damaged: Sequence[Damage]) -> tuple[Damage, ...]:
        """Return the damage whose bodies are still held."""
        # Of what is on the disk and could not be entered yet, the index has the old entry.
        changed = {key for item in self._unindexed for key, _ in (*item.puts, *item.drops)}
        return tuple(
            item
            for item in damaged
            if item.key not in changed and self._index.entry(item.key) == item.entry
        )
