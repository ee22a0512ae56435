"""Whole nodes seal by themselves, and show their cubes by the API and as a page."""

import re

from tests.sim.network import run
from tests.sim.test_loops import indebted
from tests.unit.dashboard.browser import Browser
from xsc.base.keyvalue import prefix_end
from xsc.ledger.checkpoints import CHECKPOINT_MS, LOOK_MS
from xsc.ledger.index import INDEX, SHARED


def test_what_both_have_signed_is_sealed_by_itself_and_drawn():
    async def play(world):
        await indebted(world)
        browser = Browser(world.nodes[0])
        before = await browser.api("/v1/ledger/cubes")
        assert [(row["sealed"], row["unsealed"]) for row in before["cubes"]] == [(0, 1)] * 2
        await world.skip(CHECKPOINT_MS + 2 * LOOK_MS, LOOK_MS)
        for node in world.nodes:
            rows = (await Browser(node).api("/v1/ledger/cubes?compare=1"))["cubes"]
            assert [(row["sealed"], row["unsealed"]) for row in rows] == [(1, 0)] * 2
            assert [(row["compared"], row["shared"]) for row in rows] == [("same", 1)] * 2
            level = {"level": 1, "index": 0, "full": 1, "differs": None}
            assert [row["levels"] for row in rows] == [[level]] * 2
            await node.ledger.verify()
            text = await Browser(node).shown("/ledger")
            assert text.count('<svg class="cube"') == 2
            cells = re.findall(r'<rect class="(t-b|ground)" x="\d+" y="\d+" width="10"', text)
            assert (cells.count("t-b"), cells.count("ground")) == (2, 52)
            assert ">sealed</td>" in text
        # One of both has another entry on its disk.
        peer, state = world.nodes[1], world.nodes[1].parts.stores.state
        prefix = INDEX + SHARED + world.nodes[0].key.node_id
        ((key, raw),) = state.scan(prefix, prefix_end(prefix))
        state.write([(key, bytes(32) + raw[32:])], sync=True)
        await world.crash(1)
        await world.restart(1)
        (row,) = (await browser.api(f"/v1/ledger/cubes?compare=1&peer={peer.config.name}"))["cubes"]
        assert row["compared"] == "differs"
        assert row["levels"][0]["differs"] == 0
        newest = (await browser.api("/v1/ledger/log"))["entries"]
        assert row["entry_id"] in {each["entry_id"] for each in newest if each["kind"] == "post"}
        assert row["created_ms"] in {each["created_ms"] for each in newest}

    run(8, 3, play, {"starter_credit": "1000"})
