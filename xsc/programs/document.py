"""A program as its author writes it: TOML or JSON, read, checked, and made independent of names.

Reading checks all that the document alone shows. `resolve` replaces names of nodes by their ids
and modules by their hashes; what is then hashed is the program. Every fault names the path of its
key, and its line where the text shows it (docs/design/programs.md, D1 to D9).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from xsc.base import limits as base_limits
from xsc.base.encoding import Value as Encodable
from xsc.base.encoding import encode, tagged_sha256
from xsc.base.errors import ArgumentInvalid, ProgramInvalid, TooLarge
from xsc.base.ids import TEXT_CHARS, from_text, to_text
from xsc.programs import limits
from xsc.programs.numbers import NUMBERS, SCALARS, TYPES, Value, check_value, parse_value, to_record
from xsc.space.paths import fault_of

Form: TypeAlias = Literal["toml", "json"]
KeyPath: TypeAlias = tuple[str, ...]
Lines: TypeAlias = Mapping[KeyPath, int]
"""The line of each key."""

IDENTIFIER: Final = re.compile(rf"[A-Za-z_][A-Za-z0-9_-]{{0,{limits.NAME_CHARS_MAX - 1}}}")
STATE_TYPES: Final = ("f64", "f32", "i32")
"""What a local variable may be: what state cells hold."""
DEBOUNCE_MS: Final = 100
FILTER: Final = "_start"
"""The export by which a WASI program is run."""
WAIT_MS: Final = 100
_LISTS = tuple(type_ for type_ in TYPES if type_ not in SCALARS)
MERGE_RULES: Final[Mapping[str, tuple[str, ...]]] = {
    "last": TYPES,
    "min": NUMBERS,
    "max": NUMBERS,
    "counter": NUMBERS,
    "union": _LISTS,
    "interval": tuple(f"[{number}]" for number in NUMBERS),
}
"""Which types each rule merges into one value of a cell."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A named value that computations read.

    `derived` has the type of the output that it reads. Programs that come with XSC alone have
    variables that are `given` by the node.
    """

    name: str
    kind: Literal["value", "subscription", "fetch", "cell", "local", "derived", "given"]
    type: str = ""
    default: Value | None = None
    """The value of kind `value`; else what holds while nothing else does."""
    path: str = ""
    owner: str | bytes | None = None
    """Whose space; the own one where None. A name until it is resolved to a node id."""
    wait_ms: int = 0
    size: int = 1
    """How many values a local variable keeps; more than one make a list."""
    computation: str = ""
    output: str = ""
    merge: str = ""
    """The rule of a cell; also of a subscription to what one source of a cell says."""
    sources: tuple[str | bytes, ...] = ()
    """The nodes that say what a cell is, as `owner`; the own one alone where there are none."""

    @property
    def nodes(self) -> tuple[str | bytes, ...]:
        """The nodes that it names, by name until they are resolved."""
        return self.sources if self.owner is None else (self.owner,)

    @property
    def value_type(self) -> str:
        """The type that computations see."""
        return f"[{self.type}]" if self.size > 1 else self.type


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """A module, and its limits. A name until it is resolved to the module's hash.

    It is called by an export. That of a WASI program is a filter: it reads its inputs on stdin,
    and writes its results on stdout.
    """

    module: str | bytes
    export: str = FILTER
    fuel: int = base_limits.FUEL_DEFAULT
    memory_bytes: int = base_limits.MEMORY_BYTES_DEFAULT
    timeout_ms: int = base_limits.TIMEOUT_MS_DEFAULT

    @property
    def is_filter(self) -> bool:
        """Whether it is a WASI program."""
        return self.export == FILTER


@dataclass(frozen=True, slots=True)
class Output:
    """One result of a computation, and where it goes.

    That is a path of the own space, a local variable that has it in the next frame, or memory
    alone.
    """

    name: str
    type: str = ""
    """Needed of a module; that of a function is known."""
    path: str = ""
    local: str = ""
    result: int = 0
    """Which result of a module."""


@dataclass(frozen=True, slots=True)
class Computation:
    """A function or an export of a module, its inputs by parameter, and its outputs."""

    id: str
    function: str | ModuleCall
    inputs: Mapping[str, str]
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A program. Variables and computations are in the order of their names."""

    id: str
    variables: tuple[Variable, ...]
    computations: tuple[Computation, ...]
    version: str = ""
    description: str = ""
    debounce_ms: int = DEBOUNCE_MS
    lines: Lines = field(default_factory=dict, compare=False, repr=False)

    @property
    def owners(self) -> frozenset[str]:
        """Names of nodes that are to be resolved."""
        return frozenset(n for v in self.variables for n in v.nodes if isinstance(n, str))

    def fault(self, path: KeyPath, message: str) -> ProgramInvalid:
        """Return the error for a key: its line where it is known, its path, and what is wrong."""
        return fault_at(self.lines, path, message)


