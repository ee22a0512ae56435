import hashlib

import pytest

from tests.strategies import vectors
from tests.unit.storage.world import content
from xsc.base.encoding import encode
from xsc.base.errors import RecordInvalid
from xsc.base.limits import MANIFEST_BYTES_MAX, OBJECT_BYTES_MAX, SEGMENT_BYTES
from xsc.storage.object.capability import ReadCapability
from xsc.storage.object.durability import Contract
from xsc.storage.object.erasure import Code, cut
from xsc.storage.object.manifest import (
    Manifest,
    SealedSegment,
    build,
    check_manifest,
    column_digest,
    expected_digest,
    hash_of,
    open_manifest,
    place_of,
    root_at,
    seal_manifest,
    segments_of,
)
from xsc.storage.object.segment import Place, seal

OWNER = b"o" * 32


def sealed_as(nonce, tag, roots):
    return SealedSegment(length=1, nonce=nonce, tag=tag, roots=roots)


def make(size: int):
    """A manifest with a right shape: roots and nonces that follow from their place."""
    if size <= 4096:
        return build(OWNER, Code(), size, [sealed_as(bytes(12), bytes(16), ())], inline=bytes(size))
    count = -(-size // SEGMENT_BYTES)
    parts = [
        sealed_as(
            index.to_bytes(12, "big"),
            bytes(16),
            tuple(bytes([index % 256, column]) * 16 for column in range(6)),
        )
        for index in range(count)
    ]
    return build(OWNER, Code(), size, parts)


@pytest.mark.parametrize("case", vectors("manifest")["cases"])
def test_a_sealed_manifest_has_the_pinned_bytes(case):
    survive = Contract(*case.get("survive", ()))
    value = {name: bytes.fromhex(case[name]) for name in case.keys() - {"survive"}}
    keys = ReadCapability(value["read_secret"], value["manifest_hash"])
    verify, plain = keys.verify, value["object"]
    place = Place(verify.locate, 0, len(plain), final=True)
    ciphertext, tag = seal(keys.content_key, value["segment_nonce"], place, plain)
    if len(plain) <= 4096:
        part, inline = sealed_as(value["segment_nonce"], tag, ()), bytes(ciphertext)
    else:
        roots = tuple(shard.root for shard in cut(ciphertext, Code()))
        part, inline = sealed_as(value["segment_nonce"], tag, roots), None
    manifest = build(value["owner"], Code(), len(plain), [part], inline=inline, survive=survive)
    assert manifest.to_bytes() == value["body"]
    sealed = seal_manifest(manifest, verify.manifest_key, value["manifest_nonce"])
    assert sealed == value["sealed"]
    assert hash_of(sealed) == value["manifest_hash"]
    assert open_manifest(sealed, verify) == manifest


def sealed_with(manifest) -> tuple[bytes, ReadCapability]:
    secret = b"s" * 32
    key = ReadCapability(secret, bytes(32)).verify.manifest_key
    sealed = seal_manifest(manifest, key, b"n" * 12)
    return sealed, ReadCapability(secret, hash_of(sealed))


def test_every_flipped_byte_is_refused():
    sealed, capability = sealed_with(make(5000))
    for index in range(len(sealed)):
        bad = bytearray(sealed)
        bad[index] ^= 1
        with pytest.raises(RecordInvalid):
            open_manifest(bytes(bad), capability.verify)
        # Even for a capability that names the damaged bytes: the seal itself holds.
        renamed = ReadCapability(capability.read_secret, hash_of(bad))
        with pytest.raises(RecordInvalid):
            open_manifest(bytes(bad), renamed.verify)


@pytest.mark.parametrize("size", [0, 11, 12, 27, 28])
def test_too_short_to_be_a_manifest_is_refused(size):
    raw = bytes(size)
    with pytest.raises(RecordInvalid):
        open_manifest(raw, ReadCapability(b"s" * 32, hash_of(raw)).verify)


def test_another_manifest_under_the_same_key_is_refused():
    _, capability = sealed_with(make(5000))
    other, _ = sealed_with(make(5001))
    with pytest.raises(RecordInvalid, match="not the manifest that the capability stands for"):
        open_manifest(other, capability.verify)


def test_another_secret_does_not_open():
    sealed, capability = sealed_with(make(5000))
    with pytest.raises(RecordInvalid):
        open_manifest(sealed, ReadCapability(b"t" * 32, capability.manifest_hash).verify)


@pytest.mark.parametrize(
    "size", [0, 1, 4096, 4097, SEGMENT_BYTES, SEGMENT_BYTES + 1, 10 * SEGMENT_BYTES]
)
def test_a_manifest_that_was_built_keeps_every_rule(size):
    manifest = make(size)
    assert check_manifest(manifest) is None
    sealed, capability = sealed_with(manifest)
    assert open_manifest(sealed, capability.verify) == manifest


@pytest.mark.parametrize(
    ("size", "change", "fault"),
    [
        (5000, {"k": 0}, "code"),
        (5000, {"k": 250, "m": 6}, "code"),
        (5000, {"generation": 2**32}, "generation"),
        (5000, {"segment_bytes": 4096}, "segments have"),
        (5000, {"size_bytes": OBJECT_BYTES_MAX + 1}, "larger"),
        (5000, {"size_bytes": SEGMENT_BYTES + 1}, "2 segments"),
        (5000, {"size_bytes": 4096}, "this small"),
        (5000, {"roots": ()}, "roots"),
        (5000, {"roots": (b"r" * 32,) * 7}, "roots"),
        (5000, {"m": 3}, "roots"),
        (5000, {"nonces": ()}, "nonces"),
        (5000, {"tags": (bytes(16),) * 2}, "tags"),
        (SEGMENT_BYTES + 1, {"nonces": (bytes(12),) * 2}, "twice"),
        (4096, {"inline": bytes(4095)}, "as long"),
        (4096, {"inline": bytes(4097), "size_bytes": 4097}, "too large"),
        (4096, {"roots": (b"r" * 32,) * 6}, "no shards"),
        (4096, {"nonces": ()}, "one nonce"),
        (4096, {"inline": None}, "this small"),
    ],
)
def test_a_broken_rule_is_named(size, change, fault):
    manifest = make(size).model_copy(update=change)
    assert fault in check_manifest(manifest)
    sealed, capability = sealed_with(manifest)
    with pytest.raises(RecordInvalid, match="manifest"):
        open_manifest(sealed, capability.verify)


def test_an_unknown_version_is_refused():
    value = make(5000).to_value() | {"v": 2}
    with pytest.raises(RecordInvalid, match="version"):
        type(make(5000)).from_bytes(encode(value))


@pytest.mark.parametrize(
    "survive", [(), (1,), (1, 1), (1,) * 3, (1,) * 5, (255, 0, 0, 0), (0, -1, 0, 0)]
)
def test_a_contract_of_another_form_is_refused(survive):
    with pytest.raises(RecordInvalid, match="survive"):
        Manifest.from_value({**make(5000).to_value(), "survive": [*survive]})


@pytest.mark.parametrize("survive", [(0, 0, 0, 0), (254, 254, 254, 254), (1, 1, 1, 1)])
def test_a_contract_speaks_of_every_kind(survive):
    value = {**make(5000).to_value(), "survive": [*survive]}
    assert Manifest.from_value(value).survive == survive


@pytest.mark.parametrize(
    ("size", "change"),
    [
        (5000, {"generation": 2**32 - 1}),
        (5000, {"k": 1, "m": 5}),
        (5000, {"k": 6, "m": 0}),
        (5000, {"k": 200, "m": 55, "roots": (b"r" * 32,) * 255}),
        (4096, {"k": 200, "m": 55}),
    ],
)
def test_what_stands_at_a_bound_is_within_it(size, change):
    assert check_manifest(make(size).model_copy(update=change)) is None


def test_the_largest_object_fits_its_bound():
    """What the bound of OBJECT_BYTES_MAX in base/limits counts on."""
    small, large = make(10 * SEGMENT_BYTES), make(110 * SEGMENT_BYTES)
    a_segment = (len(large.to_bytes()) - len(small.to_bytes())) / 100
    assert a_segment <= 250
    assert OBJECT_BYTES_MAX // SEGMENT_BYTES * a_segment + 1024 <= MANIFEST_BYTES_MAX


def test_places_count_to_the_end():
    manifest = make(2 * SEGMENT_BYTES + 7)
    assert segments_of(manifest) == 3
    places = [place_of(manifest, b"l" * 32, index) for index in range(3)]
    assert [place.length for place in places] == [SEGMENT_BYTES, SEGMENT_BYTES, 7]
    assert [place.final for place in places] == [False, False, True]
    assert segments_of(make(9)) == 0
    inline = place_of(make(9), b"l" * 32, 0)
    assert (inline.length, inline.final) == (9, True)


def test_a_digest_stands_for_a_whole_column():
    manifest = make(2 * SEGMENT_BYTES + 7)
    roots = [(index, root_at(manifest, index, 4)) for index in range(3)]
    assert [root for _, root in roots] == [manifest.roots[index * 6 + 4] for index in range(3)]
    assert column_digest(roots) == expected_digest(manifest, 4)
    listed = b"".join(index.to_bytes(8, "big") + root for index, root in roots)
    assert column_digest(roots) == hashlib.sha256(b"XSC/1/column\0" + listed).digest()
    assert column_digest(roots[:2]) != expected_digest(manifest, 4)
    assert column_digest([(index + 1, root) for index, root in roots]) != expected_digest(
        manifest, 4
    )
    assert expected_digest(manifest, 3) != expected_digest(manifest, 4)


def test_content_is_not_in_the_manifest_of_a_verify_capability():
    """Inline data is encrypted under the content key, which a verify capability does not give."""
    plain = content(40)
    secret = b"s" * 32
    keys = ReadCapability(secret, bytes(32))
    ciphertext, tag = seal(
        keys.content_key, b"n" * 12, Place(keys.verify.locate, 0, 40, final=True), plain
    )
    manifest = build(OWNER, Code(), 40, [sealed_as(b"n" * 12, tag, ())], inline=bytes(ciphertext))
    assert plain not in manifest.to_bytes()
