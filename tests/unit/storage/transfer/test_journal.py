"""The journal of a put, as it lies on the disk."""

import json
from pathlib import Path

import pytest

from xsc.base.errors import StoreDamaged
from xsc.db.memory import MemoryKeyValue
from xsc.storage.object.capability import VerifyCapability, verify_key
from xsc.storage.object.erasure import Code
from xsc.storage.object.held import Held
from xsc.storage.object.manifest import hash_of, open_manifest, segments_of
from xsc.storage.transfer import journal

VECTOR = json.loads((Path(__file__).parents[3] / "vectors" / "journal.json").read_text())
UPLOAD = bytes.fromhex(VECTOR["upload"])
ROWS = {
    row["what"]: (bytes.fromhex(row["key"]), bytes.fromhex(row["value"])) for row in VECTOR["rows"]
}
ONE, OTHER, LEASE = b"\x11" * 32, b"\x22" * 32, b"\x33" * 32


@pytest.fixture
def state():
    store = MemoryKeyValue()
    store.write(list(ROWS.values()), sync=True)
    return store


def test_the_vector_is_read(state):
    kept = journal.read(state, UPLOAD)
    assert kept.head.secret == b"\x44" * 32
    assert kept.code == Code(4, 2)
    assert kept.head.touched_ms == 1_700_000_000_123
    assert kept.nodes == [ONE, OTHER, ONE, OTHER, ONE, OTHER]
    assert kept.segments[5].length == 4 * 2**20
    assert kept.segments[5].roots == tuple(bytes([column]) * 32 for column in range(6))
    verify = VerifyCapability(verify_key(kept.head.secret), hash_of(kept.sealed))
    assert segments_of(open_manifest(kept.sealed, verify)) == 2
    assert kept.held() == {(ONE, LEASE): 2**20, (OTHER, LEASE): 3 * 2**20}
    assert list(journal.uploads(state)) == [UPLOAD]


def test_the_vector_is_written(state):
    kept = journal.read(state, UPLOAD)
    assert journal.segment_change(UPLOAD, 5, kept.segments[5]) == ROWS["segment"]
    place = Held(OTHER, LEASE, 3 * 2**20)
    assert journal.ack_change(UPLOAD, 5, 1, place) == ROWS["ack"]
    assert (journal.HEAD + UPLOAD, kept.head.to_bytes()) == ROWS["head"]
    assert (journal.RECORD + UPLOAD, kept.sealed) == ROWS["record"]


def test_a_segment_is_stored_once_every_present_host_gave_its_receipt(state):
    kept = journal.read(state, UPLOAD)
    assert (kept.whole(), kept.stored_bytes()) == ([], 0)
    hosts = [(2, ONE), (3, OTHER), (4, ONE), (5, OTHER), (0, OTHER), (0, ONE)]
    for column, node in hosts:
        assert kept.whole() == []
        place = Held(node, LEASE, 1)
        state.write([journal.ack_change(UPLOAD, 5, column, place)], sync=True)
        kept = journal.read(state, UPLOAD)
    assert kept.whole() == [5]
    assert kept.stored_bytes() == 4 * 2**20


@pytest.mark.parametrize("what", ROWS)
@pytest.mark.parametrize("harm", ["flipped", "cut", "empty"])
def test_of_a_damaged_journal_every_host_is_known_as_long_as_its_head_is(state, what, harm):
    key, value = ROWS[what]
    flipped = bytes([value[0] ^ 1]) + value[1:]
    state.write([(key, {"flipped": flipped, "cut": value[:-1], "empty": b""}[harm])], sync=True)
    with pytest.raises(StoreDamaged):
        journal.read(state, UPLOAD)
    rest = journal.read_rest(state, UPLOAD)
    if what == "head":
        assert rest is None
    else:
        assert rest.head.secret == b"\x44" * 32
        assert rest.held().keys() == {(ONE, LEASE), (OTHER, LEASE)}


def test_of_a_damaged_journal_the_hosts_without_receipts_are_known_too(state):
    head = journal.read_head(state, UPLOAD).model_copy(update={"places": ()})
    segment, _ = ROWS["segment"]
    changes = [(journal.HEAD + UPLOAD, head.to_bytes()), (ROWS["ack"][0], None), (segment, b"")]
    state.write(changes, sync=True)
    rest = journal.read_rest(state, UPLOAD)
    assert rest.held() == {(ONE, LEASE): 0, (OTHER, LEASE): 0}
    assert journal.read_rest(state, bytes(32)) is None


def test_forgetting_one_upload_leaves_the_others(state):
    other = bytes(32)
    state.write([(key.replace(UPLOAD, other), value) for key, value in ROWS.values()], sync=True)
    state.write(journal.forget(state, UPLOAD), sync=True)
    assert journal.read(state, UPLOAD) is None
    assert list(journal.uploads(state)) == [other]
    assert len(list(state.scan(b""))) == len(ROWS)


@pytest.mark.parametrize("what", sorted(ROWS))
def test_every_flipped_byte_is_read_as_written_or_refused(state, what):
    key, value = ROWS[what]
    for index in range(len(value)):
        wrong = bytearray(value)
        wrong[index] ^= 1
        state.write([(key, bytes(wrong))], sync=True)
        try:
            kept = journal.read(state, UPLOAD)
        except StoreDamaged:
            continue
        assert kept is not None
        assert what != "record", "a manifest that was sealed is refused as a whole"


@pytest.mark.parametrize("what", sorted(ROWS.keys() - {"record"}))
def test_another_version_is_refused(state, what):
    key, value = ROWS[what]
    assert value.count(b"\x61v\x01") >= 1
    state.write([(key, value.replace(b"\x61v\x01", b"\x61v\x02"))], sync=True)
    with pytest.raises(StoreDamaged):
        journal.read(state, UPLOAD)
