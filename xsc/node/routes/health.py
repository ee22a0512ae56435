"""Health: what hosts prove of what they hold, and how peers are judged."""

from __future__ import annotations

import asyncio

from xsc.api import health as api
from xsc.api.endpoint import Nothing, filled
from xsc.api.peers import Who
from xsc.base.errors import XscError
from xsc.health import score
from xsc.health.scoring import Judged
from xsc.node.build import Node


async def challenge(node: Node, asked: api.Challenge) -> list[api.Challenged]:
    """Have hosts prove what they hold, now."""
    who = asked.who
    hosts = node.peers.peers() if who is None else [node.peers.roster.find(who)]
    done = await node.challenges.challenge(hosts)
    return [filled(api.Challenged, proved, id=proved.host) for proved in done]


def _judgement(node: Node, judged: Judged) -> dict[str, object]:
    hour = node.clock.now_ms() // score.HOUR_MS
    tallies = {
        each: score.decayed(judged.score.tally(each), each, hour) for each in score.DIMENSIONS
    }
    return {
        "id": judged.node,
        "observed": [
            api.Observed(
                dimension=each,
                good_ppm=tally.good,
                bad_ppm=tally.bad,
                rank_ppm=score.rank_ppm(tally, each),
                upper_ppm=score.upper_ppm(tally),
            )
            for each, tally in tallies.items()
        ],
        "events": [
            filled(api.Event, event, evidence=event.evidence or None)
            for event in judged.score.events
        ],
    }


async def why(node: Node, asked: Who) -> api.Why:
    """Say how a peer is judged, and why."""
    peer = node.peers.roster.find(asked.who)
    judged = node.scores.judged(peer)
    reports = [
        api.Report(id=observer, recognition_ppm=weight)
        for observer, (weight, _) in sorted(node.scores.reports(peer).items())
    ]
    quality = node.scores.quality_ppm(peer)
    given = _judgement(node, judged)
    return filled(api.Why, judged, quality_ppm=quality, reports=reports, **given)


async def me(node: Node, _: Nothing) -> api.OfMe:
    """Ask the peers how they judge this node."""
    peers = node.peers.peers()
    found = await asyncio.gather(*map(node.scores.of_me, peers), return_exceptions=True)
    answer = api.OfMe(peers=[], unheard=[])
    for peer, each in zip(peers, found, strict=True):
        if isinstance(each, XscError):
            answer.unheard.append(api.Unheard(id=peer, reason=each.message))
        elif isinstance(each, BaseException):
            raise each
        else:
            answer.peers.append(filled(api.Judgement, each, **_judgement(node, each)))
    return answer


async def lift(node: Node, asked: Who) -> api.Why:
    """Hold nothing against a peer that was found until now."""
    node.scores.lift(node.peers.roster.find(asked.who))
    return await why(node, asked)
