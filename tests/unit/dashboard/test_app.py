"""The dashboard behind the API's own server: who gets in, what is refused, and how streams end."""

from __future__ import annotations

import asyncio
import re

import aiohttp
import pytest
from aiohttp import DummyCookieJar
from aiohttp.test_utils import make_mocked_request

from tests.settle import settle, until
from tests.unit.cli.test_picture import measures
from xsc.api import monitor
from xsc.base.clock import ManualClock, SeededEntropy
from xsc.base.errors import ArgumentInvalid
from xsc.base.log import SilentLog
from xsc.dashboard import app
from xsc.dashboard.page import Action, Page, Said
from xsc.dashboard.session import Sessions
from xsc.net.transport.bounds import Gate
from xsc.net.transport.http import Server
from xsc.node.api.app import OPEN, application

TOKEN = "t" * 52
SECRET = "what only who is logged in may see"
HOSTILE = "<script>alert(1)</script>" + "名" * 10_000


class Node:
    """Answers what the frame of a page asks."""

    def __init__(self):
        self.name = SECRET
        self.count = "1"
        self.changed = []

    async def ask(self, endpoint, asked, *, body=None, pick=None, window=slice(None)):
        if endpoint is monitor.HISTORY:
            return {"samples": [], "total": 0}
        assert endpoint is monitor.MEASURES
        found = measures()
        found["status"] |= {"name": self.name, "network": "xsc"}
        return found

    def changes(self):
        return self.count


async def gather(node, asked):
    if "wrong" in asked:
        raise ArgumentInvalid(HOSTILE)
    if "bug" in asked:
        raise RuntimeError(SECRET)
    return {}


async def act(node, form):
    if form.get("name") == "wrong":
        raise ArgumentInvalid(HOSTILE)
    node.changed.append(form)
    return Said("it is done", secret=form.get("name", ""))


PAGES = {"/page": Page("/page", "A page", "page.html", gather)}
INNER = {"/page", "/page/act", "/history", "/events", "/logout", "/welcome"}
ACTIONS = {"/page/act": Action("/page/act", "/page", change=act)}


class Site:
    """A node's API with a dashboard, and a browser that is told what to send."""

    def __init__(self, node_id="a" * 52):
        self.clock = ManualClock()
        self.node = Node()
        self.sessions = Sessions(self.clock, SeededEntropy(node_id.encode()))
        self.pages = app.Dashboard(self.node, node_id, self.sessions, self.clock)
        self.answer = application([], TOKEN, SilentLog(), dict, dashboard=self.pages)
        self.server = Server(
            self.answer,
            Gate(most=32, share=32, idle_ms=60_000),
            open_paths=(*OPEN, *self.pages.open_paths),
        )
        self.name = f"xsc_{node_id}"
        self.cookie = ""
        self.base = "/s/aaaa"
        self.http = None
        self.tabs = []

    async def start(self):
        self.port = await self.server.start("127.0.0.1", 0, "api_listen")
        self.host = f"127.0.0.1:{self.port}"
        self.own = {"Origin": f"http://{self.host}", "Sec-Fetch-Site": "same-origin"}
        self.http = aiohttp.ClientSession(
            f"http://{self.host}", cookie_jar=DummyCookieJar(), auto_decompress=False
        )

    async def stop(self):
        self.pages.end()
        self.look()
        for tab in self.tabs:
            tab.answer.close()
        await self.http.close()
        await self.server.stop(20)

    def full(self, path):
        """Return a path of a page with what those of the session begin with."""
        return self.base + path if path.partition("?")[0] in INNER else path

    def look(self):
        """Let time pass until streams look again whether something changed."""
        self.clock.advance_to(self.clock.now_ms() + app.LOOK_MS)

    async def call(self, method, path, headers=None, *, cookie=None, data=None):
        """Return an answer and its text; what the dashboard answers has all of its headers."""
        cookie = self.cookie if cookie is None else cookie
        path = self.full(path)
        headers = {**({"Cookie": cookie} if cookie else {}), **(headers or {})}
        sent = self.http.request(method, path, headers=headers, data=data, allow_redirects=False)
        async with sent as answer:
            if self.pages.has(answer.url.raw_path):
                own = {"Cache-Control", "Referrer-Policy"}
                for name, value in app._HEADERS.items():
                    assert name in own or answer.headers.getall(name) == [value]
                assert len(answer.headers.getall("Referrer-Policy")) == 1
                assert answer.url.raw_path in app._FILES or (
                    answer.headers["Cache-Control"] == "no-store"
                )
            return answer, await answer.text()

    async def log_in(self):
        answer, _ = await self.call("GET", f"/login?code={self.sessions.new_code()}", cookie="")
        self.cookie = answer.headers["Set-Cookie"].partition(";")[0]
        self.base = answer.headers["Location"].removesuffix("/welcome")
        return answer

    async def csrf(self):
        _, text = await self.call("GET", "/page")
        return re.search('name="xsc-csrf" content="([a-z2-7]+)"', text)[1]

    async def post(self, path="/page/act", *, headers=None, **fields):
        data = {"csrf": await self.csrf(), **fields}
        return await self.call("POST", path, self.own if headers is None else headers, data=data)


