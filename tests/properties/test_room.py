"""The laws of shares: whoever reserves what it can, others find room all the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import GIB, ROOM_PART_MUTUAL, ROOM_PART_STRANGERS
from xsc.market.room import LEAST, PARTS, FreeRoom, left, strangers_left

TIERS = ("open", "one_way", "mutual")
NODES = [bytes([number]) * 32 for number in range(9)]
TIER_OF = {node: TIERS[number % 3] for number, node in enumerate(NODES)}
kinds = st.sampled_from(["storage", "compute"])
totals = st.integers(0, 40 * GIB)
takes = st.lists(st.tuples(st.sampled_from(NODES), st.integers(1, 10**6)), max_size=30)


def after(kind, total, takes, tier_of):
    """Yield (room, customer, taken) where customers take shares of what they may, in ppm."""
    reserved = {}
    for node, part in takes:
        strangers = frozenset(item for item in reserved if tier_of[item] == "open")
        room = FreeRoom(kind, total - sum(reserved.values()), dict(reserved), strangers)
        taken = left(room, node, tier_of[node]) * part // 10**6
        yield room, node, taken
        reserved[node] = reserved.get(node, 0) + taken


@given(kinds, totals, takes)
def test_no_more_is_reserved_than_there_is_and_nobody_passes_its_share(kind, total, takes):
    for room, node, taken in after(kind, total, takes, TIER_OF):
        assert 0 <= taken <= room.free
        own = room.reserved.get(node, 0)
        base = room.free + own
        if taken:
            assert own + taken <= max(base // PARTS[TIER_OF[node]], LEAST[kind])


@given(kinds, totals, takes)
def test_strangers_leave_half_to_whom_the_node_recognises(kind, total, takes):
    tier_of = dict.fromkeys(NODES, "open")
    for room, _, _ in after(kind, total, takes, tier_of):
        spared = len(NODES) * LEAST[kind]
        assert room.free >= total - total // ROOM_PART_STRANGERS - spared
        friend = left(room, b"f" * 32, "mutual")
        assert friend >= room.free // ROOM_PART_MUTUAL


@pytest.mark.parametrize("kind", ["storage", "compute"])
def test_strangers_that_all_take_what_they_can_leave_half(kind):
    total = 1_000 * LEAST[kind]
    tier_of = dict.fromkeys(NODES, "open")
    *_, (room, _, taken) = after(kind, total, [(node, 10**6) for node in NODES * 3], tier_of)
    assert total // 2 - len(NODES) * LEAST[kind] <= room.free - taken <= total // 2


@given(kinds, totals, takes)
def test_another_stranger_finds_as_much_as_it_may_have_at_least(kind, total, takes):
    for room, _, _ in after(kind, total, takes, TIER_OF):
        assert left(room, b"s" * 32, "open") >= min(room.free, LEAST[kind])
        assert strangers_left(room) <= room.free


@given(kinds, totals, st.lists(st.integers(1, 8 * GIB), min_size=1, max_size=8))
def test_asking_in_pieces_gives_no_more_than_asking_once(kind, total, pieces):
    at_once = left(FreeRoom(kind, total, {}, frozenset()), b"s" * 32, "open")
    got = 0
    for size in pieces:
        room = FreeRoom(kind, total - got, {b"s" * 32: got}, frozenset([b"s" * 32]))
        got += min(size, left(room, b"s" * 32, "open"))
    assert got == min(sum(pieces), at_once)
