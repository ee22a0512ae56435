from __future__ import annotations

import threading

import pytest

from tests.unit.compute.programs import i32, job, job_of, wasm
from xsc.base.errors import ExportUnknown
from xsc.base.limits import FUEL_MAX
from xsc.compute.wasm.engine import ENGINE_CONFIG, MODULES_COMPILED_MAX, Machine


@pytest.fixture
def machine():
    made = Machine()
    yield made
    made.close()


def variant(number):
    return wasm("add") + b"\x00\x03\x01" + number.to_bytes(2, "little")


def test_compiled_modules_are_bounded_in_number(machine):
    for number in range(MODULES_COMPILED_MAX + 3):
        machine.run(job_of(variant(number), "add", i32(1), i32(2)))
    assert len(machine._modules) == MODULES_COMPILED_MAX
    assert not machine.has(job_of(variant(2), "add").module_hash)
    assert machine.has(job_of(variant(3), "add").module_hash)


def test_compiled_modules_are_bounded_in_size(machine, monkeypatch):
    monkeypatch.setattr(machine._modules, "_size_max", 3 * len(variant(0)))
    for number in range(5):
        machine.run(job_of(variant(number), "add", i32(1), i32(2)))
    assert len(machine._modules) == 3
    large = wasm("wordcount")
    with pytest.raises(ExportUnknown):
        machine.run(job_of(large, "add"))
    assert len(machine._modules) == 1


def test_a_deadline_ends_its_own_job_and_no_later_one(machine):
    for _ in range(5):
        ended = machine.run(job("endless", "spin", fuel=FUEL_MAX, timeout_ms=5))
        assert ended.trap == "time_exceeded"
        assert machine.run(job("fib", "fib", i32(15))).results == (i32(610),)


def test_a_nearer_deadline_is_met_after_a_farther_one(machine):
    machine.run(job("add", "add", i32(1), i32(2), timeout_ms=600_000))
    assert machine.run(job("endless", "spin", fuel=FUEL_MAX, timeout_ms=5)).trap == "time_exceeded"


def test_jobs_of_several_threads_do_not_mix(machine):
    found = {}

    def work(name, given):
        found[name] = [machine.run(given) for _ in range(50)]

    jobs = {
        "add": job("add", "add", i32(1), i32(2)),
        "trap": job("trap", "divide", i32(1), i32(0)),
        "exit": job("exit3", "_start", mode="run"),
        "chance": job("chance", "_start", mode="run"),
    }
    threads = [threading.Thread(target=work, args=each) for each in jobs.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {result.results for result in found["add"]} == {(i32(3),)}
    assert {result.trap for result in found["trap"]} == {"module_trapped: integer division by zero"}
    assert {(result.exit_code, result.stderr) for result in found["exit"]} == {(3, b"three\n")}
    assert len({result.stdout for result in found["chance"]}) == 1


def test_the_configuration_has_a_hash():
    assert len(ENGINE_CONFIG) == 32
