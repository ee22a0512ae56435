"""The allocator of one node, over a real space: what it keeps, publishes and grants."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from tests.gathering import inputs_of, lines_in
from tests.settle import settle
from tests.unit.allocation.clearings import present
from tests.unit.allocation.test_commitments import Node
from tests.unit.space.test_store import record
from xsc.allocation.allocating import ROUND_REST, Allocator
from xsc.allocation.clearing import TIERS
from xsc.allocation.granting import OFFER_PAUSE_MS, clear_all
from xsc.allocation.program import state_of
from xsc.allocation.published import CLEARING_VALUE_BYTES, Published
from xsc.allocation.records import CLEARINGS_KEPT_MAX, Records
from xsc.base.clock import InlineExecutor, SeededEntropy
from xsc.base.errors import NotFound, StoreDamaged
from xsc.base.limits import (
    ALLOCATION_LOOK_MS,
    CLEARINGS_BYTES_MAX,
    CONVERGED_LOOK_MS,
    OFFER_MS,
    OFFER_SETTLE_MS,
    PPM,
    SLOTS_MAX,
)
from xsc.identity.context import Context
from xsc.identity.keys import KeyPair
from xsc.node.offline.verify import verify_file
from xsc.space import table as tables
from xsc.space.limits import RECORDS_MAX
from xsc.space.paths import UserSpacePaths, below
from xsc.terms.clearing import (
    SlotAllocationRecord,
    SlotDenominators,
    SpaceValue,
    TierLine,
    TwoTierAllocationState,
)
from xsc.terms.slot import STEP, AvailabilitySlot, Commitment, NeedSlot

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
END_MS = NOW_MS + 24 * HOUR_MS
SLOT = AvailabilitySlot(
    slot_id=b"s" * 16,
    kind="storage",
    quantity=100,
    windows=((NOW_MS, END_MS),),
    valid_until_ms=END_MS,
    price_mutual=8,
    price_one_way=9,
    reserve=10,
)
NOTHING = SpaceValue(record=b"", value=b"")
State = TwoTierAllocationState


def need_of(quantity, number=1, **changes):
    return NeedSlot(
        slot_id=b"n" * 16,
        kind="storage",
        quantity=quantity,
        valid_until_ms=END_MS,
        price_max=40,
        number=number,
        **changes,
    )


class Plenty:
    """A market with room and credit for everything."""

    def __init__(self):
        self.leased = {}

    def unreserved(self, kind):
        return 10**9 * STEP[kind]

    def drawn_steps(self, *, young=False):
        return self.leased

    def credit_among(self, customer, takers):
        return 10**12


class Direct:
    """A program that calls its function, and keeps nothing."""

    fault = ""

    def run(self, given):
        return {"state": state_of(**given)}

    def writes(self):
        return {}

    def wrote(self):
        pass

    def undo(self, fault=""):
        pass


class Known:
    """The peers of a node."""

    def __init__(self, *nodes):
        self.nodes = sorted(nodes)

    def peers(self):
        return self.nodes


class Allocating(Node):
    """A node with an allocator, and what its peers have published."""

    def __init__(self, key, network, *peers, db=None):
        super().__init__(key, network, db)
        self.network = network
        self.sequences = {}
        self.work = []
        ports = (self.clock, SeededEntropy(b"8"), InlineExecutor(), None, self.log)
        self.context = Context(key, network, *ports, self.db, None)
        self.up = {peer.node_id for peer in peers}
        self.known = Known(*self.up)
        self.market = Plenty()
        self.allocator = Allocator(
            self.context,
            space=self.space,
            commitments=self.commitments,
            peers=self.known,
            market=self.market,
            records=Records(
                self.context,
                space=self.space,
                read=self.read,
                heard=self.commitments.heard,
                once=self.once,
                report=lambda peer, _, what: self.reports.append((peer, what)),
                shares_with=lambda peer: [peer],
            ),
            is_up=self.up.__contains__,
            on_offered=lambda: None,
            held=dict,
        )
        self.reports = []
        self.allocator.program = Direct()
        self.allocator.start()

    async def read(self, owner, path):
        return self.space.get(path, owner)

    def once(self, _name, work):
        self.work.append(work)

    async def says(self, peer, path, value):
        """Take in what a peer has published."""
        sequence = self.sequences[peer] = self.sequences.get(peer, 0) + 1
        signed = record(peer, self.network, path, sequence, value)
        assert (await self.space.take(peer.node_id, [(signed, value)])).paths == [path]

    async def needs(self, peer, *needs):
        await self.says(peer, UserSpacePaths.COMMITMENT, Commitment(needs=needs).to_bytes())

    def take(self):
        """Have customers take leases on all that is granted."""
        self.market.leased = {each.key: each.quantity for each in self.allocator.granted}

    def quantities(self):
        return [each.quantity for each in self.allocator.granted]


@pytest.fixture
async def provider(alice, bob, network):
    made = Allocating(alice, network, bob)
    await made.space.put(UserSpacePaths.COMMITMENT, Commitment(slots=(SLOT,)).to_bytes())
    return made


async def test_the_oldest_clearing_records_go_in_the_write_that_brings_others(
    provider, alice, bob, network, monkeypatch
):
    # Three records, each with another commitment of the customer, and the provider's own.
    monkeypatch.setattr("xsc.base.limits.CLEARINGS_BYTES_MAX", 7 * CLEARING_VALUE_BYTES)
    ids, kept = [], provider.allocator.records
    for number in range(6):
        await provider.needs(bob, need_of(10 + number, 1 + number))
        await provider.allocator.allocate()
        assert provider.quantities() == [10 + number]
        ids += [each.id for each in present(provider.allocator)]
        assert {each.id for each in kept.clearings()} == set(ids[-3:])
        for record_id in ids[-3:]:
            assert "divided" in verify_file(provider.allocator.records.proof(record_id))
        with pytest.raises(NotFound):
            provider.allocator.records.proof(ids[-4] if len(ids) > 3 else bytes(32))
        named = {each.path for each in provider.space.ls(UserSpacePaths.NAMED)}
        assert len(named) == 1 + min(3, len(ids)), "what no record names any more has gone with it"
    monkeypatch.setattr("xsc.allocation.records.CLEARINGS_KEPT_MAX", 2)
    monkeypatch.setattr(tables.limits, "OWNER_BYTES_MAX", provider.space.stats().live_bytes)
    await provider.needs(bob, need_of(16, 9))
    await provider.allocator.allocate()
    assert provider.quantities() == [16]
    assert len(kept.clearings()) == 2
    again = Allocating(alice, network, bob, db=provider.db).allocator
    assert again.records.clearings() == kept.clearings()
    for record_id in kept.ids():
        assert again.records.proof(record_id) == provider.allocator.records.proof(record_id)


async def test_what_no_record_names_goes_with_the_next_write(provider, bob):
    """After a power loss, or where peers gave back a part of it."""
    path = below(UserSpacePaths.NAMED, b"n" * 32)
    await provider.space.put(path, NOTHING.to_bytes())
    await provider.needs(bob, need_of(10))
    await provider.allocator.allocate()
    assert path not in {each.path for each in provider.space.ls(UserSpacePaths.NAMED)}
    (record_id,) = provider.allocator.records.ids()
    await provider.space.rm(
        below(UserSpacePaths.NAMED, min(provider.allocator.records.opened(record_id).record.names))
    )
    with pytest.raises(NotFound):
        provider.allocator.records.proof(record_id)


async def test_who_is_removed_is_granted_nothing_any_more(provider, bob):
    await provider.needs(bob, need_of(10))
    await provider.allocator.allocate()
    assert provider.quantities() == [10]
    provider.known.nodes.clear()
    provider.allocator.wake()
    await provider.allocator.allocate()
    assert provider.quantities() == []
    assert lines_in(provider.allocator.state) == []


async def test_without_slots_one_state_says_so_and_no_more_are_written(provider, bob):
    await provider.needs(bob, need_of(10))
    await provider.allocator.allocate()
    await provider.space.put(UserSpacePaths.COMMITMENT, Commitment().to_bytes())
    await provider.allocator.allocate()
    assert provider.allocator.state.slot_denominators == ()
    writes = len(provider.db.writes)
    provider.allocator.wake()
    await provider.allocator.allocate()
    assert len(provider.db.writes) == writes


async def test_a_full_space_leaves_what_is_granted_and_stops_no_start(
    provider, bob, alice, network, monkeypatch
):
    await provider.needs(bob, need_of(10))
    await provider.allocator.allocate()
    most = tables.limits.OWNER_BYTES_MAX
    monkeypatch.setattr(tables.limits, "OWNER_BYTES_MAX", 1)
    await provider.needs(bob, need_of(20, 2))
    for _ in range(3):
        await provider.allocator.allocate()
        assert provider.quantities() == [10]
    assert provider.log.events.count("allocation.not_published") == 1
    writes = len(provider.db.writes)
    again = Allocating(alice, network, bob, db=provider.db)
    assert again.quantities() == [10]
    assert again.allocator.granted == provider.allocator.granted
    assert len(provider.db.writes) == writes
    monkeypatch.setattr(tables.limits, "OWNER_BYTES_MAX", most)
    await provider.allocator.allocate()
    assert provider.quantities() == [20]


async def test_a_restart_knows_from_the_state_who_is_paused(provider, bob, alice, network):
    await provider.needs(bob, need_of(10))
    await provider.allocator.allocate()
    provider.pass_ms(OFFER_MS)
    await provider.allocator.allocate()
    assert provider.quantities() == []
    (pause,) = provider.allocator.state.pauses
    assert pause[1:] == (bob.node_id, 1, provider.clock.now_ms() + OFFER_PAUSE_MS)
    again = Allocating(alice, network, bob, db=provider.db)
    again.clock.advance_to(pause[-1] - 1)
    await again.allocator.allocate()
    assert again.quantities() == []
    again.pass_ms(1)
    await again.allocator.allocate()
    assert again.quantities() == [10]
    again.take()
    await again.allocator.allocate()
    assert again.allocator.state.pauses == (), "who takes a lease begins anew"


async def test_where_a_power_loss_took_a_record_its_window_is_cleared_anew(
    provider, bob, alice, network
):
    await provider.needs(bob, need_of(10))
    await provider.allocator.allocate()
    (before,) = present(provider.allocator)
    await provider.space.rm(below(UserSpacePaths.CLEARINGS, before.id))
    again = Allocating(alice, network, bob, db=provider.db)
    assert again.quantities() == []
    again.pass_ms(1)
    await again.allocator.allocate()
    assert again.quantities() == [10]
    (after,) = present(again.allocator)
    assert after.id != before.id


def test_the_records_of_all_windows_fit_the_own_space():
    assert CLEARINGS_BYTES_MAX <= tables.limits.OWNER_BYTES_MAX // 2
    assert CLEARINGS_BYTES_MAX // CLEARING_VALUE_BYTES <= RECORDS_MAX * 9 // 10
    assert SLOTS_MAX <= CLEARINGS_KEPT_MAX
    slots = [
        SLOT.model_copy(update={"slot_id": bytes([number]) * 16}) for number in range(SLOTS_MAX)
    ]
    asked = []

    def admitted(*_, bytes_max, needs_max):
        asked.append(bytes_max)
        return [], [b"q" * 32]

    other = Published(b"q" * 32, Commitment(needs=(need_of(1),)), NOTHING)
    for count in (1, SLOTS_MAX):
        asked.clear()
        own = Published(b"p" * 32, Commitment(slots=tuple(slots[:count])), NOTHING)
        inputs = inputs_of(
            now_ms=NOW_MS,
            own=own,
            others={other.node: other},
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("xsc.allocation.clearing_record.admitted", admitted)
            clear_all(inputs, TwoTierAllocationState())
        assert len(asked) == count
        assert sum(asked) <= CLEARINGS_BYTES_MAX


def test_a_slot_is_cleared_once_its_window_begins():
    window = NOW_MS + 2 * HOUR_MS, NOW_MS + 3 * HOUR_MS
    slot = AvailabilitySlot(**dict(SLOT) | {"kind": "compute", "windows": (window,)})
    need = NeedSlot(**dict(need_of(10)) | {"kind": "compute"})
    others = {b"q" * 32: Published(b"q" * 32, Commitment(needs=(need,)), NOTHING)}
    own, last, cleared = Published(b"p" * 32, Commitment(slots=(slot,)), NOTHING), State(), []
    for hour in range(4):
        now_ms, credit = NOW_MS + hour * HOUR_MS, dict.fromkeys(others, 10**9)
        free = {"compute": 99}
        last = clear_all(inputs_of(now_ms, own, others, credit=credit, free=free), last)[0]
        cleared.append([each.window for each in last.slot_denominators])
        assert [line.quantity for line in lines_in(last)] == [10] * len(cleared[-1])
    assert cleared == [[], [], [window], []]


async def test_what_begins_is_looked_at_then(provider, bob):
    """What others need, and what this node offers."""
    await provider.needs(bob, need_of(10, windows=((NOW_MS + 7_000, END_MS),)))
    running = asyncio.create_task(provider.allocator.run())
    await settle()
    provider.pass_ms(6_999)
    await settle()
    assert provider.quantities() == []
    provider.pass_ms(1)
    await settle()
    assert provider.quantities() == [10]
    running.cancel()


async def test_what_has_not_settled_is_looked_at_again_in_a_second(provider, bob):
    """And when it has, no sooner than the capacity is."""
    await provider.needs(bob, need_of(10))
    rounds, allocate = [], provider.allocator.allocate

    async def counted():
        rounds.append(provider.clock.now_ms())
        await allocate()

    provider.allocator.allocate = counted
    running = asyncio.create_task(provider.allocator.run())
    await settle()
    provider.take()
    assert not provider.allocator.state.converged
    provider.pass_ms(CONVERGED_LOOK_MS - 1)
    await settle()
    assert len(rounds) == 1
    provider.pass_ms(1)
    await settle()
    assert provider.allocator.state.converged
    for _ in range(3 * ALLOCATION_LOOK_MS // CONVERGED_LOOK_MS):
        provider.pass_ms(CONVERGED_LOOK_MS)
        await settle()
    running.cancel()
    gaps = [after - before for before, after in pairwise(rounds[2:])]
    assert gaps == [ALLOCATION_LOOK_MS, ALLOCATION_LOOK_MS]


async def test_who_publishes_all_the_time_costs_a_tenth_of_the_time(provider):
    """A first change is looked at once, whatever the last round took."""
    rounds = []

    async def slow():
        rounds.append(provider.clock.monotonic_ms())
        provider.pass_ms(200)
        provider.allocator.wake()

    provider.allocator.allocate = slow
    running = asyncio.create_task(provider.allocator.run())
    for _ in range(400):
        await settle()
        provider.pass_ms(100)
    running.cancel()
    gaps = {after - before for before, after in pairwise(rounds)}
    assert min(gaps) >= 200 * (1 + ROUND_REST)
    assert max(gaps) <= 200 * (1 + ROUND_REST) + 100


@pytest.mark.parametrize(("over", "rest_ms"), [((), 100), ((1, 2, 3), 125), ((5, 5, 5), 200)])
async def test_a_swinging_node_publishes_more_slowly(provider, over, rest_ms):
    history = tuple((units, NOW_MS) for units in over)
    own = Commitment(slots=(SLOT,), damping_history=history)
    await provider.space.put(UserSpacePaths.COMMITMENT, own.to_bytes())
    rounds = []

    async def at_once():
        rounds.append(provider.clock.monotonic_ms())
        provider.allocator.wake()

    provider.allocator.allocate = at_once
    running = asyncio.create_task(provider.allocator.run())
    for _ in range(4 * rest_ms):
        await settle()
        provider.pass_ms(1)
    running.cancel()
    assert {after - before for before, after in pairwise(rounds)} == {rest_ms}


async def test_a_damaged_commitment_withdraws_nothing(provider, bob, alice, network):
    await provider.needs(bob, need_of(10))
    await provider.allocator.allocate()
    path = UserSpacePaths.COMMITMENT.encode()
    rows = [key for key, _ in provider.db.scan(b"", None) if provider.space.owner + path in key]
    provider.db.write([(key, b"damaged") for key in rows], sync=True)
    provider.allocator.wake()
    await provider.allocator.allocate()
    assert provider.quantities() == [10]
    with pytest.raises(StoreDamaged):
        Allocating(alice, network, bob, db=provider.db)


def granting_state(slot, customer, need, quantity):
    """Return the state of a provider that grants one need so much of a slot."""
    tiers = tuple(
        TierLine(
            tier=tier,
            capacity=slot.quantity,
            given=quantity if tier == "open" else 0,
            denominator=0,
        )
        for tier in TIERS
    )
    line = SlotAllocationRecord(
        customer=customer,
        need=need.slot_id,
        tier="open",
        quantity=quantity,
        price=10,
        granted_ms=NOW_MS,
    )
    return TwoTierAllocationState(
        slot_denominators=(
            SlotDenominators(
                slot=slot.slot_id,
                window=slot.windows[0],
                kind=slot.kind,
                rule=slot.rule,
                clearing=bytes(32),
                tiers=tiers,
                allocations=(line,),
            ),
        ),
    )


async def test_leases_wait_until_all_that_match_have_offered_or_the_time_is_over(
    alice, bob, network
):
    carol = KeyPair(b"\xc0" * 32)
    node = Allocating(alice, network, bob, carol)
    own = Commitment(needs=(need_of(10),))
    await node.space.put(UserSpacePaths.COMMITMENT, own.to_bytes())

    async def grants(peer, quantity):
        state = granting_state(SLOT, alice.node_id, need_of(10), quantity)
        await node.says(peer, UserSpacePaths.ALLOCATION_STATE, state.to_bytes())
        await node.done(node.allocator.allocate())
        return {each.provider: each.quantity for each in node.allocator.offered()}

    for peer in (bob, carol):
        slots = Commitment(slots=(SLOT,)).to_bytes()
        await node.says(peer, UserSpacePaths.COMMITMENT, slots)
    assert await grants(bob, 4) == {}, "another one that matches has not offered yet"
    node.pass_ms(OFFER_SETTLE_MS)
    await node.allocator.allocate()
    assert [each.provider for each in node.allocator.offered()] == [bob.node_id]
    assert await grants(carol, 6) == {bob.node_id: 4, carol.node_id: 6}
    assert await grants(carol, 9) == {}, "its cap has just been published"
    assert await grants(carol, 9) == {bob.node_id: 4, carol.node_id: 6}, "no more than its cap"
    assert await grants(carol, 6) == {bob.node_id: 4, carol.node_id: 6}
    await node.space.put(UserSpacePaths.COMMITMENT, Commitment().to_bytes())
    assert node.allocator.offered() == [], "the need was withdrawn"


async def test_a_spread_need_that_grew_is_not_capped_at_what_was_offered_before(
    alice, bob, network
):
    carol = KeyPair(b"\xc0" * 32)
    node = Allocating(alice, network, bob, carol)

    async def offered(*quantities):
        for peer, quantity in zip((bob, carol), quantities, strict=True):
            state = granting_state(SLOT, alice.node_id, need_of(5), quantity)
            await node.says(peer, UserSpacePaths.ALLOCATION_STATE, state.to_bytes())
        await node.done(node.allocator.allocate())
        return node.commitments.own.needs[0].caps

    for number, quantity in enumerate((5, 10), 1):
        own = Commitment(needs=(need_of(quantity, number=number, spread=2),))
        await node.space.put(UserSpacePaths.COMMITMENT, own.to_bytes())
        for peer in (bob, carol):
            slots = Commitment(slots=(SLOT,)).to_bytes()
            await node.says(peer, UserSpacePaths.COMMITMENT, slots)
        # Its providers have not seen yet what it is now: they granted that before.
        assert await offered(2, 3) == ()
    assert await offered(5, 5) == ()
    node.pass_ms(OFFER_SETTLE_MS)
    assert await offered(5, 4) == ((bob.node_id, 4),), "now it is the answer"


async def test_caps_fall_in_the_round_that_clears_own_slots(alice, bob, network):
    carol = KeyPair(b"\xc0" * 32)
    node = Allocating(alice, network, bob, carol)
    own = Commitment(slots=(SLOT,), needs=(need_of(10),))
    swings = tuple((5, NOW_MS) for _ in range(3))
    own = own.model_copy(update={"damping_history": swings})
    await node.space.put(UserSpacePaths.COMMITMENT, own.to_bytes())
    for peer in (bob, carol):
        slots = Commitment(slots=(SLOT,)).to_bytes()
        await node.says(peer, UserSpacePaths.COMMITMENT, slots)
        state = granting_state(SLOT, alice.node_id, need_of(10), 10)
        await node.says(peer, UserSpacePaths.ALLOCATION_STATE, state.to_bytes())
    said = Commitment(slots=(SLOT,), needs=(need_of(7),)).to_bytes()
    await node.says(bob, UserSpacePaths.COMMITMENT, said)
    await node.done(node.allocator.allocate())
    assert node.quantities() == [7]
    assert len(node.allocator.received()) == 2
    assert sum(cap for _, cap in node.commitments.own.needs[0].caps) == 10
    assert node.commitments.own.damping_ppm < PPM
