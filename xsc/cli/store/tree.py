"""What `xsc store` does with whole directories."""

from __future__ import annotations

import os
import sys
import time
from base64 import b64encode
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Unpack

import click

from xsc.base.errors import EXIT_PARTLY, ArgumentInvalid
from xsc.base.units import format_size
from xsc.cli.options import Settings
from xsc.cli.output import moment, progress_bar, say, show_json, show_table, warn
from xsc.cli.store.cost import say_cost
from xsc.client.calls import Calls, PutOptions
from xsc.client.core import Document, Progress
from xsc.client.targets import Named, Target, read_tree, resolve
from xsc.client.tree import Node, tree_id

_LETTERS = {"directory": "d", "file": "-", "link": "l"}


def put(settings: Settings, folder: Path, *, reread: bool, **how: Unpack[PutOptions]) -> int:
    """Store a directory; return the exit code."""
    from xsc.client.folders import put_tree

    given, code = how.get("name"), how.get("code")
    name = (given if given is not None else folder.absolute().name).rstrip("/")
    if not name:
        raise ArgumentInvalid("the directory needs a name", hint="give one with --name")
    calls = settings.calls()

    def storing(total: int) -> AbstractContextManager[Progress]:
        if not settings.json:
            say_cost(calls, total, code)
        return progress_bar(f"storing {name}", total)

    stored = put_tree(
        calls,
        folder,
        name,
        started_ms=time.time_ns() // 1_000_000,
        warn=warn,
        survive=how["survive"],
        code=code,
        reread=reread,
        progress=storing,
    )
    for warning in stored.document["warnings"]:
        warn(warning)
    capability = stored.document["capability"]
    answer = {
        "capability": capability,
        "name": stored.document["name"],
        "files": stored.files,
        "sent_files": stored.sent,
        "sent_bytes": stored.sent_bytes,
        "left_out": stored.left_out,
    }
    if settings.verbose and not settings.json:
        say(f"sent {stored.sent} of {stored.files} files, {format_size(stored.sent_bytes)}")
    settings.view(answer, capability)
    return EXIT_PARTLY if stored.left_out else 0


def _directory(calls: Calls, target: str | Named, version: int | None) -> Target:
    """Return what is meant, which is a directory as far as a name says it.

    Raises:
        ArgumentInvalid: a file has that name. ObjectUnknown: nothing has.
    """
    found = resolve(calls, target, version)
    if isinstance(target, Named) and found.kind != "directory":
        raise ArgumentInvalid(f"{target.name} is a file, not a directory", hint="leave -r out")
    return found


def get(settings: Settings, target: str | Named, output: Path, version: int | None) -> None:
    """Fetch a directory."""
    from xsc.client.folders import get_tree

    calls = settings.calls()
    found = _directory(calls, target, version)
    tree = get_tree(
        calls,
        found.capability,
        output,
        warn=warn,
        path=found.path,
        progress=lambda total: progress_bar("fetching", total),
    )
    files = sum(node.kind == "file" for node in tree.nodes)
    size = sum(node.size_bytes for node in tree.nodes)
    if settings.json:
        show_json({"directory": str(output), "files": files, "size_bytes": size})
    elif settings.verbose:
        say(f"fetched {files} files, {format_size(size)}, to {output}")


def show_tree(settings: Settings, target: str | Named, version: int | None) -> None:
    """List what is in a stored directory."""
    calls = settings.calls()
    found = _directory(calls, target, version)
    tree = read_tree(calls, found.capability)
    if found.path:
        tree = tree.at(found.path)
    if settings.json:
        show_json({"entries": [_entry(node) for node in tree.nodes]})
    else:
        show_table(_HEADS, [_cells(node) for node in tree.nodes], "the directory is empty")


def _entry(node: Node) -> Document:
    return {
        "path": node.path.decode("utf-8", "replace"),
        "path_base64": b64encode(node.path).decode(),
        "kind": node.kind,
        "mode": node.mode,
        "mtime_ns": node.mtime_ns,
        "size_bytes": node.size_bytes,
        "capability": node.capability,
    }


_HEADS = ("mode", "<size", "changed", "path")


def _cells(node: Node) -> list[str]:
    is_link = node.kind == "link"
    return [
        _LETTERS[node.kind] + ("" if is_link else f"{node.mode:04o}"),
        format_size(node.size_bytes) if node.kind == "file" else "-",
        moment(node.mtime_ns // 1_000_000),
        os.fsdecode(node.path) + (f" -> {os.fsdecode(node.target)}" if is_link else ""),
    ]


def confirm_removal(calls: Calls, name: str, version: int | None, *, yes: bool) -> None:
    """Ask whether a directory is to be deleted, unless that was said already.

    Raises:
        ArgumentInvalid: it is not, or nobody can be asked.
    """
    if yes:
        return
    what = f"all of {name}" if version is None else f"version {version} of {name}"
    if not sys.stdin.isatty():
        raise ArgumentInvalid(f"{what} is to be deleted, a directory", hint="--yes says so")
    files = len(calls.parts(tree_id(name)))
    if not click.confirm(f"Delete {what}, a directory of {files} stored files?", err=True):
        raise ArgumentInvalid("it was not confirmed, and nothing was deleted")
