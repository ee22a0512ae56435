"""LevelDB under the threats that memory does not have: kill -9, a second opener, damage."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from xsc.base.errors import HomeLocked, SpaceExhausted, StoreDamaged
from xsc.base.limits import MIB
from xsc.db.leveldb import REOPEN_S, LevelDBKeyValue, salvage

CHILD = """
import sys
from pathlib import Path
from xsc.db.leveldb import LevelDBKeyValue
store = LevelDBKeyValue(Path(sys.argv[1]))
for number in range(200):
    store.write([(b"%03d" % number, bytes(1000))], sync=False)
print("written", flush=True)
sys.stdin.read()
"""

FULL = """
import resource, signal, sys
from pathlib import Path
from xsc.base.errors import XscError
from xsc.db.leveldb import LevelDBKeyValue
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LevelDBKeyValue(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
written = 0
try:
    while True:
        store.write([(b"%03d" % written, bytes(10_000))], sync=True)
        written += 1
except XscError as error:
    fault = error
try:
    store.write([(b"small", b"")], sync=True)
    print("taken")
except XscError:
    print(written, type(fault).__name__)
"""


def test_unsynced_writes_survive_the_death_of_the_process(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout.readline() == b"written\n"
        os.kill(child.pid, signal.SIGKILL)
    store = LevelDBKeyValue(tmp_path / "db")
    assert [key for key, _ in store.scan(b"")] == [b"%03d" % number for number in range(200)]
    store.close()


def test_a_second_opener_is_told_that_it_is_locked(tmp_path):
    store = LevelDBKeyValue(tmp_path / "db")
    with pytest.raises(HomeLocked):
        LevelDBKeyValue(tmp_path / "db")
    store.close()
    LevelDBKeyValue(tmp_path / "db").close()


def test_a_file_where_the_directory_should_be_is_damage(tmp_path):
    (tmp_path / "db").write_text("")
    with pytest.raises(StoreDamaged):
        LevelDBKeyValue(tmp_path / "db")


PAIRS = [(b"k%02d" % number, bytes([number]) * 60) for number in range(30)]


def damaged_file(path, *, compacted):
    """Write PAIRS one by one and return the file that holds them."""
    store = LevelDBKeyValue(path)
    for pair in PAIRS:
        store.write([pair], sync=True)
    if compacted:
        store.compact(b"", b"\xff")
    store.close()
    (file,) = (file for file in path.glob("*.ldb" if compacted else "*.log"))
    return file


@pytest.mark.parametrize("compacted", [False, True], ids=["log", "ldb"])
def test_a_flipped_bit_is_damage_and_never_another_value(tmp_path, compacted):
    file = damaged_file(tmp_path / "db", compacted=compacted)
    whole = {other: other.read_bytes() for other in file.parent.iterdir()}
    outcomes = []
    for place in range(0, len(whole[file]), 17):
        for other in file.parent.iterdir():
            other.unlink()
        for other, raw in whole.items():
            other.write_bytes(raw)
        raw = bytearray(whole[file])
        raw[place] ^= 1 << place % 8
        file.write_bytes(bytes(raw))
        try:
            store = LevelDBKeyValue(file.parent)
        except StoreDamaged:
            outcomes.append("damaged")
            continue
        for key, _ in PAIRS:
            # Of a read without sums no more is asked than that it ends.
            with suppress(StoreDamaged):
                assert isinstance(store.get(key, verify=False), bytes | None)
        try:
            found = list(store.scan(b""))
            assert list(store.scan(b"", reverse=True)) == found[::-1]
            assert [(key, store.get(key)) for key, _ in found] == found
            # A length that points past the end looks like a write cut short by a power
            # loss, and LevelDB takes it for one: what is left is what was written before.
            assert found == PAIRS[: len(found)]
            outcomes.append("cut short" if len(found) < len(PAIRS) else "harmless")
        except StoreDamaged:
            outcomes.append("damaged")
        finally:
            store.close()
    assert outcomes.count("damaged") > 0.95 * len(outcomes)
    assert compacted or "harmless" not in outcomes
    assert not compacted or "cut short" not in outcomes


def test_a_block_that_a_compaction_cannot_read_costs_no_write(tmp_path):
    path = tmp_path / "db"
    file = damaged_file(path, compacted=True)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 3] ^= 1
    file.write_bytes(bytes(raw))
    store = LevelDBKeyValue(path)
    store.write([(key, None) for key, _ in PAIRS[:10]], sync=True)
    with pytest.raises(StoreDamaged, match="checksum"):
        store.compact(b"", b"\xff")
    # The database takes nothing more, and is opened anew for the next write.
    store.write([(b"new", b"value")], sync=True)
    assert store.get(b"new") == b"value"
    # No more often than now and then: where that does not help, it would cost all else.
    with pytest.raises(StoreDamaged, match="checksum"):
        store.compact(b"", b"\xff")
    with pytest.raises(StoreDamaged, match="checksum"):
        store.write([(b"newer", b"value")], sync=True)
    store._reopened_s -= REOPEN_S
    store.write([(b"newer", b"value")], sync=True)
    store.close()
    again = LevelDBKeyValue(path)
    assert (again.get(b"new"), again.get(b"newer")) == (b"value", b"value")
    again.close()


def test_a_log_cut_short_keeps_the_writes_before_the_cut(tmp_path):
    file = damaged_file(tmp_path / "db", compacted=False)
    file.write_bytes(file.read_bytes()[:-30])
    store = LevelDBKeyValue(tmp_path / "db")
    assert list(store.scan(b"")) == PAIRS[:-1]
    store.close()


def test_a_missing_table_is_damage(tmp_path):
    damaged_file(tmp_path / "db", compacted=True).unlink()
    with pytest.raises(StoreDamaged):
        LevelDBKeyValue(tmp_path / "db")


def test_a_missing_current_file_is_damage_and_empties_nothing(tmp_path):
    table = damaged_file(tmp_path / "db", compacted=True)
    (tmp_path / "db" / "CURRENT").unlink()
    with pytest.raises(StoreDamaged, match="CURRENT"):
        LevelDBKeyValue(tmp_path / "db")
    assert table.exists()


def test_salvage_keeps_what_can_be_read_and_the_old_directory(tmp_path):
    table = damaged_file(tmp_path / "db", compacted=True)
    raw = table.read_bytes()
    (tmp_path / "db" / "CURRENT").unlink()
    kept = salvage(tmp_path / "db")
    assert (kept / table.name).read_bytes() == raw
    store = LevelDBKeyValue(tmp_path / "db")
    assert list(store.scan(b"")) == PAIRS
    store.close()


def test_what_cannot_be_salvaged_is_left_where_it_is(tmp_path):
    (tmp_path / "db").write_text("no directory")
    with pytest.raises(StoreDamaged):
        salvage(tmp_path / "db")
    assert (tmp_path / "db").read_text() == "no directory"
    assert [entry.name for entry in tmp_path.iterdir()] == ["db"]


BACK = """
import resource, signal, sys, threading
from pathlib import Path
from xsc.base.errors import SpaceExhausted
from xsc.base.limits import MIB
from xsc.db.leveldb import REOPEN_S, LevelDBKeyValue
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LevelDBKeyValue(Path(sys.argv[1]))
store.write([(b"kept", b"as it was"), (b"gone", b"not yet")], sync=True)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def fill():
    written = 0
    while True:
        batch = [(b"%06d" % written, bytes(10_000)), (b"kept", b"%d" % written), (b"gone", None)]
        try:
            store.write(batch if written else [batch[0]], sync=True)
        except SpaceExhausted:
            return written
        written += 1
        store.write([(b"kept", b"as it was"), (b"gone", b"not yet")], sync=True)

for round in range(2):
    limit(100_000)
    written = fill()
    scan = store.scan(b"")
    next(scan)
    for size in (100_000, MIB, resource.RLIM_INFINITY):
        # Neither a part of the room nor a reader that goes on lets it begin too early.
        limit(size)
        store._full_s -= REOPEN_S
        try:
            store.write([(b"early", b"")], sync=True)
            raise SystemExit("it was opened anew under a reader, or without room")
        except SpaceExhausted:
            pass
        assert (store.get(b"kept"), store.get(b"gone")) == (b"as it was", b"not yet")
    rest = [key for key, _ in scan]
    limit(100_000)
    scan = store.scan(b"")
    del scan
    limit(resource.RLIM_INFINITY)
    store._full_s -= REOPEN_S
    store.write([(b"late", b"%d" % round)], sync=True)
    assert (store.get(b"kept"), store.get(b"gone")) == (b"as it was", b"not yet")
    assert store.get(b"%06d" % written) is None
    assert store.get(b"early") is None
    assert b"%06d" % (written - 1) in rest, rest
store.close()
store = LevelDBKeyValue(Path(sys.argv[1]))
assert (store.get(b"kept"), store.get(b"late")) == (b"as it was", b"1")
assert not list(Path(sys.argv[1]).glob("*.tmp"))
"""


def test_a_full_disk_that_has_room_again_is_written_without_a_restart(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", BACK, str(tmp_path / "db")],
        capture_output=True,
        check=False,
        text=True,
    )
    assert child.returncode == 0, child.stderr


REFUSED = """
import resource, signal, sys
from pathlib import Path
from xsc.base.errors import SpaceExhausted
from xsc.base.limits import MIB
from xsc.db.leveldb import REOPEN_S, LevelDBKeyValue
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LevelDBKeyValue(Path(sys.argv[1]))
store.write([(b"kept", b"value")], sync=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))

