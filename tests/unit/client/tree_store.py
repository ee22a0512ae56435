"""A stand-in for the calls of a node that stores directories."""

import hashlib
import threading
from contextlib import contextmanager

from xsc.base.errors import NodeUnreachable, ObjectUnknown
from xsc.client.files import write_whole


class Store:
    """What a node does with names, parts and contents; it can break off."""

    def __init__(self):
        self.contents = {}
        self.names = {}
        self.kept_parts = {}
        self.sent = []
        self.fetched = []
        self.breaks_after = None
        self.said = {}
        self.asked = []
        self.now_ms = 0
        self.lock = threading.Lock()
        self.before_read = lambda part: None

    def put(self, source, *, name="", part="", size_bytes=0, progress=None, **_):
        with self.lock:
            if self.breaks_after is not None and len(self.sent) >= self.breaks_after:
                raise NodeUnreachable("gone")
            self.before_read(part)
            data = b""
            while block := source.read(1000):
                data += block
            self.now_ms += 1
            text = hashlib.sha256(str(self.now_ms).encode()).hexdigest()
            capability = "xsc:r:" + text.translate(str.maketrans("0189", "zyxw")) * 2
            self.contents[capability] = data
            self.sent.append(name or part)
            if part:
                self.kept_parts[capability] = (part, self.now_ms)
            else:
                self.names.setdefault(name, []).insert(0, (capability, self.now_ms))
        return {"capability": capability, "name": name, "warnings": []}

    def named(self, name, version=None):
        found = [capability for capability, _ in self.names.get(name, [])]
        if version is not None:
            found = found[::-1][version - 1 : version]
        if not found:
            raise ObjectUnknown("no such name")
        return found

    def parts(self, tree):
        return [
            {"part": part.split("/")[1], "capability": capability, "created_ms": created_ms}
            for capability, (part, created_ms) in self.kept_parts.items()
            if part.startswith(tree)
        ]

    def objects(self, prefix, *, versions):
        assert versions
        return {
            "objects": [
                {"name": name, "created_ms": created_ms}
                for name, rows in self.names.items()
                for _, created_ms in rows
                if name.startswith(prefix)
            ]
        }

    def remove(self, capability):
        del self.contents[capability]
        self.kept_parts.pop(capability, None)
        for name, rows in list(self.names.items()):
            self.names[name] = [row for row in rows if row[0] != capability]

    @contextmanager
    def open(self, capability, part=None):
        data = self.contents[capability]
        if part is not None:
            first, last = part.split("-")
            data = data[int(first) : int(last) + 1]

        class Download:
            size_bytes = len(data)

            @staticmethod
            def blocks():
                yield data

        yield Download

    def stat(self, capability, watch=None):
        """As the hosts of each object were said to answer; all of them have it otherwise."""
        answer = {
            "size_bytes": len(self.contents.get(capability, b"")),
            "code": {"k": 4, "m": 2},
            "hosts": [{"shard": 0, "node": "a", "state": "ok"}],
            "readable": True,
            "margin": 2,
            "healable": True,
            "ends_ms": None,
            "ending": [],
        }
        self.asked.append(capability)
        said = self.said.get(capability, {})
        if isinstance(said, Exception):
            raise said
        return {**answer, **said}

    def note_fetched(self, capability):
        with self.lock:
            if self.breaks_after is not None and len(self.fetched) >= self.breaks_after:
                raise NodeUnreachable("gone")
            self.fetched.append(capability)

    def read_together(self, capabilities):
        for capability in capabilities:
            self.note_fetched(capability)
        return [self.contents[capability] for capability in capabilities]

    def get(self, capability, path, watch):
        self.note_fetched(capability)
        with watch(None) as progress:
            progress(0)
        return write_whole(path, [self.contents[capability]])
