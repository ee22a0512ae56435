"""What all commands share: their options, how those are read, and how commands are made.

`--home`, `--json` and `-v` are taken before and after every command's name. A
value is read by the functions of `xsc.base.units`; its error names the option.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click import option

from xsc import api
from xsc.api.ranges import check_range
from xsc.base import limits, units
from xsc.base.errors import ArgumentInvalid, TooLarge, XscError
from xsc.cli import show
from xsc.client.files import check_target, read_bounded, read_file, write_whole

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from xsc.client.calls import Calls
    from xsc.client.core import Asked, Document

    Offers = Sequence[tuple[Asked, str]]
    Complete = Callable[[click.Context, str], list[CompletionItem]]

F = TypeVar("F", bound=Callable[..., Any])
V = TypeVar("V", bound="Callable[[Document], str | int | None]")

CAPABILITY_BYTES_MAX = 4096
STREAM = Path("-")
"""Standard input or output, where a file is named."""
READS = "xsc:r:"
"""Begins what lets its holder read an object."""
PASSPHRASE = "XSC_PASSPHRASE"  # noqa: S105 - the name of a variable
_PLAIN_WORD = re.compile(r"[\w./@%+:,-]+")
"""What means itself to every shell."""
DURATION_MS_MAX = 100 * 365 * 86_400_000
"""A century: no time that a command takes is longer."""
PROGRAM_EXIT_BASE = 120
"""Added to XSC's own exit codes where a program's code is passed on (docs/cli.md)."""


@dataclass(slots=True)
class Settings:
    """What the options of one call of the command line say."""

    home_given: Path | None = None
    json: bool = False
    verbose: bool = False
    exit_base: int = 0
    warned: bool = False
    """About a capability on the command line."""

    @property
    def home(self) -> Path:
        """The home that is meant."""
        from xsc.client.core import default_home

        return default_home() if self.home_given is None else self.home_given

    def calls(self) -> Calls:
        """Return the calls of the node at the home."""
        from xsc.client.calls import Calls

        return Calls(self.home, trace=show.say if self.verbose else None)

    def ask(
        self,
        endpoint: Asked,
        /,
        *parts: bytes,
        **said: Any,  # noqa: ANN401
    ) -> Document:
        """Return what the node answers (`Core.ask`)."""
        return self.calls().ask(endpoint, *parts, **said)

    def view(self, answer: object, text: str | None = None) -> None:
        """Print an answer: as JSON, or a line of it for people."""
        if self.json:
            show.json(answer)
        elif text is not None:
            show.line(text)

    def save(self, endpoint: Asked, path: Path, /, **said: Any) -> None:  # noqa: ANN401
        """Write what the node answers to a file, and print as JSON what was written; or show it."""
        if path == STREAM and self.json:
            raise ArgumentInvalid(
                "--json and a file on standard output do not go together", hint="name one: -o FILE"
            )
        with self.calls().download(endpoint, **said) as download:
            size = write_to(path, download.blocks())
        if path != STREAM:
            self.view({"file": str(path), "size_bytes": size})


def write_to(path: Path, blocks: Iterable[bytes]) -> int:
    """Write a file, whole or not at all, or standard output as it comes; return a file's size."""
    if path != STREAM:
        return write_whole(path, blocks)
    sys.stdout.buffer.writelines(blocks)
    sys.stdout.buffer.flush()
    return 0


def _kept(name: str, *declared: str, **how: Any) -> click.Option:  # noqa: ANN401 - click's own
    """Return an option whose value the settings keep, if it was given at this place."""

    def keep(ctx: click.Context, _: click.Parameter, value: object) -> None:
        if value is not None and value is not False:
            setattr(ctx.ensure_object(Settings), name, value)

    return click.Option(declared, expose_value=False, callback=keep, **how)


