"""Programs that run: what changes is computed, published once, and outlives the node."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import replace

import pytest

from tests.settle import settle
from tests.unit.programs.documents import EXAMPLE, MEMORY, call, derived, local, sub
from tests.unit.programs.nodes import ProgramNode, document
from tests.unit.space.test_store import Journal
from xsc.base.encoding import encode
from xsc.base.errors import (
    ArgumentInvalid,
    NotFound,
    ProgramInvalid,
    SpaceExhausted,
    StoreDamaged,
    TooLarge,
)
from xsc.base.ids import to_text
from xsc.programs import limits
from xsc.programs.frame import Fault
from xsc.programs.functions import BUILT_IN
from xsc.programs.limits import (
    OWN_FRAMES_MAX,
    PROGRAM_MODULES_BYTES_MAX,
    PROGRAMS_MAX,
    PUBLICATIONS_AN_HOUR_MAX,
)
from xsc.programs.running import RunningProgram
from xsc.space.paths import UserSpacePaths, below
from xsc.space.record import Change
from xsc.terms.execution import Number

HOUR_MS = 3_600_000
ONE = {"kind": "value", "type": "i32", "value": 1}
SUM = document(
    {"a": sub(path="demo/a", default=0), "b": sub(path="demo/b", default=0)},
    {"sum": call("math.add", {"x": "a", "y": "b"}, total={"path": "demo/total"})},
)
COUNT = document(
    {"a": sub(path="demo/a", default=0), "kept": local("i32", size=3)},
    {
        "mean": call("list.sum", {"items": "kept"}, sum={"path": "demo/sum"}),
        "push": call("math.add", {"x": "a", "y": "a"}, twice={"local": "kept"}),
    },
)
LOOP = document(
    {"a": sub(path="demo/out", default=0), "one": ONE, "go": sub(path="demo/go", default=0)},
    {
        "next": call("math.add", {"x": "a", "y": "one"}, out={"path": "demo/out"}),
        "seen": call("math.add", {"x": "go", "y": "one"}, seen=MEMORY),
    },
)


@pytest.fixture
async def node():
    made = ProgramNode()
    yield made
    await made.end()


async def test_an_own_change_is_computed_and_published_as_text_at_the_declared_path(node):
    program = await node.run(SUM, "json")
    await node.put("demo/a", " 20\n")
    await node.put("demo/b", "0x16")
    assert not node.has("demo/total")
    await node.pass_ms(100)
    assert node.get("demo/total") == "42"
    shown = node.manager.get_results(program)
    assert shown.state == "active"
    assert shown.hash == to_text(program)
    assert shown.variables == {"a": "20", "b": "22"}
    assert (shown.outputs, shown.errors, shown.frame) == ({"total": "42"}, {}, 1)
    paths = {record.path for record in node.space.ls("") if record.path.startswith("demo")}
    assert paths == {"demo/a", "demo/b", "demo/total"}


async def test_changes_within_the_debounce_make_one_frame(node):
    program = await node.run(SUM, "json")
    await node.pass_ms(100)
    frames = node.manager.get_results(program).frame
    for value in range(50):
        await node.put("demo/a", str(value))
        await node.pass_ms(1)
    await node.pass_ms(50)
    assert node.manager.get_results(program).frame == frames + 1
    assert node.get("demo/total") == "49"


async def test_ten_thousand_changes_a_second_make_ten_frames(node):
    program = await node.run(SUM, "json")
    await node.pass_ms(1_000)
    frames = node.manager.get_results(program).frame
    sequence = await node.space.put("demo/a", b"7")
    told = Change(node.id, "demo/a", sequence, b"7")
    for _ in range(100):
        for _ in range(100):
            node.space.tell(told)
        await node.pass_ms(10)
    assert node.manager.get_results(program).frame - frames in {9, 10}


class Turns:
    """A sandbox whose calls wait to be let go."""

    def __init__(self):
        self.go = asyncio.Event()

    async def call(self, module, call):
        await self.go.wait()
        self.go.clear()
        return call.given[:1], b""


ECHO = document(
    {"a": sub(path="demo/a", default=0)},
    {
        "echo": call(
            {"module": "m", "export": "f"}, {"x": "a"}, out={"path": "demo/out", "type": "i32"}
        )
    },
)


async def test_a_change_while_a_frame_runs_makes_another_frame():
    node = ProgramNode(sandbox=(sandbox := Turns()))
    await node.run(ECHO, "json", m=b"\0asm")
    await node.put("demo/a", "1")
    await node.pass_ms(100)
    await node.put("demo/a", "2")  # while the module runs
    sandbox.go.set()
    await settle()
    assert node.get("demo/out") == "1"
    await node.pass_ms(100)
    sandbox.go.set()
    await settle()
    assert node.get("demo/out") == "2"
    await node.end()


async def test_only_outputs_that_changed_are_written_and_an_idle_program_writes_nothing(node):
    await node.run(SUM, "json")
    await node.pass_ms(100)
    await node.put("demo/a", "1")
    await node.pass_ms(100)
    total = node.space.get("demo/total").signed.record.sequence
    await node.put("demo/a", "1")
    await node.pass_ms(HOUR_MS)
    assert node.space.get("demo/total").signed.record.sequence == total


async def test_execute_before_start_raises_and_after_it_runs_at_once(node):
    program = await node.manager.register(SUM, "json")
    with pytest.raises(NotFound, match="is active"):
        await node.manager.execute(program)
    await node.manager.activate(program)
    assert (await node.manager.execute(program)).frame == 1
    assert node.get("demo/total") == "0"


async def test_start_registers_and_activates(node):
    program = await node.manager.start(SUM, "json")
    assert node.has(below(UserSpacePaths.REGISTRY, program))
    assert node.has(below(UserSpacePaths.ACTIVE, program))
    (row,) = node.manager.status()
    assert row.state == "active"


async def test_a_program_that_is_deactivated_runs_no_more_and_its_outputs_stay(node):
    program = await node.run(SUM, "json")
    await node.pass_ms(100)
    await node.manager.deactivate(program)
    await node.put("demo/a", "5")
    await node.pass_ms(HOUR_MS)
    assert node.get("demo/total") == "0"
    assert node.manager.get_results(program).state == "registered"
    assert not node.has(below(UserSpacePaths.SUBSCRIBED_HERE, "demo/a"))
    with pytest.raises(NotFound):
        await node.manager.deactivate(program)
    await node.manager.activate(program)
    await node.pass_ms(100)
    assert node.get("demo/total") == "5"


async def test_a_set_variable_is_computed_at_once_and_outlives_the_node(node):
    text = document(
        {"a": ONE, "b": ONE},
        {"sum": call("math.add", {"x": "a", "y": "b"}, total={"path": "demo/total"})},
    )
    program = await node.run(text, "json")
    await node.manager.set_variable(program, "a", "41")
    assert node.get("demo/total") == "42"
    (made,) = node.recorder.made[-1:]
    assert [given.source.kind for given in made.inputs] == ["set", "value"]
    node = await node.again()
    assert node.manager.get_results(program).variables == {"a": "41", "b": "1"}
    for name, value in (("c", "1"), ("a", "1.5")):
        with pytest.raises(ArgumentInvalid):
            await node.manager.set_variable(program, name, value)
    await node.end()


async def test_what_is_read_from_the_space_cannot_be_set(node):
    program = await node.run(SUM, "json")
    with pytest.raises(ArgumentInvalid, match="can be set"):
        await node.manager.set_variable(program, "a", "1")


async def test_an_error_is_kept_and_dependants_are_stale_and_not_written(node):
    text = document(
        {
            "a": sub(path="demo/a", default=6),
            "b": sub(path="demo/b", default=3),
            "q": derived("div", "q"),
            "one": ONE,
        },
        {
            "div": call("math.divide", {"x": "a", "y": "b"}, q=MEMORY),
            "out": call("math.add", {"x": "q", "y": "one"}, out={"path": "demo/out"}),
        },
    )
    program = await node.run(text, "json")
    await node.pass_ms(100)
    assert node.get("demo/out") == "3"
    await node.put("demo/b", "0")
    await node.pass_ms(100)
    for made in (node, await node.again()):
        shown = made.manager.get_results(program)
        assert list(shown.errors) == ["div"]
        assert shown.stale == ["out"]
        assert shown.outputs == {"out": None, "q": None}
        assert made.get("demo/out") == "3"
    await made.put("demo/b", "1")
    await made.pass_ms(100)
    assert made.get("demo/out") == "7"
    assert made.manager.get_results(program).errors == {}
    await made.end()


async def test_a_value_that_does_not_parse_is_an_error_of_its_variable(node):
    program = await node.run(SUM, "json")
    await node.put("demo/a", "many")
    await node.pass_ms(100)
    assert "'many' is no i32" in node.manager.get_results(program).errors["a"]
    assert not node.has("demo/total")
    node = await node.again()
    assert "'many' is no i32" in node.manager.get_results(program).errors["a"]
    await node.put("demo/a", "1")
    await node.pass_ms(100)
    assert node.get("demo/total") == "1"
    await node.end()


async def test_subscriptions_are_listed_in_the_space(node):
    bob = ProgramNode("bob", clock=node.clock)
    node.meet(bob)
    text = document(
        {"a": sub(path="demo/a", default=0), "b": sub(path="demo/b", default=0, owner="bob")},
        {"sum": call("math.add", {"x": "a", "y": "b"}, total={"path": "demo/total"})},
    )
    program = await node.run(text, "json")
    listed = json.dumps([to_text(program)])
    assert node.get(below(UserSpacePaths.SUBSCRIBED_HERE, "demo/a")) == listed
    assert node.get(below(UserSpacePaths.SUBSCRIBED_AT_PEERS, bob.id, "demo/b")) == listed
    assert node.watched == [(bob.id, "demo/b")]
    await bob.put("demo/b", "9")
    await node.pass_ms(100)
    assert node.get("demo/total") == "9"
    made = node.recorder.made[-1]
    source = made.inputs[1].source
    assert (source.kind, source.owner, source.place) == ("space", bob.id, "demo/b")
    assert source.record == bob.space.get("demo/b").signed.id
    assert made.inputs[0].source.kind == "default"
    await node.manager.deactivate(program)
    assert node.watched == []
    await bob.end()


async def test_a_program_above_its_rate_backs_off_doubling_and_shows_it(node):
    program = await node.run(SUM, "json")
    written = []
    node.space.on_change(
        lambda change: change.path == "demo/total" and written.append(node.clock.monotonic_ms())
    )
    for value in range(PUBLICATIONS_AN_HOUR_MAX + 200):
        await node.space.put("demo/a", str(value).encode())
        await node.pass_ms(1_000)
    assert node.manager.get_results(program).state == "backing_off"
    late = written[PUBLICATIONS_AN_HOUR_MAX:]
    gaps = [b - a for a, b in itertools.pairwise(late)]
    assert all(b > 1.8 * a for a, b in itertools.pairwise(gaps))
    await node.pass_ms(2 * HOUR_MS)
    assert node.get("demo/total") == str(PUBLICATIONS_AN_HOUR_MAX + 199)
    assert node.manager.get_results(program).state == "active"


async def test_two_programs_that_feed_each_other_back_off():
    alice = ProgramNode("alice")
    bob = ProgramNode("bob", clock=alice.clock)
    alice.meet(bob)
    for node, other in ((alice, "bob"), (bob, "alice")):
        text = document(
            {
                "theirs": sub("integer", "demo/n", default=0, owner=other),
                "one": ONE | {"type": "integer"},
            },
            {"next": call("math.add", {"x": "theirs", "y": "one"}, n={"path": "demo/n"})},
        )
        await node.run(text, "json")
    for _ in range(3):
        await alice.pass_ms(HOUR_MS)
    for node in (alice, bob):
        (row,) = node.manager.status()
        assert PUBLICATIONS_AN_HOUR_MAX <= row.publications <= 3 * (PUBLICATIONS_AN_HOUR_MAX + 20)
        await node.end()


async def test_a_program_that_reads_its_own_output_is_stopped_after_some_frames(node):
    program = await node.run(LOOP, "json")
    await node.pass_ms(HOUR_MS)
    shown = node.manager.get_results(program)
    assert shown.state == "oscillates"
    assert shown.fault.startswith("program_oscillates: ")
    assert OWN_FRAMES_MAX <= int(node.get("demo/out")) <= OWN_FRAMES_MAX + 3
    await node.put("demo/go", "1")  # another input
    await node.pass_ms(HOUR_MS)
    assert int(node.get("demo/out")) > OWN_FRAMES_MAX + 3
    assert node.manager.get_results(program).state == "oscillates"


async def test_an_own_output_that_settles_is_no_oscillation(node):
    text = document(
        {"a": sub(path="demo/out", default=1), "b": sub(path="demo/b", default=4)},
        {
            "less": call("compare.less", {"x": "a", "y": "b"}, less=MEMORY),
            "pick": call(
                "compare.choose", {"if": "l", "then": "b", "else": "a"}, out={"path": "demo/out"}
            ),
        },
    )
    found = json.loads(text)
    found["variables"]["l"] = derived("less", "less")
    program = await node.run(json.dumps(found), "json")
    await node.pass_ms(HOUR_MS)
    assert node.get("demo/out") == "4"
    assert node.manager.get_results(program).state == "active"


async def test_a_ring_that_fills_is_no_oscillation(node):
    text = document(
        {
            "a": sub(path="demo/a", default=1),
            "kept": local("i32", size=200),
            "z": ONE,
            "s": derived("sum", "sum"),
        },
        {
            "sum": call("list.sum", {"items": "kept"}, sum={"path": "demo/sum"}),
            "push": call(
                "compare.choose", {"if": "s2", "then": "a", "else": "a"}, out={"local": "kept"}
            ),
            "any": call("compare.equal", {"x": "s", "y": "z"}, any=MEMORY),
        },
    )
    found = json.loads(text)
    found["variables"]["s2"] = derived("any", "any")
    program = await node.run(json.dumps(found), "json")
    await node.pass_ms(HOUR_MS)
    assert node.manager.get_results(program).state == "active"


async def test_old_versions_run_until_deactivated_and_a_new_one_takes_over_the_state(node):
    old = await node.run(COUNT, "json")
    await node.put("demo/a", "5")
    await node.pass_ms(1_000)
    changed = json.loads(COUNT)
    changed["computations"]["mean"]["outputs"]["sum"]["path"] = "demo/sum2"
    new = await node.manager.register(json.dumps(changed).encode(), "json")
    await node.manager.activate(new)
    for made in (node, await node.again()):
        assert {row.state for row in made.manager.status()} == {"active"}
        (_, _slot) = made.manager._running[new].program.variables["kept"]
        before = made.manager._running[old].execution.runtime.state.read(("kept", "local"))
        assert made.manager._running[new].execution.runtime.state.read(("kept", "local")) == before
        assert before[-1] == 10
    await made.pass_ms(1_000)
    await made.manager.deactivate(old)
    await made.put("demo/a", "1")
    await made.pass_ms(1_000)
    assert made.get("demo/sum2") == "22"
    assert made.get("demo/sum") == "10"
    await made.end()


async def play(node, steps):
    """Run COUNT over changes; stop where the journal of the node ends."""
    program = await node.run(COUNT, "json")
    await node.pass_ms(1_000)
    for value in steps:
        await node.put("demo/a", value)
        await node.pass_ms(1_000)
    return program


async def test_a_restart_in_the_middle_changes_no_result(node):
    whole = ProgramNode()
    program = await play(whole, ["5", "6", "7", "8"])
    wanted = whole.manager.get_results(program)
    await play(node, ["5", "6"])
    node = await node.again()
    for value in ["7", "8"]:
        await node.put("demo/a", value)
        await node.pass_ms(1_000)
        node = await node.again()
    found = node.manager.get_results(program)
    assert replace(found, publications=0) == replace(wanted, publications=0)
    assert node.get("demo/sum") == whole.get("demo/sum") == "42"
    await whole.end()
    await node.end()


async def test_a_restart_runs_a_frame_only_where_an_input_has_another_hash(node):
    """It read and wrote every variable and result again; now one record has their hashes."""
    node = ProgramNode(db=Journal())
    program = await play(node, ["5", "6"])
    kept = {record.path for record in node.space.ls(below(UserSpacePaths.COMPUTE, program))}
    results = UserSpacePaths.result(program, "twice")
    assert kept == {UserSpacePaths.state(program), results}, "what has a path is kept there alone"
    frame, writes = node.manager.get_results(program).frame, len(node.db.writes)
    node = await node.again()
    await node.pass_ms(HOUR_MS)
    assert node.manager.get_results(program).frame == frame
    assert len(node.db.writes) == writes
    await node.end()
    await node.put("demo/a", "9")  # while the program does not run
    node = await node.again()
    await node.pass_ms(1_000)
    assert node.get("demo/sum") == "40"
    await node.put("demo/sum", "1")  # by hand: it is computed anew, and not published over that
    node = await node.again()
    await node.pass_ms(1_000)
    assert (node.outputs(program)["sum"], node.get("demo/sum")) == ("40", "1")
    await node.end()


async def test_a_change_that_arrives_is_not_read_again(node, monkeypatch):
    await node.run(SUM, "json")
    await node.pass_ms(100)
    read, get = [], node.space.get
    monkeypatch.setattr(node.space, "get", lambda *at: read.append(at[0]) or get(*at))
    await node.put("demo/a", "4")
    await node.pass_ms(100)
    assert "demo/a" not in read
    assert node.get("demo/total") == "4"


async def test_a_program_is_stopped_until_it_is_activated_or_the_node_starts(node):
    program = await node.run(SUM, "json")
    await node.pass_ms(100)
    await node.manager.stop(program)
    assert node.manager.get_results(program).state == "stopped"
    await node.put("demo/a", "5")
    await node.pass_ms(1_000)
    assert node.get("demo/total") == "0"
    for refused in (node.manager.stop, node.manager.execute):
        with pytest.raises(NotFound, match="is active"):
            await refused(program)
    await node.manager.activate(program)
    await node.pass_ms(100)
    assert node.get("demo/total") == "5"
    await asyncio.gather(
        node.manager.stop(program), node.manager.stop(program), return_exceptions=True
    )
    node = await node.again()
    assert node.manager.get_results(program).state == "active"
    await node.manager.stop(program)
    await node.manager.deactivate(program)
    assert node.manager.get_results(program).state == "registered"
    assert not node.has(below(UserSpacePaths.SUBSCRIBED_HERE, "demo/a"))
    await node.end()


FILTER = document(
    {
        "words": sub("[text]", path="demo/words", default=["a"]),
        "raw": sub("bytes", path="demo/raw", default="ff"),
        "half": sub("f64", path="demo/half", default=0.5),
    },
    {
        "f": call(
            {"module": "m"},
            {"a": "words", "b": "raw", "c": "half"},
            text={"path": "demo/text", "type": "text"},
            words={"memory": True, "type": "[bytes]", "result": 1},
        )
    },
)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (encode(["é", [b"x", b""]]), None),
        (encode(["é"]), "the module gives 1 results, and 2 are named"),
        (encode({"a": 1}), "the filter gives no list of results"),
        (encode([b"x", [b"x"]]), "b'x' is no text: a value is not changed to fit"),
        (b"\xa0\xa0", "not canonical CBOR"),
        (b"", "not canonical CBOR"),
    ],
)
async def test_a_filter_takes_and_gives_text_bytes_and_lists(answer, error):
    node = ProgramNode(sandbox=(sandbox := Modules(answer)))
    program = await node.run(FILTER, "json", m=b"\0asm")
    await node.pass_ms(100)
    ((_, made),) = sandbox.calls
    assert made.given == encode([["a"], b"\xff", bytes.fromhex("3fe0000000000000")])
    shown = node.manager.get_results(program)
    if error is None:
        assert shown.outputs == {"text": "é", "words": '["78", ""]'}
        assert {record.function for record in node.recorder.made} == {"_start"}
    else:
        assert shown.outputs == {"text": None, "words": None}
        assert error in shown.errors["f"]
    await node.end()


async def check_kills(spoil=lambda _: None):
    """Kill a node after each of its writes, and go on: the end is the same."""
    whole = ProgramNode(db=Journal())
    spoil(whole)
    program = await play(whole, ["5", "6"])
    wanted = replace(whole.manager.get_results(program), publications=0)
    journal = whole.db
    await whole.end()
    for count in range(len(journal.writes) + 1):
        node = await whole.again(db=journal.after(count))
        for value in ["5", "6"]:
            at = node.space.get("demo/a").value if node.has("demo/a") else b"0"
            if int(at) < int(value):
                await play(node, []) if not node.manager.status() else None
                await node.run(COUNT, "json")
                await node.pass_ms(1_000)
                await node.put("demo/a", value)
            else:
                await node.run(COUNT, "json")
            await node.pass_ms(1_000)
        found = replace(node.manager.get_results(program), publications=0)
        assert replace(found, frame=0) == replace(wanted, frame=0), f"killed after {count} writes"
        assert node.get("demo/sum") == whole.get("demo/sum")
        await node.end()


async def test_a_kill_at_any_write_leaves_the_state_of_a_whole_frame():
    await check_kills()


async def test_the_law_of_kills_finds_a_frame_that_is_written_in_parts():
    def torn(node):
        whole = node.space.put_all

        async def in_parts(values):
            written = {}
            for path, value in values.items():
                written |= await whole({path: value})
            return written

        node.space.put_all = in_parts

    with pytest.raises(AssertionError, match="killed after"):
        await check_kills(torn)


async def check_updates():
    """Change a value at every moment of a frame: what is computed in the end is the last value."""
    for moment in range(8):
        node = ProgramNode(sandbox=(sandbox := Turns()))
        await node.run(ECHO, "json", m=b"\0asm")
        await node.put("demo/a", "1")
        for _ in range(moment // 2):
            await node.pass_ms(50)
        if moment % 2:
            sandbox.go.set()  # the frame ends while the change is written
        await node.put("demo/a", "2")
        for _ in range(4):
            sandbox.go.set()
            await node.pass_ms(100)
        assert node.get("demo/out") == "2", moment
        await node.end()


async def test_no_update_is_lost():
    await check_updates()


async def test_the_law_of_updates_finds_a_program_that_hears_nothing_while_it_runs(monkeypatch):
    heard = RunningProgram.heard

    def deaf(self, change):
        if not self._lock.locked():
            heard(self, change)

    monkeypatch.setattr(RunningProgram, "heard", deaf)
    with pytest.raises(AssertionError):
        await check_updates()


async def test_a_frame_that_cannot_be_written_is_shown_and_run_again(node, monkeypatch):
    program = await node.run(SUM, "json")
    await node.pass_ms(100)
    put_all = node.space.put_all

    async def full(values):
        if "demo/a" in values:
            return await put_all(values)
        raise SpaceExhausted("the space is full")

    monkeypatch.setattr(node.space, "put_all", full)
    await node.put("demo/a", "3")
    await node.pass_ms(100)
    shown = node.manager.get_results(program)
    assert (shown.state, shown.fault) == (
        "failed",
        "space_exhausted: the space is full",
    )
    assert shown.outputs == {"total": "0"}
    monkeypatch.setattr(node.space, "put_all", put_all)
    await node.pass_ms(60_000)
    assert node.get("demo/total") == "3"
    assert node.manager.get_results(program).state == "active"


async def test_a_fetched_value_enters_each_frame_and_starts_none(node):
    text = document(
        {
            "last": {"kind": "fetch", "type": "i32", "path": "demo/n", "default": 0},
            "a": sub(path="demo/a", default=1),
        },
        {"next": call("math.add", {"x": "last", "y": "a"}, n={"path": "demo/n"})},
    )
    program = await node.run(text, "json")
    await node.pass_ms(HOUR_MS)
    assert node.get("demo/n") == "1"
    await node.put("demo/a", "2")
    await node.pass_ms(HOUR_MS)
    assert node.get("demo/n") == "3"
    node = await node.again()
    await node.pass_ms(HOUR_MS)
    assert node.get("demo/n") == "3"
    assert node.manager.get_results(program).state == "active"
    await node.end()


async def test_a_silent_peer_is_waited_for_so_long_as_the_document_says(node):
    bob = ProgramNode("bob", clock=node.clock)
    node.meet(bob)

    async def silent(owner, path):
        await asyncio.Event().wait()

    node.read = silent
    text = document(
        {
            "last": {
                "kind": "fetch",
                "type": "i32",
                "path": "demo/n",
                "default": 4,
                "owner": "bob",
                "wait_ms": 500,
            },
            "one": ONE,
        },
        {"next": call("math.add", {"x": "last", "y": "one"}, n={"path": "demo/m"})},
    )
    await node.run(text, "json")
    await node.pass_ms(599)
    assert not node.has("demo/m")
    await node.pass_ms(1)
    assert node.get("demo/m") == "5"
    await bob.end()


def module(export="f", **keys):
    return {"module": "m", "export": export, **keys}


class Modules:
    """Answers calls with what a test says."""

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    async def call(self, module, call):
        self.calls.append((module, call))
        return self.answer, b"receipt"


async def test_an_export_is_called_with_its_limits_and_its_receipt_is_recorded():
    seven = Number(type="i32", bits=(7).to_bytes(4, "little"))
    sandbox = Modules((seven,))
    node = ProgramNode(sandbox=sandbox)
    text = document(
        {"a": sub(path="demo/a", default=6)},
        {
            "f": call(
                module(fuel=9, memory_bytes=8, timeout_ms=7),
                {"x": "a"},
                out={"path": "demo/out", "type": "i32"},
            )
        },
    )
    program = await node.run(text, "json", m=b"\0asm")
    await node.pass_ms(100)
    assert node.get("demo/out") == "7"
    ((binary, made),) = sandbox.calls
    assert binary == b"\0asm"
    assert (made.call.fuel, made.call.memory_bytes, made.call.timeout_ms) == (9, 8, 7)
    assert node.recorder.made[-1].receipt == b"receipt"
    node = await node.again()
    assert len(sandbox.calls) == 1  # nothing runs again
    await node.put("demo/a", "1")
    await node.pass_ms(100)
    assert len(sandbox.calls) == 2  # the module was kept
    assert node.manager.get_results(program).frame == 2
    await node.end()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Fault("module_trapped: unreachable"), "module_trapped: unreachable"),
        ((Number(type="i32", bits=bytes(4)),) * 2, "the module gives 2 results, and 1 are named"),
        ((Number(type="i64", bits=bytes(8)),), "the module gives an i64, which is no i32"),
    ],
)
async def test_a_module_that_misbehaves_is_an_error_of_its_computation(answer, message):
    node = ProgramNode(sandbox=Modules(answer))
    text = document(
        {"a": sub(path="demo/a", default=6)},
        {"f": call(module(), {"x": "a"}, out={"path": "demo/out", "type": "i32"})},
    )
    program = await node.run(text, "json", m=b"\0asm")
    await node.pass_ms(100)
    assert node.manager.get_results(program).errors == {"f": message}
    assert not node.has("demo/out")
    await node.end()


async def test_registering_names_what_is_wrong(node):
    register = node.manager.register
    with pytest.raises(ProgramInvalid, match=r"line 12: variables.theirs.owner: no peer is called"):
        await register(EXAMPLE.replace("alice", "dora").encode(), "toml")
    with pytest.raises(
        ProgramInvalid, match=r"line 12: variables.theirs.owner: more than one peer"
    ):
        await register(EXAMPLE.replace("alice", "two").encode(), "toml")
    with pytest.raises(ProgramInvalid, match="no module 'm'"):
        await register(document({}, {"f": call(module(), {})}), "json")
    with pytest.raises(TooLarge):
        await register(SUM, "json", {"m": bytes(32 * 2**20 + 1)})
    deep = "/".join(["a"] * 31)
    with pytest.raises(ProgramInvalid, match=r"variables.a.path: not a path: a path has at most"):
        await register(
            document({"a": sub(path=deep)}, {"f": call("text.of", {"value": "a"})}), "json"
        )
    assert node.manager.status() == []


@pytest.mark.parametrize(
    "first",
    [
        "allocation",
        "nodes",
        "market",
        "programs",
        "compute",
        "causality",
        "subscriptions",
        "objects",
    ],
)
async def test_no_program_publishes_where_xsc_writes(node, first):
    text = document(
        {"one": ONE}, {"f": call("text.of", {"value": "one"}, o={"path": f"{first}/x"})}
    )
    with pytest.raises(ProgramInvalid, match="XSC alone writes at"):
        await node.manager.start(text, "json")


async def test_the_programs_of_a_node_are_bounded_and_the_oldest_inactive_one_goes(
    node, monkeypatch
):
    monkeypatch.setattr(limits, "PROGRAMS_MAX", 3)

    def numbered(number):
        return document(
            {"v": ONE | {"value": number}},
            {"f": call("text.of", {"value": "v"}, o={"path": "demo/x"})},
        )

    assert PROGRAMS_MAX == 128
    programs = [await node.manager.register(numbered(n), "json") for n in range(3)]
    await node.manager.activate(programs[0])
    fourth = await node.manager.register(numbered(3), "json")
    assert {row.hash for row in node.manager.status()} == {
        to_text(program) for program in (programs[0], programs[2], fourth)
    }
    assert not node.has(below(UserSpacePaths.REGISTRY, programs[1]))
    for program in (programs[2], fourth):
        await node.manager.activate(program)
    await node.manager.stop(fourth)  # which is active all the same
    with pytest.raises(SpaceExhausted, match="3 programs are active"):
        await node.manager.register(numbered(4), "json")


@pytest.mark.parametrize("damaged", ["state", "definition"])
async def test_a_program_that_cannot_run_goes_with_its_mark_and_its_subscriptions(
    node, monkeypatch, damaged
):
    monkeypatch.setattr(limits, "PROGRAMS_MAX", 1)
    program = await node.run(SUM, "json")
    await node.pass_ms(100)
    registered = below(UserSpacePaths.REGISTRY, program)
    await node.put(UserSpacePaths.state(program) if damaged == "state" else registered, "nonsense")
    node = await node.again()
    await node.manager.register(COUNT, "json")
    assert not node.has(below(UserSpacePaths.REGISTRY, program))
    assert not node.has(below(UserSpacePaths.ACTIVE, program))
    assert not node.has(below(UserSpacePaths.SUBSCRIBED_HERE, "demo/a"))
    await node.end()


async def test_the_list_of_who_reads_a_path_has_those_that_cannot_run(node):
    program = await node.run(SUM, "json")
    await node.pass_ms(100)
    await node.put(UserSpacePaths.state(program), "nonsense")
    node = await node.again()
    other = await node.run(COUNT, "json")
    listed = json.loads(node.get(below(UserSpacePaths.SUBSCRIBED_HERE, "demo/a")))
    assert listed == sorted(map(to_text, (program, other)))
    await node.manager.deactivate(other)
    await node.manager.deactivate(program)
    assert not node.has(below(UserSpacePaths.SUBSCRIBED_HERE, "demo/a"))
    await node.end()


async def test_a_change_while_a_program_is_activated_again_is_computed(node, monkeypatch):
    program = await node.run(SUM, "json")
    await node.pass_ms(1_000)
    await node.manager.deactivate(program)
    put_all = node.space.put_all

    async def put_late(writes):
        monkeypatch.setattr(node.space, "put_all", put_all)
        await put_all(writes)
        await node.space.put("demo/a", b"7")

    monkeypatch.setattr(node.space, "put_all", put_late)
    await node.manager.activate(program)
    await node.pass_ms(1_000)
    assert node.get("demo/total") == "7"


async def test_the_modules_of_a_node_are_bounded(node, monkeypatch):
    assert PROGRAM_MODULES_BYTES_MAX == 64 * 2**20
    monkeypatch.setattr(limits, "PROGRAM_MODULES_BYTES_MAX", 10)
    text = document({"one": ONE}, {"f": call(module(), {"x": "one"}, o=MEMORY | {"type": "i32"})})
    await node.manager.register(text, "json", {"m": bytes(6)})
    with pytest.raises(SpaceExhausted, match="modules"):
        await node.manager.register(text, "json", {"m": b"other!"})
    await node.manager.register(text, "json", {"m": bytes(6)})
    assert len(node.manager.status()) == 1


async def test_what_was_kept_and_does_not_fit_is_shown_and_does_not_run(node):
    program = await node.run(SUM, "json")
    await node.pass_ms(100)
    await node.put(UserSpacePaths.state(program), "nonsense")
    node = await node.again()
    shown = node.manager.get_results(program)
    assert shown.state == "failed"
    assert shown.fault.startswith("store_damaged: ")
    with pytest.raises(ProgramInvalid, match="cannot run here"):
        await node.manager.activate(program)
    await node.manager.deactivate(program)
    assert not node.has(below(UserSpacePaths.ACTIVE, program))
    await node.end()


async def test_a_program_that_comes_with_xsc_is_listed_and_left_alone(node):
    text = b"""
