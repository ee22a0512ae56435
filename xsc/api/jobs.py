"""The JSON documents of `POST /v1/jobs`: of a job, and of its result."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from typing import Any

from xsc.base.errors import XscError, from_code
from xsc.base.jobs import JobItem, JobResult, JobSpec, Mode, StoredOutput, Verification

_BYTES = {"module", "stdin"}
"""They follow the JSON as they are."""
_DEFAULTS = {
    each.name: {} if each.default is MISSING else each.default
    for each in fields(JobSpec)
    if each.name not in _BYTES
}
_STORED = ("path", "name", "capability", "size_bytes")
_COMMON = ("fuel_used", "memory_peak_bytes", "wall_ms", "provider", "saved_bytes", "compiled_bytes")


def request_document(spec: JobSpec) -> dict[str, Any]:
    """Return a job without its module and standard input; what is left out is the default."""
    told = {name: getattr(spec, name) for name in _DEFAULTS}
    told = {name: value for name, value in told.items() if value != _DEFAULTS[name]}
    return told if spec.mode == "invoke" else {**told, "stdin_bytes": len(spec.stdin)}


def result_document(done: JobResult) -> dict[str, Any]:
    """Return the document of a result.

    It is made by hand: a model of these fields would take as long as signing the receipt.
    """
    document: dict[str, Any]
    if done.mode == "invoke":
        document = {"results": list(done.results)}
    elif done.mode == "batch":
        document = {
            "items": [
                {
                    "results": list(item.results),
                    "fuel_used": item.fuel_used,
                    "trap": _fault(item.trap),
                }
                for item in done.items
            ]
        }
    else:
        document = {
            "exit_code": done.exit_code,
            "stdout": _text(done.stdout),
            "stderr": _text(done.stderr),
            "files": {path: _text(data) for path, data in done.files.items()},
        }
    document |= {
        "fuel_used": done.fuel_used,
        "memory_peak_bytes": done.memory_peak_bytes,
        "wall_ms": done.wall_ms,
        "provider": done.provider,
        "trap": _fault(done.trap),
        "receipt": _text(done.receipt),
        "saved_bytes": done.saved_bytes,
        "compiled_bytes": done.compiled_bytes,
    }
    if done.verification is not None:
        receipts = [_text(receipt) for receipt in done.verification.receipts]
        document["verification"] = {**asdict(done.verification), "receipts": receipts}
    if done.objects is not None:
        document["objects"] = [
            {**{name: getattr(row, name) for name in _STORED}, "fault": _fault(row.fault)}
            for row in done.objects
        ]
    return document


def read_result(mode: Mode, document: Mapping[str, Any]) -> JobResult:
    """Return the result of a document that `result_document` made for a job of that mode."""
    receipt = b64decode(document["receipt"])
    told: Mapping[str, Any] | None = document.get("verification")
    stored: Sequence[Mapping[str, Any]] | None = document.get("objects")
    return JobResult(
        mode=mode,
        results=tuple(document["results"]) if mode == "invoke" else (),
        items=tuple(
            JobItem(tuple(row["results"]), row["fuel_used"], _error(row["trap"]), receipt)
            for row in (document["items"] if mode == "batch" else ())
        ),
        exit_code=document["exit_code"] if mode == "run" else None,
        stdout=b64decode(document["stdout"]) if mode == "run" else b"",
        stderr=b64decode(document["stderr"]) if mode == "run" else b"",
        files={path: b64decode(data) for path, data in document["files"].items()}
        if mode == "run"
        else {},
        trap=_error(document["trap"]),
        receipt=receipt,
        verification=None if told is None else _verification(told),
        objects=None
        if stored is None
        else tuple(StoredOutput(**{**row, "fault": _error(row["fault"])}) for row in stored),
        **{name: document[name] for name in _COMMON},
    )


def _verification(told: Mapping[str, Any]) -> Verification:
    """Return the value of a document: its lists are tuples again."""
    plain = {name: tuple(value) for name, value in told.items() if isinstance(value, list)}
    plain["receipts"] = tuple(map(b64decode, told["receipts"]))
    return Verification(**{**told, **plain})


def _text(raw: bytes) -> str:
    return b64encode(raw).decode()


def _fault(error: XscError | None) -> dict[str, str] | None:
    if error is None:
        return None
    return {"code": error.code, "detail": error.message, "hint": error.hint}


def _error(told: Mapping[str, str] | None) -> XscError | None:
    return None if told is None else from_code(told["code"], told["detail"], told["hint"])
