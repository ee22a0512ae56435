"""What a peer can show of another's chain, and what it cannot do to who recovers by it."""

import pytest

from tests.unit.ledger.circle import Answer, Circle, collect
from xsc.base.encoding import decode
from xsc.ledger.exchange import HISTORY, LEDGER_HISTORY_ITEMS_MAX
from xsc.ledger.incarnation import Noted


def shows(circle, items_from):
    """Have histories answered by `items_from(start)`, and always more to come; return the asks."""
    deliver, asked = circle.deliver, []

    async def wrong(caller, peer, method, raw):
        if method != HISTORY:
            return await deliver(caller, peer, method, raw)
        asked.append(decode(raw)["start"])
        assert len(asked) < 100, "it is asked for ever"
        return Answer({"v": 1, "items": items_from(asked[-1]), "more": True})

    circle.deliver = wrong
    return asked


@pytest.mark.parametrize("count", [1, LEDGER_HISTORY_ITEMS_MAX])
async def test_a_peer_that_shows_nonsense_without_end_is_left_out_of_a_recovery(count):
    circle = Circle()
    a, b = circle.members
    await collect(a, b, 300)
    asked = shows(circle, lambda start: [{"seq": start + n} for n in range(count)])
    assert (await a.ledger.restart([b.id], Noted())).silent == (b.id,)
    assert len(asked) == LEDGER_HISTORY_ITEMS_MAX // count + 1
    assert a.ledger.balance(b.id) == 300


async def test_a_peer_that_shows_one_entry_in_ever_other_places_is_left_out():
    circle = Circle()
    a, b = circle.members
    await collect(a, b, 300)
    header, _ = await b.ledger.handlers()[HISTORY](a.id, {"v": 1, "start": 0}, ())
    (item,) = header["items"]
    shows(circle, lambda start: [item | {"seq": start}])
    assert (await a.ledger.restart([b.id], Noted())).silent == (b.id,)
