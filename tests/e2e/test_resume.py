"""`store put FILE` and `store get`, killed and typed again: they go on, and all is whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Member, Net, wait_for
from xsc import api
from xsc.base.limits import MIB, SEGMENT_BYTES
from xsc.client.calls import Calls
from xsc.client.files import upload_id

SIZE = 256 * MIB + 4321
ANONYMOUS_MAX = 256 * MIB


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    own = Net(tmp_path_factory.mktemp("resume"))
    own.up(7)
    yield own
    own.down()


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.raw"
    with path.open("wb") as file:
        for size in [MIB] * (SIZE // MIB) + [SIZE % MIB]:
            file.write(os.urandom(size))
    yield path
    path.unlink()


class Putting:
    """A `store put` of a file that runs."""

    def __init__(self, nodes: Net, film: Path) -> None:
        self.calls = Calls(nodes[0].home)
        with film.open("rb") as file:
            self.id = upload_id(film, file, film.name, None, None)
        words = ["--home", str(nodes[0].home), "store", "put", str(film)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xsc", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def stored(self) -> int:
        return self.calls.ask(api.objects.UPLOAD, id=self.id)["stored_bytes"]

    def wait_for(self, size_bytes: int) -> int:
        wait_for(lambda: self.stored() >= size_bytes)
        return self.stored()

    def done(self) -> tuple[str, str]:
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, err
        return out.decode().strip(), err.decode()


def whole(nodes: Net, film: Path, capability: str) -> bool:
    target = film.with_name("back")
    assert nodes[3](["store", "get", capability, "-o", target]).code == 0
    same = target.read_bytes() == film.read_bytes()
    target.unlink()
    return same


REEL = 64 * MIB + 4321
CODED = SEGMENT_BYTES * 6 // 4
"""What one segment takes at all its hosts."""
CHATTER = 2 * MIB
"""Probes, vouchers, and the list of objects that peers keep, in a test of some seconds."""
KILLS_OF_A_GET = 4
"""The last one is of the own node."""


@pytest.fixture
def reel(tmp_path):
    path = tmp_path / "reel.raw"
    path.write_bytes(random.Random(REEL).randbytes(REEL))
    yield path
    path.unlink()


def traffic(nodes: Net, index: int, direction: str) -> int:
    return Calls(nodes[index].home).ask(api.status.STATUS)["traffic"][f"{direction}_bytes"]


@pytest.mark.parametrize("victim", ["client", "node", "host"])
def test_a_kill_in_a_put_sends_at_most_a_segment_again(nodes, reel, victim):
    """It goes on, and hosts count what they are sent, until the put is done."""
    dice = random.Random(victim)
    struck = dice.randrange(1, 7)
    hosts = [index for index in range(1, 7) if victim != "host" or index != struck]
    before = {index: traffic(nodes, index, "received") for index in hosts}
    name = "node-0" if victim == "node" else f"node-{struck}"
    doomed = [row for row in nodes.status() if row["name"] == name]
    putting = Putting(nodes, reel)
    stored = putting.wait_for(int(dice.uniform(0.1, 0.5) * REEL))
    if victim == "client":
        putting.process.kill()
    else:
        nodes.kill(doomed)
    if victim != "host":
        out, _ = putting.process.communicate(timeout=60)
        assert not out, "it was killed in time"
        if victim == "node":
            assert putting.process.returncode == 5
            nodes.up()
        # What had all receipts before the kill is not sent again.
        assert putting.stored() >= stored
        putting = Putting(nodes, reel)
    capability, err = putting.done()
    assert err.startswith("going on: ") == (victim != "host")
    assert putting.stored() == 0
    got = {index: traffic(nodes, index, "received") - size for index, size in before.items()}
    # Each host has a column, and of the segment that was sent again one shard more.
    column = REEL // 4
    assert max(got.values()) <= column + SEGMENT_BYTES // 4 + CHATTER, got
    assert sum(got.values()) <= len(hosts) * column + CODED + CHATTER, got
    if victim == "host":
        nodes.up()
    assert whole(nodes, reel, capability)
    assert nodes[0](["store", "rm", capability]).code == 0


def test_a_put_that_was_interrupted_begins_anew_where_the_file_was_changed(nodes, reel):
    first = Putting(nodes, reel)
    first.wait_for(REEL // 8)
    first.process.send_signal(signal.SIGINT)
    first.process.communicate()
    before = reel.stat()
    with reel.open("r+b") as file:
        file.write(b"another beginning")
    os.utime(reel, ns=(before.st_atime_ns, before.st_mtime_ns))
    capability, err = Putting(nodes, reel).done()
    assert err.startswith("going on: ")
    assert whole(nodes, reel, capability)
    assert nodes[0](["store", "rm", capability]).code == 0


class Getting:
    """A `store get` into a file, stopped once so much of it has come."""

    def __init__(self, reader: Member, capability: str, target: Path, size_bytes: int) -> None:
        words = ["--home", str(reader.home), "store", "get", capability, "-o", str(target)]
        part = target.with_name(target.name + ".part")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xsc", *words], stderr=subprocess.DEVNULL
        )
        while self.process.poll() is None:
            with suppress(FileNotFoundError):
                if part.stat().st_size >= size_bytes:
                    break
            os.sched_yield()
        self.process.send_signal(signal.SIGSTOP)
        self.stopped = self.process.poll() is None
        """False where it came to its end before this process had its turn."""


def settled(sent: Callable[[], int]) -> None:
    """Return once the node has sent what fits into sockets, and nothing more is fetched."""
    seen = [-1]

    def still() -> bool:
        seen.append(sent())
        return seen[-1] == seen[-2]

    wait_for(still)


def test_a_kill_in_a_get_fetches_at_most_a_segment_again(nodes, reel, tmp_path):
    """Hosts count what they send. Without parity nobody is asked beside a host that is late."""
    stored = nodes[0](["store", "put", reel, "--code", "4,0", "--json"]).json
    rows = nodes.status()
    hosts = {host["node"] for host in stored["hosts"]}
    assert len(hosts) == 4
    away = next(index for index, row in enumerate(rows) if index and row["id"] not in hosts)
    target, reader = tmp_path / "copy", nodes[away]

    def sent() -> int:
        return sum(
            traffic(nodes, index, "sent") for index, row in enumerate(rows) if row["id"] in hosts
        )

    def killed_often() -> bool:
        """Kill the client, and at last the own node; False where one was not killed in time."""
        for kill in range(1, KILLS_OF_A_GET + 1):
            get = Getting(reader, stored["capability"], target, kill * REEL // 8)
            if not get.stopped:
                target.unlink()
                return False
            settled(sent)
            if kill < KILLS_OF_A_GET:
                get.process.kill()
                get.process.wait()
        nodes.kill([rows[away]])
        get.process.send_signal(signal.SIGCONT)
        assert get.process.wait(60) == 5
        return True

    before = sent()
    while not killed_often():
        before = sent()
    nodes.up()
    assert reader(["store", "get", stored["capability"], "-o", target]).code == 0
    assert target.read_bytes() == reel.read_bytes()
    assert sent() - before <= REEL + KILLS_OF_A_GET * SEGMENT_BYTES + CHATTER
    assert [path.name for path in tmp_path.iterdir() if path != reel] == [target.name]
    assert nodes[0](["store", "rm", stored["capability"]]).code == 0


def test_a_host_killed_in_a_get_is_not_noticed(nodes, reel, tmp_path):
    stored = nodes[0](["store", "put", reel, "--json"]).json
    target = tmp_path / "copy"
    while not (get := Getting(nodes[0], stored["capability"], target, REEL // 8)).stopped:
        target.unlink()
    # It gives data, not parity, so that it is asked.
    nodes.kill([row for row in nodes.status() if row["id"] == stored["hosts"][1]["node"]])
    get.process.send_signal(signal.SIGCONT)
    assert get.process.wait(60) == 0
    assert target.read_bytes() == reel.read_bytes()
    nodes.up()
    assert nodes[0](["store", "rm", stored["capability"]]).code == 0


def anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def test_client_and_nodes_stay_small_whatever_the_size(nodes, film):
    pids = [row["pid"] for row in nodes.status()]
    putting = Putting(nodes, film)
    peaks = dict.fromkeys([*pids, putting.process.pid], 0)

    def ended() -> bool:
        for pid in peaks:
            peaks[pid] = max(peaks[pid], anonymous_bytes(pid))
        return putting.process.poll() is not None

    wait_for(ended, seconds=120)
    capability, _ = putting.done()
    assert max(peaks.values()) < ANONYMOUS_MAX, {pid: peak // MIB for pid, peak in peaks.items()}
    assert nodes[0](["store", "rm", capability]).code == 0
