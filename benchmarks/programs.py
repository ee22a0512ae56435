"""Programs: what slots, frames, provenance and `why` take, and how soon an output is published.

All but the last two rows are of one node's programs in this process, on LevelDB, without the rest
of a node. From a change to its output is of real nodes and the Python client, beside the same
change seen by a watcher of its own path. All times but those, and that of a module's export, are
of the processor.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.size import least
from benchmarks.space import ROUNDS, Watcher, alone, anonymous_kib
from xsc import api
from xsc.base.errors import NotFound
from xsc.base.limits import KIB
from xsc.base.log import SilentLog
from xsc.client.calls import Calls
from xsc.compute.jobs.runner import JobRunner
from xsc.compute.worker.pool import PoolSandbox
from xsc.db.leveldb import LevelDBKeyValue
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.identity.keys import KeyPair, network_id
from xsc.node.programs import Exports
from xsc.node.system import SystemClock, SystemEntropy, ThreadExecutor
from xsc.programs.compile import CompiledProgram, compile_program
from xsc.programs.document import ModuleCall, parse, resolve
from xsc.programs.frame import Call, Execution, Fault
from xsc.programs.functions import Functions
from xsc.programs.numbers import to_number
from xsc.programs.provenance import Recorder
from xsc.programs.running import Ports
from xsc.programs.service import ComputeRuntimeManager
from xsc.programs.values import SlotMeta, ValueStore
from xsc.programs.why import Why, steps_of
from xsc.space.record import Entry
from xsc.space.store import SpaceStore
from xsc.terms.execution import Number

NETWORK = network_id("benchmark")
WASM = Path(__file__).parent.parent / "fixtures" / "wasm"
KEY = KeyPair(b"k" * 32)
SLOTS = least(1_000, 100)
RULES = least(100, 10)
LINKS = least(1_000, 20)
IDLE = least(50, 2)
IDLE_S = least(5, 1)


def chain(count: int, name: str = "chain", function: object = "math.add") -> bytes:
    """Return a program that adds one so many times, one computation after the other."""
    variables: dict[str, Any] = {
        "v0": {"kind": "subscription", "type": "i32", "path": f"bench/{name}", "default": 0},
        "one": {"kind": "value", "type": "i32", "value": 1},
    }
    computations: dict[str, Any] = {}
    for at in range(count):
        last = at == count - 1
        output: dict[str, Any] = {"path": f"bench/{name}-out"} if last else {"memory": True}
        if isinstance(function, dict):
            output |= {"type": "i32", "result": 0}
        computations[f"c{at:04}"] = {
            "function": function,
            "inputs": {"x": f"v{at}", "y": "one"},
            "outputs": {f"o{at}": output},
        }
        if not last:
            variables[f"v{at + 1}"] = {
                "kind": "derived",
                "computation": f"c{at:04}",
                "output": f"o{at}",
            }
    return json.dumps(
        {"id": name, "debounce_ms": 0, "variables": variables, "computations": computations}
    ).encode()


def compiled(count: int) -> CompiledProgram:
    return compile_program(resolve(parse(chain(count), "json"), {}, {}), Functions())


def cpu_ms(work: Callable[[], object], count: int) -> float:
    """Return the median processor time of a call."""
    found = []
    for _ in range(count):
        begun = time.process_time_ns()
        work()
        found.append(time.process_time_ns() - begun)
    return median(found) / 1e6


def slots() -> None:
    store = ValueStore([SlotMeta(slot, "f64", slot) for slot in range(SLOTS)])

    def turn() -> None:
        store.clear()
        for slot in range(SLOTS):
            store.write(slot, 1.5)
        for slot in range(SLOTS):
            store.read(slot)

    print(f"  1,000 writes and reads of slots      {cpu_ms(turn, 200):.3f} ms")


def frames() -> None:
    running = Execution.begin(compiled(RULES))
    values = iter(range(10**9))
    took = cpu_ms(lambda: running.run({"v0": next(values)}), 200)
    print(f"  a frame of {RULES} rules               {took:.2f} ms")


class Host:
    """What programs need of a node that has no peers and no sandbox."""

    def __init__(self, folder: Path, executor: ThreadExecutor) -> None:
        self.db, clock = LevelDBKeyValue(folder / "space"), SystemClock()
        nothing: Any = None
        given = (clock, nothing, executor, nothing, SilentLog(), MemoryKeyValue(), nothing)
        context = Context(KEY, NETWORK, *given)
        self.store = SpaceStore(self.db, context)
        self.space = self.store
        self.recorder = Recorder(self.space, KEY, NETWORK)
        self.tasks: list[asyncio.Task[None]] = []
        ports = Ports(context, self.space, self, self.find, self, self.recorder)
        self.manager = ComputeRuntimeManager(ports, start=self.start, functions=Functions())

    def start(self, name: str, loop: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(loop(), name=name))  # type: ignore[arg-type]
        return self.tasks[-1]

    def find(self, name: str) -> bytes:
        raise NotFound(name)

    def watch(self, owner: bytes, prefix: str) -> None:
        del owner, prefix

    unwatch = watch

    async def read(self, owner: bytes, path: str) -> Entry:
        return self.space.get(path, owner)

    async def call(self, module: bytes, call: Call) -> tuple[tuple[Number, ...] | Fault, bytes]:
        del module
        raise NotFound(call.computation)


@asynccontextmanager
async def host() -> AsyncIterator[Host]:
    executor, folder = ThreadExecutor(2), Path(tempfile.mkdtemp(prefix="xsc-programs-"))
    made = Host(folder, executor)
    try:
        yield made
    finally:
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)
        await made.store.close()
        made.db.close()
        executor.close()
        shutil.rmtree(folder)


async def recorded(count: int, rounds: int) -> float:
    """Return the processor time of a record in ms, of frames with so many records."""
    program = compiled(count)
    running, found = Execution.begin(program), []
    async with host() as made:
        for value in range(rounds):
            result = running.run({"v0": value})
            begun = time.process_time_ns()
            made.recorder.record(program, result, {}, {})
            found.append((time.process_time_ns() - begun) / count)
    return median(found) / 1e6


async def published(rounds: int) -> tuple[float, float, float]:
    """Return ms from a change to its output, of the processor for it, and of two puts alone."""
    async with host() as made:
        told = asyncio.Event()
        made.space.on_change(lambda change: told.set() if change.path.endswith("-out") else None)
        await made.manager.start(chain(1), "json")
        await told.wait()
        walls, cpus, puts = [], [], []
        for value in range(1, rounds + 1):
            told.clear()
            begun, spent = time.perf_counter(), time.process_time()
            await made.space.put("bench/chain", b"%d" % value)
            await told.wait()
            walls.append(time.perf_counter() - begun)
            cpus.append(time.process_time() - spent)
            await asyncio.sleep(0.001)
            begun = time.perf_counter()
            await made.space.put("bench/alone", b"%d" % value)
            await made.space.put("bench/alone", b"%d" % -value)
            puts.append(time.perf_counter() - begun)
    return median(walls) * 1e3, median(cpus) * 1e3, median(puts) * 1e3


async def followed() -> tuple[float, int]:
    """Return the processor time in seconds of `why` over a chain, and its records."""
    async with host() as made:
        told = asyncio.Event()
        made.space.on_change(lambda change: told.set() if change.path.endswith("-out") else None)
        await made.manager.start(chain(LINKS), "json")
        await told.wait()
        begun = time.process_time()
        root = await Why(made.read, NETWORK).walk(KEY.node_id, "bench/chain-out")
        took = time.process_time() - begun
        assert root.verified
        return took, sum(1 for step in steps_of(root) if step.signed)


async def idle() -> tuple[float, int]:
    """Return the share of a core that programs take which wait, and their memory in KiB."""
    async with host() as made:
        await made.manager.start(chain(3, "first"), "json")
        await asyncio.sleep(0.5)
        before = anonymous_kib()
        for number in range(IDLE):
            await made.manager.start(chain(3, f"p{number}"), "json")
        await asyncio.sleep(0.5)
        grown = anonymous_kib() - before
        spent = time.process_time()
        await asyncio.sleep(IDLE_S)
        return (time.process_time() - spent) / IDLE_S, grown


async def exported(rounds: int) -> float:
    """Return ms from a call of a module's export to its results and signed receipt."""
    executor, clock, log = ThreadExecutor(1), SystemClock(), SilentLog()
    pool = PoolSandbox(1, clock, log)
    nothing: Any = None
    ports = (clock, SystemEntropy(), executor, nothing, log, nothing, nothing)
    runner = JobRunner(Context(KEY, NETWORK, *ports), pool)
    module, sandbox, found = (WASM / "add.wasm").read_bytes(), Exports(runner), []
    call = ModuleCall(hashlib.sha256(module).digest(), "add")
    await pool.start()
    try:
        for value in range(rounds):
            numbers = to_number("i32", value), to_number("i32", 1)
            begun = time.perf_counter()
            results, _ = await sandbox.call(module, Call("add", call, numbers))
            found.append(time.perf_counter() - begun)
            assert results == (to_number("i32", value + 1),)
    finally:
        await pool.stop()
        executor.close()
    return median(found) * 1e3


