"""Where columns go: against brute force over every placement of small networks."""

from collections import Counter
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.storage.object.durability import PLANNED_PARITY_MAX, Contract, HostLabels, survival
from xsc.storage.repair.migration import Layout, next_move

NODES = [bytes([node]) * 32 for node in range(10)]
OWN = NODES[0]


def layout_of(columns, displaced=(), **change):
    fields = {
        "columns": tuple(columns),
        "displaced": frozenset(displaced),
        "m": 2,
        "own": OWN,
        "doubled": len(set(columns)) < len(columns),
        "labels": {},
    }
    return Layout(**fields | change)


def follow(layout, available):
    """Follow the plan to its end; return the layout then, and how many columns moved."""
    moves = 0
    while move := next_move(layout, available):
        assert move.targets
        assert move.targets <= set(available)
        layout = layout.placed(move.column, min(move.targets))
        moves += 1
        assert moves <= 2 * len(layout.columns), "the plan must end"
    return layout, moves


@given(st.sets(st.integers(0, 5)), st.sets(st.integers(0, 9)))
def test_distinct_hosts_stay_distinct_and_nothing_moves_without_a_reason(lost, up):
    columns = NODES[:6]
    available = {NODES[node] for node in up}
    after, moves = follow(layout_of(columns, lost), available)
    left = after.displaced
    homes = [node for column, node in enumerate(after.columns) if column not in left]
    assert len(homes) == len(set(homes))
    for column in range(6):
        if column not in lost:
            assert after.columns[column] == columns[column]
    keeping = {node for column, node in enumerate(columns) if column not in lost}
    assert moves == min(len(lost), len(available - keeping))
    assert len(left) == len(lost) - moves


@given(st.integers(1, 9))
def test_a_lone_nodes_object_spreads_as_evenly_as_it_can(count):
    after, _ = follow(layout_of([OWN] * 6), NODES[:count])
    held = Counter(after.columns)
    assert not after.displaced
    assert len(held) == min(6, count)
    assert max(held.values()) - min(held.values()) <= 1


def test_the_own_node_and_the_place_of_the_loss_come_last():
    def wanted(available):
        return next_move(layout_of(NODES[1:7], {2}), available)

    move = wanted([OWN, NODES[3], NODES[8]])
    assert (move.column, move.targets) == (2, {NODES[8]})
    assert wanted([OWN, NODES[3]]).targets == {NODES[3]}
    assert wanted([OWN]).targets == {OWN}
    assert wanted([NODES[1]]) is None
    assert wanted([]) is None


@pytest.mark.parametrize("m", [PLANNED_PARITY_MAX, PLANNED_PARITY_MAX + 1])
@pytest.mark.parametrize("contract", [Contract(), Contract(1)])
def test_an_object_of_any_width_is_repaired_as_far_as_there_are_nodes(m, contract):
    nodes = [bytes([node]) * 32 for node in range(m + 4)]
    layout = layout_of(nodes[1 : m + 3], {0, 4, 5}, m=m, contract=contract)
    after, _ = follow(layout, nodes[7:])
    assert after.displaced == {4, 5}
    assert after.columns[0] == nodes[-1]
    after, _ = follow(layout, nodes[1:])
    assert not after.displaced
    assert len(set(after.columns)) == m + 2


def test_an_object_of_any_width_with_several_columns_a_node_is_repaired_evenly():
    columns = NODES[1:5] * 5
    layout = layout_of(columns, {1, 5, 9, 13, 17}, m=PLANNED_PARITY_MAX + 1)
    after, _ = follow(layout, [NODES[1], *NODES[3:6]])
    assert set(Counter(after.columns).values()) == {5}


def test_an_object_is_repaired_where_the_search_for_the_best_place_gives_up(monkeypatch):
    monkeypatch.setattr("xsc.storage.object.durability.EFFORT_MAX", 0)
    # Plans are kept: of these nodes no other test may ask.
    nodes = [bytes([node]) * 32 for node in range(100, 108)]
    move = next_move(layout_of(nodes[:6], {0}, contract=Contract(1)), nodes[1:])
    assert (move.column, move.targets) == (0, set(nodes[6:]))


