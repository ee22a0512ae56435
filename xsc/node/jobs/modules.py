"""Modules that came with jobs, so that the next job may name one instead of bringing it."""

from __future__ import annotations

import re

from xsc.base.bounded import Bounded
from xsc.base.errors import ArgumentInvalid, ModuleUnknown
from xsc.base.limits import MODULE_NAMED_BYTES_LEAST, MODULES_NAMED_BYTES_MAX


def name_of(named: str | None, brought: bytes) -> bytes | None:
    """Return the SHA-256 of the module that a request names, None where it brings one.

    Raises:
        ArgumentInvalid: it does both, or the name is none.
    """
    if named is None:
        return None
    if brought:
        raise ArgumentInvalid("a request either names its module or brings it")
    if not re.fullmatch("[0-9a-f]{64}", named):
        raise ArgumentInvalid("a module is named by 64 hexadecimal digits")
    return bytes.fromhex(named)


class Modules:
    """The modules that came last, by their SHA-256; small ones are quicker sent than named."""

    def __init__(self) -> None:
        self._kept: Bounded[bytes, bytes] = Bounded(size_max=MODULES_NAMED_BYTES_MAX, size_of=len)

    @staticmethod
    def wants(module: bytes) -> bool:
        """Say whether a module is large enough to be kept."""
        return len(module) >= MODULE_NAMED_BYTES_LEAST

    def keep(self, digest: bytes, module: bytes) -> None:
        """Keep a module; those that were not used longest go."""
        self._kept.put(digest, module)

    def get(self, digest: bytes) -> bytes:
        """Return a module.

        Raises:
            ModuleUnknown: it is not here, or no more.
        """
        module = self._kept.get(digest)
        if module is None:
            raise ModuleUnknown("this node does not have the module", hint="send its bytes along")
        return module
