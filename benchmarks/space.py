"""The space: how soon a peer's watcher sees a put, how fast a replica takes records, what it keeps.

The time to a watcher is of real nodes and the Python client, beside the same put seen by a
watcher of the node that made it. A replica's intake is measured between two stores on LevelDB in
one process, with a clock that runs a thousand times as fast, so that its pace holds nothing;
beside it, the signatures of the same records alone. Memory and disk are of processes of their own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from queue import Queue
from statistics import median
from typing import Any

from benchmarks.size import least
from xsc import api
from xsc.base.encoding import Value
from xsc.base.limits import JOINT_RECORDS_MAX, KIB, MIB, PEER_REQUESTS_A_SECOND_MAX, REQUEST_UNITS
from xsc.base.log import SilentLog
from xsc.base.merkle import Part
from xsc.base.peering import Reply
from xsc.client.core import Core
from xsc.db.leveldb import LevelDBKeyValue
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, sign
from xsc.identity.keys import KeyPair, network_id, verify
from xsc.node.system import SystemClock, SystemEntropy, ThreadExecutor
from xsc.space import itc
from xsc.space.itc import Clock
from xsc.space.limits import RECORD_UNITS
from xsc.space.paths import UserSpacePaths
from xsc.space.record import SpaceHead, SpaceRecord, section_hash, value_digest
from xsc.space.store import SpaceStore
from xsc.space.sync import SpaceSync

ROUNDS = least(3, 1)
NETWORK = network_id("benchmark")
DOMAIN = b"d" * 32
CELLS = least(1_000, 50)
PEERS = least(1_000, 20)
COMMITMENT_BYTES = KIB
"""A commitment to some ten partners."""


# From a put to a watcher

TOLD = "bench/told"


class Watcher:
    """Notes when each value at one path arrived."""

    def __init__(self, home: Path, address: str) -> None:
        self._events = Core(home).events(api.space.WATCH, under=address)
        self.arrived: Queue[tuple[str, float]] = Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for change in self._events:
            self.arrived.put((change["value"], time.perf_counter()))

    def wait(self, value: str) -> float:
        """Return when a value arrived; earlier ones were passed over."""
        while True:
            found, at = self.arrived.get(timeout=30)
            if found == value:
                return at

    def close(self) -> None:
        self._events.close()
        self._thread.join()


def delays(core: Core, watcher: Watcher, count: int) -> list[float]:
    """Return the time from the begin of each put to the watcher, one put at a time."""
    found = []
    for _ in range(count):
        value = os.urandom(8).hex()
        begun = time.perf_counter()
        core.ask(api.space.PUT, value.encode(), at=TOLD)
        found.append(watcher.wait(value) - begun)
    return found


def told(homes: Sequence[Path], quick: bool) -> None:
    count = least(50 if quick else 300, 5)
    core = Core(homes[0])
    owner = core.ask(api.space.PUT, b"first", at=TOLD)["owner"]
    places = ((homes[0], "bench/told"), (homes[-1], f"{owner}:bench/told"))
    found: tuple[list[float], ...] = ([], [])
    for _ in range(ROUNDS):
        for rounds, (home, address) in zip(found, places, strict=True):
            watcher = Watcher(home, address)
            try:
                delays(core, watcher, 20)  # the subscription begins with what was there before
                rounds.append(median(delays(core, watcher, count)))
            finally:
                watcher.close()
    own, peer = map(median, found)
    print(
        f"  from a put to a watcher, p50         of a peer {peer * 1e3:.2f} ms, of the own node "
        f"{own * 1e3:.2f} ms ({peer / own:.2f} times)"
    )


# What a replica takes


class Hurried(SystemClock):
    """A clock of which a second passes in a thousandth."""

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000

    async def sleep_ms(self, duration_ms: int) -> None:
        await asyncio.sleep(duration_ms / 1e6)


@dataclass(frozen=True, slots=True)
class Answer:
    header: dict[str, Value]
    parts: Sequence[memoryview]


class Wire:
    """Calls the handlers of another replica in this process."""

    def __init__(self, caller: bytes) -> None:
        self.caller = caller
        self.sync: SpaceSync | None = None
        self.answering_s = 0.0
        """What the other one took to answer; nothing else runs meanwhile."""

    async def call(
        self,
        peer: bytes,
        method: str,
        header: dict[str, Value],
        parts: Sequence[Part] = (),
        *,
        timeout_ms: int | None = None,
    ) -> Reply:
        del peer, timeout_ms
        assert self.sync is not None
        begun = time.perf_counter()
        said, bodies = await self.sync.answering.handlers()[method](self.caller, header, parts)
        self.answering_s += time.perf_counter() - begun
        return Answer(said, [memoryview(body) for body in bodies])


def _context(key: KeyPair, clock: Any, executor: Any, wire: Any = None) -> Context:
    nothing: Any = None
    return Context(
        key, NETWORK, clock, SystemEntropy(), executor, wire, SilentLog(), nothing, nothing
    )


class Replica:
    """A store on LevelDB with its subscriptions."""

    def __init__(self, folder: Path, executor: ThreadExecutor) -> None:
        self.key = KeyPair(os.urandom(32))
        self.db = LevelDBKeyValue(folder / self.key.node_id.hex()[:8])
        clock = Hurried()
        self.wire = Wire(self.key.node_id)
        context = _context(self.key, clock, executor, self.wire)
        self.store = SpaceStore(self.db, context)
        self.space = self.store
        self.sync = SpaceSync(self.store, context, spend=lambda *_: 0, blame=lambda *_: None)


def one_by_one(values: dict[str, bytes]) -> list[dict[str, bytes | None]]:
    return [{path: value} for path, value in values.items()]


def together(values: dict[str, bytes]) -> list[dict[str, bytes | None]]:
    return [{**values}]


async def intake(
    count: int, writes: Callable[[dict[str, bytes]], Any]
) -> tuple[float, float, float]:
    """Return records a second that a replica takes, that the owner gives, and signatures alone."""
    executor = ThreadExecutor(2)
    folder = Path(tempfile.mkdtemp(prefix="xsc-space-"))
    owner, replica = Replica(folder, executor), Replica(folder, executor)
    try:
        for values in writes({f"bench/r{at}": b"%064d" % at for at in range(count)}):
            await owner.store.put_all(values)
        await owner.store.sign_head()
        replica.wire.sync = owner.sync
        of = owner.key.node_id
        replica.sync.subscribe({(of, "")})
        begun = time.perf_counter()
        following = asyncio.create_task(replica.sync.follow(of))
        while await replica.store.cursor(of, "") < count:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.002)
        gave = replica.wire.answering_s
        took = time.perf_counter() - begun - gave
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        checked = count if writes is one_by_one else -(-count // JOINT_RECORDS_MAX)
        message = os.urandom(96)
        signature = owner.key.sign(message)
        begun = time.perf_counter()
        for _ in range(checked):
            verify(of, signature, message)
        alone = time.perf_counter() - begun
        return count / took, count / gave, count / alone
    finally:
        for made in (owner, replica):
            await made.store.close()
            made.db.close()
        executor.close()
        shutil.rmtree(folder)


def taken(quick: bool) -> None:
    count = least(2_000 if quick else 9_000, 200)
    for label, writes in (("signed one by one", one_by_one), ("signed together", together)):
        rounds = [asyncio.run(intake(count, writes)) for _ in range(ROUNDS)]
        rate, gave, alone = (median(one[at] for one in rounds) for at in range(3))
        print(
            f"  records taken, {label:17s}     {rate:6.0f}/s ({rate / alone:.2f} of their "
            f"signatures alone, {alone:.0f}/s); given {gave:.0f}/s"
        )
    rate = PEER_REQUESTS_A_SECOND_MAX * REQUEST_UNITS // RECORD_UNITS
    print(f"  the quota of a peer lets through     {rate:6d}/s")


# Stamps


def holders(count: int) -> list[Clock]:
    """Return clocks of so many nodes, each with some events, which have heard of all others."""
    kept: itc.Interval = 1
    clocks = []
    for number in range(1, count):
        kept, given = itc.cut_grant(kept, 0, number)
        clocks.append(Clock(DOMAIN, given, 0))
    clocks.append(Clock(DOMAIN, kept, 0))
    for at in range(count):
        for _ in range(1 + at * 7 % 100):
            clocks[at] = clocks[at].tick()
    every: itc.Event = 0
    for clock in clocks:
        every = itc.join_events(every, clock.event)
    return [Clock(DOMAIN, clock.interval, every).tick() for clock in clocks]


def churned(count: int) -> int:
    """Return the bytes of an inviter's stamp after so many joined it, wrote, and never returned."""
    kept: itc.Interval = 1
    inviter = Clock(DOMAIN, kept, 0)
    for number in range(1, count + 1):
        kept, given = itc.cut_grant(kept, 0, number)
        guest = Clock(DOMAIN, given, inviter.event)
        for _ in range(1 + number % 3):
            guest = guest.tick()
        inviter = Clock(DOMAIN, kept, inviter.event).adopt(given, guest.peek()).tick()
    return len(itc.event_bytes(inviter.event))


