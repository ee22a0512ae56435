"""Compiled code as bytes, and the description of the program that it was compiled from.

A worker loads code as it is: it is the processor's own, and nothing can check it.
Therefore it comes only from a jail of this node, or from this node's cache under
its seal (`xsc.compute.worker.code_cache`), and never from a peer.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from blake3 import blake3

from xsc.base.encoding import Value, decode, domain, encode
from xsc.base.errors import RecordInvalid
from xsc.base.fields import take_bytes, take_list
from xsc.base.limits import EXPORTS_MAX, WORKER_FRAME_BYTES_MAX
from xsc.compute.wasm.program import MemoryShape, Program
from xsc.compute.wasm.signature import Signature

MAGIC = b"XSC code 2\n"
SEAL_BYTES = 32
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class MachineCode:
    """A compiled module: `about` is a canonical description, `machine` the processor's code."""

    about: bytes
    machine: bytes | memoryview


@dataclass(frozen=True, slots=True)
class About:
    """What a worker must know of a program beside its code."""

    program: Program
    memory: str | None
    """The export through which the memory is read."""
    start: str | None
    """The export of the start function."""
    source_bytes: int


def describe(about: About) -> bytes:
    """Return the canonical description of a program."""
    program = about.program
    shape = program.memory
    return encode(
        {
            "functions": [
                [name, list(signature.params), list(signature.results)]
                for name, signature in program.functions.items()
            ],
            "imports": list(program.imports),
            "pages": None if shape is None else [shape.pages_min, shape.pages_max],
            "memory": about.memory,
            "start": about.start,
            "source": about.source_bytes,
        }
    )


def _function(value: Value) -> tuple[str, Signature]:
    match value:
        case [str(name), list(params), list(results)]:
            return name, Signature(tuple(map(str, params)), tuple(map(str, results)))
    raise RecordInvalid("a description of code names something that is no function")


def _text(value: Value) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise RecordInvalid("a description of code has a name that is no text")


def _shape(value: Value) -> MemoryShape | None:
    match value:
        case None:
            return None
        case [int(least), int() | None as most]:
            return MemoryShape(least, most)
    raise RecordInvalid("a description of code has a memory that is none")


def read(about: bytes) -> About:
    """Return what a description says.

    Raises:
        RecordInvalid: it is none.
    """
    value = decode(about, size_max=WORKER_FRAME_BYTES_MAX)
    if not isinstance(value, dict):
        raise RecordInvalid("a description of code must be a map")
    functions = dict(_function(item) for item in take_list(value, "functions", most=EXPORTS_MAX))
    program = Program(
        functions=functions,
        names=frozenset(functions),
        imports=tuple(str(item) for item in take_list(value, "imports")),
        memory=_shape(value.get("pages")),
        memory_export=None,
        start=None,
        sections=(),
    )
    source = value.get("source")
    if not isinstance(source, int):
        raise RecordInvalid("a description of code has no size")
    return About(program, _text(value.get("memory")), _text(value.get("start")), source)


def message_of(code: MachineCode) -> dict[str, Value]:
    """Return the message that announces code; its machine code goes another way."""
    return {"kind": "code", "about": code.about, "size": len(code.machine)}


def announced(message: dict[str, Value]) -> tuple[bytes, int]:
    """Return the description and how many bytes of machine code there are.

    Raises:
        RecordInvalid: it announces nothing, or too much.
    """
    size = message.get("size")
    if not isinstance(size, int) or not 0 <= size <= WORKER_FRAME_BYTES_MAX:
        raise RecordInvalid("code of that size is not taken")
    return take_bytes(message, "about"), size


def _seal(key: bytes, module_hash: bytes, config: bytes, content: bytes | memoryview) -> bytes:
    bound = domain("compiled-code") + module_hash + config
    # Megabytes are sealed at each first run after a start: HMAC-SHA-256 takes three times as long.
    return blake3(bound, key=key).update(content).digest()


def to_file(code: MachineCode, key: bytes, module_hash: bytes, config: bytes) -> bytes:
    """Return the sealed bytes of code, for this module and this engine alone."""
    content = len(code.about).to_bytes(_LENGTH_BYTES, "big") + code.about + code.machine
    return MAGIC + _seal(key, module_hash, config, content) + content


def from_file(raw: bytes, key: bytes, module_hash: bytes, config: bytes) -> MachineCode | None:
    """Return the code that sealed bytes hold, or None where the seal does not fit them."""
    at = len(MAGIC) + SEAL_BYTES
    content = memoryview(raw)[at:]
    if not raw.startswith(MAGIC) or len(content) < _LENGTH_BYTES:
        return None
    seal = _seal(key, module_hash, config, content)
    if not hmac.compare_digest(raw[len(MAGIC) : at], seal):
        return None
    split = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "big")
    return MachineCode(bytes(content[_LENGTH_BYTES:split]), content[split:])
