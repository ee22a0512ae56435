"""WAGI: what a program is told of a request, and what of its output is an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import ARGUMENT_BYTES_MAX, ARGUMENTS_MAX
from xsc.compute.deployments.wagi import (
    SERVICE_ANSWER_FIELDS_MAX,
    SERVICE_ANSWER_HEAD_BYTES_MAX,
    Request,
    Response,
    input_of,
    is_reserved,
    read_answer,
)
from xsc.compute.wasm.inputs import check_input

ASKED = Request(
    method="POST",
    route="/fn/alice/resize",
    raw_path="/a%20b",
    path="/a b",
    query="greet=matt&foo=bar",
    headers=[
        ("Host", "foo.example:3000"),
        ("Accept", "*/*"),
        ("Content-Type", "text/plain"),
        ("Content-Length", "4"),
        ("Cookie", "a=1"),
        ("Cookie", "b=2"),
        ("Accept-Language", "de"),
        ("Accept-Language", "en"),
    ],
    body=b"body",
    remote="192.0.2.7",
)


def told(request=ASKED, environment=None):
    found = input_of(request, environment or {})
    assert found is not None
    check_input(found)
    return found


def test_a_program_is_told_what_cgi_and_wagi_say():
    found = told(environment={"SIZE": "640"})
    assert dict(found.environment) == {
        "AUTH_TYPE": "",
        "CONTENT_LENGTH": "4",
        "CONTENT_TYPE": "text/plain",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "HTTP_ACCEPT": "*/*",
        "HTTP_ACCEPT_LANGUAGE": "de, en",
        "HTTP_HOST": "foo.example:3000",
        "PATH_INFO": "/a b",
        "PATH_TRANSLATED": "/a b",
        "QUERY_STRING": "greet=matt&foo=bar",
        "REMOTE_ADDR": "192.0.2.7",
        "REMOTE_HOST": "192.0.2.7",
        "REMOTE_USER": "",
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/fn/alice/resize",
        "SERVER_NAME": "foo.example",
        "SERVER_PORT": "3000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "WAGI/1",
        "SIZE": "640",
        "X_FULL_URL": "http://foo.example:3000/fn/alice/resize/a%20b?greet=matt&foo=bar",
        "X_MATCHED_ROUTE": "/fn/alice/resize/...",
        "X_RAW_PATH_INFO": "/a%20b",
    }
    assert found.args == ("greet=matt", "foo=bar")
    assert found.stdin == b"body"


def request(**changed):
    fields = {name: getattr(ASKED, name) for name in Request.__slots__}
    return Request(**{**fields, **changed})


@pytest.mark.parametrize(
    "name",
    ["Proxy", "Authorization", "Cookie", "Connection", "X_Real_Ip", "proxy", "Bad Name", "Ünicode"],
)
def test_fields_that_would_mislead_a_program_are_kept_back(name):
    found = dict(told(request(headers=[(name, "secret")])).environment)
    assert "secret" not in found.values()


def test_a_request_cannot_change_what_the_owner_set():
    found = told(request(headers=[("Size", "1")]), {"SIZE": "640"})
    assert dict(found.environment)["SIZE"] == "640"
    assert all(is_reserved(name) for name, _ in told().environment)


@pytest.mark.parametrize(
    ("changed", "fits"),
    [
        ({"query": "&".join(["a"] * ARGUMENTS_MAX)}, True),
        ({"query": "&".join(["a"] * (ARGUMENTS_MAX + 1))}, False),
        ({"query": "a" * ARGUMENT_BYTES_MAX}, False),
        ({"headers": [(f"x-{number}", "") for number in range(300)]}, False),
        ({"headers": [("X", "a\0b\udcff")], "path": "/\0"}, True),
        ({"headers": [], "query": "", "raw_path": "", "path": "", "body": b""}, True),
        ({"headers": [("Host", "[::1]:80")]}, True),
    ],
)
def test_what_no_program_can_be_given_is_refused(changed, fits):
    if fits:
        told(request(**changed))
    else:
        assert input_of(request(**changed), {}) is None


@pytest.mark.parametrize(
    ("stdout", "status", "headers", "body"),
    [
        (b"Content-Type: text/plain\n\nhello\n", 200, [("Content-Type", "text/plain")], b"hello\n"),
        (b"content-type:a/b\r\n\r\n\n\nx", 200, [("content-type", "a/b")], b"\n\nx"),
        (b"Location: /x\n\n", 302, [("Location", "/x")], b""),
        (b"Status: 404 Not Found\nContent-Type: a/b\n\nno", 404, [("Content-Type", "a/b")], b"no"),
        (b"Status: 204\n\n", 204, [], b""),
        (b"Status: 304\n\nbody", 304, [], b""),
        (b"Status: 301\nLocation: /x\n\n", 301, [("Location", "/x")], b""),
        (
            b"Content-Type: a/b\nVary: a\nvary: b\n\n",
            200,
            [("Content-Type", "a/b"), ("Vary", "a"), ("vary", "b")],
            b"",
        ),
        (
            b"Content-Type: a/b\nContent-Length: 9\nTransfer-Encoding: chunked\nDate: now\n\nx",
            200,
            [("Content-Type", "a/b")],
            b"x",
        ),
        (
            b"Server: me\nContent-Type: a/b\nConnection: close\nXSC-Request-Id: mine\n\nx",
            200,
            [("Content-Type", "a/b")],
            b"x",
        ),
    ],
)
def test_an_answer_is_read(stdout, status, headers, body):
    assert read_answer(stdout) == Response(status, tuple(headers), body)


@pytest.mark.parametrize(
    "name",
    [
        "Service-Worker-Allowed", "Clear-Site-Data", "Alt-Svc", "Strict-Transport-Security",
        "Public-Key-Pins", "Report-To", "Reporting-Endpoints", "NEL", "Origin-Agent-Cluster",
        "Refresh", "Set-Cookie", "SET-COOKIE", "Link", "WWW-Authenticate", "Accept-CH",
        "Access-Control-Allow-Credentials", "X-Content-Type-Options", "X-Accel-Redirect",
        "X-Sendfile", "Speculation-Rules", "SourceMap", "X-Anything",
    ],
)  # fmt: skip
def test_what_reaches_beyond_this_answer_is_not_passed_on(name):
    stdout = b"Content-Type: a/b\n" + name.encode() + b": x\n\nbody"
    assert read_answer(stdout) == Response(200, (("Content-Type", "a/b"),), b"body")


@pytest.mark.parametrize(
    ("stdout", "reason"),
    [
        (b"", "answered nothing"),
        (b"Content-Type: text/pl", "no empty line"),
        (b"Content-Type: text/plain\n", "no empty line"),
        (b"just text\n\n", "no field"),
        (b"\n\nbody", "no field"),
        (b" folded: x\n\n", "no field"),
        (b"Content Type: x\n\n", "no field"),
        (b": x\n\n", "no field"),
        (b"X: a\rSet-Cookie: b\n\n", "control character in its field 'X'"),
        (b"X: a\0b\n\n", "control character"),
        (b"X: \xff\n\n", "not UTF-8"),
        (b"X-Name: a\n\n", "neither Content-Type nor Location nor Status"),
        (b"X-Name: a\n\nbody", "a body without a Content-Type"),
        (b"Status: 404\n\nbody", "a body without a Content-Type"),
        (b"Content-Type: \n\nbody", "a body without a Content-Type"),
        (b"Content-Type: a/b\ncontent-type: c/d\n\n", "'content-type' twice"),
        (b"Status: 200\nStatus: 500\n\n", "'Status' twice"),
        (b"Status: 101\n\n", "'101' as its status"),
        (b"Status: 600\n\n", "as its status"),
        (b"Status: 20\n\n", "as its status"),
        (b"Status: OK\n\n", "as its status"),
        (b"Status: 200OK\n\n", "as its status"),
        (b"X: y\n" * (SERVICE_ANSWER_FIELDS_MAX + 1) + b"\n", "more than 64 fields"),
        (b"x" * SERVICE_ANSWER_HEAD_BYTES_MAX, "no empty line within 16384 bytes"),
        (b"X: " + b"y" * SERVICE_ANSWER_HEAD_BYTES_MAX + b"\n\n", "no empty line within"),
    ],
)
def test_what_is_no_answer_is_named(stdout, reason):
    found = read_answer(stdout)
    assert isinstance(found, str)
    assert reason in found
    assert found.isprintable()


def test_a_head_may_be_as_long_as_its_bound():
    head = b"Content-Type: a/b\nX: "
    head += b"y" * (SERVICE_ANSWER_HEAD_BYTES_MAX - len(head) - 2) + b"\n\n"
    assert isinstance(read_answer(head + b"body"), Response)
    assert isinstance(read_answer(head[:-2] + b"y\n\nbody"), str)


PARTS = [
    b"Content-Type: a/b",
    b"Status: 200",
    b"\n",
    b"\r\n",
    b"\r",
    b":",
    b"X-Y: z",
    b"\xff",
    b"\0",
]


@given(st.binary() | st.lists(st.sampled_from(PARTS)).map(b"".join))
def test_no_output_is_more_than_an_answer_or_a_sentence(stdout):
    """Whatever comes, no field holds what could end it, and a body is what was written."""
    found = read_answer(stdout)
    if isinstance(found, str):
        assert found.isprintable()
        return
    assert 200 <= found.status <= 599
    assert stdout.endswith(found.body)
    for name, value in found.headers:
        assert name.isascii()
        assert not set(name + value) & set("\r\n\0")