@pytest.fixture
async def site(monkeypatch):
    monkeypatch.setattr(app, "PAGES", PAGES)
    monkeypatch.setattr(app, "ACTIONS", ACTIONS)
    site = Site()
    await site.start()
    yield site
    await site.stop()


async def test_a_link_logs_one_browser_in_and_leads_on(site):
    answer = await site.log_in()
    assert (answer.status, answer.headers["Location"]) == (303, f"{site.base}/welcome")
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    set_cookie = answer.headers["Set-Cookie"]
    assert set_cookie.startswith(f"{site.name}=")
    assert {"HttpOnly", "SameSite=Strict", f"Path={site.base}"} <= {*set_cookie.split("; ")}
    assert "Domain" not in set_cookie
    answer, text = await site.call("GET", "/page")
    assert answer.status == 200
    assert SECRET in text
    assert (await site.call("GET", "/"))[0].status == 401


async def test_a_cookie_is_for_the_pages_of_its_session_alone(site):
    await site.log_in()
    first, base = site.cookie, site.base
    await site.log_in()
    assert base != site.base
    # A browser shows neither to another server of this machine: none has these paths.
    for cookie, status in ((first, 401), (f"{site.name}=x; {site.cookie}; {first}", 200)):
        assert (await site.call("GET", "/page", cookie=cookie))[0].status == status
        assert (await site.call("GET", f"{base}/page", cookie=first))[0].status == 200


async def test_a_page_is_read_by_no_other(site):
    await site.log_in()
    for other in ("cross-site", "same-site", "x"):
        for path in ("/page", "/history?within_ms=1"):
            answer, text = await site.call("GET", path, {"Sec-Fetch-Site": other})
            assert (answer.status, SECRET in text) == (403, False)
    for own in ("same-origin", "none"):
        assert (await site.call("GET", "/page", {"Sec-Fetch-Site": own}))[0].status == 200
    assert (await site.call("GET", "/welcome", {"Sec-Fetch-Site": "cross-site"}))[0].status == 200


async def test_a_link_that_was_followed_is_good_no_more(site):
    code = site.sessions.new_code()
    assert (await site.call("GET", f"/login?code={code}"))[0].status == 303
    for again in (f"/login?code={code}", "/login", "/login?code=", f"/login?code={'x' * 4000}"):
        answer, text = await site.call("GET", again)
        assert answer.status == 403
        assert "Set-Cookie" not in answer.headers
        assert code not in text
    site.clock.advance_to(site.clock.now_ms())
    late = site.sessions.new_code()
    site.clock.advance_to(site.clock.now_ms() + 60_001)
    assert (await site.call("GET", f"/login?code={late}"))[0].status == 403


@pytest.mark.parametrize(
    "path", ["/page", "/page?wrong=1", "/history?within_ms=1", "/events", "/page/act", "/logout"]
)
async def test_without_a_session_there_is_nothing_to_see(site, path):
    for cookie in ("", "xsc=1", f"{site.name}=", f"{site.name}=wrong", f"{site.name}={TOKEN}"):
        answer, text = await site.call("GET", path, site.own, cookie=cookie)
        assert answer.status == 401
        assert SECRET not in text
        assert "xsc dashboard" in text


