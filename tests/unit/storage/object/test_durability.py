"""What a contract says, and small placements by hand; the planner has its laws in properties."""

import pytest

from xsc.base.errors import ArgumentInvalid
from xsc.storage.object.durability import (
    KINDS,
    PLANNED_PARITY_MAX,
    UNBOUNDED,
    Contract,
    Domains,
    HostLabels,
    _caps,
    _Network,
    _placements,
    _top_caps,
    attainable,
    counted,
    domains_of,
    parse,
    plan,
    plan_around,
    survival,
)


def at(*sites):
    """Return a node for each site; "" names none."""
    return [HostLabels(bytes([index]), site) for index, site in enumerate(sites)]


def test_kinds_are_those_that_contracts_have():
    assert KINDS == ("node", "site", "owner", "introducer")


def test_what_is_left_out_of_a_contract_is_none():
    assert Contract() == (0, 0, 0, 0)
    assert Contract(2, 1) == (2, 1, 0, 0)
    assert Contract(2).nodes == 2
    assert Contract(2, 1).meets(Contract(2))
    assert Contract(2).meets(Contract(2))
    assert not Contract(2).meets(Contract(2, 1))
    assert not Contract(1, 9, 9, 9).meets(Contract(2))


def test_a_count_has_its_plural():
    assert [counted(count, "site") for count in (0, 1, 2)] == ["0sites", "1site", "2sites"]
    assert Contract(1, 2, 0, 1).to_text() == "1node,2sites,1introducer"
    assert Contract().to_text() == "0nodes"


def test_a_contract_counts_up_to_the_shards_of_the_widest_code():
    assert parse("254nodes,1introducer") == Contract(254, 0, 0, 1)
    assert parse("007sites") == Contract(0, 7)
    for text in ("255nodes", "999nodes", "0001node", "1nodess", "1nodes1site", "1node;1site"):
        with pytest.raises(ArgumentInvalid, match="does not say what an object must survive"):
            parse(text)


def test_introducers_are_shown_to_those_who_asked_for_them():
    found = Contract(2, 1, 1, 2)
    assert found.shown_for(Contract(2, 1)) == (2, 1, 1, 0)
    assert found.shown_for(Contract(0, 0, 0, 1)) == found


@pytest.mark.parametrize(
    ("sites", "m", "survives"),
    [
        ("aabbcc", 2, 1),
        ("abcdef", 2, 2),
        ("abcdef", 6, 6),
        ("aaaabc", 3, 0),
        ("aaaabc", 4, 1),
        ("aab", 0, 0),
        ("aab", 3, 2),
        ("ab  ", 2, 0),
        ("ab  ", 3, 1),
        ("ab  ", 4, 2),
        ("    ", 3, 0),
    ],
)
def test_unknown_sites_are_lost_with_every_site(sites, m, survives):
    hosts = at(*(site.strip() for site in sites))
    assert survival(hosts, m)[1] == survives
    assert survival(hosts, m).nodes == min(m, len(sites))


def test_domains_are_counted_with_the_nodes_that_name_none():
    assert domains_of([]) == (Domains(0, 0),) * 4
    assert domains_of(at("a", "b", "b", "", ""))[:2] == (Domains(5, 0), Domains(2, 2))


def test_what_stays_stays_and_nobody_holds_more_than_it_may():
    hosts = tuple(at("a", "b", "c"))
    assert plan_around(hosts, ((0, 6), (0, 6), (0, 6)), 6, 2, Contract()) == (2, 2, 2)
    assert plan_around(hosts, ((2, 2), (0, 6), (0, 1)), 6, 4, Contract()) == (2, 3, 1)
    assert plan_around(hosts, ((4, 6), (0, 6), (0, 6)), 6, 2, Contract()) == (4, 1, 1)
    assert plan_around(hosts, ((2, 2), (2, 2), (2, 2)), 6, 2, Contract(1)) == (2, 2, 2)
    assert plan_around(hosts, ((3, 3), (2, 2), (1, 1)), 6, 2, Contract(1)) is None
    assert plan_around(hosts, ((0, 1), (0, 1), (0, 1)), 6, 2, Contract()) is None
    assert plan_around(hosts, ((0, 6),) * 3, 6, 2, Contract(2)) is None
    assert plan_around(hosts[:1], ((0, 6),), 6, 2, Contract()) == (6,)


