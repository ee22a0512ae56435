"""`xsc space` against a stand-in of the node: what is sent, what is printed."""

from __future__ import annotations

import json

import pytest

RECORD = "/v1/space/record?at="
SHOWN = {
    "owner": "n0",
    "path": "notes/a",
    "sequence": 7,
    "size_bytes": 4,
    "stamp": {"domain": "d", "events": "EA=="},
    "value": "text",
}
WRITTEN = {"owner": "n0", "path": "notes/a", "sequence": 7}
STATS = {
    "records": 3,
    "live_bytes": 2048,
    "disk_bytes": 4096,
    "subscriptions": 0,
    "received_bytes": 0,
    "sent_bytes": 0,
}


@pytest.mark.parametrize(
    ("value", "stdin", "sent"),
    [
        ("text", b"", b"text"),
        ("-5", b"", b"-5"),
        ("", b"", b""),
        ("-", b"a\0\xff", b"a\0\xff"),
        ("\udcff", b"", b"\xff"),
    ],
)
def test_put_sends_the_value_and_prints_the_sequence(xsc, stand_in, value, stdin, sent):
    stand_in.answers("PUT", RECORD + "notes%2Fa", WRITTEN)
    done = xsc("space", "put", "notes/a", value, stdin=stdin)
    assert (done.code, done.out, done.err) == (0, b"7\n", "")
    assert stand_in.last.body == sent
    assert xsc("space", "put", "notes/a", value, "--json", stdin=stdin).json == WRITTEN


def test_put_reads_no_more_than_a_value_has(xsc, stand_in):
    done = xsc("space", "put", "a", "-", stdin=bytes(2**20 + 1))
    assert (done.code, done.out) == (4, b"")
    assert "(too_large)" in done.err
    assert stand_in.requests == []


def test_get_prints_the_value_byte_for_byte(xsc, stand_in):
    stand_in.answers("GET", RECORD + "bob%3Anotes%2Fa", SHOWN)
    done = xsc("space", "get", "bob:notes/a")
    assert (done.code, done.out, done.err) == (0, b"text", "")
    assert xsc("space", "get", "bob:notes/a", "--json").json == SHOWN
    stand_in.answers("GET", RECORD + "b", {**SHOWN, "value": {"base64": "YQD/"}})
    assert xsc("space", "get", "b").out == b"a\0\xff"


def test_a_terminal_is_shown_no_control_characters(xsc, stand_in, monkeypatch):
    stand_in.answers("GET", RECORD + "a", {**SHOWN, "value": "red \x1b[31m\nnext"})
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert xsc("space", "get", "a").out == b"red \\x1b[31m\nnext\n"


def test_what_is_missing_exits_with_its_code(xsc, stand_in):
    stand_in.refuses("GET", RECORD + "a", "not_found", "nothing is at 'a'")
    done = xsc("space", "get", "a")
    assert (done.code, done.out, done.err) == (2, b"", "error: nothing is at 'a' (not_found)\n")


def test_rm_prints_nothing(xsc, stand_in):
    stand_in.answers("DELETE", RECORD + "notes%2Fa", WRITTEN)
    done = xsc("space", "rm", "notes/a")
    assert (done.code, done.out, done.err) == (0, b"", "")
    assert xsc("space", "rm", "notes/a", "--json").json == WRITTEN


def test_ls_lists_records(xsc, stand_in):
    row = {key: SHOWN[key] for key in ("owner", "path", "sequence", "size_bytes")}
    stand_in.answers("GET", "/v1/space/records?under=bob%3Anotes", {"records": [row]})
    assert xsc("space", "ls", "bob:notes").text.split() == [
        *("path", "sequence", "size"),
        *("notes/a", "7", "4", "B"),
    ]
    assert xsc("space", "ls", "bob:notes", "--json").json == {"records": [row]}
    stand_in.answers("GET", "/v1/space/records", {"records": []})
    done = xsc("space", "ls")
    assert (done.code, done.out, done.err) == (0, b"", "nothing is there\n")


def test_watch_prints_a_line_a_change_until_the_node_stops(xsc, stand_in):
    changes = [
        {**WRITTEN, "value": "two\nlines \x1b[31m"},
        {**WRITTEN, "value": {"base64": "YQD/"}},
        {**WRITTEN, "value": None},
    ]
    stand_in.tells("/v1/space/watch?under=notes", changes)
    done = xsc("space", "watch", "notes")
    assert done.text.splitlines() == [
        "notes/a  7  two\\nlines \\x1b[31m",
        "notes/a  7  3 B",
        "notes/a  7  deleted",
    ]
    assert done.err.splitlines()[:2] == [
        "watching",
        "error: the node has stopped (node_unreachable)",
    ]
    assert done.code == 5
    as_json = xsc("space", "watch", "notes", "--json")
    assert [json.loads(line) for line in as_json.text.splitlines()] == changes


def test_stats_and_compact_show_the_same(xsc, stand_in):
    stand_in.answers("GET", "/v1/space/stats", STATS)
    stand_in.answers("POST", "/v1/space/compact", STATS)
    shown = xsc("space", "stats").text
    assert shown.splitlines()[:2] == ["records        3", "live           2.0 KiB"]
    assert xsc("space", "compact").text == shown
    assert stand_in.last.json() == {}
    assert xsc("space", "stats", "--json").json == xsc("space", "compact", "--json").json == STATS


def test_diagnostics_show_what_is_listed_and_followed(xsc, stand_in):
    answer = {
        "programs": [{**WRITTEN, "path": "programs/services/greet", "size_bytes": 100}],
        "running": [{"id": "total", "hash": "h1", "state": "active", "frame": 3}],
        "subscriptions": [
            {"owner": "n1", "prefix": "nodes", "cursor": 12, "head_age_ms": 5_000},
            {"owner": "n2", "prefix": "nodes", "cursor": 0, "head_age_ms": None},
        ],
        "nodes": [
            {"node": "n1", "name": "bob", "head_age_ms": 5_000, "active": True},
            {"node": "n2", "name": "eve", "head_age_ms": None, "active": False},
        ],
        "causality": {"domain": "dd", "interval": "YQ==", "stamp_bytes": 5},
    }
    stand_in.answers("GET", "/v1/space/diagnostics", answer)
    assert xsc("space", "diagnostics", "--json").json == answer
    rows = [line.split() for line in xsc("space", "diagnostics").text.splitlines()]
    for row in (
        ["programs/services/greet", "100", "B"],
        ["h1", "total", "active", "3"],
        ["bob", "nodes", "12"],
        ["bob", "yes", "5s"],
        ["eve", "no", "never"],
        ["domain", "dd"],
    ):
        assert row in rows


def test_versions_are_listed_and_one_is_printed(xsc, stand_in):
    row = {key: SHOWN[key] for key in ("owner", "path", "sequence", "size_bytes")}
    stand_in.answers("GET", "/v1/space/versions?at=notes%2Fa", {"records": [row]})
    assert xsc("space", "versions", "notes/a").text.split()[3:5] == ["notes/a", "7"]
    assert xsc("space", "versions", "notes/a", "--json").json == {"records": [row]}
    stand_in.answers("GET", RECORD + "notes%2Fa&sequence=7", SHOWN)
    assert xsc("space", "get", "notes/a", "--sequence", "7", "--json").json == SHOWN
    stand_in.answers("GET", "/v1/space/versions?at=b", {"records": []})
    assert xsc("space", "versions", "b").err == "no replaced value is kept\n"
    assert xsc("space", "get", "a", "--sequence", "0").code == 2
