"""Clearing records: they are recomputed by two implementations, and no changed byte passes."""

from __future__ import annotations

from random import Random

import pytest

from tests.independent.clearing import joined, recompute
from tests.strategies import vectors
from tests.unit.allocation.clearings import (
    HOUR,
    NOW_MS,
    cleared,
    key,
    named,
    need,
    proof,
    published,
    random_clearing,
    said_of,
    slot,
    space_value,
    state_of,
    taking,
)
from xsc.allocation.clearing_record import (
    STRANGER_BYTES_MAX,
    check_clearing,
    read_published,
    wanted,
)
from xsc.allocation.published import Published
from xsc.allocation.recognition import value_of
from xsc.base.errors import ProofInvalid, RecordInvalid, XscError
from xsc.base.limits import (
    ALLOCATIONS_MAX,
    CLEARING_BYTES_MAX,
    PEERS_MAX,
    SLOTS_MAX,
    SPACE_EVIDENCE_BYTES_MAX,
)
from xsc.identity.envelope import open_signed, sign
from xsc.node.offline.verify import verify_file
from xsc.space.limits import VALUE_BYTES_MAX
from xsc.space.paths import UserSpacePaths
from xsc.space.record import SpaceRecord
from xsc.terms.clearing import (
    ClearingProof,
    ClearingRecord,
    SlotAllocationRecord,
    SlotDenominators,
    SpaceValue,
    TierLine,
    TwoTierAllocationState,
)
from xsc.terms.slot import Commitment

GOLDEN = vectors("clearing")
PROVIDER, MUTUAL, ONE_WAY, STRANGER = (key(number) for number in (1, 2, 3, 4))


@pytest.fixture
def world(network):
    """A provider, a mutual peer, one whom it recognises, a stranger; all want 40 of 100."""
    own = published(
        PROVIDER,
        network,
        Commitment(slots=(slot(),)),
        {MUTUAL.node_id: 200_000, ONE_WAY.node_id: 100_000},
    )
    others = [
        published(
            MUTUAL, network, Commitment(needs=(need(1), need(2))), {PROVIDER.node_id: 50_000}
        ),
        published(ONE_WAY, network, Commitment(needs=(need(1),)), {}),
        published(STRANGER, network, Commitment(needs=(need(1),)), {}),
    ]
    return own, others


def test_a_clearing_is_recomputed_from_its_record(world, network):
    own, others = world
    signed = cleared(PROVIDER, own, others, network)
    values = named(own, *others)
    clearing = check_clearing(signed.raw, values)
    assert clearing.record == signed.record
    first, second = need(1).slot_id, need(2).slot_id
    assert clearing.clear().lines == {
        (MUTUAL.node_id, first): ("mutual", 40, 2),
        (MUTUAL.node_id, second): ("mutual", 40, 2),
        (ONE_WAY.node_id, first): ("one_way", 20, 4),
    }
    assert "divided" in verify_file(proof(signed, values, STRANGER)), "whoever packs it"
    with pytest.raises(ProofInvalid, match="had published is missing"):
        check_clearing(signed.raw, values[1:])


@pytest.mark.parametrize("case", GOLDEN["records"], ids=lambda case: case["name"])
def test_golden_clearings(case):
    """The outcomes were computed by `tests/independent`; they never change for one version."""
    raw = bytes.fromhex(case["envelope"])
    packed = open_signed(raw, ClearingProof, network=None, size_max=len(raw))
    clearing = check_clearing(packed.record.clearing, packed.record.named)
    assert clearing.record.id.hex() == case["id"]
    cleared = clearing.clear()
    assert [
        [customer.hex(), need_id.hex(), *granted]
        for (customer, need_id), granted in sorted(cleared.lines.items())
    ] == case["lines"]
    assert [[t.capacity, t.given, t.denominator] for t in cleared.tiers] == case["stages"]
    again = sign(clearing.record, key(1), packed.network)
    assert again.raw == packed.record.clearing
    assert proof(again, packed.record.named, key(1)) == raw


def test_a_second_implementation_recomputes_every_clearing(network):
    random = Random(13)
    stages = set()
    for _ in range(120):
        signed, values = random_clearing(random, network)
        lines, tiers = recompute(proof(signed, values, PROVIDER))
        clearing = check_clearing(signed.raw, values)
        assert clearing.record.id == signed.id
        cleared = clearing.clear()
        assert joined(lines) == [(*pin, *of) for pin, of in sorted(cleared.lines.items())]
        assert tiers == [(t.capacity, t.given, t.denominator) for t in cleared.tiers]
        stages |= {(t.tier, signed.record.slot.rule) for t in cleared.tiers if t.given}
    assert len(stages) == 6, "every stage under both rules"


