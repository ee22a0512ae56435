"""Documents: what they say, what is refused and where, and their hash."""

from __future__ import annotations

import json

import pytest

from tests.strategies import vectors
from tests.unit.programs.documents import ALICE, EXAMPLE, MEMORY, MODULE, from_parts, program
from xsc.base.errors import ProgramInvalid, TooLarge
from xsc.base.ids import to_text
from xsc.base.limits import PROGRAM_DOCUMENT_BYTES_MAX
from xsc.programs.document import ModuleCall, Output, Variable, parse, resolve
from xsc.programs.limits import (
    COMPUTATIONS_MAX,
    DESCRIPTION_CHARS_MAX,
    INPUTS_MAX,
    NAME_CHARS_MAX,
    OUTPUTS_MAX,
    RING_MAX,
    VARIABLES_MAX,
)

ADD = {"function": "math.add", "inputs": {"x": "a", "y": "a"}, "outputs": {"o": MEMORY}}
ONE = {"kind": "value", "type": "i32", "value": 1}


def test_a_document_says_which_values_depend_on_which():
    document = parse(EXAMPLE.encode(), "toml")
    assert document.id == "total"
    assert document.debounce_ms == 100
    assert document.variables == (
        Variable("mine", "subscription", "i32", 0, "demo/a"),
        Variable("theirs", "subscription", "i32", 0, "demo/a", "alice"),
    )
    (computation,) = document.computations
    assert (computation.id, computation.function) == ("sum", "math.add")
    assert computation.inputs == {"x": "mine", "y": "theirs"}
    assert computation.outputs == (Output("total", path="demo/total"),)
    assert document.owners == {"alice"}


@pytest.mark.parametrize("case", vectors("programs")["programs"])
def test_a_program_has_the_hash_of_the_vectors(case):
    document = parse(case["toml"].encode(), "toml")
    found = resolve(
        document,
        {"alice": bytes.fromhex(case["alice"])},
        {"add.wasm": bytes.fromhex(case["module"])},
    )
    assert found.hash.hex() == case["hash"]


def test_the_hash_is_that_of_variables_and_computations_alone():
    base = program(EXAMPLE).hash
    same = [
        EXAMPLE.replace('"total"', '"other"', 1),
        'description = "x"\nversion = "2"\ndebounce_ms = 0\n' + EXAMPLE,
        EXAMPLE.replace('"alice"', f'"{to_text(ALICE)}"'),
        EXAMPLE.replace("default = 0", 'default = "0x0"'),
        EXAMPLE.replace("\n", "\r\n"),
    ]
    assert {program(text).hash for text in same} == {base}
    other = [
        EXAMPLE.replace("default = 0", "default = 1", 1),
        EXAMPLE.replace("default = 0\n", "", 1),
        EXAMPLE.replace("demo/a", "demo/b", 1),
        EXAMPLE.replace("math.add", "math.subtract"),
        EXAMPLE.replace('owner = "alice"', ""),
        EXAMPLE.replace("demo/total", "demo/sum"),
        EXAMPLE.replace('{ x = "mine", y = "theirs" }', '{ y = "mine", x = "theirs" }'),
    ]
    assert len({program(text).hash for text in other} | {base}) == len(other) + 1


def test_a_module_is_its_hash_and_its_limits():
    def made(module, **limits):
        call = {"function": {"module": module, "export": "f", **limits}, "outputs": {}}
        document = parse(json.dumps({"id": "p", "computations": {"c": call}}).encode(), "json")
        return resolve(document, {}, {"m": b"one", "n": b"one", "o": b"two"})

    assert made("m").hash == made("n").hash
    assert len({made("m").hash, made("o").hash, made("m", fuel=1).hash}) == 3
    call = made("m").document.computations[0].function
    assert isinstance(call, ModuleCall)
    assert len(call.module) == 32


def test_an_unknown_node_or_module_is_named_with_its_line():
    with pytest.raises(ProgramInvalid, match=r"^line 12: variables.theirs.owner: no node .*alice"):
        resolve(parse(EXAMPLE.encode(), "toml"), {}, {})
    text = EXAMPLE.replace('"math.add"', '{ module = "x.wasm", export = "f" }')
    with pytest.raises(ProgramInvalid, match=r"^line 17: .*no module 'x.wasm'"):
        program(text)


