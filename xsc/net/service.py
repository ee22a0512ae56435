"""The peers of a node, and calls in both directions.

Small calls share a request: while one is under way, others gather.

When the request to a peer is answered, the small calls to it that have come
meanwhile leave together, as one call of `peers.batch`; one that stays alone leaves
as it is. Before each request that is not full yet calls wait for others a little: a quarter
of the time that the last request took, and GATHER_MS_MAX at most. So signature, HTTP and the host's
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
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass

from xsc.base import encoding, errors, fields, gather, keyvalue, limits, merkle, turns
from xsc.base.clock import Clock, Entropy, Executor
from xsc.base.log import Log
from xsc.identity import context, keys
from xsc.identity.envelope import Signed, open_signed
from xsc.net.calls import batch, frame, sender, server, signing
from xsc.net.peers import introductions, invitation, own_address, roster
from xsc.net.peers.roster import AddressRecord, PeerInfo
from xsc.net.transport.port import Traffic, Transport

BATCH_WAITING_MAX = 1_024
"""Calls that wait for one peer; more go by themselves."""
GATHER_MS_MAX = 2
"""How long calls wait for others at most."""
HALVED_LEAST = 2
"""So many calls leave together where more could."""


class PeerNet:
    """The peers of a node, and calls in both directions.

    The parts: `roster` (known peers), `own_address` (where this node is), `introductions` (what
    peers say of themselves and others), `sender` (requests to peers) and `server` (requests of
    peers).

    Args:
        key: this node's identity.
        network_name: of the network that all peers share.
        clock, entropy, executor: the node's.
        transport: carries requests; `start` lets it serve.
        log: of peers that come and go, and of handlers that fail.
        state: keeps peers, invitations and replay horizons, under `net/`.
        commit: writes to it.
        name: what this node calls itself.
        advertise: addresses to tell others instead of the transport's own.
        accepts: whether friends of friends are taken as peers (`xsc.net.peers.circle`).
    """

    def __init__(
        self,
        *,
        key: keys.KeyPair,
        network_name: str,
        clock: Clock,
        entropy: Entropy,
        executor: Executor,
        transport: Transport,
        log: Log,
        state: keyvalue.KeyValue,
        commit: keyvalue.Commit,
        name: str,
        advertise: Sequence[str] = (),
        accepts: bool = False,
    ) -> None:
        network = keys.network_id(network_name)
        self.network = network
        self.context = context.Context(
            key, network, clock, entropy, executor, self, log, state, commit
        )
        self._transport = transport
        self._tasks: set[asyncio.Task[None]] = set()
        self._batchers: dict[str, RequestBatcher] = {}
        self.roster = roster.Roster(state, own=key.node_id, own_name=name, clock=clock, log=log)
        self.work = turns.PeerWork(executor)
        self.traffic = Traffic()
        self.sender = sender.RequestSender(
            self.context, transport=transport, work=self.work, traffic=self.traffic
        )
        self.server = server.RequestServer(
            self.context, self.roster, join=self._join, work=self.work, traffic=self.traffic
        )
        self.own_address = own_address.OwnAddress(
            self.context,
            transport=transport,
            name=name,
            advertise=advertise,
            introducible=accepts,
        )
        self.introductions = introductions.Introductions(
            self.context, roster=self.roster, accepts=accepts
        )
        self._network_name = network_name
        self._state = state

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

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Have something done that ends with this."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def peers(self) -> list[bytes]:
        """Return every known peer that is not blocked, never this node."""
        return self.roster.peers()

    def share(
        self, *methods: str, halves: bool = False, timeout_ms: int = limits.PEER_TIMEOUT_MS
    ) -> None:
        """Let small calls of these methods share requests; they must be quick.

        A call whose answer may be large (`RequestServer.bound_answers`) goes by itself. What is
        shared by one call of this does not wait for what is by another.

        Args:
            methods: whose calls.
            halves: have only half of what is about leave at a time (`half_of`).
            timeout_ms: how long each call may take, also one that goes by itself.
        """
        batcher = RequestBatcher(self, halves=halves, timeout_ms=timeout_ms)
        self._batchers.update(dict.fromkeys(methods, batcher))
        self.server.allow_in_batches(methods)

    async def call(
        self,
        peer: bytes,
        method: str,
        header: dict[str, encoding.Value],
        parts: Sequence[merkle.Part] = (),
        *,
        timeout_ms: int | None = None,
    ) -> frame.Reply:
        """Return a peer's answer, or this node's own in process; its parts are not verified.

        Raises:
            PeerUnknown, PeerBlocked: not to be called.
            PeerSilent: no connection, or no answer in time.
            XscError: what the peer answered with.
        """
        if peer == self.context.key.node_id:
            answer, bodies = await self.server.handlers[method](peer, dict(header), parts)
            return frame.Reply(answer, [memoryview(body) for body in bodies])
        batcher = self._batchers.get(method) if timeout_ms is None else None
        if batcher is None:
            timeout_ms = timeout_ms or limits.PEER_TIMEOUT_MS
            return await self.call_alone(peer, method, header, parts, timeout_ms)
        if not batcher.is_full(peer) and self.server.answers_little(method, header):
            call = batch.Call(method, encoding.encode(header), parts)
            if batch.may_share(call):
                return await batcher.call(peer, call, header)
        return await self.call_alone(peer, method, header, parts, batcher.timeout_ms)

    async def call_alone(
        self,
        peer: bytes,
        method: str,
        header: dict[str, encoding.Value],
        parts: Sequence[merkle.Part],
        timeout_ms: int,
    ) -> frame.Reply:
        """Return a peer's answer to a request of its own, as `call`."""
        info = self.roster.info(peer)
        if info.blocked:
            raise errors.PeerBlocked(f"the peer {info.name} is blocked here")
        return await self.sender.ask(info, method, header, parts, timeout_ms)

    # Invitations

    def invite(self, ttl_ms: int) -> str:
        """Return an invitation that one node can join by, until the time is up.

        Raises:
            RateLimited: too many are open.
            ConfigInvalid: there is no address that an invitation could name.
        """
        own = self.own_address.record().record
        if not own.addresses:
            raise errors.ConfigInvalid(
                "this node knows no address at which others could reach it",
                hint="set advertise to the address or name that reaches this machine from outside",
            )
        now_ms = self.context.clock.now_ms()
        secret = self.context.entropy.token(invitation.SECRET_BYTES)
        text = invitation.Invitation(
            node_id=self.context.key.node_id,
            name=own.name,
            addresses=own.addresses,
            fingerprint=own.fingerprint,
            network=self._network_name,
            secret=secret,
            expires_ms=now_ms + ttl_ms,
        ).to_text()
        invitation.issue(self._state, secret, expires_ms=now_ms + ttl_ms, now_ms=now_ms)
        return text

    async def join(self, text: str, name: str | None = None) -> bytes:
        """Become a peer of the node that issued an invitation; return its id.

        Args:
            text: the invitation.
            name: what to call the other node here; its own name otherwise.

        Raises:
            InvitationInvalid: no invitation, for another network, from this node,
                expired, used or never issued.
            PeerSilent: the issuer does not answer.
        """
        asked = invitation.from_string(text)
        if asked.network != self._network_name:
            raise errors.InvitationInvalid(
                f"the invitation is for the network '{asked.network}', "
                f"this node is in '{self._network_name}'"
            )
        if asked.node_id == self.context.key.node_id:
            raise errors.InvitationInvalid("the invitation was issued by this node itself")
        if self.context.clock.now_ms() >= asked.expires_ms:
            raise errors.InvitationInvalid("the invitation has expired", hint="ask for another")
        issuer = PeerInfo(
            node_id=asked.node_id,
            name=asked.name,
            addresses=asked.addresses,
            fingerprint=asked.fingerprint,
            added_ms=0,
        )
        # Refused here rather than after the secret is used up.
        self.roster.met(asked.node_id, self.own_address.record().record, name=name)
        header: dict[str, encoding.Value] = {
            "secret": asked.secret,
            "record": self.own_address.record().raw,
        }
        reply = await self.sender.ask(issuer, server.JOIN, header, (), limits.PEER_TIMEOUT_MS)
        self._meet(asked.node_id, self._record_in(reply.header, asked.node_id), name)
        return asked.node_id

    def _join(
        self, caller: signing.VerifiedCaller, header: dict[str, encoding.Value]
    ) -> dict[str, encoding.Value]:
        """Take the bearer of an invitation as a peer. Awaits nothing: a secret works once."""
        now_ms = self.context.clock.now_ms()
        secret = fields.take_bytes(header, "secret", size=invitation.SECRET_BYTES)
        before = self.roster.get(caller.node_id)
        known = self.roster.is_peer(caller.node_id)
        used = invitation.redeem(self._state, secret, caller.node_id, known=known, now_ms=now_ms)
        # From here on the caller has shown an invitation, and may hear what is wrong.
        if before is not None and before.blocked:
            raise errors.PeerBlocked("this node has blocked the caller")
        if before is None:
            self.server.admit(caller)
        record = self._record_in(header, caller.node_id)
        self.introductions.count_record(caller.node_id)
        self._meet(caller.node_id, record, also=used)
        return {"record": self.own_address.record().raw}

    def _record_in(self, header: dict[str, encoding.Value], author: bytes) -> Signed[AddressRecord]:
        raw = fields.take_bytes(header, "record")
        return open_signed(raw, AddressRecord, network=self.network, author=author)

    def _meet(
        self,
        peer: bytes,
        signed: Signed[AddressRecord],
        name: str | None = None,
        also: keyvalue.Change | None = None,
    ) -> None:
        before = self.roster.get(peer)
        met = self.roster.met(peer, signed.record, name=name, signed=signed.raw)
        # A peer may show again and again the invitation that it came by: nothing is new then.
        again = before is not None and also is not None and self._state.get(also[0]) == also[1]
        self.roster.put(met, *([] if also is None else [also]), sync=not again)
        if before is None or before.blocked:
            self.roster.tell(peer, "added")
        elif before.through is not None or before.introducible != met.introducible:
            self.roster.tell(peer, "confirmed")


