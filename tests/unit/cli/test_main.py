from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import Future

import click
import pytest

from xsc import __version__
from xsc.base.errors import leaves
from xsc.cli import main as main_module
from xsc.cli.main import cli

ERROR = re.compile(r"error: [^\n]+ \([a-z_]+\)\n(hint: [^\n]+\n)?")


def commands(command, path=("xsc",)):
    """Every command of the tree, with its path."""
    yield path, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


TREE = list(commands(cli))
LEAVES = [path for path, command in TREE if not isinstance(command, click.Group)]


def test_the_version(xsc):
    assert xsc("--version").text == f"xsc {__version__}\n"


@pytest.mark.parametrize("path", [path for path, _ in TREE], ids=" ".join)
def test_every_command_has_help(xsc, path):
    done = xsc(*path[1:], "--help")
    assert done.code == 0
    assert done.text.startswith(f"Usage: {' '.join(path)} ")
    assert "--json" in done.text
    assert "--home" in done.text
    assert done.err == ""


def test_alone_it_shows_what_there_is(xsc):
    done = xsc()
    assert done.code == 0
    assert "devnet" in done.text


@pytest.mark.parametrize(
    "before", [["--json", "store", "ls"], ["store", "--json", "ls"], ["store", "ls", "--json"]]
)
def test_json_is_taken_anywhere(xsc, stand_in, before):
    stand_in.answers("GET", "/v1/objects", {"objects": []})
    assert xsc(*before).json == {"objects": []}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_home_is_taken_anywhere(xsc, stand_in, tmp_path, place):
    stand_in.home.rename(tmp_path / "moved")
    stand_in.answers("GET", "/v1/objects", {"objects": []})
    words = ["store", "ls"]
    words[place:place] = ["--home", str(tmp_path / "moved")]
    assert xsc(*words).code == 0


@pytest.mark.parametrize("kind", leaves(), ids=lambda kind: kind.__name__)
def test_each_error_exits_by_its_branch(xsc, stand_in, kind):
    code = kind("x").code
    stand_in.refuses("GET", "/v1/objects", code, "it failed", "mend it")
    done = xsc("store", "ls")
    assert done.code == kind.exit_code
    assert done.out == b""
    assert done.err == f"error: it failed ({code})\nhint: mend it\n"
    as_json = xsc("store", "ls", "--json")
    assert as_json.code == kind.exit_code
    assert as_json.out == b""
    problem = json.loads(as_json.err)
    assert problem["code"] == code
    assert problem["detail"] == "it failed"
    assert problem["hint"] == "mend it"


def test_a_bug_of_the_node_is_called_one(xsc, stand_in):
    stand_in.refuses("GET", "/v1/objects", "bug", "the node met a bug of its own")
    done = xsc("store", "ls")
    assert done.code == 1
    assert done.err == "error: the node met a bug of its own (bug)\n"


def test_a_bug_shows_no_trace_unless_asked(xsc, stand_in, monkeypatch):
    stand_in.answers("GET", "/v1/objects", {"surprise": []})
    done = xsc("store", "ls")
    assert done.code == 1
    assert ERROR.fullmatch(done.err)
    assert "a bug in xsc: KeyError: 'objects' (bug)" in done.err
    monkeypatch.setenv("XSC_DEBUG", "1")
    assert "Traceback" in xsc("store", "ls").err


