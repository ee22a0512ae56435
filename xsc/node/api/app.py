"""The loopback API: one aiohttp application, its guard and its error mapping.

Every path but `/health` and `/v1/proof` needs the bearer token of the home. Errors leave as
problem documents (`xsc.api.problems`); a fault that nobody expected is logged
with its trace and answered without one.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from xsc.api import proof
from xsc.api.problems import CONTENT_TYPE, bug, problem
from xsc.base.errors import (
    ArgumentInvalid,
    NotFound,
    TooLarge,
    Unauthorized,
    XscError,
)
from xsc.base.ids import SHORT_CHARS
from xsc.base.limits import MIB
from xsc.base.log import Log
from xsc.base.units import format_credits, format_duration, format_size
from xsc.net.transport.fast_path import Answer
from xsc.net.transport.gate import Gate
from xsc.net.transport.parser import SmallRequest
from xsc.net.transport.port import RawResponse

JSON_BYTES_MAX = 1 * MIB
"""Bound of a JSON request; streams and modules have their own."""

KEEP_ALIVE_MS = 75_000
"""How long a connection may be idle."""
_OPEN = ("/health", proof.PATH)
"""Paths that need no token: the first says nothing, the second is asked before it is shown."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
FastPathHandler = Callable[[SmallRequest], Awaitable[tuple[int, dict[str, object]]]]
"""Answers a small request with a status and a document."""
B = TypeVar("B", bound=BaseModel)

_BOUNDS = {
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
}
"""Of what pydantic complains: the bound's name, and our words."""
_UNITS: Mapping[str, Callable[[int], str]] = {
    "_ms": format_duration,
    "_bytes": format_size,
    "_micro": lambda micro: f"{format_credits(micro)} credits",
}
"""Formats the value of a field for people, by the unit at the end of the field's name."""
_SHORT_ID = re.compile(rf"(?<![\w(])[a-z2-7]{{{SHORT_CHARS}}}(?!\w)")
"""A short id in a message; one in parentheses follows its name."""

Names = Callable[[], Mapping[str, str]]
"""Returns the names of all known peers by their short ids."""


class Running:
    """Counts the requests that run, so that the end of the node can wait for them.

    Args:
        gate: told of the connections that they run on.
    """

    def __init__(self, gate: Gate | None = None) -> None:
        self._gate = gate
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one request for as long as the context is open."""
        self._count += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._idle.set()

    @contextmanager
    def on(self, transport: asyncio.Transport | None) -> Iterator[None]:
        """Count one request that has come on a connection."""
        with self.one(), nullcontext() if self._gate is None else self._gate.serving(transport):
            yield

    async def ended(self, timeout_s: float) -> None:
        """Return once no request runs, or when the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return


class Reports(logging.Handler):
    """Hands on what libraries report, as lines of the node's log.

    What the other end of a connection did wrong is dropped: anybody can do it, as often as
    they like, and fill the disk.
    """

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, or none."""
        fault = record.exc_info[1] if record.exc_info else None
        if isinstance(fault, ConnectionError | HttpProcessingError):
            return
        trace = "" if fault is None else "".join(traceback.format_exception(fault))
        self._log.error(
            "node.library_report", source=record.name, message=record.getMessage(), trace=trace
        )


def _name_peers(error: XscError, names: Names) -> None:
    """Write the name of each known peer before its short id in an error's message."""
    if _SHORT_ID.search(error.message) is None:
        return
    named = names()

    def with_name(match: re.Match[str]) -> str:
        name = named.get(match[0], match[0])
        return name if name == match[0] else f"{name} ({match[0]})"

    error.message = _SHORT_ID.sub(with_name, error.message)


def problem_response(error: XscError) -> web.Response:
    """Return the response that carries an error."""
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else None
    return web.json_response(
        problem(error), status=error.http_status, headers=headers, content_type=CONTENT_TYPE
    )


async def read_body(request: web.Request, kind: type[B]) -> B:
    """Return the request's JSON body as the model that is expected; none counts as `{}`.

    Raises:
        TooLarge: over JSON_BYTES_MAX.
        ArgumentInvalid: not JSON, or not of the model; names the first field that is wrong.
    """
    return parse(await read_bounded(request, JSON_BYTES_MAX, "a JSON request") or b"{}", kind)


async def read_bounded(request: web.Request, most: int, what: str) -> bytes:
    """Return the request's body.

    Raises:
        TooLarge: it has more than `most` bytes; names `what` it is.
    """
    raw = await request.content.read(most + 1)
    while len(raw) <= most and (more := await request.content.read(most)):
        raw += more
    if len(raw) > most:
        raise TooLarge(f"{what} has at most {most} bytes", hint="send less at a time")
    return raw


