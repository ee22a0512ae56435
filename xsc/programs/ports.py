"""What programs need of the node: its peers, its sandbox, and who signs provenance."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from xsc.programs.compile import CompiledProgram
from xsc.programs.frame import Call, Fault
from xsc.programs.provenance import Evaluation
from xsc.space.record import Entry
from xsc.terms.execution import Number


class Peers(Protocol):
    """Who is followed, and for what."""

    def watch(self, owner: bytes, prefix: str) -> None:
        """Follow a prefix of a peer until `unwatch`."""

    def unwatch(self, owner: bytes, prefix: str) -> None:
        """End one `watch`."""

    async def read(self, owner: bytes, path: str) -> Entry:
        """Return what is at a path of a peer, asked for there, or raise NotFound."""


class Sandbox(Protocol):
    """Runs exports of modules."""

    async def call(self, module: bytes, call: Call) -> tuple[tuple[Number, ...] | Fault, bytes]:
        """Return the results of an export, or why there are none, and the receipt if there is one.

        The run is bounded by the fuel, memory and time that the call names.
        """


class Recorder(Protocol):
    """Signs where outputs came from."""

    def record(
        self, program: CompiledProgram, evaluations: Sequence[Evaluation]
    ) -> Mapping[str, bytes]:
        """Return what is to be written together with the outputs, by path."""

    def forget(self, program: bytes) -> None:
        """Read again from the space what is kept: something was not written, or is gone."""


Start = Callable[[str, Callable[[], Awaitable[None]]], asyncio.Task[None]]
"""Runs a named loop in the background until its task is cancelled."""
