"""One row of a batch, proved without the others: what holds, and that nothing else does."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.strategies import vectors
from tests.unit.compute.programs import wasm
from tests.unit.compute.test_batch import many
from xsc.base.encoding import encode
from xsc.base.errors import ArgumentInvalid, ProofInvalid, RecordInvalid
from xsc.base.limits import LEAF_BYTES
from xsc.compute import batch
from xsc.compute.batch import Row, Rows, Shape
from xsc.compute.inputs import batch_input_hash
from xsc.compute.limits import Limits as Bounds
from xsc.compute.rowproof import MAGIC, prove, proved_row, read_proof
from xsc.node.replay import Given
from xsc.node.rows import prove_line, verify_line
from xsc.terms.execution import Order

CASE = vectors("batch")["batch"]
OUTPUT_BYTES = Bounds().output_bytes


def test_golden_proof():
    """Made without this package."""
    raw = prove(
        b"receipt",
        Shape(3, 1000),
        bytes.fromhex(CASE["arguments"]),
        (bytes.fromhex(CASE["rows"]), bytes.fromhex(CASE["traps"])),
        1,
    )
    assert raw.hex() == CASE["proof_1"]
    assert read_proof(raw).row == 1


class Batch:
    """A batch of the provider's, of as many rows as are wanted, and what it signed of it."""

    def __init__(self, count, *, traps=False):
        rows = [
            Row((("i32", number.to_bytes(4, "little")),), None, 4 + number)
            for number in range(count)
        ]
        if traps:
            rows[1] = Row((), "module_trapped: unreachable", 9)
        written = Rows(("i32",))
        for row in rows:
            written.add(row)
        self.rows, self.tables = rows, written.tables()
        self.shape, self.arguments = Shape(count, 10**6), bytes(count)
        digest = hashlib.sha256(self.arguments).digest()
        fields = {
            "mode": "batch",
            "input": batch_input_hash(self.shape.texts(), digest, OUTPUT_BYTES),
        }
        self.order = Order.model_construct(**fields)
        outcome = {"trap": None, "output": batch.batch_output(*self.tables)}
        self.outcome = type("Outcome", (), outcome)()

    def proof(self, row):
        return read_proof(prove(b"", self.shape, self.arguments, self.tables, row))

    def proved(self, proof):
        return proved_row(proof, self.order, self.outcome, OUTPUT_BYTES)


@pytest.mark.parametrize("count", [1, 2, 3, 1170, 1171, 1172, 2341, 6000])
def test_every_row_is_proved_and_no_other(count):
    """Rows of 14 bytes stand across the borders of leaves."""
    made = Batch(count)
    borders = {border * LEAF_BYTES // 14 for border in range(1 + count * 14 // LEAF_BYTES)}
    near = {border + step for border in borders for step in (-1, 0, 1)}
    for row in sorted(near | {0, 1, count - 1}):
        if not 0 <= row < count:
            continue
        proof = made.proof(row)
        told = made.proved(proof)
        assert (told.trap, told.fuel_used) == (None, 4 + row)
        assert told.bits == row.to_bytes(4, "little")
        assert len(proof.leaves) <= 2 * LEAF_BYTES
        for other in (row - 1, row + 1, 0, count - 1, count):
            if other < 0:
                continue
            try:
                found = made.proved(proof.model_copy(update={"row": other}))
            except RecordInvalid:
                continue
            # What stands in the same leaves is proved as well, and is what it says.
            assert found.bits == other.to_bytes(4, "little")


def test_a_row_that_was_trapped_is_proved_with_its_trap():
    told = Batch(5, traps=True)
    row = told.proved(told.proof(1))
    assert (row.trap, row.fuel_used, row.bits) == ("module_trapped: unreachable", 9, bytes(4))


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"count": 6}, "another batch"),
        ({"fuel": 7}, "another batch"),
        ({"arguments": bytes(32)}, "another batch"),
        ({"root": bytes(32)}, "another table"),
        ({"traps": encode([])}, "another table"),
        ({"row": 5}, "no such row"),
        ({"row": 2**40}, "no such row"),
        ({"table_bytes": 5 * 15}, "does not stand"),
        ({"table_bytes": 5 * 9}, "no such row"),
        ({"table_bytes": 71}, "no such row"),
        ({"table_bytes": 0}, "no such row"),
        ({"leaves": b""}, "does not stand"),
        ({"leaves": bytes(70)}, "does not stand"),
        ({"path": (bytes(32),)}, "does not stand"),
    ],
)
def test_each_rule_of_a_proof_is_named(changed, rule):
    made = Batch(5, traps=True)
    proof = made.proof(2)
    with pytest.raises(RecordInvalid, match=rule):
        made.proved(proof.model_copy(update=changed))


