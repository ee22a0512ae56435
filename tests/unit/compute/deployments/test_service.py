"""Owner and holder of services, joined by a wire that encodes what passes over it."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field, replace

import pytest

from tests.settle import settle, until
from tests.unit.compute.programs import UNSOUND, wasm
from tests.unit.compute.test_service import Lease, Market, Wire
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.errors import (
    ArgumentInvalid,
    ExportUnknown,
    LeaseExhausted,
    ModuleInvalid,
    NotAllowed,
    NotFound,
    PeerSilent,
    RateLimited,
    RecordInvalid,
    SandboxFailed,
    SignatureInvalid,
    SpaceExhausted,
    StoreDamaged,
    TooLarge,
)
from xsc.base.ids import short
from xsc.base.limits import (
    PRICE_FUEL,
    RUN_FUEL,
    SERVICE_COLLECT_MS,
    SERVICE_LOG_ROWS_MAX,
    SERVICE_PAGE_ROWS_MAX,
    SERVICE_RATE_MS,
)
from xsc.base.log import SilentLog
from xsc.base.merkle import Part, root_of
from xsc.base.units import ceil_div
from xsc.compute.deployments import holder as holder_module
from xsc.compute.deployments import registry as registry_module
from xsc.compute.deployments.holder import (
    SERVICE_QUEUE_MAX,
    SERVICE_UNPAID_KEPT_MS,
    SERVICE_UNPAID_ROWS_MAX,
)
from xsc.compute.deployments.pages import SERVICE_NOTE_BYTES_MAX
from xsc.compute.deployments.registry import (
    SERVICE_VERSIONS_KEPT,
    SERVICES_A_PEER_MAX,
    SERVICES_MAX,
)
from xsc.compute.deployments.rules import steps_of, to_roll_back
from xsc.compute.deployments.service import DeploymentService
from xsc.compute.deployments.store import LogRow
from xsc.compute.deployments.wagi import Request, input_of
from xsc.compute.jobs.receipts import check_receipt, open_order
from xsc.compute.jobs.replay import AGREES, judge, replay_job
from xsc.compute.jobs.runner import JobRunner
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.sandbox import SandboxResult
from xsc.compute.worker.local import LocalSandbox
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.terms.deployment import Deployment
from xsc.terms.execution import ExecutionReceipt, Observed
from xsc.terms.lease import OWN_COMPUTE, RunTerms
from xsc.terms.pricing import run_steps

LIMITS = Limits(fuel=50_000_000)
PRICE = PRICE_FUEL  # a micro-credit a unit of fuel


@dataclass
class ServiceMarket(Market):
    """The same, with what services ask beside it."""

    end: int | None = None
    rates: dict[bytes, int] = field(default_factory=dict)
    """By lease with a cleared rate, the steps that it has room for now; each costs nothing more."""

    def rates_at(self, provider):
        return list(self.rates)

    async def admit_compute(self, lease_id, customer, fuel_steps, wait_ms):
        if lease_id not in self.rates:
            await super().admit_compute(lease_id, customer, fuel_steps, wait_ms)
        elif fuel_steps > self.rates[lease_id]:
            raise RateLimited("the rate of this minute is used")

    def used_compute(self, lease_id, reserved_steps, used_steps):
        if lease_id in self.rates:
            self.rates[lease_id] -= used_steps
        else:
            super().used_compute(lease_id, reserved_steps, used_steps)

    def price_and_room(self, lease_id, provider):
        if lease_id in self.rates:
            return 0, self.rates[lease_id]
        known = [lease.price for lease in self.leases if lease.lease_id == lease_id]
        spent = sum(steps for lease, steps in self.spending if lease == lease_id)
        return (known[0], self.room - spent) if known else None

    def end_ms(self, lease_id):
        return self.end

    def compute_terms(self, lease_id, customer, fuel_steps):
        if not lease_id:
            raise LeaseExhausted("no such lease")
        terms = super().compute_terms(lease_id, customer, fuel_steps)
        if lease_id in self.rates:
            return RunTerms(0, "open", cleared=True)
        return replace(terms, price=0) if lease_id == OWN_COMPUTE else terms


@dataclass
class Held:
    """A sandbox whose jobs end when they are told to, with what they are told."""

    jobs: list = field(default_factory=list)
    ends: list = field(default_factory=list)

    async def prepare(self, job):
        assert job.module

    async def run(self, job):
        self.jobs.append(job)
        self.ends.append(asyncio.get_running_loop().create_future())
        return await self.ends[len(self.jobs) - 1]


def result(stdout=b"Content-Type: a/b\n\nx", **changed):
    made = SandboxResult((), 0, None, 7, 65536, stdout, b"", (), "engine", b"\0" * 32, 1)
    return replace(made, **changed)


class Disk(MemoryKeyValue):
    """A disk that may be full."""

    full = False

    def write(self, changes, *, sync):
        if self.full:
            raise SpaceExhausted("the disk is full")
        super().write(changes, sync=sync)


class Node:
    def __init__(self, wire, clock, network, name, *, sandbox, disk=None, serving=True):
        self.key = KeyPair(name * 32)
        self.market = ServiceMarket()
        self.disk = disk or Disk()
        entropy = SeededEntropy(name + bytes([len(wire.services)]))
        caller, log = wire.caller(self.key.node_id), SilentLog()
        ports = (clock, entropy, InlineExecutor(), caller, log, self.disk, None)
        context = Context(self.key, network, *ports)
        self.services = DeploymentService(
            context,
            leases=self.market,
            book=self.market,
            runner=JobRunner(context, sandbox),
            serving=serving,
        )
        self.services.registry.url = "http://127.0.0.1:1"
        wire.services[self.key.node_id] = self.services

    @property
    def id(self):
        return self.key.node_id

    async def deploy(self, name="greet", module="greet", **how):
        how = {"limits": LIMITS, "concurrency": 4, **how}
        code = module if isinstance(module, bytes) else wasm(module)
        return self.services.view(await self.services.owner.deploy(code, name, **how))

    async def ask(self, owner=None, name="greet", **how):
        told = {"done": how.pop("done")} if "done" in how else {}
        return await self.services.holder.answer((owner or self).id, name, asked(**how), **told)

    async def look_after(self):
        await self.services.owner.look_after_all()

    async def rows(self, name="greet", **how):
        how = {"after": None, "most": 100_000, **how}
        return await self.services.log_rows(name, **how)


def asked(path="", query="", method="GET", body=b""):
    return Request(method, "/fn/x/y", path, path, query, [], body)


class World:
    def __init__(self, network, sandbox):
        self.network = network
        self.wire = Wire()
        self.clock = ManualClock()
        self.sandbox = sandbox
        self.owner = self.make(b"o")
        self.holder = self.make(b"h")
        self.owner.market.leases = [Lease(self.holder.id, b"\1" * 32)]
        self.holder.market.end = self.clock.now_ms() + 60_000

    def make(self, name, disk=None, **how):
        sandbox = how.pop("sandbox", self.sandbox)
        return Node(self.wire, self.clock, self.network, name, sandbox=sandbox, disk=disk, **how)

    async def again(self, node, name):
        """Start a node anew on what it kept."""
        made = self.make(name, node.disk)
        made.market = made.services.owner._leases = made.services.holder._book = node.market
        await made.services.start()
        return made


@pytest.fixture(scope="module")
def sandbox():
    """One for all tests: it keeps what it compiled, and nothing else."""
    made = LocalSandbox(InlineExecutor())
    asyncio.run(made.start())
    yield made
    asyncio.run(made.stop())


@pytest.fixture
async def world(network, sandbox):
    made = World(network, sandbox)
    yield made
    for node in (made.owner, made.holder):
        await node.services.stop()


def body(served):
    return served.response.body


# At the own node


async def test_a_service_answers_and_its_log_says_what_each_request_took(world):
    view = await world.owner.deploy(environment={"GREETING": "Ahoj"})
    assert (view.name, view.version, view.state) == ("greet", "1", "serving")
    served = await world.owner.ask(query="name=you", method="POST", body=b"abc")
    assert body(served) == b"Ahoj, you!\nABC"
    (row,) = await world.owner.rows()
    assert (row.status, row.version, row.method) == (200, "1", "POST")
    assert (row.fuel_used > 1000, row.memory_peak_bytes > 65536) == (True, True)
    assert (row.amount_micro, row.receipt, row.trap) == (0, b"", "")
    assert row.request_id == served.request_id


async def test_what_is_not_there_is_404(world):
    served = await world.owner.ask(name="nothing")
    assert served.response.status == 404
    await world.owner.deploy(on=world.holder.id)
    assert (await world.owner.ask()).response.status == 404
    assert not world.owner.services.holder.holds(world.owner.id, "greet")


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/half", 502, b"no empty line"),
        ("/silent", 502, b"answered nothing"),
        ("/exit", 502, b"exited with code 3"),
        ("/trap", 502, b"unreachable"),
        ("/loop", 502, b"fuel_exhausted"),
        ("/memory", 502, b"module_trapped"),
        ("/head", 502, b"no empty line within"),
        ("/bare", 502, b"no field"),
        ("/split", 502, b"control character"),
    ],
)
async def test_a_service_that_misbehaves_is_named_in_one_sentence(world, path, status, reason):
    limits = Limits(fuel=30_000_000, memory_bytes=8 << 20, output_bytes=20_000)
    if path == "/head":
        limits = Limits(fuel=30_000_000, output_bytes=16 << 20)
    await world.owner.deploy("bad", "misbehave", limits=limits)
    served = await world.owner.ask(name="bad", path=path)
    assert served.response.status == status
    if path != "/head":
        assert reason in body(served)
    assert body(served).count(b"\n") == 1
    (row,) = await world.owner.rows("bad")
    assert row.status == status
    assert row.memory_peak_bytes <= limits.memory_bytes
    view = world.owner.services.views()[0]
    assert (view.requests, view.failures) == (1, 1)


async def test_a_flood_ends_by_its_bound(world):
    limits = Limits(fuel=10**9, output_bytes=20_000)
    await world.owner.deploy("bad", "misbehave", limits=limits)
    served = await world.owner.ask(name="bad", path="/flood")
    assert b"output_too_large" in body(served)


async def test_time_is_504_and_billed_as_time(world):
    held = Held()
    owner = world.make(b"q", sandbox=held)
    await owner.deploy(limits=Limits(fuel=10**11, timeout_ms=5))
    task = asyncio.create_task(owner.ask())
    await until(lambda: held.jobs)
    held.ends[0].set_result(result(b"", exit_code=None, trap="time_exceeded"))
    assert (await task).response.status == 504
    (row,) = await owner.rows()
    assert row.fuel_used == 5 * 4_000_000


async def test_a_body_that_is_never_read_is_no_trouble(world):
    await world.owner.deploy("bad", "misbehave")
    served = await world.owner.ask(name="bad", path="/unread", method="POST", body=b"x" * 100_000)
    assert body(served).startswith(b"I read nothing")


async def test_nothing_of_one_request_is_left_for_the_next(world):
    """Globals, static and heap memory, and files: each request finds what the first found."""
    await world.owner.deploy("bad", "misbehave")
    for _ in range(3):
        assert body(await world.owner.ask(name="bad", path="/remember")) == b"seen 0\n"


async def test_what_it_says_beside_the_answer_is_in_the_log_up_to_a_bound(world):
    await world.owner.deploy("bad", "misbehave")
    await world.owner.ask(name="bad", path="/exit")
    assert (await world.owner.rows("bad"))[0].note == "something is wrong here\n"
    held = Held()
    owner = world.make(b"q", sandbox=held)
    await owner.deploy()
    task = asyncio.create_task(owner.ask(path="/" + "x" * 1000))
    await until(lambda: held.jobs)
    held.ends[0].set_result(result(stderr=b"a" * 5000 + b"end\xff"))
    await task
    (row,) = await owner.rows()
    assert len(row.note) == SERVICE_NOTE_BYTES_MAX
    assert row.note.endswith("end\ufffd")
    assert len(row.path) == 256


# Versions


async def test_a_new_version_answers_and_the_old_one_can_be_gone_back_to(world):
    owner = world.owner
    await owner.deploy(environment={"GREETING": "One"})
    view = await owner.deploy(environment={"GREETING": "Two"})
    assert (view.version, view.versions) == ("2", ("2", "1"))
    assert body(await owner.ask()).startswith(b"Two")
    assert owner.services.view(await owner.services.owner.rollback("greet")).version == "1"
    assert body(await owner.ask()).startswith(b"One")
    assert owner.services.view(await owner.services.owner.rollback("greet")).version == "2"
    assert owner.services.view(await owner.services.owner.rollback("greet", "1")).versions == (
        "1",
        "2",
    )
    assert [row.version for row in await owner.rows()] == ["2", "1"]


async def test_going_back_to_what_is_not_there_is_refused(world):
    await world.owner.deploy()
    with pytest.raises(NotFound, match="no other version"):
        await world.owner.services.owner.rollback("greet")
    with pytest.raises(NotFound, match="no version 'x'") as caught:
        await world.owner.services.owner.rollback("greet", "x")
    assert caught.value.hint == "it has 1"
    with pytest.raises(ArgumentInvalid, match="active"):
        await world.owner.services.owner.rollback("greet", "1")
    for call in (world.owner.services.owner.rollback, world.owner.services.owner.undeploy):
        with pytest.raises(NotFound, match="no service 'nothing'"):
            await call("nothing")


async def test_requests_that_run_end_with_the_version_that_they_began_with(world):
    held = Held()
    owner = world.make(b"q", sandbox=held)
    await owner.deploy(environment={"GREETING": "One"})
    first = asyncio.create_task(owner.ask())
    await until(lambda: len(held.jobs) == 1)
    await owner.deploy(environment={"GREETING": "Two"})
    second = asyncio.create_task(owner.ask())
    await until(lambda: len(held.jobs) == 2)
    await owner.services.owner.rollback("greet")
    third = asyncio.create_task(owner.ask())
    await until(lambda: len(held.jobs) == 3)
    for end in held.ends:
        end.set_result(result())
    await asyncio.gather(first, second, third)
    said = [dict(job.environment)["GREETING"] for job in held.jobs]
    assert said == ["One", "Two", "One"]
    assert [row.version for row in await owner.rows()] == ["1", "2", "1"]


async def test_a_version_is_one_deployment_for_ever(world):
    first = await world.owner.deploy(version="v1.0")
    assert (await world.owner.deploy(version="v1.0")).version == first.version
    with pytest.raises(ArgumentInvalid, match="another deployment already"):
        await world.owner.deploy(version="v1.0", environment={"A": "b"})
    with pytest.raises(ArgumentInvalid, match="another deployment already"):
        await world.owner.deploy(version="v1.0", module="mirror")


async def test_old_versions_and_their_modules_go(world):
    for number in range(SERVICE_VERSIONS_KEPT + 3):
        await world.owner.deploy(environment={"NUMBER": str(number)})
    view = world.owner.services.views()[0]
    assert len(view.versions) == SERVICE_VERSIONS_KEPT
    assert view.versions[0] == view.version == str(SERVICE_VERSIONS_KEPT + 3)
    store = world.owner.services.registry.store
    assert len(store.deployments()) == SERVICE_VERSIONS_KEPT
    await world.owner.deploy("other", "mirror")
    assert len(store.modules()) == 2
    await world.owner.services.owner.undeploy("greet")
    assert len(store.modules()) == 1
    await world.owner.services.owner.undeploy("other")
    assert list(world.owner.disk.scan(b"services/")) == []


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ({"name": ""}, ArgumentInvalid),
        ({"name": "-a"}, ArgumentInvalid),
        ({"name": "A"}, ArgumentInvalid),
        ({"name": "a/b"}, ArgumentInvalid),
        ({"name": "a\n"}, ArgumentInvalid),
        ({"name": "a" * 64}, ArgumentInvalid),
        ({"version": ""}, ArgumentInvalid),
        ({"version": "a b"}, ArgumentInvalid),
        ({"version": "v" * 65}, ArgumentInvalid),
        ({"concurrency": 0}, ArgumentInvalid),
        ({"concurrency": 33}, ArgumentInvalid),
        ({"environment": {"": "x"}}, ArgumentInvalid),
        ({"environment": {"A=B": "x"}}, ArgumentInvalid),
        ({"environment": {"A": "x\0"}}, ArgumentInvalid),
        ({"environment": {"PATH_INFO": "x"}}, ArgumentInvalid),
        ({"environment": {"HTTP_HOST": "x"}}, ArgumentInvalid),
        ({"environment": {"A": "x" * 40_000}}, TooLarge),
        ({"environment": {f"A{number}": "" for number in range(129)}}, TooLarge),
        ({"module": b""}, ModuleInvalid),
        ({"module": b"no module"}, ModuleInvalid),
        ({"module": "add"}, ExportUnknown),
        ({"module": UNSOUND}, ModuleInvalid),
    ],
)
async def test_what_can_be_no_service_is_refused_and_nothing_kept(world, how, kind):
    if "version" in how and not how["version"]:
        how = {"version": " "}
    with pytest.raises(kind):
        await world.owner.deploy(**how)
    assert list(world.owner.disk.scan(b"services/")) == []


async def test_a_node_holds_so_many_services_and_bytes(world, monkeypatch):
    for number in range(SERVICES_MAX):
        await world.owner.deploy(f"s{number}")
    with pytest.raises(SpaceExhausted, match="services already"):
        await world.owner.deploy("one-more")
    await world.owner.deploy("s0", environment={"A": "b"})
    monkeypatch.setattr(registry_module, "SERVICE_MODULES_BYTES_MAX", len(wasm("greet")) + 9)
    with pytest.raises(SpaceExhausted, match="modules"):
        await world.owner.deploy("s0", "mirror")


# Limits on requests


async def test_no_more_run_at_once_than_the_deployment_says(world):
    held = Held()
    owner = world.make(b"q", sandbox=held)
    await owner.deploy(concurrency=2)
    tasks = [asyncio.create_task(owner.ask()) for _ in range(2 + SERVICE_QUEUE_MAX)]
    await until(lambda: len(held.jobs) == 2)
    await until(lambda: owner.services.views()[0].waiting == SERVICE_QUEUE_MAX)
    assert (len(held.jobs), owner.services.views()[0].running) == (2, 2)
    refused = (await owner.ask()).response
    assert refused.status == 429
    assert dict(refused.headers)["Retry-After"] == "1"
    for number in range(len(tasks)):
        await until(lambda number=number: len(held.ends) > number)
        held.ends[number].set_result(result())
    assert {served.response.status for served in await asyncio.gather(*tasks)} == {200}
    view = owner.services.views()[0]
    assert (view.requests, view.refused, view.running) == (2 + SERVICE_QUEUE_MAX, 1, 0)


async def test_who_waits_goes_by_the_bound_of_the_newest_deployment(world):
    held = Held()
    owner = world.make(b"q", sandbox=held)
    await owner.deploy(concurrency=1)
    tasks = [asyncio.create_task(owner.ask()) for _ in range(6)]
    await until(lambda: owner.services.views()[0].waiting == 5)
    await owner.deploy(version="2", concurrency=2)
    await until(lambda: len(held.jobs) == 2)
    assert (owner.services.views()[0].waiting, owner.services.views()[0].running) == (4, 2)
    for number in range(len(tasks)):
        await until(lambda number=number: len(held.ends) > number)
        held.ends[number].set_result(result())
    assert {served.response.status for served in await asyncio.gather(*tasks)} == {200}


async def test_a_request_runs_to_its_end_where_its_caller_goes_away(world):
    held = Held()
    owner = world.make(b"q", sandbox=held)
    await owner.deploy(concurrency=1)
    done = asyncio.Event()
    gone = asyncio.create_task(owner.ask(done=done.set))
    await until(lambda: held.jobs)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert not done.is_set()
    waits = asyncio.create_task(owner.ask())
    await until(lambda: owner.services.views()[0].waiting == 1)
    assert len(held.jobs) == 1
    left = asyncio.Event()
    leaves = asyncio.create_task(owner.ask(done=left.set))
    await until(lambda: owner.services.views()[0].waiting == 2)
    leaves.cancel()
    await left.wait()
    held.ends[0].set_result(result())
    await until(lambda: len(held.jobs) == 2)
    assert done.is_set()
    held.ends[1].set_result(result())
    await waits
    assert len(await owner.rows()) == 2


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (RateLimited("too many jobs"), 503),
        (SandboxFailed("it died"), 503),
        (ModuleInvalid("not WebAssembly"), 502),
    ],
)
async def test_what_did_not_run_says_whether_to_try_again(world, fault, status):
    held = Held()
    owner = world.make(b"q", sandbox=held)
    await owner.deploy()
    task = asyncio.create_task(owner.ask())
    await until(lambda: held.jobs)
    held.ends[0].set_exception(fault)
    response = (await task).response
    assert response.status == status
    assert ("Retry-After" in dict(response.headers)) == (status == 503)
    assert await owner.rows() == []
    assert owner.market.reserved == 0


async def test_a_head_that_no_program_takes_is_refused(world):
    await world.owner.deploy()
    served = await world.owner.ask(query="x" * 70_000)
    assert served.response.status == 431


# The log


async def test_the_log_keeps_so_many_rows_and_follows(world, monkeypatch):
    monkeypatch.setattr(registry_module, "SERVICE_LOG_ROWS_MAX", 32)
    await world.owner.deploy()
    seen = []
    for _ in range(100):
        follows = asyncio.create_task(
            world.owner.rows(after=seen[-1].number if seen else 0, wait_ms=1000)
        )
        await asyncio.sleep(0)
        await world.owner.ask()
        seen += await follows
        assert len(await world.owner.rows()) <= 32
    assert len({row.number for row in seen}) == 100
    assert await world.owner.rows() == seen[-len(await world.owner.rows()) :]
    assert await world.owner.rows(most=3) == seen[-3:]
    assert await world.owner.rows(after=seen[-3].number, most=1) == [seen[-2]]
    assert await world.owner.rows(after=seen[-1].number, wait_ms=1) == []
    assert SERVICE_LOG_ROWS_MAX > SERVICE_UNPAID_ROWS_MAX


async def test_an_answer_is_given_also_where_its_row_cannot_be_kept(world):
    await world.owner.deploy()
    world.owner.disk.full = True
    assert body(await world.owner.ask()) == b"Hello, world!\n"
    assert await world.owner.rows() == []
    assert world.owner.services.views()[0].running == 0


async def test_numbers_grow_also_when_the_clock_is_set_back(world):
    await world.owner.deploy()
    await world.owner.ask()
    (first,) = await world.owner.rows()
    world.clock._now_ms -= 1_000_000
    await world.owner.ask()
    assert [row.number for row in await world.owner.rows()] == [first.number, first.number + 1]


async def test_who_follows_a_service_that_goes_is_told(world):
    await world.owner.deploy()
    follows = asyncio.create_task(world.owner.rows(after=0, wait_ms=10_000))
    await asyncio.sleep(0)
    await world.owner.services.owner.undeploy("greet")
    assert await follows == []
    with pytest.raises(NotFound):
        await world.owner.rows()


async def test_everything_outlives_a_restart(world):
    await world.owner.deploy(environment={"GREETING": "One"})
    await world.owner.deploy(environment={"GREETING": "Two"})
    await world.owner.services.owner.rollback("greet")
    await world.owner.ask()
    before = await world.owner.rows()
    again = await world.again(world.owner, b"o")
    assert await again.rows() == before
    assert body(await again.ask()).startswith(b"One")
    assert again.services.views()[0].versions == ("1", "2")
    assert len(await again.rows()) == 2


@pytest.mark.parametrize("table", [b"services/held/", b"services/module/"])
async def test_damage_is_found(world, table):
    await world.owner.deploy()
    await world.owner.ask()
    ((key, raw),) = world.owner.disk.scan(table, table + b"\xff")
    world.owner.disk.write([(key, raw[:-1] + bytes([raw[-1] ^ 1]))], sync=True)

    async def read():
        again = await world.again(world.owner, b"o")
        await again.services.registry.module(next(iter(again.services.registry._sizes)), again.id)

    with pytest.raises(StoreDamaged):
        await read()


def test_a_row_of_another_version_is_refused():
    for value in (None, {}, {"v": 2}, {"v": 1}, {"v": 1, "x": 2}):
        with pytest.raises(RecordInvalid):
            LogRow.from_value(value)


# At a peer


async def test_a_peer_holds_it_and_is_paid_for_each_request(world):
    view = await world.owner.deploy(on=world.holder.id)
    assert (view.state, view.url[:19]) == ("placed", "http://127.0.0.1:1/")
    served = [await world.holder.ask(world.owner, query=f"name={n}") for n in range(3)]
    assert [body(each) for each in served] == [f"Hello, {n}!\n".encode() for n in range(3)]
    await world.owner.look_after()
    rows = await world.owner.rows()
    assert [row.request_id for row in rows] == [each.request_id for each in served]
    steps = [row.fuel_used + RUN_FUEL for row in rows]
    assert [row.amount_micro for row in rows] == steps
    assert world.owner.market.spending == [(b"\1" * 32, each) for each in steps]
    assert world.holder.market.used == steps
    assert world.holder.market.reserved == 0
    for row in rows:
        receipt = open_signed(
            row.receipt, ExecutionReceipt, network=world.network, author=world.holder.id
        ).record
        order = open_order(receipt, world.network)
        assert order.author == order.record.customer == world.owner.id
        assert check_receipt(order, receipt, PRICE) is None
    # What was fetched goes from the holder with the next word.
    await world.owner.look_after()
    assert len(list(world.holder.disk.scan(b"services/log/", b"services/log0"))) == 0
    assert len(await world.owner.rows()) == 3


async def test_a_holder_says_that_the_log_is_with_the_owner(world):
    await world.owner.deploy(on=world.holder.id)
    with pytest.raises(NotFound, match="owns no service 'greet'") as caught:
        await world.holder.services.log_rows("greet", after=None, most=1)
    assert "who alone has its log" in (caught.value.hint or "")


async def test_a_request_is_run_again_like_any_job(world):
    await world.owner.deploy(on=world.holder.id, environment={"GREETING": "Ahoj"})
    await world.holder.ask(world.owner, query="name=you")
    await world.owner.look_after()
    (row,) = await world.owner.rows()
    receipt = open_signed(row.receipt, ExecutionReceipt, network=world.network).record
    order = open_order(receipt, world.network).record
    given = input_of(asked(query="name=you"), {"GREETING": "Ahoj"})
    again = await world.sandbox.run(replay_job(order, wasm("greet"), given, LIMITS.output_bytes))
    assert judge(order, receipt.outcome, again, given) == AGREES


async def test_requests_run_at_the_cleared_rates_of_their_owner_and_beyond_those_for_now(world):
    await world.owner.deploy(on=world.holder.id)
    await world.owner.look_after()
    small, large = b"\2" * 32, b"\3" * 32
    room = LIMITS.steps + 2 * RUN_FUEL  # two requests take more than RUN_FUEL each
    for node in (world.owner, world.holder):
        node.market.rates = {small: 1, large: room}
    await world.owner.look_after()
    for _ in range(4):
        assert (await world.holder.ask(world.owner)).response.status == 200
    await world.owner.look_after()
    spent = world.owner.market.spending
    leases = [lease for lease, _ in spent]
    assert leases == [large, large, b"\1" * 32, b"\1" * 32]
    # What its owner names no more is used no more.
    world.owner.market.rates = {}
    world.holder.market.rates[large] = room
    await world.owner.look_after()
    await world.holder.ask(world.owner)
    await world.owner.look_after()
    assert world.owner.market.spending[-1][0] == b"\1" * 32


async def test_the_rate_of_services_at_a_peer_is_what_ran_of_late(world):
    owner, holder = world.owner, world.holder
    world.clock.advance_to(world.clock.now_ms() + SERVICE_RATE_MS)
    await owner.deploy()
    assert not owner.services.owner.rates({}), "what runs here needs no lease"
    await owner.services.owner.undeploy("greet")
    await owner.deploy(on=holder.id)
    idle = ceil_div(LIMITS.steps, 60)
    assert owner.services.owner.rates({}) == {holder.id: idle}, "room for a request a minute"
    await owner.deploy("large", on=holder.id, limits=Limits(fuel=10**12))
    most = ceil_div(Limits().steps, 60)
    assert owner.services.owner.rates({}) == {holder.id: idle + most}, "no more than by default"
    await owner.services.owner.undeploy("large")
    for _ in range(12 * LIMITS.steps // RUN_FUEL):
        await holder.ask(owner)
    await owner.look_after()
    ran = sum(row.fuel_used + RUN_FUEL for row in await owner.rows())
    rate = ceil_div(ran * 1_000, SERVICE_RATE_MS)
    assert rate > idle
    assert owner.services.owner.rates({}) == {holder.id: rate}
    again = await world.again(owner, b"o")
    told = {holder.id: rate, owner.id: rate}
    assert again.services.owner.rates(told) == {holder.id: rate}, "it begins with what was stated"
    world.clock.advance_to(world.clock.now_ms() + SERVICE_RATE_MS)
    assert again.services.owner.rates(told) == {holder.id: idle}


async def test_a_holder_that_says_more_than_a_rate_can_have_run_raises_no_need(world):
    owner, holder, lease = world.owner, world.holder, b"\3" * 32
    await owner.deploy(on=holder.id)
    holder.market.rates = {lease: 10**12}
    owner.market.rates = {lease: 0}
    await owner.look_after()
    for _ in range(12 * LIMITS.steps // RUN_FUEL):
        await holder.ask(owner)
    await owner.look_after()
    assert {row.amount_micro for row in await owner.rows()} == {0}
    assert owner.services.owner.rates({}) == {holder.id: ceil_div(LIMITS.steps, 60)}


async def test_a_module_is_sent_once(world):
    await world.owner.deploy(on=world.holder.id)
    await world.owner.deploy(on=world.holder.id, environment={"A": "b"})
    sent = [header["module"] for _, header, _ in world.wire.sent if "deployment" in header]
    assert sent == [False, True, False]


async def test_a_peer_goes_back_to_a_version_too(world):
    await world.owner.deploy(on=world.holder.id, environment={"GREETING": "One"})
    await world.owner.deploy(on=world.holder.id, environment={"GREETING": "Two"})
    assert body(await world.holder.ask(world.owner)).startswith(b"Two")
    await world.owner.services.owner.rollback("greet")
    assert body(await world.holder.ask(world.owner)).startswith(b"One")


async def test_a_name_is_at_one_node(world):
    await world.owner.deploy()
    with pytest.raises(ArgumentInvalid, match="is deployed at"):
        await world.owner.deploy(on=world.holder.id)


async def test_pages_of_receipts_are_fetched_to_the_end(world, monkeypatch):
    monkeypatch.setattr("xsc.base.limits.SERVICE_PAGE_ROWS_MAX", 2)
    await world.owner.deploy(on=world.holder.id)
    for _ in range(5):
        await world.holder.ask(world.owner)
    await world.owner.look_after()
    assert len(await world.owner.rows()) == 5
    assert len(world.owner.market.spending) == 5
    assert SERVICE_PAGE_ROWS_MAX > 2


async def test_receipts_outlive_restarts_of_both_and_are_paid_once(world, monkeypatch):
    monkeypatch.setattr(holder_module, "SERVICE_LEASE_WAIT_MS", 20)
    await world.owner.deploy(on=world.holder.id)
    await world.holder.ask(world.owner)
    await world.owner.look_after()
    holder = await world.again(world.holder, b"h")
    owner = await world.again(world.owner, b"o")
    assert (await holder.ask(owner)).response.status == 503  # nobody pays yet
    await owner.look_after()
    assert body(await holder.ask(owner)) == b"Hello, world!\n"
    await owner.look_after()
    assert len(await owner.rows()) == 2
    assert len(owner.market.spending) == 2


async def test_numbers_grow_also_where_the_holder_starts_again_with_another_time(world):
    await world.owner.deploy(on=world.holder.id)
    await world.holder.ask(world.owner)
    await world.owner.look_after()
    await world.owner.look_after()
    holder = await world.again(world.holder, b"h")
    assert holder.services.registry.get((world.owner.id, "greet")).last == 0
    world.clock._now_ms -= 1_000_000
    await world.owner.look_after()
    await holder.ask(world.owner)
    await world.owner.look_after()
    assert world.owner.services.views()[0].fault == ""
    assert len(await world.owner.rows()) == 2


def steps(world):
    record = world.owner.services.registry.get((world.owner.id, "greet")).active.record
    return steps_of(record)


async def served_by(world, held, **limits):
    """Have a holder whose runs end when they are told to hold a service."""
    world.holder = world.make(b"w", sandbox=held)
    world.owner.market.leases = [Lease(world.holder.id, b"\5" * 32)]
    await world.owner.deploy(on=world.holder.id, concurrency=16, **limits)


async def test_requests_wait_for_the_fuel_that_others_of_their_owner_hold(world):
    held = Held()
    await served_by(world, held)
    world.holder.market.room = 3 * steps(world) + 1
    asking = [asyncio.create_task(world.holder.ask(world.owner)) for _ in range(16)]
    for number in range(16):
        await until(lambda: len(held.jobs) >= min(16, number + 3))  # noqa: B023
        await settle()
        assert len(held.jobs) == min(16, number + 3)
        held.ends[number].set_result(result())
    answers = await asyncio.gather(*asking)
    assert [each.response.status for each in answers] == [200] * 16
    assert world.holder.market.reserved == 0
    assert world.holder.services.views()[0].state == "serving"


async def test_a_request_waits_for_fuel_no_longer_than_it_may_run(world):
    held = Held()
    await served_by(world, held, limits=Limits(fuel=10**9, timeout_ms=20))
    world.holder.market.room = steps(world)
    runs = asyncio.create_task(world.holder.ask(world.owner))
    await until(lambda: held.jobs)
    late = (await world.holder.ask(world.owner)).response
    assert (late.status, dict(late.headers)["Retry-After"]) == (503, "1")
    held.ends[0].set_result(result())
    assert (await runs).response.status == 200
    # Who waited in vain took nothing along.
    after = asyncio.create_task(world.holder.ask(world.owner))
    await until(lambda: len(held.jobs) == 2)
    held.ends[1].set_result(result())
    assert (await after).response.status == 200


def each_with_its_room(world, rooms):
    """Have the holder's leases have room of their own."""
    market = world.holder.market

    async def admit(lease_id, customer, fuel_steps, wait_ms):
        if rooms[lease_id] < fuel_steps:
            raise LeaseExhausted("it is used up")
        rooms[lease_id] -= fuel_steps
        market.reserved += fuel_steps

    market.admit_compute = admit


