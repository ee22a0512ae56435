"""Jobs near their data: what is sent, what is saved, and what may be said of it."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field

import pytest

from tests.settle import until
from tests.unit.compute.programs import wasm
from tests.unit.compute.test_service import forged, options
from xsc.base.clock import InlineExecutor
from xsc.base.errors import (
    ArgumentInvalid,
    InputUnavailable,
    LeaseExhausted,
    RateLimited,
    ReceiptInvalid,
    RecordInvalid,
    TooLarge,
)
from xsc.base.jobs import JobSpec
from xsc.base.limits import (
    INPUT_BYTES_MAX,
    LOCALITY_BYTES_LEAST,
    MODULES_REMEMBERED_MAX,
    PEER_TIMEOUT_MS,
)
from xsc.base.merkle import Part, root_of
from xsc.compute.jobs.executor import INPUTS_HELD_A_PEER_BYTES_MAX, INPUTS_HELD_BYTES_MAX
from xsc.compute.jobs.fetching import InputFetcher
from xsc.compute.jobs.locality import ModuleHolders, check_objects, spared
from xsc.compute.wasm.inputs import FILES_MAX, RunInput, input_hash
from xsc.compute.wasm.limits import Limits
from xsc.compute.worker.local import LocalSandbox
from xsc.identity.envelope import open_signed, sign
from xsc.terms.execution import ExecutionReceipt, Order

LIMITS = Limits(fuel=100_000_000)
GREETING = {"GREETING": "hei"}
TEXT = b"hello " * 20_000
HERE = 30_000


@dataclass(eq=False)
class Stored:
    """An object of the customer's own node."""

    data: bytes
    spared: dict = field(default_factory=dict)
    name: str = "text"
    reads: int = 0

    @property
    def size_bytes(self):
        return len(self.data)

    @property
    def digest(self):
        return hashlib.sha256(self.data).digest()

    @property
    def reference(self):
        return b"reference to " + self.digest

    async def read(self):
        self.reads += 1
        return self.data


@pytest.fixture
def stored(world):
    """An object of which the provider holds a quarter."""
    made = Stored(TEXT, {world.provider.key.node_id: HERE})
    world.provider.objects.known[made.reference] = (TEXT, len(TEXT) - HERE)
    return made


async def upper(world, objects, **how):
    spec = JobSpec.run(wasm("upper"), env=GREETING, **options(**{"limits": LIMITS, **how}))
    return await world.customer.service.run(spec, objects=objects)


def receipt_of(done, world):
    receipt = open_signed(done.receipt, ExecutionReceipt, network=world.network).record
    return open_signed(receipt.order, Order, network=world.network).record, receipt


async def test_a_provider_reads_itself_what_it_has_shards_of(world, stored):
    there = {"on": world.provider.key.node_id}
    done = await upper(world, [stored], **there)
    assert done.files["deep/TEXT"] == TEXT.upper()
    order, receipt = receipt_of(done, world)
    assert order.given_bytes == len(TEXT) + len(wasm("upper"))
    assert done.saved_bytes == receipt.observed.saved_bytes == HERE, "the module was sent"
    assert stored.reads == 0
    assert all(TEXT not in [part.data for part in parts] for _, _, parts in world.wire.sent)
    again = await upper(world, [stored], **there)
    assert again.saved_bytes == HERE + len(wasm("upper"))
    assert world.provider.market.reserved == 0


async def test_the_order_names_an_input_by_its_content_however_it_travels(world, stored):
    near = await upper(world, [stored], on=world.provider.key.node_id)
    far = await upper(world, [stored], on=world.other.key.node_id)
    plain = await upper(world, [Stored(TEXT)], on=world.other.key.node_id)
    here = await upper(world, [stored], local=True)
    orders = [receipt_of(done, world)[0] for done in (near, far, plain, here)]
    given = RunInput((), tuple(GREETING.items()), b"", (("text", TEXT),))
    assert {order.input for order in orders} == {input_hash(given, LIMITS.output_bytes)}
    assert (near.saved_bytes, far.saved_bytes, here.saved_bytes) == (HERE, 0, 0)
    assert (orders[1].given_bytes, orders[3].given_bytes) == (len(TEXT) + len(wasm("upper")), 0)
    assert near.files == far.files == plain.files == here.files


async def test_what_a_provider_cannot_read_is_sent(world, stored):
    world.provider.objects.known.clear()
    done = await upper(world, [stored], on=world.provider.key.node_id)
    assert done.files["deep/TEXT"] == TEXT.upper()
    assert (done.saved_bytes, stored.reads) == (0, 1)
    sent = [(header.get("objects"), header["files"]) for _, header, _ in world.wire.sent]
    assert sent == [(["text"], []), (["text"], []), ([], ["text"])]
    assert world.provider.market.reserved == 0


