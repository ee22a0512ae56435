"""Pages of nodes in one process, as text, and the numbers on them."""

from __future__ import annotations

from html.parser import HTMLParser

from tests.unit.node.test_routes import Api, serving
from xsc.api import market, monitor
from xsc.api.endpoint import Id, Nothing
from xsc.dashboard import views
from xsc.dashboard.source import fetch


async def rendered(node, page, **query):
    """Return a page of a node as text."""
    there = serving(node)
    shown = await page.gather(there, query)
    measures = await fetch(there, monitor.MEASURES, Nothing())
    return (
        views.environment()
        .get_template(page.template)
        .render(
            page=page, pages=[page], measures=measures, csrf="c", said=None, version="v", **shown
        )
    )


class Data(HTMLParser):
    """The numbers of a page: what each says, its value and where it is from."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "data":
            said = dict(attrs)
            self.found.append((int(said["value"]), said["data-from"]))


async def check_numbers(node, text):
    """Check that every number of a page is what the API says there; return how many there are."""
    api, there, answers = Api(node), serving(node), {}
    numbers = Data(text).found
    for value, origins in numbers:
        summed = 0
        for origin in origins.split():
            path, pointer = origin.split("#/")
            if path not in answers and path.startswith("/v1/allocation/why/"):
                answers[path] = await there.ask(market.WHY, Id(id=path.rsplit("/", 1)[1]))
            elif path not in answers:
                answers[path] = await api.call("GET", path)
            place = answers[path]
            for key in pointer.split("/"):
                place = place[int(key)] if isinstance(place, list) else place[key]
            summed += place
        assert value == summed, origins
    return len(numbers)