def test_every_changed_byte_is_found(world, network):
    own, others = world
    signed = cleared(PROVIDER, own, others[:1], network)
    raw = proof(signed, named(own, *others[:1]), PROVIDER)
    for place in range(len(raw)):
        flipped = raw[:place] + bytes((raw[place] ^ 1,)) + raw[place + 1 :]
        with pytest.raises(XscError) as found:
            verify_file(flipped)
        assert isinstance(found.value, ProofInvalid)


def changed(signed, network, author=PROVIDER, **changes):
    """What a provider that lies signs."""
    record = signed.record.from_value({**signed.record.to_value(), **changes})
    return sign(record, author, network)


def test_a_provider_that_says_what_does_not_follow_is_found(world, network):
    own, others = world
    signed = cleared(PROVIDER, own, others, network)
    parts = [[*each] for each in signed.record.participants]
    eligible = [[*each] for each in signed.record.eligible]
    index = next(i for i, each in enumerate(parts) if each[0] == STRANGER.node_id)
    other = space_value(MUTUAL, network, UserSpacePaths.COMMITMENT, others[1].commitment.to_bytes())
    values = [*named(own, *others), other]

    def told(units, need_id):
        return changed(signed, network, eligible=[[eligible[0][0], need_id, units], *eligible[1:]])

    def naming(name):
        stranger = [STRANGER.node_id, name, None]
        told = [stranger if number == index else each for number, each in enumerate(parts)]
        return changed(signed, network, participants=told)

    lies = [
        (told(41, eligible[0][1]), "does not match"),
        (told(1, bytes(16)), "does not match"),
        (changed(signed, network, participants=parts[1:]), "does not match"),
        (naming(other.name), "by another|author|sign"),
        (changed(signed, network, author=MUTUAL), "not signed by its provider"),
        (changed(signed, network, slot=slot(price_mutual=1).to_value()), "does not publish"),
        (changed(signed, network, at_ms=NOW_MS - HOUR), "in the future"),
    ]
    for lie, why in lies:
        with pytest.raises(ProofInvalid, match=why):
            verify_file(proof(lie, values, PROVIDER))


def test_a_provider_that_signs_another_outcome_is_found(world, network):
    """The outcome is in the provider's state, which names the record."""
    own, others = world
    signed = cleared(PROVIDER, own, others, network)
    values = named(own, *others)

    def verified(said, by=PROVIDER, of=signed):
        return verify_file(proof(of, [*values, said_of(said, by, network)], STRANGER))

    def other(**changes):
        return state_of(signed, own, others, lambda line: line.model_copy(update=changes))

    honest = state_of(signed, own, others)
    assert "as the rule says" in verified(honest)
    (divided,) = honest.slot_denominators
    first, *tiers = divided.tiers
    raised = (first.model_copy(update={"denominator": 1}), *tiers)
    lies = [
        (other(quantity=19), "by the rule"),
        (other(price=1), "by the rule"),
        (other(tier="open"), "by the rule"),
        (state_of(signed, own, others, tiers=raised), "stage"),
        (state_of(signed, own, others, slot=bytes([7]) * 16), "stage"),
    ]
    for lie, why in lies:
        with pytest.raises(ProofInvalid, match=why):
            verified(lie)
        assert verified(lie, by=MUTUAL), "another's state proves nothing of this provider"
        assert verified(state_of(signed, own, others, clearing=bytes(32))), "of another clearing"
    for change in ({"capacity": 99}, {"provider": (*signed.record.provider[:2], None)}):
        false = changed(signed, network, **change)
        (known,) = honest.slot_denominators
        names_it = known.model_copy(update={"clearing": false.id})
        lie = TwoTierAllocationState(slot_denominators=(names_it,))
        with pytest.raises(ProofInvalid, match="by the rule"):
            verified(lie, of=false)


def test_evidence_is_of_its_node_path_and_network(network):
    said = Commitment(needs=(need(),)).to_bytes()
    path = UserSpacePaths.COMMITMENT
    right = space_value(MUTUAL, network, path, said)
    assert read_published((MUTUAL.node_id, right, None), network=network, at_ms=NOW_MS)
    wrong = [
        space_value(MUTUAL, bytes(32), path, said),
        space_value(ONE_WAY, network, path, said),
        space_value(MUTUAL, network, UserSpacePaths.RECOGNITION, said),
        space_value(MUTUAL, network, path, b"none"),
        SpaceValue(record=right.record, value=Commitment().to_bytes()),
    ]
    for evidence in wrong:
        with pytest.raises(XscError):
            read_published((MUTUAL.node_id, evidence, None), network=network, at_ms=NOW_MS)
    value = value_of({MUTUAL.node_id: 1})
    itself = space_value(MUTUAL, network, UserSpacePaths.RECOGNITION, value)
    with pytest.raises(RecordInvalid, match="recognise itself"):
        read_published((MUTUAL.node_id, right, itself), network=network, at_ms=NOW_MS)


