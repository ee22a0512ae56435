"""The two surfaces of real nodes, under hands that do not keep to the rules.

What the peer surface says to strangers, and that a signed request works once,
is tested case by case in tests/unit/net; here it is whole processes: their
sockets, their clocks, their keys on the disk, and their starts and ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.client import HTTPConnection

import pytest

from tests.e2e.conftest import NODES, Member, wait_for
from xsc.api import status
from xsc.base.encoding import Value
from xsc.base.ids import from_text
from xsc.base.limits import NONCE_BYTES, PEER_BODY_BYTES_MAX, PEER_REQUESTS_IN_FLIGHT_MAX
from xsc.client.calls import Calls
from xsc.identity.keys import KeyPair, network_id
from xsc.net.calls.frame import pack_head
from xsc.net.calls.signing import STAMP_BYTES, sign_request
from xsc.node.home.folder import read_identity

STRANGERS = {
    "code": "unauthorized",
    "title": "unauthorized",
    "status": 401,
    "detail": "only known peers are answered here",
    "hint": "",
    "retryable": False,
    "retry_after_s": 0,
}
METHODS = [
    *("peers.join", "peers.batch", "health.ping", "compute.run", "ledger.propose", "ledger.head"),
    *("market.lease", "market.account", "space.next", "storage.put"),
    *("storage.get", "storage.stat", "storage.find", "storage.delete"),
]
QUICK_S = 5.0
"""Far below every time after which a connection is given up, far above any answer."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return json.loads(self.body)["code"]


@dataclass(frozen=True)
class Surface:
    """One listening address of a node."""

    address: str

    def ask(self, method: str, path: str, body: bytes = b"", headers=None) -> Answer:
        connection = HTTPConnection(self.address, timeout=QUICK_S)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, fields, answer.read())
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        host, port = self.address.split(":")
        return socket.create_connection((host, int(port)), timeout=QUICK_S)

    def is_well(self) -> None:
        answer = self.ask("GET", "/health")
        assert (answer.status, json.loads(answer.body)) == (200, {"status": "ok"})


def place(member: Member) -> dict[str, str]:
    return json.loads((member.home / "api.json").read_text())


def peer_surface(member: Member) -> Surface:
    return Surface(place(member)["peer_url"].removeprefix("http://"))


def api(member: Member) -> Surface:
    return Surface(place(member)["url"].removeprefix("http://"))


def token(member: Member) -> dict[str, str]:
    return {"Authorization": f"Bearer {(member.home / 'api.token').read_text().strip()}"}


@dataclass(frozen=True)
class Signed:
    """A signed request, as somebody on the way could have kept it."""

    path: str
    headers: dict[str, str]
    body: bytes

    def send(self, to: Member) -> Answer:
        return peer_surface(to).ask("POST", self.path, self.body, self.headers)

    def head(self, size: int | None = None) -> bytes:
        """Return the head of the request as it goes over the wire, of a body of that size."""
        size = len(self.body) if size is None else size
        fields = {**self.headers, "Host": "x", "Content-Length": str(size)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.path} HTTP/1.1\r\n{lines}\r\n".encode()


def signed(
    key: KeyPair,
    to: str,
    method: str = "ledger.head",
    header: dict[str, Value] | None = None,
    *,
    network: str = "xsc",
    ahead_ms: int = 0,
) -> Signed:
    head = pack_head({"v": 1} if header is None else header, [])
    path = f"/peer/v1/{method}"
    fields = sign_request(
        key,
        network=network_id(network),
        to=from_text(to),
        method="POST",
        path=path,
        head=head,
        created_ms=time.time_ns() // 1_000_000 + ahead_ms,
        entropy=os.urandom(NONCE_BYTES - STAMP_BYTES),
    )
    return Signed(path, fields, head)


def key_of(member: Member) -> KeyPair:
    return read_identity(member.home)


@pytest.fixture(scope="module", autouse=True)
def quiet(net):
    """What others do wrong is no error of a node, and nothing for its log."""
    logs = [net[index].home / "node.log" for index in range(NODES)]
    before = [len(log.read_bytes()) for log in logs]
    yield
    for log, size in zip(logs, before, strict=True):
        said = log.read_bytes()[size:].decode()
        assert '"level": "error"' not in said
        assert "Traceback" not in said


