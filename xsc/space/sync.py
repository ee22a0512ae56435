"""Subscriptions: asks replicas for what is new, and answers them.

One request is held at each peer that is followed. It is answered when something changes. What
comes is verified, stored and told to watchers; a cursor advances only over what a head of the
owner proves. The owner itself is asked where it answers, and else replicas of it.
docs/design/space.md, S1 to S10.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from xsc.base import encoding, errors, merkle
from xsc.base.clock import Clock, event_within
from xsc.base.fields import take_bool, take_bytes, take_int, take_texts
from xsc.base.ids import short
from xsc.base.limits import KIB, SOUGHT_MAX
from xsc.base.log import Log
from xsc.base.peering import Answered, Caller, Handler, Reply
from xsc.identity.envelope import Signed
from xsc.space import limits, table
from xsc.space.messages import Answer, Cursor, Listed, Question, Sent, SentHead, check_section
from xsc.space.paths import SECTIONS, UserSpacePaths, section_of, sections_of
from xsc.space.record import (
    Change,
    Entry,
    SpaceHead,
    SpaceRecord,
    check_value,
    open_dated,
)
from xsc.space.replicas import Taken
from xsc.space.store import SpaceStore

MALFORMED = (errors.RecordInvalid, errors.FrameInvalid, errors.TooLarge, errors.SignatureInvalid)
"""What a peer answered that no honest one does."""
MORE_THAN_ASKED = "a record that was not asked for"
CURSORS_AT_ONCE = 32
"""Looked at before others have a turn."""

VERIFIED_BYTES_AT_ONCE = 4 * KIB
"""Of records, before others have a turn; a record with a large stamp takes long."""

Subscription: TypeAlias = "tuple[bytes, str]"
"""An owner and a prefix."""
Followed: TypeAlias = "tuple[bytes, str]"
"""An owner and a section."""
Offered: TypeAlias = "tuple[Signed[SpaceRecord], bytes | None]"
"""A record that was verified, with its value where that came along."""


class Space(Protocol):
    """What subscriptions need of the node's space."""

    async def take(
        self, owner: bytes, offered: Sequence[Offered], listed: table.Repair | None = None
    ) -> Taken:
        """Adopt verified records of another owner."""

    def has_schema(self, path: str) -> bool:
        """Say whether values at a path are checked, and so needed to store their records."""

    def tell(self, change: Change) -> None:
        """Tell a change that is stored."""

    def on_change(self, told: Callable[[Change], None]) -> None:
        """Call a function with every change that is stored from now on."""


