"""Storage is paid up to the last proof: what is proven, what is void, and what waits."""

import pytest

from tests.unit.market.fakes import NET, ask
from xsc.base.errors import NotAllowed, RecordInvalid
from xsc.base.limits import EPOCH_MS, LEAF_BYTES, MIB
from xsc.identity.envelope import sign
from xsc.market import account as accounts
from xsc.market import proof
from xsc.terms.possession import Answered, Proven

DAY_MS = 86_400_000
HELD = 100 * MIB
AN_HOUR = 4_000
"""Micro-credits for what is held."""


@pytest.fixture
async def both(world, pair):
    """A customer that stores something at a provider, for which no challenge is played."""
    customer, provider = pair
    provider.proves = False
    entry = await ask(world, customer, provider)
    provider.stores(entry.id, customer.id, HELD)
    lease = customer.market.store.entry_of("customer", entry.raw)
    customer.market.store.add(lease)
    await customer.market.buyer.used(lease.id, HELD)
    await customer.market.settlement.agree(provider.id)
    return customer, provider


def signed(customer, provider):
    return customer.market.store.account("customer", provider.id).signed_micro


def due(node, role, peer):
    account, entries = node.market.store.account(role, peer), node.market.store.of(role, peer)
    return accounts.due_micro(account, entries, node.world.clock.now_ms())


def owed(customer, provider):
    account = provider.market.store.account("provider", customer.id)
    return provider.market.owed_micro(account)


async def pay(customer, provider):
    await customer.market.settlement.agree(provider.id)
    return signed(customer, provider)


async def test_with_a_challenge_each_hour_both_sides_agree_to_the_micro(world, both):
    customer, provider = both
    for hour in range(1, 80):
        world.later(EPOCH_MS)
        provider.prove_to(customer)
        assert await pay(customer, provider) == hour * AN_HOUR
        assert due(provider, "provider", customer.id) == due(customer, "customer", provider.id)
        assert owed(customer, provider) == hour * AN_HOUR


async def test_what_is_not_proven_is_not_paid_and_counts_as_risk(world, both):
    customer, provider = both
    world.later(5 * EPOCH_MS)
    assert await pay(customer, provider) == 0
    assert due(provider, "provider", customer.id) == 0
    assert owed(customer, provider) == 5 * AN_HOUR
    micro, since_ms, *_ = customer.market.unproven(provider.id)
    assert micro == 5 * AN_HOUR
    assert since_ms <= world.clock.now_ms() - 5 * EPOCH_MS
    assert provider.market.unproven(customer.id).owed_unproven_micro == 5 * AN_HOUR
    provider.prove_to(customer)
    assert await pay(customer, provider) == 5 * AN_HOUR, "silence only delays"
    assert customer.market.unproven(provider.id)[:2] == (0, None)


async def test_what_fails_is_void_back_to_the_last_ok(world, both):
    customer, provider = both
    world.later(2 * EPOCH_MS)
    provider.prove_to(customer)
    world.later(3 * EPOCH_MS)
    provider.prove_to(customer, ok=False)
    world.later(EPOCH_MS)
    provider.prove_to(customer)
    assert await pay(customer, provider) == 3 * AN_HOUR
    assert owed(customer, provider) == 3 * AN_HOUR, "an honest host admits what it lost"


