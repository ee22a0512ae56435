"""Answers a browser: logs it in, renders pages, carries out actions, tells that something changed.

A page is rendered whole from answers of the API. Its one stream of events says only that something
changed: the page is fetched again then, and what differs is put in its place.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote

from aiohttp import web

from xsc.api import monitor
from xsc.api.endpoint import Nothing
from xsc.base.clock import Clock
from xsc.base.errors import ArgumentInvalid, NotAllowed, NotFound, TooLarge, XscError
from xsc.base.limits import KIB
from xsc.dashboard import session, views
from xsc.dashboard.page import Action, Asked, Page, Said, number
from xsc.dashboard.pages import circle, compute, ledger, market, storage
from xsc.dashboard.session import Session, Sessions
from xsc.dashboard.source import Node, fetch

STREAMS_MAX: Final = 4
"""Event streams of a session: browsers open six connections to a host, and pages need some."""
LOOK_MS: Final = 1_000
"""Between two looks whether something changed."""
BEAT_LOOKS: Final = 10
"""After so many looks without a change something is told anyway: probes change what pages show,
and who writes to nobody notices it."""
WRITE_S: Final = 10.0
"""How long the reader of a stream may take what was written."""
FORM_BYTES_MAX: Final = 64 * KIB
FIELDS_MAX: Final = 32
FILE_CHARS_MAX: Final = 150
"""Of the name under which a browser saves a file: it is sent in a header."""

_OF_SESSION: Final = re.compile("(/s/[a-z2-7]+)(/.*)")
"""The path of a page: what those of its session begin with, and the rest."""
_STATIC: Final = Path(__file__).parent / "static"
_FILES: Final = {
    f"/static/{file.name}": file
    for file in _STATIC.iterdir()
    if file.suffix in {".css", ".js", ".svg"}
}
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src"
        " 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # With no-referrer a browser says "null" as the Origin of a form that it sends by itself.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
PAGES: Final[Mapping[str, Page]] = {
    page.path: page
    for module in (circle, storage, market, ledger, compute)
    for page in module.PAGES
}
ACTIONS: Final[Mapping[str, Action]] = {
    action.path: action for module in (circle, storage, market) for action in module.ACTIONS
}

Handler = Callable[[web.BaseRequest, Session], Awaitable[web.StreamResponse]]


class Dashboard:
    """The pages of one node.

    Args:
        node: answers what pages ask.
        node_id: names the cookie, so that two nodes of one machine can be logged in at once.
        sessions: who is logged in.
        clock: of the event streams.
    """

    open_paths: Final = ("/", "/login", *_FILES)
    """Paths that need no session."""

    def __init__(self, node: Node, node_id: str, sessions: Sessions, clock: Clock) -> None:
        self._node = node
        self._cookie = f"xsc_{node_id}"
        self._sessions = sessions
        self._clock = clock
        self._templates = views.environment()
        self._ended = False
        self._others: dict[tuple[str, str], Handler] = {
            ("GET", "/events"): self._events,
            ("GET", "/history"): self._history,
            ("POST", "/logout"): self._log_out,
        }

    def has(self, path: str) -> bool:
        """Say whether a path is one of the dashboard's."""
        return path in self.open_paths or _OF_SESSION.fullmatch(path) is not None

    def end(self) -> None:
        """End all event streams."""
        self._ended = True

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request for a path that the dashboard has."""
        path, base = request.rel_url.raw_path, ""
        try:
            host = session.check_host(request.headers)
            if request.method == "POST":
                session.check_origin(request.headers, host)
            if path in _FILES:
                _only(request, "GET")
                # Asked for anew after an hour, and then answered in full only if it changed.
                keep = {**_HEADERS, "Cache-Control": "max-age=3600"}
                return web.FileResponse(_FILES[path], headers=keep)
            if path == "/login":
                _only(request, "GET")
                return self._log_in(request)
            if (parts := _OF_SESSION.fullmatch(path)) is None:
                raise _LoggedOut("a link leads to the dashboard", hint="xsc dashboard prints one")
            base, path = parts.groups()
            if path == "/welcome":
                _only(request, "GET")
                return self._rendered("welcome.html")
            found = self._session(request, base)
            if (handler := self._others.get((request.method, path))) is not None:
                return await handler(request, found)
            if (action := ACTIONS.get(path)) is not None:
                _only(request, "POST")
                return await self._act(request, action, found)
            if (page := PAGES.get(path)) is None:
                raise NotFound("the dashboard has no such page")
            _only(request, "GET")
            return await self._page(request, page, found)
        except XscError as fault:
            return self.failed(fault, base)

    def _session(self, request: web.BaseRequest, base: str) -> Session:
        """Return the session whose pages begin so, and whose cookie a request has.

        Raises:
            NotAllowed: there is none.
        """
        session.check_reader(request.headers)
        for token in self._tokens(request):
            found = self._sessions.of(token)
            if found is not None and found.base == base:
                return found
        raise _LoggedOut("this browser is not logged in", hint="xsc dashboard prints a link")

    def _tokens(self, request: web.BaseRequest) -> list[str]:
        """Return all that may be the cookie: another port may have set one of the same name."""
        pairs = (
            part.strip().partition("=") for part in request.headers.get("Cookie", "").split(";")
        )
        return [value for name, _, value in pairs if name == self._cookie]

    def _log_in(self, request: web.BaseRequest) -> web.Response:
        """Lead to the pages, over one without content.

        Where another page led to the link, the request after it has no cookie.
        """
        token = self._sessions.open(request.query.get("code", ""))
        made = self._sessions.of(token)
        assert made is not None
        leads = {"Location": f"{made.base}/welcome", "Referrer-Policy": "no-referrer"}
        answer = web.Response(status=303, headers={**_HEADERS, **leads})
        answer.set_cookie(self._cookie, token, path=made.base, httponly=True, samesite="Strict")
        return answer

    async def _log_out(self, request: web.BaseRequest, found: Session) -> web.Response:
        session.check_csrf(found, (await _form(request)).get("csrf", ""))
        for token in self._tokens(request):
            if self._sessions.of(token) is found:
                self._sessions.close(token)
        hint = "xsc dashboard prints a new link"
        fault = _LoggedOut("this browser is logged out", hint=hint)
        answer = self._rendered("fault.html", 401, fault=fault, base="", title="Logged out")
        answer.del_cookie(self._cookie, path=found.base)
        return answer

    async def _page(
        self,
        request: web.BaseRequest,
        page: Page,
        found: Session,
        said: Said | None = None,
        status: int = 200,
    ) -> web.Response:
        # Asked before anything else: a change while the page is made is told.
        changes = self._node.changes()
        asked = Asked(request.query if said is None else said.query)
        shown = await page.gather(self._node, asked)
        return self._rendered(
            page.template,
            status,
            page=page,
            pages=[each for each in PAGES.values() if each.listed],
            measures=await fetch(self._node, monitor.MEASURES, Nothing()),
            base=found.base,
            csrf=found.csrf,
            said=said,
            changes=changes,
            **shown,
        )

    async def _act(
        self, request: web.BaseRequest, action: Action, found: Session
    ) -> web.StreamResponse:
        if action.stream is not None:
            status = 200
            try:
                session.check_csrf(found, request.headers.get("XSC-CSRF", ""))
                said = await action.stream(self._node, request)
            except XscError as fault:
                said, status = Said.of_fault(fault), fault.http_status
            answer = {"says": said.says, "hint": said.hint}
            return web.json_response(answer, status=status, headers=_HEADERS)
        form = await _form(request)
        session.check_csrf(found, form.get("csrf", ""))
        if action.download is not None:
            capability, name = await action.download(self._node, form)
            headers = {**_HEADERS, "Content-Disposition": attached(name)}
            return await self._node.download(request, capability, headers)
        assert action.change is not None
        status = 200
        try:
            said = await action.change(self._node, form)
        except XscError as fault:
            said, status = Said.of_fault(fault), fault.http_status
        return await self._page(request, PAGES[action.page], found, said, status)

    async def _history(self, request: web.BaseRequest, _: Session) -> web.Response:
        """Answer with what the charts draw."""
        text = request.query.get("within_ms", "")
        asked = monitor.Within(within_ms=number("within_ms", text))
        found = await self._node.ask(monitor.HISTORY, asked)
        return web.json_response(found, headers=_HEADERS)

    async def _events(self, request: web.BaseRequest, found: Session) -> web.StreamResponse:
        """Tell one tab when something has changed, until it goes or a newer one takes its place."""
        session.check_origin(request.headers, request.headers["Host"], stream=True)
        stream = object()
        found.streams.append(stream)
        del found.streams[:-STREAMS_MAX]
        answer = web.StreamResponse(headers={**_HEADERS, "Content-Type": "text/event-stream"})
        seen, waited = request.query.get("seen", ""), 0
        try:
            await answer.prepare(request)
            while stream in found.streams and not self._ended:
                changes = self._node.changes()
                if changes != seen or waited == BEAT_LOOKS:
                    async with asyncio.timeout(WRITE_S):
                        await answer.write(f"data: {changes}\n\n".encode())
                    seen, waited = changes, 0
                waited += 1
                await self._clock.sleep_ms(LOOK_MS)
            async with asyncio.timeout(WRITE_S):
                await answer.write(b"event: over\ndata:\n\n")
                await answer.write_eof()
        except TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        finally:
            if stream in found.streams:
                found.streams.remove(stream)
        return answer

    def failed(self, fault: XscError, base: str = "") -> web.Response:
        """Return the page that says why there is no other."""
        status = fault.http_status
        if isinstance(fault, _LoggedOut):
            status, base = 401, ""
        title = "That did not work"
        return self._rendered("fault.html", status, fault=fault, base=base, title=title)

    def _rendered(self, template: str, status: int = 200, **values: object) -> web.Response:
        text = self._templates.get_template(template).render(values)
        return web.Response(text=text, status=status, content_type="text/html", headers=_HEADERS)


def attached(name: str) -> str:
    """Return the header that has a browser keep an answer as a file (RFC 6266, RFC 8187).

    Args:
        name: as it was stored: of a path the last part names the file.
    """
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1].strip(" .")
    kept = "".join(char if char.isprintable() else "_" for char in last)[:FILE_CHARS_MAX]
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", kept or "object")
    coded = quote(kept or "object", safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{coded}"


class _LoggedOut(NotAllowed):
    """The request has no session."""


def _only(request: web.BaseRequest, method: str) -> None:
    if request.method != method:
        raise ArgumentInvalid(f"this path takes {method} alone")


async def _form(request: web.BaseRequest) -> dict[str, str]:
    """Return the fields of a form.

    Raises:
        TooLarge, ArgumentInvalid: it is none of ours.
    """
    raw = b""
    while len(raw) <= FORM_BYTES_MAX and (more := await request.content.read(FORM_BYTES_MAX)):
        raw += more
    if len(raw) > FORM_BYTES_MAX:
        raise TooLarge(f"a form has at most {FORM_BYTES_MAX} bytes")
    try:
        return dict(parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX))
    except ValueError:
        raise ArgumentInvalid("the form cannot be read") from None
