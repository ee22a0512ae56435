"""What of a write is stored."""

import pytest

from tests.unit.storage.shardstore.test_store import LEASE, OTHER, record, shard
from xsc.base.errors import ShardMismatch, SpaceExhausted
from xsc.base.units import held_bytes
from xsc.storage.shardstore.bodies import entry_of
from xsc.storage.shardstore.writer import plan_write

ROOM = {"free_bytes": 10**6, "capacity_bytes": 10**6}


def held(*bodies):
    """What the index says of bodies, numbered from 1."""
    return {body.index_key: entry_of(body, number) for number, body in enumerate(bodies, 1)}


def test_what_is_not_held_is_written_and_counts():
    plan = plan_write([shard(0), shard(1)], {}, (), **ROOM)
    assert (plan.fresh, plan.replaced) == ([shard(0), shard(1)], [])
    assert plan.growth == {LEASE: held_bytes(8, 2)}


def test_what_is_held_already_is_not_written_and_counts_nothing():
    plan = plan_write([shard(0), shard(1)], held(shard(0)), (), **ROOM)
    assert (plan.fresh, plan.replaced) == ([shard(1)], [])
    assert plan.growth == {LEASE: held_bytes(4, 1)}
    again = plan_write([shard(0)], held(shard(0)), (2,), free_bytes=0, capacity_bytes=0)
    assert (again.fresh, again.growth) == ([], {})


def test_a_damaged_body_is_replaced_under_the_new_lease():
    entries = held(shard(0, lease=OTHER))
    plan = plan_write([shard(0)], entries, {1}, free_bytes=0, capacity_bytes=0)
    assert (plan.fresh, plan.replaced) == ([shard(0)], list(entries.values()))
    assert plan.growth == {LEASE: held_bytes(4, 1), OTHER: -held_bytes(4, 1)}


@pytest.mark.parametrize(
    ("body", "other", "what"),
    [(shard(), shard(data=b"else"), "shard"), (record(), record(sealed=b"other"), "manifest")],
)
@pytest.mark.parametrize("damaged", [(), (1,)])
def test_another_body_in_that_place_is_refused(body, other, what, damaged):
    with pytest.raises(ShardMismatch, match=f"another {what} is held"):
        plan_write([body], held(other), damaged, **ROOM)


def test_no_more_is_taken_than_is_free():
    need = held_bytes(4, 1)
    assert plan_write([shard()], {}, (), free_bytes=need, capacity_bytes=need).fresh
    with pytest.raises(SpaceExhausted, match=f"{need} bytes: {need - 1} of {need} are free"):
        plan_write([shard()], {}, (), free_bytes=need - 1, capacity_bytes=need)
