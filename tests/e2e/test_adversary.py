"""A peer that signs what it likes against a real node: memory, descriptors, time and turns.

What virtual time cannot show. The peer is a raw client with a key; others are served
meanwhile, which is counted by calls that were answered and never by a clock.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.e2e.conftest import Member, starting, wait_for
from xsc.base.encoding import Value
from xsc.base.ids import from_text, to_text
from xsc.base.limits import MIB, NONCE_BYTES, PEER_BODY_BYTES_MAX, PEER_REQUESTS_IN_FLIGHT_MAX
from xsc.base.merkle import Part, root_of
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair, network_id
from xsc.net.calls.costs import OTHER
from xsc.net.calls.frame import Frame, pack_head, unpack
from xsc.net.calls.quota import ANSWERS_A_PEER_BYTES_MAX, REQUEST_BODIES_A_PEER_BYTES_MAX
from xsc.net.calls.signing import STAMP_BYTES, sign_request
from xsc.net.peers import invitation
from xsc.net.peers.roster import AddressRecord
from xsc.net.transport.http import CONNECTIONS_AN_ADDRESS_MAX
from xsc.node.daemon import API_CONNECTIONS_MAX
from xsc.node.home.folder import read_identity
from xsc.storage.object import messages
from xsc.storage.object.capability import parse_read
from xsc.storage.object.inventory import Wanted
from xsc.storage.object.manifest import open_manifest
from xsc.storage.object.segment import Span
from xsc.storage.transfer.get import roots_of

NETWORK = network_id("xsc")
SLACK_BYTES = 128 * MIB
"""What the process may take beside the answers that count: what is read and copied on the way,
and what its allocator keeps (`FREED_BYTES_KEPT`)."""
SEGMENTS = 8
CALLS = 30


@dataclass(frozen=True)
class Host:
    """The node that is attacked."""

    member: Member
    pid: int
    id: bytes

    @property
    def place(self) -> dict[str, str]:
        return json.loads((self.member.home / "api.json").read_text())

    def address(self, surface: str = "peer_url") -> tuple[str, int]:
        host, port = self.place[surface].removeprefix("http://").split(":")
        return host, int(port)

    def memory_bytes(self) -> int:
        """What it has of its own: not what is mapped of files."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no RssAnon")

    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())


