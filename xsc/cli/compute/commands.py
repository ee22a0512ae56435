"""xsc compute: WebAssembly functions and programs, run in a sandbox and billed by fuel.

Where no node runs at the home, the same sandbox runs in this process; that is
said on standard error, because nobody is then paid and nobody else attests it.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import click

from xsc.api import serial
from xsc.api.jobs import result_of
from xsc.base.errors import EXIT_INTERRUPTED, EXIT_PARTLY, ArgumentInvalid
from xsc.base.jobs import JobOptions, JobResult, JobSpec, Verification
from xsc.base.limits import STDIN_BYTES_MAX
from xsc.base.units import format_size
from xsc.cli.compute import deployments
from xsc.cli.compute.evidence import evidence
from xsc.cli.compute.reexecute import verify
from xsc.cli.options import (
    INPUT,
    MODULE,
    PAIR,
    PATH,
    PROGRAM_EXIT_BASE,
    WHOLE,
    Group,
    ProgramCommand,
    Settings,
    job_options,
    table_of,
)
from xsc.cli.output import say, short, show, show_json, warn
from xsc.client.calls import Show, read_bounded, read_file, read_module
from xsc.client.core import Document
from xsc.client.files import check_target, make_directory, place_in, write_whole
from xsc.client.targets import Named, one_object

_NUMBER = re.compile(r"-(\.?[0-9]|inf|nan).*", re.IGNORECASE | re.DOTALL)
EXIT_MAX = 255
_LIKE_OURS = (*range(PROGRAM_EXIT_BASE, PROGRAM_EXIT_BASE + EXIT_PARTLY + 1), EXIT_INTERRUPTED)
"""Codes by which XSC says that it failed itself, where it passes those of programs on."""


@click.group(cls=Group)
def compute() -> None:
    """Run WebAssembly on a node of the market, or here.

    SIZE is for example 64MiB, DURATION 250ms, 10s or 2m. NODE is a peer's
    name, its id, or the beginning of its id.
    """


@compute.command(context_settings={"ignore_unknown_options": True})
@click.argument("module", metavar="MOD", type=MODULE)
@click.argument("function", metavar="FUNC")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--batch", type=PATH, help="Call it for each line of arguments in FILE, or of -.")
@click.option("--item-fuel", type=WHOLE, help="Most fuel for one line of a batch.")
@job_options
@click.pass_context
def invoke(
    ctx: click.Context,
    settings: Settings,
    *,
    module: Path,
    function: str,
    arguments: tuple[str, ...],
    batch: Path | None,
    item_fuel: int | None,
    receipt: Path | None,
    **options: Unpack[JobOptions],
) -> int | None:
    """Call the function FUNC of the module MOD and print its results on one line.

    ARGS are numbers, read as the function's signature says: decimal, 0x
    hexadecimal, negative, inf or nan. With --batch, what came of each line is
    printed as one line of JSON, and one receipt stands for all.
    """
    _refuse_options(ctx, (str(module), function, *arguments))
    if receipt is not None:
        check_target(receipt)
    code = read_module(module)
    if batch is not None:
        if arguments:
            raise ArgumentInvalid("with --batch the arguments come from its lines alone")
        lines = _read_stdin(batch)
        spec = JobSpec.batch(code, function, lines, item_fuel, **options)
        return _show_batch(settings, _run_job(settings, spec, receipt))
    if item_fuel is not None:
        raise ArgumentInvalid("--item-fuel bounds the lines of a --batch, and there is none")
    spec = JobSpec.invoke(code, function, arguments, **options)
    done = _run_job(settings, spec, receipt)
    if settings.json:
        show_json(serial.document(result_of(done)))
    _raise_trap(done)
    if not settings.json:
        show(" ".join(done.results))
    _tell(settings, done)
    return None


@compute.command(cls=ProgramCommand)
@click.argument("module", metavar="MOD", type=MODULE)
@click.argument("arguments", metavar="[-- ARGS]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--stdin", type=PATH, help="Its standard input, or -.  [nothing]")
@click.option("--env", type=PAIR, multiple=True, metavar="K=V", help="One variable for it.")
@click.option(
    "--in",
    "inputs",
    type=INPUT,
    multiple=True,
    help="Let it read a stored object, by CAP or its name, as the file /in/NAME.",
)
@click.option("--out", type=PATH, metavar="DIR", help="Put the files that it writes there.")
@click.option(
    "--store",
    metavar="PREFIX",
    help="Store the files that it writes as objects, named so and by their path.",
)
@job_options
def run(
    settings: Settings,
    *,
    module: Path,
    arguments: tuple[str, ...],
    stdin: Path | None,
    env: tuple[tuple[str, str], ...],
    inputs: tuple[tuple[str, str | Named], ...],
    out: Path | None,
    store: str | None,
    receipt: Path | None,
    **options: Unpack[JobOptions],
) -> int:
    """Run the WASI program MOD with ARGS, and exit with its exit code.

    XSC's own failures exit with 120 and their code; a program that exits with
    such a code itself is named on standard error. With --json the two are never
    alike: only the program's code is printed as exit_code.
    """
    if receipt is not None:
        check_target(receipt)
    if out is not None:
        make_directory(out)
    code = read_module(module)
    given = _read_stdin(stdin)
    variables, calls = table_of(env, "variable"), settings.calls()
    objects = {
        name: one_object(calls, target) for name, target in table_of(inputs, "input").items()
    }
    spec = JobSpec.run(code, arguments, variables, given, objects, store, **options)
    # Of what several nodes write, nothing can be believed before they agree.
    shown = None if settings.json or spec.verify is not None else _show_output
    done = _run_job(settings, spec, receipt, shown)
    if out is not None:
        for name, data in done.files.items():
            place = place_in(out, name)
            make_directory(place.parent)
            write_whole(place, [data])
    if settings.json:
        show_json(serial.document(result_of(done)))
    else:
        _show_output(1, done.stdout)
        _show_output(2, done.stderr)
    _raise_trap(done)
    _tell(settings, done)
    if _tell_stored(settings, done):
        return PROGRAM_EXIT_BASE + EXIT_PARTLY
    exit_code = done.exit_code
    assert exit_code is not None
    if exit_code in _LIKE_OURS:
        say(f"the program itself exited with {exit_code}")
    # A shell sees eight bits: a failure must not become 0 by losing the others.
    return exit_code if 0 <= exit_code <= EXIT_MAX else EXIT_MAX


def _tell_stored(settings: Settings, done: JobResult) -> int:
    """List the objects that were made, beside the output; return how many could not be."""
    rows = done.objects or ()
    for row in rows:
        if row.fault is not None:
            warn(f"{row.path} is not stored: {row.fault.message}")
        elif not settings.json:
            say(f"{row.path}  {row.capability}")
    return sum(1 for row in rows if row.fault is not None)


def _show_output(stream: int, data: bytes) -> None:
    """Write what a program wrote where it wrote it, at once."""
    sink = (sys.stdout if stream == 1 else sys.stderr).buffer
    sink.write(data)
    sink.flush()


def _show_batch(settings: Settings, done: JobResult) -> int:
    """Show the result of each line; return 2 where one failed, for the others count, too."""
    settings.view(serial.document(result_of(done)), _show_items)
    _raise_trap(done)
    failed = sum(1 for item in done.items if item.trap is not None)
    if failed:
        say(f"{failed} of {len(done.items)} lines failed: see their 'trap'")
    _tell(settings, done)
    return 2 if failed else 0


def _show_items(answer: Document) -> None:
    _show_output(1, "".join(f"{json.dumps(item)}\n" for item in answer["items"]).encode())


def _refuse_options(ctx: click.Context, words: Sequence[str]) -> None:
    """Refuse a mistyped option: unknown ones come as arguments, for negative numbers' sake."""
    known = [name for param in ctx.command.params for name in param.opts if name[:2] == "--"]
    for word in words:
        if word.startswith("-") and word != "-" and not _NUMBER.fullmatch(word):
            close = difflib.get_close_matches(word, known, 1)
            raise click.NoSuchOption(word, possibilities=close, ctx=ctx)


