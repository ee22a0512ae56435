"""What a custodian takes, from whom, and whom an owner asks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.network import content, put, run
from xsc.base.errors import CapabilityInvalid, NotAllowed, RecordInvalid
from xsc.base.limits import MIB
from xsc.base.log import SilentLog
from xsc.storage.object.capability import parse_read
from xsc.storage.repair.assignment import custodians_in_order
from xsc.storage.repair.custodian import GUARD, HEALED, UNGUARD, custody_message

NODES = [bytes([node]) * 32 for node in range(9)]


@given(st.sets(st.sampled_from(NODES)), st.sets(st.sampled_from(NODES)))
def test_the_recognised_come_first_then_those_that_hold_nothing(up, hosts):
    chosen = custodians_in_order(up, hosts, lambda node: 5 if node == NODES[8] else 0)
    assert len(chosen) == len(set(chosen))
    assert set(chosen) == up
    if NODES[8] in up:
        assert chosen[0] == NODES[8]
    spare = up - hosts - {NODES[8]}
    others = [node for node in chosen if node != NODES[8]]
    assert set(others[: len(spare)]) == spare


def test_what_one_owner_has_in_custody_is_no_matter_of_another():
    async def play(world):
        owner, custodian, other = world.nodes[0], world.nodes[1], world.nodes[2]
        read = parse_read(await put(owner, content(MIB)))
        verify, ref = read.verify, read.manifest_hash
        good = custody_message(verify, owner.storage.catalogue.entry(ref).placement, [])

        async def refused(fault, method, header, sender=owner):
            with pytest.raises(fault):
                await sender.peers.call(custodian.key.node_id, method, header)

        await refused(RecordInvalid, GUARD, good | {"capability": read.to_text()})
        await refused(CapabilityInvalid, GUARD, good | {"capability": "xsc:v:abc"})
        await refused(RecordInvalid, GUARD, good | {"before": [bytes(32)] * 17})
        await refused(NotAllowed, UNGUARD, {"object": ref})
        assert list(custodian.storage.custodian.store.objects()) == []
        # Whoever holds the capability may register it first, and takes nothing from the owner.
        await other.peers.call(custodian.key.node_id, GUARD, good)
        await owner.peers.call(custodian.key.node_id, GUARD, good)
        await owner.peers.call(custodian.key.node_id, GUARD, good)
        wards = dict(custodian.storage.custodian.store.objects())
        assert {key[:32] for key in wards} == {owner.key.node_id, other.key.node_id}
        # What is not of the owner that it is guarded for is not repaired.
        repairer = custodian.storage.custody_repairer
        with pytest.raises(RecordInvalid):
            await repairer.surveyor.survey(
                custodian.storage.custodian.load(other.key.node_id + ref)
            )
        await other.peers.call(custodian.key.node_id, UNGUARD, {"object": ref})
        assert list(dict(custodian.storage.custodian.store.objects())) == [owner.key.node_id + ref]
        # A report changes nothing, whoever it is by.
        before = owner.storage.catalogue.entry(ref)
        for node in (custodian, other):
            reply = await node.peers.call(
                owner.key.node_id, HEALED, {"object": ref, "resigns": False}
            )
            assert reply.header == {"ended": False, "release": False}
        reply = await other.peers.call(
            owner.key.node_id, HEALED, {"object": bytes(32), "resigns": False}
        )
        assert reply.header == {"ended": False, "release": False}
        assert owner.storage.catalogue.entry(ref) == before
        await owner.peers.call(custodian.key.node_id, UNGUARD, {"object": ref})
        assert list(custodian.storage.custodian.store.objects()) == []

    run(61, 3, play)


def test_a_peer_that_refuses_custody_is_left_out_and_others_are_asked():
    def prepare(world):
        world.settings_of = {1: {"guard": "none"}, 2: {"guard": "recognised"}}

    async def play(world):
        owner = world.nodes[0]
        for node in world.nodes[1:]:
            await owner.commitments.recognise(
                node.key.node_id, 500_000 if node is world.nodes[1] else 1_000
            )
        await put(owner, content(MIB))
        guarding = [node.storage.custodian.store for node in world.nodes]
        await world.until(lambda: sum(len(list(custody.objects())) for custody in guarding) == 2)
        assert list(guarding[1].objects()) == list(guarding[2].objects()) == []
        asked = len(world.net.trace)
        await world.clock.sleep_ms(120_000)
        refusals = [item for item in world.net.trace[asked:] if GUARD in repr(item)]
        assert refusals == [], "nobody is asked again and again"

    run(62, 5, play, prepare=prepare)


def test_a_refusal_is_logged_once_a_peer_and_not_for_every_object(monkeypatch):
    logged = []

    class Noted(SilentLog):
        def info(self, event, **fields):
            if event == "custody.refused":
                logged.append(fields["peer"])

    monkeypatch.setattr("tests.sim.network.SilentLog", Noted)

    def prepare(world):
        world.settings_of = {node: {"guard": "none"} for node in range(1, 5)}

    async def play(world):
        for _ in range(4):
            await put(world.nodes[0], content(MIB))
        await world.clock.sleep_ms(60_000)
        assert len(logged) == len(set(logged)) == 4

    run(62, 5, play, prepare=prepare)


def test_a_custodian_that_resigns_says_so_and_another_takes_its_place():
    async def play(world):
        owner = world.nodes[0]
        await put(owner, content(MIB))

        def guarding():
            return [
                index
                for index, node in enumerate(world.nodes)
                if list(node.storage.custodian.store.objects())
            ]

        await world.until(lambda: len(guarding()) == 2)
        leaves, stays = guarding()
        world.settings_of = {leaves: {"guard": "none"}}
        await world.crash(leaves)
        await world.restart(leaves)
        await world.until(lambda: len(guarding()) == 2 and leaves not in guarding())
        assert stays in guarding()
        assert list(world.nodes[leaves].storage.custodian.store.objects()) == []

    run(63, 5, play)


def test_many_objects_are_handed_over_in_few_requests():
    async def play(world):
        owner = world.nodes[0]
        for _ in range(40):
            await put(owner, content(1_000))
        begun = len(world.net.trace)
        await owner.storage.assignment.ask_all()
        for node in world.nodes[1:]:
            assert len(list(node.storage.custodian.store.objects())) == 40
        sent = [e for e in world.net.trace[begun:] if e.source == "node-0" and e.what == "sent"]
        assert len(sent) < 20  # for 80 calls

    run(1, 3, play)
