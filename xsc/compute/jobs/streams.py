"""Follows and cancels runs on other nodes.

    compute.output   nonce, stdout, stderr (how much is there already), wait_ms
                     -> known, done; parts: more of both
    compute.cancel   nonce  -> known

Both concern an order of the caller that was sent with `stream`. The customer polls while
the order runs. The reply to the order itself has the whole output again, which must begin
with what was shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from xsc.base import encoding
from xsc.base.clock import Clock, event_within
from xsc.base.errors import ReceiptInvalid, XscError
from xsc.base.fields import take_bool, take_bytes, take_int
from xsc.base.limits import OUTPUT_BYTES_MAX, PEER_TIMEOUT_MS, STREAM_PIECE_BYTES
from xsc.base.peering import Answered, Caller, Handler, Header, Parts
from xsc.compute.jobs.output_buffer import OutputBuffer

STREAM_WAIT_MS = 2_000
"""How long a provider holds a question for more output."""
STREAM_PAUSE_MS = 50
"""Before an order is asked about again that has not arrived yet."""
STREAM_TRIES_MAX = 100

OUTPUT = "compute.output"
CANCEL = "compute.cancel"
_NONCE_BYTES = 16


class RemoteOutput:
    """Follows the output of runs on providers, and serves that of runs here to their customers."""

    def __init__(
        self, caller: Caller, clock: Clock, find: Callable[[bytes, bytes], OutputBuffer | None]
    ) -> None:
        """`find` returns the output buffer of a run, by customer and nonce."""
        self._caller = caller
        self._clock = clock
        self._find = find

    def handlers(self) -> dict[str, Handler]:
        """Return what peers may call."""
        return {OUTPUT: self._on_output, CANCEL: self._on_cancel}

    async def _on_output(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        output = self._find(caller, take_bytes(header, "nonce", size=_NONCE_BYTES))
        stdout = take_int(header, "stdout", most=OUTPUT_BYTES_MAX)
        stderr = take_int(header, "stderr", most=OUTPUT_BYTES_MAX)
        wait_ms = take_int(header, "wait_ms", most=STREAM_WAIT_MS)
        header.clear()
        if output is None:
            return {"known": False, "done": False}, (b"", b"")
        if not output.has_more(stdout, stderr):
            await event_within(self._clock, output.news, wait_ms)
        pieces = [
            output.read(1, stdout, STREAM_PIECE_BYTES),
            output.read(2, stderr, STREAM_PIECE_BYTES),
        ]
        done = output.done and output.size_bytes == stdout + stderr + sum(map(len, pieces))
        return {"known": True, "done": done}, pieces

    async def _on_cancel(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        output = self._find(caller, take_bytes(header, "nonce", size=_NONCE_BYTES))
        if output is not None:
            output.cancel()
        return {"known": output is not None}, ()

    async def attend(self, node: bytes, nonce: bytes, output: OutputBuffer, most: int) -> None:
        """Copy an order's output to a buffer, and cancel the order on request; no end."""
        await asyncio.gather(
            self._follow(node, nonce, output, most), self._cancel_on_wish(node, nonce, output)
        )

    async def _follow(self, node: bytes, nonce: bytes, output: OutputBuffer, most: int) -> None:
        at, failed = [0, 0], 0
        while failed < STREAM_TRIES_MAX and sum(at) <= most:
            header: dict[str, encoding.Value] = {
                "nonce": nonce,
                "stdout": at[0],
                "stderr": at[1],
                "wait_ms": STREAM_WAIT_MS,
            }
            try:
                reply = await self._caller.call(
                    node, OUTPUT, header, timeout_ms=STREAM_WAIT_MS + PEER_TIMEOUT_MS
                )
                known, done = take_bool(reply.header, "known"), take_bool(reply.header, "done")
            except XscError:
                # The output is shown at the end, then: the reply to the order has all of it.
                failed += 1
                await self._clock.sleep_ms(STREAM_PAUSE_MS)
                continue
            if len(reply.parts) != len(at) or max(map(len, reply.parts)) > STREAM_PIECE_BYTES:
                return  # what it says so is not shown; the answer to the order is checked
            for index, part in enumerate(reply.parts):
                at[index] += len(part)
                output.wrote(index + 1, part)
            if done:
                return
            if not known or not any(map(len, reply.parts)):
                # One that has waited loses nothing by it; one that does not wait is slowed.
                await self._clock.sleep_ms(STREAM_PAUSE_MS)

    async def _cancel_on_wish(self, node: bytes, nonce: bytes, output: OutputBuffer) -> None:
        await output.cancelled.wait()
        for _ in range(STREAM_TRIES_MAX):
            try:
                reply = await self._caller.call(node, CANCEL, {"nonce": nonce})
                if take_bool(reply.header, "known"):
                    return
            except XscError:
                pass
            await self._clock.sleep_ms(STREAM_PAUSE_MS)


def settle_output(output: OutputBuffer, stdout: bytes, stderr: bytes) -> None:
    """Close a buffer with the output that a receipt names.

    Raises:
        ReceiptInvalid: something else was shown before.
    """
    if not output.finish(stdout, stderr):
        raise ReceiptInvalid("the provider's output does not begin with what it showed before")
