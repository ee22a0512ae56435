"""Proofs of single lines of a batch: `xsc compute prove`, and `xsc verify` of what it wrote."""

from __future__ import annotations

import hashlib

from xsc.base.errors import ArgumentInvalid, LimitError, PeerError, ProofInvalid
from xsc.compute import batch, spot
from xsc.compute.batch import Rows
from xsc.compute.limits import Limits
from xsc.compute.program import read
from xsc.compute.rowproof import ProvedRow, prove, proved_row, read_proof
from xsc.compute.values import format_bits
from xsc.node.replay import Given, input_of
from xsc.node.verify import open_execution, verify_file
from xsc.terms.execution import WIDTHS


def prove_line(raw: bytes, module: bytes, given: Given, line: int) -> bytes:
    """Return the file that proves what one line of a batch gave.

    Args:
        raw: the receipt of the batch.
        module: that it ran.
        given: its lines, and what it had printed.
        line: which one, from 1 on.

    Raises:
        ArgumentInvalid: module, lines or results are others, or there is no such line.
        ProofInvalid: the receipt is wrong, or does not bind the results.
    """
    order, receipt = open_execution(raw)
    if order.record.mode != "batch" or receipt.record.outcome.trap is not None:
        raise ArgumentInvalid("only a batch that came to its end has lines to be proved")
    if hashlib.sha256(module).digest() != order.record.module:
        raise ArgumentInvalid("the receipt is for another module than the one given")
    signature = read(module).signature(order.record.function)
    found = input_of(order.record, module, given)
    shape = batch.shape_of(found.args)
    rows = spot.read_results(given.results or b"", signature.results)
    made = Rows(signature.results)
    for row in rows:
        made.add(row)
    tables = made.tables()
    if len(rows) != shape.count or batch.batch_output(*tables) != receipt.record.outcome.output:
        raise ProofInvalid("the results are not those that the receipt binds")
    if not 1 <= line <= shape.count:
        raise ArgumentInvalid(f"lines from 1 to {shape.count} can be proved")
    return prove(raw, shape, found.stdin, tables, line - 1)


def verify_line(raw: bytes, module: bytes | None = None, lease: bytes | None = None) -> str:
    """Return, in one line for people, what such a file proves.

    Raises:
        ProofInvalid: the first thing that is wrong.
    """
    try:
        proof = read_proof(raw)
        order, receipt = open_execution(proof.receipt)
        told = receipt.record.outcome
        row = proved_row(proof, order.record, told, Limits().output_bytes)
        under = verify_file(proof.receipt, module, lease)
    except (PeerError, LimitError, ArgumentInvalid) as fault:
        raise ProofInvalid(fault.message, hint=fault.hint) from None
    types = None if module is None else read(module).signature(told.function).results
    return (
        f"line {proof.row + 1} of {proof.count} {_given(row, types)} for {row.fuel_used} fuel; "
        f"{under}"
    )


def _given(row: ProvedRow, types: tuple[str, ...] | None) -> str:
    """Return what a row says: numbers by the module's types, else the bits."""
    if types is not None and sum(WIDTHS[kind] for kind in types) != len(row.bits):
        raise ProofInvalid("the rows are not of the function's types")
    if row.trap is not None:
        return f"was ended by {row.trap}"
    if types is None:
        return f"gave the bits {row.bits.hex() or 'of nothing'}"
    texts, start = [], 0
    for kind in types:
        texts.append(format_bits(kind, row.bits[start : start + WIDTHS[kind]]))
        start += WIDTHS[kind]
    return f"gave {' '.join(texts) or 'nothing'}"
