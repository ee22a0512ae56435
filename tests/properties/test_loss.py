"""The yearly loss against every set of domains that can go in a round, and against chance."""

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.storage.object.durability import HostLabels
from xsc.storage.object.loss import OVERLAPS_MAX, PPB, YEAR_MS, yearly_loss_ppb

DAY_MS = 86_400_000
LIVES_MS = (2 * YEAR_MS, 5 * YEAR_MS, 3 * YEAR_MS)


def loss_ppb(columns, m, lives_ms=LIVES_MS, repair_ms=10 * DAY_MS):
    return yearly_loss_ppb(columns, m, lives_ms=lives_ms, repair_ms=repair_ms)


def domains(columns):
    """Every domain as the nodes that go with it, and its kind."""
    found = [({node}, 0) for node in {host.node for host in columns}]
    for kind in range(1, len(columns[0])):
        for name in {host[kind] for host in columns} - {""}:
            nodes = {host.node for host in columns if host[kind] == name}
            if len(nodes) > 1:
                found.append((nodes, kind))
    return found


def by_enumeration(columns, m, lives_ms, repair_ms):
    """The same from all sets of domains that can be lost, in floating point."""
    held = Counter(host.node for host in columns)
    every = domains(columns)

    def kept(span_ms):
        total = 0.0
        for lost in itertools.product((False, True), repeat=len(every)):
            chance, gone = 1.0, set()
            for (nodes, kind), is_lost in zip(every, lost, strict=True):
                outlives = math.exp(-span_ms / lives_ms[kind])
                chance *= 1 - outlives if is_lost else outlives
                gone |= nodes if is_lost else set()
            total += chance if sum(held[node] for node in gone) <= m else 0
        return total

    rounds, rest_ms = divmod(YEAR_MS, 2 * repair_ms)
    return (1 - kept(2 * repair_ms) ** rounds * kept(rest_ms)) * PPB


def by_chance(columns, m, years, dice):
    """The same from years that are played: when each domain is lost, and what is gone then."""
    held = Counter(host.node for host in columns)
    every = domains(columns)
    losses = 0
    for _ in range(years):
        gone = {}
        for nodes, kind in every:
            at_ms = dice.expovariate(1 / LIVES_MS[kind])
            while at_ms < YEAR_MS:
                gone.setdefault(int(at_ms // (20 * DAY_MS)), set()).update(nodes)
                at_ms += dice.expovariate(1 / LIVES_MS[kind])
        losses += any(sum(held[node] for node in nodes) > m for nodes in gone.values())
    return losses / years * PPB


def network(dice, nodes_max=9, columns_max=9):
    labels = ["", "a", "b", "c"]
    hosts = [
        HostLabels(bytes([i]), dice.choice(labels), dice.choice(labels))
        for i in range(dice.randint(1, nodes_max))
    ]
    return [*hosts, *dice.choices(hosts, k=dice.randint(0, columns_max - len(hosts)))]


@pytest.mark.parametrize("seed", range(12))
def test_the_loss_is_what_years_of_chance_come_to(seed):
    dice = random.Random(seed)
    columns, years = network(dice), 2_000
    m = dice.randint(0, max(1, len(columns) // 2))
    said = loss_ppb(columns, m) / PPB
    played = by_chance(columns, m, years, dice) / PPB
    deviation = math.sqrt(max(said * (1 - said), 1 / years) / years)
    assert abs(said - played) < 4.5 * deviation, (columns, m)


labels = st.sampled_from(["", "a", "b", "c"])
placements = st.lists(st.tuples(labels, labels), min_size=1, max_size=5).flatmap(
    lambda pairs: st.lists(
        st.sampled_from([HostLabels(bytes([i]), *pair) for i, pair in enumerate(pairs)]),
        min_size=1,
        max_size=7,
    )
)


@given(placements, st.integers(0, 4), st.sampled_from([1, 30, 200, 1000]))
def test_the_loss_is_that_of_all_sets_of_domains(columns, m, repair_days):
    repair_ms = repair_days * DAY_MS
    said = loss_ppb(columns, m, repair_ms=repair_ms)
    assert math.isclose(
        said, by_enumeration(columns, m, LIVES_MS, repair_ms), rel_tol=1e-6, abs_tol=2
    )


@given(placements, st.integers(0, 4))
def test_nothing_is_lost_less_for_what_is_shared_or_for_fewer_spares(columns, m):
    alone = [HostLabels(host.node) for host in columns]
    assert loss_ppb(alone, m) <= loss_ppb(columns, m) <= loss_ppb(columns, m - 1) <= PPB
    one_site = [HostLabels(host.node, "a", host.owner) for host in columns]
    if len({host.node for host in columns}) > m + 1:
        assert loss_ppb(one_site, m) >= loss_ppb(
            [HostLabels(h.node, "", h.owner) for h in columns], m
        )


def test_two_nodes_with_three_shards_each_are_as_good_as_both():
    life = 3 * YEAR_MS
    two = [HostLabels(bytes([i % 2])) for i in range(6)]
    said = loss_ppb(two, 2, lives_ms=(life, life, life), repair_ms=DAY_MS)
    assert math.isclose(said, -math.expm1(-2 / 3) * PPB, abs_tol=1)


def test_without_spares_or_with_endless_lives():
    six = [HostLabels(bytes([i])) for i in range(6)]
    assert loss_ppb(six, -1) == PPB
    assert loss_ppb([], 0) == 0
    assert loss_ppb(six, 6, repair_ms=YEAR_MS) == 1, "rounded up"
    assert loss_ppb(six, 2, lives_ms=(2**53,) * 3) == 1
    assert loss_ppb(six, 0, lives_ms=(1, 1, 1)) == PPB


def test_beyond_the_domains_that_can_overlap_the_figure_is_never_too_low():
    def chain(owners, nodes=2 * OVERLAPS_MAX + 6):
        """Sites of two nodes each, and owners of two that stand at different sites."""
        return [
            HostLabels(
                bytes([i]), f"site{i // 2}", f"owner{(i + 1) // 2}" if i < 2 * owners else ""
            )
            for i in range(nodes)
        ]

    exact = [loss_ppb(chain(owners), 3) for owners in (0, 4, OVERLAPS_MAX)]
    assert exact == sorted(exact)
    beyond = chain(OVERLAPS_MAX + 3)
    said = loss_ppb(beyond, 3)
    assert said > exact[-1]
    assert said > by_chance(beyond, 3, 500, random.Random(1))
