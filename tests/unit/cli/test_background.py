"""What the command knows of nodes in the background: which run, and why one ended at its start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from xsc.base.errors import ConfigInvalid, NodeUnreachable, SpaceExhausted
from xsc.cli import devnet as background
from xsc.node.config import KEYS


@pytest.fixture
def home(tmp_path):
    (tmp_path / background.LOG).write_text("older\n")
    return tmp_path


def test_the_error_that_the_node_wrote_last_is_given(home):
    told = {"code": "config_invalid", "detail": "no such key", "hint": "leave it out"}
    with (home / background.LOG).open("a") as log:
        log.write(json.dumps(told) + "\nno JSON\n")
    fault = background._why(home, len("older\n"))
    assert (type(fault), fault.message, fault.hint) == (ConfigInvalid, told["detail"], told["hint"])


@pytest.mark.parametrize(("free", "kind"), [(0, SpaceExhausted), (1, NodeUnreachable)])
def test_a_log_without_a_reason_may_lie_on_a_full_disk(home, monkeypatch, free, kind):
    monkeypatch.setattr(background.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert type(background._why(home, len("older\n"))) is kind


def test_a_process_runs_until_its_last_thread_has_ended(tmp_path):
    ends_first = (
        "import ctypes, sys, threading\n"
        "lock = open('lock', 'a')\n"
        "threading.Thread(target=sys.stdin.read).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    words = [sys.executable, "-c", ends_first]
    with subprocess.Popen(words, stdin=subprocess.PIPE, cwd=tmp_path) as process:
        stat = Path(f"/proc/{process.pid}/stat")
        while " Z " not in stat.read_text():
            assert process.poll() is None
        assert background.holds(process.pid, tmp_path)
        assert not background.holds(process.pid, tmp_path.parent)
        process.kill()
        process.wait(60)
    assert not background.holds(process.pid, tmp_path)


def test_an_address_in_the_environment_is_no_nodes_of_a_devnet():
    listening = {f"XSC_{name.upper()}" for name in KEYS if name.endswith("_listen")}
    assert "XSC_METRICS_LISTEN" in listening
    assert listening <= set(background._EACH_ITS_OWN)
