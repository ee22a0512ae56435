"""What an operator reads in the log of a node that has nothing to do: what changed, and once."""

from __future__ import annotations

from dataclasses import replace

from tests.sim.network import World, run
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