def each_us(work: Callable[[], object]) -> float:
    """Return the median time of a call in microseconds."""
    found = []
    for _ in range(least(200, 5)):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return median(found) * 1e6


def stamps() -> None:
    known = {count: holders(count) for count in least((16, 256, 1_024), (16, 256))}
    sizes = [
        f"{median(len(itc.event_bytes(clock.event)) for clock in clocks):.0f} at {count}"
        for count, clocks in known.items()
    ]
    one, other = known[256][0].event, known[256][-1].event
    join, leq = each_us(lambda: itc.join_events(one, other)), each_us(lambda: itc.leq(one, other))
    print(f"  bytes of a stamp                     {', '.join(sizes)} holders")
    print(f"  after 1,000 joined and left          {churned(least(1_000, 20))} B")
    print(f"  at 256 holders                       join {join:.0f} µs, leq {leq:.0f} µs")


# What is kept


def anonymous_kib() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    return 0


def alone(work: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> Any:
    """Return what some work returns in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_run, work, *arguments).result()


def _run(work: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> Any:
    return asyncio.run(work(*arguments))


def commitment(key: KeyPair, stamp: bytes, now_ms: int) -> tuple[Signed[SpaceRecord], bytes]:
    value = os.urandom(COMMITMENT_BYTES)
    record = SpaceRecord(
        path=UserSpacePaths.COMMITMENT,
        sequence=1,
        written_ms=now_ms,
        domain=DOMAIN,
        stamp=stamp,
        digest=value_digest(value),
        size_bytes=len(value),
    )
    return sign(record, key, NETWORK), value


async def commitments(count: int) -> int:
    """Return the KiB that a store grows by when it takes a commitment of each of many peers."""
    executor, clock = ThreadExecutor(2), SystemClock()
    folder = Path(tempfile.mkdtemp(prefix="xsc-space-"))
    db = LevelDBKeyValue(folder / "space")
    store = SpaceStore(db, _context(KeyPair(os.urandom(32)), clock, executor))
    stamp = itc.event_bytes(holders(count)[0].event)
    try:
        await store.put_all({"bench/first": b"1"})
        before = anonymous_kib()
        for _ in range(count):
            key = KeyPair(os.urandom(32))
            signed, value = commitment(key, stamp, clock.now_ms())
            await store.take(key.node_id, [(signed, value)])
            section = UserSpacePaths.COMMITMENT
            hashes = ((section, section_hash({signed.record.path: signed.id}) or b""),)
            head = SpaceHead(sequence=1, written_ms=clock.now_ms(), sections=hashes)
            proven, *_ = await store.prove(key.node_id, sign(head, key, NETWORK), {section: {}})
            assert proven
        return anonymous_kib() - before
    finally:
        await store.close()
        db.close()
        executor.close()
        shutil.rmtree(folder)


async def updates(count: int) -> tuple[float, int, int, int, int]:
    """Return updates a second, memory in KiB at a tenth and at the end, and disk, and fresh disk.

    The updates are of CELLS cells, and end with one compaction. The fresh store has the last
    update of each cell alone.
    """
    executor, clock = ThreadExecutor(2), SystemClock()
    folder = Path(tempfile.mkdtemp(prefix="xsc-space-"))
    cells = [f"cells/c{number}" for number in range(CELLS)]
    turns = count // CELLS
    key = KeyPair(os.urandom(32))
    early = late = 0
    sizes = []
    rate = 0.0
    try:
        for name, first in (("old", 0), ("fresh", turns - 1)):
            db = LevelDBKeyValue(folder / name)
            store = SpaceStore(db, _context(key, clock, executor))
            begun = time.perf_counter()
            for turn in range(first, turns):
                value = b"%064d" % turn
                for start, end in pairwise(range(0, CELLS + 1, 250)):
                    await store.put_all(dict.fromkeys(cells[start:end], value))
                if name == "old" and turn == turns // 10:
                    early = anonymous_kib()
            if name == "old":
                rate = count / (time.perf_counter() - begun)
                late = anonymous_kib()
            await store.sign_head()
            await store.compact()
            sizes.append(sum(file.stat().st_size for file in (folder / name).iterdir()))
            await store.close()
            db.close()
        return rate, early, late, sizes[0], sizes[1]
    finally:
        executor.close()
        shutil.rmtree(folder)


def kept(quick: bool) -> None:
    grown = median(alone(commitments, PEERS) for _ in range(ROUNDS))
    print(f"  commitments of 1,000 peers           {grown / KIB:.1f} MiB of memory")
    count = least(100_000 if quick else 1_000_000, 1_000)
    rate, early, late, disk, fresh = alone(updates, count)
    print(
        f"  {count:,} updates of {CELLS:,} cells  disk {disk / fresh:.2f} times a fresh store "
        f"({disk / MIB:.1f} MiB), memory {late / early:.2f} times that after a tenth "
        f"({late / KIB:.0f} MiB), {rate:.0f} updates/s"
    )


def run(homes: Sequence[Path], quick: bool) -> None:
    """Measure, and print."""
    print("\nspace: signed records of owners at their subscribers")
    told(homes, quick)
    taken(quick)
    stamps()
    kept(quick)
