"""The store of the space: what is acknowledged is there, whatever kills the node, and no more."""

from __future__ import annotations

import pytest

from tests.unit.memory import made_for
from xsc.base.encoding import encode
from xsc.base.errors import NotFound, RecordInvalid, SpaceExhausted, StoreDamaged
from xsc.base.ids import short
from xsc.db.memory import MemoryKeyValue
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.space import itc
from xsc.space import replicas as stores
from xsc.space import table as tables
from xsc.space.itc import event_bytes, height, minus, own_part, read_grant
from xsc.space.limits import GRANTS_A_RECEIVER_MAX, VALUE_INLINE_BYTES_MAX
from xsc.space.messages import Cursor
from xsc.space.paths import SECTIONS, UserSpacePaths, section_of, sections_of
from xsc.space.record import SpaceRecord, open_dated, value_digest
from xsc.space.store import SpaceStore

CAROL = KeyPair(b"\xc0" * 32)
A = section_of("a")


class Journal(MemoryKeyValue):
    """Keeps every write, so that a test can stop the node after any of them."""

    def __init__(self):
        super().__init__()
        self.writes = []

    def write(self, changes, *, sync):
        assert sync, "what is acknowledged is on the disk"
        self.writes.append(changes)
        super().write(changes, sync=sync)

    def after(self, count):
        kept = MemoryKeyValue()
        for changes in self.writes[:count]:
            kept.write(changes, sync=True)
        return kept


def opened(key, network, db=None, **policy):
    db = Journal() if db is None else db
    return SpaceStore(db, made_for(key, network), **policy)


@pytest.fixture
def mine(alice, network):
    return opened(alice, network)


@pytest.fixture
def other(bob, network):
    return opened(bob, network)


def again(store):
    """The store of a node that was killed and started again."""
    return opened(store._key, store._network, store._db)


def record(key, network, path="a", sequence=1, value=b"v"):
    made = SpaceRecord(
        path=path,
        sequence=sequence,
        written_ms=0,
        domain=bytes(32),
        stamp=event_bytes(0),
        digest=None if value is None else value_digest(value),
        size_bytes=len(value or b""),
    )
    return sign(made, key, network)


async def everything(source, prefix="", after=0):
    """All entries under a prefix above a sequence, in order."""
    entries = []
    for section in sections_of(prefix):
        page = await source.page(source.owner, section, after, count=1_000, size_bytes=2**20)
        assert not page.more
        entries += page.entries
    return sorted(entries, key=lambda entry: entry.signed.record.sequence)


async def pull(source, target, prefix="", after=0):
    """Bring what a cursor is missing from an owner to a replica, verified as a peer's is."""
    offered = []
    for entry in await everything(source, prefix, after):
        now_ms = target._time.now_ms()
        signed = open_dated(
            entry.signed.raw,
            SpaceRecord,
            owner=source.owner,
            network=source._network,
            now_ms=now_ms,
        )
        offered.append((signed, entry.sent.value))
    taken = await target.take(source.owner, offered)
    for section in sections_of(prefix):
        shown = (await source._table(source.owner)).show(section)
        if shown is not None:
            assert await proves(target, source.owner, shown.head, section, shown.before)
    return taken


async def proves(store, owner, head, section=A, before=None):
    """Whether a store takes a head of a section for proven."""
    proven, failed, _ = await store.prove(owner, head, {section: before or {}})
    assert proven | failed == {section}
    return bool(proven)


async def shown(store, owner, section=A):
    """The head that a replica shows of a section."""
    return (await store._table(owner)).show(section).head


def dated_anew(store, head):
    """A head, signed by its owner at a later date."""
    later = head.record.model_copy(update={"written_ms": head.record.written_ms + 1})
    return sign(later, store._key, store._network)


# Own values


async def test_what_is_put_is_there_also_after_a_restart(mine):
    sequences = await mine.put_all({"a/b": b"one", "c": b"two"})
    for store in (mine, again(mine)):
        assert store.get("a/b", store.owner).value == b"one"
        assert store.get("c", store.owner).signed.record.sequence == sequences["c"]
        assert [found.path for found in store.ls("a", store.owner)] == ["a/b"]
    later = await again(mine).put_all({"c": b"three"})
    assert later["c"] == sequences["c"] + 1


