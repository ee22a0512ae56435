"""What the pool and its workers say to each other: length-prefixed canonical CBOR.

    pool → worker   job, with code where the worker has not got it; code where it asks for
                    it, or that there is none. Its bytes lie in the worker's mailbox
    worker → pool   hello once; then code wanted where it has forgotten it, "running" when
                    it is loaded, and at last result or error, for each job
    pool → worker   calls, several in one message; worker → pool   for each an answer (a
                    result where there is more to tell), an error, or code wanted
    pool → jail     module;  jail → pool   hello, then code or error

The pool believes a worker's frames no more than a peer's: they are decoded
strictly, because a program that breaks out of the engine could write them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from xsc.base.encoding import Value, decode, encode
from xsc.base.errors import RecordInvalid, XscError, from_code
from xsc.base.fields import take_bytes, take_int, take_list, take_str
from xsc.base.jobs import Grant, Mode
from xsc.base.limits import (
    ARGUMENTS_MAX,
    OUTPUT_BYTES_MAX,
    OUTPUT_FILES_MAX,
    OUTPUT_PATH_BYTES_MAX,
    WORKER_FRAME_BYTES_MAX,
)
from xsc.compute.wasm.inputs import is_output_path
from xsc.compute.wasm.limits import Limits
from xsc.compute.wasm.sandbox import Bits, Job, SandboxResult

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


def job_message(
    job: Job, *, stream: bool = False, code: dict[str, Value] | None = None
) -> dict[str, Value]:
    """Return a job as a message; its module stays here.

    Args:
        code: what announces its code, which the worker has not got and finds in its mailbox.
    """
    limits = job.limits
    return {
        "kind": "job",
        "hash": job.module_hash,
        "mode": job.mode,
        "function": job.function,
        "arguments": _pairs(job.arguments),
        "args": list(job.args),
        "environment": _pairs(job.environment),
        "stdin": job.stdin,
        "files": _pairs(job.files),
        "limits": [limits.fuel, limits.memory_bytes, limits.timeout_ms, limits.output_bytes],
        "seed": job.seed,
        "clock": job.clock_ms,
        "grants": list(job.grants),
        "stream": stream,
        "code": code,
    }


def job_of(message: dict[str, Value]) -> Job:
    """Return the job of the pool's own message, without its module.

    Only a worker reads this, and only from the pool: the shape is not checked again.
    """
    fields = cast("dict[str, object]", message)
    fuel, memory_bytes, timeout_ms, output_bytes = cast("list[int]", fields["limits"])
    return Job(
        module_hash=cast("bytes", fields["hash"]),
        module=b"",
        mode=cast("Mode", fields["mode"]),
        function=cast("str", fields["function"]),
        arguments=tuple((kind, bits) for kind, bits in cast("list[Bits]", fields["arguments"])),
        args=tuple(cast("list[str]", fields["args"])),
        environment=tuple(
            (name, text) for name, text in cast("list[tuple[str, str]]", fields["environment"])
        ),
        stdin=cast("bytes", fields["stdin"]),
        files=tuple((name, data) for name, data in cast("list[Bits]", fields["files"])),
        limits=Limits(fuel, memory_bytes, timeout_ms, output_bytes),
        seed=cast("bytes", fields["seed"]),
        clock_ms=cast("int", fields["clock"]),
        grants=tuple(cast("list[Grant]", fields["grants"])),
    )


def may_call(job: Job) -> bool:
    """Say whether a job is no more than a call with numbers, which `calls_message` carries."""
    return job.mode == "invoke" and not (job.stdin or job.files or job.args or job.environment)


def calls_message(jobs: Sequence[Job]) -> dict[str, Value]:
    """Return several calls as one message."""
    return {
        "kind": "calls",
        "calls": [
            [
                job.module_hash,
                job.function,
                _pairs(job.arguments),
                job.limits.fuel,
                job.limits.memory_bytes,
                job.limits.timeout_ms,
                job.limits.output_bytes,
                job.seed,
                job.clock_ms,
                list(job.grants),
            ]
            for job in jobs
        ],
    }


def calls_of(message: dict[str, Value]) -> list[Job]:
    """Return the jobs of the pool's own message, as `job_of` does."""
    jobs = []
    for item in cast("list[list[object]]", message["calls"]):
        module_hash, function, arguments, *limits, seed, clock_ms, grants = item
        jobs.append(
            Job(
                module_hash=cast("bytes", module_hash),
                module=b"",
                function=cast("str", function),
                arguments=tuple((kind, bits) for kind, bits in cast("list[Bits]", arguments)),
                limits=Limits(*cast("list[int]", limits)),
                seed=cast("bytes", seed),
                clock_ms=cast("int", clock_ms),
                grants=tuple(cast("list[Grant]", grants)),
            )
        )
    return jobs


