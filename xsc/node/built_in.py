"""The program that comes with XSC, and the rule of another package that it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xsc.programs.functions import Function

ALLOCATION: Final = b"""
id = "allocation"
version = "4"
description = "What this node grants of its slots, from what it and its peers have published."
debounce_ms = 0

[variables.gathered]    # commitments, recognition, draws, credit, room and time
kind = "given"
type = "bytes"

[variables.last]        # the state that was published before
kind = "given"
type = "bytes"

[computations.grant]
function = "allocation.state"
inputs = { gathered = "gathered", last = "last" }
outputs.state = { path = "allocation/state" }
"""


def allocation_function(state_of: Callable[[bytes, bytes], bytes]) -> Function:
    """Return the function of the allocation program. Who changes what it does raises its version.

    Args:
        state_of: gives the state of what was gathered and the last one.
    """
    params = {"gathered": "bytes", "last": "bytes"}
    return Function(
        "allocation.state", 5, params, "bytes", lambda _, gathered, last: state_of(gathered, last)
    )
