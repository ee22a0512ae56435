"""xsc compute: WebAssembly functions and programs, run in a sandbox and billed by fuel.

Where no node runs at the home, the same sandbox runs in this process; that is
said on standard error, because nobody is then paid and nobody else attests it.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Unpack

import click
from click import argument, option

from xsc import api
from xsc.api import serial
from xsc.api.jobs import result_of
from xsc.base import errors, limits, units
from xsc.base.jobs import JobOptions, JobResult, JobSpec, Verification
from xsc.cli import options, show
from xsc.cli.options import Group, ProgramCommand, Settings, asks
from xsc.client import core, targets
from xsc.client.calls import DeployOptions, Show
from xsc.client.calls import follow as rows_of
from xsc.client.files import make_directory, place_in, read_file, read_module, write_whole

_NUMBER = re.compile(r"-(\.?[0-9]|inf|nan).*", re.IGNORECASE | re.DOTALL)
EXIT_MAX = 255
_LIKE_OURS = (
    *range(options.PROGRAM_EXIT_BASE, options.PROGRAM_EXIT_BASE + errors.EXIT_PARTLY + 1),
    errors.EXIT_INTERRUPTED,
)
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


job_options = options.together(
    option(
        "--grant",
        "grants",
        type=click.Choice(("clock", "random")),
        multiple=True,
        help="Let it see the real time, or real chance; nobody can verify it then.",
    ),
    option(
        "--verify",
        metavar="KofN",
        help="Have N providers run it; believe and pay K or more that agree, like 2of3.",
    ),
    option("--fuel", type=options.RUN_FUEL, help="Most fuel it may use."),
    option("--memory", "memory_bytes", type=options.RUN_MEMORY, help="Most memory it may have."),
    option(
        "--wait",
        "wait_ms",
        type=options.RUN_WAIT,
        default=limits.COMPUTE_WAIT_MS,
        help="How long it waits for its turn; not part of --timeout.  [60s]",
    ),
    option("--timeout", "timeout_ms", type=options.RUN_TIME, help="Most time it may take."),
    option("--on", type=options.PEER, metavar="NODE", help="Let this node run it, and no other."),
    option("--local", is_flag=True, help="Run it on this machine, without the market."),
    option("--receipt", type=options.TARGET, help="Write the receipt there."),
)
"""Of everything that runs a module: those of `JobOptions`, and `receipt`."""


def _variables(text: str) -> Callable[[options.F], options.F]:
    return options.table("variable", "--env", type=options.PAIR, metavar="K=V", help=text)


@compute.command(context_settings={"ignore_unknown_options": True})
@argument("module", metavar="MOD", type=options.MODULE)
@argument("function", metavar="FUNC")
@argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
@option("--batch", type=options.PATH, help="Call it for each line of arguments in FILE, or of -.")
@option("--item-fuel", type=options.WHOLE, help="Most fuel for one line of a batch.")
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
    **how: Unpack[JobOptions],
) -> int | None:
    """Call the function FUNC of the module MOD and print its results on one line.

    ARGS are numbers, read as the function's signature says: decimal, 0x
    hexadecimal, negative, inf or nan. With --batch, what came of each line is
    printed as one line of JSON, and one receipt stands for all.
    """
    _refuse_options(ctx, (str(module), function, *arguments))
    code = read_module(module)
    if batch is not None:
        if arguments:
            raise errors.ArgumentInvalid("with --batch the arguments come from its lines alone")
        lines = options.read_given(batch, "standard input", limits.STDIN_BYTES_MAX)
        spec = JobSpec.batch(code, function, lines, item_fuel, **how)
        return _show_batch(settings, _run_job(settings, spec, receipt))
    if item_fuel is not None:
        raise errors.ArgumentInvalid("--item-fuel bounds the lines of a --batch, and there is none")
    spec = JobSpec.invoke(code, function, arguments, **how)
    done = _run_job(settings, spec, receipt)
    _view(settings, done)
    show.line(" ".join(done.results))
    _tell(done)
    return None


@compute.command(cls=ProgramCommand)
@argument("module", metavar="MOD", type=options.MODULE)
@argument("arguments", metavar="[-- ARGS]...", nargs=-1, type=click.UNPROCESSED)
@option("--stdin", type=options.PATH, help="Its standard input, or -.  [nothing]")
@_variables("One variable for it.")
@options.table(
    "input",
    "--in",
    "inputs",
    type=options.INPUT,
    help="Let it read a stored object, by CAP or its name, as the file /in/NAME.",
)
@option("--out", type=options.PATH, metavar="DIR", help="Put the files that it writes there.")
@option(
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
    env: Mapping[str, str] | None,
    inputs: Mapping[str, str] | None,
    out: Path | None,
    store: str | None,
    receipt: Path | None,
    **how: Unpack[JobOptions],
) -> int:
    """Run the WASI program MOD with ARGS, and exit with its exit code.

    XSC's own failures exit with 120 and their code; a program that exits with
    such a code itself is named on standard error. With --json the two are never
    alike: only the program's code is printed as exit_code.
    """
    if out is not None:
        make_directory(out)
    code = read_module(module)
    given = options.read_given(stdin, "standard input", limits.STDIN_BYTES_MAX)
    calls = settings.calls()
    objects = {name: targets.one_object(calls, target) for name, target in (inputs or {}).items()}
    spec = JobSpec.run(code, arguments, env, given, objects, store, **how)
    # Of what several nodes write, nothing can be believed before they agree.
    shown = None if settings.json or spec.verify is not None else _show_output
    done = _run_job(settings, spec, receipt, shown)
    if out is not None:
        for name, data in done.files.items():
            place = place_in(out, name)
            make_directory(place.parent)
            write_whole(place, [data])
    if not settings.json:
        _show_output(1, done.stdout)
        _show_output(2, done.stderr)
    _view(settings, done)
    _tell(done)
    if _tell_stored(done):
        return options.PROGRAM_EXIT_BASE + errors.EXIT_PARTLY
    exit_code = done.exit_code
    assert exit_code is not None
    if exit_code in _LIKE_OURS:
        show.say(f"the program itself exited with {exit_code}")
    # A shell sees eight bits: a failure must not become 0 by losing the others.
    return exit_code if 0 <= exit_code <= EXIT_MAX else EXIT_MAX


def _tell_stored(done: JobResult) -> int:
    """List the objects that were made, beside the output; return how many could not be."""
    rows = done.objects or ()
    for row in rows:
        if row.fault is not None:
            show.warn(f"{row.path} is not stored: {row.fault.message}")
        else:
            show.note(f"{row.path}  {row.capability}")
    return sum(1 for row in rows if row.fault is not None)


def _show_output(stream: int, data: bytes) -> None:
    """Write what a program wrote where it wrote it, at once."""
    sink = (sys.stdout if stream == 1 else sys.stderr).buffer
    sink.write(data)
    sink.flush()


def _show_batch(settings: Settings, done: JobResult) -> int:
    """Show the result of each line; return 2 where one failed, for the others count, too."""
    answer = serial.document(result_of(done))
    if not settings.json:
        _show_output(1, "".join(f"{json.dumps(item)}\n" for item in answer["items"]).encode())
    _view(settings, done)
    failed = sum(1 for item in done.items if item.trap is not None)
    if failed:
        show.say(f"{failed} of {len(done.items)} lines failed: see their 'trap'")
    _tell(done)
    return 2 if failed else 0


def _view(settings: Settings, done: JobResult) -> None:
    """Print a result as JSON where that is wanted; raise what ended the job."""
    if settings.json:
        show.json(serial.document(result_of(done)))
    if done.trap is not None:
        raise done.trap


def _refuse_options(ctx: click.Context, words: Sequence[str]) -> None:
    """Refuse a mistyped option: unknown ones come as arguments, for negative numbers' sake."""
    known = [name for param in ctx.command.params for name in param.opts if name[:2] == "--"]
    for word in words:
        if word.startswith("-") and word != "-" and not _NUMBER.fullmatch(word):
            close = difflib.get_close_matches(word, known, 1)
            raise click.NoSuchOption(word, possibilities=close, ctx=ctx)


