"""A home is removed, and comes back from its exported key and one friend."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.e2e.conftest import PROGRAMS, Member, have_told, wait_for
from xsc.base.ids import from_text
from xsc.db.leveldb import LevelDBKeyValue

MIB = 1024 * 1024


def test_a_lost_home_comes_back_with_objects_names_and_ledger(small_net, tmp_path):
    small_net.up(3)
    owner, friend = small_net[0], small_net[2]
    small, large, old = os.urandom(100), os.urandom(9 * MIB + 1), os.urandom(5000)
    for name, content in (("small", small), ("a/large", old), ("a/large", large)):
        assert owner(f"store put - --name {name}", stdin=content).code == 0
    assert owner(f"peer recognise {friend.id} 25%").code == 0
    key = tmp_path / "key"
    node_id = owner(["node", "identity", "export", key]).line

    def settles():
        words = ["compute", "invoke", PROGRAMS / "add.wasm", "add", "1", "2", "--on", friend.id]
        assert owner(words).code == 0
        assert owner("ledger settle").code == 0
        return owner("ledger verify --json").json["settled"] > 0

    wait_for(settles)
    before = owner("ledger verify --json").json
    have_told(owner)
    rows = owner("store ls --versions --json").json["objects"]
    (row,) = [row for row in small_net.status() if row["id"] == node_id]
    invitation = friend("peer invite").line
    small_net.kill([row])
    shutil.rmtree(owner.home)

    refused = owner(["node", "recover", "--peer", invitation])
    refused.fails(2, "home_invalid")
    done = owner(["node", "recover", key, "--peer", "-", "--json"], stdin=invitation.encode())
    assert done.code == 0, done.err
    assert done.json["id"] == node_id
    assert (done.json["peers"], done.json["objects"]) == (2, 5)
    assert (done.json["silent"], done.json["lost"], done.json["unproven"]) == ([], [], [])
    assert done.json["state"] == "signing"
    small_net.up()
    owner(["node", "recover", "--peer", invitation]).fails(2, "home_locked")

    peers = owner("peer ls --json").json["peers"]
    assert {row["id"]: row["recognised_ppm"] for row in peers}[friend.id] == 250_000

    after = owner("store ls --versions --json").json["objects"]
    assert [row["capability"] for row in after] == [row["capability"] for row in rows]
    assert owner("store get small -o -").out == small
    assert owner("store get a/large -o -").out == large
    assert owner("store get a/large --version 1 -o -").out == old
    verified = owner("ledger verify --json").json
    assert (verified["ok"], verified["entries"] >= before["entries"]) == (True, True)
    assert owner("ledger settle").code == 0
    assert owner("store put - --name small", stdin=old).code == 0
    assert owner("store get small -o -").out == old


def test_the_key_and_one_friend_are_enough_where_a_peer_is_gone_for_good(
    small_net, start, tmp_path
):
    """The node with which the first ledger entry was made is gone, and so is the own home."""
    small_net.up(7)
    owner = small_net[0]
    content = os.urandom(20 * MIB)
    capability = owner("store put - --name kept", stdin=content).line
    key = tmp_path / "key"
    assert owner(["node", "identity", "export", key]).code == 0
    wait_for(lambda: owner("ledger settle --json").json["pending"] == 0)
    wait_for(lambda: owner("ledger log --json").json["entries"])
    have_told(owner)
    first = owner("ledger log --json").json["entries"][-1]["peer"]
    balances = owner("ledger balance --json").json["balances"]
    owed = {row["peer"]: row["balance_micro"] for row in balances}
    assert owed[first] < 0
    (own, gone, friend, *_) = sorted(
        small_net.status(), key=lambda row: (row["home"] != str(owner.home), row["id"] != first)
    )
    invitation = Member(Path(friend["home"]))("peer invite").line
    small_net.kill([own, gone])
    for row in (own, gone):
        shutil.rmtree(row["home"])

    done = owner(["node", "recover", key, "--peer", invitation, "--json"])
    assert done.code == 0, done.err
    assert (done.json["objects"], done.json["lost"], done.json["silent"]) == (3, [], [first])
    assert done.json["unproven"] == [{"peer": first, "amount_micro": owed[first]}]
    assert "unproven with" in done.err
    # As if it had been killed in between: the start asks the peers again.
    mark = owner.home / "unfinished"
    mark.write_text("recovering\n")
    _, process = start("net/node-0")
    assert not mark.exists()
    assert owner(["store", "get", capability, "-o", "-"]).out == content
    assert owner("ledger verify --json").json["ok"]
    after = {row["peer"]: row for row in owner("ledger balance --json").json["balances"]}
    assert after[first]["unproven_micro"] == owed[first]
    for peer, balance in owed.items():
        assert peer == first or after[peer]["balance_micro"] == balance
    process.terminate()
    log = [json.loads(line) for line in process.communicate(timeout=60)[1].splitlines()]
    assert "ledger.history_untold" in {line["event"] for line in log}, "of the second stage, too"


def test_hosts_keep_neither_names_nor_capabilities_in_clear(small_net):
    small_net.up(3)
    owner = small_net[0]
    capability = owner("store put - --name unmistakable", stdin=b"x" * 9000).line
    have_told(owner)
    small_net.down()
    secret = from_text(capability.removeprefix("xsc:r:"))[1:33]
    found = 0
    for index in (1, 2):
        for name in ("state", "bodies", "index"):
            store = LevelDBKeyValue(small_net[index].home / "db" / name)
            for key, value in store.scan(b""):
                found += key.startswith(b"storage/head/")
                for clear in (b"unmistakable", capability.encode(), secret):
                    assert clear not in key + value
            store.close()
    assert found >= 2
    for index in range(3):
        log = (small_net[index].home / "node.log").read_text()
        assert "xsc:r:" not in log
        assert "xsc:v:" not in log
        assert "unmistakable" not in log
