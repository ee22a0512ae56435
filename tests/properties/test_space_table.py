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
from xsc.space.paths import SECTIONS, fault_of, section_of, sections_of
from xsc.space.record import (
    SpaceHead,
    SpaceRecord,
    section_hash,
    value_digest,
)
from xsc.space.table import OwnerTable, Row

KEY, NETWORK = KeyPair(b"\xa1" * 32), network_id("test")
PATHS = ("a", "a/b", "a/b/c", "a/c", "nodes", "nodes/a", "compute/a/b")
NAMES = (*map(section_of, ("a", "nodes", "compute/a")), "allocation/state")
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
    if table.takes(record):
        table.put(record.record.path, Row.of(record))


WRITES = st.lists(
    st.tuples(st.sampled_from(PATHS), st.sampled_from([b"v", b"w", None])), min_size=1, max_size=25
)


def head_of(table, sequence):
    """A head over what a table has, signed by its owner."""
    hashes = {section: table.hash_now(section) for section in SECTIONS}
    rows = sorted((section, digest) for section, digest in hashes.items() if digest)
    head = SpaceHead(sequence=sequence, written_ms=0, sections=tuple(rows))
    return sign(head, KEY, NETWORK)


def proves_all(table, head):
    return all(table.prove(section, head, {}) for section in SECTIONS)


def listed(table, section):
    shown = table.show(section)
    return table.live_at(section, shown.head.record.sequence, shown.before)


def history(writes, heads_at):
    """Records of an owner, and its own table with the last head that it signed."""
    table, records, heads = OwnerTable(), [], []
    for number, (path, value) in enumerate(writes, 1):
        records.append(signed(path, number, value))
        take(table, records[-1])
        if number in heads_at or number == len(writes):
            heads.append(head_of(table, number))
            assert proves_all(table, heads[-1])
    return table, records, heads


def at(records, sequence, section):
    """The live paths after so many writes, and the ids of their records."""
    rows = {}
    for record in records[:sequence]:
        rows[record.record.path] = record
    return {
        path: record.id
        for path, record in rows.items()
        if record.record.digest is not None and section_of(path) == section
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
    assert all(
        table.hash_now(section) == tables[0].hash_now(section)
        for table in tables
        for section in NAMES
    )
    assert all(table.size_bytes == tables[0].size_bytes for table in tables)


@given(WRITES, st.sampled_from(NAMES), st.data())
def test_a_head_is_proven_exactly_where_nothing_is_hidden(writes, section, data):
    """Whatever a replica leaves out, a cursor advances only over what is really complete."""
    table, records, (head,) = history(writes, ())
    wanted = [record for record in records if section_of(record.record.path) == section]
    hidden = data.draw(st.sets(st.sampled_from(range(len(wanted)))) if wanted else st.just(set()))
    mine = OwnerTable()
    for number, record in enumerate(wanted):
        if number not in hidden:
            take(mine, record)
    complete = {path: row.id for path, row in mine.rows.items() if not row.deleted} == at(
        records, len(records), section
    )
    assert mine.prove(section, head, table.show(section).before) == complete


@given(WRITES, st.sampled_from(NAMES), st.sets(st.integers(1, 25)), st.data())
def test_a_cursor_advances_also_while_the_owner_goes_on_writing(writes, section, heads_at, data):
    """A replica at any later moment, in any order, shows enough for the last head that it has."""
    sequence = data.draw(st.integers(1, len(writes)))
    table, records, heads = history(writes[:sequence], heads_at)
    for number, (path, value) in enumerate(writes[sequence:], sequence + 1):
        records.append(signed(path, number, value))
        take(table, records[-1])
    mine = OwnerTable()
    missing = table.after(section, 0, 99)
    newest = {record.record.path: record for record in records}
    for path in data.draw(st.permutations(missing)):
        take(mine, newest[path])
    shown = table.show(section)
    assert mine.prove(section, heads[-1], shown.before)
    assert listed(mine, section) == at(records, sequence, section)
    again = mine.show(section)
    end = OwnerTable()
    for path in missing:
        take(end, newest[path])
    assert end.prove(section, heads[-1], again.before)


@given(WRITES, st.sampled_from(NAMES), st.data())
def test_a_repair_ends_in_what_the_head_says(writes, section, data):
    """From any part of the records, and without any tombstone, a listing makes it whole."""
    table, records, (head,) = history(writes, ())
    mine = OwnerTable()
    for record in records:
        if section_of(record.record.path) == section and data.draw(st.booleans()):
            take(mine, record)
    for path in [path for path, row in table.rows.items() if row.deleted]:
        table.forget(path)
    repair = mine.repair(section, head, listed(table, section).items())
    for path in repair.drop:
        mine.forget(path)
    newest = {record.record.path: record for record in records}
    for path in repair.fetch:
        take(mine, newest[path])
    assert mine.prove(section, head, {})
    for record in records:  # and replayed, none of it comes back
        if section_of(record.record.path) == section:
            take(mine, record)
    assert {path: row.id for path, row in mine.rows.items() if not row.deleted} == at(
        records, len(records), section
    )


@given(
    st.dictionaries(st.sampled_from(PATHS), st.sampled_from(IDS)),
    st.dictionaries(st.sampled_from(PATHS), st.sampled_from(IDS)),
)
def test_only_what_a_head_is_over_matches_it(mine, theirs):
    rows = [[path, theirs[path]] for path in sorted(theirs)]
    digest = tagged_sha256("space_section", encode(rows)) if rows else None
    assert (section_hash(mine) == digest) == (mine == theirs)


@given(st.lists(st.sampled_from(["a", "nodes", "cells", "compute", "provenance", "market"])))
def test_a_path_is_in_one_section_and_that_is_one_of_each_prefix(parts):
    path = "/".join(parts)
    for count in range(len(parts) + 1):
        prefix = "/".join(parts[:count])
        assert sections_of(prefix) <= SECTIONS
        assert not path or section_of(path) in sections_of(prefix)


@given(st.text(max_size=30))
def test_every_text_is_a_path_or_has_a_fault(text):
    if fault_of(text) is None:
        assert text.isascii()
        assert all(part not in {"", ".", ".."} for part in text.split("/"))


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
    head = head_of(owner, 6)
    assert proves_all(owner, head)
    newest = {path: at for path, at in owner.rows.items() if not at.deleted}
    for writes in (one, other):
        mine = OwnerTable()
        for write in writes:
            take(mine, signed(*write))
        for section in [name for name in NAMES if not mine.prove(name, head, {})]:
            repair = mine.repair(section, head, listed(owner, section).items())
            for path in repair.drop:
                mine.forget(path)
            for write in own:
                record = signed(*write)
                is_missing = repair.fetch.get(record.record.path) == record.id
                if is_missing and mine.takes(record, listed=repair):
                    mine.put(record.record.path, Row.of(record))
            assert mine.prove(section, head, listed(owner, section))
        for write in (*own, *one, *other):
            take(mine, signed(*write))
        assert {path: row for path, row in mine.rows.items() if not row.deleted} == newest
        for section in NAMES:
            assert mine.hash_now(section) == owner.hash_now(section)
            assert mine.show(section).head == head
