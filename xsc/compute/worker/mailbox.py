"""The way of compiled code to a worker: memory that the node writes and the worker only reads.

Code has megabytes, which a pipe carries in pieces of 64 KiB, with a change of process for
each. A mailbox belongs to one worker. The node writes to it by a descriptor that nobody
else has; the worker maps it through one that can only be read from, and closes that
before it meets a module: so it has as few descriptors as without. The node never reads
what lies there, hence a worker that broke out could at most deceive itself.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os

from xsc.base.limits import MIB, WORKER_FRAME_BYTES_MAX

_PIECE_BYTES = 4 * MIB
"""Larger code is written in pieces of it: a millisecond each, in which nothing else is done."""


class MailboxClosed(Exception):
    """Its worker is gone, or the system has no memory for it."""


class Mailbox:
    """The node's end. It takes no more memory than what lies in it.

    Raises:
        OSError: the system gives no such memory.
    """

    def __init__(self) -> None:
        self._held = False
        self.reader = -1
        """A descriptor that can only be read from, for the worker."""
        self._handle = os.memfd_create("xsc-code")
        try:
            os.ftruncate(self._handle, WORKER_FRAME_BYTES_MAX)
            # A descriptor for reading alone: a mapping through it can never become writable.
            self.reader = os.open(f"/proc/self/fd/{self._handle}", os.O_RDONLY)
        except OSError:
            self.close()
            raise

    async def put(self, data: bytes | memoryview) -> None:
        """Lay data there, at most WORKER_FRAME_BYTES_MAX, over what there was.

        Raises:
            MailboxClosed: it cannot be.
        """
        left, at = memoryview(data), 0
        self._held = True
        while left:
            if self._handle < 0:
                raise MailboxClosed("it ended")
            try:
                written = os.pwrite(self._handle, left[:_PIECE_BYTES], at)
            except OSError as fault:
                raise MailboxClosed(f"no memory for its code: {fault.strerror}") from None
            left, at = left[written:], at + written
            if left:
                await asyncio.sleep(0)

    def empty(self) -> None:
        """Give back the memory of what lies there."""
        if self._held and self._handle >= 0:
            os.ftruncate(self._handle, 0)
            os.ftruncate(self._handle, WORKER_FRAME_BYTES_MAX)
        self._held = False

    def close_reader(self) -> None:
        """Close the worker's descriptor here, once the worker has its own."""
        if self.reader >= 0:
            os.close(self.reader)
        self.reader = -1

    def close(self) -> None:
        """Close it; a second call does nothing."""
        self.close_reader()
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


class Inbox:
    """The worker's end.

    Args:
        reader: the descriptor that it was started with; it is closed here.

    Raises:
        OSError: it cannot be mapped.
    """

    def __init__(self, reader: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
        # `mmap.mmap` gives no address of what can only be read.
        address = libc.mmap(
            None, WORKER_FRAME_BYTES_MAX, mmap.PROT_READ, mmap.MAP_SHARED, reader, 0
        )
        os.close(reader)
        if address is None or address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "the mailbox cannot be mapped")
        self._address: int = address

    def read(self, size: int) -> ctypes.Array[ctypes.c_uint8]:
        """Return what lies there, not copied: it must not be written to, or kept.

        Args:
            size: how many bytes were laid there, at most WORKER_FRAME_BYTES_MAX.
        """
        return (ctypes.c_uint8 * size).from_address(self._address)
