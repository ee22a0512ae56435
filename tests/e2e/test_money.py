from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from tests.e2e.conftest import PROGRAMS, call, wait_for

KINDS = ("storage", "compute")


def balances(member) -> dict[str, int]:
    rows = member("ledger balance --json").json["balances"]
    return {row["peer"]: row["balance_micro"] for row in rows}


def test_both_sides_of_every_pair_agree(net):
    net[0].put(os.urandom(8_000_000))
    net[1].put(os.urandom(4_000_000))
    words = ["compute", "invoke", PROGRAMS / "endless.wasm", "spin", "--fuel", "20000000"]
    net[0](words).fails(4, "fuel_exhausted")
    for index in range(7):
        assert net[index]("ledger settle").code == 0
    # What a provider waits for, the customer has settled by now.
    assert [net[index]("ledger settle --json").json["pending"] for index in range(7)] == [0] * 7
    ids = [row["id"] for row in net.status()]
    books = [balances(net[index]) for index in range(7)]
    assert any(books[0].values())
    for here, one in enumerate(ids):
        for there, other in enumerate(ids):
            assert books[here].get(other, 0) == -books[there].get(one, 0)
    for index in range(7):
        report = net[index]("ledger verify --json").json
        assert report["ok"] is True
        assert net[index]("ledger verify").line == report["text"]


def test_an_entry_is_a_proof(net, tmp_path):
    net[0].put(os.urandom(5_000_000))
    net[0]("ledger settle")
    entry = net[0]("ledger log --limit 1 --json").json["entries"][0]
    path = tmp_path / "entry"
    done = net[0](["ledger", "entry", entry["entry_id"], "-o", path])
    assert done.code == 0, done.err
    assert call(["verify", path]).line
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    call(["verify", path]).fails(6, "proof_invalid")
    net[0](["ledger", "entry", "a" * 52, "-o", path]).fails(2, "not_found")


def test_a_statement_and_an_export_have_the_balances(net, tmp_path):
    words = ["compute", "invoke", PROGRAMS / "endless.wasm", "spin", "--fuel", "20000000"]
    net[0](words).fails(4, "fuel_exhausted")
    net[0]("ledger settle")
    told = net[0]("ledger statement --json").json
    month = time.strftime("%Y-%m", time.gmtime(told["from_ms"] / 1000))
    assert net[0](f"ledger statement --month {month} --json").json == told
    names = {row["id"]: row["name"] for row in net.status()}
    assert told["payments"]
    for row in told["payments"]:
        assert row["debtor_name"] == names[row["debtor"]]
        assert row["creditor_name"] == names[row["creditor"]]
        assert {lease["kind"] for lease in row["leases"]} <= {*KINDS}
    owed = {row["peer"]: row["closing_micro"] for row in told["balances"]}
    assert owed == {peer: micro for peer, micro in balances(net[0]).items() if peer in owed}
    path = tmp_path / "book.beancount"
    assert net[0](["ledger", "export", "--format", "beancount", "-o", path]).code == 0
    check = [sys.executable, "-m", "beancount.scripts.check", path]
    assert subprocess.run(check, check=False, capture_output=True, text=True).stderr == ""
    assert net[0]("ledger export --format csv").text.count("\r\n") == 1 + len(
        json.loads(net[0]("ledger export --format json").text)["payments"]
    )
    net[0]("ledger statement --month 2026-13").fails(2, "argument_invalid")


def tier_of(member, peer: str, tier: str):
    """Return the row of a peer, if a node serves it on that tier."""
    rows = member("peer ls --json").json["peers"]
    return next((row for row in rows if row["id"] == peer and row["tier"] == tier), None)


def test_what_storage_and_fuel_would_cost_is_said_at_the_prices_of_the_peers(net):
    found = net[0]("market quote --size 100MiB --for 30days --fuel 1e12 --json").json
    quotes = net[0]("market quote --json").json["quotes"]
    prices = {kind: sorted(q["price_micro"] for q in quotes if q["kind"] == kind) for kind in KINDS}
    assert (found["coded_bytes"], found["code"], found["hours"]) == (150 * 2**20, "4,2", 720)
    assert found["storage_price_micro"] == prices["storage"][5]
    assert found["storage_micro"] == prices["storage"][5] * 150 * 720 // 1024
    assert found["compute_price_micro"] == prices["compute"][0]
    assert found["compute_micro"] == prices["compute"][0] * 1000
    assert found["total_micro"] == found["storage_micro"] + found["compute_micro"]
    twice = net[0]("market quote compute --fuel 1e12 --memory 65MiB --json").json
    assert twice["compute_micro"] == 2 * found["compute_micro"]
    assert twice["storage_micro"] == twice["storage_price_micro"] == 0
    net[0]("market quote --size 1MiB --code 9,999").fails(2, "argument_invalid")


def test_mutual_recognition_makes_it_cheaper(net):
    five, six = net[5].id, net[6].id
    try:
        assert net[5](f"peer recognise {six} 25%").code == 0
        assert net[6](f"peer recognise {five} 50%").code == 0
        row = wait_for(lambda: tier_of(net[5], six, "mutual"))
        assert (row["recognised_ppm"], row["recognises_ppm"]) == (250_000, 500_000)
        wait_for(lambda: tier_of(net[6], five, "mutual"))
        rows = net[5]("market quote storage --json").json["quotes"]
        assert {row["kind"] for row in rows} == {"storage"}
        prices = {row["node"]: row["price_micro"] for row in rows}
        assert min(prices, key=prices.__getitem__) == six
        assert len({price for node, price in prices.items() if node != six}) == 1
    finally:
        assert net[5](f"peer recognise {six} 0%").code == 0
        assert net[6](f"peer recognise {five} 0%").code == 0


def test_a_lease_s_price_is_explained_on_both_sides(net):
    net[3].put(b"priced")
    rows = net[3]("market leases --json").json["leases"]
    lease = next(row for row in rows if (row["role"], row["kind"]) == ("customer", "storage"))
    told = net[3](f"market why {lease['lease_id']} --json").json
    assert told["price_micro"] == lease["price_micro"]
    assert (told["provider"], told["customer"]) == (lease["peer"], net[3].id)
    assert (told["slot"], told["need"]) == (lease["slot"], None)
    provider = next(
        member for member in map(net.__getitem__, range(7)) if member.id == lease["peer"]
    )
    assert provider(f"market why {lease['lease_id'][:12]} --json").json == told
    shown = provider(f"market why {lease['lease_id']}").text
    assert "credits a GiB and hour" in shown
    assert f"why       {told['why']}" in shown
    net[3]("market why zzzz").fails(2, "not_found")


def test_more_than_everything_cannot_be_recognised(net):
    try:
        assert net[4]("peer recognise node-5 60%").code == 0
        done = net[4]("peer recognise node-6 60%")
        done.fails(2, "argument_invalid")
    finally:
        net[4]("peer recognise node-5 0%")
