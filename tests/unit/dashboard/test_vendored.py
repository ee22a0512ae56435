"""What others wrote is as they wrote it, and said to be theirs."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import xsc.dashboard

STATIC = Path(xsc.dashboard.__file__).parent / "static"
OWN = {"dashboard.js", "style.css", "icon.svg", "README.md", "LICENSE"}
TABLE = (STATIC / "README.md").read_text()


def test_each_file_of_others_has_the_hash_that_is_named():
    named = dict(re.findall(r"^\| `([\w.]+)` .*`([0-9a-f]{64})` \|$", TABLE, re.MULTILINE))
    found = {file.name for file in STATIC.iterdir()} - OWN
    assert named == {
        name: hashlib.sha256((STATIC / name).read_bytes()).hexdigest() for name in found
    }


def test_their_licenses_are_beside_them():
    said = (STATIC / "LICENSE").read_text()
    assert "Zero-Clause BSD" in said
    assert "Leon Sorokin" in said
