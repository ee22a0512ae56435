"""What the screens of an operator cost: metrics, `xsc top` and the dashboard.

The node with many peers is whole, in this process and on memory, and so are its peers; `xsc top`
and a browser follow a node of the devnet.
"""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Final

from playwright.sync_api import sync_playwright

from benchmarks.size import least
from xsc.api import monitor as api_monitor
from xsc.api import peers, status
from xsc.api.endpoint import Nothing
from xsc.base.clock import InlineExecutor
from xsc.base.keyvalue import Stores
from xsc.base.log import SilentLog
from xsc.client.calls import Calls
from xsc.compute.worker.local import LocalSandbox
from xsc.dashboard import views
from xsc.dashboard.app import PAGES
from xsc.dashboard.source import fetch
from xsc.db.memory import MemoryKeyValue
from xsc.identity.keys import KeyPair
from xsc.monitor.events import CountedLog
from xsc.net.transport.memory import MemoryNetwork
from xsc.node.api.serving import Server
from xsc.node.build import Node, Parts
from xsc.node.config import load
from xsc.node.daemon import ANSWERS
from xsc.node.routes import monitor
from xsc.node.system import SystemClock, SystemEntropy

PEERS: Final = least(50, 6)
CHROMIUM: Final = "/usr/bin/chromium"
FLAGS: Final = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PAINT: Final = """new Promise((done) => new PerformanceObserver((list) =>
    list.getEntriesByName("first-contentful-paint").forEach((each) => done(each.startTime))
).observe({ type: "paint", buffered: true }))"""
"""Gives when a page was painted first, once it was."""
_HERTZ: Final = os.sysconf("SC_CLK_TCK")


def _made(number: int, net: MemoryNetwork) -> Node:
    name, executor = f"node-{number}", InlineExecutor()
    given = {"name": name, "storage_capacity": "1GiB", "guard": "all", "probe_interval": "2s"}
    parts = Parts(
        clock=SystemClock(),
        entropy=SystemEntropy(),
        executor=executor,
        transport=net.transport(name),
        stores=Stores(*(MemoryKeyValue() for _ in range(4))),
        sandbox=LocalSandbox(executor),
        log=CountedLog(SilentLog(), SystemClock()),
        disk_free_bytes=lambda: 2**40,
    )
    config = load(Path("/nonexistent"), {}, {**given, "accept_peers": "invited"})
    return Node(config, KeyPair(number.to_bytes(32, "big")), "benchmark", parts)


