"""Stores evidence against providers: pairs of receipts that contradict each other.

    compute/dissent/<found ms, 8 bytes><id>    a signed `Dissent`

A dissent is on the disk before it is reported. A full store drops the oldest of
DISSENTS_KEPT_MAX.
"""

from __future__ import annotations

from xsc.api.jobs import Evidence
from xsc.base import errors, ids, keyvalue
from xsc.identity.envelope import Signed, open_signed
from xsc.terms.execution import Dissent, ExecutionReceipt

DISSENTS_KEPT_MAX = 1024
"""Evidence against providers; the oldest goes first."""

_ROOT = b"compute/dissent/"


def differing(first: ExecutionReceipt, second: ExecutionReceipt) -> tuple[str, ...]:
    """Return the names of the fields in which two outcomes differ."""
    one, other = first.outcome, second.outcome
    return tuple(
        name for name in type(one).model_fields if getattr(one, name) != getattr(other, name)
    )


class EvidenceStore:
    """The dissents of one node."""

    def __init__(self, network: bytes, state: keyvalue.KeyValue) -> None:
        self._network = network
        self._state = state

    def keep(self, dissent: Signed[Dissent]) -> None:
        """Store a dissent, synced."""
        key = _ROOT + dissent.record.found_ms.to_bytes(8, "big") + dissent.id
        keys = [kept for kept, _ in self._state.scan(_ROOT, keyvalue.prefix_end(_ROOT))]
        over = max(0, len(keys) + 1 - DISSENTS_KEPT_MAX)
        old: list[keyvalue.Change] = [(kept, None) for kept in keys[:over]]
        self._state.write([(key, dissent.raw), *old], sync=True)

    def count(self) -> int:
        """Return how many dissents are kept."""
        return sum(1 for _ in self._state.scan(_ROOT, keyvalue.prefix_end(_ROOT)))

    def list(self) -> list[Evidence]:
        """Return all dissents, the oldest first."""
        return [self._opened(raw) for _, raw in self._state.scan(_ROOT, keyvalue.prefix_end(_ROOT))]

    def get(self, beginning: str) -> bytes:
        """Return the signed record whose id, as text, begins so.

        Raises:
            NotFound: none does, or more than one.
        """
        found = [
            raw
            for key, raw in self._state.scan(_ROOT, keyvalue.prefix_end(_ROOT))
            if ids.to_text(key[len(_ROOT) + 8 :]).startswith(beginning)
        ]
        if len(found) != 1:
            raise errors.NotFound(
                f"{'no' if not found else 'more than one'} evidence has that id",
                hint="`xsc compute evidence` lists it",
            )
        return found[0]

    def _opened(self, raw: bytes) -> Evidence:
        dissent = open_signed(raw, Dissent, network=self._network)
        first, second = (
            open_signed(receipt, ExecutionReceipt, network=self._network)
            for receipt in (dissent.record.first, dissent.record.second)
        )
        return Evidence(
            id=dissent.id,
            found_ms=dissent.record.found_ms,
            module=first.record.outcome.module.hex(),
            function=first.record.outcome.function,
            first=first.author,
            second=second.author,
            differs=differing(first.record, second.record),
        )
