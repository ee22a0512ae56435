"""Small real parts that stand where net and db will: everything in this process."""

from dataclasses import dataclass, field

from xsc.base.encoding import decode, encode
from xsc.base.errors import PeerSilent, SpaceExhausted


class Memory:
    """An ordered key-value store that survives whoever holds it."""

    def __init__(self):
        self.table = {}
        self.synced = 0
        self.writes = 0
        self.full = False

    def get(self, key):
        return self.table.get(key)

    def scan(self, start, stop=None, *, reverse=False):
        keys = [key for key in self.table if key >= start and (stop is None or key < stop)]
        for key in sorted(keys, reverse=reverse):
            yield key, self.table[key]

    def write(self, changes, *, sync):
        if self.full:
            raise SpaceExhausted("the disk is full")
        self.synced += sync
        self.writes += 1
        for key, value in changes:
            if value is None:
                self.table.pop(key, None)
            else:
                self.table[key] = value

    def compact(self, start, stop):
        pass

    def disk_bytes(self, start, stop):
        return 0

    def close(self):
        pass


@dataclass
class Answer:
    header: dict
    parts: list = field(default_factory=list)


@dataclass
class Wire:
    """Carries calls between services by node id; headers go through the encoding."""

    handlers: dict = field(default_factory=dict)
    down: set = field(default_factory=set)
    calls: list = field(default_factory=list)

    def caller(self, own):
        return Caller(self, own)

    def peers(self, own):
        return Known(self, own)


@dataclass
class Caller:
    wire: Wire
    own: bytes

    async def call(self, peer, method, header, parts=(), *, timeout_ms=None):
        self.wire.calls.append((self.own, peer, method))
        if peer in self.wire.down or self.own in self.wire.down or peer not in self.wire.handlers:
            raise PeerSilent("the peer does not answer")
        handler = self.wire.handlers[peer][method]
        answer, bodies = await handler(self.own, decode(encode(header)), parts)
        return Answer(decode(encode(answer)), [memoryview(body) for body in bodies])


@dataclass
class Known:
    wire: Wire
    own: bytes

    def peers(self):
        return sorted(node for node in self.wire.handlers if node != self.own)

    def introducer_of(self, node):
        return ""
