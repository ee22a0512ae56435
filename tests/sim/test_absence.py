"""Laws of absence over many nodes: who is down, who is absent, and what that costs in messages."""

import random

import pytest

from tests.sim.fleet import Fleet, held_against, sail
from tests.sim.network import content, get, put, run
from xsc.base.limits import MIB
from xsc.health.absence import HELPERS, TOLD, window_counts
from xsc.health.detector import AvailabilityTester
from xsc.health.helping import CARRIED_MAX, MISSED, PING, PROBE_FOR, TOLD_MAX
from xsc.health.schedule import PROBES_A_PERIOD
from xsc.health.service import PROBE_INTERVAL_MS

DOWN_MS_MAX = 10_000
MINUTE_MS = 60_000


def others(fleet, node):
    return [each for each in fleet.nodes if each is not node]


@pytest.mark.parametrize("count", [3, 7, 13, 50])
def test_a_machine_that_is_switched_off_is_down_at_all_others_within_ten_seconds(count):
    async def play(fleet):
        victim = fleet.nodes[1]
        await fleet.kill(victim)
        await fleet.until(
            lambda: not any(each.health.is_up(victim.id) for each in others(fleet, victim)),
            DOWN_MS_MAX,
        )
        assert not any(fleet.sent()[fleet.nodes.index(victim)].values())
        for each in others(fleet, victim):
            assert sum(row.state != "up" for row in each.health.table()) == 1

    sail(Fleet(count, count), play)


@pytest.mark.parametrize("count", range(2, 13))
def test_what_is_gone_is_absent_at_all_that_hear_others_and_nobody_else_is(count):
    async def play(fleet):
        victim = fleet.nodes[1]
        await fleet.kill(victim)
        await fleet.clock.sleep_ms(20 * PROBE_INTERVAL_MS)
        for each in others(fleet, victim):
            assert each.health.is_absent(victim.id) == (count > 2)
            rows = {row.node: row for row in each.health.table()}
            del rows[victim.id]
            assert {row.state for row in rows.values()} <= {"up"}
            held = {peer for peer in each.others if held_against(each.health, peer)}
            assert held == ({victim.id} if count > 2 else set())

    sail(Fleet(100 + count, count), play)


@pytest.mark.parametrize("count", range(2, 13))
def test_an_observer_that_loses_everything_moves_nobodys_score(count):
    async def play(fleet):
        lost = fleet.nodes[0]
        fleet.cut = lambda source, target: lost.id in (source, target)
        await fleet.clock.sleep_ms(20 * PROBE_INTERVAL_MS)
        assert {row.state for row in lost.health.table()} == {"down"}
        assert not any(held_against(lost.health, peer) for peer in lost.others)
        assert not any(lost.health.is_absent(peer) for peer in lost.others)
        fleet.cut = lambda _source, _target: False
        await fleet.clock.sleep_ms(4 * PROBE_INTERVAL_MS)
        for node in fleet.nodes:
            assert all(row.state == "up" for row in node.health.table()), "one view again"
        assert not any(held_against(lost.health, peer) for peer in lost.others)

    sail(Fleet(200 + count, count), play)


def test_where_one_path_is_broken_the_pong_that_others_bring_wins():
    async def play(fleet):
        one, other = fleet.nodes[:2]
        fleet.cut = lambda source, target: {source, target} == {one.id, other.id}
        await fleet.clock.sleep_ms(40 * PROBE_INTERVAL_MS)
        for here, there in ((one, other), (other, one)):
            row = here.health.row(there.id)
            assert row.state == "down"
            assert not held_against(here.health, row.node)

    sail(Fleet(3, 7), play)


def test_a_smaller_part_of_a_split_network_says_nothing_of_the_larger():
    async def play(fleet):
        small = {node.id for node in fleet.nodes[:3]}
        fleet.cut = lambda source, target: (source in small) != (target in small)
        await fleet.clock.sleep_ms(20 * PROBE_INTERVAL_MS)
        for node in fleet.nodes:
            absent = {peer for peer in node.others if node.health.is_absent(peer)}
            assert absent == (set() if node.id in small else small)

    sail(Fleet(4, 9), play)


