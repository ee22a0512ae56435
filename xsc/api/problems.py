"""Errors on the wire: problem documents (RFC 9457) and back."""

from __future__ import annotations

from xsc.base.errors import XscError

CONTENT_TYPE = "application/problem+json"


def problem(error: XscError) -> dict[str, object]:
    """Return the problem document of an error."""
    return {
        "code": error.code,
        "title": error.code.replace("_", " "),
        "status": error.http_status,
        "detail": error.message,
        "hint": error.hint,
        "retryable": error.retryable,
        "retry_after_s": error.retry_after_s,
    }


def bug() -> dict[str, object]:
    """Return the document for a fault that XSC did not expect; it tells no details."""
    return {
        "code": "bug",
        "title": "bug",
        "status": 500,
        "detail": "internal error of the node; its log has the trace",
        "hint": "please report it",
        "retryable": False,
        "retry_after_s": 0,
    }
