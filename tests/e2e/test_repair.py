"""Nodes that leave and nodes that are killed for good: their shards come to lie on others."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import pytest

from tests.e2e.conftest import Net, call, wait_for
from xsc.client.calls import Calls

NODES = 8
SETTINGS = {
    "XSC_REPAIR_GRACE": "3s",
    "XSC_PROBE_INTERVAL": "1s",
    "XSC_STORAGE_CAPACITY": "600MiB",
    "XSC_MOVED_KEPT": "2s",
}
MIB = 2**20


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    net = Net(tmp_path_factory.mktemp("crowd"), **SETTINGS)
    net.up(NODES)
    yield net
    net.down()


def hosts_of(member, capability):
    return member("store stat - --json", stdin=capability.encode()).json["hosts"]


def test_a_node_leaves_while_others_read_and_its_proof_holds(crowd, tmp_path):
    owner, dice = crowd[0], random.Random(8)
    kept = {owner.put(data): data for data in map(dice.randbytes, (100, MIB, 5 * MIB))}
    rows = {row["id"]: row for row in crowd.status()}
    big = list(kept)[-1]
    leaving = next(host["node"] for host in hosts_of(owner, big) if host["node"] != owner.id)
    index = int(rows[leaving]["name"].removeprefix("node-"))
    readers = [Calls(crowd[other].home) for other in range(NODES) if other != index]
    ended = threading.Event()

    def read_on() -> None:
        for reader in cycle(readers):
            for capability, data in kept.items():
                with reader.open(capability) as download:
                    assert b"".join(download.blocks()) == data
            if ended.is_set():
                return

    proof = tmp_path / "proof"
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_on)
        try:
            done = crowd[index](["node", "drain", "--proof", proof, "--json"])
        finally:
            ended.set()
        reading.result(60)
    assert done.code == 0, done.err
    assert (done.json["state"], done.json["left_bytes"], done.json["stuck"]) == ("done", 0, [])
    assert done.json["released_objects"] >= 2
    assert done.json["released_bytes"] > 5 * MIB // 4
    assert crowd[index]("node status --json").json["storage"]["used_bytes"] == 0
    for capability in kept:
        hosts = hosts_of(owner, capability)
        assert leaving not in {host["node"] for host in hosts}
        assert {host["state"] for host in hosts} == {"ok"}

    assert call(["verify", proof]).code == 0
    whole = proof.read_bytes()
    for cut in (0, 1, len(whole) // 2, len(whole) - 1):
        proof.write_bytes(whole[:cut])
        assert call(["verify", proof]).code == 6
    assert crowd[index]("node drain --cancel").code == 0


def test_a_killed_host_is_replaced_and_the_capability_stays_the_same(crowd):
    owner = crowd[0]
    content = bytes(range(256)) * 20_000
    capability = owner.put(content)
    rows = {row["id"]: row for row in crowd.status()}

    def stat(member=owner):
        done = member("store stat - --json", stdin=capability.encode())
        return done.json if done.code == 0 else {"hosts": []}

    before = [host["node"] for host in stat()["hosts"]]
    victim = next(node for node in before if node != owner.id)
    crowd.kill([rows[victim]])

    def whole():
        hosts = stat()["hosts"]
        nodes = {host["node"] for host in hosts if host["state"] == "ok"}
        return len(nodes) == 6 and victim not in nodes

    wait_for(whole, seconds=90)
    assert owner.get(capability) == content
    reader = next(
        crowd[index] for index in range(1, NODES) if crowd[index].home.name != rows[victim]["name"]
    )
    assert reader.get(capability) == content
    done = owner(["store", "repair", "-", "--json"], stdin=capability.encode()).json
    assert (done["moved"], done["left"]) == ([], [])
