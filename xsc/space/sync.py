"""Subscriptions: asks replicas for what is new, and stores it.

One request is held at each peer that is followed. It is answered when something changes. What
comes is verified, stored and told to watchers; a cursor advances only over what a head of the
owner proves. The owner itself is asked where it answers, and else replicas of it.
docs/design/space.md, S1 to S10.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

from xsc.base import encoding, errors
from xsc.base.ids import short
from xsc.base.limits import KIB, SOUGHT_MAX
from xsc.base.peering import Header
from xsc.identity.context import Context
from xsc.space import limits, table
from xsc.space.answering import Answering
from xsc.space.asking import MORE_THAN_ASKED, Asking, Offered
from xsc.space.messages import Answer, Cursor, Listed, Question, Sent
from xsc.space.paths import SECTIONS, UserSpacePaths, section_of, sections_of
from xsc.space.record import Change
from xsc.space.store import SpaceStore

MALFORMED = (errors.RecordInvalid, errors.FrameInvalid, errors.TooLarge, errors.SignatureInvalid)
"""What a peer answered that no honest one does."""
VERIFIED_BYTES_AT_ONCE = 4 * KIB
"""Of records, before others have a turn; a record with a large stamp takes long."""

Subscription: TypeAlias = "tuple[bytes, str]"
"""An owner and a prefix."""
Followed: TypeAlias = "tuple[bytes, str]"
"""An owner and a section."""


def relays_of(owner: bytes, peers: Sequence[bytes], failed: set[bytes]) -> list[bytes]:
    """Return the peers that are asked for an owner that does not answer itself.

    Every node ranks them differently for each owner, so that the work is shared. Those that could
    not prove what they sent are left out, until all could not.
    """
    others = [peer for peer in peers if peer != owner]
    left = [peer for peer in others if peer not in failed] or others
    left.sort(key=lambda peer: encoding.tagged_sha256("space_relay", owner, peer))
    return left[: limits.RELAYS_MAX]


class SpaceSync:
    """The subscriptions of one node at its peers; `answering`, of its peers at it."""

    def __init__(
        self,
        store: SpaceStore,
        context: Context,
        *,
        spend: Callable[[bytes, int], int],
        blame: Callable[[bytes, errors.XscError], None],
    ) -> None:
        self.answering = Answering(store, context, spend)
        self.asking = Asking(store, context, spend)
        self._store = store
        self._clock = context.clock
        self._log = context.log
        self._spend = spend
        self._blame = blame
        self._full: set[bytes] = set()
        """Owners for whose records there was no room, which is logged once."""
        self.subscribed: set[Subscription] = set()
        self._sections: set[Followed] = set()
        """What the subscriptions need."""
        self._places: dict[Followed, dict[bytes, Cursor]] = {}
        """By section and replica, how far that has told."""
        self._followed: dict[bytes, str | None] = {}
        """By peer, the code of the error by which it did not answer last; None where it did."""
        self._recent = set[Followed]()
        """What was subscribed to or fetched since the last eviction."""
        self._evicted_ms = context.clock.monotonic_ms()
        self._failed: dict[Followed, set[bytes]] = {}
        self._plan = asyncio.Event()
        self._sources: dict[bytes, list[Followed]] | None = None
        """What each peer is asked for; None where it is to be worked out again."""
        store.on_change(self._changed)

    def _changed(self, change: Change) -> None:
        if change.owner == self._store.owner and change.path == UserSpacePaths.ADDRESS:
            self._plan_again()  # the next requests carry it

    async def cursors(self) -> list[tuple[bytes, str, int]]:
        """Return owner, prefix and proven sequence of each subscription."""
        return [(*at, await self._store.cursor(*at)) for at in sorted(self.subscribed)]

    def subscribe(self, wanted: Collection[Subscription]) -> None:
        """Follow what is wanted, and nothing else, from now on and over restarts of the peers.

        What would be too much is not followed; what is followed already comes first.
        """
        subscribed, sections = set[Subscription](), set[Followed]()
        for owner, prefix in sorted(wanted, key=lambda it: (it not in self.subscribed, it)):
            needed = {(owner, section) for section in sections_of(prefix)}
            if owner == self._store.owner:
                continue
            if len(sections | needed) > limits.CURSORS_MAX:
                self._log.warning(
                    "space.not_followed", peer=short(owner), code=errors.RateLimited.code
                )
                break
            subscribed.add((owner, prefix))
            sections |= needed
        if subscribed == self.subscribed:
            return
        for followed in self._sections - sections:
            self._failed.pop(followed, None)
            self._places.pop(followed, None)
        self.subscribed, self._sections = subscribed, sections
        self._recent |= sections
        self._plan_again()

    async def evict(self) -> None:
        """Delete what other owners wrote and no subscription has covered for a day."""
        now_ms = self._clock.monotonic_ms()
        if now_ms < self._evicted_ms + limits.UNSUBSCRIBED_KEPT_MS:
            return
        for owner in self._store.owners():
            if owner != self._store.owner:
                await self._store.evict(owner, {at for of, at in self._recent if of == owner})
        self._evicted_ms, self._recent = now_ms, set(self._sections)

    def _plan_again(self) -> None:
        """Let each request that is held be replaced by one for what is wanted now."""
        self._sources = None
        self._plan.set()
        self._plan = asyncio.Event()

    def _wanted(self, peer: bytes) -> list[Followed]:
        """Return what a peer is asked for, by the plan of now."""
        if self._sources is None:
            self._sources = {}
            up = self.followed(answering=True)
            for followed in sorted(self._sections):
                owner = followed[0]
                failed = self._failed.get(followed, set())
                sources = [owner]
                if not self._answers(owner) or owner in failed:
                    sources += relays_of(owner, up, failed)
                for source in sources:
                    self._sources.setdefault(source, []).append(followed)
        return self._sources.get(peer, [])

    async def _cursor(self, peer: bytes, followed: Followed) -> Cursor:
        places = self._places.setdefault(followed, {})
        if peer not in places:
            proven = await self._store.cursor_of(*followed)
            places[peer] = Cursor(*followed, proven, proven, 0)
        return places[peer]

    async def follow(self, peer: bytes) -> None:
        """Ask a peer for what is subscribed to, until cancelled."""
        assert peer not in self._followed, "one task follows a peer"
        self._followed[peer] = None
        self._plan_again()
        malformed = 0
        try:
            while True:
                plan = self._plan
                wanted = self._wanted(peer)
                if not wanted:
                    await plan.wait()
                    continue
                try:
                    brought = await self._ask(peer, wanted, plan)
                    malformed = 0
                    self._note(peer, None)
                except errors.XscError as fault:
                    brought = False
                    self._note(peer, fault.code)
                    if not isinstance(fault, errors.UnavailableError):
                        self._hold_against(peer, fault)
                    malformed = malformed + 1 if isinstance(fault, MALFORMED) else 0
                pause_ms = self._spend(peer, 0)
                if not brought:
                    retry_ms = limits.RETRY_MS << min(max(0, malformed - 1), 10)
                    pause_ms = max(pause_ms, min(retry_ms, limits.RETRY_MS_MAX))
                if pause_ms:  # what is overwritten meanwhile is not sent
                    await self._clock.sleep_ms(pause_ms)
        finally:
            del self._followed[peer]
            self._store.asked.pop(peer, None)
            self._plan_again()

    def _answers(self, peer: bytes) -> bool:
        return peer in self._followed and self._followed[peer] is None

    def _note(self, peer: bytes, code: str | None) -> None:
        """Note whether a peer answers, and log it where that has changed: it is asked again."""
        before, self._followed[peer] = self._followed[peer], code
        if code == before:
            return
        if code is None:
            self._log.info("space.followed_again", peer=short(peer))
        else:
            self._log.info("space.not_followed", peer=short(peer), code=code)
        if code is None or before is None:
            self._plan_again()

    async def _ask(self, peer: bytes, wanted: Sequence[Followed], plan: asyncio.Event) -> bool:
        """Hold one request at a peer, and store what it answers; give up for another plan.

        Returns False where the peer answered before the time, and with nothing new: asking at
        once again would let it keep this node busy.
        """
        asked_ms = self._clock.monotonic_ms()
        cursors = [await self._cursor(peer, followed) for followed in wanted]
        header = Question(cursors=tuple(cursors)).to_value() | {"wait": True}
        address = self._store.find(UserSpacePaths.ADDRESS)
        if address is not None:
            header |= {"record": address.signed.raw, "value": address.value}
        most_ms = limits.HELD_REQUEST_MS_MAX + limits.RETRY_MS
        asking = self.asking.ask(peer, "space.next", header, Answer, timeout_ms=most_ms)
        asked = asyncio.create_task(asking)
        changed = asyncio.create_task(plan.wait())
        try:
            await asyncio.wait((asked, changed), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                return True
            _, answer = await asked
        finally:
            asked.cancel()
            changed.cancel()
        new, refused = await self._take_answer(peer, answer, wanted)
        for owner, refusal in refused:
            self._hold_against(owner, refusal)
        return new or self._clock.monotonic_ms() >= asked_ms + limits.HELD_REQUEST_MS_MAX

    async def _take_answer(
        self, peer: bytes, answer: Answer, wanted: Sequence[Followed]
    ) -> tuple[bool, list[tuple[bytes, errors.XscError]]]:
        """Store what a replica answers to cursors, and note how far it has told.

        Returns whether any of it is new, and of whom something was refused, and why.
        """
        stored, refused = await self._store_records(peer, answer.records, {*wanted}, told=True)
        new = stored > 0
        last = {(head.owner, at): head for head in answer.heads for at, _ in head.before}
        if not last.keys() <= {*wanted}:
            raise errors.RecordInvalid("a head that was not asked for")
        for head in answer.heads:
            before = {at: dict(ids) for at, ids in head.before if last[head.owner, at] is head}
            if not before:
                continue  # of one section the last head alone counts
            try:
                new |= await self._store_head(peer, head.owner, head.raw, before)
            except errors.ClockSkewed as fault:
                if head.owner in {peer, self._store.owner}:
                    refused.append((head.owner, fault))
        return new, refused

    def _hold_against(self, peer: bytes, fault: errors.XscError) -> None:
        """Blame a peer, unless it is this node that has no room: that is logged once."""
        if not isinstance(fault, errors.SpaceExhausted):
            self._blame(peer, fault)
        elif peer not in self._full:
            self._full.add(peer)
            self._log.warning("space.full", peer=short(peer), fault=fault.message)

    def followed(self, *, answering: bool) -> list[bytes]:
        """Return the peers that are followed and answered the last time, or did not."""
        return [peer for peer, code in self._followed.items() if (code is None) == answering]

    async def seek(self, peer: bytes, owners: Sequence[bytes]) -> None:
        """Ask a peer once where other owners are.

        Raises:
            XscError: the peer does not answer, or answers badly.
        """
        wanted = [(owner, UserSpacePaths.NODES) for owner in owners]
        cursors = [await self._cursor(peer, followed) for followed in wanted]
        for owner, fault in await self._question(peer, wanted, cursors):
            self._hold_against(owner, fault)

    async def _question(
        self, peer: bytes, wanted: Sequence[Followed], cursors: Sequence[Cursor]
    ) -> list[tuple[bytes, errors.XscError]]:
        """Ask a peer what is new now and store that; return of whom what was refused."""
        asked = Question(cursors=tuple(cursors)).to_value() | {"wait": False}
        _, answer = await self.asking.ask(peer, "space.next", asked, Answer)
        _, refused = await self._take_answer(peer, answer, wanted)
        return refused

    async def _store_records(
        self,
        peer: bytes,
        records: Sequence[Sent],
        wanted: set[Followed],
        *,
        listed: table.Repair | None = None,
        told: bool = False,
    ) -> tuple[int, list[tuple[bytes, errors.XscError]]]:
        """Verify and store records; of those that a cursor was `told`, note how far it is.

        Returns how many are new, and of whom others were refused, and why. That is held against
        the owner: a replica cannot know the schemas here or the room, nor whether a date is too
        far ahead by this clock.

        Raises:
            XscError: a record is not what an honest replica passes on; none was stored.
        """
        new = 0
        refused: list[tuple[bytes, errors.XscError]] = []
        by_owner: dict[bytes, list[Offered]] = {}
        verified_bytes = 0
        for sent in records:
            verified_bytes += len(sent.raw)
            if verified_bytes >= VERIFIED_BYTES_AT_ONCE:
                verified_bytes = 0
                await asyncio.sleep(0)
            cost = len(sent.raw)
            try:
                signed = self.asking.opened(sent, sent.owner)
                cost = len(signed.record.stamp)
            except errors.ClockSkewed as fault:
                if sent.owner in {peer, self._store.owner}:
                    refused.append((sent.owner, fault))
                continue
            finally:
                self._spend(peer, limits.RECORD_UNITS * (1 + cost // limits.STAMP_BYTES_A_RECORD))
            path = signed.record.path
            if (sent.owner, section_of(path)) not in wanted:
                raise errors.RecordInvalid(MORE_THAN_ASKED)
            if sent.value and self._store.has_schema(path):
                self._spend(
                    peer, limits.RECORD_UNITS * len(sent.value) // limits.CHECKED_BYTES_A_RECORD
                )
            by_owner.setdefault(sent.owner, []).append((signed, sent.value))
        for owner, offered in by_owner.items():
            async for checkable in self.asking.with_values(peer, owner, offered):
                taken = await self._store.take(owner, checkable, listed)
                new += len(taken.paths)
                refused += [(owner, fault) for fault in taken.refused]
                if taken.paths and not any(
                    isinstance(it, errors.SpaceExhausted) for it in taken.refused
                ):
                    self._full.discard(owner)
            for signed, _ in offered if told else []:
                places = self._places.get((owner, section_of(signed.record.path)), {})
                if peer in places:
                    after = max(places[peer].after, signed.record.sequence)
                    places[peer] = places[peer]._replace(after=after)
        return new, refused

    async def _store_head(
        self, peer: bytes, owner: bytes, raw: bytes, before: Mapping[str, Mapping[str, bytes]]
    ) -> bool:
        """Verify a head, let cursors advance where it is proven, and say whether it is new."""
        head = self.asking.head(peer, owner, raw)
        told = {
            section: places
            for section in before
            if peer in (places := self._places.get((owner, section), {}))
            and head.record.place > places[peer].head
        }  # the others were unsubscribed meanwhile
        if not told:
            return False
        known = {section: before[section] for section in told}
        proven, failed = await self.asking.prove(peer, owner, head, known)
        sequence = head.record.sequence
        for section, places in told.items():
            followed, after = (owner, section), max(places[peer].after, sequence)
            if section in failed and not await self._repair(peer, followed, sequence):
                self._failed.setdefault(followed, set()).add(peer)
                self._log.info("space.not_proven", peer=short(peer), owner=short(owner))
                after = await self._store.cursor_of(*followed)
                self._plan_again()
            else:
                proven.add(section)
                if self._failed.pop(followed, None) is not None:
                    self._sources = None
                self.answering.news(*followed)
            places[peer] = Cursor(*followed, after, *head.record.place)
        return bool(proven)

    async def _repair(self, peer: bytes, followed: Followed, sequence: int) -> bool:
        """Come to hold what a listing of a peer proves; say whether that was possible.

        The listing must be of a head of that sequence, or of a newer one.
        """
        owner, section = followed
        try:
            asked: Header = {"owner": owner, "section": section}
            _, listed = await self.asking.ask(peer, "space.list", asked, Listed)
        except errors.NotFound:
            return False  # it has lost its proof meanwhile
        head = self.asking.head(peer, owner, listed.head)
        if head.record.sequence < sequence:
            return False
        self._spend(peer, limits.RECORD_UNITS * len(listed.ids) // limits.PROOF_ROWS_A_RECORD)
        repair = await self._store.repair(owner, section, head, listed.ids)
        for path in repair.drop:
            self._store.tell(Change(owner, path, head.record.sequence, None))
        missing = [*repair.fetch]
        while missing:
            paths = missing[: limits.ASKED_RECORDS_MAX]
            told, records = await self.asking.records(peer, owner, paths)
            del missing[:told]
            _, refused = await self._store_records(peer, records, {followed}, listed=repair)
            if refused:
                for _, refusal in refused:
                    self._hold_against(owner, refusal)
                return False  # without these records nothing is proven
        _, failed = await self.asking.prove(peer, owner, head, {section: dict(listed.ids)})
        return not failed

    async def recover(self, peer: bytes) -> None:
        """Take back from a peer what it has of this node's own space.

        A node that was recovered or restored does so with all peers that it can reach before it
        writes: else it would give out sequences a second time. What its heads say is live there,
        and nothing that they deny. The rest is written again (`SpaceStore`).

        Raises:
            XscError: the peer does not answer, or answers badly.
        """
        sections = sorted(SECTIONS)
        for start in range(0, len(sections), SOUGHT_MAX):
            wanted = [(self._store.owner, at) for at in sections[start : start + SOUGHT_MAX]]
            asked: list[Cursor] = []
            while (cursors := [await self._cursor(peer, at) for at in wanted]) != asked:
                asked = cursors
                for _, fault in await self._question(peer, wanted, cursors):
                    raise fault
            for followed in wanted:
                del self._places[followed][peer]
                self._failed.pop(followed, None)

    def is_followed(self, owner: bytes, path: str) -> bool:
        """Say whether what an owner has at a path comes here by itself now."""
        return self._answers(owner) and (owner, section_of(path)) in self._sections

    async def fetch(self, owner: bytes, path: str) -> bool:
        """Ask an owner for its newest record at a path, and say whether it has any.

        Without a subscription it stays a day.

        Raises:
            XscError: the owner does not answer, or answers badly.
        """
        _, records = await self.asking.records(owner, owner, [path])
        followed = (owner, section_of(path))
        _, refused = await self._store_records(owner, records, {followed})
        for _, fault in refused:
            raise fault
        self._recent.add(followed)
        return bool(records)
