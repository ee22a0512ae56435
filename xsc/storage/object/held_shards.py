"""Asking a host which shards it has already, before they are sent a second time.

    storage.have    lease, locate, generation, shards: [{segment, column, root}] -> receipt

The answer is a storage receipt like that of a put, over those of the named shards
that lie there under that lease and read back with their root: a host that says so
is bound by it as if they had just come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from xsc.base import encoding, errors, fields, ids
from xsc.storage.object.erasure import COLUMN_MAX, GENERATION_MAX, SEGMENT_MAX
from xsc.storage.object.inventory import Wanted
from xsc.terms.storage_receipt import StorageReceipt

HAVE = "storage.have"
HAVE_MAX = 256
"""Shards named in one question."""


def have_message(
    lease_id: bytes, locate: bytes, generation: int, wanted: Sequence[Wanted]
) -> dict[str, encoding.Value]:
    """Return the header of a `storage.have`."""
    listed: list[encoding.Value] = [
        {"segment": want.segment, "column": want.column, "root": want.root} for want in wanted
    ]
    return {"lease": lease_id, "locate": locate, "generation": generation, "shards": listed}


def read_have(header: Mapping[str, encoding.Value]) -> tuple[bytes, bytes, int, list[Wanted]]:
    """Return lease, locate id, generation, and the shards that are asked for.

    Raises:
        RecordInvalid: it breaks a rule.
    """
    wanted = []
    for item in fields.take_list(header, "shards", most=HAVE_MAX):
        if not isinstance(item, dict):
            raise errors.RecordInvalid("an item of a list must be a map")
        wanted.append(
            Wanted(
                fields.take_int(item, "segment", most=SEGMENT_MAX),
                fields.take_int(item, "column", most=COLUMN_MAX),
                fields.take_bytes(item, "root", size=ids.ID_BYTES),
            )
        )
    if len({(want.segment, want.column) for want in wanted}) != len(wanted):
        raise errors.RecordInvalid("a shard is named twice")
    return (
        fields.take_bytes(header, "lease", size=ids.ID_BYTES),
        fields.take_bytes(header, "locate", size=ids.ID_BYTES),
        fields.take_int(header, "generation", most=GENERATION_MAX),
        wanted,
    )


def receipt_fault(
    receipt: StorageReceipt,
    *,
    host: bytes,
    customer: bytes,
    lease_id: bytes,
    locate: bytes,
    generation: int,
    wanted: Sequence[Wanted],
    size_of: Callable[[Wanted], int],
) -> str | None:
    """Return the first thing that a host says otherwise than it was asked, or None."""
    asked = {
        "host": host,
        "customer": customer,
        "lease_id": lease_id,
        "locate": locate,
        "generation": generation,
        "manifest": None,
    }
    for name, value in asked.items():
        if getattr(receipt, name) != value:
            return f"the receipt names another {name.replace('_', ' ')}"
    left = {(want.segment, want.column): want for want in wanted}
    for held in receipt.shards:
        want = left.pop((held.segment, held.column), None)
        if want is None or held.root != want.root or held.size_bytes != size_of(want):
            return f"the receipt is wrong about segment {held.segment}, column {held.column}"
    return None
