"""The randomness port: the system's and the seeded one keep the same laws."""

import pytest

from xsc.base.clock import SeededEntropy
from xsc.node.system import SystemEntropy


@pytest.fixture(params=[SystemEntropy, lambda: SeededEntropy(b"seed")], ids=["system", "seeded"])
def entropy(request):
    return request.param()


@pytest.mark.parametrize("size", [0, 1, 16, 32, 4096])
def test_it_gives_exactly_as_many_bytes_as_asked_for(entropy, size):
    assert len(entropy.token(size)) == size


def test_no_token_comes_twice(entropy):
    assert len({entropy.token(16) for _ in range(1_000)}) == 1_000


def test_bits_are_balanced(entropy):
    ones = sum(byte.bit_count() for byte in entropy.token(65_536))
    # 524 288 bits: six standard deviations are 2 172.
    assert abs(ones - 262_144) < 2_172


def test_a_seed_gives_its_stream_again_and_another_seed_another():
    first = [SeededEntropy(b"a").token(8) for _ in range(2)]
    assert first[0] == first[1]
    stream = SeededEntropy(b"a")
    assert [stream.token(8), stream.token(8)] != [first[0]] * 2
    assert SeededEntropy(b"b").token(8) != first[0]
