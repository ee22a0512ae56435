"""Placements by the owner and by the delegate that it names: who may, and what counts."""

import pytest

from tests.strategies import vectors
from xsc.base.errors import RecordInvalid, SignatureInvalid, XscError
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.storage.capability import VerifyCapability
from xsc.storage.delegation import (
    GENERATION_MAX,
    REPAIRS_MAX,
    RepairedPlacement,
    move_by_delegate,
    move_by_owner,
    open_placement,
    open_sent,
    rank_of,
)
from xsc.storage.placement import Placement

NETWORK = b"n" * 32
OWNER = KeyPair(b"o" * 32)
OTHER = KeyPair(b"x" * 32)
VERIFY = VerifyCapability(b"v" * 32, b"h" * 32)
NODES = tuple(bytes([node]) * 32 for node in range(9))


def owned(key=OWNER, **change):
    fields = {
        "locate": VERIFY.locate,
        "owner": OWNER.node_id,
        "generation": 3,
        "k": 4,
        "m": 2,
        "code_generation": 0,
        "columns": NODES[:6],
        "segments": 5,
        "delegate": VERIFY.delegate.node_id,
    }
    return sign(Placement(**fields | change), key, NETWORK).raw


def repaired(base=None, repairs=1, columns=NODES[3:9], key=VERIFY.delegate):
    record = RepairedPlacement(base=base or owned(), repairs=repairs, columns=columns)
    return sign(record, key, NETWORK).raw


@pytest.mark.parametrize("case", vectors("delegation")["cases"])
def test_an_independent_implementation_signs_the_same(case):
    capability = VerifyCapability(bytes.fromhex(case["verify_key"]), bytes(32))
    network = bytes.fromhex(case["network"])
    assert capability.delegate.node_id.hex() == case["delegate"]
    placed = open_placement(bytes.fromhex(case["placement"]), network)
    assert placed.rank == case["rank"]
    assert [node.hex() for node in placed.placement.columns] == case["columns"]
    assert placed.base.hex() == case["base"]
    before = RepairedPlacement(
        base=placed.base, repairs=placed.repairs, columns=placed.placement.columns
    )
    assert sign(before, capability.delegate, network).raw.hex() == case["placement"]
    assert open_placement(placed.base, network).placement.generation == case["generation"]


def test_only_the_columns_are_the_delegates_to_say():
    base, placed = open_placement(owned(), NETWORK), open_placement(repaired(), NETWORK)
    assert placed.placement.columns == NODES[3:9]
    assert placed.placement.model_copy(update={"columns": NODES[:6]}) == base.placement
    assert placed.rank > base.rank


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (repaired(key=OTHER), SignatureInvalid),
        (repaired(key=OWNER), SignatureInvalid),
        (repaired(owned(delegate=None)), SignatureInvalid),
        (repaired(owned(delegate=OTHER.node_id)), SignatureInvalid),
        (repaired(owned(key=OTHER)), RecordInvalid),
        (repaired(columns=NODES[:5]), RecordInvalid),
        (repaired(owned(generation=GENERATION_MAX + 1)), RecordInvalid),
        (owned(key=OTHER), RecordInvalid),
        (repaired(repaired()), RecordInvalid),
    ],
)
def test_nobody_else_places(raw, fault):
    with pytest.raises(fault):
        open_placement(raw, NETWORK)


def test_another_owner_than_the_manifests_does_not_count():
    mine = owned(OTHER, owner=OTHER.node_id)
    assert open_placement(mine, NETWORK, OTHER.node_id).rank
    for raw in (mine, repaired(mine)):
        with pytest.raises(SignatureInvalid):
            open_placement(raw, NETWORK, OWNER.node_id)


def test_what_the_owner_signed_must_come_from_the_owner_and_a_repair_from_anybody():
    assert open_sent(owned(), NETWORK, OWNER.node_id).repairs == 0
    with pytest.raises(SignatureInvalid):
        open_sent(owned(), NETWORK, OTHER.node_id)
    assert open_sent(repaired(), NETWORK, OTHER.node_id).repairs == 1


def test_a_changed_byte_is_refused():
    raw = repaired()
    for place in range(0, len(raw), 7):
        broken = bytearray(raw)
        broken[place] ^= 1
        with pytest.raises(XscError):
            open_placement(bytes(broken), NETWORK)


def test_the_owners_next_word_ends_every_repair_however_it_is_counted():
    last = open_placement(repaired(repairs=REPAIRS_MAX), NETWORK)
    with pytest.raises(RecordInvalid, match="too often"):
        move_by_delegate(last, NODES[:6], VERIFY.delegate, NETWORK)
    raw = move_by_owner(last, NODES[1:7], OWNER, VERIFY.delegate.node_id, NETWORK)
    again = open_placement(raw, NETWORK)
    assert again.rank > last.rank
    assert again.rank == rank_of(4)
    assert again.placement.columns == NODES[1:7]


def test_repairs_follow_each_other():
    placed = open_placement(owned(), NETWORK)
    for count in range(1, 4):
        raw = move_by_delegate(placed, NODES[count : count + 6], VERIFY.delegate, NETWORK)
        after = open_placement(raw, NETWORK)
        assert (after.rank, after.repairs) == (placed.rank + 1, count)
        assert after.base == owned()
        placed = after
    with pytest.raises(SignatureInvalid, match="not delegated"):
        move_by_delegate(placed, NODES[:6], OTHER, NETWORK)
