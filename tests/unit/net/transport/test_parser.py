"""Laws of small requests: read as the general parser reads them, or left to it."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.limits import FAST_PATH_BYTES_MAX, FAST_PATH_HEAD_BYTES_MAX
from xsc.net.transport.connection import PIECE_BYTES, pieces
from xsc.net.transport.parser import SmallRequest, answer_head, read_request

HEAD = (
    b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nAuthorization: Bearer a b\r\n\r\n"
)
WHOLE = HEAD + b"abc"


def general(raw: bytes) -> tuple[str, dict[str, str], int] | None:
    """Return path, fields and length as aiohttp reads them; None where it refuses."""
    loop = asyncio.new_event_loop()
    try:
        parser = HttpRequestParser(
            BaseProtocol(loop), loop, 2**16, max_line_size=8190, max_field_size=8190
        )
        messages, upgraded, tail = parser.feed_data(raw)
    except HttpProcessingError:
        return None
    finally:
        loop.close()
    if len(messages) != 1 or upgraded or tail:
        return None
    message, body = messages[0]
    if not body.is_eof() or message.should_close or message.chunked or message.compression:
        return None
    fields = {name.lower(): value for name, value in message.headers.items()}
    assert len(fields) == len(message.headers)
    return message.path, fields, sum(len(chunk) for chunk in body._buffer)


def agrees(raw: bytes) -> None:
    found = read_request(raw, None)
    if isinstance(found, SmallRequest):
        assert general(raw) == (found.path, dict(found.headers), len(found.body))
        assert raw.endswith(found.body)


def test_a_small_request_is_read():
    fields = {"host": "x", "content-length": "3", "authorization": "Bearer a b"}
    assert read_request(WHOLE, ["/v1/jobs"]) == SmallRequest("/v1/jobs", fields, b"abc")
    agrees(WHOLE)


def test_every_beginning_asks_for_more():
    for size in range(len(WHOLE)):
        wanted = read_request(WHOLE[:size], None)
        assert isinstance(wanted, int)
        assert size < wanted <= len(WHOLE)


@pytest.mark.parametrize(
    "raw",
    [
        WHOLE + b"P",
        WHOLE.replace(b"POST", b"GET"),
        WHOLE.replace(b"POST /v1", b"POST http://x/v1"),
        WHOLE.replace(b"/v1", b"v1"),
        WHOLE.replace(b"/v1", b"/\tv1"),
        WHOLE.replace(b"/v1", b"/\rv1"),
        WHOLE.replace(b"/v1", b"/\nv1"),
        WHOLE.replace(b"/v1", b"/\x7fv1"),
        WHOLE.replace(b"/jobs", b"/jobs?a=b"),
        WHOLE.replace(b"/jobs", b"/jobs#a"),
        WHOLE.replace(b"/jobs", b"/%6aobs"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nProxy-Connection: close"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nSec-WebSocket-Key1: a"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nX: a"),
        WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        WHOLE.replace(b"POST ", b"POST  "),
        WHOLE.replace(b"Host: x\r\n", b""),
        WHOLE.replace(b"Content-Length: 3\r\n", b""),
        WHOLE.replace(b"Length: 3", b"Length: +3"),
        WHOLE.replace(b"Length: 3", b"Length: 03"),
        WHOLE.replace(b"Length: 3", b"Length: 3, 3"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nHost: x"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: close"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nUpgrade: websocket"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nContent-Encoding: gzip"),
        WHOLE.replace(b"Host: x", b"Host: x\r\n folded"),
        WHOLE.replace(b"Host: x", b"Host : x"),
        WHOLE.replace(b"Host: x", b"Host:\tx"),
        WHOLE.replace(b"Host: x", b"Host: x\t"),
        b"\r\n" + WHOLE,
        WHOLE + b"\r\n",
        WHOLE.replace(b"Host: x", b"Host: x\0"),
        WHOLE.replace(b"Host: x", b"Host: x\n"),
        WHOLE.replace(b"Host: x", b"Host: \xe4"),
        WHOLE.replace(b"Host: x", b"Host: x\r\n" + b"A: \r\n" * 31),
        b"POST /" + b"a" * FAST_PATH_HEAD_BYTES_MAX,
        HEAD.replace(b": 3", b": %d" % FAST_PATH_BYTES_MAX),
    ],
)
def test_everything_else_is_left_to_the_general_parser(raw):
    assert read_request(raw, None) is None


@pytest.mark.timeout(20)
def test_a_head_with_a_fault_at_its_end_is_read_once_and_not_in_every_way():
    fields = b"".join(b"A%d: b\r\n" % index for index in range(31))
    assert read_request(WHOLE.replace(b"Host: x\r\n", fields + b"Host: \x01\r\n"), None) is None


def test_other_paths_are_left_to_the_general_parser():
    assert read_request(WHOLE, ["/v1/job", "/v1/jobs/"]) is None


@given(st.data())
def test_what_is_read_here_the_general_parser_reads_as_well(data):
    raw = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        piece = data.draw(
            st.sampled_from(
                [b"", b"\r\n", b" ", b"\t", b"\0", b":", b"3", b"\xff", b"a: b\r\n", b"Host: y\r\n"]
            )
            | st.binary(min_size=1, max_size=2)
        )
        raw[place : place + data.draw(st.integers(0, 2))] = piece
    agrees(bytes(raw))


def test_answers_are_announced_whole():
    assert answer_head(200, {"a": "b"}, 7) == (
        b"HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 7\r\nserver: xsc\r\n\r\n"
    )
    assert answer_head(429, {}, 0).startswith(b"HTTP/1.1 429 Refused\r\n")


@given(st.lists(st.integers(0, 3 * PIECE_BYTES // 2), max_size=4))
def test_pieces_are_bounded_and_lose_nothing(sizes):
    buffers = [bytes([index]) * size for index, size in enumerate(sizes)]
    found = list(pieces(buffers))
    assert b"".join(found) == b"".join(buffers)
    assert all(len(piece) <= PIECE_BYTES for piece in found)
