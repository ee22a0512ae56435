"""Jobs: the request and the result of one, and the evidence that this node keeps."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import field, fields
from typing import Annotated, Any, Unpack

from annotated_types import Ge, Le, Len, MaxLen

from xsc.api.endpoint import Endpoint, Id, Key, Model, Nothing, absent, get, listing, named
from xsc.api.problems import Fault, Problem
from xsc.base import errors, jobs, limits

Text = Annotated[str, MaxLen(65_536)]
Fuel = Annotated[int, Ge(1), Le(limits.FUEL_MAX)]


class Brought(Model):
    """A module that follows or is named, and what bounds its runs."""

    env: Annotated[dict[str, Text], MaxLen(1024)] = field(default_factory=dict)
    fuel: Fuel | None = None
    memory_bytes: Annotated[int, Ge(1), Le(limits.MEMORY_BYTES_MAX)] | None = None
    timeout_ms: Annotated[int, Ge(1), Le(limits.TIMEOUT_MS_MAX)] | None = None
    on: Annotated[str, MaxLen(256)] | None = None
    module: Annotated[str, Len(64, 64)] | None = None
    """SHA-256, in hexadecimal digits, of a module that the node has or that came lately, instead of
    its bytes; `module_bytes` is 0 then."""
    module_bytes: Annotated[int, Ge(0), Le(limits.MODULE_BYTES_MAX)]


class Job(Brought):
    """A job, in front of its module and its standard input."""

    mode: jobs.Mode
    function: Annotated[str, MaxLen(1024)] = "_start"
    arguments: Annotated[tuple[Text, ...], MaxLen(1024)] = ()
    inputs: Annotated[dict[str, str], MaxLen(limits.ARGUMENTS_MAX)] = field(default_factory=dict)
    wait_ms: Annotated[int, Ge(0), Le(limits.TIMEOUT_MS_MAX)] = limits.COMPUTE_WAIT_MS
    """How long it waits where other runs of this node at the provider hold the fuel it needs."""
    local: bool = False
    stdin_bytes: Annotated[int, Ge(0), Le(limits.STDIN_BYTES_MAX)] = 0
    """Of a batch: lines of arguments, parted by spaces."""
    item_fuel: Fuel | None = None
    """Of a batch: most fuel of one call."""
    verify: Annotated[str, MaxLen(16)] | None = None
    """How many of how many providers must agree: "2of3"."""
    grants: Annotated[tuple[jobs.Grant, ...], MaxLen(2)] = ()
    """What the program may see of the provider's world."""
    store: Annotated[str, MaxLen(1024)] | None = None
    """Store the files that a run leaves, named so and by their path."""

    def spec(self, module: bytes, stdin: bytes, **own: Unpack[jobs.JobOptions]) -> jobs.JobSpec:
        """Return the job, with the module and the standard input that came with it.

        Args:
            module: the WebAssembly binary.
            stdin: standard input, or the lines of a batch.
            own: what the node puts in the place of what the request says.
        """
        told = {name: getattr(self, name) for name in _SAID}
        return jobs.JobSpec(**{**told, **own, "module": module, "stdin": stdin})


_SAID = [
    each.name for each in fields(Job) if each.name not in {"module", "module_bytes", "stdin_bytes"}
]
"""What a request says as its job does."""


def request_of(spec: jobs.JobSpec, module: str | None, module_bytes: int) -> dict[str, Any]:
    """Return the fields of the request for a job.

    Args:
        spec: the job.
        module: its module's name, where it is not brought.
        module_bytes: how many bytes of it follow.
    """
    told = {name: getattr(spec, name) for name in _SAID}
    brought = {"module": module, "module_bytes": module_bytes, "stdin_bytes": len(spec.stdin)}
    return told | brought


class StoredFile(Model):
    """A file that a run left, as an object, or why it could not be stored."""

    path: str
    name: str
    capability: str
    size_bytes: int
    fault: Fault | None


class Called(Model):
    """What every call says."""

    fuel_used: int
    trap: Fault | None
    """What ended it before its end."""


