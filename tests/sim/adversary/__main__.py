"""Plays seeds and says what breaks: python -m tests.sim.adversary FIRST LAST [--first] [LAW …].

With --first it ends at the first law that breaks. The laws that are named are left out,
to see what else breaks. Exit status 1: a law broke.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

from tests.sim.adversary.laws import LEFT_OUT, LawBroken
from tests.sim.adversary.play import ROUNDS, Play
from tests.sim.signatures import simulated


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    first, last = map(int, sys.argv[1:3])
    LEFT_OUT.update(sys.argv[3:])
    heard: Counter[tuple[str, str]] = Counter()
    begun = time.monotonic()
    held = broke = 0
    for world in range(first - first % ROUNDS, last, ROUNDS):
        play, seed = Play(world), world
        try:
            for seed in range(world, min(world + ROUNDS, last)):
                play.run(seed)
                held += 1
        except LawBroken as broken:
            broke += 1
            few = last - first <= ROUNDS
            say(f"{seed}: {broken if few else str(broken).splitlines()[0][:300]}")
        finally:
            play.close()
            heard.update(play.proxy.heard)
        if broke and "--first" in sys.argv:
            return 1
    for method in sorted({method for method, _ in heard}):
        some = Counter({why: count for (name, why), count in heard.items() if name == method})
        say(f"{method:>20} ok {some.pop('ok', 0)} {some.most_common(5)}")
    took = time.monotonic() - begun
    say(f"{held} seeds held, {broke} did not; {took:.1f} s")
    return 1 if broke else 0


with simulated():
    status = main()
sys.exit(status)
