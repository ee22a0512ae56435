"""What becomes of the requests of one window; the laws of shares are in tests/properties."""

from tests.unit.market.fakes import divide
from xsc.base.limits import MIB
from xsc.market.clearing import Ask
from xsc.market.room import FreeRoom, WindowPlan, plan_window

RICH = {b"a": 10**9, b"b": 10**9, b"c": 10**9}
ALL = 1024 * MIB


def plan(*asks, free=ALL, credit=None, reserved=None):
    room = FreeRoom("storage", free, reserved or {}, frozenset())
    asked = [Ask(name, name, tier, 1, size, least, 10) for name, tier, size, least in asks]
    return plan_window(asked, RICH | (credit or {}), room, divide, b"salt")


def test_while_there_is_room_everybody_gets_what_it_asks_for():
    asks = (b"a", "mutual", 3 * MIB, MIB), (b"b", "open", 2 * MIB, MIB)
    assert plan(*asks) == WindowPlan({b"a": 3 * MIB, b"b": 2 * MIB}, {})
    assert plan() == WindowPlan({}, {})


def test_each_refusal_has_its_reason():
    asks = (
        (b"a", "mutual", 4 * MIB, 2 * MIB),
        (b"b", "mutual", ALL, ALL),
        (b"c", "mutual", 2 * MIB, 2 * MIB),
    )
    found = plan(*asks, credit={b"a": 19})
    assert found == WindowPlan({b"c": 2 * MIB}, {b"a": "credit", b"b": "share"})
    full = plan((b"c", "open", 2 * MIB, 2 * MIB), free=0, reserved={b"b": ALL})
    assert full == WindowPlan({}, {b"c": "share"})
    two = plan(*((name, "mutual", 3 * MIB, 3 * MIB) for name in (b"a", b"b")), free=4 * MIB)
    assert list(two.refused.values()) == ["capacity"]
    assert list(two.grants.values()) == [3 * MIB]


def test_credit_cuts_a_request_before_it_refuses_it():
    found = plan((b"a", "mutual", 4 * MIB, 2 * MIB), credit={b"a": 20})
    assert found.refused == {}
    assert 2 * MIB <= found.grants[b"a"] < 3 * MIB


def test_strangers_divide_their_part_among_them_and_leave_the_rest_to_others():
    strangers = [(name, "open", 64 * MIB, MIB) for name in (b"a", b"b")]
    found = plan(*strangers, (b"c", "mutual", 64 * MIB, MIB), free=128 * MIB)
    assert found.refused == {}
    assert found.grants[b"a"] + found.grants[b"b"] <= 64 * MIB
    assert found.grants[b"c"] == 64 * MIB
