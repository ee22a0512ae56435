"""Calls for programs: register, activate, deactivate, list, set variables, and follow results."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from xsc.api import programs as api
from xsc.api.endpoint import Nothing
from xsc.base.errors import ArgumentInvalid
from xsc.base.limits import MODULE_BYTES_MAX, PROGRAM_DOCUMENT_BYTES_MAX
from xsc.client.calls import FSCK_TIMEOUT_S, read_file
from xsc.client.core import Core, Document, Events
from xsc.client.space import address_of

_HASH = re.compile(r"[a-z2-7]{4,52}")


def _hash(program: str) -> str:
    if not _HASH.fullmatch(program):
        raise ArgumentInvalid(
            f"'{program[:60]}' is no hash of a program", hint="list them: xsc program ls"
        )
    return program


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
        asked = api.Register(
            form=form,
            document_bytes=len(document),
            modules=[api.Module(name=name, size_bytes=len(raw)) for name, raw in brought.items()],
            activate=activate,
        )
        return self.core.ask(api.REGISTER, asked, document, *brought.values())

    def programs(self) -> Document:
        """Return the registered programs."""
        return self.core.ask(api.LIST, Nothing())

    def results(self, program: str) -> Document:
        """Return what a program computed last."""
        return self.core.ask(api.SHOW, api.Hash(hash=_hash(program)))

    def activate(self, program: str) -> Document:
        """Run a registered program from now on."""
        return self.core.ask(api.ACTIVATE, api.Hash(hash=_hash(program)))

    def deactivate(self, program: str) -> Document:
        """Run a program no more."""
        return self.core.ask(api.DEACTIVATE, api.Hash(hash=_hash(program)))

    def set_variable(self, program: str, name: str, value: str) -> Document:
        """Give a variable of kind `value` or `local` a value; return the results."""
        asked = api.Set(hash=_hash(program), name=name, value=value)
        return self.core.ask(api.SET, asked)

    def watch(self, program: str) -> Events:
        """Return the results, now and after each frame, to be used in a `with`."""
        return self.core.events(api.WATCH, api.Hash(hash=_hash(program)))

    def why(self, address: str, *, replay: bool = False) -> Document:
        """Return the value at `[OWNER:]PATH` with what is behind it; run it again if asked."""
        asked = api.Why(at=address_of(address), replay=replay)
        return self.core.ask(api.WHY, asked, timeout_s=FSCK_TIMEOUT_S)
