"""What a shell is offered: commands, and what the node and the disk have."""

from __future__ import annotations

import click
import pytest
from click.shell_completion import ShellComplete

from xsc.cli.main import cli
from xsc.cli.options import LEASE, NAME, OBJECT, PEER, SERVICE, Settings

OBJECTS = {"objects": [{"name": "album/"}, {"name": "photo.jpg"}, {"name": "$(reboot)"}]}
PEERS = {"peers": [{"name": "alice"}, {"name": "bob"}, {"name": "a;reboot"}]}


@pytest.fixture
def offered(stand_in):
    stand_in.answers("GET", "/v1/peers", PEERS)
    stand_in.answers("GET", "/v1/objects", OBJECTS)
    stand_in.answers("GET", "/v1/services", {"services": [{"name": "greet"}]})
    stand_in.answers("GET", "/v1/market/leases", {"leases": [{"lease_id": "abc"}]})

    def complete(line: str, home: object = stand_in.home) -> list[str]:
        *words, incomplete = line.split(" ")
        shell = ShellComplete(cli, {"obj": Settings()}, "xsc", "_XSC_COMPLETE")
        before = ["--home", str(home), *words]
        return [item.value for item in shell.get_completions(before, incomplete)]

    return complete


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sto", ["store"]),
        ("peer block ", ["alice", "bob"]),
        ("ledger limit b", ["bob"]),
        ("compute invoke --on al", ["alice"]),
        ("store get p", ["photo.jpg"]),
        ("store rm ", ["album/", "photo.jpg"]),
        ("store ls a", ["album/"]),
        ("compute logs ", ["greet"]),
        ("market lease a", ["abc"]),
    ],
)
def test_what_the_node_knows_is_offered_where_it_is_a_plain_word(offered, line, words):
    assert offered(line) == words


def test_standard_input_is_left_to_the_shell(offered):
    assert "--output" in offered("store get - --")


def test_without_a_node_nothing_is_offered(offered, tmp_path):
    assert offered("store get ", home=tmp_path / "nothing") == []


def test_modules_are_offered_and_directories_lead_to_them(offered, tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("add.wasm", "notes", "deep/er/sum.wasm", "a b.wasm"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert offered("compute invoke a") == ["add.wasm"]
    assert offered("compute run d") == ["deep/er/sum.wasm"]
    assert offered(f"compute deploy {tmp_path}/n") == []
    assert offered("compute run nowhere/") == []


def test_whatever_takes_a_peer_or_a_name_offers_them():
    offer = {"PEER": PEER, "NODE": PEER, "CAP|NAME": OBJECT, "LEASE": LEASE}
    seen = set()

    def walk(command: click.Command, path: str) -> None:
        if isinstance(command, click.Group):
            for name in command.commands:
                walk(command.commands[name], f"{path} {name}")
            return
        for param in command.params:
            metavar = (param.metavar or "").strip("[]")
            if metavar in offer and path != "xsc node recover":
                seen.add(metavar)
                assert param.type is offer[metavar], f"{path} {metavar}"

    walk(cli, "xsc")
    assert seen == set(offer)
    assert NAME is not SERVICE
