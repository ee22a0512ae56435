"""The proof of a fork: two signed records of one author of which an honest one signs only one.

They are two halves of one number, or two checkpoints of one tree and size with two roots. Anybody
can check a proof, with nothing but its bytes. docs/design/ledger.md, F1.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from xsc.base.encoding import decode, encode
from xsc.base.errors import LimitError, PeerError, ProofInvalid
from xsc.identity.envelope import Signed
from xsc.ledger.checkpoint import Checkpoint, open_checkpoint
from xsc.ledger.entry import Half, open_half

FORK_BYTES_MAX = 2_048
"""At most 1 KiB, but of halves that were signed together with others, which have a path each."""
_INFLATED_BYTES_MAX = 8_192
_TEXT: bytes = b"xsc/"
"""A checkpoint begins with it, and no envelope does."""


@dataclass(frozen=True, slots=True)
class Fork:
    """What a proof shows."""

    author: bytes
    seq: int
    """The number of the halves, or the first one that is not under the two roots."""


def fork_bytes(one: bytes, other: bytes) -> bytes:
    """Return the proof that two halves or checkpoints are; deflated, as they repeat each other."""
    return zlib.compress(encode({"v": 1, "records": [*sorted([one, other])]}), 9)


def open_fork(raw: bytes, *, network: bytes | None) -> Fork:
    """Return what a proof shows.

    Raises:
        ProofInvalid: it shows nothing.
    """
    if len(raw) > FORK_BYTES_MAX:
        raise ProofInvalid("not the proof of a fork: it is too long")
    try:
        inflate = zlib.decompressobj()
        value = decode(inflate.decompress(raw, _INFLATED_BYTES_MAX))
        if not inflate.eof or inflate.unused_data or inflate.unconsumed_tail:
            raise ProofInvalid("not the proof of a fork: it is cut, or goes on")
        match value:
            case {"v": 1, "records": [bytes(one), bytes(other)], **rest} if not rest:
                return _shown(_opened(one, network), _opened(other, network))
    except (zlib.error, PeerError, LimitError) as fault:
        raise ProofInvalid(f"not the proof of a fork: {fault}") from None
    raise ProofInvalid("not the proof of a fork")


def _opened(raw: bytes, network: bytes | None) -> Signed[Half] | Checkpoint:
    if raw.startswith(_TEXT):
        return open_checkpoint(raw, network=network)
    return open_half(raw, network=network)


def _shown(one: Signed[Half] | Checkpoint, other: Signed[Half] | Checkpoint) -> Fork:
    match one, other:
        case (Checkpoint(), Checkpoint()) if one.contradicts(other):
            return Fork(one.author, one.first_seq + one.size)
        case (Signed(), Signed()) if (one.author, one.network, one.record.seq) == (
            other.author,
            other.network,
            other.record.seq,
        ) and one.id != other.id:
            return Fork(one.author, one.record.seq)
    raise ProofInvalid("these two do not contradict each other")
