"""A port that is still in use is waited for, and for so long."""

import asyncio
import errno
import socket

import pytest

from tests.settle import settle
from xsc.net.transport.http import listen


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


async def test_a_port_that_becomes_free_is_taken(port, holder):
    opening = asyncio.create_task(listen(asyncio.Protocol, "127.0.0.1", port, backlog=1))
    await settle()
    assert not opening.done()
    holder.close()
    server = await opening
    assert server.sockets[0].getsockname()[1] == port
    server.close()


@pytest.mark.usefixtures("holder")
async def test_a_port_that_stays_in_use_is_refused_by_the_system_s_name(port):
    with pytest.raises(OSError, match="in use") as caught:
        await listen(asyncio.Protocol, "127.0.0.1", port, backlog=1, wait_ms=100)
    assert caught.value.errno == errno.EADDRINUSE


async def test_an_address_that_is_not_here_is_not_waited_for():
    with pytest.raises(OSError, match="assign"):
        await listen(asyncio.Protocol, "192.0.2.1", 0, backlog=1)
