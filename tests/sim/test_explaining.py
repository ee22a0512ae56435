"""Why a need was granted what it was, as each side learns it by the same rule."""

from __future__ import annotations

import asyncio

import pytest

from tests.sim.network import run
from tests.sim.test_slots import SETTINGS, mutual, need, of, offer, recognise
from tests.unit.allocation.clearings import present
from xsc.allocation.declaring import Statement
from xsc.api.endpoint import Id, Nothing
from xsc.base.errors import NotFound, ProofInvalid
from xsc.base.ids import to_text
from xsc.base.limits import SLOT_STEP_BYTES
from xsc.base.units import format_size
from xsc.identity.envelope import sign
from xsc.node.offline.verify import verify_file
from xsc.node.routes import market, status
from xsc.space.paths import UserSpacePaths, below
from xsc.terms.clearing import TwoTierAllocationState


def why(node, raw):
    return node.explaining.by_id(to_text(raw))


async def heard(world, customer, provider, state=None):
    """Return once a customer has a state of a provider; the newest by default."""
    await world.until(
        lambda: (
            customer.commitments.heard.state_of(provider.key.node_id)
            == (state or provider.allocator.state)
        )
    )


def test_a_customer_learns_what_its_provider_would_say_from_the_checked_record():
    async def play(world):
        provider, early, late = world.nodes
        await recognise(provider, early)
        await mutual(provider, late)
        await offer(provider, 1, "compute")  # so it follows what others need
        behind, ahead = await need(early, 60), await need(late, 80)
        await world.clock.sleep_ms(5_000)
        slot = await offer(provider, 100)
        await world.until(lambda: (of(provider, early), of(provider, late)) == (20, 80))
        await heard(world, early, provider)
        (row,) = (await why(early, behind))[0]
        assert (row.granted.tier, row.bid.weight, row.granted.quantity) == (
            "one_way",
            300_000,
            20,
        )
        assert row.because == ("the rest went to others: it stands in the tier one_way with 30.0%")
        assert (
            row.changes[-1].said("storage")
            == "mutual recognition of 7.9% would have given it 1.3 GiB"
        )
        told = {each.need.slot_id: each for each in (await why(provider, slot))[0]}
        assert told.keys() == {behind, ahead}
        assert told[behind] == row
        assert told[ahead].because == "all that it asked for was there"
        # By the clearing, which stands for its slot: a customer learns of its own needs.
        assert len((await why(provider, row.clearing))[0]) == 2
        assert (await why(early, row.clearing))[0] == [row]
        # By the slot and by the node, as `xsc allocation why` asks.
        assert (await why(early, slot))[0] == [row]
        assert (await early.explaining.by_node(provider.key.node_id))[0] == [row]
        assert (await early.explaining.by_node(early.key.node_id))[0] == [row]
        (told_of,) = (await provider.explaining.by_node(early.key.node_id))[0]
        assert told_of == row
        with pytest.raises(NotFound):
            await early.explaining.by_id("zzzz")

    run(31, 3, play, SETTINGS)


def test_a_need_that_nothing_matches_learns_which_slots_were_seen():
    async def play(world):
        provider, customer = world.nodes
        wanted = await need(customer, 100, location="Bern")
        assert (await why(customer, wanted))[0] == [], "nobody offers anything"
        await offer(provider, 50, kind="compute")
        slot = await offer(provider, 50, location="Oslo")
        peer = provider.key.node_id
        await world.until(lambda: len(customer.commitments.heard.of(peer).commitment.slots) == 2)

        async def reasons():
            return {row.slot.kind: row.because for row in (await why(customer, wanted))[0]}

        assert await reasons() == {
            "storage": "the slot is at 'Oslo', and the need at 'Bern'",
            "compute": "the slot offers compute, and the need is of storage",
        }
        asked = Statement(location="Oslo", filters=(("owner", "ada"),))
        await customer.commitments.edit(wanted, asked)
        assert "takes only owner=ada" in (await reasons())["storage"]
        await customer.commitments.edit(wanted, Statement(filters=(), price=1))
        await world.until(lambda: provider.allocator.state.slot_denominators)
        await heard(world, customer, provider)

        async def too_dear():
            rows = (await why(customer, wanted))[0]
            return "it pays at most 0.000001" in rows[0].because

        while not await too_dear():
            await world.clock.sleep_ms(1_000)
        (row,) = (await why(customer, wanted))[0]
        assert row.slot.slot_id == slot
        assert "a greatest price of 0.000160" in row.changes[-1].said("storage")

    run(32, 2, play, SETTINGS)


