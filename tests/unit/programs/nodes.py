"""A node with a space and programs, and nothing else; several of them pass on what they write."""

from __future__ import annotations

import asyncio
import json

from tests.settle import settle
from xsc.base.clock import InlineExecutor, ManualClock
from xsc.base.errors import ArgumentInvalid, PeerUnknown
from xsc.base.log import SilentLog
from xsc.db.memory import MemoryKeyValue
from xsc.identity.context import Context
from xsc.identity.envelope import open_signed
from xsc.identity.keys import KeyPair
from xsc.programs.functions import Functions
from xsc.programs.provenance import ProvenanceRecord, Recorder
from xsc.programs.running import Ports
from xsc.programs.service import ComputeRuntimeManager
from xsc.space.paths import UserSpacePaths, below
from xsc.space.record import SpaceRecord
from xsc.space.store import SpaceStore

NETWORK = b"n" * 32


class Noting:
    """The recorder, which keeps beside the records that it made."""

    def __init__(self, real):
        self.real, self.made = real, []

    def record(self, program, *frame):
        written = self.real.record(program, *frame)
        prefix = below(UserSpacePaths.PROVENANCE, program.hash)
        for path, raw in written.items():
            if path.startswith(prefix):
                self.made.append(open_signed(raw, ProvenanceRecord, network=NETWORK).record)
        return written

    def forget(self, program):
        self.real.forget(program)


class ProgramNode:
    """A node by its name; `db` and `state` outlive it."""

    def __init__(self, name="alice", db=None, state=None, clock=None, sandbox=None):
        self.name = name
        self.key = KeyPair(name[:1].encode() * 32)
        self.id = self.key.node_id
        self.db, self.state = db or MemoryKeyValue(), state or MemoryKeyValue()
        self.clock, self.sandbox = clock or ManualClock(), sandbox
        self.others, self.watched, self.tasks = {}, [], []
        given = (self.clock, None, InlineExecutor(), None, SilentLog(), self.state, None)
        context = Context(self.key, NETWORK, *given)
        self.store = SpaceStore(self.db, context)
        self.space = self.store
        self.recorder = Noting(Recorder(self.space, self.key, NETWORK))
        ports = Ports(context, self.space, self, self.find, sandbox, self.recorder)
        self.manager = ComputeRuntimeManager(ports, start=self.start, functions=Functions())

    # What a node gives to programs

    def start(self, name, loop):
        self.tasks.append(asyncio.create_task(loop(), name=name))
        return self.tasks[-1]

    def find(self, name):
        if name == self.name:
            return self.id
        if name == "two":
            raise ArgumentInvalid("more than one peer is called 'two'")
        if name not in self.others:
            raise PeerUnknown(f"no peer is called '{name}'")
        return self.others[name].id

    def watch(self, owner, prefix):
        self.watched.append((owner, prefix))

    def unwatch(self, owner, prefix):
        self.watched.remove((owner, prefix))

    async def read(self, owner, path):
        other = next(node for node in self.others.values() if node.id == owner)
        return other.space.get(path)

    # What tests do

    def meet(self, other):
        """Let each have at once what the other writes and it watches."""
        for one, two in ((self, other), (other, self)):
            one.others[two.name] = two
            two.space.on_change(lambda change, one=one, two=two: one.told(two, change))

    def told(self, other, change):
        if change.owner == other.id and any(
            owner == other.id and change.path == path for owner, path in self.watched
        ):
            self.tasks.append(asyncio.create_task(self.take(other, change)))

    async def take(self, other, change):
        signed = open_signed(change.signed.raw, SpaceRecord, network=NETWORK, author=other.id)
        await self.space.take(other.id, [(signed, change.value)])

    async def run(self, text, form="toml", **modules):
        raw = text if isinstance(text, bytes) else text.encode()
        program = await self.manager.start(raw, form, modules)
        await settle()
        return program

    async def put(self, path, value):
        await self.space.put(path, value.encode())
        await settle()

    async def pass_ms(self, duration_ms):
        await settle()
        end = self.clock.now_ms() + duration_ms
        while (due := self.clock.next_ms()) is not None and due <= end:
            self.clock.advance_to(due)
            await settle()
        self.clock.advance_to(end)
        await settle()

    def get(self, path):
        return self.space.get(path).value.decode()

    def has(self, path):
        return any(record.path == path for record in self.space.ls(""))

    def outputs(self, program):
        return self.manager.get_results(program).outputs

    async def end(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def again(self, **keys):
        """Return the node as it is after a kill and a start."""
        await self.end()
        keys = {"db": self.db, "state": self.state} | keys
        node = ProgramNode(self.name, clock=self.clock, sandbox=self.sandbox, **keys)
        node.others = self.others
        await node.manager.open()
        await settle()
        return node


def document(variables, computations, **top):
    """Return a document of tables."""
    found = {"id": "test", "variables": variables, "computations": computations, **top}
    return json.dumps(found).encode()
