from dataclasses import replace

import pytest

from tests.unit.allocation.fakes import Memory
from xsc.base.clock import InlineExecutor
from xsc.base.encoding import decode, encode
from xsc.base.errors import SpaceExhausted, StoreDamaged
from xsc.db.group import GroupCommit
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair, network_id
from xsc.market.lease import PROMISE_MS
from xsc.market.lease_store import LeaseStore
from xsc.terms.lease import Lease, LeaseRequest

PROVIDER, CUSTOMER, NET = KeyPair(b"p" * 32), KeyPair(b"c" * 32), network_id("test")


def request_of(number, need=None, end_ms=100):
    request = LeaseRequest(
        lease_id=bytes([number]) * 32,
        provider=PROVIDER.node_id,
        customer=CUSTOMER.node_id,
        kind="storage",
        slot=b"s" * 16,
        window=(0, 100),
        tier="open",
        need=need,
        level=10 if need else 0,
        price=3,
        start_ms=1,
        end_ms=end_ms,
    )
    return sign(request, CUSTOMER, NET)


def lease(number, need=None, end_ms=100):
    asked = request_of(number, need, end_ms).raw
    return sign(Lease(request=asked, level=7 if need else 0), PROVIDER, NET).raw


@pytest.fixture
def state():
    return Memory()


def store_on(state):
    commit = GroupCommit(state, InlineExecutor()).commit
    store = LeaseStore(state, NET, b"o" * 32, commit, lambda _customer, _kind, named: named)
    store.load()
    return store


async def test_both_roles_come_back_with_everything(state):
    store = store_on(state)
    mine = store.entry_of("customer", lease(1))
    theirs = store.entry_of("provider", lease(1))
    store.add(mine)
    store.add(theirs)
    mine.use = replace(mine.use, held_bytes=3, used=2**70, level=1, busy_us=2, given_back=True)
    mine.use = replace(mine.use, denial=b"d", leeway=2**70)
    await store.sync(mine)
    theirs.use = replace(theirs.use, busy_us=4)
    account = store.account("provider", theirs.peer)
    account.number, account.signed_micro, account.voucher = 4, 60, b"v"
    account.refusals = 1
    account.closed, account.settled_micro = 2**90, 10
    account.lost = {"ab": 7}
    await store.sync(theirs, account)
    again = store_on(state)
    assert again.get("customer", b"\1" * 32) == mine
    assert again.get("provider", b"\1" * 32) == theirs
    assert again.account("provider", theirs.peer) == account
    assert (mine.peer, theirs.peer) == (PROVIDER.node_id, CUSTOMER.node_id)
    assert [entry.role for entry in again.all("provider")] == ["provider"]
    assert again.get("provider", b"\2" * 32) is None


def test_small_needs_of_one_customer_are_rounded_up_together(state):
    """Each took a step of 64 MiB of what is cleared, for some bytes."""
    store = store_on(state)
    for number in range(1, 10):
        store.add(store.entry_of("provider", lease(number, bytes([number]) * 16)))
    assert set(store.drawn("provider", 5).values()) == {7}
    drawn = store.drawn_steps("provider", 5)
    assert len(drawn) == 9
    assert sum(drawn.values()) == 1


def test_of_what_is_forgotten_only_what_it_came_to_is_kept(state):
    store = store_on(state)
    entry = store.entry_of("provider", lease(1))
    store.add(entry)
    entry.use = replace(entry.use, used=9)
    store.forget(entry)
    assert [key.split(b"/")[1] for key in state.table] == [b"account"]
    assert store.get("provider", b"\1" * 32) is None
    again = store_on(state)
    assert again.account("provider", entry.peer).closed == 9


async def test_only_promises_and_debts_wait_for_the_disk(state):
    store = store_on(state)
    entry = store.entry_of("provider", lease(1))
    store.add(entry)
    store.keep(entry)
    assert state.synced == 1
    store.save(entry)  # its room may be given to others
    assert state.synced == 2


@pytest.mark.parametrize("place", [0, 1, None])
def test_another_version_is_not_guessed_at(state, place):
    store = store_on(state)
    store.add(store.entry_of("provider", lease(1)))
    (key,) = state.table
    row = decode(state.table[key])
    if place is None:
        row.append(b"")
    else:
        row[place] = encode(decode(row[place]) | {"v": 2})
    state.table[key] = encode(row)
    with pytest.raises(StoreDamaged):
        store_on(state)


