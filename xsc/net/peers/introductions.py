"""What peers say of where they are and of each other, and what this node says of them.

An introduction is two signed records: a `member` record of its origin, and the address record of
whom it introduces. The rules are in `xsc.net.peers.circle`. Everything taken here is signed by
the node that it is about, but for one word: that its origin knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from xsc.base import errors, limits, tally
from xsc.base.ids import short
from xsc.identity.context import Context
from xsc.identity.envelope import Signed, open_signed, read_claimed, sign
from xsc.net.peers import circle
from xsc.net.peers.circle import Introduction, Member
from xsc.net.peers.roster import AddressRecord, PeerInfo, Roster

ADDRESSES_A_PEER_MAX = 16
"""New records of where it is that a peer is heard with within ADDRESSES_MS; a start or a move
makes one."""
ADDRESSES_MS = 60_000
INTRODUCTIONS_A_PEER_MAX = 64
"""Times that the introductions of a peer are verified within ADDRESSES_MS: each is up to
2 · INTRODUCED_A_PEER_MAX signatures."""


class Introductions:
    """What this node takes of what its peers say, and whom it introduces.

    Args:
        context: the node's values.
        roster: of peers; what is learnt is kept there.
        accepts: whether introductions are taken and made.
    """

    def __init__(self, context: Context, *, roster: Roster, accepts: bool) -> None:
        self._context = context
        # A member record names no recipient: each is signed once.
        self._signed = lru_cache(maxsize=limits.PEERS_MAX)(
            lambda member: sign(member, context.key, context.network).raw
        )
        self._roster = roster
        self.accepts = accepts
        self._heard = tally.Tally(INTRODUCTIONS_A_PEER_MAX, ADDRESSES_MS)
        self._moves = tally.Tally(ADDRESSES_A_PEER_MAX, ADDRESSES_MS)

    # Introductions

    def made(self) -> list[Introduction]:
        """Return the introductions that this node makes, for all peers alike."""
        if not self.accepts:
            return []
        return [
            Introduction(member=self._signed(member) if member else info.member, record=info.record)
            for info, member in circle.members(self._roster.all())
        ]

    def counts(self, introducer: bytes) -> bool:
        """Say whether introductions of a peer count here."""
        return self.accepts and circle.may_introduce(self._roster.info(introducer))

    def take(self, introducer: bytes, introductions: Sequence[Introduction]) -> bool:
        """Take whom a peer introduces, as far as the rules allow.

        Returns False where somebody was left out: others may be known or gone later.

        Raises:
            RateLimited: too many lists with newcomers within a time.
            RecordInvalid, SignatureInvalid: an introduction is malformed, or is not signed by whom
                it must be; none was taken.
        """
        if not self.counts(introducer):
            return True
        unknown = [said for said in introductions if self._is_of_a_newcomer(said)]
        if not unknown:
            return True
        self._heard.count(introducer, self._context.clock.monotonic_ms(), "introductions")
        found = [self._opened(said) for said in unknown]
        # Whom it signs for itself may be the origin of another one.
        found.sort(key=lambda newcomer: newcomer[0].author != introducer)
        known, left = self._roster.all(), False
        for member, address in found:
            place = circle.place_for(member.author, known)
            if place is None:
                left = True
            elif member.record.node not in {info.node_id for info in known}:
                known.append(self._take(member, address, place))
        return not left

    def _take(
        self, member: Signed[Member], address: Signed[AddressRecord], place: circle.Place
    ) -> PeerInfo:
        node = member.record.node
        met = self._roster.met(node, address.record, signed=address.raw)
        came = {"introducer": place.introducer, "hops": place.hops, "member": member.raw}
        info = met.model_copy(update=came)
        self._roster.put(info)
        self._context.log.info("net.peer_introduced", peer=short(node), by=short(place.introducer))
        self._roster.tell(node, "added")
        return info

    def _is_of_a_newcomer(self, said: Introduction) -> bool:
        """Say whether an introduction is of a node that is not known, and was not removed."""
        node = read_claimed(said.member, Member, network=self._context.network).record.node
        known = node == self._context.key.node_id or self._roster.get(node) is not None
        return not known and not self._roster.was_removed(node)

    def _opened(self, said: Introduction) -> tuple[Signed[Member], Signed[AddressRecord]]:
        """Return the introduction and the address of a newcomer."""
        network = self._context.network
        member = open_signed(said.member, Member, network=network)
        node = member.record.node
        address = open_signed(said.record, AddressRecord, network=network, author=node)
        if not address.record.introducible:
            raise errors.RecordInvalid("who is introduced has not said that it may be")
        return member, address

    # Addresses

    def learn(self, peer: bytes, raw: bytes) -> bool:
        """Take a peer's own record of where it is, if it is newer.

        Returns True where this node introduces others than before by it.

        Raises:
            RateLimited: too many new ones within a time.
            RecordInvalid, SignatureInvalid: it is no address record of that peer.
        """
        before = self._roster.info(peer)
        if raw == before.record:
            return False
        signed = open_signed(raw, AddressRecord, network=self._context.network, author=peer)
        moved = self._roster.moved(peer, signed.record, raw)
        if moved is None:
            return False
        self.count_record(peer)
        # Not synced: the record is in the space as well.
        self._roster.put(moved, sync=False)
        self._context.log.info("net.peer_moved", peer=short(peer))
        # Of an introduced one the next change says it: it brings none about.
        return moved.introducible != before.introducible and circle.may_introduce(moved)

    def count_record(self, peer: bytes) -> None:
        """Count an address record that a peer sends.

        Raises:
            RateLimited: too many within a time.
        """
        self._moves.count(peer, self._context.clock.monotonic_ms(), "address records")
