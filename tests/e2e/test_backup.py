"""A backup is taken while objects pour in; the node comes back from it elsewhere."""

from __future__ import annotations

import io
import os
import stat
import threading

from tests.e2e.conftest import Member, have_told, serves, wait_for
from xsc import api
from xsc.client.calls import Calls


class Storm:
    """Puts of all sizes from several threads; remembers what was acknowledged, in order."""

    def __init__(self, home):
        self.acked: list[tuple[str, bytes]] = []
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(home, n)) for n in range(2)]

    def _run(self, home, number):
        calls = Calls(home)
        for count in range(10_000):
            if self._end.is_set():
                return
            data = os.urandom((100, 9_000, 300_000, 5_000_000)[count % 4])
            done = calls.put(io.BytesIO(data), name=f"{number}/{count}")
            self.acked.append((done["capability"], data))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join()


def test_a_backup_during_a_storm_holds_all_that_was_acknowledged(small_net, start, tmp_path):
    small_net.up(3)
    owner, friend = small_net[0], small_net[1]
    (row,) = [row for row in small_net.status() if row["name"] == "node-0"]
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse\nsecond line\n")
    file = tmp_path / "storm.backup"
    with Storm(owner.home) as storm:
        wait_for(lambda: len(storm.acked) > 8)
        before = list(storm.acked)
        done = owner(["node", "backup", file, "--passphrase-file", passphrase])
        assert done.code == 0, done.err
        count = len(storm.acked)
        wait_for(lambda: len(storm.acked) > count)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    calls = Calls(owner.home)
    calls.ask(api.ledger.SETTLE)
    entries = calls.ask(api.ledger.VERIFY)["entries"]
    assert entries > 0
    # The directory is at the peers, and all that came after the backup with it.
    last = calls.put(io.BytesIO(b"last"), name="last")["capability"]
    have_told(owner)
    small_net.kill([row])

    refused = owner(["node", "restore", file, "--passphrase-file", passphrase])
    refused.fails(2, "home_invalid")
    new = Member(tmp_path / "home")
    new(["node", "restore", file]).fails(2, "argument_invalid")
    new(["node", "restore", file, "--passphrase-file", "-"], stdin=b"x").fails(
        2, "identity_invalid"
    )
    done = new(
        ["node", "restore", file, "--passphrase-file", "-", "--json"], stdin=b"correct horse"
    )
    assert done.code == 0, done.err
    assert done.json["backup"]["id"] == row["id"]
    assert done.json["backup"]["objects"] >= len(before)
    assert done.json["since"]["silent"] == []
    assert done.json["since"]["lost"] == []
    started, process = start("home")
    assert serves(started, process.pid)
    calls = Calls(started.home)
    for capability, data in [*storm.acked, (last, b"last")]:
        with calls.open(capability) as download:
            assert b"".join(download.blocks()) == data
    calls.put(io.BytesIO(bytes(5_000_000)), name="new")
    calls.ask(api.ledger.SETTLE)
    assert calls.ask(api.ledger.VERIFY)["entries"] > entries
    assert Calls(friend.home).ask(api.ledger.VERIFY)["ok"]
