"""Which pong answers a ping."""

import pytest

from xsc.health.messages import Ping, Pong, check_pong

PING = Ping(node=b"a" * 32, nonce=b"n" * 16, sent_ms=1)


def pong(**changed):
    fields = {
        "node": PING.node,
        "nonce": PING.nonce,
        "now_ms": 2,
        "reaches": None,
    }
    return Pong(**(fields | changed))


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({}, None),
        ({"node": b"b" * 32}, "the pong names another node than the one asked"),
        ({"nonce": b"o" * 16}, "the pong answers another ping"),
    ],
)
def test_a_pong_repeats_the_node_and_the_nonce(changed, wrong):
    assert check_pong(pong(**changed), PING) == wrong
