"""Makes and edits slots and needs: from what their owner states, and those of the node by default.

Whoever states nothing offers all that it has, and needs room for what it stores and a rate for what
its deployments run. A standing slot or need is made and changed by the rules for them, and by
nobody's command (docs/design/slots.md, C1 to C4 and D1 to D8).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeAlias, TypeVar

from pydantic import ValidationError

from xsc.allocation.matching import check_filters
from xsc.allocation.windows import DAY_MS, ENDLESS_MS, Zones, next_window, single
from xsc.base import limits
from xsc.base.errors import ArgumentInvalid, NotFound, TooLarge
from xsc.base.units import ceil_div
from xsc.terms.pricing import Ladder
from xsc.terms.quote import Kind
from xsc.terms.slot import (
    STEP,
    STEPS_MAX,
    AvailabilitySlot,
    Commitment,
    DivisionRule,
    NeedSlot,
    Slot,
)

NEED_MARGIN_PPM = 100_000
"""What a default need states beyond what is held, so that a lost shard finds room."""

OBJECT_HOSTS: Final = limits.DATA_SHARDS_DEFAULT + limits.PARITY_SHARDS_DEFAULT
"""Providers that an object needs."""
NOTHING: Final = bytes(limits.SLOT_ID_BYTES)
"""In the place of a slot or need, where none is stated."""
_ALWAYS = dict[str, Any](windows=(), valid_until_ms=ENDLESS_MS, recurrence="")
"""The times of what is there until it is withdrawn."""
_ASKED: Final = ("quantity", "parts", "spread", "price_max", "windows", "valid_until_ms")
"""What a need asks for."""
S = TypeVar("S", bound=Slot)
Either: TypeAlias = AvailabilitySlot | NeedSlot
Posted: TypeAlias = Callable[[Kind, int | None], Ladder]
"""Returns the prices of an offer of a kind at a reserve; at the present one for None."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What an owner states of a slot or need. None: not stated, or as it was before an edit."""

    quantity: int | None = None
    from_ms: int | None = None
    to_ms: int | None = None
    every: str | None = None
    """A recurrence (`parse_recurrence`)."""
    price: int | None = None
    """Micro-credits a GiB and hour, or a Gfuel: the reserve, or the most that a need pays."""
    filters: tuple[tuple[str, str], ...] | None = None
    location: str | None = None
    rule: DivisionRule | None = None
    spread: int | None = None
    """Of a need: over how many providers it goes."""


def _resolve(
    said: Statement, before: Mapping[str, Any], now_ms: int, zones: Zones
) -> dict[str, Any]:
    """Return the fields that follow from what is stated of times; what is not is as before."""
    every, begin, end = said.every, said.from_ms, said.to_ms
    if every is None:
        every = before["recurrence"] or None
    if begin is None:
        begin = before["windows"][0][0] if before["windows"] else now_ms
    if end is None:
        end = before["valid_until_ms"]
    if every is None:
        window = single(begin, end, now_ms)
        return _ALWAYS | {"windows": (window,), "valid_until_ms": window[1]}
    first = next_window(every, zones, begin, end, now_ms)
    if first is None:
        raise ArgumentInvalid(
            f"'{every}' has no window before its end, or none within"
            f" {limits.SLOT_HORIZON_MS // DAY_MS} days",
            hint="end it later, or choose other days",
        )
    return {"windows": (first,), "valid_until_ms": end, "recurrence": every}


def made(role: type[S], before: Mapping[str, Any], changes: Mapping[str, Any], hint: str = "") -> S:
    """Return a slot or need with changed fields: a need with what is asked anew has a new number.

    Raises:
        ArgumentInvalid: they make none; the first thing that is wrong.
    """
    fields = dict(before) | dict(changes)
    if "number" in before and any(fields[name] != before[name] for name in _ASKED):
        fields |= {"number": before["number"] + 1, "caps": ()}
    try:
        slot = role(**fields)
    except ValidationError as fault:
        first = fault.errors()[0]
        place = "".join(str(part) for part in first["loc"][:1])
        said = first["msg"].removeprefix("Value error, ")
        if place:
            said, count = re.subn("^(Input|String|Tuple) should", f"{place} must", said)
            said = said if count else f"{place}: {said}"
        raise ArgumentInvalid(said, hint=hint) from None
    check_filters(slot.filters)
    return slot


