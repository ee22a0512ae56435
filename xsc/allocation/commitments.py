"""Keeps what this node offers and needs, and knows what other nodes do.

A commitment is one value in the space of its node, which is where it is kept: there is no other
table. docs/design/slots.md, C1 to C6.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, get_args
from zoneinfo import ZoneInfo

from xsc.allocation.declaring import (
    Either,
    Posted,
    Statement,
    find,
    next_end_ms,
    priced,
    renewed,
    stated,
    with_slot,
    without,
)
from xsc.allocation.heard import Heard
from xsc.allocation.standing import Wanted, standing_slot, with_standing, with_standing_need
from xsc.allocation.windows import DAY_MS
from xsc.base.clock import event_within
from xsc.base.errors import ArgumentInvalid, SpaceExhausted, TooLarge, XscError
from xsc.base.limits import (
    ALLOCATION_DEBOUNCE_MS,
    NEED_INTERVAL_MS,
    PRICES_POSTED_MS,
    SLOT_ID_BYTES,
)
from xsc.identity.context import Context
from xsc.space.paths import UserSpacePaths
from xsc.space.port import Space
from xsc.space.record import Change
from xsc.terms.quote import Kind
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot

RENEW_INTERVAL_MS: Final = DAY_MS
LOOK_INTERVAL_MS: Final = 60_000
"""How soon after its end a slot is dropped."""
_PATH: Final = UserSpacePaths.COMMITMENT


def zone_of(name: str) -> ZoneInfo:
    """Return the time zone of a name.

    Raises:
        ArgumentInvalid: this machine knows none.
    """
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # a folder, a path, and a name without a file
        raise ArgumentInvalid(
            f"'{name}' is no time zone",
            hint="write for example Europe/Berlin, America/New_York or UTC",
        ) from None


class Commitments:
    """The commitment of this node, and those of other nodes as far as they are here.

    Args:
        context: of the node.
        space: keeps all commitments.
        posted: what this node asks.
        level: returns what this node has to lease of a kind: bytes, or fuel a second.
        wanted: returns what this node needs of a kind by default.
        on_withdrawn: called once a standing need of that kind was withdrawn by its owner.
        before_stand: done before standing slots are published; says whether anybody is there.
        site: where this node is; empty where unknown.
        owner: who runs this node; empty where unknown.
    """

    def __init__(
        self,
        context: Context,
        space: Space,
        *,
        posted: Posted,
        level: Callable[[Kind], int],
        wanted: Callable[[Kind], Wanted],
        on_withdrawn: Callable[[Kind], None],
        before_stand: Callable[[], Awaitable[bool]],
        site: str = "",
        owner: str = "",
    ) -> None:
        self._node = context.key.node_id
        self._clock = context.clock
        self._entropy = context.entropy
        self._log = context.log
        self._space = space
        self._posted = posted
        self._level = level
        self._wanted = wanted
        self._on_withdrawn = on_withdrawn
        self._stirred = asyncio.Event()
        self._needed_ms: int | None = None
        """When a standing need last changed."""
        self._before_stand = before_stand
        self._stood_ms: int | None = None
        """When standing slots last followed what this node has and asks."""
        self._site = site
        self._owner = owner
        self._own = Commitment()
        self._write: asyncio.Future[None] | None = None
        """The last write."""
        self.heard = Heard(space)
        """What all nodes have published."""
        self._told: list[Callable[[bytes], None]] = []
        space.register_schema(_PATH, lambda _, value: Commitment.read(value))
        space.on_change(self._changed)

    def start(self) -> None:
        """Read the own commitment from the space.

        Raises:
            RecordInvalid: what is there is none.
        """
        self._own = self.heard.of(self._node).commitment

    def on_change(self, told: Callable[[bytes], None]) -> None:
        """Call a function with each node, this one included, whose commitment changed."""
        self._told.append(told)

    @property
    def own(self) -> Commitment:
        """What this node offers and needs."""
        return self._own

    def of(self, node: bytes) -> Commitment:
        """Return what a node offers and needs, as far as that is here."""
        return self._own if node == self._node else self.heard.of(node).commitment

    async def offer(self, kind: Kind, said: Statement) -> bytes:
        """Publish a new slot and return its id, once it is on the disk.

        Raises:
            ArgumentInvalid, TooLarge: it cannot be one.
        """
        return await self._state(AvailabilitySlot, self._new(kind, location=self._site), said)

    async def offer_all(self, kind: Kind) -> bytes:
        """Publish the standing slot of a kind again, and return its id; one that is there stays.

        Raises:
            ArgumentInvalid, TooLarge: there is nothing to offer, or it cannot be one.
        """
        made = tuple(each for each in self._own.standing_made if each != kind)
        later = self._standing(self._own.model_copy(update={"standing_made": made}))
        slot = standing_slot(later, kind)
        if slot is None:
            raise ArgumentInvalid(
                f"this node has no {kind} to offer",
                hint="look at the settings offer, storage_capacity and worker_speed",
            )
        await self._publish(later)
        return slot.slot_id

    async def need(self, kind: Kind, said: Statement) -> bytes:
        """Publish a new need and return its id, once it is on the disk.

        Raises:
            ArgumentInvalid, TooLarge: it cannot be one.
        """
        return await self._state(NeedSlot, self._new(kind), said)

    def _new(self, kind: Kind, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
        return {
            "slot_id": self._entropy.token(SLOT_ID_BYTES),
            "kind": kind,
            "owner": self._owner,
            **fields,
        }

    async def edit(self, slot_id: bytes, said: Statement) -> None:
        """Publish a slot or need with what is stated anew.

        Raises:
            NotFound: it is not there.
            ArgumentInvalid, TooLarge: it cannot be so.
        """
        found = find(self._own, slot_id)
        await self._state(type(found), dict(found), said)

    async def _state(self, role: type[Either], before: dict[str, Any], said: Statement) -> bytes:
        now_ms = self._clock.now_ms()
        slot = stated(role, before, said, posted=self._posted, now_ms=now_ms, zones=zone_of)
        await self._publish(with_slot(self._own, slot))
        return slot.slot_id

    async def withdraw(self, slot_id: bytes) -> None:
        """Withdraw a slot or need.

        Raises:
            NotFound: it is not there.
        """
        found = find(self._own, slot_id)
        await self._publish(without(self._own, slot_id))
        if isinstance(found, NeedSlot) and found.standing:
            self._on_withdrawn(found.kind)

    async def replace(self, commitment: Commitment) -> None:
        """Publish another commitment in the place of the own one, with others within 100 ms."""
        await self._publish(commitment)

    async def _publish(self, commitment: Commitment) -> None:
        """Write the own commitment; several within 100 ms are one write.

        A later one has the changes of those before it: where one fails that is not the last, what
        becomes of the last counts.
        """
        self._own = commitment
        put = self._space.put_soon(_PATH, commitment.to_bytes())
        write = self._write = asyncio.ensure_future(put)
        while True:
            try:
                return await asyncio.shield(write)
            except XscError:
                if self._write in (write, None):
                    self._own, self._write = self.heard.of(self._node).commitment, None
                    raise
                write = self._write

    def _changed(self, change: Change) -> None:
        if change.path != _PATH:
            return
        if change.owner == self._node and (self._write is None or self._write.done()):
            self._own = self.heard.of(self._node).commitment  # `xsc space put` wrote it
        for told in self._told:
            told(change.owner)

    async def run(self) -> None:
        """Continue recurrences, drop what is over, and follow what is leased; never returns."""
        renewed_ms = 0
        while True:
            now_ms = self._clock.now_ms()
            if now_ms - renewed_ms >= RENEW_INTERVAL_MS or next_end_ms(self._own) <= now_ms:
                renewed_ms = now_ms
                await self._renew(now_ms)
            await self.stand()
            await self.state_need()
            await event_within(self._clock, self._stirred, LOOK_INTERVAL_MS)
            if self._stirred.is_set():
                # A put takes several leases at once.
                await self._clock.sleep_ms(ALLOCATION_DEBOUNCE_MS)
                self._stirred.clear()

    def stir(self) -> None:
        """Look again soon at what this node needs: what it stores, lacks or deploys changed."""
        self._stirred.set()

    async def state_need(self) -> None:
        """Have the standing needs be what this node stores, could not place, and has run.

        They change at most once in NEED_INTERVAL_MS.
        """
        now_ms = self._clock.monotonic_ms()
        if self._needed_ms is not None and now_ms - self._needed_ms < NEED_INTERVAL_MS:
            return
        try:
            if self._with_need() != self._own and await self._before_stand():
                self._needed_ms = now_ms
                await self._publish(self._with_need())
        except (ArgumentInvalid, TooLarge, SpaceExhausted) as fault:
            self._log.warning("allocation.need_not_stated", fault=fault.message)

    async def stand(self) -> None:
        """Have the standing slots be what this node has to lease and asks, at most once an hour.

        A node without peers has nobody to tell.
        """
        now_ms = self._clock.monotonic_ms()
        if self._stood_ms is not None and now_ms - self._stood_ms < PRICES_POSTED_MS:
            return
        self._stood_ms = now_ms  # no other call asks for an interval meanwhile
        if not await self._before_stand():
            self._stood_ms = None
            return
        try:
            later = self._standing(self._own)
            if later != self._own:
                await self._publish(later)
        except (ArgumentInvalid, TooLarge, SpaceExhausted) as fault:
            self._log.warning("allocation.capacity_not_offered", fault=fault.message)

    def _with_need(self) -> Commitment:
        later, kinds = self._own, get_args(Kind)
        for kind in kinds:
            new_id = self._entropy.token(SLOT_ID_BYTES)
            wanted = self._wanted(kind)
            later = with_standing_need(later, kind, wanted, new_id=new_id, owner=self._owner)
        return later

    def _standing(self, commitment: Commitment) -> Commitment:
        kinds: tuple[Kind, ...] = get_args(Kind)
        for kind in sorted(kinds):
            follows = priced(self._posted(kind, None))
            commitment = with_standing(
                commitment,
                kind,
                self._level(kind),
                follows | {"location": self._site, "owner": self._owner},
                new_id=self._entropy.token(SLOT_ID_BYTES),
                now_ms=self._clock.now_ms(),
            )
        return commitment

    async def _renew(self, now_ms: int) -> None:
        try:
            later = renewed(self._own, now_ms, zone_of)
        except ArgumentInvalid as fault:
            # This machine does not know a zone any more: the published windows stay.
            self._log.warning("allocation.windows_not_continued", fault=fault.message)
            return
        if later != self._own:
            await self._publish(later)
