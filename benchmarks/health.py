"""What probing costs in a circle of 51 nodes, and how soon all of them know that one is gone.

The nodes share this process and its processor, and talk over HTTP. Each only probes: it has
its peers, its transport and its health. What the process takes is divided by their number.
"""

from __future__ import annotations

import asyncio
import os
import time

from benchmarks import possession
from benchmarks.size import least
from xsc.base.limits import PROBE_TIMEOUT_MS
from xsc.base.log import SilentLog
from xsc.db.group import GroupCommit
from xsc.db.memory import MemoryKeyValue
from xsc.health.scoring import Scores
from xsc.health.service import HealthService
from xsc.identity.keys import KeyPair
from xsc.net.service import PeerNet
from xsc.net.transport.http import HttpTransport
from xsc.node.system import SystemClock, SystemEntropy, ThreadExecutor
from xsc.node.tasks import Tasks

NODES = 51
INTERVAL_MS = 5_000
LOOK_S = 0.05


class Node:
    """A node that only probes."""

    def __init__(self, executor: ThreadExecutor) -> None:
        key, clock, log = KeyPair(os.urandom(32)), SystemClock(), SilentLog()
        self.tasks, state = Tasks(clock, log), MemoryKeyValue()
        self.peers = PeerNet(
            key=key,
            network_name="bench",
            clock=clock,
            entropy=SystemEntropy(),
            executor=executor,
            transport=HttpTransport(listen="127.0.0.1:0", key=key),
            log=log,
            state=state,
            commit=GroupCommit(state, executor).commit,
            name="bench",
            advertise=(),
            accepts=False,
        )
        self.id = key.node_id
        self.health = HealthService(
            self.peers.context,
            scores=Scores(
                self.peers.context,
                self.peers.roster,
                recognition_ppm=lambda _: 0,
                fork=lambda _: None,
            ),
            peers=self.peers.roster,
            once=self.tasks.once,
            domain_of=lambda peer: peer,
            interval_ms=INTERVAL_MS,
            timeout_ms=PROBE_TIMEOUT_MS,
        )
        self.peers.server.register(self.health.handlers())

    async def stop(self) -> None:
        await self.tasks.stop()
        await self.peers.stop()


async def measure(seconds: int) -> None:
    executor = ThreadExecutor(2)
    nodes = [Node(executor) for _ in range(least(NODES, 4))]
    for node in nodes:
        await node.peers.start()
    for index, node in enumerate(nodes):
        for other in nodes[:index]:
            await node.peers.join(other.peers.invite(60_000), None)
    for node in nodes:
        for peer in node.peers.peers():
            node.health.watch(peer)
        node.tasks.start("health", node.health.run)
    # The first probe of each peer, and some rounds until there are timeouts.
    await asyncio.sleep(least(60, 1))
    begun, used = time.perf_counter(), time.process_time()
    await asyncio.sleep(least(seconds, 1))
    share = (time.process_time() - used) / (time.perf_counter() - begun) / len(nodes)
    print(f"  probes, of one of {len(nodes)} nodes: {share:.2%} of a core")
    gone, *others = nodes
    begun, stopping = time.perf_counter(), asyncio.create_task(gone.stop())
    while any(node.health.is_up(gone.id) for node in others):  # noqa: ASYNC110 (as seen from outside)
        await asyncio.sleep(LOOK_S)
    print(f"  a killed node is down at all others after {time.perf_counter() - begun:.1f} s")
    await stopping
    for node in others:
        await node.stop()
    executor.close()


def run(quick: bool) -> None:
    print("\nhealth: nodes in one process, each with all others as peers")
    asyncio.run(measure(20 if quick else 60))
    possession.run(quick)
