"""Several nodes that store at each other, without a network: small real parts of every port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.settle import settle
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import (
    LeaseExhausted,
    PeerSilent,
    PeerUnknown,
    RateLimited,
    SpaceExhausted,
    XscError,
)
from xsc.base.keyvalue import Change
from xsc.base.log import SilentLog
from xsc.base.merkle import Part, root_of
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed
from xsc.identity.keys import KeyPair, network_id
from xsc.node.config import load
from xsc.space.paths import UserSpacePaths
from xsc.space.store import SpaceStore
from xsc.storage.repair.drain import Departures
from xsc.storage.service import StorageService
from xsc.storage.shardstore.store import StorageNode
from xsc.terms.lease import OWN_STORAGE, LeaseHandle
from xsc.terms.storage_receipt import StorageReceipt

NETWORK = network_id("test")
SETTINGS = load(Path(), {}, {})
CAPACITY = 64 * 2**20


@dataclass(frozen=True)
class Answer:
    header: dict[str, Value]
    parts: list[memoryview]


@dataclass(frozen=True)
class Offered:
    leases: list[LeaseHandle]
    refused: dict[bytes, XscError]
    passed_over: tuple = ()


@dataclass(frozen=True)
class End:
    end_ms: int
    reason: str = ""


FAR = End(2**50)


@dataclass
class Book:
    """A host's leases: everybody has one, with room without end unless it is limited."""

    room: dict[bytes, int] = field(default_factory=dict)
    used: dict[bytes, int] = field(default_factory=dict)
    ends_ms: dict[bytes, int] = field(default_factory=dict)

    def end_ms(self, lease_id: bytes) -> int | None:
        return self.ends_ms.get(lease_id)

    def price(self, lease_id: bytes) -> int:
        return 100

    def admit(self, lease_id: bytes, customer: bytes, size_bytes: int) -> None:
        used = self.used.get(lease_id, 0) + size_bytes
        if used > self.room.get(lease_id, 2**60):
            raise LeaseExhausted("the lease has no room for that")
        self.used[lease_id] = used

    def stored(self, lease_id: bytes, admitted_bytes: int, held_bytes: int) -> None:
        self.settle_use(lease_id, held_bytes - admitted_bytes)

    def settle_use(self, lease_id: bytes, delta_bytes: int) -> None:
        assert delta_bytes <= 0
        self.used[lease_id] += delta_bytes
        assert self.used[lease_id] >= 0


