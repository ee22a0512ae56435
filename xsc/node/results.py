"""What a job gave, as the documents of `POST /v1/jobs`."""

from __future__ import annotations

from base64 import b64encode

from xsc.api.schema import InvokeResult, RunResult, Trap
from xsc.base.errors import XscError
from xsc.base.ids import to_text
from xsc.compute.service import Execution, RunExecution


def _trap(trap: XscError | None) -> Trap | None:
    return None if trap is None else Trap(code=trap.code, detail=trap.message, hint=trap.hint)


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