@dataclass(frozen=True)
class Raw:
    """A client with a key, which sends what it likes."""

    host: Host
    key: KeyPair

    def request(
        self,
        method: str,
        header: dict[str, Value] | None = None,
        parts: tuple[bytes, ...] = (),
        size: int | None = None,
    ) -> bytes:
        """Return a signed request; where a size is given, its body is announced so long."""
        head = pack_head(header or {}, [Part(part, root_of(part)) for part in parts])
        path = f"/peer/v1/{method}"
        fields = sign_request(
            self.key,
            network=NETWORK,
            to=self.host.id,
            method="POST",
            path=path,
            head=head,
            created_ms=time.time_ns() // 1_000_000,
            entropy=os.urandom(NONCE_BYTES - STAMP_BYTES),
        )
        body = b"".join((head, *parts))
        fields |= {"Host": "x", "Content-Length": str(len(body) if size is None else size)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body

    def connect(self, surface: str = "peer_url", *, buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        if buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(60)
        connection.connect(self.host.address(surface))
        return connection

    def call(
        self, method: str, header: dict[str, Value] | None = None, parts: tuple[bytes, ...] = ()
    ) -> tuple[int, bytes]:
        with self.connect() as connection:
            connection.sendall(self.request(method, header, parts))
            return answer_on(connection)

    def frame(self, method: str, header: dict[str, Value]) -> Frame:
        status, body = self.call(method, header)
        assert status == 200, body
        return unpack(memoryview(body))


def answer_on(connection: socket.socket) -> tuple[int, bytes]:
    """Return status and body of the answer on a connection."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = connection.recv(2**20)
        if not piece:
            raise ConnectionError("no answer")
        answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    rest = bytearray(body)
    while len(rest) < size:
        piece = connection.recv(2**20)
        if not piece:
            raise ConnectionError("half an answer")
        rest += piece
    return int(head.split(b" ")[1]), bytes(rest)


def joined(host: Host, name: str) -> Raw:
    """Return a raw client that the host knows as a peer."""
    raw = Raw(host, KeyPair(name.encode().ljust(32, b"\0")))
    asked = invitation.from_string(host.member("peer invite").line)
    record = AddressRecord(
        name=name, addresses=("127.0.0.1:9",), fingerprint=None, introducible=False, seq=1
    )
    signed = sign(record, raw.key, NETWORK)
    status, body = raw.call("peers.join", {"secret": asked.secret, "record": signed.raw})
    assert status == 200, body
    return raw


def served(raw: Raw, count: int = CALLS) -> int:
    """Return how many small calls of an honest peer were answered, each on a new connection."""
    return sum(raw.call("ledger.head", {"v": 1})[0] == 200 for _ in range(count))


@dataclass(frozen=True)
class Scene:
    host: Host
    mallory: Raw
    bob: Raw
    customer: Member


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Iterator[Scene]:
    """One real node, two peers of it with keys alone, and a customer."""
    with starting(tmp_path_factory.mktemp("adversary")) as start:
        (member, process), (customer, _) = start("alice"), start("carol")
        host = Host(member, process.pid, from_text(member.id))
        invited = member("peer invite").line
        assert customer("peer add -", stdin=invited.encode()).code == 0
        yield Scene(host, joined(host, "mallory"), joined(host, "bob"), customer)


def test_answers_that_nobody_reads_take_a_bounded_share_of_memory(scene):
    host, bob, member = scene.host, scene.bob, scene.customer
    # Shards as large as they can be: seven of them in an answer, of an object with one column.
    capability = member.put(os.urandom(SEGMENTS * 4 * MIB), "--code 1,0")
    carol = Raw(host, read_identity(member.home))
    wanted = stored_at(carol, capability)
    whole = wanted[: (PEER_BODY_BYTES_MAX - MIB) // (4 * MIB)]

    before, most = host.memory_bytes(), 0
    with ExitStack() as held:
        for _ in range(PEER_REQUESTS_IN_FLIGHT_MAX // 2):
            connection = held.enter_context(carol.connect(buffer=4096))
            connection.sendall(carol.request(messages.GET, whole_message(capability, whole)))
        # The first answers are made; the others wait for room.
        wait_for(lambda: host.memory_bytes() - before > PEER_BODY_BYTES_MAX)
        for _ in range(10):
            assert served(bob, CALLS // 10) == CALLS // 10
            most = max(most, host.memory_bytes() - before)
    assert most <= ANSWERS_A_PEER_BYTES_MAX + SLACK_BYTES
    # All is given back with the connections: the same peer gets what it asks for, and reads it.
    status, body = carol.call(messages.GET, whole_message(capability, whole))
    assert (status, len(body) > len(whole) * 4 * MIB) == (200, True)
    # The same shard again and again is no question at all.
    status, body = carol.call(messages.GET, whole_message(capability, whole[:1] * 64))
    assert (status, json.loads(body)["code"]) == (422, "record_invalid")


def stored_at(raw: Raw, text: str) -> list[Wanted]:
    """Return the shards of an object, as its manifest at the host names them."""
    capability = parse_read(text).verify
    asked = messages.find_message(capability.locate, capability.manifest_hash, MIB)
    frame = raw.frame(messages.FIND, asked)
    sealed = messages.read_found([part.data for part in frame.parts])
    assert sealed is not None
    manifest = open_manifest(sealed, capability)
    return [Wanted(index, 0, roots_of(manifest, index)[0]) for index in range(SEGMENTS)]


def whole_message(text: str, wanted: list[Wanted]) -> dict[str, Value]:
    return messages.get_message(parse_read(text).verify.locate, 0, wanted)


def test_announced_and_trickled_bodies_take_nothing_from_others(scene):
    host, mallory, bob = scene.host, scene.mallory, scene.bob
    before = host.memory_bytes()
    with ExitStack() as held:
        trickled = []
        for _ in range(PEER_REQUESTS_IN_FLIGHT_MAX):
            connection = held.enter_context(mallory.connect())
            connection.sendall(mallory.request("storage.put", size=PEER_BODY_BYTES_MAX))
            trickled.append(connection)
        # It has no place left; that is all it has achieved.
        status, body = wait_for(lambda: refusal(mallory))
        assert (status, json.loads(body)["code"]) == (429, "rate_limited")
        assert served(bob) == CALLS
        large = os.urandom(16 * MIB)
        status, body = bob.call("ledger.head", {"v": 1}, (large,))
        assert status == 200, body
        assert host.memory_bytes() - before <= REQUEST_BODIES_A_PEER_BYTES_MAX + SLACK_BYTES
        with dribbling(trickled):
            # Each is given up after a while, whatever dribbles in.
            for connection in trickled:
                with suppress(ConnectionError):
                    status, body = answer_on(connection)
                    assert (status, json.loads(body)["code"]) == (400, "frame_invalid")
            assert served(bob) == CALLS
    assert served(mallory, 1) == 1


def refusal(raw: Raw) -> tuple[int, bytes] | None:
    answer = raw.call("ledger.head", {"v": 1})
    return answer if answer[0] != 200 else None


@contextmanager
def dribbling(connections: list[socket.socket]) -> Iterator[None]:
    """Send a byte now and then on each connection."""
    ended = threading.Event()

    def dribble() -> None:
        while not ended.wait(0.2):
            for connection in connections:
                with suppress(OSError):
                    connection.send(b"x")

    thread = threading.Thread(target=dribble)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_idle_connections_keep_nobody_out_and_leave_descriptors(scene):
    host, mallory, bob = scene.host, scene.mallory, scene.bob
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    quiet = host.descriptors()
    try:
        with ExitStack() as held:
            for number in range(2 * CONNECTIONS_AN_ADDRESS_MAX):
                connection = held.enter_context(mallory.connect())
                if number % 2:
                    # As idle as one that says nothing: it never becomes a request.
                    connection.sendall(b"POST /peer/v1/storage.put HTTP/1.1\r\nHost: x\r\nX")
            for _ in range(API_CONNECTIONS_MAX + 200):
                held.enter_context(mallory.connect("url"))
            assert served(bob) == CALLS
            assert host.member("node status").code == 0
            most = CONNECTIONS_AN_ADDRESS_MAX + API_CONNECTIONS_MAX
            assert host.descriptors() <= quiet + most + 32
            # The databases get theirs.
            assert host.member("peer invite").code == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_for(lambda: host.descriptors() <= quiet + 32)


def test_a_node_with_few_descriptors_bounds_its_connections_by_them(start):
    limit = 160
    member, process = start("alice", prefix=["prlimit", f"--nofile={limit // 2}:{limit}"])
    host = Host(member, process.pid, from_text(member.id))
    assert resource.prlimit(host.pid, resource.RLIMIT_NOFILE) == (limit, limit)
    bob = joined(host, "bob")
    with ExitStack() as held:
        for surface in ("peer_url", "url"):
            for number in range(limit // 2):
                held.enter_context(bob.connect(surface))
                # The system's queue is as short; who finds it full waits for a second.
                assert number % 4 or served(bob, 1)
        assert served(bob) == CALLS
        assert host.descriptors() < limit * 3 // 4
        assert member("node status").code == 0


def test_after_a_kill_nobody_else_gets_the_token(start):
    member, process = start("alice")
    host, port = Host(member, process.pid, b"").address("url")
    token = (member.home / "api.token").read_text().strip().encode()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (member.home / "api.json").exists()
    seen: list[bytes] = []
    with socket.create_server((host, port)) as squatter:

        def take() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = squatter.accept()
                    with connection:
                        seen.append(connection.recv(65536))
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        thread = threading.Thread(target=take)
        thread.start()
        try:
            member("node status").fails(5, "node_unreachable")
            member("store put - --name secret", stdin=b"plaintext").fails(5, "node_unreachable")
        finally:
            squatter.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert seen
    assert not [sent for sent in seen if token in sent or b"plaintext" in sent]


def test_a_leaf_of_each_of_some_shards_costs_what_is_read_for_it(scene):
    host, greedy = scene.host, joined(scene.host, "greedy")
    capability = scene.customer.put(os.urandom(SEGMENTS * 4 * MIB), "--code 1,0")
    leaves = [replace(each, span=Span(0, 1, 4 * MIB)) for each in stored_at(greedy, capability)]
    status, body = greedy.call(messages.GET, whole_message(capability, leaves))
    assert (status, len(body) < MIB) == (200, True)
    rows = host.member("peer ls --json").json["peers"]
    (spent,) = (row["spent"] for row in rows if row["id"] == to_text(greedy.key.node_id))
    units = {each["method"]: each["units"] for each in spent}
    assert units[messages.GET] >= SEGMENTS * 4 * MIB // OTHER.read_bytes
