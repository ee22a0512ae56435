"""Jobs in this process, without a node."""

from __future__ import annotations

import pytest

from tests.unit.compute.programs import wasm
from xsc.base.errors import FuelExhausted
from xsc.base.jobs import JobSpec
from xsc.node.offline.compute import run_here


@pytest.mark.parametrize("local", [False, True])
def test_a_job_needs_no_node_and_no_option(local):
    done = run_here(JobSpec.invoke(wasm("add"), "add", ["1", "2"], local=local))
    assert (done.results, done.trap) == (("3",), None)


def test_what_a_program_writes_is_shown_and_not_returned():
    shown = []
    done = run_here(
        JobSpec.run(wasm("wordcount"), stdin=b"a b\n"), lambda *each: shown.append(each)
    )
    assert b"".join(data for _, data in shown) == b"1 2 4\n"
    assert (done.exit_code, done.stdout) == (0, b"")


def test_a_limit_that_ended_it_is_its_trap():
    done = run_here(JobSpec.invoke(wasm("endless"), "spin", fuel=1_000))
    assert isinstance(done.trap, FuelExhausted)
