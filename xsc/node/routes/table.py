"""What answers each endpoint of `/v1`."""

from __future__ import annotations

from pathlib import Path

from xsc.api.table import ENDPOINTS
from xsc.node.api.serving import Answers, Faults
from xsc.node.routes import (
    allocation,
    evidence,
    home,
    jobs,
    ledger,
    market,
    objects,
    peers,
    programs,
    services,
    space,
    status,
)


def all_answers(path: Path, faults: Faults) -> Answers:
    """Return what answers each endpoint of the node of a home."""
    found: Answers = {
        **status.answers(path),
        **peers.ANSWERS,
        **objects.answers(faults),
        **home.answers(path),
        **jobs.ANSWERS,
        **evidence.ANSWERS,
        **services.ANSWERS,
        **space.ANSWERS,
        **programs.ANSWERS,
        **market.ANSWERS,
        **allocation.ANSWERS,
        **ledger.ANSWERS,
    }
    assert set(found) == set(ENDPOINTS)
    return found
