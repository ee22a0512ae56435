"""How a node proves to its own clients that it is the one that wrote `api.token`.

A client sends a challenge that it has never sent before, and gets

    HMAC-SHA-256(token, "XSC/1/api-proof\\0" ‖ port, 2 bytes big-endian ‖ challenge)

before it says anything else on that connection: after a node was killed, anybody on the
machine may listen at the place that it left behind. The port is in it so that no other
listener can pass a challenge on to a node that has begun anew somewhere else.
"""

from __future__ import annotations

import hmac
import re

from xsc.base.errors import ArgumentInvalid

PATH = "/v1/proof"
CHALLENGE_BYTES = 32
_DOMAIN = b"XSC/1/api-proof\0"
_CHALLENGE = re.compile(rb"[0-9a-f]{64}")


def proof_of(token: str, port: int, challenge: bytes) -> str:
    """Return what a node with that token, listening at that port, answers to a challenge.

    Raises:
        ArgumentInvalid: the challenge is not CHALLENGE_BYTES in lower-case hexadecimal digits.
    """
    if not _CHALLENGE.fullmatch(challenge):
        raise ArgumentInvalid(f"a challenge is {CHALLENGE_BYTES} bytes in hexadecimal digits")
    message = _DOMAIN + port.to_bytes(2, "big") + bytes.fromhex(challenge.decode())
    return hmac.digest(token.encode(), message, "sha256").hex()


def is_proof(given: object, token: str, port: int, challenge: bytes) -> bool:
    """Say whether an answer to a challenge is by the node with that token at that port."""
    expected = proof_of(token, port, challenge)
    return isinstance(given, str) and hmac.compare_digest(given.encode(), expected.encode())