def test_promises_are_kept_ended_and_forgotten(state):
    entry = store_on(state).entry_of("customer", lease(1))
    entry.promised = [(100, 10), (200, 20)]
    assert entry.promised_at(50) == 30
    for heard, left in ((4, 26), (8, 18), (-5, 18)):
        entry.heard(heard)
        assert entry.promised_at(50) == left
    assert entry.promised_at(200) == 0
    entry.terms = entry.terms.model_copy(update={"kind": "compute"})
    entry.promised = [(100, 10), (200, 20), (300, 30)]
    for heard, left in ((15, 50), (99, 30), (5, 0), (5, 0)):
        entry.heard(heard)
        assert entry.promised_at(50) == left, "of compute one whole run"


def test_a_request_counts_until_it_is_refused_or_granted_also_over_a_restart(state):
    store, need = store_on(state), b"n" * 16
    for number in (1, 2):
        store.ask(request_of(number, need))
    assert state.synced == 2, "before it is sent"
    store = store_on(state)
    assert set(store.drawn("customer", 5).values()) == {20}
    store.refused(b"\1" * 32)
    store.add(store.entry_of("customer", lease(2, need)))
    for again in (store, store_on(state)):
        assert not again.asked
        assert set(again.drawn("customer", 5).values()) == {7}


@pytest.mark.parametrize("role", ["customer", "provider"])
def test_a_renewal_keeps_the_id_and_what_is_held_and_is_on_the_disk(state, role):
    store, need = store_on(state), b"n" * 16
    store.add(store.entry_of(role, lease(1, need)))
    entry = store.get(role, b"\1" * 32)
    entry.use = replace(entry.use, held_bytes=5)
    synced = state.synced
    assert store.add(store.entry_of(role, lease(1, need, 200))) is entry
    assert state.synced == synced + 1
    again = store_on(state).get(role, b"\1" * 32)
    assert again == entry
    assert (again.terms.end_ms, again.use.held_bytes, again.use.level) == (200, 5, 7)
    assert store.kept("storage") == (2 if role == "provider" else 0)


def test_promises_of_storage_are_counted_by_the_time_and_not_one_by_one(state):
    entry = store_on(state).entry_of("customer", lease(1))
    for now_ms in range(0, 3 * PROMISE_MS, 50):
        entry.promise(1, now_ms)
        assert len(entry.promised) <= 61
        # Nothing is forgotten early, and nothing is kept for long over its time.
        asked = min(now_ms, PROMISE_MS - 50) // 50 + 1
        assert 0.98 * asked <= entry.promised_at(now_ms) <= asked


def test_what_was_forgotten_is_not_written_again(state):
    store = store_on(state)
    entry = store.entry_of("customer", lease(1))
    store.add(entry)
    store.forget(entry)
    store.keep(entry)
    assert not [key for key in state.table if not key.startswith(b"market/account/")]


def test_uses_that_a_full_disk_does_not_take_are_written_later(state):
    store = store_on(state)
    entry = store.entry_of("customer", lease(1))
    store.add(entry)
    write = state.write

    def full(changes, *, sync):
        raise SpaceExhausted("the disk is full")

    state.write = full
    entry.use = replace(entry.use, held_bytes=3)
    store.keep(entry)
    with pytest.raises(SpaceExhausted):
        store.close()
    assert not store_on(state).complete
    state.write = write
    store.close()
    assert store_on(state).get("customer", b"\1" * 32) == entry


async def test_a_damaged_account_is_reported(state):
    store = store_on(state)
    await store.sync(store.account("customer", PROVIDER.node_id))
    (key,) = [key for key in state.table if key.startswith(b"market/account/")]
    value = decode(state.table[key])
    for change in ({"v": 2}, {"more": 1}, {"number": -1}, {"voucher": 3}):
        state.table[key] = encode(value | change)
        with pytest.raises(StoreDamaged):
            store_on(state)


def test_that_it_stopped_in_order_is_taken_back_on_the_disk_first(state):
    store_on(state).close()
    synced = state.synced
    assert store_on(state).complete
    assert state.synced == synced + 1
    assert not store_on(state).complete


def test_it_did_not_stop_in_order_for_who_has_yet_to_hear_what_a_crash_left_at_a_provider(state):
    store = store_on(state)
    entry = store.add(store.entry_of("customer", lease(1)))
    entry.unnamed_bytes = 1
    store.close()
    assert not store_on(state).complete
    entry.counted(replace(entry.use, missing_bytes=1))
    assert (entry.unnamed_bytes, entry.use.missing_bytes) == (0, 0)
    store.close()
    assert store_on(state).complete
