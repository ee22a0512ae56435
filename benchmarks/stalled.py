"""Reads and puts while hosts stand still: one pair of an object's six after the other is stopped.

Each pair is stopped with SIGSTOP, read from twice and continued. Printed are the first and the
later reads beside undisturbed ones, from the owner and from a node that knows nothing of the
object; and puts and invokes of which one node is stopped.
"""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from statistics import median

from benchmarks.size import least
from xsc import api
from xsc.base.jobs import JobSpec
from xsc.client.calls import Calls

WASM = Path(__file__).parent.parent / "fixtures" / "wasm"
MB = 1_000_000
SETTLE_S = least(6, 1)
"""Until every node has been probed again."""


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Let processes stand still."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def show(what: str, usual: float, times: Sequence[float]) -> None:
    ordered = sorted(times)
    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    print(
        f"  {what:34} undisturbed {usual:6.2f} s; p50 {ordered[len(ordered) // 2]:6.2f}"
        f"  p99 {p99:6.2f}  worst {ordered[-1]:6.2f}  ({ordered[-1] / usual:.1f} times)"
    )


def read(calls: Calls, capability: str) -> None:
    with calls.open(capability) as download:
        for _block in download.blocks():
            pass


def reads(calls: list[Calls], pids: list[int], size_bytes: int, rounds: int) -> None:
    """Stop pair after pair of the nodes that hold a column, and read meanwhile."""
    data = os.urandom(size_bytes)
    capability = calls[0].put(io.BytesIO(data), name="stalled", size_bytes=size_bytes)["capability"]
    for reader in (0, len(calls) - 1):
        hosts = [index for index in range(1, len(calls)) if index != reader]
        times = range(least(5, 1))
        usual = median([seconds(lambda r=reader: read(calls[r], capability)) for _ in times])  # type: ignore[misc]
        first: list[float] = []
        later: list[float] = []
        for _ in range(rounds):
            for pair in list(combinations(hosts, 2))[: least(None, 1)]:
                with stopped([pids[index] for index in pair]):
                    for found in (first, later):
                        found.append(seconds(lambda r=reader: read(calls[r], capability)))  # type: ignore[misc]
        who = "its owner" if reader == 0 else "another node"
        show(f"{size_bytes // MB} MB by {who}, first reads", usual, first)
        show(f"{size_bytes // MB} MB by {who}, later reads", usual, later)
    calls[0].remove(capability)


def puts(calls: list[Calls], pids: list[int], size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    capabilities = []

    def put() -> None:
        done = calls[0].put(
            io.BytesIO(data), name="stalled", size_bytes=size_bytes, survive="0nodes"
        )
        capabilities.append(done["capability"])

    usual = median([seconds(put) for _ in range(least(3, 1))])
    times = []
    for pid in pids[1 : least(None, 2)]:
        with stopped([pid]):
            times.append(seconds(put))
        time.sleep(SETTLE_S)
    show(f"{size_bytes // MB} MB put, one host stopped", usual, times)
    for capability in capabilities:
        calls[0].remove(capability)


def invokes(calls: list[Calls], pids: list[int], ids: list[str]) -> None:
    module = (WASM / "add.wasm").read_bytes()

    def add() -> str:
        return calls[0].job(JobSpec.invoke(module, "add", ["1", "2"])).provider

    usual = median([seconds(add) for _ in range(least(5, 1))])
    times = []
    for _ in range(least(5, 1)):
        provider = add()
        with stopped([pids[ids.index(provider)]]):
            times.append(seconds(add))
        time.sleep(SETTLE_S)
    show("an invoke, its provider stopped", usual, times)


def run(calls: list[Calls], pids: list[int], quick: bool) -> None:
    """Measure, and print."""
    print("\nstalled: two of an object's hosts stand still (target: 3 MB p99 1 s, 300 MB 2 times)")
    reads(calls, pids, 3 * MB, least(2 if quick else 10, 1))
    reads(calls, pids, least(60 if quick else 300, 6) * MB, 1)
    print("stalled: one node stands still (target: replaced in 2 s)")
    for size_bytes in least((1_000, 3 * MB, 60 * MB), (1_000,)):
        puts(calls, pids, size_bytes)
    invokes(calls, pids, [each.ask(api.status.STATUS)["id"] for each in calls])
