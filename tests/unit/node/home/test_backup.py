"""The form of a backup: what is written is read, and nothing else is."""

import json
from pathlib import Path

import pytest

from xsc.base.errors import HomeInvalid, IdentityInvalid, StoreDamaged, XscError
from xsc.identity.keys import KeyPair
from xsc.node.home.backup import (
    BODY,
    FILE,
    FRAME_BYTES,
    MAGIC,
    SPACE,
    STATE,
    Entry,
    Head,
    Reader,
    frames,
    seal_of,
)

VECTORS = json.loads((Path(__file__).parents[3] / "vectors" / "backup.json").read_text())
KEY = KeyPair(bytes(range(32)))
PASSPHRASE = "correct horse"
SECRETS = {"nothing": {}, "passphrase": {"passphrase": PASSPHRASE}, "identity": {"key": KEY}}
"""By what seals a backup."""
ENTRIES = [
    Entry(FILE, b"format", b"1\n"),
    Entry(STATE, b"storage/object/x", b"an entry"),
    Entry(STATE, b"z", b""),
    Entry(BODY, b"b\0\1", bytes(100)),
]


def head(seal, network="xsc"):
    return Head(
        node=KEY.node_id,
        network=network,
        created_ms=1_700_000_000_000,
        seal=seal,
        salt=bytes(16),
    )


def made(seal, entries=ENTRIES):
    top = head(seal)
    return b"".join(frames(top, entries, seal_of(top, **SECRETS[seal])))


def read(raw, block_bytes=7, **secrets):
    blocks = (raw[at : at + block_bytes] for at in range(0, len(raw), block_bytes))
    reader = Reader(blocks)
    return list(reader.entries(seal_of(reader.head, **secrets)))


@pytest.mark.parametrize("seal", ["nothing", "passphrase", "identity"])
def test_backups_of_version_1_are_read_and_written(seal):
    raw = bytes.fromhex(VECTORS[seal])
    assert made(seal) == raw
    assert head("nothing").to_bytes() == bytes.fromhex(VECTORS["head"])
    assert read(raw, **SECRETS[seal]) == ENTRIES


@pytest.mark.parametrize("seal", SECRETS)
@pytest.mark.parametrize("given", SECRETS)
def test_what_a_given_secret_does_not_seal_is_refused(seal, given):
    if given in {seal, "nothing"}:
        return
    with pytest.raises(IdentityInvalid, match="not sealed by the key or passphrase"):
        read(made(seal), **SECRETS[given])


def test_rows_of_the_space_are_between_those_of_the_state_and_the_bodies():
    entries = [*ENTRIES[:3], Entry(SPACE, b"m" + bytes(32) + b"a/b", b"a record"), ENTRIES[3]]
    raw = bytes.fromhex(VECTORS["space"])
    assert made("nothing", entries) == raw
    assert read(raw) == entries


def test_records_may_be_larger_than_frames_and_blocks_of_any_size():
    entries = [Entry(BODY, bytes([n]), bytes([n]) * size) for n, size in enumerate(SIZES)]
    raw = made("nothing", entries)
    for block_bytes in (4096, FRAME_BYTES, len(raw)):
        assert read(raw, block_bytes) == entries


SIZES = (0, FRAME_BYTES - 10, 1, 3 * FRAME_BYTES, FRAME_BYTES)


@pytest.mark.parametrize("seal", ["nothing", "identity"])
def test_every_flipped_byte_is_found(seal):
    raw = made(seal)
    for place in range(len(raw)):
        wrong = bytearray(raw)
        wrong[place] ^= 1 << place % 8
        with pytest.raises((StoreDamaged, HomeInvalid, IdentityInvalid)):
            read(bytes(wrong), **SECRETS[seal])


def test_every_shorter_backup_and_every_longer_one_is_refused():
    raw = made("nothing")
    for size in range(len(raw)):
        with pytest.raises((StoreDamaged, HomeInvalid)):
            read(raw[:size], 64)
    with pytest.raises(StoreDamaged, match="follows its end"):
        read(raw + b"\0")


