"""Placements that one signature covers: of the owner who sends them, and of hosts that check it.

A host verifies the owner's signature on every placement, 90 µs for each of six
hosts. Placements that an owner makes in the same turns of its event loop, as those
of small puts that come together, get one `PlacementSeal` over their record ids
beside the signature that each has as ever. A host that knows seals verifies that
one; a host that does not verifies each placement.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, ClassVar

from pydantic import Field

from xsc.base.errors import RecordInvalid
from xsc.base.limits import SEALED_PLACEMENTS_MAX, SEALS_KEPT
from xsc.identity.envelope import Id32, Record, open_signed, sign
from xsc.identity.keys import KeyPair

GATHER_TURNS = 8
"""Turns of the event loop that the first placement waits for others: no time (net's ADR 44)."""


class PlacementSeal(Record):
    """Signed by the owner: each placement of these ids is its word, as if signed alone."""

    KIND: ClassVar[str] = "placement_seal"

    owner: Id32
    placements: Annotated[tuple[Id32, ...], Field(min_length=1, max_length=SEALED_PLACEMENTS_MAX)]
    """Record ids of the placements."""


class PlacementSealer:
    """Seals the placements of an owner, those of some turns of the event loop at once."""

    def __init__(self, key: KeyPair, network: bytes) -> None:
        self._key = key
        self._network = network
        self._waiting: list[tuple[bytes, asyncio.Future[bytes | None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def seal(self, placement_id: bytes) -> bytes | None:
        """Return the signed seal over a placement and those beside it; None where it is alone."""
        done: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((placement_id, done))
        if self._task is None:
            self._task = asyncio.create_task(self._gather())
            self._task.add_done_callback(self._end)
        return await done

    async def _gather(self) -> None:
        for _ in range(GATHER_TURNS):
            await asyncio.sleep(0)

    def _end(self, _task: asyncio.Task[None]) -> None:
        waiting, self._waiting, self._task = self._waiting, [], None
        open_ = [(ref, done) for ref, done in waiting if not done.done()]
        for start in range(0, len(open_), SEALED_PLACEMENTS_MAX):
            group = open_[start : start + SEALED_PLACEMENTS_MAX]
            raw = self._signed([ref for ref, _ in group]) if len(group) > 1 else None
            for _, done in group:
                done.set_result(raw)

    def _signed(self, ids: list[bytes]) -> bytes:
        seal = PlacementSeal(owner=self._key.node_id, placements=tuple(ids))
        return sign(seal, self._key, self._network).raw


class PlacementSeals:
    """Verified seals of owners; each is verified once."""

    def __init__(self, network: bytes) -> None:
        self._network = network
        self._known: dict[tuple[bytes, bytes], frozenset[bytes]] = {}
        """Placement ids by owner and bytes of the seal, the oldest first."""

    def covered(self, raw: bytes, owner: bytes) -> frozenset[bytes]:
        """Return the ids of the placements that an owner's seal covers.

        Raises:
            TooLarge, RecordInvalid: it is none.
            SignatureInvalid: not signed by that owner.
        """
        covered = self._known.get((owner, raw))
        if covered is None:
            seal = open_signed(raw, PlacementSeal, network=self._network, author=owner).record
            if seal.owner != owner:
                raise RecordInvalid("the seal is signed by another node than the owner it names")
            covered = self._known[owner, raw] = frozenset(seal.placements)
            if len(self._known) > SEALS_KEPT:
                del self._known[next(iter(self._known))]
        return covered
