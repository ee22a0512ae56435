"""Clearing records of other nodes are fetched, checked once, and asked for again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tests.settle import settle
from tests.unit.allocation.clearings import NOW_MS, cleared, key, need, published, slot
from tests.unit.allocation.test_commitments import Lines
from xsc.allocation.clearing_record import Offer
from xsc.allocation.proofs import Proofs
from xsc.allocation.receiving import proven_of
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.errors import NotFound
from xsc.base.limits import ALLOCATION_LOOK_MS, CLEARING_ASKED_MAX, CONVERGED_LOOK_MS
from xsc.identity.context import Context
from xsc.identity.envelope import sign
from xsc.terms.slot import Commitment

PROVIDER, CUSTOMER = key(1), key(2)
NODE = PROVIDER.node_id


class Checking:
    """The proofs of one customer, and what the space of its provider has."""

    def __init__(self, network):
        self.clock = ManualClock()
        self.values = {}
        self.reads = []
        self.told = []
        self.tasks = []
        context = Context(
            CUSTOMER,
            network,
            self.clock,
            SeededEntropy(b"7"),
            InlineExecutor(),
            None,
            Lines(),
        )
        self.proofs = Proofs(context, read=self.read, once=self.once, told=self.told.append)

    async def read(self, owner, path):
        self.reads.append(path)
        if path not in self.values:
            raise NotFound("nothing is there")
        return SimpleNamespace(value=self.values[path])

    def once(self, _name, work):
        self.tasks.append(asyncio.ensure_future(work()))

    async def pass_ms(self, duration_ms):
        self.clock.advance_to(self.clock.now_ms() + duration_ms)
        await settle()


@pytest.fixture
def made(network):
    offered = slot()
    own = published(PROVIDER, network, Commitment(slots=(offered,)), {})
    other = published(CUSTOMER, network, Commitment(needs=(need(),)), {})
    at = Offer(offered, offered.windows[0], NOW_MS, 100)
    return cleared(at, PROVIDER, own, [other], network)


async def test_a_record_that_is_absent_or_wrong_offers_nothing_and_is_asked_for_again(
    made, network
):
    checking = Checking(network)
    proofs = checking.proofs
    assert proofs.want(NODE, frozenset({made.id}))
    await settle()
    (path,) = checking.reads
    for _ in range(CLEARING_ASKED_MAX - 1):
        assert checking.told == []
        assert proofs.want(NODE, frozenset({made.id})), "what was proven before stays for a while"
        await checking.pass_ms(CONVERGED_LOOK_MS)
    assert checking.reads == [path] * CLEARING_ASKED_MAX
    assert checking.told == [NODE]
    assert not proofs.want(NODE, frozenset({made.id})), "absent: it offers nothing"
    checking.reads.clear()
    assert proofs.of(NODE) == {}
    (line,) = made.record.participants[0].lines
    wrong = made.record.participants[0].model_copy(
        update={"lines": ((line[0], line[1], line[2] - 1, line[3]),)}
    )
    false = sign(made.record.model_copy(update={"participants": (wrong,)}), PROVIDER, network)
    checking.values[path] = false.raw
    await checking.pass_ms(CONVERGED_LOOK_MS)
    assert len(checking.reads) == 1
    await checking.pass_ms(CONVERGED_LOOK_MS)
    assert len(checking.reads) == 1, "what is wrong is not looked at again at once"
    assert proofs.of(NODE) == {}
    checking.values[path] = made.raw
    await checking.pass_ms(ALLOCATION_LOOK_MS)
    assert proofs.of(NODE) == {made.id: proven_of(made.record, CUSTOMER.node_id)}
    assert not proofs.want(NODE, frozenset({made.id}))
    await settle()
    assert len(checking.reads) == 2, "a record is checked once"
    assert checking.told == [NODE, NODE]
    proofs.keep(())
    assert proofs.of(NODE) == {}


async def test_a_right_record_of_another_provider_or_id_proves_nothing(made, network):
    checking = Checking(network)
    for node, record_id in ((NODE, bytes(32)), (key(3).node_id, made.id)):
        checking.reads.clear()
        checking.proofs.want(node, frozenset({record_id}))
        await settle()
        checking.values[checking.reads[0]] = made.raw
        await checking.pass_ms(CONVERGED_LOOK_MS)
        assert len(checking.reads) == 2
        assert checking.proofs.of(node) == {}
        assert not checking.proofs.want(node, frozenset({record_id}))
