"""How a process on this machine talks to the node of a home: HTTP over loopback.

Synchronous, on `http.client`: a command line that imports an asynchronous
client starts four times slower. One `Core` may be used by
many threads: each call has a connection to itself, which is kept for the next
one where the answer was read to its end.

What the node refuses comes back as the error it raised there; a node that is
absent, silent or breaks off is `NodeUnreachable`. So is whoever listens where it was:
each connection begins with a proof (`xsc.api.proof`), and the token is shown after it.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import socket
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import urlsplit

from xsc import api
from xsc.api import proof, ranges, serial
from xsc.api.endpoint import Endpoint, written
from xsc.base.errors import ArgumentInvalid, HomeInvalid, NodeUnreachable, XscError, from_code
from xsc.base.progress import Progress, ignore_progress

BLOCK_BYTES = 1024 * 1024
"""Unit of uploads and downloads, and all that they keep in memory."""
SOCKET_BYTES = 512 * 1024
"""Held by the system for a download: what a client that is killed has not read is lost."""
CONNECT_TIMEOUT_S = 5.0
PROOF_TIMEOUT_S = 10.0
"""For the proof that begins a connection, which asks nobody else: a stopped node is silent."""
ANSWER_TIMEOUT_S = 120.0
"""Without a byte in either direction. A put or a settlement waits for several peers in turn."""
EVENTS_TIMEOUT_S = 30.0
"""Without a byte of a stream of events: a node sends some every 5 s."""
KEPT_CONNECTIONS_MAX = 32
KEPT_S = 10.0
"""A connection unused for longer is not used again: the node closes it after 75 s."""
PROOF_BYTES_MAX = 4096
"""Of an answer to a challenge."""
WORD_CHARS_MAX = 8000
"""Of a path with its query, or a header: what HTTP servers take."""
_NO_NODE = "what answers at the node's address is no XSC node"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

Asked = Endpoint[Any, Any]
Document = dict[str, Any]
"""A JSON object of the API."""


def _written(
    endpoint: Asked, said: Mapping[str, Any], parts: Sequence[bytes] = ()
) -> tuple[str, Mapping[str, str], Sequence[bytes]]:
    """Return the path, the headers and the body of a request.

    Raises:
        ArgumentInvalid: a text in it is none, or too long.
    """
    try:
        path, headers, document = written(endpoint, endpoint.request(**said))
        head = serial.to_text(document).encode() if endpoint.has_json else b""
    except UnicodeEncodeError:
        raise ArgumentInvalid("what is given is not Unicode text") from None
    if max(map(len, (path, *headers.values()))) > WORD_CHARS_MAX:
        raise ArgumentInvalid("what is given is longer than any name, id or capability")
    if endpoint.takes == "framed":
        return path, headers, [len(head).to_bytes(4, "big"), head, *parts]
    return path, headers, [head, *parts]


def default_home() -> Path:
    """Return the home that is meant where none is named: XSC_HOME, or the user's data directory."""
    if named := os.environ.get("XSC_HOME"):
        return Path(named).expanduser().absolute()
    from platformdirs import user_data_path  # noqa: PLC0415 - most calls name their home

    return user_data_path("xsc")


