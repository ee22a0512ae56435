"""Cells that follow the space, and propagators between them."""

from __future__ import annotations

import asyncio

import pytest

from tests.settle import settle
from tests.unit.space.test_service import Node
from tests.unit.space.test_store import everything
from tests.unit.space.test_sync import WatchedLog
from xsc.base.errors import ArgumentInvalid, NotFound, RecordInvalid, SpaceExhausted
from xsc.base.ids import to_text
from xsc.space import cell_sync
from xsc.space.cell_sync import CellSyncManager
from xsc.space.cells import Strongest, cell_bytes, cell_value
from xsc.space.limits import DEBOUNCE_MS, VALUE_INLINE_BYTES_MAX
from xsc.space.paths import UserSpacePaths
from xsc.space.record import Change


class Machine(Node):
    """A node with cells."""

    def __init__(self, key, network):
        super().__init__(key, network)
        self.owner = self.store.owner
        self.log = WatchedLog()
        self.cells = CellSyncManager(self.service, self.log)

    async def soon(self, awaited):
        """Do something that waits for the debounce."""
        task = asyncio.ensure_future(awaited)
        await settle()
        self.clock.advance_to(self.clock.now_ms() + DEBOUNCE_MS)
        return await task

    async def pass_time(self):
        await settle()
        self.clock.advance_to(self.clock.now_ms() + DEBOUNCE_MS)
        await settle()


async def exchange(*machines):
    """Bring to each machine what the others wrote; return how many records were new."""
    new = 0
    for source in machines:
        entries = await everything(source.store)
        for target in machines:
            if target is not source:
                offered = [(entry.signed, entry.value) for entry in entries]
                new += len((await target.service.take(source.owner, offered)).paths)
    return new


@pytest.fixture
def one(alice, network):
    return Machine(alice, network)


@pytest.fixture
def two(bob, network):
    return Machine(bob, network)


async def test_a_cell_is_what_its_sources_say(one, two):
    sources = [one.owner, two.owner]
    least = one.cells.cell("load", "min", sources)
    assert least.strongest() == Strongest("nothing")
    await one.soon(least.update(7))
    await two.soon(two.cells.cell("load", "min", sources).update(-100))
    await exchange(one, two)
    for machine in (one, two):
        assert machine.cells.cell("load", "min").strongest().value == -100
        assert set(machine.cells.cell("load", "min").content) == set(sources)
    least.remove_source(two.owner)
    assert least.strongest().value == 7
    await two.soon(two.cells.cell("load", "min").update(-200))
    await exchange(one, two)
    assert least.strongest().value == 7
    least.add_source(two.owner)
    assert least.strongest().value == -200


async def test_a_cell_goes_on_after_a_restart(one, two):
    await two.soon(two.cells.cell("x").update("said"))
    await exchange(one, two)
    again = CellSyncManager(one.service, one.log)
    assert again.cell("x", "last", [two.owner]).strongest().value == "said"


async def test_a_deleted_contribution_no_longer_counts(one):
    cell = one.cells.cell("x", "max")
    await one.soon(cell.update(5))
    await one.service.rm(UserSpacePaths.cell("x"))
    assert cell.strongest() == Strongest("nothing")


async def test_a_value_that_is_not_loaded_is_no_deletion(one, two):
    cell = one.cells.cell("x", "last", [two.owner])
    path = UserSpacePaths.cell("x")
    await two.service.put(path, cell_bytes("small"))
    await exchange(one, two)
    watch = one.service.watch(path, two.owner)
    await two.service.put(path, cell_bytes("x" * VALUE_INLINE_BYTES_MAX))
    signed = two.service.get(path).signed
    assert (await one.service.take(two.owner, [(signed, None)])).paths == [path]
    assert await watch.next() == Change(two.owner, path, signed.record.sequence, None, loaded=False)
    assert cell.strongest().value == "small"
    await two.service.rm(path)
    await exchange(one, two)
    change = await watch.next()
    assert (change.value, change.loaded) == (None, True)
    assert cell.strongest() == Strongest("nothing")


