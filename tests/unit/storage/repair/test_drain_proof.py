"""What a node that leaves says, and what its proof proves: every byte of it counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import vectors
from xsc.base.errors import ProofInvalid, RecordInvalid, SignatureInvalid, XscError
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.node.offline.verify import proving, verify_file
from xsc.storage.repair.drain import Departure
from xsc.storage.repair.drain_proof import (
    DRAIN_PROOF_BYTES_MAX,
    DRAIN_PROOF_ORDERS_BYTES_MAX,
    ORDER_HEAD_BYTES,
    DrainProof,
    check_proof,
    listed,
    open_order,
    stuck_reason,
)
from xsc.terms.storage_receipt import DeletionOrder

GOLDEN = vectors("leaving")
NETWORK = bytes.fromhex(GOLDEN["network"])
LEAVER = KeyPair(bytes.fromhex(GOLDEN["leaver_seed"]))
OWNER = KeyPair(bytes.fromhex(GOLDEN["owner_seed"]))
GUARDIAN = KeyPair(bytes.fromhex(GOLDEN["guardian_seed"]))
ORDERS = [bytes.fromhex(order) for order in GOLDEN["orders"]]
PROOF = bytes.fromhex(GOLDEN["proof"])
REST = {
    "released_bytes": 12,
    "left_objects": 0,
    "unlisted_orders": 0,
    "said_ms": 1_700_000_001_000,
}


def checked(raw):
    with proving():
        return check_proof(raw)


def made(orders=ORDERS, key=LEAVER, network=NETWORK, **change):
    return sign(DrainProof(orders=tuple(orders), **REST | change), key, network).raw


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
    proof, orders = checked(PROOF)
    assert proof.author == LEAVER.node_id
    assert [each.raw for each in orders] == ORDERS
    assert (proof.record.released_bytes, proof.record.left_objects) == (12, 0)
    text = verify_file(PROOF)
    assert "2 customers" in text
    assert "2 objects" in text
    assert "still holds" not in text
    assert "still holds 4 objects" in verify_file(made(left_objects=4))


def test_who_held_nothing_proves_nothing_more():
    assert checked(made([]))[1] == []
    assert "0 customers" in verify_file(made([]))


def test_no_byte_of_a_proof_can_be_another():
    for place in range(len(PROOF)):
        with pytest.raises(ProofInvalid):
            verify_file(PROOF[:place] + bytes([PROOF[place] ^ 4]) + PROOF[place + 1 :])


def test_a_proof_that_is_cut_or_continued_proves_nothing():
    for end in range(len(PROOF)):
        with pytest.raises(ProofInvalid):
            verify_file(PROOF[:end])
    with pytest.raises(ProofInvalid):
        verify_file(PROOF + b"o")


def test_a_proof_lists_each_order_to_its_author_once():
    with pytest.raises(ProofInvalid, match="twice"):
        checked(made([*ORDERS, ORDERS[0]]))
    for key in (OWNER, GUARDIAN):
        with pytest.raises(ProofInvalid, match="to another node"):
            checked(made(key=key))
    with pytest.raises(ProofInvalid):
        checked(made(network=b"n" * 32))


def test_an_order_to_another_host_by_another_or_of_another_network_proves_nothing():
    assert len(checked(made([*ORDERS, order()]))[1]) == 4
    with pytest.raises(ProofInvalid, match="to another node"):
        checked(made([*ORDERS, order(host=OWNER.node_id)]))
    with pytest.raises(ProofInvalid, match="network"):
        checked(made([*ORDERS, order(network=b"n" * 32)]))
    with pytest.raises(ProofInvalid, match="than its customer"):
        checked(made([*ORDERS, order(customer=GUARDIAN.node_id)]))


def test_an_order_is_opened_once_all_of_it_is_right():
    raw = order()
    assert open_order(raw, NETWORK).raw == raw
    with pytest.raises(RecordInvalid, match="than its customer"):
        open_order(order(customer=GUARDIAN.node_id), NETWORK)
    with pytest.raises((RecordInvalid, SignatureInvalid)):
        open_order(raw, b"n" * 32)
    for place in range(len(raw)):
        for flip in (1, 0x80):
            with pytest.raises(XscError):
                open_order(raw[:place] + bytes([raw[place] ^ flip]) + raw[place + 1 :], NETWORK)


def test_a_proof_of_what_is_no_order_proves_nothing():
    for wrong in (b"", b"x", ORDERS[0][:-1]):
        with pytest.raises(ProofInvalid):
            checked(made([*ORDERS, wrong]))


def test_a_customer_with_too_many_orders_takes_only_its_share_of_the_proof():
    """A small object of many columns is an order each, which names 256 of them."""
    wide = [order(locate=bytes([n]) * 32, columns=tuple(range(256))) for n in range(50)]
    few = [order(key=GUARDIAN, locate=bytes([n]) * 32) for n in range(3)]
    kept = [(OWNER.node_id, raw) for raw in wide] + [(GUARDIAN.node_id, raw) for raw in few]
    room = 10 * (len(wide[0]) + ORDER_HEAD_BYTES)
    found, unlisted = listed(lambda: kept, room)
    assert found[-3:] == few, "what others ordered is all there"
    assert found[:-3] == wide[: len(found) - 3]
    assert len(found) == 3 + 10 - 2, "what they do not need is there for the one"
    assert unlisted == 53 - len(found)
    proof, orders = checked(made(found, unlisted_orders=unlisted))
    assert (len(orders), proof.record.unlisted_orders) == (len(found), unlisted)
    assert "no room for 42 orders more" in verify_file(made(found, unlisted_orders=unlisted))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=60), st.integers(0, 900))
def test_each_customer_has_an_equal_share_of_a_proof(made_orders, room):
    kept = [(bytes([customer]), bytes(size)) for customer, size in sorted(made_orders)]
    found, unlisted = listed(lambda: kept, room)
    assert len(found) + unlisted == len(kept)
    assert sum(len(raw) + ORDER_HEAD_BYTES for raw in found) <= room
    customers = {customer for customer, _ in kept}
    for customer in customers:
        own = [raw for each, raw in kept if each == customer]
        if sum(len(raw) + ORDER_HEAD_BYTES for raw in own) <= room // len(customers):
            assert listed(lambda own=own: [(b"", raw) for raw in own], room)[0] == own
            assert sum(raw in own for raw in found) >= len(own)


def test_orders_that_fill_the_room_make_no_larger_proof_than_is_read():
    most = dict.fromkeys(REST, 2**63 - 1)
    empty, two = len(made([], **most)), [bytes(70_000)] * 2
    assert empty + 64 <= DRAIN_PROOF_BYTES_MAX - DRAIN_PROOF_ORDERS_BYTES_MAX
    assert len(made(two, **most)) <= empty + 64 + 2 * (70_000 + ORDER_HEAD_BYTES)


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
