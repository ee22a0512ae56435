"""What a job gave, as the documents of `POST /v1/jobs`."""

from __future__ import annotations

from base64 import b64encode

from xsc.api.schema import BatchResult, InvokeResult, RunResult, Trap
from xsc.base.errors import XscError
from xsc.base.ids import to_text
from xsc.compute.service import BatchExecution, Execution, RunExecution


def _trap(trap: XscError | None) -> Trap | None:
    return None if trap is None else _told(trap)


def _blob(raw: bytes) -> str:
    return b64encode(raw).decode()


def invoke_document(done: Execution) -> dict[str, object]:
    """Return the document of an invocation."""
    return InvokeResult(
        results=list(done.results),
        fuel_used=done.fuel_used,
        memory_peak_bytes=done.memory_peak_bytes,
        wall_ms=done.wall_ms,
        provider=to_text(done.provider),
        trap=_trap(done.trap),
        receipt=_blob(done.receipt),
    ).model_dump()


def run_document(done: RunExecution) -> dict[str, object]:
    """Return the document of a program's run."""
    return RunResult(
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
    ).model_dump()


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
    ).model_dump()
    # Put in unchecked: to validate and copy them takes as long as to run them.
    return {**whole, "items": items}


def _told(trap: XscError) -> Trap:
    return Trap(code=trap.code, detail=trap.message, hint=trap.hint)
