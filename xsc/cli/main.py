"""Entry point: the tree of commands, exit codes, and what becomes of errors.

Exit codes follow the branches of `xsc.base.errors`; `compute run` adds 120 to
them, because it passes its program's code on. No error shows a trace, unless
XSC_DEBUG is set.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Iterator, Mapping

import click

from xsc import __version__
from xsc.base.errors import EXIT_INTERRUPTED, ArgumentInvalid, XscError, unwritable
from xsc.cli import options, show

EXIT_PIPE = 141
"""What a shell reports for a program that a closed pipe ended."""
OUTPUT = "the output cannot be written"


_COMMANDS = {
    "node": "Run this machine's node.",
    "peer": "Invite, add and recognise other nodes.",
    "store": "Store objects so that any four of six nodes can give them back.",
    "compute": "Run WebAssembly on a node of the market, or here.",
    "space": "Read and write the key space of this node, and read that of peers.",
    "program": "Run documents that say which values depend on which.",
    "market": "Offer capacity and state needs; show prices and leases.",
    "allocation": "Show what slots grant to needs ahead of use, to whom, and why.",
    "ledger": "Show and settle what nodes owe each other, in credits.",
    "health": "Show how peers answer probes, what they prove to hold, and how they are judged.",
    "verify": "Say what a signed file proves, as a receipt, a lease or a ledger entry.",
    "top": "Follow the node in one picture.",
    "dashboard": "Print a link that shows the node in a browser on this machine.",
    "devnet": "Run a network of nodes on this machine.",
}
"""The commands, and what each says of itself: none is read to list them all."""


_ELSEWHERE = {"health": "peer", "allocation": "market", "dashboard": "top"}
"""The modules of those that have none of their own."""


class _Commands(Mapping[str, click.Command]):
    """Commands by name; a command's module is read when it is used: start-up time."""

    def __getitem__(self, name: str) -> click.Command:
        if name not in _COMMANDS:
            raise KeyError(name)
        module = importlib.import_module(f"xsc.cli.{_ELSEWHERE.get(name, name)}")
        command: click.Command = getattr(module, name)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class _Root(options.Group):
    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_Root,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="xsc", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Store objects and run programs on nodes that you and others keep.

    Every command works on the node of one home, which must be running:

    \b
      xsc node start --wait       start it
      xsc peer invite             let another node join it
      xsc store put photo.jpg     store a file on six nodes
      xsc compute invoke add.wasm add 1 2
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


cli.commands = _Commands()  # type: ignore[assignment]  # nothing is ever added


def _usage(fault: click.ClickException) -> XscError:
    """Return click's complaint in our form: one sentence and a hint."""
    if isinstance(fault, click.NoSuchOption) and fault.option_name[1:2].isdecimal():
        return ArgumentInvalid(
            f"'{fault.option_name}' is no option, and no number here may be below zero"
        )
    text = " ".join(fault.format_message().split())
    sentence, _, proposal = text.partition(" Did you mean ")
    sentence = (sentence[:1].lower() + sentence[1:]).rstrip(".")
    if proposal:
        return ArgumentInvalid(sentence, hint=f"did you mean {proposal}")
    ctx = getattr(fault, "ctx", None)
    path = ctx.command_path if isinstance(ctx, click.Context) else "xsc"
    return ArgumentInvalid(sentence, hint=f"`{path} --help` shows what it takes")


class _Closed(io.RawIOBase):
    """Stands for standard input where that was closed before the start."""

    def readable(self) -> bool:
        return True

    def readinto(self, _: object) -> int:
        raise ArgumentInvalid(
            "standard input is closed", hint="give it a file, or /dev/null for nothing"
        )


def _close_output(code: int, *, as_json: bool) -> int:
    """Flush standard output; return the exit code, another one where it is closed or full."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = EXIT_PIPE
    except OSError as fault:
        if code == 0:
            error = unwritable(OUTPUT, fault)
            show.error(error, as_json=as_json)
            code = error.exit_code
    else:
        return code
    # Python flushes once more at its end, and would complain about the same thing.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def main(arguments: list[str]) -> int:
    """Carry out one call of the command line; return its exit code."""
    # Decided before anything is read, so that a call that cannot be read is answered as asked.
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    settings = options.Settings(json="--json" in before)
    return _close_output(_carry_out(arguments, settings), as_json=settings.json)


def _carry_out(arguments: list[str], settings: options.Settings) -> int:
    try:
        code = cli.main(arguments, prog_name="xsc", standalone_mode=False, obj=settings)
        return code if isinstance(code, int) else 0
    except XscError as error:
        return _fail(error, settings)
    except click.ClickException as fault:
        return _fail(_usage(fault), settings)
    except SystemExit:  # by which click ends where a pipe was closed
        return EXIT_PIPE
    except (click.Abort, KeyboardInterrupt):
        show.say("interrupted")
        return EXIT_INTERRUPTED
    except Exception as fault:  # noqa: BLE001 - the one place that must answer whatever happens
        if isinstance(fault, OSError) and fault.errno in {errno.ENOSPC, errno.EBADF}:
            return _fail(unwritable(OUTPUT, fault), settings)
        if os.environ.get("XSC_DEBUG"):
            import traceback

            traceback.print_exc()
        text = " ".join(f"{type(fault).__name__}: {fault}".rstrip(": ").split())
        bug = XscError(f"a bug in xsc: {text}", hint="XSC_DEBUG=1 shows where; please report it")
        return _fail(bug, settings)


def _fail(error: XscError, settings: options.Settings) -> int:
    show.error(error, as_json=settings.json)
    return settings.exit_base + error.exit_code


def run() -> None:
    """Carry out the command line of this process, and exit."""
    # Of a stream that was closed nothing else may get the number, and be written to in its place.
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_Closed()))
    if sys.stdout is None:
        os.open(os.devnull, os.O_RDONLY)  # what is written there fails
        sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    if sys.stderr is None:
        os.open(os.devnull, os.O_WRONLY)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape instead of a crash.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
