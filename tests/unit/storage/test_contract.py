"""What an object must survive is in its manifest, which nobody can change afterwards."""

import pytest

from tests.strategies import vectors
from xsc.base.errors import RecordInvalid
from xsc.storage.object.capability import ReadCapability
from xsc.storage.object.durability import Contract
from xsc.storage.object.manifest import Manifest, hash_of, open_manifest, seal_manifest
from xsc.storage.object.placement import Placement, placement_of

GOLDEN = vectors("contract")
NODES = tuple(bytes([node]) * 32 for node in range(6))


def case_of(survive):
    (case,) = [case for case in GOLDEN["cases"] if case["survive"] == survive]
    return case


PLAIN = Manifest.from_bytes(bytes.fromhex(case_of([0, 0, 0, 0])["manifest"]))
ASKED = Manifest.from_bytes(bytes.fromhex(case_of([2, 1, 0, 0])["manifest"]))


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_an_independent_implementation_writes_the_same(case):
    survive = tuple(case["survive"])
    manifest = Manifest.from_bytes(bytes.fromhex(case["manifest"]))
    assert manifest.survive == survive
    assert manifest == PLAIN.model_copy(update={"survive": survive})
    assert manifest.to_bytes().hex() == case["manifest"]
    placement = placement_of(manifest, NODES)
    assert placement.to_bytes().hex() == case["placement"]
    assert Placement.from_bytes(bytes.fromhex(case["placement"])) == placement
    assert placement.contract == manifest.contract == Contract(*survive)
    assert (placement.k, placement.m) == (manifest.k, manifest.m)


WRONG = [
    (1, 2, 3),
    (1, 2, 3, 4, 5),
    (),
    (-1, 0, 0, 0),
    (0, 255, 0, 0),
    ("1", 0, 0, 0),
    (None, 0, 0, 0),
    (True, 0, 0, 0),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_contract_is_four_numbers_within_the_bounds_of_a_code(wrong):
    for record in (ASKED, placement_of(ASKED, NODES)):
        value = record.to_value() | {"survive": list(wrong)}
        with pytest.raises(RecordInvalid):
            type(record).from_value(value)
        del value["survive"]
        with pytest.raises(RecordInvalid, match="survive"):
            type(record).from_value(value)


@pytest.mark.parametrize(
    "change",
    [
        {"k": 0},
        {"k": 256},
        {"columns": []},
        {"columns": [bytes(32)] * 256},
        {"columns": [bytes(31)]},
        {"columns": None},
        {"generation": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_placement_is_bounded(change):
    with pytest.raises(RecordInvalid):
        Placement.from_value(placement_of(ASKED, NODES).to_value() | change)


def test_who_places_the_columns_anew_keeps_the_contract():
    for columns in (NODES, NODES[::-1], NODES[:1] * 6):
        assert placement_of(ASKED, columns).contract == Contract(2, 1)
        assert placement_of(PLAIN, columns).contract == Contract()


def test_another_contract_is_another_object():
    """No holder of a capability can weaken what the owner asked for."""
    secret, nonce = b"s" * 32, b"n" * 12
    key = ReadCapability(secret, bytes(32)).verify.manifest_key
    hashes = set()
    for survive in ((0, 0, 0, 0), (2, 1, 0, 0), (1, 1, 0, 0), (2, 1, 0, 1)):
        changed = ASKED.model_copy(update={"survive": survive})
        hashes.add(hash_of(seal_manifest(changed, key, nonce)))
    assert len(hashes) == 4
    sealed = seal_manifest(ASKED, key, nonce)
    verify = ReadCapability(secret, hash_of(sealed)).verify
    assert open_manifest(sealed, verify).survive == (2, 1, 0, 0)
    weaker = seal_manifest(PLAIN, key, nonce)
    with pytest.raises(RecordInvalid):
        open_manifest(weaker, verify)