async def test_what_is_deleted_is_gone_and_is_not_deleted_twice(mine):
    await mine.put_all({"a": b"x", "ab": b"y"})
    await mine.put_all({"a": None})
    for store in (mine, again(mine)):
        with pytest.raises(NotFound):
            store.get("a", store.owner)
        with pytest.raises(NotFound):
            await store.put_all({"a": None})
        assert [found.path for found in store.ls("a", store.owner)] == []
    assert not [key for key, _ in mine._db.scan(b"v") if key.endswith(b"/a")]


async def test_what_is_not_there_is_said_with_the_space_to_look_in(mine, other):
    for store, owner, where in ((mine, None, ""), (other, mine.owner, f" {short(mine.owner)}:")):
        with pytest.raises(NotFound) as fault:
            store.get("a", owner)
        assert fault.value.hint == f"`xsc space ls{where}` shows what is there"
    with pytest.raises(NotFound, match="nothing is at 'a'") as fault:
        await mine.rm("a")
    assert fault.value.hint == "`xsc space ls` shows what is there"


async def test_a_put_is_all_or_nothing(mine, monkeypatch):
    await mine.put_all({"a": b"old"})
    monkeypatch.setattr(tables.limits, "RECORDS_MAX", 3)
    with pytest.raises(SpaceExhausted):
        await mine.put_all({"a": b"new", "b": b"", "c": b""})
    assert mine.get("a", mine.owner).value == b"old"
    assert [found.path for found in mine.ls("b", mine.owner)] == []
    await mine.put_all({"a": b"new", "b": b""})
    assert mine.get("a", mine.owner).value == b"new"


async def test_records_of_one_put_share_a_signature_and_open_alone(mine, network):
    await mine.put_all({f"p{number}": b"" for number in range(100)})
    entries = await everything(mine)
    assert len(entries) == 101  # and the interval
    for entry in entries:
        open_signed(entry.signed.raw, SpaceRecord, network=network, author=mine.owner)


async def test_the_kept_head_covers_sequences_whose_tombstones_are_gone(mine):
    await mine.put_all({"a": b""})
    (last,) = (await mine.put_all({"a": None})).values()
    await mine.sign_head()
    mine.asked[b""] = [Cursor(mine.owner, "nodes", last, 0, 0)]
    await mine.compact()
    assert await everything(mine, "a") == []
    assert await again(mine).put_all({"b": b""}) == {"b": last + 1}


# A kill at every write


async def test_a_kill_after_any_write_loses_nothing_acknowledged_and_forks_nothing(
    mine, other, alice, network
):
    acknowledged = []

    def acknowledge(path, value):
        acknowledged.append((len(mine._db.writes), path, value))

    for number, (path, value) in enumerate(
        [("a", b"1"), ("b", b"2"), ("a", b"3"), ("b", None), ("c", b"4")]
    ):
        await mine.put_all({path: value})
        acknowledge(path, value)
        if number == 1:
            await mine.grant(other.owner)
        if number == 2:
            await mine.sign_head()
            await other.put_all({"x": b"y"})
            await pull(other, mine)
    whole = {entry.signed.record.sequence: entry.signed for entry in await everything(mine)}
    for count in range(len(mine._db.writes) + 1):
        store = opened(alice, network, mine._db.after(count))
        expected = {path: value for at, path, value in acknowledged if at <= count}
        for path, value in expected.items():
            if value is None:
                with pytest.raises(NotFound):
                    store.get(path, store.owner)
            else:
                assert store.get(path, store.owner).value == value
        before = {entry.signed.record.sequence for entry in await everything(store)}
        await store.put_all({"new": b""})
        made = store.get("new", store.owner).signed.record
        assert made.sequence > max(before, default=0)
        for sequence in before & set(whole):
            held = whole[sequence].record
            if held.domain == made.domain:
                assert held.causality.before(made.causality)
        if store.clock.domain == mine.clock.domain:
            assert store.clock.interval in {1, mine.clock.interval}


