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


class Node(Protocol):
    """The node, as the dashboard sees it: what answers the endpoints of the API."""

    async def ask(
        self,
        endpoint: Endpoint[Q, Any],
        asked: Q,
        *,
        body: Read | None = None,
        window: slice | None = None,
    ) -> Document:
        """Return an answer as a client would read it.

        Args:
            endpoint: what is asked.
            asked: the request.
            body: the bytes that follow it.
            window: which rows of a listing are wanted; `total` says how many there are.

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

    def version(self) -> str:
        """Return something that changes when what pages show does."""


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
    node: Node, endpoint: Endpoint[Q, Any], asked: Q, *, window: slice | None = None
) -> Any:  # noqa: ANN401 (as the document; rows alone where there are)
    """Return what the node answers, or the rows of it, with numbers that know their origin.

    Args:
        node: is asked.
        endpoint: what is asked.
        asked: the request.
        window: which rows are wanted.

    Raises:
        XscError: why there is no answer.
    """
    path = written(endpoint, asked)[0] + "#"
    found = await node.ask(endpoint, asked, window=window)
    if not endpoint.rows:
        return sourced(found, path)
    first = window.start if window is not None else 0
    rows: Sequence[object] = found[endpoint.rows]
    return [
        sourced(row, f"{path}/{endpoint.rows}/{place}") for place, row in enumerate(rows, first)
    ]
