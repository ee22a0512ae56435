"""JSON of the API: the one place that turns answers into text.

Blobs are base64, ids are text already. A field's last underline, which keeps it from being a word
of Python, is no part of its name; what `absent` says is left out where it is None.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@cache
def _fields_of(cls: type[DataclassInstance]) -> tuple[tuple[str, str, bool], ...]:
    return tuple(
        (each.name, each.name.rstrip("_"), each.metadata.get("absent", False))
        for each in fields(cls)
    )


def plain(value: object) -> object:
    """Return what JSON has no form for as something that it has one for: one level of it.

    Raises:
        TypeError: it is no value of the API.
    """
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(value)
    return {
        shown: found
        for name, shown, absent in _fields_of(type(value))  # type: ignore[arg-type]
        if (found := getattr(value, name)) is not None or not absent
    }


_ENCODER = json.JSONEncoder(default=plain, ensure_ascii=False)


def to_text(value: object) -> str:
    """Return a value of the API as JSON; a text that is no Unicode stays what it is."""
    return _ENCODER.encode(value)


def document(value: object) -> dict[str, Any]:
    """Return an answer of the API as its JSON document."""
    found: dict[str, Any] = json.loads(to_text(value))
    return found
