"""xsc program: values that are computed anew whenever what they depend on changes."""

from __future__ import annotations

from pathlib import Path

import click
from click import argument, option

from xsc import api
from xsc.base import errors, text
from xsc.cli import options, show
from xsc.cli.options import Group, Settings, asks
from xsc.client.calls import FSCK_TIMEOUT_S, read_document
from xsc.client.core import Document

_file = argument("file", metavar="FILE", type=options.PATH)
_hash = argument("hash", metavar="HASH")
SHOWN_CHARS_MAX = 64
"""Of a value in a table or tree; JSON has it whole."""


@click.group(cls=Group)
def program() -> None:
    """Run documents that say which values depend on which.

    FILE is TOML, or JSON where its name ends in .json; modules that it names
    are files beside it. HASH is what `register` prints, or its beginning.
    """


@program.command()
@_file
def register(settings: Settings, file: Path) -> None:
    """Check and keep a program, and print its hash; it does not run yet."""
    answer = settings.calls().register(*read_document(file))
    settings.view(answer, answer["hash"])


@asks(program, api.programs.ACTIVATE)
@_hash
def activate(_: Document) -> None:
    """Run a registered program from now on, after each start of the node too."""


@asks(program, api.programs.DEACTIVATE)
@_hash
def deactivate(_: Document) -> None:
    """Run a program no more; what it published stays."""


@program.command()
@_file
def run(settings: Settings, file: Path) -> None:
    """Register and activate a program, and print its results as they change, until Ctrl-C.

    It runs on after that, until `deactivate`.
    """
    calls = settings.calls()
    answer = calls.register(*read_document(file), activate=True)
    show.say(f"running {answer['hash']}")
    with calls.events(api.programs.WATCH, hash=answer["hash"]) as results:
        for found in results:
            settings.view(found, _line(found))


def _line(found: Document) -> str:
    shown = [f"{name}={_shown(value)}" for name, value in found["outputs"].items()]
    shown += [f"{name}: {error}" for name, error in found["errors"].items()]
    if found["fault"]:
        shown.append(found["fault"])
    return f"{found['frame']}  {'  '.join(shown)}"


def _shown(value: str | None) -> str:
    return "-" if value is None else text.cut(value, SHOWN_CHARS_MAX)


@asks(program, api.programs.STOP)
@_hash
def stop(_: Document) -> None:
    """Stop a program until the node starts again, or `activate`."""


@asks(program, api.programs.EXEC, name="exec")
@_hash
def exec_(answer: Document) -> None:
    """Compute what has changed now, and show the results."""
    results(answer)


@asks(program, api.programs.SHOW)
@_hash
def results(answer: Document) -> None:
    """Show what a program read and computed last."""
    show.note(f"{answer['id']}: {answer['state']}, frame {answer['frame']}")
    if answer["fault"]:
        show.note(answer["fault"])
    rows = [["variable", name, _shown(value)] for name, value in answer["variables"].items()]
    rows += [["output", name, _shown(value)] for name, value in answer["outputs"].items()]
    rows += [["error", name, value] for name, value in answer["errors"].items()]
    rows += [["stale", name, ""] for name in answer["stale"]]
    idle = answer["state"] in {"registered", "stopped"}
    empty = "the program is not running" if idle else "nothing was computed yet"
    show.table(["what", "name", "value"], rows, empty)


@asks(program, api.programs.SET, name="set")
@_hash
@argument("name", metavar="VARIABLE")
@argument("value", metavar="VALUE")
def set_(_: Document) -> None:
    """Give a variable a value, and compute what depends on it at once."""


@asks(program, api.programs.LIST)
def ls(answer: Document) -> None:
    """List the registered programs, and whether they run."""
    show.rows(
        answer["programs"],
        "hash id state <frame",
        "no program is registered",
        id=lambda row: f"{row['id']} (built in)" if row["built_in"] else row["id"],
    )


@asks(program, api.programs.WHY, timeout_s=FSCK_TIMEOUT_S)
@argument("at", metavar="[OWNER:]PATH")
@option("--replay", is_flag=True, help="Run every function and module again, too.")
def why(answer: Document) -> None:
    """Show what is behind a value, link by link, and whether each link holds.

    Signatures prove who said what was computed. Only --replay proves that it
    is right; exits with 6 if a second run gives something else.
    """
    show.line(_told(answer))
    show.branches(answer["inputs"], _told)
    steps = [answer]
    for step in steps:
        steps += step["inputs"]
    if any(step["replayed"] is False for step in steps):
        raise errors.ProofInvalid("a second run gives something else")


def _told(step: Document) -> str:
    """Return the line of a step."""
    name = f"{step['input']}: " if step["input"] else ""
    value = "(large)" if step["value"] is None else _shown(step["value"])
    line = f"{name}{step['path']} = {value}"
    if step["function"]:
        line += f"  by {step['function']} ({step['version'][:8]})"
    notes = ["verified" if step["verified"] else "NOT VERIFIED"]
    if step["replayed"] is not None:
        notes.append("same again" if step["replayed"] else "NOT THE SAME AGAIN")
    if step["note"]:
        notes.append(step["note"])
    return f"{line}  [{', '.join(notes)}]"
