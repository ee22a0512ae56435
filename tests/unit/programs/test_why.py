"""What is behind a value, link by link."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.programs.documents import MEMORY, call, compiled, derived, local, sub
from tests.unit.programs.provenances import NETWORK, Runner
from xsc.api.serial import document
from xsc.base.clock import InlineExecutor
from xsc.base.errors import NotFound, ProofInvalid, XscError
from xsc.base.ids import short, to_text
from xsc.identity.envelope import open_signed, read_claimed, sign
from xsc.identity.keys import KeyPair
from xsc.node.offline.verify import verify_file
from xsc.programs import why
from xsc.programs.functions import BUILT_IN, Function, Functions
from xsc.programs.limits import WHY_DEPTH_MAX
from xsc.programs.numbers import digest_of, to_space, value_bytes
from xsc.programs.provenance import (
    Link,
    ProvenanceInput,
    ProvenanceOutput,
    ProvenanceRecord,
    Source,
    event_of,
)
from xsc.programs.why import Why, check_record, replay, shown, steps_of
from xsc.space.paths import UserSpacePaths, below
from xsc.space.record import value_digest
from xsc.terms.execution import ExecutionReceipt, Number, Observed, Order, Outcome

TWICE = compiled(
    {
        "a": sub(path="in/a"),
        "d": derived("sum", "s"),
        "k": {"kind": "value", "type": "i32", "value": 3},
    },
    {
        "sum": call("math.add", {"x": "a", "y": "a"}, s=MEMORY),
        "more": call("math.multiply", {"x": "d", "y": "k"}, t={"path": "out/t"}),
    },
)


def reading(path, owner=None, type_="i32"):
    """Return a program that publishes one more than what is at a path."""
    keys = {} if owner is None else {"owner": to_text(owner)}
    return compiled(
        {"x": sub(type_, path=path, **keys), "one": {"kind": "value", "type": type_, "value": 1}},
        {"inc": call("math.add", {"x": "x", "y": "one"}, out={"path": f"next/{path}"[:200]})},
    )


def shape(step):
    """Return path, value, verified and note, and the same of what is behind it."""
    return (step.path, step.value, step.verified, step.note, [shape(one) for _, one in step.inputs])


async def never(call):
    raise AssertionError(call)


async def pair():
    """Return two nodes; a program of the second reads an output of the first."""
    alice = Runner(1)
    bob = Runner(2, [alice])
    alice.space.write({"in/a": b"5"})
    await alice.frame(TWICE)
    program = reading("out/t", alice.owner)
    await bob.frame(program)
    return alice, bob, program


async def test_a_value_is_explained_down_to_what_was_put_across_nodes():
    alice, bob, _ = await pair()
    root = await bob.why("next/out/t")
    a = ("in/a", "5", True, "", [])
    assert shape(root) == (
        "next/out/t",
        "31",
        True,
        "",
        [
            (
                "out/t",
                "30",
                True,
                "",
                [
                    ("sum.s", "10", True, "", [a, a]),
                    ("y", "3", True, "stands in the program", []),
                ],
            ),
            ("y", "1", True, "stands in the program", []),
        ],
    )
    assert [step.owner for step in steps_of(root)][:2] == [bob.owner, alice.owner]
    tree = document(shown(root))
    assert (tree["value"], tree["function"]) == ("31", "math.add")
    assert tree["inputs"][0]["owner"] == to_text(alice.owner)
    assert {"path", "value", "verified", "function", "inputs"} <= tree.keys()


async def test_what_no_program_gave_and_what_is_not_there():
    node = Runner()
    node.space.write({"in/a": b"5"})
    assert shape(await node.why("in/a")) == ("in/a", "5", True, "no program's output", [])
    with pytest.raises(NotFound):
        await node.why("in/b")
    node.space.entries["in/a"] = replace(node.space.get("in/a"), value=None)
    with pytest.raises(NotFound, match=f"nothing is at 'in/a' of {short(node.owner)}"):
        await node.why("in/a")


async def test_a_link_that_is_older_than_what_is_kept_is_gone_and_not_verified():
    alice, bob, _ = await pair()
    for value in range(16):
        alice.space.write({"in/a": b"%d" % (value + 100)})
        await alice.frame(TWICE)
    root = await bob.why("next/out/t")
    held, leaf = root.inputs[0][1], steps_of(root)[-1]
    assert (held.note, held.verified, root.verified) == ("", False, False)
    assert (leaf.path, leaf.note, leaf.verified) == ("in/a", "gone", False)
    alice.space.write({"in/a": b"77"})
    await alice.frame(TWICE)
    root = await bob.why("next/out/t")
    assert root.inputs[0][1].note == "gone"
    assert (root.holds, root.verified) == (True, False)


async def test_a_value_that_was_overwritten_by_hand_has_no_record():
    alice, _, _ = await pair()
    alice.space.write({"out/t": b"31"})
    root = await alice.why("out/t")
    assert (root.value, root.verified, root.note) == ("31", False, "gone")


async def test_a_ring_is_followed_frame_by_frame():
    node = Runner()
    ring = compiled(
        {"a": sub(path="in/a", default=1), "last": local(size=3)},
        {
            "sum": call("list.sum", {"items": "last"}, s={"local": "last"}),
            "total": call("list.length", {"items": "last"}, n={"path": "out/n"}),
        },
    )
    for _ in range(3):
        await node.frame(ring)
    root = await node.why("out/n")
    assert [(name, one.path) for name, one in root.inputs] == [("items", "last")]
    await node.frame(ring, {"last": 2})
    await node.frame(ring)
    root = await node.why("out/n")
    assert {one.path for one in steps_of(root)} == {"out/n", "sum.s", "last"}
    assert root.verified


# Forgeries


def forged(node, program, place, number=0, **changes):
    """Write a record again, signed by its own node, with other fields."""
    path = below(UserSpacePaths.PROVENANCE, program.hash, event_of(place, number))
    record = open_signed(node.space.get(path).value, ProvenanceRecord, network=NETWORK).record
    made = record.model_copy(update=changes)
    node.space.write({path: sign(made, node.key, NETWORK).raw})
    return record


async def test_a_record_that_was_exchanged_is_found():
    alice, bob, _ = await pair()
    # The record of another frame at the place of the parent: the link names another id.
    forged(alice, TWICE, ("sum", "s"), frame=9)
    root = await bob.why("next/out/t")
    held = root.inputs[0][1]
    assert [one.note for _, one in held.inputs] == ["gone", "stands in the program"]
    assert root.verified is False


async def test_a_record_that_another_signed_is_forged():
    alice, bob, _ = await pair()
    path = below(UserSpacePaths.PROVENANCE, TWICE.hash, event_of(("", "out/t"), 0))
    record = open_signed(alice.space.get(path).value, ProvenanceRecord, network=NETWORK).record
    mallory = KeyPair(b"m" * 32)
    alice.space.write({path: sign(record, mallory, NETWORK).raw})
    root = await bob.why("next/out/t")
    assert root.inputs[0][1].note.startswith("forged: ")
    assert root.verified is False


async def test_an_input_that_its_record_does_not_have_is_forged():
    alice, bob, program = await pair()
    alice.space.write({"plain": b"5"})
    own = reading("plain", alice.owner)
    await bob.frame(own)
    path = below(UserSpacePaths.PROVENANCE, own.hash, event_of(("", "next/plain"), 0))
    record = open_signed(bob.space.get(path).value, ProvenanceRecord, network=NETWORK).record
    false = record.inputs[0].model_copy(
        update={"digest": record.inputs[1].digest, "value": record.inputs[1].value}
    )
    forged(bob, own, ("", "next/plain"), inputs=(false, record.inputs[1]))
    root = await bob.why("next/plain")
    assert root.inputs[0][1].note == "forged: another value than its record has"
    whole = await bob.why("next/out/t")
    false = whole.signed.record.inputs[0].model_copy(update={"digest": b"x" * 32, "value": None})
    forged(bob, program, ("", "next/out/t"), inputs=(false, whole.signed.record.inputs[1]))
    root = await bob.why("next/out/t")
    assert root.inputs[0][1].note == "forged: another value than its record has"


async def test_outputs_that_are_behind_each_other_are_a_circle():
    alice, bob = Runner(1), Runner(2)
    alice.spaces |= {bob.owner: bob.space}
    bob.spaces |= {alice.owner: alice.space}
    first = compiled(
        {"x": sub("text", path="b", owner=to_text(bob.owner), default="s")},
        {"same": call("text.of", {"value": "x"}, out={"path": "a"})},
    )
    second = compiled(
        {"x": sub("text", path="a", owner=to_text(alice.owner), default="s")},
        {"same": call("text.of", {"value": "x"}, out={"path": "b"})},
    )
    await alice.frame(first)
    for _ in range(18):
        await bob.frame(second, {})
        await alice.frame(first)
        for node, program in ((alice, first), (bob, second)):
            node.programs.pop(program.hash)
    root = await alice.why("a")
    assert root.verified is False
    assert "a circle: it is behind itself" in {step.note for step in steps_of(root)}


# A record alone


async def some_record():
    node = Runner()
    node.space.write({"in/a": b"5"})
    await node.frame(reading("in/a"))
    path = below(UserSpacePaths.PROVENANCE, reading("in/a").hash, event_of(("", "next/in/a"), 0))
    return node, node.space.get(path).value


async def check_flips():
    node, raw = await some_record()
    check_record(raw, network=NETWORK, author=node.owner)
    for place in range(len(raw)):
        for bit in (1, 0x80):
            changed = bytearray(raw)
            changed[place] ^= bit
            with pytest.raises(XscError):
                check_record(bytes(changed), network=NETWORK, author=node.owner)


async def test_any_byte_that_is_flipped_is_found():
    await check_flips()


async def test_the_law_of_flipped_bytes_finds_a_check_without_a_signature(monkeypatch):
    monkeypatch.setattr(why, "open_signed", read_claimed)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        await check_flips()


async def test_verify_says_in_one_line_what_a_record_proves():
    node, raw = await some_record()
    said = verify_file(raw)
    assert "says that math.add(x = 5, y = 1) gave 6 at 'next/in/a', as inc.out" in said
    assert short(node.owner) in said
    program = compiled(
        {"x": sub("text", path="in/t", default="a\n" + "b" * 5000)},
        {"same": call("text.of", {"value": "x"}, out={"path": "t"})},
    )
    await node.frame(program)
    path = below(UserSpacePaths.PROVENANCE, program.hash, event_of(("", "t"), 0))
    said = verify_file(node.space.get(path).value)
    assert "(value = a text of hash " in said
    assert said.isprintable()
    with pytest.raises(ProofInvalid):
        verify_file(raw[:-1] + b"x")


@pytest.mark.parametrize(
    "change",
    [
        lambda r: {"inputs": (r.inputs[0], r.inputs[0])},
        lambda r: {"inputs": (r.inputs[0].model_copy(update={"digest": b"x" * 32}),)},
        lambda r: {"inputs": (r.inputs[0].model_copy(update={"type": "u32"}),)},
        lambda r: {"output": r.output.model_copy(update={"published": b"x" * 32})},
        lambda r: {"output": r.output.model_copy(update={"published": None})},
        lambda r: {"output": r.output.model_copy(update={"path": ""})},
        lambda r: {"output": r.output.model_copy(update={"value": r.inputs[1].value})},
        lambda r: {"receipt": b"x"},
    ],
)
async def test_a_record_that_contradicts_itself_proves_nothing(change):
    node, raw = await some_record()
    record = open_signed(raw, ProvenanceRecord, network=NETWORK).record
    false = sign(record.model_copy(update=change(record)), node.key, NETWORK).raw
    with pytest.raises(XscError):
        check_record(false)


async def test_what_stands_in_the_program_has_no_parents():
    node, raw = await some_record()
    root = await node.why("next/in/a")
    record = open_signed(raw, ProvenanceRecord, network=NETWORK).record
    assert root.inputs[1][1].note == "stands in the program"
    link = Link(program=b"p" * 32, event=b"e" * 32, record=b"r" * 32)
    one = record.inputs[1].model_copy(update={"parents": (link,)})
    false = record.model_copy(update={"inputs": (record.inputs[0], one)})
    with pytest.raises(ProofInvalid, match="parents"):
        check_record(sign(false, node.key, NETWORK).raw)


# Running again


async def test_replay_runs_every_function_again():
    _, bob, _ = await pair()
    root = await bob.why("next/out/t")
    await replay(root, Functions(), never, InlineExecutor())
    assert [step.replayed for step in steps_of(root) if step.signed] == [True] * 3
    assert shown(root).replayed is True


async def test_replay_finds_a_result_that_the_function_does_not_give():
    alice, bob, _ = await pair()
    right = (await bob.why("next/out/t")).signed.record
    wrong = right.inputs[1]
    output = right.output.model_copy(
        update={"digest": wrong.digest, "value": wrong.value, "published": published(1)}
    )
    forged(bob, reading("out/t", alice.owner), ("", "next/out/t"), output=output)
    bob.space.write({"next/out/t": b"1"})
    root = await bob.why("next/out/t")
    assert (root.verified, root.value) == (True, "1")
    await replay(root, Functions(), never, InlineExecutor())
    assert (root.replayed, root.note) == (False, "math.add gives another value")


def published(value):
    return value_digest(to_space("i32", value))


async def test_replay_says_what_it_cannot_prove():
    _, bob, _ = await pair()
    newer = Functions(
        Function(f.name, 2, f.params, f.result, f.run) if f.name == "math.add" else f
        for f in BUILT_IN
    )
    root = await bob.why("next/out/t")
    await replay(root, newer, never, InlineExecutor())
    assert (root.replayed, root.note) == (None, "this node has another version of math.add")


@pytest.mark.parametrize("falsely", ["owner", "record", "sequence"])
async def test_a_record_of_ones_own_is_none_of_anothers_space(falsely):
    victim = Runner(1)
    mallory = Runner(2, [victim])
    victim.space.write({"price": b"5"})
    mallory.space.write({"price": b"5"})
    owner = victim.owner if falsely == "owner" else mallory.owner
    program = reading("price", owner)
    await mallory.frame(program)
    record = (await mallory.why("next/price")).signed.record
    high = value_bytes("i32", 1_000_000)
    output = {"value": high, "digest": digest_of(high), "published": published(1_000_000)}
    false = record.model_copy(
        update={
            "inputs": (),
            "output": record.output.model_copy(update={"path": "price"} | output),
        }
    )
    signed = sign(false, mallory.key, NETWORK)
    event = b"e" * 32
    mallory.space.write({below(UserSpacePaths.PROVENANCE, program.hash, event): signed.raw})
    link = Link(program=program.hash, event=event, record=signed.id)
    read = record.inputs[0]
    named = {"record": {"record": b"\x77" * 32}, "sequence": {"sequence": 2**40}}.get(falsely, {})
    source = read.source.model_copy(update={"value": published(1_000_000)} | named)
    if falsely == "owner":
        source = read.source.model_copy(update={"sequence": 0, "value": published(1_000_000)})
    read = read.model_copy(
        update={
            "value": high,
            "digest": digest_of(high),
            "source": source,
            "parents": (link,),
        }
    )
    forged(mallory, program, ("", "next/price"), inputs=(read, record.inputs[1]))
    root = await mallory.why("next/price")
    assert not root.inputs[0][1].verified
    assert root.verified is False


# Bounds


async def test_a_chain_is_followed_deeper_than_it_is_shown():
    node = Runner()
    links = 2 * WHY_DEPTH_MAX
    variables = {
        "v0": sub(path="in/a", default=1),
        "zero": {"kind": "value", "type": "i32", "value": 0},
    }
    computations = {}
    for number in range(1, links):
        name = f"c{number:04}"
        previous = f"v{number - 1}"
        computations[name] = call(
            "math.add", {"x": previous, "y": "zero"}, **{f"o{number}": MEMORY}
        )
        variables[f"v{number}"] = derived(name, f"o{number}")
    computations["last"] = call(
        "math.add", {"x": f"v{links - 1}", "y": "zero"}, end={"path": "end"}
    )
    await node.frame(compiled(variables, computations))
    root = await node.why("end")
    assert root.verified
    assert sum(1 for step in steps_of(root) if step.signed) == links
    tree = document(shown(root))
    depth = 1
    while tree["inputs"]:
        tree, depth = tree["inputs"][0], depth + 1
    assert (depth, tree["note"]) == (WHY_DEPTH_MAX, "more is behind it")


@pytest.mark.parametrize("name", ["WHY_LINKS_MAX", "WHY_READS_MAX"])
async def test_a_walk_ends_at_its_bounds(name, monkeypatch):
    _, bob, _ = await pair()
    monkeypatch.setattr(f"xsc.programs.limits.{name}", 2)
    root = await bob.why("next/out/t")
    assert root.verified is False


# A module's receipt

NUMBER = {value: Number(type="i32", bits=value.to_bytes(4, "little")) for value in (1, 2, 3, 4)}
MODULE = b"m" * 32


def receipt_of(node, *, order=(), outcome=(), by=None, customer=None, network=NETWORK):
    """Return the signed receipt of add(1, 2) = 3, with some of it changed."""
    fields = {
        "nonce": bytes(16),
        "lease_id": bytes(32),
        "customer": node.owner,
        "provider": node.owner,
        "module": MODULE,
        "mode": "invoke",
        "function": "add",
        "arguments": (NUMBER[1], NUMBER[2]),
        "input": bytes(32),
        "fuel_max": 1_000,
        "memory_bytes_max": 1_000,
        "timeout_ms": 1_000,
        "created_ms": 0,
        "grants": (),
        "given_bytes": 0,
    }
    signed = sign(Order(**fields | dict(order)), customer or node.key, network)
    found = Outcome(
        **{
            "module": MODULE,
            "mode": "invoke",
            "function": "add",
            "arguments": (NUMBER[1], NUMBER[2]),
            "input": bytes(32),
            "results": (NUMBER[3],),
            "output": bytes(32),
            "exit_code": None,
            "trap": None,
            "fuel_used": 1,
            "memory_peak_bytes": 1,
            "engine": "e",
            "engine_config": bytes(32),
        }
        | dict(outcome)
    )
    seen = Observed(started_ms=0, wall_ms=0, saved_bytes=0, compiled_bytes=0, calls=0)
    receipt = ExecutionReceipt(
        order=signed.raw, request=None, outcome=found, observed=seen, amount_micro=0
    )
    return sign(receipt, by or node.key, network).raw


def of_module(node, receipt):
    """Return the signed record of a module's add(1, 2) = 3."""
    inputs = tuple(
        ProvenanceInput(name=name, source=Source(kind="value"), parents=(), **said("i32", value))
        for name, value in (("x", 1), ("y", 2))
    )
    output = ProvenanceOutput(
        name="out", path="", published=None, local="", result=0, **said("i32", 3)
    )
    record = ProvenanceRecord(
        program=b"p" * 32,
        frame=1,
        computation="sum",
        function="add",
        version=MODULE,
        inputs=inputs,
        output=output,
        receipt=receipt,
    )
    return sign(record, node.key, NETWORK).raw


