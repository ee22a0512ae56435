"""Each command against a stand-in of the node: what is sent, what is printed."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest

from tests.strategies import vectors
from xsc.base.limits import GIB, MFUEL, MIB
from xsc.storage.object.capability import ReadCapability

NODE = "abcdefghijklmnop"
PASSED = {"node": NODE, "lease_id": "l" * 52, "reason": "it is too small"}
STORED = {
    "capability": "xsc:r:abc",
    "size_bytes": 3,
    "name": "f",
    "hosts": [{"shard": index, "node": f"n{index}"} for index in range(6)],
    "survives_nodes": 2,
    "survives": "2nodes,1site",
    "warnings": [],
    "passed_over": [],
}
DONE = {
    "results": ["3", "-0.5"],
    "fuel_used": 5,
    "memory_peak_bytes": 65536,
    "wall_ms": 2,
    "provider": NODE,
    "trap": None,
    "receipt": b64encode(b"proof").decode(),
    "saved_bytes": 0,
    "compiled_bytes": 0,
}
RAN = {
    **{key: value for key, value in DONE.items() if key != "results"},
    "exit_code": 0,
    "stdout": b64encode(b"out\xff").decode(),
    "stderr": b64encode(b"err").decode(),
    "files": {},
}


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "m.wasm"
    path.write_bytes(b"\0asm")
    return path


@pytest.mark.parametrize(
    "words",
    [
        ("store", "put", ""),
        ("store", "put", "-r", ""),
        ("store", "get", "-r", "photos", "-o", ""),
        ("store", "get", "@", "-o", "f"),
        ("compute", "invoke", "", "f"),
        ("compute", "run", "m.wasm", "--out", ""),
        ("program", "register", ""),
        ("verify", ""),
        ("node", "drain", "--proof", ""),
    ],
)
def test_an_empty_text_names_no_file_or_directory(xsc, stand_in, words):
    """As of a shell's variable that was never set; it is not the directory of the process."""
    done = xsc(*words)
    assert (done.code, done.out) == (122 if "run" in words else 2, b"")
    assert ": an empty text names no file or directory (" in done.err
    assert not stand_in.requests


# store


def test_put_prints_the_capability_and_nothing_else(xsc, stand_in, tmp_path):
    stand_in.answers("POST", "/v1/objects", STORED, 201)
    (tmp_path / "f").write_bytes(b"abc")
    done = xsc("store", "put", tmp_path / "f", "--survive", "2nodes", "--code", "4,2")
    assert (done.code, done.out, done.err) == (0, b"xsc:r:abc\n", "")
    headers = stand_in.last.headers
    assert stand_in.last.body == b"abc"
    assert headers["XSC-Name"] == "f"
    assert headers["XSC-Size"] == "3"
    assert headers["XSC-Survive"] == "2nodes"
    assert headers["XSC-Code"] == "4,2"


COST = {
    "coded_bytes": 3 * GIB,
    "code": "2,1",
    "hours": 720,
    "storage_price_micro": 1_370,
    "storage_micro": 2_959_200,
    "compute_price_micro": 278,
    "compute_micro": 278_000,
    "total_micro": 3_237_200,
}


def test_a_put_of_more_than_a_gib_says_what_a_month_costs_before_it_sends(xsc, stand_in, tmp_path):
    sizes = {"a-gib": GIB, "more": 2 * GIB}
    for name, size in sizes.items():
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
        stand_in.answers("GET", f"/v1/market/estimate?size_bytes={size}&code=2%2C1", COST)
    told = "2.0 GiB, 3.0 GiB coded 2,1, cost about 2.959200 credits in 30 days"
    done = xsc("store", "put", tmp_path / "more", "--code", "2,1")
    assert done.err.startswith(f"{told} at the prices quoted now\n")
    assert done.err.count("credits") == 1
    assert not any(request.method == "POST" for request in stand_in.requests)
    assert "credits" not in xsc("store", "put", tmp_path / "more", "--code", "2,1", "--json").err
    assert "credits" not in xsc("store", "put", tmp_path / "a-gib", "--code", "2,1").err
    stand_in.refuses("GET", f"/v1/market/estimate?size_bytes={2 * GIB}", "no_offers", "nobody")
    assert "nobody" not in xsc("store", "put", tmp_path / "more").err


def test_what_storage_and_fuel_would_cost_is_said(xsc, stand_in):
    day = 24 * 3_600_000
    asked = f"size_bytes={2 * GIB}&duration_ms={7 * day}&code=2%2C1&fuel={10**12}"
    stand_in.answers("GET", f"/v1/market/estimate?{asked}&memory_bytes={GIB}", COST)
    words = [
        "market",
        "quote",
        "--size",
        "2GiB",
        "--for",
        "7days",
        "--code",
        "2,1",
        "--fuel",
        "1e12",
        "--memory",
        "1GiB",
    ]
    assert xsc(*words, "--json").json == COST
    text = xsc(*words).text
    assert "2.0 GiB, which is 3.0 GiB coded 2,1" in text
    assert "0.001370 credits a GiB and hour at most" in text
    assert "2.959200 credits" in text
    assert "0.000278 credits a Gfuel" in text
    assert text.endswith("total    3.237200 credits\n")


@pytest.mark.parametrize(
    "words",
    [
        "--for 7d",
        "--code 2,1",
        "compute --size 1GiB",
        "storage --fuel 5",
        "--fuel 1e-3",
        "--size 0",
    ],
)
def test_what_names_nothing_to_be_priced_is_refused(xsc, stand_in, words):
    assert xsc("market", "quote", *words.split()).code == 2
    assert stand_in.requests == []


@pytest.mark.parametrize("name", ["a/", "@x", "-", "xsc:r:abc"])
def test_a_name_that_no_command_could_read_is_refused(xsc, stand_in, name):
    refused = xsc("store", "put", "-", "--name", name, stdin=b"abc")
    assert (refused.code, stand_in.requests) == (2, [])


def test_put_takes_standard_input(xsc, stand_in):
    stand_in.answers("POST", "/v1/objects", STORED, 201)
    refused = xsc("store", "put", "-", "--name", "", stdin=b"abc")
    assert refused.code == 2
    assert refused.err.startswith("error: '' could not be read again")
    assert not stand_in.requests
    done = xsc("store", "put", "-", "--name", "größe", stdin=b"abc")
    assert done.text == "xsc:r:abc\n"
    assert stand_in.last.body == b"abc"
    assert stand_in.last.headers["XSC-Name"] == "gr%C3%B6%C3%9Fe"
    assert "XSC-Size" not in stand_in.last.headers
    assert "XSC-Code" not in stand_in.last.headers


def test_put_warns_beside_the_result(xsc, stand_in):
    stand_in.answers("POST", "/v1/objects", {**STORED, "warnings": ["only 3 nodes"]}, 201)
    done = xsc("store", "put", "-", stdin=b"abc")
    assert done.text == "xsc:r:abc\n"
    assert done.err == "warning: only 3 nodes\n"
    assert xsc("store", "put", "-", "--json").json == {**STORED, "warnings": ["only 3 nodes"]}
    stand_in.answers("POST", "/v1/objects", {**STORED, "passed_over": [PASSED]}, 201)
    said = xsc("--verbose", "store", "put", "-").err
    assert f"passed over abcdefghij, lease {10 * 'l'}: it is too small" in said
    assert "passed over" not in xsc("store", "put", "-").err


def test_get_writes_a_file(xsc, stand_in, tmp_path):
    stand_in.streams("/v1/object", b"abc")
    done = xsc("store", "get", "xsc:r:abc", "-o", tmp_path / "f")
    assert (done.code, done.out, done.err) == (0, b"", "")
    assert (tmp_path / "f").read_bytes() == b"abc"
    as_json = xsc("store", "get", "xsc:r:abc", "-o", tmp_path / "f", "--json")
    assert as_json.json == {"file": str(tmp_path / "f"), "size_bytes": 3}


def test_a_full_disk_is_a_limit(xsc, stand_in):
    stand_in.streams("/v1/object", b"abc")
    done = xsc("store", "get", "xsc:r:c", "-o", "/dev/full")
    assert (done.code, done.out) == (4, b"")
    assert "/dev/full cannot be written: No space left on device (space_exhausted)" in done.err


def test_get_streams_to_standard_output(xsc, stand_in):
    stand_in.streams("/v1/object", b"a\0\xff")
    assert xsc("store", "get", "xsc:r:abc", "-o", "-").out == b"a\0\xff"


def test_get_that_breaks_off_leaves_nothing_of_that_name_and_goes_on(xsc, stand_in, tmp_path):
    stand_in.streams("/v1/object", b"abc", cut=2)
    folder = tmp_path / "out"
    folder.mkdir()
    done = xsc("store", "get", "xsc:r:abc", "-o", folder / "f")
    assert done.code == 5
    assert "2 of 3 bytes" in done.err
    assert sorted(path.name for path in folder.iterdir()) == ["f.part", "f.part.sums"]
    assert xsc("store", "get", "xsc:r:abc", "-o", "-").code == 5
    stand_in.serves("/v1/object", b"abc")
    assert xsc("store", "get", "xsc:r:abc", "-o", folder / "f").code == 0
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("f", b"abc")]


@pytest.mark.parametrize(
    ("part", "content"), [("1-2", b"bc"), ("3-", b"de"), ("-2", b"de"), ("0-99", b"abcde")]
)
def test_get_takes_a_range(xsc, stand_in, tmp_path, part, content):
    stand_in.serves("/v1/object", b"abcde")
    assert xsc("store", "get", "xsc:r:c", "--range", part, "-o", "-").out == content
    assert stand_in.last.headers["Range"] == f"bytes={part}"
    done = xsc("store", "get", "xsc:r:c", "--range", part, "-o", tmp_path / "f", "--json")
    assert done.json == {"file": str(tmp_path / "f"), "size_bytes": len(content)}
    assert (tmp_path / "f").read_bytes() == content


