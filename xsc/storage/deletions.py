"""The deletion receipts that an owner keeps, in its state database.

    storage/deleted/<ms, 8 bytes><locate><host>    the signed receipt

Kept as long as a lease can run, because so long its host could still ask for
money: the receipt shows what it had confirmed to hold no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xsc.base.keyvalue import Change, KeyValue
from xsc.base.limits import STORAGE_LEASE_MS
from xsc.identity.envelope import Signed
from xsc.terms.deletion_receipt import DeletionReceipt

DELETED: Final = b"storage/deleted/"
KEPT_MS: Final = STORAGE_LEASE_MS


def _since(time_ms: int) -> bytes:
    return DELETED + time_ms.to_bytes(8, "big")


def kept(receipt: Signed[DeletionReceipt], now_ms: int) -> Change:
    """Return the change that keeps a receipt."""
    record = receipt.record
    return _since(now_ms) + record.locate + record.host, receipt.raw


def of_object(state: KeyValue, locate: bytes) -> Iterator[bytes]:
    """Yield the signed receipts for one object, oldest first."""
    for key, raw in state.scan(DELETED, _since(2**63)):
        if key[len(DELETED) + 8 :].startswith(locate):
            yield raw


def too_old(state: KeyValue, now_ms: int, most: int) -> list[Change]:
    """Return changes that drop up to so many receipts of leases that are long over."""
    changes: list[Change] = []
    for key, _ in state.scan(DELETED, _since(max(0, now_ms - KEPT_MS))):
        if len(changes) == most:
            break
        changes.append((key, None))
    return changes
