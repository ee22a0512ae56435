"""Cells: one value out of what several owners say, by a merge rule.

A cell's content is the newest contribution of each of its sources. Its strongest value is
computed from the whole content, so that it does not depend on the order in which contributions
came, and a source can be taken out again. A merge rule sees contributions, never a clock.
docs/design/space.md, M1 to M8.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from xsc.base.encoding import Value, encode
from xsc.base.errors import ArgumentInvalid, NotFound, RecordInvalid
from xsc.identity.envelope import Record, Signed
from xsc.space.itc import Stamp
from xsc.space.record import SpaceRecord

NESTING_MAX = 8
"""Levels of `map:` in the name of a merge rule."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one source says."""

    value: Value
    sequence: int
    written_ms: int
    id: bytes
    stamp: Stamp


Content: TypeAlias = "dict[bytes, Contribution]"
"""The newest contribution of each source, by the source's node id."""


@dataclass(frozen=True, slots=True)
class Strongest:
    """What a content comes to."""

    state: Literal["nothing", "value", "contradiction"]
    value: Value = None
    faulty: tuple[bytes, ...] = ()
    """Sources whose contribution is none that the rule can take; they count for nothing."""


def cell_bytes(value: Value) -> bytes:
    """Return the bytes of a cell's value: JSON, so that `xsc space put` can write one.

    Raises:
        RecordInvalid: bytes, a float, or anything else that `encode` refuses.
    """
    encode(value)
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except TypeError:
        raise RecordInvalid("a cell's value holds no bytes") from None


def _no_float(text: str) -> Value:
    raise ValueError(f"{text[:40]} is no integer")


