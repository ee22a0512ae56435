"""Offers and needs ahead of use, on real nodes, by the command line and the client."""

from __future__ import annotations

import signal
from itertools import pairwise

from tests.e2e.conftest import wait_for
from xsc.client import connect

DAY_MS = 24 * 3_600_000
NIGHTS = "Mon-Fri 20:00-08:00 Europe/Berlin"


def rows_of(member):
    """Return what somebody has stated."""
    rows = member("market slots --json").json["slots"]
    return [row for row in rows if row["origin"] == "stated"]


def test_offers_and_needs_are_made_edited_told_to_peers_and_withdrawn(small_net):
    small_net.up(2)
    alice, bob = small_net[0], small_net[1]
    offer = alice(["market", "offer", "compute", "2000", "--every", NIGHTS, "--price", "0.00001"])
    disk = alice("market offer storage 2GiB --filter tier=one_way").line
    need = bob("market need compute 500 --price 0.00002").line
    # Who offers follows the needs of its peers.
    rows = wait_for(lambda: len(rows_of(alice)) == 3 and {row["id"]: row for row in rows_of(alice)})
    assert rows.pop(need)["node"] == bob.id
    assert set(rows) == {offer.line, disk}
    nights = rows[offer.line].pop("windows")
    assert rows[offer.line] == {
        "id": offer.line,
        "role": "offer",
        "origin": "stated",
        "node": alice.id,
        "name": "node-0",
        "kind": "compute",
        "quantity": 2000,
        "granted": 0,
        "used": 0,
        "price_micro": 10,
        "price_unit": "Gfuel",
    }
    assert 55 < len(nights) < 70
    assert all(left[1] <= right[0] for left, right in pairwise(nights))
    ((start_ms, end_ms),) = rows[disk]["windows"]
    assert (rows[disk]["quantity"], end_ms - start_ms) == (2048, 90 * DAY_MS)
    assert (rows[disk]["role"], rows[disk]["price_micro"]) == ("offer", 1370)
    # Bob follows the commitments of those whom it recognises, offers or none.
    assert bob(["peer", "recognise", alice.id, "25%"]).code == 0
    seen = wait_for(lambda: len(rows_of(bob)) == 3 and rows_of(bob))
    assert {row["id"]: row["node"] for row in seen} == {
        need: bob.id,
        offer.line: alice.id,
        disk: alice.id,
    }
    assert [row["windows"] for row in seen if row["id"] == need] == [[]]
    text = bob("market slots").text
    assert "always" in text
    assert "0.000020" in text
    edited = alice(["market", "edit", offer.line[:8], "--quantity", "1000", "--price", "0.5"])
    assert (edited.code, edited.out) == (0, b"")
    alice(["market", "withdraw", disk])
    changed = wait_for(lambda: len(rows_of(bob)) == 2 and rows_of(bob))
    (row,) = (row for row in changed if row["id"] == offer.line)
    assert (row["quantity"], row["price_micro"], row["windows"]) == (1000, 500_000, nights)


def test_what_was_offered_is_there_after_a_kill(start):
    member, process = start()
    slot_id = member("market offer storage 100 --price 0.001 --to +2h --json").json["id"]
    before = rows_of(member)
    process.send_signal(signal.SIGKILL)
    process.wait()
    member, _ = start()
    assert rows_of(member) == before
    assert [row["id"] for row in before] == [slot_id]
    assert member("market withdraw " + slot_id + " --json").json == {"id": slot_id}
    assert rows_of(member) == []


BAD = [
    ("offer memory 10", "KIND"),
    ("offer compute", "QUANTITY"),
    ("offer compute 0", "greater than 0"),
    ("offer compute 9223372036854775808", "less than"),
    ("offer compute 2GiB", "no whole number"),
    ("offer storage 1.5", "not a whole number"),
    ("offer storage 10KiB", "whole number of MiB"),
    ("offer egress 10", "KIND"),
    ("offer compute 4611686018427387904 --price 3", "more than any amount"),
    ("offer compute 10 --price -1", "no amount of credits"),
    ("offer compute 10 --from +2h --to +1h", "no length"),
    ("offer compute 10 --to now", "no length"),
    ("offer compute 10 --from 2020-01-01 --to 2020-01-02", "is over"),
    ("offer compute 10 --to +91d", "more than 90 days"),
    ("offer compute 10 --from yesterday", "is no time"),
    ("offer compute 10 --from 1900-01-01", "is no time"),
    ("offer compute 10 --every hourly", "not a recurrence"),
    ("offer compute 10 --every 'Mon-Fry 10:00-12:00'", "no day of the week"),
    ("offer compute 10 --every 'daily 10:00-10:00'", "no length"),
    ("offer compute 10 --every 'daily 10:00-12:00 Mars/Base'", "is no time zone"),
    ("offer compute 10 --every 'daily 10:00-12:00 ../../etc/passwd'", "is no time zone"),
    ("offer compute 10 --every 'daily 10:00-12:00' --to 4764-01-01", "more than 400 windows"),
    ("offer storage 10 --every 'daily 10:00-12:00'", "storage does not recur"),
    ("offer compute 10 --filter tier", "NAME=VALUE"),
    ("offer compute 10 --filter a=1 --filter a=2", "given twice"),
    (
        "offer compute 10 " + " ".join(f"--filter f{number}=1" for number in range(9)),
        "at most 8",
    ),
    ("offer compute 10 --rule first", "rule"),
    ("edit 0 --quantity 5", "no id"),
]


def test_bad_input_is_refused_by_name_and_changes_nothing(start):
    member, _ = start()
    slot_id = member("market offer compute 10").line
    before = rows_of(member)
    for words, says in BAD:
        done = member("market " + words)
        assert (done.code, done.out) == (2, b""), (words, done.err)
        assert says in done.err, (words, done.err)
        assert "Traceback" not in done.err
    member("market withdraw aaaaaaaa").fails(2, "not_found")
    member("market edit aaaaaaaa --quantity 5").fails(2, "not_found")
    member(["market", "edit", slot_id, "--min", "11"]).fails(2, "argument_invalid")
    member(["space", "put", "allocation/commitment", "hello"]).fails(2, "argument_invalid")
    assert rows_of(member) == before


async def test_the_client_offers_and_needs(start):
    member, _ = start()
    async with connect(member.home) as node:
        slot_id = await node.market.offer("compute", 2000, every=NIGHTS, price_micro=7)
        need_id = await node.market.need("storage", 64, filters={"tier": "mutual"})
        rows = {row["id"]: row for row in await node.market.slots()}
        assert (await node.market.why(need_id)).keys() == {"why", "more"}
        assert set(rows) == {slot_id, need_id}
        assert (rows[slot_id]["price_micro"], rows[need_id]["price_micro"]) == (7, 5480)
        await node.market.edit(need_id, quantity=65)
        await node.market.withdraw(slot_id)
        (row,) = await node.market.slots()
        assert (row["id"], row["quantity"], row["role"]) == (need_id, 65, "need")
        await node.market.edit(need_id, quantity=66)
