"""Ledger: who owes whom, what was earned and spent of late, and the last entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from xsc.api import ledger
from xsc.dashboard.page import Asked, Page, number
from xsc.dashboard.source import Node, fetch

ENTRIES_SHOWN: Final = 25


async def gather(node: Node, asked: Asked) -> Mapping[str, Any]:
    """Return what the page shows, who owes most first."""
    found = await fetch(node, ledger.BALANCE, ledger.Accounts(heard=True))
    before = number("before", asked["before"]) if "before" in asked else None
    flows = await fetch(node, ledger.FLOWS, ledger.Booked())
    sums = (row[kind] for row in flows for kind in ("earned_micro", "spent_micro"))
    return {
        "found": found,
        "balances": sorted(found["balances"], key=lambda row: -row["balance_micro"]),
        "flows": flows,
        "cubes": await fetch(node, ledger.CUBES, ledger.CubesAsked()),
        "widest": max(sums, default=0),
        "log": await fetch(node, ledger.LOG, ledger.Page(limit=ENTRIES_SHOWN, before=before)),
        "before": before,
    }


PAGES: Final = (Page("/ledger", "Ledger", "ledger.html", gather),)
