"""The lists of work that design pages quote: each line names its tests, or is dropped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DESIGN = ROOT / "docs" / "design"
LISTS = {
    "programs.md": [24, 13, 7, 5, 6, 4, 5, 6],
    "space.md": [14, 6, 4, 5],
    "allocation-laws.md": [23],
}
"""How many lines each list has, in the order of the page."""
LIST = re.compile(r"^### .*: (\d+) .*\n\n(?:\|.*\n){2}((?:\|.*\n)+)", re.MULTILINE)
ROW = re.compile(r"\| .+ \| (?:`test_\w+`(?:, `test_\w+`)*|dropped: .+) \|")


@pytest.mark.parametrize("page", LISTS)
def test_the_checklists_are_whole(page):
    section = (DESIGN / page).read_text().split("\n## Checklists\n")[1].split("\n## ")[0]
    lists = [(int(count), rows.splitlines()) for count, rows in LIST.findall(section)]
    assert [count for count, _ in lists] == LISTS[page]
    assert [len(rows) for _, rows in lists] == LISTS[page]
    assert [row for _, rows in lists for row in rows if not ROW.fullmatch(row)] == []


@pytest.mark.parametrize(("name", "least"), [("values", 20), ("state", 10), ("runtime", 5)])
def test_the_stores_have_as_many_tests_as_their_plan_asks_for(name, least):
    source = (ROOT / "tests" / "unit" / "programs" / f"test_{name}.py").read_text()
    assert len(re.findall(r"^def test_", source, re.MULTILINE)) >= least