def refused(key):
    try:
        store.write([(key, bytes(2 * MIB))], sync=True)
        raise SystemExit("there was room")
    except SpaceExhausted as fault:
        assert "\\n" not in fault.message

def written():
    return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])

refused(b"first")
before = written()
for number in range(100):
    refused(b"%d" % number)
    assert store.get(b"kept") == b"value"
assert len(list(store.scan(b""))) == 1
tried = written() - before
store._full_s -= REOPEN_S
refused(b"after a while")
again = written() - before - tried
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, -1))
store._full_s -= REOPEN_S
store.write([(b"late", b"")], sync=True)
print(tried, again)
"""


def test_writes_that_a_full_disk_refuses_cost_no_trial_each(tmp_path):
    """A trial writes megabytes, and takes the last room from others while it lasts."""
    child = subprocess.run(
        [sys.executable, "-c", REFUSED, str(tmp_path / "db")],
        capture_output=True,
        check=False,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    tried, again = map(int, child.stdout.split())
    # Each writes a megabyte before it fails; a slow machine may come to a few of them.
    assert tried < 10 * MIB
    assert again >= MIB


def test_what_a_failed_write_left_is_put_back(tmp_path):
    """Where the sync fails, and not the write, the next open finds what was refused."""
    store = LevelDBKeyValue(tmp_path / "db")
    store.write([(b"a", b"1"), (b"c", b"3")], sync=True)
    refused = [(b"a", b"2"), (b"b", b"2"), (b"c", None)]
    undo = store._before(refused)
    store.write(refused, sync=True)
    store._failed, store._undo = SpaceExhausted("full"), undo
    store.write([(b"d", b"4")], sync=True)
    assert list(store.scan(b"")) == [(b"a", b"1"), (b"c", b"3"), (b"d", b"4")]
    store.close()


def test_more_than_can_be_held_in_memory_waits_for_a_restart(tmp_path, monkeypatch):
    monkeypatch.setattr("xsc.db.leveldb.UNDO_BYTES_MAX", 5)
    store = LevelDBKeyValue(tmp_path / "db")
    store.write([(b"a", bytes(3)), (b"b", bytes(3))], sync=True)
    assert store._before([(b"a", None), (b"c", b"")]) == [(b"a", bytes(3)), (b"c", None)]
    assert store._before([(b"a", None), (b"b", None)]) is None
    store.close()


def test_a_scan_keeps_its_view_and_lets_go_of_the_database(tmp_path):
    store = LevelDBKeyValue(tmp_path / "db")
    store.write([(b"a", b"1"), (b"b", b"2")], sync=True)
    scans = [store.scan(b"") for _ in range(4)]
    store.write([(b"a", None), (b"c", b"3")], sync=True)
    assert store._users == 4
    assert next(scans[1])[0] == b"a"
    assert [key for key, _ in scans[2]] == [b"a", b"b"]
    assert list(scans[2]) == []
    assert store._users == 3
    scans.clear()
    assert store._users == 0
    store.close()


def test_a_scan_may_be_collected_at_any_moment(tmp_path):
    """Also while the same thread opens the database anew: the collector asks nobody."""
    store = LevelDBKeyValue(tmp_path / "db")
    ring = [store.scan(b"")]
    ring.append(ring)
    del ring

    def collect():
        with store._entering:
            gc.collect()

    collecting = threading.Thread(target=collect, daemon=True)
    collecting.start()
    collecting.join(20)
    assert not collecting.is_alive(), "it waits for itself"
    assert store._users == 0
    store.close()


def test_after_a_failed_write_no_other_is_taken(tmp_path):
    store = LevelDBKeyValue(tmp_path / "db")
    store.write([(b"a", b"1")], sync=True)
    store._failed = store.named(OSError("IO error: Input/output error"))
    with pytest.raises(StoreDamaged):
        store.write([(b"b", b"1")], sync=True)
    assert store.get(b"a") == b"1"
    store.close()


def test_a_full_disk_is_named_and_nothing_synced_is_lost(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "db")], capture_output=True, check=True
    )
    written, error = child.stdout.decode().split()
    assert error == "SpaceExhausted"
    store = LevelDBKeyValue(tmp_path / "db")
    assert len(list(store.scan(b""))) == int(written) > 0
    store.close()


def test_a_scan_backwards_over_damage_says_so_too(tmp_path):
    file = damaged_file(tmp_path / "db", compacted=True)
    raw = bytearray(file.read_bytes())
    raw[100] ^= 1
    file.write_bytes(bytes(raw))
    store = LevelDBKeyValue(tmp_path / "db")
    for reverse in (False, True):
        with pytest.raises(StoreDamaged):
            list(store.scan(b"", reverse=reverse))
    store.close()


def test_the_bytes_of_everything_count_what_is_in_the_log_alone(tmp_path):
    store = LevelDBKeyValue(tmp_path / "db")
    store.write([(b"a", bytes(10_000))], sync=True)
    assert store.disk_bytes(b"\0", b"\xff") == 0
    assert 10_000 < store.disk_bytes(b"", b"\xff") < 20_000
    store.close()
