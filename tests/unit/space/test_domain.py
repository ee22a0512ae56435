"""Clock domains: grants, and the chain that proves an interval."""

from __future__ import annotations

import pytest

from xsc.base.errors import RecordInvalid, SignatureInvalid, XscError
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.space import domain
from xsc.space.domain import Genesis, Grant, follow, founded, next_grant, read_chain
from xsc.space.itc import covers, interval_bytes, read_interval, sum_intervals

KEYS = [KeyPair(bytes([number]) * 32) for number in range(1, 9)]
IDS = [key.node_id for key in KEYS]


@pytest.fixture
def genesis(network):
    return sign(Genesis(founder=IDS[0], founded_ms=1), KEYS[0], network)


def grant(holding, receiver, network):
    record, after = next_grant(holding, IDS[receiver])
    signed = sign(record, KEYS[IDS.index(holding.node)], network)
    assert follow(holding, signed, holding.node) == after
    return signed, after, follow(holding, signed, IDS[receiver])


def test_a_founder_has_the_whole_domain_that_its_genesis_names(genesis, network):
    holding = read_chain([genesis.raw], IDS[0], network=network)
    assert (holding.domain, holding.kept) == (genesis.id, 1)
    with pytest.raises(RecordInvalid):
        founded(sign(Genesis(founder=IDS[0], founded_ms=1), KEYS[1], network))


def test_a_chain_of_grants_proves_the_interval_at_its_end(genesis, network):
    chain, holding = [genesis.raw], founded(genesis)
    taken = []
    for receiver in range(1, 8):
        signed, after, holding = grant(holding, receiver, network)
        taken.append(after.kept)
        chain.append(signed.raw)
        assert read_chain(chain, IDS[receiver], network=network) == holding
        for other in IDS[: receiver - 1]:
            with pytest.raises(RecordInvalid):
                read_chain(chain, other, network=network)
    together = holding.kept
    for kept in taken:
        together = sum_intervals(together, kept)
    assert together == 1


def test_a_chain_that_ends_in_an_own_grant_shows_what_is_left(genesis, network):
    signed, after, _ = grant(founded(genesis), 1, network)
    assert read_chain([genesis.raw, signed.raw], IDS[0], network=network) == after
    later, last, _ = grant(after, 2, network)
    with_gap = read_chain([genesis.raw, later.raw], IDS[0], network=network)
    assert with_gap.kept == last.kept
    assert with_gap.granted == 2


def test_a_chain_has_one_own_grant_at_its_end(genesis, network):
    """Else a chain could have as many as an envelope holds, and take seconds to read."""
    first, after, _ = grant(founded(genesis), 1, network)
    second, _, _ = grant(after, 2, network)
    with pytest.raises(RecordInvalid):
        read_chain([genesis.raw, first.raw, second.raw], IDS[0], network=network)


def test_a_founder_that_left_its_interval_is_granted_one_by_its_joiners(genesis, network):
    down, after, theirs = grant(founded(genesis), 1, network)
    back, _, again = grant(theirs, 0, network)
    chain = [genesis.raw, down.raw, back.raw]
    assert read_chain(chain, IDS[0], network=network) == again
    assert domain.read_holdings(chain, IDS[0], network=network)[0] == after
    on, left, third = grant(again, 2, network)
    assert read_chain([*chain, on.raw], IDS[0], network=network) == left
    assert read_chain([*chain, on.raw], IDS[2], network=network) == third


def test_a_giver_grants_only_what_it_has(genesis, network):
    holding = founded(genesis)
    signed, after, given = grant(holding, 1, network)
    with pytest.raises(RecordInvalid):
        follow(after, signed, IDS[1])  # the same part a second time
    stolen = Grant(
        domain=genesis.id,
        parent=signed.id,
        number=1,
        receiver=IDS[2],
        interval=interval_bytes(after.kept),
        kept=interval_bytes(given.kept),
    )
    with pytest.raises(RecordInvalid):
        follow(given, sign(stolen, KEYS[1], network), IDS[2])


@pytest.mark.parametrize(
    "change",
    [{"domain": bytes(32)}, {"parent": bytes(32)}, {"interval": interval_bytes(((0, 1), 0))}],
)
def test_a_grant_of_something_else_does_not_follow(genesis, network, change):
    signed, _, given = grant(founded(genesis), 1, network)
    good, _ = next_grant(given, IDS[2])
    assert covers(read_interval(signed.record.interval), read_interval(good.interval))
    bad = Grant.from_value({**good.to_value(), **change})
    with pytest.raises(RecordInvalid):
        follow(given, sign(bad, KEYS[1], network), IDS[2])
    with pytest.raises(RecordInvalid):
        follow(given, sign(good, KEYS[3], network), IDS[2])  # signed by another


@pytest.mark.parametrize(
    "change",
    [
        {"interval": interval_bytes(0)},
        {"kept": interval_bytes(0)},
        {"kept": interval_bytes((0, 1)), "interval": interval_bytes((0, 1))},
        {"interval": b""},
        {"number": 0},
    ],
)
def test_a_false_grant_is_refused(genesis, network, change):
    good, _ = next_grant(founded(genesis), IDS[1])
    with pytest.raises(RecordInvalid):
        Grant.from_value({**good.to_value(), **change})


def test_what_is_no_chain_is_refused(genesis, network):
    signed, _, _ = grant(founded(genesis), 1, network)
    elsewhere = sign(Genesis(founder=IDS[0], founded_ms=2), KEYS[0], network)
    for chain in (
        [],
        [signed.raw],
        [genesis.raw, genesis.raw],
        [elsewhere.raw, signed.raw],
        [genesis.raw, signed.raw, signed.raw],
        [genesis.raw] * (domain.CHAIN_ITEMS_MAX + 1),
        [genesis.raw, b""],
    ):
        with pytest.raises((RecordInvalid, SignatureInvalid)):
            read_chain(chain, IDS[1], network=network)
    with pytest.raises(XscError):
        read_chain([genesis.raw, signed.raw], IDS[1], network=bytes(32))
