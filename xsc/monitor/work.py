"""Long work that was asked for, and how far it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from xsc.api.monitor import Work
from xsc.base.errors import ArgumentInvalid
from xsc.base.progress import Progress, Watch, unwatched


class Works:
    """The long work of a node that who asked for it wants to watch."""

    def __init__(self) -> None:
        self._under_way: dict[str, list[int]] = {}
        """By id: what is done, and how much there is."""

    def watch_of(self, work: str) -> Watch:
        """Return what watches work of an id; without one nothing does.

        It raises ArgumentInvalid where other work has that id.
        """
        return partial(self._watched, work) if work else unwatched

    @contextmanager
    def _watched(self, work: str, total: int | None) -> Iterator[Progress]:
        if work in self._under_way:
            raise ArgumentInvalid("other work has that id", hint="give each request its own")
        count = self._under_way[work] = [0, total or 0]

        def progress(more: int) -> None:
            count[0] += more

        try:
            yield progress
        finally:
            del self._under_way[work]

    def rows(self) -> list[Work]:
        """Return how far all of it is."""
        return [
            Work(id=work, done_bytes=done, total_bytes=total)
            for work, (done, total) in self._under_way.items()
        ]