def offered(kind: Kind, level: int, ladder: Ladder) -> dict[str, Any]:
    """Return the fields of a standing slot: a level, bytes or fuel a second, in whole steps."""
    return asdict(ladder) | {"quantity": min(level // STEP[kind], STEPS_MAX)}


def stated(
    role: type[S],
    before: Mapping[str, Any],
    said: Statement,
    *,
    posted: Posted,
    now_ms: int,
    zones: Zones,
) -> S:
    """Return a slot or need as its owner states it: what is not stated is as it was before.

    An offer without a price has that of now. Without times an offer begins now, and a need is there
    until it is withdrawn. Another quantity, price or time of a need begins a new number. Filters
    and rule leave a standing slot what it is.

    Args:
        role: which of both it is.
        before: its fields; of a new one those that are not stated: id, kind and owner.
        said: what is stated.
        posted: what this node asks.
        now_ms: the time.
        zones: looks up time zones.

    Raises:
        ArgumentInvalid: what is stated is wrong, or states no slot or need.
    """
    is_offer, is_new = role is AvailabilitySlot, "quantity" not in before
    if is_offer and said.spread is not None:
        raise ArgumentInvalid("an offer has no spread: a need has", hint="leave --spread out")
    if not is_offer and said.rule is not None:
        raise ArgumentInvalid("a need has no rule: its provider divides", hint="leave --rule out")
    if not is_offer and before.get("standing"):
        raise ArgumentInvalid(
            "this need follows what the node stores and runs, and could not place",
            hint="`xsc market need` states another, `xsc market withdraw` ends what waits for "
            "room, `xsc compute undeploy` what is deployed",
        )
    before = _ALWAYS | dict(before)
    told = {name: getattr(said, name) for name in ("quantity", "location", "rule", "spread")}
    told["filters"] = None if said.filters is None else tuple(sorted(said.filters))
    told["price_max"] = None if is_offer else said.price
    changes = {name: value for name, value in told.items() if value is not None}
    if is_offer and (is_new or said.price is not None):
        changes |= asdict(posted(before["kind"], said.price))
    has_times = (said.from_ms, said.to_ms, said.every) != (None, None, None)
    if has_times or (is_offer and is_new):
        changes |= _resolve(said, before, now_ms, zones)
    if is_offer and replace(said, filters=None, rule=None) != Statement():
        changes["standing"] = False
    command = "edit" if not is_new else "offer" if is_offer else "need"
    return made(role, before, changes, f"`xsc market {command} --help` shows what it takes")


def find(commitment: Commitment, slot_id: bytes) -> Either:
    """Return a slot or need.

    Raises:
        NotFound: none has that id.
    """
    for slot in commitment.both:
        if slot.slot_id == slot_id:
            return slot
    raise NotFound("that slot or need is not there any more", hint="`xsc market slots` lists them")


def with_slot(commitment: Commitment, slot: Either) -> Commitment:
    """Return a commitment with a slot or need added or replaced.

    Raises:
        TooLarge: there are too many, or they take too many bytes.
    """
    changed = _of([*without(commitment, slot.slot_id).both, slot], commitment)
    if len(changed.to_bytes()) > limits.COMMITMENT_BYTES_MAX:
        raise TooLarge(
            f"offers and needs together take more than {limits.COMMITMENT_BYTES_MAX} bytes",
            hint="withdraw one: `xsc market slots` lists them",
        )
    return changed


def without(commitment: Commitment, slot_id: bytes) -> Commitment:
    """Return a commitment without a slot or need."""
    return _of([slot for slot in commitment.both if slot.slot_id != slot_id], commitment)


def _of(both: Iterable[Either], before: Commitment) -> Commitment:
    """Return a commitment of these slots and needs; all else is as before.

    Raises:
        TooLarge: they are too many.
    """
    rising = sorted(both, key=lambda slot: slot.slot_id)
    slots = tuple(slot for slot in rising if isinstance(slot, AvailabilitySlot))
    needs = tuple(need for need in rising if isinstance(need, NeedSlot))
    for found, most, what in (
        (slots, limits.SLOTS_MAX, "offers"),
        (needs, limits.NEEDS_MAX, "needs"),
    ):
        if len(found) > most:
            raise TooLarge(
                f"a node has at most {most} {what} at a time",
                hint="withdraw one, or edit it: `xsc market slots` lists them",
            )
    return Commitment(**dict(before) | {"slots": slots, "needs": needs})


def renewed(commitment: Commitment, now_ms: int, zones: Zones) -> Commitment:
    """Return a commitment without what is over; of a recurrence the next window follows."""
    kept: list[Either] = []
    for slot in commitment.both:
        if slot.next_window(now_ms) is not None:
            kept.append(slot)
        elif slot.recurrence:
            window = next_window(slot.recurrence, zones, now_ms, slot.valid_until_ms, now_ms)
            if window is not None:
                kept.append(type(slot)(**dict(slot) | {"windows": (window,)}))
    return _of(kept, commitment)


def with_standing(
    commitment: Commitment, role: type[Either], kind: Kind, fields: Mapping[str, Any], new_id: bytes
) -> Commitment:
    """Return a commitment whose standing slot or need of a kind follows its node.

    A slot is made once: what the owner withdrew or states itself is not offered beside. Where there
    is nothing to lease or to need, it goes, and is made again later.

    Args:
        commitment: of the node.
        role: which of both it is.
        kind: of it.
        fields: what follows the node, the quantity among them.
        new_id: of one that is made.

    Raises:
        ArgumentInvalid, TooLarge: its price comes to more than any amount, or as `with_slot`.
    """
    is_offer, stands = role is AvailabilitySlot, {*commitment.standing_made}
    found = standing_slot(commitment, kind) if is_offer else standing_need(commitment, kind)
    if fields["quantity"] == 0:
        changed = commitment if found is None else without(commitment, found.slot_id)
        stands.discard(kind)
    elif is_offer and found is None and kind in stands:
        return commitment
    else:
        new = {"slot_id": new_id, "kind": kind, "standing": True, "valid_until_ms": ENDLESS_MS}
        before = new if found is None else dict(found)
        changed = with_slot(commitment, made(role, before, fields))
        stands.add(kind)
    if not is_offer:
        return changed
    return changed.model_copy(update={"standing_made": tuple(sorted(stands))})


def standing_slot(commitment: Commitment, kind: Kind) -> AvailabilitySlot | None:
    """Return the standing slot of a kind; None without one."""
    return next((s for s in commitment.slots if s.standing and s.kind == kind), None)


def kept_steps(held: int, providers: int, kind: Kind = "storage") -> int:
    """Return the steps of a part: what a provider holds, with a margin to repair others there.

    Up to as many providers as an object needs there is no margin: none could take a lost
    one's place. What runs is repaired nowhere. A part is rounded up to an eighth of the power of
    two below, so that it seldom changes.
    """
    margin = 0
    if kind == "storage" and providers > OBJECT_HOSTS:
        margin = max(held * NEED_MARGIN_PPM // limits.PPM, ceil_div(held, providers - 1))
    return _rounded(kind, held + margin)


def _rounded(kind: Kind, level: int) -> int:
    steps = ceil_div(level, STEP[kind])
    unit = max(1, (1 << steps.bit_length()) // 16)
    return ceil_div(steps, unit) * unit


def needed(
    kind: Kind, held: Mapping[bytes, int], price_max: int, short: int = 0, spread: int = 1
) -> dict[str, Any]:
    """Return the fields of a standing need.

    Args:
        kind: of it.
        held: by provider: the bytes that it keeps for this node, or the fuel a second that it runs.
        price_max: what the node would pay now.
        short: what each of `spread` providers more would have to give; 0 where all has its place.
        spread: how many those are.
    """
    providers = sum(level > 0 for level in held.values())
    parts = tuple(
        (node, kept_steps(level, providers, kind)) for node, level in sorted(held.items()) if level
    )
    open_steps = _rounded(kind, short) * spread
    return {
        "quantity": sum(steps for _, steps in parts) + open_steps,
        "parts": parts,
        "spread": min(spread, limits.PEERS_MAX) if short else 1,
        "price_max": price_max,
    }


def standing_need(commitment: Commitment, kind: Kind = "storage") -> NeedSlot | None:
    """Return the standing need of a kind; None without one."""
    return next((need for need in commitment.needs if need.standing and need.kind == kind), None)


def need_of(said: Commitment, kind: Kind, named: bytes | None) -> bytes:
    """Return the need that a lease counts for in clearings: NOTHING for a node that states none.

    A lease for now counts for the standing need of its customer, as what was cleared ahead does;
    so does one whose need is stated no more.

    Args:
        said: what the customer of the lease publishes.
        kind: of the lease.
        named: the need that it names; None for now.
    """
    if named is not None and any(need.slot_id == named for need in said.needs):
        return named
    standing = standing_need(said, kind)
    return standing.slot_id if standing is not None else named or NOTHING