# Who is not known learns nothing


def test_health_is_open_on_both_surfaces_and_nothing_else(net):
    for surface in (peer_surface(net[1]), api(net[1])):
        answer = surface.ask("GET", "/health")
        assert (answer.status, json.loads(answer.body)) == (200, {"status": "ok"})
        for method, path in (("GET", "/v1"), ("GET", "/v1/status"), ("GET", "/health/x")):
            assert surface.ask(method, path).status == 401


def test_a_stranger_gets_the_same_answer_everywhere(net):
    member, stranger = net[1], KeyPair(os.urandom(32))
    surface, mine = peer_surface(member), member.id
    answers = [surface.ask("POST", f"/peer/v1/{method}", b"body") for method in METHODS]
    answers += [
        surface.ask(method, path)
        for method in ("GET", "PUT", "DELETE", "OPTIONS")
        for path in ("/peer/v1/health.ping", "/peer/v1/no.thing")
    ]
    answers += [
        signed(stranger, mine).send(member),
        signed(stranger, mine, "peers.join", {"secret": os.urandom(15)}).send(member),
        # Signed by a peer, but for another network, or another node.
        signed(key_of(net[2]), mine, network="other").send(member),
        signed(key_of(net[2]), net[3].id).send(member),
    ]
    for answer in answers:
        assert (answer.status, json.loads(answer.body)) == (401, STRANGERS)
        assert set(answer.headers) == {"content-type", "content-length", "server", "date"}
        assert answer.headers["server"] == "xsc"
    assert len({answer.body for answer in answers}) == 1
    assert signed(key_of(net[2]), mine).send(member).status == 200


def test_the_api_gives_one_answer_without_its_token(net):
    surface = api(net[2])
    wrong = [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer " + "a" * 52},
        {"Authorization": token(net[2])["Authorization"].replace("Bearer", "Basic")},
        token(net[3]),
        {"Authorization": b"Bearer \xff\xfe"},
    ]
    paths = ["/v1/status", "/v1/objects", "/v1/nothing", "/v1/peers/node-1/block", "/v1"]
    for method in ("GET", "POST", "DELETE"):
        for path in paths:
            answer = surface.ask(method, path, b"" if method == "GET" else b"{}")
            assert (answer.status, answer.code) == (401, "unauthorized")
    assert len({surface.ask("GET", "/v1/status", b"", given).body for given in wrong}) == 1
    assert surface.ask("GET", "/v1/status", b"", token(net[2])).status == 200
    # Pages want a session, and a token is none.
    assert surface.ask("GET", "/s/aaaa/circle", b"", token(net[2])).status == 401


# What was said once


def test_a_captured_request_works_once_also_over_restarts(start):
    (alice, process), (bob, _) = start("alice"), start("bob")
    assert bob("peer add -", stdin=alice("peer invite").line.encode()).code == 0
    key, to = key_of(bob), alice.id

    def refused() -> None:
        assert [request.send(alice).code for request in captured] == ["replay_refused"] * 3

    # The clock of the last one is ahead: it lies after the next start as well.
    header = {"voucher": None, "book_now": False, "show": False, "less": []}
    captured = [signed(key, to), signed(key, to, "market.account", header)]
    captured.append(signed(key, to, ahead_ms=30_000))
    assert [request.send(alice).status for request in captured] == [200] * 3
    refused()
    process.kill()
    process.wait()
    alice, process = start("alice")
    refused()
    assert signed(key, to, ahead_ms=35_000).send(alice).status == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    alice, _ = start("alice")
    refused()
    assert signed(key, to, ahead_ms=40_000).send(alice).status == 200
    assert signed(key, to, ahead_ms=90_000).send(alice).code == "clock_skewed"


def test_a_blocked_or_removed_peer_is_a_stranger(start):
    (alice, process), (bob, _) = start("alice"), start("bob", "--name bob")
    assert bob("peer add -", stdin=alice("peer invite").line.encode()).code == 0
    key, to = key_of(bob), alice.id

    def refused() -> None:
        for method in ("ledger.head", "space.next", "no.thing"):
            answer = signed(key, to, method).send(alice)
            assert (answer.status, json.loads(answer.body)) == (401, STRANGERS)

    assert signed(key, to).send(alice).status == 200
    assert alice("peer block bob").code == 0
    refused()
    process.kill()
    process.wait()
    alice, _ = start("alice")
    refused()
    # Not even an invitation helps who was blocked.
    bob("peer add -", stdin=alice("peer invite").line.encode()).fails(2, "peer_blocked")
    assert alice("peer rm bob").code == 0
    refused()
    assert bob("peer add -", stdin=alice("peer invite").line.encode()).code == 0
    assert signed(key, to).send(alice).status == 200