def said(type_, value):
    raw = value_bytes(type_, value)
    return {"type": type_, "digest": digest_of(raw), "value": raw}


MALLORY = KeyPair(b"m" * 32)
FALSE = {
    "arguments of the order": {"order": {"arguments": (NUMBER[1], NUMBER[4])}},
    "arguments of the run": {"outcome": {"arguments": (NUMBER[4], NUMBER[2])}},
    "a result": {"outcome": {"results": (NUMBER[4],)}},
    "no result": {"outcome": {"results": ()}},
    "a trap": {"outcome": {"trap": "fuel_exhausted"}},
    "the module of the run": {"outcome": {"module": b"o" * 32}},
    "the module of the order": {"order": {"module": b"o" * 32}},
    "the function of the run": {"outcome": {"function": "sub"}},
    "the function of the order": {"order": {"function": "sub"}},
    "a customer": {"order": {"customer": MALLORY.node_id}},
    "who ordered": {"customer": MALLORY},
    "a provider": {"order": {"provider": MALLORY.node_id}},
    "who ran it": {"by": MALLORY},
    "a network": {"network": b"o" * 32},
}


def test_a_receipt_of_the_run_that_a_record_names_is_taken():
    node = Runner()
    check_record(of_module(node, receipt_of(node)), network=NETWORK, author=node.owner)