async def test_a_write_that_fails_leaves_no_trace(mine, monkeypatch):
    await mine.put_all({"a": b"old"})
    write = mine._db.write

    def full(changes, *, sync):
        raise SpaceExhausted("the disk is full")

    monkeypatch.setattr(mine._db, "write", full)
    with pytest.raises(SpaceExhausted):
        await mine.put_all({"a": b"new"})
    monkeypatch.setattr(mine._db, "write", write)
    assert mine.get("a", mine.owner).value == b"old"
    await mine.put_all({"b": b""})
    paths = [entry.signed.record.path for entry in await everything(mine)]
    assert paths == [UserSpacePaths.INTERVAL, "a", "b"]


@pytest.mark.parametrize("kind", [stores.META, stores.PROVEN, stores.CLOCK])
async def test_damage_is_named(mine, kind):
    await mine.put_all({"a": b""})
    await mine.sign_head()
    key = next(key for key, _ in mine._db.scan(kind))
    mine._db.write([(key, b"\0")], sync=True)
    with pytest.raises(StoreDamaged):
        await again(mine).put_all({"b": b""})


# Records of others


async def test_a_replica_comes_to_hold_what_the_owner_signed(mine, other):
    await mine.put_all({"a/x": b"1", "a/y": b"2", "b": b"3"})
    await mine.put_all({"a/x": None, "b": b"4"})
    await mine.sign_head()
    await pull(mine, other)
    for store in (other, again(other)):
        assert {found.path for found in store.ls("", mine.owner)} == {
            UserSpacePaths.INTERVAL,
            "a/y",
            "b",
        }
        assert store.get("b", mine.owner).value == b"4"
        assert await store.cursor(mine.owner, "") == 6
    assert set(other.owners()) == {mine.owner}


async def test_a_cursor_fetches_exactly_what_is_missing(mine, other):
    await mine.put_all({f"p{number}": b"" for number in range(50)})
    await mine.sign_head()
    await pull(mine, other)
    await mine.put_all({"p7": b"new", "p8": None})
    await mine.sign_head()
    back = again(other)
    found = await everything(mine, after=await back.cursor(mine.owner, ""))
    assert [entry.signed.record.path for entry in found] == ["p7", "p8"]
    taken = await pull(mine, back, after=await back.cursor(mine.owner, ""))
    assert (taken.paths, taken.refused) == (["p7", "p8"], [])
    assert await back.cursor(mine.owner, "") == await mine.cursor(mine.owner, "")


async def test_a_relay_that_was_restarted_passes_on(mine, other, network):
    await mine.put_all({"a/x": b"1", "b": b"3"})
    await mine.sign_head()
    await pull(mine, other, "a")
    relay, end = again(other), opened(CAROL, network)
    page = await relay.page(mine.owner, A, 0, count=9, size_bytes=2**20)
    (entry,) = page.entries
    await end.take(mine.owner, [(entry.signed, entry.value)])
    assert await proves(end, mine.owner, page.shown.head, A, page.shown.before)


async def test_a_replica_that_lacks_tombstones_is_repaired(mine, other, network):
    await mine.put_all({"a/x": b"1", "a/y": b"2"})
    await pull(mine, other, "a")
    last = (await mine.put_all({"a/x": None, "a/z": b"3"}))["a/z"]
    head = await mine.sign_head()
    mine.asked[b""] = [Cursor(mine.owner, "nodes", last, 0, 0)]
    await mine.compact()
    raw, listed = await mine.listing(mine.owner, A)
    assert raw == head.raw
    with pytest.raises(RecordInvalid):
        await other.repair(mine.owner, A, head, listed[1:])
    repair = await other.repair(mine.owner, A, head, listed)
    entry = mine.get("a/z", mine.owner)
    assert repair.fetch == {"a/z": entry.signed.id}
    await other.take(mine.owner, [(entry.signed, entry.value)])
    assert await proves(other, mine.owner, head)
    assert [found.path for found in again(other).ls("a", mine.owner)] == ["a/y", "a/z"]
    with pytest.raises(NotFound):
        await other.listing(mine.owner, section_of("b"))


