"""docs/security.md: every method has its row, every row names a test that there is."""

from __future__ import annotations

import re
from pathlib import Path

from tests.meta.test_docs import rows
from tests.sim.adversary.play import Play
from xsc.base.limits import REQUEST_UNITS
from xsc.net.calls.costs import COSTS
from xsc.net.calls.server import JOIN

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security.md"


def table(title: str) -> list[list[str]]:
    """Return the rows of the table under a heading."""
    section = re.search(
        rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert section is not None, title
    return [row for row in rows(PAGE) if f"| {' | '.join(row)} |" in section[1]]


AUTHORITY = table("Authority")
METHODS = table("Every method that a peer answers")
SHARES = table("What one peer can hold of a node")


def test_every_method_that_a_peer_answers_has_its_row_and_no_other_has():
    play = Play(0)
    methods = {*play.node(1).peers.server.handlers, JOIN}
    play.close()
    named = [row[0].strip("`") for row in METHODS]
    assert sorted(named) == sorted(methods)
    assert COSTS.keys() <= methods
    # A window has no more requests than this bounds, whatever they call.
    assert min(cost.base for cost in COSTS.values()) >= REQUEST_UNITS


def test_every_row_names_tests_that_there_are():
    """A row without a test is a wish."""
    missing = []
    for row in [*AUTHORITY, *METHODS, *SHARES]:
        named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row[-1])
        if not named:
            missing.append(row[0])
        for path, test in named:
            text = (ROOT / "tests" / path).read_text()
            if not re.search(rf"^\s*(async )?def {test}\(", text, re.MULTILINE):
                missing.append(f"{row[0]}: {path}::{test}")
    assert missing == []


def test_every_row_says_who_and_by_which_proof():
    assert all(len(row) == 4 and all(row) for row in AUTHORITY)
    assert all((row[2] == "none") == (row[1] == "nobody") for row in AUTHORITY)
    assert len({row[0] for row in AUTHORITY}) == len(AUTHORITY)


LIMITS = {
    name
    for path in (ROOT / "xsc").rglob("*.py")
    for name in re.findall(r"^([A-Z_]+)(?:: Final)? = ", path.read_text(), re.MULTILINE)
}


def test_every_share_is_a_limit_of_the_code():
    named = {name for row in SHARES for name in re.findall(r"`([A-Z_]+)`", row[1])}
    assert named <= LIMITS


def test_every_limit_of_one_peer_stands_in_the_table():
    one = re.compile(r"_(A_PEER|AN_ADDRESS|A_CUSTOMER|AN_OWNER|AN_INTRODUCER)_")
    named = {name for row in SHARES for name in re.findall(r"`(?:[a-z_.]+\.)?([A-Z_]+)`", row[1])}
    assert {name for name in LIMITS if one.search(name)} <= named
