"""Where this node counts its writes, and where others do: the own clock, and grants that are known.

docs/design/space.md, C1 to C9.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from pydantic import model_validator

from xsc.base.errors import StoreDamaged, XscError
from xsc.identity import envelope, keys
from xsc.space import itc
from xsc.space.record import SpaceRecord


class KeptClock(envelope.Record):
    """This node's clock as it is on the disk."""

    KIND: ClassVar[str] = "space_clock"

    grant: bytes
    interval: bytes
    """What is left of what was granted."""
    given: envelope.Count
    """How many parts of it this node gave."""
    event: bytes

    @model_validator(mode="after")
    def _is_well_formed(self) -> Self:
        itc.read_interval(self.interval)
        itc.read_event(self.event)
        return self


@dataclass(frozen=True, slots=True)
class Own:
    """The clock of this node, what was granted for it, and how many parts of that it gave."""

    clock: itc.Clock
    granted: itc.Granted
    given: int = 0


class Causality:
    """The own clock, and what each owner was granted.

    Args:
        owner: id of this node.
        network: of all grants.
    """

    def __init__(self, owner: bytes, network: bytes) -> None:
        self._owner = owner
        self._network = network
        self.own: Own | None = None
        """None before the first write or grant."""
        self.granted: dict[bytes, itc.Granted] = {}
        """What each owner was granted, as it publishes it."""

    def begin(self, own: Own) -> None:
        """Count with a clock from now on."""
        self.own = own
        self.granted[self._owner] = own.granted

    def join(self, raw: bytes) -> Own:
        """Count in all that a grant gives.

        Raises:
            XscError: it is no grant for this node.
        """
        granted = itc.read_grant(raw, self._owner, network=self._network)
        own = Own(itc.Clock(granted.domain, granted.interval, 0), granted)
        self.begin(own)
        return own

    def found(self, key: keys.KeyPair, now_ms: int) -> Own:
        """Count in a new domain, of which this node has all."""
        whole = itc.Grant(
            giver=None, receiver=self._owner, interval=itc.interval_bytes(1), granted_ms=now_ms
        )
        return self.join(envelope.sign(whole, key, self._network).raw)

    def leave(self) -> None:
        """Count no more."""
        self.own = None
        self.granted.pop(self._owner, None)

    def save(self) -> bytes:
        """Return the clock as it is kept on the disk."""
        assert self.own is not None
        return KeptClock(
            grant=self.own.granted.raw,
            interval=itc.interval_bytes(self.own.clock.interval),
            given=self.own.given,
            event=itc.event_bytes(self.own.clock.event),
        ).to_bytes()

    def restore(self, raw: bytes) -> None:
        """Go on with the clock that was kept.

        Raises:
            StoreDamaged: it is none.
        """
        try:
            kept = KeptClock.from_bytes(raw)
            granted = itc.read_grant(kept.grant, self._owner, network=self._network)
            interval, event = itc.read_interval(kept.interval), itc.read_event(kept.event)
            self.begin(Own(itc.Clock(granted.domain, interval, event), granted, kept.given))
        except XscError as fault:
            raise StoreDamaged(f"the clock of the space is damaged: {fault.message}") from None

    def adopt(self, owner: bytes, newest: SpaceRecord) -> None:
        """Take over into the own clock what the newest record of an author says of its interval."""
        interval = self._interval_of(owner)
        if self.own is not None and interval is not None:
            clock = self.own.clock.adopt(interval, newest.causality)
            self.own = replace(self.own, clock=clock)

    def unheard(self, stamp: itc.Stamp, owners: Iterable[bytes]) -> list[bytes]:
        """Return the owners of whom a stamp counts events that were not heard of here."""
        if self.own is None:
            return []
        found = {owner: self._interval_of(owner) for owner in owners}
        intervals = {owner: at for owner, at in found.items() if at is not None}
        return itc.unheard(self.own.clock, stamp, intervals)

    def check_grant(self, owner: bytes, value: bytes) -> None:
        """Check what an owner publishes as its grant.

        Raises:
            XscError: it is none.
        """
        known = self.granted.get(owner)
        if known is None or known.raw != value:
            itc.read_grant(value, owner, network=self._network)

    def note_grant(self, owner: bytes, value: bytes | None) -> None:
        """Note what an owner publishes as its grant; a false one proves nothing."""
        known = self.granted.pop(owner, None)
        if known is not None and known.raw == value:
            self.granted[owner] = known
            return
        if value is not None:
            try:
                self.granted[owner] = itc.read_grant(value, owner, network=self._network)
            except XscError:
                return  # its author loses by it alone

    def _interval_of(self, owner: bytes) -> itc.Interval | None:
        """Return where an owner counts in the domain of the own clock; None where it does not."""
        granted = self.granted.get(owner)
        if granted is None or self.own is None or granted.domain != self.own.granted.domain:
            return None
        return itc.counted(granted, self.granted.values())