def _shared() -> list[click.Parameter]:
    home_help = "Home of the node.  [XSC_HOME, or the user's data directory]"
    verbose_help = "Say on standard error what is being done."
    return [
        _kept("home_given", "--home", type=Parsed("DIR", _directory), help=home_help),
        _kept("json", "--json", is_flag=True, help="Print one JSON document."),
        _kept("verbose", "-v", "--verbose", is_flag=True, help=verbose_help),
    ]


class Command(click.Command):
    """A command that takes the shared options; its function gets them first, as settings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - click's own
        kwargs["callback"] = click.make_pass_decorator(Settings, ensure=True)(kwargs["callback"])
        super().__init__(*args, **kwargs)
        self.params.extend(_shared())


class Group(click.Group):
    """A group of commands that takes the shared options."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - click's own
        # A group alone is a wrong call, and answered like any other one.
        kwargs.setdefault("no_args_is_help", False)
        super().__init__(*args, **kwargs)
        self.params.extend(_shared())

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's own
        """Return the commands in the order in which they are written."""
        return list(self.commands)

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """Show each command with its first sentence, whole."""
        each = self.commands.items()
        with formatter.section("Commands"):
            formatter.write_dl([(name, it.get_short_help_str(sys.maxsize)) for name, it in each])


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator for several, the first of which is shown first."""

    def decorate(function: F) -> F:
        for each in reversed(options):
            function = each(function)
        return function

    return decorate


class Fields(dict[str, object]):
    """What one option says of several fields of a request."""


def asks(
    group: click.Group,
    endpoint: Asked,
    name: str | None = None,
    *,
    always: Mapping[str, object] | None = None,
    **how: float,
) -> Callable[[V], V]:
    """Make a view a command that asks the node once: its options are the fields of the request.

    They are named so, but those that say several (`Fields`). A file that the node answers with
    is written to `--output`. A view shows the answer to people; it returns a line for them, or
    the exit code.

    Args:
        group: where the command is.
        endpoint: what is asked.
        name: of the command, where it is not that of the view; the view's text is its help.
        always: fields of the request that no option says.
        how: how long is waited for the answer, as for `Core.ask`.
    """

    def decorate(view: V) -> V:
        def call(
            settings: Settings, output: Path | None = None, **given: object
        ) -> str | int | None:
            said = dict(always or {})
            for field, value in given.items():
                said |= value if isinstance(value, Fields) else {field: value}
            if output is not None:
                settings.save(endpoint, output, **said)
                return None
            answer = settings.ask(endpoint, **said, **how)
            settings.view(answer)
            told = view(answer)
            if isinstance(told, str):
                show.line(told)
            return told

        call.__click_params__ = getattr(view, "__click_params__", [])  # type: ignore[attr-defined]
        group.command(name or view.__name__, help=view.__doc__)(call)
        return view

    return decorate


class ProgramCommand(Command):
    """A command that exits with a program's code, and shifts XSC's own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Shift exit codes from here on: a wrong option is XSC's failure, too."""
        ctx.ensure_object(Settings).exit_base = PROGRAM_EXIT_BASE
        return super().parse_args(ctx, args)


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A value that a function of ours reads; its error names the option.

    Args:
        name: what stands for it in help.
        read: returns the value that a text stands for.
        complete: returns what a shell completes it to.
    """

    def __init__(
        self, name: str, read: Callable[[str], Any], complete: Complete = lambda *_: []
    ) -> None:
        self.name = name
        self._read = read
        self._complete = complete

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's own
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> object:
        """Return the value that the text stands for."""
        if not isinstance(value, str):
            return value
        if value == "-" and ctx is not None and ctx.resilient_parsing:
            return value  # a shell completes the line: standard input is its own
        try:
            return self._read(value)
        except ArgumentInvalid as fault:
            place = self.name if param is None else param.opts[0]
            if isinstance(param, click.Argument) and ctx is not None:
                place = param.make_metavar(ctx)
            raise ArgumentInvalid(f"{place}: {fault.message}", hint=fault.hint) from None

    def shell_complete(
        self, ctx: click.Context, _: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return what begins so."""
        return self._complete(ctx, incomplete)