def test_frames_cannot_change_places_or_backups():
    size = FRAME_BYTES - 10
    entries = [Entry(BODY, b"k", bytes([n]) * size) for n in range(3)]
    for seal in ("nothing", "identity"):
        top = head(seal)
        parts = list(frames(top, entries, seal_of(top, **SECRETS[seal])))
        swapped = b"".join([parts[0], parts[2], parts[1], *parts[3:]])
        with pytest.raises((StoreDamaged, IdentityInvalid)):
            read(swapped, **SECRETS[seal])
        other = head(seal, network="another")
        foreign = next(iter(frames(other, [], seal_of(other, **SECRETS[seal]))))
        with pytest.raises((StoreDamaged, IdentityInvalid)):
            read(b"".join([foreign, *parts[1:]]), **SECRETS[seal])


def test_the_right_secret_is_needed():
    with pytest.raises(IdentityInvalid, match="locked by a passphrase"):
        read(made("passphrase"))
    with pytest.raises(IdentityInvalid, match="wrong, or the backup is damaged"):
        read(made("passphrase"), passphrase="wrong horse")
    with pytest.raises(IdentityInvalid, match="only its node's key"):
        read(made("identity"))
    with pytest.raises(IdentityInvalid, match="another node"):
        read(made("identity"), key=KeyPair(bytes(32)))
    for seal in ("passphrase", "identity"):
        assert b"an entry" not in made(seal)


def test_a_newer_format_is_refused_by_name():
    top = head("nothing").to_bytes()
    newer = top.replace(b"\x61v\x01", b"\x61v\x02")
    assert newer != top
    with pytest.raises(HomeInvalid, match="of version 2, known here is 1"):
        Reader([MAGIC + len(newer).to_bytes(4, "big") + newer])
    strange = top.replace(b"\x67nothing", b"\x67nowhere")
    with pytest.raises(StoreDamaged, match="wrong at seal"):
        Reader([MAGIC + len(strange).to_bytes(4, "big") + strange])
    with pytest.raises(HomeInvalid, match="no backup"):
        Reader([b"something else"])
    with pytest.raises(StoreDamaged):
        Reader([MAGIC + b"\xff\xff\xff\xff"])


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (b"x" + bytes(8), "no known kind or size"),
        (b"s\0\0\x20\0" + bytes(4), "no known kind or size"),
        (b"b" + bytes(4) + b"\x10\0\0\0", "no known kind or size"),
        (b"s\0\0\0\x01\0\0\0\0", "cut short"),
        (b"s\0\0", "cut short"),
    ],
)
def test_records_of_no_known_kind_or_size_are_refused(record, told):
    top = head("nothing")
    opening = next(frames(top, [], seal_of(top)))
    with pytest.raises(StoreDamaged, match=told):
        read(opening + seal_of(top).close(record, last=True))


def test_a_frame_that_is_too_large_is_not_waited_for():
    top = head("nothing").to_bytes()
    raw = MAGIC + len(top).to_bytes(4, "big") + top + (2**31 - 1).to_bytes(4, "big")
    with pytest.raises(StoreDamaged, match="too large"):
        read(raw)


def test_a_backup_can_be_locked_on_its_way():
    def locked(raw):
        reader, top = Reader([raw]), head("passphrase")
        records = reader.entries(seal_of(reader.head))
        return b"".join(frames(top, records, seal_of(top, passphrase=PASSPHRASE)))

    raw = made("nothing")
    assert locked(raw) == made("passphrase")
    with pytest.raises(XscError):
        locked(raw[:-1] + bytes([raw[-1] ^ 1]))


def test_what_is_passed_on_unread_is_whole_as_far_as_frames_tell():
    for seal in ("nothing", "identity"):
        raw = made(seal, [Entry(BODY, b"k", bytes(3 * FRAME_BYTES))])
        assert b"".join(Reader([raw]).whole()) == raw
        with pytest.raises(StoreDamaged, match="cut short"):
            list(Reader([raw[:-1]]).whole())
        with pytest.raises(StoreDamaged, match="follows its end"):
            list(Reader([raw + b"x"]).whole())
