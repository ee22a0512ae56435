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
digits, because `created` counts seconds. What a creation means to the receiver
is decided in `replay`. Vectors: tests/vectors/signing.json.
"""

from __future__ import annotations

import base64
import hashlib
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