async def test_a_provider_that_does_not_answer_in_time_is_sent_the_input(world, stored):
    waiting = asyncio.Event()

    async def never(raw, size_max):
        waiting.set()
        await asyncio.Event().wait()

    world.provider.objects.read_reference = never
    running = asyncio.create_task(upper(world, [stored], on=world.provider.key.node_id))
    await waiting.wait()
    world.clock.advance_to(world.clock.now_ms() + PEER_TIMEOUT_MS)
    assert (await running).saved_bytes == 0
    assert stored.reads == 1


async def test_the_market_is_told_who_saves_how_much(world, stored):
    await upper(world, [stored])
    await world.invoke()
    assert world.customer.market.saved == [{}, {}], "too little to choose by"
    world.customer.market.saved.clear()
    stored.spared = {world.provider.key.node_id: LOCALITY_BYTES_LEAST, world.other.key.node_id: 1}
    stored.data = TEXT
    await upper(world, [stored])
    assert world.customer.market.saved == [
        {world.provider.key.node_id: LOCALITY_BYTES_LEAST + len(wasm("upper"))}
    ]


async def test_who_ran_a_large_module_lately_has_it(world):
    large = wasm("add") + b"\0" + bytes([0x82, 0x80, 0x04, 1]) + b"x" + bytes(LOCALITY_BYTES_LEAST)
    for _ in range(2):
        done = await world.customer.service.run(JobSpec.invoke(large, "add", ["1", "2"]))
    assert done.saved_bytes in (0, len(large)), "the two providers take turns here"
    ran = {peer for peer, _, _ in world.wire.sent}
    await world.customer.service.run(JobSpec.invoke(large, "add", ["1", "2"]))
    assert world.customer.market.saved[-1] == dict.fromkeys(ran, len(large))
    assert world.customer.market.saved[0] == {}


def test_what_is_known_of_modules_is_bounded():
    holders = ModuleHolders()
    for number in range(MODULES_REMEMBERED_MAX + 1):
        holders.note(number.to_bytes(2, "big"), b"a")
    holders.note(b"\0\1", b"b")
    assert holders.of(b"\0\0") == ()
    assert holders.of(b"\0\1") == (b"a", b"b")
    holders.forget(b"\0\1", b"a")
    assert holders.of(b"\0\1") == (b"b",)
    assert len(holders._known) == MODULES_REMEMBERED_MAX


def test_small_savings_are_no_reason():
    objects = [Stored(b"", {b"a": LOCALITY_BYTES_LEAST - 1, b"b": 2}), Stored(b"", {b"b": 3})]
    assert spared(objects, 1, []) == {}
    assert spared(objects, 1, [b"a"]) == {b"a": LOCALITY_BYTES_LEAST}
    assert spared(objects, LOCALITY_BYTES_LEAST - 5, [b"b"]) == {b"b": LOCALITY_BYTES_LEAST}


@pytest.mark.parametrize("saved", [1, HERE + 1, HERE + 10_000, 2**40])
async def test_more_saved_than_can_be_is_not_paid(world, stored, saved):
    stored.spared = {world.provider.key.node_id: HERE} if saved > 1 else {}

    def claim(receipt):
        observed = receipt.observed.model_copy(update={"saved_bytes": saved})
        return receipt.model_copy(update={"observed": observed})

    forged(world, claim)
    with pytest.raises(ReceiptInvalid, match="saved"):
        await upper(world, [stored], on=world.provider.key.node_id)
    assert world.customer.market.spending == []


# What a customer may send


async def sent(world, stored):
    await upper(world, [stored], on=world.provider.key.node_id)
    world.provider.objects.asked.clear()
    header, parts = world.wire.sent[-1][1:]
    made = world.order(lease_id=b"\1" * 32)[0]["order"]
    return {**header, "order": made}, parts


async def test_without_a_lease_nothing_is_fetched(world, stored):
    header, parts = await sent(world, stored)
    world.provider.market.room = 0
    with pytest.raises(LeaseExhausted):
        await world.serve(header, parts)
    assert world.provider.objects.asked == []


async def test_room_for_inputs_is_bounded_and_given_back(world, stored):
    header, parts = await sent(world, stored)
    shares = world.provider.service._job_executor._inputs
    before = vars(shares).copy()
    assert not shares._held
    own, half = world.customer.key.node_id, INPUTS_HELD_A_PEER_BYTES_MAX
    full = [(own, half - len(TEXT))]
    others = [(b"a", half - len(TEXT)), (b"b", half), (own, 1)]
    assert sum(size for _, size in others) <= INPUTS_HELD_BYTES_MAX
    for held in (full, others):
        assert all(shares.take(*each) for each in held)
        with pytest.raises(RateLimited, match="of yours, or of all"):
            await world.serve(header, parts)
        assert not world.provider.market.reserved
        for each in held:
            shares.give(*each)
    await world.serve(header, parts)
    await asyncio.sleep(0)
    assert vars(shares) == before
    world.provider.objects.known.clear()
    header["order"] = world.order(nonce=b"m" * 16)[0]["order"]
    with pytest.raises(InputUnavailable):
        await world.serve(header, parts)
    assert (vars(shares), world.provider.market.reserved) == (before, 0)