TOML_FAULTS = [
    ('type = "i32"', 'type = "i31"', r"^line 5: variables.mine.type: 'i31' is no type"),
    ("default = 0", "default = 1.5", r"^line 7: variables.mine.default: 1.5 is no i32"),
    ("default = 0", "default = 2147483648", r"^line 7: .* is no i32"),
    ("default = 0", "default = true", r"^line 7: .*True is no i32"),
    ("default = 0", "default = 0\ndefalt = 1", r"^line 8: variables.mine.defalt: is no key"),
    ('path = "demo/a"', 'path = "demo//a"', r"^line 6: variables.mine.path: not a path"),
    ('path = "demo/a"', 'path = "../a"', r"^line 6: variables.mine.path: not a path"),
    ('path = "demo/a"', 'path = "alice:demo/a"', r"^line 6: .*not a path"),
    (
        'kind = "subscription"',
        'kind = "magic"',
        r"^line 4: variables.mine.kind: 'magic' is no kind",
    ),
    ('kind = "subscription"\n', "", r"^line 3: variables.mine: the key 'kind' is missing"),
    ("[variables.mine]", '[variables."my own"]', r"^line 3: variables.my own: 'my own' is no id"),
    ('x = "mine"', "x = 1", r"^line 18: computations.sum.inputs.x: must be the name"),
    ('{ path = "demo/total" }', "{ }", r"^line 19: .*outputs.total: must have one of the keys"),
    ('path = "demo/total"', 'path = "a", memory = true', r"^line 19: .*must have one of the keys"),
    ('path = "demo/total"', 'path = "alice:demo/a"', r"^line 19: .*total.path: not a path"),
    ('path = "demo/total"', "memory = false", r"^line 19: .*memory: must be true"),
    ('path = "demo/total"', 'path = "demo/t", owner = "alice"', r"^line 19: .*owner: is no key"),
    ('id = "total"', 'id = "9"', r"^line 1: id: '9' is no identifier"),
    ('id = "total"', "id = 9", r"^line 1: id: must be a text"),
    ('id = "total"', "", r"the key 'id' is missing"),
    ('id = "total"', 'id = "total"\ncolour = 1', r"^line 2: colour: is no key"),
    ('id = "total"', 'id = "total"\ndebounce_ms = -1', r"^line 2: debounce_ms: must be 0 to"),
    ("[variables.mine]", "[variables.mine", r"not TOML: .*line 3"),
    ("[variables.theirs]", "[variables.mine]", r"not TOML: .*line 9"),
]


@pytest.mark.parametrize(("old", "new", "message"), TOML_FAULTS)
def test_a_fault_names_line_and_path(old, new, message):
    with pytest.raises(ProgramInvalid, match=message):
        program(EXAMPLE.replace(old, new, 1))


def test_lines_are_found_beside_comments_and_long_texts():
    text = 'description = """\n[variables.mine]\ntype = 1"""\n'.replace("\n", "\n", 1)
    with pytest.raises(ProgramInvalid, match=r"^line 1: description: must be a line"):
        program(text + EXAMPLE)
    with pytest.raises(ProgramInvalid, match=r"^line 8: variables.mine.type: "):
        program("\n\n# type = 1\n" + EXAMPLE.replace('"i32"', '"i31"', 1))


def test_a_fault_in_json_names_line_and_path():
    found = {"id": "p", "variables": {"a": ONE}, "computations": {"c": ADD}}
    text = json.dumps(found, indent=1).replace('"value": 1', '"value": 1.5')
    with pytest.raises(ProgramInvalid, match=r"^line 7: variables.a.value: 1.5 is no i32"):
        program(text, "json")
    with pytest.raises(ProgramInvalid, match=r"not JSON: .*line 1"):
        program("{,", "json")


def test_a_name_that_is_there_twice_is_refused():
    with pytest.raises(ProgramInvalid, match="the key 'id' is there twice"):
        program('{"id": "a", "id": "b"}', "json")


@pytest.mark.parametrize("form", ["json", "toml"])
@pytest.mark.parametrize("raw", [b"", b"\xff", b"[]", b"7", b"null", b'"x"', b"{", b"a = {"])
def test_what_is_no_document_is_refused(raw, form):
    with pytest.raises(ProgramInvalid):
        parse(raw, form)


@pytest.mark.parametrize("form", ["json", "toml"])
def test_a_document_of_ten_mebibytes_is_refused_before_it_is_read(form):
    with pytest.raises(TooLarge):
        parse(b"#" * 10 * 2**20, form)
    with pytest.raises(TooLarge):
        parse(b" " * (PROGRAM_DOCUMENT_BYTES_MAX + 1), form)
    room = b" " * (PROGRAM_DOCUMENT_BYTES_MAX - len(EXAMPLE))
    assert parse(EXAMPLE.encode() + room, "toml").id == "total"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("[" * 10_000, "json"),
        ('{"a":' * 10_000, "json"),
        ("a = " + "[" * 10_000, "toml"),
        ("a = " + "{a=" * 10_000, "toml"),
        (".".join(["a"] * 10_000) + " = 1", "toml"),
        ("[" + ".".join(["a"] * 10_000) + "]", "toml"),
        ("a = " + "[" * 9 + "]" * 9, "toml"),
    ],
)
def test_a_document_of_depth_ten_thousand_is_refused(text, form):
    with pytest.raises(ProgramInvalid, match=r"deeper|dots|not JSON"):
        parse(text.encode(), form)


