"""Backup and restore as they are typed, on homes whose node does not run."""

import json
from pathlib import Path

import pytest

from xsc.cli.main import main
from xsc.db.leveldb import LevelDBKeyValue
from xsc.node.home import folder as homes
from xsc.node.home.backup import frames, home_files, new_head, seal_of


@pytest.fixture
def home(tmp_path):
    path = tmp_path / "home"
    homes.init_home(path, name="alice")
    LevelDBKeyValue(path / "db" / "space").close()
    for name in ("state", "bodies"):
        store = LevelDBKeyValue(path / "db" / name)
        store.write([(b"row", b"value")], sync=True)
        store.close()
    return path


@pytest.fixture
def xsc(capsys):
    """Run one command line; return its code and what it printed."""

    def call(*words):
        code = main([str(word) for word in words])
        done = capsys.readouterr()
        return code, done.out, done.err

    return call


def test_a_lone_home_goes_into_a_file_and_comes_back(home, xsc, tmp_path):
    key = tmp_path / "key"
    assert xsc("--home", home, "node", "identity", "export", key)[0] == 0
    code, out, err = xsc("--home", home, "node", "backup", tmp_path, "--no-identity", "--json")
    done = json.loads(out)
    assert (code, err, done["locked"], done["identity"]) == (0, "", True, False)
    new = tmp_path / "new"
    restore = ("--home", new, "node", "restore", done["file"])
    assert "only its node's key" in xsc(*restore)[2]
    code, out, _ = xsc(*restore, "--identity", key, "--check", "--json")
    assert (code, json.loads(out)["backup"]["bodies"]) == (0, 1)
    assert not new.exists()
    code, out, _ = xsc(*restore, "--identity", key, "--json")
    assert code == 0
    assert json.loads(out)["since"]["newer_entries"] == 0
    assert homes.stage_of(new) is None
    assert homes.read_identity(new).node_id == homes.read_identity(home).node_id


def test_a_backup_that_is_not_locked_says_so(home, xsc, tmp_path):
    code, out, err = xsc("--home", home, "node", "backup", tmp_path / "b")
    assert (code, out) == (0, f"{tmp_path / 'b'}\n")
    assert "is not locked" in err
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse")
    code, _, err = xsc(
        "--home", home, "node", "backup", tmp_path / "c", "--passphrase-file", passphrase
    )
    assert (code, err) == (0, "")
    check = ("--home", tmp_path / "n", "node", "restore", tmp_path / "c", "--check")
    code, out, _ = xsc(*check, "--passphrase-file", passphrase)
    assert code == 0
    assert "in the backup" in out
    (tmp_path / "wrong").write_text("wrong horse")
    code, _, err = xsc(*check, "--passphrase-file", tmp_path / "wrong")
    assert (code, "wrong, or the backup is damaged" in err) == (2, True)


def test_a_forged_backup_is_refused(home, xsc, tmp_path):
    """Its head names the victim, and the key and all else in it are the forger's."""
    key, passphrase, forged = tmp_path / "key", tmp_path / "passphrase", tmp_path / "forged"
    assert xsc("--home", home, "node", "identity", "export", key)[0] == 0
    passphrase.write_text("correct horse")
    victim, other = homes.read_identity(home).node_id, tmp_path / "other"
    homes.init_home(other)
    head = new_head(victim, "xsc", "nothing", 0)
    forged.write_bytes(b"".join(frames(head, home_files(other, identity=True), seal_of(head))))
    new = tmp_path / "new"
    restore = ("--home", new, "node", "restore", forged)
    for secret in (("--identity", key), ("--passphrase-file", passphrase)):
        code, out, err = xsc(*restore, *secret)
        assert (code, out) == (2, "")
        assert "is not sealed by the key or passphrase that was given" in err
        assert not new.exists()
    for more in ((), ("--check",)):
        code, out, err = xsc(*restore, *more)
        assert (code, out) == (2, "")
        assert "the backup is forged" in err
    assert {entry.name for entry in new.iterdir()} <= {"lock"}


def test_the_key_of_a_backup_is_opened_before_it_counts(home, xsc, tmp_path, monkeypatch):
    (home / "identity.key").unlink()
    monkeypatch.setenv("XSC_PASSPHRASE", "correct horse")
    locked = tmp_path / "locked"
    homes.init_home(locked, passphrase="correct horse")
    (home / "identity.key").write_bytes((locked / "identity.key").read_bytes())
    (home / "identity.key").chmod(0o600)
    assert xsc("--home", home, "node", "backup", tmp_path / "b")[0] == 0
    restore = ("--home", tmp_path / "new", "node", "restore", tmp_path / "b")
    monkeypatch.setenv("XSC_PASSPHRASE", "wrong horse")
    code, _, err = xsc(*restore)
    assert (code, "the passphrase is wrong" in err) == (2, True)
    assert {entry.name for entry in (tmp_path / "new").iterdir()} <= {"lock"}
    monkeypatch.setenv("XSC_PASSPHRASE", "correct horse")
    assert xsc(*restore)[0] == 0
    key = homes.read_identity(tmp_path / "new", "correct horse")
    assert key.node_id == homes.read_identity(home, "correct horse").node_id


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["backup", ""], "an empty text names no file"),
        (["identity", "export", ""], "an empty text names no file"),
        (["restore", ""], "an empty text names no file"),
        (["restore", "EXISTS", "--identity", ""], "an empty text names no file"),
        (["backup", "EXISTS"], "exists"),
        (["backup", "nowhere/b"], "no directory"),
        (["backup", "b", "--no-identity", "--passphrase"], "by no passphrase"),
        (["backup", "b", "--passphrase-file", "EMPTY"], "no passphrase in its first line"),
        (["backup", "b", "--passphrase-file", "gone"], "no file"),
        (["restore", "gone"], "no file gone"),
        (["restore", "EXISTS"], "is no backup"),
        (["restore", "--check"], "no backup is named"),
        (["restore"], "no restore is to be finished"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(home, xsc, monkeypatch, words, told):
    monkeypatch.chdir(home.parent)
    Path("EXISTS").write_text("something")
    Path("EMPTY").write_text("\nsecond")
    code, out, err = xsc("--home", home, "node", *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert told in err
