"""The services that a node owns or holds: their versions, modules and logs, in memory and kept."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from xsc.base import bounded, units
from xsc.base.errors import NotFound, SpaceExhausted, StoreDamaged
from xsc.base.limits import COMPUTE_LEASE_MS, MIB, SERVICE_LOG_ROWS_MAX, SERVICE_RATE_MS
from xsc.base.turns import Turns
from xsc.compute.deployments import rules, store
from xsc.compute.wasm.limits import Limits
from xsc.identity.context import Context
from xsc.identity.envelope import Signed
from xsc.terms.deployment import Deployment

SERVICES_MAX = 64
"""Services that a node holds, its own and those of peers."""
SERVICES_A_PEER_MAX = 8
SERVICE_VERSIONS_KEPT = 16
"""Versions of one service that can be gone back to."""
SERVICE_MODULES_BYTES_MAX = 512 * MIB
"""Modules of all services on the disk."""
SERVICE_MODULES_A_PEER_BYTES_MAX = 128 * MIB
"""The same of one peer's services, all kept versions."""
_MINUTE_MS: Final = 60_000


def least_rate(record: Deployment) -> int:
    """Return the fuel steps a second with which a request fits into a minute of a rate.

    Of a request that may use more than one of the default limits, only so much: it can run without.
    """
    steps = min(rules.steps_of(record), Limits().steps)
    return units.ceil_div(steps * 1_000, COMPUTE_LEASE_MS)


