"""Challenges: have hosts prove what they hold."""

from __future__ import annotations

from xsc.api import health as api
from xsc.node.api.serving import filled
from xsc.node.build import Node


async def challenge(node: Node, asked: api.Challenge) -> list[api.Challenged]:
    """Have hosts prove what they hold, now."""
    who = asked.who
    hosts = node.peers.peers() if who is None else [node.peers.roster.find(who)]
    done = await node.challenges.challenge(hosts)
    return [filled(api.Challenged, proved, id=proved.host) for proved in done]
