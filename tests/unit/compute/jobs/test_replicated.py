"""Several providers run one order: customer and providers joined by a wire."""

from __future__ import annotations

from itertools import product

import pytest

from tests.unit.compute.programs import wasm
from tests.unit.compute.test_service import LIMITS, Lease, Node, Wire, options
from xsc.base.clock import ManualClock
from xsc.base.errors import (
    ArgumentInvalid,
    NoAgreement,
    NoOffers,
    NotFound,
    PeerSilent,
    ProofInvalid,
    XscError,
)
from xsc.base.ids import to_text
from xsc.base.jobs import JobSpec
from xsc.compute.jobs.evidence import DISSENTS_KEPT_MAX, EvidenceStore
from xsc.compute.jobs.quorum import same_content
from xsc.compute.jobs.receipts import check_receipt
from xsc.compute.jobs.replay import why_not
from xsc.db.memory import MemoryKeyValue
from xsc.identity.envelope import open_signed, sign
from xsc.node.offline.verify import verify_file
from xsc.terms.execution import Dissent, ExecutionReceipt, Number, Order

TWO_OF_THREE = "2of3"


class Replicated:
    """A customer, and providers that are honest until told otherwise."""

    def __init__(self, network, count):
        self.network = network
        self.wire = Wire()
        self.wire.tap = self.tap
        self.clock = ManualClock()
        self.customer = Node(self.wire, self.clock, network, b"c")
        self.providers = [
            Node(self.wire, self.clock, network, bytes([65 + place])) for place in range(count)
        ]
        self.nodes = [node.key.node_id for node in self.providers]
        self.customer.market.leases = [
            Lease(node, bytes([place + 1]) * 32) for place, node in enumerate(self.nodes)
        ]
        self.lies = {}

    def tap(self, answer):
        """Let a provider sign another outcome."""
        receipt = open_signed(answer.header["receipt"], ExecutionReceipt, network=self.network)
        lie = self.lies.get(receipt.author)
        if lie is not None:
            record = lie(receipt.record)
            key = next(n.key for n in self.providers if n.key.node_id == receipt.author)
            answer.header["receipt"] = sign(record, key, self.network).raw
        return answer

    async def invoke(self, quorum=TWO_OF_THREE, function="add", **how):
        spec = JobSpec.invoke(wasm("add"), function, ["2", "3"], **options(verify=quorum, **how))
        return await self.customer.service.run(spec)

    def paid(self):
        """Which providers were paid, by place."""
        by_lease = {lease.lease_id: lease.node for lease in self.customer.market.leases}
        return {
            self.nodes.index(by_lease[lease_id])
            for lease_id, steps in self.customer.market.spending
            if steps
        }


@pytest.fixture
async def replicated(network):
    made = Replicated(network, 5)
    nodes = (made.customer, *made.providers)
    for node in nodes:
        await node.service.start()
    yield made
    for node in nodes:
        await node.service.stop()


def other_sum(receipt):
    wrong = (Number(type="i32", bits=b"\6\0\0\0"),)
    return receipt.model_copy(
        update={"outcome": receipt.outcome.model_copy(update={"results": wrong})}
    )


def other_engine(receipt):
    return receipt.model_copy(
        update={"outcome": receipt.outcome.model_copy(update={"engine": "wasmtime-py/49"})}
    )


def too_dear(receipt):
    return receipt.model_copy(update={"amount_micro": receipt.amount_micro + 1})


async def test_all_are_asked_the_same_and_paid(replicated):
    done = await replicated.invoke()
    assert done.results == ("5",)
    verified = done.verification
    assert set(verified.agreeing) == set(map(to_text, replicated.nodes[:3]))
    assert (verified.dissenting, verified.silent, verified.evidence) == ((), (), ())
    assert replicated.paid() == {0, 1, 2}
    told = [open_signed(raw, ExecutionReceipt, network=None).record for raw in verified.receipts]
    orders = [open_signed(receipt.order, Order, network=None) for receipt in told]
    assert len({order.record.provider for order in orders}) == 3
    assert len({(order.record.nonce, order.record.created_ms) for order in orders}) == 1
    for receipt, order in zip(told, orders, strict=True):
        assert check_receipt(order, receipt, replicated.customer.market.leases[0].price) is None


