"""One root binds every byte of a shard."""

import hashlib

import pytest

from tests.strategies import vectors
from xsc.base.limits import LEAF_BYTES
from xsc.base.merkle import leaf_hashes, prove_span, root_of, span_holds

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


def test_a_span_begins_and_ends_in_its_shard():
    """A piece before the first leaf or behind the last is no part of what the root binds."""
    data, more = content(3 * LEAF_BYTES), content(LEAF_BYTES)
    hashes, root = leaf_hashes(data), root_of(data)
    head, tail = prove_span(hashes, 0, 1), prove_span(hashes, 2, 3)
    assert span_holds(root, len(data), 0, data[:LEAF_BYTES], head)
    assert not span_holds(root, len(data), -1, more + data[:LEAF_BYTES], head)
    assert span_holds(root, len(data), 2, data[-LEAF_BYTES:], tail)
    assert not span_holds(root, len(data), 2, data[-LEAF_BYTES:] + more, tail)
    assert not span_holds(root, len(data), 3, more, hashes)
