"""What a peer may cause, and how long it waits."""

from __future__ import annotations

import pytest

from xsc.space.pace import BURST_MS, Pace

UNIT = 10


@pytest.mark.parametrize(("peers", "part"), [(1, 2), (2, 2), (3, 3), (8, 8)])
def test_busy_peers_have_equal_parts_and_one_alone_has_half(peers, part):
    """Each comes again when it has waited, for a hundred seconds."""
    pace, done = Pace(1_000), 0
    due = dict.fromkeys(range(peers), 0)
    while (now_ms := min(due.values())) < 100_000:
        peer = min(due, key=due.get)
        due[peer] = now_ms + max(1, pace.take(bytes([peer]), UNIT, now_ms))
        done += UNIT
    assert done == pytest.approx(peers * (100_000 + BURST_MS) / part, rel=0.05)


def test_small_traffic_never_waits():
    pace = Pace(1_000)
    for second in range(1_000):
        assert pace.take(b"busy", 1_000, second) > second
        assert pace.take(b"quiet", UNIT, second * 1_000) == 0


def test_only_busy_peers_are_remembered():
    pace = Pace(1_000)
    for number in range(1_000):
        pace.take(number.to_bytes(2, "big"), 1, number * 1_000)
    assert len(pace._until_us) == 1
