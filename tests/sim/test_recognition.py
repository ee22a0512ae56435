"""Recognition goes by the spaces of whole nodes alone: each side sees its tier change."""

from tests.sim.network import run
from tests.sim.test_following import followed
from tests.sim.test_recovery import back, place_of
from tests.sim.test_recovery import told as told_directory
from tests.sim.test_restore import back_up, caught_up, lose_and_restore
from xsc.space.limits import HEAD_INTERVAL_MS
from xsc.space.paths import UserSpacePaths

SETTINGS = {"probe_interval": "60s"}
A_MOMENT_MS = 500
"""Far below every interval: what comes within it was pushed."""


def tiers(node, other):
    """Return on which tier each of two serves the other."""
    return node.commitments.tier(other.key.node_id), other.commitments.tier(node.key.node_id)


def test_tiers_change_on_the_other_side_at_once():
    async def play(world):
        ada, bea, cid = world.nodes
        await ada.commitments.recognise(bea.key.node_id, 300_000)
        await world.clock.sleep_ms(A_MOMENT_MS)
        assert tiers(ada, bea) == ("one_way", "open")
        assert bea.commitments.their_weight_ppm(ada.key.node_id) == 300_000
        await bea.commitments.recognise(ada.key.node_id, 200_000)
        await world.clock.sleep_ms(A_MOMENT_MS)
        assert tiers(ada, bea) == ("mutual", "mutual")
        assert tiers(ada, cid) == ("open", "open")
        await ada.space.rm(UserSpacePaths.RECOGNITION)
        await world.clock.sleep_ms(A_MOMENT_MS)
        assert tiers(ada, bea) == ("open", "one_way")

    run(1, 3, play, SETTINGS)


def test_two_that_cannot_reach_each_other_recognise_each_other_through_a_third():
    async def play(world):
        ada, bea, _ = world.nodes
        world.net.partition(world.place(0), world.place(1))
        await ada.commitments.recognise(bea.key.node_id, 300_000)
        await bea.commitments.recognise(ada.key.node_id, 200_000)
        await world.until(lambda: tiers(ada, bea) == ("mutual", "mutual"))
        await bea.commitments.recognise(ada.key.node_id, 0)
        await world.until(lambda: tiers(ada, bea) == ("one_way", "open"))

    run(2, 3, play, SETTINGS)


def test_it_holds_over_restarts_and_what_was_said_meanwhile_is_heard():
    async def play(world):
        ada, bea, _ = world.nodes
        await ada.commitments.recognise(bea.key.node_id, 300_000)
        await bea.commitments.recognise(ada.key.node_id, 200_000)
        await world.clock.sleep_ms(A_MOMENT_MS)
        await world.crash(0)
        ada = world.make(0)
        ada.commitments.start()
        assert ada.commitments.tier(bea.key.node_id) == "mutual", "before it reaches anybody"
        await bea.commitments.recognise(ada.key.node_id, 0)
        ada = await world.restart(0)
        await world.until(lambda: tiers(ada, bea) == ("one_way", "open"))

    run(3, 3, play, SETTINGS)


def test_a_recovered_node_has_its_weights_and_goes_on_above_them():
    async def play(world):
        ada, bea, _ = world.nodes
        for ppm in (100_000, 200_000, 300_000):
            await ada.commitments.recognise(bea.key.node_id, ppm)
        await bea.commitments.recognise(ada.key.node_id, 200_000)
        await told_directory(world)
        await world.lose(0)
        await back(world, 0, place_of(world, 2))
        ada = world.nodes[0]
        assert ada.commitments.weight_ppm(bea.key.node_id) == 300_000
        await world.until(lambda: tiers(ada, bea) == ("mutual", "mutual"))
        await ada.commitments.recognise(bea.key.node_id, 50_000)
        await world.until(lambda: bea.commitments.their_weight_ppm(ada.key.node_id) == 50_000)

    run(4, 3, play, SETTINGS)


def test_a_restored_node_takes_what_it_said_since_the_backup():
    async def play(world):
        ada, bea, _ = world.nodes
        await ada.commitments.recognise(bea.key.node_id, 300_000)
        raw = back_up(world)
        for ppm in (100_000, 110_000):
            await ada.commitments.recognise(bea.key.node_id, ppm)
        await told_directory(world)
        await lose_and_restore(world, raw)
        await caught_up(world)
        ada = world.nodes[0]
        assert ada.commitments.weight_ppm(bea.key.node_id) == 110_000
        await ada.commitments.recognise(bea.key.node_id, 50_000)
        await world.until(lambda: bea.commitments.their_weight_ppm(ada.key.node_id) == 50_000)

    run(5, 3, play, SETTINGS)


def test_who_is_blocked_or_removed_counts_for_nothing_and_the_budget_is_free_again():
    async def play(world):
        ada, bea, cid = world.nodes
        for node in (bea, cid):
            await ada.commitments.recognise(node.key.node_id, 500_000)
            await node.commitments.recognise(ada.key.node_id, 200_000)
        await world.clock.sleep_ms(A_MOMENT_MS)
        ada.peers.roster.block(bea.key.node_id)
        ada.peers.roster.remove(cid.key.node_id)
        await world.clock.sleep_ms(A_MOMENT_MS)
        for node in (bea, cid):
            assert ada.commitments.tier(node.key.node_id) == "open"
            assert ada.commitments.their_weight_ppm(node.key.node_id) == 0
            assert followed(ada, node) == set()
        assert ada.commitments.heard.of(ada.key.node_id).weights == {bea.key.node_id: 500_000}

    run(6, 3, play, SETTINGS)


def test_a_false_recognition_is_held_against_who_sent_it_and_the_last_one_holds():
    async def play(world):
        ada, bea, _ = world.nodes
        await ada.commitments.recognise(bea.key.node_id, 300_000)
        await world.clock.sleep_ms(A_MOMENT_MS)
        before = bea.health.quality_ppm(ada.key.node_id)
        ada.space._schemas.clear()  # as one does that checks nothing
        ada.space._told.clear()
        await ada.space.put(UserSpacePaths.RECOGNITION, b"all of it")
        await world.clock.sleep_ms(2 * HEAD_INTERVAL_MS)
        assert bea.commitments.their_weight_ppm(ada.key.node_id) == 300_000
        assert bea.health.quality_ppm(ada.key.node_id) < before

    run(7, 3, play, SETTINGS)
