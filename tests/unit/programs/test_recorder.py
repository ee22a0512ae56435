"""What is recorded of a frame, and where it is kept."""

from __future__ import annotations

from tests.unit.programs.documents import MEMORY, call, compiled, derived, local, sub
from tests.unit.programs.provenances import NETWORK, Runner
from xsc.identity.envelope import open_signed
from xsc.programs.limits import ANCESTORS_MAX
from xsc.programs.provenance import ProvenanceRecord, event_of, kept_of
from xsc.space.paths import UserSpacePaths, below

SUM = compiled(
    {"a": sub(path="in/a", default=1), "b": {"kind": "value", "type": "i32", "value": 2}},
    {"sum": call("math.add", {"x": "a", "y": "b"}, total={"path": "out/total"})},
)


def records(node, program):
    """Return the records of a program, the oldest first, by their links' ids."""
    prefix = below(UserSpacePaths.PROVENANCE, program.hash)
    found = {}
    for kept in sorted(node.space.ls(prefix), key=lambda item: item.sequence):
        raw = node.space.get(kept.path).value
        signed = open_signed(raw, ProvenanceRecord, network=NETWORK, author=node.owner)
        found[signed.id] = signed.record
    return found


async def test_a_record_names_program_function_inputs_and_output():
    node = Runner()
    await node.frame(SUM)
    node.space.write({"in/a": b"5"})
    await node.frame(SUM)
    first, second = records(node, SUM).values()
    assert (first.program, first.frame, first.computation) == (SUM.hash, 1, "sum")
    assert (first.function, first.version) == ("math.add", SUM.steps[0].function.hash)
    assert [item.source.kind for item in first.inputs] == ["default", "value"]
    source = second.inputs[0].source
    entry = node.space.get("in/a")
    assert (source.owner, source.place, source.record) == (node.owner, "in/a", entry.signed.id)
    assert (source.sequence, source.value) == (
        entry.signed.record.sequence,
        entry.signed.record.digest,
    )
    assert second.output.published == node.space.get("out/total").signed.record.digest
    assert second.receipt is None


async def test_an_output_keeps_sixteen_ancestors_and_the_oldest_is_replaced():
    node = Runner()
    for value in range(30):
        node.space.write({"in/a": b"%d" % value})
        await node.frame(SUM)
        if value == 20:
            node.restart()
    kept = records(node, SUM)
    assert [item.frame for item in kept.values()] == list(range(14, 31))
    assert len(kept) == 1 + ANCESTORS_MAX


def test_a_program_of_many_outputs_keeps_fewer_ancestors():
    assert [kept_of(outputs) for outputs in (0, 1, 120, 121, 1024, 9999)] == [17, 17, 17, 16, 2, 1]


async def test_an_input_is_linked_to_the_record_of_the_output_that_it_is():
    node = Runner()
    two = compiled(
        {"a": sub(path="in/a", default=1), "s": derived("sum", "s")},
        {
            "sum": call("math.add", {"x": "a", "y": "a"}, s=MEMORY),
            "twice": call("math.add", {"x": "s", "y": "a"}, t={"path": "out/t"}),
        },
    )
    other = compiled(
        {"t": sub("f64", path="out/t", default=0)},
        {"text": call("text.of", {"value": "t"}, shown={"path": "out/shown"})},
    )
    await node.frame(two)
    await node.frame(other)
    made = records(node, two)
    (shown,) = records(node, other).values()
    by_name = {record.output.name: (id_, record) for id_, record in made.items()}
    (link,) = by_name["t"][1].inputs[0].parents
    assert link.record == by_name["s"][0]
    assert [link.record for link in shown.inputs[0].parents] == [by_name["t"][0]]
    assert link.event == event_of(("sum", "s"), 0)


async def test_a_local_variable_is_linked_to_the_records_of_the_values_that_it_keeps():
    node = Runner()
    ring = compiled(
        {"a": sub(path="in/a", default=1), "last": local(size=3), "n": derived("sum", "s")},
        {
            "sum": call("list.sum", {"items": "last"}, s={"local": "last"}),
            "plus": call("math.add", {"x": "n", "y": "a"}, t=MEMORY),
        },
    )
    await node.frame(ring, {"last": 7})
    await node.frame(ring)
    await node.frame(ring)
    frames = {id_: record.frame for id_, record in records(node, ring).items()}
    linked = [
        (record.frame, [frames[link.record] for link in record.inputs[0].parents])
        for record in records(node, ring).values()
        if record.computation == "sum"
    ]
    assert linked == [(1, []), (2, [1]), (3, [2, 1])]


async def test_what_is_no_record_at_the_path_of_one_is_passed_over():
    node = Runner()
    node.space.write(
        {below(UserSpacePaths.PROVENANCE, SUM.hash, event_of(("", "out/total"), 0)): b"x"}
    )
    await node.frame(SUM)
    assert [record.frame for record in records(node, SUM).values()] == [1]


async def test_a_program_that_is_forgotten_is_read_again_from_the_space():
    node = Runner()
    await node.frame(SUM)
    before = dict(node.space.entries)
    node.space.write({"in/a": b"5"})
    await node.frame(SUM)
    node.space.entries = before
    node.recorder.forget(SUM.hash)
    node.space.write({"in/a": b"6"})
    await node.frame(SUM)
    assert [record.frame for record in records(node, SUM).values()] == [1, 3]
