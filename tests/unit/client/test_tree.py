"""The form of a stored directory: what breaks a rule is refused whole."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base import limits
from xsc.base.errors import ArgumentInvalid, RecordInvalid, TooLarge, XscError
from xsc.client import tree as trees
from xsc.client.tree import (
    MAGIC,
    TREE_ENTRIES_MAX,
    Node,
    Tree,
    pack,
    part_id,
    references,
    tree_id,
    unchanged,
    unpack,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "tree.json").read_text())
CAPABILITY = "xsc:r:" + "a" * 110
OPTIONS = "2nodes (4, 2)"
PART = part_id(hashlib.sha256(b"content").digest(), OPTIONS)
FILE = Node(b"a", "file", 0o644, 1_700_000_000_123_456_789, 7, PART, CAPABILITY)
NODES = (
    FILE,
    Node(b"b", "directory", 0o755, -5),
    Node(b"b/\xff\n", "file", 0o600, 0),
    Node(b"b.x", "link", 0, 1, target=b"../../etc"),
)
TREE = Tree(1_700_000_000_000, OPTIONS, 0o750, 42, NODES)


def test_trees_of_version_1_are_read_and_written():
    raw = bytes.fromhex(VECTORS["tree"])
    assert unpack(raw) == TREE
    assert pack(TREE) == raw
    assert tree_id("photos/") == VECTORS["id"]
    assert PART.hex() == VECTORS["part"]


def value():
    return cbor2.loads(pack(TREE)[len(MAGIC) :])


def packed(made):
    return MAGIC + cbor2.dumps(made, canonical=True)


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/etc/passwd",
        b"../escape",
        b"b/../../escape",
        b"b/./x",
        b".",
        b"..",
        b"b//x",
        b"b/",
        b"nul\0",
        b"x" * 256,
        b"/".join([b"d"] * 200),
        b"b/" + b"/".join([b"x" * 250] * 17),
        b"a/below-a-file",
        b"b.x/below-a-link",
        b"nowhere/x",
    ],
)
def test_a_path_that_leads_out_or_through_no_directory_is_refused(path):
    made = value()
    made[-1] = sorted([*made[-1], [path, 2, 0, b"x"]], key=lambda row: row[0].split(b"/"))
    with pytest.raises(RecordInvalid):
        unpack(packed(made))


@pytest.mark.parametrize("name", ["a", "b", "b.x"])
def test_a_path_that_comes_twice_is_refused(name):
    made = value()
    place = [row[0] for row in made[-1]].index(name.encode())
    made[-1].insert(place, made[-1][place])
    with pytest.raises(RecordInvalid, match="twice"):
        unpack(packed(made))


def test_paths_that_are_not_in_order_are_refused():
    made = value()
    made[-1].reverse()
    with pytest.raises(RecordInvalid):
        unpack(packed(made))


@pytest.mark.parametrize(
    "row",
    [
        [b"z", 0, -1, 0],
        [b"z", 0, 0o10000, 0],
        [b"z", 0, 0, 2**63],
        [b"z", True, 0, 0],
        [b"z", 3, 0, 0],
        ["z", 0, 0, 0],
        [b"z", 0, 0],
        [b"z", 1, 0, 0, 0, PART, CAPABILITY],
        [b"z", 1, 0, 0, 5, None, None],
        [b"z", 1, 0, 0, -5, PART, CAPABILITY],
        [b"z", 1, 0, 0, 5, PART[1:], CAPABILITY],
        [b"z", 1, 0, 0, 5, PART, "xsc:v:" + "a" * 110],
        [b"z", 1, 0, 0, 5, PART, CAPABILITY + "\r\nX: y"],
        [b"z", 2, 0, b""],
        [b"z", 2, 0, b"nul\0"],
        [b"z", 2, 0, b"x" * 5000],
        7,
    ],
)
def test_an_entry_of_no_known_form_is_refused(row):
    made = value()
    made[-1].append(row)
    with pytest.raises(RecordInvalid):
        unpack(packed(made))


def test_what_is_no_tree_or_of_a_newer_form_is_named():
    with pytest.raises(ArgumentInvalid, match="that is a file"):
        unpack(b"hello")
    with pytest.raises(RecordInvalid, match="newer form"):
        unpack(b"XSC tree 2\n")
    for made in (value()[1:], [*value(), 2], {}, [-1, *value()[1:]]):
        with pytest.raises(RecordInvalid):
            unpack(packed(made))


@given(st.data())
def test_no_changed_byte_makes_another_error_than_ours(data):
    raw = bytearray(pack(TREE))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] = data.draw(st.integers(0, 255))
    try:
        found = unpack(bytes(raw))
    except XscError:
        return
    trees.check(found.nodes)


def test_bounds_are_met(monkeypatch):
    monkeypatch.setattr(trees, "TREE_ENTRIES_MAX", 4)
    assert unpack(pack(TREE)) == TREE
    more = replace(TREE, nodes=(*NODES, Node(b"c", "directory", 0, 0)))
    with pytest.raises(TooLarge):
        pack(more)
    made = value()
    made[-1].append([b"c", 0, 0, 0])
    with pytest.raises(TooLarge):
        unpack(packed(made))
    monkeypatch.setattr(trees, "TREE_BYTES_MAX", len(pack(TREE)) - 1)
    for act in (lambda: pack(TREE), lambda: unpack(bytes.fromhex(VECTORS["tree"]))):
        with pytest.raises(TooLarge):
            act()
    assert TREE_ENTRIES_MAX * 400 <= limits.TREE_BYTES_MAX


def test_only_what_cannot_have_changed_is_not_read_again():
    old = replace(FILE, mtime_ns=(TREE.started_ms - 2001) * 1_000_000)
    racy = replace(FILE, path=b"racy", mtime_ns=(TREE.started_ms - 1999) * 1_000_000)
    known = replace(TREE, nodes=(old, racy))
    assert unchanged(known, OPTIONS) == {(b"a", 7, old.mtime_ns): old}
    assert unchanged(known, "1node ") == {}
    assert unchanged(None, OPTIONS) == {}


def test_parts_are_counted():
    assert references([TREE, TREE]) == {PART}
    assert TREE.same_content(replace(TREE, started_ms=1))
    assert not TREE.same_content(replace(TREE, mode=0))