def soon(homes: Sequence[Path], quick: bool) -> None:
    core, count = Calls(homes[0]), least(50 if quick else 200, 6)
    add = {"add.wasm": (WASM / "add.wasm").read_bytes()}
    call = {"module": "add.wasm", "export": "add"}
    hashes = [
        core.register(chain(1, "rule"), "json", {}, activate=True)["hash"],
        core.register(chain(1, "module", call), "json", add, activate=True)["hash"],
    ]
    values = itertools.count(1)

    def delays(path: str, watcher: Watcher, more: int, rounds: int) -> list[float]:
        found = []
        for value in itertools.islice(values, rounds):
            begun = time.perf_counter()
            core.ask(api.space.PUT, b"%d" % value, at=path)
            found.append(watcher.wait(str(value + more)) - begun)
        return found

    # More would be over the rate at which a program may publish.
    places = [("bench/alone", "", 0), ("bench/rule", "-out", 1), ("bench/module", "-out", 1)]
    rounds: list[list[float]] = [[] for _ in places]
    for path, _, _ in places:
        core.ask(api.space.PUT, b"0", at=path)
    for _ in range(ROUNDS):
        for found, (path, end, more) in zip(rounds, places, strict=True):
            watcher = Watcher(homes[0], path + end)
            try:
                delays(path, watcher, more, 5)
                found.extend(delays(path, watcher, more, count // ROUNDS))
            finally:
                watcher.close()
    own, rule, module = (median(found) * 1e3 for found in rounds)
    print(
        f"  from a change to its output, p50     {rule:.2f} ms of a rule, {module:.2f} ms of a "
        f"module's export, {own:.2f} ms until the change alone is seen"
    )
    for program in hashes:
        core.ask(api.programs.DEACTIVATE, hash=program)


def run(homes: Sequence[Path], quick: bool) -> None:
    """Measure, and print."""
    print("\nprograms: values that depend on values")
    slots()
    frames()
    one, many = (
        asyncio.run(recorded(count, least(30 if quick else 100, 3))) for count in (1, RULES)
    )
    print(f"  a record of provenance               {one:.3f} ms, {many:.3f} ms of {RULES} at once")
    wall, spent, puts = asyncio.run(published(least(50 if quick else 400, 5)))
    print(
        f"  from a change to its output, p50     {wall:.2f} ms ({spent:.2f} ms of the processor); "
        f"two puts alone {puts:.2f} ms"
    )
    print(f"  a module's export in a frame, p50    {asyncio.run(exported(least(400, 10))):.2f} ms")
    took, records = asyncio.run(followed())
    print(f"  why over {records:,} records              {took:.2f} s")
    share, grown = alone(idle)
    print(f"  {IDLE} programs that wait               {share:.2%} of a core, {grown / KIB:.1f} MiB")
    soon(homes, quick)
