"""Requests for a service: at its owner's node and at a peer, beside the program alone.

What is sent comes from `benchmarks.load`. Each node of the devnet has one sandbox worker.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from benchmarks import load
from benchmarks.invoke import at, shown
from benchmarks.size import least
from xsc import api
from xsc.client.calls import Calls
from xsc.compute.wasm.engine import Machine
from xsc.compute.wasm.sandbox import Job

WASM = Path(__file__).parent.parent / "fixtures" / "wasm"
FLIGHT = 16


def alone(module: bytes, count: int) -> float:
    """Return the seconds of one warm run of the program in this process, without a request."""
    machine = Machine()
    job = Job(hashlib.sha256(module).digest(), module, mode="run")
    took = []
    for _ in range(count):
        begun = time.perf_counter()
        assert machine.run(job).exit_code == 0
        took.append(time.perf_counter() - begun)
    machine.close()
    return median(took[count // 4 :])


def run(calls: list[Calls], pids: list[int], quick: bool) -> None:
    """Measure, and print."""
    print("\nservices: greet.wasm (C, 24 kB), a fresh instance for each request")
    module = (WASM / "greet.wasm").read_bytes()
    count = least(200 if quick else 1_000, 32)
    print(f"  the program alone in this process   {alone(module, count) * 1e3:6.2f} ms")
    for label, on in (("at its owner's node", None), ("at a peer, receipts signed", "node-1")):
        name = "greet" if on is None else "greet-there"
        url = calls[0].deploy(module, name, concurrency=FLIGHT, on=on, fuel=100_000_000)["url"]
        place = urlsplit(url)
        assert place.hostname is not None
        assert place.port is not None
        raw = load.request(f"{place.hostname}:{place.port}", place.path, b"hello")
        where = (place.hostname, place.port)
        load.drive(where, [raw], count // 4, FLIGHT, pids)
        one = load.drive(where, [raw], count, 1, pids)
        assert set(one.answers) == {b"Hello, world!\nHELLO"}
        many = [load.drive(where, [raw], count, FLIGHT, pids) for _ in range(3)]
        print(
            f"  {label:34s}  p50 {at(one.delays, 0.5) * 1e3:6.2f} ms  "
            f"p99 {at(one.delays, 0.99) * 1e3:6.2f} ms one at a time"
        )
        print(f"  {'':34s}  {shown(many)}, {FLIGHT} in flight")
        calls[0].ask(api.services.UNDEPLOY, name=name)
