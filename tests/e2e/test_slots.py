"""Slots and needs of real nodes: cleared ahead of use, leased, shown, and recomputed offline."""

from __future__ import annotations

import os

import pytest

from tests.e2e.conftest import Net, call, wait_for
from xsc.base.limits import GIB, SLOT_STEP_BYTES

GROUPS = 11
LEVEL = 100 * SLOT_STEP_BYTES
"""An offer of 6451 MiB rounds down to it, and a need of 6349 MiB up."""


def granted(provider, node: str) -> int:
    """Return what a node is granted of a provider's own slots."""
    rows = provider("allocation show --json").json["slots"]
    return sum(
        line["quantity"]
        for row in rows
        if row["node"] == provider.id
        for line in row["allocations"]
        if line["node"] == node
    )


@pytest.fixture
def net(tmp_path):
    """Nodes that offer what is typed here, and nothing else."""
    own = Net(tmp_path / "net", XSC_OFFER="none")
    own.up(3)
    yield own
    own.down()


def test_a_need_is_granted_where_nobody_has_typed_an_offer(small_net):
    small_net.up(3)
    customer, others = small_net[0], (small_net[1], small_net[2])

    def slots():
        rows = customer("market slots --json").json["slots"]
        return [row for row in rows if row["role"] == "offer"]

    def granted_bytes(member):
        return member("node status --json").json["storage"]["granted_bytes"]

    offers = wait_for(lambda: len(slots()) == 6 and slots())
    assert {(row["node"], row["kind"], row["origin"]) for row in offers} == {
        (member.id, kind, "default")
        for member in (customer, *others)
        for kind in ("storage", "compute")
    }
    status = customer("node status --json").json
    own = {row["kind"]: row for row in offers if row["node"] == customer.id}
    assert own["storage"]["quantity"] == status["storage"]["offered_bytes"]
    assert status["storage"]["offered_bytes"] <= status["storage"]["capacity_bytes"]
    assert own["compute"]["quantity"] == status["compute"]["offered_fuel_per_s"] > 0
    done = customer(f"market need storage 1GiB --spread {len(others)}")
    assert "credits within a day" in done.err
    need = done.line
    wait_for(lambda: customer("allocation expected --json").json["totals"].get(need) == GIB)
    wait_for(lambda: sum(map(granted_bytes, others)) == GIB)

    def of_need():
        rows = customer("market slots --json").json["slots"]
        return next((row["granted"], row["used"]) for row in rows if row["id"] == need)

    wait_for(lambda: of_need() == (GIB, GIB))
    leases = [
        lease
        for lease in customer("market leases --json").json["leases"]
        if lease["origin"] == "cleared"
    ]
    assert {lease["need"] for lease in leases} == {need}
    for words in ("show", "expected", "received", "groups", f"why {small_net[1].id}"):
        assert customer(f"allocation {words}").code == 0
    assert "always" in small_net[1]("allocation show").text
    assert sum(lease["quantity"] for lease in leases) == GIB
    text = customer("market slots").text
    assert "default" in text
    assert "always" in text
    # What its owner states or withdraws stays so, over a restart, too.
    taken, edited = own["storage"]["id"], own["compute"]["id"]
    customer(f"market withdraw {taken}")
    customer(f"market edit {edited} --quantity 500Mfuel/s")
    small_net.kill([{"name": "node-0"}])
    small_net.start(0)
    small_net.wait_for_start(0)
    mine = [row for row in slots() if row["node"] == customer.id]
    assert [(row["id"], row["origin"], row["quantity"]) for row in mine] == [
        (edited, "stated", 5 * 10**8)
    ]
    customer("market offer storage all --price 3").fails(2, "argument_invalid")
    customer("market need storage all").fails(2, "argument_invalid")
    again = customer("market offer storage all").line
    mine = {row["id"]: row["origin"] for row in slots() if row["node"] == customer.id}
    assert mine == {again: "default", edited: "stated"}


def asked(member, some_id: str, customer=None) -> list[tuple]:
    """Return why a customer was granted what it was in cleared windows, as a node tells it."""
    rows = member(f"market why {some_id} --json").json["why"]
    return [
        (row["clearing"], row["granted"], row["because"], row["changes"])
        for row in rows
        if row["granted"] is not None and row["node"] == (customer or member).id
    ]


def test_recognition_decides_ahead_of_use_and_anybody_recomputes_it(net, tmp_path):
    provider, early, late = net[0], net[1], net[2]
    assert provider(f"peer recognise {late.id} 25%").code == 0
    assert late(f"peer recognise {provider.id} 25%").code == 0
    needs = [
        (member, member("market need storage 6349MiB --spread 1").line) for member in (early, late)
    ]

    def known():
        return {row["id"] for row in provider("market slots --json").json["slots"]}

    wait_for(lambda: needs[1][1] in known())
    slot = provider("market offer storage 6451MiB --price 0.00001").line
    try:
        wait_for(lambda: granted(provider, late.id) == LEVEL)
        assert granted(provider, early.id) == 0
        (row,) = wait_for(lambda: late("allocation received --json").json["allocations"])
        assert (row["node"], row["slot"], row["quantity"]) == (provider.id, slot, LEVEL)
        assert (row["tier"], row["price"], row["drawn"]) == ("mutual", 8, LEVEL)
        late.put(os.urandom(1_000_000), "--survive 0node")
        leases = late("market leases --json").json["leases"]
        assert 8 in {
            lease["price_micro"]
            for lease in leases
            if (lease["role"], lease["peer"]) == ("customer", provider.id)
        }
        clearings = provider("market clearings --json").json["clearings"]
        assert {item["slot"] for item in clearings} >= {slot}
        for number, item in enumerate(clearings):
            path = tmp_path / f"clearing-{number}"
            assert provider(["market", "clearing", item["id"], "-o", path]).code == 0
            assert call(["verify", path]).line
        raw = path.read_bytes()
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        call(["verify", path]).fails(6, "proof_invalid")
        groups = provider("allocation groups --json").json["groups"]
        assert len(groups) == GROUPS
        assert late.id in groups["mutual_beneficiaries_with_needs"]
        reasons = provider(f"allocation why {slot} --json").json["why"]
        assert {reason["node"] for reason in reasons} == {early.id, late.id}
        (behind,) = (reason for reason in reasons if reason["node"] == early.id)
        assert behind["granted"] == 0
        # What the provider says its customer finds itself, from the record that it recomputes.
        need = needs[0][1]
        wait_for(lambda: asked(early, need) == asked(provider, slot, early) != [])
        assert early(f"market why {slot}").code == 0
        early("market why zzzz").fails(2, "not_found")
        (name,) = (
            row["name"] for row in early("peer ls --json").json["peers"] if row["id"] == provider.id
        )
        assert early(["market", "why", name, "--json"]).json["why"]
        (shown,) = (
            line
            for row in provider("allocation show --json").json["slots"]
            for line in (*row["allocations"], *row["pinned"])
            if line["node"] == late.id
        )
        assert shown.get("drawn", shown["quantity"]) > 0
        assert any("mutual" in change for change in behind["changes"])
        wait_for(lambda: provider("allocation show --json").json["converged"])
        for words in ("show", "groups", "expected", "received", f"why {early.id}"):
            assert provider(f"allocation {words}").code == 0
        provider("allocation why nobody").fails(2, "not_found")
    finally:
        for member, need in needs:
            member(f"market withdraw {need}")
        provider(f"market withdraw {slot}")
        provider(f"peer recognise {late.id} 0%")
        late(f"peer recognise {provider.id} 0%")
