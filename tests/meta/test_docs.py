"""What the documents say is so: errors, settings, words, commands and links."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.conftest import LONG
from xsc.api import proof
from xsc.api.table import ENDPOINTS
from xsc.base.errors import XscError, code_of, leaves
from xsc.base.units import parse_duration_ms, parse_size
from xsc.node.api import openapi

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [path for path in sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")]) if path.exists()]
TEXTS = {path: path.read_text() for path in PAGES}


def rows(path: Path) -> list[list[str]]:
    """Return the cells of every table row of a page, heads and rules left out."""
    found = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        follows = lines[number + 1] if number + 1 < len(lines) else ""
        if line.startswith("|") and not line.startswith("| ---") and "| ---" not in follows:
            found.append([cell.strip() for cell in line.strip().strip("|").split(" | ")])
    return found


def test_every_error_is_documented_with_its_codes():
    documented = {row[0].strip("`"): row[1:4] for row in rows(DOCS / "errors.md")}
    expected = {
        code_of(kind): [
            str(kind.exit_code),
            str(kind.http_status),
            "yes" if kind.retryable else "no",
        ]
        for kind in leaves()
    }
    assert documented == expected


def test_every_branch_has_a_section_in_the_order_of_the_tree():
    sections = re.findall(r"^## .*\(`(\w+)`", (DOCS / "errors.md").read_text(), re.MULTILINE)
    assert sections == [branch.__name__ for branch in XscError.__subclasses__()]


def resolve(name: str) -> object:
    """Return what a dotted name stands for: a module, or something in one."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


def missing_of(names: Iterable[str]) -> list[str]:
    """Return the dotted names that stand for nothing."""
    missing = []
    for name in sorted(set(names)):
        try:
            resolve(name)
        except (AssertionError, AttributeError):
            missing.append(name)
    return missing


GLOSSARY = rows(DOCS / "glossary.md")


def test_every_word_of_the_glossary_is_where_it_says():
    """A word has a meaning, and is somewhere or planned."""
    for word, meaning, where in GLOSSARY:
        assert meaning, word
        names = re.findall(r"`(xsc[\w.]*)`", where)
        assert bool(names) != where.startswith("planned"), word
        assert missing_of(names) == [], word


def test_the_glossary_has_each_word_once():
    words = [row[0].lower() for row in GLOSSARY]
    assert len(words) == len(set(words))


def found_in_pages(pattern: str) -> list[tuple[Path, str]]:
    """Return each match of a pattern with the page that it stands in."""
    return [
        (path, match) for path in PAGES for match in re.findall(pattern, TEXTS[path], re.MULTILINE)
    ]


def test_links_between_pages_lead_somewhere():
    assert [
        f"{path.relative_to(ROOT)}: {target}"
        for path, target in found_in_pages(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
        if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists()
    ] == []


def test_no_page_has_conflict_markers():
    assert found_in_pages(r"^(?:<{7}|={7}|>{7})(?: |$)") == []


def test_modules_named_in_pages_exist():
    named = found_in_pages(r"`(xsc\.[a-z_]+(?:\.\w+)*)`")
    assert missing_of(name for _, name in named) == []


LOOP = re.compile(r'(?:\b_?start|tasks\.every)\(f?"(\w+)')


def test_every_background_loop_is_documented():
    """A loop for each peer ends in `<peer>` on the page, and in a field in the code."""
    page = (DOCS / "design" / "node.md").read_text()
    listed = page.split("- **S2** Background loops:")[1].split(" A loop that fails")[0]
    documented = re.findall(r"`(\w+)(?:<peer>)?`", listed)
    names = ("node/build.py", "node/daemon.py", "space/following.py")
    sources = [ROOT / "xsc" / name for name in names]
    started = [name for path in sources for name in LOOP.findall(path.read_text())]
    assert sorted(documented) == sorted(started)


TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in [path.stem, *re.findall(r"def (test_\w+)", path.read_text())]
}


def test_tests_named_in_pages_exist():
    assert [place for place in found_in_pages(r"`(test_\w+)`") if place[1] not in TESTS] == []


def test_tests_that_are_left_out_exist():
    """One that was renamed would be played in every run, for minutes."""
    begins = [name.partition("[")[0] for name in LONG]
    assert [name for name in begins if not any(test.startswith(name) for test in TESTS)] == []


OVERSHOOT = {
    *("fuel", "fuel of host calls", "wall time", "wall time in host calls", "time to compile"),
    *("memory from the start", "memory that grows", "several memories", "tables", "globals"),
    *("instances", "stack", "output", "arguments", "scratch files"),
    *("jobs of one peer", "jobs in all", "workers that one peer loses", "queue"),
}


def test_every_row_of_the_overshoot_table_is_tested():
    """Each limit of a job, how far past it one can run, and who tries: tests that exist."""
    page = (DOCS / "design" / "compute.md").read_text()
    table = page.split("### How far past each limit a job can run")[1].split("| --- |", 1)[1]
    found = {}
    for line in table.splitlines()[1:]:
        if not line.startswith("|"):
            break
        limit, past, *tests = (cell.strip() for cell in line.strip("|").split("|"))
        found[limit] = [set(re.findall(r"`(test_\w+)`", cell)) for cell in tests]
        assert past
    assert set(found) == OVERSHOOT
    for limit, (met, attacked) in found.items():
        assert met, limit
        assert attacked, limit
        assert met | attacked <= TESTS, limit


def test_files_of_tests_named_in_pages_exist():
    missing = []
    for path, pattern in found_in_pages(r"`(tests/[\w/.*{},]+)`"):
        head, _, tail = pattern.partition("{")
        choices, _, rest = tail.partition("}")
        if not all(any(ROOT.glob(head + choice + rest)) for choice in choices.split(",")):
            missing.append((path, pattern))
    assert missing == []


