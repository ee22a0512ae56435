"""Deletes copies of columns that are not needed any more.

A good column is deleted only if it is surplus, one at a time, and only after every
column that remains was read whole from its host just before. No report of a peer
deletes anything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from xsc.identity.context import Context
from xsc.storage.repair.maintained_object import MaintainedObject, MaintainedObjects
from xsc.storage.repair.room import delete_at
from xsc.storage.repair.survey import Survey, former_hosts, former_hosts_up, plan_cleanup
from xsc.storage.repair.surveyor import Surveyor
from xsc.storage.transfer.host_client import HostClient


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a cleanup of one object did."""

    maintained: MaintainedObject
    proven: bool = False
    """Whether every column was read whole, and no copy deleted after that."""
    look_again: bool = False
    """Whether to look at the object again at once."""


class Cleanup:
    """Deletes copies, and remembers when to try."""

    def __init__(
        self,
        context: Context,
        client: HostClient,
        objects: MaintainedObjects,
        surveyor: Surveyor,
        kept_ms: int,
    ) -> None:
        self._clock = context.clock
        self._client = client
        self._objects = objects
        self._surveyor = surveyor
        self._kept_ms = kept_ms
        self._moved_ms: dict[bytes, int] = {}
        """By object: when columns moved, and the old copies were left for readers."""
        self.blocked: set[bytes] = set()
        """Objects with copies that cannot be deleted before nodes come or go."""

    # When

    def note_moved(self, ref: bytes) -> None:
        """Note that columns of an object moved just now."""
        self._moved_ms[ref] = self._clock.monotonic_ms()

    def due(self, refs: Collection[bytes]) -> dict[bytes, int]:
        """Return which objects have old copies to delete now, and when they moved.

        Args:
            refs: all objects that are looked after; the others are forgotten.
        """
        now_ms = self._clock.monotonic_ms()
        due = {ref: at for ref, at in self._moved_ms.items() if now_ms - at >= self._kept_ms}
        for ref in due.keys() - refs:
            del self._moved_ms[ref], due[ref]
        self.blocked &= set(refs)
        return due

    def next_ms(self, looked_at: Mapping[bytes, int]) -> int | None:
        """Return in how many ms the next old copies are to be deleted; None: there are none.

        Args:
            looked_at: what `due` returned, and was looked at by now: it does not count again.
        """
        times = [ms for ref, ms in self._moved_ms.items() if looked_at.get(ref) != ms]
        return min(times) + self._kept_ms - self._clock.monotonic_ms() if times else None

    def nothing_to_do(self, survey: Survey) -> None:
        """Note that nothing can be deleted of an object now."""
        ref = survey.maintained.ref
        moved_ms = self._moved_ms.get(ref)
        if moved_ms is not None and self._clock.monotonic_ms() - moved_ms >= self._kept_ms:
            del self._moved_ms[ref]
            self.blocked.add(ref)
        if not former_hosts(survey):
            self.blocked.discard(ref)

    # What

    async def clean(self, survey: Survey, *, reported: bool) -> Cleaned:
        """Delete what is not needed any more, once no reader can still be using it.

        Args:
            survey: of the object.
            reported: whether a custodian waits for the proof that every column is good.
        """
        maintained = survey.maintained
        ref = maintained.ref
        moved_ms = self._moved_ms.get(ref)
        if moved_ms is not None and self._clock.monotonic_ms() - moved_ms < self._kept_ms:
            return Cleaned(maintained)
        self._moved_ms.pop(ref, None)
        former = await self._surveyor.ask(maintained, survey.manifest, former_hosts_up(survey))
        plan = plan_cleanup(survey, former)
        held = list(maintained.held)
        for node, columns in plan.broken:
            held = await delete_at(self._client, survey, node, columns, held)
        for item in plan.dropped:
            await self._client.note_freed(item.node, item.lease_id, item.size_bytes)
            held.remove(item)
        if plan.blocked or plan.copies:
            # What cannot be deleted now is tried again when nodes come or go.
            self.blocked.add(ref)
        proven = look_again = False
        if (plan.copies or reported) and not maintained.only_clean:
            bad = await self._surveyor.read_all(survey)
            proven = bad == []
            look_again = any(not fault.silent for fault in bad or ())
        if proven and plan.copies:
            held = await delete_at(self._client, survey, *plan.copies[0], held)
            proven, look_again = False, True
        if tuple(held) != maintained.held:
            maintained = replace(maintained, held=tuple(held))
            await self._objects.save(ref, maintained.placement, maintained.held)
        return Cleaned(maintained, proven, look_again)
