"""The test programs are what their sources and their table say."""

from __future__ import annotations

import hashlib

import pytest
from wasmtime import wat2wasm

from tests.unit.compute.programs import FOLDER, wasm

SOURCES = sorted((FOLDER / "src").iterdir())


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_each_program_is_in_the_table_with_its_hash(source):
    binary = wasm(source.stem)
    line = f"| {len(binary)} | `{hashlib.sha256(binary).hexdigest()}` |"
    rows = (FOLDER / "README.md").read_text().splitlines()
    assert any(row.startswith(f"| `{source.stem}.wasm` |") and row.endswith(line) for row in rows)
    assert len(binary) < 40_000


@pytest.mark.parametrize(
    "source", [path for path in SOURCES if path.suffix == ".wat"], ids=lambda source: source.name
)
def test_each_text_builds_to_its_binary(source):
    assert bytes(wat2wasm(source.read_text())) == wasm(source.stem)
