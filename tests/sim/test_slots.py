"""Recognition decides ahead of use: slots and needs of whole nodes, cleared and drawn."""

import pytest

from tests.independent import clearing
from tests.sim.network import content, put, run
from xsc.allocation.clearing_record import (
    Offer,
    check_clearing,
    clear_window,
    read_published,
)
from xsc.allocation.declaring import Statement
from xsc.allocation.gathered import parts_of
from xsc.base.limits import (
    ALLOCATION_LOOK_MS,
    DAMPING_HISTORY_MAX,
    ENTITLEMENT_LAPSE_MS,
    EPOCH_MS,
    HOLD_TOLERANCE_MS,
    MIB,
    PRICE_BYTES,
    SLOT_STEP_BYTES,
)
from xsc.identity.envelope import open_signed, sign
from xsc.market.lease import HOLD_MARK
from xsc.programs.why import Why, steps_of
from xsc.space import table as tables
from xsc.space.paths import UserSpacePaths
from xsc.space.record import SpaceRecord
from xsc.terms.clearing import (
    SlotAllocationRecord,
    SlotDenominators,
    SpaceValue,
    TierLine,
    TwoTierAllocationState,
)
from xsc.terms.slot import Commitment

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
        await node.allocation.recognise(peer.key.node_id, ppm)


async def mutual(one, *others):
    await recognise(one, *others)
    for other in others:
        await recognise(other, one)


def offer(node, quantity, kind="storage", price=10, **said):
    return node.commitments.offer(kind, Statement(quantity=quantity, price=price * A_STEP, **said))


def need(node, quantity, kind="storage", price=40, **said):
    return node.commitments.need(kind, Statement(quantity=quantity, price=price * A_STEP, **said))


def granted(provider):
    """Return what each node is entitled to at a provider, by its name's number."""
    found = {}
    for each in provider.allocator.granted():
        found[each.customer] = found.get(each.customer, 0) + each.quantity
    return found


def of(provider, customer):
    return granted(provider).get(customer.key.node_id, 0)


def records(node):
    return [node.space.get(item.path).value for item in node.space.ls("market/clearings")]


def recompute_all(provider):
    """Recompute every kept clearing twice: by the node's own code, and by code that shares none."""
    kept = records(provider)
    assert kept
    for raw in kept:
        check_clearing(raw)
        by_rule, told = clearing.recompute(raw)
        assert by_rule == told


def test_a_mutual_peer_that_asks_a_minute_later_is_served_first():
    async def play(world):
        provider, early, late = world.nodes
        await mutual(provider, late)
        await offer(provider, 100)
        await need(early, 100)
        await world.until(lambda: of(provider, early) == 100)
        await world.clock.sleep_ms(60_000)
        await need(late, 100)
        await world.until(lambda: of(provider, late) == 100)
        assert of(provider, early) == 0
        for node in (early, late):
            await world.until(
                lambda node=node: (
                    sum(e.quantity for e in node.allocator.received()) == of(provider, node)
                )
            )
        await put(late, content(MIB))
        leases = {
            (view.peer, view.price)
            for view in late.market.leases()
            if view.peer == provider.key.node_id
        }
        assert leases == {(provider.key.node_id, 8 * A_STEP)}, "its rung: 20 % below the reserve"
        recompute_all(provider)

    run(1, 3, play, SETTINGS)


def test_the_same_needs_stated_double_gain_nothing():
    async def play(world):
        provider, honest, liar = world.nodes
        await mutual(provider, honest, liar)
        await offer(provider, 100)
        await need(honest, 100)
        stated = await need(liar, 100)
        await world.until(lambda: of(provider, honest) == of(provider, liar) == 50)
        await liar.commitments.edit(stated, Statement(quantity=200))
        await world.clock.sleep_ms(5_000)
        assert of(provider, honest) == of(provider, liar) == 50
        await need(liar, 100)
        await world.clock.sleep_ms(5_000)
        assert of(provider, honest) == of(provider, liar) == 50

    run(2, 3, play, SETTINGS)


