"""Binds each endpoint of `xsc.api` to the function that answers it.

A function takes the node and the request, and, where bytes follow it, its body. It returns the
answer: a model, the bytes of a file, a `Download`, or an iterator of lines or events.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import unquote

from aiohttp import web
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from xsc.api import objects, problems, ranges, serial
from xsc.api.endpoint import Endpoint, headers_of
from xsc.base import limits, units
from xsc.base.errors import ArgumentInvalid, RangeUnsatisfiable, TooLarge, XscError
from xsc.dashboard.source import Pick, Read
from xsc.node.api import app, openapi
from xsc.node.build import Node

JSON_BYTES_MAX: Final = 1 * limits.MIB
"""Bound of the JSON of a request; streams and modules have their own."""
LENGTH_BYTES: Final = 4
PIECE_BYTES: Final = 256 * limits.KIB
"""Written at once of a download."""
SOCKET_BYTES: Final = 512 * limits.KIB
"""Held by the system of what was written and not read."""
BEAT_MS: Final = 5_000
"""Events that do not come are replaced by a comment this often, so that each side notices if the
other is gone."""
TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The format of metrics."""
_LOOK_MS: Final = 200
"""How often it is looked whether the reader of lines is still there."""
_COMMENT: Final = b":\n\n"
_END: Final = object()
_BOUNDS = {"less_than_equal": ("le", "at most"), "greater_than_equal": ("ge", "at least")}
"""Of what pydantic complains: the bound's name, and our words."""
_SAID = {
    "unexpected_keyword_argument": "there is no such field",
    "missing": "it is missing",
    "bytes_type": "it must be a text in base64",
}
_LONG = {"string_too_long": "characters", "too_long": "items"}
_WHOLE = re.compile("-?[0-9]+")
_PAGE: Final = "the page /docs of the API shows what it takes"
_UNITS: Mapping[str, Callable[[int], str]] = {
    "_ms": units.format_duration,
    "_bytes": units.format_size,
    "_micro": lambda micro: f"{units.format_credits(micro)} credits",
}
"""Formats the value of a field for people, by the unit at the end of the field's name."""

T = TypeVar("T")
Answer: TypeAlias = Callable[..., Any]
"""An asynchronous function of the node, the request and, for some, the body; or an iterator."""
Answers: TypeAlias = Mapping[Endpoint[Any, Any], Answer]
"""What answers each endpoint."""


