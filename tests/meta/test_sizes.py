"""Every package has at most as many lines of code as `[tool.xsc.sizes]` in pyproject.toml says.

No class has more than METHODS_MAX methods, but those that are named here.

A line counts that carries code: no docstring, string that stands alone, comment or blank. A size
goes down with the code; one that goes up needs a decision in docs/adr, or an issue that names it.
"""

from __future__ import annotations

import ast
import io
import tokenize
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}

METHODS_MAX = 25
LARGER = {
    "xsc.compute.wasm.wasi.Wasi": 65,  # they are WASI's
    "xsc.net.peers.roster.Roster": 30,
    "xsc.node.build.Node": 37,
    "xsc.storage.service.StorageService": 30,
}
"""Classes with more methods, and how many; a number only goes down."""


def lines_of_code(source: str) -> int:
    """Count the lines that carry code."""
    alone: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                alone |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kept = [token for token in tokens if token.type not in LAYOUT]
    return len({n for token in kept for n in range(token.start[0], token.end[0] + 1)} - alone)


def test_only_lines_that_carry_code_count():
    source = '"""Says."""\n\nX = (\n    1,  # one\n)\n"""Says."""\n# no\ndef f():\n    "Says."\n'
    assert lines_of_code(source) == 4


def test_every_package_has_a_size_and_is_within_it():
    sizes = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["xsc"]["sizes"]
    found = Counter[str]()
    for path in (ROOT / "xsc").glob("*/**/*.py"):
        found[path.relative_to(ROOT / "xsc").parts[0]] += lines_of_code(path.read_text())
    groups = {package: group for group in sizes for package in group.split("+")}
    counted = Counter[str]()
    for package, lines in found.items():
        counted[groups[package]] += lines
    assert {group: lines for group, lines in counted.items() if lines > sizes[group]} == {}
    assert counted.keys() == sizes.keys()


def test_no_class_has_more_than_25_methods():
    found = {}
    for path in (ROOT / "xsc").glob("**/*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = [
                    each
                    for each in node.body
                    if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
                ]
                found[f"{module}.{node.name}"] = len(methods)
    assert {
        name: count for name, count in found.items() if count > LARGER.get(name, METHODS_MAX)
    } == {}
    assert all(found[name] > METHODS_MAX for name in LARGER)