def known(offers: Callable[[], Offers]) -> Complete:
    """Return what completes to what the node knows; to nothing where it does not answer.

    Only plain words: a shell puts them onto the command line as they are, and names of peers are
    made by these.

    Args:
        offers: returns lists of the node, and the fields of their rows.
    """

    def complete(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        try:
            calls = ctx.ensure_object(Settings).calls()
            found = {
                row[field]
                for endpoint, field in offers()
                for row in calls.ask(endpoint)[endpoint.rows]
            }
        except XscError:
            return []
        return _plain(sorted(word for word in found if word.startswith(incomplete)))

    return complete


def _plain(words: Iterable[str]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in words if _PLAIN_WORD.fullmatch(word)]


def _files(_: click.Context, incomplete: str) -> list[CompletionItem]:
    """Leave files and directories to the shell."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _modules(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Return the WebAssembly modules and directories that begin so."""
    folder, slash, name = incomplete.rpartition("/")
    try:
        found = sorted(Path(folder + slash or ".").iterdir())
    except OSError:
        return []
    words = [
        folder + slash + path.name + "/" * path.is_dir()
        for path in found
        if path.name.startswith(name) and (path.is_dir() or path.suffix == ".wasm")
    ]
    if len(words) == 1 and words[0].endswith("/"):
        # The shell goes on with what is in it, instead of beginning the next word.
        return _modules(ctx, words[0]) or _plain(words)
    return _plain(words)


def _path(text: str) -> Path:
    if not text:
        raise ArgumentInvalid("an empty text names no file or directory")
    return Path(text)


def _target(text: str) -> Path:
    path = _path(text)
    if path != STREAM:
        check_target(path)
    return path


def _directory(text: str) -> Path:
    return _path(text).expanduser().absolute()


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9][0-9_]{0,30}", text) or int(text) < 1:
        raise ArgumentInvalid(f"'{text}' is no whole number from 1 on")
    return int(text)


def _fuel(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,18})[eE]([0-9]{1,2})", text)
    try:
        return _whole(text) if match is None else _whole(str(int(match[1]) * 10 ** int(match[2])))
    except ArgumentInvalid as fault:
        raise ArgumentInvalid(fault.message, hint="write for example 5000000 or 1e9") from None


def _within(
    read: Callable[[str], int], most: int | None, shown: Callable[[int], str], least: int = 1
) -> Callable[[str], int]:
    """Return what reads a value between two bounds, and says them to people."""

    def reader(text: str) -> int:
        value = read(text)
        if value < least or (most is not None and value > most):
            fault = "little" if value < least else "much"
            hint = f"it can be from {shown(least)}"
            hint += " on" if most is None else f" to {shown(most)}"
            raise ArgumentInvalid(f"'{text}' is too {fault}", hint=hint)
        return value

    return reader


def _sizes(most: int | None = None) -> Parsed:
    return Parsed("SIZE", _within(units.parse_size, most, units.format_size))


def durations(most: int | None = None, least: int = 1) -> Parsed:
    """Return what reads a duration between two bounds."""
    read = _within(units.parse_duration_ms, most, units.format_duration, least)
    return Parsed("DURATION", read)


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise ArgumentInvalid(
            f"'{text}' is no pair of a name and a value", hint="write it as NAME=VALUE"
        )
    return name, value


def _capability(text: str) -> str:
    if text == "-":
        return _word(STREAM, "standard input")
    if text.startswith("@"):
        return _word(_path(text[1:]), text[1:])
    if text.startswith(READS):
        _warn_of_list()
    return text


def _warn_of_list() -> None:
    """Say once, to a person, that others can read a capability in the list of processes."""
    ctx = click.get_current_context(silent=True)
    if ctx is None or ctx.obj.warned or not (sys.stderr.isatty() or ctx.obj.verbose):
        return
    ctx.obj.warned = True
    show.warn(
        "a capability on a command line can be read by other users of this machine; "
        "@FILE or - keep it out of there"
    )