def parse(raw: bytes, kind: type[B]) -> B:
    """Return JSON bytes as a model.

    Raises:
        ArgumentInvalid: not JSON, or not of the model; names the first field that is wrong.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as fault:
        first = fault.errors()[0]
        hint = "give a value within that bound" if first["type"] in _BOUNDS else ""
        raise ArgumentInvalid(_complaint(first), hint=hint) from None


def _complaint(first: ErrorDetails) -> str:
    """Return what is wrong with a field: a bound in the words that a node without API uses."""
    place = ".".join(str(part) for part in first["loc"]) or "the body"
    if first["type"] in _BOUNDS:
        name, words = _BOUNDS[first["type"]]
        bound, given = first["ctx"][name], first["input"]
        for suffix, shown in _UNITS.items():
            if place.endswith(suffix) and isinstance(given, int):
                place, bound, given = place.removesuffix(suffix), shown(bound), shown(given)
        return f"{place} must be {words} {bound}, not {str(given)[:40]}"
    if first["type"] == "string_too_long":
        return f"{place} must have at most {first['ctx']['max_length']} characters"
    said = first["msg"].replace("Input should", "it must")
    return f"the request is wrong at {place}: {said}"


def whole_number(given: str, what: str, most: int, *, least: int = 0) -> int:
    """Return the number that a caller wrote in a query or a header.

    Raises:
        ArgumentInvalid: it is none from `least` to `most`; names `what` it is.
    """
    if not re.fullmatch(r"[0-9]{1,20}", given) or not least <= int(given) <= most:
        bounds = f"from {least} to {most}" if least else f"up to {most}"
        raise ArgumentInvalid(f"{what} must be a whole number {bounds}")
    return int(given)


def reply(value: BaseModel | dict[str, object], *, status: int = 200) -> web.Response:
    """Return a JSON response."""
    document = value.model_dump() if isinstance(value, BaseModel) else value
    return web.Response(text=_text(document), status=status, content_type="application/json")


def _text(document: dict[str, object]) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"


class Prover:
    """Proves to clients that this is the node whose token they are about to show.

    Args:
        token: of the home.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self.port = 0
        """Where the API listens, once it does."""

    async def answer(self, request: SmallRequest) -> tuple[int, dict[str, object]]:
        """Answer a challenge."""
        return 200, {"proof": proof.proof_of(self._token, self.port, request.body)}

    async def route(self, request: web.Request) -> web.Response:
        """Answer a challenge that came in another form."""
        challenge = await request.content.read(2 * proof.CHALLENGE_BYTES + 1)
        return reply({"proof": proof.proof_of(self._token, self.port, challenge)})


async def _alive(_: web.Request) -> web.Response:
    """Say that the process runs, and no more: `/health` is open to everybody."""
    return web.json_response({"status": "ok"})


def _check_token(given: str, expected: bytes) -> None:
    # Bytes that are no text are compared as they came.
    if not hmac.compare_digest(given.encode(errors="surrogateescape"), expected):
        raise Unauthorized(
            "the API needs the token of the node's home",
            hint="it is in api.token; send it as `Authorization: Bearer …`",
        )


def _expected(token: str) -> bytes:
    return f"Bearer {token}".encode()


def _note(error: XscError, path: str, log: Log, names: Names) -> None:
    _name_peers(error, names)
    if error.exit_code == 1:
        log.error("api.request_failed", path=path, fault=error.message)


def fast_path_answer(
    handlers: Mapping[str, FastPathHandler],
    token: str,
    log: Log,
    running: Running,
    names: Names,
) -> Answer:
    """Return what answers small requests of these paths as the application would."""
    expected = _expected(token)

    def packed(status: int, kind: str, document: dict[str, object]) -> RawResponse:
        body = _text(document).encode()
        headers = {"content-type": f"{kind}; charset=utf-8"}
        if document.get("retry_after_s"):
            headers["retry-after"] = str(document["retry_after_s"])
        return RawResponse(status, headers, [body])

    async def answer(request: SmallRequest) -> RawResponse:
        with running.one():
            try:
                if request.path not in _OPEN:
                    _check_token(request.headers.get("authorization", ""), expected)
                status, document = await handlers[request.path](request)
                return packed(status, "application/json", document)
            except XscError as error:
                _note(error, request.path, log, names)
                return packed(error.http_status, CONTENT_TYPE, problem(error))
            except Exception:  # noqa: BLE001 - as the application's guard
                log.error("api.request_bug", path=request.path, trace=traceback.format_exc())
                return packed(500, CONTENT_TYPE, bug())

    return answer


def application(
    routes: list[web.RouteDef], token: str, log: Log, running: Running, names: Names
) -> web.Application:
    """Return the API's application; `running` counts its requests."""
    expected = _expected(token)

    @web.middleware
    async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
        with running.on(request.transport):
            return await handler(request)

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path not in _OPEN:
                _check_token(request.headers.get("Authorization", ""), expected)
            return await handler(request)
        except XscError as error:
            _note(error, request.path, log, names)
            return problem_response(error)
        except web.HTTPException as fault:
            if fault.status in (404, 405):
                return problem_response(
                    NotFound(f"there is no {request.method} {request.path} in this API")
                )
            if fault.status == 413:
                return problem_response(TooLarge("the request is too large"))
            return problem_response(ArgumentInvalid(f"the request is malformed: {fault.reason}"))
        except ConnectionError:
            raise  # the client went away: aiohttp closes what is left of the exchange
        except Exception:  # noqa: BLE001 - the one place that must answer whatever happens
            log.error("api.request_bug", path=request.path, trace=traceback.format_exc())
            return web.json_response(bug(), status=500, content_type=CONTENT_TYPE)

    app = web.Application(middlewares=[count, guard], client_max_size=JSON_BYTES_MAX)
    app.add_routes([web.get("/health", _alive), *routes])
    return app
