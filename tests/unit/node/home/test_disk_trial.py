"""What a killed doctor leaves: the next one takes it away, and it keeps no home from being made."""

import subprocess
import sys
from pathlib import Path

import pytest

from xsc.node.home.disk_trial import drop_left, trial_in
from xsc.node.home.folder import init_home, is_home, lock
from xsc.node.recovery.restore import _check_empty

KILLED = """
import sys
from pathlib import Path
from xsc.db.leveldb import LevelDBKeyValue
from xsc.node.home.disk_trial import DATABASE, SYNCED, trial_in
with trial_in(Path(sys.argv[1])) as folder:
    (folder / SYNCED).write_bytes(bytes(4096))
    LevelDBKeyValue(folder / DATABASE).write([(b"key", b"value")], sync=True)
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def doctor(place):
    """Start a process that tries a disk, and wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, place / process.stdout.readline().strip()


def kill(process):
    process.kill()
    process.communicate()


def test_what_a_killed_doctor_left_is_removed_and_what_a_running_one_uses_is_not(tmp_path):
    first, left = doctor(tmp_path)
    second, used = doctor(tmp_path)
    assert set(tmp_path.iterdir()) == {left, used}
    kill(first)
    assert (left / "db" / "CURRENT").exists()
    with trial_in(tmp_path) as mine:
        assert set(tmp_path.iterdir()) == {used, mine}
    assert list(tmp_path.iterdir()) == [used]
    kill(second)
    made = init_home(tmp_path)
    assert not used.exists()
    assert Path(made["home"]) == tmp_path
    assert is_home(tmp_path)


@pytest.mark.parametrize("use", [lambda path: lock(path).close(), _check_empty])
def test_it_keeps_no_node_from_starting_and_no_backup_from_being_restored(tmp_path, use):
    left = tmp_path / ".xsc-doctor-abc_1234"
    left.mkdir(mode=0o700)
    (left / "sync").touch()
    use(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("case", ["file", "link", "name", "mode", "more", "dangling"])
def test_what_is_not_provably_a_doctors_is_left_alone(tmp_path, case):
    place, other = tmp_path / "place", tmp_path / "other"
    place.mkdir()
    other.mkdir(mode=0o700)
    (other / "sync").touch()
    entry = place / (".xsc-doctor-" + ("abcdefg" if case == "name" else "abcdefgh"))
    if case == "file":
        entry.touch()
    elif case in ("link", "dangling"):
        entry.symlink_to(other if case == "link" else tmp_path / "none")
    else:
        entry.mkdir()
        entry.chmod(0o755 if case == "mode" else 0o700)  # whatever the umask is by now
        (entry / ("thesis" if case == "more" else "sync")).touch()
    drop_left(place)
    assert entry.is_symlink() or entry.exists()
    assert (other / "sync").exists()