@pytest.mark.parametrize("minutes", [15, 60])
def test_a_node_that_was_cut_off_has_changed_no_score_and_repaired_nothing(minutes):
    """With whole nodes, and a grace of minutes: it has every reason to repair but this one."""
    data = content(MIB)

    async def play(world):
        lost, *rest = world.nodes
        capability = await put(lost, data)
        before = await placed(world, capability)
        for other in range(1, 7):
            world.net.partition("node-0", f"node-{other}")
        await world.clock.sleep_ms(minutes * MINUTE_MS)
        assert all(row.state == "down" for row in lost.health.table())
        assert not lost.storage.repairer.watch.all_gone()
        assert all(node.health.is_absent(lost.key.node_id) for node in rest)
        assert all(lost.key.node_id in node.storage.repairer.watch.all_gone() for node in rest)
        world.net.heal()
        await world.until(lambda: all(world.sees_all(node) for node in world.nodes))
        assert not any(held_against(lost.health, node.key.node_id) for node in rest)
        outcomes = {row.outcome for rows in lost.challenges.rows.values() for row in rows.values()}
        assert outcomes <= {"ok", "unreachable", "prober_void"}
        await world.clock.sleep_ms(8 * MINUTE_MS)
        assert not lost.storage.repairer.recent
        assert not lost.storage.custody_repairer.recent
        assert await placed(world, capability) == before
        assert await get(lost, capability) == data
        for node in rest:
            assert held_against(node.health, lost.key.node_id).keys() == {"availability"}
            others = [each.key.node_id for each in rest if each is not node]
            assert not any(held_against(node.health, other) for other in others)
            assert {node.health.grade(peer) for peer in node.peers.peers()} <= {"new", "vetted"}

    settings = {"repair_grace": "5min", "repair_interval": "10min", "probe_interval": "60s"}
    run(8, 7, play, settings)


async def placed(world, capability):
    """Return the hosts of an object and their columns."""
    stat = await world.nodes[0].storage.stat(capability)
    return [(host.shard, host.node, host.state) for host in stat.hosts]


@pytest.mark.parametrize("count", [10, 50, 200])
def test_what_a_node_sends_in_a_period_does_not_grow_with_the_number_of_nodes(count):
    periods = 4

    async def play(fleet):
        await fleet.clock.sleep_ms(periods * PROBE_INTERVAL_MS)
        for sent in fleet.sent():
            assert set(sent) == {PING}
            assert sent[PING] <= (periods + 1) * min(count - 1, PROBES_A_PERIOD)

    sail(Fleet(5, count), play)


def test_nor_does_it_where_messages_are_lost():
    count, periods = 30, 6

    async def play(fleet):
        await fleet.clock.sleep_ms(periods * PROBE_INTERVAL_MS)
        looks = 2 * (PROBES_A_PERIOD + TOLD_MAX)
        for sent in fleet.sent():
            assert sent[PING] <= (periods + 1) * (looks + CARRIED_MAX)
            assert sent[MISSED] <= (periods + 1) * looks * TOLD
            assert sent[PROBE_FOR] <= (periods + 1) * PROBES_A_PERIOD * HELPERS
            assert sum(sent.values()) <= (periods + 1) * 100

    sail(Fleet(6, count, loss_ppm=50_000), play)


def test_at_five_percent_loss_nobody_is_absent():
    async def play(fleet):
        await fleet.clock.sleep_ms(60 * PROBE_INTERVAL_MS)
        assert not any(fleet.scores().values())

    sail(Fleet(7, 9, loss_ppm=50_000), play)


@pytest.mark.parametrize("nodes", [3, 4, 12])
def test_no_false_absence_in_a_million_node_periods_at_five_percent_loss(nodes):
    """The rules alone: each message is lost by itself, those to and from a helper as well."""
    chance = random.Random(nodes)
    unfound = (1 - 0.95**4) ** min(HELPERS, nodes - 2)
    peers = [bytes([number]) for number in range(nodes - 1)]
    tester, missed = AvailabilityTester(), []
    for _ in range(1_000_000):
        before, missed = missed, [peer for peer in peers if chance.random() >= 0.95**2]
        for peer in before:
            if peer not in missed:
                tester.record_result(peer, True, 1)
        for peer in missed:
            tester.record_result(peer, False, 0)
        if window_counts(len(peers) - len(missed), len(missed), 0):
            for peer in missed:
                if tester.state(peer) != "down":
                    continue
                if chance.random() < unfound:
                    assert not tester.record_unfound(peer)
                else:
                    tester.record_found(peer)
    assert not any(map(tester.is_absent, peers))
