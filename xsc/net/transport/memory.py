"""A network in memory: delay, loss, duplicates, partitions and crashes that follow from a seed.

Time is the clock's, chance is the seed's: the same calls give the same trace.
What happens to each message stands in `MemoryNetwork.trace`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from xsc.base import errors, limits, turns
from xsc.base.clock import Clock, SeededEntropy
from xsc.net.transport.bounds import turn_to_send
from xsc.net.transport.port import Arrival, Dropped, Handler, RawRequest, RawResponse, Take

_PORT = 1


class Event(NamedTuple):
    """One thing that happened to a message."""

    now_ms: int
    source: str
    target: str
    what: str
    """sent, lost, refused, delivered, repeated, stalled, answered or dropped"""
    path: str
    size_bytes: int = 0
    """Of the body, where it begins to be sent."""


Corrupt = Callable[[str, str, RawRequest, RawResponse], RawResponse]
"""Takes source, target, request and answer; gives the answer that arrives."""


class MemoryNetwork:
    """Connects transports by name.

    Args:
        clock: whose time passes while messages travel.
        seed: decides delays and losses.
        delay_ms: least and most time that a message travels one way.
        loss_ppm: share of messages that are lost, each way.
    """

    def __init__(
        self,
        clock: Clock,
        seed: bytes = b"memory network",
        *,
        delay_ms: tuple[int, int] = (0, 0),
        loss_ppm: int = 0,
    ) -> None:
        self.trace: list[Event] = []
        self._clock = clock
        self._entropy = SeededEntropy(seed)
        self.delay_ms = delay_ms
        """Least and most time that a message travels."""
        self.loss_ppm = loss_ppm
        """The share of messages that are lost."""
        self.duplicates_ppm = 0
        """The share of requests that come twice; nobody gets the second answer."""
        self._copies: set[asyncio.Task[None]] = set()
        self.corrupt: Corrupt | None = None
        """Every answer passes through it."""
        self._cut: set[frozenset[str]] = set()
        self._rates: dict[str, tuple[int, int]] = {}
        self._stalled: set[tuple[str, str]] = set()
        self._paused: dict[str, asyncio.Event] = {}
        self._up: dict[str, MemoryTransport] = {}
        self._turns: turns.Turns[str] = turns.Turns()

    def transport(self, name: str) -> MemoryTransport:
        """Return a new end of the network; it takes the name once it serves."""
        return MemoryTransport(self, name)

    def kill(self, name: str) -> None:
        """Take a node down at once: its handlers stop where they are, its port is closed."""
        end = self._up.pop(name, None)
        if end is not None:
            end.stop()

    def is_up(self, name: str) -> bool:
        """Say whether somebody serves under a name."""
        return name in self._up

    def partition(self, one: str, other: str) -> None:
        """Let no message pass between two nodes."""
        self._cut.add(frozenset((one, other)))

    def heal(self, one: str | None = None, other: str | None = None) -> None:
        """End the partition between two nodes, or every one."""
        if one is None or other is None:
            self._cut.clear()
        else:
            self._cut.discard(frozenset((one, other)))

    def set_rate(self, name: str, delay_ms: int, bytes_a_second: int) -> None:
        """Let the answers of a node take longer from now on: by a delay, and by their size."""
        self._rates[name] = (delay_ms, bytes_a_second)

    def stall(self, name: str, method: str) -> None:
        """Let a node never answer requests whose path ends with a method; it gets them."""
        self._stalled.add((name, method))

    def resume(self, name: str, method: str) -> None:
        """End `stall`."""
        self._stalled.discard((name, method))

    def pause(self, name: str) -> None:
        """Let a node neither take nor send anything, as a stopped process; it all waits."""
        self._paused[name] = asyncio.Event()

    def wake(self, name: str) -> None:
        """End `pause`: what has waited goes on at once."""
        self._paused.pop(name).set()

    async def _awake(self, name: str) -> None:
        while name in self._paused:
            await self._paused[name].wait()

    def _draw(self, bound: int) -> int:
        return int.from_bytes(self._entropy.token(8), "big") % bound

    def _note(self, source: str, target: str, what: str, path: str, size_bytes: int = 0) -> None:
        event = Event(self._clock.now_ms(), source, target, what, path, size_bytes)
        self.trace.append(event)

    async def _travel(self, source: str, target: str, path: str) -> None:
        """Return when a message has come across; never, when it is lost."""
        least, most = self.delay_ms
        lost = self._draw(limits.PPM) < self.loss_ppm
        await self._clock.sleep_ms(least + self._draw(most - least + 1))
        if lost or frozenset((source, target)) in self._cut:
            self._note(source, target, "lost", path)
            await asyncio.get_running_loop().create_future()

    async def exchange(self, source: str, target: str, request: RawRequest) -> RawResponse:
        """Return the answer of a node; does not return where a message is lost.

        Raises:
            PeerSilent: nobody serves under that name.
            Dropped: the node went down before it answered.
        """
        path = request.path
        size = sum(len(buffer) for buffer in request.body)
        await self._awake(source)
        async with turn_to_send(self._turns, f"{source} {target}", size):
            # As with TCP: where the port is closed, nothing of the body leaves.
            connects = self.is_up(target)
            self._note(source, target, "sent", path, size if connects else 0)
            await self._travel(source, target, path)
            await self._awake(target)
        end = self._up.get(target) if connects else None
        if end is None:
            self._note(source, target, "refused", path)
            raise errors.PeerSilent(f"nobody serves at {target}")
        self._note(source, target, "delivered", path)
        if self.duplicates_ppm and self._draw(limits.PPM) < self.duplicates_ppm:
            copy = asyncio.create_task(self._repeat(source, target, request))
            self._copies.add(copy)
            copy.add_done_callback(self._copies.discard)
        response = await end.answer(request, source)
        if response is None:
            self._note(target, source, "dropped", path)
            raise Dropped
        try:
            return await self._bring(source, target, request, response)
        finally:
            response.sent()

    async def _repeat(self, source: str, target: str, request: RawRequest) -> None:
        least, most = self.delay_ms
        await self._clock.sleep_ms(least + self._draw(most - least + 1))
        end = self._up.get(target)
        if end is not None:
            self._note(source, target, "repeated", request.path)
            response = await end.answer(request, source)
            if response is not None:
                response.sent()

    async def _bring(
        self, source: str, target: str, request: RawRequest, response: RawResponse
    ) -> RawResponse:
        """Return an answer once it has come across; not where it is lost."""
        path = request.path
        if (target, path.rsplit("/", 1)[-1]) in self._stalled:
            self._note(target, source, "stalled", path)
            await asyncio.get_running_loop().create_future()
        await self._awake(target)
        if target in self._rates:
            delay_ms, rate = self._rates[target]
            size = sum(len(buffer) for buffer in response.body)
            await self._clock.sleep_ms(delay_ms + size * 1000 // rate)
        await self._travel(target, source, path)
        self._note(target, source, "answered", path)
        if self.corrupt is not None:
            response = self.corrupt(source, target, request, response)
        return response


def _unheard(task: asyncio.Task[RawResponse]) -> None:
    """Drop an answer that nobody waits for any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().sent()


