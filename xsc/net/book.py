"""Who is known: the peers of this node, their names and where they are reached.

Each peer is one record under `net/peer/`. Names are unique here, whatever the
peers call themselves, and a name never hides an id: text that could mean two
peers means neither.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Annotated, ClassVar

from pydantic import Field

from xsc.base.errors import ArgumentInvalid, PeerUnknown, SpaceExhausted
from xsc.base.ids import TEXT_CHARS, short, to_text
from xsc.base.keyvalue import Change, KeyValue, prefix_end
from xsc.base.limits import (
    PEER_ADDRESS_CHARS_MAX,
    PEER_ADDRESSES_MAX,
    PEER_NAME_CHARS_MAX,
    PEERS_MAX,
)
from xsc.identity.envelope import Count, Id32, Record

PREFIX = b"net/peer/"
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


class PeerBook:
    """The known peers, kept in memory and in a store."""

    def __init__(self, store: KeyValue, own_name: str) -> None:
        self._store = store
        self._own_name = own_name
        self._peers: dict[bytes, PeerInfo] = {}
        for _, raw in store.scan(PREFIX, prefix_end(PREFIX)):
            info = PeerInfo.from_bytes(raw)
            self._peers[info.node_id] = info

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

    def met(
        self, node_id: bytes, record: AddressRecord, *, name: str | None, now_ms: int
    ) -> PeerInfo:
        """Return the entry for a peer that was just met; `put` keeps it.

        A known peer keeps its name unless a new one is given; a blocked one is no longer so.

        Raises:
            ArgumentInvalid: the given name is taken or none.
            SpaceExhausted: PEERS_MAX are known.
        """
        known = self._peers.get(node_id)
        if known is None and len(self._peers) >= PEERS_MAX:
            raise SpaceExhausted(f"{PEERS_MAX} peers are known here, and no more fit")
        taken = {info.name for info in self._peers.values() if info.node_id != node_id}
        taken.add(self._own_name)
        if name is not None:
            if not is_name(name):
                raise ArgumentInvalid(
                    "a name is 1 to 64 letters, digits, dots, dashes, underscores"
                )
            if name in taken:
                raise ArgumentInvalid("that name is taken", hint="`xsc peer ls` lists all names")
        return PeerInfo(
            node_id=node_id,
            name=name
            or (known.name if known is not None else unique_name(record.name, node_id, taken)),
            addresses=record.addresses,
            fingerprint=record.fingerprint,
            added_ms=now_ms if known is None else known.added_ms,
            seq=record.seq,
        )

    def moved(self, node_id: bytes, record: AddressRecord) -> PeerInfo | None:
        """Return a known peer's entry with its new addresses; None where they are not newer.

        Raises:
            PeerUnknown: nobody of that id.
        """
        known = self.info(node_id)
        if record.seq <= known.seq:
            return None
        return known.model_copy(
            update={
                "addresses": record.addresses,
                "fingerprint": record.fingerprint,
                "seq": record.seq,
            }
        )

    def put(self, info: PeerInfo, *also: Change, sync: bool = True) -> None:
        """Keep an entry, together with other changes; on the disk at once where `sync` says so."""
        self._store.write([(PREFIX + info.node_id, info.to_bytes()), *also], sync=sync)
        self._peers[info.node_id] = info

    def remove(self, node_id: bytes) -> None:
        """Forget a peer, on the disk too."""
        self._store.write([(PREFIX + node_id, None)], sync=True)
        self._peers.pop(node_id, None)
