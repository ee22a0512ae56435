"""What a page is, and what can be done on it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from xsc.base.errors import ArgumentInvalid, XscError
from xsc.dashboard.source import Node

NUMBER_MAX: Final = 2**63 - 1

Asked = dict[str, str]
"""The query of a page."""


@dataclass(frozen=True, slots=True)
class Said:
    """What is said once above a page, after an action."""

    says: str
    hint: str = ""
    secret: str = ""
    """Shown to be copied."""
    wrong: bool = False
    query: Mapping[str, str] = field(default_factory=dict)
    """Of the page that is shown."""

    @classmethod
    def of_fault(cls, fault: XscError) -> Said:
        """Return what is said of what was refused."""
        return cls(fault.message, fault.hint, wrong=True)


@dataclass(frozen=True, slots=True)
class Page:
    """A page, and what it asks the node."""

    path: str
    title: str
    template: str
    gather: Callable[[Node, Asked], Awaitable[Mapping[str, Any]]]
    """Returns what the template shows.

    Raises:
        XscError: why the page cannot be shown.
    """
    listed: bool = True
    """Whether it is in the menu."""


@dataclass(frozen=True, slots=True)
class Action:
    """What a POST does: exactly one of the last three."""

    path: str
    page: str
    """The path of the page that is shown after it."""
    change: Callable[[Node, Mapping[str, str]], Awaitable[Said]] | None = None
    """Takes a form."""
    download: Callable[[Node, Mapping[str, str]], Awaitable[tuple[str, str]]] | None = None
    """Takes a form; returns the capability of what is answered, and its name."""
    stream: Callable[[Node, web.BaseRequest], Awaitable[Said]] | None = None
    """Takes the bytes of the request; what is said goes to a script, as JSON."""


def number(name: str, text: str, *, least: int = 0) -> int:
    """Return the number that a field of a query or form says.

    Raises:
        ArgumentInvalid: it says none, or none from `least` to NUMBER_MAX.
    """
    if not re.fullmatch("[0-9]{1,19}", text) or not least <= int(text) <= NUMBER_MAX:
        raise ArgumentInvalid(f"{name} must be a whole number from {least} to {NUMBER_MAX}")
    return int(text)
