"""Scripts of the WebAssembly specification's tests (.wast), read into commands.

A script is a list of s-expressions. Modules in it are cut out as they stand, and the
engine's own text parser makes binaries of them: it reads every proposal that is in
the specification. Numbers are read by `xsc.compute.wasm.values`.

Source: github.com/WebAssembly/spec, interpreter/README.md, "Scripts".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import wasmtime

from xsc.compute.wasm.values import parse_bits

_TOKEN = re.compile(
    r"""(?P<space>\s+|;;[^\n\r]*)|(?P<comment>\(;)|(?P<open>\()|(?P<close>\))
    |(?P<string>"(?:[^"\\]|\\.)*")|(?P<atom>(?:[^\s()";]|;(?!;))+)""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F_]+)\}|([0-9a-fA-F]{2})|(.))", re.DOTALL)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")
_SIMPLE = {"t": b"\t", "n": b"\n", "r": b"\r", '"': b'"', "'": b"'", "\\": b"\\"}
_WIDTHS = {"i8": 1, "i16": 2, "i32": 4, "i64": 8, "f32": 4, "f64": 8}
_ASSERTIONS = frozenset(
    [
        "assert_return",
        "assert_trap",
        "assert_exhaustion",
        "assert_exception",
        "assert_invalid",
        "assert_malformed",
        "assert_unlinkable",
    ]
)
COMMANDS = _ASSERTIONS | {"module", "register", "invoke", "get"}


class Unreadable(Exception):
    """That is no script that can be read here."""


@dataclass(slots=True)
class Expression:
    """The items of one parenthesised expression."""

    start: int
    line: int
    stop: int = 0
    items: list[Expression | str] = field(default_factory=list)
    """Atoms as they stand, strings with their quotation mark before them."""

    @property
    def head(self) -> str:
        """Its first word."""
        first = self.items[0] if self.items else ""
        return first if isinstance(first, str) else ""


@dataclass(frozen=True, slots=True)
class Value:
    """A number: its type and the bits of each lane, or what kind of NaN is wanted there."""

    type: str
    lanes: tuple[bytes | str, ...] = ()
    """None of them where it is a reference."""


@dataclass(frozen=True, slots=True)
class Action:
    """A call of an export, or the reading of a global."""

    read: bool
    module: str
    """The instance's name; empty for the one before."""
    field: str
    arguments: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A module as a script gives it."""

    binary: bytes | None
    """None where it is text that need not be right, or an instance of one before."""
    kind: str = ""
    """Empty, "quote", "definition" or "instance"."""
    name: str = ""
    of: str = ""
    """The definition that it is an instance of."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a script."""

    type: str
    line: int
    module: Source | None = None
    action: Action | None = None
    allowed: tuple[tuple[Value, ...], ...] = ()
    """What may come of it: for each result the values of which one is right."""
    text: str = ""
    """The failure that is expected, or the name that is registered."""
    name: str = ""


def _expressions(text: str) -> list[Expression]:
    root = Expression(0, 1)
    stack, at, line = [root], 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise Unreadable(f"line {line}: no token of a script")
        stop = found.end()
        match found.lastgroup:
            case "comment":
                stop = _comment_end(text, at)
            case "open":
                stack.append(Expression(at, line))
            case "close" if len(stack) > 1:
                done = stack.pop()
                done.stop = stop
                if not done.head.startswith("@"):  # an annotation, which may stand anywhere
                    stack[-1].items.append(done)
            case "close":
                raise Unreadable(f"line {line}: a parenthesis too many")
            case "string":
                stack[-1].items.append('"' + found[0][1:-1])
            case "atom":
                stack[-1].items.append(found[0])
            case _:
                pass
        line += text.count("\n", at, stop)
        at = stop
    if len(stack) > 1:
        raise Unreadable(f"line {stack[-1].line}: it is not closed")
    if any(isinstance(item, str) for item in root.items):
        raise Unreadable("a word stands outside of all parentheses")
    return [item for item in root.items if isinstance(item, Expression)]


def _comment_end(text: str, at: int) -> int:
    depth = 0
    for found in re.compile(r"\(;|;\)").finditer(text, at):
        depth += 1 if found[0] == "(;" else -1
        if not depth:
            return found.end()
    raise Unreadable("a comment is not closed")


def _bytes(text: str) -> bytes:
    """Return the bytes of a string, whose first character is its quotation mark."""

    def plain(found: re.Match[str]) -> str:
        if found[1]:
            raw = chr(int(found[1].replace("_", ""), 16)).encode()
        elif found[2]:
            raw = bytes.fromhex(found[2])
        else:
            raw = _SIMPLE[found[3]]
        return raw.decode("latin-1")

    # Latin-1 holds bytes one to one: escapes may stand for parts of a character.
    return _ESCAPE.sub(plain, text[1:].encode().decode("latin-1")).encode("latin-1")


