"""Small objects: how many are stored a second, and what each costs the processors.

"small requests" come prepared from `benchmarks.load`; "Python client" is
`xsc.client` in threads, whose own processor time is then part of the figure.
Puts are compared by their processor time: rates depend on what else runs.
"""

from __future__ import annotations

import io
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from benchmarks import load
from benchmarks.size import least
from xsc.base.limits import KIB
from xsc.client.calls import Calls
from xsc.client.core import find_place

HOST = "127.0.0.1"
ROUNDS = least(3, 1)


def at(values: list[float], share: float) -> float:
    """Return the value below which that share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def prepared(home: Path, pids: list[int], count: int, flight: int) -> list[load.Run]:
    """Return rounds of prepared requests to the node of a home; each puts objects of its own."""
    place = find_place(home)
    rounds = []
    for number in range(ROUNDS):
        raws = [
            load.request(
                HOST,
                "/v1/objects",
                os.urandom(KIB),
                place.token,
                [("XSC-Name", f"p{flight}-{number}-{index}"), ("XSC-Size", str(KIB))],
            )
            for index in range(count)
        ]
        rounds.append(load.drive((place.host, place.port), raws, count, flight, pids))
    for answer in rounds[-1].answers:
        assert len(json.loads(answer)["hosts"]) == 6, answer
    return rounds


def client(calls: Calls, pids: list[int], count: int, flight: int) -> list[load.Run]:
    """Return rounds of puts by the Python client, in as many threads as are in flight."""

    def one(index: int) -> float:
        begun = time.perf_counter()
        calls.put(io.BytesIO(os.urandom(KIB)), name=f"s{flight}-{index}", size_bytes=KIB)
        return time.perf_counter() - begun

    rounds = []
    with ThreadPoolExecutor(flight) as pool:
        for _ in range(ROUNDS):
            before, own, begun = load.cpu_of(pids), time.process_time(), time.perf_counter()
            delays = list(pool.map(one, range(count)))
            took, own = time.perf_counter() - begun, time.process_time() - own
            spent = {pid: used - before[pid] for pid, used in load.cpu_of(pids).items()}
            rounds.append(load.Run(took, spent, own, delays, []))
    return rounds


def shown(rounds: list[load.Run], own: int) -> str:
    """Return medians of the rounds: rate, delays, and the processor time of a put by place."""
    rate = median(len(one.delays) / one.seconds for one in rounds)
    delays = [delay for one in rounds for delay in one.delays]

    def each(seconds: list[float]) -> float:
        return median(
            spent / len(one.delays) * 1e3 for spent, one in zip(seconds, rounds, strict=True)
        )

    sender = each([one.own_cpu for one in rounds])
    node = each([one.cpu_of[own] for one in rounds])
    hosts = each([sum(one.cpu_of.values()) - one.cpu_of[own] for one in rounds])
    return (
        f"{rate:5.0f} puts/s   p50 {at(delays, 0.5) * 1e3:5.1f} ms  p99 "
        f"{at(delays, 0.99) * 1e3:5.1f} ms   processors a put: sender {sender:.2f}, own node "
        f"{node:.2f}, hosts {hosts:.2f}, together {sender + node + hosts:.2f} ms"
    )


def run(home: Path, calls: Calls, pids: list[int], quick: bool) -> None:
    """Measure, and print. The first process is the one that is asked to put."""
    print("\nsmall objects: 1 KiB, durable on six nodes when acknowledged")
    prepared(home, pids, least(50, 16), 16)  # the first of all take the leases
    for flight in (1, 16):
        count = (100 if quick else 300) if flight == 1 else (400 if quick else 1500)
        count = least(count, flight)
        for label, rounds in (
            ("small requests", prepared(home, pids, count, flight)),
            ("Python client", client(calls, pids, count, flight)),
        ):
            print(f"  {flight:2d} in flight   {label:14s} {shown(rounds, pids[0])}")
