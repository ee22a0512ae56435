"""Documents for tests."""

from __future__ import annotations

import json

from xsc.programs.compile import compile_program
from xsc.programs.document import parse, resolve
from xsc.programs.frame import Execution
from xsc.programs.functions import Functions

ALICE = b"a" * 32
EXAMPLE = """id = "total"

[variables.mine]
kind = "subscription"
type = "i32"                     # the seed's schema_type
path = "demo/a"
default = 0

[variables.theirs]
kind = "subscription"
type = "i32"
owner = "alice"
path = "demo/a"
default = 0

[computations.sum]
function = "math.add"
inputs = { x = "mine", y = "theirs" }
outputs.total = { path = "demo/total" }
"""


def program(text, form="toml", modules=None):
    document = parse(text if isinstance(text, bytes) else text.encode(), form)
    return resolve(document, {"alice": ALICE}, modules or {"m": b"\0asm"})


def from_parts(variables, computations, **top):
    """Return the program of a document's tables."""
    found = {"id": "test", "variables": variables, "computations": computations, **top}
    return program(json.dumps(found), "json")


def compiled(*parts, functions=None, **options):
    return compile_program(from_parts(*parts), functions or Functions(), **options)


def execution(*parts, **options):
    return Execution.begin(compiled(*parts, **options))


def sub(type_="i32", path="demo/a", **keys):
    return {"kind": "subscription", "type": type_, "path": path, **keys}


def local(type_="i32", **keys):
    return {"kind": "local", "type": type_, **keys}


def derived(computation, output):
    return {"kind": "derived", "computation": computation, "output": output}


def call(function, inputs, **outputs):
    return {"function": function, "inputs": inputs, "outputs": outputs}


MEMORY = {"memory": True}
MODULE = {"module": "m", "export": "add"}
