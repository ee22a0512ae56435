"""Errors between peers: problem documents (RFC 9457), and what a peer's error means here.

A caller that is not known gets one answer, whatever was wrong. What a peer
reports keeps its class, except that its own damage and bugs are, seen from
here, only a peer that failed.
"""

from __future__ import annotations

import json
from dataclasses import replace

from xsc.api import problems, serial
from xsc.base import errors, limits
from xsc.net.transport.port import Buffer, RawResponse

TEXT_CHARS_MAX = 1_000
PROBLEM_BYTES_MAX = 16 * 1024


def _response(error: errors.XscError) -> RawResponse:
    found = problems.problem(error)
    short = replace(found, detail=found.detail[:TEXT_CHARS_MAX], hint=found.hint[:TEXT_CHARS_MAX])
    headers = {"content-type": problems.CONTENT_TYPE}
    if found.retry_after_s:
        headers["retry-after"] = str(found.retry_after_s)
    return RawResponse(found.status, headers, [serial.to_text(short).encode()])


def answer_of(error: errors.XscError) -> RawResponse:
    """Return the answer that carries an error to a peer."""
    return failed() if isinstance(error, errors.CorruptionError) else _response(error)


def failed() -> RawResponse:
    """Return the answer for what is this node's own fault; it tells no details."""
    return _response(errors.PeerError("the peer failed at this"))


def _clean(text: object) -> str:
    """Return a peer's text as it can be shown: on one line, bounded, printable."""
    if not isinstance(text, str):
        return ""
    return "".join(char if char.isprintable() else " " for char in text[:TEXT_CHARS_MAX])


def error_of(status: int, body: Buffer, name: str) -> errors.XscError:
    """Return the error that a peer answered with.

    Args:
        status: of HTTP, used where there is no document.
        body: the document.
        name: of the peer, for messages.
    """
    try:
        document = json.loads(bytes(body)) if len(body) <= PROBLEM_BYTES_MAX else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return errors.PeerError(f"the peer {name} answered with status {status} and no reason")
    code, detail, hint = (_clean(document.get(key)) for key in ("code", "detail", "hint"))
    wait = document.get("retry_after_s")
    if not isinstance(wait, int) or not 0 < wait <= limits.RETRY_AFTER_S_MAX:
        wait = None  # as if it had said nothing: a peer cannot make this node wait for ever
    error = errors.from_code(code, detail, hint, retry_after_s=wait)
    if isinstance(error, errors.Unauthorized):
        return errors.Unauthorized(
            f"the peer {name} does not answer this node: it does not know it, or blocked it",
            hint="join again with a new invitation",
        )
    if isinstance(error, errors.PeerSilent):
        # It did answer; what is silent is somebody behind it.
        return errors.UnavailableError(f"the peer {name}: {detail}", hint=hint)
    if type(error) is errors.XscError or isinstance(error, errors.CorruptionError):
        return errors.PeerError(
            f"the peer {name}: {detail or code or 'no reason given'}", hint=hint
        )
    return error
