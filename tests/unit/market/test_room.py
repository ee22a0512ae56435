"""What of a request is granted; the laws of shares are in tests/properties."""

from xsc.base.limits import GIB
from xsc.market.room import FreeRoom, grant, left
from xsc.terms.lease import LeaseRequest

ALL = 1024 * GIB


def ask(size, least=GIB, *, tier="mutual", free=ALL, credit=10**9):
    room = FreeRoom(free, {}, frozenset())
    request = LeaseRequest(
        lease_id=b"l" * 32,
        provider=b"p" * 32,
        customer=b"a" * 32,
        kind="storage",
        quote=b"",
        quantity=size,
        quantity_min=least,
        price=10,
        start_ms=0,
        end_ms=1,
    )
    return grant(request, credit, free=free, left=left(room, request.customer, tier))


def test_while_there_is_room_a_request_gets_what_it_asks_for():
    assert ask(3 * GIB) == 3 * GIB
    assert ask(3 * GIB, tier="open") == 3 * GIB


def test_each_refusal_has_its_reason():
    assert ask(4 * GIB, 2 * GIB, credit=19) == "credit"
    assert ask(ALL, ALL) == "share"
    assert ask(2 * GIB, 2 * GIB, free=GIB) == "capacity"


def test_credit_and_share_cut_a_request_before_they_refuse_it():
    assert 2 * GIB <= ask(4 * GIB, 2 * GIB, credit=20) < 3 * GIB
    assert ask(ALL) == ALL // 2
    assert ask(ALL, tier="open") == ALL // 8