def _run_job(
    settings: Settings, spec: JobSpec, receipt: Path | None, show: Show | None = None
) -> JobResult:
    """Run a job by the node, or in this process where no node runs; save its receipt."""
    calls = settings.calls()
    needs_node = spec.on or spec.verify or spec.inputs or spec.store is not None
    if needs_node or calls.alive():
        done = calls.job(spec, show)
    else:
        if not spec.local:
            say(f"no node runs at {settings.home}: running here, in the same sandbox")
        from xsc.node.local import run_here

        done = run_here(spec, show)
    if receipt is not None:
        write_whole(receipt, [done.receipt])  # first of all: a run that trapped is billed, too
    return done


def _read_stdin(path: Path | None) -> bytes:
    if path is None:
        return b""
    if path == Path("-"):
        return read_bounded(sys.stdin.buffer, "standard input", STDIN_BYTES_MAX)
    return read_file(path, "standard input", STDIN_BYTES_MAX)


def _raise_trap(done: JobResult) -> None:
    if done.trap is not None:
        raise done.trap


def _tell(settings: Settings, done: JobResult) -> None:
    if done.verification is not None:
        _tell_verification(settings, done.verification)
    if settings.verbose:
        say(
            f"ran on {short(done.provider)} in {done.wall_ms}ms: {done.fuel_used} fuel, "
            f"{done.memory_peak_bytes} bytes of memory{_tell_saved(done)}"
        )


def _tell_saved(done: JobResult) -> str:
    """Return how much of module and input was there already, where any was."""
    saved, compiled = done.saved_bytes, done.compiled_bytes
    told = f"; {format_size(saved)} of module and input were there already" if saved else ""
    return told + (f"; compiling {format_size(compiled)} is billed" if compiled else "")


def _tell_verification(settings: Settings, verification: Verification) -> None:
    """Print which providers did not agree; with --verbose also those that did."""
    for node in verification.dissenting:
        warn(f"{short(node)} signed another outcome, and is not paid: see `xsc compute evidence`")
    for node in verification.uncounted:
        warn(f"{short(node)} could not be compared, and is not paid")
    for node in verification.silent:
        warn(f"{short(node)} gave no receipt")
    if settings.verbose:
        say(f"agree: {', '.join(map(short, verification.agreeing))}")


compute.add_command(verify)
compute.add_command(evidence)
for service_command in deployments.COMMANDS:
    compute.add_command(service_command)
