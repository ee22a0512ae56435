"""The model bites: each defence that a patch in `canaries` takes away, it misses.

A patch says in its head what it undoes and which law breaks without it. It is applied to
a copy of the tree, and the model plays there until a law breaks, or the tests that the head
names fail. Here that is done for those that are found soon; TEST_ADVERSARY_CANARIES=1 does it
for all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CANARIES = sorted((Path(__file__).parent / "canaries").glob("*.patch"))
ALL = "TEST_ADVERSARY_CANARIES" in os.environ
SEEDS = 1_000 if ALL else 200


def head_of(canary: Path) -> dict[str, str]:
    head = canary.read_text().split("diff --git")[0]
    return dict(re.findall(r"^(\w+): (.+)$", head, re.MULTILINE))


SOON = [canary for canary in CANARIES if ALL or "Soon" in head_of(canary)]


@pytest.fixture
def tree(tmp_path):
    """Return a copy of what the model needs."""
    for folder in ("xsc", "tests", "fixtures"):
        # With what is compiled: Python compiles again only what a patch changes.
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.stem)
def test_a_canary_says_what_it_undoes_and_still_applies(canary):
    assert ("Law" in head_of(canary)) != ("Test" in head_of(canary))
    subprocess.run(["git", "apply", "--unidiff-zero", "--check", canary], cwd=ROOT, check=True)


def failing(canary: Path, tree: Path) -> None:
    """See that each test that a canary names fails with it. Without it, none does: it is a test."""
    names = head_of(canary)["Test"].split()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", *names],
        cwd=tree,
        env={**os.environ, "HYPOTHESIS_PROFILE": "first"},
        capture_output=True,
        text=True,
        check=False,
    )
    failed = re.findall(r"^FAILED (\S+?)(?:\[| |$)", done.stdout, re.MULTILINE)
    assert sorted(set(failed)) == sorted(names), done.stdout + done.stderr


@pytest.mark.timeout(3_600 if ALL else 300)
@pytest.mark.parametrize("canary", SOON, ids=lambda canary: canary.stem)
def test_the_model_finds_a_canary(canary, tree):
    subprocess.run(["git", "apply", "--unidiff-zero", canary], cwd=tree, check=True)
    if "Test" in head_of(canary):
        failing(canary, tree)
        return
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim.adversary", "0", str(SEEDS), "--first"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(rf"^\d+: ({head_of(canary)['Law']}):", done.stdout, re.MULTILINE), done.stdout