def test_caps_expiry_and_filters_bound_what_is_wanted(network):
    own = published(PROVIDER, network, Commitment(slots=(slot(),)), {})
    cases = [
        (need(), {need().slot_id: 40}),
        (need(caps=((PROVIDER.node_id, 7),)), {need().slot_id: 7}),
        (need(caps=((PROVIDER.node_id, 0),)), {}),
        (need(caps=((MUTUAL.node_id, 7),)), {need().slot_id: 40}),
        (need(valid_until_ms=NOW_MS), {}),
        (need(filters=(("sort", "any"),)), {}),
        (need(kind="storage"), {}),
    ]
    for one, expected in cases:
        other = published(MUTUAL, network, Commitment(needs=(one,)), {})
        assert wanted(slot(), NOW_MS, own, other) == expected
    other = published(MUTUAL, network, Commitment(needs=(need(),)), {})
    assert wanted(slot(), slot().windows[0][1], own, other) == {}


def test_a_record_has_so_many_lines_at_most(world, network):
    own, others = world
    value = cleared(PROVIDER, own, others, network).record.to_value()
    many = [
        [(number // 64).to_bytes(32, "big"), (number % 64).to_bytes(16, "big"), 1]
        for number in range(ALLOCATIONS_MAX)
    ]
    ClearingRecord.from_value({**value, "eligible": many})
    with pytest.raises(RecordInvalid, match="eligible"):
        ClearingRecord.from_value({**value, "eligible": [*many, [b"\xff" * 32, bytes(16), 1]]})


def crowd(own, count, size=1_000):
    """Customers by number, without signatures: only their sizes and weights count here."""
    return [
        Published(
            number.to_bytes(32, "big"),
            Commitment(needs=(need(),)),
            SpaceValue(record=bytes(size), value=b""),
            {own.node: 50_000},
        )
        for number in range(1, count + 1)
    ]


def test_beyond_the_bounds_the_most_recognised_take_part_and_strangers_by_lot(network):
    own = published(PROVIDER, network, Commitment(slots=(slot(),)), {})
    plain = crowd(own, 100)
    friends = {each.node: 10_000 + index for index, each in enumerate(plain[-20:])}
    own = published(PROVIDER, network, Commitment(slots=(slot(),)), friends)
    room = 60 * plain[0].size_bytes
    taken = taking(own, plain, slot(), room)
    assert 50 < len(taken) < 60
    assert [*taken][:20] == sorted(friends, key=lambda node: -friends[node])
    assert taking(own, plain, slot(slot_id=bytes([1]) * 16), room).keys() != taken.keys()
    assert [*taking(own, plain[::-1], slot(), room)] == [*taken]


def test_large_commitments_do_not_take_the_room_of_others(network):
    own = published(PROVIDER, network, Commitment(slots=(slot(),)), {})
    greedy = crowd(own, 30, SPACE_EVIDENCE_BYTES_MAX)
    assert all(each.size_bytes > STRANGER_BYTES_MAX for each in greedy)
    assert taking(own, greedy, slot()) == {}
    friends = {each.node: 20_000 for each in greedy}
    own = published(PROVIDER, network, Commitment(slots=(slot(),)), friends)
    few = [
        Published(each.node, each.commitment, SpaceValue(record=bytes(24_000), value=bytes(60_000)))
        for each in greedy
    ]
    taken = taking(own, few, slot(), 2**20)
    assert 0 < len(taken) < 30
    assert sum(each.size_bytes for each in few if each.node in taken) < 2**20


def test_the_largest_record_fits_a_value_of_the_space(network):
    assert CLEARING_BYTES_MAX <= VALUE_BYTES_MAX
    assert SPACE_EVIDENCE_BYTES_MAX == SpaceRecord.ENVELOPE_BYTES_MAX
    many = tuple(need(number, quantity=1, price_max=2**40) for number in range(1, 65))
    whole = slot(quantity=2**33 - 1, price_mutual=0, price_one_way=0, reserve=1)
    keys = [key(number) for number in range(2, 2 + ALLOCATIONS_MAX // 64 + 1)]
    friends = {each.node_id: 10_000 for each in keys}
    own = published(PROVIDER, network, Commitment(slots=(whole,)), friends)
    said = Commitment(needs=many)
    others = [published(each, network, said, {PROVIDER.node_id: 10_000}) for each in keys]
    signed = cleared(PROVIDER, own, others, network, whole.quantity)
    assert len(signed.record.left_out) == 1, "the bound is reached"
    assert len(signed.record.eligible) == ALLOCATIONS_MAX
    others_bytes = PEERS_MAX * (200 + 34)
    assert CLEARING_BYTES_MAX // 8 < len(signed.raw) <= CLEARING_BYTES_MAX - others_bytes
    check_clearing(signed.raw, named(own, *others))


def a_state(slots, allocations, peers):
    lines = tuple(
        TierLine(tier=tier, capacity=2**60, given=2**58, denominator=2**62)
        for tier in ("mutual", "one_way", "open")
    )
    nodes = [number.to_bytes(32, "big") for number in range(peers)]

    def granted(slot_number):
        found = [
            SlotAllocationRecord(
                customer=nodes[number % peers],
                need=number.to_bytes(16, "big"),
                tier="one_way",
                quantity=2**33 - 1,
                price=2**40,
                granted_ms=2**41,
            )
            for number in range(slot_number, allocations, slots)
        ]
        return tuple(sorted(found, key=lambda line: line.pin))

    return TwoTierAllocationState(
        slot_denominators=tuple(
            SlotDenominators(
                slot=number.to_bytes(16, "big"),
                window=(2**50, 2**50 + 1),
                kind="compute",
                rule="weighted-uniform",
                clearing=bytes(32),
                tiers=lines,
                allocations=granted(number),
            )
            for number in range(slots)
        ),
        pauses=tuple((bytes(16), node, 99, 2**41) for node in nodes),
        mr_values=tuple((node, 10_000) for node in nodes),
        damping_history=((5, NOW_MS),),
        converged=True,
        convergence_history=((1_000, NOW_MS),),
    )


def test_the_largest_state_fits_a_value_of_the_space():
    state = a_state(SLOTS_MAX, ALLOCATIONS_MAX, PEERS_MAX)
    raw = state.to_bytes()
    assert len(raw) <= VALUE_BYTES_MAX
    assert TwoTierAllocationState.from_bytes(raw, size_max=VALUE_BYTES_MAX) == state


def test_a_state_that_does_not_add_up_is_refused():
    value = a_state(2, 3, 2).to_value()
    slots = value["slot_denominators"]
    slot, lines = slots[0], slots[0]["allocations"]
    nothing = [{**tier, "given": 0} for tier in slot["tiers"]]
    small = [{**tier, "capacity": 0} for tier in slot["tiers"]]
    with pytest.raises(RecordInvalid, match="do not rise"):
        TwoTierAllocationState.from_value(
            {**value, "slot_denominators": [{**slot, "allocations": [*lines, lines[0]]}, slots[1]]}
        )
    for name, wrong in (
        ("slot_denominators", [{**slot, "tiers": nothing}, slots[1]]),
        ("slot_denominators", [{**slot, "tiers": small}, slots[1]]),
        ("slot_denominators", [{**slot, "tiers": slot["tiers"][:2]}, slots[1]]),
        ("slot_denominators", [{**slot, "allocations": lines[::-1]}, slots[1]]),
        ("slot_denominators", slots[::-1]),
        ("mr_values", value["mr_values"][::-1]),
        ("pauses", value["pauses"][::-1]),
    ):
        with pytest.raises(RecordInvalid):
            TwoTierAllocationState.from_value({**value, name: wrong})


def test_totals_are_by_customer_and_kind_as_steps_of_both_do_not_add_up():
    state = a_state(2, 2, 1)
    first, second = state.slot_denominators
    (line,), (customer,) = first.allocations, {each.customer for each in second.allocations}
    assert state.recipient_totals == {(customer, "compute"): 2 * line.quantity}
    both = first, second.model_copy(update={"kind": "storage"})
    totals = state.model_copy(update={"slot_denominators": both}).recipient_totals
    assert totals == {(customer, kind): line.quantity for kind in ("compute", "storage")}


def test_a_record_that_breaks_its_form_is_refused(world, network):
    own, others = world
    value = cleared(PROVIDER, own, others, network).record.to_value()
    for name, wrong in (
        ("at_ms", slot().windows[0][1]),
        ("capacity", 101),
        ("participants", value["participants"][::-1]),
        ("eligible", value["eligible"][::-1]),
        ("left_out", [bytes(32), bytes(32)]),
    ):
        with pytest.raises(RecordInvalid):
            ClearingRecord.from_value({**value, name: wrong})
