"""What is done when a host fails to which a column is sent: one step of a state and an event.

Put, repair (for an owner, for one in custody, and off a node that leaves) and the rewriting of
damaged shards send their columns with it. `ColumnSender` tells it what happens, and carries out
what it decides. Each column is at one host at a time; two columns share a host only where no
other host takes one, and only while the contract is kept. docs/design/storage.md, "Sending".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from xsc.base.errors import LeaseExhausted, XscError
from xsc.storage.object.durability import Contract, HostLabels, survival
from xsc.terms.lease import LeaseHandle

Asking: TypeAlias = Literal["more", "other", "again"]
"""More room at the host, another host, or the same one anew, which has lost what it held."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A column, and the host that it goes to for now."""

    lease: LeaseHandle
    tries: int = 0
    """Rises with each failure that counts."""
    extended_at: int = -1
    """How much the host held when it was last asked for more room."""
    fault: XscError | None = None
    """What failed last."""
    denied: bool = False
    """Whether the host has signed then that it does not know the lease."""


@dataclass(frozen=True, slots=True)
class Sending:
    """Where the columns of an object go."""

    slots: Mapping[int, Slot]
    """By column; those that were given up are left out."""
    m: int
    contract: Contract
    replaces: bool
    """Whether another host takes the place of one that fails; else its column is given up."""
    gone: Mapping[bytes, XscError] = field(default_factory=dict)
    """Hosts that failed, and how."""

    @property
    def columns(self) -> tuple[bytes, ...]:
        """The host of each column."""
        return tuple(lease.node for lease in self.leases)

    @property
    def leases(self) -> tuple[LeaseHandle, ...]:
        """The lease of each column."""
        return tuple(self.slots[column].lease for column in sorted(self.slots))

    @property
    def taken(self) -> frozenset[bytes]:
        """Nodes that take no other column: they have one, or failed."""
        return frozenset({*self.columns, *self.gone})

    def with_slot(self, column: int, slot: Slot) -> Sending:
        """Return the state in which a column goes there."""
        return replace(self, slots={**self.slots, column: slot})


@dataclass(frozen=True, slots=True)
class Failed:
    """A host did not store what was sent to it for a column."""

    column: int
    tries: int
    """Of the slot when it was sent."""
    fault: XscError
    held_bytes: int = 0
    """What the host holds under that lease."""
    denied: bool = False
    """Whether it has signed that it does not know the lease."""


@dataclass(frozen=True, slots=True)
class Offered:
    """What came of asking for room."""

    column: int
    asking: Asking
    lease: LeaseHandle | None
    labels: Mapping[bytes, HostLabels] = field(default_factory=dict)
    """Of the hosts of now."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for room for a column."""

    column: int
    asking: Asking


@dataclass(frozen=True, slots=True)
class Fill:
    """Store at the new host of a column what the host before was sent."""

    column: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A column can be stored nowhere."""

    column: int
    fault: XscError | None
    """None: what is left does not keep the contract."""
    columns: tuple[bytes, ...] = ()
    """The placement that does not keep it."""


Event: TypeAlias = Failed | Offered
Effect: TypeAlias = Ask | Fill | GiveUp


def step(state: Sending, event: Event) -> tuple[Sending, Effect | None]:
    """Return where columns go after an event, and what is to be done because of it."""
    slot = state.slots.get(event.column)
    if slot is None:
        return state, None
    if isinstance(event, Failed):
        if slot.tries != event.tries:
            # It is known already, and somebody else has the column by now.
            return state, None
        return _failed(state, slot, event)
    if event.lease is not None and (event.asking != "other" or event.lease.node not in state.taken):
        gone = {node: why for node, why in state.gone.items() if node != event.lease.node}
        placed = replace(state, gone=gone).with_slot(event.column, replace(slot, lease=event.lease))
        return placed, None if event.asking == "more" else Fill(event.column)
    if event.asking == "more":
        return _left(state, slot, event.column)
    if event.asking == "other" and slot.denied:
        # It has lost what it held, and may still be the only one that is left.
        return state, Ask(event.column, "again")
    return _doubled_up(state, slot, event)


def _failed(state: Sending, slot: Slot, event: Failed) -> tuple[Sending, Effect]:
    if not state.replaces:
        slots = {column: other for column, other in state.slots.items() if other is not slot}
        return replace(state, slots=slots), GiveUp(event.column, event.fault)
    slot = replace(slot, tries=slot.tries + 1, fault=event.fault, denied=event.denied)
    is_full = isinstance(event.fault, LeaseExhausted) and not event.denied
    # Where the last extension did not let one more request through, another one will not.
    if is_full and event.held_bytes != slot.extended_at:
        slot = replace(slot, extended_at=event.held_bytes)
        return state.with_slot(event.column, slot), Ask(event.column, "more")
    return _left(state.with_slot(event.column, slot), slot, event.column)


def _left(state: Sending, slot: Slot, column: int) -> tuple[Sending, Effect]:
    """Give a host up, and ask for another one that has no column yet."""
    assert slot.fault is not None
    gone = {**state.gone, slot.lease.node: slot.fault}
    return replace(state, gone=gone), Ask(column, "other")


def _doubled_up(state: Sending, slot: Slot, event: Offered) -> tuple[Sending, Effect]:
    """Give a column to the host with the fewest, where fewer nodes are up than are columns."""
    left = {
        column: other.lease
        for column, other in state.slots.items()
        if column != event.column and other.lease.node not in state.gone
    }
    if not left:
        return state, GiveUp(event.column, slot.fault)
    load = Counter(lease.node for lease in left.values())
    chosen = min(left.items(), key=lambda item: (load[item[1].node], item[0]))[1]
    after = state.with_slot(event.column, replace(slot, lease=chosen))
    hosts = [event.labels.get(node, HostLabels(node)) for node in after.columns]
    if not survival(hosts, state.m).meets(state.contract):
        return state, GiveUp(event.column, None, after.columns)
    return after, Fill(event.column)
