"""What a WebAssembly binary says about itself, read without an engine.

Before anything is compiled, the module is refused here where it cannot run: not
a core module, more than one memory, shared or 64-bit memory, imports other than
the WASI functions that `xsc.compute.wasm.wasi` gives. The reader takes any bytes; it
does not check function bodies, which is the engine's work when it compiles.

`prepare` makes the copy that is compiled: the memory is exported, so that its
size can be read at the end, and the start function is exported instead of run
at instantiation, so that its memory can be seen when it traps.

Source: WebAssembly core specification 2.0, chapter 5 (binary format).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from xsc.base.errors import ExportUnknown, ModuleInvalid
from xsc.base.limits import EXPORTS_MAX, MODULE_BYTES_MAX, TABLE_ELEMENTS_MAX, TABLES_MAX
from xsc.base.text import cut
from xsc.compute.wasm.signature import Signature
from xsc.compute.wasm.wasi import MODULE as WASI
from xsc.compute.wasm.wasi import SIGNATURES

FUNCTIONS_MAX = 200_000

T = TypeVar("T")

PAGE_BYTES = 65_536
_MAGIC = b"\0asm"
_VERSION = b"\1\0\0\0"
_TYPES = {
    0x7F: "i32",
    0x7E: "i64",
    0x7D: "f32",
    0x7C: "f64",
    0x7B: "v128",
    0x70: "funcref",
    0x6F: "externref",
}
_TYPE, _IMPORT, _FUNCTION, _TABLE, _MEMORY, _EXPORT, _START = 1, 2, 3, 4, 5, 7, 8
_ORDER = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 13: 6, 6: 7, 7: 8, 8: 9, 9: 10, 12: 11, 10: 12, 11: 13}
"""Where each section stands in a module: the data count comes before the code."""
_FUNC_KIND, _TABLE_KIND, _MEMORY_KIND, _GLOBAL_KIND = 0, 1, 2, 3
_KINDS = {0: "function", 1: "table", 2: "memory", 3: "global", 4: "tag"}
_NONE = b"\0"
"""The content of a section that lists nothing."""
_EXPORTS_SHOWN = 20
_EXPORTS_CHARS_SHOWN = 1_000
DECLARATION_BYTES_MAX = 1 << 20
"""Bound of each section that is read here: reading 1 MiB takes a third of a second at most."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a module declares."""

    functions: dict[str, Signature]
    """Exported functions in the order of the binary."""
    imports: tuple[str, ...]
    """The WASI functions that it imports."""
    pages_min: int | None
    """The declared size of its memory in pages of 64 KiB; None without a memory."""
    memory: str | None
    """The export through which the memory is read; `prepare` adds it where there is none."""
    start: str | None
    """The export that `prepare` makes of the start function, to be called first."""
    size_bytes: int

    def signature(self, name: str) -> Signature:
        """Return the type of an exported function.

        Raises:
            ExportUnknown: there is none of that name; the message lists those there are.
        """
        if name in self.functions:
            return self.functions[name]
        first = islice(self.functions.items(), _EXPORTS_SHOWN)
        shown = [signature.show(other) for other, signature in first]
        rest = len(self.functions) - len(shown)
        listed = cut("; ".join(shown), _EXPORTS_CHARS_SHOWN) + (
            f"; and {rest} more" if rest else ""
        )
        raise ExportUnknown(
            f"the module exports no function '{cut(name, 100)}'",
            hint=f"it exports {listed}" if listed else "it exports no function at all",
        )