@pytest.mark.parametrize("running", [0, 1])
async def test_a_new_lease_wakes_the_request_that_waits_for_one(world, running):
    held = Held()
    await served_by(world, held)
    each_with_its_room(
        world, {b"\5" * 32: running * steps(world), b"\6" * 32: (3 - running) * steps(world)}
    )
    asking = [asyncio.create_task(world.holder.ask(world.owner)) for _ in range(3)]
    await settle()
    assert len(held.jobs) == running
    world.owner.market.leases = [Lease(world.holder.id, b"\6" * 32)]
    if running:
        world.owner.services.registry.get((world.owner.id, "greet")).starved = True
    # The owner takes it and tells the holder of it in the turn in which it hears of the need.
    await world.owner.look_after()
    await until(lambda: len(held.jobs) == 3)
    for end in held.ends:
        end.set_result(result())
    answers = await asyncio.gather(*asking)
    assert [each.response.status for each in answers] == [200] * 3
    assert world.holder.market.reserved == 0


async def test_a_lease_is_replaced_before_it_has_no_room_for_two_requests(world):
    first, second = (Lease(world.holder.id, bytes([n]) * 32) for n in (1, 2))
    await world.owner.deploy(on=world.holder.id)
    world.owner.market.room = 3 * steps(world)
    await world.owner.deploy(on=world.holder.id, environment={"A": "B"})
    world.owner.market.leases = [first]
    for spent, lease in ((0, first), (steps(world), first), (1, second)):
        world.owner.market.spending.append((first.lease_id, spent))
        world.owner.market.leases.insert(0, second)
        await world.owner.look_after()
        held = world.holder.services.registry.get((world.owner.id, "greet"))
        assert held.lease_id == lease.lease_id
        world.owner.market.leases = [first]


