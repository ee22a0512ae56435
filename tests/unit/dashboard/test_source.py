"""Numbers that know where in an answer they stood."""

from __future__ import annotations

import re

from xsc.api import monitor, objects, programs
from xsc.api.endpoint import Nothing
from xsc.dashboard.source import Number, fetch, shown, sourced, total


class Node:
    """Gives one answer, and notes what was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.window = None

    async def ask(self, endpoint, asked, *, body=None, pick=None, window=slice(None)):
        self.window = window
        return self.answer


def test_a_number_knows_its_path_and_its_pointer():
    found = sourced({"a": [{"b": 7}], "c": -1}, "/v1/x#")
    assert found == {"a": [{"b": 7}], "c": -1}
    assert found["a"][0]["b"].origin == "/v1/x#/a/0/b"
    assert found["c"].__html__() == '<data value="-1" data-from="/v1/x#/c">-1</data>'


def test_a_pointer_escapes_as_rfc_6901_says():
    found = sourced({"a/b~c": {"": 1}}, "/v1/x#")
    assert found["a/b~c"][""].origin == "/v1/x#/a~1b~0c/"


def test_a_truth_value_and_null_are_no_numbers():
    found = sourced({"yes": True, "no": False, "null": None, "text": "1"}, "/v1/x#")
    assert found == {"yes": True, "no": False, "null": None, "text": "1"}
    assert not any(isinstance(value, Number) for value in found.values())


def test_an_origin_is_escaped_where_it_is_shown():
    found = sourced({'"><script>': 1}, "/v1/x#")
    assert "<script>" not in found['"><script>'].__html__()


def test_what_has_no_origin_is_a_text():
    assert shown(5, "5 <B>") == "5 &lt;B&gt;"


def test_a_total_is_from_all_its_parts():
    found = total(sourced([1, 2, 3], "/v1/x#"))
    assert found == 6
    assert found.origin == "/v1/x#/0 /v1/x#/1 /v1/x#/2"
    assert total([]) == 0


async def test_an_answer_is_fetched_with_the_path_of_the_request():
    node = Node({"frame": 3})
    found = await fetch(node, programs.SHOW, programs.Hash(hash="a/b"))
    assert found["frame"].origin == "/v1/programs/a%2Fb#/frame"


async def test_rows_that_were_picked_keep_their_places():
    node = Node({"objects": [{"size_bytes": 1}, {"size_bytes": 2}], "places": [7, 5], "total": 9})
    found = await fetch(node, objects.LIST, objects.LIST.request(), window=slice(4, 6))
    assert node.window == slice(4, 6)
    assert found.total == 9
    assert [re.sub(r".*#", "", row["size_bytes"].origin) for row in found] == [
        "/objects/7/size_bytes",
        "/objects/5/size_bytes",
    ]


async def test_rows_without_a_window_begin_at_the_first():
    node = Node({"lines": [{"at_ms": 1}], "places": [0], "total": 1})
    (row,) = await fetch(node, monitor.LOG, Nothing())
    assert row["at_ms"].origin == "/v1/log#/lines/0/at_ms"
