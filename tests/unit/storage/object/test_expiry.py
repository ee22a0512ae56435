"""Until when an object is kept, by the own leases and by what hosts say."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.storage.world import End, World, content, get, put
from xsc.api.objects import Ending
from xsc.base.errors import LeaseExhausted, RecordInvalid, ShardsInsufficient, SignatureInvalid
from xsc.base.units import held_bytes
from xsc.storage.catalogue.objects import MANIFESTS
from xsc.storage.object import messages
from xsc.storage.object.capability import parse_read
from xsc.storage.object.expiry import (
    UNKNOWN,
    ending,
    first_end,
    own_ends,
    told_ends,
    with_ends,
)
from xsc.storage.object.inventory import HeldColumn, HeldObject, HeldRecord, Wanted
from xsc.storage.object.manifest import open_manifest
from xsc.storage.object.receipts import shards_of
from xsc.terms.storage_receipt import HeldShard

A, B, OWN = b"a" * 32, b"b" * 32, b"o" * 32
LEASES = [bytes([number]) * 32 for number in range(6)]


def until(node, ends_ms, reason=""):
    return Ending(node=node, ends_ms=ends_ms, reason=reason)


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
    ends = [until(A, 5, "debt"), until(B, 9), until(OWN, None), until(A, None, UNKNOWN)]
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
    assert HeldObject((), "ok", (HeldRecord(A, 3), HeldRecord(B, 4))).ends_ms == 4
    assert told_ends({A: held, B: None, OWN: HeldObject((), "missing")}) == [until(A, 7)]


def test_a_host_says_the_end_of_what_lies_under_several_leases():
    held = HeldObject(
        (HeldColumn(A, 0, 2, B, 0, leases=frozenset(LEASES[:2])),),
        "ok",
        (HeldRecord(A, lease_id=LEASES[2]), HeldRecord(B, lease_id=LEASES[3])),
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
    assert (await world[0].service.stat(done.capability)).ends_ms == 2**50
    soon_ms = world.clock.now_ms() + 1_000
    host.book.ends_ms[lease] = soon_ms
    world[0].ends[lease] = End(soon_ms, "debt")
    mine = await world[0].service.stat(done.capability)
    assert mine.ending == [until(host.id, soon_ms, "debt")]
    (row,) = world[0].service.ls()
    assert (row.ends_ms, row.ending) == (soon_ms, mine.ending)
    verify = parse_read(done.capability).verify.to_text()
    theirs = await world[3].service.stat(verify)
    assert theirs.ending == [until(host.id, soon_ms)]
    assert theirs.ends_ms == soon_ms
    world[0].ends[lease] = None
    assert (await world[0].service.stat(done.capability)).ending[0].reason == UNKNOWN


def manifest_of(world, done):
    sealed = world[0].state.get(MANIFESTS + parse_read(done.capability).manifest_hash)
    return open_manifest(sealed, parse_read(done.capability).verify)


async def test_a_host_keeps_for_another_what_it_has_and_nothing_else():
    world = await World(7).start()
    done = await put(world[0], content(100_000))
    manifest = manifest_of(world, done)
    locate = parse_read(done.capability).verify.locate
    custodian, host = world[6], world.by_id[done.hosts[2]]
    offered = await custodian.lease_hosts(
        size_bytes=1, count=1, exclude=frozenset(other.id for other in world.hosts) - {host.id}
    )
    (lease,) = offered.leases
    client = custodian.service._client
    before = host.node.used_bytes
    shards = shards_of(manifest, 2)
    size = sum(held_bytes(s.size_bytes) for s in shards)
    assert await client.confirmed(messages.KEEP, lease, locate, 0, shards) == shards
    assert host.node.used_bytes - before == size
    assert custodian.customer_used[lease.lease_id] == host.node.usage[lease.lease_id] == size
    again = await client.confirmed(messages.KEEP, lease, locate, 0, shards)
    assert again == shards, "again is the same"
    assert host.node.usage[lease.lease_id] == size
    await host.node.delete(locate, world[0].id)
    assert await get(world[0], done.capability) == content(100_000)
    with pytest.raises(ShardsInsufficient):
        await client.confirmed(messages.KEEP, lease, locate, 0, shards_of(manifest, 3))
    host.book.room[lease.lease_id] = size
    with pytest.raises(LeaseExhausted):
        await client.confirmed(messages.KEEP, lease, locate, 0, shards)
    assert host.node.usage[lease.lease_id] == size

    def lies(method, answer):
        if method != messages.KEEP:
            return answer
        raw = answer.header["receipt"]
        return replace(answer, header={"receipt": raw[:-1] + bytes([raw[-1] ^ 1])})

    other = world.by_id[done.hosts[3]]
    other.corrupt = lies
    offered = await custodian.lease_hosts(
        size_bytes=1, count=1, exclude=frozenset(each.id for each in world.hosts) - {other.id}
    )
    (lease,) = offered.leases
    with pytest.raises((RecordInvalid, SignatureInvalid)):
        await client.confirmed(messages.KEEP, lease, locate, 0, shards_of(manifest, 3))
    assert lease.lease_id not in custodian.customer_used


def test_what_is_to_be_kept_is_named_once_and_whole():
    shard = HeldShard(segment=1, column=2, size_bytes=3, root=B)
    header = messages.keep_message(A, OWN, 0, [shard])
    assert messages.read_keep(header) == (A, OWN, 0, [Wanted(1, 2, B)], 3)
    leaves = {"segment": 1, "column": 2, "root": B, "leaves": [0, 1, 9]}
    for shards in ([], header["shards"] * 2, [leaves], header["shards"] * 65):
        with pytest.raises(RecordInvalid):
            messages.read_keep(header | {"shards": shards})
    with pytest.raises(RecordInvalid):
        messages.read_keep(header | {"lease": b"short"})
