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
    RECORDS_MAX,
    TOMBSTONE_KEPT_MS,
    UNSUBSCRIBED_KEPT_MS,
    VALUE_BYTES_MAX,
)
from xsc.space.record import SpaceHead, SpaceRecord, value_digest
from xsc.space.table import OwnerTable, Plan, Row, conflict, old_versions
from xsc.space.tree import PathTree, proves, read_levels

GOLDEN = vectors("space")
NOTHING = Plan(put=False)


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
        record = SpaceHead(sequence=self.sequence, written_ms=0, root=self.table.tree.digest())
        head = sign(record, self.key, self.network)
        assert self.table.prove("", head, (), {})
        return head


def take(table, signed):
    plan = table.plan(signed)
    if plan.drop:
        table.forget(plan.drop)
    if plan.put:
        table.put(signed.record.path, Row.of(signed))
    return plan


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
    assert take(table, new) == Plan(put=True)
    assert take(table, new) == take(table, old) == NOTHING
    assert table.plan(owner.record("a", b"newest")) == Plan(put=True, archive=True)


def test_a_deleted_record_is_not_archived_twice(owner):
    table = OwnerTable()
    take(table, owner.record("a"))
    assert take(table, owner.record("a", None)) == Plan(put=True, archive=True)
    assert take(table, owner.record("a")) == Plan(put=True)


def test_of_two_records_under_one_sequence_the_smaller_id_holds_and_both_are_evidence(owner):
    two = sorted(
        (owner.record("a", value, sequence=3) for value in (b"one", b"other")),
        key=lambda signed: signed.id,
    )
    for order in (two, two[::-1]):
        table = OwnerTable()
        take(table, order[0])
        plan = take(table, order[1])
        assert plan.evidence == "a"
        assert not plan.archive
        assert table.rows["a"].id == two[0].id


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("first", [0, 1])
def test_of_two_records_under_one_sequence_the_one_that_a_head_is_over_holds(owner, over, first):
    """Both were proven by one head: the tree was over sequences, and replicas disagreed."""
    two = sorted(
        (owner.record("a", value, sequence=1) for value in (b"one", b"other")),
        key=lambda signed: signed.id,
    )
    take(owner.table, two[over])
    owner.sequence = 1
    head = owner.head()
    table = OwnerTable()
    take(table, two[first])
    if first != over:
        assert not table.prove("", head, (), {})
        repair = table.repair("", head, (), owner.table.listing(""))
        assert repair.fetch == {"a": two[over].id}
        plan = table.plan(two[over], listed=repair)
        assert plan == Plan(put=True, evidence="a")
        table.put("a", Row.of(two[over]))
    assert table.prove("", head, (), {})
    # And the other one does not come back, also where its id is the smaller one.
    assert take(table, two[1 - over]) == Plan(put=False, evidence="a")
    assert table.rows["a"].id == two[over].id
    assert table.show("").head == head.raw


def test_a_head_decides_also_over_a_newer_record_that_it_denies(owner):
    denied = owner.record("a", b"denied", sequence=5)
    put = owner.put("a")
    owner.sequence = 7
    old, head = owner.head(), None
    table = OwnerTable()
    take(table, denied)
    repair = table.repair("", old, (), owner.table.listing(""))
    assert table.plan(put) == NOTHING
    assert table.plan(put, listed=repair).put
    table.put("a", Row.of(put))
    assert table.prove("", old, (), {})
    owner.put("a")
    head = owner.head()
    take(table, owner.sent[-1])
    assert table.prove("", head, (), {})
    assert table.plan(put, listed=repair) == NOTHING  # an older listing decides nothing


def test_a_head_that_a_newer_one_denies_is_shown_no_longer(owner):
    """Two heads of a forked owner; what the newer one says is live, the older one did not have."""
    one, two = (owner.record(path, sequence=number) for number, path in ((1, "a"), (2, "b")))
    take(owner.table, one)
    owner.sequence = 3
    table = OwnerTable()
    take(table, one)
    assert table.prove("", owner.head(), (), {})
    take(owner.table, two := owner.record("b", sequence=4))
    other = Owner(owner.key, owner.network)
    for signed in (one, two := owner.record("b", sequence=2)):
        take(other.table, signed)
    other.sequence = 4
    head = other.head()
    repair = table.repair("", head, (), other.table.listing(""))
    assert table.plan(two, listed=repair).put
    table.put("b", Row.of(two))
    assert table.show("") is None
    assert table.prove("", head, (), {})
    assert table.show("").head == head.raw