def answer_message(result: SandboxResult) -> dict[str, Value]:
    """Return the result of a call as a message: a short one, where nothing was written."""
    if result.stdout or result.stderr or result.files or result.exit_code is not None:
        return result_message(result)
    return {
        "kind": "answer",
        "told": [
            _pairs(result.results),
            result.trap,
            result.fuel_used,
            result.memory_peak_bytes,
            result.wall_ms,
        ],
    }


def result_of_answer(
    message: dict[str, Value], job: Job, engine: str, engine_config: bytes
) -> SandboxResult:
    """Return the result that a short answer tells, held against the job's limits.

    Raises:
        RecordInvalid: it is malformed, or says that a limit was passed.
    """
    match message.get("told"):
        case [list(results), str() | None as trap, int(fuel), int(memory), int(wall_ms)]:
            if (
                len(results) > ARGUMENTS_MAX
                or not 0 <= fuel <= job.limits.fuel
                or not 0 <= memory <= job.limits.memory_bytes
                or wall_ms < 0
            ):
                raise RecordInvalid("a worker reports more than the job allows")
            return SandboxResult(
                tuple(map(named_bytes, results)),
                None,
                trap,
                fuel,
                memory,
                b"",
                b"",
                (),
                engine,
                engine_config,
                wall_ms,
            )
    raise RecordInvalid("a worker's answer is malformed")


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
        "results": _pairs(result.results),
        "exit_code": result.exit_code,
        "trap": result.trap,
        "fuel": result.fuel_used,
        "memory": result.memory_peak_bytes,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "files": _pairs(result.files),
        "engine": result.engine,
        "config": result.engine_config,
        "wall": result.wall_ms,
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


def result_of(message: dict[str, Value], job: Job) -> SandboxResult:
    """Return the result that a worker reports, held against the job's limits.

    Raises:
        RecordInvalid: it is malformed, or says that a limit was passed.
    """
    code = message.get("exit_code")
    trap = message.get("trap")
    files = tuple(named_bytes(item) for item in take_list(message, "files", most=OUTPUT_FILES_MAX))
    result = SandboxResult(
        results=tuple(
            named_bytes(item) for item in take_list(message, "results", most=ARGUMENTS_MAX)
        ),
        exit_code=None if code is None else take_int(message, "exit_code", most=2**32 - 1),
        trap=None if trap is None else take_str(message, "trap"),
        fuel_used=take_int(message, "fuel", most=job.limits.fuel),
        memory_peak_bytes=take_int(message, "memory", most=job.limits.memory_bytes),
        stdout=take_bytes(message, "stdout"),
        stderr=take_bytes(message, "stderr"),
        files=files,
        engine=take_str(message, "engine"),
        engine_config=take_bytes(message, "config", size=32),
        wall_ms=take_int(message, "wall"),
    )
    output = len(result.stdout) + len(result.stderr) + sum(len(data) for _, data in files)
    if output > min(job.limits.output_bytes, OUTPUT_BYTES_MAX):
        raise RecordInvalid("a worker reports more output than the job allows")
    names = [name for name, _ in files]
    if not all(map(is_output_path, names)) or names != sorted(set(names)):
        raise RecordInvalid("a worker reports a file that no program can have left")
    return result