class RunRate:
    """Counts the fuel steps that requests of a service took, by minutes."""

    def __init__(self) -> None:
        self._ran = Counter[int]()

    def note(self, steps: int, now_ms: int) -> None:
        """Count a request that was paid now."""
        self._ran[now_ms // _MINUTE_MS] += steps
        for minute in [each for each in self._ran if each <= self._before(now_ms)]:
            del self._ran[minute]

    def a_second(self, now_ms: int) -> int:
        """Return the fuel steps a second over the last SERVICE_RATE_MS."""
        steps = sum(ran for minute, ran in self._ran.items() if minute > self._before(now_ms))
        return units.ceil_div(steps * 1_000, SERVICE_RATE_MS)

    @staticmethod
    def _before(now_ms: int) -> int:
        return (now_ms - SERVICE_RATE_MS) // _MINUTE_MS


@dataclass(eq=False, slots=True)
class ServiceEntry:
    """One service and its state."""

    key: store.ServiceKey
    versions: dict[str, Signed[Deployment]]
    since: int = 0
    """The generation of its first version: a removed service of the same name is another one."""
    rows: int = 0
    last: int = 0
    """The number of the newest row."""
    turn: asyncio.Condition = field(default_factory=asyncio.Condition)
    """Told when `has_turn` may have changed."""
    running: int = 0
    waiting: int = 0
    called: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the owner calls, which may bring another lease; who waits for one clears it."""
    told: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a row is added; then another event takes its place."""
    lease_id: bytes = b""
    """What pays for it, where owner and holder are two nodes."""
    lease_end_ms: int = 0
    """By the steady clock, at the owner."""
    rates: tuple[bytes, ...] = ()
    """At the holder: leases of the owner with a cleared rate, which come before that one."""
    ran: RunRate = field(default_factory=RunRate)
    """At the owner: what was paid of late."""
    starved: bool = False
    """A request found no room under the lease."""
    heard_ms: int = 0
    """When the owner last called, by the steady clock."""
    url: str = ""
    """Where the holder says that requests reach it."""
    fault: str = ""
    refuted: bool = False
    """A receipt broke a rule: nothing is paid any more."""
    requests: int = 0
    failures: int = 0
    refused: int = 0

    def has_turn(self) -> bool:
        """Return whether another request may run beside those that do."""
        return self.running < self.active.record.concurrency

    async def look_again(self) -> None:
        """Have those that wait for a turn look again."""
        async with self.turn:
            self.turn.notify_all()

    @property
    def active(self) -> Signed[Deployment]:
        """The active deployment."""
        return rules.active_of(self.versions.values())


class ServiceRegistry:
    """Finds, keeps and drops services; shared by the owner's and the holder's side."""

    def __init__(
        self,
        context: Context,
        modules: bounded.Bounded[bytes, bytes],
        on_change: Callable[[], None],
    ) -> None:
        """Begin with nothing; `load` reads what was kept.

        Args:
            context: what it uses.
            modules: those in memory, shared with jobs.
            on_change: called when a service is deployed, moved or removed.
        """
        self._own = context.key.node_id
        self._on_change = on_change
        self._clock = context.clock
        self._executor = context.executor
        self.store = store.ServiceStore(context.state, context.network)
        self.url = ""
        """Where requests reach this node, once it listens."""
        self.changed = asyncio.Event()
        """Set when a service is deployed, moved or removed."""
        self.changing: Turns[store.ServiceKey] = Turns()
        """Held while one service changes: over calls to peers, hence not one lock for all."""
        self._services: dict[store.ServiceKey, ServiceEntry] = {}
        self._sizes: dict[bytes, int] = {}
        """The size in bytes of each kept module."""
        self._promised: dict[store.ServiceKey, tuple[bytes, int]] = {}
        """The modules of services that are being deployed, and their sizes."""
        self._modules = modules
        self._writing = asyncio.Lock()
        """Held while it is decided which modules are written and dropped; never over a call."""

    def load(self) -> None:
        """Read what was kept.

        Raises:
            StoreDamaged: it fails its check.
        """
        for signed in self.store.deployments():
            key = (signed.record.owner, signed.record.name)
            service = self._services.get(key)
            if service is None:
                rows, last = self.store.numbers(key)
                service = self._services[key] = self.new(key, rows, last)
            service.versions[signed.record.version] = signed
        for service in self._services.values():
            service.since = rules.first_generation(service.versions.values())
        self._sizes = self.store.modules()

    def get(self, key: store.ServiceKey) -> ServiceEntry | None:
        """Return a service, None where there is none."""
        return self._services.get(key)

    def all(self) -> list[ServiceEntry]:
        """Return every service."""
        return list(self._services.values())

    def new(self, key: store.ServiceKey, rows: int = 0, last: int = 0) -> ServiceEntry:
        """Return an entry that is not kept yet."""
        return ServiceEntry(key, {}, rows=rows, last=last, heard_ms=self._clock.monotonic_ms())

    def mine(self, name: str) -> ServiceEntry:
        """Return an own service.

        Raises:
            NotFound: there is none of that name.
        """
        service = self._services.get((self._own, name))
        if service is None:
            hint = "`xsc compute ls` shows what there is"
            if any(served == name for _, served in self._services):
                hint = "this node serves it for another, who alone has its log and may change it"
            raise NotFound(f"this node owns no service '{name[:80]}'", hint=hint)
        return service

    def has_module(self, digest: bytes) -> bool:
        """Say whether a module of that SHA-256 is kept."""
        return digest in self._sizes

    @contextmanager
    def room_for(self, key: store.ServiceKey, digest: bytes, size_bytes: int) -> Iterator[None]:
        """Keep room for a deployment and its module until it is kept itself, or given up.

        Raises:
            SpaceExhausted: there are too many services or modules already.
        """
        self._promised[key] = digest, size_bytes
        try:
            self._check_room(key)
            yield
        finally:
            del self._promised[key]

    def _check_room(self, key: store.ServiceKey) -> None:
        sizes = {**self._sizes, **dict(self._promised.values())}
        modules = {
            service.key: {signed.record.module for signed in service.versions.values()}
            for service in self._services.values()
        }
        for promised, (module, _) in self._promised.items():
            modules.setdefault(promised, set()).add(module)
        if len(modules) > SERVICES_MAX:
            raise SpaceExhausted(
                f"this node holds {SERVICES_MAX} services already",
                hint="its operator can remove some: `xsc compute ls`, `xsc compute undeploy`",
            )
        if key[0] != self._own:
            theirs = [used for other, used in modules.items() if other[0] == key[0]]
            if len(theirs) > SERVICES_A_PEER_MAX:
                raise SpaceExhausted(f"this node holds {SERVICES_A_PEER_MAX} services of yours")
            held = sum(sizes.get(module, 0) for module in set().union(*theirs))
            if held > SERVICE_MODULES_A_PEER_BYTES_MAX:
                raise SpaceExhausted(
                    f"the modules of your services, all their versions, are bounded to "
                    f"{SERVICE_MODULES_A_PEER_BYTES_MAX} bytes",
                    hint="remove a service that is not used any more: `xsc compute undeploy`",
                )
        if sum(sizes.values()) > SERVICE_MODULES_BYTES_MAX:
            raise SpaceExhausted(
                f"the modules of all services are bounded to {SERVICE_MODULES_BYTES_MAX} bytes",
                hint="deploy a smaller module, or at another node",
            )

    async def keep(self, service: ServiceEntry, signed: Signed[Deployment], module: bytes) -> None:
        """Keep a deployment, which becomes the active one, and drop the oldest versions.

        Its room is kept by `room_for`.
        """
        record = signed.record
        versions = {**service.versions, record.version: signed}
        oldest = sorted(versions.values(), key=lambda each: each.record.generation)
        dropped = [each.record.version for each in oldest[:-SERVICE_VERSIONS_KEPT]]
        for version in dropped:
            del versions[version]
        async with self._writing:
            new = None if record.module in self._sizes else module
            await self._executor.run(self.store.keep, signed, new, dropped)
            self._sizes[record.module] = len(module)
            service.since = service.since or record.generation
            service.versions = versions
            self._services[service.key] = service
            self._modules.put(record.module, module, record.owner, len(module))
            self._drop_modules()
            self.changed.set()
            self._on_change()
        await service.look_again()

    async def drop(self, service: ServiceEntry) -> None:
        """Remove a service with its versions, its log and modules that no other uses."""
        async with self._writing:
            if self._services.get(service.key) is not service:
                return
            self.store.drop(service.key, service.versions)
            del self._services[service.key]
            service.told.set()
            self._drop_modules()
            self.changed.set()
            self._on_change()

    def _drop_modules(self) -> None:
        used = {
            signed.record.module
            for service in self._services.values()
            for signed in service.versions.values()
        }
        for digest in set(self._sizes) - used:
            self.store.drop_module(digest)
            del self._sizes[digest]

    async def module(self, digest: bytes, customer: bytes) -> bytes:
        """Return a kept module, which counts for a customer while it is in memory.

        Raises:
            NotFound, StoreDamaged: it is gone or damaged.
        """
        found = self._modules.get(digest)
        if found is None:
            try:
                found = await self._executor.run(self.store.module, digest)
                if found is None:
                    raise NotFound("the module of the service is gone", hint="deploy it again")
            except (NotFound, StoreDamaged):
                self._sizes.pop(digest, None)  # so the deployment that brings it again writes it
                raise
            self._modules.put(digest, found, customer, len(found))
        return found

    def add(self, service: ServiceEntry, rows: Sequence[store.LogRow]) -> None:
        """Add rows to the log; the oldest are dropped where there are too many."""
        self.store.add(service.key, rows)
        service.rows += len(rows)
        service.requests += len(rows)
        service.failures += sum(row.status >= 500 for row in rows)
        if rows:
            service.last = rows[-1].number
        if service.rows > SERVICE_LOG_ROWS_MAX:
            cut = service.rows - SERVICE_LOG_ROWS_MAX + SERVICE_LOG_ROWS_MAX // 16
            self.store.cut_oldest(service.key, cut)
            service.rows -= cut
        service.told.set()
        service.told = asyncio.Event()