async def test_a_customer_that_goes_away_leaves_no_more_than_its_share(world, stored):
    """What runs on is held: the request that brought it is not there any more to count it."""
    gate = asyncio.Event()

    class Slow(LocalSandbox):
        async def run(self, job, watch=None):
            await gate.wait()
            return await super().run(job, watch)

    provider = world.provider.service._job_executor
    provider._runner._sandbox = sandbox = Slow(InlineExecutor())
    await sandbox.start()
    size = INPUTS_HELD_A_PEER_BYTES_MAX // 5
    module = wasm("upper")
    given = RunInput(files=(("big", bytes(size)),))
    parts = [Part(body, root_of(body)) for body in (b"", bytes(size), module)]
    taken = 0
    for number in range(8):
        order = Order(
            nonce=bytes([number]) * 16,
            lease_id=b"\1" * 32,
            customer=world.customer.key.node_id,
            provider=world.provider.key.node_id,
            module=hashlib.sha256(module).digest(),
            mode="run",
            function="_start",
            arguments=(),
            input=input_hash(given, 1000),
            fuel_max=LIMITS.fuel,
            memory_bytes_max=LIMITS.memory_bytes,
            timeout_ms=1000,
            created_ms=world.clock.now_ms(),
            grants=(),
            given_bytes=size + len(module),
        )
        header = {
            "order": sign(order, world.customer.key, world.network).raw,
            "args": [],
            "environment": [],
            "files": ["big"],
            "objects": [],
            "stream": False,
            "wait_ms": 0,
            "output_bytes": 1000,
            "module": True,
        }
        asking = asyncio.create_task(world.serve(header, parts))
        await until(lambda task=asking, had=taken: task.done() or len(provider._orders) > had)
        if asking.done():
            with pytest.raises(RateLimited, match="of yours"):
                await asking
            break
        taken += 1
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert taken == 4
    gate.set()
    await until(lambda: not provider._inputs._held)
    await sandbox.stop()


async def test_an_order_that_says_too_little_has_nothing_fetched(world, stored):
    header, parts = await sent(world, stored)
    for given_bytes in (0, len(TEXT) - 1):
        header["order"] = world.order(given_bytes=given_bytes or 1)[0]["order"]
        with pytest.raises(TooLarge):
            await world.serve(header, parts)
    header["order"] = world.order(given_bytes=len(TEXT))[0]["order"]  # and nothing for the module
    with pytest.raises(RecordInvalid, match="as long as the order says"):
        await world.serve(header, parts)


async def test_another_content_than_the_order_names_is_refused(world, stored):
    header, parts = await sent(world, stored)
    world.provider.objects.known[stored.reference] = (b"x" + TEXT[1:], 0)
    with pytest.raises(RecordInvalid, match="not the one"):
        await world.serve(header, parts)


@pytest.mark.parametrize("names", [["../x"], ["text", "more"], [], "text", [1]])
async def test_malformed_names_of_objects_are_refused(world, stored, names):
    header, parts = await sent(world, stored)
    with pytest.raises(RecordInvalid):
        await world.serve({**header, "objects": names}, parts)
    assert world.provider.market.reserved == 0


async def test_an_object_and_a_file_of_one_name_are_refused(world, stored):
    header, parts = await sent(world, stored)
    twice = [parts[0], Part(b"", root_of(b"")), *parts[1:]]
    with pytest.raises(RecordInvalid, match="twice"):
        await world.serve({**header, "files": ["text"]}, twice)
    with pytest.raises(ArgumentInvalid, match="twice"):
        await upper(world, [stored, Stored(b"")])


def test_objects_count_as_input():
    many = [Stored(b"", name=f"{number:03}") for number in range(FILES_MAX + 1)]
    check_objects(RunInput(), many[1:])
    with pytest.raises(TooLarge):
        check_objects(RunInput(), many)
    half = [Stored(b"x" * (INPUT_BYTES_MAX // 2), name=name) for name in "ab"]
    check_objects(RunInput(), half)
    with pytest.raises(TooLarge):
        check_objects(RunInput(files=(("c", b"x"),)), half)


async def test_a_read_that_is_given_up_leaves_nothing_running(world):
    begun, ended = asyncio.Event(), asyncio.Event()

    class Slow:
        async def read_reference(self, raw, size_max):
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    fetching = InputFetcher(Slow(), world.clock)
    reading = asyncio.create_task(fetching.read(RunInput(), [("a", b"")], 10))
    await begun.wait()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert ended.is_set()
