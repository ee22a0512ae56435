"""What all tests share: keys and a network by name, and Hypothesis without a stopwatch.

A test fails by what is computed, never by how long it took: the machines that
run it are shared. Hypothesis prints the example that reproduces a failure.
"""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from xsc.identity.keys import KeyPair, network_id

settings.register_profile(
    "xsc",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("thorough", settings.get_profile("xsc"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "xsc"))

# A shell has what it starts in the background ignore this one, and so do all its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def network() -> bytes:
    return network_id("test")


@pytest.fixture(scope="session")
def alice() -> KeyPair:
    return KeyPair(b"\xa1" * 32)


@pytest.fixture(scope="session")
def bob() -> KeyPair:
    return KeyPair(b"\xb0" * 32)
