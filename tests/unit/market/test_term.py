"""How long leases of storage last where a setting shortens it."""

import pytest

from xsc.base.limits import COMPUTE_LEASE_MS, STORAGE_LEASE_MS
from xsc.base.units import format_duration
from xsc.market.lease import LeaseTerms, LeaseUse, check_renewal, check_request, due_ms, longest_ms
from xsc.storage.object.expiry import before_end
from xsc.terms.lease import LeaseRequest

P, C, LEASE = b"p" * 32, b"c" * 32, b"l" * 32
T0, MINUTE_MS = 1_700_000_000_000, 60_000


def asked(end_ms, **fields):
    return LeaseRequest(
        **{
            "lease_id": LEASE,
            "provider": P,
            "customer": C,
            "kind": "storage",
            "quote": b"",
            "quantity": 10,
            "quantity_min": 10,
            "price": 1,
            "start_ms": T0,
            "end_ms": end_ms,
            **fields,
        }
    )


@pytest.mark.parametrize("term_ms", [MINUTE_MS, STORAGE_LEASE_MS])
def test_a_provider_refuses_a_longer_lease_than_it_grants_and_says_how_long_that_is(term_ms):
    end_ms = T0 + longest_ms("storage", term_ms, cleared=False)
    assert check_request(asked(end_ms), 1, T0, term_ms) is None
    refusal = check_request(asked(end_ms + 1), 1, T0, term_ms)
    assert refusal == f"the lease is longer than {format_duration(term_ms)}, the longest here"


def test_the_term_of_storage_says_nothing_of_compute():
    assert longest_ms("compute", MINUTE_MS, cleared=False) == COMPUTE_LEASE_MS


@pytest.mark.parametrize("term_ms", [MINUTE_MS, STORAGE_LEASE_MS])
def test_a_lease_of_any_term_is_renewed_between_its_half_and_the_warning(term_ms):
    old = LeaseTerms(LEASE, "storage", P, C, 1, 10, T0, T0 + term_ms)
    for number in range(64):
        terms = LeaseTerms(bytes([number]) * 32, "storage", P, C, 1, 10, T0, T0 + term_ms)
        assert term_ms // 2 < due_ms(terms) - T0 <= term_ms * 5 // 8
        left_ms = terms.end_ms - due_ms(terms)
        assert left_ms > before_end(30 * 86_400_000, term_ms), "before its bytes would move"
    use = LeaseUse(T0, held_bytes=10)
    now_ms = T0 + term_ms // 2 + 1
    renewing = asked(now_ms + term_ms, start_ms=now_ms, lease_id=b"n" * 32, renews=LEASE)
    assert check_renewal(renewing, old, use, now_ms) is None
    again = renewing.model_copy(update={"end_ms": old.end_ms + 1})
    assert check_renewal(again, old, use, now_ms) is not None