@pytest.mark.parametrize("part", ["", "-", "a-b", "5-4", "1-2,4-5", "1", "bytes=1-2"])
def test_get_refuses_what_is_no_range_before_it_asks(xsc, stand_in, part):
    done = xsc("store", "get", "xsc:r:c", "--range", part, "-o", "-")
    assert done.code == 2
    assert stand_in.requests == []


def test_get_does_not_take_the_whole_for_a_range(xsc, stand_in):
    stand_in.streams("/v1/object", b"abcde")
    done = xsc("store", "get", "xsc:r:c", "--range", "1-2", "-o", "-")
    assert (done.code, done.out) == (5, b"")


def test_get_goes_on_where_it_was_interrupted(xsc, stand_in, tmp_path):
    content = bytes(range(256)) * (9 * 2**12)
    stand_in.serves("/v1/object", content, cut=6 * 2**20 + 700_000)
    target = tmp_path / "f"
    assert xsc("store", "get", "xsc:r:c", "-o", target).code == 5
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "f.part",
        "f.part.sums",
    ]
    stand_in.serves("/v1/object", content)
    done = xsc("store", "get", "xsc:r:c", "-o", target, "--json")
    assert done.json == {"file": str(target), "size_bytes": len(content)}
    assert stand_in.last.headers["Range"] == f"bytes={6 * 2**20 + 700_000}-"
    assert target.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["f"]


@pytest.mark.parametrize("how", ["word", "file", "stdin"])
def test_a_capability_need_not_stand_in_the_list_of_processes(xsc, stand_in, tmp_path, how):
    stand_in.answers("GET", "/v1/object/stat", {})
    (tmp_path / "cap").write_text("xsc:r:abc\n")
    word = {"word": "xsc:r:abc", "file": f"@{tmp_path / 'cap'}", "stdin": "-"}[how]
    xsc("store", "stat", word, "--json", stdin=b" xsc:r:abc\n")
    assert stand_in.last.headers["XSC-Capability"] == "xsc:r:abc"


@pytest.mark.parametrize(("content", "code"), [(b"\xff\xfe", 2), (b"a" * 10_000, 4)])
def test_a_file_that_holds_no_capability_is_refused(xsc, stand_in, tmp_path, content, code):
    (tmp_path / "cap").write_bytes(content)
    assert xsc("store", "stat", f"@{tmp_path / 'cap'}").code == code
    assert stand_in.requests == []


def test_stat(xsc, stand_in):
    answer = {
        "size_bytes": 5_000_000,
        "code": {"k": 4, "m": 2},
        "hosts": [{"shard": 0, "node": NODE, "state": "missing"}],
        "readable": True,
        "margin": 1,
        "healable": False,
        "ends_ms": None,
        "ending": [],
    }
    stand_in.answers("GET", "/v1/object/stat", answer)
    assert xsc("store", "stat", "xsc:r:c", "--json").json == answer
    text = xsc("store", "stat", "xsc:r:c").text
    assert "4.7 MiB" in text
    assert "any 4 of 6 shards" in text
    assert "1 more shard may be lost" in text
    assert "abcdefghij  missing" in text


def test_ls(xsc, stand_in):
    row = {
        "name": "f",
        "version": 3,
        "capability": "c",
        "size_bytes": 1,
        "created_ms": 0,
        "margin": 2,
        "ends_ms": None,
        "ending": [],
        "hosts": [],
    }
    stand_in.answers("GET", "/v1/objects", {"objects": [row]})
    assert xsc("store", "ls", "--json").json == {"objects": [row]}
    assert xsc("store", "ls", "--versions", "--json").json == {"objects": [row]}
    assert xsc("store", "ls").text.splitlines()[1].split()[:3] == ["f", "3", "1"]
    # The size of a directory's list is not that of its files.
    stand_in.answers("GET", "/v1/objects", {"objects": [{**row, "name": "d/"}]})
    assert xsc("store", "ls").text.splitlines()[1].split()[:3] == ["d/", "3", "-"]
    stand_in.answers("GET", "/v1/objects", {"objects": []})
    assert xsc("store", "ls").out == b""


GONE = {"confirmed": [NODE], "unconfirmed": [], "receipts": {}}
STAYS = {"confirmed": [], "unconfirmed": [NODE], "receipts": {}}


def test_rm_says_what_was_not_confirmed(xsc, stand_in):
    stand_in.answers("GET", "/v1/objects", {"objects": []})  # it is no directory
    stand_in.answers("DELETE", "/v1/object", GONE)
    done = xsc("store", "rm", "xsc:r:c")
    assert (done.code, done.text, done.err) == (0, "deleted at 1 node\n", "")
    stand_in.answers("DELETE", "/v1/object", STAYS)
    done = xsc("store", "rm", "xsc:r:c")
    assert done.code == 7
    assert done.err.startswith("warning: abcdefghij has not confirmed")
    assert xsc("store", "rm", "xsc:r:c", "--json").json == STAYS


def test_json_and_content_do_not_share_standard_output(xsc, stand_in):
    done = xsc("store", "get", "xsc:r:c", "-o", "-", "--json")
    assert (done.code, done.out) == (2, b"")
    assert "both want standard output" in done.err
    assert stand_in.requests == []


# compute


def test_invoke_prints_the_results_on_one_line(xsc, stand_in, module):
    stand_in.answers("POST", "/v1/jobs", DONE)
    done = xsc("compute", "invoke", module, "add", "1", "2")
    assert (done.code, done.text, done.err) == (0, "3 -0.5\n", "")
    order, rest = stand_in.last.job()
    assert rest == b"\0asm"
    assert order["function"] == "add"
    assert order["arguments"] == ["1", "2"]
    assert xsc("compute", "invoke", module, "add", "1", "2", "--json").json == DONE


def test_a_batch_prints_a_line_of_json_for_each(xsc, stand_in, module, tmp_path):
    good = {"results": ["3"], "fuel_used": 4, "trap": None}
    many = {**DONE, "items": [good, good]}
    del many["results"]
    stand_in.answers("POST", "/v1/jobs", many)
    (tmp_path / "lines").write_text("1 2\n-1 4\n")
    words = ["compute", "invoke", module, "add", "--batch", tmp_path / "lines"]
    done = xsc(*words, "--item-fuel", "9", "--receipt", tmp_path / "r")
    assert (done.code, done.err) == (0, "")
    assert [json.loads(line) for line in done.text.splitlines()] == [good, good]
    assert (tmp_path / "r").read_bytes() == b"proof"
    order, rest = stand_in.last.job()
    assert rest == b"\0asm1 2\n-1 4\n"
    assert (order["mode"], order["item_fuel"], order["stdin_bytes"]) == ("batch", 9, 9)
    assert xsc(*words, "--json").json == many

    trap = {"code": "module_trapped", "detail": "it failed", "hint": ""}
    bad = {"results": [], "fuel_used": 1, "trap": trap}
    stand_in.answers("POST", "/v1/jobs", {**many, "items": [good, bad]})
    done = xsc(*words)
    assert (done.code, len(done.text.splitlines())) == (2, 2)
    assert "1 of 2 lines failed" in done.err
    stand_in.answers("POST", "/v1/jobs", {**many, "items": [], "trap": trap})
    done = xsc(*words)
    assert (done.code, done.out) == (2, b"")


def test_batches_and_single_calls_are_not_mixed(xsc, stand_in, module, tmp_path):
    (tmp_path / "lines").write_text("")
    assert xsc("compute", "invoke", module, "f", "1", "--batch", tmp_path / "lines").code == 2
    assert xsc("compute", "invoke", module, "f", "1", "--item-fuel", "1").code == 2
    assert xsc("compute", "invoke", module, "f", "--batch", tmp_path / "absent").code == 2
    assert stand_in.requests == []


@pytest.mark.parametrize(
    "words",
    [
        ["-1", "-0x1F", "-1.5e-3", "-inf", "-nan", "-.5", "--fuel", "7", "--memory", "1MiB"],
        ["--fuel", "7", "-1", "-0x1F", "--memory=1MiB", "-1.5e-3", "-inf", "-nan", "-.5"],
        ["--memory", "1MiB", "--fuel", "7", "--", "-1", "-0x1F", "-1.5e-3", "-inf", "-nan", "-.5"],
    ],
)
def test_negative_numbers_and_options_stand_anywhere(xsc, stand_in, module, words):
    stand_in.answers("POST", "/v1/jobs", DONE)
    done = (
        xsc("compute", "invoke", module, "f", *words, "--timeout", "2s")
        if ("--" not in words)
        else xsc("compute", "invoke", "--timeout", "2s", module, "f", *words)
    )
    assert done.code == 0, done.err
    order, _ = stand_in.last.job()
    assert order["arguments"] == ["-1", "-0x1F", "-1.5e-3", "-inf", "-nan", "-.5"]
    assert order["fuel"] == 7
    assert order["memory_bytes"] == 1048576
    assert order["timeout_ms"] == 2000


def test_a_trap_exits_by_its_code_and_keeps_the_receipt(xsc, stand_in, module, tmp_path):
    trap = {"code": "fuel_exhausted", "detail": "all of 9 was used", "hint": "give more"}
    stand_in.answers("POST", "/v1/jobs", {**DONE, "results": [], "trap": trap})
    done = xsc("compute", "invoke", module, "f", "--receipt", tmp_path / "r")
    assert (done.code, done.out) == (4, b"")
    assert done.err == "error: all of 9 was used (fuel_exhausted)\nhint: give more\n"
    assert (tmp_path / "r").read_bytes() == b"proof"
    as_json = xsc("compute", "invoke", module, "f", "--json")
    assert as_json.code == 4
    assert as_json.json["trap"]["code"] == "fuel_exhausted"