async def test_without_a_lease_nothing_runs(world, monkeypatch):
    monkeypatch.setattr(holder_module, "SERVICE_LEASE_WAIT_MS", 20)
    await world.owner.deploy(on=world.holder.id)
    world.holder.market.room = 0
    response = (await world.holder.ask(world.owner)).response
    assert (response.status, dict(response.headers)["Retry-After"]) == (503, "5")
    assert world.holder.services.views()[0].state == "unpaid"
    # The owner hears of it and takes another lease.
    world.owner.market.leases = [Lease(world.holder.id, b"\2" * 32)]
    world.holder.market.room = 10**12
    await world.owner.look_after()
    await world.owner.look_after()
    await world.holder.ask(world.owner)
    await world.owner.look_after()
    assert world.owner.market.spending[0][0] == b"\2" * 32


async def test_a_lease_that_ends_is_followed_by_another(world):
    await world.owner.deploy(on=world.holder.id)
    await world.owner.look_after()
    world.owner.market.leases.insert(0, Lease(world.holder.id, b"\2" * 32))
    await world.owner.look_after()
    assert world.holder.services.registry.get((world.owner.id, "greet")).lease_id == b"\1" * 32
    world.holder.market.end = world.clock.now_ms() + 4_000
    await world.owner.look_after()  # hears that it ends
    await world.owner.look_after()
    assert world.holder.services.registry.get((world.owner.id, "greet")).lease_id == b"\2" * 32


