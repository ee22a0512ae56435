"""Commands of a node, as they are typed, on homes whose node does not run."""

from __future__ import annotations

import pytest

from xsc.cli.main import main

PEER = "ovqdsx7vjd2yyhrvmpgxbhcd5gqy2bvqb65fjyh43j2cayvfoziq@127.0.0.1:1"


@pytest.mark.parametrize("size_bytes", [0, 100, 8_000])
def test_recover_refuses_a_file_that_is_no_key(tmp_path, capsys, size_bytes):
    file, home = tmp_path / "file", tmp_path / "home"
    file.write_bytes(b"x" * size_bytes)
    code = main(["--home", str(home), "node", "recover", str(file), "--peer", PEER])
    assert code == 2
    assert "no XSC key file" in capsys.readouterr().err.splitlines()[0]
    assert not home.exists()