class _Table:
    """A table of a document, whose keys are taken one by one; what is left over is a fault."""

    def __init__(self, lines: Lines, path: KeyPath, found: object) -> None:
        self.lines = lines
        self.path = path
        if not isinstance(found, dict):
            raise fault_at(lines, path, "must be a table")
        self.left: dict[str, Any] = dict(found)

    def fault(self, message: str, *keys: str) -> ProgramInvalid:
        return fault_at(self.lines, (*self.path, *keys), message)

    def take(self, key: str, wanted: type, default: object = None) -> Any:  # noqa: ANN401
        """Return the value of a key, of exactly a type; the default where it is absent."""
        if key not in self.left:
            if default is None:
                raise self.fault(f"the key '{key}' is missing")
            return default
        value = self.left.pop(key)
        if type(value) is not wanted:
            names = {str: "a text", int: "an integer", dict: "a table", list: "a list"}
            raise self.fault(f"must be {names.get(wanted, 'true or false')}", key)
        return value

    def integer(self, key: str, default: int | None, least: int, most: int) -> int:
        value: int = self.take(key, int, default)
        if not least <= value <= most:
            raise self.fault(f"must be {least} to {most}", key)
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value: str = self.take(key, str, default)
        if len(value) > limits.DESCRIPTION_CHARS_MAX or not value.isprintable():
            raise self.fault(
                f"must be a line of at most {limits.DESCRIPTION_CHARS_MAX} characters", key
            )
        return value

    def name(self, key: str, default: str | None = None) -> str:
        value: str = self.take(key, str, default)
        if value != default and not IDENTIFIER.fullmatch(value):
            raise self.fault(_no_identifier(value), key)
        return value

    def type(self, key: str, types: Collection[str], default: str | None = None) -> str:
        value: str = self.take(key, str, default)
        if value != default and value not in types:
            raise self.fault(f"'{value[:40]}' is no type: {', '.join(types)}", key)
        return value

    def space_path(self, key: str) -> str:
        value: str = self.take(key, str)
        if wrong := fault_of(value):
            raise self.fault(f"not a path: {wrong}", key)
        return value

    def value(self, key: str, type_: str, default: object = None) -> Value | None:
        """Return a value of a type: as the document has it, or as its text."""
        if key not in self.left:
            return default  # type: ignore[return-value]
        found = self.left.pop(key)
        try:
            if isinstance(found, str) and type_ != "text":
                return parse_value(type_, found)
            return check_value(type_, found)
        except ArgumentInvalid as fault:
            raise self.fault(fault.message, key) from None

    def tables(self, key: str, most: int) -> list[_Table]:
        """Return the tables of a table, in the order of their names, which are identifiers."""
        found = self.take(key, dict, {})
        if len(found) > most:
            raise self.fault(f"{len(found)} are more than {most}", key)
        tables = []
        for name in sorted(found):
            if not IDENTIFIER.fullmatch(name):
                raise self.fault(_no_identifier(name), key, name[: limits.NAME_CHARS_MAX])
            tables.append(_Table(self.lines, (*self.path, key, name), found[name]))
        return tables

    def end(self) -> None:
        """Refuse what was not taken."""
        for key in sorted(self.left):
            raise self.fault("is no key of this table", key[: limits.NAME_CHARS_MAX])


def _no_identifier(value: str) -> str:
    return (
        f"'{value[:40]}' is no identifier: a letter or _, then letters, digits, _ and -, "
        f"{limits.NAME_CHARS_MAX} at most"
    )