def test_what_was_drawn_stays_and_the_rest_goes_by_recognition():
    async def play(world):
        provider, early, late = world.nodes
        await recognise(provider, early)
        await offer(provider, 100)
        await need(early, 100)
        await world.until(lambda: of(provider, early) == 100)
        await world.until(early.allocator.received)
        await put(early, content(24 * MIB))
        (lease,) = [
            entry
            for entry in provider.market.store.of("provider", early.key.node_id)
            if entry.draw is not None
        ]
        drawn = -(-lease.terms.quantity // SLOT_STEP_BYTES)
        assert lease.terms.price == 9 * A_STEP
        await mutual(provider, late)
        await need(late, 100)
        await world.until(lambda: of(provider, late) > 0)
        await world.clock.sleep_ms(5_000)
        kept = provider.market.headroom.drawn_steps()
        assert of(provider, late) == 100 - sum(kept.values())
        assert 0 < sum(kept.values()) <= drawn
        early_left = [
            each.quantity - kept.get(each.key, 0)
            for each in provider.allocator.granted()
            if each.customer == early.key.node_id
        ]
        assert not any(early_left)
        recompute_all(provider)

    run(3, 3, play, SETTINGS)


def test_what_is_not_drawn_lapses_after_a_day_and_goes_to_others():
    async def play(world):
        provider, idle, other = world.nodes
        await mutual(provider, idle)
        await offer(provider, 100)
        stated = await need(idle, 100)
        await world.until(lambda: of(provider, idle) == 100)
        await need(other, 100)
        await world.skip(ENTITLEMENT_LAPSE_MS, EPOCH_MS)
        await world.until(lambda: of(provider, other) == 100)
        assert of(provider, idle) == 0
        await idle.commitments.edit(stated, Statement(quantity=90))
        await world.until(lambda: of(provider, idle) == 90)

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
        await world.until(lambda: of(provider, customer) == 50)
        await provider.commitments.withdraw(slot)
        await world.until(lambda: not granted(provider))
        await world.until(lambda: not customer.allocator.received())

    run(6, 2, play, SETTINGS)


def test_compute_is_entitled_and_drawn_too():
    async def play(world):
        provider, customer = world.nodes
        await mutual(provider, customer)
        await offer(provider, 400, "compute")
        await need(customer, 300, "compute")
        await world.until(lambda: of(provider, customer) == 300)
        await world.until(customer.allocator.received)
        lease = await customer.market.buyer.lease_compute(
            fuel_steps=4_000_000_000, on=provider.key.node_id
        )
        assert lease.price == 8 * A_STEP
        assert sum(provider.market.headroom.drawn_steps().values()) >= 7

    run(7, 2, play, SETTINGS)


def test_no_need_is_filled_twice_and_a_dead_provider_s_part_moves_by_itself():
    async def play(world):
        one, other, customer, rival = world.nodes
        for provider in (one, other):
            await mutual(provider, customer, rival)
            await offer(provider, 100)
        await need(customer, 100)
        await need(rival, 100)
        nodes = (customer, rival)

        def total(node):
            return of(one, node) + of(other, node)

        await world.until(lambda: all(total(node) == 100 for node in nodes))
        await world.clock.sleep_ms(5_000)
        assert all(total(node) == 100 for node in nodes)
        assert one.allocator.state.converged
        await customer.commitments.withdraw(customer.commitments.own.needs[0].slot_id)
        await world.until(lambda: total(customer) == 0)
        await world.until(lambda: total(rival) == 100)
        dead, alive = (one, other) if of(one, rival) else (other, one)
        moved = of(alive, rival)
        await world.crash(world.index_of(dead.key.node_id))
        await world.until(lambda: of(alive, rival) > moved)
        await world.until(
            lambda: {e.provider for e in rival.allocator.received()} == {alive.key.node_id}
        )

    run(8, 4, play, SETTINGS)


def test_a_node_whose_space_is_full_starts_again_with_what_it_granted(monkeypatch):
    async def play(world):
        provider, customer = world.nodes
        await offer(provider, 100)
        stated = await need(customer, 50)
        await world.until(lambda: of(provider, customer) == 50)
        await world.until(lambda: provider.allocator.state.converged)
        await world.crash(0)
        most = tables.OWNER_BYTES_MAX
        monkeypatch.setattr(tables, "OWNER_BYTES_MAX", 1)
        provider = await world.restart(0)
        assert of(provider, customer) == 50
        monkeypatch.setattr(tables, "OWNER_BYTES_MAX", most)
        await customer.commitments.edit(stated, Statement(quantity=60))
        monkeypatch.setattr(tables, "OWNER_BYTES_MAX", 1)
        await world.clock.sleep_ms(10_000)
        assert of(provider, customer) == 50
        monkeypatch.setattr(tables, "OWNER_BYTES_MAX", most)
        await world.until(lambda: of(provider, customer) == 60)

    run(9, 2, play, SETTINGS)


def paid(customer, provider):
    """Return what a customer has settled with a provider: under leases, and for what it held."""
    views = [v for v in customer.market.leases() if v.peer == provider.key.node_id]
    held = [v for v in views if v.lease_id.startswith(HOLD_MARK)]
    return (
        sum(v.settled_micro for v in views) - sum(v.settled_micro for v in held),
        sum(v.settled_micro for v in held),
    )


def test_the_settled_bill_of_a_recognised_customer_is_its_rung():
    async def play(world):
        provider, friend, known, stranger = world.nodes
        await mutual(provider, friend)
        await recognise(provider, known)
        await offer(provider, 240)
        customers = (friend, 8), (known, 9), (stranger, 10)
        for node, _ in customers:
            await need(node, 80)
            await world.until(lambda node=node: of(provider, node) == 80)
        for node, _ in customers:
            await world.until(
                lambda node=node: any(v.status == "undrawn" for v in node.market.leases())
            )
        begun = world.clock.now_ms()
        await world.skip(3 * EPOCH_MS, EPOCH_MS // 4)
        await world.clock.sleep_ms(10_000)
        for node, rung in customers:
            _, held = paid(node, provider)
            # Thrice its rung an epoch, but for the seconds that it was seen earlier or later.
            minute = 80 * rung * 2 // 60
            hours = 80 * rung * (world.clock.now_ms() - begun) // EPOCH_MS
            assert abs(held - hours) <= minute, (rung, held, hours)
            # Each side has booked the same under the same account.
            (mine,) = [v for v in node.market.leases() if v.lease_id.startswith(HOLD_MARK)]
            (theirs,) = [v for v in provider.market.leases() if v.lease_id == mine.lease_id]
            assert abs(mine.due_micro - theirs.due_micro) <= minute
            await world.until(
                lambda node=node, mine=mine: (
                    node.ledger.settled(mine.lease_id) == provider.ledger.settled(mine.lease_id)
                )
            )
        await put(friend, content(MIB))
        await world.skip(EPOCH_MS // 4, EPOCH_MS // 4)
        await world.clock.sleep_ms(10_000)
        (view,) = [
            v
            for v in friend.market.leases()
            if v.peer == provider.key.node_id and not v.lease_id.startswith(HOLD_MARK)
        ]
        assert view.price == 8 * A_STEP
        assert paid(friend, provider)[0] == view.due_micro > 0

    run(9, 4, play, SETTINGS)


def test_a_state_that_no_clearing_record_proves_is_not_paid():
    async def play(world):
        provider, customer = world.nodes
        await mutual(provider, customer)
        await offer(provider, 100)
        await need(customer, 60)
        await world.until(customer.allocator.billed)
        (proven,) = customer.allocator.billed()
        assert (proven.quantity, proven.price) == (60, 8 * A_STEP)
        (line,) = provider.allocator.state.slot_allocations
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
            divided = SlotDenominators(**dict(divided) | {"tiers": tiers})
            state = TwoTierAllocationState(
                **dict(provider.allocator.state)
                | {
                    "slot_denominators": (divided,),
                    "slot_allocations": (forged,),
                    "recipient_totals": ((customer.key.node_id, "storage", forged.quantity),),
                }
            )
            before = customer.allocator.states()[provider.key.node_id]
            await provider.space.put(UserSpacePaths.ALLOCATION_STATE, state.to_bytes())
            await world.until(
                lambda before=before: customer.allocator.states()[provider.key.node_id] != before
            )
            await world.clock.sleep_ms(1_000)
            for each in customer.allocator.billed():
                assert (each.quantity, each.price) == (60, 8 * A_STEP)
                assert each.granted_ms >= proven.granted_ms

    run(10, 2, play, SETTINGS)


def test_a_record_that_its_provider_dates_back_is_paid_from_when_it_was_seen():
    async def play(world):
        provider, customer = world.nodes
        stated_ms = world.clock.now_ms()
        await need(customer, 100)
        await world.skip(20 * EPOCH_MS, EPOCH_MS)
        await offer(provider, 100, from_ms=stated_ms)
        await world.until(lambda: of(provider, customer) == 100)
        await world.until(lambda: provider.allocator.state.converged)
        (line,) = provider.allocator.state.slot_allocations
        true = check_clearing(records(provider)[0]).record
        early_ms = stated_ms + 60_000
        said = open_signed(
            true.commitment.record, SpaceRecord, network=None, size_max=2**20
        ).record.model_copy(update={"written_ms": early_ms})
        written = SpaceValue(
            record=sign(said, provider.key, provider.peers.network).raw,
            value=true.commitment.value,
        )
        (participant,) = true.participants
        own, other = (
            read_published(node, *values, network=provider.peers.network, at_ms=early_ms)
            for node, *values in (
                (provider.key.node_id, written, true.recognition),
                (participant.customer, participant.commitment, participant.recognition),
            )
        )
        made = clear_window(
            Offer(true.slot, true.window, early_ms, true.capacity),
            own,
            [other],
            {participant.customer: dict(participant.eligible)},
        )
        signed = sign(made, provider.key, provider.peers.network)
        check_clearing(signed.raw)
        (divided,) = provider.allocator.state.slot_denominators
        state = TwoTierAllocationState(
            **dict(provider.allocator.state)
            | {
                "slot_denominators": (SlotDenominators(**dict(divided) | {"clearing": signed.id}),),
                "slot_allocations": (
                    SlotAllocationRecord(**dict(line) | {"granted_ms": early_ms}),
                ),
            }
        )
        await provider.space.put_all(
            {
                UserSpacePaths.clearing(signed.id): signed.raw,
                UserSpacePaths.ALLOCATION_STATE: state.to_bytes(),
            }
        )
        await world.until(lambda: any(e.clearing == signed.id for e in customer.allocator.billed()))
        await world.clock.sleep_ms(30_000)
        (account,) = customer.market.store.holds("customer")
        assert account.use.billed_micro <= -(-2 * HOLD_TOLERANCE_MS * 100 * 10 // EPOCH_MS)

    run(10, 2, play, SETTINGS)


def test_a_dead_customer_s_hold_costs_it_credit_and_then_the_hold():
    async def play(world):
        provider, idle, other = world.nodes
        await mutual(provider, idle)
        await provider.ledger.set_limit(idle.key.node_id, 5_000)
        await offer(provider, 100)
        await need(idle, 100)
        await world.until(lambda: of(provider, idle) == 100)
        await need(other, 100)
        await world.crash(1)
        await world.skip(8 * EPOCH_MS, EPOCH_MS // 4)
        await world.until(lambda: of(provider, other) > 0)
        assert of(provider, idle) < 100

    run(11, 3, play, SETTINGS)


def said_state(victim, slot_id, windows, quantity, price=40 * A_STEP):
    """Return a state that says that a need of a node is granted something in each window."""
    (asked,) = victim.commitments.own.needs
    node = victim.key.node_id
    tiers = tuple(
        TierLine(
            tier=tier,
            capacity=quantity,
            given=quantity if tier == "open" else 0,
            denominator=(b"", b"\x01"),
            level=None,
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
                capacity=quantity,
                clearing=bytes(32),
                tiers=tiers,
            )
            for window in windows
        ),
        slot_allocations=tuple(
            SlotAllocationRecord(
                slot=slot_id,
                window=window,
                customer=node,
                need=asked.slot_id,
                tier="open",
                quantity=quantity,
                price=price,
                granted_ms=window[0],
            )
            for window in windows
        ),
        recipient_totals=((node, "storage", quantity * len(windows)),),
    )


def test_states_without_a_slot_or_a_clearing_record_take_no_need_from_its_provider():
    async def play(world):
        honest, victim, *liars = world.nodes
        await offer(honest, 100)
        await need(victim, 90)
        await world.until(lambda: of(honest, victim) == 90)
        (slot,) = honest.commitments.own.slots

        async def nothing():
            pass

        for liar in liars:
            liar.allocator.allocate = nothing  # it publishes what it likes, and clears nothing
            if liar is liars[-1]:
                value = Commitment(slots=(slot,)).to_bytes()
                await liar.space.put(UserSpacePaths.COMMITMENT, value)
            state = said_state(victim, slot.slot_id, [slot.windows[0]], 90)
            await liar.space.put(UserSpacePaths.ALLOCATION_STATE, state.to_bytes())
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
            assert entry.terms.price >= posted or entry.terms.quantity <= SLOT_STEP_BYTES

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
        start = world.clock.now_ms() + 5_000
        windows = [(start + 2 * number, start + 2 * number + 1) for number in range(256)]
        state = said_state(victim, b"f" * 16, windows, 1)
        await liar.space.put(UserSpacePaths.ALLOCATION_STATE, state.to_bytes())
        await world.clock.sleep_ms(10_000)
        assert len(rounds) <= 5

    run(12, 2, play, SETTINGS)


def test_what_a_node_grants_is_explained_to_others_and_outlives_a_crash():
    async def explained(asking, provider):
        walk = Why(asking.read_space, asking.peers.network, parts_of)
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
