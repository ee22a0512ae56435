"""The directory and its head: what they hold, who opens them, which one counts."""

import asyncio
import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import vectors
from xsc.base.clock import InlineExecutor, ManualClock, SeededEntropy
from xsc.base.encoding import decode, encode, tagged_sha256
from xsc.base.errors import RecordInvalid, SignatureInvalid, TooLarge, XscError
from xsc.base.limits import (
    DIRECTORY_HEAD_BYTES_MAX,
    REMOVED_LISTED_MAX,
    SYNCED_A_PEER_BYTES_MAX,
    SYNCED_MS,
)
from xsc.base.log import SilentLog
from xsc.base.merkle import Part, root_of
from xsc.db.group import GroupCommit
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair, network_id
from xsc.net.calls.costs import COSTS
from xsc.node import directory as keeper
from xsc.storage.catalogue.directory import (
    DirectoryEntry,
    HeadBody,
    make_head,
    open_body,
    open_head,
    pack,
    unpack,
)
from xsc.storage.catalogue.heads import HEAD_GET, HEAD_PUT, HEADS, DirectoryHeadStore
from xsc.storage.object.held import Held

NETWORK = network_id("test")
KEY = KeyPair(b"k" * 32)
HOST = Held(b"n" * 32, b"l" * 32, 7)
OBJECTS = [
    DirectoryEntry("a/ö", 2, "xsc:r:x", 5, 1000, (HOST, Held(b"m" * 32, b"l" * 32, 0))),
    DirectoryEntry("", 1, "xsc:r:y", 0, 0, ()),
]
BODY = HeadBody(
    peers=(b"p", b"q"),
    directory=pack(OBJECTS),
    listed=tagged_sha256("directory", pack(OBJECTS)),
    ledger=b"ledger",
    removed=(b"r" * 32, b"s" * 32),
)


def head(generation, body=BODY, key=KEY):
    return make_head(body, generation, key, NETWORK, b"x" * 12)


def test_what_is_packed_comes_out():
    assert unpack(pack(OBJECTS)) == OBJECTS
    assert unpack(pack([])) == []
    raw = head(4).raw
    assert open_body(open_head(raw, KEY.node_id, NETWORK).record, KEY) == BODY


def test_the_head_is_sealed_as_its_page_says():
    """Opened with nothing but what docs/design/directory.md says."""

    def derived(use):
        info = b"XSC/1/key/identity/" + use + b"\0"
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(b"k" * 32)

    record = head(4).record
    bound = b"XSC/1/directory-head\0" + (4).to_bytes(8, "big")
    secret = AESGCM(derived(b"directory/head"))
    assert secret.decrypt(record.sealed[:12], record.sealed[12:], bound) == BODY.to_bytes()


def test_formats_of_version_1_are_read_for_ever():
    kept = vectors("directory")
    assert pack(OBJECTS).hex() == kept["directory"]
    assert BODY.to_bytes().hex() == kept["body"]
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


def part(raw):
    return [Part(raw, root_of(raw))]


class Host:
    """The heads that one host keeps, and what it writes of them."""

    def __init__(self):
        self.clock = ManualClock()
        self.state = MemoryKeyValue()
        self.group = GroupCommit(self.state, InlineExecutor())
        self.written = []
        ports = (self.clock, SeededEntropy(b""), InlineExecutor(), None, SilentLog())
        heads = DirectoryHeadStore(Context(KEY, NETWORK, *ports, self.state, self.commit))
        self.handlers = heads.handlers()

    async def commit(self, changes):
        self.written += [key for key, _ in changes]
        await self.group.commit(changes)

    async def put(self, raw, caller=KEY.node_id):
        return await self.handlers[HEAD_PUT](caller, {}, part(raw))

    async def get(self, caller=KEY.node_id):
        return await self.handlers[HEAD_GET](caller, {}, [])


async def test_a_host_keeps_the_newest_and_gives_it_to_its_owner_alone():
    host = Host()
    assert await host.get() == ({}, ())
    for generation in (2, 5):
        assert await host.put(head(generation).raw) == ({}, ())
    assert await host.get() == ({}, (head(5).raw,))
    assert await host.get(b"o" * 32) == ({}, ())
    with pytest.raises(SignatureInvalid):
        await host.put(head(9).raw, caller=b"o" * 32)


async def test_a_head_that_is_not_stored_is_answered_with_the_one_that_is_held():
    host = Host()
    await host.put(head(5).raw)
    for late in (head(4), head(5, BODY.model_copy(update={"ledger": b""}))):
        assert await host.put(late.raw) == ({}, (head(5).raw,))
    assert (await host.get())[1] == (head(5).raw,)


async def test_a_head_is_on_the_disk_before_it_is_confirmed_and_written_once():
    host = Host()
    for _ in range(3):
        assert await host.put(head(5).raw) == ({}, ())
        assert host.state.after_crash().get(HEADS + KEY.node_id) == head(5).raw
    await host.put(head(4).raw)
    assert host.written == [HEADS + KEY.node_id]


@given(st.integers(1, DIRECTORY_HEAD_BYTES_MAX), st.integers(0, 10_000))
def test_heads_that_somebody_waits_for_keep_to_what_a_peer_stores(size_bytes, taken_ms):
    pause = keeper.pause_ms(size_bytes, taken_ms)
    heads = SYNCED_MS // pause + 1
    assert heads * COSTS[HEAD_PUT].content(0, size_bytes)[1] <= SYNCED_A_PEER_BYTES_MAX
    assert pause >= 4 * taken_ms


async def test_of_heads_that_come_at_once_the_newest_stays_in_any_order():
    for order in (range(1, 9), range(8, 0, -1), (3, 8, 1, 5, 7, 2, 6, 4)):
        host = Host()
        await asyncio.gather(*(host.put(head(generation).raw) for generation in order))
        assert (await host.get())[1] == (head(8).raw,)


async def test_what_is_no_head_is_refused():
    host = Host()
    for parts in ([], part(b"x") * 2, part(bytes(DIRECTORY_HEAD_BYTES_MAX + 1)), part(b"x")):
        with pytest.raises((RecordInvalid, TooLarge)):
            await host.handlers[HEAD_PUT](KEY.node_id, {}, parts)
    assert host.written == []


def test_a_directory_that_names_a_host_which_is_not_in_its_list_is_refused():
    whole = decode(pack(OBJECTS), size_max=10_000)
    for place in (0, 1):
        for wrong in (len(whole["ids"]), -1, "0"):
            changed = decode(pack(OBJECTS), size_max=10_000)
            changed["objects"][0][5][0][place] = wrong
            with pytest.raises(RecordInvalid):
                unpack(encode(changed))


def test_a_head_lists_so_many_removed_peers_and_each_is_an_id():
    for removed, holds in (
        ((b"r" * 32,) * REMOVED_LISTED_MAX, True),
        ((b"r" * 32,) * (REMOVED_LISTED_MAX + 1), False),
        ((b"r" * 31,), False),
        (("r" * 32,), False),
    ):
        record = head(1, BODY.model_copy(update={"removed": removed})).record
        if holds:
            assert open_body(record, KEY).removed == removed
        else:
            with pytest.raises((RecordInvalid, TooLarge)):
                open_body(record, KEY)
