"""A peer that signs whatever it likes, in every role at once (tests/sim/adversary).

    TEST_ADVERSARY_SEEDS=2000        plays so many seeds; 300-400 plays those
    TEST_ADVERSARY_STEPS=100         makes each longer

A failure names its seed: TEST_ADVERSARY_SEEDS=N-N plays it again, with the seeds before
it in the same world. How to write a generator for a new method: CONTRIBUTING.md.
"""

from __future__ import annotations

import os

import pytest

from tests.sim.adversary.messages import HEADERS, PARTS
from tests.sim.adversary.play import ROUNDS, STEPS, WEIGHTS, Play
from xsc.net.calls.server import JOIN

LENGTH = int(os.environ.get("TEST_ADVERSARY_STEPS", STEPS))
FIRST, _, LAST = os.environ.get("TEST_ADVERSARY_SEEDS", "3").rpartition("-")
SEEDS = range(int(FIRST), int(LAST) + 1) if FIRST else range(int(LAST))
WORLDS = sorted({seed - seed % ROUNDS for seed in SEEDS})


@pytest.mark.timeout(300 * max(1, LENGTH // STEPS))
@pytest.mark.parametrize("world", WORLDS)
def test_no_law_breaks_beside_a_peer_that_signs_whatever_it_likes(world):
    play = Play(world)
    try:
        for seed in range(world, min(world + ROUNDS, SEEDS.stop)):
            play.run(seed, LENGTH)
        if seed % ROUNDS < ROUNDS - 1:
            # The last seed of a whole world ends so by itself.
            play.settle()
            play.oracle.check()
    finally:
        play.close()


def test_every_method_that_a_peer_answers_has_a_generator_and_no_other_has():
    play = Play(0)
    methods = set(play.node(1).peers.server.handlers) | {JOIN}
    play.close()
    assert set(HEADERS) == methods
    assert set(PARTS) <= methods
    assert set(WEIGHTS) <= methods


def test_a_seed_gives_the_same_story_each_time():
    def story():
        play = Play(0)
        try:
            play.run(0, 10)
            return play.story, play.world.trace()
        except AssertionError as broken:
            return str(broken), play.world.trace()
        finally:
            play.close()

    assert story() == story()
