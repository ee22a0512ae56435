"""Invitations: one text by which another node becomes a peer.

    xsc1<base32 of a canonical record>

It names the issuer, where to reach it and how to know it, the network, and a
secret that works once and for a time. The issuer keeps only the secret's hash,
under `net/invite/`, and with it who came by it: the same node may ask again
when the answer was lost, another one may not.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from xsc.base import encoding, errors, keyvalue
from xsc.base.ids import from_text, to_text
from xsc.base.limits import JOIN_BYTES_MAX
from xsc.identity.envelope import Count, Id32, Record
from xsc.net.peers.roster import Addresses, Fingerprint, Name

INVITATIONS_OPEN_MAX = 1_000

SCHEME = "xsc1"
SECRET_BYTES = 16
PREFIX = b"net/invite/"
KEPT_MS = 7 * 24 * 3_600_000
"""How long an invitation is kept after it expired, to say why it does not work."""


class Invitation(Record):
    """What the text says."""

    node_id: Id32
    name: Name
    addresses: Annotated[Addresses, Field(min_length=1)]
    fingerprint: Fingerprint
    network: Name
    secret: Annotated[bytes, Field(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    expires_ms: Count

    def to_text(self) -> str:
        """Return the text to hand over."""
        return SCHEME + to_text(self.to_bytes())


def from_string(text: str) -> Invitation:
    """Return what an invitation says.

    Raises:
        InvitationInvalid: cut short, mistyped, or no invitation.
    """
    text = "".join(text.split())
    if not text.startswith(SCHEME):
        raise errors.InvitationInvalid(f"an invitation begins with '{SCHEME}'")
    try:
        return Invitation.from_bytes(from_text(text.removeprefix(SCHEME)), size_max=JOIN_BYTES_MAX)
    except (errors.ArgumentInvalid, errors.RecordInvalid, errors.TooLarge):
        raise errors.InvitationInvalid(
            "the invitation is cut short or mistyped", hint="copy it once more, as a whole"
        ) from None


class Issued(Record):
    """What the issuer keeps of an invitation, under the hash of its secret."""

    KIND: ClassVar[str] = "issued-invitation"

    expires_ms: Count
    used_by: Id32 | None = None


def _key(secret: bytes) -> bytes:
    return PREFIX + encoding.tagged_sha256("invitation-secret", secret)


def issue(store: keyvalue.KeyValue, secret: bytes, *, expires_ms: int, now_ms: int) -> None:
    """Keep a new invitation on the disk, and drop those that expired long ago.

    Raises:
        RateLimited: INVITATIONS_OPEN_MAX are kept.
    """
    rows = list(store.scan(PREFIX, keyvalue.prefix_end(PREFIX)))
    old = [key for key, raw in rows if Issued.from_bytes(raw).expires_ms + KEPT_MS < now_ms]
    if len(rows) - len(old) >= INVITATIONS_OPEN_MAX:
        raise errors.RateLimited(f"{INVITATIONS_OPEN_MAX} invitations are open, and no more fit")
    new = _key(secret), Issued(expires_ms=expires_ms).to_bytes()
    store.write([*((key, None) for key in old), new], sync=True)


def redeem(
    store: keyvalue.KeyValue, secret: bytes, caller: bytes, *, known: bool, now_ms: int
) -> keyvalue.Change:
    """Return the change that uses an invitation up; nothing is written here.

    Write it together with what it allows, before anything else is awaited.

    Args:
        store: has the invitations that were issued.
        secret: as the caller gave it.
        caller: who signed the request.
        known: whether the caller is a peer; only then may it ask a second time.
        now_ms: this node's time.

    Raises:
        InvitationInvalid: never issued, expired, or used already.
    """
    key = _key(secret)
    raw = store.get(key)
    if raw is None:
        raise errors.InvitationInvalid("no such invitation was issued here")
    issued = Issued.from_bytes(raw)
    again = known and issued.used_by == caller
    if issued.used_by is not None and not again:
        raise errors.InvitationInvalid(
            "the invitation was used already", hint="each works once; ask for another"
        )
    if now_ms >= issued.expires_ms and not again:
        raise errors.InvitationInvalid("the invitation has expired", hint="ask for another")
    return key, issued.model_copy(update={"used_by": caller}).to_bytes()
