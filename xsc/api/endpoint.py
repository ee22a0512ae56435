"""What an endpoint of the node's HTTP API is: one row of the table that node and client share.

A field of a request is in the path if the path names it, in a header if `header` says so, and else
in the JSON body, or in the query if a request has no JSON. Values of headers are percent-encoded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar, dataclass_transform
from urllib.parse import quote

from xsc.base.errors import ArgumentInvalid

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
Q = TypeVar("Q")
R = TypeVar("R")

Takes = Literal["json", "framed", "bytes"]
"""framed: the length of the JSON in 4 bytes, big-endian, the JSON, and then bytes."""
Gives = Literal["json", "bytes", "cbor", "lines", "events"]
"""cbor: a file for `xsc verify`. lines, events: a JSON document each, as they come."""
_PLAIN: Final = "!#$&'()*+,-./:;<=>?@[]^_`{|}~"
"""Characters that a header holds as they are: no space, which would be lost at an end."""


def header(name: str, *, default: T) -> T:
    """Return a field of a request that travels in a header, so that no log of paths holds it."""
    return field(default=default, metadata={"header": name})


def absent(*, default: None = None) -> Any:  # noqa: ANN401 (of any type, or None)
    """Return a field of an answer that is left out where it is None."""
    return field(default=default, metadata={"absent": True})


@dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(field, header, absent)
)
def model(cls: type[T]) -> type[T]:
    """Make a class a request or an answer: strict, without unknown fields, never changed."""
    made = dataclass(frozen=True, slots=True, kw_only=True)(cls)
    made.__pydantic_config__ = {"strict": True, "extra": "forbid"}  # type: ignore[attr-defined]
    return made


@model
class Nothing:
    """A request that says all by its method and path."""


@model
class Id:
    """What has an id; of own slots, leases and clearings its beginning is enough."""

    id: str


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[Q, R]):
    """What is asked at a path, and what is answered."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    request: type[Q]
    answer: type[R]
    """Of one line or event, where there are several."""
    says: str
    """What it does, in one sentence."""
    takes: Takes = "json"
    gives: Gives = "json"
    status: int = 200

    @property
    def has_json(self) -> bool:
        """Whether a request carries JSON."""
        return self.takes == "framed" or (self.takes == "json" and self.method in {"POST", "PUT"})


def in_path(endpoint: Endpoint[Any, Any]) -> frozenset[str]:
    """Return the names of the fields that are in the path."""
    return frozenset(re.findall(r"{(\w+)}", endpoint.path))


@cache
def headers_of(request: type[DataclassInstance]) -> Mapping[str, str]:
    """Return the headers that fields of a request travel in, by the fields' names."""
    named = {each.name: each.metadata.get("header") for each in fields(request)}
    return {name: value for name, value in named.items() if value}


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def written(
    endpoint: Endpoint[Q, Any], asked: Q
) -> tuple[str, Mapping[str, str], Mapping[str, Any]]:
    """Return a request's path with its query, its headers, and its JSON.

    What has its default is left out.

    Raises:
        ArgumentInvalid: what its path names is empty.
        UnicodeEncodeError: a text is none, as a shell may hand it over.
    """
    headers, document, query, path = {}, {}, [], endpoint.path
    placed = in_path(endpoint)
    for each in fields(endpoint.request):  # type: ignore[arg-type]
        value = getattr(asked, each.name)
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if each.name in placed:
            if not value:
                raise ArgumentInvalid(f"the {each.name} is empty", hint="name what is meant")
            path = path.replace(f"{{{each.name}}}", quote(value, safe=""))
        elif value is None or value == default:
            continue
        elif name := each.metadata.get("header"):
            headers[name] = quote(_text(value), safe=_PLAIN)
        elif endpoint.has_json:
            document[each.name] = value
        else:
            query.append(f"{each.name}={quote(_text(value), safe='')}")
    return path + ("?" + "&".join(query) if query else ""), headers, document
