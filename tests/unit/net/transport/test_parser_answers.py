"""Heads of answers: read as the general parser reads them, or refused."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpResponseParser
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.errors import FrameInvalid
from xsc.base.limits import PEER_HEADER_BYTES_MAX
from xsc.net.transport.parser import (
    END,
    FIELDS_MAX,
    AnswerHead,
    SmallRequest,
    answer_head,
    read_answer,
    read_request,
    request_head,
)

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 3\r\nServer: xsc"


def read_head(raw: bytes) -> AnswerHead:
    """Read a head that is given without its empty line."""
    return read_answer(raw + END)


def test_what_this_node_answers_is_read():
    raw = answer_head(404, {"content-type": "a/b; c=d"}, 12)
    assert read_head(raw.removesuffix(END)) == AnswerHead(
        404, {"content-type": "a/b; c=d", "content-length": "12", "server": "xsc"}, 12, True
    )


def test_what_this_node_asks_is_a_small_request():
    head = request_head("POST", "/peer/v1/storage.put", "127.0.0.1:80", {"xsc-to": "a"}, 2)
    assert read_request(head + b"ab", None) == SmallRequest(
        "/peer/v1/storage.put",
        {"host": "127.0.0.1:80", "xsc-to": "a", "content-length": "2"},
        b"ab",
    )
    assert b"content-length: 0" in request_head("POST", "/a", "b", {}, 0)
    assert b"content-length" not in request_head("GET", "/a", "b", {}, 0)


@pytest.mark.parametrize(
    ("field", "keeps"), [("keep-alive", True), ("Keep-Alive", True), ("close", False), ("x", False)]
)
def test_who_says_so_closes_the_connection(field, keeps):
    assert read_head(PLAIN + b"\r\nConnection: " + field.encode()).keeps is keeps


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense",
        PLAIN.replace(b"1.1", b"1.0"),
        PLAIN.replace(b"200", b"100"),
        PLAIN.replace(b"200", b"101"),
        PLAIN.replace(b"200", b"600"),
        PLAIN.replace(b"200", b"20"),
        PLAIN.replace(b"200 OK", b"200OK"),
        PLAIN.replace(b"OK", b"O\0K"),
        PLAIN.replace(b"\r\nContent-Length: 3", b""),
        PLAIN.replace(b"3", b""),
        PLAIN.replace(b"3", b"-3"),
        PLAIN.replace(b"3", b"+3"),
        PLAIN.replace(b"3", b"03"),
        PLAIN.replace(b"3", b"3, 3"),
        PLAIN.replace(b"3", b"1" * 17),
        PLAIN + b"\r\nContent-Length: 3",
        PLAIN + b"\r\nserver: xsc",
        PLAIN + b"\r\nTransfer-Encoding: chunked",
        PLAIN + b"\r\nTransfer-Encoding: identity",
        PLAIN + b"\r\n folded",
        PLAIN + b"\r\nA : b",
        PLAIN + b"\r\nA:\tb",
        b"\r\n" + PLAIN,
        PLAIN + b"\r\nA: \x01",
        PLAIN + b"\r\nA: b\nC: d",
        PLAIN + b"\r\nA: b\rC: d",
        PLAIN + b"\r\nA: \xe4",
        PLAIN + b"\r\nA",
        PLAIN + b"\r\n",
        PLAIN + b"".join(b"\r\nA%d: b" % index for index in range(FIELDS_MAX - 2)),
    ],
)
def test_everything_else_is_no_answer(raw):
    with pytest.raises(FrameInvalid):
        read_head(raw)


@pytest.mark.timeout(20)
def test_blanks_before_a_fault_are_read_once_and_not_in_every_way():
    raw = PLAIN + b"\r\nA:" + b" " * (PEER_HEADER_BYTES_MAX - 200) + b"\x01"
    for _ in range(50):
        with pytest.raises(FrameInvalid):
            read_head(raw)


def general(raw: bytes) -> tuple[int, dict[str, str]] | None:
    """Return status and fields as aiohttp reads them; None where it refuses."""
    loop = asyncio.new_event_loop()
    try:
        parser = HttpResponseParser(BaseProtocol(loop), loop, 2**16)
        messages, _, _ = parser.feed_data(raw + b"\r\n\r\n")
    except HttpProcessingError:
        return None
    finally:
        loop.close()
    if not messages:
        return None
    message, _ = messages[0]
    return message.code, {name.lower(): value for name, value in message.headers.items()}


@given(st.data())
def test_what_is_read_here_the_general_parser_reads_as_well(data):
    raw = bytearray(PLAIN)
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(raw) - 1))
        piece = data.draw(
            st.sampled_from([b"", b"\r\n", b" ", b"\t", b"\0", b":", b"3", b"\xff", b"\r\na: b"])
            | st.binary(min_size=1, max_size=2)
        )
        raw[place : place + data.draw(st.integers(0, 2))] = piece
    try:
        head = read_head(bytes(raw))
    except FrameInvalid:
        return
    assert general(bytes(raw)) == (head.status, dict(head.headers))
