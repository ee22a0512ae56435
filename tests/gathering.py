"""Makes what a round and a clearing follow from, as tests say it: by mappings and numbers."""

from dataclasses import dataclass
from functools import lru_cache

from xsc.allocation.clearing import clear
from xsc.allocation.granting import Gathered, Inputs, rows_of
from xsc.terms.slot import AvailabilitySlot


@lru_cache(maxsize=64)
def slot_at(price_mutual, price_one_way, reserve, rule):
    """Return a slot of those prices."""
    return AvailabilitySlot(
        slot_id=bytes(16),
        kind="compute",
        quantity=1,
        windows=((0, 1),),
        valid_until_ms=1,
        price_mutual=price_mutual,
        price_one_way=price_one_way,
        reserve=reserve,
        rule=rule,
    )


@dataclass(frozen=True)
class Terms:
    """What is divided, at which prices and by which rule."""

    capacity: int
    price_mutual: int
    price_one_way: int
    reserve: int
    rule: str = "weighted-uniform"

    @property
    def slot(self):
        return slot_at(self.price_mutual, self.price_one_way, self.reserve, self.rule)

    def clear(self, bids, salt):
        """Call the rule."""
        return clear(self.slot, self.capacity, bids, salt)


def given_of(cleared):
    """Return the units of each need that got any."""
    return {pin: granted.quantity for pin, granted in cleared.lines.items()}


def inputs_of(
    now_ms,
    own,
    others,
    *,
    theirs=None,
    drawn=None,
    pinned=None,
    credit=None,
    free=None,
    is_pending=False,
):
    takers = [each for _, each in sorted(others.items())]
    gathered = Gathered(
        now_ms=now_ms,
        own=own.said,
        others=tuple(each.said for each in takers),
        theirs=tuple(sorted((theirs or {}).items())),
        drawn=rows_of(drawn or {}),
        pinned=rows_of(pinned or {}),
        credit=tuple(sorted((credit or {}).items())),
        free=dict(free or {}),
        is_pending=is_pending,
    )
    return Inputs(gathered, own, takers)


def lines_in(state):
    """Return all that a state grants."""
    return [line for slot in state.slot_denominators for line in slot.allocations]