class Body:
    """The bytes of a request, in the order in which they are asked for."""

    def __init__(self, read: Read) -> None:
        self._read = read

    async def exactly(self, size_bytes: int, what: str) -> bytes:
        """Return the next bytes.

        Raises:
            ArgumentInvalid: the request ends before; names `what` they are.
        """
        parts: list[bytes] = []
        left = size_bytes
        while left:
            part = await self._read(left)
            if not part:
                raise ArgumentInvalid(f"the request ends within {what}", hint=openapi.FRAMED)
            parts.append(part)
            left -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def ended(self) -> None:
        """Return if nothing follows.

        Raises:
            ArgumentInvalid: something does.
        """
        if await self._read(1):
            raise ArgumentInvalid("the request goes on after its end", hint=openapi.FRAMED)

    async def whole(self, most: int, what: str) -> bytes:
        """Return all that follows.

        Raises:
            TooLarge: more than `most` bytes; names `what` they are.
        """
        raw = b""
        while len(raw) <= most and (more := await self._read(most + 1 - len(raw))):
            raw += more
        if len(raw) > most:
            raise TooLarge(f"{what} has at most {most} bytes", hint="send less at a time")
        return raw

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield all that follows, as it comes."""
        while piece := await self._read(limits.MIB):
            yield piece


@dataclass(frozen=True, slots=True)
class Download:
    """Bytes that are answered piece by piece."""

    pieces: Callable[[int, int], AsyncGenerator[bytes | memoryview, None]]
    """Yields those from one place to another."""
    size_bytes: int | None = None
    """None where it is not known before the end; then there are no ranges."""
    range: str | None = None
    """What was asked for."""
    kind: str = openapi.KINDS["bytes"]


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def parse(raw: bytes, kind: type[T]) -> T:
    """Return JSON bytes as a request.

    Raises:
        ArgumentInvalid: not JSON, or not of the model; names the first field that is wrong.
    """
    try:
        return _adapter(kind).validate_json(raw)
    except ValidationError as fault:
        raise _refusal(fault) from None


def checked(asked: T) -> T:
    """Return a request that was made in this process, checked as one that came as JSON.

    Raises:
        ArgumentInvalid: a field breaks a bound; names the first that does.
    """
    return parse(json.dumps(vars(asked)).encode(), type(asked))


def _from_texts(texts: Mapping[str, str], kind: type[T], headers: Mapping[str, str]) -> T:
    try:
        found = _adapter(kind).validate_strings(texts)
    except ValidationError as fault:
        raise _refusal(fault, headers) from None
    for name, text in texts.items():
        # pydantic takes 1.0, 1_0 and +1 for numbers as well.
        if type(getattr(found, name)) is int and not _WHOLE.fullmatch(text):
            place = headers.get(name, name)
            raise ArgumentInvalid(f"the request is wrong at {place}: it must be a whole number")
    return found


def _refusal(fault: ValidationError, headers: Mapping[str, str] | None = None) -> ArgumentInvalid:
    """Return what is wrong with the first field that is, by its header where it has one."""
    first = fault.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    hint = "give a value within that bound" if first["type"] in _BOUNDS else _PAGE
    return ArgumentInvalid(_complaint(first, (headers or {}).get(place, place)), hint=hint)


def _complaint(first: ErrorDetails, place: str) -> str:
    """Return what is wrong at a place: a bound in the words that a node without API uses."""
    if first["type"] in _BOUNDS:
        name, words = _BOUNDS[first["type"]]
        bound, given = first["ctx"][name], first["input"]
        for suffix, shown in _UNITS.items():
            if place.endswith(suffix) and isinstance(given, int):
                place, bound, given = place.removesuffix(suffix), shown(bound), shown(given)
        return f"{place} must be {words} {bound}, not {str(given)[:40]}"
    if first["type"] in _LONG:
        return f"{place} must have at most {first['ctx']['max_length']} {_LONG[first['type']]}"
    said = _SAID.get(first["type"]) or re.sub(r"^\w+ should", "it must", first["msg"])
    return f"the request is wrong at {place or 'the body'}: {said}"


async def _asked(
    endpoint: Endpoint[T, Any],
    body: Body,
    path: Mapping[str, str],
    headers: Mapping[str, str],
    query: Mapping[str, str],
) -> T:
    """Return the request that is in a path, headers, a query and the JSON of a body.

    Args:
        endpoint: what is asked.
        body: what follows the headers.
        path, query: the texts by name.
        headers: likewise; found by names in small letters.

    Raises:
        ArgumentInvalid, TooLarge: it is none.
    """
    in_headers = headers_of(endpoint.request)  # type: ignore[arg-type]
    if misplaced := query.keys() & {*path, *in_headers}:
        raise ArgumentInvalid(f"the query says what belongs elsewhere: {min(misplaced)}")
    if len({*query}) < len(query):
        raise ArgumentInvalid("the query says the same field more than once", hint=_PAGE)
    found = {name: headers.get(key.lower()) for name, key in in_headers.items()}
    named = {name: unquote(text) for name, text in found.items() if text is not None}
    if not endpoint.has_json or named:
        return _from_texts({**query, **path, **named}, endpoint.request, in_headers)
    if query:
        raise ArgumentInvalid(f"{endpoint.method} {endpoint.path} takes no query")
    if endpoint.takes == "framed":
        size = int.from_bytes(await body.exactly(LENGTH_BYTES, "its length"), "big")
        if size > JSON_BYTES_MAX:
            raise TooLarge(
                f"the JSON of a request is bounded to {JSON_BYTES_MAX} bytes", hint=openapi.FRAMED
            )
        raw = await body.exactly(size, "its JSON")
    else:
        raw = await body.whole(JSON_BYTES_MAX, "a JSON request") or b"{}"
    if not path:
        return parse(raw, endpoint.request)
    document = parse(raw, dict)
    if document.keys() & path.keys():
        raise ArgumentInvalid("the request says in its body what stands in its path")
    return parse(json.dumps({**document, **path}).encode(), endpoint.request)


class Server:
    """Answers requests for endpoints."""

    def __init__(self, node: Node, answers: Answers) -> None:
        self._node = node
        self._answers = answers
        self._ids = count(1)
        """Of requests whose answer may break off: one that has begun can carry no problem."""
        self._log = node.log

    async def ask(
        self,
        endpoint: Endpoint[T, Any],
        asked: T,
        *,
        body: Read | None = None,
        pick: Pick | None = None,
        window: slice = slice(None),
    ) -> dict[str, Any]:
        """Answer a page, as `xsc.dashboard.source.Node` says."""
        given = () if body is None else (Body(body),)
        value = await self._answered(endpoint, asked, *given)
        if endpoint.rows:
            rows = [*value]
            picked = range(len(rows)) if pick is None else pick(rows)
            places = picked[window]
            found = [rows[place] for place in places]
            value = {endpoint.rows: found, "places": [*places], "total": len(picked)}
        return serial.document(value, self._node.name_of)

    async def download(
        self, request: web.BaseRequest, capability: str, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Answer a browser, as `xsc.dashboard.source.Node` says."""
        asked = objects.Get(capability=capability)
        found = await self._answered(objects.GET, asked)
        return await self._downloaded(request, found, headers)

    async def _answered(self, endpoint: Endpoint[T, Any], asked: T, *given: Body) -> Any:  # noqa: ANN401
        try:
            return await self._answers[endpoint](self._node, checked(asked), *given)
        except XscError as fault:
            app.name_peers(fault, self._node.peer_names)
            raise

    def changes(self) -> str:
        """Return what differs once something has changed that people look at."""
        return f"{self._node.log.total()}.{self._node.watch.changes}"

    def routes(self) -> list[web.RouteDef]:
        """Return all endpoints for aiohttp."""
        return [
            web.route(each.method, each.path, self._route(each, answer))
            for each, answer in self._answers.items()
        ]

    def _route(
        self, endpoint: Endpoint[Any, Any], answer: Answer
    ) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            body = Body(request.content.read)
            asked = await _asked(
                endpoint, body, request.get(app.PATH, {}), request.headers, request.query
            )
            given = (asked,) if endpoint.takes == "json" else (asked, body)
            found = answer(self._node, *given)
            if endpoint.gives in {"lines", "events"}:
                pieces = self._encoded(found, events=endpoint.gives == "events")
                streamed = Download(lambda *_: pieces, kind=openapi.KINDS[endpoint.gives])
                return await self._downloaded(request, streamed)
            value = await found
            if endpoint.gives == "bytes":
                return await self._downloaded(request, value)
            if endpoint.gives == "cbor":
                return web.Response(body=value, content_type="application/cbor")
            if endpoint.gives == "text":
                return web.Response(text=value, headers={"Content-Type": TEXT})
            value = {endpoint.rows: [*value]} if endpoint.rows else value
            return app.reply(value, status=endpoint.status, name_of=self._node.name_of)

        return handle

    async def _encoded(
        self, found: AsyncGenerator[object, None], *, events: bool
    ) -> AsyncGenerator[bytes, None]:
        """Yield lines or events as they come, and in between nothing, or a comment.

        None says that what follows is no refusal any more: what is refused before it is answered
        like any other request, however long its body takes.
        """
        before, after, idle = (b"data: ", b"\n\n", _COMMENT) if events else (b"", b"\n", b"")
        wait_s = None
        async with aclosing(found):
            coming = asyncio.ensure_future(anext(found, _END))
            try:
                while True:
                    while not (await asyncio.wait({coming}, timeout=wait_s))[0]:
                        yield idle
                    item, wait_s = coming.result(), (BEAT_MS if events else _LOOK_MS) / 1000
                    if item is _END:
                        return
                    text = serial.to_text(item, self._node.name_of).encode()
                    yield idle if item is None else before + text + after
                    coming = asyncio.ensure_future(anext(found, _END))
            finally:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    async def _downloaded(
        self,
        request: web.BaseRequest,
        found: Download,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> web.StreamResponse:
        size = found.size_bytes
        start, stop = 0, size or 0
        if found.range is not None and size is not None:
            try:
                start, stop = ranges.from_header(found.range, size)
            except RangeUnsatisfiable as fault:
                answer = app.problem_response(fault)
                answer.headers["Content-Range"] = f"bytes */{size}"
                return answer
        # Closed in time: what a client that goes was given last is kept for its return.
        async with aclosing(found.pieces(start, stop)) as pieces:
            # The first bytes are fetched before the head is sent: most faults show here.
            first = await anext(pieces, b"")
            request_id = str(next(self._ids))
            response = web.StreamResponse(
                status=200 if found.range is None else 206,
                headers={
                    "Content-Type": found.kind,
                    "XSC-Request-Id": request_id,
                    **headers,
                },
            )
            if size is None:
                response.enable_chunked_encoding()
            else:
                response.headers["Accept-Ranges"] = "bytes"
                response.headers["Content-Length"] = str(stop - start)
                if found.range is not None:
                    response.headers["Content-Range"] = ranges.content_range(start, stop, size)
            await response.prepare(request)
            _hold_little(request)
            try:
                await _write(response, first)
                async for piece in pieces:
                    if request.transport is None or request.transport.is_closing():
                        return response
                    await _write(response, piece)
            except XscError as fault:
                self._log.warning("api.answer_broke_off", code=fault.code, fault=fault.message)
                self._node.faults.put(request_id, problems.problem(fault))
                response.force_close()
                if request.transport is not None:
                    request.transport.close()
                return response
            await response.write_eof()
            return response


async def _write(response: web.StreamResponse, data: bytes | memoryview) -> None:
    """Write in pieces: the event loop copies what the socket does not take at once."""
    view = memoryview(data)
    for start in range(0, len(view), PIECE_BYTES):
        await response.write(view[start : start + PIECE_BYTES])


def _hold_little(request: web.BaseRequest) -> None:
    """Have little of an answer held between us and a client that may go before it has read it.

    What was written is with the system, none of it in this process: it outlives us.
    """
    if request.transport is None:
        return
    request.transport.set_write_buffer_limits(high=0)
    held = request.transport.get_extra_info("socket")
    if held is not None:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
