"""`make spec`: how scripts are read, what is run of them, and what its exit code says."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture
def spec(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import spec

    yield spec
    for name in ("spec", "session", "wast"):
        sys.modules.pop(name, None)


@pytest.fixture
def wast(spec):
    return spec.sys.modules["wast"]


ADD = """(module (func (export "add") (param i32 i32) (result i32)
  (i32.add (local.get 0) (local.get 1))))
"""


def only(wast, text):
    (command,) = wast.commands(text)
    return command


@pytest.mark.parametrize(
    ("text", "kind", "lanes"),
    [
        ("(i32.const -1)", "i32", (b"\xff" * 4,)),
        ("(i32.const 0x1_0)", "i32", (b"\x10\0\0\0",)),
        ("(i64.const 0xffffffffffffffff)", "i64", (b"\xff" * 8,)),
        ("(f32.const 0x1.8p1)", "f32", (struct.pack("<f", 3.0),)),
        ("(f64.const -inf)", "f64", (struct.pack("<d", float("-inf")),)),
        ("(f32.const nan:0x200000)", "f32", (b"\0\0\xa0\x7f",)),
        ("(f64.const nan:canonical)", "f64", ("nan:canonical",)),
        ("(v128.const i8x16 -1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 255)", "v128", 16),
        ("(v128.const f32x4 1 nan:arithmetic 0 -0)", "v128", 4),
        ("(ref.extern 1)", "ref.extern", ()),
    ],
)
def test_values_are_read_as_their_bits(wast, text, kind, lanes):
    command = only(wast, f'(assert_return (invoke $m "f" {text}) (either {text} (i32.const 1)))')
    (given,) = command.action.arguments
    assert command.allowed == ((given, wast.Value("i32", (b"\1\0\0\0",))),)
    assert given.type == kind
    if isinstance(lanes, int):
        assert len(given.lanes) == lanes
        if lanes == 16:
            assert given.lanes[0] == given.lanes[15] == b"\xff"
    else:
        assert given.lanes == lanes


def test_modules_are_cut_out_as_they_stand(wast):
    comments = "(; a (; nested ;) ) one ;)\n;; ( and one\n(@annotation with ( all ) of it)\n"
    found = list(
        wast.commands(
            f'{comments}(module $a {comments} (func (export "\\u{{65e5}}\\n") nop))\n'
            '(module binary "\\00asm" "\\01\\00\\00\\00")(module quote "(func)")\n'
            '(module definition $d (func))(module instance $i $d)(register "a" $a)\n'
            '(assert_invalid (module quote "(fun") "x")(get $a "\\u{65e5}\\n")'
        )
    )
    kinds = ["module"] * 5 + ["register", "assert_invalid", "action"]
    assert [command.type for command in found] == kinds
    assert [command.line for command in found] == [4, 8, 8, 9, 9, 9, 10, 10]
    assert "日\n".encode() in found[0].module.binary
    assert (found[0].name, found[1].module.binary) == ("$a", b"\0asm\1\0\0\0")
    assert (found[4].module.kind, found[4].module.of) == ("instance", "$d")
    assert found[6].module.binary is None
    assert (found[7].action.read, found[7].action.field) == (True, "日\n")
    assert only(wast, '(func (export "f"))').module.binary[:4] == b"\0asm"


@pytest.mark.parametrize(
    "text", ["(module", ")", "word", "(; open", '("', "(module (fun))", "(assert_all)"]
)
def test_what_is_no_script_is_unreadable(wast, text):
    with pytest.raises(wast.Unreadable):
        list(wast.commands(text))


RIGHT = '(assert_return (invoke "add" (i32.const 1) (i32.const 2)) (i32.const 3))\n'
WRONG = '(assert_return (invoke "add" (i32.const 1) (i32.const 2)) (i32.const 4))\n'
OFF = """(module $off (import "shared" "add" (func (param i32 i32) (result i32)))
  (memory 1) (memory 1))
(register "off" $off)
"""
BEHIND = f"""{ADD.replace("module", "module $shared", 1)}
(register "shared" $shared)
{ADD.replace("module", "module $apart", 1)}
{OFF}
(module $two (import "off" "x" (func)))
{RIGHT.replace("invoke", "invoke $off")}
{RIGHT.replace("invoke", "invoke $shared")}
"""
"""A module that is off here may have changed the one that it imports from; not the one apart."""

REFUSED = """(assert_invalid (module (func (result i32) (i64.const 0))) "type mismatch")
(assert_invalid (module (memory 1) (memory 1) (func (result i32) (i64.const 0))) "type mismatch")
(assert_invalid (module (memory i64 1) (func (result i32) (i64.const 0))) "type mismatch")
(assert_malformed (module binary "\\00asm" "\\01\\00\\00\\00" "x") "unexpected end")
(assert_unlinkable (module (import "nowhere" "x" (func))) "unknown import")
(assert_unlinkable (module (import "spectest" "memory" (memory i64 1))) "incompatible import type")
"""
"""Six refusals, of which three would be refused here for what is off, whatever else they lack."""


@pytest.mark.parametrize(
    ("text", "passed", "skipped"),
    [
        (
            REFUSED,
            {"assert_invalid": 1, "assert_malformed": 1, "assert_unlinkable": 1},
            {
                "off here: several memories": 1,
                "off here: 64-bit memories and tables, and tables of other references": 2,
            },
        ),
        (
            f"""{OFF}(assert_unlinkable (module (import "off" "y" (func))) "unknown import")""",
            {},
            {"off here: several memories": 1, "behind what is not run: several memories": 2},
        ),
    ],
)
async def test_what_is_refused_for_what_is_off_has_not_passed(spec, wast, text, passed, skipped):
    text = text.replace('(import "shared" "add" (func (param i32 i32) (result i32)))', "")
    tally = await spec.run_all({"a": list(wast.commands(text))})
    assert (tally.passed, tally.skipped, tally.failed) == (passed, skipped, [])


@pytest.mark.parametrize(
    ("scripts", "code", "said"),
    [
        ({}, 2, "usage"),
        ({"a": b"(module"}, 2, "unread   a.wast: line 1: it is not closed"),
        ({"a": b"\xff"}, 2, "unread   a.wast"),
        ({"a": None}, 2, "unread   a.wast"),
        ({"a": b'(assert_malformed (module quote "x") "y")'}, 2, "0 passed, 0 failed of 0"),
        ({"a": (ADD + RIGHT).encode()}, 0, "2 passed, 0 failed of 2"),
        ({"a": (ADD + RIGHT).encode(), "b": b"("}, 2, "2 passed, 0 failed of 2"),
        ({"a": (ADD + WRONG).encode()}, 1, "a.wast:3: assert_return: "),
        ({"a": BEHIND.encode()}, 0, "3 passed, 0 failed of 3"),
        (
            {"a": (BEHIND + WRONG.replace("invoke", "invoke $apart")).encode()},
            1,
            "3 passed, 1 failed of 4",
        ),
        ({"a": (BEHIND + '(module (import "off" "x" (func)))').encode()}, 0, "3 passed"),
    ],
)
def test_the_exit_code_says_whether_all_was_run_and_right(
    spec, tmp_path, capsys, *, scripts, code, said
):
    for name, content in scripts.items():
        place = tmp_path / f"{name}.wast"
        if content is None:
            place.mkdir()
        else:
            place.write_bytes(content)
    assert spec.main([str(tmp_path)]) == code
    assert said in capsys.readouterr().out
