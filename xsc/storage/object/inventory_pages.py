"""Puts together what a host says of an object in several pages: a rule over its answers.

A host goes through the shards of an object by segment, column and customer. Each page
speaks of those between two places, so that who has the manifest knows which segments of
a column a page must have shown, and compares their digest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from xsc.base.errors import RecordInvalid
from xsc.base.ids import ID_BYTES
from xsc.base.limits import COLUMNS_MAX, DAMAGED_TOLD_MAX
from xsc.storage.object.inventory import HeldColumn, HeldObject
from xsc.storage.object.manifest import (
    Manifest,
    column_digest,
    expected_digest,
    root_at,
    segments_of,
)


@dataclass(slots=True)
class _Column:
    """What the pages so far say of one column of a customer."""

    segments: int = 0
    shown: int = 0
    """Segments of those that were shown with the roots that they must have."""
    damaged: int = 0
    bad: tuple[int, ...] = ()
    ends_ms: int | None = None


def _behind(place: bytes, item: HeldColumn) -> int:
    """Return the first segment whose shard of a customer's column lies behind a place."""
    if not place:
        return 0
    return int.from_bytes(place[:4], "big") + (bytes([item.column]) + item.customer <= place[4:])


class InventoryPages:
    """What the pages of one stat say together, as they come."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._segments = segments_of(manifest)
        self._first: HeldObject | None = None
        self._after = b""
        self._found: dict[tuple[bytes, int], _Column] = {}
        self._sizes: Counter[bytes] | None = Counter()

    def add(self, page: HeldObject) -> bytes:
        """Take the next page; return the place behind which the one after it begins, or nothing.

        Raises:
            RecordInvalid: it goes backwards, or tells of more columns than one answer may.
        """
        if page.until and page.until <= self._after:
            raise RecordInvalid("what a host says that it holds goes backwards")
        if self._first is None:
            self._first = page
        for item in page.columns:
            start = _behind(self._after, item)
            stop = min(_behind(page.until, item) if page.until else self._segments, self._segments)
            self._add(item, range(start, stop))
        if len(self._found) > COLUMNS_MAX:
            raise RecordInvalid(f"a host tells of more than {COLUMNS_MAX} columns of one object")
        if page.mine is None:
            self._sizes = None
        elif self._sizes is not None:
            self._sizes.update(dict(page.mine))
        self._after = page.until
        return page.until

    def _add(self, item: HeldColumn, segments: range) -> None:
        """Add what a page says of a column, of which it must show these segments."""
        known = self._found.setdefault((item.customer, item.column), _Column())
        if item.column < self._manifest.k + self._manifest.m:
            roots = [(index, root_at(self._manifest, index, item.column)) for index in segments]
            if item.digest == column_digest(roots):
                known.shown += len(roots)
        known.segments += item.segments
        known.damaged += item.damaged
        known.bad = (known.bad + item.bad)[:DAMAGED_TOLD_MAX]
        ends = [end for end in (known.ends_ms, item.ends_ms) if end is not None]
        known.ends_ms = min(ends, default=None)

    def whole(self) -> HeldObject:
        """Return all of it, once no page follows.

        A column of which every page showed what it must has the digest of a whole column, each
        other one that of none.
        """
        first = self._first
        assert first is not None
        if not first.until:
            return first
        columns = tuple(
            HeldColumn(
                customer,
                column,
                item.segments,
                expected_digest(self._manifest, column)
                if item.shown == item.segments == self._segments
                else bytes(ID_BYTES),
                item.damaged,
                item.ends_ms,
                bad=item.bad,
            )
            for (customer, column), item in sorted(self._found.items())
        )
        mine = None if self._sizes is None else tuple(sorted(self._sizes.items()))
        return HeldObject(columns, first.record, first.records, mine=mine)
