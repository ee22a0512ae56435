"""The text of a document: the tree that it holds, within bounds, and the lines of its keys."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from xsc.base.errors import ProgramInvalid
from xsc.programs.limits import DOCUMENT_DEPTH_MAX, LINE_DOTS_MAX, NAME_CHARS_MAX

Form: TypeAlias = Literal["toml", "json"]
KeyPath: TypeAlias = tuple[str, ...]
Lines: TypeAlias = Mapping[KeyPath, int]
"""By key, the line where it stands."""

_TOML_BLOCK: Final = re.compile(r'("""|\'\'\').*?\1', re.DOTALL)
_TOML_KEY: Final = re.compile(
    r"""(\[?)((?:[\w-]++|"[^"\n]*+"|'[^'\n]*+'|[ \t]*+\.[ \t]*+)++)[ \t]*+([]=])"""
)
_TOML_PART: Final = re.compile(r"""[\w-]+|"[^"\n]*"|'[^'\n]*'""")
_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|\n', re.DOTALL)


def fault_at(lines: Lines, path: KeyPath, message: str) -> ProgramInvalid:
    """Return the error for a key: its line where it is known, its path, and what is wrong."""
    for length in range(len(path), 0, -1):
        if line := lines.get(path[:length]):
            return ProgramInvalid(f"line {line}: {'.'.join(path)}: {message}")
    return ProgramInvalid(f"{'.'.join(path)}: {message}" if path else message)


def _toml_lines(text: str) -> dict[KeyPath, int]:
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    blank = _TOML_BLOCK.sub(lambda block: '""' + "\n" * block[0].count("\n"), text)
    for number, line in enumerate(blank.split("\n"), 1):
        match = _TOML_KEY.match(line.lstrip())
        if match is None:
            continue
        parts = tuple(part.strip("\"'") for part in _TOML_PART.findall(match[2]))
        if match[1] and match[3] == "]":
            table = parts
            found.setdefault(table, number)
        elif not match[1] and match[3] == "=":
            found.setdefault(table + parts, number)
    return found


def _json_lines(text: str) -> dict[KeyPath, int]:
    found: dict[KeyPath, int] = {}
    stack: list[str] = []
    number, last = 1, ""
    for mark in _JSON_TOKEN.findall(text):
        if mark == "\n":
            number += 1
        elif mark in "{[":
            stack.append("")
        elif mark in "}]":
            stack.pop()
        elif mark == ":":
            stack[-1] = json.loads(last, strict=False)
            found.setdefault(tuple(stack), number)
        last = mark if mark != "\n" else last
    return found


def lines_of(text: str, form: Form) -> Lines:
    """Return the lines of tables and keys of a text that parses."""
    return _toml_lines(text) if form == "toml" else _json_lines(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ProgramInvalid(f"the key '{twice[:NAME_CHARS_MAX]}' is there twice")
    return found


def read_tree(text: str, form: Form) -> object:
    """Return what a text holds: tables, lists and values.

    Raises:
        ProgramInvalid: it is not of its form, nested too deeply, or has a key twice.
    """
    if form == "toml":
        for number, line in enumerate(text.split("\n"), 1):
            if line.count(".") > LINE_DOTS_MAX:
                raise ProgramInvalid(f"line {number} has more than {LINE_DOTS_MAX} dots")
    deep = ProgramInvalid(f"nested deeper than {DOCUMENT_DEPTH_MAX} levels")
    try:
        found = tomllib.loads(text) if form == "toml" else json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise deep from None
    except ValueError as fault:
        raise ProgramInvalid(f"not {form.upper()}: {fault}") from None
    if not _depth_fits(found):
        raise deep
    return found


def _depth_fits(found: object) -> bool:
    level: list[object] = [found]
    for _ in range(DOCUMENT_DEPTH_MAX + 1):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = inner
        if not level:
            return True
    return False
