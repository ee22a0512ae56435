"""The tree over a stored chain is that over all its halves, and no damaged one is signed."""

import asyncio

import pytest

from tests.unit.ledger.circle import Circle
from tests.unit.ledger.test_tree import is_included
from xsc.base.errors import LedgerDamaged
from xsc.ledger import tree
from xsc.ledger.chain import ENTRY, TILE, key_of
from xsc.ledger.checkpoints import TILE_LEAVES, Leaves
from xsc.ledger.incarnation import Noted

SIZE = 3 * TILE_LEAVES + 70


@pytest.fixture(scope="module")
def member():
    """Return a node with more halves than three tiles have."""
    a, b = Circle(2).members

    async def fill():
        for number in range(SIZE):
            await a.ledger.set_limit(b.id, number)

    asyncio.run(fill())
    return a


@pytest.fixture
def store(member):
    kept = [*member.store.scan(b"", b"\xff")]
    yield member.store
    member.store.write([(key, None) for key, _ in member.store.scan(b"", b"\xff")], sync=True)
    member.store.write(kept, sync=True)


def at(member, size):
    leaves = Leaves(member.ledger.chain)
    leaves.size, leaves._head = size, member.ledger.chain.own(size - 1).id
    return leaves


def whole(member, size):
    return tree.root_of([tree.leaf_hash(member.ledger.chain.own(n).id) for n in range(size)])


@pytest.mark.parametrize("is_stored", [True, False])
def test_roots_and_proofs_of_tiles_are_those_of_all_leaves(member, store, is_stored):
    sizes = (1, 255, 256, 257, 511, 512, 513, 767, 768, 769, SIZE)
    if is_stored:
        tiles = Leaves(member.ledger.chain).check_from(0)
        assert len(tiles) == 3
        store.write([*tiles.items()], sync=True)
    for size in sizes:
        leaves, root = at(member, size), whole(member, size)
        assert leaves.top(0, size) == root
        for index in {0, size // 2, size - 1, min(size - 1, 256), min(size - 1, 511)}:
            path = tree.prove_inclusion(index, size, leaves.top)
            leaf = member.ledger.chain.own(index).id
            assert is_included(leaf, index, size, root, path)
        for old in (each for each in sizes if each <= size):
            path = tree.prove_consistency(old, size, leaves.top)
            assert tree.is_consistent(old, whole(member, old), size, root, path)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 600, SIZE - 1, SIZE])
def test_what_is_new_is_read_again_and_must_be_the_chain(member, store, size):
    leaves = Leaves(member.ledger.chain)
    leaves.check_from(size)
    last = SIZE - 1
    raw = store.get(key_of(ENTRY, last))
    for damaged in (None, store.get(key_of(ENTRY, last - 1)), raw[:-1]):
        store.write([(key_of(ENTRY, last), damaged)], sync=True)
        with pytest.raises(LedgerDamaged):
            leaves.check_from(size)


def test_a_damaged_tile_gives_a_root_that_does_not_continue(member, store):
    leaves = Leaves(member.ledger.chain)
    root = leaves.top(0, 600)
    ((key, _), *_) = leaves.check_from(0).items()
    assert key.startswith(TILE)
    store.write([(key, bytes(32))], sync=True)
    assert leaves.top(0, 600) != root


async def test_a_new_incarnation_forgets_the_tiles_of_the_one_before():
    a, b = Circle(2).members
    for number in range(TILE_LEAVES):
        await a.ledger.set_limit(b.id, number)
    a.store.write([*Leaves(a.ledger.chain).check_from(0).items()], sync=True)
    assert [*a.ledger.chain.table(TILE)]
    await a.ledger.restart([], Noted())
    assert not [*a.ledger.chain.table(TILE)]
