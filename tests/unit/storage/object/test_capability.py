import pytest

from tests.strategies import vectors
from xsc.base.encoding import tagged_sha256
from xsc.base.errors import CapabilityInvalid
from xsc.base.ids import to_text
from xsc.storage.object.capability import (
    TEXT_CHARS,
    ReadCapability,
    VerifyCapability,
    parse,
    parse_read,
    parse_verify,
)

CASES = vectors("capability")["cases"]
READ = ReadCapability(b"s" * 32, b"h" * 32)


@pytest.mark.parametrize("case", CASES)
def test_keys_and_texts_are_the_pinned_ones(case):
    read = ReadCapability(bytes.fromhex(case["read_secret"]), bytes.fromhex(case["manifest_hash"]))
    verify = read.verify
    assert read.content_key.hex() == case["content_key"]
    assert verify.verify_key.hex() == case["verify_key"]
    assert verify.manifest_key.hex() == case["manifest_key"]
    assert verify.locate.hex() == case["locate"]
    assert read.to_text() == case["read"]
    assert verify.to_text() == case["verify"]
    assert parse(case["read"]) == read
    assert parse(case["verify"]) == verify


@pytest.mark.parametrize("text", [READ.to_text(), READ.verify.to_text()])
def test_every_changed_character_is_refused(text):
    for index in range(len(text)):
        for other in "ab7x:A1 é":
            if other == text[index]:
                continue
            with pytest.raises(CapabilityInvalid):
                parse(text[:index] + other + text[index + 1 :])


@pytest.mark.parametrize("text", [READ.to_text(), READ.verify.to_text()])
def test_every_length_but_its_own_is_refused(text):
    assert len(text) == TEXT_CHARS
    for size in range(len(text)):
        with pytest.raises(CapabilityInvalid):
            parse(text[:size])
    for more in ("a", "aa", "\n", " "):
        with pytest.raises(CapabilityInvalid):
            parse(text + more)
        with pytest.raises(CapabilityInvalid):
            parse(more + text)


def test_swapped_neighbours_are_refused():
    text = READ.to_text()
    for index in range(len(text) - 1):
        if text[index] != text[index + 1]:
            with pytest.raises(CapabilityInvalid):
                parse(text[:index] + text[index + 1] + text[index] + text[index + 2 :])


def test_a_capability_of_one_kind_does_not_pass_for_another():
    with pytest.raises(CapabilityInvalid, match="mistyped"):
        parse(READ.to_text().replace("xsc:r:", "xsc:v:"))


def test_a_newer_version_is_named():
    payload = bytes([2]) + bytes(99)
    check = tagged_sha256("capability", b"xsc:r:", payload)[:4]
    with pytest.raises(CapabilityInvalid, match="version 2"):
        parse("xsc:r:" + to_text(payload + check))


def test_a_checksum_of_nothing_is_refused():
    check = tagged_sha256("capability", b"xsc:r:", b"")[:4]
    with pytest.raises(CapabilityInvalid):
        parse("xsc:r:" + to_text(check))


def test_a_cut_capability_says_how_long_it_should_be():
    with pytest.raises(CapabilityInvalid, match=str(TEXT_CHARS)):
        parse(READ.to_text()[:-8])


def test_a_verify_capability_does_not_read():
    with pytest.raises(CapabilityInvalid, match="not read"):
        parse_read(READ.verify.to_text())
    assert parse_read(READ.to_text()) == READ


def test_a_read_capability_verifies_too():
    assert parse_verify(READ.to_text()) == parse_verify(READ.verify.to_text()) == READ.verify


def test_secrets_are_not_in_the_repr():
    assert "sss" not in repr(READ)
    assert "kkk" not in repr(VerifyCapability(b"k" * 32, b"h" * 32))
