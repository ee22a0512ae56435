"""What a host proves of what lies on its disk, and the columns that are not proven."""

import hashlib
import math
import random

import pytest

from tests.unit.storage.world import CAPACITY, Host, World, content
from xsc.base import errors
from xsc.base.limits import KIB, LEAF_BYTES
from xsc.base.merkle import root_of, span_holds
from xsc.db.leveldb import LevelDBKeyValue
from xsc.health import challenge as rules
from xsc.storage.object.manifest import hash_of
from xsc.storage.repair.possession import unproven
from xsc.storage.shardstore import bodies as formats
from xsc.terms.possession import (
    LEAVES_ASKED,
    MANIFEST_COLUMN,
    AskedLeaf,
    Extent,
    Root,
    extent_name,
)

CUSTOMER = b"c" * 32


class DiskHost(Host):
    """A host with its shards in a real database."""

    path = None

    def make_node(self, capacity_bytes):
        self.bodies = LevelDBKeyValue(self.path / "bodies")
        self.index = LevelDBKeyValue(self.path / "index")
        return super().make_node(capacity_bytes)


@pytest.fixture
async def host(tmp_path):
    world = World(0)
    kind = type("DiskHost", (DiskHost,), {"path": tmp_path})
    made = kind(world, 0, CAPACITY)
    await made.node.start()
    yield made
    made.bodies.close()
    made.index.close()


async def store(host, extents):
    """Store all bodies of extents; return their roots, by name and number."""
    roots = {}
    for extent in extents:
        bodies = []
        for body in range(extent.bodies):
            data = content(extent.size_of(body), hash((extent.name, body)) % 2**32)
            if extent.column == MANIFEST_COLUMN:
                roots[extent.name, body] = Root(0, root_of(data), hash_of(data))
                key, proof = formats.record_key(extent.locate, CUSTOMER), hash_of(data)
            else:
                roots[extent.name, body] = Root(0, root_of(data), None)
                key = formats.shard_key(extent.locate, 0, body, extent.column, CUSTOMER)
                proof = root_of(data)
            bodies.append(formats.Body(key, b"l" * 32, proof, data))
        await host.node.store(bodies)
    return roots


def extents(count):
    found = []
    for number in range(count):
        locate = hashlib.sha256(b"%d" % number).digest()
        found.append(Extent(extent_name(locate, MANIFEST_COLUMN), 1, 400 + number, 400 + number))
        if number % 2:
            found.append(Extent(extent_name(locate, number % 6), 2, 3 * LEAF_BYTES, KIB + number))
    return found


def every_leaf(listed):
    for extent in listed:
        for body in range(extent.bodies):
            for leaf in range(-(-extent.size_of(body) // LEAF_BYTES)):
                yield extent, body, leaf


async def test_the_share_found_on_a_thinned_disk_is_what_it_must_be(host):
    """1 - (1 - f)^l within 3 sigma over 10^4 challenges, with bodies removed from the database."""
    listed = extents(80)
    roots = await store(host, listed)
    every = list(every_leaf(listed))
    prove = host.service.leaf

    async def lacks():
        asked = [AskedLeaf(*place, roots[place[0].name, place[1]]) for place in every]
        proofs = [await prove(CUSTOMER, leaf) for leaf in asked]
        for leaf, proof in zip(asked, proofs, strict=True):
            assert isinstance(proof, str) or span_holds(
                leaf.root.root, leaf.size_bytes, leaf.leaf, proof.data, proof.path
            )
        return {place for place, proof in zip(every, proofs, strict=True) if isinstance(proof, str)}

    assert await lacks() == set(), "an honest host has everything"
    draw = random.Random(5)
    gone = [key for key, _ in host.bodies.scan(formats.BODIES, b"c") if draw.random() < 0.1]
    host.bodies.write([(key, None) for key in gone], sync=True)
    missing = await lacks()
    share = len(missing) / len(every)
    assert 0.02 < share < 0.3
    pages = rules.pages_of(listed)
    index = rules.index_of(pages)
    trials, found = 10_000, 0
    for number in range(trials):
        seed = hashlib.sha256(b"trial %d" % number).digest()
        shown = [pages[page] for page in rules.pages_drawn(index, seed)]
        found += not missing.isdisjoint(rules.leaves_drawn(index, shown, seed))
    chance = 1 - (1 - share) ** LEAVES_ASKED
    assert abs(found - trials * chance) <= 3 * math.sqrt(trials * chance * (1 - chance))


async def test_rot_is_admitted_and_noted_for_its_owner(host):
    (extent,) = [extent for extent in extents(2) if extent.column != MANIFEST_COLUMN]
    roots = await store(host, [extent])
    ((key, raw), _) = host.bodies.scan(formats.BODIES, b"c")
    host.bodies.write([(key, raw[:-1] + bytes([raw[-1] ^ 1]))], sync=True)
    prove = host.service.leaf
    for leaf in range(3):
        asked = AskedLeaf(extent, 0, leaf, roots[extent.name, 0])
        assert await prove(CUSTOMER, asked) == "corrupt"
    assert (await prove(CUSTOMER, AskedLeaf(extent, 1, 0, roots[extent.name, 1]))).data
    assert len(host.node.damaged) == 1


async def test_what_cannot_be_is_refused_and_not_admitted(host):
    listed = extents(2)
    roots = await store(host, listed)
    manifest, *_, shards = listed
    prove = host.service.leaf
    root = roots[manifest.name, 0]
    other = Extent(manifest.name, 1, manifest.last_bytes + 1, manifest.last_bytes + 1)
    wrong = [
        AskedLeaf(manifest, 0, 0, root._replace(root=b"r" * 32)),
        AskedLeaf(other, 0, 0, root),
        AskedLeaf(Extent(extent_name(shards.locate, 300), 1, 9, 9), 0, 0, Root(0, b"r" * 32, None)),
        AskedLeaf(Extent(shards.name, 1, 9, 2**25), 0, 0, Root(0, b"r" * 32, None)),
        AskedLeaf(shards, 0, 0, Root(2**40, b"r" * 32, None)),
    ]
    for asked in wrong:
        with pytest.raises(errors.RecordInvalid):
            await prove(CUSTOMER, asked)
    # A leaf that the shard has not, by a size that it has not.
    longer = Extent(shards.name, 1, 9, 4 * LEAF_BYTES)
    assert await prove(CUSTOMER, AskedLeaf(longer, 0, 3, roots[shards.name, 0])) == "missing"


@pytest.mark.parametrize(
    ("outcome", "names", "columns"),
    [
        ("ok", (), []),
        ("prober_void", (), []),
        ("timeout", (), [0, 2]),
        ("unreachable", (), [0, 2]),
        ("missing", (2,), [2]),
        ("bad_proof", (0, 2), [0, 2]),
        ("missing", (MANIFEST_COLUMN,), [0, 2]),
        ("missing", (2, MANIFEST_COLUMN), [2]),
    ],
)
def test_columns_that_are_not_proven(outcome, names, columns):
    nodes = [b"a" * 32, b"b" * 32, b"a" * 32, None]
    failed = [extent_name(b"l" * 32, column) for column in names]
    assert unproven(b"a" * 32, nodes, outcome, failed) == columns
