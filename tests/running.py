"""How a run of all tests is divided among workers, and what it took."""

from __future__ import annotations

from collections import Counter

from xdist.scheduler import LoadGroupScheduling


class Files(LoadGroupScheduling):
    """Gives a worker whole files, whose tests share what they set up, and long tests alone."""

    def _split_scope(self, nodeid):
        scope = super()._split_scope(nodeid)
        alone = nodeid.startswith(("tests/sim/", "tests/properties/"))
        return nodeid.partition("::")[0] if scope == nodeid and not alone else scope


def folder_of(nodeid: str) -> str:
    return nodeid.removeprefix("tests/").partition("/")[0]


BUDGETS_S = {"e2e": 250, "sim": 220, "unit": 200, "properties": 100}
"""Summed seconds of the tests of a folder, on two cores: `make test-times` prints both."""


class Times:
    """Sums what the tests of each folder take, over all workers."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report):
        self.seconds[folder_of(report.nodeid)] += report.duration

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("summed seconds")
        for folder, seconds in self.seconds.most_common():
            budget = f"  of {BUDGETS_S[folder]}" if folder in BUDGETS_S else ""
            terminalreporter.line(f"{folder:12}{seconds:6.0f}{budget}")
