"""The frame that a request or an answer carries as its body.

    length of the header, 4 bytes big-endian ‖ header ‖ parts, one after the other

The header is canonical CBOR, `{"h": user's header, "p": [[length, root], …],
"v": 1}`. The length and the header together are the *head*: a signature over
the head binds the parts by their Merkle roots, so that bodies are hashed once.
In answers roots are empty: who asked knows what to expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import FrameInvalid, RecordInvalid, TooLarge
from xsc.base.limits import FRAME_HEADER_BYTES_MAX, FRAME_PARTS_MAX, PEER_BODY_BYTES_MAX
from xsc.base.merkle import ROOT_BYTES, Part
from xsc.net.transport.port import Buffer

VERSION = 1
LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Reply:
    """What a peer answered. The parts are not verified: the caller knows their roots."""

    header: dict[str, Value]
    parts: list[memoryview]


@dataclass(frozen=True, slots=True)
class Frame:
    """An unpacked frame; the parts are views of its bytes and not verified."""

    header: dict[str, Value]
    parts: list[Part]


def pack_head(
    header: dict[str, Value], parts: Sequence[Part], *, size_max: int = FRAME_HEADER_BYTES_MAX
) -> bytes:
    """Return the head of the frame with these parts.

    Raises:
        TooLarge: the header is over `size_max`; or over FRAME_PARTS_MAX or PEER_BODY_BYTES_MAX.
        RecordInvalid: the header cannot be encoded.
    """
    if len(parts) > FRAME_PARTS_MAX:
        raise TooLarge(f"{len(parts)} parts are over the bound of {FRAME_PARTS_MAX}")
    sizes: list[Value] = [[len(part.data), part.root] for part in parts]
    raw = encode({"v": VERSION, "h": header, "p": sizes})
    _check_size(len(raw), size_max)
    whole = LENGTH_BYTES + len(raw) + sum(len(part.data) for part in parts)
    if whole > PEER_BODY_BYTES_MAX:
        raise TooLarge(f"a message of {whole} bytes is over the bound of {PEER_BODY_BYTES_MAX}")
    return len(raw).to_bytes(LENGTH_BYTES, "big") + raw


def _check_size(size: int, size_max: int) -> None:
    if size > size_max:
        raise TooLarge(f"a header of {size} bytes is over the bound of {size_max}")


def head_of(begun: Buffer, *, size_max: int = FRAME_HEADER_BYTES_MAX) -> memoryview | None:
    """Return the head of a frame that begins so: its length and its header.

    None where it is not all there yet.

    Raises:
        TooLarge: its header is over `size_max`.
    """
    if len(begun) < LENGTH_BYTES:
        return None
    size = int.from_bytes(begun[:LENGTH_BYTES], "big")
    _check_size(size, size_max)
    head = memoryview(begun)[: LENGTH_BYTES + size]
    return head if len(head) == LENGTH_BYTES + size else None


def _sizes(value: Value) -> list[tuple[int, bytes]]:
    if not isinstance(value, list):
        raise FrameInvalid("a frame has no list of parts")
    if len(value) > FRAME_PARTS_MAX:
        raise TooLarge(f"{len(value)} parts are over the bound of {FRAME_PARTS_MAX}")
    sizes = []
    for item in value:
        if not isinstance(item, list) or len(item) != 2:
            raise FrameInvalid("a part of a frame is not a length and a root")
        size, root = item
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise FrameInvalid("the length of a part is no number from 0")
        if not isinstance(root, bytes) or len(root) not in (0, ROOT_BYTES):
            raise FrameInvalid("the root of a part is malformed")
        sizes.append((size, root))
    return sizes


def unpack(body: memoryview, *, size_max: int = FRAME_HEADER_BYTES_MAX) -> Frame:
    """Return the frame of these bytes, without copying its parts.

    Raises:
        TooLarge: a bound is passed.
        FrameInvalid: cut short, trailing bytes, another version, or malformed.
    """
    if len(body) > PEER_BODY_BYTES_MAX:
        raise TooLarge(f"{len(body)} bytes are over the bound of {PEER_BODY_BYTES_MAX}")
    head = head_of(body, size_max=size_max)
    if head is None:
        raise FrameInvalid("a frame is cut short in its head")
    try:
        value = decode(bytes(head[LENGTH_BYTES:]), size_max=size_max)
    except RecordInvalid as fault:
        raise FrameInvalid(f"the header of a frame is malformed: {fault.message}") from None
    if not isinstance(value, dict) or set(value) != {"v", "h", "p"}:
        raise FrameInvalid("the header of a frame has other fields than v, h and p")
    if value["v"] != VERSION or isinstance(value["v"], bool):
        raise FrameInvalid(f"a frame of version {value['v']!r}, known here is {VERSION}")
    header = value["h"]
    if not isinstance(header, dict):
        raise FrameInvalid("the header of a frame holds no map")
    sizes = _sizes(value["p"])
    if len(head) + sum(size for size, _ in sizes) != len(body):
        raise FrameInvalid("the parts of a frame do not fill it exactly")
    parts, start = [], len(head)
    for size, root in sizes:
        parts.append(Part(body[start : start + size], root))
        start += size
    return Frame(header, parts)
