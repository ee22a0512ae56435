"""The dashboard in a real browser, before a circle of seven real nodes."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shutil
import sys
import urllib.request
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.apps.friends import NAMES, Friends, fill, shares
from tests.e2e.conftest import wait_for
from xsc.api import objects
from xsc.api.endpoint import headers_of
from xsc.base import units
from xsc.base.limits import KIB
from xsc.client.core import find_place

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("`apt install chromium` is needed", allow_module_level=True)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
AXE = Path(importlib.util.find_spec("axe_playwright_python").origin).with_name("axe.min.js")
PAGES = ("/circle", "/storage", "/market", "/allocation", "/ledger", "/compute", "/programs")
TRIES = 10
"""How often a page is compared anew where a number changed between page and API."""
LONG_MS = 60_000
"""No test waits for it: what never comes fails after it."""

KEYED = """[...document.querySelectorAll(
    "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']"
)].filter((each) => each.checkVisibility() && !each.disabled)"""
FOCUSED = f"""(() => {{
    const style = getComputedStyle(document.activeElement);
    const shown = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
    return [{KEYED}.indexOf(document.activeElement), shown];
}})()"""
TRANSFER = """([name, text]) => {
    const made = new DataTransfer();
    made.items.add(new File([Uint8Array.from(atob(text), (each) => each.charCodeAt(0))], name));
    return made;
}"""
PICTURES = {
    "/allocation": ("body", 860),
    "/storage": ("section[aria-labelledby=objects]", 860),
    "/circle": ("body", 860),
    "/ledger": ("body", 730),
}
"""Pages, and which part of each is seen in a window of which height in pixels."""
PICTURE_BYTES_MAX = 150 * KIB

pytestmark = pytest.mark.timeout(600)
expect.set_options(timeout=LONG_MS)


@pytest.fixture(scope="module")
def circle(tmp_path_factory):
    net = Friends(tmp_path_factory.mktemp("friends"))
    net.up(len(NAMES))
    fill(net)
    yield net
    net.down()


@pytest.fixture
def ada(circle):
    return circle.named("Ada")


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Browser:
    """A browser of its own; it notes what goes wrong, and which hosts its pages ask."""

    def __init__(self, context):
        self.context = context
        self.wrong: list[str] = []
        self.hosts: set[str] = set()
        context.set_default_timeout(LONG_MS)
        context.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname))
        context.on("weberror", lambda error: self.wrong.append(str(error.error)))
        context.on("console", self._hear)

    def _hear(self, message):
        if message.type in {"error", "warning"}:
            self.wrong.append(f"{message.page.url if message.page else ''}: {message.text}")

    def log_in(self, member, path="/circle"):
        """Open a node's dashboard by the link that the command line prints."""
        page = self.context.new_page()
        page.goto(member("dashboard").line)
        page.wait_for_url("**/circle")
        if path != "/circle":
            page.goto(beside(page, path))
        return page


def beside(page, path):
    """Return the address of another page of the session that a page is of."""
    return re.match(r"http://[^/]+/s/[a-z2-7]+", page.url)[0] + path


def at(member, path):
    place = find_place(member.home)
    return f"http://{place.host}:{place.port}{path}"


@contextmanager
def opened(chromium, **options):
    browser = Browser(chromium.new_context(**{"reduced_motion": "reduce", **options}))
    try:
        yield browser
    finally:
        browser.context.close()


@pytest.fixture
def browser(chromium):
    with opened(chromium) as own:
        yield own
        assert own.wrong == []
        assert own.hosts == {"127.0.0.1"}


