"""Keeps the score of each peer, says why it is as it is, and asks others how they see it.

The rules are in `score`. What other peers say moves the rank alone, and is kept in memory.

Keys: "health/score/<node id>", the score of one peer. It is written without a sync, because a
lost observation costs nothing but itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from xsc.base import encoding, errors, fields, keyvalue, peering
from xsc.base.grade import Dimension, Grade
from xsc.base.ids import ID_BYTES, short
from xsc.base.limits import AMOUNT_MAX, PEERS_MAX, PPM
from xsc.health import score as rules
from xsc.health.score import DIMENSIONS, Score, Sums
from xsc.identity.context import Context

SCORES: Final = "health.scores"
LEARN_MS = 3_600_000
"""How often peers that recognise this node, and are recognised, are asked."""
FRESH_MS = 24 * 3_600_000
"""So long counts what one said."""
SCORE_BYTES_MAX = 16_384
_ROOT: Final = b"health/score/"


class Report(NamedTuple):
    """What one peer said of others."""

    at_ms: int
    sums: Mapping[bytes, tuple[Sums, ...]]
    """By peer, in the order of DIMENSIONS."""


class Judged(NamedTuple):
    """A score and what follows from it."""

    node: bytes
    """Who is judged."""
    score: Score
    grade: Grade
    next_step: str
    until_ms: int | None
    """When a bad grade ends by itself."""


def judged(node: bytes, score: Score, now_ms: int, fork: bytes | None) -> Judged:
    """Return what follows from a score."""
    hour = now_ms // rules.HOUR_MS
    grade = rules.grade_of(score, hour, fork)
    return Judged(node, score, grade, *rules.next_step(score, hour, fork))


class Scores:
    """The scores that a node gives its peers.

    Args:
        context: reaches peers.
        peers: who is known.
        recognition_ppm: returns the mutual recognition of a peer and this node.
        fork: returns the hash of two entries that prove that a peer keeps two ledgers, or None.

    Raises:
        StoreDamaged: a kept score is damaged.
    """

    def __init__(
        self,
        context: Context,
        peers: peering.Peers,
        *,
        recognition_ppm: Callable[[bytes], int],
        fork: Callable[[bytes], bytes | None],
    ) -> None:
        self._context = context
        self._state = context.state
        self._peers = peers
        self._recognition_ppm = recognition_ppm
        self._fork = fork
        self._rows: dict[bytes, Score] = {}
        self._reports: dict[bytes, Report] = {}
        for key, raw in self._state.scan(_ROOT, keyvalue.prefix_end(_ROOT)):
            try:
                self._rows[key[len(_ROOT) :]] = Score.from_bytes(raw, size_max=SCORE_BYTES_MAX)
            except errors.XscError as fault:
                raise errors.StoreDamaged(
                    f"a score of a peer is damaged: {fault.message}",
                    hint="the table 'health/score/' of the state database may be deleted",
                ) from None

    # What is known

    def _hour(self) -> int:
        return self._context.clock.now_ms() // rules.HOUR_MS

    def of(self, peer: bytes) -> Score:
        """Return what is kept of a peer."""
        return self._rows.get(peer, Score())

    def tally(self, peer: bytes, dimension: Dimension) -> rules.Tally:
        """Return what was observed of a peer in one dimension, as it counts now."""
        return rules.decayed(self.of(peer).tally(dimension), dimension, self._hour())

    def availability_ppm(self, peer: bytes) -> int:
        """Return the share of the time that counts in which a peer answered; 0 before the first."""
        tally = self.tally(peer, "availability")
        return tally.good * PPM // max(1, tally.good + tally.bad)

    def grade(self, peer: bytes) -> Grade:
        """Return the grade of a peer now."""
        return rules.grade_of(self.of(peer), self._hour(), self._fork(peer))

    def judged(self, peer: bytes) -> Judged:
        """Return the score of a peer, and what follows from it."""
        now_ms = self._context.clock.now_ms()
        return judged(peer, self.of(peer), now_ms, self._fork(peer))

    def reports(self, peer: bytes) -> dict[bytes, tuple[int, tuple[Sums, ...]]]:
        """Return by observer its mutual recognition, in ppm, and what it says of a peer."""
        since_ms = self._context.clock.now_ms() - FRESH_MS
        return {
            observer: (weight, report.sums[peer])
            for observer, report in self._reports.items()
            if observer != peer and report.at_ms > since_ms and peer in report.sums
            if (weight := self._recognition_ppm(observer))
        }

    def quality_ppm(self, peer: bytes) -> int:
        """Return what the price of a peer is divided by: its rank, 0 to 1 000 000."""
        said = self.reports(peer).values()
        return rules.quality_ppm(self.of(peer), self.grade(peer), self._hour(), said)

    # What is observed

    def served(self, peer: bytes, dimension: Dimension) -> None:
        """Note that a peer did what it should."""
        self._observe(peer, dimension, ok=True)

    def report(
        self, peer: bytes, dimension: Dimension, what: str, *, evidence: bytes = b""
    ) -> None:
        """Note that a peer did something plainly wrong.

        Args:
            peer: who.
            dimension: in what.
            what: it did.
            evidence: the hash of what it signed, if that proves that it gave something false.

        What is not the first in an hour is only logged.
        """
        self._context.log.warning("health.peer_reported", peer=short(peer), what=what)
        self._observe(peer, dimension, ok=False, what=what, evidence=evidence)

    def silent(self, peer: bytes) -> None:
        """Note that a peer is silent about what it holds, for so long that it counts as lost.

        It puts on watch, like an admitted loss, and no more: silence suspends nobody.
        """
        if self.tally(peer, "integrity").bad < rules.WATCHED:
            self.report(peer, "integrity", "silent about what it holds")

    def seen(self, peer: bytes) -> None:
        """Note that a peer answered; it is kept with the next observation."""
        if self._peers.is_peer(peer):
            at_ms = self._context.clock.now_ms()
            self._rows[peer] = self.of(peer).model_copy(update={"seen_ms": at_ms})

    def probed(self, peer: bytes, weight: int, *, ok: bool) -> None:
        """Count a window of probes, which is so much of an hour, in ppm."""
        tally = rules.probed(self.of(peer).tally("availability"), self._hour(), weight, ok=ok)
        self._keep(peer, self.of(peer).model_copy(update={"availability": tally}))

    def _observe(
        self,
        peer: bytes,
        dimension: Dimension,
        *,
        ok: bool,
        what: str = "",
        evidence: bytes = b"",
    ) -> None:
        before, hour = self.of(peer), self._hour()
        tally = rules.observed(before.tally(dimension), dimension, hour, ok=ok)
        change: dict[str, object] = {dimension: tally}
        if evidence:
            change["forged"] = rules.observed(before.forged, "integrity", hour, ok=False)
        after = before.model_copy(update=change)
        if after != before:  # Else the hour is counted.
            self._keep(peer, after, dimension, what, evidence)

    def _keep(
        self,
        peer: bytes,
        score: Score,
        dimension: Dimension | None = None,
        cause: str = "",
        evidence: bytes = b"",
    ) -> None:
        """Keep a score of a peer; nothing is kept of others."""
        if not self._peers.is_peer(peer):
            return
        now_ms, fork, before = self._context.clock.now_ms(), self._fork(peer), self.of(peer).grade
        if cause and fork is not None:
            # That bars it, whatever else it did.
            score = rules.noted(score, now_ms, fork)
        score = rules.noted(
            score,
            now_ms,
            fork,
            dimension=dimension,
            cause=cause,
            evidence=evidence,
        )
        if score.grade != before:
            last = score.events[-1]
            self._context.log.warning(
                "health.graded",
                peer=short(peer),
                before=before,
                grade=score.grade,
                cause=last.cause,
            )
        self._rows[peer] = score
        self._state.write([(_ROOT + peer, score.to_bytes())], sync=False)

    def lift(self, peer: bytes) -> None:
        """Hold nothing against a peer any more that was found until now: the operator says so."""
        lifted = rules.lifted(self.of(peer))
        if lifted != self.of(peer):
            self._keep(peer, lifted, cause="the operator lifted what was held against it")

    def forked(self, peer: bytes) -> None:
        """Note that a proof against a peer began to count, or does not any more."""
        pardoned = "" if self._fork(peer) else "the operator pardoned its fork"
        self._keep(peer, self.of(peer), cause=pardoned)

    def forget(self, peer: bytes) -> None:
        """Drop everything about a peer, also what is stored."""
        self._reports.pop(peer, None)
        if self._rows.pop(peer, None) is not None:
            self._state.write([(_ROOT + peer, None)], sync=False)

    # What others observe

    async def learn(self, up: Iterable[bytes]) -> None:
        """Ask those of some peers that are mutually recognised what they observed of others."""
        await asyncio.gather(*(self._learn(peer) for peer in up if self._recognition_ppm(peer)))

    async def _learn(self, peer: bytes) -> None:
        try:
            header = await self._ask(peer)
            rows = fields.take_list(header, "scores", most=PEERS_MAX)
            sums = dict(map(_row, rows))
        except errors.XscError as fault:
            self._context.log.info("health.scores_unheard", peer=short(peer), code=fault.code)
            return
        self._reports[peer] = Report(self._context.clock.now_ms(), sums)

    async def of_me(self, peer: bytes) -> Judged:
        """Return how a peer judges this node, by its own account.

        Raises:
            PeerSilent, RecordInvalid: it does not say.
        """
        header = await self._ask(peer)
        raw = fields.take_bytes(header, "score")
        fork = fields.take_opt_bytes(header, "fork", size=ID_BYTES)
        score = Score.from_bytes(raw, size_max=SCORE_BYTES_MAX)
        return judged(peer, score, self._context.clock.now_ms(), fork)

    async def _ask(self, peer: bytes) -> Mapping[str, encoding.Value]:
        return (await self._context.caller.call(peer, SCORES, {"v": 1})).header

    def handlers(self) -> dict[str, peering.Handler]:
        """Return the method that peers may call."""
        return {SCORES: self._on_scores}

    async def _on_scores(
        self, caller: bytes, header: dict[str, encoding.Value], _parts: Sequence[object]
    ) -> peering.Answered:
        """Say to the caller all that is kept of it, and what was observed of peers.

        Who is not mutually recognised makes no use of the latter, and is not told.
        """
        if fields.take_int(header, "v") != 1:
            raise errors.RecordInvalid("scores are asked for in version 1")
        told = sorted(self._rows) if self._recognition_ppm(caller) else ()
        scores: list[encoding.Value] = [
            [peer, *(part for each in DIMENSIONS for part in self.tally(peer, each)[:2])]
            for peer in told
            if peer != caller
        ]
        own = self.of(caller).to_bytes()
        return {"score": own, "fork": self._fork(caller), "scores": scores}, ()


def _row(row: encoding.Value) -> tuple[bytes, tuple[Sums, ...]]:
    """Return who a row is about, and what was observed in each of DIMENSIONS."""
    match row:
        case [bytes(peer), *parts] if len(peer) == ID_BYTES and len(parts) == 2 * len(DIMENSIONS):
            values = [part for part in parts if type(part) is int and 0 <= part <= AMOUNT_MAX]
            if len(values) == len(parts):
                return peer, tuple(zip(values[::2], values[1::2], strict=True))
    raise errors.RecordInvalid("a row of scores is of no known form")
