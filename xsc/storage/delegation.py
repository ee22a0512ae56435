"""Who may say where an object lies: its owner, and whom the owner's placement names.

An owner's placement names a *delegate*, a public key whose private half follows
from the verify key. Whoever holds the verify capability may sign *repaired
placements* with it: the owner's signed placement, whole, how many repairs came
since, and the columns. Everything else stays what the owner said. So hosts and
readers check it with the owner's key alone, and nobody needs to trust who repaired.

Placements are ordered by rank: the owner's count first, then the repairs. A
repair can therefore never outlast the owner's next word, whatever number it bears.
Vectors: tests/vectors/delegation.json.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from pydantic import Field

from xsc.base.errors import RecordInvalid, SignatureInvalid, XscError
from xsc.base.limits import SHARDS_MAX
from xsc.identity.envelope import (
    Id32,
    Record,
    Signed,
    kind_of,
    open_signed,
    read_claimed,
    sign,
)
from xsc.identity.keys import KeyPair
from xsc.storage.placement import Placement

_REPAIR_BITS: Final = 20
REPAIRS_MAX: Final = 2**_REPAIR_BITS - 1
"""Repairs after one owner's placement; the owner's next one counts from 0 again."""
GENERATION_MAX: Final = 2 ** (63 - _REPAIR_BITS) - 1


class RepairedPlacement(Record):
    """Signed by the delegate: after these repairs, these nodes hold the object."""

    KIND: ClassVar[str] = "repaired_placement"

    base: bytes
    """The owner's signed placement, whole: what is delegated, and to whom."""
    repairs: Annotated[int, Field(ge=1, le=REPAIRS_MAX)]
    columns: Annotated[tuple[Id32, ...], Field(min_length=1, max_length=SHARDS_MAX)]


@dataclass(frozen=True, slots=True)
class Placed:
    """A placement that was checked, whoever signed it."""

    placement: Placement
    """The owner's, with the columns of the last repair."""
    raw: bytes
    id: bytes
    base: bytes
    """The owner's signed placement."""
    repairs: int

    @property
    def rank(self) -> int:
        """The highest one counts."""
        return rank_of(self.placement.generation, self.repairs)


def rank_of(generation: int, repairs: int = 0) -> int:
    """Return the one number by which placements are ordered."""
    return generation << _REPAIR_BITS | repairs


def open_placement(raw: bytes, network: bytes, owner: bytes | None = None) -> Placed:
    """Return a signed placement, once everything about it was checked.

    Args:
        raw: by the owner or by the delegate that the owner named.
        network: the network that it must be of.
        owner: whose object it must be; None takes any, the caller decides.

    Raises:
        TooLarge, RecordInvalid: not a placement.
        SignatureInvalid: by neither of them.
    """
    raw = bytes(raw)
    if kind_of(raw) == RepairedPlacement.KIND:
        return _open_repaired(raw, network, owner)
    return _open_owned(raw, network, owner)


def open_sent(raw: bytes, network: bytes, sender: bytes, sealed: Collection[bytes] = ()) -> Placed:
    """Return a placement as `open_placement`; what the owner signed must come from the owner.

    Args:
        raw: by the owner or by the delegate that the owner named.
        network: the network that it must be of.
        sender: who sent it.
        sealed: the ids of placements for which the sender's word was verified already
            (`xsc.storage.placement_seal`): the signature of those is not verified again.
    """
    raw = bytes(raw)
    if kind_of(raw) == RepairedPlacement.KIND:
        return _open_repaired(raw, network, None)
    if sealed:
        claimed = read_claimed(raw, Placement, network=network, author=sender)
        if claimed.id in sealed:
            return _placed(claimed)
    return _open_owned(raw, network, sender)


def valid_placements(raws: Iterable[bytes], network: bytes) -> list[Placed]:
    """Return those of some kept placements that hold; what a customer had sealed may not."""
    valid = []
    for raw in raws:
        try:
            valid.append(open_placement(raw, network))
        except XscError:
            continue
    return valid


def _open_owned(raw: bytes, network: bytes, owner: bytes | None) -> Placed:
    return _placed(open_signed(raw, Placement, network=network, author=owner))


def _placed(signed: Signed[Placement]) -> Placed:
    _check_owner(signed.record, signed.author)
    return Placed(signed.record, signed.raw, signed.id, signed.raw, 0)


def _open_repaired(raw: bytes, network: bytes, owner: bytes | None) -> Placed:
    repaired = open_signed(raw, RepairedPlacement, network=network)
    base = open_signed(repaired.record.base, Placement, network=network, author=owner)
    _check_owner(base.record, base.author)
    if base.record.delegate != repaired.author:
        raise SignatureInvalid("the repaired placement is not by the delegate of its owner")
    if len(repaired.record.columns) != len(base.record.columns):
        raise RecordInvalid("the repaired placement has other columns than its owner's")
    placement = base.record.model_copy(update={"columns": repaired.record.columns})
    return Placed(placement, raw, repaired.id, base.raw, repaired.record.repairs)


def _check_owner(placement: Placement, author: bytes) -> None:
    if placement.owner != author:
        raise RecordInvalid("the placement is signed by another node than the owner it names")
    if placement.generation > GENERATION_MAX:
        raise RecordInvalid("the placement's generation is above its bound")


def move_by_owner(
    now: Placed, columns: Sequence[bytes], key: KeyPair, delegate: bytes, network: bytes
) -> bytes:
    """Return the owner's next signed placement."""
    placement = now.placement.model_copy(
        update={
            "generation": now.placement.generation + 1,
            "columns": tuple(columns),
            "delegate": delegate,
        }
    )
    return sign(placement, key, network).raw


def move_by_delegate(
    now: Placed, columns: Sequence[bytes], delegate: KeyPair, network: bytes
) -> bytes:
    """Return the signed placement after one more repair.

    Raises:
        SignatureInvalid: the owner named nobody, or another key.
        RecordInvalid: so often was it repaired that the owner must say something first.
    """
    if now.placement.delegate != delegate.node_id:
        raise SignatureInvalid("the owner has not delegated the repair of this object")
    if now.repairs >= REPAIRS_MAX:
        raise RecordInvalid("the object was repaired too often since its owner last placed it")
    repaired = RepairedPlacement(base=now.base, repairs=now.repairs + 1, columns=tuple(columns))
    return sign(repaired, delegate, network).raw
