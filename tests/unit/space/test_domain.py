"""Clock domains: what a grant proves, and where a node counts."""

from __future__ import annotations

import pytest

from xsc.base.errors import RecordInvalid, SignatureInvalid, TooLarge, XscError
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.space.domain import Grant, Granted, counted, read_grant
from xsc.space.itc import covers, cut_grant, depth_of, interval_bytes, minus
from xsc.space.limits import GRANT_LEVELS_MAX

KEYS = [KeyPair(bytes([number]) * 32) for number in range(1, 9)]
IDS = [key.node_id for key in KEYS]


def granted(network, giver, receiver, interval, *, by=None):
    """A grant of an interval, or of a domain where there is no giver, as it is read."""
    record = Grant(
        giver=None if giver is None else giver.raw,
        receiver=IDS[receiver],
        interval=interval_bytes(interval),
        granted_ms=1,
    )
    author = receiver if giver is None else IDS.index(giver.node)
    signed = sign(record, KEYS[author if by is None else by], network)
    return read_grant(signed.raw, IDS[receiver], network=network)


@pytest.fixture
def founder(network):
    return granted(network, None, 0, 1)


def test_a_founder_has_the_whole_of_a_domain_of_its_own(founder, network):
    assert (founder.interval, founder.givers) == (1, frozenset())
    other = granted(network, None, 1, 1)
    assert other.domain != founder.domain
    assert counted(founder, [founder, other]) == counted(other, [founder, other]) == 1
    with pytest.raises(RecordInvalid):
        granted(network, None, 0, 1, by=1)
    with pytest.raises(ValueError, match="everything"):
        granted(network, None, 0, (0, 1))


def test_a_grant_proves_the_interval_of_its_receiver_and_what_is_left(founder, network):
    kept, grants = founder.interval, [founder]
    for receiver in range(1, 8):
        kept, given = cut_grant(kept, depth_of(grants[-1].interval), 1)
        grants.append(granted(network, grants[-1], receiver, given))
        kept = given
        assert grants[-1].domain == founder.domain
        assert grants[-1].givers == set(IDS[:receiver])
        with pytest.raises(RecordInvalid):
            read_grant(grants[-1].raw, IDS[receiver - 1], network=network)
    left = 1
    for each in grants:
        assert covers(left, counted(each, grants))
        left = minus(left, counted(each, grants))
    assert left == 0


def test_a_giver_grants_only_what_it_has(founder, network):
    left = granted(network, founder, 1, (1, 0))
    for interval in (1, (0, 1), ((0, 1), 1)):
        with pytest.raises(RecordInvalid):
            granted(network, left, 2, interval)
    with pytest.raises(RecordInvalid):
        granted(network, left, 2, ((1, 0), 0), by=3)  # signed by another
    assert granted(network, left, 2, ((1, 0), 0)).interval == ((1, 0), 0)


def test_where_two_grants_overlap_neither_counts(founder, network):
    """Its giver could let two count as ordered that are not."""
    one, two = (granted(network, founder, at, half) for at, half in ((1, (1, 0)), (2, ((1, 0), 1))))
    every = [founder, one, two]
    assert counted(one, every) == ((0, 1), 0)
    assert counted(two, every) == (0, 1)
    assert counted(founder, every) == 0
    again = granted(network, one, 3, (1, 0))  # all that it has
    assert counted(again, [*every, again]) == ((0, 1), 0)
    assert counted(one, [*every, again]) == 0


def test_a_founder_that_left_its_interval_counts_where_its_joiner_grants(founder, network):
    joined = granted(network, founder, 1, (1, 0))
    back = granted(network, joined, 0, ((1, 0), 0))
    assert back.givers == {IDS[0], IDS[1]}
    every = [back, joined]
    assert counted(back, every) == ((1, 0), 0)
    assert counted(joined, every) == minus((1, 0), ((1, 0), 0))


def test_what_is_no_grant_is_refused(founder, network):
    for change in ({"interval": interval_bytes(0)}, {"interval": b""}, {"receiver": b"x"}):
        good = Grant(
            giver=founder.raw, receiver=IDS[1], interval=interval_bytes((1, 0)), granted_ms=0
        )
        with pytest.raises(RecordInvalid):
            Grant.from_value({**good.to_value(), **change})
    for giver in (b"", b"x", founder.raw[:-1]):
        with pytest.raises((RecordInvalid, SignatureInvalid)):
            granted(network, Granted(IDS[0], b"", 1, frozenset(), giver), 1, (1, 0))
    with pytest.raises(XscError):
        read_grant(founder.raw, IDS[0], network=bytes(32))
    with pytest.raises(TooLarge):
        granted(network, Granted(IDS[0], b"", 1, frozenset(), bytes(40_000)), 1, (1, 0))


def test_a_grant_has_so_many_givers(network):
    """Else one could have as many as an envelope holds, and take seconds to read."""
    last = granted(network, None, 0, 1)
    for level in range(1, GRANT_LEVELS_MAX):
        last = granted(network, last, level % 2, 1)
    assert last.interval == 1
    with pytest.raises(RecordInvalid):
        granted(network, last, 2, 1)
