"""Documents of programs: read with the modules that they name, and registered."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from xsc.api import programs as api
from xsc.base.errors import ArgumentInvalid
from xsc.base.limits import MODULE_BYTES_MAX, PROGRAM_DOCUMENT_BYTES_MAX
from xsc.client.calls import read_file
from xsc.client.core import Core, Document

_HASH = re.compile(r"[a-z2-7]{4,52}")


def hash_of(program: str) -> api.Hash:
    """Return what names a program: its hash, or the beginning of it.

    Raises:
        ArgumentInvalid: it is none.
    """
    if not _HASH.fullmatch(program):
        raise ArgumentInvalid(
            f"'{program[:60]}' is no hash of a program", hint="list them: xsc program ls"
        )
    return api.Hash(hash=program)


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


def register(
    core: Core,
    document: bytes,
    form: Literal["toml", "json"],
    modules: Mapping[str, bytes],
    *,
    activate: bool = False,
) -> Document:
    """Register a program, and activate it if asked; return its results."""
    asked = api.Register(
        form=form,
        document_bytes=len(document),
        modules=[api.Module(name=name, size_bytes=len(raw)) for name, raw in modules.items()],
        activate=activate,
    )
    return core.ask(api.REGISTER, asked, document, *modules.values())
