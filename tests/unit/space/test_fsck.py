"""A check of a space's database: it names what is damaged, and nothing else."""

from __future__ import annotations

import pytest

from tests.unit.memory import made_for
from xsc.base.errors import StoreDamaged
from xsc.db.memory import MemoryKeyValue
from xsc.identity.keys import network_id
from xsc.space.replicas import audit
from xsc.space.store import SpaceStore


@pytest.fixture
async def db(alice, network):
    """The database of a node that wrote, replaced, deleted and signed a head."""
    kept = MemoryKeyValue()
    store = SpaceStore(kept, made_for(alice, network), keep_versions=2)
    await store.put_all({"a": b"first", "b": b"x"})
    await store.put_all({"a": b"value"})
    await store.put_all({"b": None})
    await store.sign_head()
    return kept


def test_a_whole_database_has_no_faults(db, network):
    found = audit(db, network=network)
    assert (found.records, found.faults) == (3, ())  # with causality/interval and a tombstone


@pytest.mark.parametrize(
    ("letter", "fault"),
    [
        (b"m", ":a is damaged"),
        (b"v", ":a is damaged: the value is not the one that the record names"),
        (b"p", "a head of "),
        (b"a", "an archived record of the space is damaged"),
        (b"c", "the clock of the space is damaged"),
    ],
)
def test_a_check_names_what_is_damaged(db, network, letter, fault):
    key, raw = next(
        (key, raw) for key, raw in db.scan(letter) if key[33:34] == b"a" or letter in b"pc"
    )
    at = 120 if letter == b"p" else len(raw) - 1  # of a head, in its signature
    changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
    db.write([(key, changed if letter != b"a" else raw[:-1])], sync=True)
    (found,) = audit(db, network=network).faults
    assert fault in found


def test_a_record_at_the_path_of_another_is_found(db, alice, network):
    start = b"m" + alice.node_id
    db.write([(start + b"z", db.get(start + b"a"))], sync=True)
    (found,) = audit(db, network=network).faults
    assert ":z is damaged: it is of another path" in found


def test_records_of_another_network_are_found(db):
    assert len(audit(db, network=network_id("other")).faults) == 4


def test_a_record_that_is_replaced_meanwhile_is_none_that_is_damaged(db, alice, network):
    key = b"m" + alice.node_id + b"a"

    class Moving(MemoryKeyValue):
        """Shows a scan the record that was there when it began."""

        def scan(self, start, stop=None, *, reverse=False):
            for found, raw in db.scan(start, stop, reverse=reverse):
                yield found, raw[:-1] if found == key else raw

        def get(self, key, *, verify=True):
            return db.get(key, verify=verify)

    assert audit(Moving(), network=network).faults == ()


def test_a_database_that_cannot_be_read_is_said_to_be(network):
    class Broken(MemoryKeyValue):
        def scan(self, start, stop=None, *, reverse=False):
            raise StoreDamaged("checksum")
            yield

    (found,) = audit(Broken(), network=network).faults
    assert "cannot be read to its end: checksum" in found
