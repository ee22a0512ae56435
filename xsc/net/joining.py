"""Invitations: issues them, joins by them, and answers nodes that join."""

from __future__ import annotations

from xsc.base import errors, fields, keyvalue, limits
from xsc.base.encoding import Value
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed
from xsc.net.calls import signing
from xsc.net.calls.sender import RequestSender
from xsc.net.calls.server import JOIN, RequestServer
from xsc.net.peers import invitation as invitations
from xsc.net.peers.introductions import Introductions
from xsc.net.peers.own_address import OwnAddress
from xsc.net.peers.roster import AddressRecord, PeerInfo, Roster


class Joining:
    """Makes two nodes peers by an invitation.

    Args:
        context: the node's values.
        network_name: the network that an invitation must name.
        roster: the known peers.
        sender: calls the issuer of an invitation.
        server: passes calls of `peers.join` here.
        own_address: says where this node is.
        introductions: counts the records of those that join.
        store: keeps the invitations.
    """

    def __init__(
        self,
        context: Context,
        *,
        network_name: str,
        roster: Roster,
        sender: RequestSender,
        server: RequestServer,
        own_address: OwnAddress,
        introductions: Introductions,
        store: keyvalue.KeyValue,
    ) -> None:
        self._context = context
        self._network_name = network_name
        self._roster = roster
        self._sender = sender
        self._server = server
        self._own_address = own_address
        self._introductions = introductions
        self._store = store
        server.answer_joins(self._join)

    def invite(self, ttl_ms: int) -> str:
        """Return an invitation that one node can join by, until the time is up.

        Raises:
            RateLimited: too many are open.
            ConfigInvalid: there is no address that an invitation could name.
        """
        own = self._own_address.record().record
        if not own.addresses:
            raise errors.ConfigInvalid(
                "this node knows no address at which others could reach it",
                hint="set advertise to the address or name that reaches this machine from outside",
            )
        now_ms = self._context.clock.now_ms()
        secret = self._context.entropy.token(invitations.SECRET_BYTES)
        text = invitations.Invitation(
            node_id=self._context.key.node_id,
            name=own.name,
            addresses=own.addresses,
            fingerprint=own.fingerprint,
            network=self._network_name,
            secret=secret,
            expires_ms=now_ms + ttl_ms,
        ).to_text()
        invitations.issue(self._store, secret, expires_ms=now_ms + ttl_ms, now_ms=now_ms)
        return text

    async def join(self, invitation: str, name: str | None = None) -> bytes:
        """Become a peer of the node that issued an invitation; return its id.

        Args:
            invitation: the text.
            name: what to call the other node here; its own name otherwise.

        Raises:
            InvitationInvalid: no invitation, for another network, from this node,
                expired, used or never issued.
            PeerSilent: the issuer does not answer.
        """
        asked = invitations.from_string(invitation)
        if asked.network != self._network_name:
            raise errors.InvitationInvalid(
                f"the invitation is for the network '{asked.network}', "
                f"this node is in '{self._network_name}'"
            )
        if asked.node_id == self._context.key.node_id:
            raise errors.InvitationInvalid("the invitation was issued by this node itself")
        if self._context.clock.now_ms() >= asked.expires_ms:
            raise errors.InvitationInvalid("the invitation has expired", hint="ask for another")
        issuer = PeerInfo(
            node_id=asked.node_id,
            name=asked.name,
            addresses=asked.addresses,
            fingerprint=asked.fingerprint,
            added_ms=0,
        )
        # Refused here rather than after the secret is used up.
        self._roster.met(asked.node_id, self._own_address.record().record, name=name)
        header: dict[str, Value] = {
            "secret": asked.secret,
            "record": self._own_address.record().raw,
        }
        reply = await self._sender.ask(issuer, JOIN, header, (), limits.PEER_TIMEOUT_MS)
        theirs = open_signed(
            fields.take_bytes(reply.header, "record"),
            AddressRecord,
            network=self._context.network,
            author=asked.node_id,
        )
        self._meet(asked.node_id, theirs, name)
        return asked.node_id

    def _join(self, caller: signing.VerifiedCaller, header: dict[str, Value]) -> dict[str, Value]:
        """Take the bearer of an invitation as a peer. Awaits nothing: a secret works once."""
        now_ms = self._context.clock.now_ms()
        secret = fields.take_bytes(header, "secret", size=invitations.SECRET_BYTES)
        before = self._roster.get(caller.node_id)
        known = self._roster.is_peer(caller.node_id)
        used = invitations.redeem(self._store, secret, caller.node_id, known=known, now_ms=now_ms)
        # From here on the caller has shown an invitation, and may hear what is wrong.
        if before is not None and before.blocked:
            raise errors.PeerBlocked("this node has blocked the caller")
        if before is None:
            self._server.admit(caller)
        record = open_signed(
            fields.take_bytes(header, "record"),
            AddressRecord,
            network=self._context.network,
            author=caller.node_id,
        )
        self._introductions.count_record(caller.node_id)
        self._meet(caller.node_id, record, also=used)
        return {"record": self._own_address.record().raw}

    def _meet(
        self,
        peer: bytes,
        signed: Signed[AddressRecord],
        name: str | None = None,
        also: keyvalue.Change | None = None,
    ) -> None:
        before = self._roster.get(peer)
        met = self._roster.met(peer, signed.record, name=name, signed=signed.raw)
        # A peer may show again and again the invitation that it came by: nothing is new then.
        again = before is not None and also is not None and self._store.get(also[0]) == also[1]
        self._roster.put(met, *([] if also is None else [also]), sync=not again)
        if before is None or before.blocked:
            self._roster.tell(peer, "added")
        elif before.through is not None or before.introducible != met.introducible:
            self._roster.tell(peer, "confirmed")