async def test_an_owner_that_fetches_nothing_is_served_no_more(world, monkeypatch):
    monkeypatch.setattr(holder_module, "SERVICE_UNPAID_ROWS_MAX", 3)
    await world.owner.deploy(on=world.holder.id)
    statuses = [(await world.holder.ask(world.owner)).response.status for _ in range(5)]
    assert statuses == [200, 200, 200, 503, 503]
    await world.owner.look_after()
    await world.owner.look_after()
    assert (await world.holder.ask(world.owner)).response.status == 200


async def test_a_service_whose_owner_says_nothing_is_dropped(world):
    await world.owner.deploy(on=world.holder.id)
    await world.holder.deploy("mine")
    world.clock.advance_to(world.clock.now_ms() + SERVICE_UNPAID_KEPT_MS)
    await world.holder.services.holder.drop_silent()
    assert len(world.holder.services.views()) == 2
    world.clock.advance_to(world.clock.now_ms() + SERVICE_COLLECT_MS)
    await world.holder.services.holder.drop_silent()
    assert [view.name for view in world.holder.services.views()] == ["mine"]


async def test_undeploying_tells_the_holder_and_pays_the_last(world):
    await world.owner.deploy(on=world.holder.id)
    await world.holder.ask(world.owner)
    assert await world.owner.services.owner.undeploy("greet") == ""
    assert len(world.owner.market.spending) == 1
    assert world.holder.services.views() == []
    for node in (world.owner, world.holder):
        assert list(node.disk.scan(b"services/")) == []


