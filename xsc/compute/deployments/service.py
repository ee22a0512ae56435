"""Programs that answer requests: deployed by an owner, held and run by a node.

As owner: signs deployments, places them here or at a peer, keeps a lease open
for those at peers, fetches their receipts, checks each, and pays what holds. As
holder: takes a peer's deployment under an open lease, runs the program for each
request, and keeps a receipt until the owner has fetched it.

A request runs with the deployment that is active when its turn comes, to its
end, whatever is deployed meanwhile. It runs to its end also where its caller
goes away: to end a worker in the middle costs more than to let it finish.

What every request writes to the log is what the owner pays for: rows of a
service at a peer come from its receipts.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from xsc.base.bounded import Bounded
from xsc.base.clock import Clock, Entropy, Executor, run_sized
from xsc.base.encoding import Value
from xsc.base.errors import (
    ArgumentInvalid,
    CreditExceeded,
    LeaseExhausted,
    ModuleUnknown,
    NoOffers,
    NotAllowed,
    NotFound,
    PeerError,
    PeerSilent,
    RateLimited,
    ReceiptInvalid,
    RecordInvalid,
    SpaceExhausted,
    StoreDamaged,
    TooLarge,
    UnavailableError,
    XscError,
)
from xsc.base.fields import take_bool, take_bytes, take_int, take_list, take_map, take_str
from xsc.base.ids import short, to_text
from xsc.base.keyvalue import KeyValue
from xsc.base.limits import (
    COMPILE_MS_DEFAULT,
    DEPLOYMENTS_A_PEER_MAX,
    DEPLOYMENTS_MS,
    LEASE_TIMEOUT_MS,
    MODULES_DEPLOYED_A_PEER_MAX,
    MODULES_DEPLOYED_MS,
    PEER_TIMEOUT_MS,
    RECORD_BYTES_MAX,
    RETRY_AFTER_S_MAX,
    SERVICE_COLLECT_MS,
    SERVICE_COLLECT_TIMEOUT_MS,
    SERVICE_LOG_ROWS_MAX,
    SERVICE_MODULES_A_PEER_BYTES_MAX,
    SERVICE_MODULES_BYTES_MAX,
    SERVICE_MODULES_WARM_BYTES_MAX,
    SERVICE_NOTE_BYTES_MAX,
    SERVICE_PAGE_BYTES_MAX,
    SERVICE_PAGE_ROWS_MAX,
    SERVICE_RECORD_BYTES_MAX,
    SERVICE_UNPAID_BYTES_MAX,
    SERVICE_UNPAID_KEPT_MS,
    SERVICE_UNPAID_ROWS_MAX,
    SERVICE_VERSIONS_KEPT,
    SERVICES_A_PEER_MAX,
    SERVICES_MAX,
)
from xsc.base.log import Log
from xsc.base.merkle import Part, root_of
from xsc.base.tally import Tally
from xsc.base.turns import Turns
from xsc.compute.deployments import rules, wagi
from xsc.compute.deployments.gate import Gate
from xsc.compute.deployments.rules import Answer, fault_answer
from xsc.compute.deployments.store import Row, ServiceKey, ServiceStore
from xsc.compute.ports import Caller, Handler, ServiceBook, ServiceLeases
from xsc.compute.wasm.inputs import digest_of
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.program import read
from xsc.compute.wasm.sandbox import Sandbox, SandboxResult
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.terms.deployment import Deployment, ServiceReceipt
from xsc.terms.lease import OWN_LEASE

_NONCE_BYTES = 16
_PATH_CHARS_MAX = 256
_URL_CHARS_MAX = 512
_URL = re.compile(r"https?://[!-~]+")
_RETRY_S = 1
_UNPAID_RETRY_S = 5
_PAGES_A_TURN = 64
"""A holder that has always more to tell keeps nobody else waiting."""
WAIT_MS_MAX = 30_000
"""How long a reader of the log may wait for the next row."""


@dataclass(frozen=True, slots=True)
class View:
    """A service as `xsc compute ls` shows it."""

    owner: bytes
    name: str
    provider: bytes
    version: str
    versions: tuple[str, ...]
    """The newest first."""
    url: str
    """Where it answers; empty where its node listens nowhere."""
    state: str
    """serving, off (its node listens nowhere), placed, or unpaid."""
    fault: str
    """Why it does not answer, as far as that is known."""
    running: int
    waiting: int
    requests: int
    failures: int
    refused: int


@dataclass(frozen=True, slots=True)
class Served:
    """What a request is answered with."""

    answer: Answer
    request_id: str = ""
    """Empty where nothing ran."""


@dataclass(eq=False, slots=True)
class _Service:
    key: ServiceKey
    versions: dict[str, Signed[Deployment]]
    since: int = 0
    """The generation it began with: a service of that name that was removed before is another."""
    rows: int = 0
    last: int = 0
    """The number of the newest row."""
    gate: Gate = field(default_factory=Gate)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a row comes, and then another event takes its place."""
    lease_id: bytes = b""
    """What pays for it, where owner and holder are two."""
    lease_end_ms: int = 0
    """By the steady clock, at the owner."""
    starved: bool = False
    """A request found no room under the lease."""
    heard_ms: int = 0
    """When the owner last said a word, by the steady clock."""
    url: str = ""
    fault: str = ""
    refuted: bool = False
    """A receipt did not hold: nothing is paid any more."""
    requests: int = 0
    failures: int = 0
    refused: int = 0

    @property
    def active(self) -> Signed[Deployment]:
        """The deployment that holds."""
        return rules.active_of(self.versions.values())


