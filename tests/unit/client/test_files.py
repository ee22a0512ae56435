from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from xsc.base.errors import ArgumentInvalid, ReceiptInvalid, ShardMismatch
from xsc.client.files import check_target, place_in, write_whole


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "a"
    assert write_whole(path, [b"one", b"", b"two"]) == 6
    assert path.read_bytes() == b"onetwo"
    assert names(tmp_path) == ["a"]


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"before")

    def blocks():
        yield b"new"
        raise ShardMismatch("wrong")

    with pytest.raises(ShardMismatch):
        write_whole(path, blocks())
    assert path.read_bytes() == b"before"
    assert names(tmp_path) == ["a"]


def test_an_interruption_leaves_nothing(tmp_path):
    def blocks():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", blocks())
    assert names(tmp_path) == []


def test_a_link_keeps_pointing(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    write_whole(tmp_path / "link", [b"new"])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_a_device_is_written_to_and_stays_one():
    write_whole(Path("/dev/null"), [b"new"])
    assert Path("/dev/null").stat().st_rdev == os.makedev(1, 3)


def test_a_pipe_is_written_to(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    thread = threading.Thread(target=lambda: read.append(path.read_bytes()))
    thread.start()
    write_whole(path, [b"through"])
    thread.join()
    assert read == [b"through"]


@pytest.mark.parametrize("name", ["", "nowhere/file"])
def test_a_place_where_no_file_can_be_is_refused(tmp_path, name):
    with pytest.raises(ArgumentInvalid):
        check_target(tmp_path / name)
    with pytest.raises(ArgumentInvalid):
        write_whole(tmp_path / name, [b""])


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(ArgumentInvalid, match="cannot be written"):
        write_whole(tmp_path / ("a" * 300), [b""])


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "..", "../a", "a/../../b", "a//b", ".", "a/", "./a", "a\0b"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(ReceiptInvalid):
        place_in(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "a/b", "...", "a b"])
def test_plain_names_are_placed(tmp_path, name):
    assert place_in(tmp_path, name) == tmp_path / name


def test_what_stands_beside_the_place_is_neither_followed_nor_taken_over(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "a.part").symlink_to(victim)
    write_whole(tmp_path / "a", [b"new"])
    assert victim.read_bytes() == b"mine"
    assert not (tmp_path / "a").is_symlink()
    (tmp_path / "b.part").write_bytes(b"left by a call that was killed")
    (tmp_path / "b.part").chmod(0o644)
    with (tmp_path / "b.part").open("rb") as open_to_others:
        write_whole(tmp_path / "b", [b"secret"], mode=0o600)
        assert b"secret" not in open_to_others.read()
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