async def test_a_dissent_becomes_evidence(replicated):
    replicated.lies[replicated.nodes[1]] = other_sum
    done = await replicated.invoke()
    assert done.results == ("5",)
    assert done.verification.dissenting == (to_text(replicated.nodes[1]),)
    assert replicated.paid() == {0, 2}
    assert len(replicated.customer.market.spending) == 3
    assert replicated.customer.market.reports == [(replicated.nodes[1], "dissent")]
    (kept,) = replicated.customer.evidence.list()
    assert (to_text(kept.first), kept.second) == (
        done.verification.agreeing[0],
        replicated.nodes[1],
    )
    assert kept.differs == ("results",)
    raw = replicated.customer.evidence.get(to_text(kept.id)[:8])
    assert "signed different outcomes (results)" in verify_file(raw)
    for place in range(0, len(raw), 7):
        damaged = bytearray(raw)
        damaged[place] ^= 1
        with pytest.raises(ProofInvalid):
            verify_file(bytes(damaged))


async def test_evidence_must_be_of_one_order_and_a_contradiction(replicated, network):
    replicated.lies[replicated.nodes[1]] = other_sum
    await replicated.invoke()
    (kept,) = replicated.customer.evidence.list()
    raw = replicated.customer.evidence.get(to_text(kept.id))
    record = open_signed(raw, Dissent, network=network).record
    del replicated.lies[replicated.nodes[1]]
    other = (await replicated.invoke()).verification.receipts
    customer, stranger = replicated.customer.key, replicated.providers[0].key
    for changed, key, reason in (
        ({}, stranger, "not signed by the customer"),
        ({"customer": stranger.node_id}, customer, "not signed by the customer"),
        ({"second": other[1]}, customer, "not of two providers for the same order"),
        ({"second": record.first}, customer, "not of two providers for the same order"),
        ({"first": other[0], "second": other[1]}, customer, "do not contradict"),
        ({"first": raw}, customer, "expected an execution_receipt"),
    ):
        forged = sign(record.model_copy(update=changed), key, network).raw
        with pytest.raises(ProofInvalid, match=reason):
            verify_file(forged)


async def test_where_none_agree_none_is_paid_and_all_is_kept(replicated):
    replicated.lies[replicated.nodes[1]] = other_sum
    replicated.lies[replicated.nodes[2]] = lambda receipt: receipt.model_copy(
        update={
            "outcome": receipt.outcome.model_copy(update={"memory_peak_bytes": 65536}),
        }
    )
    with pytest.raises(NoAgreement):
        await replicated.invoke()
    assert replicated.paid() == set()
    assert replicated.customer.market.reports == []  # nobody knows who is right
    assert len(replicated.customer.evidence.list()) == 3


@pytest.mark.parametrize("silent", list(product([False, True], repeat=5)))
async def test_who_is_silent_is_replaced_until_enough_agree(replicated, silent):
    replicated.wire.silent = {
        node for node, gone in zip(replicated.nodes, silent, strict=True) if gone
    }
    if sum(not gone for gone in silent) < 2:
        with pytest.raises(PeerSilent):
            await replicated.invoke()
        assert replicated.paid() == set()
        return
    done = await replicated.invoke()
    assert done.results == ("5",)
    assert len(done.verification.agreeing) >= 2
    assert not replicated.paid() & {replicated.nodes.index(node) for node in replicated.wire.silent}
    assert set(done.verification.agreeing) == {
        to_text(replicated.nodes[place]) for place in replicated.paid()
    }


async def test_a_receipt_that_does_not_hold_is_no_vote(replicated):
    replicated.lies[replicated.nodes[0]] = too_dear
    done = await replicated.invoke()
    assert done.verification.silent == (to_text(replicated.nodes[0]),)
    assert replicated.customer.market.reports == [(replicated.nodes[0], "receipt_invalid")]
    assert replicated.paid() == {1, 2}