def _once(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def cell_value(raw: bytes) -> Value:
    """Return the value of a cell's bytes.

    Raises:
        RecordInvalid: not JSON, with floats, with a key twice, or more than `encode` takes.
    """
    try:
        value: Value = json.loads(
            raw.decode(), parse_float=_no_float, parse_constant=_no_float, object_pairs_hook=_once
        )
    except (ValueError, RecursionError) as fault:
        raise RecordInvalid(f"not the JSON of a cell: {fault}") from None
    encode(value)
    return value


def contribution(signed: Signed[SpaceRecord], value: bytes | None) -> Contribution | None:
    """Return what a record contributes to a cell; None for a tombstone.

    A value that `cell_value` does not read contributes its bytes: `last` can take them, and
    every other rule names the source as faulty.

    Raises:
        NotFound: the record has a value, and it is not loaded.
    """
    record = signed.record
    if record.digest is None:
        return None
    if value is None:
        raise NotFound(f"the value of '{record.path}' is not loaded")
    try:
        said = cell_value(value)
    except RecordInvalid:
        said = value
    return Contribution(said, record.sequence, record.written_ms, signed.id, record.causality)


def merge_content(
    one: Mapping[bytes, Contribution], other: Mapping[bytes, Contribution]
) -> Content:
    """Return the newest contribution of each source in either content."""
    merged = dict(one)
    for source, said in other.items():
        held = merged.get(source)
        if held is None or (said.sequence, held.id) > (held.sequence, said.id):
            merged[source] = said
    return merged


def latest(content: Mapping[bytes, Contribution]) -> bytes:
    """Return the source of the last contribution.

    Only contributions count that no other follows by its stamp. Of several, concurrent ones,
    the last by date counts, then the one with the greater id, then the greater source. Comparing
    two at a time would not do: with skewed clocks three can each be later than the next.
    """
    ends = [
        source
        for source, said in content.items()
        if not any(said.stamp.before(other.stamp) for other in content.values())
    ]
    return max(ends, key=lambda source: (content[source].written_ms, content[source].id, source))


# Merge rules: each takes the values of a content, and says which sources' are of no use


def _is_integer(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integers(values: Iterable[Value]) -> list[int]:
    return [value for value in values if isinstance(value, int)]


def _is_interval(value: Value) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(map(_is_integer, value))
        and _integers(value)[0] <= _integers(value)[1]
    )


def _is_set(value: Value) -> bool:
    return isinstance(value, list)


def _least(values: Sequence[Value]) -> Strongest:
    return Strongest("value", min(_integers(values)))


def _greatest(values: Sequence[Value]) -> Strongest:
    return Strongest("value", max(_integers(values)))


def _total(values: Sequence[Value]) -> Strongest:
    total = sum(_integers(values))
    return Strongest("value", total) if -(2**63) <= total < 2**63 else Strongest("contradiction")


def _union(values: Sequence[Value]) -> Strongest:
    members = {
        encode(member): member for value in values if isinstance(value, list) for member in value
    }
    return Strongest("value", [members[key] for key in sorted(members)])


def _meet(values: Sequence[Value]) -> Strongest:
    bounds = [_integers(value) for value in values if isinstance(value, list)]
    low, high = max(low for low, _ in bounds), min(high for _, high in bounds)
    return (
        Strongest("value", [low, high]) if low <= high else Strongest("contradiction", [low, high])
    )


_RULES: dict[str, tuple[Callable[[Value], bool], Callable[[Sequence[Value]], Strongest]]] = {
    "min": (_is_integer, _least),
    "max": (_is_integer, _greatest),
    "counter": (_is_integer, _total),
    "union": (_is_set, _union),
    "interval": (_is_interval, _meet),
}
MERGE_RULES = ("last", *_RULES, "map")


def check_rule(rule: str) -> str:
    """Return the name of a merge rule: one of MERGE_RULES, or `map:` and another for its values.

    Raises:
        ArgumentInvalid: there is no such rule.
    """
    *maps, inner = rule.split(":")
    if len(maps) > NESTING_MAX or set(maps) - {"map"} or inner not in MERGE_RULES:
        raise ArgumentInvalid(f"no merge rule is called '{rule[:40]}'")
    return rule


def strongest(
    rule: str, content: Mapping[bytes, Contribution], sources: Iterable[bytes] | None = None
) -> Strongest:
    """Return the strongest value of a content by a merge rule.

    Args:
        rule: as `check_rule` returns it. A `map` takes the last contribution of each key.
        content: of the cell.
        sources: whose contributions count; all where it is None.
    """
    counted = dict(content)
    if sources is not None:
        wanted = set(sources)
        counted = {source: said for source, said in content.items() if source in wanted}
    name, _, inner = rule.partition(":")
    if name == "map":
        return _map(inner or "last", counted)
    if name == "last":
        return (
            Strongest("value", counted[latest(counted)].value) if counted else Strongest("nothing")
        )
    fits, merge = _RULES[name]
    values = [said.value for said in counted.values() if fits(said.value)]
    faulty = tuple(sorted(source for source, said in counted.items() if not fits(said.value)))
    found = merge(values) if values else Strongest("nothing")
    return Strongest(found.state, found.value, faulty)


def _map(inner: str, content: Mapping[bytes, Contribution]) -> Strongest:
    """Merge maps key by key; a key that contradicts itself makes the whole a contradiction."""
    by_key: dict[str, Content] = {}
    faulty = set()
    for source, said in content.items():
        if not isinstance(said.value, dict):
            faulty.add(source)
            continue
        for key, value in said.value.items():
            by_key.setdefault(key, {})[source] = Contribution(
                value, said.sequence, said.written_ms, said.id, said.stamp
            )
    if not by_key and len(faulty) == len(content):
        return Strongest("nothing", None, tuple(sorted(faulty)))
    found = {key: strongest(inner, by_key[key]) for key in sorted(by_key)}
    faulty.update(*(item.faulty for item in found.values()))
    contradicted = any(item.state == "contradiction" for item in found.values())
    return Strongest(
        "contradiction" if contradicted else "value",
        {key: item.value for key, item in found.items() if item.state != "nothing"},
        tuple(sorted(faulty)),
    )


class Propagator(Record):
    """What a node publishes of a propagator that it runs; its function never leaves the node.

    In JSON it is `{"id", "name", "inputs", "outputs"}`, with the record's id.
    """

    KIND: ClassVar[str] = "space_propagator"

    name: Annotated[str, Field(min_length=1, max_length=64)]
    inputs: Annotated[tuple[str, ...], Field(max_length=64)]
    outputs: Annotated[tuple[str, ...], Field(max_length=64)]
