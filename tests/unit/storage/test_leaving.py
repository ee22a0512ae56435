"""What a node that leaves says, and what its proof proves: every byte of it counts."""

import hashlib
import io

import pytest

from tests.strategies import vectors
from xsc.base.errors import ProofInvalid, ReceiptInvalid, SignatureInvalid, XscError
from xsc.base.limits import DRAIN_PAGE_SEGMENTS
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.node.verify import verify_drain
from xsc.storage.capability import VerifyCapability
from xsc.storage.delegation import move_by_delegate, open_placement
from xsc.storage.leaving import (
    MAGIC,
    Drained,
    Leaving,
    MovedAway,
    Rest,
    check_moved,
    check_proof,
    page_of,
    proof_of,
)
from xsc.storage.placement import Placement
from xsc.terms.storage_receipt import HeldShard, StorageReceipt

GOLDEN = vectors("leaving")
NETWORK = bytes.fromhex(GOLDEN["network"])
LEAVER = KeyPair(bytes.fromhex(GOLDEN["leaver_seed"]))
OWNER = KeyPair(bytes.fromhex(GOLDEN["owner_seed"]))
HOST = KeyPair(bytes.fromhex(GOLDEN["host_seed"]))
OTHER = KeyPair(b"x" * 32)
ITEMS = [bytes.fromhex(item) for item in GOLDEN["items"]]
PROOF = bytes.fromhex(GOLDEN["proof"])
VERIFY = VerifyCapability(b"v" * 32, b"h" * 32)
REST = Rest(12, 0, 1_700_000_001_000)


def checked(raw):
    return check_proof(io.BytesIO(raw).read)


def made(items=ITEMS, rest=REST):
    return b"".join(proof_of(items, rest, key=LEAVER, network=NETWORK))


def test_an_independent_implementation_says_and_proves_the_same():
    for name, leaving, said_ms in (("leaving", True, 0), ("stays", False, 1)):
        raw = bytes.fromhex(GOLDEN[name])
        said = Leaving(leaving=leaving, said_ms=1_700_000_000_000 + said_ms)
        assert sign(said, LEAVER, NETWORK).raw == raw
        assert open_signed(raw, Leaving, network=NETWORK, author=LEAVER.node_id).record == said
    assert made() == PROOF
    proof = checked(PROOF)
    assert (proof.node, proof.hosts) == (LEAVER.node_id, 1)
    said = proof.drained
    assert (said.items, said.objects, said.shards, said.released_bytes) == (3, 2, 70, 12)
    assert said.shard_bytes == sum(100 + segment for segment in range(70))
    assert "70 shards of 2 objects" in verify_drain(io.BytesIO(PROOF).read)
    left = made(rest=Rest(0, 4, 1))
    assert "still holds 4 objects" in verify_drain(io.BytesIO(left).read)


def test_no_byte_of_a_proof_can_be_another():
    for place in range(0, len(PROOF), 29):
        with pytest.raises(ProofInvalid):
            checked(PROOF[:place] + bytes([PROOF[place] ^ 4]) + PROOF[place + 1 :])


def test_a_proof_that_is_cut_or_continued_proves_nothing():
    for end in [*range(40), *range(40, len(PROOF), 97), len(PROOF) - 1]:
        with pytest.raises(ProofInvalid):
            checked(PROOF[:end])
    with pytest.raises(ProofInvalid, match="follows"):
        checked(PROOF + b"m")


def ended(listed, **change):
    body = MAGIC + b"".join(b"m" + len(item).to_bytes(4, "big") + item for item in listed)
    fields = {
        "items": 3,
        "digest": hashlib.sha256(body).digest(),
        "objects": 2,
        "shards": 70,
        "shard_bytes": sum(100 + segment for segment in range(70)),
        "released_bytes": 0,
        "left_objects": 0,
        "said_ms": 1,
    }
    key = change.pop("key", LEAVER)
    raw = sign(Drained(**fields | change), key, change.pop("network", NETWORK)).raw
    return body + b"e" + len(raw).to_bytes(4, "big") + raw


