"""How many connections there are, of whom, and who goes for a newcomer."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from tests.settle import until
from xsc.base.limits import SERVICE_CONNECTIONS_MAX
from xsc.net.transport.bounds import Gate
from xsc.net.transport.http import CONNECTIONS_AN_ADDRESS_MAX, CONNECTIONS_MAX
from xsc.node.api.deployments import SERVICE_CONNECTIONS_AN_ADDRESS_MAX


class Wire(asyncio.Transport):
    """A connection that only knows where it comes from, and whether it is there."""

    def __init__(self, source: str) -> None:
        super().__init__({"peername": (source, 1)})
        self.source = source
        self.gone = False

    def abort(self) -> None:
        self.gone = True

    def is_closing(self) -> bool:
        return self.gone


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["enter", "busy", "quiet", "leave"]),
        st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]),
        st.integers(0, 9),
    ),
    max_size=120,
)


@given(MOVES)
async def test_whatever_comes_there_are_never_too_many_and_no_busy_one_goes(moves):
    gate, wires, busy = Gate(most=6, share=3, idle_ms=60_000), [], set()
    for move, source, number in moves:
        if move == "enter":
            before = [wire for wire in wires if not wire.gone]
            wire = Wire(source)
            wires.append(wire)
            # Whoever brings nothing may go; so it is let in unless all that count are busy.
            mine = [other for other in before if other.source == source]
            rivals = mine if len(mine) >= 3 else before if len(before) >= 6 else []
            expected = not rivals or any(other not in busy for other in rivals)
            assert gate.enter(wire) == expected == (not wire.gone)
            evicted = [other for other in before if other.gone]
            assert len(evicted) == (1 if rivals and expected else 0)
            if evicted:
                assert evicted[0] in rivals
        elif here := [wire for wire in wires if not wire.gone]:
            wire = here[number % len(here)]
            if move == "leave":
                wire.gone = True
                gate.leave(wire)
                busy.discard(wire)
            else:
                getattr(gate, move)(wire)
                busy.add(wire) if move == "busy" else busy.discard(wire)
        alive = [wire for wire in wires if not wire.gone]
        assert len(gate) == len(alive) <= 6
        assert all(sum(it.source == wire.source for it in alive) <= 3 for wire in alive)
        assert not any(wire.gone for wire in busy)
    gate.close()


async def test_the_oldest_idle_one_goes_first():
    gate = Gate(most=3, share=3, idle_ms=60_000)
    first, second, third = wires = [Wire("192.0.2.1") for _ in range(3)]
    assert all(map(gate.enter, wires))
    with gate.serving(first):
        pass
    assert gate.enter(Wire("192.0.2.2"))
    assert [wire.gone for wire in (first, second, third)] == [False, True, False]
    gate.close()


async def test_what_is_idle_for_too_long_is_cut_off_and_what_is_served_is_not():
    gate = Gate(most=3, share=3, idle_ms=20)
    idle, served = Wire("192.0.2.1"), Wire("192.0.2.1")
    gate.enter(idle)
    gate.enter(served)
    gate.busy(served)
    await until(lambda: idle.gone)
    assert (len(gate), served.gone) == (1, False)
    gate.close()


async def test_one_source_full_of_busy_connections_leaves_room_for_others():
    for most, share in (
        (CONNECTIONS_MAX, CONNECTIONS_AN_ADDRESS_MAX),
        (SERVICE_CONNECTIONS_MAX, SERVICE_CONNECTIONS_AN_ADDRESS_MAX),
    ):
        gate = Gate(most=most, share=share, idle_ms=60_000)
        taken = 0
        for _ in range(2 * most):
            wire = Wire("2001:db8::%x" % (taken + 1))
            if gate.enter(wire):
                gate.busy(wire)
                taken += 1
        assert taken == share
        assert gate.enter(Wire("2001:db8:1::1"))
        gate.close()
