"""The table of an owner: which records it takes, and what a head proves."""

from __future__ import annotations

import random

import pytest

from tests.strategies import vectors
from xsc.base.errors import RecordInvalid, SpaceExhausted
from xsc.identity.envelope import sign
from xsc.space import table as tables
from xsc.space.itc import Clock, cut_grant, event_bytes, join_events
from xsc.space.limits import (
    TOMBSTONE_KEPT_MS,
    VALUE_BYTES_MAX,
)
from xsc.space.paths import SECTIONS, section_of
from xsc.space.record import SpaceHead, SpaceRecord, section_hash, value_digest
from xsc.space.table import OwnerTable, Proven, Row, old_versions

GOLDEN = vectors("space")
X = section_of("x")


@pytest.fixture
def owner(alice, network):
    return Owner(alice, network)


class Owner:
    """Signs records and heads, and has its own table."""

    def __init__(self, key, network):
        self.key, self.network = key, network
        self.table = OwnerTable()
        self.sequence = 0
        self.sent = []

    def record(self, path, value=b"v", *, sequence=None, stamp=0, written_ms=0, size_bytes=None):
        if sequence is None:
            self.sequence += 1
            sequence = self.sequence
        size = len(value or b"") if size_bytes is None else size_bytes
        record = SpaceRecord(
            path=path,
            sequence=sequence,
            written_ms=written_ms,
            domain=bytes(32),
            stamp=event_bytes(stamp),
            digest=None if value is None else value_digest(value),
            size_bytes=size,
        )
        return sign(record, self.key, self.network)

    def put(self, path, value=b"v"):
        signed = self.record(path, value)
        take(self.table, signed)
        self.sent.append(signed)
        return signed

    def rm(self, path):
        return self.put(path, None)

    def head(self):
        hashes = {section: self.table.hash_now(section) for section in SECTIONS}
        rows = sorted((section, digest) for section, digest in hashes.items() if digest)
        record = SpaceHead(sequence=self.sequence, written_ms=0, sections=tuple(rows))
        head = sign(record, self.key, self.network)
        assert all(self.table.prove(section, head, {}) for section in SECTIONS)
        return head

    def listed(self, section=X):
        shown = self.table.show(section)
        return self.table.live_at(section, shown.head.record.sequence, shown.before)


def take(table, signed):
    path, is_taken = signed.record.path, table.takes(signed)
    if is_taken:
        if signed.record.digest is None and (oldest := table.oldest_tombstone(path)):
            table.forget(oldest)
        table.put(path, Row.of(signed))
    return is_taken


def live(table):
    return {path: row.sequence for path, row in table.rows.items() if not row.deleted}


# Records


def test_a_newer_record_replaces_an_older_one_in_any_order(owner):
    records = [owner.record("a", bytes([n])) for n in range(5)]
    for seed in range(20):
        table = OwnerTable()
        shuffled = list(records)
        random.Random(seed).shuffle(shuffled)
        for signed in shuffled:
            take(table, signed)
        assert table.rows == {"a": Row.of(records[-1])}


def test_a_record_that_is_held_or_older_changes_nothing(owner):
    old, new = owner.record("a", b"old"), owner.record("a", b"new")
    table = OwnerTable()
    assert [take(table, each) for each in (new, new, old)] == [True, False, False]
    assert table.takes(owner.record("a", b"newest"))


def test_of_two_records_under_one_sequence_the_smaller_id_holds(owner):
    two = sorted(
        (owner.record("a", value, sequence=3) for value in (b"one", b"other")),
        key=lambda signed: signed.id,
    )
    for order in (two, two[::-1]):
        table = OwnerTable()
        take(table, order[0])
        take(table, order[1])
        assert table.rows["a"].id == two[0].id


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("first", [0, 1])
def test_of_two_records_under_one_sequence_the_one_that_a_head_is_over_holds(owner, over, first):
    """Both were proven by one head: the tree was over sequences, and replicas disagreed."""
    two = sorted(
        (owner.record("x/a", value, sequence=1) for value in (b"one", b"other")),
        key=lambda signed: signed.id,
    )
    take(owner.table, two[over])
    owner.sequence = 1
    head = owner.head()
    table = OwnerTable()
    take(table, two[first])
    if first != over:
        assert not table.prove(X, head, {})
        repair = table.repair(X, head, owner.listed().items())
        assert repair.fetch == {"x/a": two[over].id}
        assert table.takes(two[over], listed=repair)
        table.put("x/a", Row.of(two[over]))
    assert table.prove(X, head, {})
    # And the other one does not come back, also where its id is the smaller one.
    assert not take(table, two[1 - over])
    assert table.rows["x/a"].id == two[over].id
    assert table.show(X).head == head


