"""An ordinary node's transport with a liar in it.

The node behind it is built like every other. Whatever it says passes here, on the
way out and in its answers, and is told as it is, changed, withheld, delayed, cut
short, said twice, or said again later; and messages of its own are sent that no
ordinary node would send.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.sim.adversary.forge import Forge
from tests.sim.adversary.messages import many_items
from xsc.base.clock import Clock
from xsc.base.encoding import decode, encode
from xsc.base.errors import EntryRefused, LimitError, NotAllowed, PeerSilent, XscError, leaves
from xsc.base.ids import node_id_from_text
from xsc.base.limits import NONCE_BYTES, PEER_BODY_BYTES_MAX, PEER_TIMEOUT_MS
from xsc.base.merkle import Part, root_of
from xsc.net.calls import problems, signing
from xsc.net.calls.frame import pack_head, unpack
from xsc.net.calls.sender import ROOT
from xsc.net.transport.port import Arrival, Handler, RawRequest, RawResponse, Take, Transport
from xsc.space.limits import ANSWER_BYTES_MAX
from xsc.space.messages import Answer
from xsc.storage.object.manifest import Manifest, expected_digest

REPLAYS_KEPT = 16
LIKELY = (NotAllowed, EntryRefused, LimitError)
"""Errors after which an honest node does something else than to try again."""
SPACES = ("space.next", "space.list", "space.records")
"""Answers whose body is a value with signed records in it."""
QUIET = ("health.ping", "peers.join")
"""Answered as they are while the peer wants to be believed up."""


def reason_of(answer: RawResponse) -> str:
    """Return why a request was refused, in short."""
    if answer.status == 200:
        return "ok"
    said = json.loads(b"".join(answer.body))
    return f"{said['code']}: {said['detail'][:60]}"


@dataclass
class Manner:
    """How much of what passes is changed, for a while."""

    answers: float = 0.0
    requests: float = 0.0
    silent: bool = False
    """Answers nothing, and says nothing."""
    probes: bool = False
    """Whether probes are lied to as well."""
    boasts: float = 0.0
    """Says to hold every column of what it is asked about."""
    methods: frozenset[str] = frozenset()
    """Which answers; all of them where it is empty."""


@dataclass
class Sent:
    """A request that was sent, to be sent again."""

    address: str
    request: RawRequest
    answered: bool = False


@dataclass
class Proxy:
    """See the module. Has the form of the transport that it stands before."""

    inner: Transport
    forge: Forge
    clock: Clock
    manner: Manner = field(default_factory=Manner)
    sent: list[Sent] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    """What was changed, for people."""
    manifests: dict[bytes, Manifest] = field(default_factory=dict)
    """By locate id, of what it may say to hold."""
    heard: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often which method was answered how: what no message gets past must be drawn better."""

    fingerprint: bytes | None = None

    def addresses(self) -> tuple[str, ...]:
        return self.inner.addresses()

    async def close(self) -> None:
        await self.inner.close()

    # What the node behind it says

    async def send(
        self, address: str, fingerprint: bytes | None, request: RawRequest, timeout_ms: int
    ) -> RawResponse:
        method = request.path.removeprefix(ROOT)
        if self.manner.silent:
            await self.clock.sleep_ms(timeout_ms)
            raise PeerSilent("the peer says nothing for now")
        self._learn(request.body)
        if method not in QUIET and self.forge.chance(self.manner.requests):
            request = await self._changed_request(method, request)
        sent = self._note(address, request)
        response = await self.inner.send(address, fingerprint, request, timeout_ms)
        sent.answered = True
        self._learn(response.body)
        return response

    def _note(self, address: str, request: RawRequest) -> Sent:
        self.sent = [*self.sent, Sent(address, request)][-REPLAYS_KEPT:]
        return self.sent[-1]

    async def _changed_request(self, method: str, request: RawRequest) -> RawRequest:
        how = self.forge.rng.choice(("change", "change", "change", "late", "withhold"))
        self.told.append(f"request {method}: {how}")
        if how == "withhold":
            raise PeerSilent("withheld")
        if how == "late":
            await self.clock.sleep_ms(self.forge.rng.choice((100, 5_000, 30_000)))
            return request
        frame = unpack(memoryview(b"".join(request.body)))
        parts = [bytes(part.data) for part in frame.parts]
        header = self.forge.tampered(frame.header)
        to = node_id_from_text(request.headers[signing.TO])
        return self.signed(to, method, header, parts)

    def signed(
        self, to: bytes, method: str, header: dict[str, Any], parts: list[bytes]
    ) -> RawRequest:
        """Return a request with everything that makes it a request of the own node."""
        listed = [Part(part, root_of(part)) for part in parts]
        head = pack_head(header, listed)
        fields = signing.sign_request(
            self.forge.own,
            network=self.forge.network,
            to=to,
            method="POST",
            path=ROOT + method,
            head=head,
            created_ms=self.clock.now_ms(),
            entropy=self.forge.rng.randbytes(NONCE_BYTES - signing.STAMP_BYTES),
        )
        return RawRequest("POST", ROOT + method, fields, [head, *parts])

    # What it is asked

    async def serve(self, handler: Handler) -> None:
        async def answer(arrival: Arrival) -> RawResponse:
            asked: list[memoryview] = []

            async def read(take: Take) -> memoryview:
                body = await arrival.read(take)
                self._learn([body])
                asked.append(body)
                return body

            if self.manner.silent:
                await asyncio.get_running_loop().create_future()
            response = await handler(replace(arrival, read=read))
            self._learn(response.body)
            method = arrival.path.removeprefix(ROOT)
            if asked and response.status == 200 and self.forge.chance(self.manner.boasts):
                response = self._boast(method, arrival, unpack(asked[0]).header, response)
            return await self._changed_answer(method, response)

        await self.inner.serve(answer)

    def _boast(
        self, method: str, arrival: Arrival, asked: Mapping[str, Any], response: RawResponse
    ) -> RawResponse:
        """Return an answer by which this node holds all of an object, for the one who asks."""
        manifest = self.manifests.get(asked.get("locate", b""))
        if manifest is None or method not in ("storage.holds", "storage.stat"):
            return response
        every = range(manifest.k + manifest.m)
        if method == "storage.holds":
            said = {"columns": [*range(max(1, len(asked["roots"])))], "record": True}
        else:
            (caller,) = re.findall(r'keyid="(\w+)"', arrival.headers["signature-input"])
            mine = {"customer": node_id_from_text(caller), "ends_ms": None}
            whole = {"segments": len(manifest.nonces), "damaged": 0, **mine}
            said = unpack(memoryview(b"".join(response.body))).header | {
                "record": "ok",
                "records": [mine],
                "columns": []
                if manifest.inline is not None
                else [
                    {"column": each, "digest": expected_digest(manifest, each), **whole}
                    for each in every
                ],
            }
        return RawResponse(200, {}, [pack_head(said, [])])

    async def _changed_answer(self, method: str, response: RawResponse) -> RawResponse:
        manner, rng = self.manner, self.forge.rng
        if (method in QUIET and not manner.probes) or not self.forge.chance(manner.answers):
            return response
        if manner.methods and method not in manner.methods:
            return response
        how = rng.choice(
            ("change", "change", "change", "error", "error", "garbage", "half", "slow", "never")
        )
        if rng.random() < 0.02:
            how = rng.choice(("huge", "many"))
        self.told.append(f"answer {method}: {how}")
        match how:
            case "error":
                return problems.answer_of(self.error())
            case "garbage":
                return RawResponse(rng.choice((200, 404, 500)), {}, [rng.randbytes(100)])
            case "half":
                whole = b"".join(response.body)
                return RawResponse(response.status, response.headers, [whole[: len(whole) // 2]])
            case "slow":
                await self.clock.sleep_ms(rng.choice((100, 2_000, PEER_TIMEOUT_MS - 1)))
                return response
            case "never":
                await asyncio.get_running_loop().create_future()
            case "many":
                items = many_items(self.forge)
                part = encode([items, [], False])
                return RawResponse(200, {}, [pack_head({"more": items}, [Part(part, b"")]), part])
            case "huge":
                return RawResponse(200, {}, [bytes(PEER_BODY_BYTES_MAX + 1)])
        if response.status != 200 or not response.body:
            return problems.answer_of(self.error())
        frame = unpack(memoryview(b"".join(response.body)))
        header, parts = frame.header, [bytes(part.data) for part in frame.parts]
        if method == "space.next" and parts and self.forge.chance(0.8):
            parts = [self._hidden(parts[0])]
        elif parts and self.forge.chance(0.3):
            place = rng.randrange(len(parts))
            known = [part for part in self.forge.seen["parts"] if isinstance(part, bytes)]
            parts[place] = rng.choice([*known, b"", parts[place][:-1], rng.randbytes(100)])
        elif method in SPACES and parts:
            said = decode(parts[0], size_max=PEER_BODY_BYTES_MAX)
            parts = [encode(self.forge.tampered(said))]
        else:
            header = self.forge.tampered(header)
        head = pack_head(header, [Part(part, b"") for part in parts])
        return RawResponse(200, {}, [head, *parts])

    def _hidden(self, raw: bytes) -> bytes:
        """Return news without some of its records, or of its heads: all that is said is true."""
        try:
            news = Answer.from_bytes(raw, size_max=ANSWER_BYTES_MAX)
        except XscError:
            return raw
        some = tuple(sent for sent in news.records if self.forge.chance(0.5))
        heads = tuple(head for head in news.heads if self.forge.chance(0.8))
        return Answer(records=some, heads=heads, more=news.more).to_bytes()

    def error(self) -> XscError:
        """Return any error of the tree."""
        every = leaves()
        likely = [kind for kind in every if issubclass(kind, LIKELY)]
        kind = self.forge.rng.choice(likely if self.forge.chance(0.5) else every)
        kind = NotAllowed if self.forge.chance(0.3) else kind
        return kind("as this node says", retry_after_s=self.forge.rng.choice((0, 60, 2**40)))

    def _learn(self, body: Any) -> None:
        whole = memoryview(b"".join(body))
        if len(whole) > 2**20:
            return
        try:
            frame = unpack(whole)
        except XscError:
            return
        self.forge.learn(frame.header)
        for part in frame.parts:
            data = bytes(part.data)
            if data not in self.forge.seen["parts"]:
                self.forge.seen["parts"].append(data)
                # What stands beside nothing, or is announced, is a sealed manifest.
                if not frame.header or frame.header.get("manifest") is True:
                    self.forge.seen["sealed"].append(data)
            if part.root:
                self.forge.learn(part.root, "root")

    # What no ordinary node says

    async def say(
        self, to: bytes, address: str, method: str, messages: list[tuple[Any, list[bytes]]]
    ) -> dict[int, int]:
        """Send messages of a method, all at once; return how often which status came."""
        if self.manner.silent:
            return {}
        sent = []
        for header, parts in messages:
            try:
                sent.append(self._note(address, self.signed(to, method, header, parts)))
            except XscError:
                continue  # not even this end can write it down
        answers = await asyncio.gather(
            *(self.inner.send(address, None, item.request, PEER_TIMEOUT_MS) for item in sent),
            return_exceptions=True,
        )
        statuses: Counter[int] = Counter()
        for item, answer in zip(sent, answers, strict=True):
            if isinstance(answer, RawResponse):
                item.answered = True
                self._learn(answer.body)
                statuses[answer.status] += 1
                self.heard[method, reason_of(answer)] += 1
            elif not isinstance(answer, XscError):
                raise answer
        return dict(statuses)

    async def again(self) -> tuple[str, bool, int]:
        """Send a request once more, as it was.

        Returns its path, whether it had been answered, and the status now.
        """
        if not self.sent or self.manner.silent:
            return "", False, 0
        old = self.forge.rng.choice(self.sent)
        answered = old.answered
        try:
            answer = await self.inner.send(old.address, None, old.request, PEER_TIMEOUT_MS)
        except XscError:
            return old.request.path, answered, 0
        old.answered = True
        return old.request.path, answered, answer.status