@dataclass(frozen=True, slots=True)
class _Asked:
    call: batch.Call
    header: dict[str, encoding.Value]
    """The call's, not encoded."""
    deadline_ms: int


class RequestBatcher:
    """Small calls to all peers: one request at a time to each, carrying what has gathered.

    Args:
        net: calls peers.
        halves: whether only half of what is about leaves at a time.
        timeout_ms: how long a call may take, its wait for others included.
    """

    def __init__(self, net: PeerNet, *, halves: bool, timeout_ms: int) -> None:
        self._net = net
        self._clock = net.context.clock
        self.timeout_ms = timeout_ms
        self._took_ms = 0
        """Of the last request, to whichever peer."""
        self._gather: gather.Gather[bytes, _Asked, frame.Reply] = gather.Gather(
            self._fly,
            most=half_of if halves else lambda *_: limits.BATCH_CALLS_MAX,
            size_of=lambda asked: asked.call.size_bytes,
            size_max=limits.BATCH_BYTES_MAX,
            pause=self._wait,
            spawn=net.spawn,
            stopped=lambda: errors.PeerSilent("this node was stopped, or failed at this"),
        )

    def is_full(self, peer: bytes) -> bool:
        """Say whether no more calls may wait for a peer."""
        return self._gather.waiting(peer) >= BATCH_WAITING_MAX

    async def call(
        self, peer: bytes, call: batch.Call, header: dict[str, encoding.Value]
    ) -> frame.Reply:
        """Return a peer's answer to a call that may share a request; `header` is not encoded.

        Raises:
            XscError: as PeerNet.call.
        """
        deadline_ms = self._clock.monotonic_ms() + self.timeout_ms
        return await self._gather.submit(peer, _Asked(call, header, deadline_ms))

    async def _wait(self) -> None:
        await self._clock.sleep_ms(min(GATHER_MS_MAX, self._took_ms // 4))

    async def _fly(
        self, peer: bytes, group: Sequence[_Asked]
    ) -> Sequence[frame.Reply | errors.XscError]:
        """Send a batch as one request; return what each call was answered."""
        # The oldest decides: no call may last longer than it would have alone.
        first = group[0]
        began_ms = self._clock.monotonic_ms()
        left_ms = first.deadline_ms - began_ms
        if left_ms <= 0:
            raise errors.PeerSilent("the peer was busy for too long")
        replies: list[frame.Reply | errors.XscError]
        if len(group) == 1:
            replies = [await self._alone(peer, first)]
        else:
            header, parts = batch.pack_calls([asked.call for asked in group])
            whole = await self._net.call_alone(peer, batch.METHOD, header, parts, left_ms)
            name = self._net.roster.info(peer).name
            answers = batch.unpack_answers(whole, len(group))
            replies = [batch.outcome_of(answer, name) for answer in answers]
            for number, answer in enumerate(answers):
                if answer.status == batch.ALONE:
                    try:
                        replies[number] = await self._alone(peer, group[number])
                    except errors.XscError as fault:
                        replies[number] = fault
        self._took_ms = self._clock.monotonic_ms() - began_ms
        return replies

    async def _alone(self, peer: bytes, asked: _Asked) -> frame.Reply:
        """Send a call by itself."""
        left_ms = max(1, asked.deadline_ms - self._clock.monotonic_ms())
        call = asked.call
        return await self._net.call_alone(peer, call.method, asked.header, call.parts, left_ms)


def half_of(waiting: int, answered: int) -> int:
    """Return how many calls may leave as one request: half of those that are about.

    Args:
        waiting: that could leave.
        answered: whose request has just come back; as many are likely to follow them.
    """
    return min(limits.BATCH_CALLS_MAX, max(HALVED_LEAST, (waiting + answered + 1) // 2))
