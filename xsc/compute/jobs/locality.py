"""Data locality: which bytes of a job a provider already has, and need not receive.

The market prefers providers by `spared` (`xsc.market.auction.near`). `saved_max` is the most that
a provider can have saved; its receipt's `observed.saved_bytes` is checked against it. A saving
below LOCALITY_BYTES_LEAST does not change the choice of provider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xsc.base import errors, limits
from xsc.base.bounded import Bounded
from xsc.compute.ports import InputObject
from xsc.compute.wasm.inputs import RunInput, check_input


class ModuleHolders:
    """Remembers which nodes ran a module lately, and so have it."""

    def __init__(self) -> None:
        self._known: Bounded[bytes, dict[bytes, None]] = Bounded(limits.MODULES_REMEMBERED_MAX)

    def note(self, module: bytes, node: bytes) -> None:
        """Take note that a node has a module, by its hash."""
        nodes = self._known.get(module)
        if nodes is None:
            self._known.put(module, {node: None})
        else:
            nodes[node] = None

    def forget(self, module: bytes, node: bytes) -> None:
        """Take note that a node has a module no more."""
        (self._known.get(module) or {}).pop(node, None)

    def of(self, module: bytes) -> Sequence[bytes]:
        """Return the nodes that are known to have a module."""
        return tuple(self._known.get(module) or ())


def check_objects(given: RunInput, objects: Sequence[InputObject]) -> None:
    """Return if files and objects together are within the bounds of an input.

    Raises:
        ArgumentInvalid, TooLarge: they are not.
    """
    names = [*given.files, *((item.name, b"") for item in objects)]
    check_input(RunInput(given.args, given.environment, given.stdin, tuple(sorted(names))))
    files_bytes = sum(len(data) for _, data in given.files)
    if files_bytes + sum(item.size_bytes for item in objects) > limits.INPUT_BYTES_MAX:
        raise errors.TooLarge(f"the input files are over {limits.INPUT_BYTES_MAX} bytes together")


def referred_to(node: bytes, objects: Sequence[InputObject]) -> list[InputObject]:
    """Return the objects that a node reads itself: those of which it holds shards."""
    return [item for item in objects if item.spared.get(node, 0) > 0]


def spared(
    objects: Sequence[InputObject], module_bytes: int, holders: Sequence[bytes]
) -> Mapping[bytes, int]:
    """Return how many bytes each node saves that saves any worth a choice."""
    found: dict[bytes, int] = dict.fromkeys(holders, module_bytes)
    for item in objects:
        for node, saving in item.spared.items():
            found[node] = found.get(node, 0) + saving
    return {node: saving for node, saving in found.items() if saving >= limits.LOCALITY_BYTES_LEAST}


def saved_max(node: bytes, referred: Sequence[InputObject], module_bytes: int) -> int:
    """Return the most that a node can have saved, which was sent all but these.

    Args:
        node: the provider.
        referred: the objects that it was to read itself.
        module_bytes: the module's size, 0 where it was sent.
    """
    return module_bytes + sum(item.spared.get(node, 0) for item in referred)
