"""What health needs of others beside peers: what to say of this node.

`xsc.node.build` gives it; what health gives (`is_up`, `quality_ppm`,
`response_ms`) is declared where it is used, in the ports of `market`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What this node tells the nodes that probe it."""

    name: str
    version: str
    storage_free_bytes: int
    storage_capacity_bytes: int
    compute_free_steps: int


class Describe(Protocol):
    """Gives the present state of this node."""

    def __call__(self) -> NodeInfo:
        """Return what to say of this node now."""
