"""Laws of an owner's table: replicas agree, a proven head is true, and nothing comes back."""

from __future__ import annotations

import random
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from xsc.base.encoding import encode, tagged_sha256
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair, network_id
from xsc.space.itc import event_bytes
from xsc.space.paths import fault_of, is_under
from xsc.space.record import SpaceHead, SpaceRecord, from_json, to_json, value_digest
from xsc.space.table import OwnerTable, Row
from xsc.space.tree import PathTree, proves

KEY, NETWORK = KeyPair(b"\xa1" * 32), network_id("test")
PATHS = ("a", "a/b", "a/b/c", "a/c", "b", "b/a", "c/a/b")
PREFIXES = ("", "a", "a/b", "b", "c", "d/e")
EMPTY = event_bytes(0)
IDS = [bytes([number]) * 32 for number in range(3)]


@cache
def signed(path, sequence, value=b"v"):
    record = SpaceRecord(
        path=path,
        sequence=sequence,
        written_ms=0,
        domain=bytes(32),
        stamp=EMPTY,
        digest=None if value is None else value_digest(value),
        size_bytes=len(value or b""),
    )
    return sign(record, KEY, NETWORK)


def take(table, record):
    plan = table.plan(record)
    if plan.put:
        table.put(record.record.path, Row.of(record))
    return plan


WRITES = st.lists(
    st.tuples(st.sampled_from(PATHS), st.sampled_from([b"v", b"w", None])), min_size=1, max_size=25
)


def history(writes, heads_at):
    """Records of an owner, and its own table with the last head that it signed."""
    table, records, heads = OwnerTable(), [], []
    for number, (path, value) in enumerate(writes, 1):
        records.append(signed(path, number, value))
        take(table, records[-1])
        if number in heads_at or number == len(writes):
            head = SpaceHead(sequence=number, written_ms=0, root=table.tree.digest())
            heads.append(sign(head, KEY, NETWORK))
            assert table.prove("", heads[-1], (), {})
    return table, records, heads


def at(records, sequence, prefix):
    """The live paths after so many writes, and the ids of their records."""
    rows = {}
    for record in records[:sequence]:
        rows[record.record.path] = record
    return {
        path: record.id
        for path, record in rows.items()
        if record.record.digest is not None and is_under(path, prefix)
    }


@given(
    st.lists(st.tuples(st.sampled_from(PATHS), st.integers(1, 6), st.sampled_from([b"v", None]))),
    st.integers(0, 2**32),
)
def test_replicas_with_the_same_records_are_equal(writes, seed):
    """Also where the owner signed two under one sequence, and whatever came twice."""
    records = [signed(*write) for write in writes]
    tables = []
    for turn in range(3):
        table = OwnerTable()
        rng = random.Random(seed + turn)
        for record in rng.sample(records * 2, 2 * len(records)):
            take(table, record)
        tables.append(table)
    assert all(table.rows == tables[0].rows for table in tables)
    assert all(table.tree.digest() == tables[0].tree.digest() for table in tables)
    assert all(table.size_bytes == tables[0].size_bytes for table in tables)


@given(WRITES, st.sampled_from(PREFIXES), st.data())
def test_a_head_is_proven_exactly_where_nothing_is_hidden(writes, prefix, data):
    """Whatever a replica leaves out, a cursor advances only over what is really complete."""
    table, records, (head,) = history(writes, ())
    wanted = [record for record in records if is_under(record.record.path, prefix)]
    hidden = data.draw(st.sets(st.sampled_from(range(len(wanted)))) if wanted else st.just(set()))
    mine = OwnerTable()
    for number, record in enumerate(wanted):
        if number not in hidden:
            take(mine, record)
    shown = table.show(prefix)
    complete = {path: row.id for path, row in mine.rows.items() if not row.deleted} == at(
        records, len(records), prefix
    )
    assert mine.prove(prefix, head, shown.proof, shown.before) == complete


@given(WRITES, st.sampled_from(PREFIXES), st.sets(st.integers(1, 25)), st.data())
def test_a_cursor_advances_also_while_the_owner_goes_on_writing(writes, prefix, heads_at, data):
    """A replica at any later moment, in any order, shows enough for the last head that it has."""
    sequence = data.draw(st.integers(1, len(writes)))
    table, records, heads = history(writes[:sequence], heads_at)
    for number, (path, value) in enumerate(writes[sequence:], sequence + 1):
        records.append(signed(path, number, value))
        take(table, records[-1])
    mine = OwnerTable()
    missing = table.after(prefix, 0, 99)
    newest = {record.record.path: record for record in records}
    for path in data.draw(st.permutations(missing)):
        take(mine, newest[path])
    shown = table.show(prefix)
    assert mine.prove(prefix, heads[-1], shown.proof, shown.before)
    assert dict(mine.listing(prefix)) == at(records, sequence, prefix)
    again = mine.show(prefix)
    end = OwnerTable()
    for path in missing:
        take(end, newest[path])
    assert end.prove(prefix, heads[-1], again.proof, again.before)


