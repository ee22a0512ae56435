"""What is signed in one moment has one signature, and each its own fate."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest

from xsc.base.encoding import decode
from xsc.base.errors import RecordInvalid
from xsc.base.limits import JOINT_RECORDS_MAX
from xsc.identity.batch_signer import BatchSigner
from xsc.identity.envelope import Record, open_signed, sign


class Note(Record):
    KIND: ClassVar[str] = "note"

    text: str


@pytest.fixture
def signer(alice, network):
    return BatchSigner(alice, network)


def notes(count):
    return [Note(text=str(number)) for number in range(count)]


async def test_what_is_signed_in_one_turn_has_one_signature(signer, alice, network):
    given = notes(JOINT_RECORDS_MAX + 3)
    signed = await asyncio.gather(*(signer.sign(note) for note in given))
    assert len({decode(each.raw)["sig"] for each in signed}) == 2
    for note, each in zip(given, signed, strict=True):
        assert open_signed(each.raw, Note, network=network, author=alice.node_id).record == note


async def test_one_alone_is_signed_by_itself(signer, alice, network):
    (note,) = notes(1)
    assert await signer.sign(note) == sign(note, alice, network)


async def test_what_cannot_be_signed_fails_alone(signer):
    bad = Note.model_construct(v=1, text="\ud800")
    good, fault, last = await asyncio.gather(
        *(signer.sign(note) for note in (*notes(1), bad, *notes(1))),
        return_exceptions=True,
    )
    assert good == last
    assert isinstance(fault, RecordInvalid)


async def test_who_has_gone_is_not_signed_for(signer):
    first, second = map(signer.sign, notes(2))
    first.cancel()
    assert decode((await second).raw)["v"] == 1
    assert (await asyncio.gather(first, return_exceptions=True))[0].__class__ is (
        asyncio.CancelledError
    )
