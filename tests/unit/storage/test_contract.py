"""What an object must survive stands in its placement, signed by its owner."""

import pytest

from tests.strategies import vectors
from xsc.base.errors import RecordInvalid
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.storage.delegation import move_by_delegate, move_by_owner, open_placement
from xsc.storage.durability import Survival
from xsc.storage.placement import Placement, contract_of

GOLDEN = vectors("contract")
NETWORK = bytes.fromhex(GOLDEN["network"])
OWNER = KeyPair(bytes.fromhex(GOLDEN["owner_seed"]))
DELEGATE = KeyPair(b"d" * 32)
NODES = tuple(bytes([node]) * 32 for node in range(6))


def placement(survive, delegate=b"d" * 32):
    return Placement(
        locate=b"a" * 32,
        owner=OWNER.node_id,
        generation=3,
        k=4,
        m=2,
        code_generation=0,
        columns=NODES,
        segments=5,
        delegate=delegate,
        survive=survive,
    )


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_an_independent_implementation_signs_the_same(case):
    raw = bytes.fromhex(case["raw"])
    survive = None if case["survive"] is None else tuple(case["survive"])
    assert sign(placement(survive), OWNER, NETWORK).raw == raw
    opened = open_signed(raw, Placement, network=NETWORK)
    assert (opened.record.survive, opened.id.hex()) == (survive, case["id"])
    assert opened.record.asked == Survival(*(survive or (0, 0, 0)))


@pytest.mark.parametrize("wrong", [(1, 2), (1, 2, 3, 4), (-1, 0, 0), (0, 255, 0), ("1", 0, 0)])
def test_a_contract_is_three_numbers_within_the_bounds_of_a_code(wrong):
    value = placement((1, 1, 1)).to_value() | {"survive": list(wrong)}
    with pytest.raises(RecordInvalid):
        Placement.from_value(value)


def test_nothing_asked_is_nothing_said():
    assert contract_of(Survival()) is None
    assert contract_of(Survival(2, 1, 0)) == (2, 1, 0)
    assert "survive" not in placement(None).to_value()


def test_no_repair_changes_the_contract():
    base = sign(placement((2, 1, 0), DELEGATE.node_id), OWNER, NETWORK).raw
    placed = open_placement(base, NETWORK)
    by_delegate = move_by_delegate(placed, NODES[::-1], DELEGATE, NETWORK)
    by_owner = move_by_owner(placed, NODES[::-1], OWNER, DELEGATE.node_id, NETWORK)
    for raw in (by_delegate, by_owner):
        assert open_placement(raw, NETWORK).placement.asked == Survival(2, 1)