def test_on_and_local_go_along(xsc, stand_in, module):
    stand_in.answers("POST", "/v1/jobs", DONE)
    xsc("compute", "invoke", module, "f", "--on", "bob")
    assert stand_in.last.job()[0]["on"] == "bob"
    xsc("compute", "invoke", module, "f", "--local")
    assert stand_in.last.job()[0]["local"] is True
    assert xsc("compute", "invoke", module, "f", "--on", "bob", "--local").code == 2


def test_on_needs_a_node(xsc, module):
    done = xsc("compute", "invoke", module, "f", "--on", "bob")
    assert done.code == 5
    assert "(node_unreachable)" in done.err


def test_verbose_says_what_it_took(xsc, stand_in, module):
    stand_in.answers("POST", "/v1/jobs", DONE)
    assert "ran on abcdefghij in 2ms: 5 fuel" in xsc("compute", "invoke", module, "f", "-v").err


def test_a_program_gets_what_it_is_given(xsc, stand_in, module, tmp_path):
    stand_in.runs(RAN)
    (tmp_path / "cap").write_text("xsc:r:abc")
    done = xsc(
        *["compute", "run", module, "--stdin", "-", "--env", "A=b=c", "--env", "D="],
        *["--in", f"data.csv=@{tmp_path / 'cap'}", "--", "one", "--two", "-3"],
        stdin=b"input",
    )
    assert (done.code, done.out, done.err) == (0, b"out\xff", "err")
    order, rest = stand_in.last.job()
    assert rest == b"\0asminput"
    assert order["arguments"] == ["one", "--two", "-3"]
    assert order["env"] == {"A": "b=c", "D": ""}
    assert order["inputs"] == {"data.csv": "xsc:r:abc"}
    assert order["stdin_bytes"] == 5


@pytest.mark.parametrize(("given", "seen"), [(0, 0), (3, 3), (255, 255), (256, 255), (2**32, 255)])
def test_a_program_s_code_is_passed_on_and_never_lost(xsc, stand_in, module, given, seen):
    stand_in.runs({**RAN, "exit_code": given})
    assert xsc("compute", "run", module).code == seen


@pytest.mark.parametrize("given", [*range(119, 129), 130])
def test_a_program_s_code_that_looks_like_our_own_failure_is_said_to_be_its_own(
    xsc, stand_in, module, given
):
    stand_in.runs({**RAN, "exit_code": given})
    done = xsc("compute", "run", module)
    assert done.code == given
    ours = given in (*range(120, 128), 130)
    assert done.err == "err" + f"the program itself exited with {given}\n" * ours


def test_a_program_that_hits_a_limit_shows_what_it_wrote(xsc, stand_in, module):
    trap = {"code": "time_exceeded", "detail": "it ran for 1s", "hint": ""}
    stand_in.runs({**RAN, "exit_code": None, "trap": trap})
    done = xsc("compute", "run", module)
    assert done.code == 124
    assert done.out == b"out\xff"
    assert done.err == "errerror: it ran for 1s (time_exceeded)\n"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["/nowhere"], 122),
        (["--fuel", "x", "m"], 122),
        (["--nothing", "m"], 122),
        ([], 122),
        (["m", "--env", "K"], 122),
        (["m", "--env", "K=1", "--env", "K=2"], 122),
        (["m", "--in", "a=@/nowhere"], 122),
        (["m", "--stdin", "/nowhere"], 122),
        (["m", "--out", "m"], 122),
        (["m", "--in", "a=c"], 125),
        (["m", "--store", "p"], 125),
        (["m", "--", "\udcff"], 122),
        (["m", "--on", "bob"], 125),
    ],
)
def test_failures_of_its_own_are_shifted(xsc, module, monkeypatch, words, code):
    monkeypatch.chdir(module.parent)
    words = ["m.wasm" if word == "m" else word for word in words]
    assert xsc("compute", "run", *words).code == code


def test_a_run_that_breaks_off_is_no_success(xsc, stand_in, module):
    line = {"stdout": b64encode(b"so far").decode()}
    problem = {"problem": {"code": "no_offers", "detail": "nobody offers", "hint": ""}}
    for lines in ([line], [line, problem], [line, [1]], [line, 1]):
        body = b"".join(json.dumps(each).encode() + b"\n" for each in lines)
        stand_in.routes["POST", "/v1/jobs/stream"] = lambda request, body=body: request.answer.raw(
            200, {"Content-Length": str(len(body))}, body
        )
        done = xsc("compute", "run", module)
        assert (done.code, done.out) == (125, b"so far")
        assert done.err.startswith("error: ")


def test_output_files_are_placed(xsc, stand_in, module, tmp_path):
    files = {"a": b64encode(b"1").decode(), "b/c": b64encode(b"2").decode()}
    stand_in.runs({**RAN, "files": files})
    assert xsc("compute", "run", module, "--out", tmp_path / "new" / "out").code == 0
    assert (tmp_path / "new" / "out" / "a").read_bytes() == b"1"
    assert (tmp_path / "new" / "out" / "b" / "c").read_bytes() == b"2"


def test_stored_outputs_are_listed_and_what_is_not_stored_is_said(xsc, stand_in, module):
    good = {"path": "a", "name": "run/a", "capability": "xsc:r:a", "size_bytes": 1, "fault": None}
    fault = {"code": "no_offers", "detail": "nobody has room", "hint": ""}
    bad = {**good, "path": "b", "capability": "", "fault": fault}
    stand_in.runs({**RAN, "exit_code": 3, "objects": [good]})
    done = xsc("compute", "run", module, "--store", "run/")
    assert (done.code, done.err) == (3, "erra  xsc:r:a\n")
    assert stand_in.last.job()[0]["store"] == "run/"
    stand_in.runs({**RAN, "objects": [good, bad]})
    done = xsc("compute", "run", module, "--store", "run/")
    assert (done.code, done.out) == (127, b"out\xff")
    assert done.err.endswith("warning: b is not stored: nobody has room\n")


def test_output_files_cannot_leave_their_directory(xsc, stand_in, module, tmp_path):
    files = {"../evil": b64encode(b"1").decode()}
    stand_in.runs({**RAN, "files": files})
    done = xsc("compute", "run", module, "--out", tmp_path / "out")
    assert done.code == 123
    assert not (tmp_path / "evil").exists()


# peers, market, ledger, health, node


def test_invite_and_add(xsc, stand_in):
    answer = {"invitation": "xsc1abc", "expires_ms": 1000}
    stand_in.answers("POST", "/v1/peers/invitations", answer)
    done = xsc("peer", "invite", "--ttl", "2h")
    assert done.text == "xsc1abc\n"
    assert stand_in.last.json() == {"ttl_ms": 7_200_000}
    xsc("peer", "invite")
    assert stand_in.last.json() == {}
    stand_in.answers("GET", "/v1/peers", {"peers": [PEER]})
    stand_in.answers("POST", "/v1/peers", {"id": NODE, "name": "bob"})
    assert xsc("peer", "add", "-", "--name", "bob", stdin=b"xsc1abc\n").text.startswith("added bob")
    assert stand_in.last.json() == {"invitation": "xsc1abc", "name": "bob"}


@pytest.mark.parametrize(
    ("not_reached_by", "address", "told"),
    [(1, "198.51.100.7:7411", True), (0, "198.51.100.7:7411", False), (1, "127.0.0.1:7", False)],
)
def test_who_adds_its_first_peer_hears_whether_that_reaches_it(
    xsc, stand_in, not_reached_by, address, told
):
    peers = {"reached_by": 1 - not_reached_by, "not_reached_by": not_reached_by}
    stand_in.answers("GET", "/v1/peers", {"peers": []})
    stand_in.answers("POST", "/v1/peers", {"id": NODE, "name": "bob"})
    stand_in.answers("GET", "/v1/status", {"peers": peers, "addresses": [address]})
    done = xsc("peer", "add", "-", stdin=b"xsc1abc\n")
    assert done.text.startswith("added bob")
    assert (f"cannot reach it at {address}" in done.err) == told
    assert ("WireGuard" in done.err) == told
    assert told or not done.err
    assert xsc("peer", "add", "-", "--json", stdin=b"xsc1abc\n").err == ""


def test_peers_are_managed(xsc, stand_in):
    stand_in.answers("POST", "/v1/peers/bob/recognise", {"name": "bob", "weight_ppm": 250_000})
    assert xsc("peer", "recognise", "bob", "25%").text == "bob is recognised with 25.0%\n"
    assert stand_in.last.json() == {"weight_ppm": 250_000}
    stand_in.answers("POST", "/v1/peers/bob/rename", {"id": NODE, "name": "rob"})
    assert xsc("peer", "rename", "bob", "rob").text == "abcdefghij is called rob\n"
    assert stand_in.last.json() == {"name": "rob"}
    stand_in.answers("POST", "/v1/peers/bob/confirm", {"id": NODE, "name": "bob"})
    assert xsc("peer", "confirm", "bob").text == "confirmed bob (abcdefghij)\n"
    stand_in.answers("POST", "/v1/peers/bob/block", {"id": NODE, "name": "bob"})
    assert xsc("peer", "block", "bob").text == "blocked bob (abcdefghij)\n"
    stand_in.answers("DELETE", "/v1/peers/bob", {"id": NODE, "name": "bob"})
    assert xsc("peer", "rm", "bob").text == "removed bob (abcdefghij)\n"


