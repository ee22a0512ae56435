"""The directory and its head: what they hold, who opens them, which one counts."""

import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.strategies import vectors
from xsc.base.errors import NotAllowed, RecordInvalid, SignatureInvalid, TooLarge, XscError
from xsc.base.limits import DIRECTORY_HEAD_BYTES_MAX
from xsc.base.merkle import Part, root_of
from xsc.db.memory import MemoryKeyValue
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair, network_id
from xsc.storage.directory import (
    DirectoryHead,
    HeadBody,
    KnownPeer,
    Listed,
    ListedHost,
    body_bytes,
    locate_of,
    make_head,
    newest,
    open_body,
    open_head,
    pack,
    unpack,
)
from xsc.storage.heads import HEAD_GET, HEAD_PUT, Heads

NETWORK = network_id("test")
KEY = KeyPair(b"k" * 32)
HOST = ListedHost(b"n" * 32, b"l" * 32, 7)
OBJECTS = [
    Listed("a/ö", 2, "xsc:r:x", 5, 1000, (HOST, ListedHost(b"m" * 32, b"l" * 32, 0))),
    Listed("", 1, "xsc:r:y", 0, 0, ()),
]
BODY = HeadBody(
    9, (KnownPeer(b"p" * 32, "p", ("127.0.0.1:1",), None, 3, 250_000),), pack(OBJECTS), None
)


def head(generation, body=BODY, key=KEY):
    return make_head(body, generation, key, NETWORK, b"x" * 12)


def test_what_is_packed_comes_out():
    assert unpack(pack(OBJECTS)) == OBJECTS
    assert unpack(pack([])) == []
    assert open_body(open_head(head(4).raw, KEY.node_id, NETWORK).record, KEY) == BODY


def test_the_head_is_sealed_as_its_page_says():
    """Opened with nothing but what docs/design/directory.md says."""

    def derived(use):
        info = b"XSC/1/key/identity/" + use + b"\0"
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(b"k" * 32)

    record = head(4).record
    bound = b"XSC/1/directory-head\0" + (4).to_bytes(8, "big")
    secret = AESGCM(derived(b"directory/head"))
    assert secret.decrypt(record.sealed[:12], record.sealed[12:], bound) == body_bytes(BODY)
    assert record.locate == derived(b"directory/locate") == locate_of(KEY)


def test_formats_of_version_1_are_read_for_ever():
    kept = vectors("directory")
    assert pack(OBJECTS).hex() == kept["directory"]
    assert body_bytes(BODY).hex() == kept["body"]
    raw = bytes.fromhex(kept["head"])
    assert head(4).raw == raw
    assert hashlib.sha256(raw).hexdigest() == kept["sha256"]


def test_every_flipped_byte_of_a_head_is_refused():
    raw = head(4).raw
    for place in range(len(raw)):
        wrong = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        with pytest.raises(XscError):
            open_body(open_head(wrong, KEY.node_id, NETWORK).record, KEY)


def test_every_cut_of_a_directory_is_refused():
    raw = pack(OBJECTS)
    for length in range(len(raw)):
        with pytest.raises(XscError):
            unpack(raw[:length])


def test_a_generation_cannot_be_put_on_another_head():
    moved = head(4).record.model_copy(update={"generation": 5})
    signed = sign(moved, KEY, NETWORK)
    with pytest.raises(RecordInvalid):
        open_body(open_head(signed.raw, KEY.node_id, NETWORK).record, KEY)


def test_nobody_else_opens_it():
    other = KeyPair(b"o" * 32)
    with pytest.raises(RecordInvalid):
        open_body(head(4).record, other)
    with pytest.raises(SignatureInvalid):
        open_head(head(4).raw, other.node_id, NETWORK)


def test_the_highest_generation_that_holds_counts_in_any_order():
    heads = [head(2).raw, head(7).raw, head(3).raw, b"", head(9, key=KeyPair(b"o" * 32)).raw]
    for order in (heads, heads[::-1]):
        best = newest(order, KEY, NETWORK)
        assert best is not None
        assert best[0].record.generation == 7
    assert newest([b"", b"\xff"], KEY, NETWORK) is None


def part(raw):
    return [Part(raw, root_of(raw))]


async def test_a_host_keeps_the_newest_and_gives_it_to_its_owner_alone():
    heads = Heads(NETWORK, MemoryKeyValue()).handlers()
    owner, locate = KEY.node_id, locate_of(KEY)
    assert (await heads[HEAD_GET](owner, {"locate": locate}, []))[0] == {"found": False}
    for generation in (2, 5):
        answer, _ = await heads[HEAD_PUT](owner, {}, part(head(generation).raw))
        assert answer == {"generation": generation}
    await heads[HEAD_PUT](owner, {}, part(head(5).raw))
    other_body = HeadBody(10, (), pack([]), None)
    for late in (head(4), head(5, other_body)):
        with pytest.raises(NotAllowed, match="generation 5"):
            await heads[HEAD_PUT](owner, {}, part(late.raw))
    assert (await heads[HEAD_GET](owner, {"locate": locate}, []))[1] == (head(5).raw,)
    for caller, asked in ((b"o" * 32, locate), (owner, bytes(32))):
        assert (await heads[HEAD_GET](caller, {"locate": asked}, []))[0] == {"found": False}
    with pytest.raises(SignatureInvalid):
        await heads[HEAD_PUT](b"o" * 32, {}, part(head(9).raw))


async def test_what_is_no_head_is_refused():
    handlers = Heads(NETWORK, MemoryKeyValue()).handlers()
    for parts in ([], part(b"x") * 2, part(bytes(DIRECTORY_HEAD_BYTES_MAX + 1)), part(b"x")):
        with pytest.raises((RecordInvalid, TooLarge)):
            await handlers[HEAD_PUT](KEY.node_id, {}, parts)


def test_a_head_says_one_of_both():
    for body in (HeadBody(1, (), None, None), HeadBody(1, (), b"", "xsc:r:x")):
        with pytest.raises(RecordInvalid):
            open_body(head(1, body).record, KEY)
    assert isinstance(head(1).record, DirectoryHead)
