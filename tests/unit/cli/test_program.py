"""`xsc program` against a stand-in of the node: what is sent, what is printed."""

from __future__ import annotations

import json

import pytest

HASH = "a" * 52
ROW = {
    "id": "total",
    "hash": HASH,
    "state": "active",
    "frame": 3,
    "fault": "",
    "publications": 2,
} | {"built_in": False}
RESULTS = ROW | {
    "variables": {"a": "1", "b": None},
    "outputs": {"total": "2"},
    "errors": {"b": "no value"},
    "stale": ["late"],
}
EMPTY = {"variables": {}, "outputs": {}, "errors": {}, "stale": []}


def test_register_sends_the_document_with_its_modules_and_prints_the_hash(xsc, stand_in, tmp_path):
    stand_in.answers("POST", "/v1/programs", RESULTS)
    (tmp_path / "m.wasm").write_bytes(b"\0asm")
    text = '[computations.c]\nfunction = { module = "m.wasm", export = "f" }\n'
    text += '[computations.d]\nfunction = { module = "none.wasm", export = "f" }\n'
    file = tmp_path / "p.toml"
    file.write_text(text)
    done = xsc("program", "register", str(file))
    assert (done.code, done.out, done.err) == (0, f"{HASH}\n".encode(), "")
    body = stand_in.last.body
    size = int.from_bytes(body[:4], "big")
    assert json.loads(body[4 : 4 + size]) == {
        "form": "toml",
        "document_bytes": len(text),
        "modules": [{"name": "m.wasm", "size_bytes": 4}],
    }
    assert body[4 + size :] == text.encode() + b"\0asm"
    assert xsc("program", "register", str(file), "--json").json == RESULTS


@pytest.mark.parametrize(
    "text", [b"\xff", b"{", b"[" * 100_000, b"{}", b'{"computations": {"c": 1}}', b"[]"]
)
def test_a_document_that_is_none_is_left_to_the_node(xsc, stand_in, tmp_path, text):
    stand_in.answers("POST", "/v1/programs", RESULTS)
    file = tmp_path / "p.json"
    file.write_bytes(text)
    assert xsc("program", "register", str(file)).code == 0
    assert stand_in.last.body.endswith(text)


def test_what_cannot_be_read_is_named(xsc, stand_in, tmp_path):
    done = xsc("program", "register", str(tmp_path / "none.toml"))
    assert done.code == 2
    assert "there is no file" in done.err
    large = tmp_path / "large.toml"
    large.write_bytes(bytes(256 * 1024 + 1))
    assert xsc("program", "run", str(large)).code == 4
    assert stand_in.requests == []


@pytest.mark.parametrize("command", ["activate", "deactivate"])
def test_a_program_is_activated_and_deactivated_without_a_word(xsc, stand_in, command):
    stand_in.answers("POST", f"/v1/programs/{HASH}/{command}", RESULTS)
    done = xsc("program", command, HASH)
    assert (done.code, done.out, done.err) == (0, b"", "")
    assert xsc("program", command, HASH, "--json").json == RESULTS


def test_a_variable_is_set_and_its_value_passed_on_as_text(xsc, stand_in):
    stand_in.answers("PUT", f"/v1/programs/{HASH}/variables/a", RESULTS)
    done = xsc("program", "set", HASH, "a", "7")
    assert (done.code, done.out, done.err) == (0, b"", "")
    assert stand_in.last.json() == {"value": "7"}
    assert xsc("program", "set", HASH, "a", "--json", "--", "-7").json == RESULTS
    assert stand_in.last.json() == {"value": "-7"}


def test_results_show_values_errors_and_what_is_stale(xsc, stand_in):
    stand_in.answers("GET", f"/v1/programs/{HASH}", RESULTS)
    assert xsc("program", "results", HASH, "--json").json == RESULTS
    done = xsc("program", "results", HASH)
    words = [line.split() for line in done.out.decode().splitlines()]
    assert ["variable", "a", "1"] in words
    assert ["variable", "b", "-"] in words
    assert ["output", "total", "2"] in words
    assert ["error", "b", "no", "value"] in words
    assert ["stale", "late"] in words


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("active", "nothing was computed yet"),
        ("stopped", "the program is not running"),
        ("registered", "the program is not running"),
    ],
)
def test_results_without_a_value_say_whether_the_program_runs(xsc, stand_in, state, said):
    stand_in.answers("GET", f"/v1/programs/{HASH}", ROW | EMPTY | {"state": state})
    assert xsc("program", "results", HASH).err.splitlines()[-1] == said


def test_ls_lists_programs(xsc, stand_in):
    stand_in.answers("GET", "/v1/programs", {"programs": [ROW]})
    assert xsc("program", "ls", "--json").json == {"programs": [ROW]}
    assert HASH.encode() in xsc("program", "ls").out
    stand_in.answers("GET", "/v1/programs", {"programs": [ROW | {"built_in": True}]})
    assert b"total (built in)" in xsc("program", "ls").out


def step(path, *inputs, **changes):
    found = {"path": path, "owner": HASH, "input": "", "value": "7", "verified": True}
    found |= {
        "function": None,
        "version": None,
        "replayed": None,
        "note": "",
        "inputs": list(inputs),
    }
    return found | changes


def test_why_prints_a_tree_of_what_is_behind_a_value(xsc, stand_in):
    old = step("in/a", input="x", verified=False, note="gone", value="\x1b[2J")
    root = step("out/b", old, step("k", input="y", value=None), function="math.add")
    root["version"] = "9f3c21ab" * 8
    stand_in.answers("GET", "/v1/provenance?at=bob%3Aout%2Fb", root)
    done = xsc("program", "why", "bob:out/b")
    first, second, third = done.out.decode().splitlines()
    assert first == "out/b = 7  by math.add (9f3c21ab)  [verified]"
    assert second.startswith("├── x: in/a = ")
    assert second.endswith("[NOT VERIFIED, gone]")
    assert "\x1b" not in second
    assert third == "└── y: k = (large)  [verified]"
    assert xsc("program", "why", "bob:out/b", "--json").json == root


def test_a_line_of_why_is_whole_however_wide_the_terminal_is(xsc, stand_in):
    root = step("out/b", step("in/a", input="x", value="v" * 300), function="math.add")
    root["version"] = "9f3c21ab" * 8
    stand_in.answers("GET", "/v1/provenance?at=out%2Fb", root)
    lines = xsc("program", "why", "out/b").out.decode().splitlines()
    assert [line.endswith("[verified]") for line in lines] == [True, True]


def test_why_exits_with_6_where_a_second_run_gives_something_else(xsc, stand_in):
    root = step("out/b", step("out/a", replayed=False, note="differs"), replayed=True)
    stand_in.answers("GET", "/v1/provenance?at=out%2Fb&replay=1", root)
    done = xsc("program", "why", "out/b", "--replay")
    assert done.code == 6
    assert "NOT THE SAME AGAIN" in done.out.decode()
