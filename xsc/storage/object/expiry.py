"""Computes until when hosts keep an object, from leases and from what hosts report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final

from xsc.api.objects import Ending
from xsc.base.limits import STORAGE_LEASE_MS
from xsc.storage.object.inventory import HeldColumn, HeldObject, HeldRecord
from xsc.storage.object.manifest import Manifest, expected_digest
from xsc.storage.ports import LeaseEnd

UNKNOWN: Final = "this node does not know the lease"


def before_end(time_ms: int, lease_ms: int) -> int:
    """Return so much time before the end of a lease, shorter as the leases of a node are."""
    return time_ms * lease_ms // STORAGE_LEASE_MS


def own_ends(
    held: Iterable[tuple[bytes, bytes]], own: bytes, end_of: Callable[[bytes], LeaseEnd | None]
) -> list[Ending]:
    """Return for each host when the first of the own leases there ends.

    Args:
        held: host and lease of all that this node pays for.
        own: this node, which needs no lease with itself.
        end_of: what the market knows of a lease.
    """
    found: dict[bytes, Ending] = {}
    for node, lease_id in held:
        if node == own:
            continue
        known = end_of(lease_id)
        end = (
            Ending(node=node, ends_ms=None, reason=UNKNOWN)
            if known is None
            else Ending(node=node, ends_ms=known.end_ms, reason=known.reason)
        )
        before = found.get(node)
        if before is None or _earlier(end, before):
            found[node] = end
    return [found[node] for node in sorted(found)]


def _earlier(one: Ending, other: Ending) -> bool:
    if one.ends_ms is None or other.ends_ms is None:
        return one.ends_ms is None
    return one.ends_ms < other.ends_ms


def ending(ends: Iterable[Ending], until_ms: int) -> list[Ending]:
    """Return the hosts that keep their part no longer than that, as things stand."""
    return [
        end
        for end in ends
        if (end.ends_ms is None and end.reason)
        or (end.ends_ms is not None and end.ends_ms <= until_ms)
    ]


def refusing(ends: Iterable[Ending], until_ms: int) -> frozenset[bytes]:
    """Return the hosts that did not renew a lease which ends by then."""
    return frozenset(
        end.node for end in ending(ends, until_ms) if end.ends_ms is not None and end.reason
    )


def first_end(ends: Iterable[Ending]) -> int | None:
    """Return when the first host stops; None where none is known to."""
    return min((end.ends_ms for end in ends if end.ends_ms is not None), default=None)


def told_ends(answers: Mapping[bytes, HeldObject | None]) -> list[Ending]:
    """Return until when each host that answered says that it keeps its part."""
    return [
        Ending(node=node, ends_ms=held.ends_ms)
        for node, held in sorted(answers.items())
        if held is not None and (held.columns or held.records)
    ]


def with_ends(held: HeldObject, end_of: Callable[[bytes], int | None]) -> HeldObject:
    """Return what a host holds with the end of each lease that it lies under."""

    def until(leases: Iterable[bytes]) -> int | None:
        known = [end for end in map(end_of, sorted(leases)) if end is not None]
        return min(known, default=None)

    columns: list[HeldColumn] = [replace(item, ends_ms=until(item.leases)) for item in held.columns]
    records: list[HeldRecord] = [
        replace(item, ends_ms=until([item.lease_id])) for item in held.records
    ]
    return replace(held, columns=tuple(columns), records=tuple(records))


def copies(manifest: Manifest, column: int, held: HeldObject) -> list[tuple[bytes, int | None]]:
    """Return who has a whole column at a host, and until when; of an inline object, the record.

    Whoever wants can keep a copy for itself and let it go again.
    """
    if manifest.inline is not None:
        return [(item.customer, item.ends_ms) for item in held.records]
    digest = expected_digest(manifest, column)
    return [
        (item.customer, item.ends_ms)
        for item in held.columns
        if (item.column, item.digest, item.damaged) == (column, digest, 0)
    ]
