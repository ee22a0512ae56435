"""Checking a node's shard store, running and stopped, sound and damaged."""

from __future__ import annotations

import shutil
import signal

from tests.e2e.conftest import call


def end(process):
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)


def test_fsck_of_a_running_and_a_stopped_node(start, tmp_path):
    member, process = start(options="--name alice")
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 8000)
    cap = member(["store", "put", source]).line
    for words in ("node fsck --json", "node fsck --deep --json"):
        found = member(words).json
        assert found["whole"]
        assert found["index"] == "ok"
        assert found["bytes_held"] == found["bytes_counted"] > 2_000_000
    member("node fsck --salvage").fails(2, "argument_invalid")
    stale = (member.home / "api.json").read_bytes()
    end(process)
    offline = member("node fsck --deep --json").json
    assert offline == found
    # A node that was killed leaves behind where it was to be reached.
    (member.home / "api.json").write_bytes(stale)
    assert member("node fsck --deep --json").json == found
    (member.home / "api.json").unlink()

    # A lost index costs nothing.
    shutil.rmtree(member.home / "db" / "index")
    again = member("node fsck --json").json
    assert again == found | {"index": "rebuilt"}

    # Bytes of the bodies are damaged: what is lost is named.
    log = max((member.home / "db" / "bodies").glob("*.l*"), key=lambda file: file.stat().st_size)
    raw = bytearray(log.read_bytes())
    raw[len(raw) // 2] ^= 1
    log.write_bytes(raw)
    shutil.copytree(member.home, tmp_path / "copy")
    done = member("node fsck --deep")
    assert done.code == 6
    assert "Traceback" not in done.err
    if done.err.startswith("error: "):
        assert "--salvage" in done.err
        done = member("node fsck --salvage --json")
        assert "Traceback" not in done.err
    restarted, process = start()
    back = tmp_path / "back"
    got = restarted(["store", "get", cap, "-o", back])
    assert got.code in (0, 5)
    assert got.code or back.read_bytes() == source.read_bytes()
    end(process)


def test_fsck_of_nothing(tmp_path):
    call("node fsck", home=tmp_path / "no").fails(2, "home_invalid")
    call("node init", home=tmp_path / "new")
    call("node fsck", home=tmp_path / "new").fails(2, "home_invalid")


def test_a_state_that_cannot_be_read_is_refused(start, tmp_path):
    member, process = start(options="--name alice")
    end(process)
    for file in (member.home / "db" / "state").glob("MANIFEST*"):
        file.write_bytes(b"damaged")
    done = call("node start", home=member.home)
    assert done.code == 6
    assert "(store_damaged)" in done.err
    assert "Traceback" not in done.err


def test_gc_says_what_it_freed(start, tmp_path):
    member, process = start(options="--name alice")
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 8000)
    cap = member(["store", "put", source]).line
    kept = member(["store", "put", source]).line
    member(["store", "rm", cap])
    done = member("store gc --json").json
    assert set(done) == {
        "expired_bytes",
        "leftover_bytes",
        "objects",
        "deletions_confirmed",
        "deletions_open",
        "deletions_given_up",
        "reclaimed_bytes",
    }
    assert (done["expired_bytes"], done["leftover_bytes"], done["deletions_open"]) == (0, 0, 0)
    assert member("store gc").code == 0
    assert member(["store", "stat", kept, "--json"]).json["readable"]
    end(process)
