"""What is signed in one moment has one signature, and each its own fate."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest

from xsc.base.encoding import decode
from xsc.base.errors import RecordInvalid
from xsc.base.limits import JOINT_RECORDS_MAX
from xsc.compute.jobs.batch_signer import Notary
from xsc.identity.envelope import Record, open_signed, sign


class Note(Record):
    KIND: ClassVar[str] = "note"

    text: str


@pytest.fixture
def notary(alice, network):
    return Notary(alice, network)


def notes(count):
    return [Note(text=str(number)) for number in range(count)]


async def test_what_is_signed_in_one_turn_has_one_signature(notary, alice, network):
    given = notes(JOINT_RECORDS_MAX + 3)
    signed = await asyncio.gather(*(notary.sign(note, jointly=True) for note in given))
    assert len({decode(each.raw)["sig"] for each in signed}) == 2
    for note, each in zip(given, signed, strict=True):
        assert open_signed(each.raw, Note, network=network, author=alice.node_id).record == note


async def test_one_alone_and_one_for_who_cannot_read_others_are_signed_as_ever(
    notary, alice, network
):
    note, other = notes(2)
    assert await notary.sign(note, jointly=True) == sign(note, alice, network)
    both = await asyncio.gather(notary.sign(note, jointly=True), notary.sign(other, jointly=False))
    assert both == [sign(note, alice, network), sign(other, alice, network)]


async def test_what_cannot_be_signed_fails_alone(notary):
    bad = Note.model_construct(v=1, text="\ud800")
    good, fault, last = await asyncio.gather(
        *(notary.sign(note, jointly=True) for note in (*notes(1), bad, *notes(1))),
        return_exceptions=True,
    )
    assert good == last
    assert isinstance(fault, RecordInvalid)


async def test_who_has_gone_is_not_signed_for(notary):
    first, second = (asyncio.create_task(notary.sign(note, jointly=True)) for note in notes(2))
    await asyncio.sleep(0)
    first.cancel()
    assert decode((await second).raw)["v"] == 1
    assert (await asyncio.gather(first, return_exceptions=True))[0].__class__ is (
        asyncio.CancelledError
    )
