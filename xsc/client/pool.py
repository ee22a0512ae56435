"""Several calls of one node at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
WORKERS = 8
"""Calls under way at once."""


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Do something with each item, several at once; return what came of it, in order.

    Raises:
        Exception: the first that was met; what has not begun by then is not begun.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, items))
