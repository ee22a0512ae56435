"""Brings a node back, in a home that was made of its key or of a backup, from what its peers hold.

A home that came from a key is empty, and one that came from a backup is of the past: since
then the node may have signed entries, vouchers and directories that it does not hold. So
both carry a mark, and no node serves on one before its peers were asked, in two steps.

First objects: a peer that is reached gives the directory head, the head names
the other peers, and these are asked too: the highest generation counts. Whatever the
directory lists can be read from then on, and only the head was signed again.

Then it signs: its ledger goes on under a new incarnation, with all entries that any
peer shows, and vouchers from their own newest end. A recovery waits for nobody who is silent
or hides something; a restore does, where the operator does not say otherwise.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from xsc.api.endpoint import Key, Model, filled
from xsc.base import errors, ids, limits
from xsc.base.progress import Watch, unwatched
from xsc.identity.envelope import Signed
from xsc.ledger.incarnation import Noted, open_noted
from xsc.net.peers import invitation, roster
from xsc.node.build import Node
from xsc.storage.catalogue import directory
from xsc.storage.catalogue.heads import HEAD_GET
from xsc.storage.object.capability import parse_read

RECOVERY_PARALLEL = 16
"""Objects looked for at once by a recovery."""

_PLACE = re.compile(r"([a-z2-7]{52})@([^@#\s]+)(?:#([a-z2-7]{52}))?")


@dataclass(frozen=True, slots=True)
class Found:
    """The objects that peers gave back; nothing is signed yet."""

    objects: int
    """All that the newest directory lists, but those that are lost."""
    newer_objects: int
    """That the home did not have."""
    deleted_objects: int
    """That it had and that were deleted since."""
    lost: tuple[str, ...]
    """Names of newer objects that nobody who answered has; they are looked for again."""
    silent: frozenset[bytes]
    """Peers that did not answer."""
    noted: Noted
    """What the newest directory says of the ledger."""


class Unproven(Model):
    """What the directory says that a peer owed, and nobody shows; below zero, the own debt."""

    peer: Key
    amount_micro: int


class Returned(Model):
    """With what a node signs again."""

    peers: int
    objects: int
    newer_objects: int
    deleted_objects: int
    entries: int
    """Of the ledger."""
    newer_entries: int
    """Signed by both sides, that the home did not have."""
    incarnation: int
    """Its number: that of its first half."""
    silent: list[Key]
    """Peers that did not answer, at any time; they are heard when they do."""
    unproven: list[Unproven]
    lost: list[str]


def parse_place(place: str) -> roster.PeerInfo | None:
    """Return the peer that `ID@ADDRESS[#FINGERPRINT]` names; None for a well-formed invitation.

    Raises:
        ArgumentInvalid, InvitationInvalid: neither.
    """
    if place.startswith(invitation.SCHEME):
        invitation.from_string(place)
        return None
    match = _PLACE.fullmatch(place)
    if match is not None:
        node_id, address = ids.node_id_from_text(match[1]), match[2]
        fingerprint = None if match[3] is None else ids.from_text(match[3])
        with suppress(ValueError):  # it is no address
            return roster.PeerInfo(
                node_id=node_id,
                name="",
                addresses=(address,),
                fingerprint=fingerprint,
                added_ms=0,
                seq=1,
            )
    raise errors.ArgumentInvalid(
        "a peer is given as its invitation, or as ID@HOST:PORT",
        hint="ask a peer for `xsc peer invite`, or for its id and address",
    )


def _restore(node: Node, body: directory.HeadBody) -> None:
    """Take all that a directory says of peers: whom there is, and whom the operator barred."""
    for known in body.peers:
        node.peers.roster.restore(roster.PeerInfo.from_bytes(known))
    node.peers.roster.restore_removed(body.removed)


async def find_head(
    node: Node, asked: set[bytes], silent: set[bytes]
) -> tuple[Signed[directory.DirectoryHead], directory.HeadBody] | None:
    """Return the newest head of all peers, and of those that these know, and what it says.

    Args:
        node: the node whose directory it is; its own head counts as well.
        asked: takes the peers that were asked.
        silent: takes those of them that did not answer.
    """
    own = best = node.directory.newest

    async def ask(peer: bytes) -> None:
        nonlocal best
        asked.add(peer)
        try:
            reply = await node.peers.call(
                peer, HEAD_GET, {}, timeout_ms=limits.STORAGE_QUESTION_TIMEOUT_MS
            )
            for part in reply.parts[:1]:
                head = directory.open_head(bytes(part), node.key.node_id, node.peers.network)
                body = directory.open_body(head.record, node.key)
                if best is None or head.record.generation > best[0].record.generation:
                    best = head, body
        except errors.UnavailableError:
            silent.add(peer)
        except errors.XscError as fault:
            node.log.warning("recovery.head_refused", peer=ids.short(peer), code=fault.code)

    while fresh := [peer for peer in node.peers.peers() if peer not in asked]:
        await asyncio.gather(*(ask(peer) for peer in fresh))
        # What is written in its own head a home knows, and perhaps more by now.
        if best is not None and best is not own:
            _restore(node, best[1])
    return best


async def read_directory(node: Node, body: directory.HeadBody) -> list[directory.DirectoryEntry]:
    """Return the objects of a directory, fetched where it is an object itself.

    Raises:
        XscError: as `StorageService.open`.
    """
    if isinstance(body.directory, bytes):
        return directory.unpack(body.directory)
    reader = await node.storage.open(body.directory)
    if reader.size_bytes > limits.DIRECTORY_BYTES_MAX:
        raise errors.ObjectUnknown("the directory is larger than any can be")
    return directory.unpack(b"".join([bytes(chunk) async for chunk in reader.stream()]))


async def adopt_all(
    node: Node, listed: Sequence[directory.DirectoryEntry], watch: Watch
) -> list[directory.DirectoryEntry]:
    """Take all objects back; return those that nobody who answered has."""
    turn = asyncio.Semaphore(RECOVERY_PARALLEL)
    lost: list[directory.DirectoryEntry] = []

    async def one(item: directory.DirectoryEntry) -> None:
        async with turn:
            try:
                await node.storage.adoption.adopt(item)
            except errors.ObjectUnknown:
                lost.append(item)
        progress(1)

    with watch(len(listed)) as progress:
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
        latest_ms = now_ms + limits.REQUEST_WINDOW_MS
        if theirs_ms is not None:
            latest_ms = min(latest_ms, max(now_ms, theirs_ms))
        node.peers.server.refuse_before(peer, latest_ms + 1)

    await asyncio.gather(*(raise_floor(peer) for peer in node.peers.peers()))


async def resume_space(node: Node) -> None:
    """Take the own space back from all peers that answer, and get an interval from one.

    It goes on above each sequence that they show. The earlier interval is left: this home does
    not know what was counted there.
    """
    await node.space.leave()

    async def take_back(peer: bytes) -> None:
        try:
            await node.sync.recover(peer)
        except errors.XscError as fault:
            node.log.warning("recovery.space_not_shown", peer=ids.short(peer), code=fault.code)

    await asyncio.gather(*(take_back(peer) for peer in node.peers.peers()))
    await node.intervals.ask(node.intervals.granters())


async def recall_leases(node: Node, listed: Sequence[directory.DirectoryEntry]) -> None:
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


async def find_objects(
    node: Node,
    places: Sequence[str] = (),
    *,
    recovering: bool = False,
    without_silent: bool = False,
    watch: Watch = unwatched,
) -> Found:
    """Make the newest objects of a node readable, and sign nothing but the next head.

    May be repeated after any failure.

    Args:
        node: built with `recovering`, not started.
        places: invitations of peers, or where they are.
        recovering: the home came from the key alone: there must be a directory, and nobody is
            waited for.
        without_silent: go on although peers are silent, or newer objects are not found.
        watch: shows how many are looked for.

    Raises:
        PeerSilent: peers do not answer, or newer objects are not found.
        ObjectUnknown: nobody who answers has a directory, or all of one.
    """
    catalogue, own_generation = node.storage.catalogue, node.directory.generation
    known = {ref for ref, _ in catalogue.entries()}
    unfound = {_ref(item) for item in catalogue.unfound()}
    await node.peers.start()
    await node.shards.start()
    for place in places:
        peer = parse_place(place)
        if peer is None:
            await node.peers.join(place)
        else:
            node.peers.roster.restore(peer)
    asked, silent = set[bytes](), set[bytes]()
    best = await find_head(node, asked, silent)
    waits = not recovering and not without_silent
    if silent and waits:
        names = ", ".join(sorted(f"{node.name_of(peer)} ({ids.short(peer)})" for peer in silent))
        raise errors.PeerSilent(
            f"these peers do not answer, and may hold what was stored and signed since: {names}",
            hint="try again when they are back, or go on without them: "
            "xsc node restore --without-silent",
        )
    if best is None:
        if recovering:
            if silent and silent == asked:
                raise errors.PeerSilent(
                    "no peer that was named answers", hint="give others with --peer, or try again"
                )
            raise errors.ObjectUnknown(
                "no peer that answered holds a directory of this identity",
                hint="name others of its peers with --peer",
            )
        return Found(0, 0, 0, (), frozenset(silent), Noted())
    head, body = best
    listed = await read_directory(node, body)
    refs = {_ref(item) for item in listed}
    missing = [item for item in await adopt_all(node, listed, watch) if _ref(item) not in known]
    # What the home lists itself stays listed although nobody answers for it now.
    lost = tuple(item.name for item in missing if _ref(item) not in unfound)
    if lost and waits:
        raise errors.PeerSilent(
            f"{len(lost)} newer objects are at no host that answers",
            hint="try again when more peers are back; --without-silent goes on, "
            "and looks for them again",
        )
    await catalogue.keep_unfound(missing)
    gone = 0
    if head.record.generation > own_generation:
        for ref in known - refs:
            gone += await node.storage.drop_gone(ref)
    await node.directory.go_on_from(head.record, body)
    newer, noted = len(refs - known) - len(missing), open_noted(body.ledger)
    return Found(len(listed) - len(missing), newer, gone, lost, frozenset(silent), noted)


def _ref(item: directory.DirectoryEntry) -> bytes:
    return parse_read(item.capability).manifest_hash


async def begin_signing(node: Node, found: Found) -> Returned:
    """Go on with ledger, leases and space from what the peers show; then the node may start.

    Nobody is waited for. May be repeated after any failure: each time is an incarnation.

    Args:
        node: its objects are readable, and its peers can be called.
        found: what made them readable.
    """
    before = node.ledger.settled_entries()
    await raise_replay_floors(node)
    await recall_leases(node, node.storage.catalogue.directory())
    begun = await node.ledger.restart(node.peers.peers(), found.noted)
    await resume_space(node)
    return filled(
        Returned,
        found,
        peers=len(node.peers.peers()),
        entries=node.ledger.settled_entries(),
        newer_entries=node.ledger.settled_entries() - before,
        incarnation=node.ledger.chain.state.first_seq,
        silent=sorted({*found.silent, *begun.silent}),
        unproven=[
            Unproven(peer=peer, amount_micro=due) for peer, due in sorted(begun.unproven.items())
        ],
        lost=list(found.lost),
    )
