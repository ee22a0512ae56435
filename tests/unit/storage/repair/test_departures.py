"""What a node that leaves says, and what its proof proves: every byte of it counts."""

import hashlib
import io

import pytest

from tests.strategies import vectors
from xsc.base.errors import ProofInvalid, RecordInvalid, SignatureInvalid, XscError
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.node.offline.verify import verify_drain
from xsc.storage.repair.departures import (
    MAGIC,
    DrainReceipt,
    check_proof,
    open_order,
    stuck_reason,
    write_proof,
)
from xsc.storage.repair.drain import Departure
from xsc.terms.storage_receipt import DeletionOrder

GOLDEN = vectors("leaving")
NETWORK = bytes.fromhex(GOLDEN["network"])
LEAVER = KeyPair(bytes.fromhex(GOLDEN["leaver_seed"]))
OWNER = KeyPair(bytes.fromhex(GOLDEN["owner_seed"]))
GUARDIAN = KeyPair(bytes.fromhex(GOLDEN["guardian_seed"]))
ORDERS = [bytes.fromhex(order) for order in GOLDEN["orders"]]
PROOF = bytes.fromhex(GOLDEN["proof"])
REST = {"released_bytes": 12, "left_objects": 0, "said_ms": 1_700_000_001_000}


def checked(raw):
    return check_proof(io.BytesIO(raw).read)


def made(orders=ORDERS, rest=REST):
    return b"".join(write_proof(orders, **rest, key=LEAVER, network=NETWORK))


def order(key=OWNER, network=NETWORK, **change):
    fields = {
        "customer": key.node_id,
        "host": LEAVER.node_id,
        "locate": b"c" * 32,
        "columns": (1,),
        "final": False,
        "ordered_ms": 1,
    }
    return sign(DeletionOrder(**fields | change), key, network).raw


def test_an_independent_implementation_says_and_proves_the_same():
    said = bytes.fromhex(GOLDEN["departure"])
    assert Departure(begun_bytes=5_000_000_000).to_bytes() == said
    assert Departure.from_bytes(said).begun_bytes == 5_000_000_000
    first, whole, other = (open_order(raw, NETWORK) for raw in ORDERS)
    assert [signed.author for signed in (first, whole, other)] == [
        OWNER.node_id,
        OWNER.node_id,
        GUARDIAN.node_id,
    ]
    assert (first.record.columns, first.record.final) == ((0, 5), False)
    assert (whole.record.columns, whole.record.final) == ((), True)
    assert other.record.columns == (255,)
    for signed, key in ((first, OWNER), (whole, OWNER), (other, GUARDIAN)):
        assert sign(signed.record, key, NETWORK).raw == signed.raw
    assert made() == PROOF
    proof = checked(PROOF)
    assert (proof.node, proof.customers) == (LEAVER.node_id, 2)
    drained = proof.drained
    assert (drained.items, drained.objects) == (3, 2)
    assert (drained.released_bytes, drained.left_objects) == (12, 0)
    text = verify_drain(io.BytesIO(PROOF).read)
    assert "2 customers" in text
    assert "2 objects" in text
    assert "still holds" not in text
    left = made(rest=REST | {"left_objects": 4})
    assert "still holds 4 objects" in verify_drain(io.BytesIO(left).read)


def test_who_held_nothing_proves_nothing_more():
    proof = checked(made([]))
    assert (proof.customers, proof.drained.items, proof.drained.objects) == (0, 0, 0)


def test_no_byte_of_a_proof_can_be_another():
    for place in range(len(PROOF)):
        with pytest.raises(ProofInvalid):
            checked(PROOF[:place] + bytes([PROOF[place] ^ 4]) + PROOF[place + 1 :])


def test_a_proof_that_is_cut_or_continued_proves_nothing():
    for end in range(len(PROOF)):
        with pytest.raises(ProofInvalid):
            checked(PROOF[:end])
    with pytest.raises(ProofInvalid, match="follows"):
        checked(PROOF + b"o")


def ended(listed, **change):
    body = MAGIC + b"".join(b"o" + len(item).to_bytes(4, "big") + item for item in listed)
    fields = {
        "items": 3,
        "digest": hashlib.sha256(body).digest(),
        "objects": 2,
        "released_bytes": 0,
        "left_objects": 0,
        "said_ms": 1,
    }
    key, network = change.pop("key", LEAVER), change.pop("network", NETWORK)
    raw = sign(DrainReceipt(**fields | change), key, network).raw
    return body + b"e" + len(raw).to_bytes(4, "big") + raw


def test_the_end_must_be_about_what_is_listed():
    assert checked(ended(ORDERS)).drained.items == 3
    for change in ({"items": 2}, {"items": 4}, {"objects": 3}, {"objects": 1}):
        with pytest.raises(ProofInvalid, match="counts other"):
            checked(ended(ORDERS, **change))
    with pytest.raises(ProofInvalid, match="another list"):
        checked(ended(ORDERS, digest=b"d" * 32))
    with pytest.raises(ProofInvalid, match="twice"):
        checked(ended([*ORDERS, ORDERS[0]], items=4))
    for key in (OWNER, GUARDIAN):
        with pytest.raises(ProofInvalid, match="to another node"):
            checked(ended(ORDERS, key=key))
    with pytest.raises(ProofInvalid, match="another network"):
        checked(ended(ORDERS, network=b"n" * 32))


def test_an_order_to_another_host_by_another_or_of_another_network_proves_nothing():
    assert checked(ended([*ORDERS, order()], items=4, objects=3)).customers == 2
    with pytest.raises(ProofInvalid, match="to another node"):
        checked(ended([*ORDERS, order(host=OWNER.node_id)], items=4, objects=3))
    with pytest.raises(ProofInvalid, match="another network"):
        checked(ended([*ORDERS, order(network=b"n" * 32)], items=4, objects=3))
    with pytest.raises(ProofInvalid, match="than its customer"):
        checked(ended([*ORDERS, order(customer=GUARDIAN.node_id)], items=4, objects=3))


def test_an_order_is_opened_once_all_of_it_is_right():
    raw = order()
    assert open_order(raw, NETWORK).raw == open_order(raw, None).raw == raw
    with pytest.raises(RecordInvalid, match="than its customer"):
        open_order(order(customer=GUARDIAN.node_id), NETWORK)
    with pytest.raises((RecordInvalid, SignatureInvalid)):
        open_order(raw, b"n" * 32)
    for place in range(len(raw)):
        for flip in (1, 0x80):
            with pytest.raises(XscError):
                open_order(raw[:place] + bytes([raw[place] ^ flip]) + raw[place + 1 :], NETWORK)


def test_a_proof_is_not_made_of_what_is_no_order():
    for wrong in (b"", b"x", ORDERS[0][:-1], order(customer=GUARDIAN.node_id)):
        with pytest.raises(XscError):
            made([*ORDERS, wrong])


MOVABLE = {
    "recorded": True,
    "customer_said": None,
    "is_up": False,
    "silent_ms": 0,
    "grace_ms": 10,
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"silent_ms": 29}, ""),
        ({"silent_ms": 30}, "the node that stored it is away, and nobody else can release it"),
        ({"silent_ms": 30, "is_up": True}, ""),
        ({"silent_ms": None}, "its owner is no peer of this node any more"),
        ({"silent_ms": None, "is_up": True}, ""),
        ({"customer_said": "no room", "is_up": True}, "no room"),
        ({"customer_said": "no room", "recorded": False}, "it belongs to a put that has not ended"),
    ],
)
def test_why_no_customer_moves_an_object(change, reason):
    assert stuck_reason(**MOVABLE | change) == reason
