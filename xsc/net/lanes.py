"""When small calls share a request: while one is under way, others gather.

When the request to a peer is answered, the small calls to it that have come
meanwhile leave together, as one call of `peers.batch`. A call to a peer that is
not busy waits for no time: only for those that this node is about to make as
well, some turns of the event loop long; one that stays alone leaves as it is.
So signature, HTTP and the host's synced write are shared where there is more to
do than one request at a time can carry.

Where all that is about leaves as one request, one node works and the other waits.
Calls that cost both about the same (`halves`) therefore leave half at a time: while
the peer works on one half, this node takes in the answers of the other.

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
)
from xsc.base.merkle import Part
from xsc.net import batch
from xsc.net.frame import Reply

Send: TypeAlias = Callable[[bytes, str, dict[str, Value], Sequence[Part], int], Awaitable[Reply]]
"""Calls a peer: (peer, method, header, parts, timeout_ms) to its answer."""
Spawn: TypeAlias = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]

GATHER_TURNS = 8
"""Turns of the event loop that the first call waits for others which are on their way to it.

Calls of what was read at the same time come within some turns; where nothing else is to be
done, so many take a tenth of a millisecond.
"""
HALVED_LEAST = 2
"""So many calls leave together where more could."""


@dataclass(slots=True)
class _Waiting:
    call: batch.Call
    header: dict[str, Value]
    """The call's, not encoded."""
    name: str
    """Of the peer, for messages."""
    deadline_ms: int
    done: asyncio.Future[Reply]


@dataclass(slots=True)
class _Lane:
    """What is under way to one peer, and what waits for it to come back."""

    flying: Sequence[_Waiting] = ()
    waiting: deque[_Waiting] = field(default_factory=deque)


class Lanes:
    """Small calls to all peers: one request at a time to each, carrying what has gathered.

    Args:
        clock: the node's.
        send: calls a peer.
        spawn: has something done that the node stops when it ends.
        halves: whether only half of what is about leaves at a time.
        timeout_ms: how long a call may take, its wait for others included.
    """

    def __init__(
        self, clock: Clock, send: Send, spawn: Spawn, *, halves: bool, timeout_ms: int
    ) -> None:
        self._clock = clock
        self._timeout_ms = timeout_ms
        self._most = half_of if halves else all_of
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
        deadline_ms = self._clock.monotonic_ms() + self._timeout_ms
        done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        lane = self._lanes.get(peer)
        if lane is None:
            lane = self._lanes[peer] = _Lane()
            task = self._spawn(self._run(peer, lane))
            # Not in the task itself: one that is stopped before it began runs nothing.
            task.add_done_callback(lambda _: self._end(peer, lane))
        lane.waiting.append(_Waiting(call, header, name, deadline_ms, done))
        return await done

    async def _run(self, peer: bytes, lane: _Lane) -> None:
        """Send what waits, request after request, until nothing does."""
        for _ in range(GATHER_TURNS):
            await asyncio.sleep(0)
        while group := _next_group(lane, self._most(len(lane.waiting), len(lane.flying))):
            lane.flying = group
            try:
                await self._fly(peer, group)
            except XscError as fault:
                _fail(group, fault)
        # Before anything else runs: who comes from now on finds no lane, and opens another.
        del self._lanes[peer]

    def _end(self, peer: bytes, lane: _Lane) -> None:
        """After a stop, or a fault of this node: nothing more may leave, all that wait end here."""
        if self._lanes.get(peer) is lane:
            del self._lanes[peer]
        fault = PeerSilent("this node was stopped, or failed at this")
        _fail([*lane.flying, *lane.waiting], fault)

    async def _fly(self, peer: bytes, group: Sequence[_Waiting]) -> None:
        # The oldest decides: no call may last longer than it would have alone.
        first = group[0]
        left_ms = first.deadline_ms - self._clock.monotonic_ms()
        if left_ms <= 0:
            raise PeerSilent("the peer was busy for too long")
        if len(group) == 1:
            call = first.call
            reply = await self._send(peer, call.method, first.header, call.parts, left_ms)
            if not first.done.done():
                first.done.set_result(reply)
            return
        header, parts = batch.pack_calls([waiting.call for waiting in group])
        whole = await self._send(peer, batch.METHOD, header, parts, left_ms)
        for waiting, answer in zip(group, batch.unpack_answers(whole, len(group)), strict=True):
            if waiting.done.done():
                continue
            try:
                waiting.done.set_result(batch.reply_of(answer, waiting.name))
            except XscError as fault:
                waiting.done.set_exception(fault)


def all_of(waiting: int, answered: int) -> int:  # noqa: ARG001 (as `half_of`)
    """Return how many calls may leave as one request."""
    return BATCH_CALLS_MAX


def half_of(waiting: int, answered: int) -> int:
    """Return how many calls may leave as one request: half of those that are about.

    Args:
        waiting: that could leave.
        answered: whose request has just come back; as many are likely to follow them.
    """
    return min(BATCH_CALLS_MAX, max(HALVED_LEAST, (waiting + answered + 1) // 2))


def _next_group(lane: _Lane, most: int) -> list[_Waiting]:
    """Take out what may leave together; callers that have given up leave with nobody."""
    group: list[_Waiting] = []
    size = 0
    while lane.waiting and len(group) < most:
        if lane.waiting[0].done.done():
            lane.waiting.popleft()
            continue
        size += lane.waiting[0].call.size_bytes
        if group and size > BATCH_BYTES_MAX:
            break
        group.append(lane.waiting.popleft())
    return group


def _fail(group: Sequence[_Waiting], fault: XscError) -> None:
    for waiting in group:
        if not waiting.done.done():
            waiting.done.set_exception(type(fault)(fault.message, hint=fault.hint))