async def test_subscribers_are_told_when_the_strongest_value_changes(one, two):
    cell, told, others = one.cells.cell("x", "max", [one.owner, two.owner]), [], []
    cell.subscribe(lambda changed: told.append(changed.strongest().value))
    cell.subscribe(note := lambda changed: others.append(changed.strongest().value))
    await one.soon(cell.update(5))
    await two.soon(two.cells.cell("x", "max").update(3))
    await exchange(one, two)
    assert told == others == [5]
    cell.unsubscribe(note)
    await one.soon(cell.update(1))
    assert told == [5, 3]
    assert others == [5]


async def test_what_was_adopted_is_not_written_again(one, two):
    sources = [one.owner, two.owner]
    for machine in (one, two):
        machine.cells.cell("x", "max", sources).subscribe(lambda _: None)
    await one.soon(one.cells.cell("x", "max").update(5))
    assert await exchange(one, two) > 0
    writes = len(one.db.writes), len(two.db.writes)
    for _ in range(3):
        await one.pass_time()
        await two.pass_time()
        assert await exchange(one, two) == 0
    assert (len(one.db.writes), len(two.db.writes)) == writes


async def test_a_propagator_runs_on_its_own_machine_alone(one, two):
    sources = [one.owner, two.owner]
    running = []
    for machine, step in ((one, 1), (two, 10)):
        cells = machine.cells
        inputs = [cells.cell("a", "max", sources), cells.cell("b", "max", sources)]
        output = cells.cell("sum", "max", sources)

        def add(values, step=step):
            if any(value.state != "value" for value in values):
                return None
            return sum(value.value for value in values) + step

        await machine.soon(cells.register_propagator("add", inputs, output, add))
        running.append(asyncio.create_task(cells.run()))
    await one.soon(one.cells.cell("a", "max").update(3))
    await two.soon(two.cells.cell("b", "max").update(4))
    for _ in range(4):
        await exchange(one, two)
        await one.pass_time()
        await two.pass_time()
    assert await exchange(one, two) == 0
    for machine in (one, two):
        content = machine.cells.cell("sum", "max").content
        assert {source: said.value for source, said in content.items()} == {
            one.owner: 8,
            two.owner: 17,
        }
    shown = cell_value(one.service.get(UserSpacePaths.PROPAGATORS, two.owner).value)
    assert [set(row) for row in shown] == [{"id", "name", "inputs", "outputs"}]
    assert shown[0]["inputs"] == ["a", "b"]
    for task in running:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_propagator_whose_output_was_not_written_is_due_again(one, monkeypatch):
    cell = one.cells.cell("x")
    await one.soon(one.cells.register_propagator("five", [], cell, lambda _: 5))

    def full(changes, *, sync):
        raise SpaceExhausted("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(one.db, "write", full)
        running = asyncio.create_task(one.cells.run())
        await one.pass_time()
        with pytest.raises(SpaceExhausted):
            await running
    running = asyncio.create_task(one.cells.run())
    await one.pass_time()
    assert cell.strongest().value == 5
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_circle_of_propagators_waits_for_the_disk_at_each_turn(one):
    """One that never comes to rest keeps nothing else from running."""
    cell = one.cells.cell("x", "max")

    def more(values):
        return (values[0].value or 0) + 1

    await one.soon(one.cells.register_propagator("more", [cell], cell, more))
    running = asyncio.create_task(one.cells.run())
    for _ in range(3):
        await one.pass_time()
    assert 1 <= cell.strongest().value <= 4
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_carried_cell_refers_to_others(one, two):
    sources = [one.owner, two.owner]
    carried = one.cells.carried("devices", sources)
    assert carried.references() == {}
    await one.soon(carried.carry({"lamp": "lamp-1", "door": "door-1"}))
    await two.soon(two.cells.carried("devices").carry({"door": "door-2"}))
    await two.soon(two.cells.cell("door-2").update("open"))
    await exchange(one, two)
    assert set(carried.references()) == {"lamp", "door"}
    child = carried.child("door")
    assert child.name in {"door-1", "door-2"}
    assert one.cells.cell("door-2", "last", sources).strongest().value == "open"
    with pytest.raises(NotFound):
        carried.child("window")
    listed = one.cells.cell("order")
    await one.soon(listed.update(["a", "b", 3]))
    assert type(carried)(one.cells, listed).references() == {"0": "a", "1": "b"}


async def test_cells_are_listed_with_what_they_follow_and_released(one, two):
    cell = one.cells.cell("x", "last", [one.owner, two.owner])
    one.cells.cell("y")
    assert one.cells.active_cell_ids() == ["x", "y"]
    assert await one.cells.compact() == one.service.stats()
    assert one.cells.subscriptions() == {(two.owner, UserSpacePaths.cell("x"))}
    await one.soon(one.cells.register_propagator("copy", [cell], one.cells.cell("y"), len))
    with pytest.raises(ArgumentInvalid):
        one.cells.release("x")
    one.cells.cell("z", "last", [two.owner])
    one.cells.release("z")
    one.cells.release("z")
    assert one.cells.active_cell_ids() == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "merge"), [("", "last"), ("a b", "last"), ("..", "last"), ("x", "sum")]
)
async def test_what_is_no_cell_is_refused(one, name, merge):
    with pytest.raises(ArgumentInvalid):
        one.cells.cell(name, merge)
    one.cells.cell("known", "min")
    with pytest.raises(ArgumentInvalid):
        one.cells.cell("known", "max")


