"""One encoding for every record: no map in it, at any level, may have fewer fields or more."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import pytest

from tests.properties.test_formats import RECORDS
from tests.strategies import VECTORS
from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import RecordInvalid, XscError
from xsc.identity.envelope import Record

Place = tuple[str | int, ...]
"""The way to a map inside of a value."""


def texts(value: Any) -> Iterator[str]:
    """Return every text of a JSON document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def maps(value: Value, place: Place = ()) -> Iterator[tuple[Place, dict[str, Value]]]:
    """Return every map of a value, and where it is."""
    if isinstance(value, dict):
        yield place, value
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from maps(item, (*place, name))


def encoded(value: Value) -> Iterator[Value]:
    """Return a value, and those that are encoded in bytes inside of it."""
    yield value
    found = [item for _, each in maps(value) for item in each.values()]
    for raw in found:
        if isinstance(raw, bytes):
            try:
                yield from encoded(decode(raw, size_max=2**20))
            except XscError:
                continue


def of_vectors() -> dict[str, dict[str, Value]]:
    """Return a value of each kind of record of which a vector has one: the largest."""
    by_names = {frozenset(kind.model_fields): kind for kind in RECORDS.values()}
    found: dict[str, dict[str, Value]] = {}
    for file in sorted(VECTORS.glob("*.json")):
        for text in texts(json.loads(file.read_text())):
            try:
                value = decode(bytes.fromhex(text), size_max=2**20)
            except (ValueError, XscError):
                continue
            for each in (each for whole in encoded(value) for _, each in maps(whole)):
                kind = by_names.get(frozenset(each))
                if kind is None:
                    continue
                try:
                    kind.from_value(each)
                except RecordInvalid:
                    continue
                if len(encode(each)) > len(encode(found.get(kind.KIND))):
                    found[kind.KIND] = each
    return found


KNOWN = of_vectors()
GIVEN: dict[tuple[str, str], Value] = {
    ("invitation", "addresses"): ["127.0.0.1:1"],
    ("loop", "amount_micro"): 1_000,
    ("loop", "members"): [bytes([number]) * 32 for number in range(3)],
    ("program_source", "kind"): "space",
    ("slot", "kind"): "compute",
    ("slot", "windows"): [[0, 1]],
    ("tier_line", "capacity"): 2**60,
}
"""Fields whose rule is not in their type."""


def inner(kind: Any) -> set[type[Record]]:
    """Return the records of which a type has values."""
    if isinstance(kind, type) and issubclass(kind, Record):
        return {kind}
    return {found for arg in get_args(kind) for found in inner(arg)}


def a_value(kind: Any, bounds: tuple[Any, ...] = ()) -> Value:
    """Return a value of a type, with something in each list."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return a_value(args[0], (*bounds, *args[1:]))
    if origin in (typing.Union, types.UnionType):
        return a_value(next(arg for arg in args if arg is not types.NoneType), bounds)
    if origin is Literal:
        return cast("Value", args[0])
    rules = [rule for bound in bounds for rule in getattr(bound, "metadata", [bound])]
    least = max([1, *(rule.min_length for rule in rules if hasattr(rule, "min_length"))])
    if origin is tuple:
        many = least if args[-1] is Ellipsis else 1
        return [a_value(arg) for arg in args if arg is not Ellipsis] * many
    if origin is dict:
        return {str(a_value(args[0])): a_value(args[1])}
    if issubclass(kind, Record):
        return a_record(kind)
    if issubclass(kind, tuple):  # One with names.
        hints = typing.get_type_hints(kind, include_extras=True)
        return [a_value(each) for each in hints.values()]
    return cast("Value", {bytes: bytes(least), str: "a" * least, bool: True, int: 1}[kind])


def a_record(kind: type[Record]) -> dict[str, Value]:
    """Return the value of a record of a kind: a vector's, or one with something in each field."""
    known = KNOWN.get(kind.KIND, {"v": kind.VERSION})
    made = {
        name: GIVEN.get((kind.KIND, name)) or a_value(field.annotation, tuple(field.metadata))
        for name, field in kind.model_fields.items()
        if name not in known or (inner(field.annotation) and not known[name])
    }
    return {**known, **made}


def changed(value: Value, place: Place, inside: Value) -> Value:
    """Return a value with another map at a place."""
    if not place:
        return inside
    name, *rest = place
    if isinstance(value, dict):
        return value | {str(name): changed(value[str(name)], tuple(rest), inside)}
    assert isinstance(value, list)
    assert isinstance(name, int)
    return [*value[:name], changed(value[name], tuple(rest), inside), *value[name + 1 :]]


@pytest.mark.parametrize("kind", RECORDS.values(), ids=lambda kind: kind.KIND)
def test_a_record_with_a_field_more_or_less_at_any_level_is_refused(kind):
    value = a_record(kind)
    assert kind.from_bytes(encode(value)).to_bytes() == encode(value)
    for name, field in kind.model_fields.items():
        assert not inner(field.annotation) or value[name], f"nothing in {name} is looked at"
    for place, inside in maps(value):
        fewer = [{key: inside[key] for key in inside if key != name} for name in inside]
        for other in [*fewer, {**inside, "more": 1}]:
            raw = encode(changed(value, place, other))
            try:
                read = kind.from_bytes(raw)
            except RecordInvalid:
                continue
            # A map by names of its own, as other quantities would be: that is what it says.
            assert (kind.KIND, place) == ("gathered", ("free",))
            assert read.to_bytes() == raw


def test_most_kinds_are_records_that_others_made():
    assert len(KNOWN) > len(RECORDS) * 3 // 4
