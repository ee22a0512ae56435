"""Nodes that are killed at any moment: what was acknowledged is there, and nothing else was said.

An object is acknowledged once its capability was printed. The moments are drawn
from a seed and lie anywhere in a put: before its first byte, within the stream,
and after its end, while shards, manifest and the owner's entry are written.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO

import pytest

from tests.e2e.conftest import Done, Member, Net, wait_for
from xsc import api
from xsc.base.errors import NodeUnreachable
from xsc.client.calls import Calls

SEED = 31
NODES = 8
OWNER = 0
KILLS = int(os.environ.get("TEST_KILLS", "2"))
MIB = 1024 * 1024
TAIL_S = 0.2
"""How long after the end of its stream a put may still be killed: some take less."""


class Crowd:
    """The nodes, what was acknowledged by their owner, and the ends of some."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.stored: dict[str, bytes] = {}
        self.unsure = 0

    def member(self, index: int) -> Member:
        return self.net[index]

    def calls(self, index: int) -> Calls:
        return Calls(self.net[index].home)

    def kill(self, index: int) -> None:
        self.net.kill([self.net.status()[index]])

    def wait_for_sight(self, index: int) -> None:
        """Return when a node sees all others."""
        calls = self.calls(index)
        wait_for(
            lambda: (
                [row["state"] for row in calls.ask(api.status.HEALTH)["peers"]]
                == ["up"] * (NODES - 1)
            )
        )

    def put(self, content: bytes, moment: float, strike: Callable[[], None]) -> Done:
        """Put a stream at the owner, and strike at a moment: 1 is the end of the stream."""
        home = str(self.member(OWNER).home)
        process = subprocess.Popen(
            [sys.executable, "-m", "xsc", "--home", home, "store", "put", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        cut = min(len(content), int(moment * len(content)))
        process.stdin.write(content[:cut])
        if cut == len(content):
            process.stdin.close()
            process.stdin = None
            with suppress(subprocess.TimeoutExpired):
                process.wait((moment - 1) * TAIL_S)
        strike()
        out, err = process.communicate(content[cut:] or None, timeout=60)
        done = Done(process.returncode, out, err.decode())
        if done.code == 0:
            self.stored[done.line] = content
        else:
            self.unsure += 1
        return done

    def put_beside(self, content: bytes) -> None:
        """Put an object by the client's own means, whatever becomes of the node."""
        try:
            answer = self.calls(OWNER).put(BytesIO(content))
        except NodeUnreachable:
            self.unsure += 1
        else:
            self.stored[answer["capability"]] = content

    def read(self, reader: int, capability: str) -> None:
        with self.calls(reader).open(capability) as download:
            assert b"".join(download.blocks()) == self.stored[capability]

    def check_list(self) -> None:
        """All that was acknowledged is listed; of what broke off nobody can say."""
        rows = [row["capability"] for row in self.calls(OWNER).objects(versions=True)["objects"]]
        assert len(set(rows)) == len(rows)
        assert self.stored.keys() <= set(rows)
        assert len(rows) <= len(self.stored) + self.unsure


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    settings = {
        "XSC_STORAGE_CAPACITY": "600MiB",
        "XSC_PROBE_INTERVAL": "1s",
        "XSC_SETTLE_INTERVAL": "1s",
        "XSC_BOOKING_INTERVAL": "1s",
        # Something falls due within seconds.
        "XSC_STORAGE_PRICE_GIB_HOUR": "1000000",
        "XSC_STORAGE_PRICE_MAX_GIB_HOUR": "4000000",
    }
    net = Net(tmp_path_factory.mktemp("kills"), **settings)
    net.up(NODES)
    yield Crowd(net)
    net.down()


@pytest.mark.timeout(max(300, 15 * KILLS))
def test_what_was_acknowledged_outlives_kills(crowd):
    dice = random.Random(SEED)
    hosts = list(range(1, NODES))
    down: list[int] = []
    broken = 0
    for number in range(KILLS):
        victim = OWNER if number % 2 else dice.choice(hosts)
        down.append(victim)
        reader = dice.choice([host for host in hosts if host not in down])
        moment = dice.uniform(0, 2)
        before = set(crowd.stored)
        content = dice.randbytes(dice.randint(1 * MIB, 9 * MIB))
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(crowd.put_beside, dice.randbytes(dice.randint(1, 2 * MIB)))
            done = crowd.put(content, moment, lambda: crowd.kill(victim))  # noqa: B023
            beside.result(60)

        if done.code:
            done.fails(5, "node_unreachable")
            broken += 1
        # A dead host is replaced; a dead owner can promise nothing.
        assert victim == OWNER or done.code == 0, done.err
        assert victim != OWNER or done.code == 5 or moment >= 1
        crowd.net.start(victim)
        for capability in sorted(set(crowd.stored) - before):
            crowd.read(reader, capability)
        if crowd.stored:
            crowd.read(reader, dice.choice(sorted(crowd.stored)))
        if victim == OWNER:
            for index in down:
                crowd.net.wait_for_start(index)
                assert crowd.calls(index).ask(api.ledger.VERIFY)["ok"] is True
            down.clear()
            crowd.check_list()
            crowd.wait_for_sight(OWNER)
    assert broken
    for capability in crowd.stored:
        crowd.read(dice.choice(hosts), capability)


def test_books_agree_after_all(crowd):
    ids = [row["id"] for row in crowd.net.status()]
    for index in range(NODES):
        crowd.wait_for_sight(index)

    def settles():
        for index in range(NODES):
            assert crowd.member(index)("ledger settle").code == 0
        return any(
            row["balance_micro"] for row in crowd.calls(OWNER).ask(api.ledger.BALANCE)["balances"]
        )

    def agree():
        """Say whether all pairs have one balance: what is booked meanwhile one side has first."""
        for index in range(NODES):
            assert crowd.member(index)("ledger verify").code == 0
        # Read together: a command takes seconds on a busy machine, and entries come meanwhile.
        books = []
        for index in range(NODES):
            rows = crowd.calls(index).ask(api.ledger.BALANCE)["balances"]
            books.append({row["peer"]: row["balance_micro"] for row in rows})
        assert any(books[OWNER].values())
        return all(
            books[here].get(other, 0) == -books[there].get(one, 0)
            for here, one in enumerate(ids)
            for there, other in enumerate(ids)
        )

    wait_for(settles)
    wait_for(agree)


@pytest.mark.parametrize("victim", [OWNER, 1])
def test_sigterm_during_a_put_is_a_clean_end(crowd, victim):
    process = crowd.net.process(victim)

    def strike() -> None:
        # Connections are served in turn: once this one is answered, the put is under way.
        crowd.calls(OWNER).ask(api.status.STATUS)
        process.terminate()

    crowd.wait_for_sight(OWNER)
    content = random.Random(victim).randbytes(9 * MIB)
    done = crowd.put(content, 0.5, strike)
    # What runs is finished, and a host that goes is replaced.
    assert done.code == 0, done.err
    assert process.wait(30) == 0
    assert not (crowd.member(victim).home / "api.json").exists()
    crowd.net.start(victim)
    crowd.read(2, done.line)
    crowd.net.wait_for_start(victim)
    crowd.check_list()
    assert crowd.calls(victim).ask(api.ledger.VERIFY)["ok"] is True
