"""Reads the input objects of peers' jobs, within bounds of memory and time.

The customer refers to objects of which this node holds shards; the missing shards are
fetched. Memory for the objects is reserved before the first byte is fetched, until the job
ends (`xsc.base.room`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from xsc.base import errors, limits
from xsc.base.clock import Clock
from xsc.compute.ports import InputReader
from xsc.compute.wasm.inputs import RunInput, check_input


class InputFetcher:
    """Reads referenced objects."""

    def __init__(self, inputs: InputReader, clock: Clock) -> None:
        self._inputs = inputs
        self._clock = clock

    async def read(
        self, given: RunInput, references: Sequence[tuple[str, bytes]], size_max: int
    ) -> tuple[RunInput, int]:
        """Return the input with its objects as files, and how many of their bytes were here.

        Raises:
            InputUnavailable: one cannot be read from here, or not in time.
            RecordInvalid: a reference is wrong, or objects and files make no input.
            TooLarge: they have more than `size_max` bytes together.
        """
        reading = asyncio.ensure_future(self._read(given, references, size_max))
        late = asyncio.ensure_future(self._clock.sleep_ms(limits.PEER_TIMEOUT_MS))
        try:
            await asyncio.wait([reading, late], return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise errors.InputUnavailable("the input's shards do not come in time")
            return reading.result()
        finally:
            for task in (reading, late):
                task.cancel()
            await asyncio.gather(reading, late, return_exceptions=True)

    async def _read(
        self, given: RunInput, references: Sequence[tuple[str, bytes]], size_max: int
    ) -> tuple[RunInput, int]:
        files = list(given.files)
        here = 0
        left = min(size_max, limits.INPUT_BYTES_MAX) - sum(len(data) for _, data in files)
        for name, raw in references:
            try:
                data, received = await self._inputs.read_reference(raw, left)
            except (errors.UnavailableError, errors.CorruptionError) as fault:
                raise errors.InputUnavailable(fault.message) from None
            files.append((name, data))
            here += max(0, len(data) - received)
            left -= len(data)
        whole = RunInput(given.args, given.environment, given.stdin, tuple(sorted(files)))
        try:
            check_input(whole)
        except errors.ArgumentInvalid as fault:
            raise errors.RecordInvalid(fault.message) from None
        return whole, here