def test_what_stays_counts_for_its_site_and_its_owner():
    hosts = tuple(at("a", "a", "b", "c"))
    bounds = ((2, 2), (0, 6), (0, 6), (0, 6))
    assert plan_around(hosts, bounds, 6, 2, Contract(0, 1)) == (2, 0, 2, 2)
    bounds = ((3, 3), (0, 6), (0, 6), (0, 6))
    assert plan_around(hosts, bounds, 6, 2, Contract(0, 1)) is None
    assert plan_around(hosts, bounds, 6, 3, Contract(0, 1)) == (3, 0, 2, 1)
    owned = tuple(HostLabels(host.node, "", host.site) for host in hosts)
    assert plan_around(owned, bounds, 6, 2, Contract(0, 0, 1)) is None
    bounds = ((2, 2), (0, 6), (0, 6), (0, 6))
    assert plan_around(owned, bounds, 6, 2, Contract(0, 0, 1)) == (2, 0, 2, 2)


def test_a_column_moves_on_where_that_makes_room_for_another():
    """The first host alone can have one of its site and owner, but then nobody else can."""
    hosts = (HostLabels(b"1", "a", "x"), HostLabels(b"2", "a", "y"), HostLabels(b"3", "b", "x"))
    assert plan_around(hosts, ((0, 2),) * 3, 2, 1, Contract(0, 1, 1)) == (0, 1, 1)


def test_nodes_of_one_introducer_give_way_to_others():
    hosts = [HostLabels(bytes([n]), "", "", name) for n, name in enumerate("xxxxyzuv")]
    asked = Contract(2, 0, 0, 1)
    columns = plan(hosts, 6, 2, asked)
    assert survival([hosts[node[0]] for node in columns], 2).meets(asked)
    assert sum(node[0] < 4 for node in columns) == 2
    assert plan(hosts[:6], 6, 2, asked) is None


def test_caps_are_those_that_the_largest_losses_fill():
    assert list(_top_caps(1, 3)) == [(3,)]
    assert list(_top_caps(2, 5)) == [(4, 1), (3, 2)]
    assert list(_top_caps(3, 6)) == [(4, 1, 1), (3, 2, 1), (2, 2, 2)]
    assert list(_top_caps(2, 1)) == []
    assert list(_placements(3, [])) == [{}]
    assert list(_placements(3, [5])) == [{0: 5}, {1: 5}, {2: 5}]
    assert list(_placements(2, [5, 4])) == [{0: 5, 1: 4}, {1: 5, 0: 4}]
    assert list(_caps(2, 0, 3)) == [((UNBOUNDED,) * 2, UNBOUNDED)]
    # Of all unknown columns together the cap comes off first.
    assert list(_caps(2, 1, 2)) == [((2, 2), 0), ((1, 1), 1)]
    assert list(_caps(2, 2, 3)) == [((2, 1), 0), ((1, 2), 0), ((1, 1), 1)]


def test_the_effort_is_a_step_for_each_flow_and_each_column():
    network = _Network(at("a", "b"))
    assert network.fill(6, [[6, 6], [6, 6, 6], [6], [6]], [0, 0]) == [3, 3]
    assert network.effort == 1 + 6
    assert network.fill(6, [[2, 2], [6, 6, 6], [6], [6]], [0, 0]) is None
    assert network.effort == 1 + 6 + 1 + 4


def test_codes_up_to_a_width_are_planned():
    hosts = tuple(at("a", "b"))
    m = PLANNED_PARITY_MAX
    assert plan_around(hosts, ((0, m + 4),) * 2, m + 4, m, Contract(1)) == (m // 2 + 2,) * 2
    assert plan_around(hosts, ((0, m + 5),) * 2, m + 5, m + 1, Contract(1)) is None
    # Beyond that the columns are spread evenly, where that is enough.
    assert plan(hosts, m + 5, m + 1, Contract(1)) is not None
    assert plan(hosts, m + 5, m + 1, Contract(2)) is None


def test_a_wide_code_over_many_labelled_nodes_is_spread_evenly_before_all_caps_were_tried():
    hosts = [HostLabels(bytes([n]), f"s{n % 12}", f"o{n % 8}") for n in range(24)]
    asked = Contract(1, 1, 1)
    # Without the bound on steps this does not end within a minute.
    assert plan_around(tuple(hosts), ((0, 24),) * 24, 24, PLANNED_PARITY_MAX, asked) is None
    assert plan(hosts, 24, PLANNED_PARITY_MAX, asked) == tuple(host.node for host in hosts)


def test_nodes_come_before_sites_in_what_is_attainable():
    hosts = at("a", "a", "b", "b")
    assert attainable(hosts, 6, 2, Contract(2, 1)) == (1, 0, 0, 0)
    assert attainable(hosts, 6, 3, Contract(2, 1)) == (1, 1, 0, 0)
    assert attainable(hosts, 4, 2, Contract(2, 1)) == (2, 1, 0, 0)
    assert attainable(hosts, 4, 2, Contract()) == Contract()
