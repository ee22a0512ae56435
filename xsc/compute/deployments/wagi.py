"""How a request over HTTP becomes the run of a program, and its output an answer: WAGI.

A program is told of the request by variables, arguments and standard input, as
CGI 1.1 (RFC 3875) and WAGI on top of it say, and writes fields, an empty line
and a body to standard output.

Not handed on: `Authorization` and `Connection` (RFC 3875, 4.1.18), `Cookie`, which
may be another service's, `Proxy`, which a program would take for a setting of its own
(CVE-2016-5385), and fields with an underscore in their name, which would look like
another one.

All services of a node are one origin to a browser, and their owners are several.
Of what a program answers, only fields that tell of this answer are passed on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xsc.base.limits import ARGUMENT_BYTES_MAX, ARGUMENTS_MAX, ENVIRONMENT_MAX, KIB
from xsc.compute.wasm.inputs import RunInput

SERVICE_ANSWER_HEAD_BYTES_MAX = 16 * KIB
"""What a service may write before the empty line."""
SERVICE_ANSWER_FIELDS_MAX = 64

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")
_SOFTWARE = "WAGI/1"
_KEPT_BACK = frozenset(
    {"authorization", "connection", "cookie", "proxy", "content-type", "content-length"}
)
_OWN = frozenset(
    {
        "AUTH_TYPE",
        "CONTENT_LENGTH",
        "CONTENT_TYPE",
        "GATEWAY_INTERFACE",
        "PATH_INFO",
        "PATH_TRANSLATED",
        "QUERY_STRING",
        "REMOTE_ADDR",
        "REMOTE_HOST",
        "REMOTE_USER",
        "REQUEST_METHOD",
        "SCRIPT_NAME",
        "SERVER_NAME",
        "SERVER_PORT",
        "SERVER_PROTOCOL",
        "SERVER_SOFTWARE",
        "X_FULL_URL",
        "X_MATCHED_ROUTE",
        "X_RAW_PATH_INFO",
    }
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_FIELD_NAME = re.compile(r"[0-9a-z-]{1,256}")
_STATUS = re.compile(r"([2-5][0-9]{2})(?: [^\x00-\x1f\x7f]*)?")
_PASSED_ON = frozenset(
    {
        "accept-ranges",
        "access-control-allow-origin",
        "access-control-expose-headers",
        "allow",
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-range",
        "content-security-policy",
        "content-type",
        "etag",
        "expires",
        "last-modified",
        "location",
        "retry-after",
        "vary",
    }
)
"""What a program may say: fields that tell of this answer, and change nothing beyond it."""
_ONCE = ("status", "content-type", "location")
_BODYLESS = (204, 304)
_END = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True, slots=True)
class Request:
    """A request for a service, as its head and body came."""

    method: str
    route: str
    """`/fn/OWNER/NAME`, as it was asked for."""
    raw_path: str
    """What follows the route, percent-encoded: empty, or from a slash on."""
    path: str
    """The same, decoded."""
    query: str
    """What follows the question mark, as it came."""
    headers: Sequence[tuple[str, str]]
    body: bytes = b""
    remote: str = ""
    """The address that it came from."""
    version: str = "HTTP/1.1"


@dataclass(frozen=True, slots=True)
class Response:
    """What a program answered."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def is_reserved(name: str) -> bool:
    """Say whether a variable is one that a request sets."""
    return name in _OWN or name.startswith("HTTP_")


def _clean(text: str) -> str:
    """Return a text that a program can be given: valid Unicode without NUL."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


def _fields(headers: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the fields by lower-case name; those given several times are joined (RFC 9110)."""
    found: dict[str, str] = {}
    for name, value in headers:
        low = name.lower()
        found[low] = f"{found[low]}, {value}" if low in found else value
    return found


