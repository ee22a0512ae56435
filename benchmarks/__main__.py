"""Runs every benchmark on one fresh devnet of seven nodes, and prints ratios.

    python -m benchmarks [--quick] [WORD ...]

The words are storage, small, compute, services, start, memory, stalled, space, programs, market
and screens, which share the network, and disk, hung, inside, health and ledger, which need none.
Without a word all are run.

BENCH_SMOKE=1 makes the shortest round that runs every line; its figures mean nothing.

Each figure is the median of at least three; rates are MB (10^6 bytes of user
data) a second. The limits are measured in the same run on the same machine.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    disk,
    health,
    hung,
    inside,
    invoke,
    ledger,
    limit,
    market,
    pipe,
    programs,
    screens,
    services,
    small,
    space,
    stalled,
)
from benchmarks.size import SMOKE, least
from xsc.base.limits import MIB
from xsc.client.calls import Calls

WASM = Path(__file__).parent.parent / "fixtures" / "wasm"
NODES = 7
PARTS = (
    "storage",
    "small",
    "compute",
    "services",
    "start",
    "memory",
    "stalled",
    "space",
    "programs",
    "market",
    "screens",
)
ALONE = {
    "disk": disk.run,
    "hung": hung.run,
    "inside": inside.run,
    "health": health.run,
    "ledger": ledger.run,
}
"""Parts that need no network."""


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def median(values: list[float]) -> float:
    return statistics.median(values)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def xsc(*words: str, home: Path | None = None) -> str:
    place = [] if home is None else ["--home", str(home)]
    done = subprocess.run(
        [sys.executable, "-m", "xsc", *place, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def anonymous_mib(pid: int) -> int:
    """Return RssAnon of a process now; mapped LevelDB tables do not count."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) // 1024
    return 0


