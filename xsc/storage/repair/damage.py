"""Which shards of a column are damaged where its host still serves the rest of it.

A host says which segments it knows to be damaged. As long as they are few and it
has the others, only they are stored anew there, under the same lease, instead of
the whole column elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from xsc.storage.object.inventory import HeldColumn, HeldObject
from xsc.storage.object.manifest import Manifest, expected_digest

PATCH_SHARE_MAX: Final = 4
"""One in so many segments may be damaged: a disk that lost more is not trusted with it."""


def _row(manifest: Manifest, column: int, held: HeldObject | None) -> HeldColumn | None:
    """Return the row of a column that was stored whole, of whichever customer."""
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
    """Return the segments to be stored anew, by column; columns of this customer alone.

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
        if len(row.bad) == row.damaged <= max(1, row.segments // PATCH_SHARE_MAX) < row.segments:
            found[column] = row.bad
    return found


def good_for(
    manifest: Manifest,
    columns: Sequence[bytes],
    answers: Mapping[bytes, HeldObject | None],
    segment: int,
) -> list[int]:
    """Return the columns whose hosts have an undamaged shard of a segment, as far as they know."""
    found = []
    for column, node in enumerate(columns):
        row = _row(manifest, column, answers.get(node))
        if row is None or segment in row.bad or len(row.bad) < row.damaged:
            continue
        found.append(column)
    return found