def test_ten_thousand_deep_paths_take_few_objects(owner):
    """Each part of a path was an object: 120 MB for the records of one owner."""
    tree = PathTree()
    paths = [
        f"{number:x}/" + "/".join("abcdefghijklmnopqrstuvwxyz1234") for number in range(10_000)
    ]
    for number, path in enumerate(paths):
        tree.set(path, number.to_bytes(32, "big"))
    assert tree.count() <= 2 * len(paths)
    assert len(dict(tree.rows())) == len(paths)
    for path in paths:
        tree.set(path, None)
    assert tree.count() == 1
    assert tree.digest() is None


@pytest.mark.parametrize(
    "level",
    [
        (0, []),
        (bytes(31), []),
        (None, [["a/b", bytes(32)]]),
        (None, [["", bytes(32)]]),
        (None, [["x" * 129, bytes(32)]]),
        (None, [["a", bytes(31)]]),
        (None, [[f"p{number}", bytes(32)] for number in range(RECORDS_MAX + 1)]),
        (bytes(32), [[f"p{number}", bytes(32)] for number in range(RECORDS_MAX)]),
    ],
)
def test_a_proof_that_no_honest_replica_makes_is_refused(level):
    with pytest.raises(RecordInvalid):
        read_levels([[*level]])
    assert read_levels([[None, [["a", bytes(32)]]]]) == ((None, (("a", bytes(32)),)),)


def test_a_head_over_more_records_than_an_owner_may_have_proves_nothing(owner, monkeypatch):
    """A replica that had proven it would show more than others read, and be blamed for that."""
    for path in ("x/a", "x/b", "x/c", "y"):
        owner.put(path)
    head, proof = owner.head(), owner.table.tree.proof("x")
    table = OwnerTable()
    for signed in owner.sent[:3]:
        take(table, signed)
    monkeypatch.setattr(tables, "RECORDS_MAX", 3)
    assert not table.prove("x", head, proof, {})
    monkeypatch.setattr(tables, "RECORDS_MAX", 4)
    assert table.prove("x", head, proof, {})


def test_one_sequence_on_two_paths_is_evidence_too(owner):
    table = OwnerTable()
    take(table, owner.record("a", sequence=3))
    assert take(table, owner.record("b", sequence=3)) == Plan(put=True, evidence="a")


def test_fault_5_a_clock_above_a_record_does_not_make_it_stale(owner):
    """There, a record with a stamp below one's own clock was dropped: 17 to 79 % were lost."""
    table = OwnerTable()
    take(table, owner.record("a", stamp=10**6))
    assert take(table, owner.record("b", stamp=1)).put
    assert take(table, owner.record("a", stamp=2)).put  # below the stamp of what it replaces


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
        table.plan(owner.record("b", size_bytes=VALUE_BYTES_MAX))


def test_the_oldest_tombstone_makes_room_for_a_new_one(owner, monkeypatch):
    monkeypatch.setattr(tables, "TOMBSTONES_MAX", 2)
    for path in ("a", "b", "c"):
        owner.put(path)
        owner.rm(path)
    assert set(owner.table.rows) == {"b", "c"}


# Cursors


def test_a_cursor_gets_what_is_above_it_in_order(owner):
    for path in ("x/a", "y/b", "x/c", "x/a"):
        owner.put(path)
    assert owner.table.after("x", 0, 9) == ["x/c", "x/a"]
    assert owner.table.after("", 0, 9) == ["y/b", "x/c", "x/a"]
    assert owner.table.after("x", 3, 9) == ["x/a"]
    assert owner.table.after("", 0, 1) == ["y/b"]
    assert owner.table.last == 4
    assert OwnerTable().last == 0


def test_a_cursor_copies_no_rows(owner):
    class Uncopied(list):
        def __getitem__(self, at):
            assert not isinstance(at, slice)
            return super().__getitem__(at)

    for path in ("a", "b"):
        owner.put(path)
    owner.table._order = Uncopied(owner.table._order)
    for prefix, after in (("", 0), ("", 1), ("", 2), ("", 2**62), ("none", 0)):
        assert owner.table.after(prefix, after, 1) == (
            ["a", "b"][after : after + 1] if prefix == "" else []
        )


# Heads


