"""Clearing records of other nodes are fetched, recomputed once, and asked for again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tests.settle import settle
from tests.unit.allocation.clearings import (
    cleared,
    key,
    need,
    published,
    said_of,
    slot,
    state_of,
)
from tests.unit.allocation.fakes import Memory
from tests.unit.allocation.test_commitments import Lines
from xsc.allocation.published import Published
from xsc.allocation.records import (
    CLEARING_ASKED_MAX,
    CLEARING_DRAW,
    FALSE_CLEARINGS_A_PEER_MAX,
    FALSE_CLEARINGS_MAX,
    Records,
)
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.errors import NotFound, ProofInvalid
from xsc.base.limits import (
    ALLOCATIONS_MAX,
    CLEARING_BYTES_MAX,
    CLEARINGS_BYTES_MAX,
    COMMITMENT_BYTES_MAX,
    CONVERGED_LOOK_MS,
)
from xsc.identity.context import Context
from xsc.identity.envelope import sign
from xsc.node.offline.verify import verify_file
from xsc.space.paths import UserSpacePaths, below
from xsc.terms.clearing import SpaceValue
from xsc.terms.slot import Commitment

PROVIDER, CUSTOMER = key(1), key(2)
NODE = PROVIDER.node_id


class Checking:
    """The records of one customer, and what the space of its provider has."""

    def __init__(self, network, published=(), seed=b"7"):
        self.clock = ManualClock()
        self.state = Memory()
        self.reports = []
        self.shared = []
        self.here = {each.node: each for each in published}
        self.values = {}
        self.states = {}
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
            self.state,
            None,
        )
        self.context = context
        self.records = self.make()

    def make(self):
        records = Records(
            self.context,
            space=self,
            read=self.read,
            heard=self,
            once=self.once,
            report=lambda peer, _, what: self.reports.append((peer, what)),
            shares_with=lambda peer: next((each for each in self.shared if peer in each), [peer]),
        )
        records.told = lambda: self.told.append(self.clock.now_ms())
        return records

    def of(self, node):
        nothing = SpaceValue(record=b"", value=b"")
        return self.here.get(node, Published(node, Commitment(), nothing))

    def register_schema(self, pattern, check):
        pass

    def ls(self, prefix):
        return []

    def value(self, path, node):
        assert path == UserSpacePaths.ALLOCATION_STATE
        return self.states.get(node)

    def counts(self, record_id, *, node=NODE, doubted=True):
        """Return whether anything of the provider counts whose state names a record."""
        ids = {record_id}
        return self.records.want(node, () if doubted else ids, ids if doubted else ())

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


def made_of(network):
    """Return what the provider and the customer have published."""
    own = published(PROVIDER, network, Commitment(slots=(slot(),)), {})
    return own, published(CUSTOMER, network, Commitment(needs=(need(),)), {})


@pytest.fixture
def both(network):
    return made_of(network)


@pytest.fixture
def made(network, both):
    return cleared(PROVIDER, both[0], [both[1]], network)


def false_of(made, network):
    """Return what the provider signs where more is eligible than a need asks for."""
    ((customer, need_id, units),) = made.record.eligible
    more = ((customer, need_id, units + 1),)
    return sign(made.record.model_copy(update={"eligible": more}), PROVIDER, network)


def said(made, both, network, by=PROVIDER, **changes):
    """Return what the provider publishes of a clearing, with another line."""
    state = state_of(made, both[0], both[1:], lambda line: line.model_copy(update=changes))
    return said_of(state, by, network)


async def test_of_who_does_not_give_a_record_nothing_counts_until_it_does(made, network):
    checking = Checking(network)
    assert checking.counts(made.id), "it counts while the record is asked for"
    await settle()
    (path,) = checking.reads
    for _ in range(CLEARING_ASKED_MAX - 1):
        assert checking.told == []
        assert checking.counts(made.id)
        await checking.pass_ms(CONVERGED_LOOK_MS)
    assert checking.reads == [path] * CLEARING_ASKED_MAX
    assert len(checking.told) == 1
    assert not checking.counts(made.id)
    assert checking.counts(made.id, node=key(3).node_id), "another provider does"
    checking.records.keep({NODE})
    checking.values[path] = made.raw
    checking.values |= {
        below(UserSpacePaths.NAMED, name): b"nonsense" for name in made.record.names
    }
    await checking.pass_ms(CONVERGED_LOOK_MS)
    assert not checking.counts(made.id), "what it names is wanted as well"
    checking.here = {each.node: each for each in made_of(network)}
    await checking.pass_ms(CONVERGED_LOOK_MS)
    assert checking.counts(made.id)
    await checking.pass_ms(CONVERGED_LOOK_MS)
    checking.reads.clear()
    assert checking.counts(made.id)
    await checking.pass_ms(CONVERGED_LOOK_MS)
    assert path not in checking.reads, "a record is recomputed once"
    assert checking.reports == []


async def test_a_right_record_of_another_provider_or_id_proves_nothing(made, network, both):
    checking = Checking(network, both)
    for node, record_id in ((NODE, bytes(32)), (key(3).node_id, made.id)):
        checking.values[below(UserSpacePaths.CLEARINGS, record_id)] = made.raw
        checking.counts(record_id, node=node)
        for _ in range(CLEARING_ASKED_MAX):
            await checking.pass_ms(CONVERGED_LOOK_MS)
        assert not checking.counts(record_id, node=node)
    assert checking.reports == []


async def checked(made, network, both, seed=b"7", values=(), *, doubted=True, state=None):
    """Let a customer see one record, and return how it did."""
    checking = Checking(network, both, seed)
    checking.values[below(UserSpacePaths.CLEARINGS, made.id)] = made.raw
    checking.values |= {below(UserSpacePaths.NAMED, each.name): each.to_bytes() for each in values}
    if state is not None:
        checking.states[NODE] = state
    checking.counts(made.id, doubted=doubted)
    await settle()
    return checking


async def test_a_customer_recomputes_one_in_sixteen_by_a_draw_of_its_own(made, network, both):
    false, found = false_of(made, network), 0
    for number in range(16 * CLEARING_DRAW):
        checking = await checked(false, network, both, seed=str(number).encode(), doubted=False)
        counts = checking.counts(false.id, doubted=False)
        assert bool(checking.reads) == bool(checking.reports) != counts
        assert checking.records.false_clearings() == ({} if counts else {NODE: false.id})
        found += not counts
    assert 4 <= found <= 40, "16 of 256 on average: each customer draws others"


async def test_a_line_that_cannot_be_right_is_always_recomputed(made, network, both):
    for change in ({"price": 7}, {"tier": "mutual"}, {"tier": "one_way", "price": 2}):
        checking = await checked(made, network, both, state=said(made, both, network, **change))
        assert not checking.counts(made.id)
        assert not checking.counts(bytes(32)), "until what grants it recomputes"
        assert checking.reports == [(NODE, "clearing")]
    right = await checked(made, network, both, state=said(made, both, network))
    assert right.counts(made.id), "recognition changes, too"
    assert right.reports == []


async def test_a_state_with_other_lines_than_its_clearing_is_evidence(made, network, both):
    for change in ({"quantity": 39}, {"price": 9}, {"tier": "mutual"}, {"customer": bytes(32)}):
        checking = await checked(made, network, both, state=said(made, both, network, **change))
        assert not checking.counts(made.id)
        assert checking.reports == [(NODE, "clearing")]
        with pytest.raises(ProofInvalid, match="the clearing that it names does not"):
            verify_file(checking.records.proof(made.id))


async def test_a_false_clearing_is_kept_as_evidence_that_anybody_can_check(made, network, both):
    false = false_of(made, network)
    checking = await checked(false, network, both)
    for records in (checking.records, checking.make()):
        records.start()
        assert records.false_clearings() == {NODE: false.id}
        with pytest.raises(ProofInvalid, match="does not match"):
            verify_file(records.proof(false.id))
    await checking.pass_ms(CONVERGED_LOOK_MS)
    assert checking.reports == [(NODE, "clearing")], "one proves the point"


async def test_evidence_that_is_too_large_is_counted_and_not_kept(made, network, both, monkeypatch):
    false = false_of(made, network)
    size = len((await checked(false, network, both)).records.proof(false.id))
    for bound, kept in ((size, {NODE: false.id}), (size - 1, {})):
        monkeypatch.setattr("xsc.allocation.records.FALSE_CLEARING_BYTES_MAX", bound)
        checking = await checked(false, network, both)
        assert checking.records.false_clearings() == kept
        assert checking.reports == [(NODE, "clearing")]
        assert not checking.counts(false.id)


async def test_a_peer_and_all_that_it_introduced_fill_only_their_share_of_the_evidence(
    made, network
):
    checking = Checking(network)
    liars = [key(number) for number in range(10, 10 + 2 * FALSE_CLEARINGS_MAX)]
    ids = [each.node_id for each in liars]
    checking.shared = [ids[:FALSE_CLEARINGS_MAX]]
    for liar in liars:
        checking.records._keep_evidence(sign(made.record, liar, network), ())
    kept = [each for each in ids if each in checking.records.false_clearings()]
    others = FALSE_CLEARINGS_MAX - FALSE_CLEARINGS_A_PEER_MAX
    assert kept[:FALSE_CLEARINGS_A_PEER_MAX] == ids[:FALSE_CLEARINGS_A_PEER_MAX]
    assert kept[FALSE_CLEARINGS_A_PEER_MAX:] == ids[FALSE_CLEARINGS_MAX:][:others]
    assert [peer for peer, _ in checking.reports] == ids, "all of them count against their signers"


async def test_what_is_not_here_of_what_a_record_names_its_provider_gives(made, network, both):
    own, other = both
    asked = [*own.values, *other.values]
    false = false_of(made, network)
    assert (await checked(false, network, (), values=asked)).reports
    # What it does not give, or gives another value for, proves nothing against it.
    for values in ((), asked[:1]):
        checking = await checked(false, network, (), values=values)
        assert checking.reports == []
    swapped = await checked(false, network, (), values=asked)
    right = await checked(made, network, (), values=asked)
    right.values[below(UserSpacePaths.NAMED, asked[0].name)] = asked[1].to_bytes()
    with pytest.raises(NotFound):
        await right.records.checked(NODE, made.id)
    assert swapped.reports
    assert right.reports == []


def drawn_id(checking):
    return next(
        number.to_bytes(32, "big")
        for number in range(10_000)
        if checking.records._is_drawn(number.to_bytes(32, "big"))
    )


def other_id(checking):
    return next(
        number.to_bytes(32, "big")
        for number in range(10_000)
        if not checking.records._is_drawn(number.to_bytes(32, "big"))
    )


async def test_who_withholds_a_record_that_was_drawn_does_not_count_with_the_next_one(network):
    """It sees what is asked for, never gives it, and clears again under another id."""
    checking = Checking(network)
    drawn, other = drawn_id(checking), other_id(checking)
    checking.counts(drawn, doubted=False)
    for _ in range(CLEARING_ASKED_MAX + 1):
        await checking.pass_ms(CONVERGED_LOOK_MS)
    assert len(checking.reads) >= CLEARING_ASKED_MAX
    assert not checking.counts(drawn, doubted=False)
    checking.counts(other, doubted=False)
    await checking.pass_ms(CONVERGED_LOOK_MS)
    assert not checking.counts(other, doubted=False), "the one that was drawn was never given"


async def test_a_false_clearing_does_not_count_after_its_provider_was_down(made, network, both):
    false = false_of(made, network)
    checking = Checking(network, both)
    checking.values[below(UserSpacePaths.CLEARINGS, false.id)] = false.raw
    checking.counts(false.id)
    await checking.pass_ms(0)
    assert not checking.counts(false.id)
    checking.records.keep(())  # it is down for a moment
    assert not checking.counts(false.id)


async def test_what_one_record_names_is_not_held_without_bound(made, network, both):
    """A line that cannot be right is recomputed: its record names what its provider likes."""
    import tracemalloc

    checking = Checking(network, both)
    count = 2_000  # ALLOCATIONS_MAX participants fit the record, with two names each

    def value_of(number):
        return SpaceValue(
            record=number.to_bytes(4, "big") * 5_000, value=bytes(COMMITMENT_BYTES_MAX)
        )

    by_path, parts = {}, []
    for number in range(0, count, 2):
        names = [value_of(number + each).name for each in range(2)]
        for each, name in enumerate(names):
            by_path[below(UserSpacePaths.NAMED, name)] = number + each
        parts.append((number.to_bytes(32, "big"), *names))
    signed = sign(made.record.model_copy(update={"participants": tuple(parts)}), PROVIDER, network)
    assert len(signed.raw) * 2 * ALLOCATIONS_MAX // count < CLEARING_BYTES_MAX
    held = []

    async def read(_owner, path):
        held.append(path)
        if path == below(UserSpacePaths.CLEARINGS, signed.id):
            return SimpleNamespace(value=signed.raw)
        if path in by_path:
            return SimpleNamespace(value=value_of(by_path[path]).to_bytes())
        raise NotFound("nothing is there")

    checking.records._read = read
    tracemalloc.start()
    checking.counts(signed.id)
    await checking.pass_ms(0)
    for _ in range(400):
        await settle()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 2 * CLEARINGS_BYTES_MAX, f"{peak >> 20} MiB, in {len(held)} reads"
