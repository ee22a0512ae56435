from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tests.unit.client.stand_in import StandIn, proves
from xsc.api import proof
from xsc.api.objects import GET, PUT, STAT
from xsc.api.peers import JOIN, LIST
from xsc.api.status import STATUS
from xsc.base.errors import (
    ArgumentInvalid,
    HomeInvalid,
    NodeUnreachable,
    ShardMismatch,
    SpaceExhausted,
    Unauthorized,
    XscError,
)
from xsc.client import core as core_module
from xsc.client.core import BLOCK_BYTES, Core, default_home, find_place


@pytest.fixture
def core(stand_in):
    return Core(stand_in.home)


class Blocks(io.RawIOBase):
    """A stream that has no end, and counts what was taken of it."""

    def __init__(self):
        self.taken = 0

    def read(self, size=-1):
        self.taken += size
        return bytes(size)


def test_an_answer_comes_back_as_a_document(core, stand_in):
    stand_in.answers("GET", "/v1/status", {"id": "abc"})
    assert core.ask(STATUS) == {"id": "abc"}
    assert stand_in.last.headers["Authorization"] == "Bearer token7"


def test_a_document_is_sent_as_json(core, stand_in):
    stand_in.answers("POST", "/v1/peers", {})
    core.ask(JOIN, invitation="xsc1é")
    assert stand_in.last.json() == {"invitation": "xsc1é"}


def test_what_is_no_text_is_refused_before_it_is_sent(core, stand_in):
    with pytest.raises(ArgumentInvalid, match="not Unicode text"):
        core.ask(JOIN, invitation="a\udcff")
    assert not stand_in.requests


def test_a_refusal_is_the_error_that_the_node_raised(core, stand_in):
    stand_in.refuses("GET", "/v1/status", "space_exhausted", "no room", "make some")
    with pytest.raises(SpaceExhausted, match="no room") as caught:
        core.ask(STATUS)
    assert caught.value.hint == "make some"


def test_a_bug_of_the_node_is_no_class_of_its_own(core, stand_in):
    stand_in.refuses("GET", "/v1/status", "bug", "the node met a bug")
    with pytest.raises(XscError) as caught:
        core.ask(STATUS)
    assert type(caught.value) is XscError


def test_a_token_of_another_node_is_not_shown(core, stand_in):
    stand_in.publish(f"http://127.0.0.1:{stand_in.server.server_port}", "other")
    with pytest.raises(NodeUnreachable, match="is not that node"):
        core.ask(STATUS)
    assert not stand_in.requests


def test_what_the_node_refuses_is_raised_here(core, stand_in):
    stand_in.refuses("GET", "/v1/status", "unauthorized", "no")
    with pytest.raises(Unauthorized):
        core.ask(STATUS)


def test_where_no_node_ever_ran_the_hint_starts_one(tmp_path):
    core = Core(tmp_path)
    assert not core.alive()
    with pytest.raises(NodeUnreachable) as caught:
        core.ask(STATUS)
    assert caught.value.hint.endswith("node start`")


@pytest.mark.parametrize(
    ("mode", "fault"), [(0o700, HomeInvalid), (0o711, NodeUnreachable)], ids=["no look", "no list"]
)
def test_a_home_of_another_user_is_no_bug(tmp_path, mode, fault):
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        home = Path(folder) / "home"
        home.mkdir()
        home.chmod(mode)
        os.seteuid(65_534)
        try:
            with pytest.raises(fault):
                find_place(home)
            if fault is HomeInvalid:
                with pytest.raises(HomeInvalid, match="cannot be read"):
                    Core(home).alive()
            else:
                assert not Core(home).alive()
        finally:
            os.seteuid(0)


def test_the_hint_for_the_default_home_is_short(tmp_path, monkeypatch):
    monkeypatch.setenv("XSC_HOME", str(tmp_path / "mine"))
    with pytest.raises(NodeUnreachable) as caught:
        Core().ask(STATUS)
    assert caught.value.hint == "start it with `xsc node start`"