PEER = {
    "id": NODE,
    "name": "bob",
    "addresses": ["127.0.0.1:1"],
    "state": "up",
    "reaches_us": False,
    "clock_refused": False,
    "introducer": NODE,
    "introducer_name": "alice",
    "hops": 1,
    "confirmed": False,
    "availability_ppm": 999_000,
    "response_ms": 3,
    "last_seen_ms": None,
    "skew_ms": 0,
    "recognised_ppm": 250_000,
    "recognises_ppm": 0,
    "tier": "mutual",
    "balance_micro": -1_500_000,
    "limit_micro": 10_000_000,
    "quality_ppm": 1_000_000,
    "grade": "vetted",
    "outcome": "ok",
    "challenged_ms": 0,
    "proven_ms": 0,
    "unproven_micro": 4_000,
    "unproven_since_ms": 0,
    "owed_unproven_micro": 0,
    "owed_unproven_since_ms": None,
    "false_clearing": NODE,
    "spent": [{"method": "storage.put", "units": 16_881, "processor_us": 35_092}],
    "units_left": 999_000,
    "synced_bytes_left": 64 * MIB,
}
OFFER = {
    "node": NODE,
    "name": "",
    "kind": "storage",
    "tier": "mutual",
    "price_micro": 8,
    "reserve_micro": 10,
    "price_mutual_micro": 8,
    "price_one_way_micro": 9,
    "slot": NODE,
    "available": GIB,
    "unit": "bytes",
}
LEASE = {
    "lease_id": NODE,
    "role": "customer",
    "peer": NODE,
    "slot": NODE,
    "need": NODE,
    "origin": "cleared",
    "tier": "mutual",
    "kind": "compute",
    "quantity": 10_000_000,
    "used": 1,
    "price_micro": 8,
    "billed_micro": 80,
    "settled_micro": 40,
    "state": "open",
    "end_ms": 0,
}
FOR_NOW = {"origin": "now", "need": None, "quantity": 0}
ENTRY = {
    "seq": 1,
    "kind": "transfer",
    "peer": NODE,
    "name": "bob",
    "amount_micro": 80,
    "direction": "in",
    "lease_id": NODE,
    "created_ms": 0,
    "entry_id": "e1",
    "state": "posted",
}
ENTRIES = {"entries": [ENTRY], "more": True}
FLOW = {
    "peer": NODE,
    "name": "bob",
    "earned_micro": 80,
    "spent_micro": 0,
    "cleared_micro": 0,
    "cleared_own_micro": 0,
    "received_micro": 0,
    "paid_micro": 0,
}
BALANCES = {
    "balances": [
        {
            "peer": NODE,
            "name": "bob",
            "balance_micro": -5,
            "limit_micro": 9,
            "unproven_micro": 0,
            "clearing_micro": 0,
            "left_micro": 14,
            "shared_through": None,
            "own_limit_micro": None,
            "own_left_micro": None,
            "paid_micro": 0,
            "heard_paid_micro": 0,
            "says": "you owe bob 0.000005 credits",
        }
    ],
    "shared": [],
    "total_micro": -5,
}
SLOT = {
    "id": "a" * 26,
    "role": "offer",
    "origin": "default",
    "node": "b" * 52,
    "kind": "compute",
    "quantity": 2_000_000_000,
    "granted": 500_000_000,
    "used": None,
    "price_micro": 10,
    "windows": [[1_700_000_000_000, 2**63 - 1]],
}
NEED = {
    **SLOT,
    "role": "need",
    "origin": "stated",
    "windows": [[1_700_000_000_000, 1_700_000_060_000]],
}
LINE = {
    "node": NODE,
    "name": "bob",
    "tier": "mutual",
    "need": NODE,
    "quantity": 64 * GIB,
    "price": 8,
    "drawn": 0,
    "until_ms": 3_600_000,
}
STAGED = {**LINE, "drawn": 7 * GIB, "price": 9}
CLEARED = {
    "slots": [
        {
            "slot": NODE,
            "node": NODE,
            "name": "bob",
            "kind": "storage",
            "window": [0, 3_600_000],
            "capacity": 2048 * GIB,
            "tiers": [
                {"tier": "mutual", "given": 88 * GIB},
                {"tier": "one_way", "given": 0},
                {"tier": "open", "given": 40 * GIB},
            ],
            "allocations": [LINE, STAGED],
            "pinned": [{"node": NODE, "name": "eve", "need": NODE, "quantity": 3 * GIB}],
        }
    ],
    "converged": True,
    "network_converged": False,
    "program_fault": "",
}
ENDLESS = {**CLEARED, "slots": [{**CLEARED["slots"][0], "window": [0, 2**63 - 1]}]}
UNSERVED = {**CLEARED, "program_fault": "sum: too large"}
GROUPS = {"groups": {"my_mutual_beneficiaries": [NODE]}, "names": {NODE: "bob"}}
STAMPED = {
    "node": NODE,
    "name": "bob",
    "sequence": 3,
    "written_ms": 0,
    "offers": 1,
    "needs": 2,
    "consistent": False,
    "unheard": [NODE],
}
GRANTED = {
    "allocations": [
        {**LINE, "kind": "compute", "quantity": 5 * MFUEL, "drawn": 0, "window": [0, 1]}
    ],
    "totals": {NODE: 5 * MFUEL},
}
KEPT = {**GRANTED["allocations"][0], "tier": None, "quantity": 0, "drawn": 5 * MFUEL}
REASON = {
    **LINE,
    "slot": NODE,
    "kind": "compute",
    "window": [0, 1],
    "clearing": NODE,
    "provider": NODE,
    "provider_name": "ada",
    "weight": 250_000,
    "eligible": 2 * MFUEL,
    "granted": MFUEL,
    "stages": [{"tier": "mutual", "quantity": MFUEL, "price": 8}],
    "because": "so",
    "changes": ["more"],
}
UNMATCHED = {
    **REASON,
    "clearing": None,
    "window": None,
    "granted": None,
    "stages": [],
    "because": "elsewhere",
}
WHY = {"why": [REASON, UNMATCHED], "more": True, "passed_over": []}
VERIFIED = {"ok": True, "entries": 1, "peers": 1, "head": "h", "text": "1 entry holds"}


@pytest.mark.parametrize(
    "case",
    [
        (
            ["peer", "ls"],
            "/v1/peers",
            {"peers": [PEER]},
            "bob   abcdefghij  up     no          alice",
        ),
        (
            ["peer", "ls", "--costs"],
            "/v1/peers",
            {"peers": [PEER]},
            "bob   storage.put  16881         35092      999000     64.0 MiB",
        ),
        (["health"], "/v1/health", {"peers": [PEER]}, "99.9%"),
        (["market", "quote"], "/v1/market/quotes", {"quotes": [OFFER]}, "1.0 GiB  0.000008"),
        (["market", "slots"], "/v1/market/slots", {"slots": [SLOT, NEED]}, "always"),
        (["market", "slots"], "/v1/market/slots", {"slots": [SLOT]}, "500 Mfuel/s     ?"),
        (["allocation", "show"], "/v1/allocation", CLEARED, "bob   storage"),
        (["allocation", "show"], "/v1/allocation", CLEARED, "2.0 TiB"),
        (["allocation", "show"], "/v1/allocation", CLEARED, "1970-01-01 00:00:00 UTC"),
        (["allocation", "groups"], "/v1/allocation/groups", GROUPS, "served here as mutual  bob"),
        (
            ["allocation", "consistent"],
            "/v1/allocation/consistent",
            {"commitments": [STAMPED]},
            "bob   1970-01-01 00:00:00 UTC       1      2  no          bob",
        ),
        (["allocation", "expected"], "/v1/allocation/expected", GRANTED, "5 Mfuel/s"),
        (["allocation", "why", "bob"], "/v1/allocation/why/bob", WHY, "1 Mfuel/s of 2 Mfuel/s"),
        (
            ["allocation", "received"],
            "/v1/allocation/received",
            {"allocations": [KEPT], "totals": {NODE: 5 * MFUEL}},
            "pinned  0 Mfuel/s  5 Mfuel/s",
        ),
        (["allocation", "why", "bob"], "/v1/allocation/why/bob", WHY, "mutual, 25.0%"),
        (["allocation", "why", "bob"], "/v1/allocation/why/bob", WHY, "more\n\ncustomer"),
        (["allocation", "why", "bob"], "/v1/allocation/why/bob", WHY, "elsewhere\nchange"),
        (["allocation", "why", "bob"], "/v1/allocation/why/bob", WHY, "there is more"),
        (["allocation", "why", "x"], "/v1/allocation/why/x", WHY | {"why": []}, "nobody"),
        (["market", "why", "node-2"], "/v1/allocation/why/node-2", WHY, "mutual, 25.0%"),
        (
            ["allocation", "why", "x"],
            "/v1/allocation/why/x",
            WHY | {"why": [], "passed_over": [PASSED]},
            "passed over: it is too small",
        ),
        (["allocation", "show"], "/v1/allocation", CLEARED, "64.0 GiB  7.0 GiB  0.000009"),
        (["allocation", "show"], "/v1/allocation", CLEARED, "eve       pinned"),
        (["allocation", "show"], "/v1/allocation", CLEARED, "storage  mop" + 37 * "."),
        (["allocation", "show"], "/v1/allocation", ENDLESS, "storage  always"),
        (["allocation", "show"], "/v1/allocation", UNSERVED, "program fails: sum: too large"),
        (["market", "leases"], "/v1/market/leases", {"leases": [LEASE]}, "0.000040"),
        (["market", "leases"], "/v1/market/leases", {"leases": [LEASE]}, "10 Mfuel/s"),
        (["market", "leases"], "/v1/market/leases", {"leases": [LEASE | FOR_NOW]}, " - "),
        (["ledger", "balance"], "/v1/ledger/balance", BALANCES, "-0.000005"),
        (["ledger", "log"], "/v1/ledger/log", {**ENTRIES, "more": False}, "+0.000080"),
        (
            ["ledger", "log", "--before", "9", "--limit", "1"],
            "/v1/ledger/log?limit=1&before=9",
            ENTRIES,
            f"older ones: xsc ledger log --before {ENTRY['seq']}",
        ),
        (["ledger", "flows"], "/v1/ledger/flows", {"flows": [FLOW]}, "0.000080  0.000000"),
        (
            ["ledger", "flows", "--since", "1h"],
            "/v1/ledger/flows?within_ms=3600000",
            {"flows": [FLOW]},
            "bob",
        ),
        (["ledger", "verify"], "/v1/ledger/verify", VERIFIED, "1 entry holds"),
    ],
    ids=lambda case: " ".join(case[0]),
)
def test_what_is_asked_is_shown(xsc, stand_in, case):
    words, path, answer, shows = case
    stand_in.answers("GET", path, answer)
    assert xsc(*words, "--json").json == answer
    done = xsc(*words)
    assert done.code == 0
    assert shows in done.text
    assert done.err == ""