def test_the_end_must_be_about_what_is_listed():
    assert checked(ended(ITEMS)).drained.items == 3
    for change in ({"items": 2}, {"objects": 3}, {"shards": 71}, {"shard_bytes": 1}):
        with pytest.raises(ProofInvalid, match="counts other"):
            checked(ended(ITEMS, **change))
    with pytest.raises(ProofInvalid, match="another list"):
        checked(ended(ITEMS, digest=b"d" * 32))
    with pytest.raises(ProofInvalid, match="twice"):
        checked(ended([*ITEMS, ITEMS[0]], items=4))
    with pytest.raises(ProofInvalid, match="lies at the very node"):
        checked(ended(ITEMS, key=HOST))


COLUMNS = (*(bytes([node]) * 32 for node in range(1, 6)), HOST.node_id)


def item(key=HOST, owner=OWNER, shards=((5, 0), (5, 1)), placement=None, network=NETWORK, **change):
    if placement is None:
        placement = sign(
            Placement(
                locate=VERIFY.locate,
                owner=OWNER.node_id,
                generation=2,
                k=4,
                m=2,
                code_generation=0,
                columns=COLUMNS,
                segments=change.pop("segments", 2),
                delegate=VERIFY.delegate.node_id,
            ),
            owner,
            NETWORK,
        ).raw
    fields = {
        "host": HOST.node_id,
        "customer": OWNER.node_id,
        "lease_id": b"l" * 32,
        "locate": VERIFY.locate,
        "generation": 0,
        "shards": tuple(
            HeldShard(segment=segment, column=column, size_bytes=9, root=b"r" * 32)
            for column, segment in shards
        ),
        "manifest": b"m" * 32,
        "placement": open_placement(placement, NETWORK).id if owner == OWNER else b"p" * 32,
        "stored_ms": 1,
    }
    receipt = sign(StorageReceipt(**fields | change), key, network).raw
    return MovedAway(placement=placement, receipt=receipt)


def refused(fault, match, **change):
    with pytest.raises(fault, match=match):
        check_moved(item(**change), leaver=LEAVER.node_id, network=None)


def test_placement_and_receipt_must_belong_together():
    proven = check_moved(item(), leaver=LEAVER.node_id, network=NETWORK)
    assert (proven.place, proven.size_bytes, proven.host) == ((5, 0), 18, HOST.node_id)
    refused(ReceiptInvalid, "not signed by its host", key=OTHER)
    refused(ReceiptInvalid, "two objects", locate=b"o" * 32)
    refused(ReceiptInvalid, "two encoding generations", generation=1)
    refused(ReceiptInvalid, "does not keep that placement", manifest=None)
    refused(ReceiptInvalid, "another node", shards=((4, 0), (4, 1)))
    refused(ReceiptInvalid, "another node", shards=((9, 0), (9, 1)))
    refused(ReceiptInvalid, "whole page", shards=((5, 0),))
    refused(ReceiptInvalid, "whole page", shards=((5, 0), (4, 1)))
    refused(ReceiptInvalid, "whole page", shards=((5, 1), (5, 0)))
    refused(ReceiptInvalid, "names no shards", shards=())
    with pytest.raises(XscError):
        check_moved(item(network=b"n" * 32), leaver=LEAVER.node_id, network=NETWORK)
    with pytest.raises(ReceiptInvalid, match="by the node that leaves"):
        check_moved(item(), leaver=HOST.node_id, network=NETWORK)
    with pytest.raises((SignatureInvalid, XscError)):
        check_moved(item(owner=OTHER), leaver=LEAVER.node_id, network=NETWORK)


def test_an_object_without_shards_needs_its_manifest_at_the_host():
    proven = check_moved(item(segments=0, shards=()), leaver=LEAVER.node_id, network=NETWORK)
    assert (proven.place, proven.size_bytes) == (None, 0)


def test_what_the_delegate_placed_counts_as_the_owners():
    base = item().placement
    moved = move_by_delegate(open_placement(base, NETWORK), COLUMNS[::-1], VERIFY.delegate, NETWORK)
    proven = check_moved(
        item(placement=moved, shards=((0, 0), (0, 1))), leaver=LEAVER.node_id, network=NETWORK
    )
    assert proven.placed.placement.owner == OWNER.node_id
    assert proven.placed.repairs == 1


def test_pages_cover_every_segment_once():
    for segments in (1, 63, 64, 65, 128, 1000):
        pages = [page_of(page, segments) for page in range(-(-segments // DRAIN_PAGE_SEGMENTS))]
        assert [segment for page in pages for segment in page] == list(range(segments))
        assert all(pages)
