"""The pipes of a sandbox process, which may say anything, in any pieces, or nothing."""

from __future__ import annotations

import asyncio
import os
import select
import sys

import pytest

from xsc.base.errors import SandboxFailed
from xsc.compute.worker.process import HELD_BYTES, ProcessLost, spawn

HELLO = """
import os, sys
from xsc.compute.worker import frames
def say(raw):
    while raw:
        raw = raw[os.write(1, raw):]
hello = frames.to_frame(frames.hello_message("engine", bytes(32), {}))
"""


async def started(program: str):
    return await spawn([sys.executable, "-I", "-c", HELLO + program], "test")


async def test_messages_come_in_any_pieces_and_several_at_once():
    process = await started("""
for byte in hello:
    say(bytes([byte]))
one, two = (frames.to_frame({"n": n}) for n in (1, 2))
say(one + two + b"raw" + one[:3])
sys.stdin.buffer.read(1)
say(one[3:])
""")
    assert [await process.receive() for _ in range(2)] == [{"n": 1}, {"n": 2}]
    assert await process.receive_bytes(3) == b"raw"
    await process.send({})
    assert await process.receive() == {"n": 1}
    with pytest.raises(ProcessLost, match="it ended"):
        await process.receive()
    assert await process.end() == 0


async def test_what_a_process_leaves_in_its_group_ends_with_it():
    process = await started("""
say(hello)
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.close(1)
    os.write(writer, b"x")
    import time
    time.sleep(600)
os.read(reader, 1)
say(frames.to_frame({"child": child}))
sys.stdin.buffer.raw.read(1)
os._exit(3)
""")
    child = int(str((await process.receive())["child"]))
    watched = os.pidfd_open(child)
    await process.send({})
    await process.pipes.exited
    # Readable once it has ended.
    assert await asyncio.to_thread(select.select, [watched], [], [], 10) == ([watched], [], [])
    os.close(watched)
    assert await process.kill() == 3


async def test_a_process_that_was_waited_for_is_not_signalled_again(monkeypatch):
    process = await started("say(hello)")
    await process.pipes.exited
    # Its number may be another's by now.
    struck: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, _: struck.append(pid))
    process.strike()
    assert await process.kill() == 0
    assert await process.end() == 0
    assert struck == []


async def test_what_nobody_waits_for_is_not_held_without_bound():
    process = await started("""
say(hello)
say(bytes(50_000_000))
say(b"end")
""")
    assert await process.receive_bytes(1) == b"\0"
    await asyncio.wait([process.pipes.exited], timeout=0.2)
    assert not process.pipes.exited.done()
    assert len(process.pipes.said) <= HELD_BYTES + 2**20
    assert await process.receive_bytes(49_999_999 + 3) == bytes(49_999_999) + b"end"
    assert await process.end() == 0


async def test_a_process_that_does_not_listen_is_lost_and_one_that_only_waits_is_not():
    process = await started("""
say(hello)
os.close(0)
say(frames.to_frame({}))
sys.stdin = None
import signal; signal.pause()
""")
    await process.receive()
    with pytest.raises(ProcessLost):
        await process.send({"much": bytes(2**24)})
    with pytest.raises(ProcessLost):
        await process.send({})
    assert await process.kill() < 0
    process = await started("say(hello); import signal; signal.pause()")
    telling = asyncio.create_task(process.send({"much": bytes(2**24)}))
    await asyncio.wait([telling], timeout=0.1)
    assert not telling.done()
    await process.kill()
    with pytest.raises(ProcessLost):
        await telling


async def test_what_says_no_hello_does_not_start():
    for program in ("", "say(b'x')", "say(frames.to_frame({}))", "say(b'\\xff' * 8)"):
        with pytest.raises(SandboxFailed, match="a sandbox test does not start"):
            await started(program)