async def test_a_customer_that_names_what_was_never_stored_takes_nothing_off(world, both):
    customer, provider = both
    world.later(2 * EPOCH_MS)
    now_ms = world.clock.now_ms()
    failed = Answered(2**20, now_ms // EPOCH_MS, now_ms, ok=False)
    customer.market.settlement.challenged("customer", provider.id, failed)
    unknown = failed._replace(ok=None)
    provider.market.settlement.challenged("provider", customer.id, unknown)
    assert await pay(customer, provider) == 0
    assert owed(customer, provider) == 2 * AN_HOUR


@pytest.mark.parametrize("ok", [True, False])
async def test_a_short_list_never_pays_and_never_voids(world, both, ok):
    customer, provider = both
    world.later(2 * EPOCH_MS)
    provider.prove_to(customer, ok=ok, leaves=HELD // LEAF_BYTES - 1)
    assert await pay(customer, provider) == 0
    assert owed(customer, provider) == 2 * AN_HOUR
    provider.prove_to(customer, leaves=HELD // LEAF_BYTES)
    assert await pay(customer, provider) == 2 * AN_HOUR


async def test_an_ok_pays_thirty_days_at_most(world, both):
    customer, provider = both
    world.later(40 * DAY_MS)
    now_ms = world.clock.now_ms()
    proven = Answered(2**20, now_ms // EPOCH_MS, now_ms, ok=True)
    provider.market.settlement.challenged("provider", customer.id, proven)
    customer.market.settlement.challenged("customer", provider.id, proven)
    assert await pay(customer, provider) == 30 * 24 * AN_HOUR
    assert owed(customer, provider) == 30 * 24 * AN_HOUR


async def test_an_ok_to_what_was_drawn_hours_ago_proves_no_more_than_that_hour(world, both):
    customer, provider = both
    world.later(EPOCH_MS - world.clock.now_ms() % EPOCH_MS)
    provider.prove_to(customer)
    before = await pay(customer, provider)
    epoch = world.clock.now_ms() // EPOCH_MS
    world.later(9 * EPOCH_MS)
    late = Answered(2**20, epoch, world.clock.now_ms(), ok=True)
    customer.market.settlement.challenged("customer", provider.id, late)
    provider.market.settlement.challenged("provider", customer.id, late)
    assert await pay(customer, provider) == before + AN_HOUR


async def test_what_was_deleted_is_paid_without_a_proof_and_what_is_lost_is_not(world, both):
    customer, provider = both
    (entry,) = customer.market.store.of("customer", provider.id)
    world.later(2 * EPOCH_MS)
    provider.drops(entry.id, HELD)
    assert await pay(customer, provider) == 0, "the provider alone says that nothing is held"
    await customer.market.buyer.used(entry.id, -HELD)
    assert await pay(customer, provider) == 2 * AN_HOUR


async def test_what_is_deleted_after_its_loss_was_found_is_not_paid(world, both):
    customer, provider = both
    (entry,) = customer.market.store.of("customer", provider.id)
    world.later(EPOCH_MS)
    provider.prove_to(customer, ok=False)
    world.later(2 * EPOCH_MS)
    provider.drops(entry.id, HELD)
    await customer.market.buyer.used(entry.id, -HELD)
    for node in (customer, provider):
        node.market.tidy()
    assert await pay(customer, provider) == owed(customer, provider) == 0


async def test_who_denies_what_lies_there_is_not_paid_for_what_is_not_proven(world, both):
    customer, provider = both
    world.later(2 * EPOCH_MS)
    provider.prove_to(customer)
    assert await pay(customer, provider) == 2 * AN_HOUR
    world.later(3 * EPOCH_MS)
    (entry,) = provider.market.store.of("provider", customer.id)
    provider.market.store.forget(entry)
    assert await pay(customer, provider) == 2 * AN_HOUR
    world.later(EPOCH_MS)
    customer.market.tidy()
    assert await pay(customer, provider) == 2 * AN_HOUR


async def test_marks_survive_a_restart(world, both):
    customer, provider = both
    world.later(2 * EPOCH_MS)
    provider.prove_to(customer, ok=False)
    world.later(EPOCH_MS)
    provider.prove_to(customer)
    assert await pay(customer, provider) == AN_HOUR
    await customer.restart()
    await provider.restart()
    world.later(EPOCH_MS)
    assert await pay(customer, provider) == AN_HOUR
    provider.prove_to(customer)
    assert await pay(customer, provider) == 2 * AN_HOUR


# A host demands a challenge


def watched(world, provider, hours):
    for _ in range(hours):
        world.later(EPOCH_MS)
        provider.market.tidy()


async def test_who_gives_no_challenge_for_a_day_is_granted_nothing_new(world, both):
    customer, provider = both
    watched(world, provider, 24)
    await ask(world, customer, provider, b"\x08" * 32)
    watched(world, provider, 2)
    with pytest.raises(NotAllowed) as refused:
        await ask(world, customer, provider, b"\x09" * 32)
    assert "xsc health challenge" in refused.value.hint
    provider.prove_to(customer)
    await pay(customer, provider)
    watched(world, provider, 1)
    await ask(world, customer, provider, b"\x09" * 32)


async def test_who_signs_nothing_for_a_day_after_an_answer_is_granted_nothing_new(world, both):
    customer, provider = both
    for _ in range(26):
        world.later(EPOCH_MS)
        provider.prove_to(customer)
        provider.market.tidy()
    with pytest.raises(NotAllowed):
        await ask(world, customer, provider, b"\x09" * 32)
    await pay(customer, provider)
    provider.market.tidy()
    await ask(world, customer, provider, b"\x09" * 32)


async def test_who_is_away_or_meets_a_restarted_host_is_not_waited_for(world, both):
    customer, provider = both
    watched(world, provider, 20)
    await provider.restart()
    watched(world, provider, 20)
    await ask(world, customer, provider, b"\x08" * 32)


# What custodians sign


ANSWERED = Answered(2**20, 1, 1, ok=True)


def record(customer, provider, prober, at_ms, /, **change):
    fields = {
        "host": provider.id,
        "customer": customer.id,
        "prober": prober.id,
        "seed": b"s" * 32,
        "leaves": 2**20,
        "at_ms": at_ms,
    }
    return Proven(**(fields | change))


def shown(customer, provider, prober, proven):
    raw = sign(proven, prober.key, NET).raw
    provider.market.settlement.certified(customer.id, raw, 2**20)


async def test_what_a_named_custodian_signed_pays_up_to_then(world, both):
    customer, provider = both
    custodian = world.node(5)
    customer.custodians = {custodian.id}
    world.later(4 * EPOCH_MS)
    shown(
        customer, provider, custodian, record(customer, provider, custodian, world.clock.now_ms())
    )
    world.later(3 * EPOCH_MS)
    now_ms = world.clock.now_ms()
    account = provider.market.store.account("provider", customer.id)
    entries = provider.market.store.of("provider", customer.id)
    proof.decide(account, entries, now_ms, now_ms, ok=True)  # So its count claims everything.
    assert await pay(customer, provider) == 4 * AN_HOUR
    assert await pay(customer, provider) == 4 * AN_HOUR, "shown again it pays nothing more"


REFUSED = ["unnamed", "future", "short", "old", "own", "at home", "lost"]


@pytest.mark.parametrize("what", REFUSED)
async def test_other_records_of_proofs_pay_nothing(world, both, what):
    customer, provider = both
    # A host can well be a custodian of other objects of its customer.
    custodian = provider if what == "own" else world.node(5)
    customer.custodians = set() if what == "unnamed" else {custodian.id}
    world.later(2 * EPOCH_MS)
    provider.prove_to(customer)
    before = await pay(customer, provider)
    begun_ms = world.clock.now_ms()
    if what == "lost":
        world.later(60_000)
        provider.prove_to(customer, ok=False)
    world.later(EPOCH_MS if what == "at home" else 4 * EPOCH_MS)
    now_ms = world.clock.now_ms()
    at_ms = {"future": now_ms + DAY_MS, "old": begun_ms}.get(what, now_ms)
    change = {"leaves": 3} if what == "short" else {}
    shown(customer, provider, custodian, record(customer, provider, custodian, at_ms, **change))
    assert await pay(customer, provider) == before


async def test_what_a_host_keeps_of_proofs_is_of_customers_alone(world, both):
    _, provider = both
    stranger = world.node(5)
    raw = sign(record(stranger, provider, stranger, world.clock.now_ms()), stranger.key, NET).raw
    before = list(provider.market.store.accounts("provider"))
    provider.market.settlement.certified(stranger.id, raw, 2**20)
    provider.market.settlement.challenged("provider", stranger.id, ANSWERED)
    assert list(provider.market.store.accounts("provider")) == before


@pytest.mark.parametrize(
    "change", [{"host": b"h" * 32}, {"customer": b"c" * 32}, {"prober": b"p" * 32}]
)
async def test_a_record_of_other_nodes_is_refused(world, both, change):
    customer, provider = both
    custodian = world.node(5)
    customer.custodians = {custodian.id}
    world.later(2 * EPOCH_MS)
    proven = record(customer, provider, custodian, world.clock.now_ms(), **change)
    raw = sign(proven, custodian.key, NET).raw
    with pytest.raises(RecordInvalid):
        customer.market.settlement._certify(
            customer.market.store.account("customer", provider.id), raw
        )
    assert await pay(customer, provider) == 0
