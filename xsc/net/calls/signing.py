"""How a request proves who sent it, to whom, and with what content.

A restricted profile of HTTP Message Signatures (RFC 9421): one label, one
algorithm (Ed25519), one list of components, one order of parameters. The
signature base is, line by line,

    "@method": POST
    "@path": /peer/v1/storage.get
    "@query": ?
    "xsc-head-digest": sha-256=:<base64 of the digest of the frame's head>:
    "xsc-network": <text of the network id>
    "xsc-to": <text of the receiver's node id>
    "@signature-params": (…);created=<s>;keyid="<text of the sender's id>";alg="ed25519";nonce="…"

The head holds the Merkle roots of the bodies behind it, so that the signature
binds them too. The nonce begins with the creation in milliseconds, 12 hex
digits, because `created` counts seconds. Vectors: tests/vectors/signing.json.

A request is accepted once. Its creation must lie within REQUEST_WINDOW_MS of
this node's clock; within the window nonces are remembered. What is older than
the memory is refused by a *floor*: the start of this process, and whatever was
forgotten since. The quota bounds how many requests there are within it.

The floor alone leaves a hole: a peer whose clock is ahead signs requests that
lie after a restart that is still to come, and they could be played again to
the restarted node. So before such a request is accepted, a *horizon* beyond it
is written to the disk (what `ReplayGuard.admit` returns), and the next start takes it for
that peer's floor.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import re
from collections.abc import Mapping
from dataclasses import dataclass

from xsc.base import errors, ids, limits
from xsc.identity.keys import KeyPair, verify

DIGEST = "xsc-head-digest"
NETWORK = "xsc-network"
TO = "xsc-to"
INPUT = "signature-input"
SIGNATURE = "signature"
LABEL = "xsc"
STAMP_BYTES = 6
"""The first bytes of a nonce: the creation in milliseconds."""
_COMPONENTS = f'("@method" "@path" "@query" "{DIGEST}" "{NETWORK}" "{TO}")'
_INPUT = re.compile(
    re.escape(f"{LABEL}={_COMPONENTS}")
    + r";created=([0-9]{1,11})"
    + r';keyid="([a-z2-7]{52})"'
    + r';alg="ed25519"'
    + rf';nonce="([0-9a-f]{{{2 * limits.NONCE_BYTES}}})"'
)
_SIGNATURE = re.compile(re.escape(LABEL) + r"=:([A-Za-z0-9+/]{86}==):")


@dataclass(frozen=True, slots=True)
class VerifiedCaller:
    """Who signed a request, when, and over which head."""

    node_id: bytes
    created_ms: int
    nonce: bytes
    digest: str
    """The digest field; compare it with `digest_of` of the head that came."""


def digest_of(head: bytes | memoryview) -> str:
    """Return the digest field of a frame's head."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(head).digest()).decode()}:"


def _base(method: str, path: str, fields: Mapping[str, str], params: str) -> bytes:
    return (
        f'"@method": {method}\n"@path": {path}\n"@query": ?\n"{DIGEST}": {fields[DIGEST]}\n'
        f'"{NETWORK}": {fields[NETWORK]}\n"{TO}": {fields[TO]}\n"@signature-params": {params}'
    ).encode()


def sign_request(
    key: KeyPair,
    *,
    network: bytes,
    to: bytes,
    method: str,
    path: str,
    head: bytes,
    created_ms: int,
    entropy: bytes,
) -> dict[str, str]:
    """Return the five header fields that sign a request.

    Args:
        key: the sender's.
        network: id of the network.
        to: node id of the receiver.
        method: of HTTP.
        path: without a query.
        head: the head of the frame that is the body.
        created_ms: the sender's time.
        entropy: NONCE_BYTES - STAMP_BYTES random bytes, new for each request.
    """
    assert len(entropy) == limits.NONCE_BYTES - STAMP_BYTES
    nonce = (created_ms.to_bytes(STAMP_BYTES, "big") + entropy).hex()
    params = (
        f'{_COMPONENTS};created={created_ms // 1000};keyid="{ids.node_text(key.node_id)}"'
        f';alg="ed25519";nonce="{nonce}"'
    )
    fields = {DIGEST: digest_of(head), NETWORK: ids.node_text(network), TO: ids.node_text(to)}
    signature = base64.b64encode(key.sign(_base(method, path, fields, params))).decode()
    return {**fields, INPUT: f"{LABEL}={params}", SIGNATURE: f"{LABEL}=:{signature}:"}


