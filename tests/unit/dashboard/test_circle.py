"""The page Circle: peers, and who introduced whom."""

import pytest

from tests.sim.network import run
from tests.unit.dashboard.browser import Browser
from xsc.api import peers as api
from xsc.base.ids import to_text
from xsc.dashboard.pages.circle import boxes


def peer(name, introducer=None):
    return {"id": name, "introducer": introducer}


def test_who_introduced_whom_is_a_tree():
    rows = [peer("a"), peer("b", "a"), peer("c"), peer("d", "a"), peer("e", "gone")]
    found = {box.peer["id"]: box[1:] for box in boxes(rows)}
    assert found == {
        "a": (1, 0, 0),
        "b": (2, 0, 0),
        "d": (2, 1, 0),
        "c": (1, 2, 0),
        "e": (1, 3, 0),
    }


def test_no_two_peers_stand_at_one_place():
    rows = [peer(str(number), str(number // 3) if number > 5 else None) for number in range(60)]
    found = boxes(rows)
    assert {box.peer["id"] for box in found} == {row["id"] for row in rows}
    assert len({(box.depth, box.line) for box in found}) == 60
    assert max(box.line for box in found) < 60


@pytest.mark.parametrize("rows", [[], [peer("a", "a")], [peer("a", "b"), peer("b", "a")]])
def test_introducers_in_a_circle_are_shown_once(rows):
    assert len(boxes(rows)) == len(rows)


def test_peers_are_shown_with_what_is_known_of_them():
    async def play(world):
        node = world.nodes[0]
        browser = Browser(node)
        one, other = sorted(node.peers.roster.all_peers())
        name = "n" * 64
        await browser.server.ask(api.RENAME, api.Rename(who=to_text(one), name=name))
        await world.crash(world.index_of(other))
        await world.until(lambda: not node.health.is_up(other))
        answer = await browser.get("/circle")
        assert answer.status == 200
        assert name in answer.seen
        assert "down" in answer.seen
        assert '<td class="word">you</td>' in answer.text
        assert "last seen 20" in answer.seen
        assert answer.text.count('class="box away"') == 1
        assert "1 of 2" in answer.seen
        assert (1, ["/v1/measures#/status/peers/healthy"]) in answer.numbers

    run(70, 3, play, {"probe_interval": "15s"})


def test_a_node_alone_says_what_to_do():
    async def play(world):
        answer = await Browser(world.nodes[0]).get("/circle")
        assert "xsc peer add INVITATION" in answer.seen
        assert answer.text.count('class="box ') == 1

    run(71, 1, play)


@pytest.mark.parametrize(
    "weight", ["-1", "1000001", "000000019999999", "1e3", "", "²", "0" * 5_000]
)
def test_a_weight_that_is_none_is_refused(weight):
    async def play(world):
        answer = await Browser(world.nodes[0]).post(
            "/circle/recognise", who="node-1", weight_ppm=weight
        )
        assert answer.status == 400
        assert "weight" in answer.seen

    run(72, 2, play)