def test_a_contract_is_kept_where_the_planner_gives_up():
    """Its columns are then placed evenly, and whether that keeps the contract is seen."""
    m = PLANNED_PARITY_MAX + 1
    near, far = ([bytes([first + node]) * 32 for node in range(20)] for first in (100, 1))
    columns = [*near[: m + 1], *far[:2]]
    labels = {node: HostLabels(node, "near") for node in near}
    labels |= {node: HostLabels(node, "far") for node in far}
    given = {"m": m, "labels": labels, "contract": Contract(0, 1), "own": bytes(32)}
    layout = layout_of(columns, movable=True, **given)
    assert not layout.keeps_contract, "one site has more columns than may be lost"
    move = next_move(layout, [far[5]])
    assert (columns[move.column] in near, move.targets) == (True, {far[5]})
    assert layout.placed(move.column, far[5]).keeps_contract
    # What was lost goes back to its place where a new one keeps less.
    layout = layout_of(columns[1:], {m}, **given)
    assert next_move(layout, [near[18], far[0]]).targets == {far[0]}


def test_nodes_that_do_as_well_as_each_other_are_all_named():
    labels = {node: HostLabels(node, "here" if node in NODES[:7] else "there") for node in NODES}
    layout = layout_of(NODES[1:7], {2}, labels=labels)
    assert next_move(layout, [NODES[7], NODES[8], NODES[9]]).targets == set(NODES[7:10])
    mixed = labels | {NODES[9]: HostLabels(NODES[9], "here")}
    layout = layout_of(NODES[1:7], {2}, labels=mixed, contract=Contract(0, 1))
    assert next_move(layout, [NODES[7], NODES[8], NODES[9]]).column == 2


sites = st.sampled_from(["", "a", "b", "c"])


@st.composite
def situations(draw):
    """An object on distinct nodes of a small network, some of it lost, and a contract."""
    n, m = draw(st.sampled_from([(3, 1), (4, 2), (3, 2)]))
    count = draw(st.integers(n, 7))
    labels = {
        node: HostLabels(node, draw(sites), draw(st.sampled_from(["", "x", "y"])))
        for node in NODES[1 : count + 1]
    }
    columns = draw(st.permutations(NODES[1 : count + 1]))[:n]
    displaced = draw(st.sets(st.integers(0, n - 1), max_size=m))
    losers = {columns[column] for column in displaced}
    available = draw(st.sets(st.sampled_from(NODES[1 : count + 1]))) - losers
    contract = draw(
        st.sampled_from([Contract(), Contract(0, 1), Contract(1, 1), Contract(1, 0, 1)])
    )
    return layout_of(columns, displaced, m=m, labels=labels, contract=contract), frozenset(
        available
    )


def brute(layout, available, movable):
    """The fewest moves of healthy columns that keep the contract, and the most that survives.

    All columns without a home that can be placed are; None where no contract is kept.
    """
    n = len(layout.columns)
    healthy = [column for column in range(n) if column not in layout.displaced]
    choices = []
    for column, node in enumerate(layout.columns):
        if column in layout.displaced:
            choices.append([*sorted(available), None])
        else:
            choices.append([node, *sorted(available - {node})] if movable else [node])
    best = None
    for nodes in product(*choices):
        live = [node for node in nodes if node is not None]
        if len(set(live)) < len(live):
            continue
        lost = n - len(live)
        moved = sum(nodes[column] != layout.columns[column] for column in healthy)
        survived = survival([layout.host(node) for node in live], layout.m - lost)
        meets = survived.meets(layout.contract)
        # Everything has a home first, then the contract, then few moves, then survival.
        worth = (-lost, meets, -moved if meets else 0, survived)
        if not meets and moved:
            continue
        if best is None or worth > best:
            best = worth
    return best


