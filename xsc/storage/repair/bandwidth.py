"""Limits the bytes that repair fetches and sends within a second."""

from __future__ import annotations

from xsc.base.clock import Clock


class Bandwidth:
    """Lets transfers wait so that their rate stays below a limit."""

    def __init__(self, clock: Clock, bytes_a_second: int) -> None:
        self._clock = clock
        self._bytes_a_second = bytes_a_second
        """0: no limit."""
        self._free_ms = 0

    async def take(self, size_bytes: int) -> None:
        """Wait until that many bytes may be transferred."""
        if not self._bytes_a_second:
            return
        now_ms = self._clock.monotonic_ms()
        start_ms = max(now_ms, self._free_ms)
        self._free_ms = start_ms + size_bytes * 1000 // self._bytes_a_second
        if start_ms > now_ms:
            await self._clock.sleep_ms(start_ms - now_ms)
