"""Several small calls as one: what `peers.batch` carries, and what it answers.

    {"calls": [{"method", "header", "parts": how many}]}; the parts of all calls
    -> {"answers": [{"status", "header", "parts"}]}; the parts of all answers

Inner headers are canonical bytes of their own, so that one malformed header is
the error of its call alone. ALONE has nothing more: the answer was too large.
Any other status but 200 has a problem document as its header. When calls travel
together: `xsc.net.service`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import FrameInvalid, XscError
from xsc.base.fields import take_bytes, take_int, take_list, take_str
from xsc.base.limits import BATCH_CALL_BYTES_MAX, BATCH_CALL_PARTS_MAX, BATCH_CALLS_MAX
from xsc.base.merkle import Part
from xsc.net.calls import frame, problems
from xsc.net.transport.port import RawResponse

METHOD = "peers.batch"
OK = 200
ALONE = 303
"""The answer is too large to travel with others: the call is to be made by itself."""

Buffer: TypeAlias = "bytes | memoryview"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of several."""

    method: str
    header: bytes
    """Canonical."""
    parts: Sequence[Part]

    @property
    def size_bytes(self) -> int:
        """What it adds to a request."""
        return len(self.header) + sum(len(part.data) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call was answered: a header and parts, or with another status a problem."""

    status: int
    header: bytes
    parts: Sequence[Buffer] = ()


def may_share(call: Call) -> bool:
    """Say whether a call is small enough to travel with others."""
    return call.size_bytes <= BATCH_CALL_BYTES_MAX and len(call.parts) <= BATCH_CALL_PARTS_MAX


def _map(value: Value) -> Mapping[str, Value]:
    if not isinstance(value, dict):
        raise FrameInvalid("an item of a batch must be a map")
    return value


def pack_calls(calls: Sequence[Call]) -> tuple[dict[str, Value], list[Part]]:
    """Return header and parts of the request that carries these calls."""
    listed: list[Value] = [
        {"method": call.method, "header": call.header, "parts": len(call.parts)} for call in calls
    ]
    return {"calls": listed}, [part for call in calls for part in call.parts]


def unpack_calls(header: Mapping[str, Value], parts: Sequence[Part]) -> list[Call]:
    """Return the calls of a request; their headers are not decoded yet.

    Raises:
        RecordInvalid, FrameInvalid, TooLarge: it breaks a rule.
    """
    calls = []
    start = 0
    for item in take_list(header, "calls", most=BATCH_CALLS_MAX):
        fields = _map(item)
        count = take_int(fields, "parts", most=BATCH_CALL_PARTS_MAX)
        call = Call(
            take_str(fields, "method"), take_bytes(fields, "header"), parts[start : start + count]
        )
        if len(call.parts) != count or not may_share(call):
            raise FrameInvalid("a call of a batch is over its bounds, or cut short")
        calls.append(call)
        start += count
    if start != len(parts) or not calls:
        raise FrameInvalid("the calls of a batch do not fill it exactly")
    return calls


def answered(header: dict[str, Value], parts: Sequence[Buffer]) -> Answer:
    """Return the answer of a call that was carried out, unless it is too large."""
    raw = encode(header)
    if len(parts) > BATCH_CALL_PARTS_MAX or len(raw) + sum(map(len, parts)) > BATCH_CALL_BYTES_MAX:
        return Answer(ALONE, b"")
    return Answer(OK, raw, parts)


def refused(response: RawResponse) -> Answer:
    """Return the answer of a call that was not."""
    return Answer(response.status, b"".join(bytes(buffer) for buffer in response.body))


def pack_answers(answers: Sequence[Answer]) -> tuple[dict[str, Value], list[Buffer]]:
    """Return header and parts of the answer to a batch."""
    listed: list[Value] = [
        {"status": answer.status, "header": answer.header, "parts": len(answer.parts)}
        for answer in answers
    ]
    return {"answers": listed}, [part for answer in answers for part in answer.parts]


def unpack_answers(reply: frame.Reply, count: int) -> list[Answer]:
    """Return the answers to that many calls.

    Raises:
        RecordInvalid, FrameInvalid: they do not fit the calls.
    """
    answers = []
    start = 0
    for item in take_list(reply.header, "answers", most=BATCH_CALLS_MAX):
        fields = _map(item)
        parts = take_int(fields, "parts", most=BATCH_CALL_PARTS_MAX)
        answers.append(
            Answer(
                take_int(fields, "status", most=599),
                take_bytes(fields, "header"),
                reply.parts[start : start + parts],
            )
        )
        start += parts
    if len(answers) != count or start != len(reply.parts):
        raise FrameInvalid("the answers of a batch do not fit its calls")
    return answers


def outcome_of(answer: Answer, name: str) -> frame.Reply | XscError:
    """Return what one call was answered by a peer of that name."""
    if answer.status != OK:
        return problems.error_of(answer.status, answer.header, name)
    try:
        header = decode(answer.header, size_max=BATCH_CALL_BYTES_MAX)
    except XscError as fault:
        return fault
    if not isinstance(header, dict):
        return FrameInvalid("the header of an answer holds no map")
    return frame.Reply(header, [memoryview(part) for part in answer.parts])
