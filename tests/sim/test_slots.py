"""Recognition decides ahead of use: slots and needs of whole nodes, cleared and drawn."""

import pytest

from tests.gathering import lines_in
from tests.independent import clearing
from tests.sim.network import content, put, run
from xsc.allocation.clearing_record import check_clearing
from xsc.allocation.declaring import Statement
from xsc.allocation.granting import OFFER_PAUSE_MS
from xsc.allocation.program import parts_of
from xsc.allocation.records import CLEARING_ASKED_MAX
from xsc.base.limits import (
    ALLOCATION_LOOK_MS,
    DAMPING_HISTORY_MAX,
    EPOCH_MS,
    MIB,
    OFFER_MS,
    PRICE_BYTES,
    SLOT_STEP_BYTES,
    STORAGE_LEASE_MS,
)
from xsc.identity.envelope import open_signed
from xsc.node.offline.verify import verify_file
from xsc.programs.why import Why, steps_of
from xsc.space import table as tables
from xsc.space.paths import UserSpacePaths
from xsc.storage.object.durability import Contract
from xsc.terms.clearing import (
    ClearingProof,
    SlotAllocationRecord,
    SlotDenominators,
    TierLine,
    TwoTierAllocationState,
)
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot
from xsc.terms.voucher import leases_account

A_STEP = PRICE_BYTES // SLOT_STEP_BYTES
"""The price a GiB and hour that is a micro-credit a step and hour."""
SETTINGS = {
    # What a story offers is all that there is.
    "offer": "none",
    "settle_interval": "2s",
    "booking_interval": "2s",
    "starter_credit": "1000",
    # Room for 256 steps of storage, and 600 of compute.
    "storage_capacity": "16GiB",
    "compute_workers": "3",
    "worker_speed": "2000",
    # What nodes quote is what `offer` asks.
    "storage_price_gib_hour": str(10 * A_STEP),
    "storage_price_max_gib_hour": str(40 * A_STEP),
    "compute_price_gfuel": str(10 * A_STEP),
    "compute_price_max_gfuel": str(40 * A_STEP),
}


async def recognise(node, *peers, ppm=300_000):
    for peer in peers:
        await node.commitments.recognise(peer.key.node_id, ppm)


async def mutual(one, *others):
    await recognise(one, *others)
    for other in others:
        await recognise(other, one)


def offer(node, quantity, kind="storage", price=10, **said):
    return node.commitments.declare(
        AvailabilitySlot, kind, Statement(quantity=quantity, price=price * A_STEP, **said)
    )


def need(node, quantity, kind="storage", price=40, **said):
    return node.commitments.declare(
        NeedSlot, kind, Statement(quantity=quantity, price=price * A_STEP, **said)
    )


def granted(provider):
    """Return what each node is entitled to at a provider, by its name's number."""
    found = {}
    for each in provider.allocator.granted:
        found[each.customer] = found.get(each.customer, 0) + each.quantity
    return found


def of(provider, customer):
    return granted(provider).get(customer.key.node_id, 0)


def records(node):
    """Return the clearings that a node keeps, as it exports them."""
    return [node.allocator.records.proof(record_id) for record_id in node.allocator.records.ids()]


def recompute_all(provider):
    """Recompute every kept clearing twice: by the node's own code, and by code that shares none."""
    kept = records(provider)
    assert kept
    for raw in kept:
        verify_file(raw)
        packed = open_signed(raw, ClearingProof, network=None, size_max=len(raw)).record
        found = check_clearing(packed.clearing, packed.named)
        lines, stages = clearing.recompute(raw)
        made = found.clear()
        assert clearing.joined(lines) == [(*pin, *of) for pin, of in sorted(made.lines.items())]
        assert stages == [(of.capacity, of.given, of.denominator) for of in made.tiers]
        told = [
            (divided.tiers, [line.said for line in divided.allocations])
            for divided in provider.allocator.state.slot_denominators
            if divided.clearing == found.record.id
        ]
        assert told in ([], [(made.tiers, clearing.joined(lines))])


def cleared(node, role="customer"):
    """Return the cleared leases of a node in a role that are open."""
    return [
        view.entry
        for view in node.market.leases()
        if (view.entry.role, view.status) == (role, "open") and view.entry.terms.cleared
    ]


def leased(node, role="customer"):
    """Return the steps of storage that cleared leases have."""
    return sum(lease.use.level for lease in cleared(node, role)) // SLOT_STEP_BYTES


