"""Computes until when hosts keep an object, from leases and from what hosts report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from xsc.api.objects import Ending
from xsc.base.limits import STORAGE_LEASE_MS
from xsc.storage.object.inventory import HeldColumn, HeldObject, HeldRecord
from xsc.storage.object.manifest import Manifest, expected_digest
from xsc.storage.object.placement import State
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


def own_expiring(
    manifest: Manifest,
    columns: Sequence[bytes],
    states: Sequence[State],
    answers: Mapping[bytes, HeldObject | None],
    *,
    ends: Iterable[Ending],
    own: bytes,
    until_ms: int,
) -> frozenset[int]:
    """Return the columns that their owner must move, because a lease was refused and ends by then.

    What the host says of the own copy decides where it says more than is known here.
    """
    refused = refusing(ends, until_ms)
    found = set()
    for column, (node, state) in enumerate(zip(columns, states, strict=True)):
        held = answers[node]
        if node not in refused or state != "ok" or held is None:
            continue
        told = [end for customer, end in copies(manifest, column, held) if customer == own]
        if not any(end is not None and end > until_ms for end in told):
            found.add(column)
    return frozenset(found)


def custody_expiring(
    manifest: Manifest,
    columns: Sequence[bytes],
    states: Sequence[State],
    answers: Mapping[bytes, HeldObject | None],
    *,
    own: bytes,
    trusted: Collection[bytes],
    now_ms: int,
    rescue_ms: int,
    last_ms: int,
) -> tuple[frozenset[int], frozenset[int]]:
    """Return the columns that a custodian must keep where they are, and those it must move.

    A column is safe while one of those trusted, the owner or a custodian before this one, or this
    node keeps it for longer than `rescue_ms`. It is kept where it
    is, under a lease of the custodian, unless it has one there already, which was not renewed,
    or the end is nearer than `last_ms` and the host has not given it one.
    """
    here, elsewhere = set(), set()
    for column, (node, state) in enumerate(zip(columns, states, strict=True)):
        held = answers[node]
        if state != "ok" or held is None:
            continue
        every = copies(manifest, column, held)
        kept = [item for item in every if item[0] == own or item[0] in trusted]
        known = [end for _, end in kept if end is not None]
        if not every or len(known) < len(kept):
            continue
        kept_ms = max(known, default=now_ms + last_ms + 1)
        if known and kept_ms > now_ms + rescue_ms:
            continue
        mine = any(customer == own for customer, _ in kept)
        if mine or kept_ms <= now_ms + last_ms:
            elsewhere.add(column)
        else:
            here.add(column)
    return frozenset(here), frozenset(elsewhere)
