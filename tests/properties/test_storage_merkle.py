"""One root binds every byte of a shard."""

import hashlib

import pytest

from tests.strategies import vectors
from xsc.base.limits import LEAF_BYTES
from xsc.base.merkle import root_of

MIB = 2**20


def content(size: int) -> bytes:
    return hashlib.shake_256(f"merkle {size}".encode()).digest(size)


@pytest.mark.parametrize("case", vectors("merkle")["cases"], ids=lambda case: case["size"])
def test_roots_are_the_pinned_ones(case):
    assert root_of(content(case["size"])).hex() == case["root"]


def test_every_flipped_byte_of_a_leaf_changes_the_root():
    data = bytearray(content(LEAF_BYTES))
    root = root_of(bytes(data))
    for index in range(LEAF_BYTES):
        data[index] ^= 1 << index % 8
        assert root_of(bytes(data)) != root
        data[index] ^= 1 << index % 8


def test_both_edges_of_every_leaf_of_a_full_shard_change_the_root():
    data = bytearray(content(MIB))
    root = root_of(bytes(data))
    for start in range(0, MIB, LEAF_BYTES):
        for index in (start, start + LEAF_BYTES - 1):
            data[index] ^= 0x80
            assert root_of(bytes(data)) != root
            data[index] ^= 0x80


def test_length_is_bound_by_the_root():
    roots = {root_of(bytes(size)) for size in (0, 1, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1)}
    assert len(roots) == 5
