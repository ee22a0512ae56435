"""Probes the peers and remembers how they answered.

Every peer is probed each interval. A signed pong to the signed ping counts as an
answer, anything else as a miss. `detector` and `score` decide what the results mean,
`schedule` which peer is next. Storage decides what to repair, and the market which
peers to prefer.

Keys: "health/probe/<node id><number of the bucket, 8 bytes>", the results of one peer in that
time. They are written without a sync, because a lost one costs nothing but itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from xsc.base import clock, encoding, errors, fields, keyvalue, merkle, peering, turns
from xsc.base.ids import ID_BYTES, short
from xsc.base.limits import NONCE_BYTES, PPM, PROBE_TIMEOUT_MS, REQUEST_WINDOW_MS
from xsc.health.detector import AvailabilityTester, State
from xsc.health.messages import Ping, Pong, check_pong
from xsc.health.schedule import due, wait_ms
from xsc.health.score import quality_ppm
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed, sign

PROBE_INTERVAL_MS = 5_000
PROBED_BESIDE_MAX = 16
"""So many other peers are asked, those heard last, before one counts as away."""
PROBES_IN_FLIGHT = 64
ATTEND_TIMEOUT_MS = 500
"""How long it may take to say so; it is asked twice."""
RESPONSE_EXPECTED_MS = 50
"""What is assumed of a peer that has not answered yet."""
assert PROBE_TIMEOUT_MS < PROBE_INTERVAL_MS < REQUEST_WINDOW_MS

PING = "health.ping"

_ROOT = b"health/probe/"
_NUMBER_BYTES = 8


def _key(peer: bytes, number: int) -> bytes:
    return _ROOT + peer + number.to_bytes(_NUMBER_BYTES, "big")


OnChange: TypeAlias = Callable[[bytes, bool], None]
"""Hears of a peer, and whether it is up now."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe came to."""

    available: bool
    response_ms: int
    """How long the answer took; 0 where none came."""
    reason: str
    """Why it counts as a miss; empty where it does not."""


@dataclass(frozen=True, slots=True)
class HealthRow:
    """One line of `xsc health`."""

    node: bytes
    state: State | Literal["away"]
    availability_ppm: int
    response_ms: int
    """Mean of the answered probes; 0 before the first."""
    last_seen_ms: int | None
    probes: int
    """Kept results."""
    misses: int
    """Those of them that were not answered."""
    wrong: int
    """Answers in the same time that were plainly wrong."""
    quality_ppm: int
    skew_ms: int | None
    """How far the peer's clock was ahead of ours at its last answer, in this run."""
    reaches_us: bool | None
    """Whether the peer said at its last answer that it reaches this node; None if it did not."""
    clock_refused: bool
    """Whether the peer refused the last probe because the two clocks are too far apart."""