def parse(raw: bytes, form: Form) -> Document:
    """Return the document of a text, with names not yet resolved.

    Raises:
        TooLarge: over PROGRAM_DOCUMENT_BYTES_MAX.
        ProgramInvalid: anything else that is wrong; the message names line and path.
    """
    most = base_limits.PROGRAM_DOCUMENT_BYTES_MAX
    if len(raw) > most:
        raise TooLarge(f"a document of {len(raw)} bytes is over its bound of {most}")
    try:
        text = raw.decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise ProgramInvalid("a document is UTF-8") from None
    found = read_tree(text, form)
    lines = lines_of(text, form)
    top = _Table(lines, (), found)
    document = Document(
        top.name("id"),
        tuple(map(_variable, top.tables("variables", limits.VARIABLES_MAX))),
        tuple(map(_computation, top.tables("computations", limits.COMPUTATIONS_MAX))),
        top.text("version", ""),
        top.text("description", ""),
        top.integer("debounce_ms", DEBOUNCE_MS, 0, limits.DEBOUNCE_MS_MAX),
        lines,
    )
    top.end()
    if not document.computations:
        raise fault_at(lines, ("computations",), "a program has at least one computation")
    if sum(len(computation.outputs) for computation in document.computations) > limits.OUTPUTS_MAX:
        raise fault_at(lines, ("computations",), f"more than {limits.OUTPUTS_MAX} outputs")
    return document


def _variable(table: _Table) -> Variable:
    name = table.path[-1]
    kind = table.take("kind", str)
    if kind == "value":
        type_ = table.type("type", TYPES)
        value = table.value("value", type_)
        if value is None:
            raise table.fault("the key 'value' is missing")
        variable = Variable(name, "value", type_, value)
    elif kind in {"subscription", "fetch"}:
        type_ = table.type("type", TYPES)
        variable = Variable(
            name,
            kind,
            type_,
            table.value("default", type_),
            table.space_path("path"),
            _owner(table),
            table.integer("wait_ms", WAIT_MS, 0, limits.FETCH_MS_MAX) if kind == "fetch" else 0,
        )
    elif kind == "cell":
        variable = _cell(table, name)
    elif kind == "local":
        type_ = table.type("type", STATE_TYPES)
        zero = table.value("default", type_, check_value(type_, 0))
        size = table.integer("size", 1, 1, limits.RING_MAX)
        variable = Variable(name, "local", type_, zero, size=size)
    elif kind == "given":
        variable = Variable(name, "given", table.type("type", TYPES))
    elif kind == "derived":
        computation, output = table.name("computation"), table.name("output")
        variable = Variable(name, "derived", computation=computation, output=output)
    else:
        kinds = "value, subscription, fetch, cell, local, derived"
        raise table.fault(f"'{kind[:40]}' is no kind: {kinds}", "kind")
    table.end()
    return variable


def _cell(table: _Table, name: str) -> Variable:
    type_ = table.type("type", TYPES)
    merge = table.text("merge", "last")
    if type_ not in MERGE_RULES.get(merge, ()):
        if merge in MERGE_RULES:
            raise table.fault(f"'{merge}' merges no {type_}, but {', '.join(MERGE_RULES[merge])}")
        raise table.fault(f"'{merge[:40]}' is no merge rule: {', '.join(MERGE_RULES)}", "merge")
    listed = table.take("sources", list, [])
    if len(listed) > limits.INPUTS_MAX:
        raise table.fault(f"{len(listed)} are more than {limits.INPUTS_MAX}", "sources")
    sources = tuple(_node(table, source, "sources") for source in listed)
    path = table.space_path("path")
    return Variable(name, "cell", type_, path=path, merge=merge, sources=sources)


def _owner(table: _Table) -> str | bytes | None:
    return _node(table, table.text("owner"), "owner") if "owner" in table.left else None


def _node(table: _Table, node: object, key: str) -> str | bytes:
    if not isinstance(node, str):
        raise table.fault("must be names of nodes", key)
    try:
        return from_text(node) if len(node) == TEXT_CHARS else node
    except ArgumentInvalid as fault:
        raise table.fault(fault.message, key) from None


def _computation(table: _Table) -> Computation:
    found = table.left.get("function")
    function: str | ModuleCall = (
        _module(_Table(table.lines, (*table.path, "function"), table.left.pop("function")))
        if isinstance(found, dict)
        else table.text("function")
    )
    inputs = table.take("inputs", dict, {})
    if len(inputs) > limits.INPUTS_MAX:
        raise table.fault(f"{len(inputs)} are more than {limits.INPUTS_MAX}", "inputs")
    for param, variable in inputs.items():
        if not IDENTIFIER.fullmatch(param):
            raise table.fault(_no_identifier(param), "inputs")
        if not isinstance(variable, str):
            raise table.fault("must be the name of a variable", "inputs", param)
    outputs = tuple(map(_output, table.tables("outputs", limits.OUTPUTS_MAX)))
    table.end()
    return Computation(table.path[-1], function, dict(sorted(inputs.items())), outputs)


