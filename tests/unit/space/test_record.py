"""What an owner signs in its space: golden bytes, and everything that is refused."""

from __future__ import annotations

from base64 import b64decode

import pytest

from tests.strategies import vectors
from xsc.base.encoding import decode, encode
from xsc.base.errors import ClockSkewed, RecordInvalid, SignatureInvalid, TooLarge
from xsc.identity.envelope import Record, open_signed, sign, sign_jointly
from xsc.identity.keys import KeyPair, network_id
from xsc.space.itc import Grant, event_bytes
from xsc.space.limits import FUTURE_MS_MAX, VALUE_BYTES_MAX
from xsc.space.record import (
    SpaceHead,
    SpaceRecord,
    check_value,
    open_dated,
    to_json,
    value_digest,
)

GOLDEN = vectors("space")
KINDS: dict[str, type[Record]] = {kind.KIND: kind for kind in (Grant, SpaceHead, SpaceRecord)}
NOW_MS = 1_700_000_000_000
VALUE = b"what it says"


def made(**changes):
    fields = {
        "path": "a/b",
        "sequence": 7,
        "written_ms": NOW_MS,
        "domain": bytes(32),
        "stamp": event_bytes(3),
        "digest": value_digest(VALUE),
        "size_bytes": len(VALUE),
    }
    return SpaceRecord(**{**fields, **changes})


def opened(raw, owner, network, now_ms=NOW_MS):
    return open_dated(raw, SpaceRecord, owner=owner.node_id, network=network, now_ms=now_ms)


@pytest.mark.parametrize("case", GOLDEN["records"], ids=lambda case: case["kind"])
def test_golden_envelopes(case):
    kind, raw = KINDS[case["kind"]], bytes.fromhex(case["envelope"])
    network, author = bytes.fromhex(GOLDEN["network"]), bytes.fromhex(GOLDEN["author"])
    signed = open_signed(raw, kind, network=network, author=author)
    assert signed.record.to_bytes().hex() == case["body"]
    assert signed.id.hex() == case["id"]
    assert sign(signed.record, KeyPair(bytes.fromhex(GOLDEN["seed"])), network) == signed


def test_the_golden_value_is_the_one_of_the_record():
    raw = bytes.fromhex(GOLDEN["records"][1]["envelope"])
    record = open_signed(raw, SpaceRecord, network=None).record
    value = bytes.fromhex(GOLDEN["value"])
    assert value_digest(value).hex() == GOLDEN["value_digest"]
    assert check_value(record, value) == value
    assert to_json(value) == "17 °C"


def test_a_record_opens_alone_and_with_others(alice, network):
    records = [made(), made(path="a/c", sequence=8)]
    for signed in [sign(records[0], alice, network), *sign_jointly(records, alice, network)]:
        assert opened(signed.raw, alice, network) == signed


def test_nobody_writes_in_the_space_of_another(alice, bob, network):
    signed = sign(made(), bob, network)
    with pytest.raises(SignatureInvalid):
        opened(signed.raw, alice, network)
    claimed = encode({**decode(signed.raw), "by": alice.node_id})
    with pytest.raises(SignatureInvalid):
        opened(claimed, alice, network)


def test_a_record_of_another_network_or_version_is_refused(alice, network):
    with pytest.raises(RecordInvalid):
        opened(sign(made(), alice, network_id("other")).raw, alice, network)
    newer = encode({**made().to_value(), "v": 2})
    raw = encode({**decode(sign(made(), alice, network).raw), "body": newer})
    with pytest.raises((RecordInvalid, SignatureInvalid)):
        opened(raw, alice, network)
    with pytest.raises(RecordInvalid):
        SpaceRecord.from_bytes(newer)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "a//b"},
        {"path": "a/../b"},
        {"path": ""},
        {"sequence": 0},
        {"sequence": -1},
        {"sequence": 2**63},
        {"sequence": True},
        {"written_ms": -1},
        {"domain": bytes(31)},
        {"stamp": b""},
        {"stamp": event_bytes(3) + b"\0"},
        {"stamp": bytes(2**16)},
        {"digest": bytes(31)},
        {"digest": None},
        {"size_bytes": VALUE_BYTES_MAX + 1},
        {"size_bytes": -1},
        {"more": 1},
    ],
)
def test_a_record_that_breaks_its_schema_is_refused(change):
    value = {**made().to_value(), **change}
    with pytest.raises((RecordInvalid, TooLarge)):
        SpaceRecord.from_bytes(encode(value))


def test_a_date_far_ahead_is_refused_and_one_not_so_far_is_taken(alice, network):
    for ahead_ms, fits in ((FUTURE_MS_MAX, True), (FUTURE_MS_MAX + 1, False)):
        record = sign(made(written_ms=NOW_MS + ahead_ms), alice, network).raw
        head = SpaceHead(sequence=1, written_ms=NOW_MS + ahead_ms, sections=())
        said = sign(head, alice, network).raw
        if fits:
            assert opened(record, alice, network)
            assert open_dated(said, SpaceHead, owner=alice.node_id, network=network, now_ms=NOW_MS)
            continue
        with pytest.raises(ClockSkewed):
            opened(record, alice, network)
        with pytest.raises(ClockSkewed):
            open_dated(said, SpaceHead, owner=alice.node_id, network=network, now_ms=NOW_MS)


@pytest.mark.parametrize("value", [VALUE[:-1], VALUE + b"!", b"What it says", b""])
def test_a_value_that_lacks_its_hash_is_refused(value):
    with pytest.raises(RecordInvalid):
        check_value(made(), value)


def test_a_tombstone_has_no_value():
    tombstone = made(digest=None, size_bytes=0)
    for value in (b"", VALUE):
        with pytest.raises(RecordInvalid):
            check_value(tombstone, value)
    assert to_json(None) is None


@pytest.mark.parametrize(
    "change",
    [
        {"sections": [["nodes", bytes(31)]]},
        {"sections": [["nowhere", bytes(32)]]},
        {"sections": [["nodes", bytes(32)], ["nodes", bytes(32)]]},
        {"sections": [["rest/0", bytes(32)], ["nodes", bytes(32)]]},
        {"sections": [["nodes", None]]},
        {"sections": None},
        {"sequence": -1},
        {"v": 2},
    ],
)
def test_a_head_that_breaks_its_schema_is_refused(change):
    value = SpaceHead(sequence=1, written_ms=0, sections=()).to_value()
    with pytest.raises(RecordInvalid):
        SpaceHead.from_value({**value, **change})


@pytest.mark.parametrize(
    "value", [b"", b"text", "é €".encode(), b"\0", b"\xff\xfe", bytes(range(256))]
)
def test_json_shows_text_or_base64(value):
    shown = to_json(value)
    assert isinstance(shown, (str, dict))
    read = shown.encode() if isinstance(shown, str) else b64decode(shown["base64"])
    assert read == value