def claimed_caller(headers: Mapping[str, str]) -> bytes | None:
    """Return the node id that a request claims to be from; nothing is verified."""
    found = _INPUT.fullmatch(headers.get(INPUT, ""))
    if found is None:
        return None
    try:
        return ids.node_id_from_text(found[2])
    except errors.ArgumentInvalid:
        return None


def verify_request(
    headers: Mapping[str, str], *, network: bytes, to: bytes, method: str, path: str
) -> VerifiedCaller:
    """Return who signed a request to `to` in that network; header names are lower case.

    The body is not looked at: compare the digest with it once it was read.

    Raises:
        SignatureInvalid: unsigned, malformed, of another network, for another
            receiver, or the signature does not fit.
    """
    found = _INPUT.fullmatch(headers.get(INPUT, ""))
    signature = _SIGNATURE.fullmatch(headers.get(SIGNATURE, ""))
    if found is None or signature is None or DIGEST not in headers:
        raise errors.SignatureInvalid("the request is not signed in the way of XSC")
    if headers.get(NETWORK) != ids.node_text(network):
        raise errors.SignatureInvalid("the request is of another network")
    if headers.get(TO) != ids.node_text(to):
        raise errors.SignatureInvalid("the request is for another node")
    nonce = bytes.fromhex(found[3])
    created_ms = int.from_bytes(nonce[:STAMP_BYTES], "big")
    if found[1] != str(created_ms // 1000):
        raise errors.SignatureInvalid("the request gives two times of its creation")
    raw = base64.b64decode(signature[1])
    if base64.b64encode(raw).decode() != signature[1]:
        raise errors.SignatureInvalid("the signature is not in its one text form")
    try:
        caller = ids.node_id_from_text(found[2])
    except errors.ArgumentInvalid:
        raise errors.SignatureInvalid("the sender's node id is malformed") from None
    params = found[0].removeprefix(f"{LABEL}=")
    verify(caller, raw, _base(method, path, headers, params))
    return VerifiedCaller(caller, created_ms, nonce, headers[DIGEST])


HORIZON_STEP_MS = 2_000
"""How far a horizon is set beyond a request, so that not each request writes one."""


class _Seen:
    """What is remembered of one peer."""

    def __init__(self, floor_ms: int, horizon_ms: int) -> None:
        self.floor_ms = floor_ms
        self.horizon_ms = horizon_ms
        self.nonces: set[bytes] = set()
        self.order: list[tuple[int, bytes]] = []


class ReplayGuard:
    """The state of all peers; `admit` is its only step."""

    def __init__(self, *, boot_ms: int, horizons: Mapping[bytes, int]) -> None:
        self._boot_ms = boot_ms
        self._peers = {
            peer: _Seen(max(boot_ms, horizon), horizon) for peer, horizon in horizons.items()
        }

    def admit(self, peer: bytes, *, created_ms: int, nonce: bytes, now_ms: int) -> int | None:
        """Remember a request, if it is new.

        Returns a horizon where one must be on the disk before the request acts.

        Raises:
            ClockSkewed: created outside of the window; names the skew and its direction.
            ReplayRefused: seen before, or from before what is remembered.
        """
        if abs(created_ms - now_ms) > limits.REQUEST_WINDOW_MS:
            raise errors.ClockSkewed(
                _skew(created_ms - now_ms), hint="set the clocks of both nodes"
            )
        seen = self._peers.setdefault(peer, _Seen(self._boot_ms, 0))
        self._forget(seen, now_ms - limits.REQUEST_WINDOW_MS)
        if created_ms < seen.floor_ms:
            raise errors.ReplayRefused(
                "the request was made before this node can tell whether it is new",
                hint="sign it anew",
            )
        if nonce in seen.nonces:
            raise errors.ReplayRefused("the request was seen before", hint="sign it anew")
        seen.nonces.add(nonce)
        heapq.heappush(seen.order, (created_ms, nonce))
        if created_ms <= now_ms or created_ms < seen.horizon_ms:
            return None
        seen.horizon_ms = created_ms + HORIZON_STEP_MS
        return seen.horizon_ms

    @staticmethod
    def _forget(seen: _Seen, before_ms: int) -> None:
        """Drop nonces out of the window, and raise the floor over them.

        The floor keeps them refused even when this node's clock is set back.
        """
        while seen.order and seen.order[0][0] < before_ms:
            created_ms, nonce = heapq.heappop(seen.order)
            seen.nonces.discard(nonce)
            seen.floor_ms = max(seen.floor_ms, created_ms + 1)


def _skew(ahead_ms: int) -> str:
    where = "ahead of" if ahead_ms > 0 else "behind"
    return f"the caller's clock is {abs(ahead_ms) / 1000:.1f} s {where} this node's"