def test_golden_hashes_of_a_tree():
    tree = PathTree()
    rows = {path: bytes.fromhex(record) for path, record in GOLDEN["rows"].items()}
    for path, record in rows.items():
        tree.set(path, record)
    assert tree.digest().hex() == GOLDEN["root"]
    assert dict(tree.rows()) == rows
    prefix = GOLDEN["proof"]["prefix"]
    proof = tree.proof(prefix)
    shown = [[at, [[name, digest.hex()] for name, digest in beside]] for at, beside in proof]
    assert shown == GOLDEN["proof"]["levels"]
    part = PathTree()
    for path, record in tree.at(prefix).rows(prefix):
        part.set(path, record)
    root = tree.digest()
    assert proves(root, prefix, part.at(prefix), proof)
    part.set("allocation/recognition/new", bytes(32))
    assert not proves(root, prefix, part.at(prefix), proof)
    assert not proves(root, prefix, tree.at(prefix), ())
    assert not proves(root, "allocation", tree.at(prefix), proof)
    beside = (proof[0], (None, (*proof[1][1], ("recognition", bytes(32)))))
    assert not proves(root, prefix, part.at(prefix), beside)


def test_a_replica_that_has_all_proves_a_head(owner):
    owner.put("x/a")
    owner.put("y/b")
    owner.rm("x/a")
    owner.put("x/c")
    table = OwnerTable()
    for signed in owner.sent:
        take(table, signed)
    head = owner.head()
    assert table.prove("", head, (), {})
    assert table.proven_sequence("x/anything") == 4


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
    assert table.prove("", owner.head(), (), {}) == (hidden == 0)


def test_fault_6_what_is_held_is_complete_only_by_the_owners_head(owner):
    """There, all that one's clock was above counted as complete."""
    table = OwnerTable()
    owner.put("a")
    take(table, owner.put("b"))
    assert table.proven_sequence("b") == 0
    assert not table.prove("", owner.head(), (), {})


def test_a_part_is_proven_without_the_rest(owner):
    for path in ("allocation/state", "allocation/recognition", "nodes/address", "allocation"):
        owner.put(path)
    head = owner.head()
    for prefix in ("allocation/recognition", "nodes", "allocation", "nobody/here", "nodes/more"):
        table = OwnerTable()
        for signed in owner.sent:
            if tables.is_under(signed.record.path, prefix):
                take(table, signed)
        shown = owner.table.show(prefix)
        assert shown.head == head.raw
        assert table.prove(prefix, head, shown.proof, shown.before)
        assert not OwnerTable().prove("allocation", head, (), {})


def test_what_changed_since_a_head_does_not_keep_it_from_being_proven(owner):
    for path in ("x/a", "x/b", "x/c", "y/d"):
        owner.put(path)
    head = owner.head()
    owner.put("x/a")
    owner.rm("x/b")
    owner.put("x/e")
    owner.put("x/a")
    for prefix in ("", "x", "x/a"):
        table = OwnerTable()
        for path in owner.table.after(prefix, 0, 99):
            signed = next(sent for sent in reversed(owner.sent) if sent.record.path == path)
            take(table, signed)
        shown = owner.table.show(prefix)
        assert not prefix or not table.prove(prefix, head, shown.proof, {})
        assert table.prove(prefix, head, shown.proof, shown.before)
        again = table.show(prefix)
        assert again == shown


def test_a_replica_cannot_pass_a_hidden_path_off_as_changed(owner):
    """It would say that a path was live at the head, for a record that it keeps back."""
    hidden = owner.put("a").id
    take(table := OwnerTable(), owner.put("b"))
    head = owner.head()
    assert not table.prove("", head, (), {"a": hidden})
    take(table, owner.put("a"))
    assert table.prove("", head, (), {"a": hidden})


def test_a_replica_passes_a_proof_on(owner):
    for path in ("x/a/1", "x/a/2", "x/b", "y"):
        owner.put(path)
    head = owner.head()
    relay, end = OwnerTable(), OwnerTable()
    for signed in owner.sent:
        if tables.is_under(signed.record.path, "x"):
            take(relay, signed)
        if tables.is_under(signed.record.path, "x/a"):
            take(end, signed)
    shown = owner.table.show("x")
    assert relay.prove("x", head, shown.proof, shown.before)
    passed = relay.show("x/a")
    assert end.prove("x/a", head, passed.proof, passed.before)
    assert relay.show("y") is None
    assert relay.show("") is None


def test_an_older_head_than_the_proven_one_says_nothing(owner):
    owner.put("a")
    old = owner.head()
    owner.put("b")
    new = owner.head()
    assert not owner.table.prove("", old, (), {})
    assert owner.table.proven[""].head == new