def _strings(items: list[Expression | str]) -> bytes:
    return b"".join(_bytes(item) for item in items if isinstance(item, str))


def _name(items: list[Expression | str]) -> str:
    """Take the name that may stand first."""
    if items and isinstance(items[0], str) and items[0].startswith("$"):
        return str(items.pop(0))
    return ""


def _source(expression: Expression, text: str, *, loose: bool = False) -> Source:
    """Return a module; `loose` where its text may be malformed."""
    items = expression.items[1:]
    kind = ""
    if items and items[0] in ("definition", "instance"):
        kind = str(items.pop(0))
    name = _name(items)
    if kind == "instance":
        return Source(None, kind, name, _name(items))
    form = items.pop(0) if items and items[0] in ("binary", "quote") else ""
    if form == "binary":
        return Source(_strings(items), kind, name)
    if loose:
        return Source(None, "quote", name)
    written = text[expression.start : expression.stop]
    if form == "quote":
        written = _strings(items).decode()
    elif kind:
        written = written.replace("definition", "", 1)
    return Source(_assemble(written, expression.line), kind, name)


def _assemble(written: str, line: int) -> bytes:
    # The engine refuses characters that can confuse a reader; names may have them, as escapes.
    plain = _NOT_ASCII.sub(lambda found: f"\\u{{{ord(found[0]):x}}}", written)
    try:
        return bytes(wasmtime.wat2wasm(plain))
    except wasmtime.WasmtimeError as fault:
        reason = str(fault).splitlines()[0]
        raise Unreadable(f"line {line}: the engine cannot read the module: {reason}") from None


def _lane(kind: str, text: str) -> bytes | str:
    if text in ("nan:canonical", "nan:arithmetic"):
        return text
    plain = text.replace("_", "")
    bits = parse_bits(plain, kind if kind in ("i64", "f32", "f64") else "i32")
    if bits is None:
        raise Unreadable(f"'{text}' is no {kind}")
    return bits[: _WIDTHS[kind]]


def _value(item: Expression | str) -> Value:
    if isinstance(item, str):
        raise Unreadable(f"'{item}' is no value")
    kind, _, form = item.head.partition(".")
    words = [word for word in item.items[1:] if isinstance(word, str)]
    if form != "const":
        return Value(item.head)
    if kind == "v128":
        lane, _, _ = words.pop(0).partition("x")
        return Value(kind, tuple(_lane(lane, word) for word in words))
    return Value(kind, (_lane(kind, words[0]),))


def _allowed(item: Expression | str) -> tuple[Value, ...]:
    if isinstance(item, Expression) and item.head == "either":
        return tuple(map(_value, item.items[1:]))
    return (_value(item),)


def _action(expression: Expression) -> Action:
    items = expression.items[1:]
    name = _name(items)
    exported = items.pop(0)
    assert isinstance(exported, str)
    arguments = tuple(map(_value, items))
    return Action(expression.head == "get", name, _bytes(exported).decode(), arguments)


def _command(expression: Expression, text: str) -> Command:
    kind, line, items = expression.head, expression.line, expression.items[1:]
    if kind == "module":
        source = _source(expression, text)
        return Command(kind, line, source, name=source.name)
    if kind == "register":
        as_name = items.pop(0)
        assert isinstance(as_name, str)
        return Command(kind, line, text=_bytes(as_name).decode(), name=_name(items))
    if kind in ("invoke", "get"):
        return Command("action", line, action=_action(expression))
    subject = items.pop(0)
    assert isinstance(subject, Expression)
    if subject.head == "module":
        kind = "assert_uninstantiable" if kind == "assert_trap" else kind
        loose = kind in ("assert_malformed", "assert_invalid") and "quote" in subject.items[:3]
        source = _source(subject, text, loose=loose)
        return Command(kind, line, source, text=_strings(items).decode())
    action = _action(subject)
    if kind == "assert_return":
        return Command(kind, line, action=action, allowed=tuple(map(_allowed, items)))
    return Command(kind, line, action=action, text=_strings(items).decode())


def commands(text: str) -> Iterator[Command]:
    """Yield the commands of a script.

    Raises:
        Unreadable: it, or a module in it, cannot be read.
    """
    found = _expressions(text)
    if found and not any(item.head in COMMANDS for item in found):
        yield Command("module", 1, Source(_assemble(text, 1)))  # a module that is not wrapped
        return
    for item in found:
        if item.head not in COMMANDS:
            raise Unreadable(f"line {item.line}: the command '{item.head}' is not known here")
        yield _command(item, text)
