"""Compiled code as bytes, and the description of the program that it was compiled from.

A worker loads code as it is: it is the processor's own, and nothing can check it.
Therefore it comes only from a jail of this node, or from this node's cache under
its seal (`xsc.compute.worker.code_cache`), and never from a peer.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Any, cast

from blake3 import blake3

from xsc.base.encoding import Value, decode, domain, encode
from xsc.base.errors import RecordInvalid
from xsc.base.fields import take_bytes
from xsc.base.limits import WORKER_FRAME_BYTES_MAX
from xsc.compute.wasm.program import Program
from xsc.compute.wasm.signature import Signature

MAGIC = b"XSC code 3\n"
SEAL_BYTES = 32
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class MachineCode:
    """A compiled module: `about` is a canonical description, `machine` the processor's code."""

    about: bytes
    machine: bytes | memoryview


def describe(program: Program) -> bytes:
    """Return the canonical description of a program."""
    functions: list[Value] = [
        [name, list(signature.params), list(signature.results)]
        for name, signature in program.functions.items()
    ]
    rest = (program.pages_min, program.memory, program.start, program.size_bytes)
    return encode([functions, list(program.imports), *rest])


def read(about: bytes) -> Program:
    """Return the program of a description.

    Only a worker reads one, with code that nothing can check: its shape is not checked either.
    """
    functions, imports, *rest = cast("list[Any]", decode(about, size_max=WORKER_FRAME_BYTES_MAX))
    signatures = {
        name: Signature(tuple(params), tuple(results)) for name, params, results in functions
    }
    return Program(signatures, tuple(imports), *rest)


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
