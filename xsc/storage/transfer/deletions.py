"""What an owner keeps of its deletions, in its state database.

    storage/deleted/<ms, 8 bytes><locate><host>    the signed receipt
    storage/ended/<manifest hash>                  when the object was deleted

A receipt is kept as long as a lease can run, because so long its host could still
ask for money: it shows what that had confirmed to hold no more. That an object was
deleted is kept for ten years: a custodian that did not hear of it renews its own
leases, and pays, until it is told.
"""

from __future__ import annotations

from typing import Final

from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.base.limits import STORAGE_LEASE_MS
from xsc.identity.envelope import Signed
from xsc.storage.shardstore.bodies import decode_number, encode_number
from xsc.terms.storage_receipt import DeletionReceipt

DELETED: Final = b"storage/deleted/"
ENDED: Final = b"storage/ended/"
KEPT_MS: Final = STORAGE_LEASE_MS
ENDED_KEPT_MS: Final = 3650 * 86_400_000


def _since(time_ms: int) -> bytes:
    return DELETED + time_ms.to_bytes(8, "big")


def kept(receipt: Signed[DeletionReceipt], now_ms: int) -> Change:
    """Return the change that keeps a receipt."""
    record = receipt.record
    return _since(now_ms) + record.locate + record.host, receipt.raw


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
    """Return changes that drop up to so many rows about leases that are long over."""
    changes: list[Change] = []
    for key, _ in state.scan(DELETED, _since(max(0, now_ms - KEPT_MS))):
        if len(changes) == most:
            break
        changes.append((key, None))
    for key, raw in state.scan(ENDED, prefix_end(ENDED)):
        if len(changes) >= most:
            break
        if decode_number(raw) < now_ms - ENDED_KEPT_MS:
            changes.append((key, None))
    return changes