class HealthService:
    """The probes of one node.

    Args:
        context: signs pings and pongs, and sends them.
        state: the store; other tables may be in it.
        peers: the peers to probe, read anew in each round.
        interval_ms: from one probe of a peer to its next.
        timeout_ms: after which a probe is missed.

    Raises:
        StoreDamaged: the kept results are damaged.
    """

    def __init__(
        self,
        context: Context,
        *,
        state: keyvalue.KeyValue,
        peers: peering.Peers,
        interval_ms: int = PROBE_INTERVAL_MS,
        timeout_ms: int = PROBE_TIMEOUT_MS,
    ) -> None:
        self._key = context.key
        self._network = context.network
        self._clock = context.clock
        self._entropy = context.entropy
        self._caller = context.caller
        self._log = context.log
        self._store = state
        self._peers = peers
        self._interval_ms = interval_ms
        self._timeout_ms = timeout_ms
        self.tester = AvailabilityTester()
        self._last_ms: dict[bytes, int] = {}
        self._heard_ms: dict[bytes, int] = {}
        """When each peer answered last, by a steady clock."""
        self._skew_ms: dict[bytes, int] = {}
        self._pongs: dict[bytes, Pong] = {}
        self._clock_refused: set[bytes] = set()
        self._refused: dict[bytes, str] = {}
        """By peer, its last refusal of a probe, until it answers one."""
        self._away: set[bytes] = set()
        """Peers that were found not to be there, and that have answered no probe since."""
        self._asking: turns.Turns[bytes] = turns.Turns()
        self._listeners: list[OnChange] = []
        self._woken = asyncio.Event()
        for stored, raw in self._store.scan(_ROOT, keyvalue.prefix_end(_ROOT)):
            node, number = stored[len(_ROOT) :][:ID_BYTES], stored[len(_ROOT) + ID_BYTES :]
            if len(number) != _NUMBER_BYTES:
                raise errors.StoreDamaged(
                    "a key of the table 'health/probe/' is no node id and number"
                )
            self.tester.restore(node, int.from_bytes(number, "big"), raw)

    # What is known

    def peers(self) -> Sequence[bytes]:
        """Return whom it probes."""
        return self._peers.peers()

    def is_up(self, peer: bytes) -> bool:
        """Return whether the peer answered in this run and is not down or away; this node is up."""
        here = peer == self._key.node_id
        return here or (self.tester.is_up(peer) and peer not in self._away)

    def state(self, peer: bytes) -> State:
        """Return the peer's state; unknown before the first probe of this run."""
        return self.tester.state(peer)

    def quality_ppm(self, peer: bytes) -> int:
        """Return the peer's score, 0 to 1 000 000; one half before the first probe."""
        stats = self.tester.get_stats(peer)
        quality = quality_ppm(stats.answered, stats.probes - stats.answered)
        return quality * stats.trust_ppm // PPM

    def response_ms(self, peer: bytes) -> int:
        """Return how long the peer is expected to take for an answer; this node takes no time."""
        if peer == self._key.node_id:
            return 0
        if peer not in self._heard_ms:
            return RESPONSE_EXPECTED_MS
        return self.tester.get_stats(peer).avg_response_ms

    def table(self) -> list[HealthRow]:
        """Return a row for each peer, in order of id."""
        return [self.row(peer) for peer in sorted(self._peers.peers())]

    def row(self, peer: bytes) -> HealthRow:
        """Return all that is known of a peer."""
        stats = self.tester.get_stats(peer)
        return HealthRow(
            node=peer,
            state="away" if self.tester.is_up(peer) and peer in self._away else self.state(peer),
            availability_ppm=stats.availability,
            response_ms=stats.avg_response_ms,
            last_seen_ms=stats.last_seen_ms,
            probes=stats.probes,
            misses=stats.probes - stats.answered,
            wrong=stats.wrong,
            quality_ppm=self.quality_ppm(peer),
            skew_ms=self._skew_ms.get(peer),
            reaches_us=None if (pong := self._pongs.get(peer)) is None else pong.reaches,
            clock_refused=peer in self._clock_refused,
        )

    def on_change(self, callback: OnChange) -> None:
        """Call back whenever a peer comes up or goes down."""
        self._listeners.append(callback)

    # Whom to probe

    def watch(self, peer: bytes) -> None:
        """Probe a peer at once, and from then on in its turn as long as it is a peer."""
        self._last_ms[peer] = self._clock.monotonic_ms() - self._interval_ms
        self._woken.set()

    def forget(self, peer: bytes) -> None:
        """Drop everything about a peer, also what is stored."""
        numbers = self.tester.forget(peer)
        self._away.discard(peer)
        self._last_ms.pop(peer, None)
        self._heard_ms.pop(peer, None)
        self._skew_ms.pop(peer, None)
        self._pongs.pop(peer, None)
        self._clock_refused.discard(peer)
        self._refused.pop(peer, None)
        self._store.write([(_key(peer, number), None) for number in numbers], sync=False)

    async def probe(self, peer: bytes) -> ProbeResult:
        """Probe a peer now, and record the result.

        Raises:
            PeerUnknown: it is no peer any more; nothing is recorded.
        """
        self._last_ms[peer] = started_ms = self._clock.monotonic_ms()
        pong: Pong | None = None
        self._clock_refused.discard(peer)
        try:
            ping, reply = await self._ping(peer, self._timeout_ms)
            response_ms = self._clock.monotonic_ms() - started_ms
            raw = fields.take_bytes(reply.header, "pong")
            pong = open_signed(raw, Pong, network=self._network, author=peer).record
            if (wrong := check_pong(pong, ping)) is not None:
                raise errors.RecordInvalid(wrong)
        except errors.PeerSilent as fault:
            result = ProbeResult(available=False, response_ms=0, reason=fault.message)
        except errors.XscError as fault:
            if isinstance(fault, errors.PeerUnknown) and peer not in self._peers.peers():
                raise
            if isinstance(fault, errors.ClockSkewed):
                self._clock_refused.add(peer)
            if self._refused.get(peer) != fault.message:
                # A peer that removed this node refuses each probe: it is said once.
                self._log.warning(
                    "health.answer_refused", peer=short(peer), code=fault.code, reason=fault.message
                )
            self._refused[peer] = fault.message
            result = ProbeResult(available=False, response_ms=0, reason=fault.message)
        else:
            self._refused.pop(peer, None)
            result = ProbeResult(available=True, response_ms=response_ms, reason="")
        if peer not in self._last_ms:
            raise errors.PeerUnknown(f"{short(peer)} was forgotten while it was probed")
        if pong is not None:
            self._pongs[peer] = pong
            # The answer was written about half way between question and arrival.
            self._skew_ms[peer] = pong.now_ms - (ping.sent_ms + result.response_ms // 2)
        self._record(peer, result)
        return result

    async def is_there(self, peer: bytes) -> bool:
        """Ping a peer that takes long over a call; return whether it answers at all.

        This node does. If a peer misses a short ping, it is pinged again, together with others.
        If none of those answers either, this node may be cut off, and the peer counts as there.
        Else a peer that missed both pings is away: it is not up until it answers a probe.
        Nothing else is recorded. Each peer that missed its ping is probed at once.
        """
        if peer == self._key.node_id:
            return True
        async with self._asking.of(peer):
            if peer in self._away or peer not in self._peers.peers():
                return False
            if await self._answers(peer):
                return True
            others = [each for each in self._peers.peers() if each != peer and self.is_up(each)]
            others.sort(key=lambda each: -self._heard_ms.get(each, 0))
            asked = [peer, *others[:PROBED_BESIDE_MAX]]
            there, *beside = await asyncio.gather(*map(self._answers, asked))
            if not any(beside):
                return True
            if not there:
                self._log.warning("health.away", peer=short(peer))
                self._away.add(peer)
            for each, answers in zip(asked, [there, *beside], strict=True):
                if not answers:
                    self.watch(each)
            return there

    async def _answers(self, peer: bytes) -> bool:
        """Return whether a peer answers a ping, even by a refusal."""
        try:
            await self._ping(peer, ATTEND_TIMEOUT_MS)
        except (errors.PeerSilent, errors.PeerUnknown):
            return False
        except errors.XscError as refusal:
            self._log.info("health.refused_but_there", peer=short(peer), code=refusal.code)
        return True

    async def _ping(self, peer: bytes, timeout_ms: int) -> tuple[Ping, peering.Reply]:
        """Send a signed ping; return it and the answer, unchecked."""
        ping = Ping(node=peer, nonce=self._entropy.token(NONCE_BYTES), sent_ms=self._clock.now_ms())
        signed = sign(ping, self._key, self._network)
        header: dict[str, encoding.Value] = {"v": 1, "ping": signed.raw}
        return ping, await self._caller.call(peer, PING, header, timeout_ms=timeout_ms)

    async def clock_of(self, peer: bytes) -> int | None:
        """Return what a peer's clock shows, asked now; None where it does not answer."""
        self._pongs.pop(peer, None)
        await self.probe(peer)
        pong = self._pongs.get(peer)
        return None if pong is None else pong.now_ms

    def report(self, peer: bytes, what: str) -> None:
        """Count a plainly wrong answer of a peer, which lowers its score for days."""
        self._log.warning("health.peer_reported", peer=short(peer), what=what)
        if peer in self._peers.peers():
            self.tester.record_wrong(peer, self._clock.now_ms())
            self._keep(peer)

    def _keep(self, peer: bytes) -> None:
        changes = [(_key(peer, number), raw) for number, raw in self.tester.changes(peer)]
        self._store.write(changes, sync=False)

    def is_cut_off(self, peer: bytes) -> bool:
        """Return whether this node heard no other peer lately: its own connection may be down."""
        others = [other for other in self._peers.peers() if other != peer]
        if not others:
            return False
        since_ms = self._clock.monotonic_ms() - 2 * self._interval_ms - self._timeout_ms
        return not any(self._heard_ms.get(other, since_ms) > since_ms for other in others)

    def _record(self, peer: bytes, result: ProbeResult) -> None:
        if result.available:
            self._heard_ms[peer] = self._clock.monotonic_ms()
            self._away.discard(peer)
        changed = self.tester.record_result(
            peer,
            result.available,
            result.response_ms,
            self._clock.now_ms(),
            counts=not self.is_cut_off(peer),
        )
        self._keep(peer)
        if changed is None:
            return
        share = self.tester.get_stats(peer).availability
        if changed:
            self._log.info(
                "health.up",
                peer=short(peer),
                response_ms=result.response_ms,
                availability_ppm=share,
            )
        else:
            self._log.warning(
                "health.down", peer=short(peer), reason=result.reason, availability_ppm=share
            )
        for listener in self._listeners:
            listener(peer, changed)

    async def probe_all(self, peers: Iterable[bytes]) -> None:
        """Probe peers side by side, at most PROBES_IN_FLIGHT at once; unknown ones are skipped."""
        places = asyncio.Semaphore(PROBES_IN_FLIGHT)

        async def one(peer: bytes) -> None:
            async with places:
                try:
                    await self.probe(peer)
                except errors.PeerUnknown:
                    self._log.info("health.gone", peer=short(peer))

        await asyncio.gather(*(one(peer) for peer in peers))

    async def probe_unknown(self) -> None:
        """Probe the peers that were not probed since the start."""
        await self.probe_all(p for p in self._peers.peers() if self.state(p) == "unknown")

    async def run(self) -> None:
        """Probe every peer in its turn; never returns."""
        while True:
            self._woken.clear()
            peers = self._peers.peers()
            now_ms = self._clock.monotonic_ms()
            await self.probe_all(due(peers, self._last_ms, now_ms, self._interval_ms))
            now_ms = self._clock.monotonic_ms()
            rest_ms = wait_ms(self._peers.peers(), self._last_ms, now_ms, self._interval_ms)
            # `watch` asks for a probe at once.
            await clock.event_within(self._clock, self._woken, rest_ms)

    # What peers ask

    def handlers(self) -> dict[str, peering.Handler]:
        """Return the methods that peers may call."""
        return {PING: self._answer}

    async def _answer(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[merkle.Part]
    ) -> tuple[dict[str, encoding.Value], Sequence[bytes | memoryview]]:
        raw = fields.take_bytes(header, "ping")
        ping = open_signed(raw, Ping, network=self._network, author=caller).record
        if ping.node != self._key.node_id:
            raise errors.RecordInvalid("the ping is for another node")
        pong = Pong(
            node=self._key.node_id,
            nonce=ping.nonce,
            now_ms=self._clock.now_ms(),
            reaches={"up": True, "down": False}.get(self.tester.state(caller)),
        )
        return {"v": 1, "pong": sign(pong, self._key, self._network).raw}, ()
