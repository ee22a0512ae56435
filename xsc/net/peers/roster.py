"""The peers that this node calls and answers, and what the operator says of them.

Each peer is one record under `net/peer/`. Names are unique here, whatever the
peers call themselves, and a name never hides an id: text that could mean two
peers means neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, TypeAlias

from pydantic import Field

from xsc.base import keyvalue, limits
from xsc.base.clock import Clock
from xsc.base.errors import ArgumentInvalid, PeerUnknown, SpaceExhausted, StoreDamaged
from xsc.base.ids import ID_BYTES, TEXT_CHARS, node_text, short
from xsc.base.log import Log
from xsc.identity.envelope import Count, Id32, Record

PEER_NAME_CHARS_MAX = 64
PEER_ADDRESSES_MAX = 12
"""So many of PEER_ADDRESS_CHARS_MAX let an introduction travel beside its record in the space."""
PEER_ADDRESS_CHARS_MAX = 255

PREFIX = b"net/peer/"
REMOVED = b"net/removed/"
"""Peers that the operator removed, numbered in that order: only an invitation brings them back."""
_NUMBER_BYTES = 8
PREFIX_CHARS_MIN = 4
"""Shortest beginning of an id that stands for the id."""
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{PEER_NAME_CHARS_MAX - 1}}}")

Address = Annotated[
    str,
    Field(
        # A part of a name has at most 63 characters: the system's lookup refuses longer ones.
        pattern=r"^(\[[0-9a-fA-F:]{2,45}\]|[A-Za-z0-9][A-Za-z0-9_-]{0,62}(\.[A-Za-z0-9_-]{1,63})*)"
        r":[0-9]{1,5}\z",
        max_length=PEER_ADDRESS_CHARS_MAX,
    ),
]
"""Host and port; IPv6 in brackets."""
Addresses = Annotated[tuple[Address, ...], Field(max_length=PEER_ADDRESSES_MAX)]
Name = Annotated[str, Field(max_length=PEER_NAME_CHARS_MAX)]
Fingerprint = Id32 | None
"""SHA-256 of a TLS certificate; None of a node that serves on loopback without TLS."""
OnChange: TypeAlias = Callable[[bytes, str], None]
"""Called with a peer that was "added", "removed", "blocked", "renamed" or "confirmed"."""


class AddressRecord(Record):
    """What a node says of itself, signed by it; of two, the one with the higher `seq` holds."""

    KIND: ClassVar[str] = "address"

    name: Name
    addresses: Addresses
    fingerprint: Fingerprint
    introducible: bool
    """Whether the node takes introductions, and may be introduced to others."""
    seq: Count
    """When it was made, by the node's own clock, in milliseconds."""


class PeerInfo(Record):
    """One peer, as this node keeps it."""

    KIND: ClassVar[str] = "peer"

    node_id: Id32
    name: Name
    addresses: Addresses
    fingerprint: Fingerprint
    added_ms: Count
    blocked: bool = False
    seq: Count = 0
    """Of the address record that it follows."""
    record: bytes = b""
    """That address record, as the peer signed it; empty where only the directory told of it."""
    introducible: bool = False
    """What that record says."""
    introducer: Id32 | None = None
    """The direct peer that it came by; None of a peer that an invitation made known."""
    hops: Count = 0
    """How many introductions lie in between; 0 without one."""
    member: bytes = b""
    """The record that its origin signed: the introducer, or whom that introduced."""
    confirmed: bool = False
    """Whether the operator answers for an introduced peer as for an invited one."""

    @property
    def through(self) -> bytes | None:
        """The introducer that answers for a peer; None of one that is known directly."""
        return None if self.confirmed else self.introducer


def _of_address(record: AddressRecord, signed: bytes) -> dict[str, Any]:
    """Return what a peer's entry has of its address record."""
    return record.model_dump(exclude={"name"}) | {"record": signed}


