"""Challenges: what hosts prove of what they hold."""

from __future__ import annotations

from xsc.api.endpoint import Endpoint, Key, Model, named


class Challenge(Model):
    """Whom to challenge: a peer, by its name, its id or the beginning of it; null for all."""

    who: str | None = None


class Challenged(Model):
    """What a challenge came to."""

    id: Key
    name: str = named("id")
    customer: Key
    """Whose data it was about."""
    customer_name: str = named("customer")
    outcome: str
    """ok, bad_proof, missing, timeout, unreachable or prober_void."""
    reason: str
    """Why it is not "ok"; else empty."""


CHALLENGE = Endpoint(
    "POST",
    "/v1/health/challenge",
    Challenge,
    Challenged,
    "Have hosts prove what they hold, now.",
    rows="challenged",
)
