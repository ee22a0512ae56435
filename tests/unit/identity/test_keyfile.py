"""The key file: its mode, its passphrase, and damage."""

from __future__ import annotations

import os
import stat

import pytest

from xsc.base.clock import SeededEntropy
from xsc.base.errors import IdentityInvalid
from xsc.base.ids import from_text, to_text
from xsc.identity import keyfile

ENTROPY = SeededEntropy(b"keyfile")


@pytest.fixture(scope="module")
def locked(alice):
    return keyfile.to_line(alice, ENTROPY, "correct horse")


def test_a_key_comes_back_from_its_file(tmp_path, alice):
    path = tmp_path / "identity.key"
    keyfile.write(path, keyfile.to_line(alice, ENTROPY))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keyfile.read(path).node_id == alice.node_id


def test_the_mode_does_not_depend_on_the_umask(tmp_path, alice):
    before = os.umask(0)
    try:
        keyfile.write(tmp_path / "key", keyfile.to_line(alice, ENTROPY))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_locked_key_comes_back_with_its_passphrase(tmp_path, alice, locked):
    keyfile.write(tmp_path / "key", locked)
    assert keyfile.read(tmp_path / "key", "correct horse").node_id == alice.node_id
    assert to_text(alice.seed) not in locked


def test_two_files_of_one_key_differ(alice, locked):
    """Salt and nonce are new each time."""
    assert keyfile.to_line(alice, ENTROPY, "correct horse") != locked


def test_a_locked_key_says_what_to_do_without_its_passphrase(locked):
    with pytest.raises(IdentityInvalid, match="locked by a passphrase") as caught:
        keyfile.from_line(locked)
    assert "XSC_PASSPHRASE" in caught.value.hint


@pytest.mark.parametrize("passphrase", ["Correct horse", "correct horse ", "x"])
def test_a_wrong_passphrase_is_refused(locked, passphrase):
    with pytest.raises(IdentityInvalid, match="passphrase is wrong"):
        keyfile.from_line(locked, passphrase)


@pytest.mark.parametrize("place", [0, 15, 16, 27, 28, 59, 60, 75])
def test_damage_to_a_locked_key_is_refused(locked, place):
    """In the salt, the nonce, the sealed seed and its tag."""
    raw = bytearray(from_text(locked.strip().removeprefix(keyfile.LOCKED)))
    raw[place] ^= 1
    with pytest.raises(IdentityInvalid):
        keyfile.from_line(keyfile.LOCKED + to_text(bytes(raw)), "correct horse")


@pytest.mark.parametrize("size", [1, 16, 20, 28, 43])
def test_a_locked_key_cut_short_is_refused(locked, size):
    raw = from_text(locked.strip().removeprefix(keyfile.LOCKED))[:size]
    with pytest.raises(IdentityInvalid):
        keyfile.from_line(keyfile.LOCKED + to_text(raw), "correct horse")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        "hello",
        "xsc-identity-2:abc",
        keyfile.PLAIN,
        keyfile.PLAIN + "!",
        keyfile.PLAIN + to_text(bytes(31)),
        keyfile.PLAIN + to_text(bytes(33)),
        keyfile.PLAIN + to_text(bytes(32)).upper(),
        keyfile.LOCKED,
        keyfile.LOCKED + "!",
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_what_is_no_key_file_is_refused(line):
    with pytest.raises(IdentityInvalid):
        keyfile.from_line(line, "x")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o777])
def test_a_file_that_others_can_reach_is_refused(tmp_path, alice, mode):
    path = tmp_path / "key"
    keyfile.write(path, keyfile.to_line(alice, ENTROPY))
    path.chmod(mode)
    with pytest.raises(IdentityInvalid, match=f"mode {mode:04o}") as caught:
        keyfile.read(path)
    assert caught.value.hint == f"chmod 600 {path}"


def test_an_identity_is_never_written_over(tmp_path, alice, bob):
    path = tmp_path / "key"
    keyfile.write(path, keyfile.to_line(alice, ENTROPY))
    with pytest.raises(IdentityInvalid, match="not written over"):
        keyfile.write(path, keyfile.to_line(bob, ENTROPY))
    assert keyfile.read(path).node_id == alice.node_id


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(IdentityInvalid, match="no key file"):
        keyfile.read(tmp_path / "absent")
    with pytest.raises(IdentityInvalid, match="cannot be read"):
        keyfile.read(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "binary").chmod(0o600)
    with pytest.raises(IdentityInvalid, match="cannot be read"):
        keyfile.read(tmp_path / "binary")
