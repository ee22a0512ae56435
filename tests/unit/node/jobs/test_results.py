"""The documents of jobs have the fields that the reference names."""

from __future__ import annotations

import pytest

from xsc.base.errors import FuelExhausted
from xsc.base.ids import to_text
from xsc.compute.service import Execution
from xsc.node.jobs.results import invoke_document


@pytest.mark.parametrize("trap", [None, FuelExhausted("all of it", hint="more")])
def test_an_invocation(trap):
    done = Execution(["3"], (), b"", b"", 4, 65_536, 1, b"p" * 32, 0, trap, b"receipt")
    assert invoke_document(done) == {
        "results": ["3"],
        "fuel_used": 4,
        "memory_peak_bytes": 65_536,
        "wall_ms": 1,
        "provider": to_text(b"p" * 32),
        "trap": trap and {"code": "fuel_exhausted", "detail": "all of it", "hint": "more"},
        "receipt": "cmVjZWlwdA==",
        "saved_bytes": 0,
        "compiled_bytes": 0,
    }