def test_an_interruption_is_130(xsc, stand_in, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("xsc.client.calls.Calls.objects", interrupt)
    done = xsc("store", "ls")
    assert done.code == 130
    assert done.err.split() == ["interrupted"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing"], "no such command 'nothing'"),
        (["store"], "missing command"),
        (["store", "put"], "missing argument 'FILE'"),
        (["store", "put", "a", "b"], "unexpected extra argument"),
        (["store", "put", "a", "--nam", "b"], "no such option"),
        (["store", "put", "/nowhere/file"], "there is no file /nowhere/file"),
        (["store", "put", "/"], "/ is a directory"),
        (["store", "put", "a" * 300], "cannot be read"),
        (["store", "get", "xsc:r:c"], "missing option '-o'"),
        (["store", "get", "xsc:r:c", "-o", "/"], "/ is a directory"),
        (["store", "get", "xsc:r:c", "-o", "/nowhere/a"], "there is no directory /nowhere"),
        (["store", "get", "@/nowhere", "-o", "-"], "there is no file /nowhere"),
        (["store", "stat", ""], "an empty text names no object"),
        (["peer", "recognise", "bob"], "missing argument 'SHARE'"),
        (["peer", "recognise", "bob", "half"], "SHARE: 'half' is no share"),
        (["peer", "recognise", "bob", "101%"], "not a share from 0% to 100%"),
        (["peer", "invite", "--ttl", "soon"], "--ttl: 'soon' is no duration"),
        (["peer", "invite", "--ttl", "0s"], "--ttl: '0s' is too little"),
        (["peer", "invite", "--ttl", "0s"], "it can be from 1s to 30d"),
        (["peer", "invite", "--ttl", "31d"], "--ttl: '31d' is too much"),
        (["node", "history", "--since", "0s"], "it can be from 1ms to 36500d"),
        (["ledger", "log", "--limit", "0"], "--limit: '0' is no whole number"),
        (["ledger", "log", "--limit", "1e3"], "--limit: '1e3' is no whole number"),
        (["compute", "invoke", "/nowhere", "f"], "there is no file /nowhere"),
        (["compute", "invoke", "m"], "missing argument 'FUNC'"),
        (["compute", "invoke", "m", "f", "--feul", "5"], "no such option '--feul'"),
        (["compute", "invoke", "m", "f", "-x"], "no such option '-x'"),
        (["compute", "invoke", "m", "f", "--fuel", "-5"], "--fuel: '-5' is no whole number"),
        (["compute", "invoke", "m", "f", "--fuel"], "requires an argument"),
        (["compute", "invoke", "m", "f", "--memory", "much"], "--memory: 'much' is no size"),
        (["compute", "invoke", "m", "f", "--timeout", "1y"], "--timeout: '1y' is no duration"),
        (["compute", "invoke", "m", "f", "--receipt", "/nowhere/r"], "there is no directory"),
        (["devnet", "status", "--dir", "/nowhere"], "there is no devnet in /nowhere"),
        (["devnet", "down", "--dir", "/nowhere"], "there is no devnet in /nowhere"),
        (["devnet", "up", "--dir", "/dev/null/x"], "cannot be used"),
        (["devnet", "up", "--nodes", "65", "--dir", "fresh"], "at most 64 nodes"),
        (["devnet", "up", "--nodes", "0"], "--nodes: '0' is no whole number"),
        (["--home", "", "store", "ls"], "--home: an empty text names no file or directory"),
        (["store", "ls", "--home"], "requires an argument"),
    ],
)
def test_a_wrong_call_is_answered_in_one_sentence(xsc, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    done = xsc(*words)
    assert done.code == 2
    assert done.out == b""
    assert ERROR.fullmatch(done.err), done.err
    assert says in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value", "says", "hint"),
    [
        ("--fuel", "0", "is no whole number from 1 on", "write for example 5000000 or 1e9"),
        ("--fuel", "-1", "is no whole number from 1 on", "write for example 5000000 or 1e9"),
        ("--fuel", "much", "is no whole number from 1 on", "write for example 5000000 or 1e9"),
        ("--fuel", str(2**63), "is too much", f"it can be from 1 to {2**58}"),
        ("--fuel", "1e30", "is too much", f"it can be from 1 to {2**58}"),
        ("--timeout", "0", "is too little", "it can be from 1ms to 10m"),
        ("--timeout", "-1", "is no duration", "write for example 250ms, 10s or 2h"),
        ("--timeout", str(2**63), "is too much", "it can be from 1ms to 10m"),
        ("--memory", "0", "is too little", "it can be from 1 B to 1.0 GiB"),
        ("--memory", str(2**63), "is too much", "it can be from 1 B to 1.0 GiB"),
        ("--wait", "-1", "is no duration", "write for example 250ms, 10s or 2h"),
        ("--wait", "soon", "is no duration", "write for example 250ms, 10s or 2h"),
        ("--wait", str(2**63), "is too much", "it can be from 0ms to 10m"),
        ("--concurrency", "0", "is no whole number from 1 on", ""),
        ("--concurrency", str(2**63), "is too much", "it can be from 1 to 32"),
    ],
)
def test_a_limit_that_no_run_can_have_is_refused_by_the_name_of_its_option(
    xsc, option, value, says, hint
):
    calls = {("invoke", "m", "f"): 2, ("run", "m"): 120 + 2, ("deploy", "m", "--name", "x"): 2}
    answered = 0
    for words, code in calls.items():
        done = xsc("compute", *words, option, value)
        first, *rest = done.err.splitlines()
        if first == f"error: no such option '{option}' (argument_invalid)":
            continue
        assert (done.code, done.out) == (code, b"")
        assert first == f"error: {option}: '{value}' {says} (argument_invalid)"
        assert rest == ([f"hint: {hint}"] if hint else [])
        answered += 1
    assert answered


