"""A port that is still in use is waited for, and for so long."""

import asyncio
import errno
import socket

import pytest

from xsc.net.listener import listen


@pytest.fixture
def held():
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        yield holder


async def test_a_port_that_becomes_free_is_taken(held):
    port = held.getsockname()[1]
    opening = asyncio.create_task(listen(asyncio.Protocol, "127.0.0.1", port, backlog=1))
    for _ in range(10):
        await asyncio.sleep(0)  # it has tried by now
    assert not opening.done()
    held.close()
    server = await opening
    assert server.sockets[0].getsockname()[1] == port
    server.close()


async def test_a_port_that_stays_in_use_is_refused_by_the_system_s_name(held):
    port = held.getsockname()[1]
    with pytest.raises(OSError, match="in use") as caught:
        await listen(asyncio.Protocol, "127.0.0.1", port, backlog=1, wait_s=0.1)
    assert caught.value.errno == errno.EADDRINUSE


async def test_an_address_that_is_not_here_is_not_waited_for():
    with pytest.raises(OSError, match="assign"):
        await listen(asyncio.Protocol, "192.0.2.1", 0, backlog=1)
