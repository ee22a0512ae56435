"""What jobs name instead of bringing it: modules that came before, and stored objects as inputs.

An order names each input by its SHA-256, so that an object is read once by the node
that orders; its digest is remembered from then on, for an object never changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xsc.base import clock, limits
from xsc.base.bounded import Bounded
from xsc.base.errors import ArgumentInvalid, ModuleUnknown, TooLarge
from xsc.compute.deployments.service import DeploymentService
from xsc.compute.wasm.inputs import digest_of
from xsc.storage.service import StorageService
from xsc.storage.transfer.locality import Referred

INPUT_HASHES_REMEMBERED_MAX = 4096
"""Objects whose size and SHA-256 a customer knows without reading them again."""
MODULES_NAMED_BYTES_MAX = 128 * limits.MIB
"""Modules that a node keeps because jobs at its API brought them."""
assert limits.MODULE_BYTES_MAX <= MODULES_NAMED_BYTES_MAX


class Modules:
    """The modules that came last, by their SHA-256; small ones are quicker sent than named."""

    def __init__(self, executor: clock.Executor, services: DeploymentService) -> None:
        self._executor = executor
        self._services = services
        self._kept: Bounded[bytes, bytes] = Bounded(size_max=MODULES_NAMED_BYTES_MAX, size_of=len)

    async def find(self, named: str | None, brought: bytes) -> bytes:
        """Return the module that a request names or brings.

        Raises:
            ArgumentInvalid: it does both, or the name is none.
            ModuleUnknown: it is not here, or no more.
        """
        if named is None:
            if len(brought) >= limits.MODULE_NAMED_BYTES_LEAST:
                digest = await clock.run_sized(self._executor, len(brought), digest_of, brought)
                self._kept.put(digest, brought)
            return brought
        if brought:
            raise ArgumentInvalid("a request either names its module or brings it")
        digest = from_hex(named, "a module is named by 64 hexadecimal digits")
        module = self._kept.get(digest) or await self._services.module(digest)
        if module is None:
            raise ModuleUnknown("this node does not have the module", hint="send its bytes along")
        return module


def from_hex(text: str, fault: str) -> bytes:
    """Return the 32 bytes that a text names.

    Raises:
        ArgumentInvalid: it is not so many hexadecimal digits; says `fault`.
    """
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ArgumentInvalid(fault)
    return bytes.fromhex(text)


@dataclass(eq=False)
class StoredInput:
    """One object that a job reads as a file (`xsc.compute.ports.InputObject`)."""

    name: str
    digest: bytes
    size_bytes: int
    reference: bytes = field(repr=False)
    spared: Mapping[bytes, int]
    read: Callable[[], Coroutine[Any, Any, bytes]] = field(repr=False)


class JobInputs:
    """Finds the objects that jobs name."""

    def __init__(self, storage: StorageService, executor: clock.Executor) -> None:
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
        if sum(referred.size_bytes for _, _, referred in found) > limits.INPUT_BYTES_MAX:
            raise TooLarge(f"the inputs of one job are bounded to {limits.INPUT_BYTES_MAX} bytes")
        return [await self._input(*each) for each in found]

    async def _input(self, name: str, capability: str, referred: Referred) -> StoredInput:
        content: bytes | None = None

        async def read() -> bytes:
            nonlocal content
            if content is None:
                reader = await self._storage.open(capability)
                content = b"".join([chunk async for chunk in reader.stream()])
            return content

        digest = self._digests.get(referred.manifest_hash)
        if digest is None:
            found = await read()
            digest = await clock.run_sized(self._executor, len(found), digest_of, found)
            self._digests.put(referred.manifest_hash, digest)
        size_bytes, reference = referred.size_bytes, referred.reference
        return StoredInput(name, digest, size_bytes, reference, referred.spared, read)
