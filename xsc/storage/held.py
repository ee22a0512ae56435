"""What is asked of a host about what it holds, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from xsc.storage.erasure import Buffer

HeldState: TypeAlias = Literal["ok", "missing", "corrupt"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A shard that somebody asks for."""

    segment: int
    column: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """What became of it: `data` is there exactly where the state is "ok"."""

    state: HeldState
    data: Buffer | None = None


@dataclass(frozen=True, slots=True)
class HeldColumn:
    """What a host holds of one column of an object, for one customer."""

    customer: bytes
    column: int
    segments: int
    digest: bytes
    damaged: int
    """How many of the segments are known not to have their root any more."""


@dataclass(frozen=True, slots=True)
class HeldObject:
    """What a host holds of an object."""

    columns: tuple[HeldColumn, ...]
    record: HeldState


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """The sealed manifest that was asked for, and every placement kept with it."""

    sealed: Buffer
    placements: tuple[bytes, ...]
