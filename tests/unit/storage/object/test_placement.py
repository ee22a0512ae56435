import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.storage.object.test_manifest import OWNER, make
from xsc.base.errors import RecordInvalid
from xsc.base.limits import SEGMENT_BYTES
from xsc.base.units import held_bytes
from xsc.storage.object.durability import Contract, HostLabels, plan
from xsc.storage.object.erasure import Code
from xsc.storage.object.inventory import HeldColumn, HeldObject
from xsc.storage.object.manifest import expected_digest
from xsc.storage.object.placement import (
    Placement,
    assign,
    check_code,
    column_state,
    column_states,
    columns_of,
    condition,
    default_contract,
    host_bytes,
    likely_columns,
    losses_survived,
    nodes_needed,
    placement_of,
    record_bytes,
    shortfall,
    warnings_of,
)

NODES = [bytes([index]) * 32 for index in range(9)]


def hosts(columns, site=""):
    return [HostLabels(node, site) for node in columns]


def test_a_placement_says_what_its_manifest_says_and_where_the_columns_are():
    for size in (5, 5000):
        manifest = make(size).model_copy(update={"survive": (2, 1, 0, 0)})
        placement = placement_of(manifest, NODES[:6])
        assert (placement.k, placement.m, placement.columns) == (4, 2, tuple(NODES[:6]))
        assert placement.contract == manifest.contract == Contract(2, 1)
        assert placement_of(make(size), NODES[:6]).contract == Contract()


@pytest.mark.parametrize("change", [{"k": 0}, {"k": 256}, {"columns": []}])
def test_a_placement_out_of_bounds_is_refused(change):
    value = placement_of(make(5), NODES[:1]).to_value()
    assert Placement.from_value({**value, "k": 1}).m == 0
    with pytest.raises(RecordInvalid):
        Placement.from_value({**value, **change})


@pytest.mark.parametrize("hosts", range(1, 10))
@pytest.mark.parametrize("n", [1, 3, 6, 8])
def test_columns_are_spread_as_evenly_as_possible(hosts, n):
    columns = assign(NODES[:hosts], n)
    loads = [len(columns_of(columns, node)) for node in NODES[:hosts]]
    assert sum(loads) == n
    assert max(loads) - min(loads) <= 1
    assert len(set(columns)) == min(hosts, n)


def brute_survived(columns, m):
    nodes = sorted(set(columns))
    survived = 0
    for losses in range(1, len(nodes) + 1):
        for lost in itertools.combinations(nodes, losses):
            if sum(node in lost for node in columns) > m:
                return survived
        survived = losses
    return survived


@pytest.mark.parametrize("m", range(5))
def test_losses_survived_is_exact_for_every_placement_of_six(m):
    for columns in itertools.product(NODES[:4], repeat=6):
        if columns == tuple(sorted(columns)):
            assert losses_survived(columns, m) == brute_survived(columns, m)


def test_nodes_needed_is_the_least():
    assert [nodes_needed(Code(), losses) for losses in range(4)] == [1, 3, 6, None]
    assert [nodes_needed(Code(4, 4), losses) for losses in range(6)] == [1, 2, 4, 7, 8, None]


def test_six_on_three_nodes_survive_one():
    assert losses_survived(assign(NODES[:3], 6), 2) == 1
    assert losses_survived(assign(NODES[:2], 6), 2) == 0


def test_a_shortfall_says_why_and_what_helps():
    short = shortfall(hosts(NODES[:4]), Code(), Contract(2))
    assert "4 nodes" in short.reason
    assert "6 nodes" in short.hint
    never = check_code(Code(), Contract(3))
    assert "--code 4,3" in never.hint
    assert check_code(Code(), Contract(2)) is check_code(Code(1, 0), Contract()) is None
    assert shortfall(hosts(NODES[:6]), Code(), Contract(2)) is None
    assert shortfall(hosts(NODES[:1]), Code(), Contract()) is None


def test_warnings_name_what_is_thin():
    assert warnings_of(assign(NODES[:6], 6), Code(), NODES[0]) == []
    assert warnings_of(assign(NODES[:1], 6), Code(), NODES[0]) == [
        "the object does not survive the loss of this node"
    ]
    assert "one node" in warnings_of(assign(NODES[:1], 6), Code(), NODES[1])[0]
    assert "this node" in warnings_of(NODES[:1], Code(1, 0), NODES[0])[0]
    assert "5 nodes" in warnings_of(assign(NODES[:5], 6), Code(), NODES[1])[0]


