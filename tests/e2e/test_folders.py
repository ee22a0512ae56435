"""Directories through the command line: stored, changed, stored again, fetched, deleted."""

from __future__ import annotations

import os

from xsc.client.calls import Calls
from xsc.client.tree import tree_id


def test_a_directory_goes_there_and_back(net, tmp_path):
    source = tmp_path / "album"
    (source / "2024").mkdir(parents=True)
    large = os.urandom(300_000)
    (source / "2024" / "photo").write_bytes(large)
    (source / "notes").write_bytes(b"first")
    (source / "link").symlink_to("../outside")
    alice = net[1]
    first = alice(["store", "put", "-r", source, "--json"])
    assert first.code == 0, first.err
    assert (first.json["files"], first.json["sent_files"]) == (2, 2)
    (source / "notes").write_bytes(b"second")
    assert alice(["store", "put", "-r", source, "--json"]).json["sent_files"] == 1

    assert alice(["store", "get", "-r", "album", "-o", tmp_path / "new"]).code == 0
    assert (tmp_path / "new" / "2024" / "photo").read_bytes() == large
    assert (tmp_path / "new" / "link").readlink().as_posix() == "../outside"
    assert alice("store get album/2024/photo -o -").out == large
    assert alice("store get album/notes --version 1 -o -").out == b"first"
    alice("store get album -o -").fails(2, "argument_invalid")
    rows = alice("store ls -r album --json").json["entries"]
    assert [row["path"] for row in rows] == ["2024", "2024/photo", "link", "notes"]
    # With its capability alone, at a node that knows no names.
    capability = first.json["capability"].encode()
    bob = net[2]
    assert bob(["store", "get", "-r", "-", "-o", tmp_path / "his"], stdin=capability).code == 0
    assert (tmp_path / "his" / "notes").read_bytes() == b"first"

    assert alice("store restore album --version 1").line == "3"
    assert alice("store get album/notes -o -").out == b"first"
    alice("store rm album").fails(2, "argument_invalid")
    assert alice("store rm album --yes").code == 0
    assert Calls(alice.home).parts(tree_id("album/")) == []
