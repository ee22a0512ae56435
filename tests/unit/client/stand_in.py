"""A tiny real HTTP server that speaks the node's API, as a test tells it to."""

from __future__ import annotations

import json
import re
import socket
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from xsc.api import proof
from xsc.api.ranges import content_range, from_header

TOKEN = "token7"
_WORK = re.compile("[?&]work=[0-9a-f]+$")
"""By what long work is watched: another id each time."""


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    answer: Answerer

    def json(self):
        return json.loads(self.body)

    def job(self):
        """The JSON of a job, and the blobs behind it."""
        size = int.from_bytes(self.body[:4], "big")
        return json.loads(self.body[4 : 4 + size]), self.body[4 + size :]


def proves(connection: socket.socket, token: str) -> None:
    """Answer the challenge on a connection that a test serves by itself."""
    challenge = connection.recv(65536)[-2 * proof.CHALLENGE_BYTES :]
    port = connection.getsockname()[1]
    body = json.dumps({"proof": proof.proof_of(token, port, challenge)}).encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


Route = Callable[[Request], None]


@dataclass
class StandIn:
    home: Path
    routes: dict[tuple[str, str], Route] = field(default_factory=dict)
    early: dict[tuple[str, str], Route] = field(default_factory=dict)
    """Routes that answer before the body is read."""
    requests: list[Request] = field(default_factory=list)
    keeps: bool = False
    """Go on listening on a connection after an answer."""
    ports: list[int] = field(default_factory=list)
    """The client's port of each request."""

    def __post_init__(self) -> None:
        stand_in = self

        class Handler(Answerer):
            owner = stand_in

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.home.mkdir(exist_ok=True)
        self.publish(f"http://127.0.0.1:{self.server.server_port}")

    def publish(self, url: str, token: str = TOKEN) -> None:
        (self.home / "api.token").write_text(token + "\n")
        (self.home / "api.json").write_text(json.dumps({"url": url}))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answers(self, method: str, path: str, document: object, status: int = 200) -> None:
        self.routes[method, path] = lambda request: request.answer.document(document, status)

    def runs(self, document: dict) -> None:
        """Show what a program writes, byte by byte and a line each, and then its document."""
        shown = [
            {name: b64encode(bytes([byte])).decode()}
            for name in ("stdout", "stderr")
            for byte in b64decode(document[name])
        ]
        lines = [*shown, {"result": {**document, "stdout": "", "stderr": ""}}]
        body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        self.routes["POST", "/v1/jobs/stream"] = lambda request: request.answer.raw(
            200, {"Content-Length": str(len(body))}, body
        )

    def tells(self, path: str, changes: list[dict]) -> None:
        """Answer with server-sent events, and end."""
        body = b":\n\n" + b"".join(
            b"data: " + json.dumps(change).encode() + b"\n\n" for change in changes
        )
        headers = {"Content-Type": "text/event-stream"}
        self.routes["GET", path] = lambda request: request.answer.raw(200, headers, body)

    def refuses(self, method: str, path: str, code: str, detail: str, hint: str = "") -> None:
        problem = {"code": code, "detail": detail, "hint": hint}
        self.routes[method, path] = lambda request: request.answer.document(problem, 400)

    def streams(self, path: str, content: bytes, *, cut: int | None = None) -> None:
        def route(request: Request) -> None:
            headers = {"Content-Length": str(len(content)), "XSC-Request-Id": "41"}
            request.answer.raw(200, headers, content[:cut])

        self.routes["GET", path] = route

    def serves(self, path: str, content: bytes, *, cut: int | None = None) -> None:
        """Give content and ranges of it, as the node does; break off at byte `cut`."""

        def route(request: Request) -> None:
            headers = {"XSC-Request-Id": "41"}
            start, stop, status = 0, len(content), 200
            if "Range" in request.headers:
                start, stop = from_header(request.headers["Range"], len(content))
                headers["Content-Range"] = content_range(start, stop, len(content))
                status = 206
            headers["Content-Length"] = str(stop - start)
            request.answer.raw(status, headers, content[start : stop if cut is None else cut])

        self.routes["GET", path] = route

    @property
    def last(self) -> Request:
        return self.requests[-1]


class Answerer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: StandIn

    def log_message(self, *_: object) -> None:
        pass

    def raw(self, status: int, headers: dict[str, str], body: bytes) -> None:
        keeps = self.owner.keeps  # once: the test may change it as soon as the answer is sent
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if not keeps:
            self.send_header("Connection", "close")
        self.close_connection = not keeps
        self.end_headers()
        self.wfile.write(body)

    def document(self, document: object, status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.raw(status, {"Content-Length": str(len(body))}, body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _prove(self) -> None:
        """Show that this is the node of the home, as every connection has it begin."""
        port = self.server.server_address[1]
        body = json.dumps({"proof": proof.proof_of(TOKEN, port, self._body())}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _handle(self) -> None:
        if self.path == proof.PATH:
            self._prove()
            return
        place = self.command, self.path
        headers = dict(self.headers.items())
        if place in self.owner.early:
            self.owner.early[place](Request(*place, headers, b"", self))
            while self.rfile.read1(65536):
                pass  # as aiohttp does: what comes still is read and dropped
            return
        try:
            body = self._body()
        except ValueError:  # the client hung up within a chunk
            self.close_connection = True
            return
        request = Request(*place, headers, body, self)
        self.owner.requests.append(request)
        self.owner.ports.append(self.client_address[1])
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            problem = {"code": "unauthorized", "detail": "the API needs the token", "hint": ""}
            self.document(problem, 401)
        elif (where := (place[0], _WORK.sub("", place[1]))) in self.owner.routes:
            self.owner.routes[where](request)
        else:
            problem = {"code": "not_found", "detail": f"there is no {place}", "hint": ""}
            self.document(problem, 404)

    do_GET = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815 - the base class names them