async def test_a_head_that_says_the_same_of_a_section_is_not_written_again(mine, other):
    await mine.put_all({"a/x": b"1", "b": b"2"})
    await mine.sign_head()
    await pull(mine, other, "a")
    later = dated_anew(mine, await shown(other, mine.owner))
    writes = len(other._db.writes)
    assert await proves(other, mine.owner, later)
    assert len(other._db.writes) == writes
    assert await shown(other, mine.owner) == later
    assert await again(other).listing(mine.owner, A)


async def test_a_head_that_is_dated_anew_is_proven_where_the_known_one_is_not_shown(mine, other):
    """After a start with a newer record nothing was shown until the owner wrote again."""
    await mine.put_all({"a/x": b"1"})
    await mine.sign_head()
    await pull(mine, other, "a")
    known = await shown(other, mine.owner)
    _, listed = await other.listing(mine.owner, A)
    for path, is_shown in (("a/y", True), ("a/x", False)):
        await mine.put_all({path: b"2"})
        entry = mine.get(path, mine.owner)
        await other.take(mine.owner, [(entry.signed, entry.value)])
        started = again(other)
        if is_shown:
            assert (await started.listing(mine.owner, A))[1] == listed
    with pytest.raises(NotFound):
        await started.listing(mine.owner, A)
    assert await proves(started, mine.owner, dated_anew(mine, known), A, dict(listed))
    assert (await started.listing(mine.owner, A))[1] == listed


async def test_after_a_restart_a_head_is_shown_only_of_sections_that_it_is_over(mine, other):
    """An owner signs two heads of one sequence, each proven for another section."""
    await mine.put_all({"a": b"1", "b": b"2"})
    head = await mine.sign_head()
    await pull(mine, other, "a")
    entry = mine.get("b", mine.owner)
    await other.take(mine.owner, [(entry.signed, entry.value)])
    rows = tuple(row for row in head.record.sections if row[0] != A)
    update = {"written_ms": head.record.written_ms + 1, "sections": rows}
    forked = sign(head.record.model_copy(update=update), mine._key, mine._network)
    assert await proves(other, mine.owner, forked, section_of("b"))
    started = again(other)
    with pytest.raises(NotFound):
        await started.listing(mine.owner, A)
    assert (await started.listing(mine.owner, section_of("b")))[0] == forked.raw
    later = forked.record.model_copy(update={"sequence": forked.record.sequence + 1})
    assert not await proves(started, mine.owner, sign(later, mine._key, mine._network))


async def test_what_was_deleted_does_not_come_back_after_a_restart(mine, other):
    """Between two heads that say the same it was put and deleted."""
    await mine.put_all({"a/x": b"1"})
    await mine.sign_head()
    await pull(mine, other, "a")
    await mine.put_all({"a/y": b"2"})
    deleted = mine.get("a/y", mine.owner)
    last = (await mine.put_all({"a/y": None}))["a/y"]
    await mine.sign_head()
    await pull(mine, other, "a", after=last - 1)
    other.asked[b""] = [Cursor(mine.owner, "nodes", last, 0, 0)]
    await other.compact()
    for store in (other, again(other)):
        taken = await store.take(mine.owner, [(deleted.signed, deleted.value)])
        assert (taken.paths, taken.refused) == ([], [])


async def test_large_values_are_loaded_later(mine, other):
    large = bytes(VALUE_INLINE_BYTES_MAX + 1)
    await mine.put_all({"large": large, "small": large[1:]})
    await pull(mine, other)
    assert other.get("small", mine.owner).value == large[1:]
    assert other.get("large", mine.owner).value is None
    for path, value in (("large", large[1:]), ("small", large), ("nothing", b"")):
        with pytest.raises(RecordInvalid):
            await other.keep_value(mine.owner, path, value)
    await other.keep_value(mine.owner, "large", large)
    assert again(other).get("large", mine.owner).value == large
    await mine.put_all({"large": large + b"new"})
    await pull(mine, other)
    assert other.get("large", mine.owner).value is None