class Ended(Called):
    """What every result says."""

    memory_peak_bytes: int
    wall_ms: int
    provider: str
    receipt: bytes
    saved_bytes: int
    compiled_bytes: int
    verification: jobs.Verification | None = absent(default=None)
    """Where several providers ran it."""
    objects: list[StoredFile] | None = absent(default=None)
    """Where its files were to be stored."""


class Invoked(Ended):
    """The result of a function."""

    results: tuple[str, ...]


class Item(Called):
    """One call of a batch."""

    results: tuple[str, ...]


class Batched(Ended):
    """The results of a batch."""

    items: list[Item]


class Ran(Ended):
    """The result of a program."""

    exit_code: int | None
    stdout: bytes
    stderr: bytes
    files: Mapping[str, bytes]


Result = Invoked | Batched | Ran


_SHOWN: Mapping[type, type[Model]] = {jobs.JobItem: Item, jobs.StoredOutput: StoredFile}


def _shown(value: object, kind: type[Model] | None = None) -> Any:  # noqa: ANN401 (as its type)
    """Return a part of a result as the API shows it; an error by its code and words."""
    if isinstance(value, errors.XscError):
        return Fault(code=value.code, detail=value.message, hint=value.hint)
    if isinstance(value, tuple):
        return [_shown(each) for each in value]
    kind = kind or _SHOWN.get(type(value))
    if kind is None:
        return value
    return kind(**{each.name: _shown(getattr(value, each.name)) for each in fields(kind)})  # type: ignore[arg-type]


def result_of(done: jobs.JobResult) -> Result:
    """Return a result as the API shows it: what jobs of its mode have."""
    result: Result = _shown(done, {"invoke": Invoked, "batch": Batched, "run": Ran}[done.mode])
    return result


class Line(Model):
    """One line of a program's output, its result, or why there is none."""

    stdout: bytes | None = absent(default=None)
    stderr: bytes | None = absent(default=None)
    result: Result | None = absent(default=None)
    problem: Problem | None = absent(default=None)


class Evidence(Model):
    """Two receipts of one computation that say something else."""

    id: Key
    found_ms: int
    module: str
    function: str
    first: Key
    """The provider that was believed, where one was."""
    first_name: str = named("first")
    second: Key
    second_name: str = named("second")
    differs: tuple[str, ...]
    """The fields of the outcome in which the two differ."""


RUN: Endpoint[Job, Result] = Endpoint("POST", "/v1/jobs", Job, Result, "Run a job.", takes="framed")
STREAM = Endpoint(
    "POST", "/v1/jobs/stream", Job, Line, "Show a program's output.", takes="framed", gives="lines"
)
EVIDENCE = listing("/v1/compute/evidence", Nothing, Evidence, "List contradictory receipts.")
EVIDENCE_RECORD = get(
    "/v1/compute/evidence/{id}", Id, bytes, "Return a record of evidence.", gives="cbor"
)


def read_result(mode: jobs.Mode, document: Mapping[str, Any]) -> jobs.JobResult:
    """Return the result of a document of the API for a job of that mode."""
    told = {**_tuples(document), "trap": _error(document["trap"])}
    told["receipt"] = b64decode(told["receipt"])
    if mode == "batch":
        told["items"] = tuple(
            jobs.JobItem(
                tuple(row["results"]), row["fuel_used"], _error(row["trap"]), told["receipt"]
            )
            for row in told["items"]
        )
    elif mode == "run":
        told |= {name: b64decode(told[name]) for name in ("stdout", "stderr")}
        told["files"] = {path: b64decode(data) for path, data in told["files"].items()}
    if "verification" in told:
        agreed = _tuples(told["verification"])
        agreed["receipts"] = tuple(map(b64decode, agreed["receipts"]))
        told["verification"] = jobs.Verification(**agreed)
    if "objects" in told:
        rows = told["objects"]
        told["objects"] = tuple(
            jobs.StoredOutput(**{**row, "fault": _error(row["fault"])}) for row in rows
        )
    return jobs.JobResult(mode=mode, **told)


def _tuples(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document whose lists are tuples again."""
    return {name: tuple(it) if isinstance(it, list) else it for name, it in told.items()}


def _error(told: Mapping[str, str] | None) -> errors.XscError | None:
    return None if told is None else errors.from_code(told["code"], told["detail"], told["hint"])