@dataclass(slots=True)
class _Held:
    """A request that waits for news."""

    asked: dict[bytes, set[str]]
    """By owner, the sections."""
    dirty: set[Followed]
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where the next request of the peer has come."""


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
    """The subscriptions of one node at its peers, and of its peers at it."""

    def __init__(
        self,
        space: Space,
        store: SpaceStore,
        caller: Caller,
        clock: Clock,
        network: bytes,
        *,
        spend: Callable[[bytes, int], int],
        blame: Callable[[bytes, errors.XscError], None],
        log: Log,
    ) -> None:
        self._space = space
        self._store = store
        self._caller = caller
        self._clock = clock
        self._network = network
        self._spend = spend
        self._blame = blame
        self._log = log
        self._full: set[bytes] = set()
        """Owners for whose records there was no room, which is logged once."""
        self._held: dict[bytes, _Held] = {}
        self._subscribed: set[Subscription] = set()
        self._sections: set[Followed] = set()
        """What the subscriptions need."""
        self._places: dict[Followed, dict[bytes, Cursor]] = {}
        """By section and replica, how far that has told."""
        self._followed: dict[bytes, str | None] = {}
        """By peer, the code of the error by which it did not answer last; None where it did."""
        self._recent = set[Followed]()
        """What was subscribed to or fetched since the last eviction."""
        self._evicted_ms = clock.monotonic_ms()
        self._failed: dict[Followed, set[bytes]] = {}
        self._plan = asyncio.Event()
        self._sources: dict[bytes, list[Followed]] | None = None
        """What each peer is asked for; None where it is to be worked out again."""
        self._ended = False
        self.sent_bytes = 0
        """Of answers to peers; `received_bytes`, of answers of peers."""
        self.received_bytes = 0
        self.seen_ms: dict[bytes, int] = {}
        """Date of the newest head of each owner: its sign of life."""
        space.on_change(self._changed)

    def handlers(self) -> dict[str, Handler]:
        """Return what peers may ask."""
        return {
            "space.next": self._counted(self._answer_next),
            "space.list": self._counted(self._answer_list),
            "space.records": self._counted(self._answer_records),
        }

    def _counted(self, handler: Handler) -> Handler:
        async def answer(
            caller: bytes, header: dict[str, encoding.Value], parts: Sequence[merkle.Part]
        ) -> Answered:
            said, bodies = await handler(caller, header, parts)
            self.sent_bytes += sum(map(len, bodies))
            return said, bodies

        return answer

    # Answering peers

    def _changed(self, change: Change) -> None:
        self._news(change.owner, section_of(change.path))
        if change.owner == self._store.owner and change.path == UserSpacePaths.ADDRESS:
            self._plan_again()  # the next requests carry it

    def _news(self, owner: bytes, section: str | None = None) -> None:
        """Wake who asked for a section, or where it is None, for any of the owner."""
        for held in self._held.values():
            asked = held.asked.get(owner, set())
            if found := asked if section is None else asked & {section}:
                held.dirty |= {(owner, at) for at in found}
                held.woken.set()

    async def _count(self, caller: bytes, rows: int, ended: asyncio.Event) -> None:
        """Wait until a caller may be answered so many rows, or its held request was replaced."""
        if pause_ms := self._spend(caller, rows * limits.ROW_UNITS):
            # Else many requests would keep their cursors here, one behind the other.
            await event_within(self._clock, ended, pause_ms)

    async def _answer_next(
        self, caller: bytes, header: dict[str, encoding.Value], parts: Sequence[merkle.Part]
    ) -> Answered:
        del parts
        cursors = Question.from_value({"v": 1, "cursors": header.get("cursors")}).cursors
        waits = take_bool(header, "wait")
        address = None
        if "record" in header:
            address = Sent(caller, take_bytes(header, "record"), take_bytes(header, "value"))
        header.clear()
        held = _Held({}, set())
        if waits:
            self._store.asked[caller] = cursors
            if (earlier := self._held.get(caller)) is not None:
                earlier.ended.set()
                earlier.woken.set()
            self._held[caller] = held
        elif len(cursors) > SOUGHT_MAX:
            raise errors.RecordInvalid(
                f"a question that is not held has at most {SOUGHT_MAX} cursors"
            )
        for cursor in cursors:
            held.asked.setdefault(cursor.owner, set()).add(cursor.section)
            held.dirty.add((cursor.owner, cursor.section))
        end_ms = self._clock.monotonic_ms() + limits.HELD_REQUEST_MS_MAX

        def is_over() -> bool:
            is_late = self._clock.monotonic_ms() >= end_ms
            return is_late or held.ended.is_set() or self._ended

        try:
            if address is not None:
                await self._take_address(caller, address)
            while True:
                dirty = set(held.dirty)
                held.dirty.clear()
                held.woken.clear()
                asked = [at for at in cursors if (at.owner, at.section) in dirty]
                await self._count(caller, 1 + len(asked), held.ended)
                answer = await self._news_for(caller, asked, is_over, held.ended)
                if not waits or answer.records or answer.heads or is_over():
                    return {}, [answer.to_bytes()]
                await event_within(self._clock, held.woken, end_ms - self._clock.monotonic_ms())
        finally:
            if self._held.get(caller) is held:
                del self._held[caller]

    async def _take_address(self, caller: bytes, sent: Sent) -> None:
        """Take the record of `nodes/address` that a caller's request carries.

        Nobody else could say where a node is that has moved: it is the one that calls.

        Raises:
            RecordInvalid, SignatureInvalid: it is no such record of the caller.
        """
        held = self._address_of(caller)
        if held is not None and held.signed.raw == sent.raw:
            return
        if pause_ms := self._spend(caller, 0):
            await self._clock.sleep_ms(pause_ms)
        signed = self._opened(sent, caller)
        self._spend(
            caller, limits.RECORD_UNITS * (1 + len(sent.raw) // limits.STAMP_BYTES_A_RECORD)
        )
        if signed.record.path != UserSpacePaths.ADDRESS:
            raise errors.RecordInvalid("a request carries where its sender is, and no other record")
        taken = await self._space.take(caller, [(signed, sent.value)])
        for fault in taken.refused:
            raise fault

    async def _news_for(
        self,
        caller: bytes,
        cursors: Sequence[Cursor],
        is_over: Callable[[], bool],
        ended: asyncio.Event,
    ) -> Answer:
        records, heads, more = list[Sent](), list[SentHead](), False
        left_bytes = limits.PAGE_BYTES
        for number, cursor in enumerate(cursors):
            if number % CURSORS_AT_ONCE == CURSORS_AT_ONCE - 1:
                await asyncio.sleep(0)
            left = limits.PAGE_RECORDS - len(records)
            if left <= 0 or left_bytes <= 0 or is_over():
                more = True
                break
            entries, shown, more = await self._store.page(
                cursor.owner,
                cursor.section,
                cursor.after,
                count=left,
                size_bytes=left_bytes,
                head=cursor.head,
            )
            before = () if shown is None else tuple(shown.before.items())
            if rows := len(entries) + len(before) // limits.PROOF_ROWS_A_RECORD:
                await self._count(caller, rows, ended)
            sent = [entry.sent for entry in entries]
            records += sent
            left_bytes -= sum(len(each.raw) + len(each.value or b"") for each in sent)
            if more:
                break
            changed_bytes = sum(len(path) + 40 for path, _ in before)
            if shown is None or changed_bytes > limits.SHOWN_BYTES_MAX:
                continue
            left_bytes -= changed_bytes
            section = ((cursor.section, before),)
            if heads and heads[-1].raw == shown.head.raw:
                heads[-1] = heads[-1]._replace(before=heads[-1].before + section)
            else:
                heads.append(SentHead(cursor.owner, shown.head.raw, section))
                left_bytes -= len(shown.head.raw)
        return Answer(records=tuple(records), heads=tuple(heads), more=more)

    async def _answer_list(
        self, caller: bytes, header: dict[str, encoding.Value], parts: Sequence[merkle.Part]
    ) -> Answered:
        del parts
        owner, section = take_bytes(header, "owner", size=32), check_section(header.get("section"))
        header.clear()
        head, ids = await self._store.listing(owner, section)
        await self._count(caller, 1 + len(ids), asyncio.Event())
        return {}, [Listed(head=head, ids=ids).to_bytes()]

    async def _answer_records(
        self, caller: bytes, header: dict[str, encoding.Value], parts: Sequence[merkle.Part]
    ) -> Answered:
        del parts
        owner, whole = take_bytes(header, "owner", size=32), take_bool(header, "whole")
        paths = take_texts(header, "paths", most=limits.ASKED_RECORDS_MAX)
        header.clear()
        found = list[Sent]()
        told, left_bytes = 0, limits.PAGE_BYTES
        while told < len(paths) and left_bytes > 0:
            try:
                entry = self._store.get(owner, paths[told])
            except errors.NotFound:
                pass
            else:
                sent = Sent(owner, entry.signed.raw, entry.value) if whole else entry.sent
                found.append(sent)
                left_bytes -= len(sent.raw) + len(sent.value or b"")
            told += 1
        rows = 1 + len(paths) + (limits.PAGE_BYTES - left_bytes) // limits.ROW_BYTES
        await self._count(caller, rows, asyncio.Event())
        answer = Answer(records=tuple(found), heads=(), more=told < len(paths))
        return {"told": told}, [answer.to_bytes()]

    def end(self) -> None:
        """Answer all held requests now, and hold none any more: the node stops."""
        self._ended = True
        for held in self._held.values():
            held.woken.set()

    # Subscriptions of this node

    def subscriptions(self) -> int:
        """Return how many there are."""
        return len(self._subscribed)

    async def cursors(self) -> list[tuple[bytes, str, int]]:
        """Return owner, prefix and proven sequence of each subscription."""
        return [(*at, await self._store.cursor(*at)) for at in sorted(self._subscribed)]

    def subscribe(self, wanted: Collection[Subscription]) -> None:
        """Follow what is wanted, and nothing else, from now on and over restarts of the peers.

        What would be too much is not followed; what is followed already comes first.
        """
        subscribed, sections = set[Subscription](), set[Followed]()
        for owner, prefix in sorted(wanted, key=lambda it: (it not in self._subscribed, it)):
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
        if subscribed == self._subscribed:
            return
        for followed in self._sections - sections:
            self._failed.pop(followed, None)
            self._places.pop(followed, None)
        self._subscribed, self._sections = subscribed, sections
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

    async def run(self) -> None:
        """Sign a head now and every HEAD_INTERVAL_MS, until cancelled."""
        while True:
            await self._store.sign_head()
            self._news(self._store.owner)
            await self._clock.sleep_ms(limits.HEAD_INTERVAL_MS)

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

    async def _call(
        self,
        peer: bytes,
        method: str,
        header: dict[str, encoding.Value],
        *,
        timeout_ms: int | None = None,
    ) -> Reply:
        reply = await self._caller.call(peer, method, header, timeout_ms=timeout_ms)
        self.received_bytes += sum(map(len, reply.parts))
        return reply

    async def _read(self, peer: bytes, reply: Reply) -> Answer:
        body = body_of(reply.parts)
        size_max = limits.ANSWER_BYTES_MAX
        work = self._store.work
        return await work.run(peer, len(body), Answer.from_bytes, bytes(body), size_max=size_max)

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
        address = self._address_of(self._store.owner)
        if address is not None:
            header |= {"record": address.signed.raw, "value": address.value}
        asked = asyncio.create_task(
            self._call(
                peer, "space.next", header, timeout_ms=limits.HELD_REQUEST_MS_MAX + limits.RETRY_MS
            )
        )
        changed = asyncio.create_task(plan.wait())
        try:
            await asyncio.wait((asked, changed), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                return True
            reply = await asked
        finally:
            asked.cancel()
            changed.cancel()
        new, refused = await self._take_answer(peer, reply, wanted)
        for owner, refusal in refused:
            self._hold_against(owner, refusal)
        return new or self._clock.monotonic_ms() >= asked_ms + limits.HELD_REQUEST_MS_MAX

    async def _take_answer(
        self, peer: bytes, reply: Reply, wanted: Sequence[Followed]
    ) -> tuple[bool, list[tuple[bytes, errors.XscError]]]:
        """Store what a replica answers to cursors, and note how far it has told.

        Returns whether any of it is new, and of whom something was refused, and why.
        """
        answer = await self._read(peer, reply)
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

    def _address_of(self, owner: bytes) -> Entry | None:
        try:
            return self._store.get(owner, UserSpacePaths.ADDRESS)
        except errors.NotFound:
            return None

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
        reply = await self._call(peer, "space.next", asked)
        _, refused = await self._take_answer(peer, reply, wanted)
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
                signed = self._opened(sent, sent.owner)
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
            if sent.value and self._space.has_schema(path):
                self._spend(
                    peer, limits.RECORD_UNITS * len(sent.value) // limits.CHECKED_BYTES_A_RECORD
                )
            by_owner.setdefault(sent.owner, []).append((signed, sent.value))
        for owner, offered in by_owner.items():
            async for checkable in self._with_values(peer, owner, offered):
                taker = self._store if owner == self._store.owner else self._space
                taken = await taker.take(owner, checkable, listed)
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

    async def _with_values(
        self, peer: bytes, owner: bytes, offered: Sequence[Offered]
    ) -> AsyncIterator[Sequence[Offered]]:
        """Give the records in parts; own ones and those that are checked come with large values."""
        own = owner == self._store.owner
        large = [
            signed
            for signed, value in offered
            if value is None
            and signed.record.digest is not None
            and (own or self._space.has_schema(signed.record.path))
        ]
        yield [item for item in offered if item[0] not in large]
        for signed in large:
            cost = signed.record.size_bytes // limits.CHECKED_BYTES_A_RECORD
            if pause_ms := self._spend(peer, limits.RECORD_UNITS * cost):
                await self._clock.sleep_ms(pause_ms)
            value = await self._fetch(peer, owner, signed.record)
            if value is not None or own:  # else the peer has a newer record, and tells of it
                yield [(signed, value)]

    async def _store_head(
        self, peer: bytes, owner: bytes, raw: bytes, before: Mapping[str, Mapping[str, bytes]]
    ) -> bool:
        """Verify a head, let cursors advance where it is proven, and say whether it is new."""
        head = self._open(peer, owner, raw)
        told = {
            section: places
            for section in before
            if peer in (places := self._places.get((owner, section), {}))
            and head.record.place > places[peer].head
        }  # the others were unsubscribed meanwhile
        if not told:
            return False
        known = {section: before[section] for section in told}
        proven, failed = await self._prove(peer, owner, head, known)
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
                self._news(*followed)
            places[peer] = Cursor(*followed, after, *head.record.place)
        return bool(proven)

    def _open(self, peer: bytes, owner: bytes, raw: bytes) -> Signed[SpaceHead]:
        """Return a head of a peer, verified."""
        self._spend(peer, limits.RECORD_UNITS * (1 + len(raw) // limits.CHECKED_BYTES_A_RECORD))
        head = open_dated(
            raw, SpaceHead, owner=owner, network=self._network, now_ms=self._clock.now_ms()
        )
        self.seen_ms[owner] = max(self.seen_ms.get(owner, 0), head.record.written_ms)
        return head

    async def _prove(
        self,
        peer: bytes,
        owner: bytes,
        head: Signed[SpaceHead],
        before: Mapping[str, Mapping[str, bytes]],
    ) -> tuple[set[str], set[str]]:
        """Return the sections for which a head is proven by what is stored, and is not."""
        proven, failed, compared = await self._store.prove(owner, head, before)
        self._spend(peer, limits.RECORD_UNITS * compared // limits.PROOF_ROWS_A_RECORD)
        return proven, failed

    async def _repair(self, peer: bytes, followed: Followed, sequence: int) -> bool:
        """Come to hold what a listing of a peer proves; say whether that was possible.

        The listing must be of a head of that sequence, or of a newer one.
        """
        owner, section = followed
        try:
            reply = await self._call(peer, "space.list", {"owner": owner, "section": section})
        except errors.NotFound:
            return False  # it has lost its proof meanwhile
        body = bytes(body_of(reply.parts, limits.LISTING_BYTES_MAX))
        work, size_max = self._store.work, limits.LISTING_BYTES_MAX
        listed = await work.run(peer, len(body), Listed.from_bytes, body, size_max=size_max)
        head = self._open(peer, owner, listed.head)
        if head.record.sequence < sequence:
            return False
        self._spend(peer, limits.RECORD_UNITS * len(listed.ids) // limits.PROOF_ROWS_A_RECORD)
        repair = await self._store.repair(owner, section, head, listed.ids)
        for path in repair.drop:
            self._space.tell(Change(owner, path, head.record.sequence, None))
        missing = [*repair.fetch]
        while missing:
            paths = missing[: limits.ASKED_RECORDS_MAX]
            reply = await self._ask_records(peer, owner, paths)
            del missing[: take_int(reply.header, "told", least=1, most=len(paths))]
            answer = await self._read(peer, reply)
            if len(answer.records) > len(paths):
                raise errors.RecordInvalid(MORE_THAN_ASKED)
            _, refused = await self._store_records(peer, answer.records, {followed}, listed=repair)
            if refused:
                for _, refusal in refused:
                    self._hold_against(owner, refusal)
                return False  # without these records nothing is proven
        _, failed = await self._prove(peer, owner, head, {section: dict(listed.ids)})
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

    def _opened(self, sent: Sent, owner: bytes) -> Signed[SpaceRecord]:
        """Return a record of a peer, verified; a small value must be beside it."""
        signed = open_dated(
            sent.raw, SpaceRecord, owner=owner, network=self._network, now_ms=self._clock.now_ms()
        )
        record = signed.record
        is_small = record.digest is not None and record.size_bytes <= limits.VALUE_INLINE_BYTES_MAX
        if is_small and sent.value is None:
            raise errors.RecordInvalid(f"the value of '{record.path}' is not beside its record")
        if sent.value is not None:
            check_value(record, sent.value)
        return signed

    async def _fetch(self, peer: bytes, owner: bytes, record: SpaceRecord) -> bytes | None:
        """Return the value of a record from a peer; None where the peer does not have it."""
        reply = await self._ask_records(peer, owner, [record.path], whole=True)
        found = (await self._read(peer, reply)).records
        if len(found) > 1:
            raise errors.RecordInvalid(MORE_THAN_ASKED)
        for sent in found:
            cost = len(sent.raw) // limits.STAMP_BYTES_A_RECORD
            self._spend(peer, limits.RECORD_UNITS * (1 + cost))
            other = self._opened(sent, owner).record
            if other.path != record.path:
                raise errors.RecordInvalid(MORE_THAN_ASKED)
            if other.digest == record.digest:
                return sent.value
        return None

    async def _ask_records(
        self, peer: bytes, owner: bytes, paths: list[str], *, whole: bool = False
    ) -> Reply:
        """Ask a peer for an owner's records at paths; `whole` ones have large values, too."""
        asked: dict[str, encoding.Value] = {"owner": owner, "paths": [*paths], "whole": whole}
        return await self._call(peer, "space.records", asked)

    def is_followed(self, owner: bytes, path: str) -> bool:
        """Say whether what an owner has at a path comes here by itself now."""
        return self._answers(owner) and (owner, section_of(path)) in self._sections

    async def fetch(self, owner: bytes, path: str) -> bool:
        """Ask an owner for its newest record at a path, and say whether it has any.

        Without a subscription it stays a day.

        Raises:
            XscError: the owner does not answer, or answers badly.
        """
        answer = await self._read(owner, await self._ask_records(owner, owner, [path]))
        followed = (owner, section_of(path))
        _, refused = await self._store_records(owner, answer.records, {followed})
        for _, fault in refused:
            raise fault
        self._recent.add(followed)
        return bool(answer.records)

    async def load(self, peer: bytes, owner: bytes, path: str) -> bytes:
        """Return the value of a record here, fetched from a peer where it is not here yet.

        Raises:
            NotFound: no record is at the path, here or there.
            RecordInvalid: the peer gave another value.
        """
        entry = self._store.get(owner, path)
        if entry.value is not None:
            return entry.value
        value = await self._fetch(peer, owner, entry.signed.record)
        if value is None:
            raise errors.NotFound(f"the value of '{path}' is not there")
        await self._store.keep_value(owner, path, value)
        return value


def body_of(parts: Sequence[memoryview], size_max: int = limits.ANSWER_BYTES_MAX) -> memoryview:
    """Return the one body of an answer.

    Raises:
        RecordInvalid: there is another number of them, or it is too long.
    """
    if len(parts) != 1 or len(parts[0]) > size_max:
        raise errors.RecordInvalid("an answer of a replica has one body")
    return parts[0]
