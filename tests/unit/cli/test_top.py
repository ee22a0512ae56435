"""`xsc top`: one picture where the output is no terminal, and how it ends."""

from __future__ import annotations

import pytest

from tests.unit.cli.test_picture import HOSTILE, measures, peer


@pytest.fixture
def node(stand_in):
    stand_in.answers("GET", "/v1/measures", measures([peer(0, name=HOSTILE[0])]))
    stand_in.answers("GET", "/v1/alerts", {"alerts": []})
    stand_in.answers("GET", "/v1/allocation?slots=48", {"slots": []})
    stand_in.answers("GET", "/v1/log", {"lines": []})
    return stand_in


@pytest.mark.parametrize("words", [("top",), ("top", "--once")])
def test_where_there_is_no_terminal_one_picture_is_printed(node, xsc, words, monkeypatch):
    # As where something else is to be coloured.
    monkeypatch.setenv("FORCE_COLOR", "")
    monkeypatch.setenv("COLUMNS", "100")
    done = xsc(*words)
    assert (done.code, done.err) == (0, "")
    assert "peers: 1 of 1 answer" in done.text
    assert "\x1b" not in done.text
    assert {len(line) for line in done.text.splitlines()} == {100}


def test_its_json_is_the_measures(node, xsc):
    assert xsc("top", "--json").json == measures([peer(0, name=HOSTILE[0])])


def test_without_a_node_it_ends_in_one_sentence(node, xsc):
    node.publish("http://127.0.0.1:1")
    done = xsc("top")
    assert (done.code, done.out) == (5, b"")
    assert "does not answer" in done.err
