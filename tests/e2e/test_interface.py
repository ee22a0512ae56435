"""What scripts hold on to (docs/cli.md), as text."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import closing
from http.client import HTTPConnection

import pytest
from pydantic import TypeAdapter

from tests.e2e.conftest import NODES, PROGRAMS, call
from xsc import api
from xsc.api.serial import document
from xsc.api.table import ENDPOINTS
from xsc.client.core import find_place

ID = re.compile(r"[a-z2-7]{52}")
URL = re.compile(r"http://127\.0\.0\.1:[0-9]+")


@pytest.fixture(scope="module")
def stored(net):
    return net[0].put(os.urandom(100_000))


def test_node_status(net):
    status = net[0]("node status --json").json
    assert {
        *(
            "id",
            "api_url",
            "peer_url",
            "uptime_s",
            "peers",
            "storage",
            "compute",
            "leases",
            "traffic",
            "alerts",
        ),
        *("name", "version", "network", "addresses", "home", "state"),
    } == set(status)
    assert ID.fullmatch(status["id"])
    assert URL.fullmatch(status["api_url"])
    assert set(status["peers"]) == {
        *("known", "healthy"),
        *("reached_by", "not_reached_by", "clock_refused_by"),
    }
    assert status["peers"]["known"] == NODES - 1
    assert set(status["storage"]) == {
        *("capacity_bytes", "used_bytes", "reserved_bytes", "offered_bytes", "granted_bytes"),
        "disk_free_bytes",
    }
    assert set(status["compute"]) == {
        *("workers", "running", "queued", "offered_fuel_per_s", "granted_fuel_per_s")
    }


SHOWN = {
    "node version": api.status.VERSION,
    "node status": api.status.STATUS,
    "health": api.status.HEALTH,
    "health challenge": api.health.CHALLENGE,
    "peer ls": api.peers.LIST,
    "compute ls": api.services.LIST,
    "compute evidence": api.jobs.EVIDENCE,
    "program ls": api.programs.LIST,
    "space ls": api.space.LIST,
    "space stats": api.space.STATS,
    "space diagnostics": api.space.DIAGNOSTICS,
    "market slots": api.market.SLOTS,
    "market leases": api.market.LEASES,
    "market clearings": api.market.CLEARINGS,
    "allocation show": api.market.SHOW,
    "allocation groups": api.market.GROUPS,
    "allocation consistent": api.market.CONSISTENT,
    "allocation expected": api.market.EXPECTED,
    "ledger balance": api.ledger.BALANCE,
    "ledger flows": api.ledger.FLOWS,
    "ledger log": api.ledger.LOG,
    "ledger statement": api.ledger.STATEMENT,
    "ledger verify": api.ledger.VERIFY,
}


@pytest.mark.parametrize("words", SHOWN)
def test_what_a_command_prints_as_json_is_what_its_endpoint_answers(net, stored, words):
    said, endpoint = net[0](f"{words} --json").json, SHOWN[words]
    rows = said.pop(endpoint.rows) if endpoint.rows else [said]
    assert not endpoint.rows or not said
    for row in rows:
        model = TypeAdapter(endpoint.answer).validate_json(json.dumps(row))
        assert document(model) == row


def test_the_page_of_the_api_needs_no_token_and_no_other_host(net):
    place = find_place(net[0].home)

    def fetch(path):
        with closing(HTTPConnection(place.host, place.port)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200
            return answer.headers, answer.read().decode()

    headers, page = fetch("/docs")
    sources = re.findall(
        r"script-src ([^;]*);|connect-src ([^;]*);", headers["Content-Security-Policy"]
    )
    assert {source for pair in sources for source in pair if source} == {"'self'"}
    links = re.findall(r'(?:src|spec-url)="([^"]*)"', page)
    assert links == ["/openapi.json", "/docs/redoc.js"]
    assert all(fetch(link)[1] for link in links)
    assert set(json.loads(fetch("/openapi.json")[1])["paths"]) == {each.path for each in ENDPOINTS}


def test_node_version(net):
    said = net[0]("node version --json").json
    status = net[0]("node status --json").json
    assert said == {name: status[name] for name in ("name", "version", "network")}
    assert said["version"] in net[0]("node version").text


def test_put_prints_the_capability_and_nothing_else(net, tmp_path):
    (tmp_path / "f").write_bytes(b"content")
    done = net[0](["store", "put", tmp_path / "f"])
    assert re.fullmatch(r"xsc:r:[a-z2-7]+\n", done.text)
    assert done.err == ""


def test_put_json(net):
    put = net[0]("store put - --json", stdin=b"content").json
    assert {"capability", "size_bytes", "name", "hosts", "warnings"} < set(put)
    assert (put["survives"], put["version"]) == ("2nodes", 1)
    assert put["survives_nodes"] == 2
    assert put["warnings"] == []
    assert len({row["node"] for row in put["hosts"]}) == 6


def test_stat(net, stored):
    stat = net[1](["store", "stat", stored, "--json"]).json
    assert {
        *("size_bytes", "code", "hosts", "readable", "margin", "healable", "ends_ms", "ending")
    } == set(stat)
    assert stat["ends_ms"] > time.time() * 1000 + 80 * 86_400_000
    assert stat["ending"] == []
    assert stat["size_bytes"] == 100_000
    assert stat["code"] == {"k": 4, "m": 2}
    assert [row["shard"] for row in stat["hosts"]] == list(range(6))
    for row in stat["hosts"]:
        assert set(row) == {"shard", "node", "state"}
        assert ID.fullmatch(row["node"])
        assert row["state"] == "ok"
    assert (stat["readable"], stat["margin"], stat["healable"]) == (True, 2, True)


def test_ls(net, stored):
    rows = net[0]("store ls --json").json["objects"]
    row = next(row for row in rows if row["capability"] == stored)
    assert set(row) == {
        *("name", "version", "capability", "size_bytes", "created_ms", "margin"),
        *("ends_ms", "ending", "survives_nodes", "hosts"),
    }
    assert (row["name"], row["size_bytes"], row["margin"]) == ("test", 100_000, 2)


def test_invoke(net):
    words = ["compute", "invoke", PROGRAMS / "add.wasm", "add", "1", "2"]
    done = net[0](words)
    assert (done.line, done.err) == ("3", "")
    answer = net[0]([*words, "--json"]).json
    assert set(answer) == {
        *("results", "fuel_used", "memory_peak_bytes", "wall_ms", "provider", "trap", "receipt"),
        *("compiled_bytes", "saved_bytes"),
    }
    assert answer["results"] == ["3"]
    assert answer["trap"] is None
    assert answer["fuel_used"] > 0
    assert ID.fullmatch(answer["provider"])


def test_verify(net, tmp_path):
    receipt = tmp_path / "receipt"
    words = ["compute", "invoke", PROGRAMS / "add.wasm", "add", "1", "2", "--receipt", receipt]
    assert net[0](words).code == 0
    proved = net[0](["verify", receipt]).line
    assert proved.startswith("execution receipt: ")
    assert "add(1, 2)" in proved
    assert net[0](["verify", receipt, "--json"]).json == {"ok": True, "text": proved}
    assert net[0](["verify", receipt, "--module", PROGRAMS / "add.wasm"]).code == 0
    lease = re.search(r", under lease (\w+)", proved)[1]
    assert net[0](["market", "lease", lease, "-o", tmp_path / "lease"]).code == 0
    agreed = net[0](["verify", receipt, "--lease", tmp_path / "lease"]).line
    assert f", as agreed in lease {lease}" in agreed
    again = call(["compute", "verify", receipt, "--module", PROGRAMS / "add.wasm"])
    assert (again.line, again.err) == ("agrees", "")
    net[0](["market", "lease", "zzzz", "-o", tmp_path / "none"]).fails(2, "not_found")


PEER = {
    *("id", "name", "addresses", "state", "availability_ppm", "response_ms", "last_seen_ms"),
    *("recognised_ppm", "recognises_ppm", "tier", "balance_micro", "limit_micro"),
}
OFFER = {
    *("node", "name", "kind", "tier", "price_micro", "reserve_micro", "price_mutual_micro"),
    *("price_one_way_micro", "slot", "available", "unit"),
}
LEASE = {
    *("lease_id", "role", "peer", "name", "slot", "need", "origin", "tier", "kind"),
    *("quantity", "used", "held", "clearing"),
    *("price_micro", "billed_micro", "settled_micro", "state", "start_ms", "end_ms"),
}
HEALTH = {
    *("id", "name", "state", "availability_ppm", "response_ms", "quality_ppm", "grade"),
    *("last_seen_ms", "skew_ms", "false_clearing"),
    *("outcome", "challenged_ms", "proven_ms"),
}
BALANCE = {"peer", "name", "balance_micro", "limit_micro"}
ENTRY = {
    *("seq", "kind", "peer", "name", "amount_micro", "direction", "account", "created_ms"),
    *("entry_id", "state"),
}


@pytest.mark.parametrize(
    ("words", "rows", "keys"),
    [
        ("peer ls", "peers", PEER),
        ("health", "peers", HEALTH),
        ("market quote", "quotes", OFFER),
        ("market leases", "leases", LEASE),
        ("ledger balance", "balances", BALANCE),
        ("ledger log", "entries", ENTRY),
    ],
)
def test_tables_have_documented_keys(net, stored, words, rows, keys):
    net[0]("ledger settle")
    answer = net[0](f"{words} --json").json
    assert answer[rows]
    for row in answer[rows]:
        assert keys <= set(row)
    text = net[0](words)
    assert text.code == 0
    assert len(text.text.splitlines()) > len(answer[rows])


@pytest.mark.parametrize("how", ["word", "file", "stdin"])
def test_a_capability_is_taken_in_three_ways(net, stored, tmp_path, how):
    (tmp_path / "cap").write_text(stored + "\n")
    word = {"word": stored, "file": f"@{tmp_path / 'cap'}", "stdin": "-"}[how]
    assert net[2](["store", "stat", word, "--json"], stdin=stored.encode()).json["readable"]


def test_the_home_is_named_by_option_or_variable(net):
    by_option = net[1]("node status --json").json["id"]
    from tests.e2e.conftest import call

    assert call("node status --json", XSC_HOME=str(net[1].home)).json["id"] == by_option
    assert call("node status --json", home=net[1].home, XSC_HOME="/nowhere").json["id"] == by_option