def test_what_was_deleted_does_not_come_back(owner):
    owner.put("a")
    owner.put("b")
    owner.rm("a")
    table = OwnerTable()
    for signed in owner.sent:
        take(table, signed)
    assert table.prove("", owner.head(), (), {})
    table.forget("a")  # the tombstone
    assert take(table, owner.sent[0]) == NOTHING
    assert live(table) == {"b": 2}


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
    shown = owner.table.show("x")
    assert not replica.prove("x", head, shown.proof, shown.before)
    repair = replica.repair("x", head, shown.proof, owner.table.listing("x"))
    assert repair.drop == ["x/a"]
    assert repair.fetch == {"x/b": changed.id, "x/c": owner.sent[2].id}
    for path in repair.drop:
        replica.forget(path)
    for signed in (changed, owner.sent[2]):
        take(replica, signed)
    assert replica.prove("x", head, shown.proof, shown.before)
    assert first.record.sequence < head.record.sequence


def test_a_head_that_is_dated_anew_needs_no_other_proof(owner, monkeypatch):
    owner.put("a")
    head = owner.head()
    assert owner.table.prove("", head, (), {})
    owner.put("b")
    later = sign(
        head.record.model_copy(update={"written_ms": head.record.written_ms + 1}),
        owner.key,
        owner.network,
    )
    monkeypatch.setattr(OwnerTable, "_as_of", None)
    assert owner.table.prove("", later, (), {})
    assert owner.table.newest_head() == later


def test_a_dropped_path_leaves_an_older_proof_whole(owner):
    one, two = owner.put("a").id, owner.put("b").id
    head = owner.head()
    owner.table.forget("a")
    assert owner.table.show("").before == {"a": one}
    assert owner.table.prove("", head, (), {}) is False
    assert owner.table.listing("") == [("a", one), ("b", two)]


@pytest.mark.parametrize(
    "listed",
    [[("x/a", 0)], [("x/a", 0), ("x/b", 2)], [("x/a", 0), ("x/b", 1), ("y", 0)], []],
)
def test_a_false_listing_drops_nothing(owner, listed):
    ids = [owner.put("x/a").id, owner.put("x/b").id, bytes(32)]
    head, proof = owner.head(), owner.table.tree.proof("x")
    rows = [(path, ids[number]) for path, number in listed]
    with pytest.raises(RecordInvalid):
        OwnerTable().repair("x", head, proof, rows)
    assert OwnerTable().repair("x", head, proof, [("x/a", ids[0]), ("x/b", ids[1])]).fetch


def test_without_a_proof_nothing_is_listed_or_shown():
    assert OwnerTable().listing("") == []
    assert OwnerTable().show("x") is None


def test_two_heads_of_one_sequence_that_differ_are_evidence(owner):
    owner.put("a")
    one = owner.head().record
    assert not conflict(one, SpaceHead(sequence=1, written_ms=5, root=one.root))
    assert conflict(one, SpaceHead(sequence=1, written_ms=5, root=None))
    assert not conflict(one, SpaceHead(sequence=2, written_ms=5, root=None))


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


def test_what_nobody_subscribes_to_goes_after_a_grace_time(owner):
    for path in ("x/a", "x/b/c", "y"):
        owner.put(path)
    table = owner.table
    ended = {"x": 1_000, "x/b": None}
    assert table.unsubscribed(ended, now_ms=1_000) == ["y"]
    assert table.unsubscribed(ended, now_ms=1_000 + UNSUBSCRIBED_KEPT_MS) == ["x/a", "y"]
    assert len(table.unsubscribed({}, now_ms=0)) == 3
    assert table.unsubscribed({"": None}, now_ms=0) == []


def test_archived_versions_are_kept_by_number_and_by_age():
    versions = [(sequence, 100 * sequence) for sequence in range(1, 7)]
    assert old_versions(versions, keep_versions=2, keep_ms=0, now_ms=600) == [4, 3, 2, 1]
    assert old_versions(versions, keep_versions=2, keep_ms=350, now_ms=600) == [2, 1]
    assert old_versions(versions, keep_versions=9, keep_ms=0, now_ms=600) == []


def test_every_owner_has_some_bytes_for_sure_and_all_have_a_total():
    most, sure, total = tables.OWNER_BYTES_MAX, tables.OWNER_SURE_BYTES, tables.OTHERS_BYTES_MAX
    assert tables.owner_bytes_max(0, 0) == most
    assert tables.owner_bytes_max(7, total - most) == most
    assert tables.owner_bytes_max(2 * sure, total - 5) == 2 * sure + 5
    assert tables.owner_bytes_max(2 * sure, total + 5) == 2 * sure
    assert tables.owner_bytes_max(7, total + most) == sure