def _module(table: _Table) -> ModuleCall:
    call = ModuleCall(
        table.text("module"),
        table.text("export", FILTER),
        table.integer("fuel", base_limits.FUEL_DEFAULT, 1, base_limits.FUEL_MAX),
        table.integer(
            "memory_bytes", base_limits.MEMORY_BYTES_DEFAULT, 1, base_limits.MEMORY_BYTES_MAX
        ),
        table.integer("timeout_ms", base_limits.TIMEOUT_MS_DEFAULT, 1, base_limits.TIMEOUT_MS_MAX),
    )
    table.end()
    return call


def _output(table: _Table) -> Output:
    places = sorted({"path", "local", "memory"} & table.left.keys())
    if len(places) != 1:
        raise table.fault("must have one of the keys path, local and memory")
    if places == ["memory"] and not table.take("memory", bool):
        raise table.fault("must be true", "memory")
    output = Output(
        table.path[-1],
        table.type("type", TYPES, ""),
        table.space_path("path") if places == ["path"] else "",
        table.name("local") if places == ["local"] else "",
        table.integer("result", 0, 0, limits.OUTPUTS_MAX),
    )
    table.end()
    return output


@dataclass(frozen=True, slots=True)
class Program:
    """A document without names of nodes and modules, and its hash."""

    document: Document
    hash: bytes


def resolve(
    document: Document, nodes: Mapping[str, bytes], modules: Mapping[str, bytes]
) -> Program:
    """Return the program of a document: node ids for the names of nodes, hashes for modules.

    Args:
        document: as `parse` returns it.
        nodes: the node id of each name in `document.owners`.
        modules: the bytes of each module by its name.

    Raises:
        ProgramInvalid: a name that is not among them.
    """
    for name in sorted(document.owners - nodes.keys()):
        raise document.fault(naming(document, name), f"no node is known as '{name}'")
    variables = []
    for variable in document.variables:
        found = [nodes[node] if isinstance(node, str) else node for node in variable.nodes]
        if variable.kind == "cell":
            variable = dataclasses.replace(variable, sources=tuple(sorted(set(found))))  # noqa: PLW2901
        elif found:
            variable = dataclasses.replace(variable, owner=found[0])  # noqa: PLW2901
        variables.append(variable)
    computations = []
    for computation in document.computations:
        call = computation.function
        if isinstance(call, ModuleCall) and isinstance(call.module, str):
            if call.module not in modules:
                named = ("computations", computation.id, "function", "module")
                raise document.fault(named, f"no module '{call.module}'")
            digest = hashlib.sha256(modules[call.module]).digest()
            call = dataclasses.replace(call, module=digest)
            computation = dataclasses.replace(computation, function=call)  # noqa: PLW2901
        computations.append(computation)
    resolved = dataclasses.replace(
        document, variables=tuple(variables), computations=tuple(computations)
    )
    return Program(resolved, tagged_sha256("program", encode(canonical(resolved))))


def naming(document: Document, node: str) -> KeyPath:
    """Return the key of a document that names a node."""
    variable = next(one for one in document.variables if node in one.nodes)
    return "variables", variable.name, "sources" if variable.kind == "cell" else "owner"


def portable(raw: bytes, form: Form, program: Program) -> bytes:
    """Return the JSON of a document that was resolved, with ids and hashes in place of names.

    It parses to the same program on every node; a module is named by its hash in hexadecimal.

    Raises:
        TooLarge: over PROGRAM_DOCUMENT_BYTES_MAX.
    """
    found: Any = read_tree(raw.decode().replace("\r\n", "\n"), form)
    for variable in program.document.variables:
        if isinstance(variable.owner, bytes):
            found["variables"][variable.name]["owner"] = to_text(variable.owner)
        if variable.sources:
            ids = [to_text(source) for source in variable.sources if isinstance(source, bytes)]
            found["variables"][variable.name]["sources"] = ids
    for computation in program.document.computations:
        call = computation.function
        if isinstance(call, ModuleCall) and isinstance(call.module, bytes):
            found["computations"][computation.id]["function"]["module"] = call.module.hex()
    kept = json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()
    most = base_limits.PROGRAM_DOCUMENT_BYTES_MAX
    if len(kept) > most:
        raise TooLarge(f"as JSON, the document has {len(kept)} bytes; {most} at most")
    return kept