async def test_a_page_has_a_size(mine):
    await mine.put_all({f"a/p{number}": bytes(1000) for number in range(20)})
    page = await mine.page(mine.owner, A, 0, count=99, size_bytes=5_000)
    assert 1 < len(page.entries) < 5
    page = await mine.page(mine.owner, A, 0, count=99, size_bytes=0)
    assert len(page.entries) == 1
    page = await mine.page(mine.owner, A, 0, count=3, size_bytes=2**20)
    assert len(page.entries) == 3


async def test_a_false_record_keeps_no_other_from_being_stored(mine, bob, network):
    offered = [
        (record(bob, network, "a", 1), b"v"),
        (record(bob, network, "b", 2), b"another value"),
        (record(bob, network, "c", 3), None),
    ]
    taken = await mine.take(bob.node_id, offered)
    assert taken.paths == ["a", "c"]
    assert [type(fault) for fault in taken.refused] == [RecordInvalid]
    assert (await mine.take(bob.node_id, offered)).paths == []


async def test_the_first_records_of_an_owner_are_read_once(mine, other, monkeypatch):
    await other.put_all({f"p{number}": b"x" for number in range(20)})
    await pull(other, mine)
    monkeypatch.setattr(mine, "_parsed", None)  # what was taken in is not read again
    assert await mine.cursor(other.owner, "") == 0


async def test_others_that_have_all_room_leave_an_owner_its_own(mine, bob, network, monkeypatch):
    monkeypatch.setattr(tables.limits, "OTHERS_BYTES_MAX", 4_000)
    monkeypatch.setattr(tables.limits, "OWNER_SURE_BYTES", 1_000)
    for owner, sizes, stored in ((bob, (1_500, 1_500), 1), (CAROL, (500, 800, 5_000), 1)):
        for sequence, size in enumerate(sizes, 1):
            value = b"x" * size
            offered = record(owner, network, f"p{sequence}", sequence, value)
            await mine.take(owner.node_id, [(offered, value)])
        assert len(mine.ls("", owner.node_id)) == stored
    mine = again(mine)
    await mine.put_all({"own": b"x" * 10_000})
    assert mine.get("own", mine.owner).signed.record.size_bytes == 10_000


async def test_who_introduces_many_owners_leaves_room_for_others(alice, bob, network, monkeypatch):
    """One that is known by hand could fill all room with owners of its own making."""
    monkeypatch.setattr(tables.limits, "OTHERS_BYTES_MAX", 32_000)
    monkeypatch.setattr(tables.limits, "OWNER_SURE_BYTES", 1_000)
    shams = [KeyPair(bytes([number]) * 32) for number in range(1, 30)]
    mine = opened(
        alice, network, introducer_of=lambda owner: "bob" if owner == bob.node_id else "shams"
    )
    for owner in (*shams, bob):
        value = b"x" * 1_500
        await mine.take(owner.node_id, [(record(owner, network, value=value), value)])
    held = sum(len(mine.ls("", owner.node_id)) for owner in shams)
    assert 8 <= held * 1_692 // 1_000 < 16
    assert len(mine.ls("", bob.node_id)) == 1


async def test_what_nobody_subscribes_to_is_evicted_with_its_cursor(mine, other):
    await mine.put_all({"a": b"1", "b": b"2"})
    await mine.sign_head()
    await pull(mine, other)
    await other.evict(mine.owner, SECTIONS)
    assert await other.cursor(mine.owner, "") == 3
    await other.evict(mine.owner, {section_of("b")})
    for store in (other, again(other)):
        assert await store.cursor(mine.owner, "a") == 0
        assert await store.cursor(mine.owner, "b") == 3
        assert [found.path for found in store.ls("", mine.owner)] == ["b"]
    assert not list(other._db.scan(b"v" + mine.owner + b"a", b"v" + mine.owner + b"b"))
    await pull(mine, other)
    assert other.get("a", mine.owner).value == b"1"