@pytest.mark.parametrize(
    ("good", "spare", "expected"),
    [
        (6, 0, (True, 2, False)),
        (6, 1, (True, 2, True)),
        (5, 1, (True, 1, True)),
        (4, 1, (True, 0, False)),
        (4, 2, (True, 0, True)),
        (3, 9, (False, -1, False)),
        (0, 9, (False, -4, False)),
    ],
)
def test_six_nodes_cannot_heal_and_the_seventh_does(good, spare, expected):
    states = ["ok"] * good + ["unreachable"] * (6 - good)
    found = condition(states, 4, spare, inline=False)
    assert (found.readable, found.margin, found.healable) == expected


def test_an_inline_object_is_readable_from_any_host():
    for good in range(7):
        found = condition(["ok"] * good + ["missing"] * (6 - good), 4, 0, inline=True)
        assert found.readable == (good >= 1)
        assert found.margin == (max(good - 4, 0) if good else -4)
        assert found.margin <= max(good - 1, -4)


def held(manifest, column, **change):
    row = {
        "customer": OWNER,
        "column": column,
        "segments": 3,
        "digest": expected_digest(manifest, column),
        "damaged": 0,
    }
    return HeldColumn(**row | change)


def test_the_state_of_a_column_is_the_worst_of_its_segments():
    manifest = make(2 * SEGMENT_BYTES + 7)
    answers = {
        NODES[0]: HeldObject((held(manifest, 0),), "ok"),
        NODES[1]: HeldObject((held(manifest, 1, segments=2, digest=bytes(32)),), "ok"),
        NODES[2]: HeldObject((held(manifest, 2, damaged=1),), "ok"),
        NODES[3]: HeldObject((held(manifest, 3, digest=bytes(32)),), "ok"),
        NODES[4]: None,
        NODES[5]: HeldObject((held(manifest, 0),), "ok"),
    }
    assert column_states(manifest, NODES[:6], answers) == [
        "ok",
        "missing",
        "corrupt",
        "corrupt",
        "unreachable",
        "missing",
    ]


@pytest.mark.parametrize("state", ["ok", "missing", "corrupt"])
def test_a_column_of_an_inline_object_is_the_record_itself(state):
    manifest = make(5)
    assert manifest.inline is not None
    assert column_state(manifest, 0, HeldObject((), state)) == state


def test_what_another_customer_stored_in_that_place_changes_nothing():
    manifest = make(5000)
    stranger = held(manifest, 0, customer=b"x" * 32, segments=9, digest=bytes(32), damaged=9)
    answers = {NODES[0]: HeldObject((stranger, held(manifest, 0)), "ok")}
    assert column_states(manifest, NODES[:1], answers) == ["ok"]


def test_room_covers_what_an_object_takes():
    assert host_bytes(100, Code(), 6) == held_bytes(25)
    quarter = SEGMENT_BYTES // 4
    assert host_bytes(SEGMENT_BYTES * 3 + 1, Code(), 3) == 2 * held_bytes(3 * quarter + 1, 4)
    # For each segment the roots of its columns, nonce and tag; below 4096 bytes the content.
    assert record_bytes(7, Code()) == held_bytes(1024 + 7 + 34 * 6 + 40)
    assert record_bytes(SEGMENT_BYTES + 1, Code()) == held_bytes(1024 + 4096 + 2 * (34 * 6 + 40))
    for size in (0, 4096, 5000, 9 * SEGMENT_BYTES):
        manifest = make(size)
        contract = manifest.model_copy(update={"survive": (254, 254, 254, 254)})
        sealed = len(contract.to_bytes()) + 28
        assert held_bytes(sealed) <= record_bytes(size, Code())


def test_a_shortfall_of_sites_names_the_nodes_that_do_not_say_where_they_are():
    silent = shortfall(hosts(NODES[:6]), Code(), Contract(2, 1))
    assert "0 known sites" in silent.reason
    assert "`site`" in silent.hint
    some = shortfall([*hosts(NODES[:5], "attic"), *hosts(NODES[5:6])], Code(), Contract(2, 1))
    assert "`site`" in some.hint
    together = shortfall(hosts(NODES[:6], "attic"), Code(), Contract(2, 1))
    assert "1 known site survive" in together.reason
    assert "other sites" in together.hint

    here = [HostLabels(NODES[0], "attic"), *hosts(NODES[1:7], "barn")]
    apart = shortfall(here, Code(), Contract(2, 1))
    assert "2 known sites survive" in apart.reason


