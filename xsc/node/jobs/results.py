"""What a job gave, as the documents of `POST /v1/jobs`."""

from __future__ import annotations

from base64 import b64encode
from functools import lru_cache

from xsc.api.schema import BatchResult, RunResult, Trap, Verification
from xsc.base.errors import XscError
from xsc.base.ids import to_text
from xsc.base.limits import PEERS_MAX
from xsc.compute.jobs.replicated import Verified
from xsc.compute.service import BatchExecution, Execution, RunExecution

_node = lru_cache(maxsize=PEERS_MAX)(to_text)


def _trap(trap: XscError | None) -> Trap | None:
    return None if trap is None else _told(trap)


def _blob(raw: bytes) -> str:
    return b64encode(raw).decode()


def _verification(verified: Verified | None) -> dict[str, object]:
    """Return what is said only of a job that several providers ran."""
    if verified is None:
        return {}
    told = Verification(
        need=verified.quorum.need,
        of=verified.quorum.of,
        agreeing=[to_text(node) for node in verified.agreeing],
        dissenting=[to_text(node) for node in verified.dissenting],
        uncounted=[to_text(node) for node in verified.uncounted],
        silent=[to_text(node) for node in verified.silent],
        receipts=[_blob(receipt) for receipt in verified.receipts],
        evidence=[to_text(each) for each in verified.evidence],
    )
    return {"verification": told.model_dump()}


def invoke_document(done: Execution) -> dict[str, object]:
    """Return the document of an invocation."""
    trap = _trap(done.trap)
    # A model of these fields would take as long as signing the receipt.
    document: dict[str, object] = {
        "results": done.results,
        "fuel_used": done.fuel_used,
        "memory_peak_bytes": done.memory_peak_bytes,
        "wall_ms": done.wall_ms,
        "provider": _node(done.provider),
        "trap": None if trap is None else trap.model_dump(),
        "receipt": _blob(done.receipt),
        "saved_bytes": done.saved_bytes,
        "compiled_bytes": done.compiled_bytes,
    }
    return document | _verification(done.verified)


def run_document(done: RunExecution) -> dict[str, object]:
    """Return the document of a program's run."""
    document = RunResult(
        exit_code=done.exit_code,
        stdout=_blob(done.stdout),
        stderr=_blob(done.stderr),
        files={name: _blob(data) for name, data in done.files.items()},
        fuel_used=done.fuel_used,
        memory_peak_bytes=done.memory_peak_bytes,
        wall_ms=done.wall_ms,
        provider=to_text(done.provider),
        trap=_trap(done.trap),
        receipt=_blob(done.receipt),
        saved_bytes=done.saved_bytes,
        compiled_bytes=done.compiled_bytes,
    ).model_dump()
    return document | _verification(done.verified)


def batch_document(done: BatchExecution) -> dict[str, object]:
    """Return the document of a batch."""
    items: list[dict[str, object]] = [
        {
            "results": item.results,
            "fuel_used": item.fuel_used,
            "trap": None if item.trap is None else _told(item.trap).model_dump(),
        }
        for item in done.items
    ]
    whole = BatchResult(
        items=[],
        fuel_used=done.fuel_used,
        memory_peak_bytes=done.memory_peak_bytes,
        wall_ms=done.wall_ms,
        provider=to_text(done.provider),
        trap=_trap(done.trap),
        receipt=_blob(done.receipt),
        saved_bytes=done.saved_bytes,
        compiled_bytes=done.compiled_bytes,
    ).model_dump()
    # Put in unchecked: to validate and copy them takes as long as to run them.
    return {**whole, "items": items}


def _told(trap: XscError) -> Trap:
    return Trap(code=trap.code, detail=trap.message, hint=trap.hint)
