"""Documents of the API whose numbers know where they are from.

Each number that a page shows is written as `<data value="…" data-from="/v1/…#/a/0/b">`: the path of
the answer, and the JSON pointer (RFC 6901) of the number in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from aiohttp import web
from markupsafe import Markup, escape

from xsc.api.endpoint import Endpoint, written

Document = dict[str, Any]
Q = TypeVar("Q")
Read = Callable[[int], Awaitable[bytes]]
"""Returns the next bytes of a body, at most so many; none at the end."""

Pick = Callable[[Sequence[Any]], Sequence[int]]
"""Takes the rows of a listing, and returns the places of those that are wanted, in their order."""


class Rows(list[Any]):
    """Rows of a listing, and how many there are with those that are not shown."""

    total: int


class Node(Protocol):
    """The node, as the dashboard sees it: what answers the endpoints of the API."""

    async def ask(
        self,
        endpoint: Endpoint[Q, Any],
        asked: Q,
        *,
        body: Read | None = None,
        pick: Pick | None = None,
        window: slice = slice(None),
    ) -> Document:
        """Return an answer as a client would read it.

        Args:
            endpoint: what is asked.
            asked: the request.
            body: the bytes that follow it.
            pick: returns the places of the rows of a listing that are wanted; without it, all.
            window: which of these are answered. `places` says where they are in the listing,
                and `total` how many were picked.

        Raises:
            XscError: why there is none.
        """

    async def download(
        self, request: web.BaseRequest, capability: str, headers: Mapping[str, str]
    ) -> web.StreamResponse:
        """Answer a request with the bytes of an object.

        Raises:
            XscError: why it cannot be read.
        """

    def changes(self) -> str:
        """Return a text that is another one once something has changed that pages show."""


class Number(int):
    """A number of an answer, and where it is from."""

    origin: str

    def __html__(self) -> str:
        """Return it as an element that says so."""
        return shown(self, str(int(self)))


def shown(number: int, text: str) -> Markup:
    """Return an element that shows a number as a text, and says where the number is from."""
    origin = getattr(number, "origin", None)
    if origin is None:
        return escape(text)
    return Markup('<data value="{}" data-from="{}">{}</data>').format(int(number), origin, text)


def total(numbers: Iterable[int]) -> Number:
    """Return a sum, which is from all the places of what it sums."""
    parts = list(numbers)
    found = Number(sum(parts))
    found.origin = " ".join(getattr(part, "origin", "") for part in parts)
    return found


def sourced(value: object, origin: str) -> Any:  # noqa: ANN401 (as the document)
    """Return a document with numbers that know their origin.

    Args:
        value: the document, or a part of it.
        origin: its path, and its place in the answer.
    """
    if isinstance(value, dict):
        return {key: sourced(item, f"{origin}/{_escaped(key)}") for key, item in value.items()}
    if isinstance(value, list):
        return [sourced(item, f"{origin}/{place}") for place, item in enumerate(value)]
    if isinstance(value, int) and not isinstance(value, bool):
        number = Number(value)
        number.origin = origin
        return number
    return value


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


async def fetch(
    node: Node,
    endpoint: Endpoint[Q, Any],
    asked: Q,
    *,
    pick: Pick | None = None,
    window: slice = slice(None),
) -> Any:  # noqa: ANN401 (as the document; `Rows` where there are)
    """Return what the node answers, or the rows of it, with numbers that know their origin.

    The origin names no headers of the request: a capability is in none.

    Args:
        node: is asked.
        endpoint: what is asked.
        asked: the request.
        pick: which rows are wanted.
        window: which of these are shown.

    Raises:
        XscError: why there is no answer.
    """
    path = written(endpoint, asked)[0] + "#"
    found = await node.ask(endpoint, asked, pick=pick, window=window)
    if not endpoint.rows:
        return sourced(found, path)
    rows = Rows(
        sourced(row, f"{path}/{endpoint.rows}/{place}")
        for place, row in zip(found["places"], found[endpoint.rows], strict=True)
    )
    rows.total = found["total"]
    return rows