def ask(member, path, headers):
    """Return the answer of the API to a path."""
    token = find_place(member.home).token
    headers = {**headers, "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(at(member, path), headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def found(document, pointer):
    """Return what a JSON pointer (RFC 6901) says; None where nothing is there now."""
    for key in pointer.split("/")[1:]:
        name = key.replace("~1", "/").replace("~0", "~")
        try:
            document = document[int(name) if isinstance(document, list) else name]
        except (KeyError, IndexError):
            return None
    return document


NUMBERS = """[...document.querySelectorAll("[data-from]")].map(
    (each) => [each.dataset.from, Number(each.getAttribute("value")), each.textContent])"""


def texts(value):
    """Return how a number may be written."""
    made = [
        str(value),
        f"{value:,}",
        units.format_credits(value),
        units.format_credits(abs(value)),  # Words beside it say who owes whom.
        units.format_level("compute", value),
    ]
    if value >= 0:
        made += [
            units.format_size(value),
            units.format_share(value),
            units.format_duration(value),
            units.format_duration(value * 1000),
            units.format_time(value),
            units.format_level("storage", value),
        ]
    return made


def compared(page, member, headers):
    """Compare what a page shows with the API, and return how many numbers agree, and which do not.

    A number may change at any moment, so it is that of an answer before the page, or of one after
    it, or in between.
    """
    paths = {
        origin.partition("#")[0]
        for origins, *_ in page.evaluate(NUMBERS)
        for origin in origins.split()
    }
    before = {path: ask(member, path, headers) for path in paths}
    page.reload()
    shown = page.evaluate(NUMBERS)
    after = {path: ask(member, path, headers) for path in paths}

    def totals(origins):
        for documents in (before, after):
            parts = (origin.partition("#") for origin in origins.split())
            values = [found(documents.get(path), pointer) for path, _, pointer in parts]
            if None not in values:
                yield sum(values)

    wrong = []
    for origins, value, text in shown:
        known = [*totals(origins)]
        if not known or not min(known) <= value <= max(known) or text.strip() not in texts(value):
            wrong.append((origins, value, text, known))
    return len(shown), wrong


def check_numbers(page, member, **headers):
    """Have all numbers of a page agree with the API at the same time."""
    for _ in range(TRIES):
        count, wrong = compared(page, member, headers)
        if not wrong:
            break
    assert wrong == []
    assert count > 0


def said(member):
    """Return the lines of a node's log."""
    whole, _, _ = (member.home / "node.log").read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


def bars(page):
    """Return how long each part of the bars of Ada's compute is; others move by themselves."""
    return page.evaluate("""[...document.querySelectorAll("article.slot")].filter(
        (each) => each.querySelector("h3").textContent.trim() === "Compute of Ada").flatMap(
        (each) => [...each.querySelectorAll(".bar rect:not(.ground)")]).map(
        (each) => [each.getAttribute("x"), each.getAttribute("width"), each.textContent])""")


def test_a_link_logs_in_once_and_every_page_opens(chromium, ada):
    with opened(chromium) as browser:
        link = ada("dashboard").line
        page = browser.context.new_page()
        page.goto(link)
        page.wait_for_url("**/circle")
        expect(page).to_have_title("Circle · Ada · XSC")
        menu = page.get_by_role("navigation", name="Pages").get_by_role("link")
        hrefs = [each.get_attribute("href") for each in menu.all()]
        assert [re.sub(r"^/s/[a-z2-7]+", "", href) for href in hrefs] == [*PAGES]
        for place, path in enumerate(PAGES):
            menu.nth(place).click()
            page.wait_for_url(f"**{path}")
            expect(menu.nth(place)).to_have_attribute("aria-current", "page")
            expect(page.get_by_role("heading", level=1)).to_have_count(1)
        (cookie,) = browser.context.cookies()
        found = {name: cookie[name] for name in ("name", "httpOnly", "sameSite")}
        assert found == {"name": f"xsc_{ada.id}", "httpOnly": True, "sameSite": "Strict"}
        assert browser.wrong == []
        assert cookie["path"] == re.match(r"/s/[a-z2-7]+", hrefs[0])[0]
        old = [beside(page, path) for path in PAGES]
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_text("this browser is logged out")).to_be_visible()
        # Neither the old link, nor the old cookie, nor what the browser remembers shows anything.
        assert page.goto(link).status == 403
        browser.context.add_cookies([cookie])
        for address in old:
            assert page.goto(address).status == 401
            assert page.locator("[data-from]").count() == 0
        page.go_back()
        assert page.locator("[data-from]").count() == 0


def test_the_pictures_of_the_docs_are_small(chromium, ada, tmp_path):
    folder = Path(os.environ.get("DASHBOARD_PICTURES", tmp_path))
    with opened(chromium) as browser:
        page = browser.log_in(ada)
        for path, (part, height) in PICTURES.items():
            page.set_viewport_size({"width": 1280, "height": height})
            page.goto(beside(page, path))
            picture = folder / f"dashboard-{path[1:]}.png"
            if part == "body":
                page.screenshot(path=picture)
            else:
                page.locator(part).screenshot(path=picture)
            assert picture.stat().st_size <= PICTURE_BYTES_MAX


@pytest.mark.parametrize("path", PAGES)
def test_every_number_of_a_page_is_what_the_api_says(browser, ada, path):
    check_numbers(browser.log_in(ada, path), ada)


def test_every_number_of_an_object_is_what_the_api_says(browser, ada):
    page = browser.log_in(ada, "/storage")
    page.get_by_role("link", name="photos/wedding.tar").click()
    expect(page.get_by_role("heading", name="Who holds it")).to_be_visible()
    (capability,) = (
        row["capability"]
        for row in ada("store ls --json").json["objects"]
        if row["name"] == "photos/wedding.tar"
    )
    # No address has the capability in it.
    assert capability not in page.url
    check_numbers(page, ada, **{headers_of(objects.Capability)["capability"]: capability})