async def test_undeploying_does_not_wait_for_a_silent_holder(world):
    await world.owner.deploy(on=world.holder.id)
    world.wire.silent.add(world.holder.id)
    warning = await world.owner.services.owner.undeploy("greet")
    assert "was not told" in warning
    world.wire.silent.clear()
    world.clock.advance_to(world.clock.now_ms() + 1)
    # The same name can be deployed again, although the holder still has the old one.
    await world.owner.deploy(on=world.holder.id, environment={"GREETING": "New"})
    assert body(await world.holder.ask(world.owner)).startswith(b"New")


async def test_what_a_removed_service_was_paid_for_is_not_paid_again_by_its_successor(world):
    await world.owner.deploy(on=world.holder.id)
    await world.holder.ask(world.owner)
    await world.owner.look_after()
    world.wire.silent.add(world.holder.id)
    await world.owner.services.owner.undeploy("greet")
    world.wire.silent.clear()
    world.clock.advance_to(world.clock.now_ms() + 1)
    await world.owner.deploy(on=world.holder.id)
    await world.holder.ask(world.owner)
    await world.owner.look_after()
    owner = await world.again(world.owner, b"o")
    await owner.look_after()
    assert len(world.owner.market.spending) == 2
    assert len(await owner.rows()) == 1
    assert owner.services.views()[0].fault == ""


