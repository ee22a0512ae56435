"""Errors on the wire: problem documents (RFC 9457) and back."""

from __future__ import annotations

from dataclasses import replace

from xsc.api.endpoint import Model
from xsc.base.errors import XscError

CONTENT_TYPE = "application/problem+json"


class Fault(Model):
    """Why something did not come to its end."""

    code: str
    detail: str
    hint: str


class Problem(Fault):
    """An error."""

    title: str
    status: int
    retryable: bool
    retry_after_s: int


def problem(error: XscError) -> Problem:
    """Return the problem document of an error."""
    return Problem(
        code=error.code,
        title=error.code.replace("_", " "),
        status=error.http_status,
        detail=error.message,
        hint=error.hint,
        retryable=error.retryable,
        retry_after_s=error.retry_after_s,
    )


def bug() -> Problem:
    """Return the document for a fault that XSC did not expect; it tells no details."""
    fault = "internal error of the node; its log has the trace"
    return replace(problem(XscError(fault, hint="please report it")), code="bug", title="bug")
