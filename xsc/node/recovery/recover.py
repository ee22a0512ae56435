"""Brings a node back on an empty machine, from its key file and one peer, in two stages.

First it is readable: a peer that is reached gives the directory head, the head names
the other peers, and these are asked too: the highest generation counts. Whatever the
directory lists can be read from then on, and nothing was signed.

Then it signs: its ledger goes on under a new incarnation, with all entries that any
peer shows, and nobody who is silent or hides something is waited for. The mark in
the home (`recover.json`) says how far it is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from xsc.base.errors import (
    ArgumentInvalid,
    ObjectUnknown,
    PeerSilent,
    UnavailableError,
    XscError,
)
from xsc.base.ids import from_text, node_id_from_text, short
from xsc.base.limits import (
    DIRECTORY_BYTES_MAX,
    RECOVERY_PARALLEL,
    REQUEST_WINDOW_MS,
    STORAGE_QUESTION_TIMEOUT_MS,
)
from xsc.ledger.exchange import Restarted
from xsc.ledger.incarnation import Noted, open_noted
from xsc.net.peers.invitation import SCHEME, from_string
from xsc.net.peers.roster import PeerInfo
from xsc.node.build import Node
from xsc.storage.catalogue.directory import (
    DirectoryEntry,
    HeadBody,
    locate_of,
    newest,
    open_body,
    open_head,
    unpack,
)
from xsc.storage.catalogue.heads import HEAD_GET

_PLACE = re.compile(r"([a-z2-7]{52})@([^@#\s]+)(?:#([a-z2-7]{52}))?")


@dataclass(frozen=True, slots=True)
class Found:
    """What the first stage made readable."""

    generation: int
    """Of the directory."""
    objects: int
    lost: tuple[str, ...]
    """Names of objects that nobody who answered has; they are looked for again."""


@dataclass(frozen=True, slots=True)
class Signing:
    """With what the second stage began."""

    peers: int
    entries: int
    """Of the ledger, signed by both sides."""
    incarnation: int
    """Its number: that of its first half."""
    silent: tuple[bytes, ...]
    """Peers that did not answer; they are heard when they do."""
    unproven: dict[bytes, int]
    """Per peer, what the directory says that it owed and nobody shows; below zero, the own debt."""


def parse_place(place: str) -> PeerInfo | None:
    """Return the peer that `ID@ADDRESS[#FINGERPRINT]` names; None for a well-formed invitation.

    Raises:
        ArgumentInvalid, InvitationInvalid: neither.
    """
    if place.startswith(SCHEME):
        from_string(place)
        return None
    match = _PLACE.fullmatch(place)
    if match is None:
        raise ArgumentInvalid(
            "a peer is given as its invitation, or as ID@HOST:PORT",
            hint="ask a peer for `xsc peer invite`, or for its id and address",
        )
    node_id = node_id_from_text(match[1])
    fingerprint = None if match[3] is None else from_text(match[3])
    try:
        return PeerInfo(
            node_id=node_id,
            name="",
            addresses=(match[2],),
            fingerprint=fingerprint,
            added_ms=0,
            seq=1,
        )
    except ValueError:
        raise ArgumentInvalid(
            f"'{match[2]}' is no address of the form HOST:PORT",
            hint="write for example bob.example:7411",
        ) from None


async def meet(node: Node, place: str) -> None:
    """Come to know a peer again: by its invitation, or by `ID@ADDRESS[#FINGERPRINT]`.

    Raises:
        ArgumentInvalid: neither. InvitationInvalid, PeerSilent: as `PeerNet.join`.
    """
    info = parse_place(place)
    if info is None:
        await node.peers.joining.join(place)
    else:
        node.peers.roster.restore(info)


async def _head_of(node: Node, peer: bytes) -> bytes | None:
    reply = await node.peers.call(
        peer, HEAD_GET, {"locate": locate_of(node.key)}, timeout_ms=STORAGE_QUESTION_TIMEOUT_MS
    )
    return bytes(reply.parts[0]) if reply.parts else None


@dataclass(frozen=True, slots=True)
class FoundHead:
    """The newest head that anybody has."""

    raw: bytes
    generation: int
    body: HeadBody | None
    """None where nobody has one."""
    asked: tuple[bytes, ...]
    silent: tuple[bytes, ...]
    """Those that did not answer."""


def _restore(node: Node, body: HeadBody) -> None:
    """Take all that a directory says of peers: whom there is, and whom the operator barred."""
    for known in body.peers:
        node.peers.roster.restore(
            PeerInfo(
                node_id=known.node,
                name=known.name,
                addresses=known.addresses,
                fingerprint=known.fingerprint,
                added_ms=0,
                seq=known.seq,
                introducer=known.introducer,
                hops=known.hops,
                confirmed=known.confirmed,
                blocked=known.blocked,
            )
        )
    node.peers.roster.restore_removed(body.removed)


async def find_head(node: Node, own: bytes = b"") -> FoundHead:
    """Ask all peers, and the peers that these know, for the newest head.

    Args:
        node: the node whose directory it is.
        own: a head that this node has itself.
    """
    asked: set[bytes] = set()
    silent: list[bytes] = []
    heads: list[bytes] = [own] if own else []
    best = newest(heads, node.key, node.peers.network)
    while fresh := [peer for peer in node.peers.peers() if peer not in asked]:
        asked.update(fresh)
        answers = await asyncio.gather(
            *(_head_of(node, peer) for peer in fresh), return_exceptions=True
        )
        for peer, answer in zip(fresh, answers, strict=True):
            if isinstance(answer, UnavailableError):
                silent.append(peer)
            elif isinstance(answer, XscError):
                node.log.warning("recovery.head_refused", peer=short(peer), code=answer.code)
            elif isinstance(answer, BaseException):
                raise answer
            elif answer is not None:
                heads.append(answer)
        best = newest(heads, node.key, node.peers.network)
        # What is written in its own head a home knows, and perhaps more by now.
        if best is not None and best[0].raw != own:
            _restore(node, best[1])
    raw, generation, body = b"", 0, None
    if best is not None:
        raw, generation, body = best[0].raw, best[0].record.generation, best[1]
    return FoundHead(raw, generation, body, tuple(asked), tuple(silent))


async def read_directory(node: Node, body: HeadBody) -> list[DirectoryEntry]:
    """Return the objects of a directory, fetched where it is an object itself.

    Raises:
        XscError: as `StorageService.open`.
    """
    if body.directory is not None:
        return unpack(body.directory)
    assert body.capability is not None
    reader = await node.storage.open(body.capability)
    if reader.size_bytes > DIRECTORY_BYTES_MAX:
        raise ObjectUnknown("the directory is larger than any can be")
    return unpack(b"".join([bytes(chunk) async for chunk in reader.stream()]))


def noted_of(body: HeadBody | None) -> Noted:
    """Return what a directory says of the ledger."""
    return Noted() if body is None else open_noted(body.ledger)


async def adopt_all(node: Node, listed: Sequence[DirectoryEntry]) -> list[DirectoryEntry]:
    """Take all objects back; return those that nobody who answered has."""
    turn = asyncio.Semaphore(RECOVERY_PARALLEL)
    lost: list[DirectoryEntry] = []

    async def one(item: DirectoryEntry) -> None:
        async with turn:
            try:
                await node.storage.adoption.adopt(item)
            except ObjectUnknown:
                lost.append(item)

    await asyncio.gather(*(one(item) for item in listed))
    await node.storage.catalogue.keep_versions(listed)
    return lost


async def raise_replay_floors(node: Node) -> None:
    """Refuse from now on the requests that peers may have signed before.

    This home does not know which of them it has accepted. No peer can have signed a request
    that is later than its own clock shows now. The request window bounds what a clock can say.
    """

    async def raise_floor(peer: bytes) -> None:
        theirs_ms = await node.health.clock_of(peer)
        now_ms = node.clock.now_ms()
        latest_ms = now_ms + REQUEST_WINDOW_MS
        if theirs_ms is not None:
            latest_ms = min(latest_ms, max(now_ms, theirs_ms))
        node.peers.server.refuse_before(peer, latest_ms + 1)

    await asyncio.gather(*(raise_floor(peer) for peer in node.peers.peers()))


async def resume_ledger(node: Node, noted: Noted) -> Restarted:
    """Raise the replay floors, recall the leases, and restart the ledger with what peers show.

    Args:
        node: its directory is the newest one, and its peers can be called.
        noted: what that directory says of the ledger.
    """
    await raise_replay_floors(node)
    await recall_leases(node, node.storage.catalogue.directory())
    return await node.ledger.restart(node.peers.peers(), noted)


async def resume_space(node: Node) -> None:
    """Take the own space back from all peers that answer, and get an interval from one.

    It goes on above each sequence that they show. The earlier interval is left: this home does
    not know what was counted there.
    """
    await node.space_store.recover([], 0)

    async def take_back(peer: bytes) -> None:
        try:
            await node.sync.recover(peer)
        except XscError as fault:
            node.log.warning("recovery.space_not_shown", peer=short(peer), code=fault.code)

    await asyncio.gather(*(take_back(peer) for peer in node.peers.peers()))
    await node.ask_interval()


async def recall_leases(node: Node, listed: Sequence[DirectoryEntry]) -> None:
    """Learn from each peer which leases this node has there; who is silent is asked later."""
    held: dict[bytes, dict[bytes, int]] = {peer: {} for peer in node.peers.peers()}
    for item in listed:
        for host in item.held:
            at = held.setdefault(host.node, {})
            at[host.lease_id] = at.get(host.lease_id, 0) + host.size_bytes
    held.pop(node.key.node_id, None)
    await node.market.start()
    await node.market.settlement.lost(held)
    await asyncio.gather(*(node.market.settlement.agree(peer) for peer in sorted(held)))


async def call_peers(node: Node) -> None:
    """Begin to call peers, and do nothing else."""
    await node.peers.start()


async def find_objects(node: Node, places: Sequence[str]) -> Found:
    """Make the objects of a node readable again: the first stage, which signs nothing.

    May be repeated after any failure.

    Args:
        node: its peers can be called.
        places: invitations of peers, or where they are.

    Raises:
        PeerSilent: no peer that was named answers.
        ObjectUnknown: nobody who answers has a directory, or all of one.
    """
    for place in places:
        await meet(node, place)
    found = await find_head(node)
    if found.body is None:
        if found.silent and len(found.silent) == len(found.asked):
            raise PeerSilent(
                "no peer that was named answers", hint="give others with --peer, or try again"
            )
        raise ObjectUnknown(
            "no peer that answered holds a directory of this identity",
            hint="name others of its peers with --peer",
        )
    listed = await read_directory(node, found.body)
    lost = await adopt_all(node, listed)
    await node.storage.catalogue.keep_unfound(lost)
    await node.directory.go_on_from(found.raw)
    return Found(found.generation, len(listed) - len(lost), tuple(item.name for item in lost))


async def begin_signing(node: Node) -> Signing:
    """Restart the ledger with what the peers show: the second stage, after which a node starts.

    Nobody is waited for. May be repeated after any failure: each time is an incarnation.

    Args:
        node: its objects are readable, and its peers can be called.
    """
    head = open_head(node.directory.head, node.key.node_id, node.peers.network)
    body = open_body(head.record, node.key)
    begun = await resume_ledger(node, noted_of(body))
    await resume_space(node)
    return Signing(
        peers=len(node.peers.peers()),
        entries=node.ledger.count(),
        incarnation=node.ledger.head()[0],
        silent=tuple(sorted(begun.silent)),
        unproven=begun.unproven,
    )