async def test_nothing_is_left_of_an_owner_that_nobody_subscribes_to(mine, other, network):
    """Also of one of whom there is only a head."""
    await mine.put_all({"a": b"1", "b": b"2"})
    head = await mine.sign_head()
    bare = opened(CAROL, network)
    for replica in (other, bare):
        assert await proves(replica, mine.owner, head, section_of("nothing"))
    await pull(mine, other)
    for replica in (other, bare):
        assert replica.owners() == [mine.owner]
        await replica.evict(mine.owner, ())
        assert replica.owners() == []
        assert list(replica._db.scan(b"", b"\xff")) == []


# The own clock


async def test_a_node_that_nobody_invited_founds_a_domain(mine, other):
    await mine.put_all({"a": b""})
    await other.put_all({"a": b""})
    assert mine.clock.interval == other.clock.interval == 1
    stamps = [store.get("a", store.owner).signed.record.causality for store in (mine, other)]
    assert stamps[0].concurrent(stamps[1])
    assert again(mine).clock == mine.clock


async def test_a_joiner_gets_one_interval_however_often_it_asks(mine, other, network):
    grant = await mine.grant(other.owner)
    for store in (mine, again(mine)):
        assert await store.grant(other.owner) == grant
    third = await mine.grant(CAROL.node_id)
    intervals = [
        read_grant(grant, other.owner, network=network).interval,
        read_grant(third, CAROL.node_id, network=network).interval,
        mine.clock.interval,
    ]
    assert minus(minus(1, intervals[0]), intervals[1]) == intervals[2]
    assert again(mine).clock.interval == mine.clock.interval
    assert await again(mine).grant(other.owner) == grant


async def test_a_node_gets_so_many_parts_of_one_interval(mine, other):
    """To have left the last one is the word of the receiver alone."""
    for _ in range(GRANTS_A_RECEIVER_MAX):
        chain = await mine.grant(other.owner, anew=True)
    for store in (mine, again(mine)):
        with pytest.raises(SpaceExhausted):
            await store.grant(other.owner, anew=True)
        assert await store.grant(other.owner) == chain
    assert await mine.grant(bytes(32)) != chain


async def test_the_first_domain_is_kept(mine, other, network):
    assert await other.join(await mine.grant(other.owner))
    assert other.clock.domain == mine.clock.domain
    stranger = opened(CAROL, network)
    assert not await other.join(await stranger.grant(other.owner))
    assert again(other).clock == other.clock
    with pytest.raises(RecordInvalid):
        await opened(KeyPair(b"\xd0" * 32), network).join(await mine.grant(CAROL.node_id))


async def test_a_guest_can_invite_others(mine, other, network):
    await other.join(await mine.grant(other.owner))
    chain = await other.grant(CAROL.node_id)
    guest = opened(CAROL, network)
    assert await guest.join(chain)
    await guest.put_all({"a": b""})
    assert guest.clock.domain == mine.clock.domain
    assert await mine.grant(other.owner) != chain


async def test_a_giver_does_not_count_for_its_receiver(mine, other, alice, network):
    """Its stamp said what its receiver had counted, and readers believed it."""
    reader = opened(CAROL, network)
    await other.join(await mine.grant(other.owner))
    await reader.join(await mine.grant(reader.owner))
    await other.put_all({"a": b"1"})
    await pull(other, reader)
    values = {
        UserSpacePaths.INTERVAL: mine.get(UserSpacePaths.INTERVAL, mine.owner).value,
        "x": b"x",
    }
    offered = []
    for sequence, (path, value) in enumerate(values.items(), start=100):
        made = SpaceRecord(
            path=path,
            sequence=sequence,
            written_ms=0,
            domain=reader.clock.domain,
            stamp=event_bytes(10**6),
            digest=value_digest(value),
            size_bytes=len(value),
        )
        offered.append((sign(made, alice, network), value))
    for store in (reader, again(reader)):
        assert not (await store.take(mine.owner, offered)).refused
    known = reader.clock.event
    assert height(own_part(mine.clock.interval, known)) == 10**6
    for store in (other, reader):
        assert height(own_part(store.clock.interval, known)) < 10**6


