from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import NODES, wait_for
from xsc.db.leveldb import LevelDBKeyValue
from xsc.storage.shardstore.bodies import BODIES

MIB = 1024 * 1024
SEGMENT = 4 * MIB


@pytest.mark.parametrize(
    "size", [0, 1, 4096, 4097, 16 * 1024, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 5]
)
def test_what_is_put_comes_back_at_any_node(net, size):
    content = os.urandom(size)
    capability = net[0].put(content)
    assert net[NODES - 1].get(capability) == content
    assert net[1](["store", "stat", capability, "--json"]).json["size_bytes"] == size


def test_a_file_is_put_and_got(net, tmp_path):
    content = os.urandom(3 * MIB)
    (tmp_path / "größe 1.bin").write_bytes(content)
    put = net[3](["store", "put", tmp_path / "größe 1.bin", "--json"]).json
    assert put["name"] == "größe 1.bin"
    done = net[4](["store", "get", put["capability"], "-o", tmp_path / "copy"])
    assert (done.code, done.out, done.err) == (0, b"", "")
    assert (tmp_path / "copy").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_two_of_six_hosts_may_die_and_come_back(net, tmp_path):
    content = os.urandom(10 * MIB + 3)
    capability = net[0].put(content)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "tiny").write_bytes(b"tiny")
    (tmp_path / "d" / "file").write_bytes(os.urandom(20_000))
    tree = net[0](["store", "put", "-r", tmp_path / "d"]).line
    hosts = {row["node"] for row in net[0](["store", "stat", capability, "--json"]).json["hosts"]}
    hosts &= {row["node"] for row in net[0]("store stat d/file --json").json["hosts"]}
    rows = net.status()
    *lost, third = [row for row in rows if row["id"] in hosts and row["name"] != "node-0"][:3]
    alive = next(row for row in rows[1:] if row not in (*lost, third))
    reader = net[int(alive["name"].removeprefix("node-"))]
    try:
        net.kill(lost)
        done = reader(["store", "get", capability, "-o", tmp_path / "copy"])
        assert done.code == 0, done.err
        assert (tmp_path / "copy").read_bytes() == content
        stat = reader(["store", "stat", capability, "--json"]).json
        assert (stat["readable"], stat["margin"]) == (True, 0)
        gone = {row["node"] for row in stat["hosts"] if row["state"] == "unreachable"}
        assert gone == {row["id"] for row in lost}
        states = {row["name"]: row["state"] for row in net.status()}
        assert [name for name, state in states.items() if state == "stopped"] == [
            row["name"] for row in lost
        ]
        wait_for(
            lambda: all(
                row["state"] != "up"
                for row in net[0]("health --json").json["peers"]
                if row["id"] in gone
            )
        )
        # A third loss: the list of a directory is read from any one host, its file is not.
        net.kill([third])
        done = reader(["store", "check", tree, "--json"])
        answer = json.loads(done.out)
        assert (done.code, answer["readable"], answer["margin"]) == (5, False, -1)
        assert [row["path"] for row in answer["tree"]["worst"] if not row["readable"]] == ["file"]
        assert net[0](["store", "get", "-r", "d", "-o", tmp_path / "never"]).code == 5
        assert net[0]("store stat d/tiny --json").json["readable"]
    finally:
        net.up()
    after = {row["name"]: row for row in net.status()}
    for row in lost:
        assert after[row["name"]]["id"] == row["id"]
        assert after[row["name"]]["pid"] != row["pid"]
    stat = reader(["store", "stat", capability, "--json"]).json
    assert {row["state"] for row in stat["hosts"]} == {"ok"}


def test_a_deleted_object_is_gone(net):
    capability = net[0].put(os.urandom(100_000))
    done = net[0](["store", "rm", capability, "--json"])
    assert len(done.json["confirmed"]) >= 6
    assert done.json["unconfirmed"] == []
    net[0](["store", "get", capability, "-o", "-"]).fails(2, "object_unknown")
    net[1](["store", "get", capability, "-o", "-"]).fails(2, "object_unknown")
    assert capability not in net[0]("store ls").text


def test_only_the_owner_deletes(net):
    content = os.urandom(50_000)
    capability = net[0].put(content)
    refused = net[1](["store", "rm", capability])
    assert refused.code not in (0, 1)
    assert "Traceback" not in refused.err
    assert net[2].get(capability) == content


def test_durability_is_met_or_refused(net):
    assert net[0]("store put - --survive 2nodes", stdin=b"x" * 5000).code == 0
    before = net[0]("store ls --json").json
    refused = net[0]("store put - --survive 5nodes", stdin=b"x" * 5000)
    refused.fails(2, "durability_unreachable")
    assert net[0]("store ls --json").json == before


