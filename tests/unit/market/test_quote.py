import pytest

from xsc.base.errors import NoOffers, RecordInvalid, SignatureInvalid
from xsc.base.limits import (
    COMPUTE_LEASE_MICRO_MAX,
    MIB,
    PRICE_FUEL,
    QUOTE_TTL_MS,
    REQUEST_WINDOW_MS,
    SHARE_LEASES,
    STORAGE_LEASE_BYTES,
)
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair, network_id
from xsc.market.pricing import domain, is_valid, open_quote, wanted_quantity, why
from xsc.terms.pricing import Ladder
from xsc.terms.quote import Quote

KEY, NET, T0 = KeyPair(b"\1" * 32), network_id("test"), 1_000_000
CUSTOMER = b"c" * 32
LADDER = Ladder(1, 2, 3)


def made(tier="one_way", ladder=LADDER, **change):
    fields = {
        "provider": KEY.node_id,
        "customer": CUSTOMER,
        "kind": "storage",
        "tier": tier,
        "price_mutual": ladder.mutual,
        "price_one_way": ladder.one_way,
        "reserve": ladder.reserve,
        "price": ladder.rung(tier),
        "available": 7,
        "valid_from_ms": T0,
        "valid_until_ms": T0 + QUOTE_TTL_MS,
        "nonce": b"n" * 16,
    }
    return Quote(**(fields | change))


def opened(quote, key=KEY, **change):
    fields = {
        "network": NET,
        "provider": KEY.node_id,
        "customer": CUSTOMER,
        "kind": "storage",
        "now_ms": T0,
    }
    return open_quote(sign(quote, key, NET).raw, **(fields | change))


@pytest.mark.parametrize(("tier", "price"), [("mutual", 1), ("one_way", 2), ("open", 3)])
def test_the_price_is_the_rung_of_the_tier(tier, price):
    quote = made(tier=tier)
    assert (quote.price, quote.reserve) == (price, 3)
    assert opened(quote).record == quote


@pytest.mark.parametrize(
    ("tier", "price", "renewed", "says"),
    [
        ("mutual", 1, False, "what it has posted"),
        ("one_way", 2, False, "what it has posted"),
        ("open", 3, False, "what the provider asked"),
        ("open", 9, False, "the most that the provider could have asked"),
        ("open", 3, True, "a renewal costs"),
        ("mutual", 1, True, "a renewal costs"),
    ],
)
def test_a_price_is_explained_by_what_was_signed(tier, price, renewed, says):
    assert says in why(made(tier=tier), price, renewed=renewed)


def test_the_price_of_an_entitlement_is_explained_by_it():
    assert "entitlement" in why(None, 3)


def test_a_quote_holds_for_its_time_and_allows_for_skew():
    quote = made()
    assert not is_valid(quote, T0 - REQUEST_WINDOW_MS - 1)
    assert is_valid(quote, T0 - REQUEST_WINDOW_MS)
    assert is_valid(quote, T0 + QUOTE_TTL_MS - 1)
    assert not is_valid(quote, T0 + QUOTE_TTL_MS)
    assert not is_valid(quote, T0 + QUOTE_TTL_MS - 5, margin_ms=5)


@pytest.mark.parametrize(
    "change",
    [
        {"network": network_id("other")},
        {"customer": b"d" * 32},
        {"kind": "compute"},
    ],
    ids=["network", "customer", "kind"],
)
def test_a_quote_that_is_not_for_this_is_refused(change):
    with pytest.raises(RecordInvalid):
        opened(made(), **change)


@pytest.mark.parametrize("now_ms", [T0 + QUOTE_TTL_MS, T0 - REQUEST_WINDOW_MS - 1])
def test_a_quote_that_does_not_hold_now_is_no_fault_of_the_record(now_ms):
    with pytest.raises(NoOffers):
        opened(made(), now_ms=now_ms)


def test_a_quote_of_another_is_refused():
    other = KeyPair(b"\2" * 32)
    with pytest.raises(SignatureInvalid):
        opened(made(), key=other)
    with pytest.raises(RecordInvalid):
        opened(made(provider=other.node_id))
    long = made().model_copy(update={"valid_until_ms": T0 + QUOTE_TTL_MS + 1})
    with pytest.raises(RecordInvalid):
        opened(long)


def test_the_domain_is_the_site_then_the_owner_then_the_node():
    assert domain("attic", "eva", CUSTOMER) == domain("attic", "leo", CUSTOMER)
    assert domain("", "eva", CUSTOMER) != domain("eva", "", CUSTOMER)
    assert CUSTOMER in domain("", "", CUSTOMER)
    assert domain("", "eva", CUSTOMER) == domain("", "eva", b"p" * 32)


@pytest.mark.parametrize(
    ("kind", "price", "least", "available", "wanted"),
    [
        ("storage", 10, MIB, 2**60, STORAGE_LEASE_BYTES),
        ("storage", 10, 2 * STORAGE_LEASE_BYTES, 2**60, 2 * STORAGE_LEASE_BYTES),
        ("storage", 10, MIB, MIB * SHARE_LEASES // 2, MIB),
        ("storage", 10, MIB, 20 * MIB * SHARE_LEASES, 20 * MIB),
        ("storage", 10, MIB, MIB - 1, MIB - 1),
        ("compute", 0, 7, 1, 2**63 - 1),
        ("compute", COMPUTE_LEASE_MICRO_MAX, 7, 1, PRICE_FUEL + 999),
        ("compute", COMPUTE_LEASE_MICRO_MAX, 2**60, 1, 2**60),
    ],
)
def test_a_customer_asks_for_modestly_more_than_it_needs(kind, price, least, available, wanted):
    quote = made(kind=kind, available=available)
    assert wanted_quantity(quote, price, least) == wanted
