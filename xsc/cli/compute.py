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
from typing import Final, Unpack

import click

from xsc import api
from xsc.api import serial
from xsc.api.endpoint import Id
from xsc.api.jobs import result_of
from xsc.base.errors import EXIT_INTERRUPTED, EXIT_PARTLY, ArgumentInvalid
from xsc.base.jobs import JobOptions, JobResult, JobSpec, Verification
from xsc.base.limits import INPUT_BYTES_MAX, PEER_BODY_BYTES_MAX, STDIN_BYTES_MAX
from xsc.base.units import format_credits, format_size
from xsc.cli.options import (
    CONCURRENCY,
    INPUT,
    MODULE,
    PAIR,
    PATH,
    PEER,
    PROGRAM_EXIT_BASE,
    RUN_FUEL,
    RUN_MEMORY,
    RUN_TIME,
    SERVICE,
    WHOLE,
    Group,
    ProgramCommand,
    Settings,
    asks,
    job_options,
    read_given,
    table_of,
)
from xsc.cli.output import Columns, moment, or_dash, say, short, show, show_json, show_rows, warn
from xsc.client.calls import DeployOptions, Show
from xsc.client.calls import follow as rows_of
from xsc.client.core import Document
from xsc.client.files import (
    check_target,
    make_directory,
    place_in,
    read_file,
    read_module,
    write_whole,
)
from xsc.client.targets import Named, one_object

_NUMBER = re.compile(r"-(\.?[0-9]|inf|nan).*", re.IGNORECASE | re.DOTALL)
EXIT_MAX = 255
_LIKE_OURS = (*range(PROGRAM_EXIT_BASE, PROGRAM_EXIT_BASE + EXIT_PARTLY + 1), EXIT_INTERRUPTED)
"""Codes by which XSC says that it failed itself, where it passes those of programs on."""
ROWS_SHOWN = 20
WAIT_MS = 20_000
"""How long one call waits for the next row of a log that is followed."""
EXITS = {"agrees": 0, "convicts": 0, "differs": 6, "cannot_tell": 7}
"""Codes by which `verify` says what came of it."""


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
        lines = read_given(batch, "standard input", STDIN_BYTES_MAX)
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
    given = b"" if stdin is None else read_given(stdin, "standard input", STDIN_BYTES_MAX)
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
        from xsc.node.offline.compute import run_here

        done = run_here(spec, show)
    if receipt is not None:
        write_whole(receipt, [done.receipt])  # first of all: a run that trapped is billed, too
    return done


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


@compute.command()
@click.argument("receipt", metavar="RECEIPT", type=PATH)
@click.argument("arguments", metavar="[-- ARGS]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--module", type=PATH, required=True, metavar="MOD", help="The module that was run.")
@click.option("--stdin", type=PATH, help="The standard input that it had.")
@click.option("--env", type=PAIR, multiple=True, metavar="K=V", help="A variable that it had.")
@click.option(
    "--input",
    "inputs",
    type=PAIR,
    multiple=True,
    metavar="NAME=FILE",
    help="A file that it read as /in/NAME.",
)
@click.option("--batch", type=PATH, help="The lines of a batch.")
@click.option("--item-fuel", type=WHOLE, help="Most fuel for a line of the batch.")
def verify(
    settings: Settings,
    *,
    receipt: Path,
    arguments: tuple[str, ...],
    module: Path,
    stdin: Path | None,
    env: tuple[tuple[str, str], ...],
    inputs: tuple[tuple[str, str], ...],
    batch: Path | None,
    item_fuel: int | None,
) -> int:
    """Run the order of an execution receipt again, here, and compare every bit.

    Needs neither a node nor the network. Exits with 0 if the receipt agrees,
    with 6 if it differs, and with 7 if nothing can be told: another engine, or a
    run that was ended for its time. Of `xsc compute evidence`, both receipts are
    compared, and 0 means that at least one is false.
    """
    if batch is not None and (arguments or stdin or env or inputs):
        raise ArgumentInvalid("with --batch there is no other input than its lines")
    raw = read_file(receipt, "receipt", PEER_BODY_BYTES_MAX)
    code = read_module(module)
    source = stdin if batch is None else batch
    text = b"" if source is None else read_file(source, "standard input", STDIN_BYTES_MAX)
    files = {name: read_file(Path(path), "input", INPUT_BYTES_MAX) for name, path in inputs}
    from xsc.node.offline.compute import Given, replay_file

    answer: Document = replay_file(raw, code, Given(arguments, dict(env), text, files, item_fuel))
    settings.view(answer, _show_verdicts)
    return EXITS[answer["verdict"]]


def _show_verdicts(answer: Document) -> None:
    for row in answer.get("providers", [answer]):
        who = f"{short(row['provider'])} " if "provider" in row else ""
        show(who + row["verdict"].replace("_", " "))
        for reason in row["reasons"]:
            say(reason)


_EVIDENCE: Final[Columns] = {
    "id": ("id", short),
    "found": ("found_ms", moment),
    "believed": "first_name",
    "against": "second_name",
    "function": "function",
    "module": lambda row: row["module"][:16],
    "differ in": ("differs", ", ".join),
}


