"""Answers as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType

import pytest

from xsc.api.endpoint import Model, absent
from xsc.api.serial import document, to_text


class Inner(Model):
    from_: str
    extra: bytes | None = absent(default=None)


class Outer(Model):
    blob: bytes
    rows: tuple[Inner, ...] = ()
    named: Mapping[str, bytes] = field(default_factory=dict)
    nothing: str | None = None


def test_bytes_are_base64_at_any_depth():
    told = document(
        Outer(
            blob=b"\0\xff",
            rows=(Inner(from_="a", extra=b"1"),),
            named=MappingProxyType({"p": b""}),
        )
    )
    assert told == {
        "blob": "AP8=",
        "rows": [{"from": "a", "extra": "MQ=="}],
        "named": {"p": ""},
        "nothing": None,
    }


def test_a_trailing_underline_is_no_part_of_a_name():
    assert document(Inner(from_="a")) == {"from": "a"}


def test_what_is_absent_is_left_out_where_it_is_none_and_only_there():
    assert document(Inner(from_="a")).keys() == {"from"}
    assert document(Inner(from_="a", extra=b"")) == {"from": "a", "extra": ""}
    assert document(Outer(blob=b""))["nothing"] is None


def test_text_is_written_as_it_is():
    assert to_text({"a": "größe"}) == '{"a": "größe"}'
    assert json.loads(to_text([Inner(from_='"')])) == [{"from": '"'}]


def test_what_is_no_value_of_the_api_is_refused():
    with pytest.raises(TypeError):
        to_text({"a": object()})
