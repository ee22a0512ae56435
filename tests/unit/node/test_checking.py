"""Signatures are checked by processes, and a process that is gone lets no wrong one pass."""

import io
import os
import signal
from pathlib import Path

import pytest

from xsc.identity.keys import KeyPair, first_wrong
from xsc.node import checking

KEY = KeyPair(b"k" * 32)


def signed(count, *wrong):
    items = []
    for number in range(count):
        said = b"%d" % number * number
        signature = KEY.sign(said + b"?" if number in wrong else said)
        items.append((KEY.node_id, signature, said))
    return items


@pytest.mark.parametrize(("wrong", "first"), [((), None), ((0,), 0), ((7, 3), 3)])
async def test_the_first_wrong_signature_is_named(wrong, first):
    items = signed(9, *wrong)
    assert first_wrong(items) == first
    said = io.BytesIO()
    checking.serve(io.BytesIO(checking.frame(items) + checking.frame(signed(2, 1))), said)
    answers = [said.getvalue()[:4], said.getvalue()[4:]]
    assert answers == [
        (checking.NONE if first is None else first).to_bytes(4, "big"),
        (1).to_bytes(4, "big"),
    ]
    async with checking.processes() as check:
        assert await check(items) == first
        assert await check(items) == first


async def test_what_a_killed_process_had_to_check_is_checked():
    async with checking.processes() as check:
        for child in children():
            os.kill(child, signal.SIGKILL)
        assert await check(signed(3, 2)) == 2
        assert await check(signed(3)) is None
    assert not children()


def children():
    said = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    found = [int(word) for word in said.split()]
    return [each for each in found if b"xsc.node.checking" in command(each)]


def command(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()