STATEMENT = {
    "node": NODE,
    "name": "alice",
    "from_ms": 1_793_491_200_000,
    "until_ms": 1_796_083_200_000,
    "payments": [{"created_ms": 1_793_491_200_000, "says": "it was paid", "entry_id": "e1"}],
    "balances": [{"says": "bob owes you 2 credits", "opening_micro": -1_000_000}],
}


def test_a_statement_says_what_was_booked_and_who_owes_whom(xsc, stand_in):
    stand_in.answers("GET", "/v1/ledger/statement?month=2026-11", STATEMENT)
    assert xsc("ledger", "statement", "--month", "2026-11", "--json").json == STATEMENT
    shown = xsc("ledger", "statement", "--month", "2026-11").text
    assert "alice, 2026-11-01 00:00:00 UTC to 2026-12-01 00:00:00 UTC" in shown
    assert "it was paid" in shown
    assert "bob owes you 2 credits; before: -1.000000" in shown


def test_an_export_goes_to_standard_output_or_a_file(xsc, stand_in, tmp_path):
    stand_in.streams("/v1/ledger/export?format=csv&month=2026-11", b"time,debtor\r\n")
    words = ["ledger", "export", "--format", "csv", "--month", "2026-11"]
    assert xsc(*words).text == "time,debtor\r\n"
    assert xsc(*words, "-o", str(tmp_path / "csv"), "--json").json["size_bytes"] == 13
    assert (tmp_path / "csv").read_bytes() == b"time,debtor\r\n"
    assert xsc(*words, "--json").code == 2
    assert xsc("ledger", "export", "--format", "xls").code == 2


@pytest.mark.parametrize(
    ("outcome", "code"),
    [("ok", 0), ("prober_void", 0), ("timeout", 5), ("unreachable", 5), ("missing", 6)],
)
def test_hosts_are_challenged(xsc, stand_in, outcome, code):
    row = {"id": NODE, "name": "bob", "customer": NODE, "customer_name": "alice"}
    row |= {"outcome": outcome, "reason": "because"}
    stand_in.answers("POST", "/v1/health/challenge", {"challenged": [row]})
    done = xsc("health", "challenge", "bob")
    assert (done.code, outcome in done.text, "because" in done.text) == (code, True, True)
    assert xsc("health", "challenge", "--json").json == {"challenged": [row]}
    assert [request.json() for request in stand_in.requests[-2:]] == [{"who": "bob"}, {}]


def test_settle(xsc, stand_in):
    row = {"lease_id": NODE, "role": "customer", "peer": NODE, "amount_micro": 40}
    stand_in.answers(
        "POST", "/v1/ledger/settle", {"settled": [row], "pending": 2, "pending_micro": 190_000}
    )
    text = xsc("ledger", "settle").text
    assert "0.000040" in text
    assert "not due yet: 0.19 credits with 2 peers" in text


def test_clear(xsc, stand_in):
    row = {
        "members": [{"id": NODE, "name": "bob"}],
        "amount_micro": 40,
        "state": "unsigned",
        "waits_for": [{"id": NODE, "name": "cid"}],
    }
    stand_in.answers("POST", "/v1/ledger/clear", {"loops": [row], "silent": []})
    text = xsc("ledger", "clear").text
    assert "0.000040" in text
    assert "waits" in text
    stand_in.answers("POST", "/v1/ledger/clear", {"loops": [], "silent": [row["members"][0]]})
    text = xsc("ledger", "clear").err
    assert "no debts go around" in text
    assert "bob does not answer" in text


def test_cubes_are_drawn_and_compared(xsc, stand_in):
    row = {
        "peer": NODE,
        "name": "bob",
        "sealed": 30,
        "unsealed": 2,
        "levels": [
            {"level": 2, "index": 0, "full": 1, "differs": None},
            {"level": 1, "index": 1, "full": 4, "differs": None},
        ],
        "compared": "-",
        "shared": None,
        "entry_id": None,
        "created_ms": None,
    }
    stand_in.answers("GET", "/v1/ledger/cubes", {"cubes": [row]})
    shown = xsc("ledger", "cubes")
    assert shown.code == 0
    assert shown.text.splitlines() == [
        "bob: 30 sealed, 2 to be sealed",
        "  27 a cell    1 a cell",
        "  ■□□ □□□ □□□  ■■■ □□□ □□□",
        "  □□□ □□□ □□□  ■□□ □□□ □□□",
        "  □□□ □□□ □□□  □□□ □□□ □□□",
    ]
    same = row | {"compared": "same", "shared": 30}
    other = row | {"compared": "differs", "shared": 30, "entry_id": NODE, "created_ms": 0}
    other["levels"] = [{"level": 1, "index": 0, "full": 27, "differs": 13}]
    for answer, code, text in (
        (same, 0, "bob has the same 30"),
        (other, 6, f"bob has another entry than {NODE} of 1970-01-01"),
        (other, 6, "■■■ ■■■ ■■■\n  ■■■ ■×■ ■■■\n"),
        (row | {"compared": "apart"}, 0, "has not heard of a restart"),
        (row | {"compared": "silent"}, 0, "bob does not answer"),
        (row | {"compared": "wrong"}, 0, "bob refuses to compare"),
    ):
        stand_in.answers("GET", "/v1/ledger/cubes?peer=bob&compare=1", {"cubes": [answer]})
        told = xsc("ledger", "cubes", "bob", "--compare")
        assert told.code == code
        assert text in told.text
    stand_in.answers("GET", "/v1/ledger/cubes", {"cubes": []})
    assert "nothing was booked yet" in xsc("ledger", "cubes").err


def test_what_was_paid_outside_waits_for_the_other_side(xsc, stand_in):
    answer = {
        "peer": NODE,
        "name": "bob",
        "amount_micro": 5_000_000,
        "state": "waits",
        "heard_paid_micro": 0,
        "balance_micro": -9_000_000,
    }
    path = "/v1/ledger/off-books"
    stand_in.answers("POST", path, answer)
    done = xsc("ledger", "settle", "bob", "--off-books", "5")
    assert done.code == 7
    assert "until bob says the same" in done.text
    booked = {**answer, "state": "booked", "balance_micro": -4_000_000}
    stand_in.answers("POST", path, booked)
    done = xsc("ledger", "settle", "bob", "--off-books", "5")
    assert (done.code, "this node owes bob 4.000000" in done.text) == (0, True)
    assert xsc("ledger", "settle", "bob").code == 2
    assert xsc("ledger", "settle", "--off-books", "5").code == 2


def test_balances_show_both_sides(xsc, stand_in):
    row = {**BALANCES["balances"][0], "own_limit_micro": 10_000_000, "own_left_micro": 9_000_000}
    row |= {"paid_micro": 1_000_000, "heard_paid_micro": 2_000_000}
    stand_in.answers("GET", "/v1/ledger/balance", {**BALANCES, "balances": [row]})
    text = xsc("ledger", "balance").text
    assert "10.000000" in text
    assert "9.000000" in text
    assert "At its limit a customer" in text
    assert "1.000000 paid off the books waits for bob" in text
    assert "xsc ledger settle bob --off-books 2.000000" in text


def test_limits_are_explained(xsc, stand_in):
    row = {
        "peer": NODE,
        "name": "bob",
        "known": "introduced",
        "shared_through": NODE,
        "starter_micro": 300_000_000,
        "mutual_ppm": 250_000,
        "recognised_micro": 75_000_000,
        "repaid_micro": 8_000_000,
        "repaid_credit_micro": 4_000_000,
        "max_micro": 1_200_000_000,
        "set_micro": None,
        "limit_micro": 379_000_000,
        "owed_micro": 370_000_000,
    }
    stand_in.answers("GET", "/v1/ledger/limits", {"limits": [row]})
    assert xsc("ledger", "limits", "--json").json == {"limits": [row]}
    shown = xsc("ledger", "limits").text
    for text in (
        "introduced  300.000000   75.000000  4.000000  1200.000000    -  379.000000",
        "bob: recognised both ways with 25.0%",
        "bob: repaid 8 credits in 90 days, of which a half counts",
        "bob: shares its starter with all that came by the same peer",
        "bob: has used more than 80 % of its limit",
    ):
        assert text in shown


def test_a_limit_is_set_and_ended(xsc, stand_in):
    answer = {"peer": NODE, "name": "bob", "limit_micro": 2_000_000, "credit_left_micro": 1}
    stand_in.answers("POST", "/v1/ledger/limit", {**answer, "shared_through": None})
    for said, sent in (("2", {"limit_micro": 2_000_000}), ("auto", {})):
        assert "bob may owe up to 2.000000" in xsc("ledger", "limit", "bob", said).text
        assert stand_in.requests[-1].json() == {"peer": "bob", **sent}
    assert xsc("ledger", "limit", "bob", "much").code == 2


