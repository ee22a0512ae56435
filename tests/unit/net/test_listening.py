"""A port that is still in use is waited for, and for so long."""

import asyncio
import socket

import pytest

from tests.settle import settle
from xsc.base.errors import ConfigInvalid
from xsc.net.transport import http
from xsc.net.transport.bounds import Gate
from xsc.net.transport.http import Server


@pytest.fixture
def port():
    """A port that nobody else is given: a socket keeps it, and does not listen."""
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()[1]


@pytest.fixture
def holder(port):
    """Somebody who listens on it."""
    with socket.create_server(("127.0.0.1", port)) as listening:
        yield listening


def server():
    """Return a server that answers nothing."""
    return Server(None, Gate(most=1, share=1, idle_ms=1_000))


async def test_a_port_that_becomes_free_is_taken(port, holder):
    opened = server()
    opening = asyncio.create_task(opened.start("127.0.0.1", port, "api_listen"))
    await settle()
    assert not opening.done()
    holder.close()
    assert await opening == port
    await opened.stop(20)


@pytest.mark.usefixtures("holder")
async def test_a_port_that_stays_in_use_is_refused(port, monkeypatch):
    monkeypatch.setattr(http, "PORT_WAIT_MS", 100)
    with pytest.raises(ConfigInvalid, match="in use") as caught:
        await server().start("127.0.0.1", port, "api_listen")
    assert caught.value.hint == "set api_listen to a free port, or to port 0"


async def test_an_address_that_is_not_here_is_not_waited_for():
    with pytest.raises(ConfigInvalid, match="assign") as caught:
        await server().start("192.0.2.1", 0, "api_listen")
    assert caught.value.hint == "set api_listen to an address of this machine"
