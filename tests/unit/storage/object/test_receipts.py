import pytest

from tests.unit.storage.world import NETWORK, content
from xsc.base.limits import REQUEST_WINDOW_MS
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.storage.object.erasure import Code, cut
from xsc.storage.object.receipts import deletion_fault, named, receipt_fault
from xsc.terms.storage_receipt import DeletionOrder, DeletionReceipt, Freed, StorageReceipt

SHARDS = [(3, shard) for shard in cut(content(100), Code())[:2]]
SENT = StorageReceipt(
    host=b"h" * 32,
    customer=b"c" * 32,
    lease_id=b"l" * 32,
    locate=b"o" * 32,
    generation=7,
    shards=named(SHARDS),
    manifest=b"m" * 32,
    stored_ms=0,
)


def test_a_receipt_for_what_was_sent_holds_whenever_it_was_stored():
    assert receipt_fault(SENT.model_copy(update={"stored_ms": 5}), SENT) is None


@pytest.mark.parametrize("name", sorted(set(type(SENT).model_fields) - {"v", "stored_ms"}))
def test_every_other_field_matters(name):
    value = {"generation": 8, "shards": SENT.shards[:1]}
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


CUSTOMER = KeyPair(b"c" * 32)
NOW = 1_700_000_000_000


def order_of(**change):
    fields = {
        "customer": CUSTOMER.node_id,
        "host": b"h" * 32,
        "locate": b"o" * 32,
        "columns": (1, 4),
        "final": False,
        "ordered_ms": NOW,
    }
    return sign(DeletionOrder(**fields | change), CUSTOMER, NETWORK)


def deleted(ordered, **change):
    fields = {
        "host": ordered.record.host,
        "customer": ordered.record.customer,
        "locate": ordered.record.locate,
        "order": ordered.id,
        "freed": (Freed(lease_id=b"l" * 32, size_bytes=7), Freed(lease_id=b"m" * 32, size_bytes=0)),
        "deleted_ms": NOW,
    }
    return DeletionReceipt(**fields | change)


def test_a_deletion_receipt_for_the_order_holds_whatever_was_freed():
    for order in (order_of(), order_of(columns=(), final=True)):
        for freed in ((), deleted(order).freed):
            assert deletion_fault(deleted(order, freed=freed), order, now_ms=NOW) is None


@pytest.mark.parametrize(
    "change",
    [
        {"host": b"x" * 32},
        {"locate": b"x" * 32},
        {"columns": (1,)},
        {"columns": (4, 1)},
        {"columns": ()},
        {"final": True},
        {"ordered_ms": NOW + 1},
    ],
    ids=str,
)
def test_a_receipt_for_another_order_is_refused(change):
    order, other = order_of(), order_of(**change)
    assert deletion_fault(deleted(other), order, now_ms=NOW) is not None
    assert deletion_fault(deleted(order), other, now_ms=NOW) is not None
    # Also where it names everything but the order as it should.
    assert "another order" in deletion_fault(deleted(order, order=other.id), order, now_ms=NOW)


@pytest.mark.parametrize("name", ["host", "customer", "locate", "order"])
def test_every_field_of_a_deletion_receipt_matters(name):
    order = order_of()
    fault = deletion_fault(deleted(order, **{name: b"x" * 32}), order, now_ms=NOW)
    assert f"another {name}" in fault


def test_a_deletion_receipt_names_each_lease_once_and_is_of_now():
    order = order_of()
    twice = (Freed(lease_id=b"l" * 32, size_bytes=7), Freed(lease_id=b"l" * 32, size_bytes=8))
    assert "twice" in deletion_fault(deleted(order, freed=twice), order, now_ms=NOW)
    for away_ms in (-REQUEST_WINDOW_MS, REQUEST_WINDOW_MS):
        at = {"deleted_ms": NOW + away_ms}
        assert deletion_fault(deleted(order, **at), order, now_ms=NOW) is None
        at = {"deleted_ms": NOW + away_ms + (1 if away_ms > 0 else -1)}
        assert deletion_fault(deleted(order, **at), order, now_ms=NOW) is not None
