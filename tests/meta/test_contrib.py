"""What stands in contrib/: a unit that systemd takes, a container file that fits the checkout."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.meta.test_commands import fault_of
from xsc.base.errors import CallerError, CorruptionError
from xsc.base.units import parse_duration_ms
from xsc.node.config import KEYS
from xsc.node.daemon import SHUTDOWN_TIMEOUT_MS

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "contrib" / "xsc.service"
CONTAINER = ROOT / "contrib" / "Containerfile"


def directives() -> dict[str, list[str]]:
    """Return what the unit sets, in all of its sections."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, sign, value = line.partition("=")
            assert sign, line
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_starts_what_xsc_takes_and_stops_it_in_time():
    unit = directives()
    program, *words = unit["ExecStart"][0].split()
    assert program.endswith("/.venv/bin/xsc")
    assert fault_of(words) is None
    assert unit["Type"] == ["notify"]
    assert unit["RestartPreventExitStatus"] == [
        f"{CallerError.exit_code} {CorruptionError.exit_code}"
    ]
    assert parse_duration_ms(unit["TimeoutStopSec"][0]) > 2 * SHUTDOWN_TIMEOUT_MS
    home = f"/var/lib/{unit['StateDirectory'][0]}"
    assert unit["Environment"] == [f"XSC_HOME={home}"]
    assert unit["StateDirectoryMode"] == ["0700"]
    checkout = program.removesuffix("/.venv/bin/xsc")
    assert (ROOT / unit["Documentation"][0].removeprefix(f"file://{checkout}/")).is_file()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path):
    # It looks for the program, which is where the page tells to install it, and not here.
    (tmp_path / UNIT.name).write_text(
        re.sub("(?m)^ExecStart=[^ ]+", f"ExecStart={sys.executable}", UNIT.read_text())
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / UNIT.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_container_is_made_of_what_the_checkout_has_and_starts_a_node():
    lines = CONTAINER.read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    for step, rest in steps:
        if step == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
        elif step == "ENV":
            names = {pair.partition("=")[0] for pair in rest.split()} - {"XSC_HOME"}
            assert {name.removeprefix("XSC_").lower() for name in names} <= set(KEYS)
    given = dict(steps)
    assert given["USER"] == "xsc"
    assert json.loads(given["ENTRYPOINT"]) == ["xsc"]
    assert fault_of(json.loads(given["CMD"])) is None
