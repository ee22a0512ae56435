"""What `xsc verify` says of a record: sizes with units, and what nobody but its author knows."""

from __future__ import annotations

import pytest

from tests.unit.allocation.clearings import (
    cleared,
    key,
    named,
    need,
    proof,
    published,
    slot,
)
from xsc.base.errors import ProofInvalid
from xsc.base.ids import short
from xsc.identity.envelope import sign
from xsc.node.offline.verify import verify_file
from xsc.terms.lease import Lease, LeaseRequest
from xsc.terms.slot import Commitment

NETWORK = bytes(32)
PROVIDER, CUSTOMER = key(1), key(2)


@pytest.mark.parametrize("gives", [{}, {PROVIDER.node_id: 60_000}])
def test_verify_names_what_is_the_provider_s_word(gives):
    own = published(PROVIDER, NETWORK, Commitment(slots=(slot(),)), {CUSTOMER.node_id: 50_000})
    other = published(CUSTOMER, NETWORK, Commitment(needs=(need(),)), gives)
    said = verify_file(proof(cleared(PROVIDER, own, [other], NETWORK), named(own, other), CUSTOMER))
    assert "divided 1000 Mfuel/s of compute" in said
    assert "no recognition is missing" in said
    assert "nothing of this had been replaced are the provider's word" in said
    dated = "1 of 2023-11-14 22:13:20 UTC"
    assert f"{short(PROVIDER.node_id)} commitment {dated}, recognition {dated}" in said
    shown = f"recognition {dated}" if gives else "no recognition"
    assert said.endswith(f"{short(CUSTOMER.node_id)} commitment {dated}, {shown}")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("kind", "level", "shown"),
    [
        ("storage", 3 << 20, "3.0 MiB of storage, cleared ahead of use, at 0.000008 credits"),
        ("compute", 0, "compute for now at 0.000008 credits a Gfuel"),
        (
            "compute",
            5_000_000,
            "5 Mfuel/s of compute, cleared ahead of use, at 0.000008 credits",
        ),
    ],
)
def test_verify_gives_the_size_and_unit_of_a_lease(kind, level, shown):
    request = LeaseRequest(
        lease_id=bytes(32),
        provider=PROVIDER.node_id,
        customer=CUSTOMER.node_id,
        kind=kind,
        slot=bytes(16),
        window=(0, 1),
        tier="open",
        need=bytes(16) if level else None,
        level=level,
        price=8,
        start_ms=0,
        end_ms=1,
    )
    asked = sign(request, CUSTOMER, NETWORK).raw
    lease = Lease(request=asked, level=level)
    assert shown in verify_file(sign(lease, PROVIDER, NETWORK).raw)
    more = lease.model_copy(update={"level": level + 1})
    with pytest.raises(ProofInvalid, match="grants more than was asked for"):
        verify_file(sign(more, PROVIDER, NETWORK).raw)
