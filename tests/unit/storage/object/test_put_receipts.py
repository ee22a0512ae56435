"""Receipts for puts: each holds for what was sent, whether it shares a signature or not."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.storage.world import NETWORK, World, content, get, put, receipt_in
from xsc.base.encoding import decode, encode
from xsc.base.errors import ReceiptInvalid, SignatureInvalid, XscError
from xsc.identity.batch_signer import BatchSigner
from xsc.identity.envelope import Record, sign
from xsc.identity.keys import KeyPair
from xsc.storage.object import messages
from xsc.storage.object.erasure import Code, cut
from xsc.storage.object.receipts import check_receipt, named
from xsc.terms.storage_receipt import StorageReceipt

HOST, OTHER = KeyPair(b"h" * 32), KeyPair(b"o" * 32)
ANNA = b"a" * 32
SHARDS = [(3, shard) for shard in cut(content(100), Code())[:2]]


def receipt(number: int, stored_ms: int = 0):
    return StorageReceipt(
        host=HOST.node_id,
        customer=ANNA,
        lease_id=b"l" * 32,
        locate=number.to_bytes(32, "big"),
        generation=0,
        shards=named(SHARDS),
        manifest=b"m" * 32,
        stored_ms=stored_ms,
    )


async def answers(count: int, key: KeyPair = HOST):
    signer = BatchSigner(key, NETWORK)
    given = (signer.sign(receipt(number, 1_000 + number)) for number in range(count))
    return [{"receipt": signed.raw} for signed in await asyncio.gather(*given)]


@pytest.mark.parametrize("count", [1, 2, 7, 33, 70])
async def test_each_receipt_of_a_batch_holds(count):
    for number, answer in enumerate(await answers(count)):
        check_receipt(answer, receipt(number), NETWORK)
        assert receipt_in(answer).stored_ms == 1_000 + number


async def test_no_receipt_stands_for_another():
    signed = await answers(3)
    for number, answer in enumerate(signed):
        for other in set(range(3)) - {number}:
            with pytest.raises(ReceiptInvalid, match="locate"):
                check_receipt(answer, receipt(other), NETWORK)
    with pytest.raises(SignatureInvalid):
        check_receipt((await answers(2, OTHER))[0], receipt(0), NETWORK)
    moved = decode(signed[0]["receipt"]) | {"body": receipt(7).to_bytes()}
    with pytest.raises(SignatureInvalid):
        check_receipt({"receipt": encode(moved)}, receipt(7), NETWORK)


async def test_whatever_byte_is_changed_nothing_holds():
    raw = (await answers(2))[1]["receipt"]
    for place in range(len(raw)):
        changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        with pytest.raises(XscError):
            check_receipt({"receipt": changed}, receipt(1), NETWORK)


class Bytes(Record):
    """Signs any bytes as the body of a receipt."""

    KIND = "storage_receipt"
    raw: bytes

    def to_bytes(self) -> bytes:
        return self.raw


@pytest.mark.parametrize("value", [b"", b"\xff", b"\xa0"])
def test_what_is_no_receipt_is_refused_although_the_host_signed_it(value):
    answer = {"receipt": sign(Bytes(raw=value), HOST, NETWORK).raw}
    with pytest.raises(XscError, match=r"CBOR|stored_ms"):
        check_receipt(answer, receipt(0), NETWORK)


async def test_puts_that_come_together_share_signatures_and_are_all_readable():
    world = await World(8).start()
    seen = []
    for host in world.hosts[1:]:

        def note(method, answer):
            if method == messages.PUT:
                seen.append(answer.header)
            return answer

        host.corrupt = note
    done = await asyncio.gather(*(put(world[0], content(1_000 + n)) for n in range(8)))
    assert len({decode(header["receipt"])["sig"] for header in seen}) < len(seen) // 2
    for number, one in enumerate(done):
        assert await get(world[0], one.capability) == content(1_000 + number)
