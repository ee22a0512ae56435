"""Keys against RFC 8032 and RFC 5869, and what must not verify."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from xsc.base.encoding import domain
from xsc.base.errors import ArgumentInvalid, SignatureInvalid
from xsc.base.ids import is_strong, node_id_from_text, to_text
from xsc.identity.keys import KeyPair, derive, network_id, verify

ORDER = 2**252 + 27742317777372353535851937790883648493

RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e3970"
            "1cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613"
            "d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760"
            "984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_the_vectors_of_rfc_8032(seed, public, message, signature):
    key = KeyPair(bytes.fromhex(seed))
    assert key.node_id.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    verify(key.node_id, bytes.fromhex(signature), bytes.fromhex(message))


def test_a_signature_holds_for_one_author_and_one_message(alice, bob):
    signature = alice.sign(b"message")
    verify(alice.node_id, signature, b"message")
    for author, message in [(alice, b"massage"), (bob, b"message"), (alice, b"")]:
        with pytest.raises(SignatureInvalid):
            verify(author.node_id, signature, message)


def test_every_changed_bit_of_a_signature_is_refused(alice):
    signature = alice.sign(b"message")
    for bit in range(512):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureInvalid):
            verify(alice.node_id, bytes(changed), b"message")


def test_a_second_form_of_the_same_signature_is_refused(alice):
    """S plus the group's order satisfies the equation; RFC 8032 bounds S, so ids stay unique."""
    signature = alice.sign(b"message")
    scalar = int.from_bytes(signature[32:], "little") + ORDER
    with pytest.raises(SignatureInvalid):
        verify(alice.node_id, signature[:32] + scalar.to_bytes(32, "little"), b"message")


@pytest.mark.parametrize("node_id", [b"", b"short", bytes(31), bytes(33), b"\xff" * 32])
def test_what_is_no_public_key_verifies_nothing(node_id, alice):
    with pytest.raises(SignatureInvalid):
        verify(node_id, alice.sign(b"message"), b"message")


@pytest.mark.parametrize("size", [0, 1, 63, 65])
def test_a_signature_of_another_length_is_refused(size, alice):
    with pytest.raises(SignatureInvalid):
        verify(alice.node_id, bytes(size), b"message")


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_seed_has_one_length(size):
    with pytest.raises(SignatureInvalid, match="32 bytes"):
        KeyPair(bytes(size))


def hkdf(secret: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869 with SHA-256 and no salt, written from the RFC."""
    key = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    out = block = b""
    for count in range(1, -(-size // 32) + 1):
        block = hmac.new(key, block + info + bytes([count]), hashlib.sha256).digest()
        out += block
    return out[:size]


@pytest.mark.parametrize("size", [16, 32, 33, 100])
def test_derived_keys_are_hkdf_under_a_domain_tag(size):
    assert derive(b"secret", "use", size) == hkdf(b"secret", domain("key/use"), size)


def test_every_use_and_every_identity_has_its_own_key(alice, bob):
    keys = {alice.derive("a"), alice.derive("b"), bob.derive("a"), derive(alice.seed, "a")}
    assert len(keys) == 4
    assert alice.derive("a") == KeyPair(alice.seed).derive("a")


def test_the_secret_is_not_in_the_text_of_a_key(alice):
    assert alice.seed.hex()[:16] not in repr(alice)
    assert alice.node_id.hex()[:8] in repr(alice)


def test_networks_are_told_apart_by_name():
    assert network_id("xsc") == hashlib.sha256(b"XSC/1/network\0xsc").digest()
    assert len({network_id(name) for name in ("xsc", "XSC", "xsc ", "")}) == 4


# Keys of small order

FIELD = 2**255 - 19
CURVE_D = -121665 * pow(121666, -1, FIELD) % FIELD


def point_of(y: int, sign: int) -> tuple[int, int] | None:
    """Return the point of edwards25519 with that y and that sign of x (RFC 8032, 5.1.3)."""
    square = (y * y - 1) * pow(CURVE_D * y * y + 1, -1, FIELD) % FIELD
    x = pow(square, (FIELD + 3) // 8, FIELD)
    if x * x % FIELD != square:
        x = x * pow(2, (FIELD - 1) // 4, FIELD) % FIELD
    if x * x % FIELD != square:
        return None
    # With x = 0 the sign is not looked at: decoders that are not strict take it so.
    return (FIELD - x if x & 1 != sign else x) % FIELD, y % FIELD


def sum_of(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    (x1, y1), (x2, y2) = one, other
    product = CURVE_D * x1 * x2 * y1 * y2 % FIELD
    return (
        (x1 * y2 + x2 * y1) * pow(1 + product, -1, FIELD) % FIELD,
        (y1 * y2 + x1 * x2) * pow(1 - product, -1, FIELD) % FIELD,
    )


def times(factor: int, point: tuple[int, int]) -> tuple[int, int]:
    total = (0, 1)
    while factor:
        if factor & 1:
            total = sum_of(total, point)
        point, factor = sum_of(point, point), factor >> 1
    return total


def small_encodings() -> list[bytes]:
    """Return every 32 bytes that decode to one of the eight points of small order."""
    points = {
        times(ORDER, point)
        for y in range(2, 40)
        for sign in (0, 1)
        if (point := point_of(y, sign)) is not None
    }
    assert len(points) == 8
    ys = {y for _, y in points}
    wide = [y for y in range(FIELD, 2**255) if y - FIELD in ys]
    return [(y | sign << 255).to_bytes(32, "little") for y in [*ys, *wide] for sign in (0, 1)]


SMALL = small_encodings()


def test_the_small_encodings_are_all_that_there_are():
    assert len(set(SMALL)) == 14
    assert {
        times(8, point_of(int.from_bytes(raw, "little") & (2**255 - 1), 0)) for raw in SMALL
    } == {(0, 1)}


@pytest.mark.parametrize("raw", SMALL, ids=bytes.hex)
def test_a_key_of_small_order_signs_nothing(raw):
    """With R = A^-k and S = 0 a signature fits every k that a point of order 8 does not tell."""
    for shown in SMALL:
        for message in (b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"):
            with pytest.raises(SignatureInvalid):
                verify(raw, shown + bytes(32), message)


@pytest.mark.parametrize("raw", SMALL, ids=bytes.hex)
def test_a_key_of_small_order_is_no_node_id(raw):
    with pytest.raises(ArgumentInvalid, match="no node"):
        node_id_from_text(to_text(raw))


def test_a_key_has_one_form():
    """A y of the field's size or more stands for another one: it would be a second id."""
    for y in range(FIELD, 2**255):
        for sign in (0, 1):
            raw = (y | sign << 255).to_bytes(32, "little")
            assert not is_strong(raw)
    assert is_strong(KeyPair(bytes(32)).node_id)
