"""A host's word on what it holds is taken as far as this node ordered it, and no further."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from xsc.storage.object.held import Held, differences, most_held, recounted
from xsc.storage.object.inventory import HeldColumn, HeldObject, HeldRecord

A, B, OWN = b"a" * 32, b"b" * 32, b"o" * 32
LEASES = [bytes([n]) * 32 for n in range(1, 5)]
SIZES = st.integers(0, 100)
HELD = st.lists(st.builds(Held, st.sampled_from([A, B]), st.sampled_from(LEASES), SIZES))
SAID = st.dictionaries(st.sampled_from(LEASES), SIZES)


def by_lease(held, node):
    sizes = Counter()
    for item in held:
        if item.node == node:
            sizes[item.lease_id] += item.size_bytes
    return +sizes


@given(HELD, SAID, SIZES)
def test_what_a_host_says_counts_between_what_was_counted_and_what_was_ordered(held, said, most):
    after = recounted(held, A, tuple(said.items()), most)
    before, now = by_lease(held, A), by_lease(after, A)
    ordered = {item.lease_id for item in held if item.node == A}
    assert set(now) <= ordered, "a lease that was not used for this is not counted"
    for lease in ordered:
        says = said.get(lease, 0)
        assert min(before[lease], says) <= now[lease] <= says
        if says <= before[lease]:
            assert now[lease] == says, "who says less is believed"
    raised = sum(max(0, now[lease] - before[lease]) for lease in ordered)
    assert not raised or sum(now.values()) <= most, "no more than was ordered"
    if sum(said.get(lease, 0) for lease in ordered) <= most:
        assert now == {lease: said[lease] for lease in ordered if said.get(lease)}
    assert [item for item in after if item.node == B] == [item for item in held if item.node == B]
    assert recounted(after, A, tuple(said.items()), most) == after, "once is enough"


@given(HELD, HELD)
def test_differences_lead_from_one_to_the_other(before, after):
    sizes = Counter()
    for item in before:
        sizes[item.node, item.lease_id] += item.size_bytes
    for node, lease, delta in differences(before, after):
        assert delta
        sizes[node, lease] += delta
    for item in after:
        sizes[item.node, item.lease_id] -= item.size_bytes
    assert not any(sizes.values())


def test_who_does_not_say_it_changes_nothing():
    held = (Held(A, LEASES[0], 5), Held(A, LEASES[0], 0))
    assert recounted(held, A, None, 100) == held
    assert recounted(held, A, (), 100) == ()


def test_no_more_can_lie_there_than_the_columns_that_it_has_for_this_node():
    def column(who, number):
        return HeldColumn(who, number, 1, bytes(32), 0)

    records = (HeldRecord(OWN), HeldRecord(A))
    held = HeldObject((column(OWN, 0), column(A, 1), column(OWN, 2)), "ok", records)
    assert most_held(held, OWN, 1_000, 10) == 2_010
    assert most_held(held, A, 1_000, 10) == 1_010
    assert most_held(held, B, 1_000, 10) == 0
