"""Signs what computations did, and says where in the space it is kept.

The manager writes it together with the outputs, all or nothing. An output keeps its newest
record and some of its ancestors, each at one of a few paths in turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from xsc.base.encoding import tagged_sha256
from xsc.base.errors import XscError
from xsc.base.limits import JOINT_RECORDS_MAX
from xsc.identity.envelope import Signed, open_signed, seal
from xsc.identity.keys import KeyPair
from xsc.programs.compile import CompiledProgram
from xsc.programs.limits import ANCESTORS_MAX, PROVENANCE_BYTES_MAX
from xsc.programs.numbers import digest_of, item_of, value_bytes
from xsc.programs.provenance import (
    Evaluation,
    Input,
    Link,
    ProvenanceRecord,
    event_of,
    kept_of,
    make_records,
    place_of,
)
from xsc.space.paths import UserSpacePaths
from xsc.space.port import Space


@dataclass(frozen=True, slots=True)
class _Known:
    """A record of an output: the newest, or one of its ancestors."""

    link: Link
    number: int
    frame: int
    digest: bytes
    published: bytes | None


class _Chains:
    """The records that one program keeps, by place, the newest last."""

    def __init__(self, program: CompiledProgram) -> None:
        outputs = [(step.id, output) for step in program.steps for output in step.outputs]
        self.program = program.hash
        self.kept = kept_of(len(outputs))
        self.places = {f"{name}.{output.name}": place_of(name, output) for name, output in outputs}
        self.locals = {
            output.local: place_of(name, output) for name, output in outputs if output.local
        }
        self._of: dict[tuple[str, str], deque[_Known]] = {}

    def known(self, place: tuple[str, str] | None) -> list[_Known]:
        """Return the records of a place, the newest first."""
        return [] if place is None else list(reversed(self._of.get(place, ())))

    def add(self, record: ProvenanceRecord, id_: bytes, number: int | None = None) -> str:
        """Take a record in as the newest of its place; return the path where it is."""
        place = place_of(record.computation, record.output)
        chain = self._of.setdefault(place, deque(maxlen=self.kept))
        if number is None:
            number = (chain[-1].number + 1) % self.kept if chain else 0
        event = event_of(place, number)
        link = Link(program=self.program, event=event, record=id_)
        output = record.output
        chain.append(_Known(link, number, record.frame, output.digest, output.published))
        return UserSpacePaths.provenance(self.program, event)

    def number_at(self, record: ProvenanceRecord, path: str) -> int | None:
        """Return which of the records of its place is at a path; None where it does not belong."""
        place = place_of(record.computation, record.output)
        for number in range(self.kept):
            if path == UserSpacePaths.provenance(self.program, event_of(place, number)):
                return number
        return None


class Recorder:
    """Makes the records of one node's programs."""

    def __init__(self, space: Space, key: KeyPair, network: bytes) -> None:
        self._space = space
        self._key = key
        self._owner = key.node_id
        self._network = network
        self._chains: dict[bytes, _Chains] = {}
        self._writers: dict[str, _Chains] = {}

    def record(
        self, program: CompiledProgram, evaluations: Sequence[Evaluation]
    ) -> dict[str, bytes]:
        """Return the signed records of a frame by the paths of the own space where they are kept.

        They are written together with the outputs; where that fails, `forget` the program.
        """
        chains = self._chains_of(program)
        made: list[tuple[ProvenanceRecord, bytes]] = []
        paths: list[str] = []
        pointers: dict[str, bytes] = {}
        for evaluation in evaluations:
            parents = {
                item.name: self._parents(chains, item, evaluation.frame)
                for item in evaluation.inputs
            }
            for record in make_records(evaluation, parents):
                body = record.to_bytes()
                made.append((record, body))
                paths.append(chains.add(record, tagged_sha256(record.KIND, body)))
                path = record.output.path
                if path and self._writers.get(path) is not chains:
                    self._writers[path] = chains
                    pointers[UserSpacePaths.writer(path)] = program.hash
        signed = [
            one.raw
            for begin in range(0, len(made), JOINT_RECORDS_MAX)
            for one in seal(made[begin : begin + JOINT_RECORDS_MAX], self._key, self._network)
        ]
        return dict(zip(paths, signed, strict=True)) | pointers

    def forget(self, program: bytes) -> None:
        """Read again from the space what is kept of a program: it was not written, or is gone."""
        if chains := self._chains.pop(program, None):
            self._writers = {
                path: writer for path, writer in self._writers.items() if writer is not chains
            }

    def _chains_of(self, program: CompiledProgram) -> _Chains:
        if program.hash not in self._chains:
            chains = self._chains[program.hash] = _Chains(program)
            prefix = UserSpacePaths.program_provenance(program.hash)
            for kept in sorted(self._space.ls(prefix), key=lambda item: item.sequence):
                record = self._read(kept.path)
                number = None if record is None else chains.number_at(record.record, kept.path)
                if record is not None and number is not None:
                    chains.add(record.record, record.id, number)
        return self._chains[program.hash]

    def _read(self, path: str) -> Signed[ProvenanceRecord] | None:
        """Return a record of the own space; None where something else stands at its path."""
        value = self._space.get(path).value
        try:
            return open_signed(
                value or b"",
                ProvenanceRecord,
                network=self._network,
                author=self._owner,
                size_max=PROVENANCE_BYTES_MAX,
            )
        except XscError:
            return None  # the user may write there too: what is no record proves nothing

    def _parents(self, chains: _Chains, given: Input, frame: int) -> list[Link]:
        source = given.source
        if source.kind == "computation":
            newest = chains.known(chains.places[source.place])[:1]
            digest = digest_of(value_bytes(given.type, given.value))
            return [known.link for known in newest if known.digest == digest]
        if source.kind == "space" and source.owner == self._owner:
            writer = self._writers.get(source.place)
            known = writer.known(("", source.place)) if writer else []
            return [item.link for item in known if item.published == source.value][:1]
        if source.kind == "local":
            older = [
                known
                for known in chains.known(chains.locals.get(source.place))
                if known.frame < frame
            ]
            return _behind(given, older)
        return []


def _behind(given: Input, known: list[_Known]) -> list[Link]:
    """Return the records whose values a local variable keeps, as far back as both agree."""
    item = item_of(given.type)
    values = given.value if isinstance(given.value, tuple) else (given.value,)
    digests = [digest_of(value_bytes(item or given.type, value)) for value in reversed(values)]
    links: list[Link] = []
    for digest, one in zip(digests, known, strict=False):
        if one.digest != digest or len(links) == ANCESTORS_MAX:
            break
        links.append(one.link)
    return links
