"""64 calls in flight at one provider, of four customers: how many, how evenly, and none refused.

Each customer keeps 16 calls in flight, of a function that takes next to nothing and of one that
runs for about a second. The same provider is measured with 4 of each, 16 together, for comparison.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import load
from benchmarks.size import least
from xsc.client.core import find_place

WASM: Final = Path(__file__).parent.parent / "fixtures" / "wasm"
PROVIDER: Final = "node-5"
CUSTOMERS: Final = 4


@dataclass(slots=True)
class _Customer:
    place: tuple[str, int]
    raw: bytes
    served: int = 0
    refused: int = 0


@dataclass(slots=True)
class _Line:
    sock: socket.socket
    customer: _Customer
    got: bytes = b""


def _customers(homes: Sequence[Path], module: str, function: str, *numbers: str) -> list[_Customer]:
    """Return who calls a function at the provider, which are other nodes."""
    code = (WASM / module).read_bytes()
    head = {"mode": "invoke", "function": function, "arguments": list(numbers), "on": PROVIDER}
    text = json.dumps(head | {"module_bytes": len(code), "timeout_ms": 60_000}).encode()
    body = len(text).to_bytes(4, "big") + text + code
    made = []
    for home in homes[:CUSTOMERS]:
        place = find_place(home)
        raw = load.request(place.host, "/v1/jobs", body, place.token)
        made.append(_Customer((place.host, place.port), raw))
    return made


def measure(customers: list[_Customer], each: int, seconds: float) -> tuple[float, list[int]]:
    """Keep so many calls of each in flight for so long; return their rate, and how many of each.

    Those that are under way at the end are waited for, and not counted.
    """
    counted: list[int] = []
    with selectors.DefaultSelector() as selector:
        waiting = 0
        for customer in customers * each:
            line = _Line(socket.create_connection(customer.place), customer)
            selector.register(line.sock, selectors.EVENT_READ, line)
            line.sock.sendall(customer.raw)
            waiting += 1
        begun = time.perf_counter()
        while waiting:
            for key, _ in selector.select(1):
                line = key.data
                line.got += line.sock.recv(65536)
                head, _, body = line.got.partition(b"\r\n\r\n")
                length = load.LENGTH.search(head + b"\r\n")
                if length is None or len(body) < int(length[1]):
                    continue
                good = head.startswith(b"HTTP/1.1 200")
                line.customer.served += good
                line.customer.refused += not good
                line.got = b""
                if counted:
                    selector.unregister(line.sock)
                    line.sock.close()
                    waiting -= 1
                else:
                    line.sock.sendall(line.customer.raw)
            took = time.perf_counter() - begun
            if not counted and took >= seconds:
                counted = [one.served for one in customers]
                rate = sum(counted) / took
    return rate, counted


def run(homes: Sequence[Path], quick: bool) -> None:
    """Measure, and print."""
    for label, seconds, call in (
        ("small calls", 4 if quick else 10, ("add.wasm", "add", "1", "2")),
        ("runs of a second", 20 if quick else 60, ("fib.wasm", "fib", str(least(36, 20)))),
    ):
        few, many = _customers(homes, *call), _customers(homes, *call)
        measure(_customers(homes, *call), 1, 0)  # leases and code are there
        before, _ = measure(few, 4, least(seconds, 1))
        rate, served = measure(many, 16, least(seconds, 1))
        refused = sum(one.refused for one in (*few, *many))
        spread = 100 * (max(served) - min(served)) / max(1, *served)
        share = rate / before if before else 0
        print(
            f"  {label:17s} 64 in flight, 4 customers  {rate:6.1f}/s ({share:.2f} of 16 in flight)"
            f"   {refused} refused   {min(served)} to {max(served)} each ({spread:.0f} %)"
        )