id = "own"
[variables.a]
kind = "given"
type = "i32"
[computations.c]
function = "math.add"
inputs = { x = "a", y = "a" }
outputs.twice = { path = "nodes/twice" }
"""
    served = node.manager.serve(text, BUILT_IN, ())
    (row,) = node.manager.status()
    assert (row.id, row.built_in, row.state, row.frame) == ("own", True, "active", 0)
    assert served.run({"a": 4}) == {"twice": 8}
    await node.space.put_all(served.writes())
    served.wrote()
    assert node.get("nodes/twice") == "8"
    found = node.manager.find(row.hash[:8])
    assert node.manager.get_results(found).variables == {"a": "4"}
    for refused in (
        node.manager.activate(found),
        node.manager.deactivate(found),
        node.manager.execute(found),
        node.manager.set_variable(found, "a", "1"),
    ):
        with pytest.raises(ArgumentInvalid, match="comes with XSC"):
            await refused
    assert not node.space.ls(UserSpacePaths.REGISTRY)


async def test_a_hash_is_found_by_its_beginning(node):
    program = await node.manager.register(SUM, "json")
    assert node.manager.find(to_text(program)[:8]) == program
    for text in ("", "abc", "zzzzzzzz"):
        with pytest.raises(NotFound):
            node.manager.find(text)


async def test_whoever_waits_is_told_of_each_frame_and_of_the_end(node):
    program = await node.run(SUM, "json")
    waiting = asyncio.create_task(node.manager.changed(program))
    await node.pass_ms(100)
    assert waiting.done()
    waiting = asyncio.create_task(node.manager.changed(program))
    await settle()
    await node.manager.deactivate(program)
    await waiting
    with pytest.raises(NotFound):
        await node.manager.changed(program)


def test_damage_is_an_error_of_the_store():
    assert StoreDamaged("x").exit_code == 6