@pytest.mark.parametrize(
    "words",
    [
        ["--json", "nothing"],
        ["store", "--json"],
        ["store", "put", "--nothing", "--json"],
        ["store", "put", "/nowhere", "--json"],
        ["compute", "run", "--json", "/nowhere", "--", "--json"],
    ],
)
def test_a_wrong_call_is_answered_in_json_where_asked(xsc, words):
    done = xsc(*words)
    assert done.out == b""
    problem = json.loads(done.err)
    assert set(problem) == {
        "code",
        "title",
        "status",
        "detail",
        "hint",
        "retryable",
        "retry_after_s",
    }
    assert problem["code"] == "argument_invalid"
    assert done.code == (122 if "run" in words else 2)


def test_no_node_is_5(xsc):
    for words in (["node", "status"], ["store", "ls"], ["peer", "ls"], ["health"]):
        done = xsc(*words)
        assert done.code == 5
        assert "(node_unreachable)\nhint: start it with `xsc node start`" in done.err


def test_verbose_names_the_calls(xsc, stand_in):
    stand_in.answers("GET", "/v1/objects", {"objects": []})
    assert "GET http://127.0.0.1:" in xsc("store", "ls", "-v").err


def start(*words, home, **kwargs):
    return subprocess.Popen(
        [sys.executable, "-m", "xsc", "--home", str(home), *words],
        stderr=subprocess.PIPE,
        **kwargs,
    )


def test_a_closed_pipe_is_no_error(stand_in):
    stand_in.streams("/v1/object", bytes(50_000_000))
    process = start(
        "store", "get", "xsc:r:c", "-o", "-", home=stand_in.home, stdout=subprocess.PIPE
    )
    assert process.stdout.read(1) == b"\0"
    process.stdout.close()
    _, err = process.communicate()
    assert process.returncode == 141
    assert err == b""


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_help_into_a_closed_pipe_is_no_error(tmp_path, word):
    nobody, end = os.pipe()
    os.close(nobody)
    try:
        process = start(word, home=tmp_path, stdout=end)
    finally:
        os.close(end)
    _, err = process.communicate()
    assert (process.returncode, err) == (141, b"")


def test_closed_streams_are_no_bug(tmp_path):
    words = [sys.executable, "-m", "xsc", "--home", str(tmp_path)]
    for closed, code in [("0<&- verify -", 2), ("1>&- --version", 2), ("1>&- 2>&- peer ls", 5)]:
        line = shlex.join(words) + " " + closed
        done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=False)
        assert done.returncode == code
        assert b"bug" not in done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a Linux device")  # noqa: PTH110
