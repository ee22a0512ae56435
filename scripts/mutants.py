"""Changes rules one small step at a time, and lists the changes that no test notices.

    make mutants                                    40 random mutants of all rule modules
    make mutants MUTANTS="--count 200 --seed 7 xsc/base/merkle.py xsc/ledger"

A mutant is a copy of the package with one change: a comparison, `and`, `or`, `+`, `min` or
`any` swapped for its twin, an integer one larger or smaller, a `not` or a statement dropped,
a returned bool negated. Messages and assertions are not changed. The module's own tests run
on it: the mirror in tests/unit, and the tests of that folder and of properties that import it. If
they pass, the rest of the folder runs, too, which knocks at a door. If that passes, the mutant
survives: a test is missing, or the change makes no difference. A mutant whose tests take too
long counts as noticed.
Exit code 0: all were noticed; 1: some survived, and are listed.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import multiprocessing
import os
import random
import re
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEMORY_BYTES_MAX = 4 << 30
SLOW_IMPORTS = ["aiohttp", "cryptography.x509", "hypothesis.strategies", "pydantic", "zfec"]
"""Imported once: each mutant is a fork."""
PAIRS: list[tuple[type[ast.AST], type[ast.AST]]] = [
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Eq, ast.NotEq),
    (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn),
    (ast.And, ast.Or),
    (ast.Add, ast.Sub),
]
TWINS = dict(PAIRS) | {other: one for one, other in PAIRS}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


def rule_modules() -> list[Path]:
    """Return the rules: all but what the architecture test calls shell, and plain numbers."""
    listed = runpy.run_path(str(ROOT / "tests" / "meta" / "test_architecture.py"))
    return [
        path
        for name, path in listed["MODULES"].items()
        if name not in {*listed["SHELL"], "xsc.base.limits"}
        and not name.startswith(listed["PROGRAMS"])
    ]


def replacements(node: ast.AST, parent: ast.AST, *, is_bool: bool) -> Iterator[ast.AST]:
    """Yield each node that a mutant has in place of this one."""
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            yield from (ast.Constant(value + 1), ast.Constant(value - 1))
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.Name(id=name) if name in NAMES:
            yield ast.Name(NAMES[name])
        case ast.Return(value=ast.expr() as value) if is_bool:
            yield ast.Return(ast.UnaryOp(ast.Not(), value))
        case ast.Raise() | ast.AugAssign() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case _ if type(node) in TWINS:
            yield TWINS[type(node)]()
    if isinstance(node, ast.Return) and isinstance(parent, ast.If):
        yield ast.Pass()


def mutants(
    node: ast.AST, line: int = 1, *, is_bool: bool = False
) -> Iterator[tuple[int, Callable[[], None]]]:
    """Yield each single change of a tree: its line, and a function that makes it."""
    if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr)):
        return
    if isinstance(node, ast.FunctionDef):
        is_bool = isinstance(node.returns, ast.Name) and node.returns.id == "bool"
    for name, value in ast.iter_fields(node):
        many = value if isinstance(value, list) else [value]
        for at, child in enumerate(many):
            if not isinstance(child, ast.AST):
                continue
            here = getattr(child, "lineno", line)
            for other in replacements(child, node, is_bool=is_bool):
                changed = [*many[:at], other, *many[at + 1 :]] if many is value else other
                yield here, partial(setattr, node, name, changed)
            yield from mutants(child, here, is_bool=is_bool)


def mutated(path: Path, number: int) -> tuple[int, str, str, str]:
    """Return the line, the code before and after, and the whole source of one mutant."""
    tree = ast.parse(path.read_text())
    whole = ast.unparse(tree)
    line, change = list(mutants(tree))[number]
    change()
    source = ast.unparse(ast.fix_missing_locations(tree))
    differs = list(difflib.ndiff(whole.splitlines(), source.splitlines()))
    before, after = (
        " ".join(text[2:].strip() for text in differs if text.startswith(sign)) for sign in "-+"
    )
    return line, before, after, source


def own_tests(path: Path) -> list[list[Path]]:
    """Return the tests of a module and those beside them, as paths in the checkout."""
    *parents, name = path.relative_to(ROOT).with_suffix("").parts
    package = ".".join(parents)
    imported = re.compile(rf"from {package}(\.{name} import| import .*\b{name}\b)")
    beside = sorted(ROOT.joinpath("tests", "unit", *parents[1:]).glob("test_*.py"))
    laws = sorted((ROOT / "tests" / "properties").rglob("test_*.py"))
    own = [
        test
        for test in (*beside, *laws)
        if test.name == f"test_{name}.py" or imported.search(test.read_text())
    ]
    rest = [test for test in beside if test not in own]
    return [[test.relative_to(ROOT) for test in group] for group in (own, rest) if group]


def run_tests(copy: Path, tests: list[Path]) -> None:
    """Run tests in a copy of the checkout, and leave the process with pytest's exit code."""
    os.setsid()
    os.chdir(copy)
    os.environ["PYTHONPATH"] = str(copy)
    os.environ["HYPOTHESIS_PROFILE"] = "first"
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    imported = "ignore::pytest.PytestAssertRewriteWarning"
    sys.exit(pytest.main(["-qx", "-p", "no:cacheprovider", "-W", imported, *map(str, tests)]))


