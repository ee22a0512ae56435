"""The peers of a node, and calls in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence

from xsc.base.clock import Clock, Entropy, Executor
from xsc.base.encoding import Value, encode
from xsc.base.errors import PeerBlocked
from xsc.base.keyvalue import KeyValue
from xsc.base.limits import FRAME_HEADER_BYTES_MAX, PEER_TIMEOUT_MS
from xsc.base.log import Log
from xsc.base.merkle import Part
from xsc.base.peering import HeadBound
from xsc.base.turns import PeerWork
from xsc.identity.context import Context
from xsc.identity.keys import KeyPair, network_id
from xsc.net.calls import batch
from xsc.net.calls.frame import Reply
from xsc.net.calls.quota import Quota
from xsc.net.calls.request_batcher import RequestBatcher
from xsc.net.calls.sender import RequestSender
from xsc.net.calls.server import OWN_BOUNDS, RequestServer
from xsc.net.joining import Joining
from xsc.net.peers.introductions import Introductions
from xsc.net.peers.own_address import OwnAddress
from xsc.net.peers.roster import PeerInfo, Roster
from xsc.net.transport.port import Traffic, Transport


class PeerNet:
    """The peers of a node, and calls in both directions.

    The parts: `roster` (known peers), `joining` (invitations), `own_address` (where this node is),
    `introductions` (what peers say of themselves and others), `sender` (requests to peers) and
    `server` (requests of peers).

    Args:
        key: this node's identity.
        network_name: of the network that all peers share.
        clock, entropy, executor: the node's.
        transport: carries requests; `start` lets it serve.
        store: keeps peers, invitations and replay horizons, under `net/`.
        log: of peers that come and go, and of handlers that fail.
        name: what this node calls itself.
        advertise: addresses to tell others instead of the transport's own.
        accepts: whether friends of friends are taken as peers (`xsc.net.peers.circle`).
        quota: of callers; the bounds of `limits` where none is given.
    """

    def __init__(
        self,
        *,
        key: KeyPair,
        network_name: str,
        clock: Clock,
        entropy: Entropy,
        executor: Executor,
        transport: Transport,
        store: KeyValue,
        log: Log,
        name: str,
        advertise: Sequence[str] = (),
        accepts: bool = False,
        quota: Quota | None = None,
    ) -> None:
        network = network_id(network_name)
        self.network = network
        self.context = Context(key, network, clock, entropy, executor, self, log)
        self._transport = transport
        self._tasks: set[asyncio.Task[None]] = set()
        self._batchers: dict[str, RequestBatcher] = {}
        self.roster = Roster(store, own=key.node_id, own_name=name, clock=clock, log=log)
        self.roster.on_change(self._peer_changed)
        self.work = PeerWork(executor)
        self.bounds = dict(OWN_BOUNDS)
        """Of heads, by method; others have HeadBound()."""
        self.traffic = Traffic()
        self.sender = RequestSender(
            key,
            network,
            clock=clock,
            entropy=entropy,
            transport=transport,
            work=self.work,
            bounds=self.bounds,
            traffic=self.traffic,
        )
        self.server = RequestServer(
            self.context,
            self.roster,
            store,
            quota or Quota(),
            work=self.work,
            bounds=self.bounds,
            traffic=self.traffic,
        )
        self.own_address = OwnAddress(
            self.context,
            transport=transport,
            store=store,
            name=name,
            advertise=advertise,
            introducible=accepts,
        )
        self.introductions = Introductions(
            self.context,
            roster=self.roster,
            accepts=accepts,
        )
        self.joining = Joining(
            self.context,
            network_name=network_name,
            roster=self.roster,
            sender=self.sender,
            server=self.server,
            own_address=self.own_address,
            introductions=self.introductions,
            store=store,
        )

    async def start(self) -> None:
        """Serve."""
        await self._transport.serve(self.server.answer)
        self.own_address.begin()

    async def stop(self) -> None:
        """Stop serving; calls that are under way end with PeerSilent."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._transport.close()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def peers(self) -> list[bytes]:
        """Return every known peer that is not blocked, never this node."""
        return self.roster.peers()

    def share(self, *methods: str, halves: bool = False, timeout_ms: int = PEER_TIMEOUT_MS) -> None:
        """Let small calls of these methods share requests; they must be quick.

        A call whose answer may be large (`PeerServer.bound_answers`) goes by itself. What is shared
        by one call of this does not wait for what is by another.

        Args:
            methods: whose calls.
            halves: have only half of what is about leave at a time (the request batcher).
            timeout_ms: how long each call may take, also one that goes by itself.
        """
        batcher = RequestBatcher(
            self.context.clock, self.call_alone, self._spawn, halves=halves, timeout_ms=timeout_ms
        )
        self._batchers.update(dict.fromkeys(methods, batcher))
        self.server.allow_in_batches(methods)

    def bound_heads(self, bounds: Mapping[str, HeadBound]) -> None:
        """Let heads of these methods be larger, or only smaller, than others, both ways."""
        assert not self.bounds.keys() & bounds.keys()
        assert all(bound.asked <= FRAME_HEADER_BYTES_MAX for bound in bounds.values())
        assert all(bound.answered <= FRAME_HEADER_BYTES_MAX for bound in bounds.values())
        self.bounds.update(bounds)

    async def call(
        self,
        peer: bytes,
        method: str,
        header: dict[str, Value],
        parts: Sequence[Part] = (),
        *,
        timeout_ms: int | None = None,
    ) -> Reply:
        """Return a peer's answer, or this node's own in process; its parts are not verified.

        Raises:
            PeerUnknown, PeerBlocked: not to be called.
            PeerSilent: no connection, or no answer in time.
            XscError: what the peer answered with.
        """
        if peer == self.context.key.node_id:
            answer, bodies = await self.server.handlers[method](peer, dict(header), parts)
            return Reply(answer, [memoryview(body) for body in bodies])
        batcher = self._batchers.get(method) if timeout_ms is None else None
        if batcher is None:
            return await self.call_alone(peer, method, header, parts, timeout_ms or PEER_TIMEOUT_MS)
        if not batcher.is_full(peer) and self.server.answers_little(method, header):
            call = batch.Call(method, encode(header), parts)
            if batch.may_share(call):
                return await batcher.call(peer, self._callable(peer).name, call, header)
        return await self.call_alone(peer, method, header, parts, batcher.timeout_ms)

    def _callable(self, peer: bytes) -> PeerInfo:
        info = self.roster.info(peer)
        if info.blocked:
            raise PeerBlocked(f"the peer {info.name} is blocked here")
        return info

    async def call_alone(
        self,
        peer: bytes,
        method: str,
        header: dict[str, Value],
        parts: Sequence[Part],
        timeout_ms: int,
    ) -> Reply:
        """Return a peer's answer to a request of its own, as `call`."""
        return await self.sender.ask(self._callable(peer), method, header, parts, timeout_ms)

    def _peer_changed(self, peer: bytes, what: str) -> None:
        if what in {"removed", "blocked"}:
            # What the replay guard saw of it stays, and what it owes.
            self.sender.answered_at.pop(peer, None)
