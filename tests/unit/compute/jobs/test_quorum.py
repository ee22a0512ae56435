"""Whom to believe of several providers: over every way in which up to four can answer."""

from __future__ import annotations

from itertools import product

import pytest

from tests.unit.compute.jobs.test_receipts import RESULT, an_order
from xsc.base.errors import ArgumentInvalid
from xsc.compute.jobs.quorum import (
    PROVIDERS_VERIFYING_MAX,
    Quorum,
    contradict,
    decide,
    read_quorum,
    same_content,
)
from xsc.compute.jobs.receipts import make_receipt
from xsc.identity.envelope import sign

VOTES = ("yes", "no", "trap", "other engine", "late", None)
"""None is silent."""
COMPARABLE = {"yes", "no", "trap"}


@pytest.fixture(scope="module")
def outcomes(alice, bob, network):
    order = sign(an_order(alice, bob), alice, network)
    true = make_receipt(order, RESULT, price=1, started_ms=0, wall_ms=0).outcome
    ended = {"results": ()}
    return {
        "yes": true,
        "no": true.model_copy(update={"fuel_used": true.fuel_used - 1}),
        "trap": true.model_copy(update={"trap": "module_trapped: unreachable", **ended}),
        "other engine": true.model_copy(update={"engine": "wasmtime-py/49"}),
        "late": true.model_copy(update={"trap": "time_exceeded", **ended}),
    }


def ids(votes, wanted):
    return tuple(bytes([place]) for place, vote in enumerate(votes) if vote in wanted)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_all_ways_in_which_providers_can_answer(outcomes, count):
    """The model counts letters, and knows nothing of outcomes."""
    for need in range(count // 2 + 1, count + 1):
        for votes in product(VOTES, repeat=count):
            told = {bytes([n]): outcomes[vote] for n, vote in enumerate(votes) if vote}
            tally = decide(told, need)
            winners = [vote for vote in VOTES if vote and votes.count(vote) >= need]
            assert len(winners) <= 1
            agreed = set(winners)
            against = COMPARABLE - agreed if agreed & COMPARABLE else set()
            assert tally.agreeing == ids(votes, agreed)
            assert tally.dissenting == ids(votes, against)
            assert tally.uncounted == ids(votes, set(VOTES) - {None} - agreed - against)
            said = {votes[first[0]] for pair in tally.contradictions for first in pair}
            if agreed:
                assert {pair[0] for pair in tally.contradictions} <= {tally.agreeing[0]}
                assert {pair[1] for pair in tally.contradictions} == set(tally.dissenting)
            else:
                spoken = COMPARABLE & set(votes)
                assert said == (spoken if len(spoken) > 1 else set())
            assert len(set(tally.contradictions)) == len(tally.contradictions)
            for first, second in tally.contradictions:
                assert contradict(told[first], told[second])


def test_what_cannot_be_compared_contradicts_nothing(outcomes):
    for one, other in product(outcomes, repeat=2):
        assert contradict(outcomes[one], outcomes[other]) == (
            one != other and {one, other} <= COMPARABLE
        )
    batch = {"mode": "batch"}
    pair = [outcomes[name].model_copy(update=batch) for name in ("yes", "no")]
    assert not contradict(*pair)


def test_orders_are_of_the_same_content(alice, bob):
    order = an_order(alice, bob)
    other = {"provider": b"P" * 32, "lease_id": b"N" * 32}
    assert same_content(order, order.model_copy(update=other))
    assert not same_content(order, order)
    assert not same_content(order, order.model_copy(update={"lease_id": b"N" * 32}))
    for changed in (
        {"nonce": b"x" * 16},
        {"created_ms": 78},
        {"fuel_max": 1},
        {"module": b"x" * 32},
    ):
        assert not same_content(order, order.model_copy(update={**other, **changed}))


@pytest.mark.parametrize("of", range(12))
def test_more_than_half_must_agree(of):
    for need in range(13):
        fits = 2 <= of <= PROVIDERS_VERIFYING_MAX and of / 2 < need <= of
        if fits:
            assert read_quorum(f"{need}of{of}") == Quorum(need, of)
        else:
            with pytest.raises(ArgumentInvalid):
                read_quorum(f"{need}of{of}")


@pytest.mark.parametrize("text", ["", "2", "2of", "of3", "2 of 3", "-2of3", "2of3x", "2of9999"])
def test_what_is_no_quorum(text):
    with pytest.raises(ArgumentInvalid):
        read_quorum(text)
