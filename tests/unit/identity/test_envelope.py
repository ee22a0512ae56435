"""Signed records: what is opened, and everything that is refused."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field, ValidationError

from tests.strategies import vectors
from xsc.base.encoding import decode, encode
from xsc.base.errors import RecordInvalid, SignatureInvalid, TooLarge
from xsc.base.text import with_article
from xsc.identity import envelope as envelopes
from xsc.identity import joint
from xsc.identity.envelope import (
    RECORD_FIELDS_MAX,
    SIGNATURES_KEPT,
    Count,
    Id32,
    Record,
    author_of,
    kind_of,
    open_body,
    open_signed,
    read_claimed,
    sign,
    sign_jointly,
)
from xsc.identity.keys import KeyPair, network_id
from xsc.terms.execution import ExecutionReceipt, Number, Observed, Order, Outcome
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.storage_receipt import DeletionOrder, DeletionReceipt, HeldShard, StorageReceipt
from xsc.terms.voucher import LeaseCount, Voucher

GOLDEN = vectors("envelope")
KINDS: dict[str, type[Record]] = {
    kind.KIND: kind
    for kind in (
        DeletionOrder,
        DeletionReceipt,
        ExecutionReceipt,
        HeldShard,
        Lease,
        LeaseCount,
        LeaseRequest,
        Number,
        Observed,
        Order,
        Outcome,
        StorageReceipt,
        Voucher,
    )
}


class Note(Record):
    KIND: ClassVar[str] = "note"

    text: Annotated[str, Field(max_length=100)]
    count: Count = 0
    about: Id32 | None = None
    lines: tuple[str, ...] = ()


class Letter(Record):
    """The same fields under another kind."""

    KIND: ClassVar[str] = "letter"

    text: Annotated[str, Field(max_length=100)]
    count: Count = 0
    about: Id32 | None = None
    lines: tuple[str, ...] = ()


class NewNote(Note):
    """What a later release may write."""

    KIND: ClassVar[str] = "note"
    VERSION: ClassVar[int] = 2

    v: int = 2


NOTE = Note(text="hello", count=3, about=bytes(32), lines=("a", "b"))


@pytest.mark.parametrize("case", GOLDEN["records"], ids=lambda case: case["kind"])
def test_golden_envelopes(case):
    """The bytes were made without this package; they never change for one version."""
    kind, raw = KINDS[case["kind"]], bytes.fromhex(case["envelope"])
    network, author = bytes.fromhex(GOLDEN["network"]), bytes.fromhex(GOLDEN["author"])
    assert network == network_id("xsc")
    signed = open_signed(raw, kind, network=network, author=author)
    assert signed.record.to_bytes().hex() == case["body"]
    assert signed.id.hex() == signed.record.id.hex() == case["id"]
    assert (signed.author, signed.network, signed.raw) == (author, network, raw)
    key = KeyPair(bytes.fromhex(GOLDEN["seed"]))
    assert sign(signed.record, key, network) == signed


def test_every_kind_has_a_vector():
    assert {case["kind"] for case in GOLDEN["records"]} == set(KINDS)


def test_what_was_signed_is_opened(alice, network):
    signed = sign(NOTE, alice, network)
    assert open_signed(signed.raw, Note, network=network, author=alice.node_id) == signed
    assert open_signed(signed.raw, Note, network=None).record == NOTE
    assert kind_of(signed.raw) == "note"
    assert author_of(signed.raw) == alice.node_id
    body = open_body(signed.raw, "note", network=network, author=alice.node_id)
    assert body == NOTE.to_bytes()


def test_a_record_is_never_made_in_another_version():
    for version in (0, 2):
        with pytest.raises(ValidationError, match="known here is 1"):
            Note(text="", v=version)


def test_what_is_signed_together_opens_alone(alice, network):
    notes = [NOTE.model_copy(update={"count": number}) for number in range(5)]
    for note, signed in zip(notes, sign_jointly(notes, alice, network), strict=True):
        assert decode(signed.raw)["v"] == 2
        assert open_signed(signed.raw, Note, network=network, author=alice.node_id) == signed
        assert read_claimed(signed.raw, Note, network=network) == signed
        assert signed.record == note
    assert sign_jointly([NOTE], alice, network) == [sign(NOTE, alice, network)]


WAYS = [
    {"place": -1},
    {"place": 4},
    {"place": True},
    {"place": "0"},
    {"path": []},
    {"path": b"p" * 32},
    {"path": [b"p" * 31, b"p" * 32]},
    {"path": [b"p" * 33, b"p" * 33]},
    {"path": [b"p" * 32, 1]},
    {"path": [1, 2]},
    {"path": [b"p" * 32] * (joint.PATH_MAX + 1)},
]


@pytest.mark.parametrize("change", WAYS, ids=str)
def test_a_path_to_the_signature_has_one_form(alice, network, change):
    raw = sign_jointly([NOTE, NOTE, NOTE, NOTE], alice, network)[1].raw
    wrong = encode({**decode(raw), **change})
    with pytest.raises(RecordInvalid, match="path to the signature is malformed"):
        read_claimed(wrong, Note, network=network)


def test_the_longest_path_is_read(alice, network):
    raw = sign_jointly([NOTE, NOTE], alice, network)[1].raw
    path = [b"p" * 32] * joint.PATH_MAX
    for place in (0, 2**joint.PATH_MAX - 1):
        long = encode({**decode(raw), "path": path, "place": place})
        assert read_claimed(long, Note, network=network).record == NOTE


@pytest.mark.parametrize("version", [0, 1, 3, True, "2", None])
def test_a_joint_envelope_of_another_version_is_refused(alice, network, version):
    raw = sign_jointly([NOTE, NOTE], alice, network)[0].raw
    with pytest.raises(RecordInvalid, match="known here is 2"):
        author_of(encode({**decode(raw), "v": version}))


def test_an_id_has_32_bytes_and_the_first_fault_is_named():
    value = NOTE.to_value()
    for size in (31, 33):
        with pytest.raises(RecordInvalid, match="wrong at about"):
            Note.from_value({**value, "about": bytes(size)})
    with pytest.raises(RecordInvalid, match="wrong at text"):
        Note.from_value({**value, "text": "x" * 101, "about": b"", "count": -1})


def test_every_changed_bit_is_refused_also_where_the_record_was_verified(alice, network):
    raw = sign(NOTE, alice, network).raw
    open_signed(raw, Note, network=network)
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((RecordInvalid, SignatureInvalid)):
            open_signed(bytes(changed), Note, network=None)
    assert open_signed(raw, Note, network=network).record == NOTE


def test_a_signature_that_does_not_hold_is_refused_each_time(alice, network):
    value = decode(sign(NOTE, alice, network).raw)
    assert isinstance(value, dict)
    raw = encode({**value, "sig": bytes(64)})
    for _ in range(3):
        with pytest.raises(SignatureInvalid):
            open_signed(raw, Note, network=network)


def test_few_verified_signatures_are_remembered(alice, network):
    open_signed(sign(NOTE, alice, network).raw, Note, network=network)
    info = envelopes._verify_once.cache_info()
    assert 0 < info.currsize <= info.maxsize == SIGNATURES_KEPT


def test_every_shortened_or_lengthened_envelope_is_refused(alice, network):
    raw = sign(NOTE, alice, network).raw
    for size in range(len(raw)):
        with pytest.raises(RecordInvalid):
            open_signed(raw[:size], Note, network=network)
    with pytest.raises(RecordInvalid):
        open_signed(raw + b"\0", Note, network=network)


def test_another_author_is_refused(alice, bob, network):
    with pytest.raises(SignatureInvalid, match="another node"):
        open_signed(sign(NOTE, bob, network).raw, Note, network=network, author=alice.node_id)


def test_another_network_is_refused(alice, network):
    with pytest.raises(RecordInvalid, match="another network"):
        open_signed(sign(NOTE, alice, network).raw, Note, network=network_id("other"))


def test_a_kind_has_its_article():
    assert with_article("execution_receipt") == "an execution_receipt"
    assert with_article("lease") == "a lease"


def test_another_kind_is_refused(alice, network):
    with pytest.raises(RecordInvalid, match="expected a letter, this is a note"):
        open_signed(sign(NOTE, alice, network).raw, Letter, network=network)


def envelope(signed_raw: bytes, **changes: Any) -> bytes:
    value = decode(signed_raw)
    assert isinstance(value, dict)
    return encode({**value, **changes})


def test_a_signature_does_not_pass_to_another_kind_network_or_author(alice, bob, network):
    raw = sign(NOTE, alice, network).raw
    other = network_id("other")
    for changed, kind, net in [
        (envelope(raw, kind="letter"), Letter, network),
        (envelope(raw, net=other), Note, other),
        (envelope(raw, by=bob.node_id), Note, network),
        (envelope(raw, body=NOTE.model_copy(update={"count": 4}).to_bytes()), Note, network),
    ]:
        with pytest.raises(SignatureInvalid):
            open_signed(changed, kind, network=net)


def test_a_newer_version_is_named(alice, network):
    raw = sign(NOTE, alice, network).raw
    with pytest.raises(RecordInvalid, match="envelope is of version 2, known here is 1") as caught:
        open_signed(envelope(raw, v=2), Note, network=network)
    assert "newer xsc" in caught.value.hint
    newer = sign(NewNote(text="hello"), alice, network)
    with pytest.raises(RecordInvalid, match="note is of version 2, known here is 1") as caught:
        open_signed(newer.raw, Note, network=network)
    assert "newer xsc" in caught.value.hint


@pytest.mark.parametrize("version", [0, 2, True, "1", None, b"\1"])
def test_every_other_version_of_a_record_is_refused(version):
    with pytest.raises(RecordInvalid, match="version"):
        Note.from_value({**NOTE.to_value(), "v": version})


@pytest.mark.parametrize(
    "changes",
    [
        {"v": True},
        {"kind": b"note"},
        {"net": bytes(31)},
        {"net": "x" * 32},
        {"by": bytes(33)},
        {"sig": bytes(63)},
        {"body": "text"},
        {"body": None},
        {"extra": 1},
    ],
    ids=str,
)
def test_malformed_envelopes_are_refused(changes, alice, network):
    with pytest.raises(RecordInvalid):
        open_signed(envelope(sign(NOTE, alice, network).raw, **changes), Note, network=network)


@pytest.mark.parametrize("raw", [b"", b"\xa0", b"\x80", b"\x01", encode({"v": 1})])
def test_what_is_no_envelope_is_refused(raw, network):
    for attempt in (lambda: open_signed(raw, Note, network=network), lambda: kind_of(raw)):
        with pytest.raises(RecordInvalid):
            attempt()


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"text": "x" * 101}, "text"),
        ({"text": b"hello"}, "text"),
        ({"text": None}, "text"),
        ({"count": -1}, "count"),
        ({"count": 2**63}, "count"),
        ({"count": True}, "count"),
        ({"count": "3"}, "count"),
        ({"about": bytes(31)}, "about"),
        ({"about": "x" * 32}, "about"),
        ({"lines": "ab"}, "lines"),
        ({"lines": [1]}, "lines.0"),
        ({"unknown": 1}, "unknown"),
    ],
    ids=str,
)
def test_a_broken_schema_is_refused_and_the_field_named(changes, place):
    with pytest.raises(RecordInvalid, match=f"this note is wrong at {place}: "):
        Note.from_value({**NOTE.to_value(), **changes})


def test_a_missing_field_and_a_list_are_refused():
    with pytest.raises(RecordInvalid, match="wrong at text"):
        Note.from_value({"v": 1})
    with pytest.raises(RecordInvalid, match="about is missing"):
        Note.from_value({"v": 1, "text": "", "count": 0, "lines": []})
    with pytest.raises(RecordInvalid, match="must be a map"):
        Note.from_value([1])


def test_a_correctly_signed_body_must_still_fit_the_schema(alice, network):
    class Loose(Record):
        KIND: ClassVar[str] = "note"

        text: int
        count: int = 0
        about: None = None
        lines: tuple[str, ...] = ()

    with pytest.raises(RecordInvalid, match="wrong at text"):
        open_signed(sign(Loose(text=1), alice, network).raw, Note, network=network)


def test_the_size_is_bounded(alice, network):
    raw = sign(NOTE, alice, network).raw
    open_signed(raw, Note, network=network, size_max=len(raw))
    with pytest.raises(TooLarge):
        open_signed(raw, Note, network=network, size_max=len(raw) - 1)
    with pytest.raises(TooLarge):
        kind_of(raw, size_max=len(raw) - 1)


def test_records_are_frozen_and_strict():
    with pytest.raises(ValidationError):
        NOTE.text = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Note(text="x", count=1.0)  # type: ignore[arg-type]
    assert Note.from_bytes(NOTE.to_bytes()) == NOTE
    assert isinstance(Note.from_bytes(NOTE.to_bytes()).lines, tuple)


def kinds() -> list[type[Record]]:
    found, rest = [], [Record]
    while rest:
        below = rest.pop().__subclasses__()
        found += below
        rest += below
    return found


class Many(Record):
    KIND: ClassVar[str] = "many"

    rows: Annotated[tuple[tuple[Id32, Count], ...], Field(max_length=3)]
    inner: tuple[HeldShard, ...] = ()


@pytest.mark.parametrize("field", ["rows", "inner"])
def test_a_list_is_read_to_its_first_wrong_item(field):
    """An error takes six microseconds, and whoever sends a list writes a million of them."""
    wrong = {"rows": (), "inner": ()} | {field: tuple(range(1_000))}
    with pytest.raises(ValidationError) as caught:
        Many.model_validate(wrong)
    assert caught.value.error_count() == 1
    with pytest.raises(RecordInvalid, match=rf"wrong at {field}\.0"):
        Many.from_value({"v": 1, "rows": [], "inner": []} | {field: [*range(1_000)]})


def test_a_map_of_more_fields_than_any_record_has_is_refused_by_its_size():
    fields = {f"f{number}": 0 for number in range(RECORD_FIELDS_MAX)}
    for value in ({"v": 1, "rows": [], **fields}, {"v": 1, "rows": [{"more": 1, **fields}]}):
        with pytest.raises(RecordInvalid, match="more than 64 fields"):
            Many.from_value({"inner": [], **value})


def test_no_kind_of_record_names_every_wrong_item_of_a_list():
    wrong = (object(),) * 100
    for kind in kinds():
        for field in kind.model_fields:
            value = dict.fromkeys(kind.model_fields) | {field: wrong}
            with pytest.raises(ValidationError) as caught:
                kind.model_validate(value)
            # A union has some errors more.
            assert caught.value.error_count() <= 3 * len(kind.model_fields)
