"""Programs that come with XSC, and the rules of other packages that they call."""

from __future__ import annotations

from typing import Any, Final

from xsc.allocation.program import AllocationProgram
from xsc.programs.functions import Function

ALLOCATION: Final = b"""
id = "allocation"
version = "3"
description = "What this node grants of its slots, from what it and its peers have published."
debounce_ms = 0

[variables.gathered]    # commitments, recognition, draws, credit, room and time
kind = "given"
type = "bytes"

[variables.over]        # ppm granted to this node beyond its needs
kind = "local"
type = "i32"
size = 3
default = -1

[variables.last]        # the state that was published before
kind = "given"
type = "bytes"

[variables.granted]
kind = "derived"
computation = "clear"
output = "granted"

[variables.damping]
kind = "derived"
computation = "swing"
output = "damping"

[computations.clear]
function = "allocation.clear"
inputs = { gathered = "gathered", last = "last" }
outputs.granted = { memory = true }

[computations.swing]
function = "allocation.damping"
inputs = { over = "over" }
outputs.damping = { memory = true }

[computations.sum]
function = "allocation.state"
inputs = { granted = "granted", last = "last", damping = "damping", gathered = "gathered" }
outputs.state = { path = "allocation/state" }
"""


def allocation_functions(rules: AllocationProgram) -> tuple[Function, ...]:
    """Return the functions of the allocation program. Who changes what they do raises a version."""

    def state(_: str, granted: Any, last: Any, damping: Any, gathered: Any) -> bytes:  # noqa: ANN401
        return rules.state(granted, last, damping, gathered)

    params = {"granted": "bytes", "last": "bytes", "damping": "i32", "gathered": "bytes"}
    return (
        Function(
            "allocation.clear",
            3,
            {"gathered": "bytes", "last": "bytes"},
            "bytes",
            lambda _, gathered, last: rules.clear(gathered, last),
        ),
        Function(
            "allocation.damping", 1, {"over": "[i32]"}, "i32", lambda _, over: rules.damping(over)
        ),
        Function("allocation.state", 4, params, "bytes", state),
    )
