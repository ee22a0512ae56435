"""Which requests are new."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsc.base.errors import ClockSkewed, ReplayRefused, XscError
from xsc.base.limits import REQUEST_WINDOW_MS
from xsc.net.calls.signing import HORIZON_STEP_MS, ReplayGuard

PEER, OTHER = b"p" * 32, b"o" * 32
BOOT = 1_700_000_000_000


def guard(horizons=None, **options):
    return ReplayGuard(boot_ms=BOOT, horizons=horizons or {}, **options)


def admit(seen, created_ms, nonce=b"n", *, now_ms=None, peer=PEER):
    now_ms = created_ms if now_ms is None else now_ms
    return seen.admit(peer, created_ms=created_ms, nonce=nonce, now_ms=now_ms)


def test_a_request_is_taken_once():
    seen = guard()
    assert admit(seen, BOOT) is None
    with pytest.raises(ReplayRefused):
        admit(seen, BOOT)
    admit(seen, BOOT, b"m")
    admit(seen, BOOT, peer=OTHER)


def test_what_was_made_before_the_start_is_refused():
    with pytest.raises(ReplayRefused):
        admit(guard(), BOOT - 1, now_ms=BOOT + 5)


@pytest.mark.parametrize(
    ("ahead_ms", "words"),
    [(REQUEST_WINDOW_MS + 2_500, "62.5 s ahead"), (-REQUEST_WINDOW_MS - 1, "60.0 s behind")],
)
def test_a_skewed_clock_is_named_with_its_direction(ahead_ms, words):
    now_ms = BOOT + 200_000
    with pytest.raises(ClockSkewed, match=words):
        admit(guard(), now_ms + ahead_ms, now_ms=now_ms)


def test_the_window_is_closed_at_both_ends():
    now_ms = BOOT + 200_000
    admit(guard(), now_ms - REQUEST_WINDOW_MS, now_ms=now_ms)
    assert admit(guard(), now_ms + REQUEST_WINDOW_MS, now_ms=now_ms) is not None


def test_a_peer_ahead_has_its_horizon_written_now_and_then():
    seen = guard()
    assert admit(seen, BOOT + 500, b"1", now_ms=BOOT) == BOOT + 500 + HORIZON_STEP_MS
    assert admit(seen, BOOT + 2_499, b"2", now_ms=BOOT + 1) is None
    assert admit(seen, BOOT + 2_500, b"3", now_ms=BOOT + 1) == BOOT + 4_500
    assert admit(seen, BOOT + 9_000, b"4", now_ms=BOOT + 9_000) is None


def test_after_a_restart_what_lies_before_the_horizon_is_refused():
    seen = guard({PEER: BOOT + 4_500})
    with pytest.raises(ReplayRefused):
        admit(seen, BOOT + 4_499)
    admit(seen, BOOT + 4_500, now_ms=BOOT + 4_500)
    admit(seen, BOOT + 1, peer=OTHER)


def test_what_is_out_of_the_window_is_forgotten():
    seen = guard()
    for nonce in (b"1", b"2", b"3"):
        admit(seen, BOOT + 10, nonce)
    later = BOOT + 11 + REQUEST_WINDOW_MS
    admit(seen, later, b"4")
    assert len(seen._peers[PEER].nonces) == 1


def test_a_clock_set_back_does_not_bring_forgotten_requests_back():
    seen = guard()
    admit(seen, BOOT + 1, b"1")
    admit(seen, BOOT + 2 + REQUEST_WINDOW_MS, b"2")
    with pytest.raises(ReplayRefused):
        admit(seen, BOOT + 1, b"1", now_ms=BOOT + 1)


steps = st.lists(
    st.tuples(
        st.sampled_from(["request", "replay", "restart", "clock"]),
        st.integers(-3_000, 3_000),
        st.integers(0, 200),
    ),
    max_size=60,
)


@given(steps)
def test_no_request_is_ever_taken_twice_over_restarts_and_skewed_clocks(actions):
    """The disk keeps the horizons; a restart takes at least a millisecond of true time."""
    now_ms, horizons, taken, sent = BOOT, {}, set(), []
    seen = ReplayGuard(boot_ms=now_ms, horizons=horizons)
    for action, skew_ms, index in actions:
        if action == "clock":
            now_ms += index * 500
            continue
        if action == "restart":
            now_ms += 1 + index
            seen = ReplayGuard(boot_ms=now_ms, horizons=horizons)
            continue
        if action == "request":
            sent.append((now_ms + skew_ms, len(sent).to_bytes(4, "big")))
        if not sent:
            continue
        request = sent[-1] if action == "request" else sent[index % len(sent)]
        try:
            horizon_ms = admit(seen, *request, now_ms=now_ms)
        except XscError:
            continue
        if horizon_ms is not None:
            horizons = {PEER: horizon_ms}
        assert request not in taken
        taken.add(request)
