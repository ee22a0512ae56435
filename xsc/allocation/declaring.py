"""Makes and edits slots and needs from what their owner states (docs/design/slots.md, C1 to C4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias, TypeVar

from pydantic import ValidationError

from xsc.allocation.matching import check_filters
from xsc.allocation.windows import (
    DAY_MS,
    ENDLESS_MS,
    Offsets,
    check_begin,
    continued,
    occurrences,
    parse_recurrence,
    single,
)
from xsc.base.errors import ArgumentInvalid, NotFound, TooLarge
from xsc.base.limits import COMMITMENT_BYTES_MAX, NEEDS_MAX, SLOT_HORIZON_MS, SLOTS_MAX
from xsc.terms.quote import Kind
from xsc.terms.slot import (
    AvailabilitySlot,
    Commitment,
    DivisionRule,
    NeedSlot,
    Slot,
    Window,
    pack_windows,
)

S = TypeVar("S", bound=Slot)
Either: TypeAlias = AvailabilitySlot | NeedSlot
Zones: TypeAlias = Callable[[str, int, int], Offsets]
"""Returns the offsets of a zone between two moments."""
Rungs: TypeAlias = tuple[int, int, int]
"""Prices: mutual, one-way, reserve."""

_AROUND_MS: Final = 2 * DAY_MS
"""A window that overlaps a moment begins and ends within this of it."""


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


def _resolve(kind: Kind, said: Statement, now_ms: int, zones: Zones) -> dict[str, object]:
    """Return the fields of a slot that follow from its times."""
    begin = now_ms if said.from_ms is None else said.from_ms
    end = ENDLESS_MS if said.to_ms is None else said.to_ms
    if said.every is None:
        window = single(begin, end, now_ms)
        return timed((window,), window[1])
    if kind == "storage":
        raise ArgumentInvalid(
            "storage does not recur: it has a start and an end",
            hint="leave out --every; compute can recur",
        )
    recurrence = parse_recurrence(said.every)
    horizon = now_ms + SLOT_HORIZON_MS
    begin = max(begin, now_ms - _AROUND_MS)
    if end <= begin:
        raise ArgumentInvalid(
            "the recurrence has no length: its end is not after its start", hint="end it later"
        )
    check_begin(begin, now_ms)
    if end != ENDLESS_MS:
        occurrences(recurrence, [(0, 0)], begin, end)  # refuses too many
    until = min(end, horizon + _AROUND_MS)
    offsets = zones(recurrence.zone, begin - _AROUND_MS, until + _AROUND_MS)
    windows = continued((), occurrences(recurrence, offsets, begin, until), now_ms)
    if not windows:
        raise ArgumentInvalid(
            f"'{said.every}' has no window before its end, or none within"
            f" {SLOT_HORIZON_MS // DAY_MS} days",
            hint="end it later, or choose other days",
        )
    return timed(windows, end, recurrence.text, recurrence.zone)


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


def _refusal(fault: ValidationError) -> ArgumentInvalid:
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
    return ArgumentInvalid(said, hint="`xsc market offer --help` shows what it takes")


def made(kind: type[S], fields: dict[str, Any]) -> S:
    """Return a slot or need of those fields.

    Raises:
        ArgumentInvalid: they make none.
    """
    try:
        slot = kind(**fields)
    except ValidationError as fault:
        raise _refusal(fault) from None
    check_filters(slot.filters)
    return slot


def _stated(said: Statement) -> dict[str, object]:
    """Return the fields that an owner states as they are."""
    fields = {
        "quantity": said.quantity,
        "filters": None if said.filters is None else tuple(sorted(said.filters)),
        "location": said.location,
        "spread": said.spread,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _is_timed(said: Statement) -> bool:
    return said.from_ms is not None or said.to_ms is not None or said.every is not None


def priced(rungs: Rungs) -> dict[str, object]:
    """Return the fields of an offer's prices."""
    return dict(zip(("price_mutual", "price_one_way", "reserve"), rungs, strict=True))


def _check_offer(said: Statement) -> None:
    if said.spread is not None:
        raise ArgumentInvalid("an offer has no spread: a need has", hint="leave --spread out")


def _check_need(said: Statement) -> None:
    if said.rule is not None:
        raise ArgumentInvalid("a need has no rule: its provider divides", hint="leave the rule out")


def make_offer(
    slot_id: bytes,
    kind: Kind,
    said: Statement,
    rungs: Rungs,
    *,
    now_ms: int,
    zones: Zones,
    owner: str,
) -> AvailabilitySlot:
    """Return a new slot.

    Raises:
        ArgumentInvalid: what is stated is wrong, or states no slot.
    """
    _check_offer(said)
    fields: dict[str, object] = {"slot_id": slot_id, "kind": kind, "owner": owner}
    fields |= _resolve(kind, said, now_ms, zones) | _stated(said) | priced(rungs)
    return made(AvailabilitySlot, fields | ({} if said.rule is None else {"rule": said.rule}))


def make_need(
    slot_id: bytes, kind: Kind, said: Statement, *, now_ms: int, zones: Zones, owner: str
) -> NeedSlot:
    """Return a new need; without any times it is there until it is withdrawn.

    Raises:
        ArgumentInvalid: what is stated is wrong, or states no need.
    """
    _check_need(said)
    times = _resolve(kind, said, now_ms, zones) if _is_timed(said) else timed((), ENDLESS_MS)
    fields = {"slot_id": slot_id, "kind": kind, "owner": owner, "price_max": said.price}
    return made(NeedSlot, fields | times | _stated(said))


