"""Customer and provider, joined by a wire that encodes what passes over it."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace

import pytest

from tests.settle import until
from tests.unit.compute.programs import wasm
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.encoding import decode, encode
from xsc.base.errors import (
    ClockSkewed,
    ExportUnknown,
    FuelExhausted,
    JobUnfinished,
    LeaseExhausted,
    ModuleInvalid,
    ModuleTrapped,
    ModuleUnknown,
    NoOffers,
    PeerSilent,
    RateLimited,
    ReceiptInvalid,
    RecordInvalid,
    ReplayRefused,
    SandboxFailed,
    ShardsInsufficient,
    SignatureInvalid,
    SignatureMismatch,
    TooLarge,
    WorkerLost,
    XscError,
    from_code,
)
from xsc.base.ids import from_text, to_text
from xsc.base.jobs import JobSpec
from xsc.base.limits import (
    COMPILE_BYTE_FUEL,
    MIB,
    MILLISECOND_FUEL,
    MODULE_LOST_MS,
    PRICE_FUEL,
    PROVIDERS_TRIED_MAX,
    REQUEST_WINDOW_MS,
    RUN_FUEL,
)
from xsc.base.log import SilentLog
from xsc.base.merkle import Part, root_of
from xsc.compute.jobs.evidence import EvidenceStore
from xsc.compute.jobs.executor import INPUTS_HELD_A_PEER_BYTES_MAX, SHARED_ANSWER_BYTES_MAX
from xsc.compute.service import ComputeService
from xsc.compute.wasm.inputs import digest_of
from xsc.compute.wasm.limits import Limits
from xsc.compute.worker.local import LocalSandbox
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.terms.execution import ExecutionReceipt, Order
from xsc.terms.lease import OWN_COMPUTE, RunTerms

LIMITS = Limits(fuel=5_000_000)
PRICE = PRICE_FUEL  # a micro-credit a unit of fuel
AGAIN = 4 + RUN_FUEL
"""What a run of add is billed."""
FIRST = AGAIN + len(wasm("add")) * COMPILE_BYTE_FUEL
"""The same of the first, which brings a module that has to be compiled."""


@dataclass
class Lease:
    node: bytes
    lease_id: bytes
    price: int = PRICE


@dataclass
class Market:
    """Leases for a customer, and the book of a provider."""

    leases: list[Lease] = field(default_factory=list)
    spending: list[tuple[bytes, int]] = field(default_factory=list)
    given_back: list[tuple[bytes, int]] = field(default_factory=list)
    room: int = 10**13
    reserved: int = 0
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    refusals: list[bytes] = field(default_factory=list)
    used: list[int] = field(default_factory=list)
    reports: list[tuple[bytes, str]] = field(default_factory=list)
    saved: list[dict[bytes, int]] = field(default_factory=list)

    async def lease_compute(self, *, fuel_steps, on, saved=None, wait_ms=0):
        self.saved.append(saved)
        found = [lease for lease in self.leases if on in (None, lease.node)]
        if not found:
            raise NoOffers("nobody offers compute")
        if len(found) > 1:
            self.leases.append(self.leases.pop(self.leases.index(found[0])))
        return found[0]

    async def lease_service(self, *, fuel_steps, on):
        return await self.lease_compute(fuel_steps=fuel_steps, on=on)

    async def lease_providers(self, *, fuel_steps, count, exclude):
        found = [lease for lease in self.leases if lease.node not in exclude]
        if not found:
            raise NoOffers("nobody offers compute")
        return found[:count]

    def report(self, node, dimension, what):
        assert dimension == "compute"
        self.reports.append((node, what))

    def unused(self, lease_id, fuel_steps):
        self.given_back.append((lease_id, fuel_steps))

    async def spent(self, lease_id, fuel_steps):
        self.spending.append((lease_id, fuel_steps))

    async def refused(self, lease_id):
        self.refusals.append(lease_id)

    def compute_terms(self, lease_id, customer, fuel_steps):
        if fuel_steps > self.room:
            raise LeaseExhausted("the lease is spent")
        return RunTerms(PRICE, "open", cleared=False)

    async def admit_compute(self, lease_id, customer, fuel_steps, wait_ms):
        while fuel_steps > self.room - self.reserved:
            if fuel_steps > self.room:
                raise LeaseExhausted("the lease is spent")
            if wait_ms <= 0:
                raise RateLimited("its other runs did not end in time")
            self.freed.clear()
            before = asyncio.get_running_loop().time()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.freed.wait(), wait_ms / 1000)
            wait_ms -= 1 + int(1000 * (asyncio.get_running_loop().time() - before))
        self.reserved += fuel_steps

    def used_compute(self, lease_id, reserved_steps, used_steps):
        self.reserved -= reserved_steps
        self.freed.set()
        self.used.append(used_steps)


@dataclass
class Answer:
    header: dict
    parts: list


class Wire:
    """Joins services; what `tap` returns takes the place of an answer."""

    def __init__(self):
        self.services = {}
        self.silent = set()
        self.sent = []
        self.tap = lambda answer: answer

    def caller(self, own):
        wire = self

        class Caller:
            async def call(self, peer, method, header, parts=(), *, timeout_ms=None):
                header = decode(encode(header))
                wire.sent.append((peer, header, list(parts)))
                if peer in wire.silent:
                    raise PeerSilent("no answer")
                try:
                    handler = wire.services[peer].handlers()[method]
                    head, bodies = await handler(own, dict(header), parts)
                except XscError as fault:
                    raise from_code(fault.code, fault.message, fault.hint) from None
                views = [memoryview(bytes(body)) for body in bodies]
                return wire.tap(Answer(decode(encode(head)), views))

        return Caller()


class Objects:
    """Objects as another node can read them: a reference is found here, and how much is there."""

    def __init__(self):
        self.known = {}
        self.asked = []

    async def read_reference(self, raw, size_max):
        self.asked.append((raw, size_max))
        found = self.known.get(raw)
        if found is None:
            raise ShardsInsufficient("too few shards can be fetched")
        data, received = found
        if len(data) > size_max:
            raise TooLarge("the object is too large")
        return data, received


class Node:
    def __init__(self, wire, clock, network, name):
        self.key = KeyPair(name * 32)
        self.market = Market()
        self.objects = Objects()
        self.sandbox = LocalSandbox(InlineExecutor())
        self.evidence = EvidenceStore(network, MemoryKeyValue())
        self.service = ComputeService(
            Context(
                self.key,
                network,
                clock,
                SeededEntropy(name),
                InlineExecutor(),
                wire.caller(self.key.node_id),
                SilentLog(),
                None,
                None,
            ),
            leases=self.market,
            book=self.market,
            sandbox=self.sandbox,
            evidence=self.evidence,
            inputs=self.objects,
        )
        wire.services[self.key.node_id] = self.service


class File:
    """A file as an object that no node has shards of."""

    reference = b""

    def __init__(self, name, data):
        self.name = name
        self.data = data
        self.size_bytes = len(data)
        self.digest = hashlib.sha256(data).digest()
        self.spared = {}

    async def read(self):
        return self.data


def options(*, limits=LIMITS, on=None, **how):
    """The options of a job: its limits one by one, and the provider as text."""
    return {**asdict(limits), "on": None if on is None else to_text(on), **how}


def amount(done):
    """What a receipt bills."""
    return open_signed(done.receipt, ExecutionReceipt, network=None).record.amount_micro


class World:
    def __init__(self, network):
        self.network = network
        self.wire = Wire()
        self.clock = ManualClock()
        self.customer, self.provider, self.other = (
            Node(self.wire, self.clock, network, name) for name in (b"c", b"p", b"o")
        )
        nodes = (self.provider, self.other)
        self.customer.market.leases = [
            Lease(node.key.node_id, bytes([number]) * 32) for number, node in enumerate(nodes, 1)
        ]

    async def invoke(self, name="add", function="add", arguments=("2", "3"), **how):
        spec = JobSpec.invoke(wasm(name), function, arguments, **options(**how))
        return await self.customer.service.run(spec)

    async def run(self, name, *args, env=None, stdin=b"", objects=(), output=None, **how):
        spec = JobSpec.run(wasm(name), args, env, stdin, **options(**how))
        return await self.customer.service.run(spec, objects=objects, output=output)

    def order(self, **changed):
        """The first order that was sent, with some fields changed, signed again."""
        header, parts = self.wire.sent[0][1], self.wire.sent[0][2]
        order = open_signed(header["order"], Order, network=None).record
        order = order.model_copy(update={"nonce": b"n" * 16, **changed})
        return {**header, "order": sign(order, self.customer.key, self.network).raw}, parts

    async def serve(self, header, parts, caller=None):
        handler = self.provider.service.handlers()["compute.run"]
        return await handler(caller or self.customer.key.node_id, dict(header), parts)


async def test_a_function_is_run_by_a_peer_and_paid(world):
    done = await world.invoke()
    assert done.results == ("5",)
    assert (done.fuel_used, amount(done), done.trap) == (4, FIRST, None)
    assert from_text(done.provider) == world.provider.key.node_id
    assert world.customer.market.spending == [(b"\1" * 32, FIRST)]
    assert (world.provider.market.used, world.provider.market.reserved) == ([FIRST], 0)
    receipt = open_signed(
        done.receipt, ExecutionReceipt, network=world.network, author=from_text(done.provider)
    )
    order = open_signed(receipt.record.order, Order, network=world.network)
    assert order.author == world.customer.key.node_id


async def test_who_asks_faster_than_a_provider_takes_waits_a_moment_and_is_served(world):
    refused = []

    def tap(answer):
        if len(refused) < PROVIDERS_TRIED_MAX - 1:
            refused.append(answer)
            raise RateLimited("more than 2000 requests a second")
        return answer

    world.wire.tap = tap
    calling = asyncio.create_task(world.invoke(wait_ms=60_000))
    await until(lambda: world.clock.next_ms() is not None)
    while not calling.done():
        if (next_ms := world.clock.next_ms()) is not None:
            world.clock.advance_to(next_ms)
        await until(lambda: calling.done() or world.clock.next_ms() is not None)
    assert (await calling).results == ("5",)
    assert len(refused) == PROVIDERS_TRIED_MAX - 1


async def test_a_module_is_sent_once(world):
    await world.invoke(on=world.provider.key.node_id)
    await world.invoke(on=world.provider.key.node_id)
    assert [header["module"] for _, header, _ in world.wire.sent] == [False, True, False]


async def test_a_command_is_run_by_a_peer_with_its_files(world):
    done = await world.run("upper", objects=[File("text", b"hello")], env={"GREETING": "hei"})
    assert (done.exit_code, done.trap) == (0, None)
    assert done.files == {"deep/TEXT": b"HELLO"}
    assert done.stdout.endswith(b"hei\n")
    counted = await world.run("wordcount", stdin=b"one two\n")
    assert counted.stdout == b"1 2 8\n"


async def test_here_nothing_is_asked_and_nothing_is_paid(world):
    for how in ({"local": True}, {"on": world.customer.key.node_id}):
        done = await world.invoke(**how)
        assert (done.results, amount(done)) == (("5",), 0)
        assert from_text(done.provider) == world.customer.key.node_id
        receipt = open_signed(done.receipt, ExecutionReceipt, network=world.network).record
        order = open_signed(receipt.order, Order, network=world.network).record
        assert order.lease_id == OWN_COMPUTE
    assert world.wire.sent == world.customer.market.spending == []


async def test_the_market_may_choose_the_own_node(world):
    world.customer.market.leases = [Lease(world.customer.key.node_id, bytes(32), 0)]
    assert (await world.invoke()).provider == to_text(world.customer.key.node_id)


async def test_a_limit_that_is_met_is_in_the_receipt_and_billed(world):
    done = await world.invoke("endless", "spin", [])
    assert isinstance(done.trap, FuelExhausted)
    assert done.results == ()
    compiling = len(wasm("endless")) * COMPILE_BYTE_FUEL
    assert amount(done) == LIMITS.fuel + RUN_FUEL + compiling
    failed = await world.invoke("trap", "divide", ["1", "0"])
    assert isinstance(failed.trap, ModuleTrapped)
    flood = await world.run("flood", limits=Limits(fuel=5_000_000, output_bytes=50_000))
    assert flood.exit_code is None
    assert flood.trap.code == "output_too_large"


async def test_what_is_wrong_with_the_call_is_said_before_anybody_is_asked(world):
    with pytest.raises(SignatureMismatch, match=r"add\(i32, i32\) -> i32"):
        await world.invoke(arguments=["1"])
    with pytest.raises(ExportUnknown):
        await world.invoke(function="sub")
    with pytest.raises(ExportUnknown):
        await world.run("add")
    with pytest.raises(ModuleInvalid):
        await world.customer.service.run(JobSpec.invoke(b"", "f"))
    assert world.wire.sent == []


async def test_an_invalid_body_is_refused_by_the_provider_and_not_billed(world):
    broken = wasm("add")[:-2] + b"\x6b\x6b"
    with pytest.raises(ModuleInvalid, match="not valid"):
        await world.customer.service.run(JobSpec.invoke(broken, "add", ["1", "2"]))
    assert (world.provider.market.used, world.provider.market.reserved) == ([0], 0)


async def test_another_provider_is_asked_where_one_is_silent(world):
    world.wire.silent = {world.provider.key.node_id}
    assert (await world.invoke()).provider == to_text(world.other.key.node_id)
    world.wire.silent.add(world.other.key.node_id)
    world.wire.sent.clear()
    with pytest.raises(PeerSilent):
        await world.invoke()
    assert len(world.wire.sent) == 3


async def test_a_silent_provider_is_asked_again_for_the_same_order(world):
    world.wire.silent = {world.provider.key.node_id}
    with pytest.raises(PeerSilent):
        await world.invoke(on=world.provider.key.node_id)
    assert len({header["order"] for _, header, _ in world.wire.sent}) == 1


async def test_nobody_else_is_asked_where_there_is_no_lease(world):
    world.customer.market.leases = []
    with pytest.raises(NoOffers):
        await world.invoke()


async def test_a_spent_lease_is_refused(world):
    world.provider.market.room = LIMITS.steps - 1
    with pytest.raises(LeaseExhausted):
        await world.invoke(on=world.provider.key.node_id)


async def test_what_no_message_can_hold_is_refused_before_it_is_sent(world):
    files = [File(name, bytes(15 * MIB)) for name in "abc"]
    with pytest.raises(TooLarge, match="together"):
        await world.run("upper", objects=files)
    assert world.wire.sent == []


# Orders that may share a request


def patient(world):
    """Say of each order that was sent whether it might share its request."""
    return [header.get("patience_ms") is not None for _, header, _ in world.wire.sent]


class Slow(LocalSandbox):
    """Runs nothing before it is told to."""

    def __init__(self, executor):
        super().__init__(executor)
        self.go_on = asyncio.Event()

    async def run(self, job):
        await self.go_on.wait()
        return await super().run(job)


async def test_a_function_that_was_quick_may_share_its_request(world):
    for _ in range(3):
        assert (await world.invoke(on=world.provider.key.node_id)).results == ("5",)
    assert patient(world) == [False, False, True, True]  # the second brings the module
    assert world.provider.market.used == [FIRST, AGAIN, AGAIN]


async def test_an_order_that_takes_longer_is_asked_for_alone_and_run_once(world):
    there = {"on": world.provider.key.node_id}
    await world.invoke(**there)
    world.wire.sent.clear()
    slow = world.provider.service.runner.sandbox = Slow(InlineExecutor())
    await slow.start()
    running = asyncio.create_task(world.invoke(**there))
    while len(world.wire.sent) < 2:
        await asyncio.wait([running], timeout=0.01)
    slow.go_on.set()
    assert (await running).results == ("5",)
    assert patient(world) == [True, False]
    assert len({header["order"] for _, header, _ in world.wire.sent}) == 1
    assert world.provider.market.used == [FIRST, AGAIN]
    await slow.stop()


async def test_a_provider_that_is_silent_to_a_shared_request_is_asked_alone(world):
    there = {"on": world.provider.key.node_id}
    await world.invoke(**there)
    world.wire.sent.clear()
    world.wire.silent = {world.provider.key.node_id}
    with pytest.raises(PeerSilent):
        await world.invoke(**there)
    assert patient(world) == [True, False, False]


async def test_a_large_answer_is_not_shared_and_not_lost(world):
    await world.run("flood", limits=Limits(fuel=50_000_000, output_bytes=60_000))
    header, parts = world.wire.sent[-1][1:]
    header = {**header, "output_bytes": 60_000}
    with pytest.raises(JobUnfinished, match="too large"):
        await world.serve({**header, "patience_ms": 100}, parts)
    answer, bodies = await world.serve(header, parts)
    assert answer["receipt"]
    assert sum(map(len, bodies)) > SHARED_ANSWER_BYTES_MAX
    with pytest.raises(RecordInvalid, match="patience_ms"):
        await world.serve({**header, "patience_ms": 101}, parts)


async def test_errors_of_shared_orders_are_those_of_others(world):
    there = {"on": world.provider.key.node_id}
    await world.invoke(**there)
    world.provider.market.room = 0
    with pytest.raises(LeaseExhausted):
        await world.invoke(**there)
    assert patient(world)[-1]


# What a provider may answer


def forged(world, change):
    """Replace the receipt by one that the provider signed and that says something else."""

    def tap(answer):
        receipt = open_signed(answer.header["receipt"], ExecutionReceipt, network=None).record
        altered = change(receipt)
        raw = sign(altered, world.provider.key, world.network).raw
        return Answer({**answer.header, "receipt": raw}, answer.parts)

    world.wire.tap = tap


@pytest.mark.parametrize(
    "change",
    [
        lambda receipt: receipt.model_copy(update={"amount_micro": receipt.amount_micro + 1}),
        lambda receipt: receipt.model_copy(
            update={"outcome": receipt.outcome.model_copy(update={"fuel_used": 9})}
        ),
        lambda receipt: receipt.model_copy(
            update={"outcome": receipt.outcome.model_copy(update={"results": ()})}
        ),
        lambda receipt: receipt.model_copy(update={"order": b""}),
    ],
)
async def test_a_receipt_that_breaks_a_rule_is_not_paid(world, change):
    forged(world, change)
    with pytest.raises(ReceiptInvalid, match="refused"):
        await world.invoke()
    assert world.customer.market.spending == []


async def test_output_that_the_receipt_does_not_name_is_refused(world):
    world.wire.tap = lambda answer: Answer(
        answer.header, [memoryview(b"9 9 9\n"), *answer.parts[1:]]
    )
    with pytest.raises(ReceiptInvalid, match="delivered"):
        await world.run("wordcount")


async def test_an_answer_without_its_parts_is_refused(world):
    world.wire.tap = lambda answer: Answer(answer.header, answer.parts[:1])
    with pytest.raises(ReceiptInvalid, match="lacks"):
        await world.invoke()
    world.wire.tap = lambda answer: Answer({}, answer.parts)
    with pytest.raises(RecordInvalid):
        await world.invoke()


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a//b", "OUT\0", ""])
async def test_a_file_that_no_program_can_have_left_is_refused(world, name):
    def rename(answer):
        answer.header["files"][0] = name
        return answer

    world.wire.tap = rename
    with pytest.raises(ReceiptInvalid, match="no program can have left"):
        await world.run("upper", objects=[File("text", b"hello")], env={"GREETING": "hei"})
    assert world.customer.market.spending == []


async def test_a_receipt_of_another_node_is_refused(world):
    world.wire.services[world.provider.key.node_id] = world.other.service
    with pytest.raises(RecordInvalid, match="between other nodes"):
        await world.invoke(on=world.provider.key.node_id)
    world.wire.services[world.provider.key.node_id] = world.provider.service

    def tap(answer):
        receipt = open_signed(answer.header["receipt"], ExecutionReceipt, network=None).record
        raw = sign(receipt, world.other.key, world.network).raw
        return Answer({**answer.header, "receipt": raw}, answer.parts)

    world.wire.tap = tap
    with pytest.raises(SignatureInvalid):
        await world.invoke(on=world.provider.key.node_id)


# What a customer may send


async def test_the_same_order_is_run_and_billed_once(world):
    done = await world.invoke()
    _, header, parts = world.wire.sent[-1]
    for _ in range(3):
        answer, _ = await world.serve(header, parts)
        assert answer["receipt"] == done.receipt
    assert world.provider.market.used == [FIRST]


async def test_the_same_order_twice_at_once_is_run_once(world):
    await world.invoke("fib", "fib", ["5"])
    header, parts = world.order()
    answers = await asyncio.gather(*(world.serve(header, parts) for _ in range(5)))
    assert len({answer["receipt"] for answer, _ in answers}) == 1
    assert len(world.provider.market.used) == 2


async def test_a_run_goes_on_when_its_caller_goes_away(world):
    await world.invoke()
    header, parts = world.order()
    gone = asyncio.create_task(world.serve(header, parts))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    await world.serve(header, parts)
    assert world.provider.market.used == [FIRST, AGAIN]


async def test_a_nonce_stands_for_one_order(world):
    await world.invoke()
    await world.serve(*world.order())
    with pytest.raises(RecordInvalid, match="another one"):
        await world.serve(*world.order(timeout_ms=9))


async def test_an_order_is_refused_outside_of_the_window(world):
    await world.invoke()
    now_ms = world.clock.now_ms()
    for created_ms in (now_ms - REQUEST_WINDOW_MS - 1, now_ms + REQUEST_WINDOW_MS + 1):
        with pytest.raises(ClockSkewed):
            await world.serve(*world.order(created_ms=created_ms))
    with pytest.raises(ReplayRefused, match="before this node started"):
        await world.serve(*world.order(created_ms=now_ms - 1))


async def test_an_old_order_is_not_run_again_after_it_was_forgotten(world):
    await world.invoke()
    _, header, parts = world.wire.sent[-1]
    world.clock.advance_to(world.clock.now_ms() + REQUEST_WINDOW_MS + 1)
    await world.invoke("fib", "fib", ["5"], on=world.provider.key.node_id)
    assert len(world.provider.service._job_executor._orders) == 1
    with pytest.raises(ClockSkewed):
        await world.serve(header, parts)


async def test_an_answer_that_is_no_longer_kept_is_not_made_again(world, monkeypatch):
    await world.invoke()
    _, header, parts = world.wire.sent[-1]
    monkeypatch.setattr(world.provider.service._job_executor._orders._answers, "_size_max", 0)
    await world.invoke("fib", "fib", ["5"], on=world.provider.key.node_id)
    with pytest.raises(ReplayRefused, match="no longer kept"):
        await world.serve(header, parts)


class Crashing(LocalSandbox):
    """A sandbox in which every run ends with its worker process."""

    async def run(self, job, watch=None):
        done = await super().run(job, watch)
        return replace(done, trap="worker_lost", results=(), fuel_used=0, stdout=b"")


async def test_a_lost_worker_is_billed_once_for_a_module(world):
    there = {"on": world.provider.key.node_id, "limits": Limits(fuel=10**9, timeout_ms=20)}
    world.provider.service.runner.sandbox = sandbox = Crashing(InlineExecutor())
    await sandbox.start()
    spending = world.customer.market.spending
    for moment in ("first", "later"):
        done = await world.invoke(**there)
        assert isinstance(done.trap, WorkerLost), moment
        assert done.fuel_used == 20 * MILLISECOND_FUEL
        paid = len(spending)
        assert spending[-1][1] == amount(done)
        world.clock.advance_to(world.clock.now_ms() + 1)
        # It has heard of the loss: a provider that runs the module all the same is not paid.
        with pytest.raises(ReceiptInvalid, match="lost a worker by this module before"):
            await world.invoke(**there)
        assert len(spending) == paid
        assert isinstance((await world.invoke("fib", "fib", ["5"], **there)).trap, WorkerLost)
        world.clock.advance_to(world.clock.now_ms() + MODULE_LOST_MS // 2)
    await sandbox.stop()


async def test_orders_from_before_a_loss_was_told_are_paid(world):
    """They were on their way, and the provider could not refuse them."""
    there = {"on": world.provider.key.node_id, "limits": Limits(fuel=10**9, timeout_ms=20)}
    world.provider.service.runner.sandbox = sandbox = Crashing(InlineExecutor())
    await sandbox.start()
    await world.invoke("fib", "fib", ["5"], **there)
    tasks = [asyncio.create_task(world.invoke(**there)) for _ in range(3)]
    done = await asyncio.gather(*tasks)
    assert [type(each.trap) for each in done] == [WorkerLost] * 3
    await sandbox.stop()


async def test_an_order_that_failed_may_be_given_again(world):
    await world.provider.sandbox.stop()
    with pytest.raises(SandboxFailed):
        await world.invoke(on=world.provider.key.node_id)
    assert set(world.provider.market.used) == {0}
    await world.provider.sandbox.start()
    _, header, parts = world.wire.sent[-1]
    await world.serve(header, parts)
    assert world.provider.market.used[-1] == AGAIN


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"customer": b"x" * 32}, RecordInvalid),
        ({"provider": b"x" * 32}, RecordInvalid),
        ({"module": b"x" * 32}, ModuleUnknown),
        ({"input": b"x" * 32}, RecordInvalid),
    ],
)
async def test_an_order_that_does_not_fit_is_refused(world, changed, error):
    await world.invoke()
    with pytest.raises(error):
        await world.serve(*world.order(**changed))
    assert sum(world.provider.market.used) == FIRST


async def test_an_order_of_somebody_else_is_refused(world):
    await world.invoke()
    with pytest.raises(SignatureInvalid):
        await world.serve(*world.order(), caller=world.other.key.node_id)


@pytest.mark.parametrize(
    "changed",
    [
        {"order": b"?"},
        {"order": None},
        {"args": ["\0"]},
        {"args": [1]},
        {"args": [""] * 65},
        {"environment": [["A"]]},
        {"environment": [["B", ""], ["A", ""]]},
        {"files": ["../x"]},
        {"files": ["more"]},
        {"module": True},
        {"module": 1},
        {"output_bytes": 0},
        {"output_bytes": 2**40},
    ],
)
async def test_a_malformed_request_is_refused_and_reserves_nothing(world, changed):
    await world.invoke()
    header, parts = world.order()
    with pytest.raises((RecordInvalid, ModuleUnknown)):
        await world.serve({**header, **changed}, parts)
    assert (sum(world.provider.market.used), world.provider.market.reserved) == (FIRST, 0)


async def test_another_module_than_the_order_names_is_refused(world):
    await world.invoke()
    false = wasm("fib")
    header, parts = world.order(module=b"x" * 32, given_bytes=len(false))
    with pytest.raises(RecordInvalid, match="not the one"):
        await world.serve({**header, "module": True}, [*parts, Part(false, root_of(false))])


async def test_modules_are_kept_within_their_bound(world, monkeypatch):
    kept = world.provider.service._job_executor._modules
    monkeypatch.setattr(kept, "_size_max", 100)
    for name, function, arguments in (("add", "add", ["1", "2"]), ("fib", "fib", ["3"])) * 2:
        await world.invoke(name, function, arguments, on=world.provider.key.node_id)
    assert 0 < kept.size <= 100


async def test_modules_of_one_customer_take_no_room_of_others(world, monkeypatch):
    kept = world.provider.service._job_executor._modules
    monkeypatch.setattr(kept, "_size_max", 200)
    theirs = wasm("add64")
    kept.put(digest_of(theirs), theirs, world.other.key.node_id, len(theirs))
    for name, function, arguments in (
        ("fib", "fib", ["3"]),
        ("trap", "load", ["0"]),
        ("multi", "nothing", []),
    ) * 2:
        await world.invoke(name, function, arguments, on=world.provider.key.node_id)
        assert digest_of(theirs) in kept
        assert kept.size <= 200


async def test_it_says_what_its_sandbox_says(world):
    assert world.provider.service.describe()["running"] == 0


async def test_a_module_is_kept_only_for_customers_with_a_lease(world):
    world.provider.market.room = 0
    world.customer.market.leases = world.customer.market.leases[:1]
    with pytest.raises(LeaseExhausted):
        await world.invoke(on=world.provider.key.node_id)
    assert any(header["module"] for _, header, _ in world.wire.sent), "it was sent"
    assert not list(world.provider.service._job_executor._modules)


def joint(raw):
    return decode(raw)["v"] == 2


async def test_receipts_and_orders_of_one_moment_are_signed_together(world):
    await world.invoke(on=world.provider.key.node_id)
    assert not joint(world.wire.sent[0][1]["order"])  # one alone is signed by itself
    done = await asyncio.gather(
        *(world.invoke(on=world.provider.key.node_id, arguments=("2", str(n))) for n in range(4))
    )
    orders = [header["order"] for _, header, _ in world.wire.sent[-4:]]
    assert all(map(joint, orders))
    assert len({decode(raw)["sig"] for raw in orders}) == 1
    assert all(joint(each.receipt) for each in done)
    assert len({decode(each.receipt)["sig"] for each in done}) == 1
    for each in done:
        receipt = open_signed(
            each.receipt, ExecutionReceipt, network=world.network, author=from_text(each.provider)
        ).record
        order = open_signed(receipt.order, Order, network=world.network).record
        assert order.customer == world.customer.key.node_id
    here = await asyncio.gather(*(world.invoke(local=True) for _ in range(2)))
    assert all(joint(each.receipt) for each in here)


async def test_a_run_here_gives_its_receipt_as_a_record(world):
    module = wasm("add")
    digest = hashlib.sha256(module).digest()
    runner = world.customer.service.runner
    spec = JobSpec.invoke(module, "add", ("2", "3"), **options())
    done = await runner.run_here(await runner.read(spec, (), digest), None)
    receipt = open_signed(
        done.receipt.raw, ExecutionReceipt, network=world.network, author=world.customer.key.node_id
    )
    assert receipt == done.receipt
    assert receipt.record.outcome.module == digest
    (five,) = receipt.record.outcome.results
    assert five.bits == (5).to_bytes(4, "little")


async def test_what_calls_that_wait_hold_is_counted_their_module_once(world):
    await world.invoke(on=world.provider.key.node_id)
    executor, market = world.provider.service._job_executor, world.provider.market
    module = wasm("add")
    shares, customer = executor._inputs, world.customer.key.node_id
    assert not shares._held
    market.reserved = market.room
    waiting = [
        asyncio.create_task(world.serve(*world.order(nonce=bytes([number]) * 16)))
        for number in range(3)
    ]
    await until(lambda: len(executor._orders) == 4)
    executor._modules.pop(digest_of(module))  # as others that bring theirs would
    assert shares._held == {customer: len(module)}
    assert not shares.take(customer, INPUTS_HELD_A_PEER_BYTES_MAX - len(module) + 1)
    market.reserved = 0
    market.freed.set()
    await asyncio.gather(*waiting)
    assert (dict(shares._held), dict(executor._modules_held)) == ({}, {})
