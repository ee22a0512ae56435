"""Services on whole nodes: held by a peer, paid by their owner, through crashes."""

from __future__ import annotations

import json

import pytest

from tests.sim.network import run
from tests.unit.compute.programs import wasm
from xsc.allocation.declaring import standing_need
from xsc.base.errors import NotAllowed, NotFound, PeerSilent
from xsc.base.ids import to_text
from xsc.base.limits import COMPUTE_LEASE_MS, GIB
from xsc.compute.deployments.wagi import Request
from xsc.compute.wasm.limits import Limits
from xsc.identity.envelope import open_signed
from xsc.market.choosing import STEP
from xsc.node.offline.verify import verify_file
from xsc.space.paths import UserSpacePaths, below
from xsc.terms.execution import ExecutionReceipt

SERVING = {"services_listen": "8080"}
# The next lease is taken while the one before it is open, at a node that is used: it costs up
# to twice the price of an idle one.
PRICED = {**SERVING, "compute_price_gfuel": "1000000", "compute_price_max_gfuel": "2000000"}
LIMITS = Limits(fuel=100_000_000)


async def deploy(world, greeting="Hello", on=1, limits=LIMITS):
    return await world.nodes[0].services.owner.deploy(
        wasm("greet"),
        "greet",
        environment={"GREETING": greeting},
        limits=limits,
        concurrency=2,
        on=world.nodes[on].key.node_id,
    )


async def ask(world, at=1):
    request = Request("GET", "/fn/x/greet", "", "", "", [])
    owner = world.nodes[0].key.node_id
    served = await world.nodes[at].services.holder.answer(owner, "greet", request)
    return served.response


def rows(world):
    service = world.nodes[0].services.registry.get((world.nodes[0].key.node_id, "greet"))
    return world.nodes[0].services.registry.store.rows(service.key, most=10_000, size_max=2**40)


def leases(world, index, role):
    return [
        lease
        for lease in world.nodes[index].market.leases()
        if (lease.entry.role, lease.entry.terms.kind) == (role, "compute")
    ]


def held(world):
    """Return the leases for now for services that the owner has, and that are not over."""
    now_ms = world.clock.now_ms()
    accounts = world.nodes[0].market.store.all("customer")
    return [entry for entry in accounts if not entry.terms.cleared and not entry.is_over(now_ms)]


