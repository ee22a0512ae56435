"""What a node has sent and received: all bodies, and nothing twice."""

import pytest

from tests.unit.net.nodes import take_all
from xsc.base.clock import ManualClock
from xsc.base.errors import PeerSilent
from xsc.net.transport.memory import MemoryNetwork
from xsc.net.transport.metered import Metered
from xsc.net.transport.port import RawRequest, RawResponse


async def test_bodies_count_at_both_ends():
    network = MemoryNetwork(ManualClock())
    here, there = Metered(network.transport("here")), Metered(network.transport("there"))

    async def handler(arrival):
        if arrival.path == "/unread":
            return RawResponse(401)
        return RawResponse(200, {}, [b"<", await arrival.read(take_all), b">"])

    await there.serve(handler)
    (address,) = there.addresses()
    assert there.fingerprint is None
    for path in ("/", "/unread"):
        await here.send(address, None, RawRequest("POST", path, {}, [b"one", b"two"]), 1_000)
    # What was refused unread was sent all the same.
    assert (here.sent_bytes, here.received_bytes) == (12, 8)
    assert (there.sent_bytes, there.received_bytes) == (8, 6)
    await there.close()
    with pytest.raises(PeerSilent):
        await here.send(address, None, RawRequest("POST", "/", {}, [b"one"]), 1_000)
    assert here.sent_bytes == 15
