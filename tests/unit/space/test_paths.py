"""Paths: what is one, what is refused, and that no other module makes them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from xsc.base.errors import ArgumentInvalid, RecordInvalid
from xsc.base.ids import to_text
from xsc.space.limits import PART_BYTES_MAX, PATH_BYTES_MAX, PATH_PARTS_MAX
from xsc.space.paths import (
    UserSpacePaths,
    below,
    check_path,
    is_reserved,
    is_systems,
    is_under,
    parse_address,
)

HASH = bytes(range(32))
SOURCES = sorted((Path(__file__).parents[3] / "xsc").rglob("*.py"))
LONG = "/".join(["x" * PART_BYTES_MAX] * 8)


@pytest.mark.parametrize(
    "path",
    ["a", "a/b", "A-z_0.9~/..b/b../...", "x" * PART_BYTES_MAX, "/".join("a" * PATH_PARTS_MAX)],
)
def test_a_path_is_parts_of_ascii(path):
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "a/.",
        "a\0",
        "a\n",
        "a b",
        "a:b",
        "a\\b",
        "a%2fb",
        "а",  # Cyrillic
        "é",
        "e\u0301",
        "ａ",  # full width
        "a\u200b",
        "a\u2044b",
        "\ud800",
        "x" * (PART_BYTES_MAX + 1),
        "/".join("a" * (PATH_PARTS_MAX + 1)),
        LONG[: PATH_BYTES_MAX - 1] + "/x",
    ],
)
def test_a_trick_is_no_path(path):
    with pytest.raises(RecordInvalid):
        check_path(path)


def test_the_bound_of_a_path_is_in_bytes():
    parts = ["x" * 127] * 8
    path = "/".join(parts)
    assert len(path) == PATH_BYTES_MAX - 1
    assert check_path(path + "x") == path + "x"
    with pytest.raises(RecordInvalid):
        check_path(path + "/x")


@pytest.mark.parametrize(
    ("text", "owner", "path"),
    [
        ("a/b", None, "a/b"),
        ("a/b/", None, "a/b"),
        ("", None, ""),
        ("friend:a", "friend", "a"),
        ("friend:", "friend", ""),
        (to_text(HASH) + ":nodes/address", to_text(HASH), "nodes/address"),
    ],
)
def test_an_address_has_an_owner_and_a_path(text, owner, path):
    assert parse_address(text) == (owner, path)


@pytest.mark.parametrize("text", [":a", "friend:..", "friend:a//", "a b", "a\0"])
def test_a_false_address_is_refused(text):
    with pytest.raises(ArgumentInvalid):
        parse_address(text)


def test_a_prefix_ends_with_a_part():
    assert is_under("a/b", "a")
    assert is_under("a", "a")
    assert is_under("a/b", "")
    assert not is_under("ab", "a")
    assert not is_under("a", "a/b")


WRITER = "c3unsmo624ymmjk5g7lzrj3aptuc2wv4zwxvqtenniq4akpk32ja"
"""Of "a/b", by hashlib and base64 alone."""
MADE = {
    "allocation/recognition": UserSpacePaths.RECOGNITION,
    "nodes/address": UserSpacePaths.ADDRESS,
    "nodes/departure": UserSpacePaths.DEPARTURE,
    "nodes/members/7": below(UserSpacePaths.MEMBERS, 7),
    "causality/grants/7": below(UserSpacePaths.GRANTS, 7),
    "cells/x": below(UserSpacePaths.CELLS, "x"),
    "programs/registry/$": below(UserSpacePaths.REGISTRY, HASH),
    "programs": UserSpacePaths.PROGRAMS,
    "programs/services": UserSpacePaths.SERVICES,
    "programs/services/greet": below(UserSpacePaths.SERVICES, "greet"),
    "programs/active/$": below(UserSpacePaths.ACTIVE, HASH),
    "programs/registry": UserSpacePaths.REGISTRY,
    "programs/active": UserSpacePaths.ACTIVE,
    "compute/$": below(UserSpacePaths.COMPUTE, HASH),
    "compute/$/variables/x": UserSpacePaths.variable(HASH, "x"),
    "compute/$/results/x": UserSpacePaths.result(HASH, "x"),
    "compute/provenance/$/$": below(UserSpacePaths.PROVENANCE, HASH, HASH),
    "compute/provenance": UserSpacePaths.PROVENANCE,
    "compute/provenance/$": below(UserSpacePaths.PROVENANCE, HASH),
    f"compute/provenance/{WRITER}": UserSpacePaths.writer("a/b"),
    "subscriptions/local/a/b": below(UserSpacePaths.SUBSCRIBED_HERE, "a/b"),
    "subscriptions/peers/$/a/b": below(UserSpacePaths.SUBSCRIBED_AT_PEERS, HASH, "a/b"),
    "market/clearings": UserSpacePaths.CLEARINGS,
    "market/clearings/$": below(UserSpacePaths.CLEARINGS, HASH),
    "market/named": UserSpacePaths.NAMED,
    "market/named/$": below(UserSpacePaths.NAMED, HASH),
}


@pytest.mark.parametrize("shown", MADE)
def test_paths_of_xsc(shown):
    assert MADE[shown] == check_path(shown.replace("$", to_text(HASH)))


@pytest.mark.parametrize("name", ["", "..", "a b", "é", "a/../b"])
def test_a_name_that_is_no_part_makes_no_path(name):
    with pytest.raises(ArgumentInvalid):
        UserSpacePaths.variable(HASH, name)


@pytest.mark.parametrize("shown", MADE)
def test_every_path_of_xsc_but_a_cells_is_closed_to_programs(shown):
    assert is_systems(MADE[shown]) == (not shown.startswith("cells/"))
    assert not is_systems(f"x{shown}")
    assert not is_systems("demo/" + shown)


TOPS = {"allocation", "causality", "compute", "market", "nodes", "programs"}
TOPS |= {"cells", "subscriptions"}


def test_no_other_module_makes_a_path():
    assert [
        (path.name, node.lineno, node.value)
        for path in SOURCES
        # The check of passports shares no code with what it checks.
        if path.parts[-2:] not in {("space", "paths.py"), ("offline", "passport.py")}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if "/" in node.value and node.value.split("/")[0] in TOPS
    ] == []


def test_what_xsc_alone_writes_is_reserved():
    for path in ("causality/x", "compute/x", "subscriptions/local/a", "programs/active/x"):
        assert is_reserved(path)
    for path in ("market/clearings/x", below(UserSpacePaths.CLEARINGS, HASH), "allocation/state"):
        assert is_reserved(path)
    for path in (below(UserSpacePaths.REGISTRY, HASH), UserSpacePaths.ADDRESS):
        assert is_reserved(path)
    for path in ("demo/a", "computes/x", "programs/x", "allocation/x"):
        assert not is_reserved(path)
