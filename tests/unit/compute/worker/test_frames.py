"""What the pool and its workers say of quick calls."""

from __future__ import annotations

import pytest

from tests.unit.compute.programs import i32, job
from xsc.base.errors import RecordInvalid
from xsc.base.limits import ARGUMENTS_MAX
from xsc.compute.wasm.sandbox import SandboxResult
from xsc.compute.worker import frames


def test_calls_and_answers_come_back_as_they_were():
    plain = job("add", "add", i32(1), i32(2), customer=b"c")
    (back,) = frames.calls_of(frames.calls_message([plain]))
    named = ("module_hash", "mode", "function", "arguments", "limits", "seed", "clock_ms", "grants")
    assert [getattr(back, name) for name in named] == [getattr(plain, name) for name in named]
    assert frames.may_call(plain)
    for other in ({"mode": "run"}, {"stdin": b"x"}, {"args": ("a",)}, {"files": (("f", b""),)}):
        assert not frames.may_call(job("add", "add", **other))
    quiet = SandboxResult((i32(3),), None, None, 4, 0, b"", b"", (), "e", bytes(32), 1)
    told = frames.answer_message(quiet)
    assert frames.result_of_answer(told, plain, "e", bytes(32)) == quiet
    loud = SandboxResult((), None, None, 4, 0, b"out", b"", (), "e", bytes(32), 1)
    assert frames.answer_message(loud) == frames.result_message(loud)
    assert frames.result_of(frames.result_message(loud), plain) == loud


@pytest.mark.parametrize(
    "told",
    [
        None,
        [],
        [[], None, 2**62, 0, 0],
        [[], None, -1, 0, 0],
        [[], None, 1, 2**62, 0],
        [[], None, 1, 1, -1],
        [[["i32", 3]], None, 1, 1, 1],
        [[["i32", bytes(4)]] * (ARGUMENTS_MAX + 1), None, 1, 1, 1],
        [[], b"trap", 1, 1, 1],
    ],
)
def test_an_answer_that_says_too_much_is_refused(told):
    with pytest.raises(RecordInvalid):
        frames.result_of_answer({"told": told}, job("add", "add"), "e", bytes(32))
