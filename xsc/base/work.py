"""Processor time, told to whoever is named where a call entered.

It is measured and shown; it decides nothing, so that simulations can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

ENTERED: ContextVar[Callable[[int], None] | None] = ContextVar("entered", default=None)
"""Takes the microseconds that are worked for a call: set where it enters, and known to all tasks
and threads that it begins."""


def worked(processor_us: int) -> None:
    """Tell the present call that something was worked for it; there may be none."""
    tell = ENTERED.get()
    if tell is not None:
        tell(processor_us)


class Measured(Generator[Any, Any, T]):
    """A coroutine whose steps are measured.

    Args:
        work: the coroutine.
        processor_us: returns the processor time of this thread.
    """

    def __init__(self, work: Coroutine[Any, Any, T], processor_us: Callable[[], int]) -> None:
        self._work = work
        self._processor_us = processor_us
        self.took_us = 0
        """All steps so far."""

    def __await__(self) -> Generator[Any, Any, T]:
        return self

    def _step(self, step: Callable[..., Any], *given: Any) -> Any:  # noqa: ANN401 - the loop's own
        began_us = self._processor_us()
        try:
            return step(*given)
        finally:
            self.took_us += self._processor_us() - began_us

    def send(self, value: Any) -> Any:  # noqa: ANN401 - the loop's own
        """Take a step."""
        return self._step(self._work.send, value)

    def throw(self, *fault: Any) -> Any:  # noqa: ANN401 - the loop's own
        """Take a step that begins with a fault."""
        return self._step(self._work.throw, *fault)