async def test_cells_and_propagators_are_bounded(one, monkeypatch):
    monkeypatch.setattr(cell_sync, "CELLS_MAX", 3)
    monkeypatch.setattr(cell_sync, "PROPAGATORS_MAX", 2)
    cells = [one.cells.cell(name) for name in "abc"]
    with pytest.raises(ArgumentInvalid, match="more than 3 cells"):
        one.cells.cell("d")
    assert one.cells.cell("a") is cells[0], "a known one is still there"
    first, *_ = [
        await one.soon(one.cells.register_propagator(name, cells[:1], output, lambda _: None))
        for name, output in (("p", cells[1]), ("q", cells[2]))
    ]
    with pytest.raises(ArgumentInvalid, match="more than 2 propagators"):
        await one.soon(one.cells.register_propagator("r", cells[:1], cells[2], lambda _: None))
    assert first.name == "p"
    assert one.cells.active_cell_ids() == ["a", "b", "c"]


async def test_what_no_cell_can_hold_is_not_written(one):
    with pytest.raises(RecordInvalid):
        await one.cells.cell("x").update(b"bytes")
    assert one.db.writes == []


async def test_a_users_text_is_a_contribution(one):
    cell = one.cells.cell("x", "counter")
    await one.service.put(UserSpacePaths.cell("x"), b"5")
    assert cell.strongest().value == 5
    assert cell_bytes(5) == b"5"


async def test_a_propagator_that_fails_stops_no_other_and_its_error_is_kept(one):
    """It ended the loop of all, which ran it again and again."""
    source = one.cells.cell("source")
    outputs = [one.cells.cell(name) for name in ("divided", "float", "doubled")]
    divided = await one.soon(
        one.cells.register_propagator(
            "divides", [source], outputs[0], lambda values: 12 // (values[0].value or 0)
        )
    )
    inexact = await one.soon(
        one.cells.register_propagator("inexact", [source], outputs[1], lambda _: 0.5)
    )
    await one.soon(
        one.cells.register_propagator(
            "doubles", [source], outputs[2], lambda values: 2 * (values[0].value or 0)
        )
    )
    running = asyncio.create_task(one.cells.run())
    await one.pass_time()
    errors = one.cells.errors()
    assert set(errors) == {to_text(divided.id), to_text(inexact.id)}
    assert errors[to_text(divided.id)].startswith("ZeroDivisionError: ")
    assert outputs[2].strongest().value == 0
    assert [event for event, _ in one.log.warnings] == 2 * ["space.propagator_failed"]
    await one.soon(source.update(4))
    for _ in range(3):
        await one.pass_time()
    assert [outputs[0].strongest().value, outputs[2].strongest().value] == [3, 8]
    assert set(one.cells.errors()) == {to_text(inexact.id)}
    assert not running.done()
    running.cancel()
