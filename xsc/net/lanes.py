"""When small calls share a request: while one is under way, others gather.

When the request to a peer is answered, the small calls to it that have come
meanwhile leave together, as one call of `peers.batch`. Nothing waits for
company: a call to a peer that is not busy leaves at once and as it is. So
signature, HTTP and the host's synced write are shared exactly when there is
more to do than one request at a time can carry.

Each call keeps its own answer or error; only what keeps the whole request from
being answered is the error of all its calls. docs/design/net.md
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from xsc.base.clock import Clock
from xsc.base.encoding import Value
from xsc.base.errors import PeerSilent, XscError
from xsc.base.limits import (
    BATCH_BYTES_MAX,
    BATCH_CALLS_MAX,
    BATCH_WAITING_MAX,
    PEER_TIMEOUT_MS,
)
from xsc.base.merkle import Part
from xsc.net import batch
from xsc.net.frame import Reply

Send: TypeAlias = Callable[[bytes, str, dict[str, Value], Sequence[Part], int], Awaitable[Reply]]
"""Calls a peer: (peer, method, header, parts, timeout_ms) to its answer."""
Spawn: TypeAlias = Callable[[Coroutine[None, None, None]], None]


@dataclass(slots=True)
class _Waiting:
    call: batch.Call
    deadline_ms: int
    done: asyncio.Future[batch.Answer]


@dataclass(slots=True)
class _Lane:
    """What is under way to one peer, and what waits for it to come back."""

    busy: bool = False
    waiting: deque[_Waiting] = field(default_factory=deque)


class Lanes:
    """Small calls to all peers: one request at a time to each, carrying what has gathered."""

    def __init__(self, clock: Clock, send: Send, spawn: Spawn) -> None:
        self._clock = clock
        self._send = send
        self._spawn = spawn
        self._lanes: dict[bytes, _Lane] = {}

    def is_full(self, peer: bytes) -> bool:
        """Say whether no more calls may wait for a peer."""
        lane = self._lanes.get(peer)
        return lane is not None and len(lane.waiting) >= BATCH_WAITING_MAX

    async def call(
        self, peer: bytes, name: str, call: batch.Call, header: dict[str, Value]
    ) -> Reply:
        """Return a peer's answer to a call that may share a request.

        Args:
            peer: whom to ask.
            name: of the peer, for messages.
            call: the call.
            header: the same header, not encoded.

        Raises:
            XscError: as PeerNet.call.
        """
        lane = self._lanes.setdefault(peer, _Lane())
        if not lane.busy:
            lane.busy = True
            try:
                return await self._send(peer, call.method, header, call.parts, PEER_TIMEOUT_MS)
            finally:
                self._go_on(peer, lane)
        deadline_ms = self._clock.monotonic_ms() + PEER_TIMEOUT_MS
        waiting = _Waiting(call, deadline_ms, asyncio.get_running_loop().create_future())
        lane.waiting.append(waiting)
        return batch.reply_of(await waiting.done, name)

    def _go_on(self, peer: bytes, lane: _Lane) -> None:
        """Send off what has gathered, or leave the lane free."""
        group: list[_Waiting] = []
        size = 0
        while lane.waiting and len(group) < BATCH_CALLS_MAX:
            if lane.waiting[0].done.done():
                # Its caller has given up.
                lane.waiting.popleft()
                continue
            size += lane.waiting[0].call.size_bytes
            if group and size > BATCH_BYTES_MAX:
                break
            group.append(lane.waiting.popleft())
        lane.busy = bool(group)
        if group:
            self._spawn(self._fly(peer, lane, group))
        else:
            self._lanes.pop(peer, None)

    async def _fly(self, peer: bytes, lane: _Lane, group: list[_Waiting]) -> None:
        fault: XscError = PeerSilent("this node was stopped, or failed at this")
        over = True
        try:
            answers = await self._ask(peer, group)
            for waiting, answer in zip(group, answers, strict=True):
                if not waiting.done.done():
                    waiting.done.set_result(answer)
            over = False
        except XscError as error:
            fault, over = error, False
        finally:
            # After a stop nothing more may leave: those that wait end here too.
            for waiting in [*group, *lane.waiting] if over else group:
                if not waiting.done.done():
                    waiting.done.set_exception(type(fault)(fault.message, hint=fault.hint))
            self._go_on(peer, lane)

    async def _ask(self, peer: bytes, group: list[_Waiting]) -> list[batch.Answer]:
        # The oldest decides: no call may last longer than it would have alone.
        left_ms = group[0].deadline_ms - self._clock.monotonic_ms()
        if left_ms <= 0:
            raise PeerSilent("the peer was busy for too long")
        header, parts = batch.pack_calls([waiting.call for waiting in group])
        reply = await self._send(peer, batch.METHOD, header, parts, left_ms)
        return batch.unpack_answers(reply, len(group))
