"""The documents of jobs have the fields that the API's schema names."""

from __future__ import annotations

import pytest

from xsc.api.schema import InvokeResult
from xsc.base.errors import FuelExhausted
from xsc.base.ids import to_text
from xsc.compute.service import Execution
from xsc.node.results import invoke_document


@pytest.mark.parametrize("trap", [None, FuelExhausted("all of it", hint="more")])
def test_an_invocation(trap):
    done = Execution(["3"], (), b"", b"", 4, 65_536, 1, b"p" * 32, 0, trap, b"receipt")
    document = invoke_document(done)
    assert InvokeResult.model_validate(document).model_dump() == document
    assert document["provider"] == to_text(b"p" * 32)
