import pytest

from tests.unit.storage.world import content
from xsc.storage.erasure import Code, cut
from xsc.storage.receipts import expected_receipt, receipt_fault

SHARDS = [(3, shard) for shard in cut(content(100), Code())[:2]]
SENT = expected_receipt(
    host=b"h" * 32,
    customer=b"c" * 32,
    lease_id=b"l" * 32,
    locate=b"o" * 32,
    generation=7,
    shards=SHARDS,
    manifest=b"m" * 32,
    placement=None,
    stored_ms=0,
)


def test_a_receipt_for_what_was_sent_holds_whenever_it_was_stored():
    assert receipt_fault(SENT.model_copy(update={"stored_ms": 5}), SENT) is None


@pytest.mark.parametrize("name", sorted(set(type(SENT).model_fields) - {"v", "stored_ms"}))
def test_every_other_field_matters(name):
    value = {"generation": 8, "shards": SENT.shards[:1], "placement": b"p" * 32}
    changed = SENT.model_copy(update={name: value.get(name, b"x" * 32)})
    assert receipt_fault(changed, SENT) is not None


@pytest.mark.parametrize(
    "change", [{"segment": 4}, {"column": 5}, {"size_bytes": 24}, {"root": b"r" * 32}]
)
def test_every_field_of_every_shard_matters(change):
    for index in range(2):
        shards = list(SENT.shards)
        shards[index] = shards[index].model_copy(update=change)
        changed = SENT.model_copy(update={"shards": tuple(shards)})
        assert "segment 3" in receipt_fault(changed, SENT)


def test_order_matters():
    changed = SENT.model_copy(update={"shards": SENT.shards[::-1]})
    assert receipt_fault(changed, SENT) is not None
