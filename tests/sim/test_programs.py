"""Programs of whole nodes: chains, circles, and peers that change values without end."""

from __future__ import annotations

from tests.sim.network import run
from tests.unit.programs.documents import call, sub
from tests.unit.programs.nodes import document
from xsc.base.errors import NotFound
from xsc.programs.limits import PUBLICATIONS_AN_HOUR_MAX

HOUR_MS = 3_600_000
ONE = {"kind": "value", "type": "integer", "value": 1}


def counter(owner, into="demo/n", read="demo/n"):
    """One more than what another node has."""
    return document(
        {"theirs": sub("integer", read, default=0, owner=owner), "one": ONE},
        {"next": call("math.add", {"x": "theirs", "y": "one"}, n={"path": into})},
    )


def value(node, path="demo/n"):
    try:
        return node.space.get(path).value
    except NotFound:
        return None


def test_the_output_of_one_program_is_the_input_of_another_over_a_crash():
    async def play(world):
        ada, bea, _ = world.nodes
        await ada.programs.start(counter(ada.config.name, read="demo/a"), "json")
        program = await bea.programs.start(counter(ada.config.name), "json")
        await ada.space.put("demo/a", b"40")
        await world.until(lambda: value(bea) == b"42")
        await world.crash(0)
        ada = await world.restart(0)
        await world.clock.sleep_ms(10_000)
        assert (value(ada), value(bea)) == (b"41", b"42")
        await ada.space.put("demo/a", b"1")
        await world.until(lambda: value(bea) == b"3")
        await world.crash(1)
        bea = await world.restart(1)
        assert bea.programs.get_results(program).outputs == {"n": "3"}
        await ada.space.put("demo/a", b"2")
        await world.until(lambda: value(bea) == b"4")

    run(1, 3, play)


def test_two_nodes_whose_programs_feed_each_other_back_off():
    async def play(world):
        ada, bea = world.nodes
        await ada.programs.start(counter(bea.config.name), "json")
        await bea.programs.start(counter(ada.config.name), "json")
        await world.clock.sleep_ms(HOUR_MS // 4)
        for node in world.nodes:
            (row,) = (row for row in node.programs.status() if not row.built_in)
            written = row.publications
            assert PUBLICATIONS_AN_HOUR_MAX <= written < PUBLICATIONS_AN_HOUR_MAX + 10
            assert row.state in {"active", "backing_off"}

    run(2, 2, play, {"probe_interval": "60s"})


def test_a_peer_that_changes_a_value_ten_thousand_times_makes_few_frames():
    async def play(world):
        ada, bea = world.nodes
        program = await bea.programs.start(counter(ada.config.name, read="demo/a"), "json")
        begun_ms = world.clock.now_ms()
        for number in range(0, 10_000, 50):
            for changed in range(number, number + 50):
                await ada.space.put_all({"demo/a": b"%d" % changed})
            await world.clock.sleep_ms(5)
        await world.until(lambda: value(bea) == b"10000")
        passed_ms = world.clock.now_ms() - begun_ms
        frames = bea.programs.get_results(program).frame
        assert frames <= passed_ms // 100 + 2

    run(3, 2, play, {"probe_interval": "60s"})
