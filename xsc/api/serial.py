"""JSON of the API: the one place that turns answers into text.

Ids are base32, other bytes base64. A field's last underline, which keeps it from being a word
of Python, is no part of its name; what `absent` says is left out where it is None, and what
`named` says is the name of a node.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache, partial
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from xsc.api.endpoint import IdText, written_name
from xsc.base.ids import to_text as id_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Names = Callable[[bytes], str]
"""Returns what a node is called here."""


def _has_ids(hint: object) -> bool:
    parts = (*get_args(hint), *getattr(hint, "__metadata__", ()))
    return any(isinstance(part, IdText) or _has_ids(part) for part in parts)


@cache
def _fields_of(
    cls: type[DataclassInstance],
) -> tuple[tuple[str, str, Mapping[Any, Any], bool], ...]:
    hints = get_type_hints(cls, include_extras=True)
    return tuple(
        (each.name, written_name(each.name), each.metadata, _has_ids(hints[each.name]))
        for each in fields(cls)
    )


def _with_texts(value: object) -> object:
    """Return ids as text, at any depth short of another model."""
    if isinstance(value, bytes):
        return id_text(value)
    if isinstance(value, Mapping):
        return {_with_texts(key): _with_texts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_texts(item) for item in value]
    return value


def plain(value: object, name_of: Names | None = None) -> object:
    """Return what JSON has no form for as something that it has one for: one level of it.

    Args:
        value: bytes, a mapping, or a model.
        name_of: gives `named` fields their values.

    Raises:
        TypeError: it is no value of the API.
    """
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(value)
    told = {}
    for name, shown, metadata, has_ids in _fields_of(type(value)):  # type: ignore[arg-type]
        found = getattr(value, name)
        if name_of is not None and (node := metadata.get("names")):
            named = getattr(value, node)
            found = None if named is None else name_of(named)
        elif has_ids:
            found = _with_texts(found)
        if found is not None or not metadata.get("absent"):
            told[shown] = found
    return told


def to_text(value: object, name_of: Names | None = None) -> str:
    """Return a value of the API as JSON; a text that is no Unicode stays what it is."""
    return json.dumps(value, default=partial(plain, name_of=name_of), ensure_ascii=False)


def document(value: object, name_of: Names | None = None) -> dict[str, Any]:
    """Return an answer of the API as its JSON document."""
    return dict(json.loads(to_text(value, name_of)))
