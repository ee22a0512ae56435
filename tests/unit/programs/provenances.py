"""Nodes whose programs' frames are recorded, for tests."""

from __future__ import annotations

from xsc.base.errors import NotFound
from xsc.identity.envelope import sign
from xsc.identity.keys import KeyPair
from xsc.programs.frame import Execution, external_value
from xsc.programs.numbers import to_space
from xsc.programs.provenance import Recorder
from xsc.programs.why import Why
from xsc.space.itc import event_bytes
from xsc.space.record import Entry, SpaceRecord, value_digest

NETWORK = b"n" * 32


class MemorySpace:
    """The space of one node: signed records without causality."""

    def __init__(self, key):
        self.key = key
        self.owner = key.node_id
        self.entries = {}
        self.sequence = 0

    def write(self, values):
        for path, value in values.items():
            self.sequence += 1
            record = SpaceRecord(
                path=path,
                sequence=self.sequence,
                written_ms=0,
                domain=bytes(32),
                stamp=event_bytes(0),
                digest=value_digest(value),
                size_bytes=len(value),
            )
            self.entries[path] = Entry(sign(record, self.key, NETWORK), value)

    def ls(self, prefix):
        return [
            entry.signed.record
            for path, entry in self.entries.items()
            if path.startswith(prefix + "/")
        ]

    def get(self, path):
        if path not in self.entries:
            raise NotFound(f"nothing is at '{path}'")
        return self.entries[path]


class Runner:
    """One node: its space, its programs, and what they read of the spaces of others."""

    def __init__(self, number=1, others=()):
        self.key = KeyPair(bytes([number]) * 32)
        self.space = MemorySpace(self.key)
        self.spaces = {self.owner: self.space} | {other.owner: other.space for other in others}
        self.programs = {}
        self.restart()

    @property
    def owner(self):
        return self.key.node_id

    def restart(self):
        self.recorder = Recorder(self.space, self.key, NETWORK)

    async def frame(self, program, given=None):
        """Run a frame of a compiled program: what it reads enters, what it gives is written."""
        execution = self.programs.setdefault(program.hash, Execution.begin(program))
        externals, sources = dict(given or {}), {}
        for name, (variable, _) in program.variables.items():
            if variable.kind == "subscription" and name not in externals:
                owner = variable.owner or self.owner
                entry = self.spaces[owner].entries.get(variable.path)
                externals[name] = external_value(variable, entry and entry.value)
                if entry is not None:
                    sources[name] = (owner, entry.signed)
        result = execution.run(externals)
        written = self.recorder.record(program, result, sources, {})
        for ran in result.executed:
            for output, value in zip(ran.step.outputs, ran.outputs, strict=True):
                if output.path and output.name in result.changed:
                    written[output.path] = to_space(output.slot.type, value)
        self.space.write(written)
        return result

    async def read(self, owner, path):
        return self.spaces[owner].get(path)

    async def why(self, path, owner=None):
        return await Why(self.read, NETWORK).walk(owner or self.owner, path)
