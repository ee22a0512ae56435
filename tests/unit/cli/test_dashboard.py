"""`xsc dashboard`: a link, and a browser that is told of it by a file that nobody else can read."""

from __future__ import annotations

import stat
import webbrowser

import pytest

CODE = "c" * 52
URL = f"http://127.0.0.1:8080/login?code={CODE}"


@pytest.fixture
def node(stand_in):
    stand_in.answers("POST", "/v1/dashboard/login", {"url": URL, "good_ms": 60_000}, 201)
    return stand_in


def test_the_link_is_printed_alone_and_how_long_it_is_good_beside_it(node, xsc):
    done = xsc("dashboard")
    assert (done.code, done.out) == (0, f"{URL}\n".encode())
    assert done.err == "good once, for 1m\n"
    assert xsc("dashboard", "--json").json == {"url": URL, "good_ms": 60_000}
    assert not (node.home / "dashboard.html").exists()


@pytest.mark.parametrize("before", [False, True])
def test_the_browser_is_given_a_file_and_not_the_code(node, xsc, monkeypatch, before):
    page = node.home / "dashboard.html"
    if before:
        page.write_text("old")
        page.chmod(0o644)
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    assert xsc("dashboard", "--open").code == 0
    assert opened == [page.resolve().as_uri()]
    assert CODE not in opened[0]
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert f"url={URL}" in page.read_text()


def test_without_a_browser_the_link_is_there_still(node, xsc, monkeypatch):
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    done = xsc("dashboard", "--open")
    assert (done.code, done.out) == (2, f"{URL}\n".encode())
    assert "no browser was found" in done.err
