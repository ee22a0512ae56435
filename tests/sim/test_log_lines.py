"""What an operator reads in the log of a storage or compute operation: one line at each end."""

from __future__ import annotations

import pytest

from tests.sim.network import content, put, run, stream
from tests.sim.test_quiet import Logged
from tests.unit.compute.programs import wasm
from xsc.base.ids import to_text
from xsc.base.jobs import JobSpec
from xsc.base.limits import GIB, MIB, PPM
from xsc.base.merkle import root_of
from xsc.storage.object.capability import parse_verify
from xsc.storage.object.manifest import hash_of
from xsc.storage.object.messages import ObjectRecord
from xsc.terms.lease import LeaseHandle


def said(log, event):
    return [fields for name, fields in log.events if name == event]


def test_a_put_of_several_segments_is_one_line_at_each_host_and_one_at_its_owner():
    async def play(world):
        owner, size = world.nodes[0], 9 * MIB
        capability = await put(owner, content(size), code=(2, 1))
        await world.clock.sleep_ms(2_000)
        (line,) = said(world.logs[0], "storage.put")
        assert line["size_bytes"] == size
        stored = [line for log in world.logs.values() for line in said(log, "storage.stored")]
        assert len(stored) == line["hosts"] == 3
        assert sum(line["size_bytes"] for line in stored) == line["held_bytes"]
        prices = [each["price_micro"] * each["size_bytes"] for each in stored]
        assert line["month_micro"] == sum(prices) * 30 * 24 // GIB > 0
        for index, log in world.logs.items():
            node = world.nodes[index]
            for line in said(log, "storage.stored"):
                assert line["peer"] == owner.key.node_id
                assert line["price_micro"] == (index and node.config.storage_price_micro)
                assert line["used_bytes"] == node.shards.used_bytes
                assert line["used_ppm"] == line["used_bytes"] * PPM // (256 * MIB)

        reader = await world.nodes[1].storage.open(capability)
        assert len(await reader.whole()) == size
        (line,) = said(world.logs[1], "storage.got")
        assert line["size_bytes"] == size

        await owner.storage.rm(capability)
        deleted = [line for log in world.logs.values() for line in said(log, "storage.deleted")]
        assert sum(line["size_bytes"] for line in deleted) == sum(
            line["size_bytes"] for line in stored
        )
        assert {line["used_bytes"] for line in deleted} == {0}

    run(31, 4, play, kind=Logged)


@pytest.mark.parametrize("nodes", [1, 2])
def test_columns_at_one_host_are_one_line_of_all_their_bytes(nodes):
    async def play(world):
        for size in (300_000, 9 * MIB):
            for log in world.logs.values():
                log.events.clear()
            await put(world.nodes[0], content(size))
            await world.clock.sleep_ms(2_000)
            (line,) = said(world.logs[0], "storage.put")
            stored = [line for log in world.logs.values() for line in said(log, "storage.stored")]
            assert len(stored) == nodes
            assert sum(line["size_bytes"] for line in stored) == line["held_bytes"]

    run(36, nodes, play, kind=Logged)


def test_what_is_put_again_is_no_line():
    async def play(world):
        owner, host = world.nodes
        done = await owner.storage.put(stream(content(100)), name="object", code=(1, 1))
        locate, sealed = parse_verify(done.capability).locate, done.sealed
        record = ObjectRecord(sealed, root_of(sealed), hash_of(sealed))
        lease = next(LeaseHandle(*item[:2]) for item in done.held if item.node == host.key.node_id)
        for _ in range(3):
            await owner.storage._client.store(lease, locate, 0, shards=[], record=record)
        await world.clock.sleep_ms(5_000)
        assert len(said(world.logs[1], "storage.stored")) == 1

    run(32, 2, play, kind=Logged)


def test_a_run_is_one_line_where_it_runs_and_one_at_its_customer():
    async def play(world):
        customer, provider = world.nodes
        spec = JobSpec.invoke(wasm("add"), "add", ["1", "2"], on=to_text(provider.key.node_id))
        await customer.compute.run(spec)
        (ran,) = said(world.logs[1], "compute.ran")
        (invoked,) = said(world.logs[0], "compute.invoked")
        assert (ran.pop("peer"), invoked.pop("peer")) == (
            customer.key.node_id,
            provider.key.node_id,
        )
        assert ran == invoked
        assert ran["fuel"] > 0
        assert ran["amount_micro"] > 0
        own = to_text(customer.key.node_id)
        await customer.compute.run(JobSpec.invoke(wasm("add"), "add", ["1", "2"], on=own))
        assert said(world.logs[0], "compute.ran")[0]["amount_micro"] == 0

    run(34, 2, play, kind=Logged)


def test_a_payment_off_the_books_is_one_line_at_either_side():
    async def play(world):
        debtor, creditor = world.nodes
        await put(debtor, content(9 * MIB), code=(1, 1))
        await world.skip_until(lambda: said(world.logs[0], "ledger.paid"), 7_200_000, 60_000)
        for log in world.logs.values():
            log.events.clear()
        await creditor.ledger.payments.say(debtor.key.node_id, 3)
        await debtor.ledger.payments.say(creditor.key.node_id, 3)
        lines = [said(log, "ledger.paid") for log in world.logs.values()]
        assert [(line["amount_micro"], line["role"], line["off_books"]) for (line,) in lines] == [
            (3, "creditor", True),
            (3, "debtor", True),
        ]

    run(35, 2, play, kind=Logged)


def test_a_payment_is_one_line_at_either_side():
    async def play(world):
        await put(world.nodes[0], content(9 * MIB), code=(1, 1))
        await world.skip_until(lambda: said(world.logs[0], "ledger.paid"), 7_200_000, 60_000)
        (paid,), (got,) = said(world.logs[0], "ledger.paid"), said(world.logs[1], "ledger.paid")
        assert paid["role"] == "debtor"
        assert got["role"] == "creditor"
        assert paid["amount_micro"] == got["amount_micro"] > 0
        assert not paid["off_books"]
        assert paid["leases"] == got["leases"]
        assert paid["leases"].startswith("storage ")
        assert (paid["debtor"], paid["creditor"]) == (got["peer"], paid["peer"])

    run(33, 2, play, kind=Logged)