def worth(before, after, moves_of_healthy):
    live = [node for c, node in enumerate(after.columns) if c not in after.displaced]
    survived = survival([after.host(node) for node in live], after.m - len(after.displaced))
    meets = survived.meets(after.contract)
    return (-len(after.displaced), meets, -moves_of_healthy if meets else 0, survived)


def healthy_moves(before, after):
    return sum(
        one != other
        for column, (one, other) in enumerate(zip(before.columns, after.columns, strict=True))
        if column not in before.displaced
    )


@given(situations())
def test_what_is_lost_goes_where_most_survives_of_all_places(situation):
    layout, available = situation
    after, _ = follow(layout, available)
    assert healthy_moves(layout, after) == 0
    assert worth(layout, after, 0) == brute(layout, available, movable=False)


@given(situations())
def test_as_few_columns_as_possible_move_so_that_a_contract_is_kept(situation):
    layout, available = situation
    healed, _ = follow(layout, available)
    if healed.displaced:
        return
    whole = layout_of(
        healed.columns, m=layout.m, labels=layout.labels, contract=layout.contract, movable=True
    )
    after, _ = follow(whole, available)
    moved = healthy_moves(whole, after)
    best = brute(whole, available, movable=True)
    assert (after.keeps_contract, moved) == (best[1], -best[2])
    if moved == 0:
        assert after.columns == whole.columns


def test_a_column_moves_back_when_a_node_comes_at_the_site_that_is_missing():
    labels = {
        node: HostLabels(node, site) for node, site in zip(NODES[1:8], "aabbccc", strict=True)
    }
    kept = layout_of(NODES[1:7], labels=labels, contract=Contract(2, 1), movable=True, m=2)
    assert kept.keeps_contract
    assert next_move(kept, NODES[1:8]) is None
    broken = kept.placed(0, NODES[7])
    assert not broken.keeps_contract
    move = next_move(broken, NODES[1:8])
    assert move.targets == {NODES[1]}
    assert broken.columns[move.column] in NODES[5:8]
    assert next_move(broken, NODES[2:8]) is None, "it cannot be kept, so nothing moves"
    fixed = layout_of(broken.columns, labels=labels, contract=Contract(2, 1), movable=False)
    assert next_move(fixed, NODES[1:8]) is None


def test_a_doubled_up_object_spreads_without_breaking_its_contract():
    labels = {node: HostLabels(node, site) for node, site in zip(NODES[1:5], "abca", strict=True)}
    columns = [NODES[1], NODES[1], NODES[2], NODES[2], NODES[3], NODES[3]]
    layout = layout_of(columns, labels=labels, contract=Contract(1, 1), movable=True)
    assert layout.keeps_contract
    after, _ = follow(layout, NODES[1:5])
    assert after.keeps_contract


def test_no_column_is_balanced_to_a_site_with_which_the_object_survives_less():
    sites = dict(zip(NODES[1:8], "aabbccc", strict=True))
    labels = {node: HostLabels(node, site) for node, site in sites.items()}
    columns = [NODES[1], NODES[1], NODES[3], NODES[4], NODES[5], NODES[6]]
    layout = layout_of(columns, labels=labels)
    assert next_move(layout, [NODES[7]]) is None
    assert next_move(layout, [NODES[2], NODES[7]]).targets == {NODES[2]}


def test_the_own_node_takes_a_column_before_another_node_takes_a_second():
    layout = layout_of([*NODES[1:5], NODES[5], NODES[5]], {0})
    assert next_move(layout, [OWN, *NODES[2:6]]).targets == {OWN}
    assert next_move(layout, NODES[2:6]).targets <= set(NODES[2:5])


@pytest.mark.parametrize("count", [10, 14])
def test_wide_codes_on_many_nodes_are_planned_too(count):
    nodes = [bytes([node]) * 32 for node in range(1, count + 6)]
    labels = {node: HostLabels(node, "abcde"[index % 5]) for index, node in enumerate(nodes)}
    layout = layout_of(nodes[:count], {1, 3}, m=4, labels=labels, contract=Contract(2, 1))
    after, moves = follow(layout, nodes[count:])
    assert moves == 2
    assert not after.displaced