def number_of(name: str, text: str) -> int:
    """Return the number that a page gives for a limit, read by the unit in the limit's name."""
    if power := re.fullmatch(r"2\^(\d+)(-1)?", text):
        return 2 ** int(power[1]) - bool(power[2])
    unit = name.rpartition(".")[2].split("_")
    if "BYTES" in unit:
        return parse_size(text)
    return parse_duration_ms(text) if "MS" in unit else int(text)


LIMITS = [
    (path.stem, match[1], row[1])
    for path in PAGES
    for row in rows(path)
    if (match := re.fullmatch(r"`((?:xsc\.[a-z_.]+\.)?[A-Z][A-Z_]+)`", row[0]))
]


def test_limits_in_pages_are_those_of_the_code():
    assert [
        (page, name, value)
        for page, name, value in LIMITS
        if resolve(name if "." in name else f"xsc.base.limits.{name}") != number_of(name, value)
    ] == []


ADRS = sorted((DOCS / "adr").glob("[0-9]*.md"))
ADR_SECTIONS = ["Context", "Decision", "Consequences"]


def test_every_decision_is_one_page_of_the_same_shape():
    for path in ADRS:
        text = path.read_text()
        assert text.startswith(f"# {int(path.stem[:4])}. "), path
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ADR_SECTIONS, path
        prose = [line for line in text.splitlines() if not line.startswith(("#", "|"))]
        assert len(" ".join(prose).split()) <= 200, path


def test_the_index_lists_every_decision_with_its_title():
    listed = re.findall(
        r"^\| (\d+) \| \[(.*)\]\((.*?)\)", (DOCS / "adr/README.md").read_text(), re.MULTILINE
    )
    titles = {path.name: path.read_text().split("\n")[0] for path in ADRS}
    assert [name for _, _, name in listed] == sorted(titles)
    for number, title, name in listed:
        assert titles[name] == f"# {number}. {title}"
        assert int(name[:4]) == int(number)


def test_the_index_of_the_design_lists_every_page():
    design = DOCS / "design"
    listed = re.findall(
        r"^\| \[.*\]\(([\w-]+\.md)\)", (design / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(listed) == sorted({path.name for path in design.glob("*.md")} - {"README.md"})


SOURCES = [
    path
    for folder in ("xsc", "tests", "scripts", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
]


def test_pages_that_the_code_cites_exist():
    cited = {
        (page, path)
        for path in SOURCES
        for page in re.findall(r"\bdocs/[\w/.-]+\.md\b", path.read_text())
    }
    assert {page for page, _ in cited} >= {"docs/performance.md"}
    assert not [(page, path) for page, path in cited if not (ROOT / page).exists()]


def test_every_dependency_has_its_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.split(r"[><=;\s\[]", item)[0] for item in wanted}
    page = DOCS / "adr" / "0005-dependencies.md"
    documented = {name for row in rows(page) for name in re.findall(r"`([^`]+)`", row[0])}
    assert documented == names


def test_every_setting_is_documented_with_its_default_and_meaning():
    config = importlib.import_module("xsc.node.config")
    documented = {
        row[0].strip("`"): (row[1].strip("`"), row[2]) for row in rows(DOCS / "configuration.md")
    }
    assert documented == {
        name: (key.default or "(none)", key.meaning) for name, key in config.KEYS.items()
    }


def test_the_table_of_the_api_has_every_route():
    table = (DOCS / "design" / "node.md").read_text().split("## The API", 1)[1].split("\n## ")[0]
    documented = re.findall(
        r"`(GET|POST|PUT|DELETE) (/[\w/{}.-]+)`",
        "\n".join(line for line in table.splitlines() if line.startswith("|")),
    )
    assert len(documented) == len(set(documented))
    served = [(each.method, each.path) for each in ENDPOINTS]
    assert len(served) == len(set(served))
    described = {("GET", path) for path in openapi.PATHS}
    assert set(documented) == {*served, ("GET", "/health"), ("POST", proof.PATH), *described}
    # No route of the API is served beside the table.
    beside = {
        (method, path)
        for source in (ROOT / "xsc" / "node").rglob("*.py")
        for method, path in re.findall(r"web\.(get|post|put|delete)\(([^,]+),", source.read_text())
    }
    assert beside == {("get", '"/health"'), ("post", "proof.PATH"), ("get", "path")}


def commands() -> dict[str, list[str]]:
    """Return every command of the command line with its long options."""
    click = importlib.import_module("click")
    found: dict[str, list[str]] = {}

    def walk(command: Any, path: str) -> None:
        if isinstance(command, click.Group):
            for name, part in command.commands.items():
                walk(part, f"{path} {name}")
        else:
            options = [option for param in command.params for option in param.opts]
            found[path] = [option for option in options if option.startswith("--")]

    walk(importlib.import_module("xsc.cli.main").cli, "xsc")
    return found


def test_every_command_and_option_is_documented():
    page = (DOCS / "cli.md").read_text()
    for command, options in commands().items():
        assert f"{command}`" in page or f"{command} " in page, command
        for option in options:
            assert option in page, f"{command} {option}"


def test_no_command_is_documented_that_does_not_exist():
    page = (DOCS / "cli.md").read_text()
    known = [command.split()[1:] for command in commands()]
    for heading in re.findall(r"^#+ `xsc ([a-z][a-z -]*?)(?: [A-Z<\[-].*)?`", page, re.MULTILINE):
        words = heading.split()
        assert any(path[: len(words)] == words for path in known), heading


def test_the_readme_shows_how_to_test_and_make_has_it():
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"\bmake ([a-z]+)\b", readme))
    assert {"test", "demo"} <= used
    assert used <= targets