@compute.command()
@click.argument("evidence_id", metavar="[ID]", required=False)
@click.option("-o", "--output", type=PATH, help="Write the record ID there.")
def evidence(settings: Settings, evidence_id: str | None, output: Path | None) -> None:
    """List receipts of two providers for one order that cannot both be true.

    With ID and -o, one signed record is written to a file: `xsc verify` checks it
    without a node, and `xsc compute verify` says whose receipt is wrong.
    """
    if (evidence_id is None) != (output is None):
        raise ArgumentInvalid("ID and --output go together")
    if evidence_id is not None and output is not None:
        settings.save(api.jobs.EVIDENCE_RECORD, Id(id=evidence_id), output)
    else:
        settings.view(settings.ask(api.jobs.EVIDENCE), _show_evidence)


def _show_evidence(answer: Document) -> None:
    show_rows(answer["evidence"], _EVIDENCE, "no provider has contradicted another")


@compute.command()
@click.argument("module", metavar="MOD", type=MODULE)
@click.option("--name", required=True, metavar="NAME", help="What the service is called.")
@click.option("--version", metavar="V", help="What this version is called.  [the next number]")
@click.option(
    "--env", "variables", type=PAIR, multiple=True, metavar="K=V", help="One variable for it."
)
@click.option("--fuel", type=RUN_FUEL, help="Most fuel of a request.")
@click.option("--memory", "memory_bytes", type=RUN_MEMORY, help="Most memory of a request.")
@click.option("--timeout", "timeout_ms", type=RUN_TIME, help="Most time of a request.")
@click.option("--concurrency", type=CONCURRENCY, help="Requests that run at once.  [4]")
@click.option("--on", type=PEER, metavar="NODE", help="Have this node hold it, and pay it.")
def deploy(
    settings: Settings,
    *,
    module: Path,
    name: str,
    variables: tuple[tuple[str, str], ...],
    **how: Unpack[DeployOptions],
) -> None:
    """Let the WASI program MOD answer requests, and print where.

    Each request runs it anew: fields, query and path come as variables, the
    body as standard input (WAGI); what it writes is the answer.
    """
    how["env"] = table_of(variables, "variable")
    done = settings.calls().deploy(read_module(module), name, **how)
    _tell_service(settings, done)


_SERVICES: Final[Columns] = {
    "name": "name",
    "owner": lambda row: row["owner_name"] or short(row["owner"]),
    "version": "version",
    "at": lambda row: row["node_name"] or short(row["node"]),
    "state": "state",
    "<requests": "requests",
    "<failed": "failures",
    "<refused": "refused",
    "url": ("url", or_dash),
}


@asks(compute, api.services.LIST, name="ls")
def services(answer: Document) -> None:
    """List services: one's own, and those that are held for peers."""
    show_rows(answer["services"], _SERVICES, "there are no services")
    for row in answer["services"]:
        if row["fault"]:
            warn(f"{row['name']}: {row['fault']}")
    if any(row["state"] == "off" for row in answer["services"]):
        say("this node answers no requests: set services_listen, for example to 8080")


@compute.command()
@click.argument("name", type=SERVICE)
@click.option("-f", "--follow", is_flag=True, help="Go on with each request that comes.")
@click.option("-n", "count", type=WHOLE, default=ROWS_SHOWN, help="Newest rows.  [20]")
def logs(settings: Settings, *, name: str, follow: bool, count: int) -> None:
    """Show the newest requests of a service, and what each cost.

    With --json, one document a line where it follows, else one with all.
    """
    calls = settings.calls()
    if follow:
        for row in rows_of(calls, name, count, WAIT_MS):
            settings.view(row, _show_row)
        return
    asked = api.services.Log(name=name, n=count)
    settings.view(calls.ask(api.services.LOG, asked), _show_rows)


def _show_rows(answer: Document) -> None:
    for row in answer["requests"]:
        _show_row(row)


def _show_row(row: Document) -> None:
    ended = f"  {row['trap']}" if row["trap"] else ""
    show(
        f"{moment(row['at_ms'])}  {row['request_id']}  {row['version']}  {row['status']}  "
        f"{row['method']} {row['path'] or '/'}  {row['fuel_used']} fuel  "
        f"{format_size(row['memory_peak_bytes'])}  {row['wall_ms']}ms  "
        f"{format_credits(row['amount_micro'])} credits{ended}"
    )
    for line in row["note"].splitlines():
        show(f"    {line}")


@compute.command()
@click.argument("name", type=SERVICE)
@click.option("--to", metavar="V", help="The version to go back to.  [the one before]")
def rollback(settings: Settings, *, name: str, to: str | None) -> None:
    """Go back to a version of a service; requests that run end with theirs."""
    asked = api.services.Rollback(name=name, to=to)
    _tell_service(settings, settings.ask(api.services.ROLLBACK, asked))


@asks(compute, api.services.UNDEPLOY)
@click.argument("name", type=SERVICE)
def undeploy(answer: Document) -> None:
    """Remove a service, all of its versions and its log."""
    if answer["warning"]:
        warn(answer["warning"])


def _tell_service(settings: Settings, done: Document) -> None:
    settings.view(done, done["url"] or f"/fn/{done['owner']}/{done['name']}")
    if settings.json:
        return
    if settings.verbose:
        say(f"version {done['version']} is active")
    if done["state"] == "off":
        warn(
            "this node answers no requests: set services_listen in its config.toml, "
            "for example to 8080, and start it again"
        )