def test_a_node_that_was_killed_is_unreachable(tmp_path):
    stand_in = StandIn(tmp_path / "home")
    core = Core(stand_in.home)
    assert core.alive()
    stand_in.close()
    assert not core.alive()
    with pytest.raises(NodeUnreachable, match="does not answer"):
        core.ask(STATUS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        '{"url": 7}',
        '{"url": "http://127.0.0.1:x"}',
        '{"url": "http://127.0.0.1"}',
        '{"url": "https://127.0.0.1:80"}',
        '{"url": "http://10.0.0.1:80"}',
        '{"url": "http://example.org:80"}',
    ],
)
def test_a_damaged_place_is_refused(tmp_path, text):
    (tmp_path / "api.json").write_text(text)
    (tmp_path / "api.token").write_text("token")
    with pytest.raises(HomeInvalid):
        find_place(tmp_path)


@pytest.mark.parametrize("token", ["", "a b", "a\nInjected: b"])
def test_a_token_that_would_break_the_head_is_refused(stand_in, token):
    (stand_in.home / "api.token").write_text(token)
    with pytest.raises(HomeInvalid):
        find_place(stand_in.home)


def test_the_home_is_the_one_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XSC_HOME", str(tmp_path))
    assert default_home() == tmp_path
    monkeypatch.setenv("XSC_HOME", "")
    assert default_home().name == "xsc"


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 17])
def test_an_upload_arrives_whole(core, stand_in, size):
    stand_in.answers("POST", "/v1/objects", {"size_bytes": size}, 201)
    content = bytes(index % 251 for index in range(1000)) * (size // 1000 + 1)
    moved = []
    answer = core.upload(PUT, io.BytesIO(content[:size]), moved.append, name="a")
    assert answer == {"size_bytes": size}
    assert stand_in.last.body == content[:size]
    assert stand_in.last.headers["XSC-Name"] == "a"
    assert sum(moved) == size


def test_an_upload_that_is_refused_ends_at_once(core, stand_in):
    problem = {"code": "space_exhausted", "detail": "no room", "hint": ""}
    stand_in.early["POST", "/v1/objects"] = lambda request: request.answer.document(problem, 507)
    source = Blocks()
    with pytest.raises(SpaceExhausted, match="no room"):
        core.upload(PUT, source)
    assert source.taken < 64 * BLOCK_BYTES


def test_a_source_that_fails_is_named(core, stand_in):
    class Broken(io.RawIOBase):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    with pytest.raises(ArgumentInvalid, match="Input/output error"):
        core.upload(PUT, Broken())


def test_a_node_that_dies_during_an_upload_is_unreachable(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take_some():
            connection, _ = server.accept()
            with connection:
                proves(connection, "t")
                connection.recv(65536)

        thread = threading.Thread(target=take_some)
        thread.start()
        (tmp_path / "api.token").write_text("t")
        place = {"url": f"http://127.0.0.1:{server.getsockname()[1]}"}
        (tmp_path / "api.json").write_text(json.dumps(place))
        with pytest.raises(NodeUnreachable, match="broke off"):
            Core(tmp_path).upload(PUT, Blocks())
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}",
        b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\n<html>no!",
        b"220 mail.example.org ESMTP\r\n",
        b"",
    ],
)
@pytest.mark.parametrize("proven", [False, True])
def test_what_is_no_node_is_not_taken_for_one(tmp_path, answer, proven):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reply():
            connection, _ = server.accept()
            with connection:
                if proven:
                    proves(connection, "t")
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        (tmp_path / "api.token").write_text("t")
        place = {"url": f"http://127.0.0.1:{server.getsockname()[1]}"}
        (tmp_path / "api.json").write_text(json.dumps(place))
        with pytest.raises(NodeUnreachable):
            Core(tmp_path).ask(STATUS)
        thread.join()