def input_of(request: Request, environment: Mapping[str, str]) -> RunInput | None:
    """Return what the program is given; None where it is more than a program can be given."""
    fields = _fields(request.headers)
    host = fields.get("host", "localhost")
    name, sign, port = host.rpartition(":")
    if not sign or not port.isdecimal():
        name, port = host, "80"
    query = f"?{request.query}" if request.query else ""
    variables = {
        **environment,
        **{
            f"HTTP_{field.upper().replace('-', '_')}": value
            for field, value in fields.items()
            if field not in _KEPT_BACK and _FIELD_NAME.fullmatch(field)
        },
        "AUTH_TYPE": "",
        "CONTENT_LENGTH": str(len(request.body)),
        "CONTENT_TYPE": fields.get("content-type", ""),
        "GATEWAY_INTERFACE": "CGI/1.1",
        "PATH_INFO": request.path,
        "PATH_TRANSLATED": request.path,
        "QUERY_STRING": request.query,
        "REMOTE_ADDR": request.remote,
        "REMOTE_HOST": request.remote,
        "REMOTE_USER": "",
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": request.route,
        "SERVER_NAME": name,
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": request.version,
        "SERVER_SOFTWARE": _SOFTWARE,
        "X_FULL_URL": f"http://{host}{request.route}{request.raw_path}{query}",
        "X_MATCHED_ROUTE": f"{request.route}/...",
        "X_RAW_PATH_INFO": request.raw_path,
    }
    args = tuple(_clean(part) for part in request.query.split("&") if part)
    pairs = tuple(sorted((key, _clean(value)) for key, value in variables.items()))
    size = sum(len(text.encode()) + 1 for text in args)
    size += sum(len(key) + len(value.encode()) + 2 for key, value in pairs)
    if len(args) > ARGUMENTS_MAX or len(pairs) > ENVIRONMENT_MAX or size > ARGUMENT_BYTES_MAX:
        return None
    return RunInput(args, pairs, request.body)


def read_answer(stdout: bytes) -> Response | str:
    """Return what a program answered, or what is wrong with it, to follow on "the service"."""
    end = _END.search(stdout, 0, SERVICE_ANSWER_HEAD_BYTES_MAX)
    if end is None:
        if not stdout:
            return "answered nothing"
        if len(stdout) >= SERVICE_ANSWER_HEAD_BYTES_MAX:
            return f"wrote no empty line within {SERVICE_ANSWER_HEAD_BYTES_MAX} bytes"
        return "ended in the middle of its head: there is no empty line"
    try:
        lines = stdout[: end.start()].decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return "wrote a head that is not UTF-8"
    if len(lines) > SERVICE_ANSWER_FIELDS_MAX:
        return f"wrote more than {SERVICE_ANSWER_FIELDS_MAX} fields"
    told: dict[str, str] = {}
    headers: list[tuple[str, str]] = []
    for line in lines:
        name, colon, value = line.removesuffix("\r").partition(":")
        value = value.strip(" \t")
        if not colon or not _TOKEN.fullmatch(name):
            return f"wrote '{_shown(line)}' in its head, which is no field"
        if any((ord(char) < 32 and char != "\t") or ord(char) == 127 for char in value):
            return f"wrote a control character in its field '{name[:60]}'"
        low = name.lower()
        if low in _ONCE:
            if low in told:
                return f"wrote the field '{name}' twice"
            told[low] = value
        if low in _PASSED_ON:
            headers.append((name, value))
    return _answer(told, headers, stdout[end.end() :])


def _answer(told: Mapping[str, str], headers: list[tuple[str, str]], body: bytes) -> Response | str:
    status = 302 if told.get("location") else 200
    if "status" in told:
        match = _STATUS.fullmatch(told["status"])
        if match is None:
            return f"wrote '{_shown(told['status'])}' as its status"
        status = int(match[1])
    if not told.get("content-type"):
        if body and status not in _BODYLESS:
            return "wrote a body without a Content-Type"
        if not told.get("location") and "status" not in told:
            return "wrote neither Content-Type nor Location nor Status"
    return Response(status, tuple(headers), b"" if status in _BODYLESS else body)


def _shown(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:60])