# Hands that hold on


BAD = [
    pytest.param(os.urandom(4_000) + b"\r\n\r\n", id="noise"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), id="tls"),
    pytest.param(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="long path"),
    pytest.param(b"GET /health HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", id="long field"),
    pytest.param(b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 100_000 + b"\r\n", id="many fields"),
    pytest.param(
        b"POST /peer/v1/storage.put HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        % (PEER_BODY_BYTES_MAX + 1)
        + bytes(100_000),
        id="long body",
    ),
    pytest.param(
        b"POST /v1/objects HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        id="chunks",
    ),
]


@pytest.mark.parametrize("sent", BAD)
def test_no_bytes_hurt_a_node(net, sent):
    for surface in (peer_surface(net[3]), api(net[3])):
        answer = b""
        with surface.connect() as connection:
            try:
                connection.sendall(sent)
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65536):
                    answer += piece
            except OSError:
                # Cut off, with or without a word.
                pass
            assert not answer or answer.split(b" ")[1] in (b"400", b"401", b"411", b"413")
            surface.is_well()


def test_a_peer_that_sends_no_bodies_holds_up_nobody_else(net):
    member, surface = net[4], peer_surface(net[4])
    key, to = key_of(net[5]), member.id
    with ExitStack() as held:
        for _ in range(PEER_REQUESTS_IN_FLIGHT_MAX):
            connection = held.enter_context(surface.connect())
            # The length of a small head, and little of it: a large one would be refused at once.
            little = (100).to_bytes(4, "big") + b"a little"
            connection.sendall(signed(key, to, "storage.put").head(1_000_000) + little)
        full = wait_for(
            lambda: answer if (answer := signed(key, to).send(member)).status != 200 else None
        )
        assert (full.status, full.code) == (429, "rate_limited")
        surface.is_well()
        api(member).is_well()
        assert signed(key_of(net[6]), to).send(member).status == 200
        content = os.urandom(1_000_000)
        assert member.get(net[6].put(content)) == content
    # All is given back when the connections end.
    wait_for(lambda: signed(key, to).send(member).status == 200)


def test_heads_that_do_not_end_hold_up_nobody(net):
    with ExitStack() as held:
        for surface in (peer_surface(net[5]), api(net[5])):
            for sent in (b"", b"P", b"POST /peer/v1/storage.put HTTP/1.1\r\nHost: x\r\nX: ") * 50:
                held.enter_context(surface.connect()).sendall(sent)
        peer_surface(net[5]).is_well()
        api(net[5]).is_well()
        assert net[5]("node status").code == 0
        assert signed(key_of(net[6]), net[5].id).send(net[5]).status == 200


def used_bytes(net) -> list[int]:
    statuses = [Calls(net[index].home).ask(status.STATUS) for index in range(NODES)]
    return [status["storage"]["used_bytes"] for status in statuses]


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_that_breaks_off_stores_nothing(net, chunked):
    member, surface = net[6], api(net[6])
    before, used = member("store ls --json").json, used_bytes(net)

    def undone() -> int:
        return (member.home / "node.log").read_text().count("storage.put_undone")

    undone_before = undone()
    fields = {**token(member), "Host": "x"}
    fields |= {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": "12000000"}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    content = os.urandom(9_000_000)
    body = b"%x\r\n%b\r\n" % (len(content), content) if chunked else content
    with surface.connect() as connection:
        connection.sendall(f"POST /v1/objects HTTP/1.1\r\n{head}\r\n".encode() + body)
        # Two segments go to the hosts while the rest is waited for.
        wait_for(lambda: used_bytes(net) != used)
        surface.is_well()
        connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            assert connection.recv(65536) == b""
    wait_for(lambda: undone() > undone_before)
    wait_for(lambda: used_bytes(net) == used)
    assert member("store ls --json").json == before