def test_a_head_decides_also_over_a_newer_record_that_it_denies(owner):
    denied = owner.record("x", b"denied", sequence=5)
    put = owner.put("x")
    owner.sequence = 7
    old, head = owner.head(), None
    table = OwnerTable()
    take(table, denied)
    repair = table.repair(X, old, owner.listed().items())
    assert not table.takes(put)
    assert table.takes(put, listed=repair)
    table.put("x", Row.of(put))
    assert table.prove(X, old, {})
    owner.put("x")
    head = owner.head()
    take(table, owner.sent[-1])
    assert table.prove(X, head, {})
    assert not table.takes(put, listed=repair)  # an older listing decides nothing


def test_a_head_that_a_newer_one_denies_is_shown_no_longer(owner):
    """Two heads of a forked owner; what the newer one says is live, the older one did not have."""
    one, two = (owner.record(path, sequence=at) for at, path in ((1, "x/a"), (3, "x/b")))
    take(owner.table, one)
    owner.sequence = 3
    table = OwnerTable()
    take(table, one)
    assert table.prove(X, owner.head(), {})
    other = Owner(owner.key, owner.network)
    for signed in (one, two):
        take(other.table, signed)
    other.sequence = 4
    head = other.head()
    repair = table.repair(X, head, other.listed().items())
    assert table.takes(two, listed=repair)
    table.put("x/b", Row.of(two))
    assert table.show(X) is None
    assert table.prove(X, head, {})
    assert table.show(X).head == head


def test_a_head_over_more_records_than_an_owner_may_have_proves_nothing(owner, monkeypatch):
    """A replica that had proven it would list more than others read, and be blamed for that."""
    for path in ("x/a", "x/b", "x/c"):
        owner.put(path)
    head = owner.head()
    table = OwnerTable()
    for signed in owner.sent:
        take(table, signed)
    monkeypatch.setattr(tables, "RECORDS_MAX", 2)
    assert not table.prove(X, head, {})
    monkeypatch.setattr(tables, "RECORDS_MAX", 3)
    assert table.prove(X, head, {})


def test_fault_5_a_clock_above_a_record_does_not_make_it_stale(owner):
    """There, a record with a stamp below one's own clock was dropped: 17 to 79 % were lost."""
    table = OwnerTable()
    take(table, owner.record("a", stamp=10**6))
    assert take(table, owner.record("b", stamp=1))
    assert take(table, owner.record("a", stamp=2))  # below the stamp of what it replaces


def test_fault_5_no_final_value_is_lost_with_delays(alice, network):
    """32 nodes write 3 paths each and read 8 others, whose records come late and mixed up."""
    rng = random.Random(5)
    kept, clocks = 1, []
    for number in range(1, 32):
        kept, given = cut_grant(kept, 0, number)
        clocks.append(Clock(bytes(32), given, 0))
    clocks.append(Clock(bytes(32), kept, 0))
    owners = [Owner(alice, network) for _ in clocks]
    readers = {reader: rng.sample(range(32), 8) for reader in range(32)}
    held = {(reader, author): OwnerTable() for reader in readers for author in readers[reader]}
    final, late = {}, []
    for _ in range(300):
        author = rng.randrange(32)
        clocks[author] = clocks[author].tick()
        path = f"p{rng.randrange(3)}"
        signed = owners[author].record(path, stamp=clocks[author].event)
        final[author, path] = signed.record.sequence
        late += [(reader, author, signed) for reader, read in readers.items() if author in read]
        for _ in range(rng.randrange(8)):
            if late:
                reader, source, signed = late.pop(rng.randrange(len(late)))
                take(held[reader, source], signed)
                event = join_events(clocks[reader].event, signed.record.causality.event)
                clocks[reader] = Clock(bytes(32), clocks[reader].interval, event)
    for reader, source, signed in late:
        take(held[reader, source], signed)
    for (_, source), table in held.items():
        assert live(table) == {path: at for (who, path), at in final.items() if who == source}


