"""A put keeps its contract or is refused with the reason: debt, room, silence, leaving."""

import pytest

from tests.sim.network import content, get, put, run, stream
from xsc.base.errors import (
    CreditExceeded,
    DurabilityUnreachable,
    NoOffers,
    SpaceExhausted,
)
from xsc.base.ids import short
from xsc.base.limits import MIB
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.durability import Contract

DATA = content(4 * MIB)
"""A column of it is worth micro-credits: who owes nothing yet may always owe less than one."""


DEAR = {"storage_price_gib_hour": "1000000", "storage_price_max_gib_hour": "4000000"}
"""Else a small put costs less than a micro-credit, and no limit is reached."""


def contract(node, capability):
    return node.storage.catalogue.entry(parse_verify(capability).manifest_hash).placement.contract


def with_settings(indices, settings):
    """Give some of the nodes other settings than the rest."""

    def prepare(world):
        for index in indices:
            world.settings_of[index] = settings

    return prepare


async def refused(world, node, kind, **options):
    """Return what a put is refused with that must leave nothing anywhere."""
    before = [other.shards.used_bytes for other in world.nodes]
    with pytest.raises(kind) as caught:
        await put(node, DATA, **options)
    assert type(caught.value) is kind
    assert [other.shards.used_bytes for other in world.nodes] == before
    return caught.value


def names(world, *indices):
    return ", ".join(sorted(short(world.nodes[index].key.node_id) for index in indices))


@pytest.mark.parametrize(("count", "losses"), [(1, 0), (2, 0), (3, 1), (5, 1), (6, 2), (8, 2)])
def test_a_put_that_names_no_contract_keeps_what_all_known_peers_allow(count, losses):
    async def play(world):
        capability = await put(world.nodes[0], DATA)
        assert contract(world.nodes[0], capability) == Contract(losses)
        assert await get(world.nodes[0], capability) == DATA

    run(300 + count, count, play)


def test_at_the_debt_limit_of_most_hosts_a_put_is_refused_and_less_works():
    async def play(world):
        owner = world.nodes[0]
        fault = await refused(world, owner, CreditExceeded)
        assert f"debt limit reached: {names(world, 1, 2, 3, 4)}" in fault.message
        assert "2nodes" in fault.message
        assert "`--survive 1node`" in fault.hint
        assert "`xsc ledger balance`" in fault.hint
        fault = await refused(world, owner, CreditExceeded, contract=Contract(2))
        assert "2nodes" in fault.message
        done = await owner.storage.put(stream(DATA), name="less", contract=Contract(1))
        assert len(set(done.hosts)) == 3
        assert done.survives == Contract(1)

    run(310, 7, play, DEAR, prepare=with_settings((1, 2, 3, 4), {"starter_credit": "0"}))


def test_with_no_host_but_the_own_node_less_is_nothing_and_said_so():
    async def play(world):
        fault = await refused(world, world.nodes[0], CreditExceeded)
        assert "`--survive 0nodes`" in fault.hint
        done = await world.nodes[0].storage.put(stream(DATA), name="own", contract=Contract())
        assert set(done.hosts) == {world.nodes[0].key.node_id}
        assert done.warnings

    run(311, 7, play, DEAR, prepare=with_settings(range(1, 7), {"starter_credit": "0"}))


@pytest.mark.parametrize("count", [1, 3])
def test_a_small_object_on_few_nodes_is_whole(count):
    async def play(world):
        capability = await put(world.nodes[0], b"small")
        found = await world.nodes[0].storage.check(
            capability, deep=True, lives_ms=world.nodes[0].config.lives_ms, repair_ms=1
        )
        assert {host.state for host in found.hosts} == {"ok"}
        assert found.survives == ("1node" if count > 1 else "0nodes")

    run(12, count, play)


def test_where_hosts_are_full_a_put_is_refused():
    async def play(world):
        world.full = {1, 2}
        fault = await refused(world, world.nodes[0], SpaceExhausted)
        assert f"no room: {names(world, 1, 2)}" in fault.message
        assert "`--survive 1node`" in fault.hint

    run(312, 7, play)