@pytest.mark.parametrize("how", ["dropped", "chosen"])
def test_a_file_is_stored_at_hosts_and_comes_back_the_same(browser, ada, tmp_path, how):
    # Its name is a text, whatever a browser would take it for.
    name, content = f"<img src=x onerror=alert(1)> {how}", os.urandom(300_000)
    page = browser.log_in(ada, "/storage")
    if how == "dropped":
        handed = page.evaluate_handle(TRANSFER, [name, base64.b64encode(content).decode()])
        page.dispatch_event("#drop", "drop", {"dataTransfer": handed})
    else:
        file = {"name": name, "mimeType": "text/html", "buffer": content}
        page.get_by_label("Drop files here").set_input_files(file)
    row = page.get_by_role("row").filter(has_text=name)
    expect(row).to_be_visible()
    hosts = row.locator(".hosts .node").all_inner_texts()
    assert len({*hosts} & {*NAMES}) == 6, hosts
    with page.expect_download() as saved:
        row.get_by_role("button", name="Get").click()
    saved.value.save_as(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


def test_a_slider_moved_by_keys_moves_the_bars(browser, ada):
    before = shares(ada)
    assert before.keys() == {"Ben", "Cleo"}
    page = browser.log_in(ada, "/allocation")
    drawn = bars(page)
    slider = page.get_by_role("slider", name="Ben")
    slider.focus()
    page.keyboard.press("Home")
    said = page.get_by_role("status")
    expect(said).to_contain_text("Ben is recognised with 0.0%")
    wait_for(lambda: shares(ada) != before)
    wait_for(lambda: bars(page) != drawn)
    # More than all of it is refused, and said.
    expect(slider).to_be_focused()
    page.keyboard.press("End")
    expect(said).to_contain_text("of the recognition is left")
    expect(slider).to_have_value("0")
    (refused,) = browser.wrong
    assert "400 (Bad Request)" in refused
    browser.wrong.clear()
    assert ada("peer recognise Ben 40%").code == 0
    wait_for(lambda: shares(ada) == before)
    wait_for(lambda: bars(page) == drawn)
    expect(slider).to_have_value("400000")


def test_a_killed_friend_is_shown_once_the_log_says_it(browser, ada, circle):
    gwen = circle.named("Gwen").id
    page = browser.log_in(ada)
    row = page.locator(f"#peer-{gwen}")
    expect(row.get_by_text("up", exact=True)).to_be_visible()
    circle.kill([{"name": f"node-{NAMES.index('Gwen')}"}])
    seen_ms = page.wait_for_function(
        """(id) => document.querySelector(`#peer-${id} .tag`).textContent === "down"
            && Date.now()""",
        arg=gwen,
    ).json_value()
    (line,) = (
        line
        for line in said(ada)
        if line["event"] == "health.down" and gwen.startswith(line["peer"])
    )
    logged_ms = datetime.fromisoformat(line["time"]).timestamp() * 1000
    sys.stdout.write(f"a kill is on the page {seen_ms - logged_ms:.0f} ms after the log has it\n")
    assert seen_ms >= logged_ms
    circle.up()
    expect(row.get_by_text("up", exact=True)).to_be_visible()


@pytest.mark.parametrize("path", PAGES)
def test_all_of_a_page_is_reached_by_keys_alone_and_seen(browser, ada, path):
    page = browser.log_in(ada, path)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the page")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to the page")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.goto(beside(page, path))
    everything = page.evaluate(f"{KEYED}.length")
    for place in range(everything):
        page.keyboard.press("Tab")
        assert page.evaluate(FOCUSED) == [place, True], page.evaluate(
            "document.activeElement.outerHTML"
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_is_wider_than_its_window_or_hard_to_read(browser, ada, scheme):
    page = browser.log_in(ada)
    page.emulate_media(color_scheme=scheme)
    for path in PAGES:
        page.goto(beside(page, path))
        for width in (320, 1600):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
        page.evaluate(AXE.read_text())
        faults = page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
        assert [(path, each["id"], each["nodes"][0]["html"]) for each in faults] == []


def test_seven_tabs_and_those_of_another_node_all_follow(browser, ada, circle):
    ben = circle.named("Ben")
    eva = circle.named("Eva").id
    tabs = [browser.log_in(ada)]
    for _ in range(6):
        tabs.append(browser.context.new_page())
        tabs[-1].goto(tabs[0].url)
    other = browser.log_in(ben)
    expect(other).to_have_title("Circle · Ben · XSC")
    for member in (ada, ben):
        assert member(f"peer recognise {eva} 5%").code == 0
    for tab in (*tabs, other):
        expect(tab.locator(f"#weight-{eva}")).to_have_value("50000")
    assert len(browser.context.cookies()) == 2


def test_a_page_says_that_its_node_is_away_and_shows_nothing_to_who_is_not_logged_in(
    chromium, circle
):
    place = NAMES.index("Finn")
    finn = circle[place]
    with opened(chromium) as browser:
        page = browser.log_in(finn)
        circle.process(place).terminate()
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        assert page.locator("[data-from]").count() > 0
        assert circle.process(place).wait(60) == 0