def _run_job(
    settings: Settings, spec: JobSpec, receipt: Path | None, shown: Show | None = None
) -> JobResult:
    """Run a job by the node, or in this process where no node runs; save its receipt."""
    calls = settings.calls()
    needs_node = spec.on or spec.verify or spec.inputs or spec.store is not None
    if needs_node or calls.alive():
        done = calls.job(spec, shown)
    else:
        if not spec.local:
            show.say(f"no node runs at {settings.home}: running here, in the same sandbox")
        from xsc.node.offline.compute import run_here

        done = run_here(spec, shown)
    if receipt is not None:
        write_whole(receipt, [done.receipt])  # first of all: a run that trapped is billed, too
    return done


def _tell(done: JobResult) -> None:
    """Print which providers did not agree; with --verbose also what was used, and where."""
    if done.verification is not None:
        _tell_verification(done.verification)
    told = f"ran on {show.short(done.provider)} in {done.wall_ms}ms: {done.fuel_used} fuel, "
    told += f"{done.memory_peak_bytes} bytes of memory"
    if done.saved_bytes:
        told += f"; {units.format_size(done.saved_bytes)} of module and input were there already"
    if done.compiled_bytes:
        told += f"; compiling {units.format_size(done.compiled_bytes)} is billed"
    show.detail(told)


