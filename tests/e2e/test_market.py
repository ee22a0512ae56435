"""Offers and needs ahead of use, on real nodes, by the command line and the client."""

from __future__ import annotations

import signal

import pytest

from tests.e2e.conftest import wait_for
from xsc.base.errors import ArgumentInvalid
from xsc.base.limits import GIB, MFUEL, SLOT_STEP_BYTES
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
    offer = alice(
        ["market", "offer", "compute", "509Mfuel/s", "--every", NIGHTS, "--price", "0.00001"]
    )
    disk = alice("market offer storage 2GiB --filter tier=one_way").line
    made = bob("market need compute 501Mfuel/s --price 0.00002")
    need = made.line
    # 510 Mfuel/s are 1.836 Tfuel an hour; of storage a GiB for each hour.
    assert (
        made.err == "it comes to at most 0.881280 credits within a day, 26.438400 within 30 days\n"
    )
    held = bob("market need storage 1GiB --price 0.001")
    assert held.err.splitlines() == [
        "it comes to at most 0.024000 credits within a day, 0.720000 within 30 days",
        "it goes over 6 providers: objects of 682.6 MiB in all fit in it",
        (
            "warning: failure domains that offer storage, as far as known here: 1; more friends,"
            " or `--spread 1`, would fill it"
        ),
    ]
    bob(["market", "withdraw", held.line])
    # Who offers follows the needs of its peers.
    rows = wait_for(lambda: len(rows_of(alice)) == 3 and {row["id"]: row for row in rows_of(alice)})
    asked = rows.pop(need)
    # A need rounds up to a step, and an offer down.
    assert (asked["node"], asked["quantity"]) == (bob.id, 510 * MFUEL)
    assert set(rows) == {offer.line, disk}
    nights = rows[offer.line].pop("windows")
    # Where these tests run at night, bob leases it at once.
    granted, used = (rows[offer.line].pop(what) for what in ("granted", "used"))
    assert used <= granted <= 500 * MFUEL
    assert rows[offer.line] == {
        "id": offer.line,
        "role": "offer",
        "origin": "stated",
        "node": alice.id,
        "name": "node-0",
        "kind": "compute",
        "quantity": 500 * MFUEL,
        "unit": "fuel_per_s",
        "price_micro": 10,
        "price_unit": "Gfuel",
        "parts": {},
    }
    assert len(nights) == 1, "the next one"
    ((start_ms, end_ms),) = rows[disk]["windows"]
    assert (rows[disk]["quantity"], end_ms - start_ms) == (2 * GIB, 90 * DAY_MS)
    assert rows[disk]["unit"] == "bytes"
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
    assert "500 Mfuel/s" in text
    assert "2.0 GiB" in text
    assert "always" in text
    assert "0.000020" in text
    edited = alice(["market", "edit", offer.line[:8], "--quantity", "1Gfuel/s", "--price", "0.5"])
    assert (edited.code, edited.out) == (0, b"")
    alice(["market", "withdraw", disk])
    changed = wait_for(lambda: len(rows_of(bob)) == 2 and rows_of(bob))
    (row,) = (row for row in changed if row["id"] == offer.line)
    assert (row["quantity"], row["price_micro"], row["windows"]) == (1000 * MFUEL, 500_000, nights)


def test_what_was_offered_is_there_after_a_kill(start):
    member, process = start()
    slot_id = member("market offer storage 100GiB --price 0.001 --to +2h --json").json["id"]
    before = rows_of(member)
    process.send_signal(signal.SIGKILL)
    process.wait()
    member, _ = start()
    assert rows_of(member) == before
    assert [row["id"] for row in before] == [slot_id]
    assert member("market withdraw " + slot_id + " --json").json == {"id": slot_id}
    assert rows_of(member) == []