@pytest.mark.parametrize("code", ["1,2", "2,1", "1,0", "3,3"])
def test_other_codes(net, code):
    content = os.urandom(300_000)
    capability = net[0].put(content, f"--code {code}")
    k, m = map(int, code.split(","))
    stat = net[1](["store", "stat", capability, "--json"]).json
    assert stat["code"] == {"k": k, "m": m}
    assert len(stat["hosts"]) == k + m
    assert net[1].get(capability) == content


def test_the_same_content_twice_is_two_objects(net):
    first, second = net[0].put(b"same" * 2000), net[0].put(b"same" * 2000)
    assert first != second
    assert net[0](["store", "rm", first]).code == 0
    assert net[1].get(second) == b"same" * 2000


def test_puts_and_gets_at_once(net):
    contents = [os.urandom(MIB + index) for index in range(6)]
    writers = [
        subprocess.Popen(
            [sys.executable, "-m", "xsc", "--home", str(net[index % 3].home), "store", "put", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for index in range(len(contents))
    ]
    for writer, content in zip(writers, contents, strict=True):
        writer.stdin.write(content)
        writer.stdin.close()
    capabilities = [writer.stdout.read().decode().strip() for writer in writers]
    for writer in writers:
        writer.stdout.close()
        assert writer.wait() == 0
    for capability, content in zip(capabilities, contents, strict=True):
        assert net[5].get(capability) == content


def test_an_upload_that_is_broken_off_leaves_no_object(net):
    before = net[0]("store ls --json").json
    writer = subprocess.Popen(
        [sys.executable, "-m", "xsc", "--home", str(net[0].home), "store", "put", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    writer.stdin.write(os.urandom(2 * MIB))
    writer.stdin.flush()
    writer.kill()
    out, _ = writer.communicate()
    assert out == b""
    wait_for(lambda: net[0]("node status --json").json["state"] == "running")
    assert net[0]("store ls --json").json == before


def changed(capability: str) -> list[str]:
    middle = len(capability) // 2
    other = "a" if capability[middle] != "a" else "b"
    return [
        capability[:-1],
        capability + "a",
        capability[:middle] + other + capability[middle + 1 :],
        capability.upper(),
        capability.replace("xsc:r:", "xsc:w:"),
        "xsc:r:",
        "xsc:r:aaaa",
        "photo.jpg",
    ]


@pytest.fixture(scope="module")
def capability(net):
    return net[0].put(os.urandom(10_000))


@pytest.mark.parametrize("index", range(8))
def test_a_capability_that_was_changed_reads_nothing(net, capability, index):
    wrong = changed(capability)[index]
    for words in (["get", wrong, "-o", "-"], ["stat", wrong], ["rm", wrong]):
        done = net[1](["store", *words])
        assert done.code in (2, 5), (done.code, done.err)
        assert done.out == b""
        assert "Traceback" not in done.err
        assert wrong not in done.err or len(wrong) < 20


def test_it_is_still_there(net, capability):
    assert len(net[1].get(capability)) == 10_000


def test_a_host_whose_bodies_are_gone_is_found_by_a_challenge(small_net):
    small_net.up(3)
    owner = small_net[0]
    capability = owner(["store", "put", "-", "--code", "1,1"], stdin=os.urandom(100_000)).line
    rows = owner("health challenge --json").json["challenged"]
    assert {row["outcome"] for row in rows} == {"ok"}
    assert {row["customer_name"] for row in rows} == {"node-0"}
    done = small_net[2](["store", "check", capability, "--prove", "--json"])
    assert done.code == 0, done.err
    assert {proof["outcome"] for proof in done.json["proofs"]} == {"ok"}
    victim = next(row for row in small_net.status() if row["id"] in {row["id"] for row in rows})
    small_net.kill([victim])
    store = LevelDBKeyValue(Path(victim["home"]) / "db" / "bodies")
    store.write([(key, None) for key, _ in store.scan(BODIES, b"c")], sync=True)
    store.close()
    small_net.up()
    asked = owner(["health", "challenge", victim["name"], "--json"])
    (row,) = json.loads(asked.out)["challenged"]
    assert (asked.code, row["id"], row["outcome"]) == (6, victim["id"], "missing")
    (shown,) = [row for row in owner("health --json").json["peers"] if row["id"] == victim["id"]]
    assert (shown["outcome"], shown["grade"]) == ("missing", "watch")
    why = owner(["health", "why", victim["name"], "--json"]).json
    assert [(event["cause"], event["evidence"]) for event in why["events"]] == [("missing", None)]
    assert why["until_ms"] > shown["challenged_ms"] + 30 * 86_400_000
    told = small_net[int(victim["name"].removeprefix("node-"))]("health me --json").json
    assert [each["grade"] for each in told["peers"] if each["id"] == owner.id] == ["watch"]
    assert owner(["health", "lift", victim["name"]]).line.startswith(f"{victim['name']} (")
    assert owner(["health", "why", victim["name"], "--json"]).json["grade"] == "new"
    assert shown["proven_ms"] < shown["challenged_ms"]