async def test_no_token_in_a_url_opens_anything(site):
    code = site.sessions.new_code()
    token = site.sessions.open(site.sessions.new_code())
    for query in (f"token={TOKEN}", f"code={code}", f"token={token}", f"{site.name}={token}"):
        for path in ("/page", "/history", "/v1/status", "/"):
            answer, text = await site.call("GET", f"{path}?{query}")
            assert answer.status == 401
            assert SECRET not in text
    # The token of the API opens no page, and a session nothing of the API.
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert (await site.call("GET", "/page", bearer))[0].status == 401
    assert (await site.call("GET", f"/login?code={code}"))[0].status == 303
    await site.log_in()
    assert (await site.call("GET", "/v1/status"))[0].status == 401


async def test_two_nodes_are_logged_in_at_once(site):
    other = Site("b" * 52)
    await other.start()
    await site.log_in()
    await other.log_in()
    both = f"{site.cookie}; {other.cookie}"
    for each, foreign in ((site, other), (other, site)):
        assert (await each.call("GET", "/page", cookie=both))[0].status == 200
        assert (await each.call("GET", "/page", cookie=foreign.cookie))[0].status == 401
        swapped = f"{each.name}={foreign.cookie.partition('=')[2]}"
        assert (await each.call("GET", "/page", cookie=swapped))[0].status == 401
    await other.stop()


async def test_an_own_form_is_carried_out_and_said(site):
    await site.log_in()
    answer, text = await site.post(name="<b>bold</b>")
    assert answer.status == 200
    assert [form["name"] for form in site.node.changed] == ["<b>bold</b>"]
    assert "it is done" in text
    assert "&lt;b&gt;bold" in text
    assert "<b>bold" not in text
    answer, text = await site.post(name="wrong")
    assert answer.status == 400
    assert "<script>alert" not in text
    assert len(site.node.changed) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"Origin": None},
        {"Origin": "null"},
        {"Origin": "http://evil.org"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost:{port}"},
        {"Sec-Fetch-Site": None},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.org", "Origin": "http://evil.org"},
        {"Host": "127.0.0.1.evil.org:{port}", "Origin": "http://127.0.0.1.evil.org:{port}"},
    ],
)
async def test_what_another_page_posts_changes_nothing(site, change):
    await site.log_in()
    merged = {**site.own, **change}
    headers = {key: text.format(port=site.port) for key, text in merged.items() if text}
    for path in ("/page/act", "/logout", "/nothing"):
        answer, text = await site.post(path, headers=headers)
        assert answer.status == (401 if path == "/nothing" else 403)
        assert SECRET not in text
    assert not site.node.changed
    assert (await site.call("GET", "/page"))[0].status == 200


@pytest.mark.parametrize("host", ["evil.org", "localtest.me:{port}", "localhost:{port}@evil.org"])
async def test_under_another_name_nothing_is_answered(site, host):
    await site.log_in()
    code = site.sessions.new_code()
    for path in ("/page", "/history?within_ms=1", "/events", f"/login?code={code}", "/welcome"):
        answer, text = await site.call("GET", path, {"Host": host.format(port=site.port)})
        assert answer.status == 403
        assert SECRET not in text
    assert (await site.call("GET", f"/login?code={code}"))[0].status == 303


async def test_a_form_without_the_csrf_of_its_session_changes_nothing(site):
    await site.log_in()
    csrf = await site.csrf()
    first, base = site.cookie, site.base
    await site.log_in()
    for fields in ({}, {"csrf": ""}, {"csrf": csrf}, {"csrf": csrf + "a"}):
        for path in ("/page/act", "/logout"):
            answer, text = await site.call("POST", path, site.own, data=fields)
            assert answer.status == 403
            # This is what a script puts in the place of the page.
            assert '<main id="main"' in text
    in_url = f"/page/act?csrf={await site.csrf()}"
    assert (await site.call("POST", in_url, site.own))[0].status == 403
    assert not site.node.changed
    data = {"csrf": csrf}
    first = await site.call("POST", f"{base}/page/act", site.own, cookie=first, data=data)
    assert first[0].status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"csrf=%b&name=" + b"x" * app.FORM_BYTES_MAX, 413),
        (b"csrf=%b" + b"&a=1" * app.FIELDS_MAX, 400),
        (b"csrf=%b&name=\xff", 400),
        (b"csrf=%b&name=%%ff&=&&", 200),
    ],
)
async def test_a_form_that_is_none_is_refused(site, body, status):
    await site.log_in()
    body = body.replace(b"%b", (await site.csrf()).encode()).replace(b"%%", b"%")
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer, _ = await site.call("POST", "/page/act", {**site.own, **kind}, data=body)
    assert answer.status == status
    assert len(site.node.changed) == (status == 200)


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "POST"])
async def test_a_page_is_read_alone(site, method):
    await site.log_in()
    for path in ("/page", "/history", "/events", "/welcome", "/static/style.css"):
        answer, text = await site.call(method, path, site.own)
        assert answer.status in {400, 403, 404}
        assert SECRET not in text
    if method != "POST":
        assert (await site.call(method, "/page/act", site.own))[0].status == 400


