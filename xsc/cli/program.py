"""xsc program: values that are computed anew whenever what they depend on changes."""

from __future__ import annotations

from pathlib import Path

import click

from xsc import api
from xsc.base.errors import ProofInvalid
from xsc.cli.options import PATH, Group, Parsed, Settings
from xsc.cli.output import Branch, Columns, say, show_table, show_tree
from xsc.client.calls import FSCK_TIMEOUT_S
from xsc.client.core import Document
from xsc.client.programs import hash_of, read_document
from xsc.client.programs import register as register_document
from xsc.client.space import address_of

file_argument = click.argument("file", metavar="FILE", type=PATH)
hash_argument = click.argument("program", metavar="HASH")
SHOWN_CHARS_MAX = 64
"""Of a value in a table or tree; JSON has it whole."""


@click.group(cls=Group)
def program() -> None:
    """Run documents that say which values depend on which.

    FILE is TOML, or JSON where its name ends in .json; modules that it names
    are files beside it. HASH is what `register` prints, or its beginning.
    """


@program.command()
@file_argument
def register(settings: Settings, file: Path) -> None:
    """Check and keep a program, and print its hash; it does not run yet."""
    answer = register_document(settings.calls(), *read_document(file))
    settings.view(answer, answer["hash"])


@program.command()
@hash_argument
def activate(settings: Settings, program: str) -> None:
    """Run a registered program from now on, after each start of the node too."""
    settings.view(settings.ask(api.programs.ACTIVATE, hash_of(program)))


@program.command()
@hash_argument
def deactivate(settings: Settings, program: str) -> None:
    """Run a program no more; what it published stays."""
    settings.view(settings.ask(api.programs.DEACTIVATE, hash_of(program)))


@program.command()
@file_argument
def run(settings: Settings, file: Path) -> None:
    """Register and activate a program, and print its results as they change, until Ctrl-C.

    It runs on after that, until `deactivate`.
    """
    calls = settings.calls()
    answer = register_document(calls, *read_document(file), activate=True)
    say(f"running {answer['hash']}")
    with calls.events(api.programs.WATCH, hash_of(answer["hash"])) as results:
        for found in results:
            settings.view(found, _line(found))


def _line(found: Document) -> str:
    shown = [f"{name}={_shown(value)}" for name, value in found["outputs"].items()]
    shown += [f"{name}: {error}" for name, error in found["errors"].items()]
    if found["fault"]:
        shown.append(found["fault"])
    return f"{found['frame']}  {'  '.join(shown)}"


def _shown(value: str | None) -> str:
    if value is None:
        return "-"
    return value if len(value) <= SHOWN_CHARS_MAX else f"{value[:SHOWN_CHARS_MAX]}…"


@program.command()
@hash_argument
def results(settings: Settings, program: str) -> None:
    """Show what a program read and computed last."""
    settings.view(settings.ask(api.programs.SHOW, hash_of(program)), _show_results)


def _show_results(answer: Document) -> None:
    say(f"{answer['id']}: {answer['state']}, frame {answer['frame']}")
    if answer["fault"]:
        say(answer["fault"])
    rows = [["variable", name, _shown(value)] for name, value in answer["variables"].items()]
    rows += [["output", name, _shown(value)] for name, value in answer["outputs"].items()]
    rows += [["error", name, value] for name, value in answer["errors"].items()]
    rows += [["stale", name, ""] for name in answer["stale"]]
    show_table(["what", "name", "value"], rows, "nothing was computed yet")


@program.command("set")
@hash_argument
@click.argument("variable", metavar="VARIABLE")
@click.argument("value", metavar="VALUE")
def set_(settings: Settings, program: str, variable: str, value: str) -> None:
    """Give a variable a value, and compute what depends on it at once."""
    asked = api.programs.Set(hash=hash_of(program).hash, name=variable, value=value)
    settings.view(settings.ask(api.programs.SET, asked))


@program.command("ls")
def ls(settings: Settings) -> None:
    """List the registered programs, and whether they run."""
    columns: Columns = {
        "hash": "hash",
        "id": lambda row: f"{row['id']} (built in)" if row["built_in"] else row["id"],
        "state": "state",
        "<frame": ("frame", str),
    }
    answer = settings.ask(api.programs.LIST)
    settings.table(answer, "programs", columns, "no program is registered")


@program.command()
@click.argument("path", metavar="[OWNER:]PATH", type=Parsed("PATH", address_of))
@click.option("--replay", is_flag=True, help="Run every function and module again, too.")
def why(settings: Settings, path: str, replay: bool) -> None:
    """Show what is behind a value, link by link, and whether each link holds.

    Signatures prove who said what was computed. Only --replay proves that it
    is right; exits with 6 if a second run gives something else.
    """
    asked = api.programs.Why(at=path, replay=replay)
    answer = settings.ask(api.programs.WHY, asked, timeout_s=FSCK_TIMEOUT_S)
    settings.view(answer, lambda _: show_tree(_told(answer), _behind(answer)))
    steps = [answer]
    for step in steps:
        steps += step["inputs"]
    if any(step["replayed"] is False for step in steps):
        raise ProofInvalid("a second run gives something else")


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


def _behind(step: Document) -> list[Branch]:
    return [(_told(inner), _behind(inner)) for inner in step["inputs"]]
