"""Records under one signature: each can be shown alone, and none says more than was signed."""

from __future__ import annotations

from typing import ClassVar

import pytest

from tests.strategies import vectors
from xsc.base.encoding import decode, encode
from xsc.base.errors import RecordInvalid, SignatureInvalid
from xsc.base.limits import JOINT_RECORDS_MAX
from xsc.identity import joint
from xsc.identity.envelope import Record, kind_of, open_signed, sign, sign_jointly
from xsc.identity.keys import KeyPair

GOLDEN = vectors("joint")


class Note(Record):
    KIND: ClassVar[str] = "note"

    text: str


class Observed(Record):
    KIND: ClassVar[str] = "observed"

    started_ms: int
    wall_ms: int


def notes(count):
    return [Note(text=str(number)) for number in range(count)]


def changed(raw, **fields):
    value = decode(raw)
    value.update(fields)
    return encode(value)


@pytest.mark.parametrize("case", GOLDEN["joint"], ids=lambda case: str(case["count"]))
def test_golden_joint_envelopes(case):
    key, network = KeyPair(bytes.fromhex(GOLDEN["seed"])), bytes.fromhex(GOLDEN["network"])
    records = [Observed(started_ms=1_700_000_000_000 + n, wall_ms=n) for n in range(case["count"])]
    signed = sign_jointly(records, key, network)
    for shown in case["shown"]:
        raw = bytes.fromhex(shown["envelope"])
        assert signed[shown["place"]].raw == raw
        opened = open_signed(raw, Observed, network=network, author=key.node_id)
        assert opened == signed[shown["place"]]
        assert kind_of(raw) == "observed"
        message = joint.message_of(network, bytes.fromhex(case["root"]))
        assert key.sign(message) == decode(raw)["sig"]


@pytest.mark.parametrize("count", range(2, JOINT_RECORDS_MAX + 1))
def test_each_of_any_number_opens_alone(count, alice, network):
    for record, signed in zip(
        notes(count), sign_jointly(notes(count), alice, network), strict=True
    ):
        opened = open_signed(signed.raw, Note, network=network, author=alice.node_id)
        assert opened == signed
        assert opened.record == record
        assert opened.id == sign(record, alice, network).id


def test_one_alone_is_signed_as_ever(alice, network):
    (note,) = notes(1)
    assert sign_jointly([note], alice, network) == [sign(note, alice, network)]


def test_no_bit_can_be_flipped(alice, network):
    raw = sign_jointly(notes(5), alice, network)[3].raw
    for place in range(len(raw) * 8):
        bad = bytearray(raw)
        bad[place // 8] ^= 1 << place % 8
        with pytest.raises((RecordInvalid, SignatureInvalid)):
            open_signed(bytes(bad), Note, network=network, author=alice.node_id)


def test_a_signature_holds_for_the_records_under_it_alone(alice, bob, network):
    signed = sign_jointly(notes(6), alice, network)
    other = Note(text="another").to_bytes()
    first, second = decode(signed[0].raw), decode(signed[1].raw)
    for wrong in (
        changed(signed[0].raw, body=other),
        changed(signed[0].raw, body=second["body"]),
        changed(signed[0].raw, place=1),
        changed(signed[0].raw, path=second["path"]),
        changed(signed[0].raw, path=first["path"][:-1]),
        changed(signed[0].raw, path=[*first["path"], bytes(32)]),
        changed(signed[0].raw, by=bob.node_id),
        changed(signed[0].raw, kind="letter"),
        changed(signed[0].raw, net=bytes(32)),
    ):
        with pytest.raises((RecordInvalid, SignatureInvalid)):
            open_signed(wrong, Note, network=network)
        with pytest.raises((RecordInvalid, SignatureInvalid)):
            open_signed(wrong, Note, network=network)  # nor the second time
    alone = decode(sign(notes(1)[0], alice, network).raw)
    with pytest.raises(SignatureInvalid):  # a signature of one record is none of a tree
        open_signed(changed(signed[0].raw, sig=alone["sig"]), Note, network=network)


@pytest.mark.parametrize(
    "fields",
    [
        {"v": 1},
        {"v": 3},
        {"v": True},
        {"place": -1},
        {"place": 4},
        {"place": True},
        {"place": "0"},
        {"path": []},
        {"path": b"\0" * 32},
        {"path": [b"\0" * 31, b"\0" * 32]},
        {"path": ["0" * 32]},
        {"path": [b"\0" * 32] * (joint.PATH_MAX + 1)},
        {"more": 1},
    ],
)
def test_a_malformed_way_is_refused(fields, alice, network):
    raw = sign_jointly(notes(3), alice, network)[0].raw
    with pytest.raises(RecordInvalid):
        open_signed(changed(raw, **fields), Note, network=network)
    short = {name: item for name, item in decode(raw).items() if name != "place"}
    with pytest.raises(RecordInvalid):
        open_signed(encode(short), Note, network=network)
