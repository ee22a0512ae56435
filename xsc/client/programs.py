"""Calls for programs: register, activate, deactivate, list, set variables, and follow results."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from xsc.base.errors import ArgumentInvalid
from xsc.base.limits import MODULE_BYTES_MAX, PROGRAM_DOCUMENT_BYTES_MAX
from xsc.client.calls import FSCK_TIMEOUT_S, read_file
from xsc.client.core import Core, Document, Events, to_json
from xsc.client.space import address_of

_HASH = re.compile(r"[a-z2-7]{4,52}")


def _path(program: str, rest: str = "") -> str:
    if not _HASH.fullmatch(program):
        raise ArgumentInvalid(
            f"'{program[:60]}' is no hash of a program", hint="list them: xsc program ls"
        )
    return f"/v1/programs/{program}{rest}"


def read_document(path: Path) -> tuple[bytes, Literal["toml", "json"], dict[str, bytes]]:
    """Return the document of a file, its form, and the modules that it names, by their names.

    Modules are files beside the document. The node says what is wrong with a document.

    Raises:
        ArgumentInvalid: a file cannot be read.
        TooLarge: the document or a module is over its bound.
    """
    raw = read_file(path, "document", PROGRAM_DOCUMENT_BYTES_MAX)
    form: Literal["toml", "json"] = "json" if path.suffix == ".json" else "toml"
    modules = {}
    for name in _modules(raw, form):
        try:
            beside = path.parent / name
            if beside.is_file():
                modules[name] = read_file(beside, "module", MODULE_BYTES_MAX)
        except ValueError:  # no name of a file
            continue
    return raw, form, modules


def _modules(raw: bytes, form: str) -> list[str]:
    try:
        text = raw.decode()
        found: Any = tomllib.loads(text) if form == "toml" else json.loads(text)
        calls = [item.get("function") for item in found["computations"].values()]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return []
    names = (call.get("module") for call in calls if isinstance(call, dict))
    return sorted({name for name in names if isinstance(name, str) and name})


class ProgramCalls:
    """The calls of one node. A program is named by its hash, or the beginning of it."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def register(
        self,
        document: bytes,
        form: Literal["toml", "json"],
        modules: Mapping[str, bytes] | None = None,
        *,
        activate: bool = False,
    ) -> Document:
        """Register a program, and activate it if asked; return its results."""
        brought = dict(modules or {})
        head = to_json(
            {
                "form": form,
                "document_bytes": len(document),
                "modules": [
                    {"name": name, "size_bytes": len(raw)} for name, raw in brought.items()
                ],
                "activate": activate,
            }
        )
        parts = [len(head).to_bytes(4, "big"), head, document, *brought.values()]
        return self.core.send("POST", "/v1/programs", parts)

    def programs(self) -> Document:
        """Return the registered programs."""
        return self.core.call("GET", "/v1/programs")

    def results(self, program: str) -> Document:
        """Return what a program computed last."""
        return self.core.call("GET", _path(program))

    def activate(self, program: str) -> Document:
        """Run a registered program from now on."""
        return self.core.call("POST", _path(program, "/activate"), {})

    def deactivate(self, program: str) -> Document:
        """Run a program no more."""
        return self.core.call("POST", _path(program, "/deactivate"), {})

    def set_variable(self, program: str, name: str, value: str) -> Document:
        """Give a variable of kind `value` or `local` a value; return the results."""
        at = _path(program, f"/variables/{quote(name, safe='')}")
        return self.core.call("PUT", at, {"value": value})

    def watch(self, program: str) -> Events:
        """Return the results, now and after each frame, to be used in a `with`."""
        return self.core.events(_path(program, "/watch"))

    def why(self, address: str, *, replay: bool = False) -> Document:
        """Return the value at `[OWNER:]PATH` with what is behind it; run it again if asked."""
        at = quote(address_of(address), safe="")
        again = "&replay=true" if replay else ""
        return self.core.call("GET", f"/v1/provenance?at={at}{again}", timeout_s=FSCK_TIMEOUT_S)
