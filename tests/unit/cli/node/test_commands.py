"""Commands of a node, as they are typed, on homes whose node does not run."""

from __future__ import annotations

import pytest

from xsc.cli.main import main
from xsc.node.home.folder import init_home

PEER = "ovqdsx7vjd2yyhrvmpgxbhcd5gqy2bvqb65fjyh43j2cayvfoziq@127.0.0.1:1"


@pytest.mark.parametrize("size_bytes", [0, 100, 8_000])
def test_recover_refuses_a_file_that_is_no_key(tmp_path, capsys, size_bytes):
    file, home = tmp_path / "file", tmp_path / "home"
    file.write_bytes(b"x" * size_bytes)
    code = main(["--home", str(home), "node", "recover", str(file), "--peer", PEER])
    assert code == 2
    assert "no XSC key file" in capsys.readouterr().err.splitlines()[0]
    assert not home.exists()


@pytest.mark.parametrize("peer", ["bob", "xsc1broken", PEER.replace(":1", ""), "a" * 52 + "@h:1"])
def test_recover_writes_nothing_for_a_peer_that_is_none(tmp_path, capsys, peer):
    """A home in which a recovery has begun takes no backup any more."""
    made, home, key = tmp_path / "made", tmp_path / "home", tmp_path / "key"
    init_home(made)
    key.write_bytes((made / "identity.key").read_bytes())
    code = main(["--home", str(home), "node", "recover", str(key), "--peer", PEER, "--peer", peer])
    assert code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not home.exists()


def test_what_is_set_in_the_file_alone_is_not_offered_as_an_option(xsc):
    text = xsc("node", "start", "--help").text
    assert "--storage-capacity VALUE" in text
    assert "--notify" not in text


def test_a_test_alert_fails_where_a_target_does_not_take_it(stand_in, xsc):
    well = {"target": "exec:tell", "taken": True, "reason": ""}
    bad = {"target": "https://h", "taken": False, "reason": "the URL answers 403"}
    stand_in.answers("POST", "/v1/alerts/test", {"targets": [well, bad]})
    done = xsc("node", "alerts", "--test")
    assert done.code == 5
    assert done.text.split("\n")[1:3] == [
        "exec:tell  yes    -",
        "https://h  no     the URL answers 403",
    ]
    assert xsc("node", "alerts", "--test", "--json").json == {"targets": [well, bad]}
    stand_in.answers("POST", "/v1/alerts/test", {"targets": [well]})
    assert xsc("node", "alerts", "--test").code == 0


@pytest.mark.parametrize("text", ["0", "1000000000000000d", "36501d", "x"])
@pytest.mark.parametrize(
    ("words", "named"),
    [("node history --since", "--since"), ("market quote --size 1MiB --for", "--for")],
)
def test_a_time_that_cannot_be_is_refused_by_the_name_of_its_option(
    xsc, stand_in, words, named, text
):
    done = xsc(*words.split(), text)
    assert done.code == 2
    assert done.err.startswith(f"error: {named}: ")
    assert "_ms" not in done.err
    assert stand_in.requests == []
