"""A job as its customer asks for it, and its result: the same two values in every layer.

The command line and the client make a `JobSpec`, the API carries it, the node fills in its
own defaults, and the compute service runs it and returns a `JobResult`. The JSON forms of
both are in `xsc.api.jobs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self, TypedDict, Unpack

from xsc.base.errors import ArgumentInvalid, XscError
from xsc.base.limits import COMPUTE_WAIT_MS

Mode = Literal["invoke", "run", "batch"]
Grant = Literal["clock", "random"]
"""The real time, or random bytes of the provider's system."""


class LimitOptions(TypedDict, total=False):
    """The limits of one run; the node's own default where one is None or left out."""

    fuel: int | None
    """Most fuel; for a batch, of all calls together."""
    memory_bytes: int | None
    """Most linear memory; for a batch, of each call."""
    timeout_ms: int | None
    """Most wall time; for a batch, of all calls together."""


class JobOptions(LimitOptions, total=False):
    """What can be asked of every job, whatever its mode."""

    on: str | None
    """The node that must run it, by name, id or the beginning of its id."""
    wait_ms: int
    """How long it waits where other runs of this node at the provider hold the fuel it needs."""
    local: bool
    """Run it on this node: ask nobody, pay nothing."""
    grants: tuple[Grant, ...]
    """What the program may see of the provider's world; such a run cannot be verified."""
    verify: str | None
    """How many of how many providers must agree, for example "2of3"; not for a batch."""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One job. Make it with `invoke`, `run` or `batch`.

    Raises:
        ArgumentInvalid: two of its options exclude each other.
    """

    mode: Mode
    module: bytes = field(repr=False)
    """The WebAssembly binary."""
    function: str = "_start"
    arguments: tuple[str, ...] = ()
    """The numbers of an `invoke`, the arguments of a `run`."""
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = field(default=b"", repr=False)
    """Standard input; for a batch, one line of arguments for each call."""
    inputs: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Stored objects that the program reads as files: file name to capability."""
    fuel: int | None = None
    memory_bytes: int | None = None
    timeout_ms: int | None = None
    output_bytes: int | None = None
    """Most output; the API always leaves it at its default."""
    item_fuel: int | None = None
    """Most fuel of one call of a batch; all of the fuel where None."""
    on: str | None = None
    wait_ms: int = COMPUTE_WAIT_MS
    """How long it may wait for fuel; this does not count towards `timeout_ms`."""
    local: bool = False
    grants: tuple[Grant, ...] = ()
    verify: str | None = None
    store: str | None = None
    """Store the files that a run leaves as objects: this prefix and the file's path name them."""

    def __post_init__(self) -> None:
        if self.on is not None and self.local:
            raise ArgumentInvalid("a job cannot both run here and on a named node")
        if self.store is not None and self.mode != "run":
            raise ArgumentInvalid("a program leaves files, and a function none")
        if self.verify is None:
            return
        if self.mode == "batch":
            raise ArgumentInvalid("a batch is run by one provider", hint="leave verify out")
        if self.on is not None or self.local:
            raise ArgumentInvalid("several providers verify a job, and not one that is named")
        if self.grants:
            raise ArgumentInvalid("a job that sees the real time or chance cannot be verified")

    @classmethod
    def invoke(
        cls,
        module: bytes,
        function: str,
        arguments: Sequence[str] = (),
        **options: Unpack[JobOptions],
    ) -> Self:
        """Return a job that calls one export; its signature says how arguments are read."""
        return cls("invoke", module, function, tuple(arguments), **options)

    @classmethod
    def batch(
        cls,
        module: bytes,
        function: str,
        lines: bytes,
        item_fuel: int | None = None,
        **options: Unpack[JobOptions],
    ) -> Self:
        """Return a job that calls one export for each line of arguments, under one order."""
        return cls("batch", module, function, stdin=lines, item_fuel=item_fuel, **options)

    @classmethod
    def run(  # noqa: PLR0917 - what a program is given
        cls,
        module: bytes,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        inputs: Mapping[str, str] | None = None,
        store: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Self:
        """Return a job that runs a WASI program; `arguments` do not name the program itself."""
        return cls(
            "run",
            module,
            arguments=tuple(arguments),
            env=env or {},
            stdin=stdin,
            inputs=inputs or {},
            store=store,
            **options,
        )


@dataclass(frozen=True, slots=True)
class JobItem:
    """The result of one call of a batch."""

    results: tuple[str, ...]
    fuel_used: int
    trap: XscError | None
    """Why the call did not end normally."""
    receipt: bytes = field(repr=False)
    """The signed receipt of the whole batch."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Which of several providers agreed on a job; nodes by their ids as text."""

    need: int
    of: int
    agreeing: tuple[str, ...]
    dissenting: tuple[str, ...]
    uncounted: tuple[str, ...]
    """Nothing confirms or contradicts their receipts: another engine, or out of time."""
    silent: tuple[str, ...]
    """They returned no valid receipt."""
    receipts: tuple[bytes, ...]
    """Of the agreeing providers, in their order."""
    evidence: tuple[str, ...]
    """Ids of the records kept against the dissenting providers."""


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """A file that a run left, stored as an object, or the reason why it could not be."""

    path: str
    name: str
    capability: str
    size_bytes: int
    fault: XscError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """The result of a job. The receipt proves all of it but the text form of numbers."""

    mode: Mode
    results: tuple[str, ...] = ()
    """Of an `invoke`."""
    items: tuple[JobItem, ...] = ()
    """Of a batch, one a call, in order; none where the batch as a whole was ended."""
    exit_code: int | None = None
    """Of a `run` that was not ended before its end."""
    stdout: bytes = b""
    stderr: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """What the program wrote to /out, by path."""
    fuel_used: int
    memory_peak_bytes: int
    wall_ms: int
    provider: str
    """Id of the node that ran it, as text."""
    trap: XscError | None = None
    """The error to raise, where the job was ended before its end."""
    receipt: bytes = field(repr=False)
    """The signed execution receipt, which `xsc verify` checks."""
    saved_bytes: int
    """How much of module and input the provider did not have to receive."""
    compiled_bytes: int
    """The module's size, where compiling it is billed as well."""
    verification: Verification | None = None
    """Where several providers ran it."""
    objects: tuple[StoredOutput, ...] | None = None
    """Where the job asked to store its files."""
