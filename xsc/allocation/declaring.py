"""Makes and edits slots and needs from what their owner states (docs/design/slots.md, C1 to C4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import tzinfo
from typing import Any, TypeAlias, TypeVar

from pydantic import ValidationError

from xsc.allocation.matching import check_filters
from xsc.allocation.windows import (
    DAY_MS,
    ENDLESS_MS,
    continued,
    occurrences,
    parse_recurrence,
    single,
)
from xsc.base.errors import ArgumentInvalid, NotFound, TooLarge
from xsc.base.limits import COMMITMENT_BYTES_MAX, NEEDS_MAX, SLOT_HORIZON_MS, SLOTS_MAX
from xsc.terms.pricing import Ladder
from xsc.terms.quote import Kind
from xsc.terms.slot import (
    AvailabilitySlot,
    Commitment,
    DivisionRule,
    NeedSlot,
    Slot,
    Window,
    pack_windows,
    unpack_windows,
)

S = TypeVar("S", bound=Slot)
Either: TypeAlias = AvailabilitySlot | NeedSlot
Zones: TypeAlias = Callable[[str], tzinfo]
"""Returns the time zone of a name."""
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
) -> dict[str, object]:
    """Return the fields that follow from what is stated of times; what is not is as before."""
    every, begin, end = said.every, said.from_ms, said.to_ms
    if every is None and before["recurrence"]:
        every = f"{before['recurrence']} {before['time_zone']}"
    if begin is None:
        windows = unpack_windows(before["windows_packed"])
        begin = windows[0][0] if windows else now_ms
    if end is None:
        end = before["valid_until_ms"]
    if every is None:
        window = single(begin, end, now_ms)
        return timed((window,), window[1])
    recurrence = parse_recurrence(every)
    zone = zones(recurrence.zone)
    if end != ENDLESS_MS:
        occurrences(recurrence, zone, max(begin, now_ms), end)  # refuses too many until then
    resolved = continued(recurrence, zone, (), (begin, end), now_ms)
    if not resolved:
        raise ArgumentInvalid(
            f"'{every}' has no window before its end, or none within"
            f" {SLOT_HORIZON_MS // DAY_MS} days",
            hint="end it later, or choose other days",
        )
    return timed(resolved, end, recurrence.text, recurrence.zone)


def timed(
    windows: Sequence[Window], end_ms: int, recurrence: str = "", zone: str = ""
) -> dict[str, object]:
    """Return the fields of windows that a slot or need has until it ends."""
    return {
        "windows_packed": pack_windows(windows),
        "valid_until_ms": end_ms,
        "recurrence": recurrence,
        "time_zone": zone,
    }


def _refusal(fault: ValidationError, hint: str) -> ArgumentInvalid:
    """Return what is wrong first with a statement, in our words."""
    first = fault.errors()[0]
    place = "".join(str(part) for part in first["loc"][:1])
    if first["type"] in ("too_long", "string_too_long"):
        what = "characters" if first["type"] == "string_too_long" else place
        said = f"{place} must have at most {first['ctx']['max_length']} {what}"
    elif first["msg"].startswith("Input should be"):
        said = f"{place} {first['msg'].replace('Input should', 'must')}"
    else:
        said = first["msg"].removeprefix("Value error, ")
        said = f"{place}: {said}" if place else said
    return ArgumentInvalid(said, hint=hint)


def made(kind: type[S], fields: Mapping[str, Any], hint: str = "") -> S:
    """Return a slot or need of those fields.

    Raises:
        ArgumentInvalid: they make none.
    """
    try:
        slot = kind(**fields)
    except ValidationError as fault:
        raise _refusal(fault, hint) from None
    check_filters(slot.filters)
    return slot


def priced(ladder: Ladder) -> dict[str, object]:
    """Return the fields of an offer's prices."""
    return {
        "price_mutual": ladder.mutual,
        "price_one_way": ladder.one_way,
        "reserve": ladder.reserve,
    }


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
    kind: Kind = before["kind"]
    told: dict[str, Any] = {
        "quantity": said.quantity,
        "filters": None if said.filters is None else tuple(sorted(said.filters)),
        "location": said.location,
        "rule": said.rule,
        "spread": said.spread,
        "price_max": None if is_offer else said.price,
    }
    fields = timed((), ENDLESS_MS) | dict(before)
    fields |= {name: value for name, value in told.items() if value is not None}
    if is_offer and (is_new or said.price is not None):
        fields |= priced(posted(kind, said.price))
    has_times = (said.from_ms, said.to_ms, said.every) != (None, None, None)
    if has_times or (is_offer and is_new):
        fields |= _resolve(said, fields, now_ms, zones)
    if is_offer and replace(said, filters=None, rule=None) != Statement():
        fields["standing"] = False
    asked = ("quantity", "spread", "price_max", "windows_packed", "valid_until_ms")
    if not (is_offer or is_new) and any(fields[name] != before[name] for name in asked):
        fields |= {"number": before["number"] + 1, "caps": ()}
    command = "edit" if not is_new else "offer" if is_offer else "need"
    return made(role, fields, f"`xsc market {command} --help` shows what it takes")


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
    others = [other for other in commitment.both if other.slot_id != slot.slot_id]
    changed = _of([*others, slot], commitment)
    if len(changed.to_bytes()) > COMMITMENT_BYTES_MAX:
        raise TooLarge(
            f"offers and needs together take more than {COMMITMENT_BYTES_MAX} bytes",
            hint="a recurrence with fewer windows takes less",
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
    for found, most, what in ((slots, SLOTS_MAX, "offers"), (needs, NEEDS_MAX, "needs")):
        if len(found) > most:
            raise TooLarge(
                f"a node has at most {most} {what} at a time",
                hint="withdraw one, or edit it: `xsc market slots` lists them",
            )
    return Commitment(**dict(before) | {"slots": slots, "needs": needs})


def renewed(commitment: Commitment, now_ms: int, zones: Zones) -> Commitment:
    """Return a commitment with recurrences continued to the horizon and without what is over."""
    kept: list[Either] = []
    for slot in commitment.both:
        if slot.valid_until_ms <= now_ms:
            continue
        if slot.recurrence:
            recurrence = parse_recurrence(f"{slot.recurrence} {slot.time_zone}")
            zone, times = zones(recurrence.zone), (0, slot.valid_until_ms)
            windows = continued(recurrence, zone, slot.windows, times, now_ms)
            if not windows:
                continue
            slot = type(slot)(**dict(slot) | {"windows_packed": pack_windows(windows)})  # noqa: PLW2901
        kept.append(slot)
    return _of(kept, commitment)


def next_end_ms(commitment: Commitment) -> int:
    """Return when the next slot or need is over."""
    return min((slot.valid_until_ms for slot in commitment.both), default=ENDLESS_MS)
