"""The planner against brute force, and what a placement survives against every loss."""

import itertools
import os
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.errors import ArgumentInvalid
from xsc.storage.object.durability import (
    KINDS,
    Contract,
    Domains,
    HostLabels,
    attainable,
    domains_of,
    parse,
    plan,
    survival,
)

NODES_MAX = 9
SITES_MAX = 4


def spreads(columns, nodes):
    """Every way to put that many columns on that many nodes."""
    if nodes == 1:
        yield (columns,)
        return
    for first in range(columns + 1):
        for rest in spreads(columns - first, nodes - 1):
            yield (first, *rest)


def placed(hosts, spread):
    return [host for host, count in zip(hosts, spread, strict=True) for _ in range(count)]


def brute(hosts, n, m, asked):
    """The best survival that any placement gives, by trying all."""
    best = None
    for spread in spreads(n, len(hosts)):
        survived = survival(placed(hosts, spread), m)
        if survived.meets(asked) and (best is None or survived > best):
            best = survived
    return best


def planned(hosts, n, m, asked):
    columns = plan(hosts, n, m, asked)
    if columns is None:
        return None
    assert len(columns) == n
    by_node = {host.node: host for host in hosts}
    return survival([by_node[node] for node in columns], m)


def networks(sites, nodes_max):
    """Networks of up to so many nodes: how many stand at each site, order left out."""
    for nodes in range(1, nodes_max + 1):
        for counts in spreads(nodes, sites):
            if list(counts) == sorted(counts, reverse=True):
                yield [
                    HostLabels(bytes([index]), f"site{site}")
                    for index, site in enumerate(
                        site for site, count in enumerate(counts) for _ in range(count)
                    )
                ]


ASKED = [Contract(), Contract(2, 1), Contract(1, 1), Contract(0, 1)]


@pytest.mark.parametrize("asked", ASKED if "TEST_LONG" in os.environ else ASKED[:2])
def test_the_plan_is_the_best_there_is_for_every_network_of_nine_nodes_at_four_sites(asked):
    seen = 0
    for hosts in networks(SITES_MAX, NODES_MAX):
        assert planned(hosts, 6, 2, asked) == brute(hosts, 6, 2, asked), hosts
        seen += 1
    assert seen > 50


labels = st.sampled_from(["", "a", "b", "c"])
small = st.lists(st.tuples(labels, labels), min_size=1, max_size=6).map(
    lambda pairs: [HostLabels(bytes([i]), *pair) for i, pair in enumerate(pairs)]
)


@given(
    small,
    st.sampled_from([(6, 2), (3, 2), (4, 2), (5, 1), (5, 3), (2, 1)]),
    st.builds(Contract, st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
)
def test_the_plan_is_the_best_there_is_with_sites_owners_and_unknown_ones(hosts, code, asked):
    n, m = code
    assert planned(hosts, n, m, asked) == brute(hosts, n, m, asked)


wide = st.lists(st.tuples(labels, labels, labels), min_size=1, max_size=6).map(
    lambda triples: [HostLabels(bytes([i]), *triple) for i, triple in enumerate(triples)]
)


@given(
    wide,
    st.sampled_from([(6, 2), (3, 2), (5, 1), (2, 1)]),
    st.builds(Contract, *(st.integers(0, 2) for _ in KINDS)),
)
def test_the_plan_is_the_best_there_is_with_introducers(hosts, code, asked):
    n, m = code
    assert planned(hosts, n, m, asked) == brute(hosts, n, m, asked)


@given(
    wide,
    st.sampled_from([(6, 2), (3, 2), (5, 1), (2, 1)]),
    st.builds(Contract, *(st.integers(0, 2) for _ in KINDS)),
)
def test_no_placement_survives_more_of_a_contract_than_is_attainable(hosts, code, asked):
    n, m = code
    most = attainable(hosts, n, m, asked)
    assert plan(hosts, n, m, most) is not None
    for counts in itertools.product(*(range(count + 1) for count in asked)):
        if counts > most:
            assert plan(hosts, n, m, Contract(*counts)) is None


def test_domains_are_counted_by_kind_and_nodes_that_name_none_beside_them():
    columns = [
        HostLabels(b"1", "a", "x"),
        HostLabels(b"2", "a"),
        HostLabels(b"2", "a"),
        HostLabels(b"3"),
    ]
    assert domains_of(columns) == (Domains(3, 0), Domains(1, 1), Domains(1, 2), Domains(0, 3))
    assert domains_of([]) == (Domains(0, 0),) * 4


@given(small, st.data())
def test_what_is_said_to_survive_survives_every_such_loss(hosts, data):
    m = data.draw(st.integers(0, 3))
    columns = data.draw(st.lists(st.sampled_from(hosts), min_size=m + 1, max_size=8))
    said = survival(columns, m)
    for count, kind in zip(said, KINDS, strict=True):
        known = {getattr(host, kind) for host in columns} - {""}
        for lost in itertools.combinations(known, min(count, len(known))):
            gone = [
                host
                for host in columns
                # An unlabelled node may stand at any site that is lost.
                if getattr(host, kind) in lost or (count and getattr(host, kind) == "")
            ]
            assert len(gone) <= m


def test_columns_are_spread_evenly_and_earlier_hosts_come_first():
    hosts = [HostLabels(bytes([index])) for index in range(9)]
    assert plan(hosts, 6, 2, Contract()) == tuple(bytes([index]) for index in range(6))
    four = plan(hosts[:4], 6, 2, Contract())
    assert sorted(Counter(four).values()) == [1, 1, 2, 2]
    assert Counter(four)[bytes([0])] == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2nodes", Contract(2)),
        ("1node", Contract(1)),
        ("2nodes,1site", Contract(2, 1)),
        ("1owner, 2 nodes", Contract(2, 0, 1)),
        ("0nodes", Contract()),
    ],
)
def test_a_contract_is_read_and_written(text, expected):
    assert parse(text) == expected
    assert parse(expected.to_text()) == expected


@pytest.mark.parametrize(
    "text", ["", "2", "nodes", "2nodes,,", "2nodes,1node", "-1nodes", "1city", "255nodes"]
)
def test_a_malformed_contract_is_refused(text):
    with pytest.raises(ArgumentInvalid):
        parse(text)


@pytest.mark.parametrize(("k", "m"), [(16, 8), (32, 16), (64, 32), (200, 55)])
@pytest.mark.parametrize("count", [1, 5, 8, 20])
def test_a_wide_code_is_placed_without_a_search_that_has_no_end(k, m, count):
    hosts = [HostLabels(bytes([i]) * 32) for i in range(count)]
    columns = plan(hosts, k + m, m, Contract())
    assert columns is not None
    assert len(columns) == k + m
    even = survival([hosts[column % count] for column in range(k + m)], m)
    assert survival([HostLabels(node) for node in columns], m) >= even
