"""Roots and proofs are those of RFC 6962 and RFC 9162, for every leaf, size and pair of sizes."""

import hashlib
from functools import cache

import pytest

from xsc.base.errors import ProofInvalid
from xsc.ledger.tree import (
    PATH_MAX,
    is_consistent,
    leaf_hash,
    prove_consistency,
    prove_inclusion,
    root_of,
)
from xsc.node.offline.passport import _top

SIZE = 66
LEAVES = [bytes([number]) * 32 for number in range(SIZE)]
PUBLISHED = {
    "": "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "00": "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "10": "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "2021": "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "3031": "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "40414243": "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "5051525354555657": "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "606162636465666768696a6b6c6d6e6f": (
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    ),
}
"""Leaves of Certificate Transparency's own tests, and the root of all up to each."""


@cache
def top(low, high):
    """Return a root as section 2.1 of RFC 6962 has it."""
    if high - low < 2:
        return leaf_hash(LEAVES[low]) if high > low else hashlib.sha256().digest()
    middle = low + (1 << (high - low - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + top(low, middle) + top(middle, high)).digest()


def is_included(leaf, index, size, root, path):
    """What `xsc verify` says of a path in a passport."""
    left = [*path]
    try:
        found = _top(leaf_hash(leaf), index, size, lambda _: left.pop(), node)
    except (ProofInvalid, IndexError, ValueError):
        return False
    return found == root and not left


def node(left, right):
    return hashlib.sha256(b"\1" + left + right).digest()


def broken(path):
    """Yield a path with one hash less, more, changed or cut, each."""
    for place in range(len(path)):
        yield path[:place] + path[place + 1 :]
        yield [*path[:place], bytes(32), *path[place + 1 :]]
        yield [*path[:place], path[place][:-1], *path[place + 1 :]]
    yield [*path, bytes(32)]


def test_roots_are_those_that_certificate_transparency_publishes():
    hashes = []
    for leaf, root in PUBLISHED.items():
        hashes.append(leaf_hash(bytes.fromhex(leaf)))
        assert root_of(hashes).hex() == root


def test_the_last_leaf_twice_is_another_tree_and_a_node_is_no_leaf():
    three = [leaf_hash(leaf) for leaf in LEAVES[:3]]
    assert root_of(three) != root_of([*three, three[-1]])
    pair = hashlib.sha256(b"\1" + three[0] + three[1]).digest()
    assert leaf_hash(three[0] + three[1]) != pair
    assert not is_included(three[0] + three[1], 0, 2, root_of([pair, three[2]]), [three[2]])


@pytest.mark.parametrize("size", range(SIZE + 1))
def test_each_leaf_of_each_size_is_proven_and_no_changed_path_proves_it(size):
    root = root_of([leaf_hash(leaf) for leaf in LEAVES[:size]])
    assert root == top(0, size)
    for index in range(size):
        path = prove_inclusion(index, size, top)
        assert is_included(LEAVES[index], index, size, root, path)
        assert not is_included(b"other", index, size, root, path)
        assert not is_included(LEAVES[index], index, size, bytes(32), path)
        for other in {index - 1, index + 1, size, -1} - {index}:
            assert not is_included(LEAVES[index], other, size, root, path)
        for wrong in broken(path):
            assert not is_included(LEAVES[index], index, size, root, wrong)


@pytest.mark.parametrize("size", range(1, SIZE + 1))
def test_each_beginning_of_each_size_is_proven_and_no_changed_path_proves_it(size):
    for old in range(1, size + 1):
        path = prove_consistency(old, size, top)
        assert is_consistent(old, top(0, old), size, top(0, size), path)
        assert not is_consistent(old, bytes(32), size, top(0, size), path)
        assert not is_consistent(old, top(0, old), size, bytes(32), path)
        assert not is_consistent(size + 1, top(0, old), size, top(0, size), path)
        assert not is_consistent(0, top(0, 0), size, top(0, size), path)
        for wrong in [*broken(path), *([[]] if path else [])]:
            assert not is_consistent(old, top(0, old), size, top(0, size), wrong)


def test_no_proof_has_more_hashes_than_a_peer_may_send():
    def no_hash(_low, _high):
        return b""

    most = 2**63 - 1
    assert len(prove_inclusion(0, most, no_hash)) == PATH_MAX
    assert max(len(prove_consistency(old, most, no_hash)) for old in (1, 2, 3)) <= PATH_MAX + 1


def test_a_root_over_subtrees_is_the_root_over_their_leaves():
    for size in range(1, SIZE + 1):
        subtrees = [top(low, min(low + 8, size)) for low in range(0, size, 8)]
        assert root_of(subtrees) == top(0, size)