async def test_an_action_is_no_page(site):
    await site.log_in()
    assert (await site.call("GET", "/page/act"))[0].status == 400
    assert (await site.call("GET", "/logout"))[0].status == 404
    assert (await site.call("GET", "/page"))[0].status == 200


async def test_what_is_no_path_of_the_dashboard_is_the_apis(site):
    await site.log_in()
    for path in ("/nothing", "/page/", "/static/", "/static/README.md", "/static/../app.py"):
        assert (await site.call("GET", path))[0].status == 401
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        answer, text = await site.call("GET", path, bearer)
        assert (answer.status, '"not_found"' in text) == (404, True)


@pytest.mark.parametrize(
    ("ending", "kinds"),
    [
        (".js", {"text/javascript", "application/javascript"}),
        (".css", {"text/css"}),
        (".svg", {"image/svg+xml"}),
    ],
)
async def test_files_need_no_session_and_have_their_types(site, ending, kinds):
    paths = [path for path in app._FILES if path.endswith(ending)]
    assert paths
    for path in paths:
        answer, text = await site.call("GET", path, cookie="")
        assert answer.status == 200
        assert answer.content_type in kinds
        assert text
        assert answer.headers["Cache-Control"] == "max-age=3600"


async def test_every_page_says_that_it_runs_no_script_but_our_own(site):
    await site.log_in()
    answer, text = await site.call("GET", "/page")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.findall(r"<script(?! src=)|\son\w+=|\sstyle=|<style|javascript:", text)
    assert re.findall(r'(?:src|href|action)="(?!/|#)', text) == []


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", HOSTILE, '"><img src=x>', "\x1b[2J"])
async def test_a_name_is_a_text_however_long(site, name):
    await site.log_in()
    site.node.name = name
    _, text = await site.call("GET", "/page")
    assert "<script>alert" not in text
    assert "<img" not in text
    assert "\x1b" not in text
    assert len(text) < 10_000


async def test_what_a_query_says_stays_a_text(site):
    await site.log_in()
    for query in ("wrong=1", "%ff=%fe", "a=%00", "a=" + "x" * 5_000, "wrong=<script>", "&&=&="):
        answer, text = await site.call("GET", f"/page?{query}")
        assert answer.status == (400 if "wrong" in query else 200)
        assert "<script>alert" not in text


async def test_a_bug_is_a_page_without_its_trace(site):
    await site.log_in()
    answer, text = await site.call("GET", "/page?bug=1")
    assert (answer.status, answer.content_type) == (500, "text/html")
    assert SECRET not in text
    assert "its log has the trace" in text


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "²", "1" * 5_000])
async def test_a_time_that_is_none_is_refused(site, text):
    await site.log_in()
    assert (await site.call("GET", f"/history?within_ms={text}"))[0].status == 400
    answer, told = await site.call("GET", "/history?within_ms=60000")
    assert (answer.status, told) == (200, '{"samples": [], "total": 0}')


async def test_who_logs_out_is_out(site):
    await site.log_in()
    cookie, base = site.cookie, site.base
    await site.log_in()
    answer, text = await site.post("/logout")
    assert answer.status == 401
    assert f"Path={site.base}" in answer.headers["Set-Cookie"]
    assert "Max-Age=0" in answer.headers["Set-Cookie"]
    assert "logged out" in text
    assert (await site.call("GET", "/page"))[0].status == 401
    assert (await site.call("GET", f"{base}/page", cookie=cookie))[0].status == 200


