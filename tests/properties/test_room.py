"""The laws of room: levels add up over any moment, and others find room whoever reserves what."""

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import GIB, ROOM_LEAST_BYTES, ROOM_PART_MUTUAL, ROOM_PART_STRANGERS
from xsc.market.room import PARTS, FreeRoom, Level, free_over, left, strangers_left

TIERS = ("open", "one_way", "mutual")
NODES = [bytes([number]) * 32 for number in range(9)]
TIER_OF = {node: TIERS[number % 3] for number, node in enumerate(NODES)}
totals = st.integers(0, 40 * GIB)
takes = st.lists(st.tuples(st.sampled_from(NODES), st.integers(1, 10**6)), max_size=30)


def after(total, takes, tier_of):
    """Yield (room, customer, taken) where customers take shares of what they may, in ppm."""
    reserved = {}
    for node, part in takes:
        strangers = frozenset(item for item in reserved if tier_of[item] == "open")
        room = FreeRoom(total - sum(reserved.values()), dict(reserved), strangers)
        taken = left(room, node, tier_of[node]) * part // 10**6
        yield room, node, taken
        reserved[node] = reserved.get(node, 0) + taken


@given(totals, takes)
def test_no_more_is_reserved_than_there_is_and_nobody_passes_its_share(total, takes):
    for room, node, taken in after(total, takes, TIER_OF):
        assert 0 <= taken <= room.free
        own = room.reserved.get(node, 0)
        base = room.free + own
        if taken:
            assert own + taken <= max(base // PARTS[TIER_OF[node]], ROOM_LEAST_BYTES)


@given(totals, takes)
def test_strangers_leave_half_to_whom_the_node_recognises(total, takes):
    tier_of = dict.fromkeys(NODES, "open")
    for room, _, _ in after(total, takes, tier_of):
        spared = len(NODES) * ROOM_LEAST_BYTES
        assert room.free >= total - total // ROOM_PART_STRANGERS - spared
        friend = left(room, b"f" * 32, "mutual")
        assert friend >= room.free // ROOM_PART_MUTUAL


def test_strangers_that_all_take_what_they_can_leave_half():
    total = 1_000 * ROOM_LEAST_BYTES
    tier_of = dict.fromkeys(NODES, "open")
    *_, (room, _, taken) = after(total, [(node, 10**6) for node in NODES * 3], tier_of)
    assert total // 2 - len(NODES) * ROOM_LEAST_BYTES <= room.free - taken <= total // 2


@given(totals, takes)
def test_another_stranger_finds_as_much_as_it_may_have_at_least(total, takes):
    for room, _, _ in after(total, takes, TIER_OF):
        assert left(room, b"s" * 32, "open") >= min(room.free, ROOM_LEAST_BYTES)
        assert strangers_left(room) <= room.free


@given(totals, st.lists(st.integers(1, 8 * GIB), min_size=1, max_size=8))
def test_asking_in_pieces_gives_no_more_than_asking_once(total, pieces):
    at_once = left(FreeRoom(total, {}, frozenset()), b"s" * 32, "open")
    got = 0
    for size in pieces:
        room = FreeRoom(total - got, {b"s" * 32: got}, frozenset([b"s" * 32]))
        got += min(size, left(room, b"s" * 32, "open"))
    assert got == min(sum(pieces), at_once)


times = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted)
levels = st.lists(
    st.tuples(times, st.integers(0, 9)).map(lambda drawn: Level(*drawn[0], drawn[1])), max_size=12
)


def at_instants(held, start, end):
    """Return the most that is promised at any instant, counted one by one."""
    return max(
        (
            sum(one.quantity for one in held if one.start_ms <= at < one.end_ms)
            for at in range(start, end)
        ),
        default=0,
    )


@given(levels, times)
def test_the_most_that_is_promised_is_the_most_at_any_instant(held, time):
    assert 200 - free_over(200, held, *time) == at_instants(held, *time)


@given(levels, times, st.integers(0, 60))
def test_what_is_granted_as_free_is_never_sold_twice(held, time, capacity):
    start, end = time
    free = free_over(capacity, held, start, end)
    after = [*held, Level(start, end, free)]
    for at in range(31):
        before = at_instants(held, at, at + 1)
        assert at_instants(after, at, at + 1) <= max(capacity, before)
    if start < end and free:
        # And nothing more would fit.
        assert at_instants(after, start, end) == capacity


@given(levels, times, times, st.integers(0, 60))
def test_a_longer_time_has_no_more_free(held, time, more, capacity):
    start, end = time
    wider = min(start, more[0]), max(end, more[1])
    assert free_over(capacity, held, *wider) <= free_over(capacity, held, start, end)


@given(levels, times, st.integers(0, 60), st.randoms())
def test_the_order_of_promises_does_not_matter(held, time, capacity, random):
    shuffled = list(held)
    random.shuffle(shuffled)
    assert free_over(capacity, shuffled, *time) == free_over(capacity, held, *time)