async def test_a_holder_that_bills_more_than_its_lease_has_room_for_is_paid_for_that_room(world):
    await world.owner.deploy(on=world.holder.id)
    for _ in range(3):
        await world.holder.ask(world.owner)
    record = world.owner.services.registry.get((world.owner.id, "greet")).active.record
    world.owner.market.room = 2 * run_steps(100_000, record.memory_bytes_max)
    await world.owner.look_after()
    assert len(world.owner.market.spending) == 2
    assert len(await world.owner.rows()) == 2


async def test_a_holder_with_always_more_to_tell_keeps_no_other_waiting(world):
    await world.owner.deploy(on=world.holder.id)
    calls = 0
    await world.holder.ask(world.owner)
    key = world.owner.id, "greet"
    (row,) = world.holder.services.registry.store.rows(key, most=9, size_max=10**6)
    receipt = open_signed(row.receipt, ExecutionReceipt, network=None).record
    request = receipt.request.model_copy(update={"lease_id": b"\7" * 32})
    told = receipt.model_copy(update={"request": request})
    signed = sign(told, world.holder.key, world.network)
    rows = [
        replace(row, number=row.number + more, receipt=signed.raw).to_value()
        for more in range(1, 2_000)
    ]

    def next_row(answer):
        nonlocal calls
        calls += 1
        if "rows" not in answer.header:
            return answer
        return replace(answer, header={**answer.header, "rows": [rows[calls]], "more": True})

    world.wire.tap = next_row
    await world.owner.look_after()
    assert calls < 100
    assert world.owner.market.spending == []


async def test_a_holder_whose_receipt_was_refused_is_told_to_go_and_paid_no_more(world):
    await world.owner.deploy(on=world.holder.id)
    await world.holder.ask(world.owner)
    key = world.owner.id, "greet"
    (row,) = world.holder.services.registry.store.rows(key, most=9, size_max=10**6)
    world.holder.services.registry.store.add(key, [replace(row, receipt=b"x")])
    await world.owner.look_after()
    world.holder.services.registry.store.add(key, [row])
    assert await world.owner.services.owner.undeploy("greet") == ""
    assert world.holder.services.views() == []
    assert world.owner.market.spending == []


async def test_a_holder_that_cannot_be_paid_is_told_to_go(world):
    await world.owner.deploy(on=world.holder.id)
    world.owner.market.leases = []
    world.owner.services.registry.get((world.owner.id, "greet")).starved = True
    assert "is not paid for the last requests" in await world.owner.services.owner.undeploy("greet")
    assert world.holder.services.views() == []


