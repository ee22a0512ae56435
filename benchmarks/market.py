"""What a recompute takes: the rules of one node that knows 10 000 others, without any of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Final

from xsc.allocation.clearing import clear_slot
from xsc.allocation.clearing_record import Offer, Published, admitted, bids_of, terms_of, wanted
from xsc.allocation.matching import Matches, Peer
from xsc.allocation.recognition import tier_of
from xsc.terms.clearing import SpaceValue
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot, SlotKind, pack_windows

PARTICIPANTS: Final = 10_000
SLOTS_EACH: Final = 10
SITES: Final = 20
KINDS: Final[tuple[SlotKind, ...]] = ("storage", "egress", "compute")
RECOGNISED: Final = 20
NOW_MS: Final = 1_700_000_000_000
HOUR_MS: Final = 3_600_000
OWN: Final = bytes(32)
NO_RECORD: Final = SpaceValue(record=bytes(600), value=b"")


def _commitment(random: Random) -> Commitment:
    """Return half of SLOTS_EACH offers and half of them needs, at one site."""
    site = f"site-{random.randrange(SITES)}"
    half = SLOTS_EACH // 2
    slots, needs = [], []
    for number in range(half):
        kind = KINDS[number % 3]
        start = NOW_MS + random.randrange(48) * HOUR_MS
        windows = pack_windows([(start, start + 8 * HOUR_MS)])
        slots.append(
            AvailabilitySlot(
                slot_id=bytes([0, number]) * 8,
                kind=kind,
                quantity=random.randint(1_000, 100_000),
                windows_packed=windows,
                location=site,
                valid_until_ms=NOW_MS + 80 * HOUR_MS,
                price_mutual=2,
                price_one_way=4,
                reserve=8,
            )
        )
        needs.append(
            NeedSlot(
                slot_id=bytes([1, number]) * 8,
                kind=kind,
                quantity=random.randint(100, 10_000),
                quantity_min=random.choice([1, 100]),
                windows_packed=windows,
                location=random.choice(["", site, site]),
                valid_until_ms=NOW_MS + 80 * HOUR_MS,
                price_max=random.randint(1, 20),
            )
        )
    return Commitment(slots=tuple(slots), needs=tuple(needs))


@dataclass
class Known:
    """What one node knows: itself, the others, and what matches."""

    own: Published
    others: dict[bytes, Published]
    matches: Matches

    def peer(self, node: bytes) -> Peer:
        other = self.others[node]
        mine, theirs = self.own.weights.get(node, 0), other.weights.get(OWN, 0)
        return Peer(other.commitment, tier_of(mine, theirs), tier_of(theirs, mine))

    def recompute(self, slot: AvailabilitySlot) -> int:
        """Clear all windows of one own slot and return how many needs got something."""
        nodes = {node for node, _ in self.matches.needs_of(slot.slot_id)}
        served = 0
        for window in slot.windows:
            offer = Offer(slot, window, NOW_MS, bytes(32), slot.quantity)
            taken = admitted(self.own, [self.others[node] for node in nodes], offer)
            eligible = {other.node: wanted(offer, self.own, other) for other in taken}
            cleared = clear_slot(terms_of(offer), bids_of(self.own, taken, eligible), offer.salt)
            served += len(cleared.lines)
        return served

    def change(self, node: bytes, commitment: Commitment) -> int:
        """Take a changed commitment of another node and recompute what it touches."""
        before = self.others[node]
        self.others[node] = Published(node, commitment, before.commitment_value, before.weights)
        touched = self.matches.change(node, self.peer(node))
        mine = [slot for slot in self.own.commitment.slots if slot.slot_id in touched]
        for slot in mine:
            self.recompute(slot)
        return len(mine)


def _known(random: Random) -> Known:
    nodes = [number.to_bytes(32, "big") for number in range(1, PARTICIPANTS)]
    friends = random.sample(nodes, RECOGNISED)
    own = Published(OWN, _commitment(random), NO_RECORD, dict.fromkeys(friends, 30_000))
    others = {
        node: Published(
            node, _commitment(random), NO_RECORD, {OWN: 30_000} if random.random() < 0.5 else {}
        )
        for node in nodes
    }
    return Known(own, others, Matches(OWN))


def _ms(work: Callable[[], object]) -> float:
    """Return the processor time of what is computation alone."""
    begun = time.process_time()
    work()
    return 1000 * (time.process_time() - begun)


def run(quick: bool) -> None:
    print(f"\nmarket: the rules of a node that knows {PARTICIPANTS * SLOTS_EACH} slots and needs")
    random = Random(13)
    known = _known(random)

    def full() -> None:
        known.matches = Matches(OWN)
        known.matches.change_own(known.own.commitment)
        for node in known.others:
            known.matches.change(node, known.peer(node))
        for slot in known.own.commitment.slots:
            known.recompute(slot)

    whole = [_ms(full) for _ in range(1 if quick else 3)]
    slots = known.own.commitment.slots
    matched = [len(known.matches.needs_of(slot.slot_id)) for slot in slots]
    own = [_ms(lambda slot=slot: known.recompute(slot)) for slot in slots for _ in range(5)]  # type: ignore[misc]
    theirs: list[float] = []
    while len(theirs) < 25:
        node = random.choice(list(known.others))
        old = known.others[node].commitment
        need = old.needs[0]
        changed = Commitment(
            slots=old.slots,
            needs=(need.model_copy(update={"quantity": need.quantity + 1}), *old.needs[1:]),
        )
        if any((node, need.slot_id) in known.matches.needs_of(slot.slot_id) for slot in slots):
            theirs.append(_ms(lambda node=node, new=changed: known.change(node, new)))  # type: ignore[misc]
    print(f"  needs that match an own slot                 {min(matched)} to {max(matched)}")
    print(f"  everything from nothing                      {median(whole):7.0f} ms")
    print(f"  one slot: who takes part, and its clearing   {median(own):7.1f} ms")
    print(f"  one need of a peer changed, and what it touches {median(theirs):4.1f} ms")