# Quotas


def test_an_owner_has_so_many_records(owner, monkeypatch):
    monkeypatch.setattr(tables, "RECORDS_MAX", 3)
    for path in ("a", "b", "c"):
        owner.put(path)
    with pytest.raises(SpaceExhausted):
        owner.put("d")
    owner.put("a", b"new")
    owner.rm("b")
    owner.put("d")
    assert owner.table.live == 3


def test_an_owner_has_so_many_bytes_and_can_always_delete(owner, monkeypatch):
    owner.put("a", b"x" * 1000)
    owner.put("b", b"x" * 1000)
    monkeypatch.setattr(tables, "OWNER_BYTES_MAX", owner.table.size_bytes)
    with pytest.raises(SpaceExhausted):
        owner.put("a", b"x" * 1001)
    with pytest.raises(SpaceExhausted):
        owner.rm("never/there")
    owner.rm("a")
    owner.put("a", b"x" * 900)


def test_the_size_that_a_record_names_counts_before_the_value_is_there(owner, monkeypatch):
    monkeypatch.setattr(tables, "OWNER_BYTES_MAX", 2 * VALUE_BYTES_MAX)
    table = OwnerTable()
    take(table, owner.record("a", size_bytes=VALUE_BYTES_MAX))
    with pytest.raises(SpaceExhausted):
        table.takes(owner.record("b", size_bytes=VALUE_BYTES_MAX))


def test_the_oldest_tombstone_makes_room_for_a_new_one(owner, monkeypatch):
    monkeypatch.setattr(tables, "TOMBSTONES_MAX", 2)
    for path in ("a", "b", "c"):
        owner.put(path)
        owner.rm(path)
    assert set(owner.table.rows) == {"b", "c"}


# Cursors


def test_no_live_record_is_looked_at_for_the_oldest_tombstone(owner, monkeypatch):
    """With ten thousand older ones it took 7 ms, for each record that is taken."""
    for number in range(20):
        owner.put(f"x/{number}")
    owner.put("y")
    owner.rm("y")
    monkeypatch.setattr(tables, "TOMBSTONES_MAX", 1)
    looked_at = []
    monkeypatch.setattr(Row, "deleted", property(looked_at.append))
    assert owner.table.oldest_tombstone("x/1") == "y"
    assert looked_at == []


def test_a_cursor_gets_what_is_above_it_in_order(owner):
    for path in ("x/a", "y/b", "x/c", "x/a"):
        owner.put(path)
    assert owner.table.after(X, 0, 9) == ["x/c", "x/a"]
    assert owner.table.after(X, 3, 9) == ["x/a"]
    assert owner.table.after(X, 0, 1) == ["x/c"]
    assert owner.table.after("nodes", 0, 9) == []
    assert owner.table.last == 4
    assert OwnerTable().last == 0


# Heads


def test_golden_hash_of_a_section():
    ids = {path: bytes.fromhex(record) for path, record in GOLDEN["rows"].items()}
    assert section_hash(ids).hex() == GOLDEN["section_hash"]
    assert section_hash(dict(reversed(ids.items()))) == section_hash(ids)
    assert section_hash({}) is None
    for path, name in GOLDEN["sections"].items():
        assert section_of(path) == name


def test_a_replica_that_has_all_proves_a_head(owner):
    owner.put("x/a")
    owner.put("y/b")
    owner.rm("x/a")
    owner.put("x/c")
    table = OwnerTable()
    for signed in owner.sent:
        take(table, signed)
    head = owner.head()
    assert table.prove(X, head, {})
    assert table.cursors.get(X, 0) == 4
    assert table.cursors.get(section_of("y"), 0) == 0


@pytest.mark.parametrize("hidden", range(4))
def test_a_hidden_record_or_tombstone_shows(owner, hidden):
    for path in ("x/a", "x/b", "x/c"):
        owner.put(path)
    owner.rm("x/a")
    table = OwnerTable()
    for number, signed in enumerate(owner.sent):
        if number != hidden:
            take(table, signed)
    # The first record was deleted later: who never had it lacks nothing.
    assert table.prove(X, owner.head(), {}) == (hidden == 0)