def test_recognition_decides_what_is_leased_and_not_who_asks_first():
    async def play(world):
        provider, early, late = world.nodes
        await mutual(provider, late)
        await offer(provider, 1, "compute")  # so it follows what others need
        await need(early, 100)
        await world.clock.sleep_ms(60_000)
        wanted = await need(late, 100)
        await world.until(lambda: provider.commitments.heard.of(late.key.node_id).commitment.needs)
        await offer(provider, 100)
        await world.until(lambda: cleared(late))
        (lease,) = cleared(late)
        assert lease.use.level == 100 * SLOT_STEP_BYTES
        assert lease.terms.price == 8 * A_STEP, "its rung: 20 % below the reserve"
        await put(late, content(MIB), contract=Contract(0))
        assert any(each.id == lease.id and each.use.held_bytes for each in cleared(late))
        # No clearing touches a signed lease, and freed room is cleared first.
        await world.clock.sleep_ms(120_000)
        assert leased(early) == 0
        await late.commitments.edit(wanted, Statement(quantity=30))
        await world.until(lambda: leased(early) == 70)
        assert leased(late) == 30
        recompute_all(provider)

    run(1, 3, play, SETTINGS)


def test_at_half_life_the_room_goes_to_who_ranks_before_when_it_falls_free():
    """The stranger's lease is not renewed, its bytes move, and the friend leases the room."""

    async def play(world):
        provider, stranger, friend = world.nodes
        await mutual(provider, friend)
        for node in (stranger, friend):
            for slot in node.commitments.own.slots:
                await node.commitments.withdraw(slot.slot_id)
        whole = provider.market.headroom.free("storage") // SLOT_STEP_BYTES
        wanted = await need(stranger, whole, price=1_000)
        await world.until(lambda: leased(stranger) == whole)
        await put(stranger, content(MIB), contract=Contract(0))
        (lease,) = [each for each in cleared(stranger) if each.peer == provider.key.node_id]
        end_ms = lease.terms.end_ms
        assert lease.use.held_bytes
        await need(friend, whole, price=1_000)
        await world.clock.sleep_ms(60_000)
        assert leased(friend) == 0, "the stranger has signed for the room"
        await world.skip(STORAGE_LEASE_MS * 3 // 4, 12 * EPOCH_MS)
        assert lease.terms.end_ms == end_ms, "it is not renewed"
        assert of(provider, friend) == whole, "what is granted stands until the room is free"
        await stranger.commitments.withdraw(wanted)
        await world.until(lambda: leased(friend) > 0, within_ms=600_000)

    settings = {key: value for key, value in SETTINGS.items() if key != "offer"}
    run(12, 3, play, settings | {"settle_interval": "20h", "storage_capacity": "2GiB"})


def test_the_same_needs_stated_double_gain_nothing():
    async def play(world):
        provider, honest, liar = world.nodes
        await mutual(provider, honest, liar)
        await offer(provider, 1, "compute")  # so it follows what others need
        await need(honest, 100)
        await need(liar, 200)
        await need(liar, 100)
        await world.clock.sleep_ms(5_000)
        await offer(provider, 100)
        await world.until(lambda: leased(honest) == leased(liar) == 50)
        await world.clock.sleep_ms(120_000)
        assert leased(honest) == leased(liar) == 50

    run(2, 3, play, SETTINGS)


def test_what_was_drawn_stays_and_the_rest_goes_by_recognition():
    async def play(world):
        provider, early, late = world.nodes
        await recognise(provider, early)
        await offer(provider, 100)
        wanted = await need(early, 100)
        await world.until(lambda: leased(early) == 100)
        assert cleared(early)[0].terms.price == 9 * A_STEP
        await mutual(provider, late)
        await need(late, 80)
        await world.clock.sleep_ms(20_000)
        assert (leased(early), leased(late)) == (100, 0)
        await early.commitments.edit(wanted, Statement(quantity=60))
        await world.until(lambda: leased(late) == 40, within_ms=300_000)
        assert leased(early) == 60
        recompute_all(provider)

    run(3, 3, play, SETTINGS)


def test_what_nobody_takes_a_lease_on_goes_to_others():
    async def play(world):
        provider, idle, other = world.nodes
        await mutual(provider, idle)
        await offer(provider, 1, "compute")  # so it follows what others need
        await need(idle, 100)
        await need(other, 100)
        for node in (idle, other):
            await world.until(
                lambda node=node: provider.commitments.heard.of(node.key.node_id).commitment.needs
            )
        await world.crash(1)
        await offer(provider, 100)
        await world.until(lambda: of(provider, idle) == 100)
        await world.until(lambda: leased(other) == 100)
        assert of(provider, idle) == 0

    run(4, 3, play, SETTINGS)


def test_nothing_is_cleared_again_where_nothing_changed_also_after_a_restart():
    async def play(world):
        provider, customer = world.nodes
        await mutual(provider, customer)
        await offer(provider, 100)
        await need(customer, 50)
        await world.until(lambda: of(provider, customer) == 50)
        await world.clock.sleep_ms(5_000)
        before = records(provider), granted(provider)
        sequence = provider.space.get(UserSpacePaths.ALLOCATION_STATE).signed.record.sequence
        await world.clock.sleep_ms(180_000)
        await world.crash(0)
        provider = await world.restart(0)
        await world.clock.sleep_ms(180_000)
        assert (records(provider), granted(provider)) == before
        state = provider.space.get(UserSpacePaths.ALLOCATION_STATE).signed.record
        assert state.sequence == sequence

    run(5, 2, play, SETTINGS)


def test_a_state_says_when_it_changed_by_how_much_and_when_it_comes_to_rest():
    async def play(world):
        provider, customer = world.nodes
        slot = await offer(provider, 100)
        await need(customer, 50)
        await world.until(lambda: of(provider, customer) == 50)
        await provider.commitments.withdraw(slot)
        await world.until(lambda: not granted(provider))
        await offer(provider, 100)
        await world.until(lambda: of(provider, customer) == 50)
        await world.until(lambda: provider.allocator.state.converged)
        history = provider.allocator.state.convergence_history
        dates = [at_ms for _, at_ms in history]
        assert 1 <= len(history) <= DAMPING_HISTORY_MAX
        assert dates == sorted(dates)
        assert dates[-1] <= world.clock.now_ms()

    run(6, 2, play, SETTINGS)


def test_a_withdrawn_slot_ends_what_was_not_drawn_of_it():
    async def play(world):
        provider, customer = world.nodes
        slot = await offer(provider, 100)
        wanted = await need(customer, 50)
        await world.until(lambda: of(provider, customer) == 50)
        await customer.commitments.withdraw(wanted)
        await world.until(lambda: not granted(provider))
        await need(customer, 50)
        await world.until(
            lambda: of(provider, customer) == 50, within_ms=OFFER_PAUSE_MS + 5 * OFFER_MS
        )
        await provider.commitments.withdraw(slot)
        await world.until(lambda: not granted(provider))
        await world.until(lambda: not customer.allocator.received())

    run(6, 2, play, SETTINGS)


def test_compute_is_granted_and_leased_too():
    async def play(world):
        provider, customer = world.nodes
        await mutual(provider, customer)
        await offer(provider, 400, "compute")
        await need(customer, 300, "compute")
        await world.until(lambda: of(provider, customer) == 300)
        await world.until(lambda: cleared(customer))
        (taken,) = cleared(customer)
        assert taken.terms.price == 8 * A_STEP
        lease = await customer.market.buyer.lease_compute(
            fuel_steps=4_000_000_000, on=provider.key.node_id
        )
        assert (lease.lease_id, lease.price) == (taken.id, 0), "it is paid by time"
        assert sum(provider.market.headroom.drawn_steps().values()) == 300

    run(7, 2, play, SETTINGS)


def test_a_need_that_recurs_is_leased_and_billed_in_its_windows_alone():
    async def play(world):
        provider, customer = world.nodes
        await mutual(provider, customer)
        await offer(provider, 400, "compute")
        minute_ms, now_ms = 60_000, world.clock.now_ms()
        start_ms = now_ms // minute_ms * minute_ms + 2 * minute_ms
        end_ms = start_ms + 3 * minute_ms

        def shown(moment_ms):
            hour, minute = divmod(moment_ms // minute_ms % (24 * 60), 60)
            return f"{hour:02}:{minute:02}"

        await need(customer, 300, "compute", every=f"daily {shown(start_ms)}-{shown(end_ms)}")
        await world.clock.sleep_ms(start_ms - 5_000 - world.clock.now_ms())
        assert not cleared(customer)
        await world.until(lambda: cleared(customer))
        (lease,) = cleared(customer)
        assert start_ms <= lease.terms.start_ms < lease.terms.end_ms == end_ms
        await world.clock.sleep_ms(end_ms + minute_ms - world.clock.now_ms())
        assert not cleared(customer)
        assert not cleared(provider, "provider")
        assert not provider.allocator.granted, "nothing before it begins"
        assert not customer.allocator.received()
        assert [each for each in customer.market.store.all("customer") if each.terms.cleared] == [
            lease
        ]

    run(49, 2, play, SETTINGS)


def test_no_need_is_filled_twice():
    async def play(world):
        one, other, customer, rival = world.nodes
        for provider in (one, other):
            await mutual(provider, customer, rival)
            await offer(provider, 100)
        wanted = await need(customer, 100)
        await need(rival, 150)
        await world.until(lambda: leased(customer) == leased(rival) == 100)
        await world.clock.sleep_ms(20_000)
        assert leased(customer) == leased(rival) == 100
        assert one.allocator.state.converged
        await customer.commitments.withdraw(wanted)
        await world.until(lambda: leased(rival) == 150, within_ms=900_000)
        assert leased(customer) == 0
        assert leased(one, "provider") + leased(other, "provider") == 150

    run(8, 4, play, SETTINGS)


def test_a_node_whose_space_is_full_starts_again_with_what_it_granted(monkeypatch):
    async def play(world):
        provider, customer = world.nodes
        await offer(provider, 100)
        stated = await need(customer, 50)
        await world.until(lambda: of(provider, customer) == 50)
        await world.until(lambda: provider.allocator.state.converged)
        await world.crash(0)
        most = tables.limits.OWNER_BYTES_MAX
        monkeypatch.setattr(tables.limits, "OWNER_BYTES_MAX", 1)
        provider = await world.restart(0)
        assert of(provider, customer) == 50
        monkeypatch.setattr(tables.limits, "OWNER_BYTES_MAX", most)
        await customer.commitments.edit(stated, Statement(quantity=60))
        monkeypatch.setattr(tables.limits, "OWNER_BYTES_MAX", 1)
        await world.clock.sleep_ms(10_000)
        assert of(provider, customer) == 50
        monkeypatch.setattr(tables.limits, "OWNER_BYTES_MAX", most)
        await world.until(lambda: of(provider, customer) == 60)

    run(9, 2, play, SETTINGS)


def test_the_settled_bill_of_a_recognised_customer_is_its_rung():
    async def play(world):
        provider, friend, known, stranger = world.nodes
        await mutual(provider, friend)
        await recognise(provider, known)
        await offer(provider, 240)
        customers = (friend, 8), (known, 9), (stranger, 10)
        for node, _ in customers:
            await need(node, 80)
            await world.until(lambda node=node: leased(node) == 80)
        await put(friend, content(MIB), contract=Contract(0))
        await world.clock.sleep_ms(20_000)
        await world.skip(3 * EPOCH_MS, EPOCH_MS // 4)
        await world.clock.sleep_ms(10_000)
        for node, rung in customers:
            (lease,) = cleared(node)
            mine, theirs = (
                next(view for view in side.market.leases() if view.entry.id == lease.id)
                for side in (node, provider)
            )
            held_ms = world.clock.now_ms() - lease.terms.start_ms
            assert mine.due_micro == theirs.due_micro == 80 * rung * held_ms // EPOCH_MS
            await node.market.settlement.settle_all()
            account = leases_account(provider.key.node_id, node.key.node_id)
            settled = node.ledger.settled(account)
            assert settled == provider.ledger.settled(account) >= mine.due_micro

    run(9, 4, play, SETTINGS)


def test_a_state_that_says_what_cannot_be_right_is_not_paid():
    async def play(world):
        provider, customer = world.nodes
        await mutual(provider, customer)
        await offer(provider, 100)
        await need(customer, 60)
        await world.until(customer.allocator.received)
        (proven,) = customer.allocator.received()
        assert (proven.quantity, proven.price) == (60, 8 * A_STEP)
        (line,) = lines_in(provider.allocator.state)
        for lie in (
            {"quantity": 60, "price": 40 * A_STEP},
            {"granted_ms": 1},
            {"quantity": 61},
        ):
            forged = SlotAllocationRecord(**dict(line) | lie)
            (divided,) = provider.allocator.state.slot_denominators
            tiers = tuple(
                TierLine(**dict(tier) | {"given": tier.given and forged.quantity})
                for tier in divided.tiers
            )
            lies = {"tiers": tiers, "allocations": (forged,)}
            divided = SlotDenominators(**dict(divided) | lies)
            state = TwoTierAllocationState(
                **dict(provider.allocator.state) | {"slot_denominators": (divided,)}
            )
            before = customer.commitments.heard.state_of(provider.key.node_id)
            await provider.space.put(UserSpacePaths.ALLOCATION_STATE, state.to_bytes())
            await world.until(
                lambda before=before: (
                    customer.commitments.heard.state_of(provider.key.node_id) != before
                )
            )
            await world.clock.sleep_ms(1_000)
            for each in customer.allocator.received():
                assert (each.quantity, each.price) == (60, 8 * A_STEP)
            assert [(each.use.level, each.terms.price) for each in cleared(customer)] == [
                (60 * SLOT_STEP_BYTES, 8 * A_STEP)
            ]

    run(10, 2, play, SETTINGS)


def test_a_dead_customer_s_level_is_cleared_to_others():
    """Once it has reached its debt limit."""

    async def play(world):
        provider, idle, other = world.nodes
        await mutual(provider, idle)
        await provider.ledger.set_limit(idle.key.node_id, 5_000)
        await offer(provider, 100)
        await need(idle, 100)
        await world.until(lambda: leased(idle) == 100)
        await need(other, 100)
        await world.clock.sleep_ms(20_000)
        await world.crash(1)
        await world.skip(8 * EPOCH_MS, EPOCH_MS // 4)
        await world.until(lambda: leased(other) > 0)

    run(11, 3, play, SETTINGS)


def said_state(victim, windows, quantity, price=40 * A_STEP):
    """Return a state that says that a need of a node is granted something of slots, by id."""
    (asked,) = victim.commitments.own.needs
    node = victim.key.node_id
    tiers = tuple(
        TierLine(
            tier=tier,
            capacity=quantity,
            given=quantity if tier == "open" else 0,
            denominator=0,
        )
        for tier in ("mutual", "one_way", "open")
    )
    return TwoTierAllocationState(
        slot_denominators=tuple(
            SlotDenominators(
                slot=slot_id,
                window=window,
                kind="storage",
                rule="weighted-uniform",
                clearing=bytes(32),
                tiers=tiers,
                allocations=(
                    SlotAllocationRecord(
                        customer=node,
                        need=asked.slot_id,
                        tier="open",
                        quantity=quantity,
                        price=price,
                        granted_ms=window[0],
                    ),
                ),
            )
            for slot_id, window in windows.items()
        )
    )


@pytest.mark.parametrize("is_drawn", [False, True])
def test_states_without_a_slot_take_no_need_from_its_provider(is_drawn):
    """Nor does one whose clearing record is drawn, and is not there."""

    async def play(world):
        honest, victim, *liars = world.nodes
        await offer(honest, 100)
        await need(victim, 90)
        await world.until(lambda: of(honest, victim) == 90)
        (slot,) = honest.commitments.own.slots
        victim.allocator.records._is_drawn = lambda _: is_drawn

        async def nothing():
            pass

        for liar in liars:
            liar.allocator.allocate = nothing  # it publishes what it likes, and clears nothing
            if is_drawn:
                value = Commitment(slots=(slot,)).to_bytes()
                await liar.space.put(UserSpacePaths.COMMITMENT, value)
            state = said_state(victim, {slot.slot_id: slot.windows[0]}, 90)
            await liar.space.put(UserSpacePaths.ALLOCATION_STATE, state.to_bytes())
        if is_drawn:
            await world.clock.sleep_ms(2 * CLEARING_ASKED_MAX * 1_000)
            # What was kept of the liars is gone, and the need begins a new number.
            await world.until(lambda: of(honest, victim) == 90, 2 * ALLOCATION_LOOK_MS)
        for _ in range(20):
            await world.clock.sleep_ms(1_000)
            assert of(honest, victim) == 90
            assert {e.provider for e in victim.allocator.received()} <= {honest.key.node_id}

    run(10, 5, play, SETTINGS)


def test_a_need_whose_kept_offer_is_gone_is_offered_again_what_it_refused():
    async def play(world):
        stays, goes, customer = world.nodes
        await mutual(goes, customer)
        await offer(stays, 100)
        await need(customer, 100)
        await world.until(lambda: of(stays, customer) == 100)
        stated = await offer(goes, 100)
        await world.until(lambda: of(goes, customer) == 100 and not of(stays, customer))
        await world.clock.sleep_ms(ALLOCATION_LOOK_MS)
        await goes.commitments.withdraw(stated)
        await world.until(lambda: of(stays, customer) == 100, 2 * ALLOCATION_LOOK_MS)

    run(11, 3, play, SETTINGS)


@pytest.mark.parametrize("seed", [2, 3, 4, 5, 6])
def test_customer_and_provider_count_the_same_draws(seed):
    async def play(world):
        provider, customer = world.nodes
        await mutual(provider, customer)
        for days in (60, 30, 20, 10):
            await offer(provider, 10, to_ms=world.clock.now_ms() + days * 24 * EPOCH_MS)
        await need(customer, 40)
        await world.until(lambda: of(provider, customer) == 40)
        await world.until(
            lambda: sum(each.quantity for each in customer.allocator.received()) == 40
        )
        for _ in range(3):
            await put(customer, content(3 * MIB))
        now_ms = world.clock.now_ms()
        theirs = provider.market.store.drawn_steps("provider", now_ms)
        assert theirs
        assert theirs == customer.market.store.drawn_steps("customer", now_ms)

    run(seed, 2, play, SETTINGS)


def test_a_small_entitlement_sells_no_share_at_its_price():
    async def play(world):
        provider, customer = world.nodes
        await offer(provider, 1, price=1)
        await need(customer, 1)
        await world.until(lambda: of(provider, customer) == 1)
        await world.until(customer.allocator.received)
        posted = provider.market.headroom.pricing().unit_price("storage")
        await put(customer, content(20 * MIB))
        leases = list(provider.market.store.of("provider", customer.key.node_id))
        assert leases
        for entry in leases:
            assert entry.terms.price >= posted or entry.use.level <= SLOT_STEP_BYTES

    run(12, 2, play, SETTINGS)


def test_moments_in_a_state_make_no_rounds():
    async def play(world):
        victim, liar = world.nodes
        await need(victim, 100)
        await world.clock.sleep_ms(5_000)
        rounds, allocate = [], victim.allocator.allocate

        async def counted():
            rounds.append(world.clock.now_ms())
            await allocate()

        victim.allocator.allocate = counted
        start, end = world.clock.now_ms() + 5_000, 2**60
        state = said_state(victim, {bytes([n]) * 16: (start + 2 * n, end) for n in range(64)}, 1)
        await liar.space.put(UserSpacePaths.ALLOCATION_STATE, state.to_bytes())
        await world.clock.sleep_ms(10_000)
        assert len(rounds) <= 5

    run(12, 2, play, SETTINGS)


def test_what_a_node_grants_is_explained_to_others_and_outlives_a_crash():
    async def explained(asking, provider):
        walk = Why(asking.following.read, asking.peers.network, parts_of)
        root = await walk.walk(provider.key.node_id, UserSpacePaths.ALLOCATION_STATE)
        await asking.programs.rerun(root)
        steps = steps_of(root)
        assert root.verified
        assert all(step.replayed for step in steps if step.signed is not None)
        return root, {(step.owner, step.path) for step in steps}

    async def play(world):
        provider, friend, stranger = world.nodes
        await mutual(provider, friend)
        await offer(provider, 100)
        for customer in (friend, stranger):
            await need(customer, 80)
        await world.until(lambda: (of(provider, friend), of(provider, stranger)) == (80, 20))
        await world.until(lambda: provider.allocator.state.converged)
        root, read = await explained(friend, provider)
        for node in world.nodes:
            assert (node.key.node_id, UserSpacePaths.COMMITMENT) in read
        (row,) = provider.programs.status()
        assert (row.id, row.state, row.built_in) == ("allocation", "active", True)
        await world.crash(0)
        provider = await world.restart(0)
        await world.until(lambda: of(provider, friend) == 80)
        again, _ = await explained(provider, provider)
        assert again.value == root.value, "a crash changes nothing"
        (restarted,) = provider.programs.status()
        assert restarted.frame == row.frame

    run(4, 3, play, SETTINGS)


def test_a_node_leases_for_now_what_it_offers_and_to_whom():
    """A node that only buys serves nobody, and an offer to friends is for them alone."""

    async def play(world):
        customer, friends, buyer = world.nodes
        ids = [node.key.node_id for node in world.nodes]

        def quoted():
            quotes = (customer.commitments.quote("storage", each, ids[0]) for each in ids[1:])
            return {quote.provider for quote in quotes if quote}

        assert quoted() == set()
        mutuals = Statement(quantity=10, filters=(("tier", "mutual"),))
        await friends.commitments.declare(AvailabilitySlot, "storage", mutuals)
        await world.until(lambda: customer.commitments.heard.of(ids[1]).commitment.slots)
        assert quoted() == set()
        await mutual(customer, friends)
        await world.until(quoted)
        assert quoted() == {ids[1]}
        assert not buyer.commitments.own.slots

    run(11, 3, play, SETTINGS)
