"""What an operator reads in the log of a node that has nothing to do: what changed, and once."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests.sim.network import World, content, get, put, run
from tests.unit.net.nodes import RecordingLog

HOUR_MS = 3_600_000
LINES_AN_HOUR_MAX = 10


class Logged(World):
    """Keeps what each node logs."""

    def __init__(self, *given) -> None:
        super().__init__(*given)
        self.logs: dict[int, RecordingLog] = {}

    def parts(self, index, seed):
        log = self.logs[index] = RecordingLog()
        return replace(super().parts(index, seed), log=log)


def test_an_idle_node_logs_what_changes_and_says_nothing_twice():
    async def play(world):
        for log in world.logs.values():
            log.events.clear()
        await world.crash(2)
        await world.clock.sleep_ms(HOUR_MS)
        for log in (world.logs[0], world.logs[1]):
            assert len(log.events) <= LINES_AN_HOUR_MAX
            assert "health.down" in log.names()
            assert len({str(event) for event in log.events}) == len(log.events)

    run(8, 3, play, {"probe_interval": "60s"}, kind=Logged)


IS_LONG = "TEST_LONG" in os.environ
"""Else fewer nodes for less time: each follows all others."""


def test_eight_nodes_that_all_offer_are_quiet_while_nobody_needs_anything():
    async def play(world):
        nodes = world.nodes
        await world.until(lambda: all(len(node.commitments.own.slots) == 2 for node in nodes))
        await world.clock.sleep_ms(60_000)
        for log in world.logs.values():
            log.events.clear()
        before = [node.space.ls("allocation") for node in nodes]
        await world.clock.sleep_ms((HOUR_MS if IS_LONG else HOUR_MS // 4) - 120_000)
        assert [log.names() for log in world.logs.values() if log.events] == []
        assert [node.space.ls("allocation") for node in nodes] == before
        assert all(
            node.allocator.has_converged and not node.allocator.records.ids() for node in nodes
        )

    run(8, 8, play, {"probe_interval": "60s"}, kind=Logged)


@pytest.mark.parametrize("idle", [12 if IS_LONG else 6])
def test_a_node_of_many_peers_that_holds_and_rents_nothing_writes_few_lines(idle):
    """Its number is that of its peers."""

    def offers_nothing(world):
        world.settings_of[idle] = {"offer": "none"}

    async def play(world):
        log = world.logs[idle]
        log.events.clear()
        for index in range(6 if IS_LONG else 3):
            capability = await put(world.nodes[index], content(100_000))
            await get(world.nodes[(index + idle // 2) % idle], capability)
            await world.clock.sleep_ms(HOUR_MS // 6)
        assert world.nodes[idle].shards.used_bytes == 0
        assert len(log.events) <= LINES_AN_HOUR_MAX // (1 if IS_LONG else 2), log.names()

    run(10, idle + 1, play, {"probe_interval": "60s"}, offers_nothing, kind=Logged)


def test_what_cannot_be_repaired_is_logged_once_though_it_is_tried_again_and_again():
    async def play(world):
        await put(world.nodes[0], content(100_000))
        for index in (3, 4, 5):
            await world.crash(index)
        await world.clock.sleep_ms(300_000)
        said = [fields for event, fields in world.logs[0].events if event == "repair.incomplete"]
        assert len({str(fields) for fields in said}) == len(said) >= 1
        rounds = [one for one in world.net.trace if "storage.stat" in one.path]
        assert len(rounds) > 3 * len(said)

    settings = {"repair_grace": "20s", "repair_interval": "30s", "probe_interval": "10s"}
    run(9, 7, play, settings, kind=Logged)
