"""Stores the directory heads of peers: the newest head that each peer signed.

    storage.head_put  -; the signed head  -> stored; where it is not, the head that is held
    storage.head_get  locate              -> found; the signed head

Only the owner puts and gets its head. The state database has it under
`storage/head/<owner>`, synced before the answer. If a head is not newer than the
stored one, the answer has the stored one: that proves to its owner that it exists.
"""

from __future__ import annotations

from collections.abc import Sequence

from xsc.base.clock import run_sized
from xsc.base.encoding import Value
from xsc.base.errors import RecordInvalid
from xsc.base.fields import take_bytes
from xsc.base.ids import ID_BYTES
from xsc.base.keyvalue import KeyValue
from xsc.base.limits import DIRECTORY_HEAD_BYTES_MAX, HEAD_STEP_BYTES
from xsc.base.merkle import Part
from xsc.base.peering import Answered, Handler
from xsc.base.turns import Turns
from xsc.base.units import ceil_div
from xsc.identity.context import Context
from xsc.storage.catalogue.directory import DirectoryHead, open_head
from xsc.storage.ports import Commit

HEADS = b"storage/head/"
HEAD_PUT = "storage.head_put"
HEAD_GET = "storage.head_get"


def steps_of(size_bytes: int) -> int:
    """Return how many steps of time a head of that size takes to be told."""
    return max(1, ceil_div(size_bytes, HEAD_STEP_BYTES))


class DirectoryHeadStore:
    """Keeps and answers heads."""

    def __init__(self, context: Context, state: KeyValue, commit: Commit) -> None:
        self._context = context
        self._state = state
        self._commit = commit
        self._turns: Turns[bytes] = Turns()

    def handlers(self) -> dict[str, Handler]:
        """Return what answers peers, by method."""
        return {HEAD_PUT: self._on_put, HEAD_GET: self._on_get}

    async def _on_put(
        self, caller: bytes, _header: dict[str, Value], parts: Sequence[Part]
    ) -> Answered:
        if len(parts) != 1 or len(parts[0].data) > DIRECTORY_HEAD_BYTES_MAX:
            raise RecordInvalid("a directory head is one part within its size limit")
        raw = bytes(parts[0].data)
        generation = (await self._opened(raw, caller)).generation
        async with self._turns.of(caller):
            held = await self._held(caller)
            if held == raw:
                return {"stored": True}, ()
            if held is not None and (await self._opened(held, caller)).generation >= generation:
                return {"stored": False}, (held,)
            await self._commit([(HEADS + caller, raw)])
            return {"stored": True}, ()

    async def _held(self, owner: bytes) -> bytes | None:
        return await self._context.executor.run(self._state.get, HEADS + owner)

    async def _opened(self, raw: bytes, owner: bytes) -> DirectoryHead:
        head = await run_sized(
            self._context.executor, len(raw), open_head, raw, owner, self._context.network
        )
        return head.record

    async def _on_get(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> Answered:
        locate = take_bytes(header, "locate", size=ID_BYTES)
        raw = await self._held(caller)
        if raw is None or (await self._opened(raw, caller)).locate != locate:
            return {"found": False}, ()
        return {"found": True}, (raw,)