def test_a_shortfall_gives_the_figures_of_the_best_placement():
    known = [HostLabels(bytes([index]) * 32, f"site{index // 6}") for index in range(18)]
    short = shortfall(known, Code(), Contract(0, 2))
    assert "6 shards on 6 nodes at 3 known sites survive the loss of 1 site," in short.reason
    short = shortfall(known, Code(), Contract(2, 2))
    assert "6 shards on 6 nodes at 3 known sites survive the loss of 1 site," in short.reason


@pytest.mark.parametrize(("k", "m"), [(4, 2), (1, 0), (1, 1), (1, 2), (2, 4), (5, 3), (10, 6)])
def test_the_default_contract_is_what_the_planner_reaches_at_most_two_nodes(k, m):
    code = Code(k, m)
    for nodes in range(1, 12):
        known = [HostLabels(bytes([node])) for node in range(nodes)]
        reached = [lost for lost in range(m + 1) if plan(known, k + m, m, Contract(lost))]
        assert default_contract(code, nodes) == Contract(min(2, max(reached)))


OWN = b"\xee" * 32
CROWD = st.sampled_from([*NODES, OWN])
HOLDERS = st.lists(st.lists(CROWD, max_size=4), max_size=6)


def most_nodes(holders):
    """How many columns can have a node of their own, by trying every choice."""
    found = {frozenset()}
    for nodes in holders:
        found |= {taken | {node} for taken in found for node in nodes}
    return max(map(len, found))


@given(HOLDERS, st.lists(CROWD, max_size=8))
def test_the_likely_node_of_a_column_is_one_that_says_that_it_holds_it(holders, known):
    columns = likely_columns(holders, known, OWN)
    assert len(columns) == len(holders)
    claimed = [column for column, nodes in enumerate(holders) if nodes]
    for column in claimed:
        assert columns[column] in holders[column]
    assert len({columns[column] for column in claimed}) == most_nodes(holders)


@given(HOLDERS, st.lists(CROWD, max_size=8))
def test_known_hosts_fill_in_where_nobody_says_it_and_each_once(holders, known):
    columns = likely_columns(holders, known, OWN)
    claimed = {columns[column] for column, nodes in enumerate(holders) if nodes}
    silent = [columns[column] for column, nodes in enumerate(holders) if not nodes]
    free = [node for node in dict.fromkeys(known) if node not in claimed]
    expected = free[: len(silent)]
    assert silent == expected + [OWN] * (len(silent) - len(expected))


@given(HOLDERS, st.lists(CROWD, max_size=8), st.randoms(use_true_random=False))
def test_the_order_in_which_nodes_answered_changes_nothing(holders, known, random):
    shuffled = [random.sample(nodes, len(nodes)) for nodes in holders]
    doubled = [nodes * 2 for nodes in shuffled]
    assert likely_columns(doubled, known, OWN) == likely_columns(holders, known, OWN)


def test_who_holds_one_column_keeps_it_where_others_hold_several():
    a, b, c, d = NODES[:4]
    assert set(likely_columns([(a, b), (a, c), (a, c)], (), OWN)) == {a, b, c}
    assert likely_columns([(a, b, c), (a,), (b,)], (), OWN) == (c, a, b)
    # Of those that say it, a known host comes first; nobody is chosen who does not say it.
    assert likely_columns([(a, d)], (d,), OWN) == (d,)
    assert likely_columns([(a,), ()], (b, c), OWN) == (a, b)
    assert likely_columns([(a,)] * 3, (), OWN) == (a, a, a)
    assert likely_columns([(), (), ()], (a,), OWN) == (a, OWN, OWN)
    assert likely_columns([(), (a,), ()], (a,), OWN) == (OWN, a, OWN)
    assert likely_columns([], (a,), OWN) == ()
    assert likely_columns([(a, b), (b,)], (), OWN) == (a, b)
    # The node with the fewest columns gets the next one.
    assert likely_columns([(a,), (b,), (a,), (a, b)], (), OWN) == (a, b, a, b)
