"""One root binds every byte of a shard, and each leaf can be shown alone."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import vectors
from xsc.base.limits import LEAF_BYTES
from xsc.base.merkle import leaf_hashes, leaf_holds, prove_leaf, root_of

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


@pytest.mark.parametrize(
    "size", [0, 1, LEAF_BYTES, LEAF_BYTES + 1, 3 * LEAF_BYTES, 7 * LEAF_BYTES - 5]
)
def test_each_leaf_proves_itself_and_no_other(size):
    data = content(size)
    root, hashes = root_of(data), leaf_hashes(data)
    leaves = [data[i * LEAF_BYTES : (i + 1) * LEAF_BYTES] for i in range(len(hashes))]
    for index, leaf in enumerate(leaves):
        path = prove_leaf(hashes, index)
        assert leaf_holds(root, size, index, leaf, path)
        assert not leaf_holds(root, size + 1, index, leaf, path)
        assert not leaf_holds(root, size, index, leaf + b"x", path)
        assert not leaf_holds(root, size, -1, leaf, path)
        assert not leaf_holds(root, size, len(leaves), leaf, path)
        assert not leaf_holds(root, size, index, leaf, [*path, bytes(32)])
        if path:
            assert not leaf_holds(root, size, index, leaf, path[:-1])
            assert not leaf_holds(root, size, index, leaf, [bytes(32), *path[1:]])
        if leaf:
            assert not leaf_holds(root, size, index, bytes([leaf[0] ^ 1]) + leaf[1:], path)
        for other in range(len(leaves)):
            if other != index:
                assert not leaf_holds(root, size, other, leaf, path)


@given(st.integers(0, 12), st.integers(-2, 2), st.data())
def test_any_leaf_of_any_size_is_proved(leaves, offset, draw):
    size = max(0, leaves * LEAF_BYTES + offset)
    data = content(size)
    hashes = leaf_hashes(data)
    index = draw.draw(st.integers(0, len(hashes) - 1))
    leaf = memoryview(data)[index * LEAF_BYTES : (index + 1) * LEAF_BYTES]
    assert leaf_holds(root_of(data), size, index, leaf, prove_leaf(hashes, index))
