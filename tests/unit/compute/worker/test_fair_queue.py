"""Customers take turns, whatever they have waiting, and cleared rates come first."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.clock import ManualClock
from xsc.base.limits import RUN_FUEL
from xsc.compute.worker.admission import WEIGHTS, FairQueue, JobQueue

CUSTOMERS = st.sampled_from([b"a", b"b", b"c"])
A_MS = 1_000_000
"""The fuel that a worker of these tests runs in a millisecond."""


@given(st.lists(st.tuples(CUSTOMERS, st.integers(0, 3)), max_size=40))
def test_who_waits_is_passed_once_by_each_other_and_goes_in_its_own_order(steps):
    turns, waiting, passed = FairQueue(), {}, Counter()
    for number, (customer, what) in enumerate(steps):
        mine = waiting.setdefault(customer, [])
        if what == 0 and len(turns):
            first = turns.first()
            assert turns.take() is first
            taker = first[0]
            assert waiting[taker].pop(0) is first
            for other, theirs in waiting.items():
                if other != taker and theirs:
                    passed[other, taker] += 1
                    assert passed[other, taker] <= 1
            for pair in [pair for pair in passed if pair[0] == taker or not waiting[pair[0]]]:
                del passed[pair]
        elif what == 1 and mine:
            gone = mine.pop(len(mine) // 2)
            assert turns.drop(customer, gone)
            assert not turns.drop(customer, gone)
            if not mine:
                for pair in [pair for pair in passed if pair[0] == customer]:
                    del passed[pair]
        elif what == 2:
            mine.insert(0, (customer, number))
            turns.add(customer, 1, mine[0], first=True)
        else:
            mine.append((customer, number))
            turns.add(customer, 1, mine[-1])
        assert len(turns) == sum(map(len, waiting.values()))
    assert Counter(turns.clear()) == Counter(item for each in waiting.values() for item in each)
    assert len(turns) == 0


@given(
    st.lists(st.tuples(CUSTOMERS, st.integers(0, 4), st.integers(0, 10**12)), max_size=60),
    st.dictionaries(CUSTOMERS, st.sampled_from([1, 2, 4])),
)
def test_whatever_is_charged_everybody_has_a_turn_and_nothing_is_remembered_of_nobody(
    steps, weights
):
    turns, count = FairQueue(), 0
    for customer, what, fuel in steps:
        if what == 0 and count:
            turns.take()
            count -= 1
        elif what == 1:
            turns.charge(customer, fuel)
        else:
            turns.add(customer, weights.get(customer, 1), (customer, what))
            count += 1
    assert [turns.take() for _ in range(count)] or not count
    assert not len(turns)
    assert not turns._balances
    assert not turns._weights


@dataclass(frozen=True)
class AJob:
    customer: bytes
    length_ms: int
    tier: str = "open"
    cleared: bool = False


class Workers:
    """A provider's workers by a manual clock; each customer keeps so many jobs there."""

    def __init__(self, count, kept=0):
        self.clock = ManualClock()
        self.queue = JobQueue()
        self.count, self.kept = count, kept
        self.running = []
        self.started = {}
        self.used = Counter()

    def ask(self, job):
        self.queue.add(job, job)
        self._start()

    def _start(self):
        while len(self.running) < self.count:
            spare = sum(not job.cleared for _, job in self.running) < self.count - self.kept
            waiting = self.queue.next()
            if waiting is None or not (spare or waiting.first().cleared):
                return
            job = waiting.take()
            now_ms = self.clock.now_ms()
            self.started[id(job)] = now_ms
            self.queue.begun(job, now_ms)
            self.running.append((now_ms + job.length_ms, job))

    def step(self):
        """Go on until a job ends, and return it."""
        self.running.sort(key=lambda each: each[0])
        end_ms, job = self.running.pop(0)
        self.clock.advance_to(end_ms)
        self.used[job.customer] += job.length_ms * A_MS + RUN_FUEL
        self.queue.ended(job, job.length_ms * A_MS, end_ms)
        return job


def play(flight, tiers, length_of, *, workers=2, until_ms=600_000):
    """Return the fuel that each customer had of a provider where it always has jobs waiting."""
    shop = Workers(workers)
    for _ in range(flight):
        for customer in tiers:
            shop.ask(AJob(customer, length_of(customer), tiers[customer]))
    begun_ms = shop.clock.now_ms()
    while shop.clock.now_ms() < begun_ms + until_ms:
        done = shop.step()
        shop.ask(AJob(done.customer, length_of(done.customer), done.tier))
    return shop.used


@pytest.mark.parametrize("seed", range(5))
def test_spare_time_is_shared_by_fuel_and_not_by_jobs(seed):
    chance = random.Random(seed)
    longest = {b"a": 5_000, b"b": 1_000, b"c": 100, b"d": 20}
    used = play(16, dict.fromkeys(longest, "open"), lambda who: chance.randint(1, longest[who]))
    assert max(used.values()) <= 1.2 * min(used.values())


@pytest.mark.parametrize("seed", range(5))
def test_tiers_weigh_four_to_two_to_one(seed):
    chance = random.Random(seed)
    tiers = {b"m": "mutual", b"o": "one_way", b"s": "open"}
    used = play(16, tiers, lambda _: chance.randint(1, 1_000))
    for customer, tier in tiers.items():
        share = used[customer] * sum(WEIGHTS.values()) / sum(used.values())
        assert abs(share - WEIGHTS[tier]) <= 0.1 * WEIGHTS[tier]


def test_what_nobody_else_waited_for_costs_no_turn():
    shop = Workers(1)
    shop.ask(AJob(b"a", 600_000))
    shop.ask(AJob(b"a", 1))
    shop.ask(AJob(b"b", 1))
    assert [shop.step().length_ms] == [600_000]
    shop.ask(AJob(b"b", 1))
    ran = []
    while shop.running:
        ran.append(shop.step().customer)
        shop._start()
    assert ran == [b"a", b"b", b"b"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kept", [1, 2])
def test_a_cleared_worker_is_had_behind_64_ten_second_jobs_of_strangers(seed, kept):
    chance = random.Random(seed)
    shop = Workers(kept + 1, kept)
    for number in range(64):
        shop.ask(AJob(b"stranger %d" % (number % 3), 10_000))
    for _ in range(20):
        shop.clock.advance_to(shop.clock.now_ms() + chance.randint(0, 300))
        mine = [AJob(b"me", 900, cleared=True) for _ in range(kept)]
        asked_ms = shop.clock.now_ms()
        for job in mine:
            shop.ask(job)
        while shop.step() is not mine[-1]:
            shop._start()
        assert all(shop.started[id(job)] - asked_ms <= 2_000 for job in mine)
        shop._start()
    assert shop.used[b"stranger 0"] > 0


def test_a_charge_for_what_is_not_known_is_for_its_time():
    queue = JobQueue()
    long, other = AJob(b"a", 0), AJob(b"b", 0)
    for job in (other, long):
        queue.add(job, job)
    queue.begun(long, 0)
    queue.ended(long, None, 100)
    assert queue._spare._balances[b"a"] < -100 * RUN_FUEL // 2
    queue.ended(long, None, 200)  # once
    assert queue._spare._balances[b"a"] > -120 * RUN_FUEL
