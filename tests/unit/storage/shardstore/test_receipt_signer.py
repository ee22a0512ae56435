"""Receipts under one signature: each counts as if signed alone, and nothing else does."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.storage.world import NETWORK, World, content, get, put, receipt_in
from xsc.base.encoding import tagged_sha256
from xsc.base.errors import ReceiptInvalid, RecordInvalid, SignatureInvalid, XscError
from xsc.base.limits import SEALED_RECEIPTS_MAX, SEALS_KEPT
from xsc.identity.envelope import open_signed, sign
from xsc.identity.keys import KeyPair
from xsc.storage.object import messages
from xsc.storage.object.erasure import Code, cut
from xsc.storage.object.receipts import expected_receipt
from xsc.storage.shardstore.receipt_signer import Sealer, Seals
from xsc.terms.receipt_seal import ReceiptSeal

HOST, OTHER = KeyPair(b"h" * 32), KeyPair(b"o" * 32)
ANNA, BERT = b"a" * 32, b"b" * 32
SHARDS = [(3, shard) for shard in cut(content(100), Code())[:2]]


def receipt(number: int, customer: bytes = ANNA, stored_ms: int = 0):
    return expected_receipt(
        host=HOST.node_id,
        customer=customer,
        lease_id=b"l" * 32,
        locate=number.to_bytes(32, "big"),
        generation=0,
        shards=SHARDS,
        manifest=b"m" * 32,
        stored_ms=stored_ms,
    )


async def sealed(count: int, key: KeyPair = HOST):
    sealer = Sealer(key, NETWORK)
    given = (sealer.together(receipt(number, stored_ms=1_000 + number)) for number in range(count))
    return await asyncio.gather(*given)


@pytest.mark.parametrize("count", [1, 2, 7, SEALED_RECEIPTS_MAX, SEALED_RECEIPTS_MAX + 1, 70])
async def test_receipts_of_one_turn_stand_under_one_seal_and_each_holds(count):
    answers = await sealed(count)
    seals = Seals(NETWORK)
    for number, answer in enumerate(answers):
        seals.check(answer, receipt(number))
        assert receipt_in(answer).stored_ms == 1_000 + number
    full, rest = divmod(count, SEALED_RECEIPTS_MAX)
    signatures = {answer["seal"] if "seal" in answer else answer["receipt"] for answer in answers}
    assert len(signatures) == full + bool(rest)
    assert sum("receipt" in answer for answer in answers) == (rest == 1)


async def test_customers_and_turns_share_no_seal():
    sealer = Sealer(HOST, NETWORK)
    answers = await asyncio.gather(
        *(
            sealer.together(receipt(number, customer))
            for number in range(2)
            for customer in (ANNA, BERT)
        )
    )
    seals = [open_signed(answer["seal"], ReceiptSeal, network=NETWORK).record for answer in answers]
    assert [seal.customer for seal in seals] == [ANNA, BERT, ANNA, BERT]
    assert [len(seal.receipts) for seal in seals] == [2] * 4
    with pytest.raises(ReceiptInvalid):
        Seals(NETWORK).check(answers[1], receipt(0, ANNA))
    assert "receipt" in await sealer.together(receipt(9))


async def test_no_receipt_stands_for_another():
    answers = await sealed(3)
    seals = Seals(NETWORK)
    for number, answer in enumerate(answers):
        for other in set(range(3)) - {number}:
            with pytest.raises(ReceiptInvalid, match="locate"):
                seals.check(answer, receipt(other))
    swapped = {**answers[0], "seal": (await sealed(2, OTHER))[0]["seal"]}
    with pytest.raises(SignatureInvalid):
        seals.check(swapped, receipt(0))
    unsealed = {**answers[0], "receipt_body": receipt(7).to_bytes()}
    with pytest.raises(SignatureInvalid, match="does not stand under its seal"):
        seals.check(unsealed, receipt(7))


async def test_whatever_byte_is_changed_nothing_holds():
    answer = (await sealed(2))[1]
    for name in ("receipt_body", "seal"):
        raw = answer[name]
        for place in range(len(raw)):
            changed = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
            with pytest.raises(XscError):
                Seals(NETWORK).check({**answer, name: changed}, receipt(1))


async def test_a_seal_that_names_another_host_is_no_word_of_that_host():
    ids = (receipt(0).id,)
    raw = sign(ReceiptSeal(host=HOST.node_id, customer=ANNA, receipts=ids), OTHER, NETWORK).raw
    answer = {"receipt_body": receipt(0).to_bytes(), "seal": raw}
    seals = Seals(NETWORK)
    with pytest.raises(ReceiptInvalid, match="another host"):
        seals.check(answer, receipt(0).model_copy(update={"host": OTHER.node_id}))
    # Nor later, when the bytes were seen before.
    with pytest.raises(SignatureInvalid):
        seals.check(answer, receipt(0))


@pytest.mark.parametrize("value", [b"", b"\xff", b"\xa0"])
async def test_what_is_no_receipt_is_refused_although_its_hash_is_sealed(value):
    ids = (tagged_sha256("storage_receipt", value),)
    raw = sign(ReceiptSeal(host=HOST.node_id, customer=ANNA, receipts=ids), HOST, NETWORK).raw
    with pytest.raises(RecordInvalid):
        Seals(NETWORK).check({"receipt_body": value, "seal": raw}, receipt(0))


async def test_few_seals_are_remembered():
    seals = Seals(NETWORK)
    sealer = Sealer(HOST, NETWORK)
    for number in range(SEALS_KEPT + 9):
        given = (sealer.together(receipt(number, stored_ms=at)) for at in (1, 2))
        for answer in await asyncio.gather(*given):
            seals.check(answer, receipt(number))
    assert len(seals._known) == SEALS_KEPT


async def test_puts_that_come_together_share_seals_and_are_all_readable():
    world = await World(8).start()
    seen = []
    for host in world.hosts[1:]:

        def note(method, answer):
            if method == messages.PUT:
                seen.append(answer.header)
            return answer

        host.corrupt = note
    done = await asyncio.gather(*(put(world[0], content(1_000 + n)) for n in range(8)))
    assert sum("seal" in header for header in seen) > len(seen) // 2
    for number, one in enumerate(done):
        assert await get(world[0], one.capability) == content(1_000 + number)


async def test_who_asks_for_no_seal_gets_receipts_signed_alone():
    world = await World(3).start()
    headers = []
    for number in range(2):
        locate = bytes([number]) * 32
        lease = world[0].lease_id(world[1].id)
        header, parts = messages.put_message(lease, locate, 0, SHARDS, None)
        header["seal"] = False
        headers.append((header, parts))
    replies = await asyncio.gather(
        *(world[0].call(world[1].id, messages.PUT, header, parts) for header, parts in headers)
    )
    for (header, _), reply in zip(headers, replies, strict=True):
        assert set(reply.header) == {"receipt"}
        assert receipt_in(reply.header).locate == header["locate"]


def test_ids_in_a_seal_are_bounded():
    made = [receipt(number).id for number in range(SEALED_RECEIPTS_MAX + 1)]
    fields = {"v": 1, "host": ANNA, "customer": BERT}
    assert ReceiptSeal.from_value({**fields, "receipts": made[:-1]})
    for wrong in ([], made, [b"short"]):
        with pytest.raises(RecordInvalid):
            ReceiptSeal.from_value({**fields, "receipts": wrong})
