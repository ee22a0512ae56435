"""Calls of a small function: through the API, under one order for many, and beside others.

What is sent at 16 in flight comes from `benchmarks.load`, for XSC and for the
server beside it alike; "Python client" is `xsc.client` in 16 threads.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from benchmarks import beside, load
from benchmarks.size import least
from xsc.base.jobs import JobSpec
from xsc.base.limits import COMPUTE_WAIT_MS
from xsc.client import connect
from xsc.client.calls import Calls
from xsc.client.core import find_place

WASM = Path(__file__).parent.parent / "fixtures" / "wasm"
FLIGHT = 16
HOST = "127.0.0.1"


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def at(values: list[float], share: float) -> float:
    """Return the value below which that share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def shown(rounds: list[load.Run]) -> str:
    """Return the median rate of some rounds, and the processor time of a call."""
    rate = median(len(one.delays) / one.seconds for one in rounds)
    cpu = median(one.cpu_seconds / len(one.delays) for one in rounds)
    slow = median(at(one.delays, 0.99) for one in rounds)
    return f"{rate:6.0f}/s   p99 {slow * 1e3:5.1f} ms   {cpu * 1e6:5.0f} µs of processors a call"


def job(module: bytes, on: str | None, local: bool) -> bytes:
    """Return the body of `POST /v1/jobs` for add(1, 2)."""
    head = json.dumps(
        {
            "mode": "invoke",
            "function": "add",
            "arguments": ["1", "2"],
            "on": on,
            "local": local,
            "module_bytes": len(module),
            "wait_ms": COMPUTE_WAIT_MS,
        }
    ).encode()
    return len(head).to_bytes(4, "big") + head + module


def prepared(home: Path, pids: list[int], body: bytes, count: int, flight: int) -> list[load.Run]:
    """Return three rounds of small requests to the node of a home, after one that warms it up."""
    place = find_place(home)
    raw = load.request(HOST, "/v1/jobs", body, place.token)
    rounds = [
        load.drive((place.host, place.port), [raw], count if index else count // 4, flight, pids)
        for index in range(4)
    ]
    for answer in rounds[-1].answers:
        told = json.loads(answer)
        assert told["results"] == ["3"], told
        assert told["receipt"]
    return rounds[1:]


def run(homes: list[Path], calls: list[Calls], pids: list[int], quick: bool) -> None:
    """Measure, and print."""
    print("\ncompute: add(1, 2), receipts signed and checked")
    path = WASM / "add.wasm"
    module = path.read_bytes()
    name = "node-3"

    def call(on: str | None, local: bool) -> float:
        return seconds(
            lambda: calls[0].job(JobSpec.invoke(module, "add", ["1", "2"], on=on, local=local))
        )

    bare = beside.engine(module, least(2_000, 10))
    print(f"  wasmtime-py in this process: {bare * 1e6:.0f} µs, {1 / bare:.0f}/s")
    other = beside.node_js(str(path), least(2_000 if quick else 6_000, 16))
    server = "none on PATH" if other is None else shown(other)
    print(f"  Node.js HTTP server, 16 in flight         {server}")
    print(f"  cold, with a new lease on a remote node   {call(name, False) * 1e3:.1f} ms")
    watched = [member for pid in pids for member in load.family(pid)]
    count = least(1_000 if quick else 4_000, 64)
    for label, on, local in (("own node", None, True), ("remote", name, False)):
        body = job(module, on, local)
        one = prepared(homes[0], watched, body, count // 8, 1)
        many = prepared(homes[0], watched, body, count, FLIGHT)
        warm = [call(on, local) for _ in range(count // 8)]
        with ThreadPoolExecutor(FLIGHT) as pool:
            rates = [
                count
                / 4
                / seconds(lambda: list(pool.map(lambda _: call(on, local), range(count // 4))))  # noqa: B023
                for _ in range(3)
            ]
        delays = [delay for each in one for delay in each.delays]
        print(
            f"  {label:9s} small requests    warm p50 {at(delays, 0.5) * 1e3:.2f} ms  "
            f"p99 {at(delays, 0.99) * 1e3:.2f} ms\n"
            f"  {label:9s} 16 in flight      {shown(many)}\n"
            f"  {label:9s} Python client     warm p50 {at(warm, 0.5) * 1e3:.2f} ms  "
            f"p99 {at(warm, 0.99) * 1e3:.2f} ms   16 in flight {median(rates):.0f}/s"
        )
    together(homes[0], calls[0], module, name, least(5_000 if quick else 20_000, 100))


def together(home: Path, calls: Calls, module: bytes, name: str, count: int) -> None:
    """Print the rate of many calls under one order, as a batch and as they come."""
    rows = [[str(number), "2"] for number in range(count)]
    lines = "".join(f"{' '.join(row)}\n" for row in rows).encode()

    async def pipelined(on: str | None, local: bool) -> None:
        async with connect(home) as node:
            items = node.invoke_many(module, "add", rows, timeout_ms=120_000, on=on, local=local)
            assert [item.results[0] async for item in items] == [str(n + 2) for n in range(count)]

    for label, on, local in (("own node", None, True), ("remote", name, False)):
        spec = JobSpec.batch(module, "add", lines, timeout_ms=120_000, on=on, local=local)
        batch = [seconds(lambda: calls.job(spec)) for _ in range(3)]  # noqa: B023
        flow = [seconds(lambda: asyncio.run(pipelined(on, local))) for _ in range(3)]  # noqa: B023
        print(
            f"  {label:9s} batch of {count}: {count / median(batch):.0f}/s   "
            f"invoke_many {count / median(flow):.0f}/s"
        )
