"""How far long work is: told by who does it, shown by who waits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[int], None]
"""Told how many more bytes, or things, are done."""
Watch = Callable[[int | None], AbstractContextManager[Progress]]
"""Told how many there are, where it is known; gives who is told of those that are done."""


def ignore_progress(_: int) -> None:
    """Take note of nothing."""


def unwatched(_: int | None) -> AbstractContextManager[Progress]:
    """Watch nothing."""
    return nullcontext(ignore_progress)
