import pytest

from xsc.allocation.recognition import (
    Recognition,
    read_weights,
    tier_of,
    value_of,
    with_weight,
)
from xsc.base.errors import ArgumentInvalid, RecordInvalid
from xsc.base.limits import MUTUAL_RECOGNITION_THRESHOLD_PPM as TAU
from xsc.base.limits import PEERS_MAX, PPM

ME, A, B, C = (bytes([n]) * 32 for n in range(1, 5))


def record(weights):
    return {"v": 1, "weights": [list(pair) for pair in weights]}


def test_weights_survive_the_wire():
    weights = {B: 600_000, A: 400_000}
    assert read_weights(ME, value_of(weights)) == weights
    assert value_of({}) == bytes.fromhex("a2617601677765696768747380")


@pytest.mark.parametrize(
    "weights",
    [
        [(A, 500_001), (B, 500_000)],
        [(B, 1), (A, 1)],
        [(A, 1), (A, 1)],
        [(A, 1), (C, 1), (B, 1)],
        [(A, 0)],
        [(A, PPM + 1)],
        [(A[:31], 1)],
    ],
    ids=[
        "above the whole",
        "falling",
        "twice",
        "rising and falling",
        "nothing",
        "too much",
        "no id",
    ],
)
def test_a_false_recognition_is_refused(weights):
    with pytest.raises(RecordInvalid):
        Recognition.from_value(record(weights))


def test_no_node_recognises_itself():
    with pytest.raises(RecordInvalid):
        read_weights(A, value_of({A: 1}))


def test_the_least_weight_is_accepted():
    assert Recognition.from_value(record([(A, 1)])).weights == ((A, 1),)


def test_the_whole_can_be_given_to_one():
    assert with_weight({}, A, PPM) == {A: PPM}


def test_so_many_peers_and_no_more_are_recognised():
    weights = {number.to_bytes(32, "big"): 1 for number in range(PEERS_MAX - 1)}
    full = with_weight(weights, A, 1)
    assert len(full) == PEERS_MAX
    assert with_weight(full, A, 2)[A] == 2
    with pytest.raises(ArgumentInvalid, match="peers can be recognised"):
        with_weight(full, B, 1)


def test_a_full_budget_is_accepted():
    assert Recognition.from_value(record([(A, 500_000), (B, 500_000)])).weights[1] == (B, 500_000)


def test_a_weight_is_set_and_taken_away():
    weights = with_weight({}, A, 300_000)
    assert with_weight(weights, A, 400_000) == {A: 400_000}
    assert with_weight(weights, B, 700_000) == {A: 300_000, B: 700_000}
    assert with_weight(weights, A, 0) == {}
    assert weights == {A: 300_000}


@pytest.mark.parametrize("ppm", [-1, PPM + 1, 700_001])
def test_a_weight_out_of_the_budget_is_refused(ppm):
    with pytest.raises(ArgumentInvalid):
        with_weight({A: 300_000}, B, ppm)


@pytest.mark.parametrize(
    ("mine", "theirs", "tier"),
    [
        (0, 0, "open"),
        (0, PPM, "open"),
        (1, 0, "one_way"),
        (PPM, 0, "one_way"),
        (PPM, TAU - 1, "one_way"),
        (TAU - 1, PPM, "one_way"),
        (TAU, TAU, "mutual"),
        (TAU, PPM, "mutual"),
    ],
)
def test_tiers(mine, theirs, tier):
    assert tier_of(mine, theirs) == tier
