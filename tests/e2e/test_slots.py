"""Slots and needs of real nodes: cleared ahead of use, drawn, shown, and recomputed offline."""

from __future__ import annotations

import os

from tests.e2e.conftest import call, wait_for
from xsc.base.limits import SLOT_STEP_BYTES

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
    late.put(os.urandom(1000))  # what is entitled is drawn also where a lease is at hand

    def drawn_by_a_put():
        """Return what was drawn: of a provider that was just slow to answer it is nothing."""
        late.put(os.urandom(1_000_000))
        return late("allocation received --json").json["allocations"]

    slot = provider("market offer storage 6451MiB --price 0.00001").line
    needs = []
    try:
        needs.append((early, early("market need storage 6349MiB").line))
        wait_for(lambda: granted(provider, early.id) == LEVEL)
        assert provider(f"peer recognise {late.id} 25%").code == 0
        assert late(f"peer recognise {provider.id} 25%").code == 0
        needs.append((late, late("market need storage 6349MiB").line))
        wait_for(lambda: granted(provider, late.id) == LEVEL)
        assert granted(provider, early.id) == 0
        (row,) = wait_for(lambda: late("allocation expected --json").json["allocations"])
        assert (row["node"], row["slot"], row["quantity"]) == (provider.id, slot, LEVEL)
        assert (row["tier"], row["price"]) == ("mutual", 8)
        (drawn,) = wait_for(drawn_by_a_put)
        assert 0 < drawn["drawn"] <= LEVEL
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
        provider("allocation why nobody").fails(2, "peer_unknown")
    finally:
        for member, need in needs:
            member(f"market withdraw {need}")
        provider(f"market withdraw {slot}")
        provider(f"peer recognise {late.id} 0%")
        late(f"peer recognise {provider.id} 0%")
