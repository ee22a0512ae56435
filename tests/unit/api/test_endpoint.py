"""Where the fields of a request lie, and what holds for every endpoint of the table."""

from __future__ import annotations

from collections import Counter
from dataclasses import field, fields

import pytest

from xsc.api.endpoint import Endpoint, Model, Nothing, header, in_path, written
from xsc.api.table import ENDPOINTS
from xsc.base.errors import ArgumentInvalid


class Asked(Model):
    who: str
    secret: str = header("XSC-Secret", default="")
    twice: bool = header("XSC-Twice", default=False)
    count: int = 5
    deep: bool = False
    note: str | None = None
    env: dict[str, str] = field(default_factory=dict)


def endpoint(method, **how):
    return Endpoint(method, "/v1/{who}/x", Asked, Nothing, "Ask.", **how)


FULL = Asked(who="a/ü", secret="é/ 1%\n", twice=True, count=7, deep=True, note="b c&")
HEADERS = {"XSC-Secret": "%C3%A9/%201%25%0A", "XSC-Twice": "1"}


@pytest.mark.parametrize(
    "asked",
    [endpoint("GET"), endpoint("DELETE"), endpoint("POST", takes="bytes")],
)
def test_fields_lie_in_the_path_the_headers_and_the_query(asked):
    path = "/v1/a%2F%C3%BC/x?count=7&deep=1&note=b%20c%26"
    assert written(asked, FULL) == (path, HEADERS, {})


@pytest.mark.parametrize(
    "asked", [endpoint("POST"), endpoint("PUT"), endpoint("POST", takes="framed")]
)
def test_fields_lie_in_the_json_where_a_request_has_one(asked):
    told = {"count": 7, "deep": True, "note": "b c&"}
    assert written(asked, FULL) == ("/v1/a%2F%C3%BC/x", HEADERS, told)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_has_its_default_is_left_out(method):
    asked = Asked(who="a", secret="", count=5, note=None, env={})
    assert written(endpoint(method), asked) == ("/v1/a/x", {}, {})


def test_what_is_empty_and_has_another_default_is_told():
    path, _, _ = written(endpoint("GET"), Asked(who="a", count=0, note=""))
    assert path == "/v1/a/x?count=0&note="


@pytest.mark.parametrize("end", [" a", "a ", "\ta", " "])
def test_a_header_keeps_what_would_be_lost_at_its_ends(end):
    _, headers, _ = written(endpoint("GET"), Asked(who="a", secret=end))
    assert headers["XSC-Secret"].split() == [headers["XSC-Secret"]]


@pytest.mark.parametrize(
    "how", [{"who": "\udcff"}, {"who": "a", "secret": "\udcff"}, {"who": "a", "note": "\udcff"}]
)
def test_what_is_no_text_is_written_nowhere(how):
    with pytest.raises(UnicodeEncodeError):
        written(endpoint("GET"), Asked(**how))


def test_what_a_path_names_is_not_empty():
    with pytest.raises(ArgumentInvalid, match="an empty text names nothing"):
        written(endpoint("GET"), Asked(who=""))


def test_no_two_endpoints_are_asked_alike():
    asked = Counter((each.method, each.path) for each in ENDPOINTS)
    assert not {place for place, count in asked.items() if count > 1}


@pytest.mark.parametrize("each", ENDPOINTS, ids=lambda each: f"{each.method} {each.path}")
def test_each_endpoint_is_whole(each):
    named = {one.name: one for one in fields(each.request)}
    assert in_path(each) <= named.keys()
    for name in in_path(each):
        assert named[name].type == "str", "it is quoted as a text"
        assert not named[name].metadata
    assert each.path.startswith("/v1/") or each.gives == "text"
    assert each.says[0].isupper()
    assert each.says.endswith(".")
    assert each.gives in {"json", "lines"} or each.method == "GET", "it is asked without a body"
