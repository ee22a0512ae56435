"""Stored objects as the inputs of jobs: named by their content, read where that is needed.

An order names each input by its SHA-256, so that an object is read once by the node
that orders; its digest is remembered from then on, for an object never changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xsc.base.bounded import Bounded
from xsc.base.clock import Executor, run_sized
from xsc.base.errors import TooLarge
from xsc.base.limits import INPUT_BYTES_MAX, INPUT_HASHES_REMEMBERED_MAX
from xsc.storage.service import StorageService
from xsc.storage.transfer.locality import Referred


@dataclass(eq=False)
class StoredInput:
    """One object that a job reads as a file (`xsc.compute.ports.InputObject`)."""

    name: str
    digest: bytes
    size_bytes: int
    reference: bytes = field(repr=False)
    spared: Mapping[bytes, int]
    _capability: str = field(repr=False)
    _storage: StorageService = field(repr=False)
    _content: bytes | None = field(repr=False)

    async def read(self) -> bytes:
        """Return its content."""
        if self._content is None:
            self._content = await _content(self._storage, self._capability)
        return self._content


async def _content(storage: StorageService, capability: str) -> bytes:
    reader = await storage.open(capability)
    return b"".join([chunk async for chunk in reader.stream()])


class JobInputs:
    """Finds the objects that jobs name."""

    def __init__(self, storage: StorageService, executor: Executor) -> None:
        self._storage = storage
        self._executor = executor
        self._digests: Bounded[bytes, bytes] = Bounded(INPUT_HASHES_REMEMBERED_MAX)

    async def find(self, capabilities: Mapping[str, str]) -> Sequence[StoredInput]:
        """Return the objects of a job, each under the name of its file.

        Raises:
            CapabilityInvalid, ObjectUnknown, ShardsInsufficient: one cannot be read.
            TooLarge: they are over INPUT_BYTES_MAX together.
        """
        found: list[tuple[str, str, Referred]] = []
        for name, capability in sorted(capabilities.items()):
            found.append((name, capability, await self._storage.refer(capability)))
        if sum(referred.size_bytes for _, _, referred in found) > INPUT_BYTES_MAX:
            raise TooLarge(f"the inputs of one job are bounded to {INPUT_BYTES_MAX} bytes")
        return [await self._input(*each) for each in found]

    async def _input(self, name: str, capability: str, referred: Referred) -> StoredInput:
        content: bytes | None = None
        digest = self._digests.get(referred.manifest_hash)
        if digest is None:
            content = await _content(self._storage, capability)
            digest = await run_sized(self._executor, len(content), _sha256, content)
            self._digests.put(referred.manifest_hash, digest)
        return StoredInput(
            name,
            digest,
            referred.size_bytes,
            referred.reference,
            referred.spared,
            capability,
            self._storage,
            content,
        )


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
