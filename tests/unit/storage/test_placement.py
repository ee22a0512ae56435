import itertools

import pytest

from tests.unit.storage.test_manifest import OWNER, make
from xsc.base.limits import SEGMENT_BYTES
from xsc.storage.durability import Host, Survival
from xsc.storage.erasure import Code
from xsc.storage.held import HeldColumn, HeldObject
from xsc.storage.manifest import expected_digest
from xsc.storage.placement import (
    Placement,
    assign,
    check_code,
    check_durability,
    check_placement,
    column_states,
    columns_of,
    condition,
    host_bytes,
    losses_survived,
    nodes_needed,
    record_bytes,
    warnings_of,
)

NODES = [bytes([index]) * 32 for index in range(9)]
LOCATE = b"l" * 32


def hosts(columns, site=""):
    return [Host(node, site) for node in columns]


def placement(**change):
    fields = {
        "locate": LOCATE,
        "owner": OWNER,
        "generation": 1,
        "k": 4,
        "m": 2,
        "code_generation": 0,
        "columns": tuple(NODES[:6]),
        "segments": 1,
    }
    return Placement(**fields | change)


def test_a_placement_of_its_manifest_is_taken():
    assert check_placement(placement(), make(5000), LOCATE) is None
    assert check_placement(placement(segments=0), make(5), LOCATE) is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"locate": bytes(32)}, "another object"),
        ({"owner": bytes(32)}, "owner"),
        ({"k": 3}, "code"),
        ({"m": 1}, "code"),
        ({"code_generation": 1}, "generation"),
        ({"columns": tuple(NODES[:5])}, "one node a column"),
        ({"columns": tuple(NODES[:7])}, "one node a column"),
        ({"segments": 2}, "segments"),
    ],
)
def test_a_placement_that_does_not_fit_is_named(change, fault):
    assert fault in check_placement(placement(**change), make(5000), LOCATE)


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
    shortfall = check_durability(hosts(assign(NODES[:4], 6)), Code(), Survival(2))
    assert "4 nodes" in shortfall.reason
    assert "6 nodes" in shortfall.hint
    never = check_code(Code(), Survival(3))
    assert "--code 4,3" in never.hint
    assert check_durability(hosts(assign(NODES[:6], 6)), Code(), Survival(2)) is None
    assert check_durability(hosts(assign(NODES[:1], 6)), Code(), Survival()) is None


def test_warnings_name_what_is_thin():
    assert warnings_of(assign(NODES[:6], 6), Code(), NODES[0]) == []
    assert warnings_of(assign(NODES[:1], 6), Code(), NODES[0]) == [
        "the object does not survive the loss of this node"
    ]
    assert "one node" in warnings_of(assign(NODES[:1], 6), Code(), NODES[1])[0]
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


def test_what_another_customer_stored_in_that_place_changes_nothing():
    manifest = make(5000)
    stranger = held(manifest, 0, customer=b"x" * 32, segments=9, digest=bytes(32), damaged=9)
    answers = {NODES[0]: HeldObject((stranger, held(manifest, 0)), "ok")}
    assert column_states(manifest, NODES[:1], answers) == ["ok"]


def test_room_covers_what_an_object_takes():
    assert host_bytes(100, Code(), 6, 4096) == 25
    assert host_bytes(4096 * 3 + 1, Code(), 3, 4096) == 2 * (3 * 1024 + 1)
    for size in (0, 4096, 5000, 9 * SEGMENT_BYTES):
        manifest = make(size)
        raw = len(manifest.to_bytes()) + 28
        signed = len(placement().to_bytes()) + 300
        assert raw + signed <= record_bytes(size, Code(), SEGMENT_BYTES)


def test_a_shortfall_of_sites_names_the_nodes_that_do_not_say_where_they_are():
    silent = check_durability(hosts(assign(NODES[:6], 6)), Code(), Survival(2, 1))
    assert "0 known sites" in silent.reason
    assert "`site`" in silent.hint
    together = check_durability(hosts(assign(NODES[:6], 6), "attic"), Code(), Survival(2, 1))
    assert "1 known site survive" in together.reason
    assert "other sites" in together.hint
