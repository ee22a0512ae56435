"""Answers the requests of peers: signature, quota, replay window, body, handler.

An arriving request passes, in this order: the caller's signature over its head
fields, the quota, the replay window; only then is its body read, its digest
compared, its parts held against their roots, and the handler run. A caller that
is no peer learns nothing, except by `peers.join` with the secret of an invitation.
"""

from __future__ import annotations

import asyncio
import json
import re
import traceback
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

from xsc.base import errors, fields, keyvalue, limits, merkle, turns
from xsc.base.encoding import Value, decode
from xsc.base.peering import Answered, Asked, GroupHandler, Handler, Header, Outcome, Parts
from xsc.base.work import ENTERED, Measured
from xsc.identity.context import Context
from xsc.net.calls import batch, costs, problems, sender, signing
from xsc.net.calls.frame import LENGTH_BYTES, head_of, pack_head, unpack
from xsc.net.calls.quota import Quota, Ticket
from xsc.net.peers import invitation as invitations
from xsc.net.peers.roster import Roster, number_row, read_number
from xsc.net.transport.port import Arrival, Buffer, RawResponse, Traffic

T = TypeVar("T")
AnswerBound: TypeAlias = Callable[[Mapping[str, Value]], int]
"""Returns the most bytes that a call's answer has, by its header; raises if that breaks a rule."""
JoinHandler: TypeAlias = Callable[[signing.VerifiedCaller, dict[str, Value]], dict[str, Value]]
"""Takes the verified caller and the header of `peers.join`; returns the header of the answer."""

HEALTH = "/health"
UNKNOWN = "only known peers are answered here"
"""What callers that are not known are told, whatever was wrong."""
JOIN = "peers.join"
HORIZONS = b"net/replay/"
HASH_INLINE_BYTES = limits.MIB + 4 * limits.KIB
"""Bodies up to this size, a shard and its head, are hashed where they stand: it takes 0.3 ms. A
thread would give up and take the interpreter lock for each 16 KiB of it."""
_METHOD = re.compile(r"[a-z]{1,32}\.[a-z_]{1,32}")


def read_horizons(store: keyvalue.KeyValue) -> dict[bytes, int]:
    """Return the replay floor of each peer, in milliseconds of this node's clock."""
    rows = store.scan(HORIZONS, keyvalue.prefix_end(HORIZONS))
    return {key.removeprefix(HORIZONS): read_number(raw, HORIZONS) for key, raw in rows}


def _answer_of(outcome: Outcome) -> batch.Answer:
    try:
        if not isinstance(outcome, errors.XscError):
            return batch.answered(*outcome)
    except errors.XscError as fault:
        outcome = fault
    return batch.refused(problems.answer_of(outcome))


def _check_parts(parts: Sequence[merkle.Part]) -> None:
    for index, part in enumerate(parts):
        if merkle.root_of(part.data) != part.root:
            raise errors.ShardMismatch(f"part {index} of the request does not have its root")


