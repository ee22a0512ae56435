"""Proves what one call of a batch gave, without what the others gave.

The proof holds the receipt whole, what the order's input hash covers beside the table of
arguments, the leaves of the result table in which the row stands, and their path. Whoever
checks it needs nothing else; with the module, the bits are read by its types. What the call was
given is not in it: an order binds the arguments of all calls by one hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from xsc.base.errors import RecordInvalid
from xsc.base.limits import (
    BATCH_ITEMS_MAX,
    BATCH_TRAPS_BYTES_MAX,
    FUEL_MAX,
    LEAF_BYTES,
    OUTPUT_BYTES_MAX,
    RECORD_BYTES_MAX,
)
from xsc.base.merkle import leaf_hashes, prove_span, root_of, span_holds
from xsc.compute.batch import HEAD_BYTES, Shape, output_from, read_traps
from xsc.compute.inputs import batch_input_hash
from xsc.compute.sandbox import is_trap
from xsc.identity.envelope import Count, Id32, Record
from xsc.terms.execution import Order, Outcome

MAGIC = b"XSC batch row 1\n"
"""What a file with such a proof begins with."""
_PATH_MAX = 64


class RowProof(Record):
    """What stands in the file behind MAGIC, canonical."""

    KIND: ClassVar[str] = "batch_row_proof"

    receipt: Annotated[bytes, Field(max_length=RECORD_BYTES_MAX)]
    count: Annotated[int, Field(ge=1, le=BATCH_ITEMS_MAX)]
    """The calls of the batch."""
    fuel: Annotated[int, Field(ge=1, le=FUEL_MAX)]
    """Most fuel of one of them."""
    arguments: Id32
    """SHA-256 of the table of arguments."""
    row: Count
    """The call, from 0 on."""
    root: Id32
    """Of the table of results."""
    table_bytes: Annotated[int, Field(ge=0, le=OUTPUT_BYTES_MAX)]
    leaves: Annotated[bytes, Field(max_length=RECORD_BYTES_MAX)]
    """Those in which the row stands."""
    path: Annotated[tuple[Id32, ...], Field(max_length=_PATH_MAX)]
    traps: Annotated[bytes, Field(max_length=BATCH_TRAPS_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class ProvedRow:
    """What one call gave."""

    trap: str | None
    fuel_used: int
    bits: bytes
    """Of all results, one after another; their types are the module's to say."""


def _span(row: int, width: int) -> tuple[int, int]:
    """Return the first leaf in which a row stands, and the one behind the last."""
    return row * width // LEAF_BYTES, -(-(row + 1) * width // LEAF_BYTES)


def prove(
    receipt: bytes, shape: Shape, arguments: bytes, tables: tuple[bytes, bytes], row: int
) -> bytes:
    """Return the file that proves one row.

    Args:
        receipt: the signed receipt of the batch.
        shape: as the order names it.
        arguments: the table of arguments.
        tables: of results, and the list of traps, as the receipt binds them.
        row: which call, from 0 on.
    """
    table, traps = tables
    first, stop = _span(row, len(table) // shape.count)
    proof = RowProof(
        receipt=receipt,
        count=shape.count,
        fuel=shape.fuel,
        arguments=hashlib.sha256(arguments).digest(),
        row=row,
        root=root_of(table),
        table_bytes=len(table),
        leaves=table[first * LEAF_BYTES : stop * LEAF_BYTES],
        path=tuple(prove_span(leaf_hashes(table), first, stop)),
        traps=traps,
    )
    return MAGIC + proof.to_bytes()


def read_proof(raw: bytes) -> RowProof:
    """Return the proof that a file holds.

    Raises:
        RecordInvalid, TooLarge: it holds none.
    """
    if not raw.startswith(MAGIC):
        raise RecordInvalid("the file is no proof of a line of a batch")
    return RowProof.from_bytes(raw[len(MAGIC) :], size_max=3 * RECORD_BYTES_MAX)


def proved_row(proof: RowProof, order: Order, outcome: Outcome, output_bytes: int) -> ProvedRow:
    """Return the row, once receipt and proof are one.

    Args:
        proof: what was read.
        order, outcome: of its receipt, checked before.
        output_bytes: the bound that every order names.

    Raises:
        RecordInvalid: the first thing that does not fit.
    """
    if order.mode != "batch" or outcome.trap is not None:
        raise RecordInvalid("the receipt is not of a batch that came to its end")
    texts = Shape(proof.count, proof.fuel).texts()
    if batch_input_hash(texts, proof.arguments, output_bytes) != order.input:
        raise RecordInvalid("the order is of another batch than the proof says")
    if output_from(proof.root, proof.traps) != outcome.output:
        raise RecordInvalid("the receipt binds another table of results")
    width, rest = divmod(proof.table_bytes, proof.count)
    if rest or width < HEAD_BYTES or proof.row >= proof.count:
        raise RecordInvalid("the table has no such row")
    first, stop = _span(proof.row, width)
    size = min(stop * LEAF_BYTES, proof.table_bytes) - first * LEAF_BYTES
    if len(proof.leaves) != size or not span_holds(
        proof.root, proof.table_bytes, first, proof.leaves, proof.path
    ):
        raise RecordInvalid("the row does not stand in the table that the receipt binds")
    start = proof.row * width - first * LEAF_BYTES
    return _row(proof.leaves[start : start + width], read_traps(proof.traps, is_trap))


def _row(raw: bytes, traps: Sequence[str]) -> ProvedRow:
    number = int.from_bytes(raw[:2], "little")
    fuel_used = int.from_bytes(raw[2:HEAD_BYTES], "little")
    bits = raw[HEAD_BYTES:]
    if number > len(traps) or (number and any(bits)):
        raise RecordInvalid("the row is none that a batch can have")
    return ProvedRow(traps[number - 1] if number else None, fuel_used, bits)