def test_a_balance_says_where_a_limit_is_near(xsc, stand_in):
    row = {**BALANCES["balances"][0], "limit_micro": 10, "left_micro": 1}
    row |= {"own_limit_micro": 10, "own_left_micro": 2}
    stand_in.answers("GET", "/v1/ledger/balance", {**BALANCES, "balances": [row]})
    text = xsc("ledger", "balance").text
    assert "bob has used more than 80 % of what it may owe you" in text
    assert "you have used" not in text
    row |= {"own_left_micro": 1}
    stand_in.answers("GET", "/v1/ledger/balance", {**BALANCES, "balances": [row]})
    assert "you have used more than 80 % of what you may owe bob" in xsc("ledger", "balance").text


def test_a_shared_credit_is_shown_once(xsc, stand_in):
    names = [f"p{number}" for number in range(10)]
    one = {**BALANCES["balances"][0], "shared_through": NODE, "limit_micro": 10_000_000}
    credit = {
        "through": NODE,
        "name": "hub",
        "limit_micro": 10_000_000,
        "left_micro": 7_500_000,
        "peers": [{"id": NODE, "name": name} for name in names],
    }
    rows = [{**one, "name": name} for name in names]
    answer = {**BALANCES, "balances": rows, "shared": [credit]}
    stand_in.answers("GET", "/v1/ledger/balance", answer)
    text = xsc("ledger", "balance").text
    assert text.count("10.000000") == 1
    assert "all that came by hub may owe 10.000000 together, 7.500000 left: p0, p1" in text
    assert "p7, 2 more" in text


def test_an_entry_is_saved(xsc, stand_in, tmp_path):
    entry = "e2" * 26
    stand_in.streams(f"/v1/ledger/entry/{entry}", b"entry")
    assert xsc("ledger", "entry", entry, "-o", tmp_path / "e").code == 0
    assert (tmp_path / "e").read_bytes() == b"entry"


def test_status(xsc, stand_in):
    answer = {
        "id": NODE,
        "name": "bob",
        "network": "xsc",
        "version": "0.1.0",
        "home": "/h",
        "api_url": "http://127.0.0.1:1",
        "peer_url": "http://127.0.0.1:2",
        "addresses": [],
        "uptime_s": 61,
        "peers": {"known": 6, "healthy": 5},
        "storage": {
            "capacity_bytes": 2048,
            "used_bytes": 1024,
            "reserved_bytes": 0,
            "offered_bytes": 2**31,
            "granted_bytes": 2**30,
            "disk_free_bytes": 2**34,
        },
        "compute": {
            "workers": 2,
            "running": 1,
            "queued": 0,
            "offered_fuel_per_s": 2 * 10**9,
            "granted_fuel_per_s": 0,
        },
        "leases": {"ending": 0, "objects": 0, "first_end_ms": None, "reasons": []},
        "traffic": {"sent_bytes": 3 << 20, "received_bytes": 1 << 30},
        "state": "running",
        "alerts": 0,
    }
    stand_in.answers("GET", "/v1/status", answer)
    assert xsc("node", "status", "--json").json == answer
    text = xsc("node", "status").text
    assert "5 of 6 answer" in text
    assert "1.0 KiB used and 0 B reserved of 2.0 KiB" in text
    assert "2.0 GiB offered, 1.0 GiB granted of it" in text
    assert "2000 Mfuel/s offered, 0 Mfuel/s granted of it" in text
    assert "3.0 MiB sent to peers and 1.0 GiB received" in text
    assert xsc("node", "status").err == ""
    soon = {"ending": 2, "objects": 7, "first_end_ms": 0, "reasons": ["the host is silent"]}
    stand_in.answers("GET", "/v1/status", answer | {"leases": soon})
    told = xsc("node", "status").err
    assert "leases that end soon: 2, under objects: 7, the first" in told
    assert "the host is silent" in told
    stand_in.answers("GET", "/v1/status", answer | {"state": "leaving"})
    assert "leaving the network" in xsc("node", "status").err


ENDING = {"node": NODE, "ends_ms": 1_700_000_000_000, "reason": "the host is silent"}


def test_what_ends_soon_is_said(xsc, stand_in):
    row = {"name": "f", "version": 1, "capability": "c", "size_bytes": 1, "created_ms": 0}
    rows = [
        row | {"margin": 2, "ends_ms": 1_700_000_000_000, "ending": [ENDING]},
        row | {"name": "g", "margin": 2, "ends_ms": None, "ending": []},
    ]
    stand_in.answers("GET", "/v1/objects", {"objects": rows})
    listed = xsc("store", "ls")
    assert listed.err.count("1 object may end soon; see: xsc store ls --ending") == 1
    assert xsc("store", "ls", "--json").json == {"objects": rows}
    shown = xsc("store", "ls", "--ending").text.splitlines()
    assert len(shown) == 2
    assert "the host is silent" in shown[1]
    assert "2023-11" in shown[1]
    assert xsc("store", "ls", "--ending", "--json").json == {"objects": rows[:1]}
    stand_in.answers("GET", "/v1/objects", {"objects": rows[1:]})
    assert xsc("store", "ls").err == ""
    assert "nothing ends soon" in xsc("store", "ls", "--ending").err


@pytest.mark.parametrize("command", ["stat", "check"])
def test_stat_and_check_warn_of_leases_that_end(xsc, stand_in, command):
    answer = {
        "size_bytes": 5,
        "code": {"k": 4, "m": 2},
        "hosts": [{"shard": 0, "node": NODE, "state": "ok"}],
        "readable": True,
        "margin": 1,
        "healable": False,
        "survives": "1nodes",
        "domains": {"node": {"known": 1, "unknown": 0}},
        "introducers": [],
        "contract": None,
        "contract_kept": True,
        "yearly_loss_ppb": 5,
        "read_bytes": 0,
        "bad": [],
        "ends_ms": 1_700_000_000_000,
        "ending": [ENDING, ENDING | {"ends_ms": None, "reason": ""}],
    }
    stand_in.answers("GET", f"/v1/object/{command}", answer)
    told = xsc("store", command, "xsc:r:c")
    assert told.code == 0
    assert "leases until  2023-11" in told.text
    assert "was not renewed, its end is 2023-11" in told.err
    assert "the host is silent" in told.err
    assert "its end is not known" in told.err


def test_check_shows_what_hosts_proved(xsc, stand_in):
    proof = {"node": NODE, "name": "bob", "outcome": "missing", "reason": "gone", "shards": [2]}
    answer = {
        "size_bytes": 5,
        "code": {"k": 4, "m": 2},
        "hosts": [{"shard": 2, "node": NODE, "state": "missing"}],
        "readable": True,
        "margin": 1,
        "healable": False,
        "survives": "1nodes",
        "domains": {"node": {"known": 1, "unknown": 0}},
        "introducers": [],
        "contract": None,
        "contract_kept": True,
        "yearly_loss_ppb": 5,
        "read_bytes": 0,
        "bad": [],
        "proofs": [proof],
        "ends_ms": None,
        "ending": [],
    }
    stand_in.answers("GET", "/v1/object/check?prove=1", answer)
    told = xsc("store", "check", "--prove", "xsc:r:c")
    assert told.code == 6
    assert "bob   missing  2         gone" in told.text


def test_a_name_is_looked_up_first(xsc, stand_in):
    stand_in.streams("/v1/object", b"abc")
    stand_in.answers("GET", "/v1/objects/named", {"capabilities": ["xsc:r:new", "xsc:r:old"]})
    assert xsc("store", "get", "größe/1", "-o", "-").out == b"abc"
    asked, got = stand_in.requests[-2:]
    assert asked.headers["XSC-Name"] == "gr%C3%B6%C3%9Fe/1"
    assert "XSC-Version" not in asked.headers
    assert got.headers["XSC-Capability"] == "xsc:r:new"
    assert xsc("store", "get", "a", "--version", "3", "-o", "-").out == b"abc"
    assert stand_in.requests[-2].headers["XSC-Version"] == "3"


def test_rm_takes_all_versions_of_a_name(xsc, stand_in):
    stand_in.answers("GET", "/v1/objects/named", {"capabilities": ["xsc:r:new", "xsc:r:old"]})
    gone = {"confirmed": ["a"], "unconfirmed": [], "receipts": {"a": ""}}
    stand_in.answers("DELETE", "/v1/object", gone)
    assert xsc("store", "rm", "a", "--json").json == gone
    assert stand_in.requests[0].headers["XSC-Deleting"] == "1"
    asked = [request.headers["XSC-Capability"] for request in stand_in.requests[1:]]
    assert sorted(asked) == ["xsc:r:new", "xsc:r:old"]


def test_rm_of_a_directory_wants_to_be_told_twice_and_takes_its_files(xsc, stand_in):
    stand_in.answers("GET", "/v1/objects", {"objects": []})
    row = {"part": "00" * 32, "capability": "xsc:r:file", "created_ms": 0}
    stand_in.answers("GET", "/v1/objects/parts", {"parts": [row]})
    stand_in.refuses("GET", "/v1/objects/named", "object_unknown", "there is none")
    stand_in.answers("DELETE", "/v1/object", GONE)
    done = xsc("store", "rm", "album")
    assert (done.code, done.out) == (2, b"")
    assert "all of album/ is to be deleted" in done.err
    assert "hint: --yes says so" in done.err
    assert "DELETE" not in {request.method for request in stand_in.requests}
    # No version is left, only a file: an `rm` before this one was killed.
    done = xsc("store", "rm", "album", "--yes")
    assert (done.code, done.text) == (0, "deleted at 1 node\n")
    assert stand_in.last.headers["XSC-Capability"] == "xsc:r:file"


