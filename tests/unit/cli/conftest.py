from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass

import pytest

from tests.unit.client.stand_in import StandIn
from xsc.cli.main import main


@dataclass
class Outcome:
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self):
        """The one document on standard output."""
        assert self.out.endswith(b"\n")
        assert self.out.count(b"\n") == 1
        return json.loads(self.out)


@pytest.fixture
def stand_in(tmp_path):
    server = StandIn(tmp_path / "home")
    yield server
    server.close()


@pytest.fixture
def xsc(capsysbinary, monkeypatch, tmp_path):
    """Call the command line in this process, on the home of the stand-in."""

    def call(*arguments: str, stdin: bytes = b"") -> Outcome:
        monkeypatch.setenv("XSC_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Outcome(code, out, err.decode())

    return call
