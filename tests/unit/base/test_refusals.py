"""What many nodes refused is one error, with a word and an advice for every reason."""

import itertools

import pytest

from xsc.base import errors
from xsc.base.errors import (
    ComputeExhausted,
    CreditExceeded,
    LeaseExhausted,
    NoOffers,
    PeerSilent,
    RateLimited,
    SpaceExhausted,
    XscError,
)
from xsc.base.ids import short
from xsc.base.refusals import reasons, refusal

EVERY = sorted(
    (
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, XscError)
    ),
    key=lambda kind: kind.__name__,
)
USED_UP = (CreditExceeded, SpaceExhausted, ComputeExhausted)
NODES = tuple(bytes([index]) * 32 for index in range(3))


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_error_that_a_peer_can_give_has_a_word_and_an_advice(kind):
    """A peer may answer with any code."""
    fault = refusal({NODES[0]: kind("it")}, "nothing came of it")
    word = fault.message.removeprefix("nothing came of it (").split(":")[0]
    assert word
    assert "_" not in word
    assert fault.hint


def test_only_what_is_used_up_is_a_limit():
    for pair in itertools.product(EVERY, repeat=2):
        refused = {node: kind("it") for node, kind in zip(NODES, pair, strict=False)}
        fault = refusal(refused, "nothing")
        if set(pair) == {CreditExceeded}:
            assert type(fault) is CreditExceeded
        elif set(pair) <= set(USED_UP):
            assert type(fault) is (ComputeExhausted if ComputeExhausted in pair else SpaceExhausted)
        else:
            assert type(fault) is NoOffers


def test_a_retry_helps_where_all_are_busy_or_their_leases_are_used_up():
    for kind in (RateLimited, LeaseExhausted):
        fault = refusal({node: kind("it") for node in NODES}, "nothing")
        assert (fault.exit_code, fault.retryable) == (5, True)
        assert "try again" in fault.hint


def test_where_nobody_was_left_to_be_asked_it_is_said():
    fault = refusal({}, "nothing came of it", also="ask later")
    assert (type(fault), fault.hint) == (NoOffers, "ask later")
    assert "nobody is left" in fault.message


def test_each_node_is_named_once_a_reason():
    first, second, _ = map(short, NODES)
    told = [(NODES[1], PeerSilent("")), (NODES[0], PeerSilent("")), (NODES[0], RateLimited(""))]
    assert reasons(told + told) == f"busy: {first}; silent: {', '.join(sorted((first, second)))}"
