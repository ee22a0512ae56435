"""What a program writes into the own space: the only place that knows where it goes.

All of one `Writes` is written together, or none of it, so that a kill leaves a whole frame.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping

from xsc.base.ids import to_text
from xsc.programs.frame import Execution, Flags, FrameResult
from xsc.programs.limits import VALUE_BYTES_MAX
from xsc.programs.numbers import Value, to_space
from xsc.space.paths import UserSpacePaths


class Writes:
    """The values of one write, by path; None deletes."""

    def __init__(self) -> None:
        self.values: dict[str, bytes | None] = {}

    def register_program(self, program: bytes, document: bytes) -> None:
        """Keep the definition of a program."""
        self.values[UserSpacePaths.program(program)] = document

    def activate_program(self, program: bytes, document_id: str) -> None:
        """Mark a program as active."""
        self.values[UserSpacePaths.active_program(program)] = document_id.encode()

    def write_variable(self, program: bytes, name: str, kept: bytes) -> None:
        """Keep a variable as it entered a frame, and its cell (`Execution.save_variable`)."""
        self.values[UserSpacePaths.variable(program, name)] = kept

    def write_computation_result(self, program: bytes, computation: str, kept: bytes) -> None:
        """Keep what a computation gave, and how it stands (`Execution.save_step`)."""
        self.values[UserSpacePaths.result(program, computation)] = kept

    def write_output(self, path: str, type_: str, value: Value) -> None:
        """Publish an output as text, at its declared path alone."""
        self.values[path] = to_space(type_, value)

    def write_frame(
        self,
        execution: Execution,
        result: FrameResult,
        entered: Collection[str],
        before: Flags,
        kept: Callable[[str], bytes | None],
    ) -> None:
        """Keep and publish what a frame changed.

        Args:
            execution: after the frame.
            result: of the frame.
            entered: variables that can have changed.
            before: how computations stood when a frame was last written.
            kept: returns what is at a path of the own space.
        """
        program = execution.program
        for name in program.variables:
            if name not in entered:
                continue
            variable, path = execution.save_variable(name), UserSpacePaths.variable
            present = kept(path(program.hash, name))
            given = program.variables[name][0].kind == "given"
            if given and len(variable) > VALUE_BYTES_MAX:
                if present is not None:
                    self.delete(path(program.hash, name))
            elif variable != present:
                self.write_variable(program.hash, name, variable)
        ran, changed = {item.computation for item in result.executed}, set(result.changed)
        flags = execution.flags()
        for step in program.steps:
            if step.id in ran or flags[step.id] != before.get(step.id):
                self.write_computation_result(program.hash, step.id, execution.save_step(step))
            for output in step.outputs:
                value = execution.output(output.name)
                if output.path and output.name in changed and value is not None:
                    self.write_output(output.path, output.slot.type, value)

    def write_provenance(self, written: Mapping[str, bytes]) -> None:
        """Keep where outputs came from, as the recorder returned it: values by path."""
        self.values.update(written)

    def register_local_subscription(self, path: str, programs: Iterable[bytes]) -> None:
        """List which programs read an own path; without any, no more."""
        self._register(UserSpacePaths.local_subscription(path), programs)

    def register_peer_subscription(
        self, owner: bytes, path: str, programs: Iterable[bytes]
    ) -> None:
        """List which programs read a path of a peer; without any, no more."""
        self._register(UserSpacePaths.peer_subscription(owner, path), programs)

    def _register(self, path: str, programs: Iterable[bytes]) -> None:
        names = sorted(map(to_text, programs))
        self.values[path] = json.dumps(names).encode() if names else None

    def delete(self, path: str) -> None:
        """Delete what is at a path."""
        self.values[path] = None