def test_rm_of_a_directory_exits_with_7_where_a_file_is_not_confirmed(xsc, stand_in):
    stand_in.answers("GET", "/v1/objects", {"objects": []})
    row = {"part": "00" * 32, "capability": "xsc:r:file", "created_ms": 0}
    stand_in.answers("GET", "/v1/objects/parts", {"parts": [row]})
    stand_in.refuses("GET", "/v1/objects/named", "object_unknown", "there is none")
    stand_in.answers("DELETE", "/v1/object", STAYS)
    done = xsc("store", "rm", "album/", "--yes")
    assert done.code == 7
    assert done.err.startswith("warning: abcdefghij has not confirmed")


def test_a_version_goes_with_a_name_alone(xsc, stand_in):
    done = xsc("store", "get", "xsc:r:abc", "--version", "1", "-o", "-")
    assert done.code == 2
    assert "stands for one version" in done.err
    assert xsc("store", "get", "", "-o", "-").code == 2
    assert stand_in.requests == []


def test_ls_takes_a_beginning_and_versions(xsc, stand_in):
    stand_in.answers("GET", "/v1/objects", {"objects": []})
    assert xsc("store", "ls", "a b", "--versions", "--json").json == {"objects": []}
    assert stand_in.last.headers["XSC-Prefix"] == "a%20b"
    assert stand_in.last.headers["XSC-Versions"] == "1"
    assert xsc("store", "ls", "--json").json == {"objects": []}
    assert "XSC-Prefix" not in stand_in.last.headers
    assert "XSC-Versions" not in stand_in.last.headers


def test_share_says_what_for_and_needs_no_node_for_a_capability(xsc, stand_in):
    read = ReadCapability(b"s" * 32, b"h" * 32)
    verify = read.verify.to_text()
    assert xsc("store", "share", read.to_text(), "--verify").text == verify + "\n"
    assert xsc("store", "share", read.to_text(), "--read").text == read.to_text() + "\n"
    assert xsc("store", "share", "-", "--verify", stdin=verify.encode()).text == verify + "\n"
    refused = xsc("store", "share", verify, "--read")
    assert (refused.code, refused.out) == (2, b"")
    assert "not read it" in refused.err
    assert xsc("store", "share", read.to_text()).code == 2
    both = xsc("store", "share", read.to_text(), "--read", "--verify")
    assert (both.code, both.out) == (2, b""), "what was meant is not guessed"
    assert stand_in.requests == []


def test_share_of_a_name_asks_the_node(xsc, stand_in):
    read = ReadCapability(b"s" * 32, b"h" * 32)
    stand_in.answers("GET", "/v1/objects/named", {"capabilities": [read.to_text()]})
    done = xsc("store", "share", "a", "--version", "2", "--verify", "--json")
    assert done.json == {"capability": read.verify.to_text(), "allows": "verify"}
    headers = stand_in.last.headers
    assert [headers[f"XSC-{what}"] for what in ("Name", "Version")] == ["a", "2"]


def knows(stand_in, *names):
    """Have the node know these names, and no others."""

    def named(request):
        name = request.headers["XSC-Name"]
        version = request.headers.get("XSC-Version")
        if name in names and version is None:
            return request.answer.document({"capabilities": ["xsc:r:c"]})
        what = "object" if version is None else f"version {version} of an object"
        detail = f"this node has stored no {what} under that name"
        problem = {"code": "object_unknown", "detail": detail, "hint": ""}
        return request.answer.document(problem, 404)

    stand_in.routes["GET", "/v1/objects/named"] = named


def test_a_file_is_not_fetched_or_listed_as_a_directory(xsc, stand_in, tmp_path):
    knows(stand_in, "photo.jpg")
    for words in (["get", "-r", "photo.jpg", "-o", str(tmp_path / "d")], ["ls", "-r", "photo.jpg"]):
        done = xsc("store", *words)
        assert done.code == 2
        assert "photo.jpg is a file, not a directory" in done.err
        assert "leave -r out" in done.err
    assert "no object under that name" in xsc("store", "ls", "-r", "nothing").err


def test_a_version_that_there_is_not_is_named(xsc, stand_in):
    knows(stand_in, "photo.jpg")
    done = xsc("store", "get", "photo.jpg", "--version", "9", "-o", "-")
    assert done.code == 2
    assert "no version 9 of an object under that name" in done.err


def test_a_list_of_names_that_there_are_not_says_so(xsc, stand_in):
    stand_in.answers("GET", "/v1/objects", {"objects": []})
    assert "this node has stored nothing\n" in xsc("store", "ls").err
    assert "nothing under such names" in xsc("store", "ls", "no").err


# repair

REPAIRED = {
    "margin": 1,
    "moved": [{"shard": 3, "from": "a" * 52, "to": "b" * 52}],
    "left": [],
    "reason": "",
    "patched": 0,
    "waiting": 0,
}


def test_repair_of_one_object_says_what_moved(xsc, stand_in):
    stand_in.answers("POST", "/v1/object/repair", REPAIRED)
    done = xsc("store", "repair", "xsc:r:abc")
    assert (done.code, done.text) == (0, "1 shard moved, 0 left\n")
    assert done.err == f"shard 3 moved from {'a' * 10} to {'b' * 10}\n"
    assert stand_in.last.headers["XSC-Capability"] == "xsc:r:abc"
    assert xsc("store", "repair", "xsc:r:abc", "--json").json == REPAIRED


def test_repair_of_all_objects_exits_with_7_where_some_shards_have_no_place(xsc, stand_in):
    rows = [
        {"name": name, "version": 1, "capability": f"xsc:r:{name}", "size_bytes": 1}
        for name in ("a", "b")
    ]
    stand_in.answers("GET", "/v1/objects", {"objects": rows})
    left = {**REPAIRED, "moved": [], "left": [2, 5], "reason": "no node has room"}

    def answer(request):
        whole = request.headers["XSC-Capability"] == "xsc:r:a"
        request.answer.document(REPAIRED if whole else left)

    stand_in.routes["POST", "/v1/object/repair"] = answer
    done = xsc("store", "repair")
    assert (done.code, done.text) == (7, "1 shard moved, 2 left\n")
    assert "object 1 of 2: shard 3 moved" in done.err
    assert "warning: object 2 of 2: 2 shards left as it was: no node has room" in done.err
    done = xsc("store", "repair", "--json")
    assert (done.code, done.json) == (7, {"objects": [REPAIRED, left]})


def test_repair_by_name_and_what_the_node_refuses(xsc, stand_in):
    stand_in.answers("GET", "/v1/objects/named", {"capabilities": ["xsc:r:new", "xsc:r:old"]})
    stand_in.answers("POST", "/v1/object/repair", {**REPAIRED, "moved": []})
    assert xsc("store", "repair", "film").text == "0 shards moved, 0 left\n"
    stand_in.answers("POST", "/v1/object/repair", {**REPAIRED, "moved": [], "patched": 2})
    assert xsc("store", "repair", "film").err == "2 damaged shards stored again in place\n"
    stand_in.answers("POST", "/v1/object/repair", {**REPAIRED, "moved": [], "waiting": 1})
    expected = "1 shard at silent nodes: they count as lost after repair_grace\n"
    assert xsc("store", "repair", "film").err == expected
    assert stand_in.last.headers["XSC-Capability"] == "xsc:r:new"
    stand_in.refuses("POST", "/v1/object/repair", "not_allowed", "not looked after here", "why")
    done = xsc("store", "repair", "xsc:r:abc")
    assert (done.code, done.text) == (2, "")
    assert done.err == "error: not looked after here (not_allowed)\nhint: why\n"
    assert xsc("store", "repair", "xsc:r:abc", "--version", "1").code == 2


# drain

DRAINED = {
    "state": "done",
    "since_ms": 1,
    "total_bytes": 4096,
    "left_bytes": 0,
    "left_objects": 0,
    "released_objects": 1,
    "released_bytes": 4096,
    "peers_told": 6,
    "peers": 6,
    "stuck_objects": 0,
    "stuck": [],
    "directories_only_here": [],
    "guarded_at_own_cost": 0,
    "owed_micro": 2_000_000,
}
STUCK = {
    **DRAINED,
    "state": "leaving",
    "left_objects": 3,
    "left_bytes": 4096,
    "stuck_objects": 2,
    "stuck": [
        {"object": "ab" * 32, "owner": NODE, "size_bytes": 1024, "reason": "no node\x1b has room"}
    ],
    "directories_only_here": [NODE],
    "guarded_at_own_cost": 1,
}


def test_drain_waits_writes_the_proof_and_says_that_the_node_can_go(xsc, stand_in, tmp_path):
    going = {**DRAINED, "state": "leaving", "left_bytes": 4096, "left_objects": 1}
    stand_in.answers("POST", "/v1/drain", going, 202)
    answers = [going, {**going, "left_bytes": 1024}, DRAINED]
    stand_in.routes["GET", "/v1/drain?wait_ms=5000"] = lambda request: request.answer.document(
        answers.pop(0)
    )
    stand_in.streams("/v1/drain/proof", b"XSC drain proof")
    done = xsc("node", "drain")
    assert done.code == 0
    assert "released    1 object, 4.0 KiB" in done.text
    assert "left        0 objects, 0 B" in done.text
    assert "owed to it  2.000000 credits" in done.text
    assert done.err.startswith("left: 1 object, 4.0 KiB\nleft: 1 object, 1.0 KiB\n")
    assert "can be stopped for good" in done.err
    assert "stay readable" in done.err
    assert (tmp_path / "home" / "drain.proof").read_bytes() == b"XSC drain proof"
    stand_in.answers("POST", "/v1/drain", DRAINED, 202)
    done = xsc("node", "drain", "--json", "--proof", tmp_path / "p")
    assert (done.code, done.json) == (0, DRAINED)
    assert (tmp_path / "p").read_bytes() == b"XSC drain proof"


