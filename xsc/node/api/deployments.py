"""Where strangers reach services: `/fn/OWNER/NAME…` on a listener of its own.

It knows no token and no other path, and is off until `services_listen` says
where. A body is read whole before the request takes its turn, and an answer is
written whole after the program has ended, so that a slow caller holds a
connection and its own bytes and never a worker; the bytes of all of them are
bounded together. Slow heads, bodies and readers are cut off.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from urllib.parse import unquote

from aiohttp import hdrs, web

from xsc.base.errors import ArgumentInvalid, FrameInvalid, PeerUnknown
from xsc.base.limits import (
    KIB,
    NO_PROGRESS_MS,
    SERVICE_ANSWER_BYTES_A_SECOND_MIN,
    SERVICE_BODIES_AN_ADDRESS_BYTES_MAX,
    SERVICE_BODIES_BYTES_MAX,
    SERVICE_CONNECTIONS_AN_ADDRESS_MAX,
    SERVICE_CONNECTIONS_MAX,
    SERVICE_HEADER_BYTES_MAX,
    SERVICE_HEADERS_MAX,
    SERVICE_REQUESTS_AN_ADDRESS_MAX,
    SMALL_BODIES_BYTES,
    SMALL_BODY_BYTES_MAX,
    STDIN_BYTES_MAX,
)
from xsc.compute.deployments.holder import Served
from xsc.compute.deployments.rules import ServiceAnswer, fault_answer
from xsc.compute.deployments.wagi import METHODS, Request
from xsc.net.transport.addresses import source_of
from xsc.net.transport.bounds import Gate, Room, read_body, write_answer
from xsc.net.transport.http import Server, say_continue
from xsc.net.transport.port import Buffer
from xsc.node.build import Node

PIECE_BYTES = 64 * KIB
"""Read at once."""
STOP_MS = 10_000
"""How long requests that run may take to end when the node stops."""
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
    """The request is answered before it runs."""

    def __init__(self, answer: ServiceAnswer) -> None:
        super().__init__(answer.reason)
        self.answer = answer


class ServiceListener:
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
        progress_ms: int = NO_PROGRESS_MS,
        room: Room | None = None,
        connections_max: int = SERVICE_CONNECTIONS_MAX,
    ) -> None:
        self._node = node
        self._progress_ms = progress_ms
        share = min(SERVICE_CONNECTIONS_AN_ADDRESS_MAX, connections_max)
        self._gate = Gate(most=connections_max, share=share, idle_ms=progress_ms)
        self._room = room or Room(
            SERVICE_BODIES_BYTES_MAX, SERVICE_BODIES_AN_ADDRESS_BYTES_MAX, small=SMALL_BODIES_BYTES
        )
        self._under_way: Counter[str] = Counter()
        self._server: Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port.

        Raises:
            ConfigInvalid: it is not to be had.
        """
        self._server = Server(
            self._serve,
            self._gate,
            cancel=True,
            max_line_size=SERVICE_HEADER_BYTES_MAX,
            max_field_size=SERVICE_HEADER_BYTES_MAX,
            max_headers=SERVICE_HEADERS_MAX,
            read_bufsize=PIECE_BYTES,
        )
        return await self._server.start(host, port, "services_listen")

    async def stop(self) -> None:
        """Take no more requests, and let those that run end."""
        if self._server is not None:
            await self._server.stop(STOP_MS)
            self._server = None

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        source = source_of(request.remote or "")
        held = _Hold(self._room, source)
        try:
            try:
                owner, name, asked = self._asked(request)
                body = await self._body(request, held)
                served = await self._run(owner, name, replace(asked, body=body), source, held)
                size = len(served.answer.response.body)
                held = _Hold(self._room, source)
                try:
                    held.take(size)
                except _Refused as refused:
                    served = Served(refused.answer, served.request_id)
            except _Refused as refused:
                return await self._write(request, Served(refused.answer), closing=True)
            except FrameInvalid as fault:
                answer = fault_answer(408, f"the request was given up: {fault.message}")
                return await self._write(request, Served(answer), closing=True)
            return await self._write(request, served)
        finally:
            held.give()

    async def _run(
        self, owner: bytes, name: str, asked: Request, source: str, body: _Hold
    ) -> Served:
        """Have a request answered; its body keeps its room, and it its place, until it has ended.

        Raises:
            _Refused: too many from there are under way.
        """
        if self._under_way[source] >= SERVICE_REQUESTS_AN_ADDRESS_MAX:
            raise _Refused(fault_answer(503, _MANY, retry_after_s=1))
        self._under_way[source] += 1
        # It goes on where the caller goes away, and only its end gives this back.
        taken = body.handed_on()

        def done() -> None:
            taken.give()
            self._under_way[source] -= 1
            if not self._under_way[source]:
                del self._under_way[source]

        return await self._node.services.holder.answer(owner, name, asked, done=done)

    def _asked(self, request: web.BaseRequest) -> tuple[bytes, str, Request]:
        """Return owner, name and request.

        Raises:
            _Refused: it is for no service that is held here.
        """
        size = sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
        if size > SERVICE_HEADER_BYTES_MAX:
            raise _Refused(
                fault_answer(431, f"the head is bounded to {SERVICE_HEADER_BYTES_MAX} bytes")
            )
        raw, _, query = request.raw_path.partition("?")
        parts = raw.split("/", 4)
        if len(parts) < 4 or parts[:2] != ["", "fn"] or not parts[2] or not parts[3]:
            raise _Refused(fault_answer(404, "a service is at /fn/OWNER/NAME"))
        try:
            owner = self._node.find(unquote(parts[2]))
        except PeerUnknown:
            owner = b""
        except ArgumentInvalid as fault:
            raise _Refused(fault_answer(404, f"{fault.message}: {fault.hint}")) from None
        name = parts[3]
        if not self._node.services.holder.holds(owner, name):
            raise _Refused(fault_answer(404, "there is no such service here"))
        if request.method not in METHODS:
            answer = fault_answer(405, f"a service takes {', '.join(METHODS)}")
            raise _Refused(answer)
        raw_path = raw[len("/".join(parts[:4])) :]
        peer = request.transport.get_extra_info("peername") if request.transport else None
        return (
            owner,
            name,
            Request(
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

    async def _body(self, request: web.BaseRequest, hold: _Hold) -> bytes:
        """Return the body, whole, whether its length was announced or not.

        Raises:
            _Refused: it is too large, or there is no room for it now.
            FrameInvalid: it comes too slowly, or breaks off.
        """
        if (request.content_length or 0) > STDIN_BYTES_MAX:
            raise _Refused(fault_answer(413, f"a body is bounded to {STDIN_BYTES_MAX} bytes"))
        await say_continue(request)
        come = 0

        def take(piece: Buffer) -> None:
            nonlocal come
            come += len(piece)
            if come > STDIN_BYTES_MAX:
                raise _Refused(fault_answer(413, f"a body is bounded to {STDIN_BYTES_MAX} bytes"))
            hold.take(len(piece))

        return bytes(await read_body(request.content, None, self._progress_ms, take))

    async def _write(
        self, request: web.BaseRequest, served: Served, *, closing: bool = False
    ) -> web.StreamResponse:
        told = served.answer.response
        response = web.Response(status=told.status)
        for name, value in told.headers:
            response.headers.add(name, value)
        for name, value in CONTAINED:
            response.headers.add(name, value)
        if served.request_id:
            response.headers["XSC-Request-Id"] = served.request_id
        if told.status == 405:
            response.headers.setdefault(hdrs.ALLOW, ", ".join(METHODS))
        if closing:
            response.force_close()
        rate = SERVICE_ANSWER_BYTES_A_SECOND_MIN
        return await write_answer(request, response, [told.body], self._progress_ms, rate)


class _Hold:
    """The room that one body has taken."""

    def __init__(self, room: Room, source: str, size_bytes: int = 0) -> None:
        self._room = room
        self._source = source
        self._size = size_bytes

    def take(self, size_bytes: int) -> None:
        """Take more of it.

        Raises:
            _Refused: there is not so much.
        """
        large = self._size + size_bytes > SMALL_BODY_BYTES_MAX
        if not self._room.take(self._source, size_bytes, large=large):
            raise _Refused(fault_answer(503, _BUSY, retry_after_s=1))
        self._size += size_bytes

    def handed_on(self) -> _Hold:
        """Return what holds it from now on instead of this."""
        held, self._size = _Hold(self._room, self._source, self._size), 0
        return held

    def give(self) -> None:
        """Give it back."""
        self._room.give(self._source, self._size)
        self._size = 0
