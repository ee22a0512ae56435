"""Probes the peers and remembers how they answered.

A round probes the peers whose turn it is, each interval. A signed pong to the signed ping
counts as an answer, anything else as a miss. Each probe sets the state of its peer at once.
A round is a window: `absence` says whether it counts, and a miss of one that counts is asked
through others by `helping`. `detector` says who is up, `scoring` keeps what is counted, and
`schedule` says which peer is next. Storage decides what to repair, and the market which peers to
prefer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from xsc.base import clock, encoding, errors, fields, peering, turns
from xsc.base.grade import Grade
from xsc.base.ids import short
from xsc.base.limits import NONCE_BYTES, PPM, PROBE_TIMEOUT_MS, REQUEST_WINDOW_MS
from xsc.health.absence import HELPERS, window_counts
from xsc.health.detector import AvailabilityTester, State
from xsc.health.helping import PING, Helping
from xsc.health.messages import Ping, Pong, check_pong
from xsc.health.schedule import PROBES_A_PERIOD, due
from xsc.health.score import HOUR_MS
from xsc.health.scoring import Scores
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed, sign

PROBE_INTERVAL_MS = 5_000
SECOND_LOOK_MS = 1_000
"""After its first miss a peer is probed again."""
PROBED_BESIDE_MAX = 16
"""So many other peers are asked, those heard last, before one counts as away."""
PROBES_IN_FLIGHT = 64
ATTEND_TIMEOUT_MS = 500
"""How long it may take to say so; it is asked twice."""
RESPONSE_EXPECTED_MS = 50
"""What is assumed of a peer that has not answered yet."""
assert PROBE_TIMEOUT_MS < PROBE_INTERVAL_MS < REQUEST_WINDOW_MS

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
    state: State | Literal["away", "absent"]
    availability_ppm: int
    response_ms: int
    """Mean of the answered probes; 0 before the first."""
    last_seen_ms: int | None
    grade: Grade
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
        scores: keeps what is counted of each peer.
        peers: the peers to probe, read anew in each round.
        once: runs something in the background.
        domain_of: returns the failure domain of a peer.
        interval_ms: from one round of probes to the next.
        timeout_ms: after which a probe is missed at the latest.
    """

    def __init__(
        self,
        context: Context,
        *,
        scores: Scores,
        peers: peering.Peers,
        once: Callable[[str, Callable[[], Awaitable[object]]], None],
        domain_of: Callable[[bytes], bytes],
        interval_ms: int = PROBE_INTERVAL_MS,
        timeout_ms: int = PROBE_TIMEOUT_MS,
    ) -> None:
        self._key = context.key
        self._network = context.network
        self._clock = context.clock
        self._entropy = context.entropy
        self._caller = context.caller
        self._log = context.log
        self.scores = scores
        self.grade = scores.grade
        self.quality_ppm = scores.quality_ppm
        self.served = scores.served
        self.silent = scores.silent
        self.report = scores.report
        self._peers = peers
        self._once = once
        self._interval_ms = interval_ms
        self._timeout_ms = timeout_ms
        self.tester = AvailabilityTester()
        self.peers = peers.peers
        self.state = self.tester.state
        """Returns a peer's state; unknown before the first probe of this run."""
        self.is_found = self.tester.is_found
        """Says whether a peer is silent here, and others brought a pong of it last."""
        self._known: set[bytes] = set()
        """Peers that were probed, and not forgotten since."""
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
        self._urgent: dict[bytes, None] = {}
        """Peers to be probed at once, in order."""
        self._looking: set[bytes] = set()
        """Peers that are being probed."""
        self._busy: set[bytes] = set()
        """Peers of rounds that are not over."""
        self._void = False
        """Whether the last round said nothing about the peers."""
        self.helping = Helping(
            context,
            peers,
            self.tester,
            domain_of=domain_of,
            watch=self.watch,
            interval_ms=interval_ms,
            timeout_ms=timeout_ms,
        )

    def handlers(self) -> dict[str, peering.Handler]:
        """Return the methods that peers may call."""
        return self.helping.handlers() | self.scores.handlers()

    # What is known

    def is_up(self, peer: bytes) -> bool:
        """Return whether the peer answered in this run and is not down or away; this node is up."""
        here = peer == self._key.node_id
        return here or (self.tester.is_up(peer) and peer not in self._away)

    def is_absent(self, peer: bytes) -> bool:
        """Return whether silence of a peer is confirmed, or it is no peer at all."""
        if peer == self._key.node_id:
            return False
        return self.tester.is_absent(peer) or not self._peers.is_peer(peer)

    def is_cut_off(self, peer: bytes) -> bool:
        """Return whether silence of a peer may be this node's own.

        Then its last window was void, or it heard no other peer lately.
        """
        since_ms = self._clock.monotonic_ms() - 2 * self._interval_ms - self._timeout_ms
        others = (other for other in self.peers() if other != peer)
        heard = any(self._heard_ms.get(other, since_ms) > since_ms for other in others)
        return self._void or not heard

    def response_ms(self, peer: bytes) -> int:
        """Return how long the peer is expected to take for an answer; this node takes no time."""
        if peer == self._key.node_id:
            return 0
        if peer not in self._heard_ms:
            return RESPONSE_EXPECTED_MS
        return self.tester.response_ms(peer)

    def table(self) -> list[HealthRow]:
        """Return a row for each peer, in order of id."""
        return [self.row(peer) for peer in sorted(self.peers())]

    def row(self, peer: bytes) -> HealthRow:
        """Return all that is known of a peer."""
        state: State | Literal["away", "absent"] = self.state(peer)
        if self.tester.is_absent(peer):
            state = "absent"
        elif self.tester.is_up(peer) and peer in self._away:
            state = "away"
        return HealthRow(
            node=peer,
            state=state,
            availability_ppm=self.scores.availability_ppm(peer),
            response_ms=self.tester.response_ms(peer),
            last_seen_ms=self.scores.of(peer).seen_ms,
            grade=self.grade(peer),
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
        self._urgent[peer] = None
        self._woken.set()

    def forget(self, peer: bytes) -> None:
        """Drop everything about a peer, also what is stored."""
        self.tester.forget(peer)
        self.scores.forget(peer)
        self._away.discard(peer)
        self._known.discard(peer)
        self._heard_ms.pop(peer, None)
        self._skew_ms.pop(peer, None)
        self._pongs.pop(peer, None)
        self._clock_refused.discard(peer)
        self._refused.pop(peer, None)

    async def probe(self, peer: bytes) -> ProbeResult:
        """Probe a peer now, and record the result.

        Raises:
            PeerUnknown: it is no peer any more; nothing is recorded.
        """
        self._known.add(peer)
        started_ms = self._clock.monotonic_ms()
        pong: Pong | None = None
        self._clock_refused.discard(peer)
        try:
            ping, reply = await self._ping(peer, self.tester.timeout_ms(peer, self._timeout_ms))
            response_ms = self._clock.monotonic_ms() - started_ms
            raw = fields.take_bytes(reply.header, "pong")
            pong = open_signed(raw, Pong, network=self._network, author=peer).record
            if (wrong := check_pong(pong, ping)) is not None:
                raise errors.RecordInvalid(wrong)
        except errors.PeerSilent as fault:
            result = ProbeResult(available=False, response_ms=0, reason=fault.message)
        except errors.XscError as fault:
            if isinstance(fault, errors.PeerUnknown) and peer not in self.peers():
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
        if peer not in self._known:
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
            if peer in self._away or peer not in self.peers():
                return False
            if await self._answers(peer):
                return True
            others = [each for each in self.peers() if each != peer and self.is_up(each)]
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

    def _record(self, peer: bytes, result: ProbeResult) -> None:
        if result.available:
            self._heard_ms[peer] = self._clock.monotonic_ms()
            self._away.discard(peer)
            self.scores.seen(peer)
        changed = self.tester.record_result(peer, result.available, result.response_ms)
        if changed is None:
            return
        share = self.scores.availability_ppm(peer)
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

    async def learn(self) -> None:
        """Ask peers what they observed of others."""
        await self.scores.learn(filter(self.is_up, self.peers()))

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
        await self.probe_all(p for p in self.peers() if self.state(p) == "unknown")

    async def _look(self, peer: bytes, *, again: bool = False) -> bool | None:
        """Probe a peer; return whether it answered, None where it is being probed or unknown.

        Others hear of its first miss, and it is probed again soon.
        """
        if again:
            await self._clock.sleep_ms(SECOND_LOOK_MS)
        if peer in self._looking or (again and self.state(peer) != "suspect"):
            return None
        was_up = self.state(peer) == "up"
        self._looking.add(peer)
        try:
            result = await self.probe(peer)
        except errors.PeerUnknown:
            self._log.info("health.gone", peer=short(peer))
            return None
        finally:
            self._looking.discard(peer)
        if was_up and not result.available:
            self._once("tell", partial(self.helping.tell, peer))
            self._once("second_look", partial(self._look, peer, again=True))
        return result.available

    async def round(self, peers: Sequence[bytes]) -> None:
        """Probe peers side by side, and count what that says about them, if it says anything."""
        self._busy.update(peers)
        try:
            found = await asyncio.gather(*map(self._look, peers))
            answered = [peer for peer, up in zip(peers, found, strict=True) if up]
            missed = [peer for peer, up in zip(peers, found, strict=True) if up is False]
            absent = sum(map(self.tester.is_absent, missed))
            void = not window_counts(len(answered), len(missed) - absent, absent)
            if void and missed and not self._void:
                self._log.warning("health.void", answered=len(answered), missed=len(missed))
            self._void = void and bool(missed)
            if void:
                return
            for peer in [each for each in answered if each in self._known]:
                self.scores.probed(peer, self._window_ppm(), ok=True)
            await asyncio.gather(*map(self._find, missed))
        finally:
            self._busy.difference_update(peers)

    def _window_ppm(self) -> int:
        """Return how much of an hour a window stands for: a round probes so many of all peers."""
        peers = max(PROBES_A_PERIOD, len(self.peers()))
        return min(PPM, PPM * self._interval_ms * peers // (PROBES_A_PERIOD * HOUR_MS))

    async def _find(self, peer: bytes) -> None:
        """Ask others for a peer that missed a probe of a round that counts."""
        absent = self.tester.is_absent(peer)
        found = await self.helping.find(peer, 1 if absent else HELPERS)
        # One lost message is no miss: a suspect peer has a second look.
        if peer not in self._known or self.state(peer) != "down":
            return
        if found:
            if self.tester.record_found(peer):
                self._log.info("health.found", peer=short(peer))
        elif self.tester.record_unfound(peer):
            self.scores.probed(peer, self._window_ppm(), ok=False)
            if not absent:
                self._log.warning("health.absent", peer=short(peer))

    async def run(self) -> None:
        """Probe the peers in their turns; never returns."""
        now_ms = self._clock.monotonic_ms()
        after = self._key.node_id
        # Nodes that start together take turns.
        next_ms = now_ms + int.from_bytes(self._key.node_id[:4], "big") % self._interval_ms
        while True:
            self._woken.clear()
            for peer in self._urgent:
                self._once("probe", partial(self._look, peer))
            self._urgent.clear()
            if (now_ms := self._clock.monotonic_ms()) >= next_ms:
                next_ms = now_ms + self._interval_ms
                peers = self.peers()
                if turn := due(peers, after, self._busy):
                    after = turn[-1]
                    self._once("probes", partial(self.round, turn))
            # `watch` asks for a probe at once.
            await clock.event_within(self._clock, self._woken, next_ms - now_ms)
