"""Laws of the table of endpoints: what is written is read back, and the document says how."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import get_type_hints
from urllib.parse import parse_qsl, unquote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from pydantic import TypeAdapter

from xsc.api.endpoint import headers_of, in_path, written
from xsc.api.serial import document, to_text
from xsc.api.table import ENDPOINTS
from xsc.node.api import openapi as making
from xsc.node.api.openapi import openapi
from xsc.node.api.serving import Body, _asked
from xsc.node.daemon import ANSWERS
from xsc.storage.object.durability import parse

st.register_type_strategy(bytes, st.binary(min_size=1, max_size=40))
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))


def each_endpoint(endpoints):
    return pytest.mark.parametrize("each", endpoints, ids=lambda one: f"{one.method} {one.path}")


def test_the_document_is_openapi_and_has_every_endpoint():
    found = openapi()
    validate(found)
    paths = {
        (method.upper(), path) for path, methods in found["paths"].items() for method in methods
    }
    assert paths == {(each.method, each.path) for each in ENDPOINTS}


def test_the_document_is_made_once_however_many_ask_at_once():
    making.openapi.cache_clear()
    making._as_bytes.cache_clear()
    with ThreadPoolExecutor(16) as pool:
        found = set(pool.map(lambda _: making._as_bytes(), range(16)))
    assert (len(found), making.openapi.cache_info().misses) == (1, 1)


@each_endpoint([each for each in ENDPOINTS if each.answer not in {bytes, str}])
@settings(max_examples=5)
@given(st.data())
def test_an_answer_is_read_back_strictly_and_as_the_document_says(each, data):
    answer = data.draw(st.from_type(each.answer))
    assert TypeAdapter(each.answer).validate_json(to_text(answer)) == answer
    responses = openapi()["paths"][each.path][each.method.lower()]["responses"]
    ((schema,),) = [kind.values() for kind in responses[str(each.status)]["content"].values()]
    told = document(answer)
    Draft202012Validator({**schema, "components": openapi()["components"]}).validate(
        {each.rows: [told]} if each.rows else told
    )


@each_endpoint(ENDPOINTS)
@settings(max_examples=5)
@given(st.data())
async def test_a_request_is_read_as_it_was_written(each, data):
    asked = data.draw(st.from_type(each.request))
    assume(all(getattr(asked, name) for name in in_path(each)))
    place, headers, said = written(each, asked)
    raw = to_text(said).encode() if each.has_json else b""
    if each.takes == "framed":
        raw = len(raw).to_bytes(4, "big") + raw

    async def read(most):
        nonlocal raw
        piece, raw = raw[:most], raw[most:]
        return piece

    path, _, query = place.partition("?")
    named = re.fullmatch(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", each.path), path).groupdict()
    found = {name: unquote(text) for name, text in named.items()}
    low = {name.lower(): text for name, text in headers.items()}
    texts = dict(parse_qsl(query, keep_blank_values=True))
    assert await _asked(each, Body(read), found, low, texts) == asked


@each_endpoint(ENDPOINTS)
def test_what_answers_an_endpoint_takes_its_request(each):
    hints = get_type_hints(ANSWERS[each])
    (request,) = [hints[name] for name in ("asked", "_") if name in hints]
    assert request is each.request
    assert each.rows or hints["return"] is not None


@each_endpoint(ENDPOINTS)
def test_every_field_of_a_request_has_its_place_in_the_document(each):
    operation = openapi()["paths"][each.path][each.method.lower()]
    placed = {one["name"] for one in operation["parameters"]}
    (content,) = operation.get("requestBody", {"content": {"": {}}})["content"].values()
    schema = content.get("schema", {})
    # Of a framed body: what the page shows first.
    sent = schema.get("anyOf", [schema])[0].get("properties", {})
    headers = headers_of(each.request)
    assert {*placed, *sent} == {headers.get(one.name, one.name) for one in fields(each.request)}


def test_the_document_says_how_a_header_is_written():
    """Its examples are taken, and a name says that it is percent-encoded."""
    found = openapi()["paths"]["/v1/objects"]["post"]["parameters"]
    said = {one["name"]: one["schema"] for one in found}
    assert said["XSC-Name"]["description"].startswith("Percent-encoded, in UTF-8")
    examples = re.findall("`([^`]+)`", said["XSC-Survive"]["description"])
    assert [parse(one).to_text() for one in examples] == examples != []
