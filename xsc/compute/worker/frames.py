"""What the pool and its workers say to each other: length-prefixed canonical CBOR.

    pool → worker   jobs; one alone with its code, whose bytes lie in the worker's mailbox
    worker → pool   hello once; then for each job "running" where code came and was loaded,
                    what it writes where that is asked for, and at last result, error, or
                    code wanted where the worker has forgotten it
    pool → jail     module;  jail → pool   hello, then code or error

The pool believes a worker's frames no more than a peer's: they are decoded
strictly, because a program that breaks out of the engine could write them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import RecordInvalid, XscError, from_code
from xsc.base.fields import take_bytes, take_int
from xsc.base.limits import (
    ARGUMENTS_MAX,
    OUTPUT_BYTES_MAX,
    OUTPUT_FILES_MAX,
    OUTPUT_PATH_BYTES_MAX,
    WORKER_FRAME_BYTES_MAX,
)
from xsc.compute.wasm.inputs import is_output_path
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.sandbox import Job, SandboxResult

PREFIX_BYTES = 4


def to_frame(value: dict[str, Value]) -> bytes:
    """Return the bytes of a message, with their length before them."""
    raw = encode(value)
    return len(raw).to_bytes(PREFIX_BYTES, "big") + raw


def length_of(prefix: bytes) -> int:
    """Return the length that a prefix announces.

    Raises:
        RecordInvalid: over the bound.
    """
    length = int.from_bytes(prefix, "big")
    if length > WORKER_FRAME_BYTES_MAX:
        raise RecordInvalid(f"a frame of {length} bytes is over its bound")
    return length


def from_frame(raw: bytes) -> dict[str, Value]:
    """Return the message of a frame's bytes, without their prefix.

    Raises:
        RecordInvalid: not a canonical map.
    """
    value = decode(raw, size_max=WORKER_FRAME_BYTES_MAX)
    if not isinstance(value, dict):
        raise RecordInvalid("a frame must be a map")
    return value


def _pairs(items: tuple[tuple[str, str], ...] | tuple[tuple[str, bytes], ...]) -> list[Value]:
    return [[name, value] for name, value in items]


def hello_message(engine: str, config: bytes, report: Mapping[str, int]) -> dict[str, Value]:
    """Return what a process says first: what it is, and what it gave up."""
    return {"kind": "hello", "engine": engine, "config": config, "confined": dict(report)}


def error_message(error: XscError) -> dict[str, Value]:
    """Return an error as a message."""
    return {"kind": "error", "code": error.code, "message": error.message, "hint": error.hint}


def error_of(message: dict[str, Value]) -> XscError:
    """Return the error that a process reports."""
    code, text = message.get("code"), message.get("message")
    return from_code(str(code), str(text), str(message.get("hint", "")))


def jobs_message(
    jobs: Sequence[Job], *, stream: bool = False, code: dict[str, Value] | None = None
) -> dict[str, Value]:
    """Return jobs as a message; their modules stay here.

    Args:
        jobs: several only where they are calls that the worker has the code for.
        stream: whether the worker tells what the program writes.
        code: what announces the code of the one job's module, which lies in the mailbox.
    """
    return {"kind": "jobs", "jobs": list(map(_job_value, jobs)), "stream": stream, "code": code}


def _job_value(job: Job) -> list[Value]:
    limits = job.limits
    return [
        job.module_hash,
        job.mode,
        job.function,
        _pairs(job.arguments),
        list(job.args),
        _pairs(job.environment),
        job.stdin,
        _pairs(job.files),
        [limits.fuel, limits.memory_bytes, limits.timeout_ms, limits.output_bytes],
        job.seed,
        job.clock_ms,
        list(job.grants),
    ]


def jobs_of(message: dict[str, Value]) -> list[Job]:
    """Return the jobs of the pool's own message, without their modules.

    Only a worker reads this, and only from the pool: the shape is not checked again.
    """
    return [_job_of(cast("list[Any]", item)) for item in cast("list[Value]", message["jobs"])]


def _job_of(item: list[Any]) -> Job:
    module_hash, mode, function, arguments, args, environment, stdin, files, limits, *rest = item
    seed, clock_ms, grants = rest
    return Job(
        module_hash=module_hash,
        module=b"",
        mode=mode,
        function=function,
        arguments=_tuples(arguments),
        args=tuple(args),
        environment=_tuples(environment),
        stdin=stdin,
        files=_tuples(files),
        limits=Limits(*limits),
        seed=seed,
        clock_ms=clock_ms,
        grants=tuple(grants),
    )


def _tuples(pairs: list[list[Any]]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in pairs)


def may_call(job: Job) -> bool:
    """Say whether a job is a call with numbers alone, which may be sent with others."""
    return job.mode == "invoke" and not (job.stdin or job.files or job.args or job.environment)


def output_message(stream: int, data: bytes) -> dict[str, Value]:
    """Return what a program wrote as a message, before its result."""
    return {"kind": "output", "stream": stream, "data": data}


def output_of(message: dict[str, Value]) -> tuple[int, bytes]:
    """Return the stream, 1 or 2, and what was written to it.

    Raises:
        RecordInvalid: malformed.
    """
    stream = take_int(message, "stream", most=2)
    if stream < 1:
        raise RecordInvalid("a worker reports output on no stream")
    return stream, take_bytes(message, "data")


def result_message(result: SandboxResult) -> dict[str, Value]:
    """Return a result as a message."""
    return {
        "kind": "result",
        "told": [
            _pairs(result.results),
            result.exit_code,
            result.trap,
            [result.fuel_used, result.memory_peak_bytes, result.wall_ms],
            [result.stdout, result.stderr],
            _pairs(result.files),
        ],
    }


def named_bytes(value: Value) -> tuple[str, bytes]:
    """Return a name, or a type, and its bytes.

    Raises:
        RecordInvalid: it is no such pair.
    """
    match value:
        case [str(name), bytes(data)] if len(name) <= OUTPUT_PATH_BYTES_MAX:
            return name, data
    raise RecordInvalid("a worker reports something that is no named bytes")


def result_of(
    message: dict[str, Value], job: Job, engine: str, engine_config: bytes
) -> SandboxResult:
    """Return the result that a worker reports, held against the job's limits.

    Raises:
        RecordInvalid: it is malformed, or says that a limit was passed.
    """
    match message.get("told"):
        case [
            list(results),
            int() | None as code,
            str() | None as trap,
            [int(fuel), int(memory_bytes), int(wall_ms)],
            [bytes(stdout), bytes(stderr)],
            list(files),
        ]:
            pass
        case _:
            raise RecordInvalid("a worker's result is malformed")
    left = tuple(map(named_bytes, files))
    size = len(stdout) + len(stderr) + sum(len(data) for _, data in left)
    if (
        bool in map(type, (code, fuel, memory_bytes, wall_ms))
        or len(results) > ARGUMENTS_MAX
        or not 0 <= (code or 0) < 2**32
        or not 0 <= fuel <= job.limits.fuel
        or not 0 <= memory_bytes <= job.limits.memory_bytes
        or wall_ms < 0
        or len(left) > OUTPUT_FILES_MAX
        or size > min(job.limits.output_bytes, OUTPUT_BYTES_MAX)
    ):
        raise RecordInvalid("a worker reports more than the job allows")
    names = [name for name, _ in left]
    if not all(map(is_output_path, names)) or names != sorted(set(names)):
        raise RecordInvalid("a worker reports a file that no program can have left")
    return SandboxResult(
        tuple(map(named_bytes, results)),
        code,
        trap,
        fuel,
        memory_bytes,
        stdout,
        stderr,
        left,
        engine,
        engine_config,
        wall_ms,
    )
