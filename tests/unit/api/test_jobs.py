"""The documents of jobs have the fields that the reference names, and are read back whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xsc.api.endpoint import written
from xsc.api.jobs import RUN, Job, read_result, request_of, result_of
from xsc.api.serial import document, to_text
from xsc.base.errors import ArgumentInvalid, FuelExhausted, SpaceExhausted
from xsc.base.jobs import JobItem, JobResult, JobSpec, StoredOutput, Verification
from xsc.node.api.serving import parse

COMMON = {
    "fuel_used": 4,
    "memory_peak_bytes": 65_536,
    "wall_ms": 1,
    "provider": "p",
    "receipt": b"receipt",
    "saved_bytes": 0,
    "compiled_bytes": 7,
}
ADDED = JobResult(mode="invoke", results=("3",), **COMMON)
TRAP = FuelExhausted("all of it", hint="more")
AGREED = Verification(2, 3, ("a", "b"), ("c",), (), (), (b"1", b"2"), ("e",))
STORED = StoredOutput("p", "n/p", "xsc:r:1", 3, None)
REFUSED = StoredOutput("q", "n/q", "", 3, SpaceExhausted("full"))
RAN = JobResult(mode="run", exit_code=3, stdout=b"o", stderr=b"e", files={"p": b"1"}, **COMMON)


@pytest.mark.parametrize("trap", [None, TRAP])
def test_an_invocation(trap):
    assert document(result_of(replace(ADDED, trap=trap))) == {
        "results": ["3"],
        "fuel_used": 4,
        "memory_peak_bytes": 65_536,
        "wall_ms": 1,
        "provider": "p",
        "trap": trap and {"code": "fuel_exhausted", "detail": "all of it", "hint": "more"},
        "receipt": "cmVjZWlwdA==",
        "saved_bytes": 0,
        "compiled_bytes": 7,
    }


@pytest.mark.parametrize(
    "done",
    [
        ADDED,
        replace(ADDED, trap=TRAP, results=()),
        replace(ADDED, verification=AGREED),
        RAN,
        replace(RAN, objects=(STORED, REFUSED)),
        replace(RAN, objects=(), exit_code=None, trap=TRAP),
        JobResult(
            mode="batch",
            items=(JobItem(("1",), 2, None, b"receipt"), JobItem((), 2, TRAP, b"receipt")),
            **COMMON,
        ),
    ],
)
def test_a_document_is_read_back(done):
    told = document(result_of(done))
    again = read_result(done.mode, told)
    assert document(result_of(again)) == told
    assert (again.verification, again.receipt) == (done.verification, done.receipt)
    assert [item.receipt for item in again.items] == [item.receipt for item in done.items]


@pytest.mark.parametrize(
    "spec",
    [
        JobSpec.invoke(b"m", "f"),
        JobSpec.invoke(b"m", "f", ["1"], fuel=9, on="bob", grants=("clock",)),
        JobSpec.invoke(b"m", "f", local=True, memory_bytes=1, timeout_ms=2),
        JobSpec.batch(b"m", "f", b"1\n2\n", 5, fuel=9),
        JobSpec.run(b"m", ["a"], {"K": "V"}, b"in", {"n": "cap"}, "out/", verify="2of3"),
    ],
)
def test_a_request_is_the_job(spec):
    path, headers, told = written(RUN, Job(**request_of(spec, None, len(spec.module))))
    assert (path, headers) == ("/v1/jobs", {})
    asked = parse(to_text(told).encode(), Job)
    assert (asked.module, asked.module_bytes, asked.stdin_bytes) == (None, 1, len(spec.stdin))
    assert asked.spec(spec.module, spec.stdin) == spec


def test_a_module_is_named_or_brought():
    named = Job(**request_of(JobSpec.invoke(b"m", "f"), "00" * 32, 0))
    assert written(RUN, named)[2] == {
        "mode": "invoke",
        "function": "f",
        "module": "00" * 32,
        "module_bytes": 0,
    }


@pytest.mark.parametrize(
    "how",
    [
        {"on": "bob", "local": True},
        {"verify": "2of3", "on": "bob"},
        {"verify": "2of3", "local": True},
        {"verify": "2of3", "grants": ("clock",)},
    ],
)
def test_options_that_exclude_each_other_are_refused(how):
    with pytest.raises(ArgumentInvalid):
        JobSpec.invoke(b"m", "f", **how)


def test_a_batch_is_not_verified_and_a_function_leaves_no_files():
    with pytest.raises(ArgumentInvalid):
        JobSpec.batch(b"m", "f", b"", verify="2of3")
    with pytest.raises(ArgumentInvalid):
        JobSpec("invoke", b"m", store="out/")
