"""Fields of a message header are taken strictly, and the message names the field."""

from __future__ import annotations

from functools import partial

import pytest

from xsc.base import fields
from xsc.base.errors import RecordInvalid

HEADER = {
    "int": 5,
    "zero": 0,
    "bool": True,
    "str": "abc",
    "bytes": b"abc",
    "list": [1, 2],
    "texts": ["a", ""],
    "map": {"a": 1},
    "null": None,
    "negative": -1,
    "large": 2**63,
}


def test_what_fits_is_returned():
    assert fields.take_int(HEADER, "int") == 5
    assert fields.take_int(HEADER, "zero") == 0
    assert fields.take_int(HEADER, "int", most=5) == 5
    assert fields.take_int(HEADER, "negative", least=-1) == -1
    assert fields.take_bool(HEADER, "bool") is True
    assert fields.take_str(HEADER, "str", most=3) == "abc"
    assert fields.take_bytes(HEADER, "bytes") == b"abc"
    assert fields.take_bytes(HEADER, "bytes", size=3) == b"abc"
    assert fields.take_opt_bytes(HEADER, "bytes", size=3) == b"abc"
    assert fields.take_opt_bytes(HEADER, "null") is None
    assert fields.take_opt_bytes(HEADER, "absent") is None
    assert fields.take_list(HEADER, "list", most=2) == [1, 2]
    assert fields.take_texts(HEADER, "texts", most=2) == ["a", ""]
    assert fields.take_map(HEADER, "map") == {"a": 1}


TAKERS = {
    fields.take_int: {"int", "zero"},
    fields.take_bool: {"bool"},
    fields.take_str: {"str"},
    fields.take_bytes: {"bytes"},
    fields.take_opt_bytes: {"bytes", "null", "absent"},
    fields.take_list: {"list", "texts"},
    partial(fields.take_texts, most=9): {"texts"},
    fields.take_map: {"map"},
}


@pytest.mark.parametrize("name", [*HEADER, "absent"])
@pytest.mark.parametrize("take", TAKERS, ids=lambda take: getattr(take, "func", take).__name__)
def test_every_other_type_is_refused_by_name(take, name):
    if name in TAKERS[take]:
        take(HEADER, name)
        return
    with pytest.raises(RecordInvalid, match=f"'{name}'"):
        take(HEADER, name)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: fields.take_int(HEADER, "int", most=4),
        lambda: fields.take_int(HEADER, "int", least=6),
        lambda: fields.take_int(HEADER, "negative", least=0),
        lambda: fields.take_str(HEADER, "str", most=2),
        lambda: fields.take_bytes(HEADER, "bytes", size=4),
        lambda: fields.take_bytes(HEADER, "bytes", size=0),
        lambda: fields.take_opt_bytes(HEADER, "bytes", size=2),
        lambda: fields.take_list(HEADER, "list", most=1),
        lambda: fields.take_texts(HEADER, "texts", most=1),
    ],
)
def test_bounds_hold(attempt):
    with pytest.raises(RecordInvalid):
        attempt()
