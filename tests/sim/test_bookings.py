"""What is owed between two nodes is promised at once, and booked once an hour."""

from tests.sim.network import run
from tests.sim.test_log_lines import Logged, said
from tests.sim.test_slots import need, of, offer
from xsc.base.limits import EPOCH_MS, PPM
from xsc.market.account import BOOKING_CREDIT_PPM

QUANTITY, PRICE = 80, 40
HOURLY_MICRO = QUANTITY * PRICE
SETTINGS = {"probe_interval": "1m", "starter_credit": "1000", "storage_capacity": "16GiB"}


def booked(provider, customer):
    """Return the amounts that a provider booked with a customer, the newest first."""
    rows = provider.ledger.entries(limit=1_000, peer=customer.key.node_id)
    return [row.amount_micro for row in rows if row.kind == "post"]


async def held(world):
    """Let one node hold room of another, and draw nothing; return both."""
    provider, customer = world.nodes
    await offer(provider, QUANTITY, price=PRICE)
    await need(customer, QUANTITY, price=PRICE)
    await world.until(lambda: of(provider, customer) == QUANTITY)
    return provider, customer


def test_a_need_that_is_held_for_an_hour_is_booked_once_and_promised_all_the_time():
    async def play(world):
        provider, customer = await held(world)
        await world.clock.sleep_ms(EPOCH_MS // 2)
        view = next(view for view in provider.market.leases())
        account = provider.market.store.account("provider", customer.key.node_id)
        # What the provider could come to lose is what it could before: some seconds.
        assert view.due_micro - account.signed_micro <= HOURLY_MICRO * 30_000 // EPOCH_MS
        assert view.due_micro >= HOURLY_MICRO // 2 - 100
        assert booked(provider, customer) == []
        await world.skip(EPOCH_MS // 2 + 60_000, 30_000)
        assert len(booked(provider, customer)) == 1, "360 before"
        assert sum(booked(provider, customer)) >= HOURLY_MICRO - 100
        assert sum(booked(provider, customer)) == -customer.ledger.balance(provider.key.node_id)
        # Who asks, is booked with at once.
        await customer.market.settlement.settle_all()
        assert len(booked(provider, customer)) == 2

    run(3, 2, play, SETTINGS)


def test_what_reaches_a_share_of_the_credit_is_booked_at_once():
    async def play(world):
        provider, customer = await held(world)
        limit = HOURLY_MICRO // 2
        await provider.ledger.set_limit(customer.key.node_id, limit)
        share = limit * BOOKING_CREDIT_PPM // PPM
        seconds = HOURLY_MICRO * 30_000 // EPOCH_MS
        for _ in range(EPOCH_MS // 3 // 60_000):
            await world.clock.sleep_ms(60_000)
            (view,) = provider.market.leases()
            assert view.due_micro - view.settled_micro <= share + seconds
        (amount,) = booked(provider, customer)
        assert share <= amount <= share + seconds

    run(3, 2, play, SETTINGS)


def test_both_sides_say_that_a_limit_is_near_before_it_is_reached():
    async def play(world):
        provider, customer = await held(world)
        limit = 2 * HOURLY_MICRO
        await provider.ledger.set_limit(customer.key.node_id, limit)
        roles = {"creditor": provider, "debtor": customer}
        lines = {role: world.logs[world.nodes.index(node)] for role, node in roles.items()}
        at_limit_ms = None
        heard_ms = {}
        for _ in range(3 * EPOCH_MS // 60_000):
            await world.skip(60_000, 60_000)
            for role, log in lines.items():
                told = said(log, "ledger.near_limit")
                if told and role not in heard_ms:
                    heard_ms[role] = world.clock.now_ms()
                    assert told[0]["role"] == role
                    assert not provider.market.headroom.at_limit
            if provider.market.headroom.at_limit:
                at_limit_ms = world.clock.now_ms()
                break
        assert at_limit_ms is not None
        assert heard_ms.keys() == lines.keys()

    run(5, 2, play, SETTINGS, kind=Logged)