@pytest.mark.parametrize("change", FALSE.values(), ids=FALSE)
def test_a_receipt_of_the_right_form_that_is_false_is_refused(change):
    node = Runner()
    with pytest.raises(XscError):
        check_record(of_module(node, receipt_of(node, **change)), network=NETWORK)


# What a node gave itself


class CountingExecutor(InlineExecutor):
    """Counts what was run beside the event loop."""

    ran = 0

    async def run(self, function, *args, **kwargs):
        self.ran += 1
        return function(*args, **kwargs)


async def test_one_gathered_value_is_checked_once_and_beside_the_loop():
    node = Runner()
    raw = value_bytes("bytes", b"gathered")
    read = ProvenanceInput(
        name="i",
        type="bytes",
        digest=digest_of(raw),
        value=raw,
        parents=(),
        source=Source(kind="given", place="g"),
    )
    program = reading("price")
    node.space.write({"price": b"5"})
    await node.frame(program)
    inputs = tuple(read.model_copy(update={"name": f"i{number}"}) for number in range(64))
    forged(node, program, ("", "next/price"), inputs=inputs)
    asked, inside, executor = [], [], CountingExecutor()

    def parts(whole):
        asked.append(whole)
        inside.append(executor.ran)
        return [(node.owner, "part", b"no record", b"v")] * 100

    root = await Why(node.read, NETWORK, parts, executor).walk(node.owner, "next/price")
    assert (asked, inside) == ([b"gathered"], [1])
    assert len(steps_of(root)) == 1 + 64 + 100
    assert root.verified is False
