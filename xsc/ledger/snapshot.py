"""The record of a ledger's state at one of its halves, so that a start need not replay all.

It has what is small: balances, limits, what is open. What grows with each entry is in the rows of
`xsc.ledger.index`, which are written together with it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

from xsc.base.limits import MIB
from xsc.identity.envelope import Count, Id32, Record
from xsc.ledger.index import Index
from xsc.ledger.state import LedgerState, Open

SNAPSHOT_BYTES_MAX = 64 * MIB
"""Some hundred bytes a peer."""


class Snapshot(Record):
    """Signed by the node for itself: all that `LedgerState` says of these names, in order."""

    KIND: ClassVar[str] = "ledger_snapshot"

    next_seq: Count
    head: Id32
    """The id of the half before `next_seq`: the snapshot is of this chain and no other."""
    first_seq: Count
    noted_seq: Count
    halves: Count
    balances: tuple[tuple[Id32, int], ...]
    limits: tuple[tuple[Id32, int], ...]
    noted: tuple[tuple[Id32, int], ...]
    shown: tuple[tuple[Id32, int], ...]
    dealt: tuple[tuple[Id32, int], ...]
    sealed: tuple[tuple[Id32, int], ...]
    old: tuple[tuple[Id32, int], ...]
    heard: tuple[tuple[Id32, int], ...]
    opened: tuple[Id32, ...]
    voided: tuple[Count, ...]
    covered: tuple[Count, ...]
    settled: tuple[tuple[Id32, tuple[tuple[tuple[Id32, Id32], int], ...]], ...]
    """By account, debtor and creditor."""
    promised: tuple[tuple[tuple[Id32, Id32, Id32], int], ...]
    open: tuple[tuple[Count, tuple[Id32, Id32, Count]], ...]
    """By number, debtor, account and amount."""


_NAMES: Final = Snapshot.model_fields.keys() - {"v"}


def _in_order(value: object) -> object:
    if isinstance(value, dict):
        return tuple((key, _in_order(item)) for key, item in sorted(value.items()))
    return tuple(sorted(value)) if isinstance(value, set) else value


def snapshot_of(state: LedgerState) -> Snapshot:
    """Return the snapshot of a state."""
    said: dict[str, Any] = {name: _in_order(getattr(state, name)) for name in _NAMES}
    return Snapshot(**said)


def restored(snapshot: Snapshot, *, me: bytes, index: Index) -> LedgerState:
    """Return the state that a snapshot is of."""
    state = LedgerState(me, index=index)
    for name in _NAMES:
        setattr(state, name, type(getattr(state, name))(getattr(snapshot, name)))
    state.settled = {account: dict(under) for account, under in snapshot.settled}
    state.open = {seq: Open(*item) for seq, item in snapshot.open}
    return state
