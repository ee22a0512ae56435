"""When small calls share a request: while one is under way, others gather.

When the request to a peer is answered, the small calls to it that have come
meanwhile leave together, as one call of `peers.batch`; one that stays alone leaves
as it is. Before each request calls wait for others a little: a quarter of the time that
the last request took, and GATHER_MS_MAX at most. So signature, HTTP and the host's
synced write are shared where there is more to do than one request at a time can
carry, and where requests are quick nobody waits.

Where all that is about leaves as one request, one node works and the other waits.
Calls that cost both about the same (`halves`) therefore leave half at a time: while
the peer works on one half, this node takes in the answers of the other.

Each call keeps its own answer or error; only what keeps the whole request from
being answered is the error of all its calls. docs/design/net.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from xsc.base.clock import Clock
from xsc.base.encoding import Value
from xsc.base.errors import PeerSilent, XscError
from xsc.base.gather import Gather
from xsc.base.limits import BATCH_BYTES_MAX, BATCH_CALLS_MAX
from xsc.base.merkle import Part
from xsc.net.calls import batch
from xsc.net.calls.frame import Reply

BATCH_WAITING_MAX = 1_024
"""Calls that wait for one peer; more go by themselves."""

Send: TypeAlias = Callable[[bytes, str, dict[str, Value], Sequence[Part], int], Awaitable[Reply]]
"""Calls a peer: (peer, method, header, parts, timeout_ms) to its answer."""
Spawn: TypeAlias = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]

GATHER_MS_MAX = 2
"""How long calls wait for others at most."""
HALVED_LEAST = 2
"""So many calls leave together where more could."""


@dataclass(frozen=True, slots=True)
class _Asked:
    call: batch.Call
    header: dict[str, Value]
    """The call's, not encoded."""
    name: str
    """Of the peer, for messages."""
    deadline_ms: int

    def size_bytes(self) -> int:
        return self.call.size_bytes


class RequestBatcher:
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
        self._send = send
        self._took_ms = 0
        """Of the last request, to whichever peer."""
        self._gather: Gather[bytes, _Asked, Reply] = Gather(
            self._fly,
            most=half_of if halves else all_of,
            size_of=_Asked.size_bytes,
            size_max=BATCH_BYTES_MAX,
            pause=self._wait,
            spawn=spawn,
            stopped=lambda: PeerSilent("this node was stopped, or failed at this"),
        )

    def is_full(self, peer: bytes) -> bool:
        """Say whether no more calls may wait for a peer."""
        return self._gather.waiting(peer) >= BATCH_WAITING_MAX

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
        return await self._gather.submit(peer, _Asked(call, header, name, deadline_ms))

    async def _wait(self) -> None:
        await self._clock.sleep_ms(min(GATHER_MS_MAX, self._took_ms // 4))

    async def _fly(self, peer: bytes, group: Sequence[_Asked]) -> Sequence[Reply | XscError]:
        """Send a batch as one request; return what each call was answered."""
        # The oldest decides: no call may last longer than it would have alone.
        first = group[0]
        began_ms = self._clock.monotonic_ms()
        left_ms = first.deadline_ms - began_ms
        if left_ms <= 0:
            raise PeerSilent("the peer was busy for too long")
        if len(group) == 1:
            call = first.call
            whole = await self._send(peer, call.method, first.header, call.parts, left_ms)
            replies: list[Reply | XscError] = [whole]
        else:
            header, parts = batch.pack_calls([asked.call for asked in group])
            whole = await self._send(peer, batch.METHOD, header, parts, left_ms)
            answers = batch.unpack_answers(whole, len(group))
            replies = [_reply_of(answer, first.name) for answer in answers]
        self._took_ms = self._clock.monotonic_ms() - began_ms
        return replies


def _reply_of(answer: batch.Answer, name: str) -> Reply | XscError:
    try:
        return batch.reply_of(answer, name)
    except XscError as fault:
        return fault


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
