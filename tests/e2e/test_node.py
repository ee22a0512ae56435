"""One node: its home, its start and its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import urllib.error
import urllib.request

import pytest

from tests.e2e.conftest import call, wait_for
from xsc.cli.devnet import holds


def test_init_makes_a_home(tmp_path):
    home = tmp_path / "home"
    made = call("node init --name alice --json", home=home).json
    assert made["home"] == str(home)
    assert stat.S_IMODE((home / "identity.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    again = call("node init", home=home).fails(2, "home_invalid")
    assert "xsc node start" in again.err


def test_init_refuses_what_is_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    call("node init", home=tmp_path).fails(2, "home_invalid")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_start_says_what_it_is_and_ends_by_sigterm(start):
    member, process = start(options="--name alice")
    status = member("node status --json").json
    assert status["name"] == "alice"
    assert stat.S_IMODE((member.home / "api.token").stat().st_mode) == 0o600
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    text = out.decode()
    assert status["id"] in text
    assert status["addresses"][0] in text
    assert "of storage" in text
    assert not (member.home / "api.json").exists()
    member("node status").fails(5, "node_unreachable")


@pytest.fixture
def supervisor(tmp_path):
    """A socket that stands for systemd's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(30)
        yield told


def test_start_with_wait_returns_when_it_serves_and_tells_the_supervisor(tmp_path, supervisor):
    home = tmp_path / "home"
    told = {"NOTIFY_SOCKET": supervisor.getsockname(), "WATCHDOG_USEC": "3600000000"}
    done = call("node start --wait --name=alice", home=home, **told)
    assert done.code == 0, done.err
    pid = int((home / "node.pid").read_text())
    try:
        assert pid != os.getpid()
        status = call("node status --json", home=home).json
        assert status["name"] == "alice"
        for shown in (status["id"], status["api_url"], *status["addresses"]):
            assert shown in done.line
        assert str(home / "node.log") in done.err
        assert [supervisor.recv(100) for _ in range(2)] == [b"READY=1", b"WATCHDOG=1"]
        written = (home / "node.log").read_text()
        call("node start --wait", home=home).fails(2, "home_locked")
        assert (home / "node.log").read_text() == written
    finally:
        os.kill(pid, signal.SIGTERM)
    assert supervisor.recv(100) == b"STOPPING=1"
    wait_for(lambda: not holds(pid, home))


