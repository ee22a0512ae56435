"""An order for one run of a WebAssembly program, and the receipt for it (docs/design/compute.md).

The customer signs the order, the provider signs the receipt over it. `outcome`
holds what a second run must reproduce bit for bit, `observed` what it cannot.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from xsc.base import jobs, limits
from xsc.base.numerals import WIDTHS
from xsc.identity.envelope import Count, Id32, Record

Text = Annotated[str, Field(max_length=1024)]
NumberType = Literal["i32", "i64", "f32", "f64"]


class Number(Record):
    """A WebAssembly number as its raw bits, so that a NaN keeps its payload."""

    type: NumberType
    bits: Annotated[bytes, Field(min_length=4, max_length=8)]
    """Little-endian, four or eight bytes by type."""

    @model_validator(mode="after")
    def _width(self) -> Number:
        if len(self.bits) != WIDTHS[self.type]:
            raise ValueError(f"{self.type} has {WIDTHS[self.type]} bytes")
        return self


class Order(Record):
    """Signed by the customer: run this, within these limits, under that lease."""

    nonce: Annotated[bytes, Field(min_length=16, max_length=16)]
    lease_id: Id32
    customer: Id32
    provider: Id32
    module: Id32
    """SHA-256 of the module's bytes."""
    mode: jobs.Mode
    """`invoke` calls an export with numbers; `run` runs a WASI command's `_start`; `batch`
    calls an export for each row of a table, which is bound by `input`."""
    function: Text
    arguments: Annotated[tuple[Number, ...], Field(max_length=limits.ARGUMENTS_MAX)]
    input: Id32
    """Tagged hash of what a `run` is given (arguments, environment, stdin, files)."""
    fuel_max: Annotated[int, Field(gt=0, le=limits.FUEL_MAX)]
    memory_bytes_max: Annotated[int, Field(gt=0, le=limits.MEMORY_BYTES_MAX)]
    timeout_ms: Annotated[int, Field(gt=0, le=limits.TIMEOUT_MS_MAX)]
    created_ms: Count
    grants: tuple[jobs.Grant, ...]
    """What the program may see of the provider's world, in alphabetical order: no second run
    can repeat it then."""
    given_bytes: Count
    """Module and input together, in bytes: what the provider would receive that has none of it.
    0 in orders to the own node."""

    @model_validator(mode="after")
    def _granted_once(self) -> Order:
        if list(self.grants) != sorted(set(self.grants)):
            raise ValueError("the grants are not in order, or one is there twice")
        return self


class Outcome(Record):
    """What a run of the same order on the same engine gives again."""

    module: Id32
    mode: jobs.Mode
    function: Text
    arguments: Annotated[tuple[Number, ...], Field(max_length=limits.ARGUMENTS_MAX)]
    input: Id32
    results: Annotated[tuple[Number, ...], Field(max_length=limits.ARGUMENTS_MAX)]
    output: Id32
    """Tagged hash of what a `run` gave back (stdout, stderr, files), or of the Merkle root over
    the rows of a `batch` and of its traps."""
    exit_code: Annotated[int, Field(ge=0, lt=2**32)] | None
    """The exit code of a `run`; None where it did not come to one."""
    trap: Text | None
    """None, or the error's code ("fuel_exhausted") or "module_trapped: <reason>"."""
    fuel_used: Count
    memory_peak_bytes: Count
    engine: Text
    """Engine and version, for example "wasmtime-py/50.0.1"."""
    engine_config: Id32
    """Hash of the engine's configuration: fuel is comparable only where it is equal."""


class Observed(Record):
    """What the provider saw and no second run must see."""

    started_ms: Count
    wall_ms: Count
    saved_bytes: Count
    """How much of the order's `given_bytes` the provider did not have to receive from anybody."""
    compiled_bytes: Count
    """The module's size, where this order brought it and it had to be compiled: that is billed."""
    calls: Annotated[int, Field(ge=0, le=limits.BATCH_ITEMS_MAX)]
    """The calls of a batch, each of which is billed beside its fuel; 0 for another job."""


class ServiceRequest(Record):
    """What makes an order of a deployment: one request of the service, as its holder ran it."""

    lease_id: Id32
    nonce: Annotated[bytes, Field(min_length=16, max_length=16)]
    """In text the request's id."""
    created_ms: Count


class ExecutionReceipt(Record):
    """Signed by the provider over the customer's signed order, or its standing order."""

    order: bytes
    """The customer's signed order, whole; or the signed deployment that stands for it."""
    request: ServiceRequest | None
    """Where that is a deployment."""
    outcome: Outcome
    observed: Observed
    amount_micro: Count
    """The price of this run under the lease."""


class Dissent(Record):
    """Signed by the customer that gave both orders, which differ in provider and lease alone."""

    customer: Id32
    first: bytes
    """The signed execution receipt of one provider, whole."""
    second: bytes
    """Of another: same engine and configuration, another outcome."""
    found_ms: Count