@pytest.mark.parametrize(
    "words", [["store", "ls", "--json"], ["store", "get", "xsc:r:c", "-o", "-"]]
)
def test_a_full_disk_is_told(stand_in, words):
    stand_in.answers("GET", "/v1/objects", {"objects": []})
    stand_in.streams("/v1/object", b"abc")
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = start(*words, home=stand_in.home, stdout=full)
    _, err = process.communicate()
    assert process.returncode == 4
    assert b"the output cannot be written: No space left on device" in err
    assert b"Traceback" not in err
    assert err.count(b"error") + err.count(b'"code"') == 1


def test_ctrl_c_ends_a_transfer_and_leaves_nothing(stand_in, tmp_path):
    started = Future()

    def route(request):
        process = started.result(60)  # it may ask before `start` has returned here
        request.answer.send_response(200)
        request.answer.send_header("Content-Length", "100")
        request.answer.end_headers()
        request.answer.wfile.write(b"some")
        process.send_signal(signal.SIGINT)
        process.wait()

    stand_in.routes["GET", "/v1/object"] = route
    folder = tmp_path / "out"
    folder.mkdir()
    process = start("store", "get", "xsc:r:c", "-o", str(folder / "f"), home=stand_in.home)
    started.set_result(process)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert err.split() == [b"interrupted"]
    assert list(folder.iterdir()) == []


def test_text_from_elsewhere_cannot_steer_the_terminal(xsc, stand_in):
    row = {
        "name": "a\x1b]0;owned\x07\nb",
        "version": 1,
        "capability": "c",
        "size_bytes": 1,
        "created_ms": 0,
        "margin": 2,
        "ending": [],
    }
    stand_in.answers("GET", "/v1/objects", {"objects": [row]})
    done = xsc("store", "ls")
    assert r"a\x1b]0;owned\x07\nb" in done.text
    assert "\x1b" not in done.text


def test_one_place_makes_exit_codes():
    assert main_module.EXIT_PIPE == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    "words", [["store", "put", "-"], ["space", "put", "x", "-"], ["verify", "-"]]
)
def test_a_closed_input_is_bad_input_and_nothing_is_stored(stand_in, words):
    line = shlex.join([sys.executable, "-m", "xsc", "--home", str(stand_in.home), *words])
    done = subprocess.run(["/bin/sh", "-c", line + " <&-"], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard input is closed (argument_invalid)")
    assert done.stdout == b""


def test_a_result_that_a_closed_output_loses_is_a_failure(stand_in):
    stand_in.answers("GET", "/v1/objects", {"objects": []})
    line = shlex.join([sys.executable, "-m", "xsc", "--home", str(stand_in.home)])
    for words in ("store ls --json", "--version"):
        shell = ["/bin/sh", "-c", f"{line} {words} >&-"]
        done = subprocess.run(shell, capture_output=True, check=False)
        assert done.returncode == 2
        assert b"the output cannot be written: Bad file descriptor" in done.stderr
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "words", [["ledger", "limit", "node", "-5"], ["peer", "recognise", "node", "-5%"]]
)
def test_a_number_below_zero_is_refused_in_a_sentence(xsc, words):
    done = xsc(*words)
    assert done.code == 2
    assert done.err == (
        "error: '-5' is no option, and no number here may be below zero (argument_invalid)\n"
    )


def test_a_pipe_is_no_file_to_store(xsc, stand_in, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    done = xsc("store", "put", pipe)
    assert done.code == 2
    assert "is a pipe, not a regular file" in done.err


def test_what_is_no_record_is_said_to_be_none(xsc, tmp_path):
    (tmp_path / "page.md").write_text("# A page\n")
    done = xsc("verify", tmp_path / "page.md")
    assert done.code == 6
    assert done.err == ("error: this is no signed record, so it proves nothing (proof_invalid)\n")