class MemoryTransport:
    """One end of a `MemoryNetwork`. Its address is its name with a port that means nothing."""

    fingerprint: bytes | None = None

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self._network = network
        self._name = name
        self._handler: Handler | None = None
        self._stopped = False
        # In order, so that many that are ended at once end in the same one in each run.
        self._running: dict[asyncio.Task[RawResponse], None] = {}
        self._sending: dict[asyncio.Task[RawResponse], None] = {}

    def addresses(self) -> tuple[str, ...]:
        """Return the one address."""
        return (f"{self._name}:{_PORT}",)

    async def send(
        self,
        address: str,
        fingerprint: bytes | None,  # noqa: ARG002 (no certificates here)
        request: RawRequest,
        timeout_ms: int,
    ) -> RawResponse:
        """Return the answer of the node at an address; errors as the port says."""
        if self._stopped:
            raise errors.PeerSilent("this end of the network was taken down")
        network = self._network
        work = asyncio.create_task(network.exchange(self._name, address.rsplit(":", 1)[0], request))
        self._sending[work] = None
        timer = asyncio.create_task(network._clock.sleep_ms(timeout_ms))  # noqa: SLF001 (one module)
        try:
            await asyncio.wait({work, timer}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise errors.PeerSilent(f"no answer within {timeout_ms} ms")
            if self._stopped:
                raise errors.PeerSilent("this end of the network was taken down")
            response = work.result()
        finally:
            self._sending.pop(work, None)
            for task in (work, timer):
                task.cancel()
            await asyncio.gather(work, timer, return_exceptions=True)
        body = b"".join(response.body)
        if len(body) > limits.PEER_BODY_BYTES_MAX:
            raise errors.TooLarge("the answer is over the bound of a message")
        return RawResponse(response.status, response.headers, [memoryview(body)] if body else [])

    async def answer(self, request: RawRequest, source: str = "") -> RawResponse | None:
        """Return the handler's answer, or None where this end goes down before."""
        handler = self._handler
        assert handler is not None
        body = memoryview(b"".join(request.body))
        if len(body) > limits.PEER_BODY_BYTES_MAX:
            return RawResponse(413)

        async def read(take: Take) -> memoryview:
            take(body)
            return body

        async def run() -> RawResponse:
            headers = {name.lower(): value for name, value in request.headers.items()}
            return await handler(
                Arrival(request.method, request.path, headers, len(body), read, source)
            )

        # The handler belongs to this end: a caller that stops waiting does not stop it.
        task = asyncio.create_task(run())
        self._running[task] = None
        task.add_done_callback(lambda done: self._running.pop(done, None))
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.add_done_callback(_unheard)
            raise
        return None if task.cancelled() else task.result()

    async def serve(self, handler: Handler) -> None:
        """Take the name, and answer by the handler from now on."""
        assert self._name not in self._network._up, f"{self._name} serves already"  # noqa: SLF001
        self._handler = handler
        self._network._up[self._name] = self  # noqa: SLF001

    def stop(self) -> None:
        """Stop handlers and messages where they are; nothing leaves from here any more."""
        self._stopped = True
        for task in [*self._running, *self._sending]:
            task.cancel()

    async def close(self) -> None:
        """Give the name back and stop."""
        if self._network._up.get(self._name) is self:  # noqa: SLF001
            self._network.kill(self._name)
        await asyncio.gather(*self._running, return_exceptions=True)
