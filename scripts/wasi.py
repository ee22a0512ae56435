"""The preview 1 part of wasi-testsuite, on our own preview 1.

    make wasi WASI_TESTSUITE=DIR   DIR: a checkout of github.com/WebAssembly/wasi-testsuite
                                   at a branch with built tests (prod/testsuite-base)

The tests want one empty writable directory "/", or none, where a job's has /in, /out and
/tmp: that alone is different here.
Exit code 0: all passed; 1: one did not, and is named; 2: no test was run.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from xsc.base.limits import FUEL_MAX
from xsc.compute.wasm.engine import Machine
from xsc.compute.wasm.files import Directory
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.sandbox import Job
from xsc.compute.wasm.wasi import OpenFile, Wasi


class Rooted(Wasi):
    """The world of a job, but for one writable directory "/"."""

    def __init__(self, *args: Any, files: dict[str, bytes], **others: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **others)
        root = self._tree.outputs
        for path, data in files.items():
            self._put(root, path, data)
        self._fds[3] = OpenFile(root, preopen=b"/")
        del self._fds[4], self._fds[5]

    def _put(self, root: Directory, path: str, data: bytes) -> None:
        *above, _ = path.split("/")
        for depth in range(len(above)):
            folder = "/".join(above[: depth + 1])
            if not self._has(root, folder):
                self._tree.make_directory(root, folder.encode(), self._now_ns)
        if not path.endswith("/"):
            file = self._tree.create(root, path.encode(), self._now_ns)
            self._tree.write(file, 0, data, self._now_ns)

    def _has(self, root: Directory, path: str) -> bool:
        node = root
        for part in path.split("/"):
            found = node.entries.get(part)
            if not isinstance(found, Directory):
                return False
            node = found
        return True


class Bare(Wasi):
    """The world of a job, but for no directory at all."""

    def __init__(self, *args: Any, **others: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **others)
        del self._fds[3], self._fds[4], self._fds[5]


def content(root: Path) -> dict[str, bytes]:
    """Return the files below a directory, and its directories with a slash at their end."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        found[name + "/" * path.is_dir()] = b"" if path.is_dir() else path.read_bytes()
    return found


def wanted_of(description: dict[str, Any]) -> dict[str, Any]:
    """Return args, env, root, and how it must end, of either form of a description."""
    wanted = {"args": [], "env": {}, "root": None, "exit_code": 0, **description}
    for step in description.get("operations", []):
        match step["type"]:
            case "run":
                wanted |= {key: value for key, value in step.items() if key != "type"}
            case "read":
                wanted[step.get("id", "stdout")] = step["payload"]
            case "wait":
                wanted["exit_code"] = step.get("exit_code", 0)
            case other:
                raise ValueError(f"what a step '{other}' means is not known here")
    return wanted


def failure(path: Path) -> str | None:
    """Run a test, and say what is not as it should be."""
    described = path.with_suffix(".json")
    wanted = wanted_of(json.loads(described.read_text()) if described.exists() else {})
    module = path.read_bytes()
    files = content(path.parent / wanted["root"]) if wanted["root"] else {}
    machine = Machine(Rooted if wanted["root"] else Bare)
    job = Job(
        hashlib.sha256(module).digest(),
        module,
        "run",
        args=tuple(wanted["args"]),
        environment=tuple(wanted["env"].items()),
        files=tuple(files.items()),
        limits=Limits(fuel=FUEL_MAX, timeout_ms=60_000),
    )
    done = machine.run(job)
    machine.close()
    if done.trap is not None or done.exit_code != wanted["exit_code"]:
        said = done.stderr.decode(errors="replace").strip().replace("\n", " | ")
        return f"it ended with {done.trap or done.exit_code}: {said[-300:]}"
    for name in ("stdout", "stderr"):
        if name in wanted and getattr(done, name).decode(errors="replace") != wanted[name]:
            return f"its {name} is {getattr(done, name)[:80]!r}"
    return None


def main(arguments: list[str]) -> int:
    """Run, print what came of it, and return the exit code."""
    tests = sorted(Path(arguments[0]).glob("tests/*/testsuite/wasm32-wasip1/*.wasm"))
    if len(arguments) != 1 or not tests:
        print("usage: make wasi WASI_TESTSUITE=DIR, a checkout that holds built tests")
        return 2
    failed = 0
    for path in tests:
        if (why := failure(path)) is not None:
            failed += 1
            print(f"failed   {path.stem}: {why}")
    print(f"{len(tests) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
