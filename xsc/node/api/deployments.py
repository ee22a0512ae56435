"""Where strangers reach services: `/fn/OWNER/NAME…` on a listener of its own.

It knows no token and no other path, and is off until `services_listen` says
where. A body is read whole before the request takes its turn, and an answer is
written whole after the program has ended, so that a slow caller holds a
connection and its own bytes and never a worker; the bytes of all of them are
bounded together. Slow heads, bodies and readers are cut off.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from urllib.parse import unquote

from aiohttp import hdrs, web

from xsc.base import errors, limits
from xsc.base.limits import KIB, MIB, OUTPUT_BYTES_MAX, SMALL_BODIES_BYTES, STDIN_BYTES_MAX
from xsc.base.room import Hold, Room
from xsc.compute.deployments import rules, wagi
from xsc.compute.deployments.holder import Served
from xsc.net.transport import addresses, bounds, http
from xsc.net.transport.port import Buffer
from xsc.node.build import Node

SERVICE_CONNECTIONS_AN_ADDRESS_MAX = 256
SERVICE_REQUESTS_AN_ADDRESS_MAX = 48
"""Requests from one source that run, or wait for their turn, at once."""
SERVICE_REQUESTS_MAX = 64 * limits.SERVICE_CONNECTIONS_MAX
"""Of all sources: a run goes on where its caller has gone. More are refused."""
SERVICE_HEADER_BYTES_MAX = 16 * KIB
SERVICE_HEADERS_MAX = 128
SERVICE_BODIES_BYTES_MAX = 160 * MIB
"""Bodies of requests and answers that are in memory at once; counted as they arrive."""
SERVICE_BODIES_AN_ADDRESS_BYTES_MAX = 48 * MIB
"""The same, of one source."""
SERVICE_ANSWER_BYTES_A_SECOND_MIN = 64 * KIB
"""An answer that is read slower is given up."""
assert SERVICE_BODIES_AN_ADDRESS_BYTES_MAX >= STDIN_BYTES_MAX + OUTPUT_BYTES_MAX
assert SERVICE_BODIES_BYTES_MAX >= 3 * SERVICE_BODIES_AN_ADDRESS_BYTES_MAX + SMALL_BODIES_BYTES

PIECE_BYTES = 64 * KIB
"""Read at once."""
_SANDBOX = (
    "sandbox allow-downloads allow-forms allow-modals allow-popups "
    "allow-popups-to-escape-sandbox allow-scripts"
)
CONTAINED = (("Content-Security-Policy", _SANDBOX), ("X-Content-Type-Options", "nosniff"))
"""What every answer says: to a browser, each page is an origin of its own, and gets at nothing of
the pages of other services, nor they at it. Of several policies the strictest of each holds."""
_BUSY = "the bodies of requests to this node take up their room already"
_MANY = "too many requests from there are under way already"


class _Refused(Exception):
    """The request is answered with a fault."""

    def __init__(self, status: int, reason: str, *, retry_after_s: int = 0) -> None:
        super().__init__(reason)
        self.answer = rules.fault_answer(status, reason, retry_after_s=retry_after_s)


class ServiceListener(http.Server):
    """Serves the services that a node holds.

    Args:
        node: whose they are.
        progress_ms: the window in which a body must bring what is due, and how long a head
            may take in all.
        room: for all bodies together; that of `limits` where none is given.
        connections_max: bound of connections.
    """

    def __init__(
        self,
        node: Node,
        *,
        progress_ms: int = limits.NO_PROGRESS_MS,
        room: Room | None = None,
        connections_max: int = limits.SERVICE_CONNECTIONS_MAX,
    ) -> None:
        self._node = node
        self._progress_ms = progress_ms
        share = min(SERVICE_CONNECTIONS_AN_ADDRESS_MAX, connections_max)
        super().__init__(
            self._serve,
            bounds.Gate(most=connections_max, share=share, idle_ms=progress_ms),
            cancel=True,
            max_line_size=SERVICE_HEADER_BYTES_MAX,
            max_field_size=SERVICE_HEADER_BYTES_MAX,
            max_headers=SERVICE_HEADERS_MAX,
            read_bufsize=PIECE_BYTES,
        )
        self._room = room or Room(
            SERVICE_BODIES_BYTES_MAX,
            SERVICE_BODIES_AN_ADDRESS_BYTES_MAX,
            small=limits.SMALL_BODIES_BYTES,
        )
        self._requests = Room(SERVICE_REQUESTS_MAX, SERVICE_REQUESTS_AN_ADDRESS_MAX)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        source = addresses.source_of(request.remote or "")
        held = Hold(self._room, source)
        request_id = ""
        try:
            served = await self._served(request, source)
            request_id = served.request_id
            if not held.take(len(served.response.body)):
                raise _Refused(503, _BUSY, retry_after_s=1)
        except _Refused as refused:
            served = Served(refused.answer, request_id)
        except errors.FrameInvalid as fault:
            served = Served(rules.fault_answer(408, f"the request was given up: {fault.message}"))
        try:
            return await self._write(request, served)
        finally:
            held.give()

    async def _served(self, request: web.BaseRequest, source: str) -> Served:
        """Have a request answered; its body keeps its room, and it its place, until it has ended.

        Raises:
            _Refused: it is for no service here, or too large, or there is no room for it now.
            FrameInvalid: its body comes too slowly, or breaks off.
        """
        owner, name, asked = self._asked(request)
        held = Hold(self._room, source)
        with ExitStack() as taken:
            taken.callback(held.give)
            body = await self._body(request, held)
            if not self._requests.take(source, 1):
                raise _Refused(503, _MANY, retry_after_s=1)
            taken.callback(self._requests.give, source, 1)
            # It goes on where the caller goes away, and only its end gives this back.
            done = taken.pop_all().close
        asked = replace(asked, body=body)
        return await self._node.services.holder.answer(owner, name, asked, done=done)

    def _asked(self, request: web.BaseRequest) -> tuple[bytes, str, wagi.Request]:
        """Return owner, name and request.

        Raises:
            _Refused: it is for no service that is held here.
        """
        size = sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
        if size > SERVICE_HEADER_BYTES_MAX:
            raise _Refused(431, f"the head is bounded to {SERVICE_HEADER_BYTES_MAX} bytes")
        raw, _, query = request.raw_path.partition("?")
        parts = raw.split("/", 4)
        if len(parts) < 4 or parts[:2] != ["", "fn"] or not parts[2] or not parts[3]:
            raise _Refused(404, "a service is at /fn/OWNER/NAME")
        try:
            owner = self._node.find(unquote(parts[2]))
        except errors.PeerUnknown:
            owner = b""
        except errors.ArgumentInvalid as fault:
            raise _Refused(404, f"{fault.message}: {fault.hint}") from None
        name = parts[3]
        if not self._node.services.holder.holds(owner, name):
            raise _Refused(404, "there is no such service here")
        if request.method not in wagi.METHODS:
            raise _Refused(405, f"a service takes {', '.join(wagi.METHODS)}")
        raw_path = raw[len("/".join(parts[:4])) :]
        peer = request.transport.get_extra_info("peername") if request.transport else None
        return (
            owner,
            name,
            wagi.Request(
                method=request.method,
                route="/".join(parts[:4]),
                raw_path=raw_path,
                path=unquote(raw_path, errors="replace"),
                query=query,
                headers=list(request.headers.items()),
                remote=str(peer[0]) if peer else "",
                version=f"HTTP/{request.version.major}.{request.version.minor}",
            ),
        )

    async def _body(self, request: web.BaseRequest, held: Hold) -> bytes:
        """Return the body, whole, whether its length was announced or not.

        Raises:
            _Refused: it is too large, or there is no room for it now.
            FrameInvalid: it comes too slowly, or breaks off.
        """
        if (request.content_length or 0) > limits.STDIN_BYTES_MAX:
            raise _Refused(413, f"a body is bounded to {limits.STDIN_BYTES_MAX} bytes")
        await http.say_continue(request)
        come = 0

        def take(piece: Buffer) -> None:
            nonlocal come
            come += len(piece)
            if come > limits.STDIN_BYTES_MAX:
                raise _Refused(413, f"a body is bounded to {limits.STDIN_BYTES_MAX} bytes")
            if not held.take(len(piece)):
                raise _Refused(503, _BUSY, retry_after_s=1)

        return bytes(await bounds.read_body(request.content, None, self._progress_ms, take))

    async def _write(self, request: web.BaseRequest, served: Served) -> web.StreamResponse:
        told = served.response
        response = web.Response(status=told.status)
        for name, value in told.headers:
            response.headers.add(name, value)
        for name, value in CONTAINED:
            response.headers.add(name, value)
        if served.request_id:
            response.headers["XSC-Request-Id"] = served.request_id
        if told.status == 405:
            response.headers.setdefault(hdrs.ALLOW, ", ".join(wagi.METHODS))
        rate = SERVICE_ANSWER_BYTES_A_SECOND_MIN
        return await bounds.write_answer(request, response, [told.body], self._progress_ms, rate)
