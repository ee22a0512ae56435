"""Until when an object is kept, by the own leases and by what hosts say."""

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.storage.world import End, World, content, put
from xsc.storage.capability import parse_read
from xsc.storage.expiry import (
    UNKNOWN,
    HostEnd,
    ending,
    first_end,
    own_ends,
    told_ends,
    with_ends,
)
from xsc.storage.held import HeldColumn, HeldObject, HeldRecord

A, B, OWN = b"a" * 32, b"b" * 32, b"o" * 32
LEASES = [bytes([number]) * 32 for number in range(6)]


@given(
    st.lists(st.tuples(st.sampled_from([A, B, OWN]), st.sampled_from(LEASES))),
    st.dictionaries(st.sampled_from(LEASES), st.integers(1, 9)),
)
def test_a_host_keeps_its_part_until_the_first_of_the_leases_there_ends(held, known):
    found = own_ends(held, OWN, lambda lease: End(known[lease]) if lease in known else None)
    for node in (A, B):
        leases = [lease for host, lease in held if host == node]
        ends = [end.ends_ms for end in found if end.node == node]
        if not leases:
            assert ends == []
        elif any(lease not in known for lease in leases):
            assert ends == [None]
        else:
            assert ends == [min(known[lease] for lease in leases)]
    assert all(end.node != OWN for end in found), "a node needs no lease with itself"
    assert all(end.reason == UNKNOWN for end in found if end.ends_ms is None)


def test_what_ends_soon_has_its_reason_and_what_is_not_known_counts_as_soon():
    ends = [HostEnd(A, 5, "debt"), HostEnd(B, 9), HostEnd(OWN, None), HostEnd(A, None, UNKNOWN)]
    assert ending(ends, 5) == [ends[0], ends[3]]
    assert ending(ends, 4) == [ends[3]]
    assert first_end(ends) == 5
    assert first_end([]) is None


def test_a_column_that_somebody_keeps_longer_lasts_that_long():
    def row(customer, column, end):
        return HeldColumn(customer, column, 1, A, 0, end)

    held = HeldObject((row(A, 0, 5), row(B, 0, 9), row(A, 1, 7)), "ok")
    assert held.ends_ms == 7
    assert HeldObject((row(A, 0, 5), row(B, 0, None)), "ok").ends_ms is None
    assert HeldObject((), "ok", 1, (HeldRecord(A, 1, 3), HeldRecord(B, 1, 4))).ends_ms == 4
    assert told_ends({A: held, B: None, OWN: HeldObject((), "missing")}) == [HostEnd(A, 7)]


def test_a_host_says_the_end_of_what_lies_under_several_leases():
    held = HeldObject(
        (HeldColumn(A, 0, 2, B, 0, leases=frozenset(LEASES[:2])),),
        "ok",
        1,
        (HeldRecord(A, 1, lease_id=LEASES[2]), HeldRecord(B, 1, lease_id=LEASES[3])),
    )
    known = {LEASES[0]: 8, LEASES[1]: 6, LEASES[2]: 4}
    said = with_ends(held, known.get)
    assert [item.ends_ms for item in said.columns] == [6]
    assert [item.ends_ms for item in said.records] == [4, None]


async def test_stat_says_what_ends_to_the_owner_and_to_whoever_may_only_check():
    world = await World(7).start()
    done = await put(world[0], content(100_000))
    host = world[1]
    lease = world[0].lease_id(host.id)
    for other in world.hosts[1:]:
        other.book.ends_ms[world[0].lease_id(other.id)] = 2**50
    assert (await world[0].service.stat(done.capability)).to_json()["ends_ms"] == 2**50
    soon_ms = world.clock.now_ms() + 1_000
    host.book.ends_ms[lease] = soon_ms
    world[0].ends[lease] = End(soon_ms, "debt")
    mine = await world[0].service.stat(done.capability)
    assert mine.ending == (HostEnd(host.id, soon_ms, "debt"),)
    (row,) = world[0].service.ls()
    assert (row.ends_ms, row.ending) == (soon_ms, mine.ending)
    verify = parse_read(done.capability).verify.to_text()
    theirs = await world[3].service.stat(verify)
    assert theirs.ending == (HostEnd(host.id, soon_ms),)
    assert theirs.to_json()["ends_ms"] == soon_ms
    world[0].ends[lease] = None
    assert (await world[0].service.stat(done.capability)).ending[0].reason == UNKNOWN
