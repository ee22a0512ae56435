"""Homes out of backups: whole or not at all, and into empty directories alone."""

import stat

import pytest

from xsc.base.errors import HomeInvalid, IdentityInvalid, StoreDamaged
from xsc.db.leveldb import LevelDBKeyValue
from xsc.identity.keyfile import from_line, to_line
from xsc.node.home import folder as homes
from xsc.node.home.backup import (
    FILE,
    Entry,
    Reader,
    frames,
    home_files,
    new_head,
    read_into,
    restore_home,
    seal_of,
    stream_stopped,
)
from xsc.node.system import SystemEntropy

ROWS = [(b"net/peer/x", b"a peer"), (b"storage/object/x", bytes(5000))]
RECORD = (b"m" + bytes(32) + b"a/b", b"a record")


@pytest.fixture
def home(tmp_path):
    """A home whose node ran and holds a few rows."""
    path = tmp_path / "home"
    homes.init_home(path, name="alice", network="lab")
    (path / "api.token").write_text("left behind")
    stores = {
        "state": ROWS,
        "space": [(b"c", b"a clock"), RECORD],
        "bodies": [(b"b1", bytes(9000))],
    }
    for name, rows in stores.items():
        store = LevelDBKeyValue(path / "db" / name)
        store.write(rows, sync=True)
        store.close()
    return path


def backup_of(home, **how):
    return b"".join(stream_stopped(home, "", **{"identity": True, "bodies": True, **how}))


def brought(raw, path, key_line=None, key=None):
    reader = Reader([raw])
    return restore_home(reader, seal_of(reader.head, key=key), path, key_line, from_line)


def rows_of(home, name):
    store = LevelDBKeyValue(home / "db" / name)
    rows = list(store.scan(b""))
    store.close()
    return rows


def test_a_home_comes_back_as_it_was(home, tmp_path):
    found = brought(backup_of(home), tmp_path / "new")
    assert [found.counts[name] for name in ("objects", "peers", "bodies")] == [1, 1, 1]
    for name in ("format", "network", "config.toml", "identity.key"):
        assert (tmp_path / "new" / name).read_bytes() == (home / name).read_bytes()
        assert stat.S_IMODE((tmp_path / "new" / name).stat().st_mode) == 0o600
    for name in ("state", "bodies"):
        assert rows_of(tmp_path / "new", name) == rows_of(home, name)
    assert not (tmp_path / "new" / "api.token").exists()
    assert homes.stage_of(tmp_path / "new") == "restored"


def test_the_space_comes_back_without_the_interval(home, tmp_path):
    found = brought(backup_of(home, bodies=False), tmp_path / "new")
    assert found.counts["space_records"] == 1
    assert rows_of(tmp_path / "new", "space") == [RECORD]


def test_without_the_identity_only_the_key_brings_it_back(home, tmp_path):
    raw = backup_of(home, identity=False, bodies=False)
    key = homes.read_identity(home)
    assert to_line(key, SystemEntropy()).strip().encode() not in raw
    assert b"a peer" not in raw
    with pytest.raises(HomeInvalid, match="holds no identity"):
        brought(raw, tmp_path / "new", key=key)
    line = (home / "identity.key").read_text()
    found = brought(raw, tmp_path / "new", line, key)
    assert (found.counts["objects"], found.counts["bodies"]) == (1, 0)
    assert homes.open_home(tmp_path / "new").key.node_id == key.node_id
    assert read_into(*reading(raw, key), {}, from_line).counts["objects"] == 1


def reading(raw, key=None):
    reader = Reader([raw])
    return reader, seal_of(reader.head, key=key)


def test_only_an_empty_directory_is_taken(home, tmp_path):
    raw = backup_of(home)
    with pytest.raises(HomeInvalid, match="not empty"):
        brought(raw, home)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(HomeInvalid, match="not empty"):
        brought(raw, foreign)
    assert [entry.name for entry in foreign.iterdir()] == ["thesis.tex"]


