"""The text of a document: what it holds, within bounds, and on which lines its keys are."""

from __future__ import annotations

import pytest

from xsc.base.errors import ProgramInvalid
from xsc.programs.document import fault_at, lines_of, read_tree
from xsc.programs.limits import DOCUMENT_DEPTH_MAX, LINE_DOTS_MAX

TOML = '''# a = 1
id = "p"  # [not.a.table]
note = """
[no.table]
no = "key"
"""
inner = { x = 1 }

[a."b c".'d']
e.f = 2
  [g]
h = "= ["
list = [
  1,
]
'''
JSON = """{"id": "p",
"a": {"b\\"c": [1,
{"d": "x: {"}],
"e": {}}, "f": "\\u0041"
}"""


def test_lines_of_toml_are_those_of_its_keys_and_tables():
    assert lines_of(TOML, "toml") == {
        ("id",): 2,
        ("note",): 3,
        ("inner",): 7,
        ("a", "b c", "d"): 9,
        ("a", "b c", "d", "e", "f"): 10,
        ("g",): 11,
        ("g", "h"): 12,
        ("g", "list"): 13,
    }


def test_lines_of_json_are_those_of_its_keys():
    lines = lines_of(JSON, "json")
    assert {key: line for key, line in lines.items() if len(key) == 1} == {
        ("id",): 1,
        ("a",): 2,
        ("f",): 4,
    }
    assert lines["a", 'b"c'] == 2
    assert lines["a", "e"] == 4


def test_a_fault_has_the_line_of_its_key_or_of_the_next_above():
    lines = {("a",): 3, ("a", "b"): 4}
    assert fault_at(lines, ("a", "b"), "wrong").message == "line 4: a.b: wrong"
    assert fault_at(lines, ("a", "b", "c"), "wrong").message == "line 4: a.b.c: wrong"
    assert fault_at(lines, ("a", "c", "d"), "wrong").message == "line 3: a.c.d: wrong"
    assert fault_at(lines, ("x",), "wrong").message == "x: wrong"
    assert fault_at(lines, (), "wrong").message == "wrong"


@pytest.mark.parametrize("form", ["json", "toml"])
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
def test_a_tree_has_so_many_levels(form, start, end):
    def text(levels):
        inner = start * (levels - 1) + "1" + end * (levels - 1)
        if form == "json":
            return f'{{"a": {inner}}}'
        return "a = " + inner.replace('"a":', "a = ")

    assert read_tree(text(DOCUMENT_DEPTH_MAX), form)
    with pytest.raises(ProgramInvalid, match=f"deeper than {DOCUMENT_DEPTH_MAX}"):
        read_tree(text(DOCUMENT_DEPTH_MAX + 2), form)


def test_a_line_of_toml_has_so_many_dots():
    assert read_tree("x = '" + "." * LINE_DOTS_MAX + "'", "toml")
    with pytest.raises(ProgramInvalid, match=f"line 2 has more than {LINE_DOTS_MAX} dots"):
        read_tree("\nx = '" + "." * (LINE_DOTS_MAX + 1) + "'", "toml")
    assert read_tree('{"x": "' + "." * (LINE_DOTS_MAX + 1) + '"}', "json")


def test_a_key_is_there_once():
    for text, form in (('{"a": 1, "b": 2, "b": 3}', "json"), ("a = 1\nb = 2\nb = 3", "toml")):
        with pytest.raises(ProgramInvalid, match=r"'b' is there twice|not TOML"):
            read_tree(text, form)