async def _one(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def metrics(objects: int) -> tuple[float, int, float]:
    """Return the processor time of `GET /metrics`, in ms, and how many characters it has.

    The last is the processor time of a page of the dashboard that lists a hundred of the objects.
    """
    net = MemoryNetwork(SystemClock(), b"benchmark")
    owner, *peers = nodes = [_made(number, net) for number in range(PEERS + 1)]
    try:
        for node in nodes:
            await node.start()
        for peer in peers:
            await peer.peers.join(owner.peers.invite(60_000), None)
            await owner.health.probe(peer.key.node_id)
        for number in range(objects):
            data = number.to_bytes(8, "big") * 100
            await owner.storage.put(_one(data), name=f"{number}", size_hint=len(data))
        took = []
        for _ in range(least(100, 3)):
            owner.watch.last = None  # made anew, as where nobody asked within a second
            begun = time.process_time_ns()
            text = await monitor.metrics(owner, Nothing())
            took.append((time.process_time_ns() - begun) / 1e6)
        return median(took), len(text), await _storage_page(owner)
    finally:
        await asyncio.gather(*(node.tasks.stop() for node in nodes))


async def _storage_page(node: Node) -> float:
    """Return the processor time of the page that lists objects, in ms."""
    took = []
    server = Server(node, ANSWERS)
    page, templates = PAGES["/storage"], views.environment()
    for _ in range(least(10, 1)):
        begun = time.process_time_ns()
        shown = await page.gather(server, {})
        common = {"page": page, "pages": [page], "base": "", "csrf": ""}
        common |= {"said": None, "changes": ""}
        measures = await fetch(server, api_monitor.MEASURES, Nothing())
        templates.get_template(page.template).render(measures=measures, **common, **shown)
        took.append((time.process_time_ns() - begun) / 1e6)
    return median(took)


def _processor_s(pid: int) -> float:
    """Return the processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _HERTZ


def followed(home: Path, pid: int, seconds: float) -> tuple[float, float, int]:
    """Return the shares of a core that `xsc top` and its node take, and the bytes a second."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    words = [sys.executable, "-m", "xsc", "--home", str(home), "top"]
    top = subprocess.Popen(words, stdin=theirs, stdout=theirs, env=environment)
    os.close(theirs)
    try:
        os.read(ours, 65_536)  # the first picture: it has started
        os.set_blocking(ours, False)
        time.sleep(least(2.0, 0.2))
        with suppress(BlockingIOError):
            os.read(ours, 65_536)
        before, begun = (_processor_s(top.pid), _processor_s(pid)), time.monotonic()
        size = 0
        while time.monotonic() < begun + seconds:
            time.sleep(0.1)
            with suppress(BlockingIOError):
                size += len(os.read(ours, 65_536))
        took = time.monotonic() - begun
        own, node = _processor_s(top.pid) - before[0], _processor_s(pid) - before[1]
        return own / took, node / took, int(size / took)
    finally:
        top.send_signal(signal.SIGTERM)
        top.wait()
        os.close(ours)


def browser(home: Path, pid: int, seconds: float) -> str:
    """Return the first paint of a page, what an idle one costs the node, and how late a change is.

    The first browser of a machine reads its own files: the second one counts.
    """
    calls = Calls(home)
    with sync_playwright() as playwright:
        for first in (True, False):
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = chromium.new_page()
            page.goto(calls.ask(status.LOGIN)["url"])
            page.wait_for_url("**/circle")
            paint = page.evaluate(PAINT)
            if first:
                chromium.close()
        page.wait_for_selector("tr[id^=peer-]")
        begun, base = time.monotonic(), _processor_s(pid)
        time.sleep(seconds)
        idle = (_processor_s(pid) - base) / (time.monotonic() - begun)
        late = []
        peer = calls.ask(peers.LIST)["peers"][0]["id"]
        for weight_ppm in range(10_000, 10_000 * (1 + least(5, 1)), 10_000):
            calls.ask(peers.RECOGNISE, who=peer, weight_ppm=weight_ppm)
            begun = time.monotonic()
            page.wait_for_selector(f"#peer-{peer} data[value='{weight_ppm}']")
            late.append(time.monotonic() - begun)
        chromium.close()
    return f"first paint {paint:.0f} ms, idle {idle:.2%} of the node, a change {median(late):.2f} s"


def run(home: Path, pid: int, quick: bool) -> None:
    """Measure, and print."""
    print("\nscreens: processor time, and shares of a core")
    objects = least(200 if quick else 10_000, 10)
    took, size, page = asyncio.run(metrics(objects))
    print(f"  /metrics with {PEERS} peers and {objects:,} objects  {took:6.1f} ms ({size:,} chars)")
    print(f"  the page of {objects:,} objects  {page:6.1f} ms")
    base = _processor_s(pid)
    rest = least(20.0, 0.2)
    time.sleep(rest)
    alone = (_processor_s(pid) - base) / rest
    own, node, rate = followed(home, pid, least(60.0, 0.5))
    print(
        f"  xsc top on a devnet of seven: {own:.2%}, its node {node:.2%} (alone {alone:.2%}), "
        f"{rate} bytes a second"
    )
    if Path(CHROMIUM).exists():
        print(f"  dashboard in Chromium: {browser(home, pid, least(60.0, 0.5))}")
    begun = time.perf_counter()
    words = [sys.executable, "-m", "xsc", "--home", str(home), "top", "--once"]
    for _ in range(least(5, 1)):
        subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
    print(f"  xsc top --once  {(time.perf_counter() - begun) / least(5, 1) * 1e3:.0f} ms")
