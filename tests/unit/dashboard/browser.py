"""A browser that is logged in at a node, without a socket, and the API beside it."""

import asyncio
import json
import re
from html import unescape
from urllib.parse import urlencode

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from xsc.base.ids import to_text
from xsc.base.log import SilentLog
from xsc.dashboard.app import Dashboard
from xsc.node.api.app import application
from xsc.node.api.serving import Server
from xsc.node.daemon import ANSWERS

HOST = "127.0.0.1:4000"
TOKEN = "t" * 52
NUMBER = re.compile(r'<data value="(-?[0-9]+)" data-from="([^"]+)">')


class Loud(SilentLog):
    """Does not hide what went wrong."""

    def error(self, event, **fields):
        raise AssertionError((event, *fields.values()))


class Arriving(BaseProtocol):
    """Of a request in a test: its body is there already, or breaks off."""


class Written(AbstractStreamWriter):
    """Keeps what is written."""

    def __init__(self):
        self.body = b""

    async def write(self, chunk):
        self.body += bytes(chunk)

    async def write_eof(self, chunk=b""):
        self.body += chunk

    async def drain(self):
        pass

    async def write_headers(self, status_line, headers):
        pass

    def enable_compression(self, *_):
        pass

    def enable_chunking(self):
        pass


class Answer:
    """What came back."""

    def __init__(self, response, written, base):
        self.status, self.headers = response.status, response.headers
        self.body = written.body if not isinstance(response, web.Response) else response.body
        # Links are shown without what those of the session begin with.
        self.text = self.body.decode(errors="replace").replace(base, "")

    @property
    def seen(self):
        """What is read on the page, tags left out."""
        return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", self.text)))

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def numbers(self):
        """Value and origins of each number of the page."""
        found = NUMBER.findall(self.text)
        assert len(found) == self.text.count("<data")
        return [(int(value), unescape(origin).split()) for value, origin in found]


def at(document, pointer):
    """Return what is at a JSON pointer (RFC 6901)."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        document = document[int(key) if isinstance(document, list) else key]
    return document


class Browser:
    def __init__(self, node):
        self.node = node
        self.server = Server(node, ANSWERS)
        own = to_text(node.key.node_id)
        pages = Dashboard(self.server, own, node.sessions, node.clock)
        self.answer = application(
            self.server.routes(), TOKEN, Loud(), node.peer_names, dashboard=pages
        )
        token = node.sessions.open(node.sessions.new_code())
        self.session = node.sessions.of(token)
        self.csrf = self.session.csrf
        self.cookie = f"xsc_{own}={token}"

    def full(self, path):
        """Return a path of a page with what those of the session begin with."""
        return path if path.startswith("/v1/") else self.session.base + path

    async def ask(self, method, path, body=b"", breaks=None, **headers):
        stream = StreamReader(Arriving(asyncio.get_running_loop()), len(body) + 1)
        stream.feed_data(body)
        if breaks is None:
            stream.feed_eof()
        else:
            stream.set_exception(breaks)
        sent = {"Host": HOST, "Cookie": self.cookie, "Content-Length": str(len(body))}
        if method == "POST":
            sent |= {"Origin": f"http://{HOST}", "Sec-Fetch-Site": "same-origin"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        written = Written()
        request = make_mocked_request(
            method, self.full(path), headers=sent, payload=stream, writer=written
        )
        return Answer(await self.answer(request), written, self.session.base)

    async def get(self, path):
        return await self.ask("GET", path)

    async def shown(self, path):
        """Return the text of a page that is there, each of whose numbers is what the API says."""
        answer = await self.get(path)
        assert answer.status == 200, (path, answer.seen)
        await self.check_numbers(answer)
        return answer.text

    async def post(self, path, **fields):
        return await self.ask("POST", path, urlencode({"csrf": self.csrf, **fields}).encode())

    async def api(self, path):
        """Return what the API says at a path."""
        answer = await self.ask("GET", path, Authorization=f"Bearer {TOKEN}")
        assert answer.status == 200, (path, answer.text)
        return answer.json

    async def check_numbers(self, answer):
        """Check that every number of a page is what the API says there."""
        documents = {}
        for value, origins in answer.numbers:
            parts = 0
            for origin in origins:
                path, _, pointer = origin.partition("#")
                if path not in documents:
                    documents[path] = await self.api(path)
                parts += at(documents[path], pointer)
            assert value == parts, origins

    async def put(self, name, body, **sent):
        return await self.ask(
            "POST", "/storage/put", body, **{"XSC_CSRF": self.csrf, "XSC_Name": name, **sent}
        )