def read_number(raw: bytes, table: bytes) -> int:
    """Return the number that a row of the state holds.

    Raises:
        StoreDamaged: it holds none.
    """
    if len(raw) != _NUMBER_BYTES:
        raise StoreDamaged(f"a row of the table '{table.decode()}' is no number")
    return int.from_bytes(raw, "big")


def number_row(key: bytes, number: int) -> keyvalue.Change:
    """Return the row that holds a number."""
    return key, number.to_bytes(_NUMBER_BYTES, "big")


def is_name(text: str) -> bool:
    """Say whether a text can be a name: it is shown on terminals and typed."""
    return _NAME.fullmatch(text) is not None


def unique_name(wanted: str, node_id: bytes, taken: Collection[str]) -> str:
    """Return the wanted name, or the nearest one that nobody has; the id's where it is none."""
    base = wanted if is_name(wanted) else short(node_id)
    name, count = base, 2
    while name in taken:
        suffix = f"-{count}"
        name = base[: PEER_NAME_CHARS_MAX - len(suffix)] + suffix
        count += 1
    return name


class _Removed(NamedTuple):
    """What is kept of a peer that was removed: its debts still count with its introducer's."""

    number: int
    through: bytes | None


class Roster:
    """The known peers, kept in memory and in a store; tells listeners of each change.

    Args:
        store: keeps them.
        own: this node's id.
        own_name: this node's name, which no peer may have.
        clock, log: the node's.
    """

    def __init__(
        self, store: keyvalue.KeyValue, *, own: bytes, own_name: str, clock: Clock, log: Log
    ) -> None:
        self._store = store
        self._own = own
        self._own_name = own_name
        self._clock = clock
        self._log = log
        self._listeners: list[OnChange] = []
        self._peers: dict[bytes, PeerInfo] = {}
        for _, raw in store.scan(PREFIX, keyvalue.prefix_end(PREFIX)):
            info = PeerInfo.from_bytes(raw)
            self._peers[info.node_id] = info
        self._removed: dict[bytes, _Removed] = {}
        for key, raw in store.scan(REMOVED, keyvalue.prefix_end(REMOVED)):
            number, through = read_number(raw[:_NUMBER_BYTES], REMOVED), raw[_NUMBER_BYTES:]
            if len(through) not in (0, ID_BYTES):
                raise StoreDamaged("a row of the table 'net/removed/' names no introducer")
            self._removed[key.removeprefix(REMOVED)] = _Removed(number, through or None)

    def on_change(self, listener: OnChange) -> None:
        """Tell a listener of every peer of which something changes from now on."""
        self._listeners.append(listener)

    def tell(self, peer: bytes, what: str) -> None:
        """Log a change of a peer and tell the listeners."""
        self._log.info(f"peer.{what}", peer=short(peer))
        for listener in self._listeners:
            listener(peer, what)

    # Who is known

    def was_removed(self, node_id: bytes) -> bool:
        """Say whether the operator removed a peer, and no invitation brought it back."""
        return node_id in self._removed

    def removed(self) -> list[bytes]:
        """Return whom the operator removed and no invitation brought back, the newest first."""
        return sorted(self._removed, key=lambda node: self._removed[node].number, reverse=True)

    def through(self, node_id: bytes) -> bytes | None:
        """Return the introducer that answers for a peer, or did until it was removed."""
        found = self._peers.get(node_id) or self._removed.get(node_id)
        return None if found is None else found.through

    def shares_with(self, peer: bytes) -> list[bytes]:
        """Return the peers with which one shares its credit, itself among them.

        These are all that came through the same introducer and are not confirmed. Who was
        removed stays one of them: what it owes is still owed.
        """
        through = self.through(peer)
        if through is None:
            return [peer]
        known = [info.node_id for info in self.all() if info.through == through]
        removed = [node for node in self.removed() if self._removed[node].through == through]
        return known + removed

    def is_direct(self, node: bytes) -> bool:
        """Say whether a peer is known directly, and not by the word of another."""
        return self.introducer_of(node) == node_text(node)

    def introducer_of(self, node: bytes) -> str:
        """Return the id of whose word there is for a node: its own where it is known directly.

        Empty of a node that is not known.
        """
        if node == self._own:
            return node_text(node)
        info = self._peers.get(node)
        return "" if info is None else node_text(info.through or node)

    def get(self, node_id: bytes) -> PeerInfo | None:
        """Return what is kept of a peer, or None."""
        return self._peers.get(node_id)

    def info(self, node_id: bytes) -> PeerInfo:
        """Return what is kept of a peer.

        Raises:
            PeerUnknown: nothing is.
        """
        info = self._peers.get(node_id)
        if info is None:
            raise PeerUnknown(f"no peer {short(node_id)} is known here", hint="see `xsc peer ls`")
        return info

    def all(self) -> list[PeerInfo]:
        """Return every peer, blocked ones too, by name."""
        return sorted(self._peers.values(), key=lambda info: (info.name, info.node_id))

    def all_peers(self) -> list[bytes]:
        """Return every known peer, blocked ones too, by name."""
        return [info.node_id for info in self.all()]

    def peers(self) -> list[bytes]:
        """Return every known peer that is not blocked, never this node."""
        return [info.node_id for info in self.all() if not info.blocked]

    def is_peer(self, node: bytes) -> bool:
        """Say whether a node is one of `peers`."""
        info = self._peers.get(node)
        return info is not None and not info.blocked

    def find(self, text: str) -> bytes:
        """Return the peer of a name, an id, or a beginning of an id that fits one only.

        Raises:
            PeerUnknown: nobody, ArgumentInvalid: more than one.
        """
        found = [
            info
            for info in self.all()
            if info.name == text
            or (len(text) >= PREFIX_CHARS_MIN and node_text(info.node_id).startswith(text))
        ]
        if len(text) == TEXT_CHARS:
            found = [info for info in found if node_text(info.node_id) == text] or found
        if not found:
            raise PeerUnknown(
                f"no peer is called '{text[:80]}' here", hint="`xsc peer ls` lists them"
            )
        if len(found) > 1:
            raise ArgumentInvalid(
                f"that could mean {len(found)} peers", hint="give more of the id, or the name"
            )
        return found[0].node_id

    def _check_name(self, node_id: bytes, name: str) -> None:
        if not is_name(name):
            raise ArgumentInvalid("a name is 1 to 64 letters, digits, dots, dashes, underscores")
        if name in self._taken(node_id):
            raise ArgumentInvalid("that name is taken", hint="`xsc peer ls` lists all names")

    def _taken(self, node_id: bytes) -> set[str]:
        """Return the names that a node cannot have here."""
        taken = {info.name for info in self._peers.values() if info.node_id != node_id}
        return taken | {self._own_name}

    def met(
        self, node_id: bytes, record: AddressRecord, *, name: str | None = None, signed: bytes = b""
    ) -> PeerInfo:
        """Return the entry for a peer that an invitation made known; `put` keeps it.

        A known peer keeps its name unless a new one is given; a blocked one is no longer so, and
        an introduced one is known directly from then on.

        Raises:
            ArgumentInvalid: the given name is taken or none.
            SpaceExhausted: PEERS_MAX are known.
        """
        known = self._peers.get(node_id)
        self._check_room(known)
        if name is not None:
            self._check_name(node_id, name)
        elif known is not None:
            name = known.name
        else:
            name = unique_name(record.name, node_id, self._taken(node_id))
        return PeerInfo(
            node_id=node_id,
            name=name,
            added_ms=self._clock.now_ms() if known is None else known.added_ms,
            **_of_address(record, signed),
        )

    def _check_room(self, known: PeerInfo | None) -> None:
        if known is None and len(self._peers) >= limits.PEERS_MAX:
            raise SpaceExhausted(
                f"{limits.PEERS_MAX} peers are known here, and no more fit",
                hint="remove one that is not needed: xsc peer rm PEER",
            )

    def moved(self, node_id: bytes, record: AddressRecord, signed: bytes) -> PeerInfo | None:
        """Return a known peer's entry with its new addresses; None where they are not newer.

        Raises:
            PeerUnknown: nobody of that id.
        """
        known = self.info(node_id)
        # One that only the directory told of has no record of its own yet.
        if record.seq < known.seq or (record.seq == known.seq and known.record):
            return None
        return known.model_copy(update=_of_address(record, signed))

    def put(self, info: PeerInfo, *also: keyvalue.Change, sync: bool = True) -> None:
        """Keep an entry, together with other changes; on the disk at once where `sync` says so."""
        changes: list[keyvalue.Change] = [
            (PREFIX + info.node_id, info.to_bytes()),
            (REMOVED + info.node_id, None),
            *also,
        ]
        self._store.write(changes, sync=sync)
        self._peers[info.node_id] = info
        self._removed.pop(info.node_id, None)

    # What the operator says

    def rename(self, peer: bytes, name: str) -> None:
        """Call a peer otherwise here; what it calls itself stays.

        Raises:
            PeerUnknown: no such peer. ArgumentInvalid: the name is taken, or none.
        """
        self._check_name(peer, name)
        self._change(peer, "renamed", name=name)

    def confirm(self, peer: bytes) -> None:
        """Answer for an introduced peer as for an invited one: it may introduce others, too.

        Raises:
            PeerUnknown: no such peer.
        """
        self._change(peer, "confirmed", confirmed=True)

    def block(self, peer: bytes) -> None:
        """Answer a peer no more, and call it no more, until it is removed and invited anew.

        Raises:
            PeerUnknown: no such peer.
        """
        self._change(peer, "blocked", blocked=True)

    def _change(self, peer: bytes, what: str, **fields: object) -> None:
        self.put(self.info(peer).model_copy(update=fields))
        self.tell(peer, what)

    def remove(self, peer: bytes) -> None:
        """Forget a peer, on the disk too: only an invitation brings it back.

        Raises:
            PeerUnknown: no such peer.
        """
        self.info(peer)
        self._remove(peer)

    def restore_removed(self, peers: Sequence[bytes]) -> None:
        """Remove again whom the operator had removed, the newest first."""
        for peer in reversed(peers):
            if not self.was_removed(peer):
                self._remove(peer)

    def _remove(self, peer: bytes) -> None:
        number = max((each.number for each in self._removed.values()), default=0) + 1
        through = self.through(peer)
        raw = number.to_bytes(_NUMBER_BYTES, "big") + (through or b"")
        self._store.write([(PREFIX + peer, None), (REMOVED + peer, raw)], sync=True)
        self._removed[peer] = _Removed(number, through)
        if self._peers.pop(peer, None) is not None:
            self.tell(peer, "removed")

    def restore(self, told: PeerInfo) -> None:
        """Take a peer as the directory tells of it: blocked or not, confirmed or not.

        Of its addresses, the newer ones stay.

        Raises:
            SpaceExhausted: PEERS_MAX are known.
        """
        peer = told.node_id
        if peer == self._own:
            return
        known = self._peers.get(peer)
        self._check_room(known)
        kept: dict[str, object] = {"added_ms": self._clock.now_ms()}
        if known is not None:
            same = known.introducer == told.introducer
            kept = {"added_ms": known.added_ms, "member": known.member if same else b""}
            if known.seq >= told.seq:
                kept |= known.model_dump(include={*AddressRecord.model_fields, "record"} - {"name"})
        name = unique_name(told.name, peer, self._taken(peer))
        info = told.model_copy(update={"name": name, **kept})
        if info == known:
            return
        self.put(info)
        was_called = known is not None and not known.blocked
        if was_called and info.blocked:
            self.tell(peer, "blocked")
        elif not was_called and not info.blocked:
            self.tell(peer, "added")