class RequestServer:
    """Answers what arrives at the transport.

    Args:
        context: the node's values.
        roster: the known peers.
        join: answers `peers.join`, from peers and from strangers.
        work: decodes large heads.
        traffic: counts bodies.
    """

    def __init__(
        self,
        context: Context,
        roster: Roster,
        *,
        join: JoinHandler,
        work: turns.PeerWork,
        traffic: Traffic,
    ) -> None:
        self._context = context
        self._roster = roster
        self._store = context.state
        self.quota = Quota()
        self._work = work
        self._traffic = traffic
        self._replay = signing.ReplayGuard(
            boot_ms=context.clock.now_ms(), horizons=read_horizons(context.state)
        )
        self.handlers: dict[str, Handler] = {batch.METHOD: self._batch}
        self._groups: dict[str, GroupHandler] = {}
        self._bounds: dict[str, AnswerBound] = {}
        self._batched: set[str] = set()
        """Methods that a batch may call."""
        self._join = join

    def register(self, handlers: Mapping[str, Handler]) -> None:
        """Answer these methods from now on; each belongs to one service."""
        for method, handler in handlers.items():
            assert _METHOD.fullmatch(method), method
            assert method not in self.handlers, method
            assert method != JOIN
            self.handlers[method] = handler

    def register_groups(self, handlers: Mapping[str, GroupHandler]) -> None:
        """Answer calls of these methods, which are registered, so where several come together."""
        assert self.handlers.keys() >= handlers.keys()
        self._groups.update(handlers)

    def bound_answers(self, bounds: Mapping[str, AnswerBound]) -> None:
        """Begin calls of these methods, which answer much, once there is room for the answer."""
        assert self.handlers.keys() >= bounds.keys()
        self._bounds.update(bounds)

    def answers_little(self, method: str, header: Mapping[str, Value]) -> bool:
        """Say whether the answer to a call is small enough to travel with others.

        Raises:
            RecordInvalid: the header breaks a rule.
        """
        bound = self._bounds.get(method)
        return bound is None or bound(header) <= limits.BATCH_CALL_BYTES_MAX

    def allow_in_batches(self, methods: Iterable[str]) -> None:
        """Answer these methods in a batch, too; they must be quick."""
        self._batched.update(methods)

    def charge_read(self, caller: bytes, method: str, size: int, *, made: bool = False) -> None:
        """Charge a caller what is to be read from the disk for a call, or was: then it is owed.

        Raises:
            RateLimited: it is too much in so short a time.
        """
        if caller != self._context.key.node_id:
            units = size // costs.COSTS.get(method, costs.OTHER).read_bytes
            self.quota.charge(caller, method, self._now_ms(), units, made=made)

    def charge_work(self, peer: bytes, units: int, method: str = "space.next") -> int:
        """Charge a peer for work that it causes; return how many milliseconds more of it waits."""
        now_ms = self._now_ms()
        self.quota.charge(peer, method, now_ms, units, made=True)
        return self.quota.pause_ms(peer, now_ms)

    def refuse_before(self, peer: bytes, until_ms: int) -> None:
        """Have the next start of this node refuse what a peer made before a time.

        For a node whose memory of what it has seen was lost.
        """
        self._store.write([number_row(HORIZONS + peer, until_ms)], sync=True)

    async def answer(self, arrival: Arrival) -> RawResponse:
        """Answer anything that arrives."""
        answer = await self._answer(arrival)
        self._traffic.sent_bytes += sum(map(len, answer.body))
        return answer

    async def _answer(self, arrival: Arrival) -> RawResponse:
        """Answer, and catch everything: no other place does."""
        if arrival.path == HEALTH and arrival.method == "GET":
            body = json.dumps({"status": "ok"}).encode()
            return RawResponse(200, {"content-type": "application/json"}, [body])
        claimed = signing.claimed_caller(arrival.headers)
        try:
            if claimed is not None and self._roster.is_peer(claimed):
                return await self._answer_known(arrival)
            return await self._answer_unknown(arrival)
        except errors.XscError as error:
            return problems.answer_of(error)
        except Exception:  # noqa: BLE001 (the request middleware)
            self._context.log.error(
                "net.request_failed", path=arrival.path[:80], trace=traceback.format_exc()
            )
            return problems.failed()

    def _verified(self, arrival: Arrival) -> signing.VerifiedCaller:
        return signing.verify_request(
            arrival.headers,
            network=self._context.network,
            to=self._context.key.node_id,
            method=arrival.method,
            path=arrival.path,
        )

    async def _answer_known(self, arrival: Arrival) -> RawResponse:
        try:
            caller = self._verified(arrival)
        except errors.SignatureInvalid:
            # Somebody who only claims to be a peer: no more than any unknown caller.
            raise self._refusal(arrival) from None
        method = self._named(arrival.path.removeprefix(sender.ROOT))
        ticket = self.quota.enter(caller.node_id, self._now_ms(), method)
        try:
            self.admit(caller)
            answer = await self._measured(
                self._handle(arrival, caller, ticket), caller.node_id, method
            )
            ticket.drop_body()
            ticket.set_answer(sum(len(buffer) for buffer in answer.body), self._now_ms())
        except BaseException:
            ticket.close()
            raise
        return replace(answer, sent=ticket.close)

    def _now_ms(self) -> int:
        return self._context.clock.monotonic_ms()

    def _named(self, method: str) -> str:
        """Return the method, and nothing for any that this node does not have."""
        return method if method in self.handlers or method == JOIN else ""

    async def _measured(self, work: Coroutine[Any, Any, T], caller: bytes, method: str) -> T:
        """Do what a call asks for, and count the processor time that it takes."""
        spending = self.quota.spending

        def tell(processor_us: int) -> None:
            spending.add(caller, method, self._now_ms(), processor_us=processor_us)

        measured = Measured(work, self._context.executor.processor_us)
        before = ENTERED.set(tell)
        try:
            return await measured
        finally:
            tell(measured.took_us)
            ENTERED.reset(before)

    def _refusal(self, arrival: Arrival) -> errors.Unauthorized:
        """Count a caller that is not known, and return what it is told, whatever was wrong.

        Raises:
            RateLimited: there are too many of them.
        """
        self.quota.count(arrival.source, self._now_ms())
        return errors.Unauthorized(UNKNOWN)

    def admit(self, caller: signing.VerifiedCaller) -> None:
        """Take note of a request, so that it is accepted once.

        Raises:
            ReplayRefused: it was accepted before, or is outside of the window.
        """
        horizon_ms = self._replay.admit(
            caller.node_id,
            created_ms=caller.created_ms,
            nonce=caller.nonce,
            now_ms=self._context.clock.now_ms(),
        )
        if horizon_ms is not None:
            # Not awaited: nothing else of this peer may be accepted before it is on the disk.
            self.refuse_before(caller.node_id, horizon_ms)

    async def _handle(
        self, arrival: Arrival, caller: signing.VerifiedCaller, ticket: Ticket
    ) -> RawResponse:
        method = arrival.path.removeprefix(sender.ROOT)
        cost = costs.COSTS.get(method, costs.OTHER)
        header, parts = await self._read(arrival, caller, ticket, cost.asked)
        if method == JOIN:
            return self._framed(self._join(caller, header), (), cost.answered)
        handler = self.handlers.get(method)
        if handler is None or arrival.method != "POST" or arrival.path != sender.ROOT + method:
            raise errors.NotFound("this node has no such method")
        if method in self._bounds:
            await ticket.wait_for_answer(self._bounds[method](header))
        header, bodies = await handler(caller.node_id, header, parts)
        return self._framed(header, bodies, cost.answered)

    @staticmethod
    def _framed(
        header: dict[str, Value], bodies: Sequence[bytes | memoryview], size_max: int
    ) -> RawResponse:
        head = pack_head(header, [merkle.Part(body, b"") for body in bodies], size_max=size_max)
        return RawResponse(200, {"content-type": "application/octet-stream"}, [head, *bodies])

    async def _read(
        self, arrival: Arrival, caller: signing.VerifiedCaller, ticket: Ticket, size_max: int
    ) -> tuple[dict[str, Value], list[merkle.Part]]:
        begun, head_bytes = bytearray(), 0

        def take(piece: Buffer) -> None:
            nonlocal begun, head_bytes
            ticket.take_body(len(piece), self._now_ms())
            if head_bytes:
                return
            begun.extend(piece[: LENGTH_BYTES + size_max])
            head = head_of(begun, size_max=size_max)
            if head is None:
                return
            # What is behind a head that is refused is not read any more.
            if signing.digest_of(head) != caller.digest:
                raise errors.SignatureInvalid("the body is not the one that was signed")
            # The body has it: nothing is held twice.
            begun, head_bytes = bytearray(), len(head)

        body = await arrival.read(take)
        self._traffic.received_bytes += len(body)
        if not head_bytes:
            raise errors.FrameInvalid("a frame is cut short in its head")
        ticket.charge_content(head_bytes, len(body) - head_bytes, self._now_ms())
        frame = await self._work.run(caller.node_id, head_bytes, unpack, body, size_max=size_max)
        if any(not part.root for part in frame.parts):
            raise errors.FrameInvalid("a part of a request has no root")
        if len(body) <= HASH_INLINE_BYTES:
            _check_parts(frame.parts)
        else:
            await self._context.executor.run(_check_parts, frame.parts)
        return frame.header, frame.parts

    async def _answer_unknown(self, arrival: Arrival) -> RawResponse:
        """Let the bearer of an invitation in; tell everybody else nothing."""
        if arrival.path != sender.ROOT + JOIN or arrival.size_bytes > limits.JOIN_BYTES_MAX:
            raise self._refusal(arrival)
        ticket = self.quota.enter(arrival.source, self._now_ms())
        try:
            caller = self._verified(arrival)
            header, _ = await self._read(arrival, caller, ticket, limits.JOIN_BYTES_MAX)
            secret = fields.take_bytes(header, "secret", size=invitations.SECRET_BYTES)
        except errors.XscError:
            raise errors.Unauthorized(UNKNOWN) from None
        finally:
            ticket.close()
        answer = self._join(caller, header | {"secret": secret})
        return self._framed(answer, (), costs.OTHER.answered)

    async def _batch(self, caller: bytes, header: Header, parts: Parts) -> Answered:
        """Carry out several calls at once, each with an answer and a count of its own."""
        calls = batch.unpack_calls(header, parts)
        answers: dict[int, batch.Answer] = {}
        # The first has the place of the request.
        tickets: list[Ticket] = []
        together: dict[str, list[int]] = {}
        try:
            for number, call in enumerate(calls):
                method, now_ms = self._named(call.method), self._now_ms()
                ticket = Ticket(self.quota, caller, method, None)
                try:
                    if number:
                        ticket = self.quota.enter(caller, now_ms, method)
                        tickets.append(ticket)
                    else:
                        dearer = costs.COSTS.get(method, costs.OTHER).base - limits.REQUEST_UNITS
                        self.quota.charge(caller, method, now_ms, dearer)
                    # The head of the batch has those of its calls.
                    ticket.charge_content(0, call.size_bytes, now_ms)
                except errors.RateLimited as fault:
                    answers[number] = batch.refused(problems.answer_of(fault))
                    continue
                # Where they are answered one by one, each is a group of its own.
                group = call.method if call.method in self._groups else str(number)
                together.setdefault(group, []).append(number)
            found = await asyncio.gather(
                *(
                    self._measured(
                        self._some_of(caller, [calls[number] for number in numbers]),
                        caller,
                        self._named(calls[numbers[0]].method),
                    )
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
                asked[number] = (await self._header_of(caller, call), call.parts)
            except errors.XscError as fault:
                answers[number] = batch.refused(problems.answer_of(fault))
        method = calls[0].method
        found: Sequence[Outcome] = []
        try:
            if method in self._groups and asked:
                found = await self._groups[method](caller, list(asked.values()))
            elif asked:
                ((header, parts),) = asked.values()
                found = [await self.handlers[method](caller, header, parts)]
            answers.update(zip(asked, map(_answer_of, found), strict=True))
        except errors.XscError as fault:
            answers.update(dict.fromkeys(asked, batch.refused(problems.answer_of(fault))))
        except Exception:  # noqa: BLE001 (as the request middleware: one call must not end others)
            self._context.log.error(
                "net.request_failed", path=method[:80], trace=traceback.format_exc()
            )
            answers.update(dict.fromkeys(asked, batch.refused(problems.failed())))
        return [answers[number] for number in range(len(calls))]

    async def _header_of(self, caller: bytes, call: batch.Call) -> dict[str, Value]:
        # Others answer too much, or do it too slowly, to be held for all of a batch.
        allowed = call.method in self._batched and call.method != batch.METHOD
        if not allowed or call.method not in self.handlers:
            raise errors.NotFound("this node has no such method for a batch")
        header = await self._work.run(
            caller, len(call.header), decode, call.header, size_max=limits.BATCH_CALL_BYTES_MAX
        )
        if not isinstance(header, dict):
            raise errors.FrameInvalid("the header of a call holds no map")
        if not self.answers_little(call.method, header):
            raise errors.TooLarge("the answer to a call of a batch may be too large for it")
        return header
