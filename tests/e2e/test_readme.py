"""The README's transcript, run as it stands: `…` stands for anything."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

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


def test_the_transcript_on_the_first_screen_is_true(tmp_path):
    for name in ("add", "endless", "greet"):
        shutil.copy(ROOT / "fixtures" / "wasm" / f"{name}.wasm", tmp_path)
    (tmp_path / "photo.jpg").write_bytes(os.urandom(3_000_000))
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
    }
    found = steps()
    assert len(found) > 8
    try:
        for command, expected in found:
            if command.startswith("export "):
                name, value = command.removeprefix("export ").split("=")
                environment[name] = value
                continue
            if command.startswith("curl ") and shutil.which("curl") is None:
                continue
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=120,
            )
            assert matches(done.stdout, expected), f"$ {command}\n{done.stdout}"
    finally:
        subprocess.run(
            [sys.executable, "-m", "xsc", "devnet", "down", "--dir", "net"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=False,
        )