class Network:
    """A devnet and the calls of its nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        xsc("devnet", "up", "--nodes", str(NODES), "--dir", str(folder))
        self.homes = [folder / f"node-{index}" for index in range(NODES)]
        self.calls = [Calls(home) for home in self.homes]

    def pids(self) -> list[int]:
        return [int((home / "node.pid").read_text()) for home in self.homes]

    def stop(self) -> None:
        xsc("devnet", "down", "--dir", str(self.folder))
        shutil.rmtree(self.folder, ignore_errors=True)


def storage(net: Network, quick: bool) -> None:
    print("\nstorage: one object through the API of one node, read at another node")
    put_limit, get_limit = limit.measure(least(256, 8) * MIB)
    print(
        f"  limit in one process            put {put_limit:6.0f} MB/s   get {get_limit:6.0f} MB/s"
    )
    sizes = [MIB, least(64, 8) * MIB]
    if not quick:
        sizes.append(512 * MIB)
    for size in sizes:
        data = os.urandom(size)
        puts, gets, caps = [], [], []
        for _ in range(least(3, 1)):
            box: dict[str, str] = {}

            def put(box: dict[str, str] = box, data: bytes = data) -> None:
                box.update(net.calls[0].put(io.BytesIO(data), name="bench", size_bytes=len(data)))

            puts.append(size / 1e6 / seconds(put))
            capability = box["capability"]

            def get(capability: str = capability) -> None:
                with net.calls[3].open(capability) as download:
                    for _block in download.blocks():
                        pass

            gets.append(size / 1e6 / seconds(get))
            caps.append(capability)
        for capability in caps:
            net.calls[0].remove(capability)
        print(
            f"  {size // MIB:4d} MiB                        put {median(puts):6.1f} MB/s "
            f"({median(puts) / put_limit:.2f} of the limit)   get {median(gets):6.1f} MB/s "
            f"({median(gets) / get_limit:.2f} of the limit)"
        )


def little(net: Network, quick: bool) -> None:
    small.run(net.homes[0], net.calls[0], net.pids(), quick)


def compute(net: Network, quick: bool) -> None:
    invoke.run(net.homes, net.calls, net.pids(), quick)


def served(net: Network, quick: bool) -> None:
    services.run(net.calls, net.pids(), quick)


def shared(net: Network, quick: bool) -> None:
    space.run(net.homes, quick)


def depending(net: Network, quick: bool) -> None:
    programs.run(net.homes, quick)


def dividing(net: Network, quick: bool) -> None:
    market.run(net.homes, quick)


def watched(net: Network, quick: bool) -> None:
    screens.run(net.homes[0], net.pids()[0], quick)


def still(net: Network, quick: bool) -> None:
    stalled.run(net.calls, net.pids(), quick)


def start(net: Network, quick: bool) -> None:
    print("\ncommand line: whole processes")
    count = least(5 if quick else 11, 1)
    home = net.homes[0]
    module = str(WASM / "add.wasm")
    bare = median(
        [
            seconds(lambda: subprocess.run([sys.executable, "-c", ""], check=True))
            for _ in range(count)
        ]
    )
    for label, words in (
        ("xsc --version", ("--version",)),
        ("xsc node status", ("node", "status")),
        ("xsc compute invoke add 1 2", ("compute", "invoke", module, "add", "1", "2")),
    ):
        took = median([seconds(lambda w=words: xsc(*w, home=home)) for _ in range(count)])  # type: ignore[misc]
        print(f"  {label:28s} {took * 1e3:6.0f} ms   (bare python {bare * 1e3:.0f} ms)")


def memory(net: Network, quick: bool) -> None:
    size = least(256 if quick else 1024, 16) * MIB
    idle = [anonymous_mib(pid) for pid in net.pids()]
    print(f"\nmemory (RssAnon): nodes before the transfer {min(idle)}-{max(idle)} MiB")
    peaks = dict.fromkeys(net.pids(), 0)

    def watch(process: subprocess.Popen[bytes]) -> int:
        client = 0
        while process.poll() is None:
            try:
                client = max(client, anonymous_mib(process.pid))
            except FileNotFoundError:
                break
            for pid in peaks:
                peaks[pid] = max(peaks[pid], anonymous_mib(pid))
            time.sleep(0.02)
        return client

    with tempfile.TemporaryDirectory(prefix="xsc-memory-") as folder:
        source, target = Path(folder) / "in", Path(folder) / "out"
        with source.open("wb") as file:
            for _ in range(size // (16 * MIB)):
                file.write(os.urandom(16 * MIB))
        base = [sys.executable, "-m", "xsc", "--home", str(net.homes[0])]
        putting = subprocess.Popen([*base, "store", "put", str(source)], stdout=subprocess.PIPE)
        client = watch(putting)
        assert putting.stdout is not None
        capability = putting.stdout.read().decode().strip()
        getting = subprocess.Popen(
            [*base, "store", "get", capability, "-o", str(target)], stdout=subprocess.DEVNULL
        )
        client_get = watch(getting)
        same = subprocess.run(["cmp", str(source), str(target)], check=False).returncode == 0
    print(
        f"  put and get of {size // MIB} MiB ({'equal' if same else 'DIFFERENT'}): client "
        f"{client} and {client_get} MiB, nodes at most {max(peaks.values())} MiB"
    )
    peaks.update(dict.fromkeys(peaks, 0))
    size_mib, client, client_get, same = pipe.run(net.homes[0], watch, quick=quick)
    print(
        f"  {size_mib} MiB of zeros and chance through pipes ({'equal' if same else 'DIFFERENT'}): "
        f"client {client} and {client_get} MiB, nodes at most {max(peaks.values())} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, for a first look")
    parser.add_argument("parts", nargs="*", default=[*PARTS, *ALONE])
    asked = parser.parse_args()
    asked.quick |= SMOKE
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {NODES} nodes on loopback")
    for part in asked.parts:
        if part in ALONE:
            ALONE[part](asked.quick)
    wanted = [part for part in asked.parts if part not in ALONE]
    if not wanted:
        return
    folder = Path(tempfile.mkdtemp(prefix="xsc-bench-"))
    net = Network(folder)
    try:
        for part in wanted:
            {
                "storage": storage,
                "small": little,
                "compute": compute,
                "services": served,
                "start": start,
                "memory": memory,
                "stalled": still,
                "space": shared,
                "programs": depending,
                "market": dividing,
                "screens": watched,
            }[part](net, asked.quick)
    finally:
        net.stop()


if __name__ == "__main__":
    main()
