"""What a node offers and needs by default (docs/design/slots.md, D1 to D7).

Whoever states nothing offers all that it has, and needs room for what it stores and a rate for what
its deployments run. A standing slot or need is made and changed by these rules, and by nobody's
command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from xsc.allocation.declaring import made, timed, with_slot, without
from xsc.allocation.windows import ENDLESS_MS
from xsc.base.limits import (
    DATA_SHARDS_DEFAULT,
    NEED_MARGIN_PPM,
    PARITY_SHARDS_DEFAULT,
    PEERS_MAX,
    PPM,
    SLOT_ID_BYTES,
)
from xsc.base.units import ceil_div
from xsc.terms.quote import Kind
from xsc.terms.slot import (
    STEP,
    STEPS_MAX,
    AvailabilitySlot,
    Commitment,
    EntitlementKey,
    NeedSlot,
    Window,
)

OBJECT_HOSTS: Final = DATA_SHARDS_DEFAULT + PARITY_SHARDS_DEFAULT
"""Providers that an object needs."""
NOTHING: Final = bytes(SLOT_ID_BYTES)
"""In the place of a slot or need, where none is stated."""


def with_standing(
    commitment: Commitment,
    kind: Kind,
    level: int,
    follows: Mapping[str, Any],
    *,
    new_id: bytes,
    now_ms: int,
) -> Commitment:
    """Return a commitment whose standing slot of a kind is what its node has to lease.

    It is made once: what the owner withdrew or states itself is not offered beside. Where there is
    nothing to lease, the standing slot goes, and is made again later.

    Args:
        commitment: of the node.
        kind: of the slot.
        level: bytes, or fuel a second; 0 of a node that offers nothing of the kind.
        follows: the fields that follow the node: prices, location and owner.
        new_id: of a slot that is made.
        now_ms: the time.

    Raises:
        ArgumentInvalid, TooLarge: a level at its price is more than any amount, or as `with_slot`.
    """
    made_of = {*commitment.standing_made}
    found = standing_slot(commitment, kind)
    steps = min(level // STEP[kind], STEPS_MAX)
    if steps == 0:
        made_of.discard(kind)
        if found is not None:
            commitment = without(commitment, found.slot_id)
    elif found is not None or kind not in made_of:
        made_of.add(kind)
        fields = (
            _new(new_id, kind, ((now_ms, ENDLESS_MS),)) if found is None else dict(found)
        ) | dict(follows)
        commitment = with_slot(commitment, made(AvailabilitySlot, fields | {"quantity": steps}))
    return commitment.model_copy(update={"standing_made": tuple(sorted(made_of))})


def _new(new_id: bytes, kind: Kind, windows: tuple[Window, ...]) -> dict[str, Any]:
    return {"slot_id": new_id, "kind": kind, "standing": True} | timed(windows, ENDLESS_MS)


def standing_slot(commitment: Commitment, kind: Kind) -> AvailabilitySlot | None:
    """Return the standing slot of a kind; None without one."""
    return next((s for s in commitment.slots if s.standing and s.kind == kind), None)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a node needs by default of one kind."""

    held: Mapping[bytes, int]
    """By provider: the bytes that it keeps for this node, or the fuel a second that it runs."""
    short: int
    """What each of `spread` providers more would have to give; 0 where all has its place."""
    spread: int
    price_max: int
    """What the node would pay now."""


def kept_steps(held: int, providers: int, kind: Kind = "storage") -> int:
    """Return the steps of a part: what a provider holds, with a margin to repair others there.

    Up to as many providers as an object needs there is no margin: none could take a lost
    one's place. What runs is repaired nowhere. A part is rounded up to an eighth of the power of
    two below, so that it seldom changes.
    """
    margin = 0
    if kind == "storage" and providers > OBJECT_HOSTS:
        margin = max(held * NEED_MARGIN_PPM // PPM, ceil_div(held, providers - 1))
    return _rounded(kind, held + margin)


def _rounded(kind: Kind, level: int) -> int:
    steps = ceil_div(level, STEP[kind])
    unit = max(1, (1 << steps.bit_length()) // 16)
    return ceil_div(steps, unit) * unit


def with_standing_need(
    commitment: Commitment, kind: Kind, wanted: Wanted, *, new_id: bytes, owner: str
) -> Commitment:
    """Return a commitment whose standing need of a kind is what its node needs.

    Raises:
        ArgumentInvalid, TooLarge: its price comes to more than any amount, or as `with_slot`.
    """
    found = standing_need(commitment, kind)
    held = {node: level for node, level in wanted.held.items() if level}
    parts = tuple(
        (node, kept_steps(level, len(held), kind)) for node, level in sorted(held.items())
    )
    short = _rounded(kind, wanted.short) * wanted.spread if wanted.short else 0
    quantity = sum(steps for _, steps in parts) + short
    if quantity == 0:
        return commitment if found is None else without(commitment, found.slot_id)
    fields = _new(new_id, kind, ()) if found is None else dict(found)
    fields |= {
        "quantity": quantity,
        "parts": parts,
        "spread": min(wanted.spread, PEERS_MAX) if short else 1,
        "price_max": wanted.price_max,
        "owner": owner,
    }
    if found is not None and fields != dict(found):
        fields |= {"number": found.number + 1, "caps": ()}
    return with_slot(commitment, made(NeedSlot, fields))


def standing_need(commitment: Commitment, kind: Kind = "storage") -> NeedSlot | None:
    """Return the standing need of a kind; None without one."""
    return next((need for need in commitment.needs if need.standing and need.kind == kind), None)


def counted(
    kind: Kind,
    provider: bytes,
    customer: bytes,
    named: EntitlementKey | None,
    *,
    commitment_of: Callable[[bytes], Commitment],
) -> EntitlementKey:
    """Return what a lease counts for in clearings.

    A lease for now counts for its provider's standing slot and its customer's standing need, as
    what was cleared ahead does; one whose need is stated no more for the latter.

    Args:
        kind: of the lease.
        provider: of the lease.
        customer: of the lease; it may state no need.
        named: what the lease names; None for now.
        commitment_of: returns what a node publishes.
    """
    said = commitment_of(customer)
    standing = standing_need(said, kind)
    if named is not None:
        is_stated = any(need.slot_id == named.need for need in said.needs)
        if is_stated or standing is None:
            return named
        return named._replace(need=standing.slot_id)
    slot = standing_slot(commitment_of(provider), kind)
    need_id = NOTHING if standing is None else standing.slot_id
    if slot is None:
        return EntitlementKey(provider, NOTHING, 0, customer, need_id)
    return EntitlementKey(provider, slot.slot_id, slot.windows[0][0], customer, need_id)