@pytest.mark.parametrize("changed", [{"mode": "run"}, {"input": bytes(32)}])
def test_a_proof_goes_with_its_receipt_alone(changed):
    made = Batch(5)
    proof = made.proof(2)
    made.order = made.order.model_copy(update=changed)
    with pytest.raises(RecordInvalid):
        made.proved(proof)
    made = Batch(5)
    made.outcome.trap = "time_exceeded"
    with pytest.raises(RecordInvalid, match="came to its end"):
        made.proved(proof)


@pytest.mark.parametrize("raw", [b"", MAGIC, MAGIC + b"\xa0", b"XSC batch row 2\n", MAGIC[:-1]])
def test_what_is_no_proof_is_refused(raw):
    with pytest.raises(ProofInvalid):
        verify_line(raw)


async def a_proof(world):
    done = await many(world, "trap", "divide", [["6", "3"], ["1", "0"], ["8", "2"]])
    rows = [
        {
            "results": item.results,
            "fuel_used": item.fuel_used,
            "trap": None
            if item.trap is None
            else {"code": item.trap.code, "detail": item.trap.message},
        }
        for item in done.items
    ]
    return done, rows


async def test_no_flipped_bit_of_a_proof_passes(world):
    done, rows = await a_proof(world)
    printed = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    given = Given(stdin=b"6 3\n1 0\n8 2\n", results=printed)
    module = wasm("trap")
    proofs = [prove_line(done.receipt, module, given, line) for line in (1, 2, 3)]
    told = [verify_line(proof, module) for proof in proofs]
    assert told[0].startswith("line 1 of 3 gave 2 for ")
    assert told[1].startswith("line 2 of 3 was ended by module_trapped: integer division by zero")
    assert verify_line(proofs[2]).startswith("line 3 of 3 gave the bits 04000000 for ")
    assert all("a batch of calls of divide" in text for text in told)
    for place in range(0, len(proofs[0]), 3):
        damaged = bytearray(proofs[0])
        damaged[place] ^= 1 << place % 8
        try:
            assert verify_line(bytes(damaged), module) in told  # another true line at most
        except ProofInvalid:
            continue
    with pytest.raises(ProofInvalid, match="another module"):
        verify_line(proofs[0], wasm("add"))
    for line in (0, 4):
        with pytest.raises(ArgumentInvalid, match="from 1 to 3"):
            prove_line(done.receipt, module, given, line)
    with pytest.raises(ArgumentInvalid, match="another module"):
        prove_line(done.receipt, wasm("add"), given, 1)
    with pytest.raises(ArgumentInvalid, match="not the input"):
        prove_line(done.receipt, module, Given(stdin=b"6 3\n", results=printed), 1)
    false = Given(stdin=given.stdin, results=printed.replace(b'["2"]', b'["3"]'))
    with pytest.raises(ProofInvalid, match="not those"):
        prove_line(done.receipt, module, false, 1)
    single = await world.invoke(local=True)
    with pytest.raises(ArgumentInvalid, match="only a batch"):
        prove_line(single.receipt, wasm("add"), given, 1)
