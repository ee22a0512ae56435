"""Where columns go when hosts fail, whatever happens in whatever order."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.errors import LeaseExhausted, PeerSilent, SpaceExhausted
from xsc.storage.object.durability import Contract, HostLabels, survival
from xsc.storage.transfer.sending import (
    Ask,
    Failed,
    Fill,
    GiveUp,
    Offered,
    Sending,
    Slot,
    step,
)
from xsc.terms.lease import LeaseHandle

NODES = [bytes([number]) * 32 for number in range(9)]
FAULTS = [PeerSilent("silent"), SpaceExhausted("full"), LeaseExhausted("full"), PeerSilent("lies")]
M = 2


def lease(node, number=0):
    return LeaseHandle(node, bytes([number]) * 32)


def labels_of(nodes, sites):
    return {node: HostLabels(node, sites[NODES.index(node) % len(sites)]) for node in nodes}


def begun(contract=Contract(1), *, replaces=True, n=6):  # noqa: B008 (a frozen value)
    slots = {column: Slot(lease(NODES[column])) for column in range(n)}
    return Sending(slots, M, contract, replaces)


@st.composite
def plays(draw):
    """A contract, the sites of nodes, and what happens: who fails how, and what is offered."""
    contract = draw(st.sampled_from([Contract(), Contract(1), Contract(2), Contract(1, 1)]))
    sites = draw(st.sampled_from([[""], ["a", "b", "c"], ["a", "b", "c", "d", "e", "f", "g"]]))
    events = draw(
        st.lists(
            st.tuples(
                st.integers(0, 5),  # the column
                st.integers(0, 3),  # how it fails
                st.booleans(),  # whether the answer comes late, or twice
                st.booleans(),  # whether the host denies the lease
                st.integers(0, 3),  # what it holds
                st.lists(st.none() | st.integers(0, 8), min_size=4, max_size=4),  # offers
            ),
            max_size=12,
        )
    )
    return contract, sites, events


@given(plays())
def test_columns_stay_at_distinct_hosts_and_within_the_contract_whatever_fails(play):
    contract, sites, events = play
    state = begun(contract)
    for column, how, stale, denied, held, offers in events:
        slot = state.slots[column]
        tries = slot.tries - 1 if stale else slot.tries
        before = state
        state, effect = step(state, Failed(column, tries, FAULTS[how], held, denied))
        if stale:
            assert (state, effect) == (before, None), "a late or second answer changes nothing"
            continue
        assert effect is not None
        while isinstance(effect, Ask):
            assert effect.column == column
            number = offers.pop() if offers else None
            offered = None if number is None else lease(NODES[number], 1)
            if effect.asking != "other" and offered is not None:
                # Only that host is asked.
                offered = lease(state.slots[column].lease.node, 1)
            labels = labels_of(state.columns, sites)
            old = state
            # It has its columns already, and gives a new lease for what it lost.
            stays = effect.asking == "again" and offered is not None
            state, effect = step(state, Offered(column, effect.asking, offered, labels))
            if isinstance(effect, Fill) and not stays:
                node = state.slots[column].lease.node
                doubled = Counter(state.columns)[node] > 1
                assert not doubled or node not in old.gone
                hosts = [labels_of([each], sites)[each] for each in state.columns]
                assert not doubled or survival(hosts, M).meets(contract)
        if isinstance(effect, GiveUp):
            if effect.fault is None:
                hosts = [labels_of([each], sites)[each] for each in effect.columns]
                assert not survival(hosts, M).meets(contract)
            else:
                assert effect.fault is FAULTS[how]
            return
        assert sorted(state.slots) == list(range(6)), "no column is lost"
        for other in range(6):
            if other != column:
                assert state.slots[other] == before.slots[other], "others stay where they are"


@given(st.integers(0, 5), st.integers(0, 3), st.booleans())
def test_where_none_is_replaced_a_column_is_given_up_and_no_other(column, how, denied):
    state = begun(replaces=False)
    after, effect = step(state, Failed(column, 0, FAULTS[how], 5, denied))
    assert effect == GiveUp(column, FAULTS[how])
    assert after.slots == {each: slot for each, slot in state.slots.items() if each != column}
    assert step(after, Failed(column, 0, FAULTS[how])) == (after, None), "it fails once"


def test_a_full_lease_is_extended_as_long_as_that_helps():
    state = begun()
    full = FAULTS[2]
    state, effect = step(state, Failed(0, 0, full, held_bytes=10))
    assert effect == Ask(0, "more")
    state, effect = step(state, Offered(0, "more", lease(NODES[0], 1)))
    assert effect is None
    assert state.slots[0].lease == lease(NODES[0], 1)
    # Nothing went through since: another host is asked.
    state, effect = step(state, Failed(0, 1, full, held_bytes=10))
    assert effect == Ask(0, "other")
    assert NODES[0] in state.taken


def test_a_host_that_lost_what_it_held_is_taken_again_where_there_is_no_other():
    state, effect = step(begun(), Failed(0, 0, FAULTS[2], denied=True))
    assert effect == Ask(0, "other")
    state, effect = step(state, Offered(0, "other", None))
    assert effect == Ask(0, "again")
    state, effect = step(state, Offered(0, "again", lease(NODES[0], 1)))
    assert effect == Fill(0)
    assert state.columns == tuple(NODES[:6])
    assert not state.gone


def test_an_offer_of_a_host_that_has_a_column_already_is_none():
    state, _ = step(begun(Contract()), Failed(0, 0, FAULTS[0]))
    after, effect = step(state, Offered(0, "other", lease(NODES[3], 1)))
    assert effect == Fill(0)
    assert after.slots[0].lease == lease(NODES[1]), "it goes to the host with the fewest"


def test_where_all_hosts_fail_it_ends_with_what_failed():
    state = begun(n=1)
    state, _ = step(state, Failed(0, 0, FAULTS[0]))
    assert step(state, Offered(0, "other", None))[1] == GiveUp(0, FAULTS[0])