def test_a_provider_that_does_not_answer_is_said_to_be_silent_and_not_blamed():
    async def play(world):
        provider, customer, other = world.nodes
        peer = provider.key.node_id
        await mutual(provider, customer)
        await offer(provider, 100)
        wanted, others = await need(customer, 60), await need(other, 30)
        await world.until(lambda: customer.allocator.received() and other.allocator.received())
        for each in (customer, other):
            await heard(world, each, provider)
        (before,) = (await why(customer, wanted))[0]
        assert before.because == "all that it asked for was there"
        await world.crash(0)
        for each in (customer, other):
            await world.until(lambda each=each: not each.health.is_up(peer))
        (row,) = (await why(customer, wanted))[0]
        assert row.because == f"its provider does not answer; {before.because}"
        assert row.granted == before.granted
        (row,) = (await why(other, others))[0]
        # It once said: "and its provider gives none".
        assert row.because == "its provider does not answer; its clearing record is not here"
        await world.restart(0)
        await world.until(lambda: other.health.is_up(peer))
        (row,) = (await why(other, others))[0]
        assert "does not answer" not in row.because

    run(38, 3, play, SETTINGS)


def test_a_record_that_does_not_recompute_is_not_explained():
    async def play(world):
        provider, customer = world.nodes
        await mutual(provider, customer)
        await offer(provider, 100)
        wanted = await need(customer, 60)
        await world.until(customer.allocator.received)
        (cleared,) = present(provider.allocator)
        ((*who, units),) = cleared.record.eligible
        false = cleared.record.model_copy(update={"eligible": ((*who, units + 1),)})
        signed = sign(false, provider.key, provider.peers.network)
        await provider.space.put(below(UserSpacePaths.CLEARINGS, signed.id), signed.raw)
        for named, expected in (
            (bytes(32), "its clearing record is not here"),
            (signed.id, "its clearing record does not recompute"),
        ):
            said = dict(provider.allocator.state)
            (divided,) = said["slot_denominators"]
            said["slot_denominators"] = (divided.model_copy(update={"clearing": named}),)
            lie = TwoTierAllocationState(**said)
            await provider.space.put(UserSpacePaths.ALLOCATION_STATE, lie.to_bytes())
            await heard(world, customer, provider, lie)
            (row,) = (await why(customer, wanted))[0]
            assert row.bid is None
            assert expected in row.because
        (row,) = (await why(customer, signed.id))[0]
        assert expected in row.because

    run(33, 2, play, SETTINGS)


def test_health_shows_a_false_clearing_and_anybody_can_check_it():
    async def play(world):
        provider, customer = world.nodes
        await mutual(provider, customer)
        await offer(provider, 100)
        await need(customer, 60)
        await world.until(customer.allocator.received)
        (before,) = await status.health(customer, Nothing())
        assert before.false_clearing is None
        said = dict(provider.allocator.state)
        (divided,) = said["slot_denominators"]
        (line,) = divided.allocations
        dear = line.model_copy(update={"price": line.price + 1})
        said["slot_denominators"] = (divided.model_copy(update={"allocations": (dear,)}),)
        lie = TwoTierAllocationState(**said)
        await provider.space.put(UserSpacePaths.ALLOCATION_STATE, lie.to_bytes())
        await world.until(customer.allocator.records.false_clearings)
        (row,) = await status.health(customer, Nothing())
        assert (row.false_clearing, row.grade) == (divided.clearing, "watch")
        assert row.quality_ppm < before.quality_ppm
        packed = await market.clearing(customer, Id(id=to_text(row.false_clearing)[:8]))
        with pytest.raises(ProofInvalid, match="by the rule"):
            verify_file(packed)
        # It offers nothing while its state names this.
        await world.until(lambda: not customer.allocator.received())

    run(36, 2, play, SETTINGS)


