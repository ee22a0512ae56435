"""Every verdict of the doctor, and what it says of homes that are not as they should be."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from xsc.base.errors import NodeUnreachable
from xsc.node.home.folder import init_home
from xsc.node.offline import doctor

WHOLE = dict.fromkeys(doctor._GIVEN_UP, 1) | {"landlock": 7}


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (doctor.judge_memory("text", doctor.MEMORY_BYTES_MIN), "ok"),
        (doctor.judge_memory("text", doctor.MEMORY_BYTES_MIN - 1), "warn"),
        (doctor.judge_descriptors(doctor.DESCRIPTORS_MIN), "ok"),
        (doctor.judge_descriptors(-1), "ok"),
        (doctor.judge_descriptors(doctor.DESCRIPTORS_MIN - 1), "warn"),
        (doctor.judge_clock(0), "ok"),
        (doctor.judge_clock(4), "ok"),
        (doctor.judge_clock(5), "warn"),
        (doctor.judge_clock(-1), "warn"),
        (doctor.judge_space(51, 1000, 50_000), "ok"),
        (doctor.judge_space(50, 1000, 50_000), "fail"),
        (doctor.judge_filesystem("ext4"), "ok"),
        (doctor.judge_filesystem("tmpfs"), "warn"),
        (doctor.judge_filesystem("nfs4"), "warn"),
        (doctor.judge_syncs([1, 10**9, 50_000]), "ok"),
        (doctor.judge_syncs([1, 10**9, 50_001]), "warn"),
        (doctor.judge_peers(1, 6), "ok"),
        (doctor.judge_peers(0, 6), "warn"),
        (doctor.judge_peers(0, 0), "warn"),
    ],
)
def test_verdicts(finding, verdict):
    assert finding.verdict == verdict
    assert finding.text


@pytest.mark.parametrize("missing", doctor._GIVEN_UP)
def test_what_a_worker_cannot_give_up_is_a_failure(missing):
    found = list(doctor.judge_confinement(WHOLE | {missing: 0}, root=False))
    assert [finding.verdict for finding in found] == ["fail", "ok"]
    assert missing.replace("_", " ") in found[0].text


def test_landlock_and_root_are_said():
    assert [one.verdict for one in doctor.judge_confinement(WHOLE, root=False)] == ["ok"]
    assert [one.verdict for one in doctor.judge_confinement(WHOLE, root=True)] == ["ok", "warn"]
    without = WHOLE | {"landlock": 0}
    assert [one.verdict for one in doctor.judge_confinement(without, root=False)] == ["warn"]
    assert {one.verdict for one in doctor.judge_confinement({}, root=False)} == {"fail", "warn"}


def test_the_filesystem_is_that_of_the_nearest_mount():
    mounts = (
        "/dev/a / ext4 rw 0 0\n/dev/b /data xfs rw 0 0\n"
        "none /data/in\\040memory tmpfs rw 0 0\nnone /database nfs rw 0 0\n"
    )
    for path, kind in [
        ("/home", "ext4"),
        ("/data", "xfs"),
        ("/data/x", "xfs"),
        ("/data/in memory/home", "tmpfs"),
        ("/database2", "ext4"),
    ]:
        assert doctor._filesystem_of(Path(path), mounts) == kind


def verdicts(found, check):
    return [finding.verdict for finding in found if finding.check == check]


def test_a_machine_without_a_home_can_be_examined(tmp_path):
    found = doctor.examine(tmp_path / "none" / "home", dict)
    assert {finding.verdict for finding in found if finding.check != "disk"} <= {"ok", "warn"}
    assert len(verdicts(found, "disk")) == 3
    assert verdicts(found, "storage") == ["ok"]
    assert "ok" in verdicts(found, "sandbox")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("XSC_PEER_LISTEN", raising=False)
    path = tmp_path / "home"
    init_home(path)
    return path


def examine(home, *checks, ask=dict):
    """The findings of a few checks: the others take seconds."""
    return doctor.examine(home, ask, checks)


def test_a_new_home_is_fine(home):
    found = examine(home, "home", "settings", "node")
    assert {finding.verdict for finding in found} == {"ok"}


def test_a_capacity_is_held_against_the_disk(home):
    usage = shutil.disk_usage(home)
    assert examine(home, "capacity") == []
    for written, verdict in [
        ("1", "ok"),
        (str(usage.total), "warn"),
        (str(usage.total + 1), "fail"),
    ]:
        (home / "config.toml").write_text(f"storage_capacity = {written}")
        (found,) = examine(home, "capacity")
        assert found.verdict == verdict
        assert ("storage_capacity" in found.text + found.hint) == (verdict != "ok")
    (home / "config.toml").unlink()
    (home / "capacity").write_text(f"{usage.total + 1}\n")  # of a larger disk that it was on
    assert verdicts(examine(home, "capacity"), "capacity") == ["fail"]


@pytest.mark.parametrize("name", ["state", "space", "bodies"])
def test_a_database_that_is_gone_is_a_failure(home, name):
    for kept in ("state", "space", "bodies", "index"):
        (home / "db" / kept).mkdir(parents=True)
    assert verdicts(examine(home, "home"), "home") == ["ok"]
    (home / "db" / name).rmdir()
    (_, failed) = examine(home, "home")
    assert failed.verdict == "fail"
    assert f"the database {name} of {home} is missing" in failed.text


@pytest.mark.parametrize(
    ("name", "mode"), [("", 0o755), ("identity.key", 0o640), ("config.toml", 0o666)]
)
def test_what_others_can_read_or_write_is_a_failure(home, name, mode):
    (home / "config.toml").touch(mode=0o644)
    assert verdicts(examine(home, "home"), "home") == ["ok"]
    (home / name).chmod(mode)
    (failed, _) = examine(home, "home")
    assert failed.verdict == "fail"
    assert f"chmod go-rwx {home / name}" == failed.hint


def test_a_damaged_home_is_a_failure_and_the_rest_is_checked(home):
    (home / "identity.key").unlink()
    (home / "config.toml").write_text("peer_listen = 7\n")
    assert verdicts(examine(home, "home", "settings"), "home") == ["fail"]
    (wrong,) = (one for one in examine(home, "home", "settings") if one.check == "settings")
    assert "config.toml" in wrong.text
    (home / "format").write_text("99\n")
    assert "format 99" in examine(home, "home")[0].text


def test_a_port_that_is_taken_is_a_failure(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (home / "config.toml").write_text(f'peer_listen = "127.0.0.1:{port}"\n')
        (finding,) = examine(home, "node")
        assert finding.verdict == "fail"
        assert str(port) in finding.text
    assert verdicts(examine(home, "node"), "node") == ["ok"]


def test_the_node_that_runs_is_asked(home):
    def status(healthy, ending):
        peers = {
            "healthy": healthy,
            "known": 6,
            "reached_by": 0,
            "not_reached_by": 0,
            "clock_refused_by": 0,
        }
        return lambda: {"peers": peers, "addresses": [], "leases": {"ending": ending}}

    def gone():
        raise NodeUnreachable("it does not answer")

    (home / "api.json").write_text("{}")
    for ask, expected in [
        (status(6, 0), ["ok"]),
        (status(0, 0), ["warn"]),
        (status(6, 2), ["ok", "warn"]),
        (gone, ["fail"]),
    ]:
        assert verdicts(examine(home, "node", ask=ask), "node") == expected


def test_what_cannot_be_checked_is_a_failure(home, monkeypatch):
    def broken(_home, _ask):
        raise OSError("the disk is gone")
        yield

    monkeypatch.setattr(doctor, "CHECKS", [("disk", broken)])
    (finding,) = examine(home, "disk")
    assert (finding.verdict, finding.text) == ("fail", "it cannot be checked: the disk is gone")


def test_another_users_home_is_a_failure(home):
    if os.geteuid() != 0:
        pytest.skip("only root can give a home away")
    os.chown(home, 12345, 12345)
    assert verdicts(examine(home, "home"), "home") == ["fail", "ok"]


def test_what_peers_say_of_the_way_here_is_passed_on():
    cases = [(0, 0, []), (6, 0, ["ok"]), (3, 3, ["warn"]), (0, 6, ["fail"])]
    for reached_by, not_reached_by, expected in cases:
        found = list(doctor.judge_reach(reached_by, not_reached_by, ["10.0.0.5:7000"]))
        assert [finding.verdict for finding in found] == expected
        assert all("10.0.0.5:7000" in finding.text for finding in found if finding.hint)
        assert all("'Behind routers'" in finding.hint for finding in found if finding.hint)
    page = (Path(__file__).parents[4] / "docs" / "running.md").read_text()
    assert "\n## Behind routers\n" in page
    assert {"### WireGuard", "### Tailscale"} <= set(page.splitlines())


def test_a_clock_that_most_peers_refuse_is_this_machines():
    for refused_by, expected in [(0, []), (1, ["warn"]), (3, ["warn"]), (4, ["fail"])]:
        found = list(doctor.judge_clock_of_peers(refused_by, 6))
        assert [finding.verdict for finding in found] == expected


def test_a_node_off_loopback_wants_an_address_that_others_can_use():
    assert doctor.judge_addresses("127.0.0.1:7000", ()).verdict == "ok"
    assert doctor.judge_addresses("0.0.0.0:7000", ("a.example:7000",)).verdict == "ok"
    found = doctor.judge_addresses("0.0.0.0:7000", ())
    assert found.verdict == "warn"
    assert "advertise" in found.text