def variables(count):
    return {f"v{number}": ONE for number in range(count)}


@pytest.mark.parametrize(
    ("variables", "computations", "message"),
    [
        (variables(VARIABLES_MAX + 1), {"c": ADD}, f"variables: {VARIABLES_MAX + 1} are more"),
        (
            {},
            {f"c{n}": {"function": "f"} for n in range(COMPUTATIONS_MAX + 1)},
            "computations: .* are more",
        ),
        ({}, {"c": {**ADD, "inputs": {f"x{n}": "a" for n in range(INPUTS_MAX + 1)}}}, "inputs: "),
        ({}, {"c": {**ADD, "outputs": {f"o{n}": {} for n in range(OUTPUTS_MAX + 1)}}}, "outputs: "),
        (
            {},
            {
                f"c{m}": {
                    **ADD,
                    "outputs": {f"o{n}": MEMORY for n in range(OUTPUTS_MAX // 2 + 1)},
                }
                for m in range(2)
            },
            f"more than {OUTPUTS_MAX} outputs",
        ),
        ({"v" * (NAME_CHARS_MAX + 1): ONE}, {"c": ADD}, "is no identifier"),
        ({"a": {"kind": "local", "type": "f64", "size": RING_MAX + 1}}, {"c": ADD}, "size: must"),
        ({"a": {"kind": "local", "type": "text"}}, {"c": ADD}, "'text' is no type: f64, f32, i32"),
        ({"a": {"kind": "value", "type": "i32"}}, {"c": ADD}, "the key 'value' is missing"),
        ({"a": {"kind": "derived", "computation": "c"}}, {"c": ADD}, "'output' is missing"),
        ({"a": 1}, {"c": ADD}, "variables.a: must be a table"),
        ({}, {}, "at least one computation"),
        ({}, {"c": {**ADD, "function": 7}}, "function: must be a text"),
        ({}, {"c": {**ADD, "function": {"export": "m"}}}, "the key 'module' is missing"),
        ({}, {"c": {**ADD, "function": {**MODULE, "fuel": 0}}}, "fuel: must be 1 to"),
        ({}, {"c": {**ADD, "function": {**MODULE, "memory_bytes": 0}}}, "memory_bytes: must be 1"),
    ],
)
def test_counts_and_kinds_are_bounded(variables, computations, message):
    with pytest.raises(ProgramInvalid, match=message):
        from_parts(variables, computations)


def test_a_million_computations_are_refused():
    text = '{"computations": {' + ",".join(f'"c{n}":0' for n in range(1_000_000)) + "}}"
    with pytest.raises(TooLarge):
        parse(text.encode(), "json")


def test_as_many_as_are_allowed_are_taken():
    assert len(from_parts(variables(VARIABLES_MAX), {"c": ADD}).document.variables) == VARIABLES_MAX
    many = {f"c{n}": {"function": "f"} for n in range(COMPUTATIONS_MAX)}
    assert len(from_parts({}, many).document.computations) == COMPUTATIONS_MAX
    outputs = {f"o{n}": MEMORY for n in range(OUTPUTS_MAX)}
    (only,) = from_parts({}, {"c": {"function": "f", "outputs": outputs}}).document.computations
    assert len(only.outputs) == OUTPUTS_MAX
    line = "x" * DESCRIPTION_CHARS_MAX
    assert from_parts({}, {"c": ADD}, description=line).document.description == line
    name = "v" * NAME_CHARS_MAX
    assert from_parts({name: ONE}, {"c": ADD}).document.variables[0].name == name
    with pytest.raises(ProgramInvalid, match="description: must be a line"):
        from_parts({}, {"c": ADD}, description="x" * (DESCRIPTION_CHARS_MAX + 1))


@pytest.mark.parametrize(
    ("type_", "given", "value"),
    [
        ("f64", 1, 1.0),
        ("f64", "inf", float("inf")),
        ("f32", 0.5, 0.5),
        ("bytes", "00ff", b"\0\xff"),
        ("text", "7", "7"),
        ("[i32]", [1, 2], (1, 2)),
        ("[f64]", '[1, "inf"]', (1.0, float("inf"))),
        ("u32", 2**32 - 1, 2**32 - 1),
        ("integer", -(2**63), -(2**63)),
    ],
)
def test_values_stand_as_themselves_or_as_text(type_, given, value):
    made = from_parts({"a": {"kind": "value", "type": type_, "value": given}}, {"c": ADD})
    found = made.document.variables[0].default
    assert found == value
    assert type(found) is type(value)