def test_a_need_that_took_no_part_learns_why():
    async def play(world):
        provider, early, late = world.nodes
        await mutual(provider, late)
        await offer(provider, 100)
        wanted = await need(early, 100)
        await world.until(lambda: sum(early.drawn_steps().values()) == 100)
        # The stranger keeps what it has signed for, and the rest is cleared without it.
        await need(late, 60)
        cleared = provider.allocator.state.slot_denominators[0].clearing
        await world.until(lambda: provider.allocator.state.slot_denominators[0].clearing != cleared)
        await heard(world, early, provider)
        (row,) = (await why(early, wanted))[0]
        assert row.bid is None
        kept = format_size(100 * SLOT_STEP_BYTES)
        assert f"it has drawn {kept} and keeps that" in row.because

    run(34, 3, play, SETTINGS)


def test_a_need_that_got_half_learns_what_took_the_rest():
    async def play(world):
        provider, other, customer = world.nodes
        for each in (provider, other):
            await mutual(each, customer)
            for _ in range(2):
                await offer(each, 30)
        wanted = await need(customer, 100)
        await world.until(lambda: sum(customer.drawn_steps().values()) == 100)
        await world.skip(120_000, 30_000)
        for each in (provider, other):
            await heard(world, customer, each)
        said = [row.because for row in (await why(customer, wanted))[0]]
        short = [each for each in said if each != "the slot has no more"]
        assert len(said) == 4
        assert short
        for each in short:
            assert each.startswith("it asks for 6.2 GiB, and other providers give it ")
            assert " and other slots of this provider give it " in each

    run(39, 3, play, SETTINGS)


def test_one_answer_fetches_and_says_only_so_much(monkeypatch):
    async def play(world):
        provider, customer = world.nodes
        await mutual(provider, customer)
        for _ in range(3):
            await offer(provider, 10)
        wanted = await need(customer, 30)
        await world.until(lambda: len(provider.allocator.state.slot_denominators) == 3)
        await heard(world, customer, provider)
        assert len((await why(customer, wanted))[0]) == 3
        monkeypatch.setattr("xsc.allocation.explaining.WHY_RECORDS_MAX", 2)
        answer = await why(customer, wanted)
        assert (len(answer[0]), answer[1]) == (2, True)
        monkeypatch.setattr("xsc.allocation.explaining.WHYS_MAX", 1)
        answer = await why(customer, wanted)
        assert (len(answer[0]), answer[1]) == (1, True)

    run(35, 2, play, SETTINGS)


def test_many_answers_at_once_take_one_thread():
    """A peer chooses how long its record takes: they filled all threads of the node."""

    async def play(world):
        provider, early, late = world.nodes
        slot = await offer(provider, 100)
        for customer in (early, late):
            await need(customer, 60)
        await world.until(lambda: of(provider, early) + of(provider, late) == 100)
        true, running, most = provider.explaining._executor, 0, 0

        class Counting:
            async def run(self, work, *args):
                nonlocal running, most
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
                try:
                    return await true.run(work, *args)
                finally:
                    running -= 1

        provider.explaining._executor = Counting()
        answers = await asyncio.gather(*(why(provider, slot) for _ in range(4)))
        assert [len(answer[0]) for answer in answers] == [2] * 4
        assert most == 1

    run(35, 3, play, SETTINGS)
