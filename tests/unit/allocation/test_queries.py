"""The groups of nodes, as they follow from what has been published."""

from dataclasses import replace

from tests.unit.allocation.clearings import need, slot
from xsc.allocation.queries import GROUPS, Participant, groups
from xsc.terms.clearing import TwoTierAllocationState
from xsc.terms.slot import Commitment

NOTHING = Commitment()
FRIEND = Participant(NOTHING, 200_000, 300_000, True, None)
SETTLED = TwoTierAllocationState(converged=True)


def names_of(each):
    """Return the groups to which a participant belongs."""
    found = groups({b"n" * 32: each})
    assert found.keys() == GROUPS.keys()
    return {name for name, nodes in found.items() if nodes}


def test_a_partner_without_slots_or_needs_is_a_partner_and_takes_no_part():
    assert names_of(FRIEND) == {
        "my_mutual_recognition",
        "my_mutual_beneficiaries",
        "all_mutual_partners",
    }
    assert "all_mutual_partners" not in names_of(replace(FRIEND, their_weight_ppm=0))


def test_who_has_cleared_nothing_has_converged_and_who_has_once_its_state_says_so():
    needs = replace(FRIEND, commitment=Commitment(needs=(need(),)))
    offers = replace(FRIEND, commitment=Commitment(slots=(slot(),)))
    assert {"active_participants", "has_system_converged"} <= names_of(needs)
    assert "active_participants" in names_of(offers)
    assert "has_system_converged" in names_of(offers)
    assert "has_system_converged" not in names_of(replace(offers, state=TwoTierAllocationState()))
    assert "has_system_converged" in names_of(replace(offers, state=SETTLED))


def test_who_was_not_heard_of_lately_is_not_active_and_does_not_count():
    gone = Participant(Commitment(slots=(slot(),)), 0, 0, False, SETTLED)
    assert names_of(gone) == set()