def test_a_damaged_backup_leaves_nothing_behind(home, tmp_path):
    raw = bytearray(backup_of(home))
    for wrong in (raw[:-40], raw[:-1] + bytes([raw[-1] ^ 1])):
        with pytest.raises(StoreDamaged):
            brought(bytes(wrong), tmp_path / "new")
        assert {entry.name for entry in (tmp_path / "new").iterdir()} <= {"lock"}
    brought(bytes(raw), tmp_path / "new")


def test_an_interrupted_restore_begins_anew_and_starts_no_node(home, tmp_path):
    new = tmp_path / "new"
    raw = backup_of(home)
    brought(raw, new)
    homes.mark(new, "restoring")
    for name in ("format", "network", "identity.key"):  # they are written last
        (new / name).unlink()
    with pytest.raises(HomeInvalid, match="was interrupted"):
        homes.check_whole(new)
    brought(raw, new)
    homes.check_whole(new)
    (new / homes.STAGE).write_text("{")
    with pytest.raises(HomeInvalid, match="does not say what is unfinished"):
        homes.check_whole(new)


@pytest.mark.parametrize("name", [b"../evil", b"/etc/evil", b"db/state/CURRENT", b"api.token", b""])
def test_a_backup_writes_no_file_that_has_no_place_in_a_home(home, tmp_path, name):
    node = homes.open_home(home).key.node_id
    head = new_head(node, "lab", "nothing", 0)
    raw = b"".join(frames(head, [Entry(FILE, name, b"x")], seal_of(head)))
    with pytest.raises(StoreDamaged, match="no place in a home"):
        brought(raw, tmp_path / "deep" / "new")
    assert not list(tmp_path.rglob("evil"))


def test_what_never_ran_or_is_no_home_is_not_backed_up(tmp_path):
    with pytest.raises(HomeInvalid, match="no XSC home"):
        backup_of(tmp_path)
    homes.init_home(tmp_path / "h")
    with pytest.raises(HomeInvalid, match="never ran"):
        backup_of(tmp_path / "h")
    homes.mark(tmp_path / "h", "restoring")
    with pytest.raises(HomeInvalid, match="restore"):
        backup_of(tmp_path / "h")


def test_a_home_of_a_newer_format_is_refused_by_name(home, tmp_path):
    key = homes.read_identity(home)
    (home / "format").write_text("1\n")
    head = new_head(key.node_id, "lab", "nothing", 0)
    files = [
        Entry(FILE, b"format", b"2\n"),
        Entry(FILE, b"identity.key", (home / "identity.key").read_bytes()),
    ]
    raw = b"".join(frames(head, files, seal_of(head)))
    with pytest.raises(HomeInvalid, match="format 2"):
        brought(raw, tmp_path / "new")
    assert {entry.name for entry in (tmp_path / "new").iterdir()} <= {"lock"}


@pytest.mark.parametrize("passphrase", ["", "correct horse"])
def test_a_backup_with_another_key_than_it_names_leaves_nothing_behind(home, tmp_path, passphrase):
    """Who keeps a sealed backup can put another without a seal in its place."""
    victim = homes.read_identity(home).node_id
    homes.init_home(tmp_path / "forger", passphrase=passphrase)

    def forged(files):
        head = new_head(victim, "lab", "nothing", 0)
        return Reader([b"".join(frames(head, files, seal_of(head)))])

    def unlock(line):
        return from_line(line, passphrase)

    files = list(home_files(tmp_path / "forger", identity=True))
    for given, error, told in (
        (files, IdentityInvalid, "the backup is forged"),
        (files[:-1], StoreDamaged, "lacks the key"),
    ):
        reader = forged(given)
        with pytest.raises(error, match=told):
            read_into(reader, seal_of(reader.head), {}, unlock)
        reader = forged(given)
        with pytest.raises(error, match=told):
            restore_home(reader, seal_of(reader.head), tmp_path / "new", None, unlock)
        assert {entry.name for entry in (tmp_path / "new").iterdir()} <= {"lock"}