async def test_a_silent_holder_is_said_to_be(world):
    await world.owner.deploy(on=world.holder.id)
    world.wire.silent.add(world.holder.id)
    await world.owner.look_after()
    assert world.owner.services.views()[0].fault == "no answer"
    with pytest.raises(PeerSilent):
        await world.owner.deploy(on=world.holder.id, environment={"A": "b"})
    assert world.owner.services.views()[0].versions == ("1",)
    world.wire.silent.clear()
    await world.owner.look_after()
    assert world.owner.services.views()[0].fault == ""


async def test_two_nodes_that_deploy_at_each_other_do_not_wait_for_each_other(world):
    world.holder.market.leases = [Lease(world.owner.id, b"\3" * 32)]
    await asyncio.wait_for(
        asyncio.gather(
            world.owner.deploy(on=world.holder.id), world.holder.deploy(on=world.owner.id)
        ),
        10,
    )
    assert len(world.owner.services.views()) == len(world.holder.services.views()) == 2


# What a holder refuses


async def place(
    world, *, key=None, caller=None, lease=b"\1" * 32, module=None, named=None, **changed
):
    await world.owner.deploy()
    ((_, raw),) = world.owner.disk.scan(b"services/held/", b"services/held0")
    record = open_signed(raw, Deployment, network=None).record
    record = record.model_copy(update={"provider": world.holder.id, **changed})
    if named is not None:
        record = record.model_copy(update={"module": named})
    signed = sign(record, key or world.owner.key, world.network)
    parts = [] if module is None else [Part(module, root_of(module))]
    header = {"deployment": signed.raw, "lease_id": lease, "module": module is not None}
    handler = world.holder.services.handlers()["service.deploy"]
    return await handler(caller or world.owner.id, header, parts)


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"key": KeyPair(b"x" * 32)}, SignatureInvalid),
        ({"caller": KeyPair(b"x" * 32).node_id}, SignatureInvalid),
        ({"owner": b"\7" * 32}, RecordInvalid),
        ({"provider": b"\7" * 32}, RecordInvalid),
        ({"fuel_max": 10**15}, LeaseExhausted),
        ({"environment": (("B", ""), ("A", ""))}, RecordInvalid),
        ({"environment": (("A", ""), ("A", ""))}, RecordInvalid),
        ({"environment": (("HTTP_HOST", ""),)}, RecordInvalid),
        ({"module": b"another"}, RecordInvalid),
        ({"module": UNSOUND, "digest": True}, ModuleInvalid),
    ],
)
async def test_a_deployment_that_does_not_fit_is_refused(world, changed, kind):
    if changed.get("digest"):
        changed = {"module": UNSOUND, "named": hashlib.sha256(UNSOUND).digest()}
    with pytest.raises(kind):
        await place(world, **changed)
    assert list(world.holder.disk.scan(b"services/")) == []
    assert world.holder.market.reserved == 0


async def test_an_older_deployment_changes_nothing(world):
    await world.owner.deploy(on=world.holder.id)
    old = [header for _, header, _ in world.wire.sent if "deployment" in header][-1]
    world.clock.advance_to(world.clock.now_ms() + 5)
    await world.owner.deploy(on=world.holder.id, environment={"GREETING": "Two"})
    handler = world.holder.services.handlers()["service.deploy"]
    assert await handler(world.owner.id, {**old, "module": False}, []) == (
        {"url": "http://127.0.0.1:1"},
        (),
    )  # the very same one is no news
    assert body(await world.holder.ask(world.owner)).startswith(b"Two")
    world.holder.services.registry.get((world.owner.id, "greet")).versions.pop("1")
    with pytest.raises(RecordInvalid, match="a later deployment"):
        await handler(world.owner.id, {**old, "module": False}, [])


async def test_a_node_that_serves_nobody_holds_nothing_of_others(world):
    idle = world.make(b"i", serving=False)
    world.owner.market.leases = [Lease(idle.id, b"\4" * 32)]
    with pytest.raises(NotAllowed, match=f"{short(idle.id)} serves no requests"):
        await world.owner.deploy(on=idle.id)
    assert world.owner.services.views() == []


async def test_a_peer_has_so_many_services_at_one_node(world):
    for number in range(SERVICES_A_PEER_MAX):
        await world.owner.deploy(f"s{number}", on=world.holder.id)
    with pytest.raises(SpaceExhausted, match="of yours"):
        await world.owner.deploy("one-more", on=world.holder.id)


async def test_deployments_at_once_pass_no_bound(world, monkeypatch):
    """Each is checked while none of the others is kept."""
    prepared = asyncio.Barrier(SERVICES_A_PEER_MAX)

    async def together(*_):
        await prepared.wait()

    monkeypatch.setattr(world.holder.services.holder._runner, "prepare", together)
    names = [f"s{number}" for number in range(SERVICES_A_PEER_MAX + 1)]
    deployed = await asyncio.gather(
        *(world.owner.deploy(name, on=world.holder.id) for name in names), return_exceptions=True
    )
    [refused] = [each for each in deployed if isinstance(each, BaseException)]
    assert isinstance(refused, SpaceExhausted)
    assert "of yours" in refused.message
    assert len(world.holder.services.views()) == SERVICES_A_PEER_MAX
    assert len(world.owner.services.views()) == SERVICES_A_PEER_MAX


async def test_a_peer_holds_nothing_that_its_owner_has_no_room_for(world, monkeypatch):
    monkeypatch.setattr(registry_module, "SERVICES_MAX", 2)
    await world.owner.deploy("here")
    arrived, released = [], asyncio.Event()

    async def late(*_):
        arrived.append(True)
        await released.wait()

    monkeypatch.setattr(world.holder.services.holder._runner, "prepare", late)
    first = asyncio.create_task(world.owner.deploy("a", on=world.holder.id))
    await until(lambda: arrived)
    second = asyncio.create_task(world.owner.deploy("b", on=world.holder.id))
    await until(lambda: second.done() or len(arrived) == 2)
    released.set()
    deployed = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(each) for each in deployed].count(SpaceExhausted) == 1
    assert len(world.owner.services.views()) == 2
    assert len(world.holder.services.views()) == 1


async def test_the_modules_of_one_peer_take_no_room_of_others(world, monkeypatch):
    size = len(wasm("greet")) + 4
    monkeypatch.setattr(registry_module, "SERVICE_MODULES_A_PEER_BYTES_MAX", 2 * size)
    another = world.make(b"p")
    another.market.leases = [Lease(world.holder.id, b"\5" * 32)]
    modules = [wasm("greet") + b"\0\2\1" + bytes([number]) for number in range(3)]
    for module in modules[:2]:
        await world.owner.deploy(module=module, on=world.holder.id)
    with pytest.raises(SpaceExhausted, match="of your services"):
        await world.owner.deploy(module=modules[2], on=world.holder.id)
    await world.owner.deploy(module=modules[0], on=world.holder.id)
    await another.deploy(module=modules[2], on=world.holder.id)
    # What another brought counts as well: it would be held for both.
    with pytest.raises(SpaceExhausted, match="of your services"):
        await world.owner.deploy(module=modules[2], on=world.holder.id)