def test_while_hosts_are_silent_a_put_is_refused_and_works_when_they_are_back():
    async def play(world):
        owner = world.nodes[0]
        await world.crash(4)
        await world.crash(5)
        gone = {world.nodes[index].key.node_id for index in (4, 5)}
        await world.until(lambda: not any(owner.health.is_up(node) for node in gone))
        fault = await refused(world, owner, NoOffers)
        assert f"silent: {names(world, 4, 5)}" in fault.message
        assert fault.exit_code == 5
        await world.restart(4)
        await world.until(lambda: owner.health.is_up(world.nodes[4].key.node_id))
        assert contract(owner, await put(owner, DATA)) == Contract(2)

    run(313, 7, play)


def test_hosts_that_leave_are_named_as_leaving_and_not_as_full():
    async def play(world):
        owner = world.nodes[0]
        leavers = {world.nodes[index].key.node_id for index in (2, 3)}
        for index in (2, 3):
            await world.nodes[index].storage.drain.begin()
        await world.until(lambda: leavers <= set(owner.departures.leaving()))
        fault = await refused(world, owner, NoOffers)
        assert f"leaving: {names(world, 2, 3)}" in fault.message
        assert "no room" not in fault.message
        for node in leavers:
            owner.peers.roster.remove(node)
        assert contract(owner, await put(owner, DATA)) == Contract(1), "it knows five now"

    run(314, 7, play)


def test_each_host_has_its_own_reason():
    def prepare(world):
        world.settings_of[1] = {"starter_credit": "0"}
        world.full = {2}
        world.settings_of[3] = {"storage_price_gib_hour": "4000001"}

    async def play(world):
        owner = world.nodes[0]
        await world.crash(4)
        await world.until(lambda: not owner.health.is_up(world.nodes[4].key.node_id))
        fault = await refused(world, owner, NoOffers)
        for word, index in (
            ("debt limit reached", 1),
            ("no room", 2),
            ("no offer", 3),
            ("silent", 4),
        ):
            assert f"{word}: {names(world, index)}" in fault.message

    run(315, 7, play, DEAR, prepare=prepare)


def test_a_host_that_dies_in_the_middle_of_a_put_breaks_no_contract():
    """Six hosts, of which one goes while segments are on their way, and no seventh."""

    async def play(world):
        owner, data = world.nodes[0], content(9 * MIB)

        def dies(source, target, request, response):
            if target == "node-3" and "storage.put" in request.path:
                world.net.kill("node-3")
            return response

        world.net.corrupt = dies
        with pytest.raises(NoOffers) as caught:
            await put(owner, data)
        assert f"silent: {names(world, 3)}" in caught.value.message
        assert "`--survive 1node`" in caught.value.hint
        assert not owner.storage.ls()
        world.net.corrupt = None
        await world.crash(3)
        assert await get(owner, await put(owner, data, contract=Contract(1))) == data

    run(316, 6, play)


def test_a_contract_beyond_all_known_nodes_is_the_callers_to_change():
    async def play(world):
        fault = await refused(world, world.nodes[0], DurabilityUnreachable, contract=Contract(2))
        assert fault.exit_code == 2
        assert "6 nodes" in fault.hint
        assert "`--survive 1node`" in fault.hint

    run(317, 4, play)


def test_a_contract_in_the_configuration_stands_for_every_put():
    async def play(world):
        owner = world.nodes[0]
        assert contract(owner, await put(owner, DATA)) == Contract(1)
        await refused(world, owner, DurabilityUnreachable, contract=Contract(0, 1))

    run(318, 7, play, {"survive": "1node"})


def test_silent_peers_that_have_not_said_their_site_are_named_as_silent():
    def prepare(world):
        for index in range(7):
            world.settings_of[index] = {"site": f"site{index}"}

    async def play(world):
        for index in (0, 3, 4, 5, 6):
            await world.crash(index)
        owner = await world.restart(0)
        fault = await refused(world, owner, NoOffers, contract=Contract(2, 2))
        assert f"silent: {names(world, 3, 4, 5, 6)}" in fault.message
        assert "`site`" not in fault.hint

    run(320, 7, play, prepare=prepare)


def test_peers_that_were_not_probed_since_the_start_are_asked_first():
    async def play(world):
        await world.crash(0)
        owner = await world.restart(0)
        assert contract(owner, await put(owner, DATA)) == Contract(2)

    run(319, 7, play)