def _tell_verification(verification: Verification) -> None:
    for node in verification.dissenting:
        who = show.short(node)
        show.warn(f"{who} signed another outcome, and is not paid: see `xsc compute evidence`")
    for node in verification.uncounted:
        show.warn(f"{show.short(node)} could not be compared, and is not paid")
    for node in verification.silent:
        show.warn(f"{show.short(node)} gave no receipt")
    show.detail(f"agree: {', '.join(map(show.short, verification.agreeing))}")


@compute.command()
@argument("receipt", metavar="RECEIPT", type=options.PATH)
@argument("arguments", metavar="[-- ARGS]...", nargs=-1, type=click.UNPROCESSED)
@option(
    "--module", type=options.PATH, required=True, metavar="MOD", help="The module that was run."
)
@option("--stdin", type=options.PATH, help="The standard input that it had.")
@_variables("A variable that it had.")
@options.table(
    "input",
    "--input",
    "inputs",
    type=options.PAIR,
    metavar="NAME=FILE",
    help="A file that it read as /in/NAME.",
)
@option("--batch", type=options.PATH, help="The lines of a batch.")
@option("--item-fuel", type=options.WHOLE, help="Most fuel for a line of the batch.")
def verify(
    settings: Settings,
    *,
    receipt: Path,
    arguments: tuple[str, ...],
    module: Path,
    stdin: Path | None,
    env: Mapping[str, str] | None,
    inputs: Mapping[str, str] | None,
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
        raise errors.ArgumentInvalid("with --batch there is no other input than its lines")
    raw = read_file(receipt, "receipt", limits.PEER_BODY_BYTES_MAX)
    code = read_module(module)
    text = options.read_given(batch or stdin, "standard input", limits.STDIN_BYTES_MAX)
    files = {
        name: read_file(Path(path), "input", limits.INPUT_BYTES_MAX)
        for name, path in (inputs or {}).items()
    }
    from xsc.node.offline.compute import Given, replay_file

    given = Given(arguments, env or {}, text, files, item_fuel)
    answer: core.Document = replay_file(raw, code, given)
    settings.view(answer)
    for row in answer.get("providers", [answer]):
        who = f"{show.short(row['provider'])} " if "provider" in row else ""
        show.line(who + row["verdict"].replace("_", " "))
        for reason in row["reasons"]:
            show.note(reason)
    return EXITS[answer["verdict"]]


@compute.command()
@argument("evidence_id", metavar="[ID]", required=False)
@option("-o", "--output", type=options.TARGET, help="Write the record ID there.")
def evidence(settings: Settings, evidence_id: str | None, output: Path | None) -> None:
    """List receipts of two providers for one order that cannot both be true.

    With ID and -o, one signed record is written to a file: `xsc verify` checks it
    without a node, and `xsc compute verify` says whose receipt is wrong.
    """
    if evidence_id is not None and output is not None:
        settings.save(api.jobs.EVIDENCE_RECORD, output, id=evidence_id)
        return
    if evidence_id is not None or output is not None:
        raise errors.ArgumentInvalid("ID and --output go together")
    answer = settings.ask(api.jobs.EVIDENCE)
    settings.view(answer)
    show.rows(
        answer["evidence"],
        "id found believed=first_name against=second_name function module differ_in",
        "no provider has contradicted another",
        id=("id", show.short),
        module=lambda row: row["module"][:16],
        differ_in=("differs", ", ".join),
    )


@compute.command()
@argument("module", metavar="MOD", type=options.MODULE)
@option("--name", required=True, metavar="NAME", help="What the service is called.")
@option("--version", metavar="V", help="What this version is called.  [the next number]")
@_variables("One variable for it.")
@option("--fuel", type=options.RUN_FUEL, help="Most fuel of a request.")
@option("--memory", "memory_bytes", type=options.RUN_MEMORY, help="Most memory of a request.")
@option("--timeout", "timeout_ms", type=options.RUN_TIME, help="Most time of a request.")
@option("--concurrency", type=options.CONCURRENCY, help="Requests that run at once.  [4]")
@option("--on", type=options.PEER, metavar="NODE", help="Have this node hold it, and pay it.")
def deploy(settings: Settings, *, module: Path, name: str, **how: Unpack[DeployOptions]) -> None:
    """Let the WASI program MOD answer requests, and print where.

    Each request runs it anew: fields, query and path come as variables, the
    body as standard input (WAGI); what it writes is the answer.
    """
    done = settings.calls().deploy(read_module(module), name, **how)
    settings.view(done, rollback(done))


@asks(compute, api.services.LIST, name="ls")
def services(answer: core.Document) -> None:
    """List services: one's own, and those that are held for peers."""
    show.rows(
        answer["services"],
        "name owner version at state <requests <failed=failures <refused url",
        "there are no services",
        owner=lambda row: row["owner_name"] or show.short(row["owner"]),
        at=lambda row: row["node_name"] or show.short(row["node"]),
    )
    for row in answer["services"]:
        if row["fault"]:
            show.warn(f"{row['name']}: {row['fault']}")
    if any(row["state"] == "off" for row in answer["services"]):
        show.say("this node answers no requests: set services_listen, for example to 8080")


@compute.command()
@argument("name", type=options.SERVICE)
@option("-f", "--follow", is_flag=True, help="Go on with each request that comes.")
@option("-n", "count", type=options.WHOLE, default=ROWS_SHOWN, help="Newest rows.  [20]")
def logs(settings: Settings, *, name: str, follow: bool, count: int) -> None:
    """Show the newest requests of a service, and what each cost.

    With --json, one document a line where it follows, else one with all.
    """
    calls = settings.calls()
    if follow:
        for row in rows_of(calls, name, count, WAIT_MS):
            settings.view(row)
            _show_row(row)
        return
    answer = calls.ask(api.services.LOG, name=name, n=count)
    settings.view(answer)
    for row in answer["requests"]:
        _show_row(row)


def _show_row(row: core.Document) -> None:
    ended = f"  {row['trap']}" if row["trap"] else ""
    show.line(
        f"{show.moment(row['at_ms'])}  {row['request_id']}  {row['version']}  {row['status']}  "
        f"{row['method']} {row['path'] or '/'}  {row['fuel_used']} fuel  "
        f"{units.format_size(row['memory_peak_bytes'])}  {row['wall_ms']}ms  "
        f"{units.format_credits(row['amount_micro'])} credits{ended}"
    )
    for line in row["note"].splitlines():
        show.line(f"    {line}")


@asks(compute, api.services.ROLLBACK)
@argument("name", type=options.SERVICE)
@option("--to", metavar="V", help="The version to go back to.  [the one before]")
def rollback(answer: core.Document) -> str:
    """Go back to a version of a service; requests that run end with theirs."""
    show.detail(f"version {answer['version']} is active")
    if answer["state"] == "off":
        show.warn(
            "this node answers no requests: set services_listen in its config.toml, "
            "for example to 8080, and start it again"
        )
    return answer["url"] or f"/fn/{answer['owner']}/{answer['name']}"


@asks(compute, api.services.UNDEPLOY)
@argument("name", type=options.SERVICE)
def undeploy(answer: core.Document) -> None:
    """Remove a service, all of its versions and its log."""
    if answer["warning"]:
        show.warn(answer["warning"])
