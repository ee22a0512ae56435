"""A bounded part of what several have, in which each has its turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def one_of_each(lists: Sequence[Sequence[T]], most: int) -> list[T]:
    """Return at most so many items: the first of each list, the second of each, and so on.

    So who has much leaves room for who has little.
    """
    turns = sorted((place, who) for who, each in enumerate(lists) for place in range(len(each)))
    return [lists[who][place] for place, who in turns[:most]]