class Host:
    """One node: its stores, its service, and how it behaves to others."""

    def __init__(self, world: World, index: int, capacity_bytes: int) -> None:
        self.world = world
        self.key = KeyPair(bytes([index + 1]) * 32)
        self.id = self.key.node_id
        self.bodies = MemoryKeyValue()
        self.index = MemoryKeyValue()
        self.state = MemoryKeyValue()
        self.book = Book()
        self.customer_used: dict[bytes, int] = {}
        self.refusals: list[bytes] = []
        self.short: dict[int, int] = {}
        self.denied: set[bytes] = set()
        self.ends: dict[bytes, End | None] = {}
        self.reports: list[tuple[bytes, str]] = []
        self.up = True
        self.calls: list[tuple[bytes, str]] = []
        self.corrupt: Callable[[str, Answer], Answer] = lambda method, answer: answer
        self.before: Callable[[str, int], None] = lambda method, number: None
        self.delay: Callable[[str], int] = lambda method: 0
        self.served = 0
        self.charged: list[tuple[bytes, str, int]] = []
        self.may_read = True
        self.node = self.make_node(capacity_bytes)
        entropy = SeededEntropy(bytes([index]))
        store, log = (self.state, self.commit_state), SilentLog()
        context = Context(
            self.key, NETWORK, world.clock, entropy, InlineExecutor(), self, log, *store
        )
        spaces = SpaceStore(MemoryKeyValue(), context)
        self.space = spaces
        self.service = StorageService(
            context,
            hosts=self,
            leases=self.book,
            node=self.node,
            departures=Departures(self.space, spaces.owners(), spaces.told, SilentLog()),
            settings=SETTINGS,
            charge_read=self.charge_read,
        )

    async def leave(self) -> None:
        """Begin to leave, as all others hear."""
        await self.service.drain.begin()
        said = self.space.get(UserSpacePaths.DEPARTURE)
        for other in self.world.hosts:
            if other is not self:
                await other.space.take(self.id, [(said.signed, said.value)])

    def make_node(self, capacity_bytes: int) -> StorageNode:
        return StorageNode(
            capacity_bytes=capacity_bytes,
            bodies=self.bodies,
            index=self.index,
            executor=InlineExecutor(),
            log=SilentLog(),
        )

    def charge_read(self, caller: bytes, method: str, size: int, *, made: bool = False) -> None:
        self.charged.append((caller, method, size))
        if not self.may_read and not made:
            raise RateLimited("the caller has nothing left")

    async def commit_state(self, changes: list[Change]) -> None:
        await asyncio.sleep(0)
        self.state.write(changes, sync=True)

    # Caller

    async def call(self, peer, method, header, parts=(), *, timeout_ms=None):
        other = self.world.by_id.get(peer)
        if other is None:
            raise PeerUnknown("no such peer")
        if other is self:
            return Answer(*await self.service.handlers()[method](peer, dict(header), parts))
        self.calls.append((peer, method))
        if other.delay(method):
            await self.world.clock.sleep_ms(other.delay(method))
        await asyncio.sleep(0)
        if not other.up:
            raise PeerSilent("the peer does not answer")
        for part in parts:
            assert root_of(part.data) == part.root
        other.served += 1
        other.before(method, other.served)
        fields = decode(encode(header), size_max=2**20)
        assert isinstance(fields, dict)
        carried = [Part(memoryview(bytes(part.data)), part.root) for part in parts]
        answer, bodies = await other.service.handlers()[method](self.id, fields, carried)
        if not other.up:
            raise PeerSilent("the peer died before it answered")
        reply = Answer(
            decode(encode(answer), size_max=2**20), [memoryview(bytes(body)) for body in bodies]
        )
        return other.corrupt(method, reply)

    # Hosts

    def lease_id(self, node: bytes) -> bytes:
        if node == self.id:
            return OWN_STORAGE
        return root_of(self.id + node)

    async def lease_hosts(self, *, size_bytes, count, exclude=frozenset()):
        assert size_bytes > 0
        free = [
            other.id
            for other in self.world.hosts
            if other is not self and other.up and other.node.writer.free_bytes >= size_bytes
        ]
        if self.node.writer.free_bytes >= size_bytes:
            free.append(self.id)
        chosen = [node for node in free if node not in exclude][:count]
        for node in chosen:
            if node != self.id:
                book = self.world.by_id[node].book
                lease_id = self.lease_id(node)
                if lease_id in book.room:
                    used = book.used.get(lease_id, 0)
                    book.room[lease_id] = max(book.room[lease_id], used + size_bytes)
        refused = {
            other.id: SpaceExhausted("no room") if other.up else PeerSilent("it does not answer")
            for other in self.world.hosts
            if other.id not in chosen and other.id not in exclude and len(chosen) < count
        }
        return Offered([LeaseHandle(node, self.lease_id(node)) for node in chosen], refused)

    def unplaced(self, size_bytes, providers):
        self.short[size_bytes] = providers

    def placed(self, size_bytes):
        self.short.pop(size_bytes, None)

    async def used(self, lease_id, delta_bytes, *, found=False):
        self.customer_used[lease_id] = self.customer_used.get(lease_id, 0) + delta_bytes
        assert self.customer_used[lease_id] >= 0

    async def refused(self, lease_id):
        self.refusals.append(lease_id)

    def is_denied(self, lease_id):
        return lease_id in self.denied

    def lease_price(self, lease_id):
        return 0

    def lease_end(self, lease_id):
        return self.ends.get(lease_id, FAR)

    def is_up(self, node):
        return self.world.by_id[node].up

    def is_absent(self, node):
        return not self.is_up(node)

    def response_ms(self, node):
        return 1

    def labels(self, node):
        return self.world.labels.get(node, ("", ""))

    async def learn_labels(self, nodes):
        return frozenset(nodes)

    def peers(self):
        return [other.id for other in self.world.hosts if other is not self]

    def report(self, node, dimension, what):
        assert dimension == "integrity"
        self.reports.append((node, what))


class World:
    """Some nodes; node 0 is usually the customer."""

    def __init__(self, count: int, capacity_bytes: int = CAPACITY) -> None:
        self.clock = ManualClock()
        self.hosts: list[Host] = []
        self.by_id: dict[bytes, Host] = {}
        self.labels: dict[bytes, tuple[str, str]] = {}
        for index in range(count):
            host = Host(self, index, capacity_bytes)
            self.hosts.append(host)
            self.by_id[host.id] = host

    async def start(self) -> World:
        for host in self.hosts:
            await host.node.start()
        return self

    def __getitem__(self, index: int) -> Host:
        return self.hosts[index]


async def stream(data: bytes, chunk_bytes: int = 300_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), chunk_bytes):
        yield data[start : start + chunk_bytes]


async def put(host: Host, data: bytes, **options):
    options = {"name": "object", "size_hint": len(data)} | options
    return await host.service.put(stream(data), **options)


async def get(host: Host, capability: str, **span) -> bytes:
    reader = await host.service.open(capability)
    return b"".join([chunk async for chunk in reader.stream(**span)])


async def finished(world: World, work):
    """Return what a coroutine gives, letting time pass only while everybody waits."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await settle()
        if not task.done():
            world.clock.advance_to(world.clock.next_ms())
    return await task


def content(size: int, seed: int = 1) -> bytes:
    return SeededEntropy(seed.to_bytes(4, "big")).token(size)


def receipt_in(header) -> StorageReceipt:
    """Return the receipt that an answer to a put carries."""
    return open_signed(header["receipt"], StorageReceipt, network=NETWORK).record
