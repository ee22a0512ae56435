"""Calls between peers: signs what goes out, checks what comes in, knows who is who.

An arriving request passes, in this order: the caller's signature over its head
fields, the quota, the replay window; only then is its body read, its digest
compared, its parts held against their roots, and the handler run.
Callers that are not known are told nothing, except `peers.join` with the
secret of an invitation.
"""

from __future__ import annotations

import asyncio
import json
import re
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from xsc.base.clock import Clock, Entropy, Executor
from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import (
    ConfigInvalid,
    FrameInvalid,
    InvitationInvalid,
    NotFound,
    PeerBlocked,
    PeerSilent,
    RateLimited,
    ShardMismatch,
    SignatureInvalid,
    StoreDamaged,
    XscError,
)
from xsc.base.fields import take_bytes, take_int, take_list
from xsc.base.ids import short, to_text
from xsc.base.keyvalue import KeyValue, prefix_end
from xsc.base.limits import (
    ADDRESSES_A_PEER_MAX,
    ADDRESSES_MS,
    INTRODUCED_A_PEER_MAX,
    JOIN_BYTES_MAX,
    KIB,
    MIB,
    NONCE_BYTES,
    PEER_TIMEOUT_MS,
    SEEK_INTERVAL_MS,
)
from xsc.base.log import Log
from xsc.base.merkle import Part, root_of
from xsc.base.peering import Asked, GroupHandler, Handler, Outcome
from xsc.base.tally import Tally
from xsc.identity.envelope import Signed, open_signed, sign
from xsc.identity.keys import KeyPair, network_id
from xsc.net.calls import batch, problems, signing
from xsc.net.calls.frame import Reply, head_of, pack_head, unpack
from xsc.net.calls.quota import Quota, Ticket
from xsc.net.calls.replay import ReplayGuard
from xsc.net.calls.request_batcher import Lanes
from xsc.net.peers import circle
from xsc.net.peers import invitation as invitations
from xsc.net.peers.introductions import WHERE, Friends
from xsc.net.peers.registry import AddressRecord, PeerBook, PeerInfo
from xsc.net.transport.addresses import is_loopback, split
from xsc.net.transport.port import Arrival, Dropped, RawRequest, RawResponse, Transport

OnChange: TypeAlias = Callable[[bytes, str], None]
"""Hears of a peer that was "added", "removed", "blocked", "renamed" or "confirmed"."""
AnswerBound: TypeAlias = Callable[[Mapping[str, Value]], int]
"""Says by a call's header how much its answer has at most; raises where that breaks a rule."""

HEALTH = "/health"
ROOT = "/peer/v1/"
JOIN = "peers.join"
HELLO = "peers.hello"
HORIZONS = b"net/replay/"
OWN = b"net/self"
HASH_INLINE_BYTES = MIB + 4 * KIB
"""Bodies up to this size, a shard and its head, are hashed where they stand: it takes 0.3 ms. A
thread would give up and take the interpreter lock for each 16 KiB of it."""
_METHOD = re.compile(r"[a-z]{1,32}\.[a-z_]{1,32}")


def _read_horizons(store: KeyValue) -> dict[bytes, int]:
    horizons = {}
    for key, raw in store.scan(HORIZONS, prefix_end(HORIZONS)):
        value = decode(raw)
        if not isinstance(value, dict) or value.get("v") != 1:
            raise StoreDamaged("a replay horizon in the state database is of no known form")
        horizons[key.removeprefix(HORIZONS)] = take_int(value, "horizon_ms")
    return horizons


def _answer_of(outcome: Outcome) -> batch.Answer:
    try:
        if not isinstance(outcome, XscError):
            return batch.answered(*outcome)
    except XscError as fault:
        outcome = fault
    return batch.refused(problems.answer_of(outcome))


def _check_parts(parts: Sequence[Part]) -> None:
    for index, part in enumerate(parts):
        if root_of(part.data) != part.root:
            raise ShardMismatch(f"part {index} of the request does not have its root")