def test_fault_6_what_is_held_is_complete_only_by_the_owners_head(owner):
    """There, all that one's clock was above counted as complete."""
    table = OwnerTable()
    owner.put("x/a")
    take(table, owner.put("x/b"))
    assert table.cursors.get(X, 0) == 0
    assert not table.prove(X, owner.head(), {})


def test_a_section_is_proven_without_the_rest(owner):
    for path in ("allocation/state", "allocation/recognition", "nodes/address", "allocation"):
        owner.put(path)
    head = owner.head()
    for section in ("allocation/recognition", "nodes", section_of("allocation"), X):
        table = OwnerTable()
        for signed in owner.sent:
            if section_of(signed.record.path) == section:
                take(table, signed)
        assert owner.table.show(section) == Proven(head, {})
        assert table.prove(section, head, {})
        assert not OwnerTable().prove("nodes", head, {})


def test_what_changed_since_a_head_does_not_keep_it_from_being_proven(owner):
    for path in ("x/a", "x/b", "x/c", "y/d"):
        owner.put(path)
    head = owner.head()
    owner.put("x/a")
    owner.rm("x/b")
    owner.put("x/e")
    owner.put("x/a")
    table = OwnerTable()
    for path in owner.table.after(X, 0, 99):
        signed = next(sent for sent in reversed(owner.sent) if sent.record.path == path)
        take(table, signed)
    shown = owner.table.show(X)
    assert not table.prove(X, head, {})
    assert table.prove(X, head, shown.before)
    assert table.show(X) == shown


def test_a_replica_cannot_pass_a_hidden_path_off_as_changed(owner):
    """It would say that a path was live at the head, for a record that it keeps back."""
    hidden = owner.put("x/a").id
    take(table := OwnerTable(), owner.put("x/b"))
    head = owner.head()
    assert not table.prove(X, head, {"x/a": hidden})
    take(table, owner.put("x/a"))
    assert table.prove(X, head, {"x/a": hidden, "x/b": bytes(32)})  # x/b has not changed


def test_a_replica_passes_a_head_on(owner):
    for path in ("x/a", "x/b", "y"):
        owner.put(path)
    head = owner.head()
    relay, end = OwnerTable(), OwnerTable()
    for signed in owner.sent[:2]:
        take(relay, signed)
        take(end, signed)
    assert relay.prove(X, head, {})
    passed = relay.show(X)
    assert end.prove(X, passed.head, passed.before)
    assert relay.show(section_of("y")) is None


def test_an_older_head_than_the_proven_one_says_nothing(owner):
    owner.put("x/a")
    old = owner.head()
    owner.put("x/b")
    new = owner.head()
    assert not owner.table.prove(X, old, {})
    assert owner.table.proven[X].head == new


def test_what_was_deleted_does_not_come_back(owner):
    owner.put("x/a")
    owner.put("x/b")
    owner.rm("x/a")
    table = OwnerTable()
    for signed in owner.sent:
        take(table, signed)
    assert table.prove(X, owner.head(), {})
    table.forget("x/a")  # the tombstone
    assert not take(table, owner.sent[0])
    assert live(table) == {"x/b": 2}


def test_a_lost_tombstone_is_repaired_from_a_listing(owner):
    for path in ("x/a", "x/b", "x/c", "y"):
        owner.put(path)
    first = owner.head()
    replica = OwnerTable()
    for signed in owner.sent[:2]:
        take(replica, signed)
    owner.rm("x/a")
    owner.table.forget("x/a")
    changed = owner.put("x/b")
    head = owner.head()
    assert not replica.prove(X, head, {})
    repair = replica.repair(X, head, owner.listed().items())
    assert repair.drop == ["x/a"]
    assert repair.fetch == {"x/b": changed.id, "x/c": owner.sent[2].id}
    for path in repair.drop:
        replica.forget(path)
    for signed in (changed, owner.sent[2]):
        take(replica, signed)
    assert replica.prove(X, head, {})
    assert first.record.sequence < head.record.sequence


