"""A node that is killed for good: its shards come back on another one with no one asking."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Net, call, wait_for

NODES = 8
GRACE = {"XSC_REPAIR_GRACE": "3s", "XSC_PROBE_INTERVAL": "1s", "XSC_STORAGE_CAPACITY": "600MiB"}


@pytest.fixture
def crowd(tmp_path):
    net = Net(tmp_path / "crowd")
    started = call(["devnet", "up", "--dir", net.folder, "--nodes", NODES], **GRACE)
    assert started.code == 0, started.err
    yield net
    assert net.down().code == 0


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