class PeerNet:
    """The peers of a node, and calls in both directions.

    Args:
        key: this node's identity.
        network_name: of the network that all peers share.
        clock, entropy, executor: the node's.
        transport: carries requests; `start` lets it serve.
        store: keeps peers, invitations and replay horizons, under `net/`.
        log: hears of peers that come and go, and of handlers that fail.
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
        self.node_id = key.node_id
        self.name = name
        self.network = network_id(network_name)
        self._network_name = network_name
        self._key = key
        self._clock = clock
        self._entropy = entropy
        self._executor = executor
        self._transport = transport
        self._store = store
        self._log = log
        self._advertise = tuple(advertise)
        self._quota = quota or Quota()
        self._book = PeerBook(store, name)
        self._invitations = invitations.Invitations(store)
        self._replay = ReplayGuard(boot_ms=clock.now_ms(), horizons=_read_horizons(store))
        self._friends = Friends(
            key=key,
            network=self.network,
            clock=clock,
            log=log,
            book=self._book,
            caller=self,
            accepts=accepts,
            added=self._was_introduced,
            moved=self._greet_soon,
        )
        self._handlers: dict[str, Handler] = {
            HELLO: self._hello,
            WHERE: self._friends.where,
            batch.METHOD: self._batch,
        }
        self._groups: dict[str, GroupHandler] = {}
        self._shared: dict[str, Lanes] = {}
        self._bounds: dict[str, AnswerBound] = {}
        self._listeners: list[OnChange] = []
        self._answered_at: dict[bytes, str] = {}
        self._greeted: set[bytes] = set()
        self._greeting: set[bytes] = set()
        self._again: set[bytes] = set()
        """Of those being greeted, who is to be greeted once more."""
        self._silent: set[bytes] = set()
        """Peers whose last call found nobody."""
        self._told: tuple[str, ...] = ()
        """The addresses that the peers were told last."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._moves = Tally(ADDRESSES_A_PEER_MAX, ADDRESSES_MS)
        self._seq = 0

    # Life

    def register(self, handlers: Mapping[str, Handler]) -> None:
        """Answer these methods from now on; each belongs to one service."""
        for method, handler in handlers.items():
            assert _METHOD.fullmatch(method), method
            assert method not in self._handlers, method
            assert method != JOIN
            self._handlers[method] = handler

    def register_groups(self, handlers: Mapping[str, GroupHandler]) -> None:
        """Answer calls of these methods, which are registered, so where several come together."""
        assert self._handlers.keys() >= handlers.keys()
        self._groups.update(handlers)

    def bound_answers(self, bounds: Mapping[str, AnswerBound]) -> None:
        """Begin calls of these methods, which answer much, once there is room for the answer."""
        assert self._handlers.keys() >= bounds.keys()
        self._bounds.update(bounds)

    def share(self, *methods: str, halves: bool = False, timeout_ms: int = PEER_TIMEOUT_MS) -> None:
        """Let small calls of these methods share requests; they must be quick and answer little.

        What is shared by one call of this does not wait for what is by another.

        Args:
            methods: whose calls.
            halves: have only half of what is about leave at a time (the request batcher).
            timeout_ms: how long each call may take.
        """
        lanes = Lanes(
            self._clock, self._call_alone, self._spawn, halves=halves, timeout_ms=timeout_ms
        )
        self._shared.update(dict.fromkeys(methods, lanes))

    async def start(self) -> None:
        """Serve, and tell every known peer where this node is now."""
        self._seq = self._next_seq()
        await self._transport.serve(self._answer)
        self._told = self.addresses()
        for peer in self.peers():
            self._greet_soon(peer)

    async def run(self) -> None:
        """Look for silent peers at others, and tell all when this node has moved; never returns."""
        while True:
            await self._clock.sleep_ms(SEEK_INTERVAL_MS)
            if self.addresses() != self._told:
                self._told = self.addresses()
                self._seq = self._next_seq()
                for peer in self.peers():
                    self._greet_soon(peer)
            known = self.peers()
            await self._friends.seek(
                [peer for peer in known if peer in self._silent],
                [peer for peer in known if peer in self._greeted],
            )

    def _next_seq(self) -> int:
        """Return the number of the next address record: above all earlier ones."""
        raw = self._store.get(OWN)
        value = None if raw is None else decode(raw)
        if value is not None and (not isinstance(value, dict) or value.get("v") != 1):
            raise StoreDamaged("this node's own entry in the state database is of no known form")
        seq = max(self._clock.now_ms(), 0 if value is None else take_int(value, "seq") + 1)
        self._store.write([(OWN, encode({"v": 1, "seq": seq}))], sync=True)
        return seq

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

    # Peers

    def peers(self) -> list[bytes]:
        """Return every known peer that is not blocked, never this node."""
        return [info.node_id for info in self._book.all() if not info.blocked]

    def all_peers(self) -> list[bytes]:
        """Return every known peer, blocked ones too, by name."""
        return [info.node_id for info in self._book.all()]

    def info(self, peer: bytes) -> PeerInfo:
        """Return what is known of a peer.

        Raises:
            PeerUnknown: nothing is.
        """
        return self._book.info(peer)

    def find(self, text: str) -> bytes:
        """Return the peer of a name, an id, or a beginning of an id that fits one only.

        Raises:
            PeerUnknown: nobody, ArgumentInvalid: more than one.
        """
        return self._book.find(text).node_id

    def addresses(self) -> tuple[str, ...]:
        """Return where others are told to reach this node; on loopback only if it is there."""
        found = self._advertise or self._transport.addresses()
        if self._transport.fingerprint is None:
            return found
        return tuple(address for address in found if not is_loopback(split(address)[0]))

    def on_change(self, listener: OnChange) -> None:
        """Tell a listener of every peer of which something changes from now on."""
        self._listeners.append(listener)

    def _tell(self, peer: bytes, what: str) -> None:
        self._log.info(f"peer_{what}", peer=short(peer))
        for listener in self._listeners:
            listener(peer, what)

    async def invite(self, ttl_ms: int) -> str:
        """Return an invitation that one node can join by, until the time is up.

        Raises:
            RateLimited: too many are open.
            ConfigInvalid: there is no address that an invitation could name.
        """
        if not self.addresses():
            raise ConfigInvalid(
                "this node knows no address at which others could reach it",
                hint="set advertise to the address or name that reaches this machine from outside",
            )
        now_ms = self._clock.now_ms()
        secret = self._entropy.token(invitations.SECRET_BYTES)
        text = invitations.Invitation(
            node_id=self.node_id,
            name=self.name,
            addresses=self.addresses(),
            fingerprint=self._transport.fingerprint,
            network=self._network_name,
            secret=secret,
            expires_ms=now_ms + ttl_ms,
        ).to_text()
        self._invitations.issue(secret, expires_ms=now_ms + ttl_ms, now_ms=now_ms)
        return text

    async def join(self, invitation: str, name: str | None = None) -> bytes:
        """Become a peer of the node that issued an invitation; return its id.

        Args:
            invitation: the text.
            name: what to call the other node here; its own name otherwise.

        Raises:
            InvitationInvalid: no invitation, for another network, from this node,
                expired, used or never issued.
            PeerSilent: the issuer does not answer.
        """
        asked = invitations.from_string(invitation)
        if asked.network != self._network_name:
            raise InvitationInvalid(
                f"the invitation is for the network '{asked.network}', "
                f"this node is in '{self._network_name}'"
            )
        if asked.node_id == self.node_id:
            raise InvitationInvalid("the invitation was issued by this node itself")
        if self._clock.now_ms() >= asked.expires_ms:
            raise InvitationInvalid("the invitation has expired", hint="ask for another")
        issuer = PeerInfo(
            node_id=asked.node_id,
            name=asked.name,
            addresses=asked.addresses,
            fingerprint=asked.fingerprint,
            added_ms=0,
        )
        # Refused here rather than after the secret is used up.
        self._book.met(asked.node_id, self._record().record, name=name, now_ms=0)
        header: dict[str, Value] = {"secret": asked.secret, "record": self._record().raw}
        reply = await self._ask(issuer, JOIN, header, (), PEER_TIMEOUT_MS)
        theirs = open_signed(
            take_bytes(reply.header, "record"),
            AddressRecord,
            network=self.network,
            author=asked.node_id,
        )
        self._meet(asked.node_id, theirs, name)
        return asked.node_id

    def restore(self, told: PeerInfo) -> None:
        """Take a peer as the directory tells of it: blocked or not, confirmed or not.

        Of its addresses, the newer ones stay.

        Raises:
            SpaceExhausted: PEERS_MAX are known.
        """
        peer = told.node_id
        if peer == self.node_id:
            return
        before = self._book.get(peer)
        info = self._book.restored(told, self._clock.now_ms())
        if info == before:
            return
        self._book.put(info)
        was_called = before is not None and not before.blocked
        if was_called and info.blocked:
            self._forget(peer)
            self._tell(peer, "blocked")
        elif not was_called and not info.blocked:
            self._tell(peer, "added")

    def removed(self) -> list[bytes]:
        """Return whom the operator removed and no invitation brought back, the newest first."""
        return self._book.removed()

    def restore_removed(self, peers: Sequence[bytes]) -> None:
        """Remove again whom the operator had removed, the newest first."""
        for peer in reversed(peers):
            if self._book.was_removed(peer):
                continue
            known = self._book.get(peer) is not None
            self._book.remove(peer)
            if known:
                self._forget(peer)
                self._tell(peer, "removed")

    def refuse_before(self, peer: bytes, until_ms: int) -> None:
        """Have the next start of this node refuse what a peer made before a time.

        For a node whose memory of what it has seen was lost.
        """
        raw = encode({"v": 1, "horizon_ms": until_ms})
        self._store.write([(HORIZONS + peer, raw)], sync=True)

    async def greet(self, peer: bytes) -> bool:
        """Tell a peer where this node is now; return whether it answered."""
        await self._say_hello(peer)
        return peer in self._greeted

    async def rename(self, peer: bytes, name: str) -> None:
        """Call a peer otherwise here; what it calls itself stays.

        Raises:
            PeerUnknown: no such peer. ArgumentInvalid: the name is taken, or none.
        """
        self._book.put(self._book.renamed(peer, name))
        self._tell(peer, "renamed")

    async def confirm(self, peer: bytes) -> None:
        """Answer for an introduced peer as for an invited one: it may introduce others, too.

        Raises:
            PeerUnknown: no such peer.
        """
        self._book.put(self._book.info(peer).model_copy(update={"confirmed": True}))
        self._tell(peer, "confirmed")
        self._introduce_all()

    def shares_with(self, peer: bytes) -> list[bytes]:
        """Return the peers with which one shares its credit, itself among them.

        These are all that came through the same introducer and are not confirmed. Who was
        removed stays one of them: what it owes is still owed.
        """
        through = self._book.through(peer)
        return [peer] if through is None else self._book.came_through(through)

    def introducer_of(self, node: bytes) -> str:
        """Return the id of whose word there is for a node: its own where it is known directly.

        Empty of a node that is not known.
        """
        if node == self.node_id:
            return to_text(node)
        info = self._book.get(node)
        return "" if info is None else to_text(info.through or node)

    async def remove(self, peer: bytes) -> None:
        """Forget a peer; it must be invited again to come back.

        Raises:
            PeerUnknown: no such peer.
        """
        self._book.info(peer)
        self._book.remove(peer)
        self._forget(peer)
        self._tell(peer, "removed")

    async def block(self, peer: bytes) -> None:
        """Answer a peer no more, and call it no more, until it is removed and invited anew.

        Raises:
            PeerUnknown: no such peer.
        """
        self._book.put(self._book.info(peer).model_copy(update={"blocked": True}))
        self._forget(peer)
        self._tell(peer, "blocked")

    def _forget(self, peer: bytes) -> None:
        # What the replay guard saw of it stays: it must hold when the peer comes back.
        self._quota.forget(peer)
        self._greeted.discard(peer)
        self._silent.discard(peer)
        self._answered_at.pop(peer, None)

    def _meet(
        self,
        peer: bytes,
        signed: Signed[AddressRecord],
        name: str | None = None,
        also: tuple[bytes, bytes | None] | None = None,
    ) -> None:
        before = self._book.get(peer)
        met = self._book.met(
            peer, signed.record, name=name, now_ms=self._clock.now_ms(), signed=signed.raw
        )
        # A peer may show again and again the invitation that it came by: nothing is new then.
        again = before is not None and also is not None and self._store.get(also[0]) == also[1]
        self._book.put(met, *([] if also is None else [also]), sync=not again)
        self._greeted.add(peer)
        if before is None or before.blocked:
            self._tell(peer, "added")
        if not again:
            self._introduce_all()

    def _was_introduced(self, peer: bytes) -> None:
        self._tell(peer, "added")
        self._introduce_all()

    def _introduce_all(self) -> None:
        """Greet those anew that are to hear of the others."""
        for peer in self._friends.to_tell():
            self._greet_soon(peer)

    def _record(self) -> Signed[AddressRecord]:
        """Return this node's own address record, signed."""
        record = AddressRecord(
            name=self.name,
            addresses=self.addresses(),
            fingerprint=self._transport.fingerprint,
            introducible=self._friends.accepts,
            seq=self._seq,
        )
        return sign(record, self._key, self.network)

    # Calls

    async def call(
        self,
        peer: bytes,
        method: str,
        header: dict[str, Value],
        parts: Sequence[Part] = (),
        *,
        timeout_ms: int | None = None,
    ) -> Reply:
        """Return a peer's answer; its parts are not verified.

        Raises:
            PeerUnknown, PeerBlocked: not to be called.
            PeerSilent: no connection, or no answer in time.
            XscError: what the peer answered with.
        """
        lanes = self._shared.get(method) if timeout_ms is None else None
        if lanes is not None and not lanes.is_full(peer):
            call = batch.Call(method, encode(header), parts)
            if batch.may_share(call):
                return await lanes.call(peer, self._callable(peer).name, call, header)
        return await self._call_alone(peer, method, header, parts, timeout_ms or PEER_TIMEOUT_MS)

    def _callable(self, peer: bytes) -> PeerInfo:
        info = self._book.info(peer)
        if info.blocked:
            raise PeerBlocked(f"the peer {info.name} is blocked here")
        return info

    async def _call_alone(
        self,
        peer: bytes,
        method: str,
        header: dict[str, Value],
        parts: Sequence[Part],
        timeout_ms: int,
    ) -> Reply:
        info = self._callable(peer)
        try:
            reply = await self._ask(info, method, header, parts, timeout_ms)
        except PeerSilent:
            self._greeted.discard(peer)
            self._silent.add(peer)
            raise
        self._silent.discard(peer)
        if peer not in self._greeted:
            self._greet_soon(peer)
        return reply

    async def _ask(
        self,
        info: PeerInfo,
        method: str,
        header: dict[str, Value],
        parts: Sequence[Part],
        timeout_ms: int,
    ) -> Reply:
        head = pack_head(header, parts)
        body = [head, *(part.data for part in parts)]
        deadline_ms = self._clock.monotonic_ms() + timeout_ms
        reason = "it has told no address"
        # The address that answered last comes first; a dropped connection is tried once
        # more, because kept ones go stale.
        last = self._answered_at.get(info.node_id)
        for address in sorted(info.addresses, key=lambda address: address != last):
            for _ in range(2):
                left_ms = deadline_ms - self._clock.monotonic_ms()
                if left_ms <= 0:
                    break
                try:
                    response = await self._transport.send(
                        address,
                        info.fingerprint,
                        self._signed(info.node_id, method, head, body),
                        left_ms,
                    )
                except Dropped:
                    reason = "it dropped the connection"
                    continue
                except PeerSilent as silent:
                    reason = silent.message
                    break
                self._answered_at[info.node_id] = address
                return self._opened(info, response)
        raise PeerSilent(f"the peer {info.name} does not answer: {reason}")

    def _signed(
        self, to: bytes, method: str, head: bytes, body: Sequence[bytes | memoryview]
    ) -> RawRequest:
        path = ROOT + method
        headers = signing.sign_request(
            self._key,
            network=self.network,
            to=to,
            method="POST",
            path=path,
            head=head,
            created_ms=self._clock.now_ms(),
            entropy=self._entropy.token(NONCE_BYTES - signing.STAMP_BYTES),
        )
        return RawRequest("POST", path, headers, body)

    @staticmethod
    def _opened(info: PeerInfo, response: RawResponse) -> Reply:
        body = memoryview(response.body[0]) if response.body else memoryview(b"")
        if response.status != 200:
            raise problems.error_of(response.status, body, info.name)
        frame = unpack(body)
        return Reply(frame.header, [memoryview(part.data) for part in frame.parts])

    def _greet_soon(self, peer: bytes) -> None:
        """Greet a peer, and once more where it is being greeted: with what is true by then."""
        self._greeted.add(peer)
        self._again.add(peer)
        if peer not in self._greeting:
            self._greeting.add(peer)
            self._spawn(self._greet(peer))

    async def _greet(self, peer: bytes) -> None:
        try:
            while peer in self._again:
                self._again.discard(peer)
                await self._say_hello(peer)
        finally:
            self._greeting.discard(peer)

    async def _say_hello(self, peer: bytes) -> None:
        """Tell a peer where this node and its friends are; silence is met by a later call."""
        self._greeted.add(peer)
        try:
            info = self._book.info(peer)
            header: dict[str, Value] = {
                "record": self._record().raw,
                "members": self._friends.members_for(info),
            }
            reply = await self._ask(info, HELLO, header, (), PEER_TIMEOUT_MS)
            self._learn(peer, take_bytes(reply.header, "record"))
            self._silent.discard(peer)
        except XscError as fault:
            self._greeted.discard(peer)
            if isinstance(fault, PeerSilent):
                self._silent.add(peer)
            self._log.info("peer_not_greeted", peer=short(peer), code=fault.code)

    # Answers

    async def _answer(self, arrival: Arrival) -> RawResponse:
        """Answer anything that arrives; the one place that catches everything."""
        if arrival.path == HEALTH and arrival.method == "GET":
            body = json.dumps({"status": "ok"}).encode()
            return RawResponse(200, {"content-type": "application/json"}, [body])
        claimed = signing.claimed_caller(arrival.headers)
        info = None if claimed is None else self._book.get(claimed)
        known = info is not None and not info.blocked
        try:
            if known:
                return await self._answer_known(arrival)
            return await self._answer_unknown(arrival)
        except XscError as error:
            return problems.answer_of(error)
        except Exception:  # noqa: BLE001 (the request middleware)
            self._log.error(
                "peer_request_failed", path=arrival.path[:80], trace=traceback.format_exc()
            )
            return problems.failed()

    def _verified(self, arrival: Arrival) -> signing.VerifiedCaller:
        return signing.verify_request(
            arrival.headers,
            network=self.network,
            to=self.node_id,
            method=arrival.method,
            path=arrival.path,
        )

    async def _answer_known(self, arrival: Arrival) -> RawResponse:
        try:
            caller = self._verified(arrival)
        except SignatureInvalid:
            # Somebody who only claims to be a peer: no more than any unknown caller.
            return self._refusal(arrival)
        ticket = self._quota.enter(caller.node_id, self._clock.monotonic_ms())
        try:
            self._admit(caller)
            answer = await self._handle(arrival, caller, ticket)
            ticket.drop_body()
            ticket.set_answer(sum(len(buffer) for buffer in answer.body))
        except BaseException:
            ticket.close()
            raise
        return replace(answer, sent=ticket.close)

    def _refusal(self, arrival: Arrival) -> RawResponse:
        try:
            self._quota.count(arrival.source, self._clock.monotonic_ms())
        except RateLimited:
            return problems.busy()
        return problems.nothing()

    def _admit(self, caller: signing.VerifiedCaller) -> None:
        accepted = self._replay.admit(
            caller.node_id,
            created_ms=caller.created_ms,
            nonce=caller.nonce,
            now_ms=self._clock.now_ms(),
        )
        if accepted.horizon_ms is not None:
            raw = encode({"v": 1, "horizon_ms": accepted.horizon_ms})
            # Not awaited: nothing else of this peer may be accepted before it is on the disk.
            self._store.write([(HORIZONS + caller.node_id, raw)], sync=True)

    async def _handle(
        self, arrival: Arrival, caller: signing.VerifiedCaller, ticket: Ticket
    ) -> RawResponse:
        header, parts = await self._read(arrival, caller, ticket)
        method = arrival.path.removeprefix(ROOT)
        if method == JOIN:
            return self._join(caller, header)
        handler = self._handlers.get(method)
        if handler is None or arrival.method != "POST" or arrival.path != ROOT + method:
            raise NotFound("this node has no such method")
        if method in self._bounds:
            await ticket.wait_for_answer(self._bounds[method](header))
        header, bodies = await handler(caller.node_id, header, parts)
        return self._framed(header, bodies)

    @staticmethod
    def _framed(header: dict[str, Value], bodies: Sequence[bytes | memoryview]) -> RawResponse:
        head = pack_head(header, [Part(body, b"") for body in bodies])
        return RawResponse(200, {"content-type": "application/octet-stream"}, [head, *bodies])

    async def _read(
        self, arrival: Arrival, caller: signing.VerifiedCaller, ticket: Ticket
    ) -> tuple[dict[str, Value], list[Part]]:
        body = await arrival.read(ticket.take_body)
        if signing.digest_of(head_of(body)) != caller.digest:
            raise SignatureInvalid("the body is not the one that was signed")
        frame = unpack(body)
        if any(not part.root for part in frame.parts):
            raise FrameInvalid("a part of a request has no root")
        if len(body) <= HASH_INLINE_BYTES:
            _check_parts(frame.parts)
        else:
            await self._executor.run(_check_parts, frame.parts)
        return frame.header, frame.parts

    async def _answer_unknown(self, arrival: Arrival) -> RawResponse:
        """Let the bearer of an invitation in; tell everybody else nothing."""
        if arrival.path != ROOT + JOIN or arrival.size_bytes > JOIN_BYTES_MAX:
            return self._refusal(arrival)
        try:
            ticket = self._quota.enter(arrival.source, self._clock.monotonic_ms())
        except RateLimited:
            return problems.busy()
        try:
            caller = self._verified(arrival)
            header, _ = await self._read(arrival, caller, ticket)
            secret = take_bytes(header, "secret", size=invitations.SECRET_BYTES)
        except XscError:
            return problems.nothing()
        finally:
            ticket.close()
        return self._join(caller, header | {"secret": secret})

    def _join(self, caller: signing.VerifiedCaller, header: dict[str, Value]) -> RawResponse:
        """Take the bearer of an invitation as a peer. Awaits nothing: a secret works once."""
        now_ms = self._clock.now_ms()
        secret = take_bytes(header, "secret", size=invitations.SECRET_BYTES)
        before = self._book.get(caller.node_id)
        used = self._invitations.redeem(
            secret, caller.node_id, known=before is not None and not before.blocked, now_ms=now_ms
        )
        # From here on the caller has shown an invitation, and may hear what is wrong.
        if before is not None and before.blocked:
            raise PeerBlocked("this node has blocked the caller")
        if before is None:
            self._admit(caller)
        record = open_signed(
            take_bytes(header, "record"), AddressRecord, network=self.network, author=caller.node_id
        )
        self._moves.count(caller.node_id, self._clock.monotonic_ms(), "address records")
        self._meet(caller.node_id, record, also=used)
        return self._framed({"record": self._record().raw}, ())

    def _learn(self, peer: bytes, raw: bytes) -> None:
        """Take a peer's own record of where it is, if it is newer."""
        signed = open_signed(raw, AddressRecord, network=self.network, author=peer)
        before = self._book.info(peer)
        moved = self._book.moved(peer, signed.record, raw)
        if moved is not None:
            self._moves.count(peer, self._clock.monotonic_ms(), "address records")
            # Not synced: a peer may say so as often as its quota allows, and says it again.
            self._book.put(moved, sync=False)
            self._log.info("peer_moved", peer=short(peer))
            # Of an introduced one others hear with the next greeting: it brings none about.
            if moved.introducible and not before.introducible and circle.may_introduce(moved):
                self._introduce_all()

    async def _batch(
        self, caller: bytes, header: dict[str, Value], parts: Sequence[Part]
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        """Carry out several calls at once, each with an answer and a count of its own."""
        calls = batch.unpack_calls(header, parts)
        answers: dict[int, batch.Answer] = {}
        # The first is counted as the request.
        tickets: list[Ticket] = []
        together: dict[str, list[int]] = {}
        try:
            for number, call in enumerate(calls):
                if number:
                    try:
                        tickets.append(self._quota.enter(caller, self._clock.monotonic_ms()))
                    except RateLimited as fault:
                        answers[number] = batch.refused(problems.answer_of(fault))
                        continue
                # Where they are answered one by one, each is a group of its own.
                group = call.method if call.method in self._groups else str(number)
                together.setdefault(group, []).append(number)
            found = await asyncio.gather(
                *(
                    self._some_of(caller, [calls[number] for number in numbers])
                    for numbers in together.values()
                )
            )
            for numbers, some in zip(together.values(), found, strict=True):
                answers.update(zip(numbers, some, strict=True))
        finally:
            for ticket in tickets:
                ticket.close()
        return batch.pack_answers([answers[number] for number in range(len(calls))])

    async def _some_of(self, caller: bytes, calls: Sequence[batch.Call]) -> list[batch.Answer]:
        """Answer calls of one method, each for itself."""
        answers: dict[int, batch.Answer] = {}
        asked: dict[int, Asked] = {}
        for number, call in enumerate(calls):
            try:
                asked[number] = (self._header_of(call), call.parts)
            except XscError as fault:
                answers[number] = batch.refused(problems.answer_of(fault))
        try:
            found = await self._found(caller, calls[0].method, list(asked.values()))
            answers.update(zip(asked, map(_answer_of, found), strict=True))
        except Exception:  # noqa: BLE001 (as the request middleware: one call must not end others)
            self._log.error(
                "peer_request_failed", path=calls[0].method[:80], trace=traceback.format_exc()
            )
            answers.update(dict.fromkeys(asked, batch.refused(problems.failed())))
        return [answers[number] for number in range(len(calls))]

    def _header_of(self, call: batch.Call) -> dict[str, Value]:
        # Others answer too much, or do it too slowly, to be held for all of a batch.
        may_share = call.method in self._shared and call.method != batch.METHOD
        if not may_share or call.method not in self._handlers:
            raise NotFound("this node has no such method for a batch")
        header = decode(call.header)
        if not isinstance(header, dict):
            raise FrameInvalid("the header of a call holds no map")
        return header

    async def _found(self, caller: bytes, method: str, asked: Sequence[Asked]) -> Sequence[Outcome]:
        if not asked:
            return []
        try:
            if method in self._groups:
                return await self._groups[method](caller, asked)
            ((header, parts),) = asked
            return [await self._handlers[method](caller, header, parts)]
        except XscError as fault:
            return [fault] * len(asked)

    async def _hello(
        self,
        caller: bytes,
        header: dict[str, Value],
        parts: Sequence[Part],  # noqa: ARG002 (a hello has none)
    ) -> tuple[dict[str, Value], Sequence[bytes | memoryview]]:
        self._learn(caller, take_bytes(header, "record"))
        self._friends.take(caller, take_list(header, "members", most=INTRODUCED_A_PEER_MAX))
        return {"record": self._record().raw}, ()