@pytest.mark.parametrize("listens_again", [False, True])
def test_who_listens_where_a_node_was_gets_neither_token_nor_content(tmp_path, listens_again):
    """A node was killed; somebody else has its port. It may ask the node that came back, too."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def reply():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    sent = connection.recv(65536)
                    seen.append(sent)
                    challenge = sent[-2 * proof.CHALLENGE_BYTES :]
                    # All that it can know: what a node with that token says at another port.
                    port = server.getsockname()[1] ^ 1
                    told = proof.proof_of("t" if listens_again else "u", port, challenge)
                    body = json.dumps({"proof": told}).encode()
                    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
                    connection.sendall(head + body)
                    seen.append(connection.recv(65536))

        thread = threading.Thread(target=reply)
        thread.start()
        (tmp_path / "api.token").write_text("t")
        place = {"url": f"http://127.0.0.1:{server.getsockname()[1]}"}
        (tmp_path / "api.json").write_text(json.dumps(place))
        core = Core(tmp_path)
        for ask in (
            lambda: core.ask(STATUS),
            lambda: core.upload(PUT, io.BytesIO(b"plaintext")),
            lambda: core.upload(PUT, Blocks()),
            lambda: core.download(GET, capability="secret"),
        ):
            with pytest.raises(NodeUnreachable, match="is not that node"):
                ask()
        assert not core.alive()
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert len(seen) == 10
    for sent in seen:
        assert sent == b"" or sent.startswith(b"POST /v1/proof HTTP/1.1\r\n")
        for secret in (b"Bearer", b"plaintext", b"secret"):
            assert secret not in sent
    challenges = [sent[-2 * proof.CHALLENGE_BYTES :] for sent in seen[::2]]
    assert len(set(challenges)) == len(challenges)


def test_a_proof_says_one_thing_about_one_token_port_and_challenge():
    challenge = b"0" * 64
    given = proof.proof_of("t", 80, challenge)
    # HMAC of RFC 2104, by hand.
    key, message = b"t".ljust(64, b"\0"), b"XSC/1/api-proof\0\x00\x50" + bytes(32)
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + message).digest()
    assert given == hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).hexdigest()
    assert proof.is_proof(given, "t", 80, challenge)
    for other in (("u", 80, challenge), ("t", 81, challenge), ("t", 80, b"1" + challenge[1:])):
        assert not proof.is_proof(given, *other)
    for wrong in (None, 1, "", "é" * 64, given[:-1], given.upper()):
        assert not proof.is_proof(wrong, "t", 80, challenge)
    for wrong in (b"", b"0" * 63, b"0" * 65, b"G" * 64, b"A" * 64, b"0" * 63 + b"\n"):
        with pytest.raises(ArgumentInvalid):
            proof.proof_of("t", 80, wrong)


def test_silence_ends(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "api.token").write_text("t")
        place = {"url": f"http://127.0.0.1:{server.getsockname()[1]}"}
        (tmp_path / "api.json").write_text(json.dumps(place))
        with pytest.raises(NodeUnreachable, match="silent"):
            Core(tmp_path).ask(STATUS, timeout_s=0.05)


def test_a_node_that_is_stopped_is_not_waited_for_as_long_as_one_that_works(tmp_path, monkeypatch):
    """Its kernel takes connections, and nobody proves to be the node."""
    monkeypatch.setattr(core_module, "PROOF_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "api.token").write_text("t")
        place = {"url": f"http://127.0.0.1:{server.getsockname()[1]}"}
        (tmp_path / "api.json").write_text(json.dumps(place))
        with pytest.raises(NodeUnreachable, match="silent"):
            Core(tmp_path).ask(STATUS, timeout_s=3600)


def test_silence_ends_an_upload(tmp_path, monkeypatch):
    monkeypatch.setattr(core_module, "ANSWER_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "api.token").write_text("t")
        place = {"url": f"http://127.0.0.1:{server.getsockname()[1]}"}
        (tmp_path / "api.json").write_text(json.dumps(place))
        with pytest.raises(NodeUnreachable, match="silent"):
            Core(tmp_path).upload(PUT, Blocks())


@pytest.mark.parametrize("size", [0, 1, 2 * BLOCK_BYTES + 5])
def test_a_download_arrives_whole(core, stand_in, size):
    content = bytes(index % 7 for index in range(size))
    stand_in.streams("/v1/object", content)
    with core.download(GET, capability="c") as download:
        assert download.size_bytes == size
        assert b"".join(download.blocks()) == content


@pytest.mark.parametrize("cut", [0, 1, 99])
def test_a_download_that_breaks_off_says_why(core, stand_in, cut):
    stand_in.streams("/v1/object", bytes(100), cut=cut)
    why = {"code": "shard_mismatch", "detail": "the shard of b is wrong", "hint": ""}
    stand_in.answers("GET", "/v1/requests/41", why)
    with (
        core.download(GET) as download,
        pytest.raises(ShardMismatch, match="the shard of b"),
    ):
        list(download.blocks())


def test_a_download_that_breaks_off_without_a_reason_fails_as_well(core, stand_in):
    stand_in.streams("/v1/object", bytes(100), cut=50)
    with (
        core.download(GET) as download,
        pytest.raises(NodeUnreachable, match="after 50 of 100 bytes"),
    ):
        list(download.blocks())


def test_a_download_without_a_length_is_never_whole(core, stand_in):
    stand_in.routes["GET", "/v1/object"] = lambda request: request.answer.raw(200, {}, b"abc")
    with core.download(GET) as download, pytest.raises(NodeUnreachable):
        list(download.blocks())


def test_a_refused_download_is_an_error_before_any_byte(core, stand_in):
    stand_in.refuses("GET", "/v1/object", "space_exhausted", "no")
    with pytest.raises(SpaceExhausted):
        core.download(GET)


def test_calls_are_traced_without_secrets(stand_in):
    lines = []
    stand_in.answers("GET", "/v1/object/stat", {})
    Core(stand_in.home, trace=lines.append).ask(STAT, capability="secret")
    assert stand_in.last.headers["XSC-Capability"] == "secret"
    assert lines == [f"GET http://127.0.0.1:{stand_in.server.server_port}/v1/object/stat"]


def test_the_core_loads_nothing_heavy():
    heavy = "aiohttp asyncio pydantic cryptography wasmtime rich plyvel platformdirs subprocess"
    script = (
        "import sys, xsc.cli.main\n"
        "assert list(xsc.cli.main.cli.commands.values())\n"  # all of them, which are read when used
        f"loaded = [name for name in {heavy.split()!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_connection_is_used_again(core, stand_in):
    stand_in.keeps = True
    stand_in.answers("GET", "/v1/status", {})
    for _ in range(3):
        core.ask(STATUS)
    assert len(set(stand_in.ports)) == 1
    core.close()
    core.ask(STATUS)
    assert len(set(stand_in.ports)) == 2


@pytest.mark.parametrize(("size", "connections"), [(0, 1), (1000, 1), (BLOCK_BYTES, 3)])
def test_uploads_within_a_block_share_a_connection(core, stand_in, size, connections):
    stand_in.keeps = True
    stand_in.answers("POST", "/v1/objects", {})
    for _ in range(3):
        core.upload(PUT, io.BytesIO(bytes(size)))
        assert stand_in.last.body == bytes(size)
    assert len(set(stand_in.ports)) == connections


def test_a_pipe_that_brings_little_at_first_is_sent_whole(core, stand_in):
    stand_in.answers("POST", "/v1/objects", {})
    pieces = [b"one ", b"two ", b"three", b""]

    class Pipe(io.RawIOBase):
        def read(self, size=-1):
            return pieces.pop(0)

    core.upload(PUT, Pipe())
    assert stand_in.last.body == b"one two three"


def test_a_connection_is_not_used_again_after_an_error_or_what_the_node_closed(core, stand_in):
    stand_in.keeps = True
    stand_in.answers("GET", "/v1/status", {})
    stand_in.refuses("GET", "/v1/peers", "space_exhausted", "no room")
    with pytest.raises(SpaceExhausted):
        core.ask(LIST)
    core.ask(STATUS)
    assert len(set(stand_in.ports)) == 2
    stand_in.keeps = False
    core.ask(STATUS)  # the last on this connection
    core.ask(STATUS)
    assert len(set(stand_in.ports)) == 3


def test_a_kept_connection_that_ended_or_was_idle_for_long_is_left(core, stand_in):
    stand_in.keeps = True
    stand_in.answers("GET", "/v1/status", {})
    core.ask(STATUS)
    core._kept[0].since -= core_module.KEPT_S
    core.ask(STATUS)
    assert len(set(stand_in.ports)) == 2


def test_threads_share_no_connection_and_few_are_kept(core, stand_in):
    stand_in.keeps = True
    many = core_module.KEPT_CONNECTIONS_MAX + 1
    together = threading.Barrier(many)

    def route(request):
        together.wait(10)
        request.answer.document({})

    stand_in.routes["GET", "/v1/status"] = route
    threads = [threading.Thread(target=core.ask, args=(STATUS,)) for _ in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(stand_in.ports)) == many
    assert len(core._kept) == core_module.KEPT_CONNECTIONS_MAX


def test_a_directory_that_does_not_exist_or_holds_something_else_is_no_home(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(HomeInvalid, match="no XSC home"):
        find_place(tmp_path)
    assert not Core(tmp_path / "typo").alive()
    with pytest.raises(HomeInvalid, match="no XSC home") as caught:
        find_place(tmp_path / "typo" / "deeper")
    assert caught.value.hint == "check --home"
