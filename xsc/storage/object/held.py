"""What hosts hold of an object for this node, and how that is corrected by what they say.

What a host confirms is counted at once and synced with the next record that names
it, so that a power loss in between leaves more at the host than is known here.
Every look at an object has each host say what lies there under which lease, and
the record of the object follows: down, because who counts less for itself is believed; up
no further than what this node ordered there. What is paid follows the host's signed count.
Design: docs/design/storage-repair.md, R12.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from xsc.identity.envelope import Count, Id32
from xsc.storage.object.inventory import HeldObject


class Held(NamedTuple):
    """What a host confirmed to hold of an object under a lease."""

    node: Id32
    lease_id: Id32
    size_bytes: Count


def held_of(sizes: Mapping[tuple[bytes, bytes], int]) -> tuple[Held, ...]:
    """Return what is held, from bytes by node and lease."""
    return tuple(Held(*place, size) for place, size in sizes.items())


def most_held(answer: HeldObject, own: bytes, column_bytes: int, record_bytes: int) -> int:
    """Return the most that can lie at a host for this node, by the columns that it has there."""
    columns = sum(1 for item in answer.columns if item.customer == own)
    records = sum(1 for item in answer.records if item.customer == own)
    return columns * column_bytes + min(1, records) * record_bytes


def recounted(
    held: Sequence[Held], node: bytes, said: Sequence[tuple[bytes, int]] | None, most: int
) -> tuple[Held, ...]:
    """Return what is held, once a host said what lies there.

    Args:
        held: what was counted so far; leases that are not in it were not ordered for this.
        node: the host.
        said: lease and bytes; None where it does not say it.
        most: bytes that it is believed at most, beyond what was counted.
    """
    if said is None:
        return tuple(held)
    by_lease = dict(said)
    counted = Counter[bytes]()
    for item in held:
        if item.node == node:
            counted[item.lease_id] += item.size_bytes
    left = max(0, most - sum(min(size, by_lease.get(id_, 0)) for id_, size in counted.items()))
    found: list[Held] = []
    done: set[bytes] = set()
    for item in held:
        if item.node != node:
            found.append(item)
            continue
        if item.lease_id in done:
            continue
        done.add(item.lease_id)
        before, says = counted[item.lease_id], by_lease.get(item.lease_id, 0)
        more = min(max(0, says - before), left)
        left -= more
        if size := min(before, says) + more:
            found.append(Held(node, item.lease_id, size))
    return tuple(found)


def differences(before: Iterable[Held], after: Iterable[Held]) -> list[tuple[bytes, bytes, int]]:
    """Return node, lease and by how many bytes more (or less) is held there."""
    sizes: Counter[tuple[bytes, bytes]] = Counter()
    for item in after:
        sizes[item.node, item.lease_id] += item.size_bytes
    for item in before:
        sizes[item.node, item.lease_id] -= item.size_bytes
    return [(*place, delta) for place, delta in sorted(sizes.items()) if delta]
