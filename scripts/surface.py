#!/usr/bin/env python3
"""Lists what users, scripts and peers hold on to, a line each, sorted.

Errors, commands with their options, settings, endpoints, methods between peers, and log events.
Compare the lists of two commits to see what a change takes away: `make surface`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from xsc.api.table import ENDPOINTS
from xsc.base.errors import XscError
from xsc.cli.main import cli
from xsc.node.config import KEYS

ROOT = Path(__file__).parents[1]
_EVENT = re.compile(r"[a-z_]+\.[a-z_]+")


def errors(kind: type[XscError] = XscError) -> Iterator[str]:
    """Yield the errors below one, with their exit codes."""
    for error in kind.__subclasses__():
        yield f"error {error.__name__} {error.exit_code}"
        yield from errors(error)


def commands(command: click.Command, path: str) -> Iterator[str]:
    """Yield a command, those below it, and their options."""
    yield f"command {path}"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield f"option {path} {'/'.join([*parameter.opts, *parameter.secondary_opts])}"
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, f"{path} {name}")


def peer_methods() -> Iterator[str]:
    """Yield the methods of docs/security.md, which a test holds to be all that a node answers."""
    page = (ROOT / "docs" / "security.md").read_text()
    table = page.split("## Every method that a peer answers")[1].split("\n## ")[0]
    for name in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE):
        yield f"peer method {name}"


def _is_text(given: list[ast.expr]) -> bool:
    return bool(given) and isinstance(given[0], ast.Constant) and isinstance(given[0].value, str)


def log_events() -> Iterator[str]:
    """Yield what is given to the log first, where it has the form of an event."""
    for path in (ROOT / "xsc").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                first = ast.literal_eval(node.args[0]) if _is_text(node.args) else ""
                level = node.func.attr
                if level in {"info", "warning", "error"} and _EVENT.fullmatch(first):
                    yield f"log event {first} {level}"


def main() -> int:
    """Print the list."""
    found = {
        *errors(),
        *commands(cli, "xsc"),
        *(f"setting {name}" for name in KEYS),
        *(f"endpoint {each.method} {each.path}" for each in ENDPOINTS),
        *peer_methods(),
        *log_events(),
    }
    print("\n".join(sorted(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
