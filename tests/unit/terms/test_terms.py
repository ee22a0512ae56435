"""What a term must satisfy beyond the types of its fields."""

from __future__ import annotations

import pytest

from tests.strategies import vectors
from xsc.base import limits
from xsc.base.encoding import decode
from xsc.base.errors import RecordInvalid
from xsc.terms.execution import ExecutionReceipt, Number, Observed, Order, Outcome
from xsc.terms.lease import LeaseRequest
from xsc.terms.storage_receipt import DeletionOrder, DeletionReceipt, HeldShard, StorageReceipt

BODIES = {
    case["kind"]: decode(bytes.fromhex(case["body"])) for case in vectors("envelope")["records"]
}


def made(record, **changes):
    return record.from_value({**BODIES[record.KIND], **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"end_ms": 1_700_000_000_000}, "ends before it begins"),
        ({"end_ms": 0}, "ends before it begins"),
        ({"level": 0}, "a cleared lease has a level"),
        ({"need": None}, "one for now has none"),
        ({"level": 2**63}, "level"),
        ({"level": -1}, "level"),
        ({"price": -1}, "price"),
        ({"kind": "egress"}, "kind"),
        ({"tier": "best"}, "tier"),
        ({"slot": bytes(15)}, "slot"),
        ({"window": [1]}, "window"),
        ({"provider": bytes(31)}, "provider"),
    ],
    ids=str,
)
def test_a_lease_request_is_refused(changes, reason):
    with pytest.raises(RecordInvalid, match=reason):
        made(LeaseRequest, **changes)


def test_a_request_for_now_has_no_level_and_no_need():
    assert not made(LeaseRequest, need=None, level=0).cleared
    assert made(LeaseRequest).cleared


@pytest.mark.parametrize("number_type", ["i32", "i64", "f32", "f64"])
@pytest.mark.parametrize("width", range(3, 10))
def test_a_number_is_as_wide_as_its_type(number_type, width):
    body = {"v": 1, "type": number_type, "bits": bytes(width)}
    if width == {"i32": 4, "i64": 8, "f32": 4, "f64": 8}[number_type]:
        assert Number.from_value(body).bits == bytes(width)
    else:
        with pytest.raises(RecordInvalid):
            Number.from_value(body)


@pytest.mark.parametrize(
    "changes",
    [
        {"fuel_max": 0},
        {"fuel_max": limits.FUEL_MAX + 1},
        {"memory_bytes_max": 0},
        {"memory_bytes_max": limits.MEMORY_BYTES_MAX + 1},
        {"timeout_ms": 0},
        {"timeout_ms": limits.TIMEOUT_MS_MAX + 1},
        {"mode": "compile"},
        {"function": "x" * 1025},
        {"nonce": bytes(17)},
        {"arguments": [{"v": 1, "type": "i32", "bits": bytes(4)}] * (limits.ARGUMENTS_MAX + 1)},
        {"arguments": [{"v": 2, "type": "i32", "bits": bytes(4)}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_order_is_refused(changes):
    with pytest.raises(RecordInvalid):
        made(Order, **changes)


@pytest.mark.parametrize("code", [None, 0, 1, 2**32 - 1])
def test_an_outcome_has_an_exit_code_or_none(code):
    assert made(Outcome, exit_code=code).exit_code == code


@pytest.mark.parametrize("code", [-1, 2**32, "0", True])
def test_an_outcome_with_another_exit_code_is_refused(code):
    with pytest.raises(RecordInvalid):
        made(Outcome, exit_code=code)


def test_an_execution_receipt_refuses_a_nested_field_that_it_does_not_know():
    outcome = {**BODIES["outcome"], "score": 1}
    with pytest.raises(RecordInvalid, match=r"wrong at outcome\.score"):
        made(ExecutionReceipt, outcome=outcome)


def test_a_shard_has_a_column_of_one_byte():
    assert made(HeldShard, column=255).column == 255
    with pytest.raises(RecordInvalid):
        made(HeldShard, column=256)


def test_a_storage_receipt_is_bounded():
    shard = BODIES["held_shard"]
    assert len(made(StorageReceipt, shards=[shard] * 1024).shards) == 1024
    with pytest.raises(RecordInvalid):
        made(StorageReceipt, shards=[shard] * 1025)


def test_grants_are_written_in_order_and_each_once():
    for grants in ([], ["clock"], ["random"], ["clock", "random"]):
        granted = made(Order, grants=grants)
        assert granted.grants == tuple(grants)
        assert Order.from_bytes(granted.to_bytes()) == granted
    for wrong in (None, ["random", "clock"], ["clock", "clock"], ["network"], "clock"):
        with pytest.raises(RecordInvalid):
            made(Order, grants=wrong)


@pytest.mark.parametrize("case", vectors("near")["orders"] + vectors("near")["observed"])
def test_golden_bytes_of_what_a_job_brings_and_what_it_saves(case):
    record = Order if "nonce" in case["fields"] else Observed
    made = record.from_bytes(bytes.fromhex(case["bytes"]))
    assert made.to_bytes().hex() == case["bytes"]
    names = ["given_bytes"] if record is Order else ["saved_bytes", "compiled_bytes"]
    for name in names:
        assert getattr(made, name) == case["fields"].get(name, 0)


def test_what_a_job_brings_and_saves_is_always_written():
    for record, names in (
        (Order, ("grants", "given_bytes")),
        (Observed, ("saved_bytes", "compiled_bytes", "calls")),
    ):
        value = made(record).to_value()
        for name in names:
            with pytest.raises(RecordInvalid, match=name):
                record.from_value({key: item for key, item in value.items() if key != name})
    batch = made(Observed, calls=limits.BATCH_ITEMS_MAX)
    assert Observed.from_bytes(batch.to_bytes()) == batch
    with pytest.raises(RecordInvalid):
        made(Observed, calls=limits.BATCH_ITEMS_MAX + 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": []},
        {"columns": [255]},
        {"columns": [*range(256)]},
        {"final": True, "columns": []},
        {"ordered_ms": 0},
        {"ordered_ms": 2**63 - 1},
    ],
    ids=str,
)
def test_a_deletion_order_is_taken_at_its_bounds(changes):
    order = made(DeletionOrder, **changes)
    assert DeletionOrder.from_bytes(order.to_bytes()) == order
    assert order.id != made(DeletionOrder).id


@pytest.mark.parametrize(
    "changes",
    [
        {"customer": bytes(31)},
        {"host": bytes(33)},
        {"locate": b""},
        {"columns": [256]},
        {"columns": [-1]},
        {"columns": [True]},
        {"columns": [0] * 257},
        {"columns": None},
        {"final": 1},
        {"final": None},
        {"ordered_ms": -1},
        {"ordered_ms": 2**63},
        {"generation": 0},
        {"v": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_deletion_order_is_refused(changes):
    with pytest.raises(RecordInvalid):
        made(DeletionOrder, **changes)


def test_a_deletion_receipt_is_bounded_and_names_its_order():
    (freed,) = BODIES["deletion_receipt"]["freed"]
    assert made(DeletionReceipt, freed=[freed] * 1024).freed_bytes == 1024 * freed["size_bytes"]
    assert made(DeletionReceipt, freed=[]).freed_bytes == 0
    for wrong in ({"freed": [freed] * 1025}, {"order": bytes(31)}, {"order": None}):
        with pytest.raises(RecordInvalid):
            made(DeletionReceipt, **wrong)