@given(WRITES, st.sampled_from(PREFIXES), st.data())
def test_a_repair_ends_in_what_the_head_says(writes, prefix, data):
    """From any part of the records, and without any tombstone, a listing makes it whole."""
    table, records, (head,) = history(writes, ())
    mine = OwnerTable()
    for record in records:
        if is_under(record.record.path, prefix) and data.draw(st.booleans()):
            take(mine, record)
    for path in [path for path, row in table.rows.items() if row.deleted]:
        table.forget(path)
    shown = table.show(prefix)
    repair = mine.repair(prefix, head, shown.proof, table.listing(prefix))
    for path in repair.drop:
        mine.forget(path)
    newest = {record.record.path: record for record in records}
    for path in repair.fetch:
        take(mine, newest[path])
    assert mine.prove(prefix, head, shown.proof, shown.before)
    for record in records:  # and replayed, none of it comes back
        if is_under(record.record.path, prefix):
            take(mine, record)
    assert {path: row.id for path, row in mine.rows.items() if not row.deleted} == at(
        records, len(records), prefix
    )


def hash_of(rows, prefix=""):
    """The hash of a node by its definition (T5)."""
    parts = sorted(
        {
            path.removeprefix(prefix and prefix + "/").partition("/")[0]
            for path in rows
            if path != prefix and is_under(path, prefix)
        }
    )
    if prefix not in rows and not parts:
        return None
    below = [[part, hash_of(rows, f"{prefix}/{part}" if prefix else part)] for part in parts]
    return tagged_sha256("space_tree", encode([rows.get(prefix), below]))


@given(
    st.lists(
        st.tuples(st.sampled_from([*PATHS, "d/e/f/g"]), st.sampled_from([None, *IDS])), max_size=40
    )
)
def test_a_tree_changed_step_by_step_is_the_tree_of_its_rows(steps):
    tree, rows = PathTree(), {}
    for path, record in steps:
        tree.set(path, record)
        rows[path] = record
        rows = {path: record for path, record in rows.items() if record}
        assert tree.digest() == hash_of(rows)
        assert tree.count() <= max(1, 2 * len(rows))
        for prefix in PREFIXES:
            assert tree.at(prefix).digest() == hash_of(rows, prefix)
            assert proves(tree.digest(), prefix, tree.at(prefix), tree.proof(prefix))
    assert dict(tree.rows()) == rows


@given(
    st.dictionaries(st.sampled_from(PATHS), st.sampled_from(IDS)),
    st.dictionaries(st.sampled_from(PATHS), st.sampled_from(IDS)),
    st.sampled_from(PREFIXES),
)
def test_only_what_a_head_is_over_matches_it(mine, theirs, prefix):
    one, other = PathTree(), PathTree()
    for tree, rows in ((one, mine), (other, theirs)):
        for path, record in rows.items():
            tree.set(path, record)
    same = {path: at for path, at in mine.items() if is_under(path, prefix)} == {
        path: at for path, at in theirs.items() if is_under(path, prefix)
    }
    assert proves(other.digest(), prefix, one.at(prefix), other.proof(prefix)) == same


@given(st.text(max_size=30))
def test_every_text_is_a_path_or_has_a_fault(text):
    if fault_of(text) is None:
        assert text.isascii()
        assert all(part not in {"", ".", ".."} for part in text.split("/"))


@given(st.binary(max_size=60))
def test_json_gives_every_value_back(value):
    assert from_json(to_json(value)) == value


@given(
    st.lists(
        st.tuples(st.sampled_from(PATHS), st.integers(1, 6), st.sampled_from([b"v", b"w", None]))
    ),
    st.lists(
        st.tuples(st.sampled_from(PATHS), st.integers(1, 6), st.sampled_from([b"v", b"w", None]))
    ),
    st.lists(
        st.tuples(st.sampled_from(PATHS), st.integers(1, 6), st.sampled_from([b"v", b"w", None]))
    ),
)
def test_replicas_of_an_owner_that_forks_end_with_what_its_head_is_over(own, one, other):
    """Whatever else it signed, and in whatever order that came."""
    owner = OwnerTable()
    for write in own:
        take(owner, signed(*write))
    head = sign(SpaceHead(sequence=6, written_ms=0, root=owner.tree.digest()), KEY, NETWORK)
    assert owner.prove("", head, (), {})
    newest = {path: at for path, at in owner.rows.items() if not at.deleted}
    for writes in (one, other):
        mine = OwnerTable()
        for write in writes:
            take(mine, signed(*write))
        if not mine.prove("", head, (), {}):
            repair = mine.repair("", head, (), owner.listing(""))
            for path in repair.drop:
                mine.forget(path)
            for write in own:
                record = signed(*write)
                if repair.fetch.get(record.record.path) == record.id:
                    plan = mine.plan(record, listed=repair)
                    if plan.put:
                        mine.put(record.record.path, Row.of(record))
            assert mine.prove("", head, (), dict(owner.listing("")))
        for write in (*own, *one, *other):
            take(mine, signed(*write))
        assert {path: row for path, row in mine.rows.items() if not row.deleted} == newest
        assert mine.tree.digest() == owner.tree.digest()
        assert mine.show("").head == head.raw
