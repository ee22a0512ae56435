"""Keeps the directory heads of peers: one a peer, whole, the newest that it signed.

    storage.head_put  -; the signed head  -> generation
    storage.head_get  locate              -> found; the signed head

Only the owner puts and gets its head. Kept in the state database under
`storage/head/<owner>`, on the disk before it is confirmed.
"""

from __future__ import annotations

from collections.abc import Sequence

from xsc.base.encoding import Value
from xsc.base.errors import NotAllowed, RecordInvalid
from xsc.base.fields import take_bytes
from xsc.base.ids import ID_BYTES
from xsc.base.keyvalue import KeyValue
from xsc.base.limits import DIRECTORY_HEAD_BYTES_MAX
from xsc.base.merkle import Part
from xsc.base.peering import Handler
from xsc.storage.directory import open_head

HEADS = b"storage/head/"
HEAD_PUT = "storage.head_put"
HEAD_GET = "storage.head_get"


class Heads:
    """See the module."""

    def __init__(self, network: bytes, state: KeyValue) -> None:
        self._network = network
        self._state = state

    def handlers(self) -> dict[str, Handler]:
        """Return what answers peers, by method."""
        return {HEAD_PUT: self._on_put, HEAD_GET: self._on_get}

    async def _on_put(
        self, caller: bytes, _header: dict[str, Value], parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        if len(parts) != 1 or len(parts[0].data) > DIRECTORY_HEAD_BYTES_MAX:
            raise RecordInvalid("a head is one part within its bound")
        raw = bytes(parts[0].data)
        # Nothing is awaited between reading and writing: of two at once the newer stays.
        return {"generation": self._keep(caller, raw)}, ()

    def _keep(self, caller: bytes, raw: bytes) -> int:
        head = open_head(raw, caller, self._network)
        held = self._state.get(HEADS + caller)
        if held is not None and held != raw:
            kept = open_head(held, caller, self._network).record.generation
            if kept >= head.record.generation:
                raise NotAllowed(f"a directory head of generation {kept} is held already")
        self._state.write([(HEADS + caller, raw)], sync=True)
        return head.record.generation

    async def _on_get(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        locate = take_bytes(header, "locate", size=ID_BYTES)
        raw = self._state.get(HEADS + caller)
        if raw is None or open_head(raw, caller, self._network).record.locate != locate:
            return {"found": False}, ()
        return {"found": True}, (raw,)
