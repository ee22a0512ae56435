"""What storage answers about objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from xsc.api.market import PassedOver
from xsc.api.objects import State
from xsc.identity.envelope import Signed
from xsc.storage.object.durability import Contract
from xsc.storage.object.inventory import HeldObject
from xsc.storage.object.placement import column_state
from xsc.storage.transfer.get import Located
from xsc.terms.storage_receipt import DeletionReceipt

UNFOUND_MARGIN = -1
"""Of an object that a recovery did not find."""


@dataclass(frozen=True, slots=True)
class PutResult:
    """An object that was stored."""

    capability: str
    size_bytes: int
    hosts: tuple[bytes, ...]
    """The node of each column."""
    warnings: list[str]
    survives: Contract
    """How many nodes, sites and owners can be lost, whichever they are."""
    version: int = 1
    """Its number under the name."""
    passed_over: tuple[PassedOver, ...] = ()


@dataclass(frozen=True, slots=True)
class RmResult:
    """Which hosts confirmed a deletion, and which could not be reached."""

    confirmed: tuple[bytes, ...]
    unreachable: tuple[bytes, ...]
    receipts: tuple[Signed[DeletionReceipt], ...] = ()
    """Of the peers that confirmed; the own node gives none to itself."""
    name: str = ""
    """Its name; empty for files of directories and internal objects."""
    given_up: bool = False
    """Whether a silent host is not asked any more, because it has dropped the object by itself."""

    @property
    def partly(self) -> bool:
        """Whether some host has still to confirm: run `rm` again."""
        return bool(self.unreachable)


class Retried(NamedTuple):
    """Numbers of objects whose deletion was retried."""

    confirmed: int
    open: int
    given_up: int
    """Their last hosts stayed silent until they must have dropped the objects by themselves."""


def best_columns(
    located: Located, answers: Mapping[bytes, HeldObject | None], *, placed: bool
) -> tuple[list[bytes | None], list[State]]:
    """Return for each column the node with its best copy, and the state of that copy.

    It is not known which of several silent nodes has a column: each is named once.

    Args:
        located: the object, and who may hold its columns.
        answers: what these said.
        placed: whether its owner's placement names them, and no search.
    """
    rank: list[State] = ["ok", "corrupt", "missing", "unreachable"]
    columns: list[bytes | None] = []
    states: list[State] = []
    for column, nodes in enumerate(located.holders):
        told = [
            (rank.index(column_state(located.manifest, column, answers[node])), node)
            for node in nodes
            # Every copy of an inline object is the same: each node that was found counts for one
            # column. By the placement it counts for those that it was given.
            if placed or located.manifest.inline is None or node not in columns
        ]
        state = rank[min(told)[0]] if told else "missing"
        best = [node for place, node in told if rank[place] == state]
        if state == "unreachable":
            best = [node for node in best if node not in columns]
        columns.append(best[0] if best else None)
        states.append(state)
    return columns, states