def canonical(document: Document) -> Encodable:
    """Return the variables and computations of a resolved document as they are hashed."""
    return {
        "variables": {
            variable.name: _canonical_variable(variable) for variable in document.variables
        },
        "computations": {
            computation.id: {
                "function": computation.function
                if isinstance(computation.function, str)
                else dataclasses.asdict(computation.function),
                "inputs": dict(computation.inputs),
                "outputs": {
                    output.name: _filled(dataclasses.asdict(output) | {"name": None})
                    for output in computation.outputs
                },
            }
            for computation in document.computations
        },
    }


def _filled(keys: dict[str, Encodable]) -> dict[str, Encodable]:
    """Return the keys that say something, so that a default and its absence are the same."""
    return {key: value for key, value in keys.items() if value not in ("", None, [])}


def _canonical_variable(variable: Variable) -> Encodable:
    default = variable.default
    kept: Encodable = None if default is None else [to_record(variable.type, default)]
    keys = {"name": None, "default": kept, "sources": list(variable.sources)}
    return _filled(dataclasses.asdict(variable) | keys)


# The text: the tree that it holds, within bounds, and the lines of its keys

_TOML_BLOCK: Final = re.compile(r'("""|\'\'\').*?\1', re.DOTALL)
_TOML_KEY: Final = re.compile(
    r"""(\[?)((?:[\w-]++|"[^"\n]*+"|'[^'\n]*+'|[ \t]*+\.[ \t]*+)++)[ \t]*+([]=])"""
)
_TOML_PART: Final = re.compile(r"""[\w-]+|"[^"\n]*"|'[^'\n]*'""")
_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|\n', re.DOTALL)


def fault_at(lines: Lines, path: KeyPath, message: str) -> ProgramInvalid:
    """Return the error for a key: its line where it is known, its path, and what is wrong."""
    for length in range(len(path), 0, -1):
        if line := lines.get(path[:length]):
            return ProgramInvalid(f"line {line}: {'.'.join(path)}: {message}")
    return ProgramInvalid(f"{'.'.join(path)}: {message}" if path else message)


def _toml_lines(text: str) -> dict[KeyPath, int]:
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    blank = _TOML_BLOCK.sub(lambda block: '""' + "\n" * block[0].count("\n"), text)
    for number, line in enumerate(blank.split("\n"), 1):
        match = _TOML_KEY.match(line.lstrip())
        if match is None:
            continue
        parts = tuple(part.strip("\"'") for part in _TOML_PART.findall(match[2]))
        if match[1] and match[3] == "]":
            table = parts
            found.setdefault(table, number)
        elif not match[1] and match[3] == "=":
            found.setdefault(table + parts, number)
    return found


def _json_lines(text: str) -> dict[KeyPath, int]:
    found: dict[KeyPath, int] = {}
    stack: list[str] = []
    number, last = 1, ""
    for mark in _JSON_TOKEN.findall(text):
        if mark == "\n":
            number += 1
        elif mark in "{[":
            stack.append("")
        elif mark in "}]":
            stack.pop()
        elif mark == ":":
            stack[-1] = json.loads(last, strict=False)
            found.setdefault(tuple(stack), number)
        last = mark if mark != "\n" else last
    return found


def lines_of(text: str, form: Form) -> Lines:
    """Return the lines of tables and keys of a text that parses."""
    return _toml_lines(text) if form == "toml" else _json_lines(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ProgramInvalid(f"the key '{twice[: limits.NAME_CHARS_MAX]}' is there twice")
    return found


def read_tree(text: str, form: Form) -> object:
    """Return what a text holds: tables, lists and values.

    Raises:
        ProgramInvalid: it is not of its form, nested too deeply, or has a key twice.
    """
    if form == "toml":
        for number, line in enumerate(text.split("\n"), 1):
            if line.count(".") > limits.LINE_DOTS_MAX:
                raise ProgramInvalid(f"line {number} has more than {limits.LINE_DOTS_MAX} dots")
    deep = ProgramInvalid(f"nested deeper than {limits.DOCUMENT_DEPTH_MAX} levels")
    try:
        found = tomllib.loads(text) if form == "toml" else json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise deep from None
    except ValueError as fault:
        raise ProgramInvalid(f"not {form.upper()}: {fault}") from None
    if not _depth_fits(found):
        raise deep
    return found


def _depth_fits(found: object) -> bool:
    level: list[object] = [found]
    for _ in range(limits.DOCUMENT_DEPTH_MAX + 1):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = inner
        if not level:
            return True
    return False