async def test_a_false_grant_proves_nothing(mine, other, bob, network):
    await mine.put_all({"a": b"1"})
    await pull(mine, other)
    for store in (other, again(other)):
        assert set(store.causality.granted) == {mine.owner}
    value = mine.get(UserSpacePaths.INTERVAL, mine.owner).value
    for sequence, false in enumerate((b"", value), start=1):
        signed = record(CAROL, network, UserSpacePaths.INTERVAL, sequence, false)
        await other.take(CAROL.node_id, [(signed, false)])
        assert set(other.causality.granted) == {mine.owner}
    await other.evict(mine.owner, ())
    for store in (other, again(other)):
        assert store.causality.granted == {}


async def test_a_grant_that_was_read_is_not_read_again(mine, other, bob, network, monkeypatch):
    """An author that published it again and again held up all else here."""
    read = []

    def counted(*of, **how):
        read.append(of)
        return read_grant(*of, **how)

    await other.put_all({"a": b"1"})
    monkeypatch.setattr(itc, "read_grant", counted)
    value = other.get(UserSpacePaths.INTERVAL, other.owner).value
    for sequence in range(1, 5):
        signed = record(bob, network, UserSpacePaths.INTERVAL, sequence, value)
        assert (await mine.take(bob.node_id, [(signed, value)])).paths
    assert len(read) == 2  # it was checked, and then noted


async def test_what_was_read_is_before_what_is_written_then(mine, other):
    await other.join(await mine.grant(other.owner))
    await mine.put_all({"a": b"1"})
    await other.put_all({"a": b"0"})
    early = other.get("a", other.owner).signed.record.causality
    read = mine.get("a", mine.owner).signed.record.causality
    assert early.concurrent(read)
    await pull(mine, other)
    await other.put_all({"a": b"2"})
    assert read.before(other.get("a", other.owner).signed.record.causality)


async def test_a_recovered_node_leaves_its_interval_and_goes_on_above_what_was_shown(
    mine, other, network
):
    await other.join(await mine.grant(other.owner))
    old = other.clock
    await other.leave(41)
    assert again(other).clock is None
    assert await again(other).put_all({"a": b""}) == {UserSpacePaths.INTERVAL: 43, "a": 44}
    other = again(other)
    assert other.clock.domain != old.domain
    value = other.get(UserSpacePaths.INTERVAL, other.owner).value
    assert read_grant(value, other.owner, network=network).interval == 1


# Bounded growth


async def test_a_thousand_updates_take_the_room_of_the_last_ones(mine, bob, network):
    fresh = opened(CAROL, network)
    last = {}
    for sequence in range(1, 1_001):
        path = f"p{sequence % 20}"
        last[path] = (record(bob, network, path, sequence), b"v")
        await mine.take(bob.node_id, [last[path]])
    await fresh.take(bob.node_id, list(last.values()))
    await mine.compact()
    assert mine.stats() == fresh.stats()
    assert mine.stats().records == 20


async def test_replaced_versions_are_kept_as_the_policy_says(alice, network):
    store = opened(alice, network, keep_versions=2)
    for value in (b"1", b"2", b"3", b"4", b"5"):
        await store.put_all({"a": value})
    await store.put_all({"a": None})
    await store.compact()
    assert len(list(store._db.scan(stores.ARCHIVE, b"b"))) == 2
    await store.put_all({"a": b"6", "ab": b"7"})
    assert [entry.value for entry in store.versions("a")] == [b"5", b"4"]
    assert store.versions("ab") == store.versions("b") == []
    key, raw = next(iter(store._db.scan(stores.ARCHIVE, b"b")))
    unsigned = stores.Archived(archived_ms=1, record=b"r", value=b"v").to_bytes()
    for damaged in (raw[:-1], encode([1, 2]), unsigned):
        store._db.write([(key, damaged)], sync=True)
        with pytest.raises(StoreDamaged):
            store.versions("a")


async def test_what_was_taken_back_without_its_value_is_no_version(mine, alice, network):
    store = opened(alice, network, keep_versions=2)
    await store.take(store.owner, [(record(alice, network, "a", 7), None)])
    await store.put_all({"a": b"1"})
    await store.put_all({"a": b"2"})
    await store.compact()
    assert [entry.value for entry in store.versions("a")] == [b"1"]
