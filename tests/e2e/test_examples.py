"""The programs of examples run on real nodes, and what they give is explained."""

from __future__ import annotations

from tests.e2e.conftest import REPOSITORY, wait_for

EXAMPLES = REPOSITORY / "examples" / "programs"
CELLS = REPOSITORY / "examples" / "cells"


def test_the_example_programs_run_and_what_they_give_is_verified(net):
    ada, bea, cid = net[0], net[1], net[2]
    names = sorted(path.name for path in EXAMPLES.glob("*.toml"))
    assert names == ["free-space.toml", "margin-alarm.toml", "resize.toml", "shout.toml"]
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

    text = "grüße, " + 40 * "ab"
    ada(["space", "put", "demo/said", text])
    wait_for(lambda: ada("space get demo/loud").out == b"GR\xc3\xbc\xc3\x9fE, " + 40 * b"AB")

    for path in ("demo/loud", "free/total", "alarm/photos", "preview/width", "preview/height"):
        found = ada(["program", "why", path, "--replay", "--json"]).json
        assert (found["verified"], found["replayed"]) == (True, True), found
    # Another node has not the module: what it cannot run again it says.
    found = bea(["program", "why", "node-0:preview/width", "--replay", "--json"]).json
    assert (found["verified"], found["replayed"]) == (True, None)
    assert "is not here" in found["note"]
    shown = bea(["program", "why", "node-0:free/total"]).text
    assert "free/bytes = 7000000000  [verified]" in shown


def test_two_nodes_narrow_an_interval_together(net):
    ada, bea = net[0], net[1]
    (program,) = {
        node(["program", "register", str(CELLS / "width.toml")]).line for node in (ada, bea)
    }
    for node in (ada, bea):
        assert node(["program", "activate", program]).code == 0
    ada(["space", "put", "cells/width", "[40, 60]"])
    bea(["space", "put", "cells/width", "[55, 90]"])
    for node in (ada, bea):
        wait_for(lambda node=node: node("space get width/middle").out == b"57.5")
        results = node(["program", "exec", program, "--json"]).json
        assert results["variables"]["width"] == "[55.0, 60.0]"
    why = ada(["program", "why", "width/middle", "--replay", "--json"]).json
    assert (why["verified"], why["replayed"]) == (True, True)
    shown = ada(["program", "why", "width/middle"]).text
    assert "by merge.interval" in shown
    assert "cells/width = [55.0, 90.0]  [verified]" in shown

    bea(["space", "put", "cells/width", "[70, 90]"])
    wait_for(lambda: ada(["program", "results", program, "--json"]).json["errors"])
    said = ada(["program", "results", program, "--json"]).json["errors"]["width.merge"]
    assert said == "the sources contradict each other: at least 70.0, and at most 60.0"
    assert ada("space get width/middle").out == b"57.5"
    assert ada(["program", "stop", program, "--json"]).json["state"] == "stopped"
    ada(["program", "exec", program]).fails(2, "not_found")
    ada(["program", "stop", program]).fails(2, "not_found")
    assert ada(["program", "activate", program]).code == 0
    bea(["space", "put", "cells/width", "[50, 90]"])
    wait_for(lambda: ada("space get width/middle").out == b"55.0")
