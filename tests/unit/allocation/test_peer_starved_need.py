"""A provider whose offer grows by a step at a time keeps a need from taking any lease."""

from tests.unit.allocation.test_allocating import (
    END_MS,
    NOW_MS,
    Allocating,
    granting_state,
)
from xsc.base.limits import OFFER_MS
from xsc.identity.keys import KeyPair
from xsc.space.paths import UserSpacePaths
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot

GROWS_MS = 200
"""How often the attacker publishes."""
HEARS_ROUNDS = 2
"""An honest provider's state answers what its customer published so many rounds before."""
NEED = NeedSlot(
    slot_id=b"n" * 16, kind="storage", quantity=1_000, valid_until_ms=END_MS, price_max=40
)
SLOT = AvailabilitySlot(
    slot_id=b"s" * 16,
    kind="storage",
    quantity=1_000,
    windows=((NOW_MS, END_MS),),
    valid_until_ms=END_MS,
    price_mutual=8,
    price_one_way=9,
    reserve=10,
)


async def test_an_honest_offer_is_taken_before_it_lapses_whatever_another_offers(
    alice, bob, network
):
    """`bob` is honest and grants all that the need accepts of it; carol grows its offer."""
    carol = KeyPair(b"\xc0" * 32)
    node = Allocating(alice, network, bob, carol)
    await node.space.put(UserSpacePaths.COMMITMENT, Commitment(needs=(NEED,)).to_bytes())
    for peer in (bob, carol):
        await node.says(peer, UserSpacePaths.COMMITMENT, Commitment(slots=(SLOT,)).to_bytes())

    async def grants(peer, quantity):
        state = granting_state(SLOT, alice.node_id, NEED, quantity)
        await node.says(peer, UserSpacePaths.ALLOCATION_STATE, state.to_bytes())

    heard = [NEED] * HEARS_ROUNDS
    said = 0
    for number in range(OFFER_MS // GROWS_MS):
        cap = heard[-HEARS_ROUNDS].cap(bob.node_id)
        if cap != said:
            said = cap
            await grants(bob, cap)
        await grants(carol, 1 + number)
        for _ in range(2):  # What it publishes itself has it look again.
            await node.done(node.allocator.allocate())
        heard.append(node.commitments.own.needs[0])
        if any(each.provider == bob.node_id for each in node.allocator.offered()):
            return
        node.pass_ms(GROWS_MS)
    raise AssertionError("the honest offer has lapsed, and its customer is paused there")