class _Reader:
    """Reads the binary format; every step past the end is a ModuleInvalid."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, size: int) -> bytes:
        if size > self.left():
            raise ModuleInvalid("the module is cut short")
        self.position += size
        return self.data[self.position - size : self.position]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self, bits: int = 32) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
            if shift >= bits:
                raise ModuleInvalid("a number in the module is too long")
        if value >> bits:
            raise ModuleInvalid("a number in the module is too large")
        return value

    def name(self) -> str:
        try:
            return self.take(self.number()).decode()
        except UnicodeDecodeError:
            raise ModuleInvalid("a name in the module is not UTF-8") from None

    def list(self, read: Callable[[], T]) -> list[T]:
        # Every item is at least a byte: a longer count runs into the end by itself.
        return [read() for _ in range(self.number())]

    def value_type(self) -> str:
        byte = self.byte()
        if byte not in _TYPES:
            raise ModuleInvalid(f"the module uses a value type that cannot run here ({byte:#04x})")
        return _TYPES[byte]

    def function_type(self) -> Signature:
        if self.byte() != 0x60:
            raise ModuleInvalid("the module defines types that are no functions (GC)")
        return Signature(tuple(self.list(self.value_type)), tuple(self.list(self.value_type)))

    def limits(self, what: str) -> int:
        flags = self.byte()
        if flags & 2:
            raise ModuleInvalid(f"the module has a shared {what}; threads cannot run here")
        if flags > 1:
            raise ModuleInvalid(f"the module has a {what} of a kind that cannot run here")
        least = self.number()
        if flags:
            self.number()
        return least

    def table(self) -> int:
        if _TYPES.get(self.byte()) not in ("funcref", "externref"):
            raise ModuleInvalid("the module has a table of a kind that cannot run here")
        return self.limits("table")

    def imported(self) -> tuple[str, str, int, int]:
        module, name, kind = self.name(), self.name(), self.byte()
        index = 0
        if kind == _FUNC_KIND:
            index = self.number()
        elif kind == _TABLE_KIND:
            self.table()
        elif kind == _MEMORY_KIND:
            self.limits("memory")
        elif kind == _GLOBAL_KIND:
            self.value_type()
            self.byte()
        else:
            raise ModuleInvalid("the module imports something of an unknown kind")
        return module, name, kind, index

    def exported(self) -> tuple[str, int, int]:
        return self.name(), self.byte(), self.number()


def _sections(module: bytes) -> dict[int, bytes]:
    """Return the content of each section by its id, but for custom ones."""
    if len(module) > MODULE_BYTES_MAX:
        raise ModuleInvalid(
            f"the module has {len(module)} bytes, over the bound of {MODULE_BYTES_MAX}"
        )
    if module[:4] != _MAGIC:
        raise ModuleInvalid("that is no WebAssembly module: it does not begin with '\\0asm'")
    if module[4:8] != _VERSION:
        if module[6:8] == b"\1\0":
            raise ModuleInvalid(
                "that is a WebAssembly component, and only core modules can run here",
                hint="build it for wasm32-wasi (preview 1)",
            )
        raise ModuleInvalid("the module is of a WebAssembly version that is not known here")
    reader = _Reader(module, 8)
    found: dict[int, bytes] = {}
    last = 0
    while reader.left():
        kind, content = reader.byte(), reader.take(reader.number())
        if kind:
            if kind not in _ORDER or _ORDER[kind] <= last:
                raise ModuleInvalid(f"section {kind} of the module is unknown or out of order")
            last = _ORDER[kind]
            found[kind] = content
    return found


def _check_imports(
    imports: list[tuple[str, str, int, int]], types: list[Signature], linked: Collection[str]
) -> None:
    for module, name, kind, index in imports:
        if module in linked:
            continue
        if module != WASI or name not in SIGNATURES or kind != _FUNC_KIND:
            raise ModuleInvalid(
                f"the module imports the {_KINDS[kind]} '{cut(module, 60)}.{cut(name, 60)}',"
                " which does not exist here",
                hint=f"only functions of {WASI} can be imported",
            )
        if index >= len(types) or types[index] != SIGNATURES[name]:
            raise ModuleInvalid(f"the module imports {name} by a type that it does not have")


def read(module: bytes, linked: Collection[str] = ()) -> Program:
    """Return what a module declares.

    Args:
        module: the binary.
        linked: names from which it may import anything: the engine links them
            (`scripts/session.py`). A job has none.

    Raises:
        ModuleInvalid: not a core module, damaged, or nothing that can run here.
    """
    sections = _sections(module)

    def items(kind: int, item: Callable[[_Reader], T]) -> list[T]:
        reader = _Reader(sections.get(kind, _NONE))
        if reader.left() > DECLARATION_BYTES_MAX:
            raise ModuleInvalid(
                f"section {kind} of the module is over its bound of {DECLARATION_BYTES_MAX} bytes"
            )
        found = reader.list(lambda: item(reader))
        if reader.left():
            raise ModuleInvalid(f"section {kind} of the module is longer than its content")
        return found

    types = items(_TYPE, _Reader.function_type)
    imports = items(_IMPORT, _Reader.imported)
    _check_imports(imports, types, linked)
    own = items(_FUNCTION, _Reader.number)
    indices = [index for *_, kind, index in imports if kind == _FUNC_KIND] + own
    if len(indices) > FUNCTIONS_MAX:
        raise ModuleInvalid(f"the module has more than {FUNCTIONS_MAX} functions")
    if any(index >= len(types) for index in indices):
        raise ModuleInvalid("a function of the module is of a type that does not exist")
    tables = items(_TABLE, _Reader.table)
    if len(tables) > TABLES_MAX:
        raise ModuleInvalid(f"the module has more than {TABLES_MAX} tables")
    if sum(tables) > TABLE_ELEMENTS_MAX:
        raise ModuleInvalid(f"the tables have more than {TABLE_ELEMENTS_MAX} elements")
    memories = items(_MEMORY, lambda reader: reader.limits("memory"))
    if len(memories) > 1:
        raise ModuleInvalid("the module has more than one memory")

    exports = items(_EXPORT, _Reader.exported)
    if len(exports) > EXPORTS_MAX:
        raise ModuleInvalid(f"the module has more than {EXPORTS_MAX} exports")
    functions = {}
    for name, kind, index in exports:
        if kind not in _KINDS:
            raise ModuleInvalid("the module exports something of an unknown kind")
        if kind == _FUNC_KIND:
            if index >= len(indices):
                raise ModuleInvalid(f"the export '{cut(name, 60)}' is no function of the module")
            functions[name] = types[indices[index]]
    names = frozenset(name for name, *_ in exports)
    if len(names) != len(exports):
        raise ModuleInvalid("two exports of the module have the same name")

    start = None
    if _START in sections:
        reader = _Reader(sections[_START])
        index = reader.number()
        if index >= len(indices) or types[indices[index]] != Signature((), ()):
            raise ModuleInvalid("the start function of the module takes or gives values")
        if reader.left():
            raise ModuleInvalid("the start section of the module is longer than its content")
        start = _free_name("__xsc_start", names)
    memory = next((name for name, kind, _ in exports if kind == _MEMORY_KIND), None)
    if memory is None and memories:
        memory = _free_name("__xsc_memory", names)
    return Program(
        functions=functions,
        imports=tuple(dict.fromkeys(name for module, name, *_ in imports if module not in linked)),
        pages_min=memories[0] if memories else None,
        memory=memory,
        start=start,
        size_bytes=len(module),
    )


def _leb(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _free_name(wanted: str, names: frozenset[str]) -> str:
    while wanted in names:
        wanted += "_"
    return wanted


def prepare(module: bytes, program: Program) -> bytes:
    """Return the copy that is compiled: memory and start function are exports of it."""
    sections = _sections(module)
    listed = sections.get(_EXPORT, _NONE)
    reader = _Reader(listed)
    count = reader.number()
    rest = listed[reader.position :]
    names = {reader.exported()[0] for _ in range(count)}
    added: list[bytes] = []

    def export(name: str, kind: int, index: int) -> None:
        added.append(_leb(len(name)) + name.encode() + bytes([kind]) + _leb(index))

    if program.memory is not None and program.memory not in names:
        export(program.memory, _MEMORY_KIND, 0)
    if program.start is not None:
        export(program.start, _FUNC_KIND, _Reader(sections.pop(_START)).number())
    if not added:
        return module
    sections[_EXPORT] = _leb(count + len(added)) + rest + b"".join(added)
    chunks = [module[:8]]
    for kind in sorted(sections, key=_ORDER.__getitem__):
        chunks += [bytes([kind]), _leb(len(sections[kind])), sections[kind]]
    return b"".join(chunks)
