"""Which restarts a ledger lacks."""

from tests.unit.ledger.circle import NETWORK
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.ledger.incarnation import Noted, Restart, lacks_incarnation, plan

KEY = KeyPair(b"\1" * 32)


def incarnation(now_ms, **noted):
    return sign(plan(Noted(**noted), highest_seq=0, now_ms=now_ms), KEY, NETWORK)


def test_an_older_or_the_same_incarnation_is_not_lacked():
    own = Restart(incarnation(2 * 10**12), Noted())
    assert not lacks_incarnation(own, None)
    assert not lacks_incarnation(None, None)
    assert not lacks_incarnation(own, own.incarnation)
    assert not lacks_incarnation(own, incarnation(2 * 10**12 - 1))


def test_a_newer_one_or_another_of_the_same_number_is():
    own, newer = Restart(incarnation(2 * 10**12), Noted()), incarnation(2 * 10**12 + 1)
    assert lacks_incarnation(own, newer)
    assert lacks_incarnation(None, newer)
    first, earliest = (
        sign(newer.record.model_copy(update={"first_seq": number}), KEY, NETWORK)
        for number in (0, 1)
    )
    assert not lacks_incarnation(None, first), "a book that never restarted begins there"
    assert lacks_incarnation(None, earliest)
    other = own.incarnation.record.model_copy(update={"created_ms": 1})
    assert lacks_incarnation(own, sign(other, KEY, NETWORK))