def test_a_peer_answers_for_hours_and_is_paid_for_every_request():
    async def play(world):
        await deploy(world)
        statuses = set()
        for _ in range(30):
            statuses.add((await ask(world)).status)
            await world.clock.sleep_ms(COMPUTE_LEASE_MS // 4)
        assert statuses == {200}
        await world.until(lambda: len(rows(world)) == 30)
        await world.nodes[0].market.settlement.settle_all()
        # Each receipt is rounded down, and the bill once.
        billed = sum(row.amount_micro for row in rows(world))
        bills = range(billed, billed + len(rows(world)))
        assert all(row.fuel_used > 0 for row in rows(world))
        mine, theirs = leases(world, 0, "customer"), leases(world, 1, "provider")
        assert any(lease.entry.terms.cleared for lease in mine), "its rate is paid by time"
        assert len(mine) > 5
        (ours,), (account,) = (
            [each for each in world.nodes[index].market.store.accounts() if each.role == role]
            for index, role in ((0, "customer"), (1, "provider"))
        )
        owed = world.nodes[1].market.owed_micro(account)
        assert ours.settled_micro == account.settled_micro
        assert world.nodes[0].market.owed_micro(ours) == owed
        rates = sum(lease.due_micro for lease in theirs if lease.entry.terms.cleared)
        assert account.settled_micro + owed - rates in bills
        for row in rows(world):
            assert "greet" in verify_file(row.receipt)

    run(1, 2, play, PRICED)


def test_a_request_that_costs_is_settled_in_both_books():
    async def play(world):
        await deploy(world)
        for _ in range(3):
            assert (await ask(world)).status == 200
        await world.until(lambda: len(rows(world)) == 3)
        await world.nodes[0].market.settlement.settle_all()
        owed = world.nodes[1].ledger.balance(world.nodes[0].key.node_id)
        assert owed == sum(row.amount_micro for row in rows(world)) > 0
        assert world.nodes[0].ledger.balance(world.nodes[1].key.node_id) == -owed

    run(
        2,
        2,
        play,
        {**SERVING, "compute_price_gfuel": "10000000", "compute_price_max_gfuel": "10000000"},
    )


def test_without_its_owner_a_service_stops_and_comes_back_with_it():
    async def play(world):
        async def nothing(*_):
            """Take no rate that is paid by time."""

        world.nodes[0].market.signing._take = nothing
        await deploy(world)
        assert (await ask(world)).status == 200
        await world.clock.sleep_ms(3_000)
        await world.crash(0)
        assert (await ask(world)).status == 200  # the lease goes on
        await world.clock.sleep_ms(COMPUTE_LEASE_MS)
        unpaid = await ask(world)
        assert (unpaid.status, dict(unpaid.headers)["Retry-After"]) == (503, "5")
        await world.restart(0)
        await world.until(
            lambda: world.nodes[0].services.views()[0].fault == "" and len(rows(world)) == 2
        )
        assert (await ask(world)).status == 200
        await world.until(lambda: len(rows(world)) == 3)
        assert len({row.number for row in rows(world)}) == 3

    run(3, 2, play, SERVING)


def test_a_service_goes_on_without_its_owner_at_the_rate_that_is_paid_by_time():
    async def play(world):
        await deploy(world)
        holder, owner = world.nodes[1], world.nodes[0].key.node_id
        service = holder.services.registry.get((owner, "greet"))
        await world.until(lambda: service.rates)
        await world.crash(0)
        await world.clock.sleep_ms(10 * COMPUTE_LEASE_MS)
        assert (await ask(world)).status == 200
        await world.restart(0)
        await world.until(lambda: len(rows(world)) == 1)
        assert rows(world)[0].amount_micro == 0

    run(8, 2, play, SERVING)


def test_a_holder_that_crashed_holds_it_again_without_being_asked():
    async def play(world):
        await deploy(world, "One")
        await deploy(world, "Two")
        await ask(world)
        await world.crash(1)
        await world.clock.sleep_ms(20_000)
        assert world.nodes[0].services.views()[0].fault
        await world.restart(1)
        world.nodes[1].services.registry.url = "http://127.0.0.1:8080"
        await world.until(lambda: world.nodes[0].services.views()[0].fault == "")
        assert (await ask(world)).body.startswith(b"Two")
        await world.nodes[0].services.owner.rollback("greet")
        assert (await ask(world)).body.startswith(b"One")

    run(4, 2, play, SERVING)


def test_an_owner_whose_deployment_was_not_answered_keeps_one_lease():
    async def play(world):
        await deploy(world)
        caller = world.nodes[0].services.owner._caller
        call = caller.call

        async def cut_off(peer, method, *args, **options):
            reply = await call(peer, method, *args, **options)
            if method == "service.deploy":
                raise PeerSilent("the answer is lost")
            return reply

        caller.call = cut_off
        for greeting in ("Two", "Three"):
            await world.clock.sleep_ms(10)
            with pytest.raises(PeerSilent):
                await deploy(world, greeting)
        caller.call = call
        await world.until(lambda: len(held(world)) == 1)
        assert (await ask(world)).status == 200

    run(6, 2, play, SERVING)


def test_where_nobody_listens_nothing_of_others_is_held():
    async def play(world):
        with pytest.raises(NotAllowed):
            await deploy(world)
        await world.until(lambda: held(world) == [])
        # At the own node it can wait for a listener.
        entry = await deploy(world, on=0)
        assert world.nodes[0].services.view(entry).state == "off"
        assert (await ask(world, at=0)).status == 200

    run(5, 2, play)


def test_an_owner_lists_its_services_in_its_space():
    async def play(world):
        owner, holder, friend = world.nodes

        async def listed():
            await world.clock.sleep_ms(1_000)
            path = below(UserSpacePaths.SERVICES, "greet")
            try:
                return json.loads((await friend.following.read(owner.key.node_id, path)).value)
            except NotFound:
                return None

        assert await listed() is None
        await deploy(world)
        row = await listed()
        assert (row["version"], row["node"]) == ("1", to_text(holder.key.node_id))
        assert holder.space.ls(UserSpacePaths.PROGRAMS) == []
        await deploy(world, greeting="Bye")
        assert (await listed())["version"] == "2"
        await world.crash(0)
        await world.restart(0)
        owner = world.nodes[0]
        await world.until(lambda: friend.health.is_up(owner.key.node_id))
        assert (await listed())["version"] == "2"
        await owner.services.owner.undeploy("greet")
        assert await listed() is None

    run(6, 3, play, SERVING)


def test_a_deployment_states_a_need_of_compute_and_runs_at_the_rate_that_it_is_granted():
    """No market command is typed: holder and owner offer and need by default."""

    async def play(world):
        owner, holder = world.nodes

        def stated():
            return standing_need(owner.commitments.own, "compute")

        def cleared(index, role):
            return [
                lease
                for lease in leases(world, index, role)
                if lease.entry.terms.cleared and lease.status == "open"
            ]

        await deploy(world)
        await world.until(lambda: cleared(0, "customer"))
        (lease,) = cleared(0, "customer")
        assert stated().parts == ((holder.key.node_id, 1),)
        assert (lease.entry.peer, lease.entry.terms.need) == (holder.key.node_id, stated().slot_id)
        assert lease.use.level == STEP["compute"]
        await world.until(lambda: service_at(holder, owner).rates == (lease.entry.id,))
        for _ in range(3):
            assert (await ask(world)).status == 200
        await world.until(lambda: len(rows(world)) == 3)
        assert {receipt_of(world, row).request.lease_id for row in rows(world)} == {lease.entry.id}
        assert {row.amount_micro for row in rows(world)} == {0}
        run = await owner.market.buyer.lease_compute(fuel_steps=10**8, on=holder.key.node_id)
        assert run.lease_id != lease.entry.id, "its rate is for what is deployed"
        await owner.services.owner.undeploy("greet")
        await world.until(lambda: stated() is None)
        await world.until(lambda: not cleared(0, "customer") and not cleared(1, "provider"))
        await owner.market.settlement.settle_all()
        (mine,) = [each for each in leases(world, 0, "customer") if each.entry.terms.cleared]
        (theirs,) = [each for each in leases(world, 1, "provider") if each.entry.terms.cleared]
        assert mine.due_micro == theirs.due_micro

    run(7, 2, play, SERVING)


def test_a_need_of_compute_rises_and_falls_with_what_runs():
    # Memory is paid as it was asked for: a request takes sixteen times its fuel.
    limits = Limits(fuel=1_000_000, memory_bytes=GIB)

    async def play(world):
        def steps(index, role):
            return sum(
                lease.use.level // STEP["compute"]
                for lease in leases(world, index, role)
                if lease.entry.terms.cleared and lease.status == "open"
            )

        await deploy(world, limits=limits)
        await world.until(lambda: service_at(world.nodes[1], world.nodes[0]).rates)
        assert steps(0, "customer") == 1
        for _ in range(160):
            assert (await ask(world)).status == 200
        await world.until(lambda: steps(0, "customer") == steps(1, "provider") == 3)
        used = {receipt_of(world, row).request.lease_id for row in rows(world)}
        assert len(used) > 1, "what ran beyond the rate ran for now"
        await world.until(lambda: steps(0, "customer") == steps(1, "provider") == 1, 15 * 60_000)

    run(9, 2, play, SERVING)


def service_at(holder, owner):
    return holder.services.registry.get((owner.key.node_id, "greet"))


def receipt_of(world, row):
    context = world.nodes[0].peers.context
    author = world.nodes[1].key.node_id
    return open_signed(row.receipt, ExecutionReceipt, network=context.network, author=author).record
