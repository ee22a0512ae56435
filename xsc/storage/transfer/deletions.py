"""What an owner keeps of its deletions, in its state database.

    storage/ended/<manifest hash>    when the object was deleted

That is kept for ten years: a custodian that did not hear of it renews its own leases, and
pays, until it is told.
"""

from __future__ import annotations

from typing import Final

from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.base.limits import STORAGE_LEASE_MS
from xsc.storage.shardstore.bodies import decode_number, encode_number

ENDED: Final = b"storage/ended/"
ENDED_KEPT_MS: Final = 3650 * 86_400_000


def ended_row(manifest_hash: bytes, now_ms: int) -> Change:
    """Return the change that keeps that an object was deleted."""
    return ENDED + manifest_hash, encode_number(now_ms)


def ended_since(state: KeyValue, manifest_hash: bytes) -> int | None:
    """Return when the deletion of an object began; None where it did not.

    Raises:
        StoreDamaged: what is kept of it is no time.
    """
    raw = state.get(ENDED + manifest_hash)
    return None if raw is None else decode_number(raw)


def dropped_ms(end_ms: int | None, deleted_ms: int | None, grace_ms: int) -> int | None:
    """Return when a silent host has dropped what was deleted; None where it is not known.

    A silent host renews nothing, so that its lease ends, and its grace after that.

    Args:
        end_ms: of the lease; None where it is not known (any more).
        deleted_ms: when the deletion began: then no lease can have been longer than the longest.
        grace_ms: how long hosts keep what lies under a lease that is over.
    """
    if end_ms is None and deleted_ms is not None:
        end_ms = deleted_ms + STORAGE_LEASE_MS
    return None if end_ms is None else end_ms + grace_ms


def was_ended(state: KeyValue, manifest_hash: bytes) -> bool:
    """Say whether the owner remembers that it deleted an object."""
    return state.get(ENDED + manifest_hash) is not None


def too_old(state: KeyValue, now_ms: int, most: int) -> list[Change]:
    """Return changes that drop up to so many rows that are ten years old."""
    changes: list[Change] = []
    for key, raw in state.scan(ENDED, prefix_end(ENDED)):
        if len(changes) >= most:
            break
        if decode_number(raw) < now_ms - ENDED_KEPT_MS:
            changes.append((key, None))
    return changes
