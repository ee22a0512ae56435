"""The programs of examples/programs run on real nodes, and what they give is explained."""

from __future__ import annotations

from tests.e2e.conftest import REPOSITORY, wait_for

EXAMPLES = REPOSITORY / "examples" / "programs"


def test_the_example_programs_run_and_what_they_give_is_verified(net):
    ada, bea, cid = net[0], net[1], net[2]
    names = sorted(path.name for path in EXAMPLES.glob("*.toml"))
    assert names == ["free-space.toml", "margin-alarm.toml", "resize.toml"]
    for name in names:
        program = ada(["program", "register", str(EXAMPLES / name)]).line
        assert ada(["program", "activate", program]).code == 0

    bea("space put free/bytes 5000000000")
    cid("space put free/bytes 7000000000")
    wait_for(lambda: ada("space get free/total").out == b"12000000000")
    ada("space put margin/photos 2")
    wait_for(lambda: ada("space get alarm/photos").out == b"fine")
    ada("space put margin/photos 0")
    wait_for(lambda: ada("space get alarm/photos").out == b"repair")
    ada("space put picture/width 4000")
    ada("space put picture/height 3000")
    wait_for(lambda: ada("space get preview/height").out == b"192")
    assert ada("space get preview/width").out == b"256"

    for path in ("free/total", "alarm/photos", "preview/width", "preview/height"):
        found = ada(["program", "why", path, "--replay", "--json"]).json
        assert (found["verified"], found["replayed"]) == (True, True), found
    # Another node has not the module: what it cannot run again it says.
    found = bea(["program", "why", "node-0:preview/width", "--replay", "--json"]).json
    assert (found["verified"], found["replayed"]) == (True, None)
    assert "is not here" in found["note"]
    shown = bea(["program", "why", "node-0:free/total"]).text
    assert "free/bytes = 7000000000  [verified]" in shown
