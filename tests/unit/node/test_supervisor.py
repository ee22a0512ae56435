"""The words to a supervisor, by real sockets."""

from __future__ import annotations

import io
import os
import socket

import pytest

from xsc.node.logging import JsonLog
from xsc.node.system import READY, STOPPING, Supervisor, SystemClock


@pytest.fixture
def log():
    return io.StringIO()


@pytest.fixture
def supervisor(log, monkeypatch):
    def make(address: str | None) -> Supervisor:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        if address is not None:
            monkeypatch.setenv("NOTIFY_SOCKET", address)
        return Supervisor(JsonLog(SystemClock(), stream=log))

    return make


@pytest.mark.parametrize("abstract", [False, True])
def test_a_word_is_a_datagram_to_a_file_or_to_an_abstract_name(tmp_path, supervisor, log, abstract):
    name = f"xsc-test-{os.getpid()}-{id(log)}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(f"\0{name}" if abstract else name)
        told.settimeout(10)
        to = supervisor(f"@{name}" if abstract else name)
        for word in (READY, STOPPING):
            to.tell(word)
            assert told.recv(100) == word.encode()
    assert log.getvalue() == ""


@pytest.mark.parametrize("address", ["/nowhere/notify", "@nobody-is-there", "x" * 200, "@" * 200])
def test_a_supervisor_that_is_not_there_is_warned_of_once(supervisor, log, address):
    to = supervisor(address)
    to.tell(READY)
    to.tell(STOPPING)
    assert log.getvalue().count("\n") == 1
    assert "node.supervisor_not_told" in log.getvalue()


@pytest.mark.parametrize("address", [None, ""])
def test_without_a_supervisor_nothing_is_said(supervisor, log, address):
    supervisor(address).tell(READY)
    assert log.getvalue() == ""
