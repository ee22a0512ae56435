"""What a node tells the supervisor that started it: systemd's protocol, a datagram a word."""

from __future__ import annotations

import asyncio
import os
import socket

from xsc.base.text import cause
from xsc.node.logging import JsonLog

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"
TELL_TIMEOUT_S = 1.0


class Supervisor:
    """Who waits at $NOTIFY_SOCKET, if anybody does."""

    def __init__(self, log: JsonLog) -> None:
        self._log = log
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self._watchdog_us = os.environ.get("WATCHDOG_USEC", "")

    def tell(self, word: str) -> None:
        """Send a word; one that cannot be sent is the last, and the node goes on without."""
        if not self._address:
            return
        # "@" stands for the null byte of a socket that no file names.
        place = f"\0{self._address[1:]}" if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(TELL_TIMEOUT_S)
                sock.sendto(word.encode(), place)
        except OSError as fault:
            self._log.warning("node.supervisor_not_told", at=self._address, reason=cause(fault))
            self._address = ""

    async def assure(self) -> None:
        """Say that the event loop runs, twice in the time that the supervisor allows, for ever."""
        if self._watchdog_us.isdecimal() and int(self._watchdog_us):
            while True:
                self.tell(ALIVE)
                await asyncio.sleep(int(self._watchdog_us) / 2_000_000)