def test_drain_says_what_stays_and_why_and_exits_with_7(xsc, stand_in):
    stand_in.answers("POST", "/v1/drain", STUCK, 202)
    stand_in.streams("/v1/drain/proof", b"XSC drain proof")
    done = xsc("node", "drain")
    assert done.code == 7
    assert f"object {'ab' * 8} of {NODE[:10]}, 1.0 KiB, stays: no node\\x1b has room" in done.err
    assert done.err.count("stays:") == 1
    assert "beside them: 1 object" in done.err
    assert f"the directory of {NODE[:10]} lies at no other peer" in done.err
    assert "pays for shards of 1 object of owners" in done.err
    assert "stopped for good" not in done.err


def test_drain_says_once_what_it_waits_for(xsc, stand_in, tmp_path):
    going = {**STUCK, "left_objects": 4}
    stand_in.answers("POST", "/v1/drain", going, 202)
    answers = [going, going, DRAINED]
    stand_in.routes["GET", "/v1/drain?wait_ms=5000"] = lambda request: request.answer.document(
        answers.pop(0)
    )
    stand_in.streams("/v1/drain/proof", b"XSC drain proof")
    done = xsc("node", "drain", "--proof", tmp_path / "p")
    assert (done.code, done.err.count("stays: no node")) == (0, 1)


def test_drain_says_that_it_waits_for_silent_peers(xsc, stand_in, tmp_path):
    going = {**DRAINED, "state": "leaving", "left_objects": 4, "peers_told": 2}
    stand_in.answers("POST", "/v1/drain", going, 202)
    answers = [going, {**going, "peers_told": 5}, {**going, "peers_told": 6}, DRAINED]
    stand_in.routes["GET", "/v1/drain?wait_ms=5000"] = lambda request: request.answer.document(
        answers.pop(0)
    )
    stand_in.streams("/v1/drain/proof", b"XSC drain proof")
    done = xsc("node", "drain", "--proof", tmp_path / "p")
    assert done.code == 0
    said = [line for line in done.err.splitlines() if line.startswith("waiting")]
    assert said == ["waiting for 4 of 6 peers: silent", "waiting for 1 of 6 peers: silent"]


def test_drain_says_a_reason_once_however_many_objects_have_it(xsc, stand_in):
    row = STUCK["stuck"][0]
    many = {"stuck": [{**row, "object": f"{n:064x}"} for n in range(100)], "stuck_objects": 100}
    stand_in.answers("GET", "/v1/drain", {**STUCK, **many})
    done = xsc("node", "drain", "--status")
    assert done.code == 7
    assert f"100 objects of {NODE[:10]}, 100.0 KiB, stay: no node" in done.err
    assert done.err.count("no node") == 1
    assert xsc("node", "drain", "--status", "--json").json == {**STUCK, **many}


def test_a_drain_that_was_cancelled_does_not_end_well(xsc, stand_in):
    stand_in.answers("POST", "/v1/drain", {**DRAINED, "state": "leaving"}, 202)
    stand_in.answers("GET", "/v1/drain?wait_ms=5000", {**DRAINED, "state": "staying"})
    done = xsc("node", "drain")
    assert (done.code, done.text) == (7, "the node is not leaving\n")


def test_drain_status_and_cancel_begin_nothing(xsc, stand_in, tmp_path):
    stand_in.answers("GET", "/v1/drain", {**DRAINED, "state": "staying"})
    for what in ("--status", "--cancel"):
        done = xsc("node", "drain", what)
        assert (done.code, done.text, done.err) == (0, "the node is not leaving\n", "")
    stand_in.answers("GET", "/v1/drain", STUCK)
    assert xsc("node", "drain", "--status").code == 7
    assert xsc("node", "drain", "--status", "--json").json == STUCK
    for words in (["--status"], ["--proof", tmp_path / "p"]):
        refused = xsc("node", "drain", "--cancel", *words)
        assert refused.code == 2
        assert "--cancel goes with neither --status nor --proof" in refused.err
    assert {request.method for request in stand_in.requests} == {"GET"}
    assert not (tmp_path / "home" / "drain.proof").exists()
    stand_in.answers("DELETE", "/v1/drain", {**DRAINED, "state": "staying"})
    assert xsc("node", "drain", "--cancel").text == (
        "the node stays; what has moved stays where it is\n"
    )
    assert {request.method for request in stand_in.requests} == {"GET", "DELETE"}
    refused = xsc("node", "drain", "--proof", tmp_path / "no" / "p")
    assert (refused.code, refused.out) == (2, b"")
    assert {request.method for request in stand_in.requests} == {"GET", "DELETE"}


def test_a_drain_proof_is_verified_from_a_file_and_from_a_pipe(xsc, tmp_path):
    proof = bytes.fromhex(vectors("leaving")["proof"])
    (tmp_path / "p").write_bytes(proof)
    done = xsc("verify", tmp_path / "p")
    assert (done.code, done.err) == (0, "")
    assert done.text.startswith("drain proof: 2 customers of ")
    assert "2 objects" in done.text
    assert xsc("verify", "-", stdin=proof).text == done.text
    for wrong in (proof[:-1], b"XSC drain proof 1\n", b""):
        bad = xsc("verify", "-", stdin=wrong)
        assert (bad.code, bad.out) == (6, b"")


# contract


def checked(**change):
    return {
        "size_bytes": 9,
        "code": {"k": 1, "m": 1},
        "hosts": [{"shard": 0, "node": NODE, "state": "ok"}],
        "readable": True,
        "margin": 1,
        "healable": True,
        "survives": "1node",
        "domains": {"node": {"known": 1, "unknown": 0}, "site": {"known": 0, "unknown": 1}},
        "introducers": [],
        "contract": None,
        "contract_kept": True,
        "yearly_loss_ppb": 1,
        "read_bytes": 0,
        "bad": [],
        "ends_ms": None,
        "ending": [],
    } | change


def test_check_says_of_shards_that_may_be_lost_whether_their_nodes_may(xsc, stand_in):
    """Six shards on two nodes: two of them may be lost, and neither node."""
    hosts = [{"shard": s, "node": f"{NODE}{s % 2}", "state": "ok"} for s in range(6)]
    domains = {
        "node": {"known": 2, "unknown": 0},
        "site": {"known": 1, "unknown": 1},
        "owner": {"known": 0, "unknown": 2},
    }
    answer = checked(hosts=hosts, margin=2, survives="0nodes", domains=domains)
    answer |= {"code": {"k": 4, "m": 2}, "yearly_loss_ppb": 486_582_882}
    stand_in.answers("GET", "/v1/object/check", answer)
    text = xsc("store", "check", "xsc:r:abc").text
    assert "2 more shards may be lost, but no node: one holds 3 of them" in text
    assert "2 nodes, 1 site (1 node without), no owner named" in text
    assert "the loss of 0nodes" in text
    assert "48.6582882% (an estimate)" in text


@pytest.mark.parametrize(
    ("introducers", "says"),
    [
        ([], "none: all its hosts are known directly"),
        ([("alice", 6, 6)], "all 6 hosts came through alice"),
        ([("alice", 6, 5)], "all 6 hosts are alice or came through alice"),
        (
            [("alice", 3, 3), ("bob", 2, 1)],
            "3 of 6 hosts came through alice; 2 of 6 hosts are bob or came through bob",
        ),
    ],
)
def test_check_says_through_whom_its_hosts_came(xsc, stand_in, introducers, says):
    rows = [
        {"id": NODE, "name": name, "hosts": hosts, "brought": brought}
        for name, hosts, brought in introducers
    ]
    hosts = [{"shard": s, "node": f"{NODE}{s}", "state": "ok"} for s in range(6)]
    stand_in.answers("GET", "/v1/object/check", checked(hosts=hosts, introducers=rows))
    assert says in xsc("store", "check", "xsc:r:abc").text


def test_check_says_whether_the_contract_is_kept(xsc, stand_in):
    stand_in.answers("GET", "/v1/object/check", checked())
    done = xsc("store", "check", "xsc:r:abc")
    assert (done.code, done.err) == (0, "")
    assert "contract" not in done.text
    stand_in.answers("GET", "/v1/object/check", checked(contract="1node"))
    done = xsc("store", "check", "xsc:r:abc")
    assert done.code == 0
    assert "contract      the loss of 1node: kept" in done.text
    broken = checked(contract="1node,1site", contract_kept=False)
    stand_in.answers("GET", "/v1/object/check", broken)
    done = xsc("store", "check", "xsc:r:abc")
    assert done.code == 7
    assert "contract      the loss of 1node,1site: broken" in done.text
    assert "was to survive the loss of 1node,1site" in done.err
    assert xsc("store", "check", "xsc:r:abc", "--json").json == broken
    lost = [{"shard": 0, "node": NODE, "state": "missing"}]
    stand_in.answers("GET", "/v1/object/check", broken | {"hosts": lost})
    assert xsc("store", "check", "xsc:r:abc").code == 6, "what is damaged comes first"


def test_a_balance_says_what_is_unproven(xsc, stand_in):
    row = {**BALANCES["balances"][0], "unproven_micro": -7}
    stand_in.answers("GET", "/v1/ledger/balance", {**BALANCES, "balances": [row]})
    assert "unproven with bob: -0.000007 credits" in xsc("ledger", "balance").err
