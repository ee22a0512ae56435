"""Services on a real node: real workers, real connections, the real command line."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from urllib.parse import urlsplit

from tests.e2e.conftest import PROGRAMS

GREET = PROGRAMS / "greet.wasm"


def ask(url: str, path: str = "", *, method: str = "GET", body: bytes | None = None):
    """Return status, fields and body of an answer."""
    parts = urlsplit(url + path)
    connection = HTTPConnection(parts.hostname, parts.port, timeout=60)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request(method, target, body)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def test_a_service_from_deployment_to_its_end(start):
    member, process = start()
    done = member(["compute", "deploy", GREET, "--name", "hello", "--env", "GREETING=Ahoj"])
    assert "services_listen" in done.err
    path = done.line
    assert path.startswith("/fn/")
    member(["compute", "deploy", PROGRAMS / "add.wasm", "--name", "add"]).fails(2, "export_unknown")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)

    # What was deployed outlives a restart; now there is a listener.
    member, _ = start(options="--services-listen 0")
    (row,) = member("compute ls --json").json["services"]
    assert (row["version"], row["state"], row["url"][-len(path) :]) == ("1", "serving", path)
    url = row["url"]
    assert ask(url, "?name=you")[2] == b"Ahoj, you!\n"
    status, fields, body = ask(url, method="POST", body=b"abc")
    assert (status, body) == (200, b"Ahoj, world!\nABC")
    member(["compute", "deploy", GREET, "--name", "hello", "--version", "two"])
    assert ask(url)[2] == b"Hello, world!\n"
    assert member("compute rollback hello").line == url
    assert ask(url)[2] == b"Ahoj, world!\n"

    rows = member("compute logs hello --json").json["requests"]
    assert [each["version"] for each in rows] == ["1", "1", "two", "1"]
    assert rows[1]["request_id"] == fields["XSC-Request-Id"]
    assert f"{rows[-1]['fuel_used']} fuel" in member("compute logs hello -n 1").line
    words = [sys.executable, "-m", "xsc", "--home", str(member.home), "compute", "logs"]
    follows = subprocess.Popen([*words, "hello", "-f", "--json", "-n", "1"], stdout=subprocess.PIPE)
    try:
        assert json.loads(follows.stdout.readline()) == rows[-1]
        ask(url, "/new")
        assert json.loads(follows.stdout.readline())["path"] == "/new"
        follows.send_signal(signal.SIGINT)
        assert follows.wait(20) == 130
    finally:
        follows.kill()
        follows.stdout.close()

    member("compute undeploy hello")
    assert ask(url)[0] == 404
    member("compute logs hello").fails(2, "not_found")


def test_hostile_services_and_callers_trouble_nobody(start):
    member, _ = start(options="--services-listen 0")

    def deploy(module: str, *options: str) -> str:
        return member(["compute", "deploy", PROGRAMS / f"{module}.wasm", *options]).line

    endless = ("--timeout", "300ms", "--fuel", "100000000000")
    loops = deploy("misbehave", "--name", "loops", *endless)
    bad = deploy("misbehave", "--name", "bad", "--fuel", "200000000")
    good = deploy("greet", "--name", "good", "--concurrency", "1")
    # Slowloris: heads and bodies that never end are many, and take no turn.
    place = urlsplit(good)
    slow = [socket.create_connection((place.hostname, place.port)) for _ in range(100)]
    for number, each in enumerate(slow):
        head = f"POST {place.path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        each.sendall(head.encode() if number % 2 else f"{head}\r\nab".encode())
    with ThreadPoolExecutor(2) as pool:
        paths = ("/memory", "/flood", "/head", "/half", "/exit")
        hostile = [pool.submit(ask, loops, "/loop")]
        hostile += [pool.submit(ask, bad, path) for path in paths]
        for _ in range(10):
            assert ask(good, "?name=you")[::2] == (200, b"Hello, you!\n")
        answers = [each.result() for each in hostile]
    for each in slow:
        each.close()
    assert [status for status, *_ in answers] == [504, *(502 for _ in paths)]
    assert all(body.count(b"\n") == 1 for *_, body in answers)
    for _ in range(2):
        assert ask(bad, "/remember")[2] == b"seen 0\n"
    rows = {row["path"]: row for row in member("compute logs bad --json").json["requests"]}
    assert rows["/exit"]["note"] == "something is wrong here\n"
    (looped,) = member("compute logs loops --json").json["requests"]
    assert (looped["trap"], looped["fuel_used"]) == ("time_exceeded", 300 * 4_000_000)