def edit_offer(
    slot: AvailabilitySlot, said: Statement, rungs: Rungs | None, *, now_ms: int, zones: Zones
) -> AvailabilitySlot:
    """Return a slot with what is stated anew; filters and rule leave a standing one what it is.

    Raises:
        ArgumentInvalid: as `make_offer`.
    """
    _check_offer(said)
    fields = dict(slot) | _edited_times(slot, said, now_ms, zones) | _stated(said)
    fields |= {} if rungs is None else priced(rungs)
    fields["standing"] = slot.standing and replace(said, filters=None, rule=None) == Statement()
    return made(AvailabilitySlot, fields | ({} if said.rule is None else {"rule": said.rule}))


def edit_need(need: NeedSlot, said: Statement, *, now_ms: int, zones: Zones) -> NeedSlot:
    """Return a need with what is stated anew. Another quantity, price or time begins a new number.

    Raises:
        ArgumentInvalid: as `make_need`.
    """
    _check_need(said)
    if need.standing:
        raise ArgumentInvalid(
            "this need follows what the node stores and runs, and could not place",
            hint="`xsc market need` states another, `xsc market withdraw` ends what waits for "
            "room, `xsc compute undeploy` what is deployed",
        )
    fields = dict(need) | _edited_times(need, said, now_ms, zones) | _stated(said)
    fields |= {} if said.price is None else {"price_max": said.price}
    asked = ("quantity", "spread", "price_max", "windows_packed", "valid_until_ms")
    if any(fields[name] != getattr(need, name) for name in asked):
        fields |= {"number": need.number + 1, "caps": ()}
    return made(NeedSlot, fields)


def _edited_times(slot: Slot, said: Statement, now_ms: int, zones: Zones) -> dict[str, object]:
    """Return the fields of new times; what is not stated of them is as it was."""
    if not _is_timed(said):
        return {}
    if said.every is None and slot.recurrence:
        said = replace(said, every=f"{slot.recurrence} {slot.time_zone}")
    if said.from_ms is None and slot.windows:
        said = replace(said, from_ms=slot.windows[0][0])
    if said.to_ms is None and slot.valid_until_ms != ENDLESS_MS:
        said = replace(said, to_ms=slot.valid_until_ms)
    return _resolve(slot.kind, said, now_ms, zones)


def find(commitment: Commitment, slot_id: bytes) -> Either:
    """Return a slot or need.

    Raises:
        NotFound: none has that id.
    """
    both: tuple[Either, ...] = (*commitment.slots, *commitment.needs)
    for slot in both:
        if slot.slot_id == slot_id:
            return slot
    raise NotFound("that slot or need is not there any more", hint="`xsc market slots` lists them")


def with_slot(commitment: Commitment, slot: Either) -> Commitment:
    """Return a commitment with a slot or need added or replaced.

    Raises:
        TooLarge: there are too many, or they take too many bytes.
    """
    slots = {other.slot_id: other for other in commitment.slots}
    needs = {other.slot_id: other for other in commitment.needs}
    if isinstance(slot, AvailabilitySlot):
        slots[slot.slot_id] = slot
    else:
        needs[slot.slot_id] = slot
    for found, most, what in ((slots, SLOTS_MAX, "offers"), (needs, NEEDS_MAX, "needs")):
        if len(found) > most:
            raise TooLarge(
                f"a node has at most {most} {what} at a time",
                hint="withdraw one, or edit it: `xsc market slots` lists them",
            )
    changed = _filled(commitment, slots.values(), needs.values())
    if len(changed.to_bytes()) > COMMITMENT_BYTES_MAX:
        raise TooLarge(
            f"offers and needs together take more than {COMMITMENT_BYTES_MAX} bytes",
            hint="a recurrence with fewer windows takes less",
        )
    return changed


def without(commitment: Commitment, slot_id: bytes) -> Commitment:
    """Return a commitment without a slot or need."""
    return _filled(
        commitment,
        (slot for slot in commitment.slots if slot.slot_id != slot_id),
        (need for need in commitment.needs if need.slot_id != slot_id),
    )


def _filled(
    commitment: Commitment, slots: Iterable[AvailabilitySlot], needs: Iterable[NeedSlot]
) -> Commitment:
    def by_id(slot: Slot) -> bytes:
        return slot.slot_id

    return Commitment(
        slots=tuple(sorted(slots, key=by_id)),
        needs=tuple(sorted(needs, key=by_id)),
        standing_made=commitment.standing_made,
        damping_ppm=commitment.damping_ppm,
        damping_history=commitment.damping_history,
    )


def renewed(commitment: Commitment, now_ms: int, zones: Zones) -> Commitment:
    """Return a commitment with recurrences continued to the horizon and without what is over."""

    def lasting(slots: Iterable[S]) -> Iterator[S]:
        for slot in slots:
            if slot.valid_until_ms <= now_ms:
                continue
            if not slot.recurrence:
                yield slot
            elif windows := _continued(slot, now_ms, zones):
                yield type(slot)(**{**dict(slot), "windows_packed": pack_windows(windows)})

    return _filled(commitment, lasting(commitment.slots), lasting(commitment.needs))


def _continued(slot: Slot, now_ms: int, zones: Zones) -> tuple[Window, ...]:
    recurrence = parse_recurrence(f"{slot.recurrence} {slot.time_zone}")
    begin = now_ms - _AROUND_MS
    until = min(slot.valid_until_ms, now_ms + SLOT_HORIZON_MS + _AROUND_MS)
    offsets = zones(recurrence.zone, begin - _AROUND_MS, until + _AROUND_MS)
    return continued(slot.windows, occurrences(recurrence, offsets, begin, until), now_ms)


def next_end_ms(commitment: Commitment) -> int:
    """Return when the next slot or need is over."""
    return min(
        (slot.valid_until_ms for slot in (*commitment.slots, *commitment.needs)), default=ENDLESS_MS
    )
