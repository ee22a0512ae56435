"""Which leases are used, and what is said of those that are not."""

from tests.unit.market.test_lease import HOST, OTHER, T0, entry
from xsc.base.limits import GIB
from xsc.market.choosing import Wish, at_hand, why_unused
from xsc.market.lease import LeaseUse


def found(*entries, quantity=GIB):
    leases = at_hand(entries, Wish("storage", quantity, (HOST, OTHER)), T0)
    return [at.terms.lease_id[0] for at in leases.values()]


def cleared(number, level, kind="storage"):
    use = LeaseUse(T0, level=level, counted_ms=T0)
    return entry("customer", kind, number=number, use=use, level=level)


def test_the_cheapest_usable_lease_of_each_node_is_found():
    mine = [entry("customer"), entry("customer", number=2, price=2)]
    assert found(*mine, entry("customer", number=3, price=2)) == [2], "of equals the first"
    assert found(*mine, entry("customer", number=3, provider=OTHER)) == [2, 3]
    assert found(*mine, quantity=100 * GIB) == [2], "its provider says what it has"
    assert found(entry("customer", use=LeaseUse(T0, given_back=True, denial=b"d"))) == []
    assert found(entry("customer", avoided_until_ms=T0 + 1)) == []
    assert found(entry("customer", avoided_until_ms=T0)) == [1]
    assert found(entry("customer", start_ms=T0 - 1, end_ms=T0)) == []
    assert found(entry("customer", level=10 * GIB, promised=[(T0 + 1, 10 * GIB)])) == []


def test_cleared_leases_come_first_and_are_joined_where_none_has_the_room():
    dear = entry("customer", number=9)
    assert found(dear, cleared(1, 2 * GIB), cleared(2, 3 * GIB)) == [1]
    assert found(dear, cleared(1, 2 * GIB), cleared(2, 3 * GIB), quantity=5 * GIB) == [9]
    assert found(cleared(1, 2 * GIB), cleared(2, 3 * GIB), quantity=5 * GIB) == [2]
    assert found(cleared(1, 2 * GIB), cleared(2, 3 * GIB), quantity=5 * GIB + 1) == []


def test_of_two_cleared_rates_the_one_that_is_too_small_is_named():
    small, large = cleared(1, 10, "compute"), cleared(2, 30, "compute")

    def said(each, used, quantity=20 * 60):
        return why_unused(each, Wish("compute", quantity, [HOST]), {HOST: used}, T0)

    assert "600 of the 1200" in said(small, large)
    assert "in this minute" in said(small, large)
    assert said(large, large) is None
    assert "600 of the 1200" in said(small, entry("customer", "compute", number=3))


def test_cleared_leases_of_storage_are_used_together():
    small, large = cleared(1, GIB), cleared(2, 2 * GIB)
    wish = Wish("storage", 3 * GIB, [HOST])
    assert why_unused(small, wish, {HOST: large}, T0) is None
    assert why_unused(small, wish, {HOST: entry("customer", number=3)}, T0)
