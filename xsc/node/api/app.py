"""The loopback API: one aiohttp application, its guard and its error mapping.

Every path but `/health` and `/v1/proof` needs the bearer token of the home. Errors leave as
problem documents (`xsc.api.problems`); a fault that nobody expected is logged
with its trace and answered without one.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from xsc.api import proof, serial
from xsc.api.problems import CONTENT_TYPE, bug, problem
from xsc.base.errors import (
    ArgumentInvalid,
    NotFound,
    TooLarge,
    Unauthorized,
    XscError,
)
from xsc.base.ids import SHORT_CHARS
from xsc.base.log import Log
from xsc.net.transport.fast_path import Answer
from xsc.net.transport.gate import Gate
from xsc.net.transport.parser import SmallRequest
from xsc.net.transport.port import RawResponse

KEEP_ALIVE_MS = 75_000
"""How long a connection may be idle."""
_OPEN = ("/health", proof.PATH)
"""Paths that need no token: the first says nothing, the second is asked before it is shown."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
FastPathHandler = Callable[[SmallRequest], Awaitable[tuple[int, object]]]
"""Answers a small request with a status and a value of the API."""
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
    return web.Response(
        text=_text(problem(error)),
        status=error.http_status,
        headers=headers,
        content_type=CONTENT_TYPE,
    )


def reply(value: object, *, status: int = 200, name_of: serial.Names | None = None) -> web.Response:
    """Return a JSON response."""
    text = _text(value, name_of)
    return web.Response(text=text, status=status, content_type="application/json")


def _text(value: object, name_of: serial.Names | None = None) -> str:
    return serial.to_text(value, name_of) + "\n"


class Prover:
    """Proves to clients that this is the node whose token they are about to show.

    Args:
        token: of the home.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self.port = 0
        """Where the API listens, once it does."""

    async def answer(self, request: SmallRequest) -> tuple[int, object]:
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

    def packed(status: int, kind: str, value: object, retry_after_s: int = 0) -> RawResponse:
        headers = {"content-type": f"{kind}; charset=utf-8"}
        if retry_after_s:
            headers["retry-after"] = str(retry_after_s)
        return RawResponse(status, headers, [_text(value).encode()])

    async def answer(request: SmallRequest) -> RawResponse:
        with running.one():
            try:
                if request.path not in _OPEN:
                    _check_token(request.headers.get("authorization", ""), expected)
                status, value = await handlers[request.path](request)
                return packed(status, "application/json", value)
            except XscError as error:
                _note(error, request.path, log, names)
                return packed(error.http_status, CONTENT_TYPE, problem(error), error.retry_after_s)
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
            return web.Response(text=_text(bug()), status=500, content_type=CONTENT_TYPE)

    app = web.Application(middlewares=[count, guard])
    app.add_routes([web.get("/health", _alive), *routes])
    return app