async def test_the_services_of_one_peer_have_one_place_in_the_queue(world):
    held = Held()
    world.holder = world.make(b"w", sandbox=held)
    world.owner.market.leases = [Lease(world.holder.id, b"\5" * 32)]
    for name in ("one", "two"):
        await world.owner.deploy(name=name, on=world.holder.id)
        await world.holder.deploy(name=name)
    asked_for = [(world.owner, "one"), (world.owner, "two")]
    asked_for += [(world.holder, "one"), (world.holder, "two")]
    tasks = [
        asyncio.create_task(world.holder.ask(owner=owner, name=name)) for owner, name in asked_for
    ]
    await until(lambda: len(held.jobs) == 4)
    queues = [job.customer for job in held.jobs]
    assert queues[:2] == [world.owner.id] * 2
    assert len({world.owner.id, world.holder.id, *queues[2:]}) == 4
    for end in held.ends:
        end.set_result(result())
    await asyncio.gather(*tasks)


async def test_receipts_that_nobody_fetches_take_so_many_bytes(world, monkeypatch):
    monkeypatch.setattr(holder_module, "SERVICE_UNPAID_BYTES_MAX", 3_500)
    await world.owner.deploy(on=world.holder.id, environment={"V": "v" * 1_500})
    answers = [await world.holder.ask(owner=world.owner) for _ in range(4)]
    assert [each.response.status for each in answers] == [200, 200, 503, 503]
    await world.owner.look_after()
    await world.owner.look_after()  # with this word the holder may forget them
    assert (await world.holder.ask(owner=world.owner)).response.status == 200


@pytest.mark.parametrize(
    "url", ["javascript:x", "http://a b", "http://\x1b[2J", "http://" + "a" * 600, "ä", "http://ä"]
)
async def test_an_address_that_is_none_is_not_shown(world, url):
    world.holder.services.registry.url = url
    with pytest.raises(RecordInvalid):
        await world.owner.deploy(on=world.holder.id)
    assert world.owner.services.views() == []


@pytest.mark.parametrize(
    "told", [{"method": "BREW"}, {"path": "/" * 257}, {"note": "n" * (SERVICE_NOTE_BYTES_MAX + 1)}]
)
async def test_what_no_holder_notes_is_not_kept(world, told):
    await world.owner.deploy(on=world.holder.id)
    await world.holder.ask(owner=world.owner)
    store = world.holder.services.registry.store
    key = (world.owner.id, "greet")
    (row,) = store.rows(key, most=9, size_max=10**6)
    store.add(key, [replace(row, **told)])
    await world.owner.look_after()
    assert await world.owner.rows() == []
    assert world.owner.market.spending == []


@pytest.mark.parametrize("method", ["service.undeploy", "service.collect"])
async def test_a_stranger_gets_at_nothing(world, method):
    await world.owner.deploy(on=world.holder.id)
    header = {"name": "greet", "after": 0, "lease_id": b"\1" * 32, "rates": []}
    with pytest.raises(NotFound):
        await world.holder.services.handlers()[method](b"\7" * 32, header, [])
    assert len(world.holder.services.views()) == 1


# What an owner refuses


RECEIPT_LIES = {
    "another amount": {"amount_micro": 1},
    "a request answered that failed": {"outcome": {"exit_code": 1}},
    "a run that somebody cancelled": {
        "status": 502,
        "outcome": {"exit_code": None, "trap": "cancelled"},
    },
    "another mode": {"outcome": {"mode": "invoke"}},
    "no request": {"request": None},
    "another module": {"outcome": {"module": b"\7" * 32}},
    "another function": {"outcome": {"function": "other"}},
    "more fuel": {
        "outcome": {"fuel_used": LIMITS.fuel + 1},
        "amount_micro": LIMITS.fuel + 1 + RUN_FUEL,
    },
    "more memory": {"outcome": {"memory_peak_bytes": LIMITS.memory_bytes + 1}},
    "no such trap": {"status": 502, "outcome": {"exit_code": None, "trap": "boredom"}},
    "trap and exit code": {"status": 502, "outcome": {"trap": "fuel_exhausted"}},
    "neither": {"status": 502, "outcome": {"exit_code": None}},
    "time at another price": {
        "status": 504,
        "outcome": {"exit_code": None, "trap": "time_exceeded"},
    },
    "bytes saved": {
        "observed": Observed(started_ms=1, wall_ms=1, saved_bytes=1, compiled_bytes=0, calls=0)
    },
    "another's signature": {"key": KeyPair(b"x" * 32)},
    "another's deployment": {"order": b"x"},
}


@pytest.mark.parametrize("lie", RECEIPT_LIES)
async def test_a_receipt_that_breaks_a_rule_is_not_paid_nor_any_after_it(world, lie):
    await world.owner.deploy(on=world.holder.id)
    await world.holder.ask(world.owner)
    name = world.owner.id, "greet"
    (row,) = world.holder.services.registry.store.rows(name, most=9, size_max=10**6)
    receipt = open_signed(row.receipt, ExecutionReceipt, network=None).record
    changed = dict(RECEIPT_LIES[lie])
    row = replace(row, status=changed.pop("status", 200))
    key = changed.pop("key", world.holder.key)
    if "outcome" in changed:
        changed["outcome"] = receipt.outcome.model_copy(update=changed["outcome"])
    forged = sign(receipt.model_copy(update=changed), key, world.network)
    world.holder.services.registry.store.add(name, [replace(row, receipt=forged.raw)])
    await world.owner.look_after()
    view = world.owner.services.views()[0]
    assert "is refused, and the service no longer paid" in view.fault
    assert world.owner.market.spending == []
    assert await world.owner.rows() == []
    sent = len(world.wire.sent)
    await world.owner.look_after()
    assert len(world.wire.sent) == sent


async def test_no_row_of_a_page_is_paid_twice(world):
    await world.owner.deploy(on=world.holder.id)
    await world.holder.ask(world.owner)

    def twice(answer):
        rows = answer.header.get("rows", [])
        return replace(answer, header={**answer.header, "rows": rows * 2})

    world.wire.tap = twice
    await world.owner.look_after()
    assert "its numbers do not grow" in world.owner.services.views()[0].fault
    assert world.owner.market.spending == []


async def test_a_receipt_under_a_lease_that_is_forgotten_is_not_paid(world):
    await world.owner.deploy(on=world.holder.id)
    await world.holder.ask(world.owner)
    world.owner.market.leases = [Lease(world.holder.id, b"\2" * 32)]
    await world.owner.look_after()
    assert world.owner.market.spending == []
    await world.holder.ask(world.owner)
    await world.owner.look_after()
    assert len(world.owner.market.spending) == 0
    world.owner.services.registry.get((world.owner.id, "greet")).starved = True
    await world.owner.look_after()
    await world.holder.ask(world.owner)
    await world.owner.look_after()
    assert len(world.owner.market.spending) == 1


def test_the_version_before_is_the_last_one_that_was_active(world):
    def signed(version, generation):
        record = Deployment(
            owner=b"\1" * 32,
            provider=b"\1" * 32,
            name="x",
            version=version,
            generation=generation,
            module=b"\2" * 32,
            environment=(),
            fuel_max=1,
            memory_bytes_max=1,
            timeout_ms=1,
            output_bytes_max=1,
            concurrency=1,
            created_ms=0,
        )
        return sign(record, KeyPair(b"k" * 32), b"n" * 32)

    versions = {name: signed(name, place) for name, place in (("a", 1), ("b", 5), ("c", 3))}
    assert to_roll_back("x", versions, None).record.version == "c"
    assert to_roll_back("x", versions, "a").record.version == "a"
