"""What a possession challenge costs the host and the prober, of a lease with 1,000 shards."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.size import least
from xsc.base.clock import InlineExecutor, SeededEntropy
from xsc.base.encoding import Value, decode, encode
from xsc.base.limits import MIB
from xsc.base.log import SilentLog
from xsc.base.merkle import Part, root_of
from xsc.db.leveldb import LevelDBKeyValue
from xsc.db.memory import MemoryKeyValue
from xsc.health.challenge import EVERYTHING, Round
from xsc.health.challenging import ChallengeService
from xsc.identity.context import Context
from xsc.identity.keys import KeyPair, network_id
from xsc.node.system import SystemClock
from xsc.storage.object.manifest import hash_of
from xsc.storage.shardstore import bodies as formats
from xsc.storage.shardstore.server import ShardServer
from xsc.storage.shardstore.store import StorageNode
from xsc.terms.possession import MANIFEST_COLUMN, Answered, Extent, Holding, Root, extent_name

NETWORK = network_id("bench")
SHARDS = least(1_000, 8)
ROUNDS = least(100, 2)
MANIFEST_BYTES = 600


@dataclass
class _Reply:
    header: dict[str, Value]
    parts: list[memoryview]


@dataclass
class _Link:
    """The way to the host; its time is that of the host."""

    took_s: float = 0
    host: ChallengeService | None = None
    answer_bytes: int = 0
    prober: bytes = b""

    async def call(
        self,
        peer: bytes,  # noqa: ARG002 (there is one)
        method: str,
        header: dict[str, Value],
        parts: Sequence[Part] = (),
        *,
        timeout_ms: int | None = None,  # noqa: ARG002
    ) -> _Reply:
        """Have the host answer, and measure that."""
        assert self.host is not None
        raw = encode(header)
        begun = time.perf_counter()
        asked = decode(raw)
        assert isinstance(asked, dict)
        answer, bodies = await self.host.handlers()[method](self.prober, asked, parts)
        told = encode(answer)
        self.took_s += time.perf_counter() - begun
        self.answer_bytes = len(told) + sum(map(len, bodies))
        return _Reply(answer, [memoryview(body) for body in bodies])


class _Unpaid:
    """A market in which nothing is paid."""

    def challenged(self, role: str, peer: bytes, proof: Answered) -> None:
        """Pay nothing."""

    def certified(self, customer: bytes, raw: bytes, leaves: int) -> None:
        """Keep nothing."""


def _service(number: int, link: _Link, server: ShardServer | None) -> ChallengeService:
    key = KeyPair(bytes([number]) * 32)
    nothing: Any = None
    ports = (SystemClock(), SeededEntropy(key.node_id), InlineExecutor(), link, SilentLog())
    leaf = nothing if server is None else server.leaf
    return ChallengeService(
        Context(key, NETWORK, *ports, MemoryKeyValue(), nothing),
        nothing,
        nothing,
        leaf=leaf,
        payments=_Unpaid(),
    )


async def _stored(node: StorageNode) -> dict[bytes, Root]:
    """Store shards of 1 MiB and a manifest for each; return the roots by name of extent."""
    roots = {}
    for number in range(SHARDS):
        locate = hashlib.sha256(b"%d" % number).digest()
        shard, sealed = os.urandom(MIB), os.urandom(MANIFEST_BYTES)
        roots[extent_name(locate, 1)] = Root(0, root_of(shard), None)
        roots[extent_name(locate, MANIFEST_COLUMN)] = Root(0, root_of(sealed), hash_of(sealed))
        customer = b"c" * 32
        key = formats.shard_key(locate, 0, 0, 1, customer)
        record = formats.record_key(locate, customer)
        body = formats.Body(key, b"l" * 32, root_of(shard), shard)
        await node.store([body, formats.Body(record, b"l" * 32, hash_of(sealed), sealed)])
    return roots


async def _measure(folder: Path) -> tuple[list[float], list[float], int]:
    """Return the seconds at host and prober, and the bytes of an answer."""
    bodies, index = LevelDBKeyValue(folder / "bodies"), LevelDBKeyValue(folder / "index")
    node = StorageNode(
        capacity_bytes=2**40,
        bodies=bodies,
        index=index,
        executor=InlineExecutor(),
        log=SilentLog(),
    )
    await node.start()
    roots = await _stored(node)
    link = _Link()
    key = KeyPair(b"\1" * 32)
    nothing: Any = None
    ports = (SystemClock(), SeededEntropy(b""), InlineExecutor(), link, SilentLog())
    server = ShardServer(
        Context(key, NETWORK, *ports, index, nothing),
        leases=_NoLeases(),  # type: ignore[arg-type]
        node=node,
        check_room=lambda: None,
        released=nothing,
        charge_read=_free,
    )
    link.host = _service(1, link, server)
    prober = _service(2, link, None)
    link.prober = KeyPair(b"\2" * 32).node_id
    extents = [
        Extent(name, 1, size, size)
        for name in roots
        for size in [MANIFEST_BYTES if name.endswith(b"\xff\xff") else MIB]
    ]

    async def root(extent: Extent, _body: int) -> Root:
        return roots[extent.name]

    at_host: list[float] = []
    at_prober: list[float] = []
    epoch = SystemClock().now_ms() // 3_600_000
    for number in range(ROUNDS):
        customer = hashlib.sha256(b"customer %d" % (number % 60)).digest()
        # So many customers have the same there: a host takes one challenge of each an hour.
        asked = Round(key.node_id, customer, link.prober, EVERYTHING, epoch + number // 60 % 2)
        link.took_s = 0
        begun = time.perf_counter()
        proved, _ = await prober.prove(asked, Holding(extents, root))
        whole = time.perf_counter() - begun
        assert proved.outcome == "ok", proved
        at_host.append(link.took_s)
        at_prober.append(whole - link.took_s)
    bodies.close()
    index.close()
    return at_host, at_prober, link.answer_bytes


class _NoLeases:
    def settle_use(self, lease_id: bytes, delta_bytes: int) -> None:
        """Count nothing."""


def _free(caller: bytes, method: str, size: int, *, made: bool = False) -> None:
    """Charge nothing."""


def run(_quick: bool) -> None:
    """Print what a challenge costs."""
    with tempfile.TemporaryDirectory() as folder:
        at_host, at_prober, size = asyncio.run(_measure(Path(folder)))
    print(f"\nA possession challenge of a lease with {SHARDS:,} shards of 1 MiB, on LevelDB:")
    for name, taken, most in (("at the host", at_host, 5), ("at the prober", at_prober, 2)):
        middle, worst = median(taken) * 1_000, sorted(taken)[len(taken) * 95 // 100] * 1_000
        print(f"  {name:14} {middle:6.2f} ms, 95 % within {worst:.2f} ms (at most {most} ms)")
    print(f"  {'the answer':14} {size / 1_024:6.1f} KiB (at most 80 KiB)")
