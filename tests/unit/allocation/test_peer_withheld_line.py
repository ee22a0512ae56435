"""A state that withholds a customer's line of the clearing that it names is not right."""

import pytest

from tests.unit.allocation.clearings import (
    cleared,
    key,
    named,
    need,
    published,
    said_of,
    slot,
    state_of,
)
from xsc.allocation.clearing_record import check_clearing
from xsc.base.errors import ProofInvalid
from xsc.terms.slot import Commitment


def test_a_line_that_is_withheld_is_found(network):
    provider, customers = key(1), [key(2), key(3)]
    own = published(provider, network, Commitment(slots=(slot(),)), {})
    others = [published(each, network, Commitment(needs=(need(),)), {}) for each in customers]
    made = cleared(provider, own, others, network)
    whole = state_of(made, own, others)
    (divided,) = whole.slot_denominators
    assert len(divided.allocations) == 2
    less = state_of(made, own, others, allocations=divided.allocations[:1])
    values = [*named(own, *others), said_of(less, provider, network)]
    with pytest.raises(ProofInvalid):
        check_clearing(made.raw, values, network=network)
