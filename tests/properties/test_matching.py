"""The index of matches, after any changes, is what comparing all with all gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xsc.allocation.matching import Matches, Party, Peer, match
from xsc.terms.slot import AvailabilitySlot, Commitment, NeedSlot, pack_windows

OWN = bytes([9]) * 32
NODES = [bytes([number]) * 32 for number in range(4)]
KINDS = st.sampled_from(["storage", "egress", "compute"])
TIERS = st.sampled_from(["mutual", "one_way", "open"])
LABELS = st.sampled_from(["", "berlin", "Berlin", "bern"])
FILTERS = st.sampled_from([(), (), (), (("tier", "one_way"),), (("owner", "bern"),), (("x", "y"),)])
CUTS = st.lists(st.integers(0, 40), max_size=6, unique=True).map(sorted)


@st.composite
def slots(draw, kind, slot_id):
    cuts = draw(CUTS)
    windows = list(zip(cuts[::2], cuts[1::2], strict=False))
    fields = {
        "slot_id": slot_id,
        "kind": draw(KINDS),
        "quantity": draw(st.integers(3, 8)),
        "quantity_min": draw(st.integers(1, 3)),
        "location": draw(LABELS),
        "owner": draw(LABELS),
        "filters": draw(FILTERS),
        "valid_until_ms": 50,
    }
    if fields["kind"] == "storage":
        windows = windows[:1]
    if kind is AvailabilitySlot:
        fields |= {"price_mutual": 1, "price_one_way": 2, "reserve": 3}
        windows = windows or [(0, 50)]
    else:
        fields["price_max"] = 4
    return kind(**fields, windows_packed=pack_windows(windows))


@st.composite
def commitments(draw, mark):
    found = [
        [
            draw(slots(kind, bytes([mark, place, number]) + bytes(13)))
            for number in sorted(draw(st.sets(st.integers(0, 3))))
        ]
        for place, kind in enumerate((AvailabilitySlot, NeedSlot))
    ]
    return Commitment(slots=tuple(found[0]), needs=tuple(found[1]))


CHANGES = st.lists(
    st.one_of(
        commitments(9).map(lambda commitment: (OWN, commitment)),
        st.integers(0, 3).flatmap(
            lambda node: st.tuples(
                st.just(NODES[node]),
                st.none() | st.builds(Peer, commitments(node), TIERS, TIERS),
            )
        ),
    ),
    max_size=10,
)


def compared_with_all(own, peers):
    needs = {}
    for slot in own.slots:
        needs[slot.slot_id] = {
            (node, need.slot_id): need
            for node, peer in peers.items()
            for need in peer.commitment.needs
            if match(slot, Party(OWN, peer.own_tier), need, Party(node, peer.tier))
        }
    return needs


@given(CHANGES)
def test_the_index_is_what_comparing_all_with_all_gives(changes):
    matches, own, peers = Matches(OWN), Commitment(), {}
    before = compared_with_all(own, peers)
    for node, value in changes:
        if node == OWN:
            own, touched = value, matches.change_own(value)
        else:
            peers.pop(node, None)
            if value is not None:
                peers[node] = value
            touched = matches.change(node, value)
        after = compared_with_all(own, peers)
        for slot in own.slots:
            assert matches.needs_of(slot.slot_id) == after[slot.slot_id]
        assert {key for key in after if after[key] != before.get(key, {})} <= touched
        before = after
    for node in NODES:
        matches.change(node, None)
    assert not any(matches.needs_of(slot.slot_id) for slot in own.slots)
