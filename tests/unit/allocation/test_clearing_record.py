"""Clearing records: they are recomputed by two implementations, and no changed byte passes."""

from __future__ import annotations

from random import Random

import pytest

from tests.independent.clearing import recompute
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
    slot,
    space_value,
    taking,
)
from xsc.allocation.clearing_record import (
    Clearing,
    Published,
    check_clearing,
    read_published,
    wanted,
)
from xsc.allocation.recognition import value_of
from xsc.base.errors import ProofInvalid, RecordInvalid, XscError
from xsc.base.limits import (
    ALLOCATIONS_MAX,
    CLEARING_BYTES_MAX,
    PEERS_MAX,
    SLOTS_MAX,
    SPACE_EVIDENCE_BYTES_MAX,
    STRANGER_BYTES_MAX,
)
from xsc.identity.envelope import open_signed, sign
from xsc.node.offline.verify import verify_file
from xsc.space.limits import VALUE_BYTES_MAX
from xsc.space.paths import UserSpacePaths
from xsc.space.record import RECORD_ENVELOPE_BYTES_MAX
from xsc.terms.clearing import (
    ClearingProof,
    ClearingRecord,
    SlotAllocationRecord,
    SlotDenominators,
    SpaceValue,
    TierLine,
    TwoTierAllocationState,
    from_ratio,
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
    assert check_clearing(signed.raw, values).signed == signed
    lines = {each.customer: each.lines for each in signed.record.participants}
    first, second = need(1).slot_id, need(2).slot_id
    assert lines[MUTUAL.node_id] == ((first, "mutual", 40, 2), (second, "mutual", 40, 2))
    assert lines[ONE_WAY.node_id] == ((first, "one_way", 20, 4),)
    assert lines[STRANGER.node_id] == ()
    assert "divided" in verify_file(proof(signed, values, STRANGER)), "whoever packs it"
    with pytest.raises(ProofInvalid, match="had published is missing"):
        check_clearing(signed.raw, values[1:])


@pytest.mark.parametrize("case", GOLDEN["records"], ids=lambda case: case["name"])
def test_golden_clearings(case):
    """The outcomes were computed by `tests/independent`; they never change for one version."""
    raw = bytes.fromhex(case["envelope"])
    packed = open_signed(raw, ClearingProof, network=None, size_max=len(raw))
    signed = check_clearing(packed.record.clearing, packed.record.named).signed
    assert signed.id.hex() == case["id"]
    assert [
        [line[0].hex(), *line[1:]] for each in signed.record.participants for line in each.lines
    ] == case["lines"]
    again = sign(signed.record, key(1), signed.network)
    assert again.raw == packed.record.clearing
    assert proof(again, packed.record.named, key(1)) == raw


def test_a_second_implementation_recomputes_every_clearing(network):
    random = Random(13)
    stages = set()
    for _ in range(120):
        signed, values = random_clearing(random, network)
        by_rule, as_said = recompute(proof(signed, values, PROVIDER))
        assert by_rule == as_said
        assert check_clearing(signed.raw, values).signed.id == signed.id
        for each in signed.record.participants:
            stages |= {(line[1], signed.record.slot.rule) for line in each.lines}
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


def test_a_provider_that_signs_another_outcome_is_found(world, network):
    own, others = world
    signed = cleared(PROVIDER, own, others, network)
    record = signed.record
    participants = [each.to_value() for each in record.participants]
    index = next(i for i, each in enumerate(record.participants) if each.lines)

    def told(place, **changes):
        copy = [*participants]
        copy[place] = {**copy[place], **changes}
        return changed(signed, network, participants=copy)

    tiers = [line.to_value() for line in record.tiers]
    stranger = next(
        i for i, each in enumerate(record.participants) if each.customer == STRANGER.node_id
    )
    other = space_value(MUTUAL, network, UserSpacePaths.COMMITMENT, others[1].commitment.to_bytes())
    values = [*named(own, *others), other]
    lies = [
        (told(index, lines=[]), "and by the rule"),
        (told(index, eligible=[[need(1).slot_id, 41]]), "does not match"),
        (told(index, eligible=[[need(9).slot_id, 1]]), "does not match"),
        (told(stranger, commitment=other.name), "by another|author|sign"),
        (told(index, recognition=None), "and by the rule"),
        (changed(signed, network, capacity=99), "and by the rule"),
        (changed(signed, network, tiers=[{**tiers[0], "given": 79}, *tiers[1:]]), "stage mutual"),
        (changed(signed, network, author=MUTUAL), "not signed by its provider"),
        (changed(signed, network, recognition=None), "and by the rule"),
        (changed(signed, network, slot=slot(price_mutual=1).to_value()), "does not publish"),
        (changed(signed, network, at_ms=NOW_MS - HOUR), "in the future"),
    ]
    for lie, why in lies:
        with pytest.raises(ProofInvalid, match=why):
            verify_file(proof(lie, values, PROVIDER))


def test_evidence_is_of_its_node_path_and_network(network):
    said = Commitment(needs=(need(),)).to_bytes()
    path = UserSpacePaths.COMMITMENT
    right = space_value(MUTUAL, network, path, said)
    assert read_published(MUTUAL.node_id, right, None, network=network, at_ms=NOW_MS)
    wrong = [
        space_value(MUTUAL, bytes(32), path, said),
        space_value(ONE_WAY, network, path, said),
        space_value(MUTUAL, network, UserSpacePaths.RECOGNITION, said),
        space_value(MUTUAL, network, path, b"none"),
        SpaceValue(record=right.record, value=Commitment().to_bytes()),
    ]
    for evidence in wrong:
        with pytest.raises(XscError):
            read_published(MUTUAL.node_id, evidence, None, network=network, at_ms=NOW_MS)
    value = value_of({MUTUAL.node_id: 1})
    itself = space_value(MUTUAL, network, UserSpacePaths.RECOGNITION, value)
    with pytest.raises(RecordInvalid, match="recognise itself"):
        read_published(MUTUAL.node_id, right, itself, network=network, at_ms=NOW_MS)


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


def test_a_slot_that_is_not_published_is_not_cleared(world):
    own, _ = world
    with pytest.raises(RecordInvalid, match="publish"):
        Clearing(slot(price_mutual=1), NOW_MS, 100, own, [], {}).check()


def test_a_record_has_so_many_lines_at_most(world, network):
    own, others = world
    value = cleared(PROVIDER, own, others, network).record.to_value()
    needs = [[number.to_bytes(16, "big"), 1] for number in range(64)]
    part = {**value["participants"][0], "eligible": needs, "lines": []}
    many = [
        {**part, "customer": number.to_bytes(32, "big")} for number in range(ALLOCATIONS_MAX // 64)
    ]
    ClearingRecord.from_value({**value, "participants": many})
    beyond = {**part, "customer": b"\xff" * 32, "eligible": needs[:1]}
    with pytest.raises(RecordInvalid, match="lines"):
        ClearingRecord.from_value({**value, "participants": [*many, beyond]})


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
    assert SPACE_EVIDENCE_BYTES_MAX == RECORD_ENVELOPE_BYTES_MAX
    many = tuple(need(number, quantity=1, price_max=2**40) for number in range(1, 65))
    whole = slot(quantity=2**33 - 1, price_mutual=0, price_one_way=0, reserve=1)
    keys = [key(number) for number in range(2, 2 + ALLOCATIONS_MAX // 64 + 1)]
    friends = {each.node_id: 10_000 for each in keys}
    own = published(PROVIDER, network, Commitment(slots=(whole,)), friends)
    said = Commitment(needs=many)
    others = [published(each, network, said, {PROVIDER.node_id: 10_000}) for each in keys]
    signed = cleared(PROVIDER, own, others, network, whole.quantity)
    assert len(signed.record.left_out) == 1, "the bound is reached"
    assert all(len(each.lines) == 64 for each in signed.record.participants)
    others_bytes = PEERS_MAX * (200 + 34)
    assert CLEARING_BYTES_MAX // 8 < len(signed.raw) <= CLEARING_BYTES_MAX - others_bytes
    check_clearing(signed.raw, named(own, *others))


def a_state(slots, allocations, peers):
    zero = TierLine(
        tier="mutual",
        capacity=2**60,
        given=2**58,
        denominator=(b"\xff" * 8, b"\x01"),
        level=(b"\xff" * 8, b"\x01"),
    )
    lines = tuple(
        TierLine.from_value({**zero.to_value(), "tier": tier})
        for tier in ("mutual", "one_way", "open")
    )
    ids = [number.to_bytes(16, "big") for number in range(slots)]
    nodes = [number.to_bytes(32, "big") for number in range(peers)]
    granted = tuple(
        SlotAllocationRecord(
            slot=slot_id,
            customer=customer,
            need=number.to_bytes(16, "big"),
            tier="one_way",
            quantity=2**33 - 1,
            price=2**40,
            granted_ms=2**41,
        )
        for slot_id, customer, number in sorted(
            (ids[number % slots], nodes[number % peers], number) for number in range(allocations)
        )
    )
    totals: dict[tuple[bytes, str], int] = {}
    for line in granted:
        of = line.customer, "compute"
        totals[of] = totals.get(of, 0) + line.quantity
    return TwoTierAllocationState(
        slot_denominators=tuple(
            SlotDenominators(
                slot=slot_id,
                window=(2**50, 2**50 + 1),
                kind="compute",
                rule="weighted-uniform",
                capacity=2**60,
                clearing=bytes(32),
                tiers=lines,
            )
            for slot_id in ids
        ),
        slot_allocations=granted,
        recipient_totals=tuple(sorted((*of, total) for of, total in totals.items())),
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
    (line, *_), (slot, *_) = value["slot_allocations"], value["slot_denominators"]
    doubled = {(node, kind): total for node, kind, total in value["recipient_totals"]}
    doubled[line["customer"], slot["kind"]] += line["quantity"]
    with pytest.raises(RecordInvalid, match="do not rise"):
        TwoTierAllocationState.from_value(
            {
                **value,
                "slot_allocations": [line, *value["slot_allocations"]],
                "recipient_totals": [[*of, total] for of, total in doubled.items()],
            }
        )
    nothing = [{**tier, "given": 0} for tier in slot["tiers"]]
    for name, wrong in (
        ("slot_denominators", [{**slot, "tiers": nothing}, *value["slot_denominators"][1:]]),
        ("slot_denominators", [{**slot, "capacity": 0}, *value["slot_denominators"][1:]]),
        ("recipient_totals", value["recipient_totals"][:1]),
        ("recipient_totals", [[n, "storage", t] for n, _, t in value["recipient_totals"]]),
        ("slot_denominators", value["slot_denominators"][:1]),
        ("slot_denominators", value["slot_denominators"][::-1]),
        ("mr_values", value["mr_values"][::-1]),
        ("pauses", value["pauses"][::-1]),
    ):
        with pytest.raises(RecordInvalid):
            TwoTierAllocationState.from_value({**value, name: wrong})


def test_totals_are_by_customer_and_kind_as_steps_of_both_do_not_add_up():
    value = a_state(2, 2, 1).to_value()
    (first, second), (early, late) = value["slot_denominators"], value["slot_allocations"]
    node = early["customer"]
    assert value["recipient_totals"] == [[node, "compute", 2 * early["quantity"]]]
    both = {
        "slot_denominators": [first, {**second, "kind": "storage"}],
        "slot_allocations": [early, late],
        "recipient_totals": [[node, kind, early["quantity"]] for kind in ("compute", "storage")],
    }
    TwoTierAllocationState.from_value({**value, **both})
    with pytest.raises(RecordInvalid, match="not the sums"):
        TwoTierAllocationState.from_value({**value, **both, "recipient_totals": []})


def test_a_fraction_has_one_form():
    for wrong in ((b"\x02", b"\x04"), (b"\x00\x01", b"\x02"), (b"\x01", b""), (b"\x00", b"\x01")):
        with pytest.raises(ValueError, match="fraction"):
            from_ratio(wrong)


def test_a_record_that_breaks_its_form_is_refused(world, network):
    own, others = world
    value = cleared(PROVIDER, own, others, network).record.to_value()
    for name, wrong in (
        ("at_ms", slot().windows[0][1]),
        ("capacity", 101),
        ("participants", value["participants"][::-1]),
        ("tiers", value["tiers"][::-1]),
    ):
        with pytest.raises(RecordInvalid):
            ClearingRecord.from_value({**value, name: wrong})
