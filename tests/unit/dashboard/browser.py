"""A browser that is logged in at a node, in one process and without a socket."""

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
from xsc.dashboard.app import Dashboard
from xsc.node.api.serving import Server
from xsc.node.daemon import ANSWERS

HOST = "127.0.0.1:4000"
NUMBER = re.compile(r'<data value="(-?[0-9]+)" data-from="([^"]*)">')


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

    def __init__(self, response, written):
        self.status, self.headers = response.status, response.headers
        self.body = written.body if not isinstance(response, web.Response) else response.body
        self.text = self.body.decode(errors="replace")

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
        return [(int(value), unescape(origin).split()) for value, origin in found]


class Browser:
    def __init__(self, node):
        self.node = node
        self.server = Server(node, ANSWERS)
        own = to_text(node.key.node_id)
        self.dashboard = Dashboard(self.server, own, node.sessions, node.clock)
        token = node.sessions.open(node.sessions.new_code())
        self.csrf = node.sessions.of(token).csrf
        self.cookie = f"xsc_{own}={token}"

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
        request = make_mocked_request(method, path, headers=sent, payload=stream, writer=written)
        return Answer(await self.dashboard.answer(request), written)

    async def get(self, path):
        return await self.ask("GET", path)

    async def post(self, path, **fields):
        return await self.ask("POST", path, urlencode({"csrf": self.csrf, **fields}).encode())

    async def put(self, name, body, **sent):
        return await self.ask(
            "POST", "/storage/put", body, **{"XSC_CSRF": self.csrf, "XSC_Name": name, **sent}
        )
