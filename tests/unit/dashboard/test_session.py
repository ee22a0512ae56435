"""Who is logged in, and which requests are of our own pages."""

from __future__ import annotations

import pytest

from xsc.base.clock import ManualClock, SeededEntropy
from xsc.base.errors import NotAllowed
from xsc.dashboard.session import (
    CODE_MS,
    IDLE_MS,
    SESSIONS_MAX,
    Sessions,
    check_csrf,
    check_host,
    check_origin,
)

HOST = "127.0.0.1:8080"


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def sessions(clock):
    return Sessions(clock, SeededEntropy(b"s" * 32))


def later(clock, duration_ms):
    clock.advance_to(clock.now_ms() + duration_ms)


def test_a_code_is_good_once(sessions):
    code = sessions.new_code()
    token = sessions.open(code)
    assert sessions.of(token) is not None
    assert token != code
    with pytest.raises(NotAllowed, match="used already"):
        sessions.open(code)
    assert sessions.of(token) is not None


@pytest.mark.parametrize("code", ["", "x", "é\udcff", "a" * 10_000])
def test_what_was_never_made_is_no_code_and_no_token(sessions, code):
    with pytest.raises(NotAllowed):
        sessions.open(code)
    assert sessions.of(code) is None
    assert sessions.of(sessions.new_code()) is None


def test_a_code_is_good_for_a_minute(sessions, clock):
    code, late = sessions.new_code(), sessions.new_code()
    later(clock, CODE_MS)
    assert sessions.open(code)
    later(clock, 1)
    with pytest.raises(NotAllowed, match="older than a minute"):
        sessions.open(late)


def test_one_code_too_many_ends_the_oldest(sessions):
    codes = [sessions.new_code() for _ in range(SESSIONS_MAX + 1)]
    with pytest.raises(NotAllowed):
        sessions.open(codes[0])
    assert len({sessions.open(code) for code in codes[1:]}) == SESSIONS_MAX


def test_one_session_too_many_ends_the_one_that_was_used_longest_ago(sessions):
    tokens = [sessions.open(sessions.new_code()) for _ in range(SESSIONS_MAX)]
    assert sessions.of(tokens[0]) is not None
    tokens.append(sessions.open(sessions.new_code()))
    assert [place for place, token in enumerate(tokens) if not sessions.of(token)] == [1]


def test_a_session_that_ends_has_no_stream(sessions, clock):
    def following():
        token = sessions.open(sessions.new_code())
        session = sessions.of(token)
        session.streams.append(object())
        return token, session.streams

    token, streams = following()
    sessions.close(token)
    assert streams == []
    _, streams = following()
    for _ in range(SESSIONS_MAX):
        token, last = following()
    assert streams == []
    later(clock, IDLE_MS + 1)
    assert sessions.of(token) is None
    assert last == []


def test_a_session_ends_a_day_after_its_last_request(sessions, clock):
    token = sessions.open(sessions.new_code())
    for _ in range(3):
        later(clock, IDLE_MS)
        assert sessions.of(token) is not None
    later(clock, IDLE_MS + 1)
    assert sessions.of(token) is None
    later(clock, -IDLE_MS)
    assert sessions.of(token) is None


def test_a_session_is_closed(sessions):
    token, other = (sessions.open(sessions.new_code()) for _ in range(2))
    sessions.close(token)
    sessions.close("none")
    assert sessions.of(token) is None
    assert sessions.of(other) is not None


def test_every_session_has_a_csrf_of_its_own(sessions):
    one, other = (sessions.of(sessions.open(sessions.new_code())) for _ in range(2))
    check_csrf(one, one.csrf)
    for wrong in ("", other.csrf, one.csrf[:-1], one.csrf + "a", "é\udcff"):
        with pytest.raises(NotAllowed, match="earlier session"):
            check_csrf(one, wrong)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:1",
        "127.9.9.9:65535",
        "[::1]",
        "[::1]:80",
    ],
)
def test_a_host_on_this_machine_is_taken_at_any_port(host):
    assert check_host({"Host": host}) == host


@pytest.mark.parametrize(
    "host",
    [
        "",
        ":80",
        "localhost",
        "localhost:8080",
        "example.org",
        "localhost.example.org",
        "127.0.0.1.evil.org",
        "evil.org:80",
        "localtest.me",
        "127.0.0.1.nip.io:80",
        "localhost:80@evil.org",
        "evil.org@localhost",
        "user:pass@127.0.0.1",
        "localhost:80:evil",
        "localhost:",
        "localhost.",
        "localhost:8a",
        "10.0.0.1",
        "0.0.0.0",
        "[::]",
        "[::1",
        "::1]",
        "[::1%lo]",
        "[::1].evil.org",
        "0x7f.0.0.1",
        "2130706433",
        "127.1",
        "127.0.0.1, evil.org",
        "127.0.0.1 ",
        "localhost\n",
        "[localhost]",
        "[[::1]]",
        "[127.0.0.1]",
        "127.0.0.1/",
        "999.0.0.1",
        "localhost:123456",
    ],
)
def test_any_other_host_is_refused(host):
    with pytest.raises(NotAllowed, match="answers under"):
        check_host({"Host": host})


def test_no_host_is_refused():
    with pytest.raises(NotAllowed):
        check_host({})


OWN = {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}


def test_an_own_page_may_post_and_follow():
    check_origin(OWN, HOST)
    check_origin(OWN, HOST, stream=True)
    # Browsers send no Origin with what they read.
    check_origin({"Sec-Fetch-Site": "same-origin"}, HOST, stream=True)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://127.0.0.1:8081",
        "http://127.0.0.1",
        "https://127.0.0.1:8080",
        "http://localhost:8080",
        "http://evil.org",
        f"http://{HOST}/",
        f"http://{HOST}.evil.org",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_page_of_another_origin_may_not(origin, stream):
    with pytest.raises(NotAllowed, match="own pages"):
        check_origin({**OWN, "Origin": origin}, HOST, stream=stream)


@pytest.mark.parametrize("site", ["same-site", "cross-site", "none", "", None])
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_browser_says_is_not_of_the_same_origin_may_not(site, stream):
    headers = {key: value for key, value in OWN.items() if key == "Origin"}
    if site is not None:
        headers["Sec-Fetch-Site"] = site
    with pytest.raises(NotAllowed, match="own pages"):
        check_origin(headers, HOST, stream=stream)


def test_a_post_without_an_origin_may_not():
    with pytest.raises(NotAllowed):
        check_origin({"Sec-Fetch-Site": "same-origin"}, HOST)
