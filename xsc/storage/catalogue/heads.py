"""Stores the directory heads of peers: the newest head that each peer signed.

    storage.head_put  the signed head  -> nothing where it is stored, else the one that is held
    storage.head_get  -                -> the signed head, if there is one

Only the owner puts and gets its head. The state database has it under
`storage/head/<owner>`, synced before the answer. If a head is not newer than the
stored one, the answer has the stored one: that proves to its owner that it exists.
"""

from __future__ import annotations

from collections.abc import Sequence

from xsc.base import encoding, errors, limits, merkle, peering, turns
from xsc.base.clock import run_sized
from xsc.identity.context import Context
from xsc.storage.catalogue.directory import DirectoryHead, open_head

HEADS = b"storage/head/"
HEAD_PUT = "storage.head_put"
HEAD_GET = "storage.head_get"


class DirectoryHeadStore:
    """Keeps and answers heads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._state = context.state
        self._commit = context.commit
        self._turns: turns.Turns[bytes] = turns.Turns()

    def handlers(self) -> dict[str, peering.Handler]:
        """Return what answers peers, by method."""
        return {HEAD_PUT: self._on_put, HEAD_GET: self._on_get}

    async def _on_put(
        self, caller: bytes, _header: dict[str, encoding.Value], parts: Sequence[merkle.Part]
    ) -> peering.Answered:
        if len(parts) != 1 or len(parts[0].data) > limits.DIRECTORY_HEAD_BYTES_MAX:
            raise errors.RecordInvalid("a directory head is one part within its size limit")
        raw = bytes(parts[0].data)
        generation = (await self._opened(raw, caller)).generation
        async with self._turns.of(caller):
            held = await self._held(caller)
            if held is None or (await self._opened(held, caller)).generation < generation:
                await self._commit([(HEADS + caller, raw)])
            elif held != raw:
                return {}, (held,)
            return {}, ()

    async def _held(self, owner: bytes) -> bytes | None:
        return await self._context.executor.run(self._state.get, HEADS + owner)

    async def _opened(self, raw: bytes, owner: bytes) -> DirectoryHead:
        head = await run_sized(
            self._context.executor, len(raw), open_head, raw, owner, self._context.network
        )
        return head.record

    async def _on_get(
        self, caller: bytes, _header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> peering.Answered:
        raw = await self._held(caller)
        return {}, () if raw is None else (raw,)
