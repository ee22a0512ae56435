"""The README's transcript works in a checkout; `…` matches any output."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def steps():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```console\n(.*?)```", text, re.DOTALL)[1]
    found = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def matches(shown, expected):
    pattern = ".*".join(re.escape(part) for part in "\n".join(expected).split("…"))
    return re.fullmatch(pattern, shown.strip(), re.DOTALL) is not None


@pytest.fixture
def checkout(tmp_path):
    """A directory with all that the repository has in it, and nothing of what is made there."""
    for entry in ROOT.iterdir():
        if entry.name not in {"try", ".git"}:
            (tmp_path / entry.name).symlink_to(entry)
    return tmp_path


def bash(command, folder, environment):
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_transcript_on_the_first_screen_is_true(checkout):
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(checkout),
        "LC_ALL": "C.UTF-8",
    }
    found = steps()
    assert len(found) > 8
    try:
        for command, expected in found:
            if command == "make install":
                continue  # it has run: these tests are what it installed
            if command.startswith("curl ") and shutil.which("curl") is None:
                continue
            if command.startswith("export "):
                listed = bash(f"{command} && env -0", checkout, environment)
                environment = dict(line.split("=", 1) for line in listed.stdout.split("\0") if line)
                continue
            done = bash(command, checkout, environment)
            assert matches(done.stdout, expected), f"$ {command}\n{done.stdout}"
    finally:
        if (checkout / "try").exists():
            bash(f"{sys.executable} -m xsc devnet down --dir try/net", checkout, environment)
    assert not (checkout / "try").exists()