def object_of(text: str) -> str:
    """Return a capability, or else the name of an own object, or of what is in a directory."""
    if text == "-" or text.startswith(("@", "xsc:")):
        if not (found := _capability(text)).startswith("xsc:"):
            raise ArgumentInvalid(f"{text} does not hold a capability")
        return found
    if not text:
        raise ArgumentInvalid("an empty text names no object")
    return text


def read_given(path: Path | None, what: str, size_max: int) -> bytes:
    """Return a file, standard input where it is -, or nothing; it must fit in memory.

    Raises:
        ArgumentInvalid: it cannot be read.
        TooLarge: it has more than `size_max` bytes.
    """
    if path is None:
        return b""
    if path == STREAM:
        return read_bounded(sys.stdin.buffer, what, size_max)
    return read_file(path, what, size_max)


def _word(path: Path, place: str) -> str:
    try:
        return read_given(path, "file", CAPABILITY_BYTES_MAX).decode("ascii", "replace").strip()
    except TooLarge:
        raise TooLarge(f"{place} holds more than one capability") from None


def _limit(text: str) -> Fields:
    if text == "auto":
        return Fields()
    try:
        return Fields(limit_micro=units.parse_credits(text))
    except ArgumentInvalid as fault:
        raise ArgumentInvalid(fault.message, hint="write for example 2.5, or auto") from None


def _input(text: str) -> tuple[str, str]:
    name, value = _pair(text)
    return name, object_of(value)


_OBJECTS = known(lambda: [(api.objects.LIST, "name")])
OBJECT = Parsed("CAP", object_of, _OBJECTS)
NAME = Parsed("NAME", str, _OBJECTS)
PEER = Parsed("PEER", str, known(lambda: [(api.peers.LIST, "name")]))
SERVICE = Parsed("NAME", str, known(lambda: [(api.services.LIST, "name")]))
LEASE = Parsed("LEASE", str, known(lambda: [(api.market.LEASES, "lease_id")]))
INVITATION = Parsed("INVITATION", _capability)
WHOLE = Parsed("N", _whole)
SIZE = _sizes()
DURATION = durations(DURATION_MS_MAX)
FUEL = Parsed("N", _fuel)
RUN_FUEL = Parsed("N", _within(_fuel, limits.FUEL_MAX, str))
RUN_MEMORY = _sizes(limits.MEMORY_BYTES_MAX)
RUN_TIME = durations(limits.TIMEOUT_MS_MAX)
RUN_WAIT = durations(limits.TIMEOUT_MS_MAX, 0)
CONCURRENCY = Parsed("N", _within(_whole, limits.SERVICE_CONCURRENCY_MAX, str))
SHARE = Parsed("SHARE", units.parse_share_ppm)
CREDITS = Parsed("CREDITS", units.parse_credits)
LIMIT = Parsed("CREDITS|auto", _limit)
RANGE = Parsed("FIRST-LAST", check_range)
PAIR = Parsed("NAME=VALUE", _pair)
INPUT = Parsed("NAME=CAP", _input)
DIRECTORY = Parsed("DIR", _directory)
PATH = Parsed("FILE", _path, _files)
TARGET = Parsed("FILE", _target, _files)
"""A file that is written."""
MODULE = Parsed("FILE", _path, _modules)


def table(what: str, *declared: str, **how: Any) -> Callable[[F], F]:  # noqa: ANN401 - click's own
    """Return an option of pairs that may be given several times, which makes a mapping of them.

    Args:
        what: a name in the mapping names.
        declared: the names of the option.
        how: as for `click.option`.
    """

    def read(
        _: click.Context, __: click.Parameter, pairs: tuple[tuple[str, object], ...]
    ) -> Mapping[str, object] | None:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ArgumentInvalid(f"the {what} '{twice}' is given twice")
        return found or None

    return option(*declared, multiple=True, callback=read, **how)


output_option = option("-o", "--output", type=TARGET, required=True, help="File to write, or -.")
"""Of commands that write one file."""