def start_command(home: Path) -> str:
    """Return the command that starts the node of a home, for hints."""
    if home == default_home():
        return "xsc node start"
    return f"xsc --home {shlex.quote(str(home))} node start"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the API of a node listens, and what it wants to see."""

    host: str
    port: int
    token: str


def find_place(home: Path) -> Place:
    """Return where the node of a home listens, by the files that it keeps there.

    Raises:
        NodeUnreachable: no node runs there.
        HomeInvalid: there is no home, or its files cannot be read or say something else.
    """
    try:
        url = json.loads((home / "api.json").read_text(encoding="utf-8"))["url"]
        token = (home / "api.token").read_text(encoding="ascii").strip()
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if parts.scheme != "http" or host not in _LOOPBACK or not port or not token.isalnum():
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        # `glob` finds nothing where the directory may not be listed.
        may_start = home.is_dir() and (not any(home.glob("*")) or (home / "format").exists())
        if not may_start and home != default_home():
            raise HomeInvalid(f"there is no XSC home at {home}", hint="check --home") from None
        raise NodeUnreachable(
            f"no node runs at {home}", hint=f"start it with `{start_command(home)}`"
        ) from None
    except OSError as fault:
        raise HomeInvalid(
            f"the home {home} cannot be read: {fault.strerror}",
            hint="the command line must run as the user who runs the node",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise HomeInvalid(
            f"{home / 'api.json'} is damaged", hint=f"start the node anew: `{start_command(home)}`"
        ) from None
    return Place(host, port, token)


class Core:
    """Calls to the node of one home."""

    def __init__(
        self, home: Path | None = None, *, trace: Callable[[str], None] | None = None
    ) -> None:
        self.home = default_home() if home is None else home
        self._trace = trace
        self._kept: list[_Connection] = []
        self._finish = weakref.finalize(self, _close_all, self._kept)

    def close(self) -> None:
        """Close the connections that are kept; the next call opens a new one."""
        _close_all(self._kept)

    def alive(self) -> bool:
        """Say whether a node runs at the home: it has proved that it is the one.

        Raises:
            HomeInvalid: as `find_place`, where something stands there.
        """
        with suppress(PermissionError):  # which is said below
            if not (self.home / "api.json").exists():
                return False
        try:
            self._open(CONNECT_TIMEOUT_S).close()
        except NodeUnreachable:
            return False
        return True

    def ask(
        self,
        endpoint: Asked,
        /,
        *parts: bytes,
        timeout_s: float = ANSWER_TIMEOUT_S,
        **said: Any,  # noqa: ANN401
    ) -> Document:
        """Return the JSON answer to a request.

        Args:
            endpoint: what is asked.
            parts: bytes in memory that follow the request.
            timeout_s: without a byte in either direction.
            said: the fields of the request; what is None is left out.

        Raises:
            ArgumentInvalid: a text in it is none: a shell hands over whatever bytes it is given.
            NodeUnreachable: no node, or no whole answer from it.
            XscError: what the node raised.
        """
        connection = self._sent(endpoint, said, parts, timeout_s, keep=True)
        try:
            return connection.document()
        finally:
            if connection.reusable and len(self._kept) < KEPT_CONNECTIONS_MAX:
                connection.since = time.monotonic()
                self._kept.append(connection)
            else:
                connection.close()

    def upload(
        self,
        endpoint: Asked,
        source: BinaryIO,
        progress: Progress = ignore_progress,
        /,
        **said: Any,  # noqa: ANN401
    ) -> Document:
        """Return the JSON answer to a request that a stream follows, read block by block.

        One that ends within a block goes like any small request, on a kept connection.

        An answer that comes before the end of the stream, because the node
        refuses it, ends the upload.

        Raises:
            ArgumentInvalid: the stream cannot be read.
            NodeUnreachable, XscError: as `ask`.
        """
        block = _read_block(source)
        if len(block) < BLOCK_BYTES:
            rest = _read_block(source)
            if not rest:
                # All there is: with its length known, the connection stays for the next call.
                document = self.ask(endpoint, block, **said)
                progress(len(block))
                return document
            block += rest
        path, headers, _ = _written(endpoint, said)
        fields = {**headers, "Transfer-Encoding": "chunked"}
        with closing(self._request(endpoint.method, path, fields, ANSWER_TIMEOUT_S)) as connection:
            while connection.push(b"%x\r\n%b\r\n" % (len(block), block)) and block:
                progress(len(block))
                block = _read_block(source)
            return connection.document()

    def download(self, endpoint: Asked, /, **said: Any) -> Download:  # noqa: ANN401
        """Return an answer of bytes as a stream, to be used in a `with`.

        Raises:
            NodeUnreachable, XscError: as `ask`.
        """
        connection = self._sent(endpoint, said, (), ANSWER_TIMEOUT_S)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        return Download(connection, self)

    def events(
        self,
        endpoint: Asked,
        /,
        *parts: bytes,
        timeout_s: float = EVENTS_TIMEOUT_S,
        **said: Any,  # noqa: ANN401
    ) -> Events:
        """Return the documents of an answer as they come, to be used in a `with`.

        Raises:
            NodeUnreachable, XscError: as `ask`.
        """
        return Events(self._sent(endpoint, said, parts, timeout_s))

    def _sent(
        self,
        endpoint: Asked,
        said: Mapping[str, Any],
        parts: Sequence[bytes],
        timeout_s: float,
        *,
        keep: bool = False,
    ) -> _Connection:
        """Return the connection on which a request was sent, as far as the node would have it."""
        path, headers, body = _written(endpoint, said, parts)
        fields = {**headers, "Content-Length": str(sum(map(len, body)))}
        connection = self._request(endpoint.method, path, fields, timeout_s, keep=keep)
        try:
            connection.whole = all(connection.push(part) for part in body)
        except BaseException:
            connection.close()
            raise
        return connection

    def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        timeout_s: float,
        *,
        keep: bool = False,
    ) -> _Connection:
        connection = (self._take() if keep else None) or self._open(timeout_s)
        connection.sock.settimeout(timeout_s)
        connection.timeout_s = timeout_s
        if self._trace is not None:
            self._trace(f"{method} http://{connection.host}:{connection.port}{path}")
        connection.putrequest(method, path, skip_accept_encoding=True)
        connection.putheader("Authorization", f"Bearer {connection.token}")
        if not keep:
            connection.putheader("Connection", "close")
        for name, value in headers.items():
            connection.putheader(name, value)
        with suppress(ConnectionError):  # a node that is gone shows when its answer is read
            connection.endheaders()
        return connection

    def _take(self) -> _Connection | None:
        """Return a kept connection that the node has not closed."""
        while self._kept:
            try:
                connection = self._kept.pop()
            except IndexError:  # another thread took the last one
                return None
            idle_s = time.monotonic() - connection.since
            if idle_s < KEPT_S and not _ready(connection.sock, select.POLLIN, 0):
                return connection
            connection.close()
        return None

    def _open(self, timeout_s: float) -> _Connection:
        """Return a connection whose other end has proved that it is the node of the home.

        Raises:
            NodeUnreachable: it is somebody else, or silent.
        """
        place = find_place(self.home)
        connection = _Connection(place.host, place.port, timeout=CONNECT_TIMEOUT_S)
        connection.token = place.token
        try:
            connection.connect()
        except OSError:
            raise NodeUnreachable(
                f"the node of {self.home} does not answer: it has stopped or was killed",
                hint=f"start it with `{start_command(self.home)}`",
            ) from None
        connection.timeout_s = min(timeout_s, PROOF_TIMEOUT_S)
        connection.sock.settimeout(connection.timeout_s)
        try:
            proven = connection.is_node()
        except TimeoutError:
            connection.close()
            raise _silent(connection.timeout_s) from None
        except (ConnectionError, HTTPException, ValueError, KeyError, TypeError):
            proven = False
        if not proven:
            connection.close()
            raise NodeUnreachable(
                f"what answers at the address of the node of {self.home} is not that node",
                hint=f"the node has stopped or was killed: `{start_command(self.home)}`",
            )
        return connection


def _close_all(kept: list[_Connection]) -> None:
    while kept:
        kept.pop().close()


def _ready(sock: socket.socket, events: int, timeout_s: float) -> int:
    """Return which of some events came on a connection in time, errors and its end with them."""
    poll = select.poll()
    poll.register(sock, events)
    return sum(found for _, found in poll.poll(timeout_s * 1000))


def _read_block(source: BinaryIO) -> bytes:
    try:
        return source.read(BLOCK_BYTES)
    except OSError as fault:
        raise ArgumentInvalid(f"what should be stored cannot be read: {fault.strerror}") from None


class _Connection(HTTPConnection):
    """A connection to the node, and the request on it."""

    token = ""
    """Shown with each request."""
    since = 0.0
    """When its last answer was read to the end."""
    timeout_s = CONNECT_TIMEOUT_S
    whole = True
    """All of the request was sent."""
    reusable = False
    """The answer was read to its end, and the node goes on listening."""

    def is_node(self) -> bool:
        """Say whether the other end proves that it has the token, which it is not shown before."""
        challenge = os.urandom(proof.CHALLENGE_BYTES).hex().encode()
        head = f"POST {proof.PATH} HTTP/1.1\r\nHost: {self.host}\r\nContent-Length: "
        self.sock.sendall(b"%b%d\r\n\r\n%b" % (head.encode(), len(challenge), challenge))
        answer = HTTPResponse(self.sock, method="POST")
        answer.begin()
        given = json.loads(answer.read(PROOF_BYTES_MAX))["proof"]
        return proof.is_proof(given, self.token, self.port, challenge)

    def push(self, data: bytes) -> bool:
        """Send bytes; return False, with some unsent, once the node has answered or hung up."""
        rest = memoryview(data)
        while rest:
            ready = _ready(self.sock, select.POLLIN | select.POLLOUT, self.timeout_s)
            if not ready:
                raise _silent(self.timeout_s)
            if ready != select.POLLOUT:
                return False
            try:
                rest = rest[self.sock.send(rest) :]
            except ConnectionError:
                return False
        return True

    def answered(self) -> HTTPResponse:
        """Return the response once its head is there.

        Raises:
            NodeUnreachable: it does not come, or is no HTTP.
            XscError: it is a problem document.
        """
        try:
            response = self.getresponse()
            if response.status < 400:
                return response
            body = response.read()
        except TimeoutError:
            raise _silent(self.timeout_s) from None
        except (OSError, HTTPException):
            raise NodeUnreachable(
                "the node broke off the connection before it answered",
                hint="see the node's log, and `xsc node status`",
            ) from None
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        raise problem_of(document, response.status)

    def document(self) -> Document:
        """Return the JSON object that the node answers.

        Raises:
            NodeUnreachable, XscError: as `answered`.
        """
        self.reusable = False
        response = self.answered()
        with self.reading():
            stays = not response.will_close
            document = _object(response.read())
            self.reusable = self.whole and stays and response.isclosed()
        return document

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raise what is wrong with an answer as the error that it is for people."""
        try:
            yield
        except TimeoutError:
            raise _silent(self.timeout_s) from None
        except (OSError, HTTPException):
            raise NodeUnreachable("the node broke off its answer") from None
        except (ValueError, TypeError):
            raise NodeUnreachable(_NO_NODE) from None