def passes(copy: Path, tests: list[Path], timeout_s: int) -> bool:
    """Say whether tests pass in a copy of the checkout, in time."""
    child = multiprocessing.get_context("fork").Process(target=run_tests, args=(copy, tests))
    child.start()
    assert child.pid is not None
    child.join(timeout_s)
    if child.is_alive():
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
    return child.exitcode == 0


def survivors(copy: Path, path: Path, numbers: list[int], timeout_s: int) -> Iterator[str]:
    """Yield the mutants of a module that its tests pass, each as one line of text."""
    here, groups = path.relative_to(ROOT), own_tests(path)
    known: list[tuple[list[Path], int]] = []
    for tests in groups:
        began = time.monotonic()
        if not passes(copy, tests, timeout_s):
            known.clear()
            break
        known.append((tests, min(timeout_s, 20 + round(5 * (time.monotonic() - began)))))
    if not known:
        print(f"{here}: {'its own tests fail, or are too slow' if groups else 'has no tests'}")
        yield from map(str, numbers)
        return
    for number in numbers:
        line, before, after, source = mutated(path, number)
        (copy / here).write_text(source)
        if all(passes(copy, tests, most_s) for tests, most_s in known):
            yield f"{here}:{line}: {before}  →  {after}"
    shutil.copyfile(path, copy / here)


def main() -> int:
    """Try a sample of mutants, and return the exit code."""
    parser = argparse.ArgumentParser(description="Lists changes of rules that no test notices.")
    parser.add_argument("paths", nargs="*", type=Path, help="modules or packages (all rules)")
    parser.add_argument("--count", type=int, default=40, help="mutants to try (40)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the sample")
    parser.add_argument("--timeout", type=int, default=300, help="seconds for one mutant (300)")
    args = parser.parse_args()
    asked = [path.resolve() for path in args.paths] or [ROOT]
    modules = [path for path in rule_modules() if any(path.is_relative_to(one) for one in asked)]
    sites = [
        (path, number)
        for path in modules
        for number, _ in enumerate(mutants(ast.parse(path.read_text())))
    ]
    sample = random.Random(args.seed).sample(sites, min(args.count, len(sites)))
    print(f"{len(sample)} of {len(sites)} mutants of {len(modules)} modules, seed {args.seed}")
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES_MAX,) * 2)
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "xsc"
        hidden = shutil.ignore_patterns(".*", "__pycache__", "build")
        shutil.copytree(ROOT, copy, ignore=hidden)
        for path, group in groupby(sorted(sample), key=lambda site: site[0]):
            for text in survivors(copy, path, [number for _, number in group], args.timeout):
                survived += 1
                print(text, flush=True)
    share = (len(sample) - survived) * 1000 // max(len(sample), 1)
    print(f"noticed: {len(sample) - survived} of {len(sample)}, {share // 10}.{share % 10} %")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
