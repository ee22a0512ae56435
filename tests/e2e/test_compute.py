from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.e2e.conftest import PROGRAMS, call, wait_for
from tests.unit.compute.jobs.test_streams import TALKER

ADD = PROGRAMS / "add.wasm"


def test_a_function_runs_elsewhere(net):
    answer = net[0](["compute", "invoke", ADD, "add", "-1", "-0x10", "--json"]).json
    assert answer["results"] == ["-17"]
    assert answer["provider"] != net[0].id


def test_a_batch_runs_elsewhere_under_one_receipt(net, tmp_path):
    (tmp_path / "lines").write_text("".join(f"{n} 0x10\n" for n in range(5000)))
    words = ["compute", "invoke", PROGRAMS / "trap.wasm", "divide", "--batch"]
    words += [tmp_path / "lines", "--json", "--receipt", tmp_path / "r"]
    answer = net[0](words).json
    assert [item["results"] for item in answer["items"]] == [[str(n // 16)] for n in range(5000)]
    assert answer["provider"] != net[0].id
    assert "a batch of calls of divide" in call(["verify", tmp_path / "r"], home=tmp_path).line


def test_three_nodes_run_it_and_agree(net, tmp_path):
    words = ["compute", "invoke", PROGRAMS / "fib.wasm", "fib", "15", "--verify", "2of3"]
    answer = net[0]([*words, "--json", "--receipt", tmp_path / "r"]).json
    assert answer["results"] == ["610"]
    told = answer["verification"]
    assert len(set(told["agreeing"])) == len(told["receipts"]) == 3
    assert told["dissenting"] == told["evidence"] == []
    assert answer["provider"] == told["agreeing"][0] != net[0].id
    proved = call(["compute", "verify", tmp_path / "r", "--module", PROGRAMS / "fib.wasm"])
    assert proved.line == "agrees"
    assert net[0]("compute evidence").err == "no provider has contradicted another\n"
    net[0]([*words[:-1], "9of9"]).fails(5, "no_offers")
    net[0]([*words[:-1], "1of3"]).fails(2, "argument_invalid")
    net[0]([*words, "--local"]).fails(2, "argument_invalid")
    call(words, home=tmp_path / "none").fails(2, "home_invalid")


def test_output_comes_while_the_program_runs_and_ctrl_c_ends_it_there(net, tmp_path):
    (tmp_path / "talker.wasm").write_bytes(TALKER)
    provider = net.status()[2]
    words = ["compute", "run", tmp_path / "talker.wasm", "--on", provider["id"]]
    words += ["--fuel", "2000000000", "--timeout", "60s"]
    # Whoever is started in the background may find the signal ignored.
    main = "import signal as s; s.signal(s.SIGINT, s.default_int_handler);"
    main += "from xsc.cli.main import run; run()"
    running = subprocess.Popen(
        [sys.executable, "-c", main, "--home", net[0].home, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout.read(3) == b"out"
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    assert running.returncode == 130
    assert err.endswith(b"interrupted\n")
    log = net.folder / provider["name"] / "node.log"
    wait_for(lambda: '"trap": "cancelled"' in log.read_text())


def test_outputs_become_objects_and_objects_inputs(net):
    first = net[0].put(b"hello")
    words = ["compute", "run", PROGRAMS / "upper.wasm", "--env", "GREETING=hei", "--store", "run/"]
    done = net[0]([*words, "--in", f"text={first}"])
    assert done.code == 0, done.err
    stored = dict(line.split() for line in done.err.splitlines())
    assert net[0].get(stored["deep/TEXT"]) == b"HELLO"
    names = [row["name"] for row in net[0]("store ls run/ --json").json["objects"]]
    assert names == sorted(f"run/{path}" for path in stored)
    again = net[0]([*words, "--in", f"text={stored['deep/TEXT']}", "--json"]).json
    assert {row["fault"] for row in again["objects"]} == {None}


def test_a_job_runs_near_its_input_and_its_receipt_says_what_that_saved(net, tmp_path):
    capability = net[0].put(bytes(300_000))
    words = ["compute", "run", PROGRAMS / "upper.wasm", "--env", "GREETING=hei"]
    words += ["--in", f"text={capability}", "--receipt", tmp_path / "r"]
    answer = net[0]([*words, "--json"]).json
    assert answer["provider"] in {
        row["node"] for row in net[0](f"store stat {capability} --json").json["hosts"]
    }
    assert answer["saved_bytes"] >= 300_000 // 4
    assert "KiB were there already" in call(["verify", tmp_path / "r"], home=tmp_path).line
    again = net[0]([*words, "--verbose"])
    assert "of module and input were there already" in again.err


def test_on_a_named_node(net):
    row = net.status()[3]
    for name in (row["name"], row["id"], row["id"][:12]):
        words = ["compute", "invoke", ADD, "add", "1", "2", "--json", "--on", name]
        assert net[0](words).json["provider"] == row["id"]


def test_here(net):
    answer = net[0](["compute", "invoke", ADD, "add", "1", "2", "--local", "--json"]).json
    assert answer["results"] == ["3"]
    assert answer["provider"] == net[0].id


def test_where_no_node_runs_the_same_sandbox_does(tmp_path):
    done = call(["compute", "invoke", ADD, "add", "1", "2"], home=tmp_path / "none")
    assert done.line == "3"
    assert done.err == f"no node runs at {tmp_path / 'none'}: running here, in the same sandbox\n"
    quiet = call(["compute", "invoke", ADD, "add", "1", "2", "--local"], home=tmp_path / "none")
    assert (quiet.line, quiet.err) == ("3", "")
    assert not (tmp_path / "none").exists()


def test_here_and_there_agree(net, tmp_path):
    words = ["compute", "invoke", PROGRAMS / "fib.wasm", "fib", "15", "--json"]
    there = net[0](words).json
    here = call(words, home=tmp_path / "none").json
    same = ("results", "fuel_used", "memory_peak_bytes", "trap")
    assert {key: here[key] for key in same} == {key: there[key] for key in same}


@pytest.mark.parametrize("where", ["market", "here", "alone"])
@pytest.mark.parametrize(
    "case",
    [
        ("endless", "spin --fuel 1000000", 4, "fuel_exhausted"),
        ("endless", "spin --fuel 5000000000 --timeout 300ms", 4, "time_exceeded"),
        ("recursion", "deeper 1", 4, "stack_exhausted"),
        ("trap", "unreachable", 2, "module_trapped"),
        ("trap", "divide 1 0", 2, "module_trapped"),
        ("add", "sub 1 2", 2, "export_unknown"),
        ("add", "add 1", 2, "signature_mismatch"),
        ("add", "add 1 2 3", 2, "signature_mismatch"),
        ("add", "add 1 x", 2, "signature_mismatch"),
        ("add", "add 1 1.5", 2, "signature_mismatch"),
        ("unknown_import", "run", 2, "module_invalid"),
    ],
)
def test_what_cannot_be_done_is_named(net, tmp_path, where, case):
    program, words, code, name = case
    home = tmp_path / "none" if where == "alone" else net[0].home
    here = [] if where == "market" else ["--local"]
    path = PROGRAMS / f"{program}.wasm"
    call(["compute", "invoke", path, *words.split(), *here], home=home).fails(code, name)


def test_a_program_runs(net):
    words = ["compute", "run", PROGRAMS / "wordcount.wasm", "--stdin", "-"]
    done = net[0](words, stdin=b"to be\nor not to be\n")
    assert (done.code, done.err) == (0, "")
    assert done.text.split()[:3] == ["2", "6", "19"]


def test_a_program_s_exit_code_is_passed_on(net):
    done = net[0](["compute", "run", PROGRAMS / "exit3.wasm"])
    assert (done.code, done.err) == (3, "three\n")


def test_a_program_reads_objects_and_writes_files(net, tmp_path):
    capability = net[0].put(b"some text\n")
    done = net[0](
        ["compute", "run", PROGRAMS / "upper.wasm", "--in", "text=-", "--out", tmp_path / "out"],
        stdin=capability.encode(),
    )
    assert done.code == 0, done.err
    assert done.text.split() == [".", "..", "text", "-"]
    assert (tmp_path / "out" / "deep" / "TEXT").read_bytes() == b"SOME TEXT\n"


def test_failures_of_its_own_are_told_from_the_program_s(net):
    flood = PROGRAMS / "flood.wasm"
    assert net[0](["compute", "run", flood, "--fuel", "1000"]).code == 124
    assert net[0](["compute", "run", ADD]).code == 122
    assert net[0](["compute", "run", flood, "--on", "nobody"]).code == 122
    assert net[0](["compute", "run", "/nowhere"]).code == 122


def test_receipts_hold_and_changed_ones_do_not(net, tmp_path):
    receipt = tmp_path / "receipt"
    words = ["compute", "invoke", ADD, "add", "1", "2", "--receipt", receipt]
    assert net[0](words).code == 0
    raw = receipt.read_bytes()
    assert call(["verify", receipt]).code == 0
    call(["verify", receipt, "--module", PROGRAMS / "fib.wasm"]).fails(6, "proof_invalid")
    spoilt = [
        b"",
        b"not a receipt",
        raw[:-1],
        raw + b"\0",
        raw[: len(raw) // 2],
        *(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :] for at in range(3, len(raw), 251)),
    ]
    for content in spoilt:
        receipt.write_bytes(content)
        call(["verify", receipt]).fails(6, "proof_invalid")


def test_a_run_that_trapped_leaves_a_receipt_too(net, tmp_path):
    receipt = tmp_path / "receipt"
    words = ["compute", "invoke", PROGRAMS / "endless.wasm", "spin", "--fuel", "1000000"]
    net[0]([*words, "--receipt", receipt]).fails(4, "fuel_exhausted")
    assert "fuel_exhausted" in call(["verify", receipt]).line
    done = net[0]([*words, "--json"])
    assert done.code == 4
    assert done.out.count(b"\n") == 1