class Tab:
    """One open event stream."""

    def __init__(self, site, seen=""):
        headers = {"Cookie": site.cookie, "Sec-Fetch-Site": "same-origin"}
        self.sent = site.http.get(f"{site.base}/events?seen={seen}", headers=headers)
        self.site = site

    async def open(self):
        self.answer = await self.sent
        self.site.tabs.append(self)
        assert self.answer.content_type == "text/event-stream"
        return self

    async def event(self):
        return (await self.answer.content.readuntil(b"\n\n")).decode()

    async def rest(self):
        return (await self.answer.content.read()).decode()


async def test_a_tab_hears_of_each_change_and_of_nothing_now_and_then(site):
    await site.log_in()
    tab = await Tab(site).open()
    assert await tab.event() == "data: 1\n\n"
    for count in ("2", "3"):
        site.node.count = count
        site.look()
        assert await tab.event() == f"data: {count}\n\n"
    for _ in range(app.BEAT_LOOKS):
        await settle()
        site.look()
    assert await tab.event() == "data: 3\n\n"


async def test_what_changed_while_a_page_was_on_its_way_is_told_at_once(site):
    await site.log_in()
    _, text = await site.call("GET", "/page")
    seen = re.search('name="xsc-changes" content="([^"]+)"', text)[1]
    site.node.count = "2"
    assert await (await Tab(site, seen).open()).event() == "data: 2\n\n"


async def test_a_fifth_tab_ends_the_oldest(site):
    await site.log_in()
    tabs = [await Tab(site).open() for _ in range(app.STREAMS_MAX + 1)]
    for tab in tabs:
        assert await tab.event() == "data: 1\n\n"
    site.look()
    assert await tabs[0].rest() == "event: over\ndata:\n\n"
    site.node.count = "2"
    site.look()
    for tab in tabs[1:]:
        assert await tab.event() == "data: 2\n\n"


async def test_who_logs_out_is_told_of_nothing_more(site):
    await site.log_in()
    tab = await Tab(site).open()
    await tab.event()
    await site.post("/logout")
    site.look()
    assert await tab.rest() == "event: over\ndata:\n\n"


async def test_a_node_that_stops_ends_all_streams(site):
    await site.log_in()
    tabs = [await Tab(site).open() for _ in range(app.STREAMS_MAX)]
    for tab in tabs:
        await tab.event()
    site.pages.end()
    site.look()
    for tab in tabs:
        assert await tab.rest() == "event: over\ndata:\n\n"


async def test_another_page_may_not_follow(site):
    await site.log_in()
    for headers in ({}, {"Sec-Fetch-Site": "same-site"}, {**site.own, "Origin": "http://a.b"}):
        assert (await site.call("GET", "/events", headers))[0].status == 403


def session_of(site):
    return site.sessions.of(site.cookie.partition("=")[2])


async def test_a_thousand_streams_of_a_session_are_four(site):
    await site.log_in()
    headers = {"Host": site.host, "Cookie": site.cookie, **site.own}

    def following():
        return site.answer(make_mocked_request("GET", f"{site.base}/events", headers=headers))

    open_ = [asyncio.ensure_future(following()) for _ in range(1_000)]
    await settle()
    assert len(session_of(site).streams) == app.STREAMS_MAX
    site.look()
    await settle()
    assert [task.done() for task in open_] == [True] * 996 + [False] * 4
    site.pages.end()
    site.look()
    await asyncio.gather(*open_)
    assert session_of(site).streams == []


async def test_who_stops_reading_is_cut_off(site, monkeypatch):
    monkeypatch.setattr(app, "WRITE_S", 0.01)
    await site.log_in()
    # More than the system holds of what nobody reads.
    site.node.count = "v" * (64 << 20)
    _, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=1)
    head = f"GET {site.base}/events HTTP/1.1\r\nHost: {site.host}\r\nCookie: {site.cookie}\r\n"
    writer.write(f"{head}Sec-Fetch-Site: same-origin\r\n\r\n".encode())
    await until(lambda: session_of(site).streams)
    await until(lambda: not session_of(site).streams)
    await site.server.answered(10_000)
    writer.close()


async def test_a_tab_that_is_gone_is_counted_no_more(site):
    await site.log_in()
    tab = await Tab(site).open()
    await tab.event()
    tab.answer.close()
    await settle()
    for count in ("2", "3", "4"):
        site.node.count = count
        site.look()
        await settle()
    assert session_of(site).streams == []