def test_start_with_wait_gives_the_error_of_the_node(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text("nonsense")
    done = call("node start --wait", home=home).fails(2, "config_invalid")
    assert "config.toml: not TOML" in done.err
    assert not (home / "api.json").exists()
    thesis = tmp_path / "documents"
    thesis.mkdir()
    (thesis / "thesis.tex").write_text("mine")
    call("node start --wait", home=thesis).fails(2, "home_invalid")
    assert [path.name for path in thesis.iterdir()] == ["thesis.tex"]


def test_ctrl_c_is_a_clean_end_and_a_start_warns_once_of_what_it_can_do_without(tmp_path, start):
    capacity = shutil.disk_usage(tmp_path).total
    gone = {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000"}
    member, process = start(options=f"--storage-capacity={capacity}", **gone)
    assert member("node status").code == 0
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode in (0, 130)
    assert b"Traceback" not in err
    for event in ("node.supervisor_not_told", "storage.capacity_beyond_disk"):
        assert err.count(event.encode()) == 1


def test_a_home_has_one_node(start):
    member, _ = start()
    done = member("node start")
    done.fails(2, "home_locked")
    assert member("node status").code == 0


def test_a_killed_node_comes_back_with_all_it_had(start):
    member, process = start()
    content = os.urandom(500_000)
    put = member("store put - --code 1,0", stdin=content)
    assert put.code == 0, put.err
    before = member("node status --json").json
    process.kill()
    process.wait()
    member("store ls").fails(5, "node_unreachable")
    member, _ = start()
    after = member("node status --json").json
    assert after["id"] == before["id"]
    assert after["peer_url"] == before["peer_url"]
    assert member.get(put.line) == content


def test_alone_it_warns(start):
    member, _ = start()
    done = member("store put - --json", stdin=b"x" * 10_000)
    assert done.code == 0, done.err
    assert done.json["survives_nodes"] == 0
    assert done.json["warnings"]
    assert done.err.startswith("warning: ")


def test_the_api_wants_its_token(start):
    member, _ = start()
    url = json.loads((member.home / "api.json").read_text())["url"]
    with urllib.request.urlopen(f"{url}/health") as answer:
        assert json.load(answer) == {"status": "ok"}
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(f"{url}/v1/status", headers=headers))
        with caught.value as refused:
            assert refused.code == 401
            assert json.load(refused)["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nonsense", "config.toml"),
        ("storage_prise = 3", "'storage_prise' is no setting"),
        ('api_listen = "0.0.0.0:80"', "loopback"),
        ("compute_workers = 0", "compute_workers"),
        ('peer_listen = "0.0.0.0:0"\nadvertise = "localhost:1"', "advertise is localhost:1"),
        ('storage_capacity = "999999TiB"', "storage_capacity is 999999.0 TiB"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, text, says):
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(text)
    done = call("node start", home=home).fails(2, "config_invalid")
    assert says in done.err


def test_a_wrong_option_or_variable_is_named(tmp_path):
    home = tmp_path / "home"
    done = call("node start --storage-price-gib-hour much", home=home).fails(2, "config_invalid")
    assert "--storage-price-gib-hour" in done.err
    done = call("node start", home=home, XSC_STORAGE_PRICE_GIB_HOUR="much").fails(
        2, "config_invalid"
    )
    assert "XSC_STORAGE_PRICE_GIB_HOUR" in done.err


def test_a_passphrase_locks_the_key(tmp_path, start):
    home = tmp_path / "home"
    call("node init", home=home, XSC_PASSPHRASE="secret")
    assert (home / "identity.key").read_text().startswith("xsc-identity-1-scrypt:")
    call("node start", home=home).fails(2, "identity_invalid")
    call("node start", home=home, XSC_PASSPHRASE="wrong").fails(2, "identity_invalid")
    member, _ = start(XSC_PASSPHRASE="secret")
    assert member("node status").code == 0


def test_a_key_is_exported(tmp_path):
    home = tmp_path / "home"
    made = call("node init --json", home=home).json
    copy = tmp_path / "copy.key"
    assert call(["node", "identity", "export", copy], home=home).line == made["id"]
    assert copy.read_text() == (home / "identity.key").read_text()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    call(["node", "identity", "export", copy], home=home).fails(2, "identity_invalid")
    locked = tmp_path / "locked.key"
    done = call(["node", "identity", "export", locked, "--json"], home=home, XSC_PASSPHRASE="s")
    assert done.json["locked"] is True
    assert locked.read_text().startswith("xsc-identity-1-scrypt:")
    call(["node", "identity", "export", copy], home=tmp_path / "no").fails(2, "home_invalid")


def test_a_key_that_others_can_read_is_refused(tmp_path):
    home = tmp_path / "home"
    call("node init", home=home)
    (home / "identity.key").chmod(0o644)
    done = call("node start", home=home).fails(2, "identity_invalid")
    assert "chmod 600" in done.err


def test_peers_by_invitation(start):
    (alice, _), (bob, _) = start("alice", "--name alice"), start("bob", "--name bob")
    invitation = alice("peer invite").line
    assert invitation.startswith("xsc1")
    added = bob("peer add -", stdin=invitation.encode())
    assert added.line.startswith("added alice (")
    wait_for(
        lambda: (
            [member("peer ls --json").json["peers"][0]["state"] for member in (alice, bob)]
            == ["up", "up"]
        )
    )
    assert [row["name"] for row in alice("peer ls --json").json["peers"]] == ["bob"]
    used = bob(["peer", "add", invitation])
    assert used.code in (0, 2)
    for wrong in ("xsc1", "hello", invitation[:-3], invitation + "x"):
        bob(["peer", "add", wrong]).fails(2, "invitation_invalid")
    own = alice("peer invite").line
    alice(["peer", "add", own]).fails(2, "invitation_invalid")
    assert alice("peer block bob").line.startswith("blocked bob")
    assert alice("peer ls --json").json["peers"][0]["state"] == "blocked"
    assert alice("peer rm bob").line.startswith("removed bob")
    assert alice("peer ls --json").json["peers"] == []
    alice("peer rm bob").fails(2, "peer_unknown")


def test_nodes_of_different_networks_do_not_join(tmp_path, start):
    assert call("node init --network other", home=tmp_path / "bob").code == 0
    (alice, _), (bob, _) = start("alice"), start("bob")
    invitation = alice("peer invite").line
    refused = bob(["peer", "add", invitation])
    assert refused.code == 2
    assert bob("peer ls --json").json["peers"] == []
    assert alice("peer ls --json").json["peers"] == []