def _object(raw: bytes) -> Document:
    document = json.loads(raw)
    if not isinstance(document, dict):
        raise TypeError
    return document


def _silent(timeout_s: float) -> NodeUnreachable:
    return NodeUnreachable(f"the node was silent for {int(timeout_s)} seconds")


def problem_of(document: Any, status: int = 0) -> XscError:  # noqa: ANN401
    """Return the error that a problem document stands for, which came with an HTTP status."""
    try:
        return from_code(
            str(document["code"]),
            str(document["detail"]),
            str(document["hint"]),
            retry_after_s=int(document.get("retry_after_s", 0)),
        )
    except (ValueError, KeyError, TypeError):
        return NodeUnreachable(f"{_NO_NODE} (HTTP status {status})")


class _Stream:
    """An answer that is read as it arrives, to be used in a `with`."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._socket: socket.socket = connection.sock
        """`http.client` forgets it where nothing comes after the answer."""
        try:
            self._response = connection.answered()
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what has not come yet."""
        self._response.close()
        self._connection.close()


class Download(_Stream):
    """The body of a response, as it arrives."""

    def __init__(self, connection: _Connection, core: Core) -> None:
        super().__init__(connection)
        self._core = core
        length = self._response.getheader("Content-Length", "")
        self.size_bytes: int | None = int(length) if length.isdigit() else None
        """How many bytes come."""
        self.part = ranges.read_content_range(self._response.getheader("Content-Range", ""))
        """Where they begin and how long the whole is, where a range was asked for."""
        self._request_id = self._response.getheader("XSC-Request-Id", "")

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body (`blocks`)."""
        return self.blocks()

    def blocks(self, progress: Progress = ignore_progress) -> Iterator[bytes]:
        """Yield the body; it ends without an error only if all of it came.

        Raises:
            NodeUnreachable: the node broke off and cannot say why.
            XscError: the node broke off, and this is why.
        """
        received, whole = 0, True
        while True:
            try:
                block = self._response.read(BLOCK_BYTES)
            except (OSError, HTTPException):
                block, whole = b"", False
            if not block:
                break
            received += len(block)
            yield block
            progress(len(block))
        # Chunks say by themselves where they end; all else must have told its length.
        if self.size_bytes is not None or not self._response.chunked:
            whole = received == self.size_bytes
        if not whole:
            raise self._why(received)

    def _why(self, received: int) -> XscError:
        total = "" if self.size_bytes is None else f" of {self.size_bytes}"
        lost = NodeUnreachable(
            f"the node broke off after {received}{total} bytes",
            hint="see the node's log, and try again",
        )
        if not self._request_id.isalnum():
            return lost
        try:
            found = self._core.ask(api.objects.FAULT, id=self._request_id)
        except XscError:
            return lost
        return problem_of(found)


class Events(_Stream):
    """JSON documents of a node as they come, one a line or as server-sent events, until `close`."""

    _closed = False

    def close(self) -> None:
        """End the stream, also while another thread waits for its next document."""
        self._closed = True
        with suppress(OSError):  # the node has closed it
            self._socket.shutdown(socket.SHUT_RDWR)
        super().close()

    def __iter__(self) -> Iterator[Document]:
        """Yield the documents.

        Raises:
            NodeUnreachable: the node ended the stream, was silent, or is no node.
        """
        try:
            with self._connection.reading():
                for line in self._response:
                    if (text := line.removeprefix(b"data: ")).startswith(b"{"):
                        yield _object(text)
        except (NodeUnreachable, AttributeError):
            # AttributeError: `close` took the stream away from `http.client` within a read.
            if not self._closed:
                raise
        if not self._closed:
            raise NodeUnreachable("the node has stopped", hint="see the node's log")
