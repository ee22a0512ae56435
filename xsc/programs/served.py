"""A program that comes with XSC: the service whose rule it is asks for its frames.

The service gives it all that it reads, and writes what a frame gives together with its own
values.
"""

from __future__ import annotations

from collections.abc import Mapping

from xsc.api.programs import Results
from xsc.base.errors import NotFound, StoreDamaged
from xsc.programs.compile import CompiledProgram
from xsc.programs.evaluations import evaluations_of
from xsc.programs.frame import Execution, Flags, FrameResult
from xsc.programs.limits import INPUT_INLINE_BYTES_MAX
from xsc.programs.numbers import Value
from xsc.programs.ports import Recorder
from xsc.programs.running import shown_of
from xsc.programs.writes import Writes
from xsc.space.port import Space


class ServedProgram:
    """A program whose variables are given or local, and which calls no module."""

    def __init__(self, program: CompiledProgram, space: Space, recorder: Recorder) -> None:
        self.program = program
        self.fault = ""
        """Why it does not serve, or ''."""
        self._publications = 0
        self._space = space
        self._recorder = recorder
        self._is_damaged = False
        self._flags: Flags = {}
        self._begin()

    def _begin(self) -> None:
        self._execution = Execution.begin(self.program)
        try:
            self._flags = self._execution.go_on(self._kept)
        except StoreDamaged as fault:
            self._is_damaged, self.fault = True, f"{fault.code}: {fault.message}"
        self._result: FrameResult | None = None

    def _kept(self, path: str) -> bytes | None:
        try:
            return self._space.get(path).value
        except NotFound:
            return None

    def run(self, given: Mapping[str, Value]) -> dict[str, Value] | None:
        """Run a frame, and return its outputs by name; None where it fails, and `fault` says why.

        Args:
            given: values of variables.
        """
        if self._is_damaged:
            return None
        self._result = self._execution.run(given)
        if errors := self._execution.errors:
            name, message = min(errors.items())
            self._begin()  # the next frame runs what this one did, too
            self.fault = f"{name}: {message}"
            return None
        self.fault = ""
        outputs = {}
        for step in self.program.steps:
            for output in step.outputs:
                value = self._execution.output(output.name)
                assert value is not None, "it has no error"
                outputs[output.name] = value
        return outputs

    def writes(self) -> dict[str, bytes | None]:
        """Return what is to be written of the last frame, by path.

        Call `wrote` once it is written, and `undo` where it was not.
        """
        result = self._result
        assert result is not None, "a frame was run"
        writes = Writes()
        writes.write_frame(self._execution, result, self.program.variables, self._flags, self._kept)
        if result.executed:
            made = evaluations_of(self.program, result, {}, {})
            writes.write_provenance(self._recorder.record(self.program, made))
        return writes.values

    def wrote(self) -> None:
        """Go on from what was written."""
        self._flags = self._execution.flags()
        self._publications += 1

    def undo(self, fault: str = "") -> None:
        """Begin again from what was written last; `fault` says why it was not written."""
        self._recorder.forget(self.program.hash)
        self._begin()
        self.fault = self.fault or fault

    def results(self) -> Results:
        """Return what it computed last, as text."""
        return shown_of(
            self._execution,
            state="failed" if self.fault else "active",
            fault=self.fault,
            publications=self._publications,
            built_in=True,
            bytes_max=INPUT_INLINE_BYTES_MAX,
        )
