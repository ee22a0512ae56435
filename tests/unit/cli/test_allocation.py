"""What `xsc allocation show` says of a grant that is not offered yet."""

from __future__ import annotations

import pytest

from xsc.cli.market import _lapses


@pytest.mark.parametrize(
    ("granted_ms", "drawn", "shown"),
    [(1_700_000_000_000, 0, True), (1_700_000_000_000, 5, False), (0, 0, False)],
)
def test_only_an_offer_that_is_made_and_not_leased_lapses(granted_ms, drawn, shown):
    until_ms = granted_ms + 60_000
    line = {"granted_ms": granted_ms, "until_ms": until_ms, "quantity": 5, "drawn": drawn}
    assert bool(_lapses(line)) is shown
