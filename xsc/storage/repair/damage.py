"""Which shards of a column are damaged while its host still serves the rest of it.

A host says which segments it knows to be damaged. If they are few and it has the
others, only they are stored again there, under the same lease, and the column does
not move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from xsc.storage.object.inventory import HeldColumn, HeldObject
from xsc.storage.object.manifest import Manifest, expected_digest

DAMAGED_SHARE_MAX: Final = 4
"""One segment in that many may be damaged. A disk that lost more gets no column."""


def _row(manifest: Manifest, column: int, held: HeldObject | None) -> HeldColumn | None:
    """Return the row of a column that was stored whole, by any customer."""
    if held is None or manifest.inline is not None:
        return None
    digest = expected_digest(manifest, column)
    rows = [row for row in held.columns if (row.column, row.digest) == (column, digest)]
    return min(rows, key=lambda row: row.damaged, default=None)


def damaged_segments(
    manifest: Manifest,
    columns: Sequence[bytes],
    answers: Mapping[bytes, HeldObject | None],
    own: bytes,
) -> dict[int, tuple[int, ...]]:
    """Return the segments to store again, by column; only columns of this customer.

    Args:
        manifest: of the object.
        columns: the node of each column.
        answers: what each node says.
        own: the customer.
    """
    found = {}
    for column, node in enumerate(columns):
        row = _row(manifest, column, answers.get(node))
        if row is None or row.customer != own or not row.bad:
            continue
        if len(row.bad) == row.damaged <= max(1, row.segments // DAMAGED_SHARE_MAX) < row.segments:
            found[column] = row.bad
    return found


def good_for(
    manifest: Manifest,
    columns: Sequence[bytes],
    answers: Mapping[bytes, HeldObject | None],
    segment: int,
) -> list[int]:
    """Return the columns whose hosts say that they have an undamaged shard of a segment."""
    found = []
    for column, node in enumerate(columns):
        row = _row(manifest, column, answers.get(node))
        if row is None or segment in row.bad or len(row.bad) < row.damaged:
            continue
        found.append(column)
    return found
