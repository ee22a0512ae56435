"""A load generator: prepared requests over some connections at once, in one thread.

Python's own HTTP clients take longer for a request than what is measured here,
and threads more still. This one sends bytes that were made before, reads up to
the announced length, and leaves all looking at answers until after the clock
has stopped.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)


@dataclass(slots=True)
class Run:
    """What came of one round."""

    seconds: float
    cpu_of: dict[int, float]
    """Processor time of each watched process, by its id."""
    own_cpu: float
    """Of this one."""
    delays: list[float]
    answers: list[bytes] = field(repr=False)
    """The bodies. Answers other than 200 and 201 end the round with an error."""

    @property
    def cpu_seconds(self) -> float:
        """Of the watched processes and this one, together."""
        return sum(self.cpu_of.values()) + self.own_cpu


@dataclass(slots=True)
class _Line:
    sock: socket.socket
    begun: float = 0.0
    got: bytes = b""
    wanted: int = 0


def request(
    host: str, path: str, body: bytes, token: str = "", fields: Sequence[tuple[str, str]] = ()
) -> bytes:
    """Return the bytes of a POST."""
    proof = f"Authorization: Bearer {token}\r\n" if token else ""
    proof += "".join(f"{name}: {value}\r\n" for name, value in fields)
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{proof}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def cpu_of(pids: list[int]) -> dict[int, float]:
    """Return the processor time that each of these processes has used so far, in seconds."""
    return {
        pid: sum(
            int((task / "schedstat").read_text().split()[0])
            for task in Path(f"/proc/{pid}/task").iterdir()
        )
        / 1e9
        for pid in pids
    }


def drive(
    place: tuple[str, int], raws: Sequence[bytes], count: int, flight: int, pids: list[int]
) -> Run:
    """Send requests, one after the other and from the first again, until there were `count`.

    Args:
        place: where to.
        raws: the requests; one may be enough.
        count: how many to send.
        flight: how many of them at once.
        pids: the processes to watch.
    """
    lines = []
    with selectors.DefaultSelector() as selector:
        for _ in range(min(flight, count)):
            sock = socket.create_connection(place)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line = _Line(sock)
            lines.append(line)
            selector.register(sock, selectors.EVENT_READ, line)
        delays: list[float] = []
        answers: list[bytes] = []
        before, own, begun = cpu_of(pids), time.process_time(), time.perf_counter()
        sent = 0
        for line in lines:
            line.begun = time.perf_counter()
            line.sock.sendall(raws[sent % len(raws)])
            sent += 1
        while len(answers) < count:
            for key, _ in selector.select(60):
                line = key.data
                chunk = line.sock.recv(65536)
                if not chunk:
                    raise RuntimeError(f"it hung up after {line.got[:200]!r}")
                line.got += chunk
                if not line.wanted:
                    end = line.got.find(b"\r\n\r\n")
                    length = LENGTH.search(line.got, 0, end + 2) if end >= 0 else None
                    if length is None:
                        continue
                    if not line.got.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
                        raise RuntimeError(f"it answered {line.got[:600]!r}")
                    line.wanted = end + 4 + int(length[1])
                if len(line.got) < line.wanted:
                    continue
                now = time.perf_counter()
                delays.append(now - line.begun)
                answers.append(line.got)
                line.got, line.wanted = b"", 0
                if sent < count:
                    line.begun = now
                    line.sock.sendall(raws[sent % len(raws)])
                    sent += 1
        took = time.perf_counter() - begun
        own = time.process_time() - own
        spent = {pid: used - before[pid] for pid, used in cpu_of(pids).items()}
    for line in lines:
        line.sock.close()
    return Run(took, spent, own, delays, [answer.partition(b"\r\n\r\n")[2] for answer in answers])