BAD = [
    ("offer memory 10GiB", "KIND"),
    ("offer egress 10GiB", "KIND"),
    ("offer compute", "QUANTITY"),
    ("offer compute 10", "has no unit"),
    ("offer storage 64", "has no unit"),
    ("need storage 1.5", "has no unit"),
    ("need storage 64000000.0", "has no unit"),
    ("offer compute 0Mfuel/s", "less than a step of 10 Mfuel/s"),
    ("offer compute 9999kfuel/s", "less than a step of 10 Mfuel/s"),
    ("offer compute 0workers", "less than a step of 10 Mfuel/s"),
    ("offer storage 0GiB", "less than a step of 64.0 MiB"),
    ("offer storage 63MiB", "less than a step of 64.0 MiB"),
    ("need storage 0B", "less than a step of 64.0 MiB"),
    ("offer compute 2GiB", "stated is no compute"),
    ("offer storage 500Mfuel/s", "stated is no storage"),
    ("offer storage 2workers", "stated is no storage"),
    ("edit OFFER --quantity 2GiB", "stated is no compute"),
    ("offer compute 1.5workers", "is no quantity"),
    ("offer compute -- -1workers", "is no quantity"),
    ("offer compute ²workers", "is no quantity"),
    ("offer compute 500Mfuel", "is no quantity"),
    ("offer compute 500mfuel/s", "is no quantity"),
    ("offer compute 500Mfuel/h", "is no quantity"),
    ("offer compute fuel/s", "is no quantity"),
    ("offer storage 10parsecs", "is no quantity"),
    ("offer storage 9223372036854775808B", "more than any"),
    ("need storage 8388608TiB", "more than any"),
    ("offer compute 9223372036854775808fuel/s", "more than any"),
    ("need compute 9223372036854775807workers", "is no quantity"),
    ("need compute 999999999999workers", "more than any"),
    ("offer storage 500000TiB --price 99999999", "more than any amount"),
    ("offer compute 10Mfuel/s --price -1", "no amount of credits"),
    ("offer compute 10Mfuel/s --from +2h --to +1h", "no length"),
    ("offer compute 10Mfuel/s --to now", "no length"),
    ("offer compute 10Mfuel/s --from 2020-01-01 --to 2020-01-02", "is over"),
    ("offer compute 10Mfuel/s --to +91d", "more than 90 days"),
    ("offer compute 10Mfuel/s --from yesterday", "is no time"),
    ("offer compute 10Mfuel/s --from 1900-01-01", "is no time"),
    ("offer compute 10Mfuel/s --every hourly", "not a recurrence"),
    ("offer compute 10Mfuel/s --every 'Mon-Fry 10:00-12:00'", "no day of the week"),
    ("offer compute 10Mfuel/s --every 'daily 10:00-10:00'", "no length"),
    ("offer compute 10Mfuel/s --every 'daily 10:00-12:00 Mars/Base'", "is no time zone"),
    ("offer compute 10Mfuel/s --every 'daily 10:00-12:00 ../../etc/passwd'", "is no time zone"),
    (
        "offer compute 10Mfuel/s --every 'daily 10:00-12:00' --from 4764-01-01",
        "none within 90 days",
    ),
    ("offer storage 10GiB --every 'daily 10:00-12:00'", "storage has one window"),
    ("offer compute 10Mfuel/s --filter tier", "NAME=VALUE"),
    ("offer compute 10Mfuel/s --filter a=1 --filter a=2", "given twice"),
    (
        "offer compute 10Mfuel/s " + " ".join(f"--filter f{number}=1" for number in range(9)),
        "at most 8",
    ),
    ("offer compute 10Mfuel/s --rule first", "rule"),
    ("edit 0 --quantity 5GiB", "no own offer or need has an id"),
]


def test_bad_input_is_refused_by_name_and_changes_nothing(start):
    member, _ = start()
    slot_id = member("market offer compute 10Mfuel/s").line
    before = rows_of(member)
    for words, says in BAD:
        done = member("market " + words.replace("OFFER", slot_id))
        assert (done.code, done.out) == (2, b""), (words, done.err)
        assert says in done.err, (words, done.err)
        assert "Traceback" not in done.err
    member("market withdraw aaaaaaaa").fails(2, "not_found")
    member("market edit aaaaaaaa --quantity 5GiB").fails(2, "not_found")
    member(["market", "edit", slot_id, "--min", "11"]).fails(2, "argument_invalid")
    member(["space", "put", "allocation/commitment", "hello"]).fails(2, "argument_invalid")
    assert rows_of(member) == before


async def test_the_client_offers_and_needs(start):
    member, _ = start()
    async with connect(member.home) as node:
        slot_id = await node.market.offer("compute", 509 * MFUEL, every=NIGHTS, price_micro=7)
        need_id = await node.market.need("storage", GIB, filters={"tier": "mutual"})
        rows = {row["id"]: row for row in await node.market.slots()}
        assert (await node.market.why(need_id)).keys() == {"why", "more", "passed_over"}
        assert set(rows) == {slot_id, need_id}
        assert (rows[slot_id]["price_micro"], rows[need_id]["price_micro"]) == (7, 5480)
        assert (rows[slot_id]["quantity"], rows[need_id]["quantity"]) == (500 * MFUEL, GIB)
        await node.market.edit(need_id, quantity=GIB + 1)
        await node.market.edit(slot_id, workers=2)
        rows = {row["id"]: row for row in await node.market.slots()}
        both = await node.market.offer("compute", workers=2)
        (two,) = (row for row in await node.market.slots() if row["id"] == both)
        assert two["quantity"] == rows[slot_id]["quantity"] > 0
        await node.market.withdraw(both)
        await node.market.withdraw(slot_id)
        (row,) = await node.market.slots()
        asked = row["id"], row["quantity"], row["role"]
        assert asked == (need_id, GIB + SLOT_STEP_BYTES, "need")
        with pytest.raises(ArgumentInvalid, match="in place of a quantity"):
            await node.market.need("compute", 10 * MFUEL, workers=1)
        with pytest.raises(ArgumentInvalid, match="quantity is missing"):
            await node.market.need("compute")
        await node.market.edit(need_id, quantity=GIB)