def test_a_head_that_says_the_same_of_a_section_needs_no_other_proof(owner, monkeypatch):
    owner.put("x/a")
    head = owner.head()
    owner.put("x/b")
    later = sign(
        head.record.model_copy(update={"written_ms": head.record.written_ms + 1}),
        owner.key,
        owner.network,
    )
    live_at = OwnerTable.live_at
    monkeypatch.setattr(OwnerTable, "live_at", None)
    assert owner.table.prove(X, later, {})
    assert owner.table.head == later
    monkeypatch.setattr(OwnerTable, "live_at", live_at)
    beyond = later.record.model_copy(update={"sequence": 2})
    assert not owner.table.prove(X, sign(beyond, owner.key, owner.network), {})


def test_a_head_that_says_the_same_as_before_is_not_proven_without_a_path_that_was_dropped(owner):
    """An owner that forks lets a listing deny a path that its next head is over again."""
    owner.put("x/a")
    head = owner.head()
    later = head.record.model_copy(update={"sequence": 3})
    denied = head.record.model_copy(update={"sequence": 2, "sections": ()})
    repair = owner.table.repair(X, sign(denied, owner.key, owner.network), [])
    assert repair.drop == ["x/a"]
    owner.table.forget("x/a")
    assert not owner.table.prove(X, sign(later, owner.key, owner.network), {})
    assert owner.table.cursors[X] == 1


def test_a_dropped_path_leaves_an_older_head_whole(owner):
    one, two = owner.put("x/a").id, owner.put("x/b").id
    owner.head()
    owner.table.forget("x/a")
    assert owner.table.show(X).before == {"x/a": one}
    assert owner.listed() == {"x/a": one, "x/b": two}
    assert owner.table.hash_now(X) == section_hash({"x/b": two})


@pytest.mark.parametrize(
    "listed",
    [[("x/a", 0)], [("x/a", 0), ("x/b", 2)], [("x/a", 0), ("x/b", 1), ("y", 0)], []],
)
def test_a_false_listing_drops_nothing(owner, listed):
    ids = [owner.put("x/a").id, owner.put("x/b").id, bytes(32)]
    head = owner.head()
    rows = [(path, ids[number]) for path, number in listed]
    with pytest.raises(RecordInvalid):
        OwnerTable().repair(X, head, rows)
    assert OwnerTable().repair(X, head, [("x/a", ids[0]), ("x/b", ids[1])]).fetch


def test_without_a_head_nothing_is_shown():
    assert OwnerTable().show(X) is None


# Bounded growth


def test_tombstones_go_when_all_were_told_or_after_their_time(owner):
    for path in ("a", "b"):
        owner.put(path)
        owner.rm(path)
    assert owner.table.old_tombstones(now_ms=TOMBSTONE_KEPT_MS, told=9) == []  # not proven yet
    owner.head()
    owner.put("c")
    owner.rm("c")
    assert owner.table.old_tombstones(now_ms=0, told=0) == []
    assert owner.table.old_tombstones(now_ms=0, told=2) == ["a"]
    assert owner.table.old_tombstones(now_ms=TOMBSTONE_KEPT_MS, told=0) == ["a", "b"]


def test_archived_versions_are_kept_by_number_and_by_age():
    versions = [(sequence, 100 * sequence) for sequence in range(1, 7)]
    assert old_versions(versions, keep_versions=2, keep_ms=0, now_ms=600) == [4, 3, 2, 1]
    assert old_versions(versions, keep_versions=2, keep_ms=350, now_ms=600) == [2, 1]
    assert old_versions(versions, keep_versions=9, keep_ms=0, now_ms=600) == []


def test_every_owner_has_some_bytes_for_sure_and_all_have_a_total():
    most, sure, total = tables.OWNER_BYTES_MAX, tables.OWNER_SURE_BYTES, tables.OTHERS_BYTES_MAX
    assert tables.owner_bytes_max(0, 0) == most
    assert tables.owner_bytes_max(0, total - 2 * most) == most
    assert tables.owner_bytes_max(0, total - 10 * sure) == 5 * sure
    assert tables.owner_bytes_max(3 * sure, total - 7 * sure) == 2 * sure
    assert tables.owner_bytes_max(total // 2, total // 2) == sure
    assert tables.owner_bytes_max(0, total + most) == sure
