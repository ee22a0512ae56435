"""What the pool and its workers say to each other."""

from __future__ import annotations

import pytest

from tests.unit.compute.programs import i32, job
from xsc.base.errors import RecordInvalid
from xsc.base.limits import ARGUMENTS_MAX
from xsc.compute.wasm.sandbox import SandboxResult
from xsc.compute.worker import frames


def test_jobs_and_results_come_back_as_they_were():
    plain = job("add", "add", i32(1), i32(2), customer=b"c")
    whole = job("add", "go", mode="run", args=("a",), stdin=b"x", files=(("f", b"y"),))
    names = ("module_hash", "mode", "function", "arguments", "limits", "seed", "clock_ms")
    names += ("grants", "args", "environment", "stdin", "files")
    for given in (plain, whole):
        (back,) = frames.jobs_of(frames.jobs_message([given]))
        assert [getattr(back, name) for name in names] == [getattr(given, name) for name in names]
    assert frames.may_call(plain)
    for other in ({"mode": "run"}, {"stdin": b"x"}, {"args": ("a",)}, {"files": (("f", b""),)}):
        assert not frames.may_call(job("add", "add", **other))
    quiet = SandboxResult((i32(3),), None, None, 4, 0, b"", b"", (), "e", bytes(32), 1)
    loud = SandboxResult((), 3, None, 4, 0, b"out", b"err", (("a", b"b"),), "e", bytes(32), 1)
    for told in (quiet, loud):
        assert frames.result_of(frames.result_message(told), plain, "e", bytes(32)) == told


def told(**changed):
    fields = {
        "results": [],
        "code": None,
        "trap": None,
        "used": [1, 1, 1],
        "streams": [b"", b""],
        "files": [],
    }
    return list({**fields, **changed}.values())


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        told(used=[2**62, 0, 0]),
        told(used=[-1, 0, 0]),
        told(used=[1, 2**62, 0]),
        told(used=[1, 1, -1]),
        told(used=[True, 1, 1]),
        told(results=[["i32", 3]]),
        told(results=[["i32", bytes(4)]] * (ARGUMENTS_MAX + 1)),
        told(trap=b"trap"),
        told(code=2**32),
        told(code=-1),
        told(streams=[b"x" * (16 << 20), b"x"]),
        told(files=[["/a", b""]]),
        told(files=[["b", b""], ["a", b""]]),
        told(files=[["a", b""], ["a", b""]]),
    ],
)
def test_a_result_that_says_too_much_is_refused(told):
    with pytest.raises(RecordInvalid):
        frames.result_of({"told": told}, job("add", "add"), "e", bytes(32))
