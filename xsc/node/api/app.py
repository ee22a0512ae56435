"""The loopback API: its routes, its guard and its error mapping.

Every path but those of `OPEN` needs the bearer token of the home. Errors leave as
problem documents (`xsc.api.problems`); a fault that nobody expected is logged
with its trace and answered without one.
"""

from __future__ import annotations

import hmac
import logging
import re
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from xsc.api import proof, serial
from xsc.api.problems import CONTENT_TYPE, bug, problem
from xsc.base import errors, ids
from xsc.base.limits import NO_PROGRESS_MS
from xsc.base.log import Log
from xsc.dashboard.app import Dashboard
from xsc.net.transport.bounds import read_body
from xsc.net.transport.http import say_continue
from xsc.node.api import openapi

KEEP_ALIVE_MS = 75_000
"""How long a connection may be idle."""
PATH = web.RequestKey("path", dict[str, str])
"""Where a request has the named parts of its path."""
OPEN = ("/health", proof.PATH, *openapi.PATHS)
"""Paths that need no token: they say nothing of the node, or are asked before it is shown."""

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_GONE = ("SSL connection is closed", "socket.send() raised exception.")
"""What asyncio says of writing to who has gone."""
_SHORT_ID = re.compile(rf"(?<![\w(])[a-z2-7]{{{ids.SHORT_CHARS}}}(?!\w)")
"""A short id in a message; one in parentheses follows its name."""

Names = Callable[[], Mapping[str, str]]
"""Returns the names of all known peers by their short ids."""


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
        gone = record.getMessage() in _GONE
        if gone or isinstance(fault, ConnectionError | HttpProcessingError):
            return
        trace = "" if fault is None else "".join(traceback.format_exception(fault))
        self._log.error(
            "node.library_report", source=record.name, message=record.getMessage(), trace=trace
        )


def name_peers(error: errors.XscError, names: Names) -> None:
    """Write the name of each known peer before its short id in an error's message."""
    if _SHORT_ID.search(error.message) is not None:
        error.message = with_names(error.message, names())


def with_names(text: str, named: Mapping[str, str]) -> str:
    """Return a text with the name of each known peer before its short id."""

    def with_name(match: re.Match[str]) -> str:
        name = named.get(match[0], match[0])
        return name if name == match[0] else f"{name} ({match[0]})"

    return _SHORT_ID.sub(with_name, text)


def problem_response(error: errors.XscError) -> web.Response:
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


async def _alive(_: web.BaseRequest) -> web.Response:
    """Say that the process runs, and no more: `/health` is open to everybody."""
    return reply({"status": "ok"})


def _check_token(given: str, tokens: Iterable[str]) -> None:
    # Bytes that are no text are compared as they came.
    said = given.encode(errors="surrogateescape")
    if not any(hmac.compare_digest(said, f"Bearer {token}".encode()) for token in tokens):
        raise errors.Unauthorized(
            "the API needs the token of the node's home",
            hint="it is in api.token, that of metrics in metrics.token; send it as"
            " `Authorization: Bearer …`",
        )


def only(path: str, answer: Handler) -> Handler:
    """Return what answers requests for one path of an API, and knows no other."""

    async def answer_one(request: web.BaseRequest) -> web.StreamResponse:
        if request.rel_url.raw_path != path:
            return problem_response(errors.NotFound(f"only {path} is served here"))
        return await answer(request)

    return answer_one


def application(
    routes: Iterable[web.RouteDef],
    token: str,
    log: Log,
    names: Names,
    *,
    also: Mapping[str, Iterable[str]] = MappingProxyType({}),
    dashboard: Dashboard | None = None,
) -> Handler:
    """Return what answers the API's requests.

    Args:
        routes: what is asked, and what answers it.
        token: opens every path.
        log: is told what went wrong.
        names: of peers, for messages.
        also: by path, further tokens that open it, and nothing else.
        dashboard: answers its own paths, which need no token but a session.
    """

    async def prove(request: web.BaseRequest) -> web.Response:
        """Prove to a client that this is the node whose token it is about to show."""
        size = min(request.content_length or 0, 2 * proof.CHALLENGE_BYTES + 1)
        challenge = bytes(await read_body(request.content, size, NO_PROGRESS_MS, lambda _: None))
        assert request.transport is not None
        port = request.transport.get_extra_info("sockname")[1]
        return reply({"proof": proof.proof_of(token, port, challenge)})

    table = web.UrlDispatcher()
    open_routes = [web.get("/health", _alive), web.post(proof.PATH, prove), *openapi.ROUTES]
    for each in (*open_routes, *routes):
        # As it is: `add_routes` would answer HEAD beside GET, and no braces in a part.
        path = each.path.replace("}", ":[^/]+}")
        table.add_route(each.method, path, cast(Any, each.handler))

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        path = request.rel_url.raw_path
        try:
            if dashboard is not None and dashboard.has(path):
                return await dashboard.answer(request)
            if path not in OPEN:
                _check_token(request.headers.get("Authorization", ""), (token, *also.get(path, ())))
            found = await table.resolve(cast(web.Request, request))
            if found.http_exception is not None:
                raise errors.NotFound(f"there is no {request.method} {path} in this API")
            request[PATH] = dict(found)
            await say_continue(request)
            return await cast(Handler, found.handler)(request)
        except errors.XscError as error:
            name_peers(error, names)
            if error.exit_code == 1:
                log.error("api.request_failed", path=path, fault=error.message)
            return problem_response(error)
        except ConnectionError:
            raise  # the client went away: aiohttp closes what is left of the exchange
        except Exception:  # noqa: BLE001 - the one place that must answer whatever happens
            log.error("api.request_bug", path=path, trace=traceback.format_exc())
            if dashboard is not None and dashboard.has(path):
                return dashboard.failed(errors.XscError(bug().detail, hint=bug().hint))
            return web.Response(text=_text(bug()), status=500, content_type=CONTENT_TYPE)

    return answer