async def test_another_engine_is_neither_believed_nor_paid_nor_accused(replicated):
    replicated.lies[replicated.nodes[0]] = other_engine
    done = await replicated.invoke()
    assert done.verification.uncounted == (to_text(replicated.nodes[0]),)
    assert replicated.paid() == {1, 2}
    assert replicated.customer.market.reports == []


async def test_a_trap_is_agreed_on_and_paid_like_a_result(replicated):
    done = await replicated.customer.service.run(
        JobSpec.invoke(wasm("trap"), "divide", ["1", "0"], fuel=LIMITS.fuel, verify=TWO_OF_THREE)
    )
    assert done.trap is not None
    assert len(done.verification.agreeing) == 3
    spun = await replicated.customer.service.run(
        JobSpec.invoke(wasm("endless"), "spin", fuel=10_000, verify="3of3")
    )
    assert spun.trap.code == "fuel_exhausted"
    assert spun.fuel_used == 10_000
    assert replicated.paid() == {0, 1, 2}


async def test_a_program_is_verified_with_its_output(replicated):
    done = await replicated.customer.service.run(
        JobSpec.run(wasm("wordcount"), stdin=b"one two\n", fuel=LIMITS.fuel, verify=TWO_OF_THREE)
    )
    assert done.stdout == b"1 2 8\n"
    assert len(done.verification.receipts) == 3


async def test_fewer_providers_than_are_asked_for(replicated):
    replicated.customer.market.leases = replicated.customer.market.leases[:2]
    with pytest.raises(NoOffers, match="only 2 can be had; nothing was run"):
        await replicated.invoke()
    assert replicated.wire.sent == []
    replicated.customer.market.leases = []
    with pytest.raises(NoOffers):
        await replicated.invoke()


async def test_what_nobody_can_run_says_why(replicated):
    """The body is invalid, which only an engine sees."""
    with pytest.raises(XscError, match="not valid WebAssembly"):
        await replicated.customer.service.run(
            JobSpec.invoke(wasm("add")[:-2] + b"\x6b\x6b", "add", ["2", "3"], verify=TWO_OF_THREE)
        )


async def test_one_named_provider_is_not_several(replicated):
    for how in ({"local": True}, {"on": replicated.nodes[0]}):
        with pytest.raises(ArgumentInvalid):
            await replicated.invoke(**how)


async def test_what_is_granted_is_in_the_order_and_cannot_be_verified(replicated):
    done = await replicated.invoke(quorum=None, grants=["random", "clock", "random"])
    receipt = open_signed(done.receipt, ExecutionReceipt, network=None).record
    order = open_signed(receipt.order, Order, network=None).record
    assert order.grants == ("clock", "random")
    assert "seeing the provider's clock and random" in verify_file(done.receipt)
    assert "no second run" in str(why_not(order, receipt.outcome, "", b""))
    assert not same_content(order, order.model_copy(update={"provider": replicated.nodes[4]}))
    with pytest.raises(ArgumentInvalid, match="cannot be verified"):
        await replicated.invoke(grants=["clock"])


def test_the_oldest_evidence_goes_first(alice, bob, network):
    book = EvidenceStore(network, MemoryKeyValue())
    assert book.list() == []
    signed = [
        sign(
            Dissent(customer=alice.node_id, first=b"1", second=b"2", found_ms=found_ms),
            alice,
            network,
        )
        for found_ms in range(DISSENTS_KEPT_MAX + 3)
    ]
    for each in signed:
        book.keep(each)
    assert book.get(to_text(signed[-1].id)) == signed[-1].raw
    assert book.get(to_text(signed[3].id)) == signed[3].raw
    with pytest.raises(NotFound, match="no evidence"):
        book.get(to_text(signed[2].id))
    with pytest.raises(NotFound, match="more than one"):
        book.get("")
