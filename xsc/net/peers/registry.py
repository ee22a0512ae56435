"""Stores the known peers: their names, addresses and introducers.

Each peer is one record under `net/peer/`. Names are unique here, whatever the
peers call themselves, and a name never hides an id: text that could mean two
peers means neither.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field

from xsc.base.errors import ArgumentInvalid, PeerUnknown, SpaceExhausted, StoreDamaged
from xsc.base.ids import ID_BYTES, TEXT_CHARS, short, to_text
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.base.limits import (
    PEER_ADDRESS_CHARS_MAX,
    PEER_ADDRESSES_MAX,
    PEER_NAME_CHARS_MAX,
    PEERS_MAX,
)
from xsc.identity.envelope import Count, Id32, Record

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
        pattern=r"^(\[[0-9a-fA-F:]{2,45}\]|[A-Za-z0-9][A-Za-z0-9._-]*):[0-9]{1,5}\z",
        max_length=PEER_ADDRESS_CHARS_MAX,
    ),
]
"""Host and port; IPv6 in brackets."""
Addresses = Annotated[tuple[Address, ...], Field(max_length=PEER_ADDRESSES_MAX)]
Name = Annotated[str, Field(max_length=PEER_NAME_CHARS_MAX)]
Fingerprint = Id32 | None
"""SHA-256 of a TLS certificate; None of a node that serves on loopback without TLS."""


_text = lru_cache(maxsize=PEERS_MAX)(to_text)


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


class PeerRegistry:
    """The known peers, kept in memory and in a store."""

    def __init__(self, store: KeyValue, own_name: str) -> None:
        self._store = store
        self._own_name = own_name
        self._peers: dict[bytes, PeerInfo] = {}
        for _, raw in store.scan(PREFIX, prefix_end(PREFIX)):
            info = PeerInfo.from_bytes(raw)
            self._peers[info.node_id] = info
        self._removed: dict[bytes, _Removed] = {}
        for key, raw in store.scan(REMOVED, prefix_end(REMOVED)):
            if len(raw) not in (_NUMBER_BYTES, _NUMBER_BYTES + ID_BYTES):
                raise StoreDamaged("a row of the table 'net/removed/' is no number and introducer")
            number, through = raw[:_NUMBER_BYTES], raw[_NUMBER_BYTES:]
            self._removed[key.removeprefix(REMOVED)] = _Removed(
                int.from_bytes(number, "big"), through or None
            )

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

    def came_through(self, introducer: bytes) -> list[bytes]:
        """Return the peers that an introducer answers for, those that were removed last."""
        known = [info.node_id for info in self.all() if info.through == introducer]
        removed = [node for node in self.removed() if self._removed[node].through == introducer]
        return known + removed

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

    def find(self, text: str) -> PeerInfo:
        """Return the peer of a name, an id, or the beginning of an id.

        Raises:
            PeerUnknown: nobody, ArgumentInvalid: more than one.
        """
        found = [
            info
            for info in self.all()
            if info.name == text
            or (len(text) >= PREFIX_CHARS_MIN and _text(info.node_id).startswith(text))
        ]
        if len(text) == TEXT_CHARS:
            found = [info for info in found if _text(info.node_id) == text] or found
        if not found:
            raise PeerUnknown("no such peer is known here", hint="`xsc peer ls` lists them")
        if len(found) > 1:
            raise ArgumentInvalid(
                f"that could mean {len(found)} peers", hint="give more of the id, or the name"
            )
        return found[0]

    def _check_name(self, node_id: bytes, name: str) -> None:
        if not is_name(name):
            raise ArgumentInvalid("a name is 1 to 64 letters, digits, dots, dashes, underscores")
        if name in self._taken(node_id):
            raise ArgumentInvalid("that name is taken", hint="`xsc peer ls` lists all names")

    def _taken(self, node_id: bytes) -> set[str]:
        """Return the names that a node cannot have here."""
        taken = {info.name for info in self._peers.values() if info.node_id != node_id}
        return taken | {self._own_name}

    def renamed(self, node_id: bytes, name: str) -> PeerInfo:
        """Return a known peer's entry under another name.

        Raises:
            PeerUnknown: nobody of that id. ArgumentInvalid: the name is taken or none.
        """
        self._check_name(node_id, name)
        return self.info(node_id).model_copy(update={"name": name})

    def met(
        self,
        node_id: bytes,
        record: AddressRecord,
        *,
        name: str | None,
        now_ms: int,
        signed: bytes = b"",
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
            addresses=record.addresses,
            fingerprint=record.fingerprint,
            added_ms=now_ms if known is None else known.added_ms,
            seq=record.seq,
            record=signed,
            introducible=record.introducible,
        )

    def _check_room(self, known: PeerInfo | None) -> None:
        if known is None and len(self._peers) >= PEERS_MAX:
            raise SpaceExhausted(
                f"{PEERS_MAX} peers are known here, and no more fit",
                hint="remove one that is not needed: xsc peer rm PEER",
            )

    def restored(self, told: PeerInfo, now_ms: int) -> PeerInfo:
        """Return the entry for a peer that the directory tells of; `put` keeps it.

        What the operator said of it is taken as told; of two addresses, the newer one.

        Raises:
            SpaceExhausted: PEERS_MAX are known.
        """
        known = self._peers.get(told.node_id)
        self._check_room(known)
        name = unique_name(told.name, told.node_id, self._taken(told.node_id))
        if known is None:
            return told.model_copy(update={"name": name, "added_ms": now_ms})
        newer = told if told.seq > known.seq else known
        return told.model_copy(
            update={
                "name": name,
                "added_ms": known.added_ms,
                "addresses": newer.addresses,
                "fingerprint": newer.fingerprint,
                "seq": newer.seq,
                "record": newer.record,
                "introducible": newer.introducible,
                "member": known.member if known.introducer == told.introducer else b"",
            }
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
        return known.model_copy(
            update={
                "addresses": record.addresses,
                "fingerprint": record.fingerprint,
                "seq": record.seq,
                "record": signed,
                "introducible": record.introducible,
            }
        )

    def put(self, info: PeerInfo, *also: Change, sync: bool = True) -> None:
        """Keep an entry, together with other changes; on the disk at once where `sync` says so."""
        changes: list[Change] = [
            (PREFIX + info.node_id, info.to_bytes()),
            (REMOVED + info.node_id, None),
            *also,
        ]
        self._store.write(changes, sync=sync)
        self._peers[info.node_id] = info
        self._removed.pop(info.node_id, None)

    def remove(self, node_id: bytes) -> None:
        """Forget a peer, on the disk too, so that no introduction brings it back."""
        number = max((each.number for each in self._removed.values()), default=0) + 1
        through = self.through(node_id)
        raw = number.to_bytes(_NUMBER_BYTES, "big") + (through or b"")
        self._store.write([(PREFIX + node_id, None), (REMOVED + node_id, raw)], sync=True)
        self._peers.pop(node_id, None)
        self._removed[node_id] = _Removed(number, through)
