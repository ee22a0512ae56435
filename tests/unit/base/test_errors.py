"""The error tree: one code a class, and the branch decides the exit code."""

from __future__ import annotations

import re

import pytest

from xsc.base import errors
from xsc.base.errors import XscError, code_of, from_code, leaves

BRANCHES = {
    errors.CallerError: 2,
    errors.PeerError: 3,
    errors.LimitError: 4,
    errors.UnavailableError: 5,
    errors.CorruptionError: 6,
}
CLASSES = [
    item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, XscError)
]


def test_the_branches_are_these_five_with_their_exit_codes():
    assert {kind: kind.exit_code for kind in XscError.__subclasses__()} == BRANCHES


def test_every_class_is_the_root_a_branch_or_a_leaf_of_one_branch():
    assert set(CLASSES) == {XscError, *BRANCHES, *leaves()}
    assert len(leaves()) == len(set(leaves()))
    assert all(sum(issubclass(leaf, branch) for branch in BRANCHES) == 1 for leaf in leaves())


def test_the_docstring_shows_the_tree_as_it_is():
    tree = (errors.__doc__ or "").split("Exit 0 is done")[0]
    shown: dict[str, list[str]] = {}
    for line in tree.splitlines():
        names = re.findall(r"[├└]── ([A-Z]\w+)", line)
        if names and line.startswith(("    ├", "    └")):
            branch = names[0]
            shown[branch] = []
            numbers = re.search(r"\s(\d)\s+(\S+)", line)
            assert numbers is not None, line
            assert int(numbers[1]) == getattr(errors, branch).exit_code
        else:
            for name in names:
                shown[branch].append(name)
    assert shown == {
        branch.__name__: [leaf.__name__ for leaf in branch.__subclasses__()] for branch in BRANCHES
    }


def test_codes_are_unique_and_in_snake_case():
    codes = [code_of(kind) for kind in CLASSES]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)
    assert code_of(errors.FuelExhausted) == "fuel_exhausted"
    assert errors.FuelExhausted("x").code == "fuel_exhausted"


@pytest.mark.parametrize("kind", leaves(), ids=code_of)
def test_a_leaf_comes_back_from_its_code(kind):
    fault = from_code(code_of(kind), "what happened", "what to do")
    assert type(fault) is kind
    assert (fault.message, fault.hint, str(fault)) == (
        "what happened",
        "what to do",
        "what happened",
    )


@pytest.mark.parametrize("code", ["", "no_such_thing", "xsc_error", "limit_error", "FuelExhausted"])
def test_an_unknown_code_is_a_bug_and_keeps_its_text(code):
    fault = from_code(code, "strange", "look")
    assert type(fault) is XscError
    assert (fault.exit_code, fault.message, fault.hint) == (1, "strange", "look")


@pytest.mark.parametrize("kind", leaves(), ids=code_of)
def test_statuses_are_errors_of_the_right_side(kind):
    assert 400 <= kind.http_status < 600
    if issubclass(kind, errors.CallerError):
        assert kind.http_status < 500
        assert not kind.retryable
    if issubclass(kind, errors.UnavailableError):
        assert kind.http_status == 503
        assert kind.retryable
    if issubclass(kind, errors.CorruptionError):
        assert kind.http_status == 500


@pytest.mark.parametrize("kind", CLASSES, ids=code_of)
def test_every_class_says_what_it_is(kind):
    assert kind.__doc__
    assert kind.__doc__.strip().splitlines()[0].endswith(".")
