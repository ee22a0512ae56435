"""The allocation program of a node: it decides, nothing else grants, and it is explained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.gathering import lines_in
from tests.unit.allocation.clearings import present
from tests.unit.allocation.test_allocating import SLOT, Allocating, need_of
from xsc.allocation.program import parts_of, state_of
from xsc.base.clock import InlineExecutor
from xsc.identity.keys import KeyPair
from xsc.node.programs import ALLOCATION, allocation_function
from xsc.programs import limits
from xsc.programs.compile import compile_program
from xsc.programs.document import parse, resolve
from xsc.programs.functions import Functions
from xsc.programs.limits import VALUE_BYTES_MAX
from xsc.programs.provenance import Recorder
from xsc.programs.running import ServedProgram
from xsc.programs.why import Why, replay, steps_of
from xsc.space import table as tables
from xsc.space.paths import UserSpacePaths
from xsc.terms.clearing import TwoTierAllocationState
from xsc.terms.slot import Commitment

STATE = UserSpacePaths.ALLOCATION_STATE


class Serving(Allocating):
    """A node whose allocation is a program."""

    def __init__(self, key, network, *peers, db=None):
        super().__init__(key, network, *peers, db=db)
        # As a frame calls it: what is put in its place decides.
        own = Functions([allocation_function(lambda *given: self.allocator.state_of(*given))])  # noqa: PLW0108
        self.functions = Functions([allocation_function(state_of)])
        program = resolve(parse(ALLOCATION, "toml"), {}, {})
        compiled = compile_program(program, own, built_in=True)
        self.program = ServedProgram(compiled, self.space, Recorder(self.space, key, network))
        self.allocator.program = self.program

    async def why(self, path=STATE, replayed=False):
        root = await Why(self.read, self.network, parts_of).walk(self.space.owner, path)
        if replayed:
            await replay(root, self.functions, None, InlineExecutor())
        return root

    def published(self):
        return self.space.get(STATE).value


def offering(history=()):
    return Commitment(slots=(SLOT,), damping_history=history).to_bytes()


async def play(node, *peers):
    """Let peers come with needs, and go."""
    await node.space.put(UserSpacePaths.COMMITMENT, offering())
    seen = []
    for number in range(1, 4):
        for peer in peers:
            await node.needs(peer, need_of(20 * number + len(peers), number))
            await node.allocator.allocate()
            node.pass_ms(1_000)
            await node.allocator.allocate()
            seen.append(node.space.get(STATE).value)
    return seen


@pytest.fixture
def peers(bob):
    return bob, KeyPair(b"\xc0" * 32)


@pytest.fixture
def node(alice, network, peers):
    return Serving(alice, network, *peers)


async def test_the_program_publishes_what_the_rule_publishes(alice, network, peers, node):
    beside = Allocating(alice, network, *peers)
    assert await play(node, *peers) == await play(beside, *peers)
    assert present(node.allocator) == present(beside.allocator)
    assert node.allocator.granted == beside.allocator.granted
    assert node.program.results().outputs["state"] == node.published().hex()
    assert (node.program.results().built_in, node.program.results().state) == (True, "active")


async def test_a_quiet_look_runs_no_frame_and_writes_nothing(node, peers):
    await play(node, *peers)
    node.take()
    await node.allocator.allocate()
    frame_number, writes = node.program.results().frame, len(node.db.writes)
    for _ in range(3):
        node.pass_ms(60_000)
        node.allocator.wake()
        await node.allocator.allocate()
    assert (node.program.results().frame, len(node.db.writes)) == (frame_number, writes)


async def test_where_the_program_fails_nothing_is_granted_and_that_is_said_once(
    node, peers, monkeypatch
):
    with monkeypatch.context() as broken:
        broken.setattr(limits, "GIVEN_BYTES_MAX", 10)
        await node.space.put(UserSpacePaths.COMMITMENT, offering())
        for number in range(1, 4):
            await node.needs(peers[0], need_of(20, number))
            await node.allocator.allocate()
        assert "over the bound of 10" in node.allocator.program.fault
        results = node.program.results()
        assert (results.state, results.frame) == ("failed", 0)
    assert node.log.events.count("allocation.program_failed") == 1
    assert node.quantities() == []
    assert not node.space.ls(STATE)
    await node.needs(peers[0], need_of(3, 9))
    await node.allocator.allocate()
    assert node.quantities() == [3]
    assert node.allocator.program.fault == ""
    assert node.log.events.count("allocation.program_serves") == 1
    assert (await node.why()).signed is not None


def said_by(monkeypatch, node, **changes):
    """Have the program say of each round something else than the rule does."""

    def lying(gathered, last):
        said = TwoTierAllocationState.from_bytes(state_of(gathered, last), size_max=VALUE_BYTES_MAX)
        return said.model_copy(
            update={name: change(said) for name, change in changes.items()}
        ).to_bytes()

    monkeypatch.setattr(node.allocator, "state_of", lying)


async def test_with_a_program_that_grants_nobody_nobody_is_granted(node, peers, monkeypatch):
    nobody = TwoTierAllocationState().to_bytes()
    with monkeypatch.context() as mean:
        mean.setattr(node.allocator, "state_of", lambda *_: nobody)
        await play(node, *peers)
        assert node.program.results().frame
        assert node.quantities() == []
        assert present(node.allocator) == []
        assert lines_in(node.allocator.state) == []
    await node.needs(peers[0], need_of(3, 9))
    await node.allocator.allocate()
    assert 3 in node.quantities()


async def test_a_program_that_names_a_clearing_that_there_is_not_grants_nothing_of_it(
    node, peers, monkeypatch
):
    def made_up(said):
        return tuple(
            each.model_copy(update={"clearing": bytes(32)}) for each in said.slot_denominators
        )

    said_by(monkeypatch, node, slot_denominators=made_up)
    await play(node, *peers)
    assert lines_in(node.allocator.state)
    assert node.quantities() == []


async def test_a_frame_that_cannot_be_written_did_not_happen(node, peers, monkeypatch):
    await play(node, *peers)
    before = node.program.results()
    with monkeypatch.context() as full:
        full.setattr(tables, "OWNER_BYTES_MAX", 1)
        await node.needs(peers[0], need_of(5, 9))
        await node.allocator.allocate()
        fault = node.allocator.program.fault
        assert fault.startswith("space_exhausted: ")
        assert node.program.results() == replace(before, fault=fault, state="failed")
    await node.allocator.allocate()
    assert node.allocator.program.fault == ""
    assert node.program.results().frame == before.frame + 1
    assert (await node.why()).verified


async def test_where_the_space_has_no_room_for_the_program_nothing_new_is_granted(
    node, peers, monkeypatch
):
    await node.space.put(UserSpacePaths.COMMITMENT, offering())
    with monkeypatch.context() as full:
        full.setattr(tables, "OWNER_BYTES_MAX", node.space.stats().live_bytes + 5_000)
        await node.needs(peers[0], need_of(5))
        await node.allocator.allocate()
        assert node.quantities() == []
        assert node.allocator.program.fault.startswith("space_exhausted: ")
        assert node.log.events.count("allocation.not_published") == 1
    await node.needs(peers[0], need_of(6, 2))
    await node.allocator.allocate()
    assert node.quantities() == [6]
    assert node.allocator.program.fault == ""
    assert (await node.why(replayed=True)).replayed


async def test_a_restart_changes_nothing_and_keeps_the_damping(node, peers, alice, network):
    await play(node, *peers)
    over = ((3, 1), (5, 2))
    await node.space.put(UserSpacePaths.COMMITMENT, offering(over))
    await node.needs(peers[0], need_of(7, 9))
    await node.allocator.allocate()
    results = node.program.results()
    assert node.allocator.state.damping_history == over
    again = Serving(alice, network, *peers, db=node.db)
    writes = len(node.db.writes)
    assert again.program.results() == replace(results, publications=0)
    again.clock.advance_to(node.clock.now_ms())
    await again.allocator.allocate()
    assert again.published() == node.published()
    again.pass_ms(1_000)
    await again.allocator.allocate()  # it says once that it has settled
    assert again.allocator.state.converged
    assert len(node.db.writes) <= writes + 3
    assert (await again.why()).verified


async def test_where_what_was_kept_is_damaged_what_was_granted_stays(node, peers, alice, network):
    await play(node, *peers)
    state = UserSpacePaths.state(node.program.program.hash)
    await node.space.put_all({state: b"nonsense"})
    again = Serving(alice, network, *peers, db=node.db)
    assert again.allocator.program.fault.startswith("store_damaged: ")
    before, again.sequences = node.published(), node.sequences
    await again.needs(peers[0], need_of(7, 9))
    await again.allocator.allocate()
    assert again.log.events.count("allocation.program_failed") == 1
    assert again.published() == before
    assert again.quantities() == node.quantities()
    assert again.program.results().state == "failed"


async def test_a_kill_at_any_write_leaves_a_whole_frame(node, peers, alice, network):
    await play(node, peers[0])
    for count in range(len(node.db.writes) + 1):
        again = Serving(alice, network, *peers, db=node.db.after(count))
        if again.space.ls(STATE):
            state = again.published()
            assert again.program.results().outputs["state"] == state.hex(), count
            assert (await again.why(replayed=True)).replayed, count
        else:
            assert again.program.results().frame == 0, count


async def test_a_state_is_explained_by_owner_and_path_and_replayed(node, peers, bob):
    await play(node, *peers)
    root = await node.why(replayed=True)
    assert root.verified
    assert root.signed.record.function == "allocation.state"
    steps = steps_of(root)
    functions = {one.signed.record.function for one in steps if one.signed is not None}
    assert functions == {"allocation.state"}
    assert all(one.replayed for one in steps if one.signed is not None)
    read = {(one.owner, one.path) for one in steps if one.note.startswith("number ")}
    own = node.space.owner
    nodes = {own, *(peer.node_id for peer in peers)}
    assert read == {(each, UserSpacePaths.COMMITMENT) for each in nodes}
    behind = next(one for one in steps if one.owner == bob.node_id)
    record = node.space.get(UserSpacePaths.COMMITMENT, bob.node_id).signed.record
    assert (behind.value, behind.note) == (record.digest.hex(), f"number {record.sequence}")


async def test_a_state_that_the_rule_does_not_give_is_found(node, peers, monkeypatch):
    await play(node, *peers)
    for changes in (
        {"damping_factor": lambda _: 1},
        {
            "slot_denominators": lambda said: tuple(
                each.model_copy(update={"allocations": each.allocations[:1]})
                for each in said.slot_denominators
            )
        },
    ):
        with monkeypatch.context() as lying:
            said_by(lying, node, **changes)
            await node.needs(peers[0], need_of(5 + len(changes), 9 + len(changes)))
            await node.allocator.allocate()
        root = await node.why(replayed=True)
        assert (root.verified, root.replayed) == (True, False)
        node.pass_ms(1_000)


async def test_what_is_gathered_is_kept_up_to_its_bound_and_replayed_so_far(
    node, peers, monkeypatch
):
    monkeypatch.setattr("xsc.programs.limits.INPUT_INLINE_BYTES_MAX", 100)
    await play(node, *peers)
    kept = UserSpacePaths.variable(node.program.program.hash, "gathered")
    assert node.space.ls(kept)
    root = await node.why(replayed=True)
    assert root.verified
    assert root.replayed, (root.note, root.large.keys())
    assert root.large.keys() == {"gathered", "last"}
    monkeypatch.setattr("xsc.programs.limits.VALUE_BYTES_MAX", 100)
    await node.needs(peers[0], need_of(4, 9))
    await node.allocator.allocate()
    assert not node.space.ls(kept)
    root = await node.why(replayed=True)
    assert root.verified
    assert root.replayed is None
    assert "not kept any more" in root.note


async def test_a_walk_checks_so_many_parts(node, peers, monkeypatch):
    await play(node, *peers)
    with monkeypatch.context() as bounded:
        bounded.setattr("xsc.programs.limits.WHY_PARTS_MAX", 2)
        root = await node.why()
        assert not root.verified
        assert any(one.note == "not followed: over 2 values" for one in steps_of(root))
    monkeypatch.setattr("xsc.programs.limits.INPUT_INLINE_BYTES_MAX", 100)
    await node.needs(peers[0], need_of(4, 9))
    await node.allocator.allocate()
    monkeypatch.setattr("xsc.programs.limits.WHY_LARGE_BYTES_MAX", 100)
    root = await node.why(replayed=True)
    assert (root.verified, root.replayed, root.large) == (True, None, {})


async def test_an_exchanged_part_is_forged(node, peers, bob):
    await play(node, *peers)

    def exchanged(raw):
        return [(*rest, value + b"x") for *rest, value in parts_of(raw)]

    root = await Why(node.read, node.network, exchanged).walk(node.space.owner, STATE)
    assert not root.verified
    wrong = [one.note for one in steps_of(root) if not one.holds]
    assert len(wrong) >= 1 + len(peers)
    assert all(note.startswith("forged: ") for note in wrong)
