"""Clearing records of other nodes are fetched, checked once, and asked for again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tests.settle import settle
from tests.unit.allocation.clearings import NOW_MS, cleared, key, need, published, slot
from tests.unit.allocation.fakes import Memory
from tests.unit.allocation.test_commitments import Lines
from xsc.allocation.clearing_record import Offer, Published
from xsc.allocation.proofs import Proofs
from xsc.allocation.receiving import own_part
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.errors import NotFound, ProofInvalid
from xsc.base.limits import (
    ALLOCATION_LOOK_MS,
    CLEARING_ASKED_MAX,
    CLEARING_DRAW,
    CONVERGED_LOOK_MS,
)
from xsc.identity.context import Context
from xsc.identity.envelope import sign
from xsc.node.offline.verify import verify_file
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import SpaceValue
from xsc.terms.slot import Commitment

PROVIDER, CUSTOMER = key(1), key(2)
NODE = PROVIDER.node_id


class Checking:
    """The proofs of one customer, and what the space of its provider has."""

    def __init__(self, network, published=(), seed=b"7"):
        self.clock = ManualClock()
        self.state = Memory()
        self.reports = []
        self.here = {each.node: each for each in published}
        self.values = {}
        self.reads = []
        self.told = []
        self.tasks = []
        context = Context(
            CUSTOMER,
            network,
            self.clock,
            SeededEntropy(seed),
            InlineExecutor(),
            None,
            Lines(),
        )
        self.context = context
        self.proofs = self.make()

    def make(self):
        return Proofs(
            self.context,
            state=self.state,
            read=self.read,
            published=self.published,
            once=self.once,
            told=self.told.append,
            report=lambda peer, what: self.reports.append((peer, what)),
        )

    def published(self, node):
        nothing = SpaceValue(record=b"", value=b"")
        return self.here.get(node, Published(node, Commitment(), nothing))

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
def both(network):
    """What the provider and the customer have published."""
    own = published(PROVIDER, network, Commitment(slots=(slot(),)), {})
    return own, published(CUSTOMER, network, Commitment(needs=(need(),)), {})


@pytest.fixture
def made(network, both):
    at = Offer(slot(), slot().windows[0], NOW_MS, 100)
    return cleared(at, PROVIDER, both[0], [both[1]], network)


def false_of(made, network, **changes):
    """Return what the provider signs of one need, with another line."""
    line = dict(
        zip(("need", "tier", "units", "price"), made.record.participants[0].lines[0], strict=True)
    )
    wrong = made.record.participants[0].model_copy(
        update={"lines": (tuple((line | changes).values()),)}
    )
    return sign(made.record.model_copy(update={"participants": (wrong,)}), PROVIDER, network)


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
    checking.values[path] = false_of(made, network, units=39).raw
    await checking.pass_ms(CONVERGED_LOOK_MS)
    assert len(checking.reads) == 1
    await checking.pass_ms(CONVERGED_LOOK_MS)
    assert len(checking.reads) == 1, "what is wrong is not looked at again at once"
    assert proofs.of(NODE) == {}
    checking.values[path] = made.raw
    await checking.pass_ms(ALLOCATION_LOOK_MS)
    assert proofs.of(NODE) == {made.id: own_part(made.record, CUSTOMER.node_id)}
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


async def checked(made, network, both, seed=b"7", values=()):
    """Let a customer see one record, and return how it did."""
    checking = Checking(network, both, seed)
    checking.values[UserSpacePaths.clearing(made.id)] = made.raw
    checking.values |= {UserSpacePaths.named(each.name): each.to_bytes() for each in values}
    checking.proofs.want(NODE, frozenset({made.id}))
    await settle()
    return checking


async def test_a_customer_recomputes_one_in_sixteen_by_a_draw_of_its_own(made, network, both):
    false, found = false_of(made, network, units=39), 0
    for number in range(16 * CLEARING_DRAW):
        checking = await checked(false, network, both, seed=str(number).encode())
        taken = checking.proofs.of(NODE)
        assert bool(taken) != bool(checking.reports)
        assert checking.proofs.false_clearings() == ({} if taken else {NODE: false.id})
        found += not taken
    assert 4 <= found <= 40, "16 of 256 on average: each customer draws others"


async def test_a_line_whose_price_its_slot_does_not_ask_is_always_recomputed(made, network, both):
    for change in ({"price": 7}, {"tier": "mutual"}, {"tier": "one_way", "price": 2}):
        checking = await checked(false_of(made, network, **change), network, both)
        assert checking.proofs.of(NODE) == {}
        assert checking.reports == [(NODE, "clearing")]


async def test_a_false_clearing_is_kept_as_evidence_that_anybody_can_check(made, network, both):
    false = false_of(made, network, price=7)
    checking = await checked(false, network, both)
    for proofs in (checking.proofs, checking.make()):
        proofs.start()
        assert proofs.false_clearings() == {NODE: false.id}
        with pytest.raises(ProofInvalid, match="by the rule"):
            verify_file(proofs.evidence(NODE))
    await checking.pass_ms(ALLOCATION_LOOK_MS)
    assert checking.reports == [(NODE, "clearing")], "one proves the point"


async def test_evidence_that_is_too_large_is_counted_and_not_kept(made, network, both, monkeypatch):
    false = false_of(made, network, price=7)
    size = len((await checked(false, network, both)).proofs.evidence(NODE))
    for bound, kept in ((size, {NODE: false.id}), (size - 1, {})):
        monkeypatch.setattr("xsc.allocation.proofs.FALSE_CLEARING_BYTES_MAX", bound)
        checking = await checked(false, network, both)
        assert checking.proofs.false_clearings() == kept
        assert checking.reports == [(NODE, "clearing")]
        assert checking.proofs.of(NODE) == {}


async def test_what_is_not_here_of_what_a_record_names_its_provider_gives(made, network, both):
    own, other = both
    asked = [*own.named.values(), *other.named.values()]
    false = false_of(made, network, price=7)
    assert (await checked(false, network, (), values=asked)).reports
    # What it does not give, or gives another value for, proves nothing against it.
    for values in ((), asked[:1]):
        checking = await checked(false, network, (), values=values)
        assert (checking.reports, checking.proofs.of(NODE)) == ([], {})
    swapped = await checked(false, network, (), values=asked)
    right = await checked(made, network, (), values=asked)
    right.values[UserSpacePaths.named(asked[0].name)] = asked[1].to_bytes()
    with pytest.raises(NotFound):
        await right.proofs.open(NODE, made.id)
    assert swapped.reports
    assert right.reports == []
