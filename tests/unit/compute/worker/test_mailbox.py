"""Code lies where its worker can read it and nobody can change it, and no longer than needed."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import random
from pathlib import Path

import pytest

from xsc.base.limits import MIB, WORKER_FRAME_BYTES_MAX
from xsc.compute.worker.mailbox import Inbox, Mailbox, MailboxClosed

DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture
def mailbox():
    made = Mailbox()
    yield made
    made.close()


def inbox_of(mailbox):
    return Inbox(os.dup(mailbox.reader))


def held_bytes(mailbox):
    return os.fstat(mailbox.reader).st_blocks * 512


async def test_what_is_laid_there_is_read_without_a_copy(mailbox):
    inbox = inbox_of(mailbox)
    for size in (0, 1, 4095, 4 * MIB, 9 * MIB + 1, 3):
        data = random.Random(size).randbytes(size)
        await mailbox.put(memoryview(data))
        read = inbox.read(size)
        assert bytes(read) == data
        assert ctypes.addressof(read) == ctypes.addressof(inbox.read(0))


async def test_it_takes_no_more_memory_than_what_lies_there(mailbox):
    assert held_bytes(mailbox) == 0
    await mailbox.put(bytes(5 * MIB))
    assert held_bytes(mailbox) == 5 * MIB
    mailbox.empty()
    assert held_bytes(mailbox) == 0
    assert os.fstat(mailbox.reader).st_size == WORKER_FRAME_BYTES_MAX
    mailbox.empty()
    await mailbox.put(b"again")
    assert bytes(inbox_of(mailbox).read(5)) == b"again"


async def test_the_worker_can_make_nothing_of_it_writable(mailbox):
    await mailbox.put(b"code")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(mailbox.reader, b"evil")
    with pytest.raises(OSError, match="Invalid argument"):
        os.ftruncate(mailbox.reader, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(mailbox.reader, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    inbox = inbox_of(mailbox)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.c_void_p(ctypes.addressof(inbox.read(4)))
    asked = mmap.PROT_READ | mmap.PROT_WRITE
    assert libc.mprotect(address, ctypes.c_size_t(mmap.PAGESIZE), asked) == -1
    assert bytes(inbox.read(4)) == b"code"


async def test_where_the_worker_is_gone_nothing_is_written_anywhere(mailbox):
    writing = asyncio.create_task(mailbox.put(bytes(20 * MIB)))
    await asyncio.sleep(0)
    assert held_bytes(mailbox) < 20 * MIB
    mailbox.close()
    with pytest.raises(MailboxClosed):
        await writing
    with pytest.raises(MailboxClosed):
        await mailbox.put(b"code")
    mailbox.empty()
    mailbox.close()
    mailbox.close_reader()


def test_its_descriptors_are_closed_with_it():
    before = sorted(entry.name for entry in DESCRIPTORS.iterdir())
    made = Mailbox()
    inbox_of(made)
    made.close()
    assert sorted(entry.name for entry in DESCRIPTORS.iterdir()) == before


def test_what_is_no_mailbox_is_not_mapped():
    reader, writer = os.pipe()
    with pytest.raises(OSError, match="cannot be mapped"):
        Inbox(reader)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)
    os.close(writer)
