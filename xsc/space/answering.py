"""Answers what peers ask of the space here: what is new, a listing, and records.

One request of each peer is held until something changes. docs/design/space.md, S1 to S10.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from xsc.base import errors
from xsc.base.clock import event_within
from xsc.base.fields import take_bool, take_bytes, take_texts
from xsc.base.limits import SOUGHT_MAX
from xsc.base.peering import Answered, Handler, Header, Parts
from xsc.identity.context import Context
from xsc.identity.envelope import Record
from xsc.space import limits
from xsc.space.messages import Answer, Cursor, Listed, Question, Sent, SentHead, check_section
from xsc.space.paths import UserSpacePaths, section_of
from xsc.space.record import open_sent
from xsc.space.store import SpaceStore

CURSORS_AT_ONCE = 32
"""Looked at before others have a turn."""


@dataclass(slots=True)
class _Held:
    """A request that waits for news."""

    asked: dict[bytes, set[str]]
    """By owner, the sections."""
    dirty: set[tuple[bytes, str]]
    """Owners and sections of which it is not told yet what is new."""
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where the next request of the peer has come."""


class Answering:
    """What one node answers to its peers.

    Args:
        store: the space.
        context: the node's values.
        spend: counts work that a peer causes, and returns how long it is to wait.
    """

    def __init__(
        self, store: SpaceStore, context: Context, spend: Callable[[bytes, int], int]
    ) -> None:
        self._store = store
        self._clock = context.clock
        self._network = context.network
        self._spend = spend
        self._held: dict[bytes, _Held] = {}
        self._ended = False
        self.sent_bytes = 0
        store.on_change(lambda change: self.news(change.owner, section_of(change.path)))

    def handlers(self) -> dict[str, Handler]:
        """Return what peers may ask."""
        return {
            "space.next": self._answer_next,
            "space.list": self._answer_list,
            "space.records": self._answer_records,
        }

    def _sent(self, header: Header, body: Record) -> Answered:
        raw = body.to_bytes()
        self.sent_bytes += len(raw)
        return header, [raw]

    def news(self, owner: bytes, section: str | None = None) -> None:
        """Wake who asked for a section, or where it is None, for any of the owner."""
        for held in self._held.values():
            asked = held.asked.get(owner, set())
            if found := asked if section is None else asked & {section}:
                held.dirty |= {(owner, at) for at in found}
                held.woken.set()

    async def run(self) -> None:
        """Sign a head now and every HEAD_INTERVAL_MS, until cancelled."""
        while True:
            await self._store.sign_head()
            self.news(self._store.owner)
            await self._clock.sleep_ms(limits.HEAD_INTERVAL_MS)

    def end(self) -> None:
        """Answer all held requests now, and hold none any more: the node stops."""
        self._ended = True
        for held in self._held.values():
            held.woken.set()

    async def _count(self, caller: bytes, rows: int, ended: asyncio.Event) -> None:
        """Wait until a caller may be answered so many rows, or its held request was replaced."""
        if pause_ms := self._spend(caller, rows * limits.ROW_UNITS):
            # Else many requests would keep their cursors here, one behind the other.
            await event_within(self._clock, ended, pause_ms)

    async def _answer_next(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
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
                    return self._sent({}, answer)
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
        held = self._store.find(UserSpacePaths.ADDRESS, caller)
        if held is not None and held.signed.raw == sent.raw:
            return
        if pause_ms := self._spend(caller, 0):
            await self._clock.sleep_ms(pause_ms)
        signed = open_sent(sent, caller, self._network, self._clock.now_ms())
        self._spend(
            caller, limits.RECORD_UNITS * (1 + len(sent.raw) // limits.STAMP_BYTES_A_RECORD)
        )
        if signed.record.path != UserSpacePaths.ADDRESS:
            raise errors.RecordInvalid("a request carries where its sender is, and no other record")
        taken = await self._store.take(caller, [(signed, sent.value)])
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

    async def _answer_list(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        owner, section = take_bytes(header, "owner", size=32), check_section(header.get("section"))
        header.clear()
        head, ids = await self._store.listing(owner, section)
        await self._count(caller, 1 + len(ids), asyncio.Event())
        return self._sent({}, Listed(head=head, ids=ids))

    async def _answer_records(self, caller: bytes, header: Header, _parts: Parts) -> Answered:
        owner, whole = take_bytes(header, "owner", size=32), take_bool(header, "whole")
        paths = take_texts(header, "paths", most=limits.ASKED_RECORDS_MAX)
        header.clear()
        found = list[Sent]()
        told, left_bytes = 0, limits.PAGE_BYTES
        while told < len(paths) and left_bytes > 0:
            if (entry := self._store.find(paths[told], owner)) is not None:
                sent = Sent(owner, entry.signed.raw, entry.value) if whole else entry.sent
                found.append(sent)
                left_bytes -= len(sent.raw) + len(sent.value or b"")
            told += 1
        rows = 1 + len(paths) + (limits.PAGE_BYTES - left_bytes) // limits.ROW_BYTES
        await self._count(caller, rows, asyncio.Event())
        answer = Answer(records=tuple(found), heads=(), more=told < len(paths))
        return self._sent({"told": told}, answer)