class Services:
    """Both sides of a service."""

    def __init__(
        self,
        *,
        key: KeyPair,
        network: bytes,
        clock: Clock,
        entropy: Entropy,
        executor: Executor,
        caller: Caller,
        leases: ServiceLeases,
        book: ServiceBook,
        sandbox: Sandbox,
        state: KeyValue,
        log: Log,
        serving: bool,
        compile_ms: int = COMPILE_MS_DEFAULT,
    ) -> None:
        """Put it together.

        Args:
            serving: whether this node listens for requests, and so takes services of peers.
            compile_ms: how long others may compile a module for this node.
        """
        self._place_timeout_ms = compile_ms + PEER_TIMEOUT_MS
        self._key = key
        self._own = key.node_id
        self._network = network
        self._clock = clock
        self._entropy = entropy
        self._executor = executor
        self._caller = caller
        self._leases = leases
        self._book = book
        self._sandbox = sandbox
        self._store = ServiceStore(state, network)
        self._log = log
        self._serving = serving
        self.url = ""
        """Where requests reach this node, once it listens."""
        self._services: dict[ServiceKey, _Service] = {}
        self._sizes: dict[bytes, int] = {}
        self._warm: Bounded[bytes, bytes] = Bounded(
            size_max=SERVICE_MODULES_WARM_BYTES_MAX, size_of=len
        )
        self._changing: Turns[ServiceKey] = Turns()
        """Held while one service changes: over calls to peers, hence not one lock for all."""
        self._writing = asyncio.Lock()
        """Held while it is decided which modules are written and dropped; never over a call."""
        self._tasks: set[asyncio.Task[Served]] = set()
        self._brought = Tally(MODULES_DEPLOYED_A_PEER_MAX, MODULES_DEPLOYED_MS)
        """Modules that came with deployments: compiling one is in no receipt."""
        self._deployed = Tally(DEPLOYMENTS_A_PEER_MAX, DEPLOYMENTS_MS)

    async def start(self) -> None:
        """Read what was kept.

        Raises:
            StoreDamaged: it fails its check.
        """
        for signed in self._store.deployments():
            key = (signed.record.owner, signed.record.name)
            service = self._services.get(key)
            if service is None:
                rows, last = self._store.numbers(key)
                service = self._services[key] = self._new(key, rows, last)
            service.versions[signed.record.version] = signed
        for service in self._services.values():
            service.since = rules.first_generation(service.versions.values())
        self._sizes = self._store.modules()

    async def stop(self) -> None:
        """Give up what runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def handlers(self) -> dict[str, Handler]:
        """Return what peers may call."""
        return {
            "service.deploy": self._on_deploy,
            "service.undeploy": self._on_undeploy,
            "service.collect": self._on_collect,
        }

    async def run(self) -> None:
        """Look after services at peers, and drop those of peers that say nothing any more."""
        while True:
            await self._clock.sleep_ms(SERVICE_COLLECT_MS)
            await asyncio.gather(*(self._look_after(service) for service in self._placed()))
            await self._drop_silent()

    def _new(self, key: ServiceKey, rows: int = 0, last: int = 0) -> _Service:
        return _Service(key, {}, rows=rows, last=last, heard_ms=self._clock.monotonic_ms())

    def _placed(self) -> list[_Service]:
        return [
            service
            for service in self._services.values()
            if service.active.record.provider != self._own
        ]

    # The owner's side

    async def deploy(
        self,
        module: bytes,
        name: str,
        *,
        version: str | None = None,
        environment: Mapping[str, str] | None = None,
        limits: Limits,
        concurrency: int,
        on: bytes | None = None,
    ) -> View:
        """Make a module a service, or the next version of one, from now on.

        Args:
            module: a WASI command.
            name: of the service.
            version: its name; the next whole number where None.
            environment: variables beside those of each request.
            limits: of each request.
            concurrency: how many requests may run at once.
            on: the node that holds it; this one where None.

        Raises:
            ArgumentInvalid: a value is malformed, the version was another module, or the
                service is at another node.
            ModuleInvalid, ExportUnknown: it is no WASI command.
            SpaceExhausted: there are too many services or modules already.
            XscError: the peer does not take it.
        """
        rules.check_name(name)
        variables = rules.check_environment(environment or {})
        rules.check_concurrency(concurrency)
        if version is not None:
            rules.check_version(version)
        rules.check_module_size(len(module))
        rules.check_program(await self._executor.run(read, module))
        digest = await run_sized(self._executor, len(module), digest_of, module)
        key = (self._own, name)
        provider = self._own if on is None else on
        async with self._changing.of(key):
            known = self._services.get(key)
            versions = {} if known is None else known.versions
            if known is not None and known.active.record.provider != provider:
                raise ArgumentInvalid(
                    f"'{name}' is deployed at {short(known.active.record.provider)}",
                    hint="undeploy it there first, or choose another name",
                )
            self._check_room(key, digest, len(module))
            now_ms = self._clock.now_ms()
            record = Deployment(
                owner=self._own,
                provider=provider,
                name=name,
                version=version or rules.next_version(versions),
                generation=rules.next_generation(versions.values(), now_ms),
                module=digest,
                environment=variables,
                fuel_max=limits.fuel,
                memory_bytes_max=limits.memory_bytes,
                timeout_ms=limits.timeout_ms,
                output_bytes_max=limits.output_bytes,
                concurrency=concurrency,
                created_ms=now_ms,
            )
            if record.version in versions and not _same(versions[record.version].record, record):
                raise ArgumentInvalid(
                    f"version {record.version} of '{name}' is another deployment already",
                    hint="choose another name for this version",
                )
            return await self._activate(key, record, module)

    async def module(self, digest: bytes) -> bytes | None:
        """Return the module of that SHA-256 where a service that is held here has it whole."""
        try:
            return await self._module(digest) if digest in self._sizes else None
        except (NotFound, StoreDamaged):
            return None

    async def rollback(self, name: str, to: str | None = None) -> View:
        """Go back to a version: requests that run end with the one that they began with.

        Args:
            name: of an own service.
            to: the version; what was active before where None.

        Raises:
            NotFound: no such service or version.
            XscError: the peer that holds it does not answer.
        """
        async with self._changing.of((self._own, name)):
            service = self._mine(name)
            chosen = rules.to_roll_back(name, service.versions, to).record
            now_ms = self._clock.now_ms()
            record = chosen.model_copy(
                update={
                    "generation": rules.next_generation(service.versions.values(), now_ms),
                    "created_ms": now_ms,
                }
            )
            return await self._activate(service.key, record, await self._module(record.module))

    async def undeploy(self, name: str) -> str:
        """Remove an own service with its versions and its log; return a warning, or nothing.

        A peer that does not answer finds out by itself, because nobody pays it any more.

        Raises:
            NotFound: there is none.
        """
        async with self._changing.of((self._own, name)):
            service = self._mine(name)
            provider = service.active.record.provider
            warning = ""
            if provider != self._own:
                warning = await self._part(service, provider)
            await self._drop(service)
            return warning

    async def _part(self, service: _Service, provider: bytes) -> str:
        """Pay a holder for the last time and tell it to go; return a warning, or nothing."""
        warning = ""
        try:
            if not service.refuted:
                await self._collect(service)
        except NotFound:
            return ""  # it is gone there already
        except PeerSilent as fault:
            return _not_told(provider, fault)
        except XscError as fault:
            warning = f"{short(provider)} is not paid for the last requests: {fault.message}"
        try:
            await self._caller.call(
                provider,
                "service.undeploy",
                {"name": service.key[1]},
                timeout_ms=SERVICE_COLLECT_TIMEOUT_MS,
            )
        except NotFound:
            pass
        except XscError as fault:
            return _not_told(provider, fault)
        return warning

    def views(self) -> list[View]:
        """Return all services, own ones first, by name."""
        found = sorted(
            self._services.values(), key=lambda each: (each.key[0] != self._own, each.key)
        )
        return [self._view(service) for service in found]

    async def log_rows(
        self, name: str, *, after: int | None, most: int, wait_ms: int = 0
    ) -> list[Row]:
        """Return rows of an own service's log, in order.

        Args:
            name: of the service.
            after: the oldest rows after that number; None for the newest of all.
            most: how many at most.
            wait_ms: how long to wait for the first one, where there is none.

        Raises:
            NotFound: there is no such service.
        """
        service = self._mine(name)
        told = service.told
        most = min(most, SERVICE_LOG_ROWS_MAX)

        def found() -> list[Row]:
            return self._store.rows(
                service.key,
                after=after or 0,
                newest=after is None,
                most=most,
                size_max=SERVICE_LOG_ROWS_MAX * RECORD_BYTES_MAX,
            )

        rows = found()
        if rows or not wait_ms:
            return rows
        try:
            async with asyncio.timeout(min(wait_ms, WAIT_MS_MAX) / 1000):
                await told.wait()
        except TimeoutError:
            return []
        return found()

    def _mine(self, name: str) -> _Service:
        service = self._services.get((self._own, name))
        if service is None:
            raise NotFound(
                f"there is no service '{name[:80]}'", hint="`xsc compute ls` shows what there is"
            )
        return service

    def _view(self, service: _Service) -> View:
        record = service.active.record
        newest = sorted(
            service.versions.values(), key=lambda each: each.record.generation, reverse=True
        )
        here = record.provider == self._own
        base = self.url if here else service.url
        owner = to_text(record.owner)
        state, fault = "placed", service.fault
        if here:
            state = "serving" if self.url else "off"
            if record.owner != self._own and service.starved:
                state = "unpaid"
        return View(
            owner=record.owner,
            name=record.name,
            provider=record.provider,
            version=record.version,
            versions=tuple(each.record.version for each in newest),
            url=f"{base}/fn/{owner}/{record.name}" if base else "",
            state=state,
            fault=fault,
            running=service.gate.running,
            waiting=service.gate.waiting,
            requests=service.requests,
            failures=service.failures,
            refused=service.refused,
        )

    async def _activate(self, key: ServiceKey, record: Deployment, module: bytes) -> View:
        signed = sign(record, self._key, self._network)
        service = self._services.get(key) or self._new(key)
        if record.provider != self._own:
            await self._place(service, signed, module)
        else:
            await self._sandbox.prepare(rules.module_job(record, module))
        await self._keep(service, signed, module)
        self._log.info("service_deployed", service=record.name, version=record.version)
        return self._view(service)

    async def _place(self, service: _Service, signed: Signed[Deployment], module: bytes) -> None:
        """Have a peer hold a deployment, under a lease with room for all that may run at once."""
        record = signed.record
        await self._take_lease(service, record)
        header: dict[str, Value] = {
            "deployment": signed.raw,
            "lease_id": service.lease_id,
            "module": False,
        }
        try:
            reply = await self._caller.call(
                record.provider, "service.deploy", header, timeout_ms=self._place_timeout_ms
            )
        except ModuleUnknown:
            root = await run_sized(self._executor, len(module), root_of, module)
            reply = await self._caller.call(
                record.provider,
                "service.deploy",
                {**header, "module": True},
                [Part(module, root)],
                timeout_ms=self._place_timeout_ms,
            )
        service.url = _url_in(reply.header)
        service.fault, service.refuted, service.starved = "", False, False

    async def _take_lease(self, service: _Service, record: Deployment) -> None:
        steps = rules.steps_of(record, record.fuel_max) * record.concurrency
        lease = await self._leases.lease_compute(fuel_steps=steps, on=record.provider)
        if lease.node != record.provider:
            raise NoOffers("the node offers no compute")
        service.lease_id = lease.lease_id
        # Until the holder says how much of it is left.
        service.lease_end_ms = self._clock.monotonic_ms() + 2 * LEASE_TIMEOUT_MS

    async def _look_after(self, service: _Service) -> None:
        """Keep a service at a peer paid and its log here; what fails is tried again."""
        try:
            async with self._changing.of(service.key):
                if self._services.get(service.key) is service and not service.refuted:
                    await self._collect(service)
        except XscError as fault:
            if service.fault != fault.message:
                self._log.warning(
                    "service_not_reached", service=service.key[1], reason=fault.message
                )
            service.fault = fault.message

    async def _collect(self, service: _Service) -> None:
        """Fetch and check receipts, pay what holds, and see to the lease; for so long at most."""
        record = service.active.record
        began_ms = self._clock.monotonic_ms()
        for _ in range(_PAGES_A_TURN):
            left_ms = service.lease_end_ms - self._clock.monotonic_ms()
            if not service.lease_id or service.starved or left_ms < LEASE_TIMEOUT_MS:
                await self._take_lease(service, record)
            reply = await self._caller.call(
                record.provider,
                "service.collect",
                {"name": record.name, "after": service.last, "lease_id": service.lease_id},
                timeout_ms=SERVICE_COLLECT_TIMEOUT_MS,
            )
            service.starved = take_bool(reply.header, "starved")
            service.lease_end_ms = self._clock.monotonic_ms() + take_int(
                reply.header, "lease_left_ms"
            )
            service.url = _url_in(reply.header)
            rows = [
                Row.from_value(take_map({"row": item}, "row"))
                for item in take_list(reply.header, "rows", most=SERVICE_PAGE_ROWS_MAX)
            ]
            if rows:
                await self._pay(service, rows)
            service.fault = ""
            took_ms = self._clock.monotonic_ms() - began_ms
            if (
                not rows
                or not take_bool(reply.header, "more")
                or took_ms >= SERVICE_COLLECT_TIMEOUT_MS
            ):
                return

    async def _pay(self, service: _Service, rows: Sequence[Row]) -> None:
        try:
            checked = await self._executor.run(self._check_rows, service, rows)
        except (PeerError, TooLarge) as fault:
            service.refuted = True
            raise ReceiptInvalid(
                f"a receipt of {short(service.active.record.provider)} is refused, "
                f"and the service no longer paid: {fault.message}"
            ) from None
        self._add(service, [row for row, _ in checked], failures=_failures(rows))
        service.last = max(service.last, rows[-1].number)
        for row, receipt in checked:
            deployment = open_signed(
                receipt.deployment,
                Deployment,
                network=self._network,
                author=self._own,
                size_max=SERVICE_RECORD_BYTES_MAX,
            ).record
            steps = rules.steps_of(deployment, row.fuel_used)
            await self._leases.spent(receipt.lease_id, steps, row.amount_micro)
        # The next word lets the holder forget them: row and payment must be here for good. The
        # row comes first, so that a power loss in between may lose a payment and never doubles it.
        await self._executor.run(self._store.sync)

    def _check_rows(
        self, service: _Service, rows: Sequence[Row]
    ) -> list[tuple[Row, ServiceReceipt]]:
        """Return the rows whose receipts hold, each made from its receipt."""
        provider = service.active.record.provider
        refusal = rules.check_numbers(service.last, [row.number for row in rows])
        if any(not _is_told(row) for row in rows):
            refusal = "it says of a request what none can have been"
        if refusal is not None:
            raise ReceiptInvalid(refusal)
        found: list[tuple[Row, ServiceReceipt]] = []
        unpaid = 0
        left: dict[bytes, int] = {}
        for row in rows:
            signed = open_signed(
                row.receipt, ServiceReceipt, network=self._network, author=provider
            )
            receipt = signed.record
            deployment = open_signed(
                receipt.deployment, Deployment, network=self._network, author=self._own
            ).record
            if (deployment.name, deployment.provider) != (service.key[1], provider):
                raise ReceiptInvalid("it is over the deployment of another service")
            terms = self._leases.price_and_room(receipt.lease_id, provider)
            if terms is None or deployment.generation < service.since:
                unpaid += 1
                continue
            price, room = terms
            refusal = rules.check_receipt(deployment, receipt, price)
            if refusal is None and receipt.number != row.number:
                refusal = "it bears another number than its row"
            if refusal is not None:
                raise ReceiptInvalid(refusal)
            steps = rules.steps_of(deployment, receipt.outcome.fuel_used)
            if steps > left.setdefault(receipt.lease_id, room):
                unpaid += 1
                continue
            left[receipt.lease_id] -= steps
            found.append((_row_of(receipt, deployment, row), receipt))
        if unpaid:
            self._log.warning("receipts_not_paid", service=service.key[1], count=unpaid)
        return found

    # What is held

    def _check_room(self, key: ServiceKey, digest: bytes, size_bytes: int) -> None:
        if key not in self._services and len(self._services) >= SERVICES_MAX:
            raise SpaceExhausted(f"this node holds {SERVICES_MAX} services already")
        if key[0] != self._own:
            self._check_peer_room(key[0], digest, size_bytes)
        held = sum(self._sizes.values())
        if digest not in self._sizes and held + size_bytes > SERVICE_MODULES_BYTES_MAX:
            raise SpaceExhausted(
                f"the modules of all services are bounded to {SERVICE_MODULES_BYTES_MAX} bytes"
            )

    def _check_peer_room(self, owner: bytes, digest: bytes, size_bytes: int) -> None:
        mine = {
            signed.record.module
            for key, service in self._services.items()
            if key[0] == owner
            for signed in service.versions.values()
        }
        held = sum(self._sizes.get(module, 0) for module in mine - {digest})
        if held + size_bytes > SERVICE_MODULES_A_PEER_BYTES_MAX:
            raise SpaceExhausted(
                f"the modules of your services, all their versions, are bounded to "
                f"{SERVICE_MODULES_A_PEER_BYTES_MAX} bytes"
            )

    async def _keep(self, service: _Service, signed: Signed[Deployment], module: bytes) -> None:
        """Keep a deployment, which is active from then on."""
        record = signed.record
        versions = {**service.versions, record.version: signed}
        oldest = sorted(versions.values(), key=lambda each: each.record.generation)
        dropped = [each.record.version for each in oldest[:-SERVICE_VERSIONS_KEPT]]
        for version in dropped:
            del versions[version]
        async with self._writing:
            new = None if record.module in self._sizes else module
            await self._executor.run(self._store.keep, signed, new, dropped)
            self._sizes[record.module] = len(module)
            service.since = service.since or record.generation
            service.versions = versions
            self._services[service.key] = service
            self._warm.put(record.module, module)
            self._drop_modules()

    async def _drop(self, service: _Service) -> None:
        async with self._writing:
            if self._services.get(service.key) is not service:
                return
            self._store.drop(service.key, service.versions)
            del self._services[service.key]
            service.told.set()
            self._drop_modules()

    def _drop_modules(self) -> None:
        used = {
            signed.record.module
            for service in self._services.values()
            for signed in service.versions.values()
        }
        for digest in set(self._sizes) - used:
            self._store.drop_module(digest)
            del self._sizes[digest]
            self._warm.pop(digest)

    async def _drop_silent(self) -> None:
        now_ms = self._clock.monotonic_ms()
        for service in list(self._services.values()):
            mine = service.key[0] == self._own
            if not mine and now_ms - service.heard_ms > SERVICE_UNPAID_KEPT_MS:
                self._log.info("service_dropped", owner=short(service.key[0]), name=service.key[1])
                await self._drop(service)

    async def _module(self, digest: bytes) -> bytes:
        found = self._warm.get(digest)
        if found is None:
            try:
                found = await self._executor.run(self._store.module, digest)
                if found is None:
                    raise NotFound("the module of the service is gone", hint="deploy it again")
            except (NotFound, StoreDamaged):
                self._sizes.pop(digest, None)  # so the deployment that brings it again writes it
                raise
            self._warm.put(digest, found)
        return found

    def _add(self, service: _Service, rows: Sequence[Row], *, failures: int) -> None:
        """Add rows to the log; the oldest go where there are too many."""
        self._store.add(service.key, rows)
        service.rows += len(rows)
        service.requests += len(rows)
        service.failures += failures
        if rows:
            service.last = rows[-1].number
        if service.rows > SERVICE_LOG_ROWS_MAX:
            cut = service.rows - SERVICE_LOG_ROWS_MAX + SERVICE_LOG_ROWS_MAX // 16
            self._store.cut_oldest(service.key, cut)
            service.rows -= cut
        service.told.set()
        service.told = asyncio.Event()

    # Requests

    def holds(self, owner: bytes, name: str) -> bool:
        """Say whether a service answers at this node."""
        service = self._services.get((owner, name))
        return service is not None and service.active.record.provider == self._own

    async def answer(
        self,
        owner: bytes,
        name: str,
        request: wagi.Request,
        *,
        done: Callable[[], None] = lambda: None,
    ) -> Served:
        """Return what a service answers; whatever goes wrong is an answer, too.

        `done` is called once nothing needs the request any more, before this returns; where
        the caller goes away, when what runs has come to its end.
        """
        task: asyncio.Task[Served] | None = None
        try:
            service = self._services.get((owner, name))
            if service is None or not self.holds(owner, name):
                return Served(fault_answer(404, "there is no such service here"))
            try:
                await service.gate.enter(service.active.record.concurrency)
            except RateLimited as fault:
                service.refused += 1
                return Served(fault_answer(429, fault.message, retry_after_s=_RETRY_S))
            task = asyncio.create_task(self._work(service, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: done())
        finally:
            if task is None:
                done()
        # It goes on where the caller goes away.
        return await asyncio.shield(task)

    async def _work(self, service: _Service, request: wagi.Request) -> Served:
        signed = service.active
        try:
            return await self._served(service, signed, request)
        except (UnavailableError, RateLimited) as fault:
            service.refused += 1
            retry_after_s = fault.retry_after_s or _RETRY_S
            return Served(fault_answer(503, fault.message, retry_after_s=retry_after_s))
        except (CreditExceeded, LeaseExhausted):
            service.refused += 1
            service.starved = True
            reason = "the owner of this service does not pay for it at the moment"
            return Served(fault_answer(503, reason, retry_after_s=_UNPAID_RETRY_S))
        except XscError as fault:
            service.failures += 1
            return Served(fault_answer(502, f"the service cannot run: {fault.message}"))
        finally:
            service.gate.leave(service.active.record.concurrency)

    async def _served(
        self, service: _Service, signed: Signed[Deployment], request: wagi.Request
    ) -> Served:
        record = signed.record
        given = wagi.input_of(request, dict(record.environment))
        if given is None:
            return Served(fault_answer(431, "the head of the request is more than a program takes"))
        paid = record.owner != self._own
        unpaid_bytes = service.rows * len(signed.raw)
        if paid and (
            service.rows >= SERVICE_UNPAID_ROWS_MAX or unpaid_bytes >= SERVICE_UNPAID_BYTES_MAX
        ):
            raise LeaseExhausted("the owner does not fetch its receipts")
        module = await self._module(record.module)
        lease_id = service.lease_id if paid else OWN_LEASE
        steps = rules.steps_of(record, record.fuel_max)
        price = self._book.admit_compute(lease_id, record.owner, steps)
        nonce = self._entropy.token(_NONCE_BYTES)
        created_ms = self._clock.now_ms()
        began_ms = self._clock.monotonic_ms()
        used = 0
        try:
            job = rules.job_of(
                record,
                module,
                given,
                nonce=nonce,
                clock_ms=created_ms,
                # One of this node is apart from its own runs; all of a peer have its one share.
                queue=record.owner if paid else signed.id,
            )
            result = await self._sandbox.run(job)
            used = rules.steps_of(record, rules.fuel_of(record, result))
        finally:
            self._book.used_compute(lease_id, steps, used)
        answer = rules.answer_of(result)
        receipt = rules.make_receipt(
            signed,
            given,
            result,
            lease_id=lease_id,
            price=price,
            number=max(service.last + 1, created_ms),
            nonce=nonce,
            created_ms=created_ms,
            wall_ms=self._clock.monotonic_ms() - began_ms,
            status=answer.response.status,
        )
        raw = sign(receipt, self._key, self._network).raw if paid else b""
        noted = _noted(request, result, raw)
        row = _row_of(receipt, record, noted)
        if self._services.get(service.key) is service:
            try:
                self._add(service, [row], failures=_failures([row]))
            except XscError as fault:
                # What was answered is answered, and without its row not billed.
                self._log.error("service_log_not_written", reason=fault.message)
        return Served(answer, row.request_id)

    # What peers ask

    async def _on_deploy(
        self, caller: bytes, header: dict[str, Value], parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        if not self._serving:
            raise NotAllowed(
                "this node serves no requests", hint="its operator has to set services_listen"
            )
        signed = open_signed(
            take_bytes(header, "deployment"),
            Deployment,
            network=self._network,
            author=caller,
            size_max=SERVICE_RECORD_BYTES_MAX,
        )
        record = signed.record
        lease_id = take_bytes(header, "lease_id", size=32)
        with_module = take_bool(header, "module")
        if (record.owner, record.provider) != (caller, self._own):
            raise RecordInvalid("the deployment is between other nodes")
        if len(parts) != with_module:
            raise RecordInvalid("the request lacks the module or has a part too many")
        rules.check_received(record)
        self._check_lease(lease_id, record)
        key = (caller, record.name)
        async with self._changing.of(key):
            service = self._services.get(key)
            if (
                service is None
                or record.version not in service.versions
                or (service.versions[record.version].id != signed.id)
            ):
                service = await self._accept(service, signed, parts)
            service.lease_id, service.starved = lease_id, False
            service.heard_ms = self._clock.monotonic_ms()
        return {"url": self.url}, ()

    async def _accept(
        self, service: _Service | None, signed: Signed[Deployment], parts: Sequence[Part]
    ) -> _Service:
        record = signed.record
        key = (record.owner, record.name)
        if service is None:
            held = sum(1 for owner, _ in self._services if owner == record.owner)
            if held >= SERVICES_A_PEER_MAX:
                raise SpaceExhausted(f"this node holds {SERVICES_A_PEER_MAX} services of yours")
            service = self._new(key)
        elif record.generation <= service.active.record.generation:
            raise RecordInvalid("a later deployment of this service is held here")
        self._check_rate(record.owner)
        if record.module in self._sizes:
            module = await self._module(record.module)
            self._check_room(key, record.module, len(module))
        elif parts:
            module = bytes(parts[0].data)
            self._check_room(key, record.module, len(module))
            self._check_brought(record.owner)
            if await run_sized(self._executor, len(module), digest_of, module) != record.module:
                raise RecordInvalid("the module is not the one that the deployment names")
            rules.check_module_size(len(module))
            rules.check_program(await self._executor.run(read, module))
            self._brought.note(record.owner, self._clock.monotonic_ms())
        else:
            self._check_room(key, record.module, 0)
            self._check_brought(record.owner)
            raise ModuleUnknown("this node does not have the module")
        await self._sandbox.prepare(rules.module_job(record, module))
        self._deployed.note(record.owner, self._clock.monotonic_ms())
        await self._keep(service, signed, module)
        self._log.info("service_held", owner=short(record.owner), name=record.name)
        return service

    def _check_rate(self, owner: bytes) -> None:
        """Return if an owner may deploy once more."""
        wait_ms = self._deployed.wait_ms(owner, self._clock.monotonic_ms())
        if wait_ms:
            raise RateLimited(
                f"{DEPLOYMENTS_A_PEER_MAX} deployments of yours came "
                f"within {DEPLOYMENTS_MS // 1000} s",
                retry_after_s=min(-(-wait_ms // 1000), RETRY_AFTER_S_MAX),
            )

    def _check_brought(self, owner: bytes) -> None:
        """Return if an owner may bring one more module."""
        wait_ms = self._brought.wait_ms(owner, self._clock.monotonic_ms())
        if wait_ms:
            raise RateLimited(
                f"{MODULES_DEPLOYED_A_PEER_MAX} modules of yours came with deployments "
                f"within {MODULES_DEPLOYED_MS // 60_000} minutes",
                hint="a module that is held already can be deployed all the same",
                retry_after_s=min(-(-wait_ms // 1000), RETRY_AFTER_S_MAX),
            )

    def _check_lease(self, lease_id: bytes, record: Deployment) -> None:
        """Return if the lease has room for one request."""
        if lease_id == OWN_LEASE:
            raise RecordInvalid("the deployment names no lease")
        steps = rules.steps_of(record, record.fuel_max)
        self._book.admit_compute(lease_id, record.owner, steps)
        self._book.used_compute(lease_id, steps, 0)

    def _held(self, caller: bytes, header: dict[str, Value]) -> _Service:
        service = self._services.get((caller, take_str(header, "name")))
        if service is None:
            raise NotFound("this node holds no such service of yours", hint="deploy it again")
        return service

    async def _on_undeploy(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        service = self._held(caller, header)
        async with self._changing.of(service.key):
            await self._drop(service)
        return {}, ()

    async def _on_collect(
        self, caller: bytes, header: dict[str, Value], _parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        service = self._held(caller, header)
        lease_id = take_bytes(header, "lease_id", size=32)
        after = take_int(header, "after", most=2**62)
        # What the owner has, need not be kept here; and numbers grow from there on, whatever
        # the clock says after a restart.
        service.last = max(service.last, after)
        service.rows -= self._store.cut(service.key, after)
        service.heard_ms = self._clock.monotonic_ms()
        starved, service.starved = service.starved, False
        service.lease_id = lease_id
        rows = self._store.rows(
            service.key, most=SERVICE_PAGE_ROWS_MAX, size_max=SERVICE_PAGE_BYTES_MAX
        )
        end_ms = self._book.end_ms(lease_id)
        left_ms = 0 if end_ms is None else max(0, end_ms - self._clock.now_ms())
        return {
            "rows": [row.to_value() for row in rows],
            "more": len(rows) < service.rows,
            "starved": starved,
            "lease_left_ms": left_ms,
            "url": self.url,
        }, ()


def _url_in(header: Mapping[str, Value]) -> str:
    """Return where a holder says that requests reach it; it is shown, and written to terminals."""
    url = take_str(header, "url", most=_URL_CHARS_MAX)
    if url and not _URL.fullmatch(url):
        raise RecordInvalid("the holder says that its services are at what is no address")
    return url


def _is_told(row: Row) -> bool:
    """Say whether what no receipt says of a request is what a holder of this release notes."""
    return (
        row.method in wagi.METHODS
        and len(row.path) <= _PATH_CHARS_MAX
        and len(row.note) <= SERVICE_NOTE_BYTES_MAX
    )


def _not_told(provider: bytes, fault: XscError) -> str:
    return (
        f"{short(provider)} was not told ({fault.message}): it stops within a "
        "minute, for nobody pays it, and drops the service after a day"
    )


def _same(a: Deployment, b: Deployment) -> bool:
    """Say whether two deployments are the same version: all but the moment of signing."""
    moment = {"generation": 1, "created_ms": 0}
    return a.model_copy(update=moment) == b.model_copy(update=moment)


def _failures(rows: Sequence[Row]) -> int:
    return sum(1 for row in rows if row.status >= 500)


def _noted(request: wagi.Request, result: SandboxResult, receipt: bytes) -> Row:
    """Return a row with what no receipt says; `_row_of` puts in the rest."""
    note = result.stderr[-SERVICE_NOTE_BYTES_MAX:].decode("utf-8", "replace")
    path = request.raw_path[:_PATH_CHARS_MAX]
    return Row(0, 0, "", request.method, path, 0, 0, 0, 0, 0, "", note, "", receipt)


def _row_of(receipt: ServiceReceipt, deployment: Deployment, noted: Row) -> Row:
    """Return the row for a receipt: what is billed comes from it, what is noted stays."""
    told = receipt.outcome
    return replace(
        noted,
        number=receipt.number,
        at_ms=receipt.created_ms,
        version=deployment.version,
        status=receipt.status,
        fuel_used=told.fuel_used,
        memory_peak_bytes=told.memory_peak_bytes,
        wall_ms=receipt.observed.wall_ms,
        amount_micro=receipt.amount_micro,
        trap=told.trap or "",
        request_id=to_text(receipt.nonce),
    )
